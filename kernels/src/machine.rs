//! What this machine can do at most: the roof that `just bench` holds the operations against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::device::Cpu;
use crate::simd::{Kernel, LANES, Lanes, Simd};
use crate::{DType, Device, Result, Tensor};

/// Runs `f` once to warm up, then until 7 runs and 100 ms have passed, and returns the median duration of a run.
pub fn median_duration(mut f: impl FnMut()) -> Duration {
    f();
    let begin = Instant::now();
    let mut runs = Vec::new();
    while runs.len() < 7 || begin.elapsed() < Duration::from_millis(100) {
        let start = Instant::now();
        f();
        runs.push(start.elapsed());
    }
    runs.sort();
    runs[runs.len() / 2]
}

/// Bytes per second that the device's threads read together from a buffer of `bytes` bytes: much larger than the caches
/// gives the memory's bandwidth, smaller the cache's. The best of one, two and four streams a thread: which of them feeds the
/// prefetchers best, machines disagree about. None on a device that computes nothing.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn read_bandwidth(device: &Device, bytes: usize) -> Result<Option<f64>> {
    let Device::Cpu(cpu) = device else { return Ok(None) };
    let mut buffer = Tensor::zeros(device, &[bytes / 4], DType::F32)?;
    // Pages that were never written are all the same one, which stays in the cache.
    buffer.as_f32_mut().fill(1.0);
    let buffer = buffer.as_f32();
    let vectors = buffer.as_chunks::<LANES>().0;
    let medians = [read::<1>(cpu, vectors), read::<2>(cpu, vectors), read::<4>(cpu, vectors)];
    let best = medians.into_iter().min().expect("there are three");
    Ok(Some(bytes as f64 / best.as_secs_f64()))
}

/// The time in which the threads read all of `vectors`, each its part in `STREAMS` places at once.
fn read<const STREAMS: usize>(cpu: &Cpu, vectors: &[Lanes]) -> Duration {
    median_duration(|| {
        cpu.split(vectors.len(), 1, |range| {
            let part = &vectors[range];
            let length = part.len() / STREAMS;
            let streams = std::array::from_fn(|stream| &part[stream * length..][..length]);
            cpu.isa.run(Read::<STREAMS> { streams });
        });
    })
}

/// FLOPs per second of fused multiply-adds (two each) in registers, all threads together. None on a device that computes
/// nothing.
pub fn fma_peak(device: &Device) -> Option<f64> {
    const STEPS: usize = 1 << 18;
    let Device::Cpu(cpu) = device else { return None };
    let spin = |cpu: &Cpu| cpu.pool.run(cpu.pool.threads(), |_| cpu.isa.run(Spin { steps: black_box(STEPS) }));
    let median = median_duration(|| spin(cpu));
    Some((2 * STEPS * CHAINS * LANES * cpu.pool.threads()) as f64 / median.as_secs_f64())
}

/// Independent chains of [`Spin`]: more than latency × ports (4 × 2 on AVX-512 and AVX2 cores); with its operand each
/// still has a register of sixteen.
const CHAINS: usize = 12;

struct Read<'a, const STREAMS: usize> {
    /// Of equal length.
    streams: [&'a [Lanes]; STREAMS],
}

impl<const STREAMS: usize> Kernel for Read<'_, STREAMS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut max = [simd.splat(0.0); 4];
        let streams = self.streams.map(|stream| stream.as_chunks::<4>().0);
        for index in 0..streams[0].len() {
            for stream in streams {
                for (max, x) in max.iter_mut().zip(&stream[index]) {
                    *max = simd.max(simd.load(x), *max);
                }
            }
        }
        black_box(max.map(|max| simd.largest(max)));
    }
}

struct Spin {
    steps: usize,
}

impl Kernel for Spin {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factor = simd.splat(black_box(0.999));
        let mut chains = [simd.splat(black_box(1.0)); CHAINS];
        for _ in 0..self.steps {
            for chain in &mut chains {
                *chain = simd.fma(*chain, factor, factor);
            }
        }
        black_box(chains.map(|chain| simd.sum(chain)));
    }
}
