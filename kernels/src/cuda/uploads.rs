//! Weights on their way to a GPU: through two pieces of pinned memory in turn. The host fills one while the GPU copies from the other, at the
//! bus's speed; memory that is not pinned the driver would copy into pinned memory of its own first, and the caller would wait for it.

use std::sync::Arc;

use super::{Context, DeviceMemory, Event, PinnedWords};
use crate::Result;

/// Bytes of a piece, but for a row that has more. 8 MiB: their way over the bus takes 150 us and more, beside which the host's calls are
/// nothing; and four of them, two here and two on the device, do not count as memory.
pub(crate) const PIECE_BYTES: usize = 8 << 20;

/// The pieces of a GPU. They are there from their first use on.
pub(crate) struct Uploads {
    context: Arc<Context>,
    pieces: [Option<Piece>; 2],
    turn: usize,
}

struct Piece {
    pinned: PinnedWords,
    staging: DeviceMemory,
    /// Behind everything that reads either.
    passed: Event,
    bytes: usize,
}

/// A piece that nobody reads, until it is dropped; what it was asked for in the meantime is then waited for before it is the next one.
pub(crate) struct Turn<'a> {
    piece: &'a mut Piece,
}

impl Uploads {
    /// Without pieces yet.
    pub(crate) fn new(context: &Arc<Context>) -> Uploads {
        Uploads { context: context.clone(), pieces: [None, None], turn: 0 }
    }

    /// The next piece, with room for so many bytes, when the GPU has done what it was asked for with it before.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Cuda`](crate::Error::Cuda).
    pub(crate) fn next(&mut self, bytes: usize) -> Result<Turn<'_>> {
        self.turn = (self.turn + 1) % self.pieces.len();
        let piece = &mut self.pieces[self.turn];
        if let Some(piece) = piece {
            piece.passed.wait()?;
        }
        // One that is too small is freed first.
        let known = piece.take().filter(|piece| piece.bytes >= bytes);
        let known = known.map_or_else(|| Piece::new(&self.context, bytes.max(PIECE_BYTES)), Ok)?;
        Ok(Turn { piece: piece.insert(known) })
    }
}

impl Piece {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Piece> {
        let pinned = PinnedWords::zeroed(context, bytes.div_ceil(size_of::<u32>()))?;
        let staging = DeviceMemory::zeroed(context, bytes, "weights on their way")?;
        Ok(Piece { pinned, staging, passed: Event::new(context)?, bytes })
    }
}

impl Turn<'_> {
    /// What the host fills.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(self.piece.pinned.as_mut_slice())[..self.piece.bytes]
    }

    /// Copies the bytes `start..start + len`, both multiples of four, to `to`, once the stream comes to it.
    ///
    /// # Safety
    /// `to` is the address of as many bytes of this device.
    pub(crate) unsafe fn upload(&self, to: u64, start: usize, len: usize) -> Result<()> {
        const WORD: usize = size_of::<u32>();
        assert!(start.is_multiple_of(WORD) && len.is_multiple_of(WORD), "rows of weights are whole words");
        // A range of words goes to the same place among others: those begin as far before `to`.
        let first = to.wrapping_sub(start as u64);
        // SAFETY: as many bytes are at `to` (the caller's obligation); they are filled again only when `passed`, which follows, was waited
        // for.
        unsafe { self.piece.pinned.upload(first, start / WORD..(start + len) / WORD) }
    }

    /// Copies the first `len` bytes, a multiple of four, to memory of the device where kernels read them until the turn is over. Where that
    /// is.
    pub(crate) fn stage(&self, len: usize) -> Result<u64> {
        let to = self.piece.staging.address();
        assert!(len <= self.piece.bytes, "it has as many");
        // SAFETY: the staging memory holds all bytes of the piece, and nobody reads it before the stream has come to the copy.
        unsafe { self.upload(to, 0, len)? };
        Ok(to)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // A stream that takes no event any more takes no other work either.
        let _ = self.piece.passed.record();
    }
}
