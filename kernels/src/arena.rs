//! The memory of a step's activations: one allocation, used as a stack, sized by a dry run on the plan device.

use std::sync::Arc;

use crate::limits::ALIGNMENT;
use crate::memory::{Memory, Storage};
use crate::{DType, Device, Error, Result, Tensor};

/// A stack of tensors. After the first step of a shape nothing allocates.
pub struct Arena {
    memory: Arc<Memory>,
    /// One borrow count per tensor on the stack; those above `live` wait for their next use.
    slots: Vec<Arc<Storage>>,
    live: usize,
    top: usize,
    high_water: usize,
}

/// A height of an [`Arena`]'s stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    live: usize,
    top: usize,
}

impl Arena {
    /// An arena without memory that records how much a real one needs. Its tensors live on a plan device of its own,
    /// and operations that write to them count bytes and FLOPs in that device's [`ledger`](Device::ledger); their other
    /// arguments may live anywhere, so the real weights serve for the dry run.
    pub fn plan() -> Arena {
        let device = Device::plan();
        Arena::over(Memory::new(&device, usize::MAX, "arena").expect("the plan device takes no memory"))
    }

    /// An arena of `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the machine has not so much.
    pub fn new(device: &Device, bytes: usize) -> Result<Arena> {
        Ok(Arena::over(Memory::new(device, bytes, "arena")?))
    }

    fn over(memory: Memory) -> Arena {
        Arena { memory: Arc::new(memory), slots: Vec::new(), live: 0, top: 0, high_water: 0 }
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        self.memory.device()
    }

    /// A tensor on top of the stack. Its contents are whatever lay there before.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the arena is full.
    pub fn tensor(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let requested_bytes = shape.iter().product::<usize>() * dtype.size_bytes();
        let available_bytes = self.memory.bytes() - self.top;
        if requested_bytes > available_bytes {
            return Err(Error::OutOfMemory { arena: "arena", requested_bytes, available_bytes });
        }
        if self.live == self.slots.len() {
            self.slots.push(Arc::new(Storage::new(self.memory.clone())));
        }
        let tensor = Tensor::on(self.slots[self.live].clone(), self.top, shape, dtype);
        self.live += 1;
        // The last tensor may end at the very end of the memory: only the next one needs the alignment.
        self.high_water = self.high_water.max(self.top + requested_bytes);
        self.top = (self.top + requested_bytes).next_multiple_of(ALIGNMENT).min(self.memory.bytes());
        Ok(tensor)
    }

    /// The present height of the stack.
    pub fn mark(&self) -> Mark {
        Mark { live: self.live, top: self.top }
    }

    /// Takes back everything above `mark`. Handles of those tensors may live on, but using one panics.
    pub fn release(&mut self, mark: Mark) {
        assert!(
            mark.live <= self.live && mark.top <= self.top,
            "marks are released in the reverse order of their making"
        );
        self.slots[mark.live..self.live].iter().for_each(|slot| slot.retire());
        (self.live, self.top) = (mark.live, mark.top);
    }

    /// The greatest height so far, in bytes: what [`Arena::new`] needs to run the same steps.
    pub fn high_water_bytes(&self) -> usize {
        self.high_water
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(arena: &mut Arena) -> Result<()> {
        let outer = arena.mark();
        let _hidden = arena.tensor(&[3, 5], DType::F32)?;
        for _layer in 0..2 {
            let layer = arena.mark();
            let _up = arena.tensor(&[3, 7], DType::F32)?;
            let _small = arena.tensor(&[1], DType::Bf16)?;
            arena.release(layer);
        }
        arena.release(outer);
        Ok(())
    }

    #[test]
    fn the_plan_gives_the_exact_size() {
        let mut plan = Arena::plan();
        step(&mut plan).unwrap();
        assert_eq!(plan.high_water_bytes(), 64 + 128 + 2);
        let mut arena = Arena::new(&Device::cpu(1), plan.high_water_bytes()).unwrap();
        step(&mut arena).unwrap();
        let mut small = Arena::new(&Device::cpu(1), plan.high_water_bytes() - 1).unwrap();
        assert_eq!(
            step(&mut small).unwrap_err(),
            Error::OutOfMemory { arena: "arena", requested_bytes: 2, available_bytes: 1 }
        );
    }

    #[test]
    #[should_panic(expected = "after its arena took the memory back")]
    fn a_stale_tensor_panics() {
        let mut arena = Arena::new(&Device::cpu(1), 64).unwrap();
        let mark = arena.mark();
        let stale = arena.tensor(&[4], DType::F32).unwrap();
        arena.release(mark);
        let _fresh = arena.tensor(&[4], DType::F32).unwrap();
        let _ = stale.as_f32();
    }

    #[test]
    fn tensors_are_aligned() {
        let mut arena = Arena::new(&Device::cpu(1), 1024).unwrap();
        for size in [1, 3, 16, 17] {
            let tensor = arena.tensor(&[size], DType::F32).unwrap();
            assert_eq!(tensor.as_f32().as_ptr() as usize % ALIGNMENT, 0);
        }
    }
}
