//! Eight-bit floating point of caches: OCP FP8 E4M3 (without infinities) and E5M2. Nothing computes in them: they are
//! stored rounded and widened exactly when loaded.
//!
//! Source: arXiv:2209.05433; Open Compute Project, "OCP 8-bit Floating Point Specification (OFP8)".

use bytemuck::{Pod, Zeroable};

use super::{Element, LANES, Simd};

/// Four bits of exponent, three of mantissa; up to 448.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct E4m3(u8);

/// Five bits of exponent, two of mantissa; up to 57344.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct E5m2(u8);

/// What tells one format from the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) mantissa_bits: u32,
    pub(crate) bias: i32,
    /// The bits of the largest finite number.
    pub(crate) largest: u32,
}

pub(crate) const E4M3: Format = Format { mantissa_bits: 3, bias: 7, largest: 0x7e };
pub(crate) const E5M2: Format = Format { mantissa_bits: 2, bias: 15, largest: 0x7b };

/// NaN in both formats, one of several in E5M2.
const NAN: u32 = 0x7f;

impl Format {
    /// Rounds to nearest, ties to even; beyond the largest finite number, that number. NaN stays NaN.
    #[inline(always)]
    const fn encode(self, x: f32) -> u8 {
        let sign = (x.to_bits() >> 24) & 0x80;
        let magnitude = x.to_bits() & 0x7fff_ffff;
        let dropped_bits = 23 - self.mantissa_bits;
        let first_normal = ((1 - self.bias + 127) as u32) << 23;
        let rounded = if magnitude > 0x7f80_0000 {
            NAN
        } else if magnitude < first_normal {
            // Adding 2^23 times the distance of subnormals lets the adder round to a multiple of it.
            let shift = ((1 - self.bias + dropped_bits as i32 + 127) as u32) << 23;
            (f32::from_bits(magnitude) + f32::from_bits(shift)).to_bits() - shift
        } else {
            let odd = (magnitude >> dropped_bits) & 1;
            let rounded = (magnitude + (1 << (dropped_bits - 1)) - 1 + odd) >> dropped_bits;
            let code = rounded - (((127 - self.bias) as u32) << self.mantissa_bits);
            if code > self.largest { self.largest } else { code }
        };
        (sign | rounded) as u8
    }

    /// The number that a code is.
    pub(crate) const fn decode(self, bits: u8) -> f32 {
        let (magnitude, mantissa) = (bits as u32 & 0x7f, bits as u32 & ((1 << self.mantissa_bits) - 1));
        let exponent = magnitude >> self.mantissa_bits;
        let unit = f32::from_bits(((1 - self.bias - self.mantissa_bits as i32 + 127) as u32) << 23);
        let value = if magnitude > self.largest {
            // The one code of E5M2 between the largest and the NaNs is infinity, which `encode` never writes.
            if self.mantissa_bits == 2 && magnitude == 0x7c { f32::INFINITY } else { f32::NAN }
        } else if exponent == 0 {
            mantissa as f32 * unit
        } else {
            f32::from_bits(
                (exponent as i32 - self.bias + 127) as u32 * (1 << 23) + (mantissa << (23 - self.mantissa_bits)),
            )
        };
        if bits & 0x80 == 0 { value } else { -value }
    }

    const fn decode_all(self) -> [f32; 256] {
        let (mut all, mut bits) = ([0.0; 256], 0);
        while bits < 256 {
            all[bits] = self.decode(bits as u8);
            bits += 1;
        }
        all
    }

    /// The non-negative codes as bf16, which holds every one of them exactly.
    #[cfg(target_arch = "x86_64")]
    const fn bf16_of_magnitudes(self) -> [u16; 128] {
        let (mut all, mut bits) = ([0; 128], 0);
        while bits < 128 {
            all[bits] = (self.decode(bits as u8).to_bits() >> 16) as u16;
            bits += 1;
        }
        all
    }
}

static ALL_E4M3: [f32; 256] = E4M3.decode_all();
static ALL_E5M2: [f32; 256] = E5M2.decode_all();

#[cfg(target_arch = "x86_64")]
impl E4m3 {
    /// bf16 bits of the codes 0..128.
    pub(crate) const BF16: [u16; 128] = E4M3.bf16_of_magnitudes();
}

#[cfg(target_arch = "x86_64")]
impl E5m2 {
    /// bf16 bits of the codes 0..128.
    pub(crate) const BF16: [u16; 128] = E5M2.bf16_of_magnitudes();
}

impl Element for E4m3 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[E4m3; LANES]) -> S::V {
        simd.load_e4m3_any(x)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> E4m3 {
        E4m3(E4M3.encode(x))
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        ALL_E4M3[self.0 as usize]
    }
}

impl Element for E5m2 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[E5m2; LANES]) -> S::V {
        simd.load_e5m2(x)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> E5m2 {
        E5m2(E5M2.encode(x))
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        ALL_E5M2[self.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, Kernel, Lanes};
    use super::*;

    /// The nearest code by trying all finite ones; of two equally near ones the even.
    fn nearest(all: &[f32; 256], x: f32) -> u8 {
        let finite = (0..=255u8).filter(|code| all[*code as usize].is_finite());
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let distance = |code: &u8| (all[*code as usize] as f64 - x.clamp(-1e9, 1e9) as f64).abs();
        finite
            .filter(|code| code & 0x80 == sign)
            .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))))
            .unwrap()
    }

    #[test]
    fn rounding_is_to_nearest_even_and_saturates() {
        // Every code, the middle to the next one, and the floats around both; then what lies beyond.
        for (format, all) in [(E4M3, &ALL_E4M3), (E5M2, &ALL_E5M2)] {
            let mut inputs =
                vec![0.0, -0.0, 1e-30, 449.0, 480.0, 1e5, -1e5, f32::MAX, f32::INFINITY, f32::NEG_INFINITY];
            for code in 0..255usize {
                let (this, next) = (all[code], all[code + 1]);
                if this.is_finite() && next.is_finite() {
                    let middle = ((this as f64 + next as f64) / 2.0) as f32;
                    for x in [this, middle] {
                        inputs.extend([
                            x,
                            f32::from_bits(x.to_bits() + 1),
                            f32::from_bits(x.to_bits().saturating_sub(1)),
                        ]);
                    }
                }
            }
            for x in inputs.into_iter().filter(|x| !x.is_nan()) {
                assert_eq!(format.encode(x), nearest(all, x), "{x:e} with {} mantissa bits", format.mantissa_bits);
            }
            assert!(all[format.encode(f32::NAN) as usize].is_nan());
            assert!(all[format.encode(-f32::NAN) as usize].is_nan());
        }
        assert_eq!((ALL_E4M3[0x7e], ALL_E4M3[0x01], ALL_E4M3[0x08]), (448.0, 1.0 / 512.0, 1.0 / 64.0));
        assert_eq!((ALL_E5M2[0x7b], ALL_E5M2[0x01], ALL_E5M2[0x04]), (57344.0, 1.0 / 65536.0, 1.0 / 16384.0));
    }

    struct Load<T>([T; LANES]);

    impl<T: Element> Kernel for Load<T> {
        type Output = Lanes;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Lanes {
            simd.to_array(T::load(simd, &self.0))
        }
    }

    #[test]
    fn every_instruction_set_widens_every_code_exactly() {
        for isa in Isa::available() {
            for first in (0..256).step_by(LANES) {
                let codes: [u8; LANES] = std::array::from_fn(|lane| (first + lane) as u8);
                let (e4m3, e5m2) = (isa.run(Load(codes.map(E4m3))), isa.run(Load(codes.map(E5m2))));
                for lane in 0..LANES {
                    for (actual, all) in [(e4m3[lane], &ALL_E4M3), (e5m2[lane], &ALL_E5M2)] {
                        let expected = all[first + lane];
                        let equal = actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan();
                        assert!(equal, "{}: code {} is {actual}, expected {expected}", isa.name(), first + lane);
                    }
                }
            }
        }
    }
}
