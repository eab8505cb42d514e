//! Packed byte fields: little-endian arrays that need no message per element.

use bytes::{BufMut, Bytes, BytesMut};

/// A packed field whose length is not a whole number of records.
#[derive(Debug, PartialEq, Eq)]
pub struct PackedError {
    /// Length of the field in bytes.
    pub length: usize,
    /// Bytes that one record takes.
    pub record: usize,
}

impl std::fmt::Display for PackedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "packed field of {} bytes is not a multiple of {}", self.length, self.record)
    }
}

impl std::error::Error for PackedError {}

/// Packs `values` as little-endian u32.
pub fn pack_u32(values: impl IntoIterator<Item = u32>) -> Bytes {
    let values = values.into_iter();
    let mut out = BytesMut::with_capacity(values.size_hint().0 * 4);
    values.for_each(|value| out.put_u32_le(value));
    out.freeze()
}

/// The values of a packed u32 field.
///
/// # Errors
/// [`PackedError`] if the length is not a multiple of four.
pub fn unpack_u32(field: &[u8]) -> Result<impl ExactSizeIterator<Item = u32> + '_, PackedError> {
    let (records, rest) = field.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(PackedError { length: field.len(), record: 4 });
    }
    Ok(records.iter().map(|record| u32::from_le_bytes(*record)))
}

/// Packs `values` as little-endian f32, bit for bit.
pub fn pack_f32(values: impl IntoIterator<Item = f32>) -> Bytes {
    pack_u32(values.into_iter().map(f32::to_bits))
}

/// The values of a packed f32 field.
///
/// # Errors
/// [`PackedError`] if the length is not a multiple of four.
pub fn unpack_f32(field: &[u8]) -> Result<impl ExactSizeIterator<Item = f32> + '_, PackedError> {
    Ok(unpack_u32(field)?.map(f32::from_bits))
}

/// Bytes of one [`Sample`] on the wire.
pub const SAMPLE_BYTES: usize = 12;

/// One sampled token of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The slot of the row.
    pub slot: u32,
    /// The token that was chosen.
    pub token_id: u32,
    /// Its log-probability after all warpers.
    pub logprob: f32,
}

impl Sample {
    /// Packs `samples` as (slot u32, token id u32, logprob f32) records.
    pub fn pack(samples: &[Sample]) -> Bytes {
        let mut out = BytesMut::with_capacity(samples.len() * SAMPLE_BYTES);
        for sample in samples {
            out.put_u32_le(sample.slot);
            out.put_u32_le(sample.token_id);
            out.put_f32_le(sample.logprob);
        }
        out.freeze()
    }

    /// The samples of a packed field.
    ///
    /// # Errors
    /// [`PackedError`] if the length is not a multiple of [`SAMPLE_BYTES`].
    pub fn unpack(field: &[u8]) -> Result<impl ExactSizeIterator<Item = Sample> + '_, PackedError> {
        let (records, rest) = field.as_chunks::<SAMPLE_BYTES>();
        if !rest.is_empty() {
            return Err(PackedError { length: field.len(), record: SAMPLE_BYTES });
        }
        Ok(records.iter().map(|record| {
            let word = |at: usize| [record[at], record[at + 1], record[at + 2], record[at + 3]];
            Sample {
                slot: u32::from_le_bytes(word(0)),
                token_id: u32::from_le_bytes(word(4)),
                logprob: f32::from_le_bytes(word(8)),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u32_round_trip() {
        let values = [0, 1, 0x0102_0304, u32::MAX];
        let packed = pack_u32(values);
        assert_eq!(&packed[8..12], [4, 3, 2, 1]);
        assert_eq!(unpack_u32(&packed).unwrap().collect::<Vec<_>>(), values);
    }

    #[test]
    fn f32_round_trip_with_exact_bits() {
        let values = [0.0, -0.0, -1.5, f32::NEG_INFINITY, f32::from_bits(0x7FC0_0001)];
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let packed = pack_f32(values);
        assert_eq!(&packed[8..12], [0, 0, 0xC0, 0xBF]);
        assert_eq!(bits(&unpack_f32(&packed).unwrap().collect::<Vec<_>>()), bits(&values));
        assert_eq!(unpack_f32(&[0; 6]).err(), Some(PackedError { length: 6, record: 4 }));
    }

    #[test]
    fn samples_round_trip_with_exact_logprob_bits() {
        let samples = [
            Sample { slot: 3, token_id: 70_000, logprob: -0.1 },
            Sample { slot: 0, token_id: 0, logprob: f32::NEG_INFINITY },
        ];
        let packed = Sample::pack(&samples);
        assert_eq!(packed.len(), 2 * SAMPLE_BYTES);
        assert_eq!(Sample::unpack(&packed).unwrap().collect::<Vec<_>>(), samples);
    }

    #[test]
    fn a_cut_field_is_refused_with_its_length() {
        assert_eq!(unpack_u32(&[1, 2, 3]).err(), Some(PackedError { length: 3, record: 4 }));
        assert_eq!(Sample::unpack(&[0; 13]).err(), Some(PackedError { length: 13, record: 12 }));
    }
}
