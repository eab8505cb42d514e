//! What this machine can do at most: the roofs that `just bench` holds the operations against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::cuda::{Argument, KernelName};
use crate::device::Cpu;
use crate::memory::Memory;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512Bf16, PairKernel, TILE_PAIRS, TILE_ROWS, TileKernel, Tiles};
use crate::simd::{Kernel, LANES, Lanes, Simd, prefetch_line};
use crate::{Device, Error, Result};

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

/// Bytes per second that the device's threads read together from a buffer of `bytes` bytes, as [`ReadBuffer::bandwidth`]. None
/// on a device that computes nothing.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn read_bandwidth(device: &Device, bytes: usize) -> Result<Option<f64>> {
    Ok(ReadBuffer::new(device, bytes)?.bandwidth().map(|(_, bandwidth)| bandwidth))
}

/// Bytes per second that a GPU reads and writes together while it copies a buffer of `bytes` bytes to another. None on other devices.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Cuda`](crate::Error::Cuda).
pub fn copy_bandwidth(device: &Device, bytes: usize) -> Result<Option<f64>> {
    let Device::Cuda(cuda) = device else { return Ok(None) };
    let [from, to] = [Memory::new(device, bytes, "copy")?, Memory::new(device, bytes, "copy")?];
    let (from, to) = (from.address(0, bytes), to.address(0, bytes));
    let copy = || {
        // SAFETY: both are memory of this device, `bytes` long, which lives until the copy was waited for.
        unsafe { cuda.context.copy(to, from, bytes) }.and_then(|()| cuda.context.synchronize())
    };
    copy()?;
    let duration = median_duration(|| copy().expect("it was copied before"));
    Ok(Some(2.0 * bytes as f64 / duration.as_secs_f64()))
}

/// Has a GPU take that long for nothing, once it comes to it, as a kernel does that waits for others: where a program that measures leaves
/// something out. No time is no kernel, and other devices do nothing.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) beyond four seconds; [`Error::Cuda`](crate::Error::Cuda).
pub fn spin(device: &Device, duration: Duration) -> Result<()> {
    let Device::Cuda(cuda) = device else { return Ok(()) };
    if duration.is_zero() {
        return Ok(());
    }
    let too_long = |_| Error::Unsupported { reason: format!("a GPU spins for four seconds at most, not {duration:?}") };
    let nanoseconds = u32::try_from(duration.as_nanos()).map_err(too_long)?;
    // SAFETY: spin.cu: it touches no memory.
    unsafe { cuda.launch(KernelName::plain("spin"), [1, 1, 1], 1, &[Argument::U32(nanoseconds)]) }
}

/// A written buffer in huge pages, read to measure bandwidth: much larger than the caches it gives the memory's, smaller the
/// cache's. (A buffer that nobody has written is one page of zeros everywhere, and always in the cache.)
pub struct ReadBuffer {
    device: Device,
    memory: Memory,
}

/// How a thread reads its part: streams side by side, lines of each per step, and bytes asked for ahead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadPattern {
    streams: usize,
    ahead_bytes: usize,
}

impl ReadPattern {
    /// Those that were best on some machine.
    pub const ALL: [ReadPattern; 6] = [
        ReadPattern { streams: 1, ahead_bytes: 0 },
        ReadPattern { streams: 1, ahead_bytes: 4096 },
        ReadPattern { streams: 2, ahead_bytes: 0 },
        ReadPattern { streams: 2, ahead_bytes: 1024 },
        ReadPattern { streams: 4, ahead_bytes: 0 },
        ReadPattern { streams: 4, ahead_bytes: 1024 },
    ];
}

impl ReadBuffer {
    /// A buffer of `bytes` bytes, filled by the device's threads.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(device: &Device, bytes: usize) -> Result<ReadBuffer> {
        let mut memory = Memory::new(device, bytes, "read buffer")?;
        if let Device::Cpu(cpu) = device {
            cpu.for_rows(memory.as_mut_slice::<u8>(), 1, 1, |_, part| part.fill(1));
        }
        Ok(ReadBuffer { device: device.clone(), memory })
    }

    /// Bytes per second of one pass of all threads over the `part`-th of `parts` parts. None on a device that computes nothing.
    pub fn pass(&self, pattern: ReadPattern, part: usize, parts: usize) -> Option<f64> {
        let Device::Cpu(cpu) = &self.device else { return None };
        let vectors = self.memory.as_slice::<f32>().as_chunks::<LANES>().0;
        let vectors = &vectors[vectors.len() * part / parts..vectors.len() * (part + 1) / parts];
        let start = Instant::now();
        cpu.split(vectors.len(), 1, |range| cpu.isa.run(Read { x: &vectors[range], pattern }));
        Some(size_of_val(vectors) as f64 / start.elapsed().as_secs_f64())
    }

    /// The best median over several passes, with its pattern: bytes per second. None on a device that computes nothing.
    pub fn bandwidth(&self) -> Option<(ReadPattern, f64)> {
        const PASSES: usize = 9;
        let median = |pattern| {
            let mut passes = (0..PASSES).map(|_| self.pass(pattern, 0, 1)).collect::<Option<Vec<f64>>>()?;
            passes.sort_by(f64::total_cmp);
            Some((pattern, passes[PASSES / 2]))
        };
        let all = ReadPattern::ALL.map(median).into_iter().collect::<Option<Vec<_>>>()?;
        all.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// The best of several [`fma_pass`]es.
pub fn fma_peak(device: &Device) -> Option<f64> {
    best(|| fma_pass(device))
}

/// The best of several [`bf16_pass`]es.
pub fn bf16_peak(device: &Device) -> Option<f64> {
    best(|| bf16_pass(device))
}

fn best(pass: impl Fn() -> Option<f64>) -> Option<f64> {
    (0..15).filter_map(|_| pass()).max_by(f64::total_cmp)
}

/// FLOPs per second of fused multiply-adds (two each) in registers, all threads together, once for about a millisecond. None on
/// a device that computes nothing.
pub fn fma_pass(device: &Device) -> Option<f64> {
    let Device::Cpu(cpu) = device else { return None };
    Some(peak(cpu, STEPS * CHAINS * 2 * LANES, || cpu.isa.run(Spin { steps: black_box(STEPS) })))
}

/// FLOPs per second of bf16 in registers, products of tiles or dot products of pairs, as [`fma_pass`]. None on a device without
/// them.
pub fn bf16_pass(device: &Device) -> Option<f64> {
    match device {
        #[cfg(target_arch = "x86_64")]
        Device::Cpu(cpu) => {
            if let Some(amx) = cpu.isa.tiles() {
                let steps = black_box(STEPS / TILE_ROWS);
                let flops = steps * 4 * TILE_ROWS * TILE_PAIRS * LANES * 4;
                return Some(peak(cpu, flops, || amx.run(SpinTiles { steps })));
            }
            let simd = cpu.isa.bf16_dots()?;
            Some(peak(cpu, STEPS * CHAINS * 4 * LANES, || simd.vectorize(SpinPairs { steps: black_box(STEPS) })))
        }
        _ => None,
    }
}

/// Steps of a chain: about 0.3 ms.
const STEPS: usize = 1 << 16;

/// FLOPs per second of `spin`, `flops` each, on every thread.
fn peak(cpu: &Cpu, flops: usize, spin: impl Fn() + Sync) -> f64 {
    let pieces = 4 * cpu.pool.threads();
    let start = Instant::now();
    cpu.pool.run(pieces, |_| spin());
    (flops * pieces) as f64 / start.elapsed().as_secs_f64()
}

/// Registers of independent chains: more than latency × ports (4 × 2 on AVX-512 and AVX2 cores, 6 × 1 of bf16 pairs), and few enough
/// that sixteen registers hold them and their operand.
const CHAINS: usize = 12;

struct Read<'a> {
    x: &'a [Lanes],
    pattern: ReadPattern,
}

impl Kernel for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.pattern.streams {
            1 => self.streams::<S, 1>(simd),
            2 => self.streams::<S, 2>(simd),
            _ => self.streams::<S, 4>(simd),
        }
    }
}

impl Read<'_> {
    #[inline(always)]
    fn streams<S: Simd, const N: usize>(&self, simd: S) {
        const LINES: usize = 4;
        let steps = self.x.len() / N / LINES;
        let streams: [&[[Lanes; LINES]]; N] =
            std::array::from_fn(|n| self.x[n * steps * LINES..][..steps * LINES].as_chunks().0);
        let mut max = [simd.splat(0.0); LINES];
        for step in 0..steps {
            for stream in &streams {
                for (max, x) in max.iter_mut().zip(&stream[step]) {
                    if self.pattern.ahead_bytes > 0 {
                        prefetch_line(x.as_ptr().wrapping_byte_add(self.pattern.ahead_bytes));
                    }
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
        // As many registers of sums, and as many multiply-adds, where a vector is two registers.
        match S::ACCUMULATORS {
            24.. => self.chains::<S, CHAINS>(simd, self.steps),
            _ => self.chains::<S, { CHAINS / 2 }>(simd, 2 * self.steps),
        }
    }
}

impl Spin {
    #[inline(always)]
    fn chains<S: Simd, const N: usize>(&self, simd: S, steps: usize) {
        let factor = simd.splat(black_box(0.999));
        let mut chains = [simd.splat(black_box(1.0)); N];
        for _ in 0..steps {
            for chain in &mut chains {
                *chain = simd.fma(*chain, factor, factor);
            }
        }
        black_box(chains.map(|chain| simd.sum(chain)));
    }
}

#[cfg(target_arch = "x86_64")]
struct SpinPairs {
    steps: usize,
}

#[cfg(target_arch = "x86_64")]
impl PairKernel for SpinPairs {
    #[inline(always)]
    fn run(self, simd: Avx512Bf16) {
        let (x, w) = (simd.splat(black_box(0x3f80_3f80)), simd.splat(black_box(0x3f00_3f00)));
        let lanes = simd.plain();
        let mut chains = [lanes.splat(black_box(1.0)); CHAINS];
        for _ in 0..self.steps {
            for chain in &mut chains {
                *chain = simd.dot(*chain, x, w);
            }
        }
        black_box(chains.map(|chain| lanes.sum(chain)));
    }
}

/// Four products of full tiles a step, each into sums of its own.
#[cfg(target_arch = "x86_64")]
struct SpinTiles {
    steps: usize,
}

#[cfg(target_arch = "x86_64")]
impl TileKernel for SpinTiles {
    #[inline(always)]
    fn run(self, tiles: &mut impl Tiles) {
        let rows = [[0x3f80_3f80; TILE_PAIRS]; TILE_ROWS];
        tiles.configure(TILE_ROWS, TILE_ROWS);
        tiles.zero::<0>();
        tiles.zero::<1>();
        tiles.zero::<2>();
        tiles.zero::<3>();
        tiles.load::<4>(&rows);
        tiles.load::<5>(&rows);
        tiles.load::<6>(&rows);
        tiles.load::<7>(&rows);
        for _ in 0..self.steps {
            tiles.dot::<0, 4, 6>();
            tiles.dot::<1, 4, 7>();
            tiles.dot::<2, 5, 6>();
            tiles.dot::<3, 5, 7>();
        }
    }
}
