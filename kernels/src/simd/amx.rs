//! AMX-BF16 and AMX-INT8: tiles of sixteen rows of 64 bytes, products of tiles of bf16 pairs, summed in f32, and of bytes, summed in
//! integers. Every published processor with tiles has both.
//!
//! The language has no stable intrinsics for them, so each instruction is wrapped once in assembly. [`Tiles`] names what a
//! kernel may do with them; [`Instructions`] are the machine's own, and the tests have a model after Intel's published
//! pseudo code, so a kernel can be tested where no such machine is at hand.
//!
//! Before the first use, the processor, the system and a calculation with known results are asked whether the instructions can
//! be trusted; if not, linears use AVX512-BF16 and [`refusal`] says why.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1 chapter 18 and volume 2 (LDTILECFG, TDPBF16PS, TDPBSUD);
//! Linux `Documentation/arch/x86/xstate.rst`.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::LANES;
use super::avx512_bf16::{Avx512Bf16, Pair, PairKernel};

/// Rows of a tile at most.
pub(crate) const TILE_ROWS: usize = 16;

/// Pairs of inputs in a row of a tile: the steps over K of one product.
pub(crate) const TILE_PAIRS: usize = 16;

/// A row of a tile of inputs or weights: sixteen pairs.
pub(crate) type TileRow = [Pair; TILE_PAIRS];

/// The eight tile registers of this thread.
///
/// Registers 0 and 1 hold the sums of the upper rows, 2 and 3 those of the lower rows; 4 and 5 the inputs of the upper and the
/// lower rows; 6 and 7 the weights of two panels, always sixteen rows.
pub(crate) trait Tiles {
    /// Gives the registers their number of rows, at most [`TILE_ROWS`]; the lower ones may have none. Their contents are
    /// lost.
    fn configure(&mut self, upper: usize, lower: usize);
    /// Sets register `T` to zeros.
    fn zero<const T: usize>(&mut self);
    /// Loads the first rows of `rows`, as many as register `T` has.
    fn load<const T: usize>(&mut self, rows: &[TileRow]);
    /// Loads sums as [`load`](Tiles::load) loads inputs.
    fn load_sums<const T: usize>(&mut self, rows: &[[f32; LANES]]);
    /// Stores register `T`.
    fn store<const T: usize>(&mut self, rows: &mut [[f32; LANES]]);
    /// Register `C` += `A` · `B`: for each row m of `A` and output n, the products of the first inputs of all pairs are one
    /// chain of fused multiply-adds from zero, those of the second inputs another, and the sum of both is added to C.
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
    /// Register `C` += `A` · `B` in 32-bit integers that wrap: `A` holds signed bytes, `B` unsigned ones, four inputs in 32 bits.
    fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self);
    /// Stores register `T` of such sums.
    fn store_integers<const T: usize>(&mut self, rows: &mut [[i32; LANES]]);
}

/// A computation with tiles.
pub(crate) trait TileKernel {
    fn run(self, tiles: &mut impl Tiles);
}

/// Proof that this process may use tiles.
#[derive(Clone, Copy)]
pub(crate) enum Amx {
    /// The machine's own, beside what [`Avx512Bf16`] proves.
    Machine(Avx512Bf16),
    /// Their model in plain arithmetic.
    #[cfg(test)]
    Model,
}

impl Amx {
    /// Asks once per process.
    pub(super) fn detect() -> Option<Amx> {
        ANSWER.get_or_init(ask).as_ref().ok().copied()
    }

    /// Runs `kernel` with the registers of this thread, compiled for what the machine has beside them.
    pub(crate) fn run(self, kernel: impl TileKernel) {
        match self {
            Amx::Machine(pairs) => pairs.vectorize(OnRegisters { amx: self, kernel }),
            #[cfg(test)]
            Amx::Model => kernel.run(&mut model::Model::new()),
        }
    }

    /// Dot products of pairs, which every machine with tiles has.
    pub(crate) fn pairs(self) -> Option<Avx512Bf16> {
        match self {
            Amx::Machine(pairs) => Some(pairs),
            #[cfg(test)]
            Amx::Model => None,
        }
    }
}

struct OnRegisters<K> {
    amx: Amx,
    kernel: K,
}

impl<K: TileKernel> PairKernel for OnRegisters<K> {
    #[inline(always)]
    fn run(self, _simd: Avx512Bf16) {
        self.kernel.run(&mut Instructions::new(self.amx));
    }
}

/// Why the machine's tiles are not used although it has them; None where it has none, or they are.
pub(crate) fn refusal() -> Option<&'static str> {
    match ANSWER.get_or_init(ask) {
        Err(Refusal::Unusable(reason)) => Some(reason),
        Ok(_) | Err(Refusal::Absent) => None,
    }
}

static ANSWER: OnceLock<Result<Amx, Refusal>> = OnceLock::new();

enum Refusal {
    Absent,
    Unusable(&'static str),
}

const WRONG: &str = "products of small integers came out wrong";

fn ask() -> Result<Amx, Refusal> {
    let pairs = Avx512Bf16::detect().ok_or(Refusal::Absent)?;
    if !processor_has_tiles() {
        return Err(Refusal::Absent);
    }
    if !system_saves_tiles() {
        return Err(Refusal::Unusable("the operating system does not save tile registers"));
    }
    if !system_permits_tiles() {
        return Err(Refusal::Unusable("the operating system refuses this process the tile registers"));
    }
    let amx = Amx::Machine(pairs);
    match is_exact(&mut Instructions::new(amx)) && is_exact_with_bytes(&mut Instructions::new(amx)) {
        true => Ok(amx),
        false => Err(Refusal::Unusable(WRONG)),
    }
}

fn processor_has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const ALL: u32 = BF16 | TILE | INT8;
    let leaves = __cpuid(0).eax;
    leaves >= 0x1d && __cpuid_count(7, 0).edx & ALL == ALL && has_palette_one()
}

/// Palette 1: eight registers of sixteen rows of 64 bytes, which is what [`Tiles`] says they are.
fn has_palette_one() -> bool {
    let (palettes, one) = (__cpuid_count(0x1d, 0).eax, __cpuid_count(0x1d, 1));
    let (row_bytes, registers, rows) = (one.ebx & 0xffff, one.ebx >> 16, one.ecx & 0xffff);
    palettes >= 1 && (row_bytes, registers, rows) == (64, 8, TILE_ROWS as u32)
}

fn system_saves_tiles() -> bool {
    const CONFIG_AND_DATA: u64 = 0b11 << 17;
    // SAFETY: reading XCR0 needs OSXSAVE, without which no machine has the AVX-512 that was detected before.
    unsafe { enabled_states() & CONFIG_AND_DATA == CONFIG_AND_DATA }
}

/// # Safety
/// The system uses XSAVE.
#[target_feature(enable = "xsave")]
unsafe fn enabled_states() -> u64 {
    // SAFETY: the caller's obligation.
    unsafe { _xgetbv(0) }
}

/// Linux gives the registers, which make a context switch dearer, only to processes that ask: once, for all threads.
fn system_permits_tiles() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILE_DATA: libc::c_long = 18;
        // SAFETY: the call takes two numbers and touches no memory; systems that do not know it answer with an error.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILE_DATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Multiplies small integers, whose sums every order of additions gets right, on all registers and both sizes of tiles, and sees
/// that the rows beyond a tile are left alone.
pub(super) fn is_exact(tiles: &mut impl Tiles) -> bool {
    const UPPER: usize = TILE_ROWS;
    const LOWER: usize = 3;
    const UNTOUCHED: f32 = -1.0;
    // Small integers are their own upper halves as f32, which is what bf16 is.
    let bf16 = |x: i32| (x as f32).to_bits() >> 16;
    let input = |row: usize, k: usize| ((row * 7 + k * 3) % 11) as i32 - 5;
    let weight = |k: usize, output: usize| ((k * 5 + output * 2) % 13) as i32 - 6;
    let pair = |first: i32, second: i32| bf16(first) | bf16(second) << 16;
    let inputs = |first: usize| -> [TileRow; TILE_ROWS] {
        std::array::from_fn(|m| std::array::from_fn(|k| pair(input(first + m, 2 * k), input(first + m, 2 * k + 1))))
    };
    let weights = |first: usize| -> [TileRow; TILE_ROWS] {
        std::array::from_fn(|k| std::array::from_fn(|n| pair(weight(2 * k, first + n), weight(2 * k + 1, first + n))))
    };
    let mut sums = [[[UNTOUCHED; LANES]; TILE_ROWS]; 4];
    tiles.configure(UPPER, LOWER);
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.load_sums::<2>(&[[100.0; LANES]; LOWER]);
    tiles.load_sums::<3>(&[[200.0; LANES]; LOWER]);
    tiles.load::<4>(&inputs(0));
    tiles.load::<5>(&inputs(UPPER));
    tiles.load::<6>(&weights(0));
    tiles.load::<7>(&weights(LANES));
    for _ in 0..2 {
        tiles.dot::<0, 4, 6>();
        tiles.dot::<1, 4, 7>();
        tiles.dot::<2, 5, 6>();
        tiles.dot::<3, 5, 7>();
    }
    tiles.store::<0>(&mut sums[0]);
    tiles.store::<1>(&mut sums[1]);
    tiles.store::<2>(&mut sums[2]);
    tiles.store::<3>(&mut sums[3]);
    let expected = |register: usize, row: usize, lane: usize| {
        let (first_row, rows) = [(0, UPPER), (UPPER, LOWER)][register / 2];
        let output = register % 2 * LANES + lane;
        let product = |k| input(first_row + row, k) * weight(k, output);
        match row < rows {
            true => ([0, 0, 100, 200][register] + 2 * (0..2 * TILE_PAIRS).map(product).sum::<i32>()) as f32,
            false => UNTOUCHED,
        }
    };
    (0..4).all(|register| {
        (0..TILE_ROWS).all(|row| (0..LANES).all(|lane| sums[register][row][lane] == expected(register, row, lane)))
    })
}

/// [`is_exact`] for bytes, with the smallest and largest of them.
pub(super) fn is_exact_with_bytes(tiles: &mut impl Tiles) -> bool {
    const ROWS: usize = 5;
    const UNTOUCHED: i32 = -1;
    let input = |row: usize, k: usize| ((row * 89 + k * 37) % 255) as i32 - 127;
    let weight = |k: usize, output: usize| ((k * 53 + output * 101) % 256) as i32;
    let four = |byte: &dyn Fn(usize) -> i32| u32::from_le_bytes(std::array::from_fn(|at| byte(at) as u8));
    let inputs: [TileRow; ROWS] =
        std::array::from_fn(|m| std::array::from_fn(|quad| four(&|at| input(m, 4 * quad + at))));
    let weights: [TileRow; TILE_ROWS] =
        std::array::from_fn(|quad| std::array::from_fn(|n| four(&|at| weight(4 * quad + at, n))));
    let mut sums = [[UNTOUCHED; LANES]; TILE_ROWS];
    tiles.configure(ROWS, 0);
    tiles.zero::<0>();
    tiles.load::<4>(&inputs);
    tiles.load::<6>(&weights);
    tiles.dot_bytes::<0, 4, 6>();
    tiles.dot_bytes::<0, 4, 6>();
    tiles.store_integers::<0>(&mut sums);
    let expected = |row: usize, lane: usize| match row < ROWS {
        true => 2 * (0..4 * TILE_PAIRS).map(|k| input(row, k) * weight(k, lane)).sum::<i32>(),
        false => UNTOUCHED,
    };
    sums.iter().enumerate().all(|(row, sums)| sums.iter().enumerate().all(|(lane, sum)| *sum == expected(row, lane)))
}

/// The machine's tile registers, in the thread that made this: configured at the first use, given back when it is dropped, so
/// that context switches of an idle thread save nothing.
///
/// No compiled code touches tile registers but these wrappers, and the system keeps them across context switches: between two
/// of the wrappers they keep their contents.
pub(crate) struct Instructions {
    /// Rows of each register, as configured.
    rows: [usize; 8],
    /// Registers belong to a thread.
    this_thread: PhantomData<*const ()>,
}

impl Instructions {
    /// `_proof` says that the process may use them.
    fn new(_proof: Amx) -> Instructions {
        Instructions { rows: [0; 8], this_thread: PhantomData }
    }
}

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The rows of the registers in [`Tiles::configure`].
fn register_rows(upper: usize, lower: usize) -> [usize; 8] {
    assert!((1..=TILE_ROWS).contains(&upper) && lower <= TILE_ROWS, "a tile has at most sixteen rows");
    [upper, upper, lower, lower, upper, lower, TILE_ROWS, TILE_ROWS]
}

impl Tiles for Instructions {
    #[inline]
    fn configure(&mut self, upper: usize, lower: usize) {
        let rows = register_rows(upper, lower);
        if rows == self.rows {
            return;
        }
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (register, rows) in rows.into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
            config.rows[register] = rows as u8;
            config.row_bytes[register] = size_of::<TileRow>() as u16;
        }
        // SAFETY: `Amx` proved that the instruction may be used; it reads the 64 bytes of `config`, which describes registers
        // of palette 1 within its limits (asserted above).
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags)) };
        self.rows = rows;
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        assert!(self.rows[T] > 0, "the register is configured");
        // SAFETY: `Amx` proved that the instruction may be used, and the register is configured (asserted).
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) };
    }

    #[inline(always)]
    fn load<const T: usize>(&mut self, rows: &[TileRow]) {
        assert!(self.rows[T] > 0 && rows.len() >= self.rows[T], "a register is loaded with all of its rows");
        // SAFETY: `Amx` proved that the instruction may be used, the register is configured, and the rows that it has of 64
        // bytes each, 64 bytes apart, lie in `rows` (asserted).
        unsafe { load::<T>(rows.as_ptr().cast()) };
    }

    #[inline(always)]
    fn load_sums<const T: usize>(&mut self, rows: &[[f32; LANES]]) {
        assert!(self.rows[T] > 0 && rows.len() >= self.rows[T], "a register is loaded with all of its rows");
        // SAFETY: as in `load`; a row of sums has 64 bytes too.
        unsafe { load::<T>(rows.as_ptr().cast()) };
    }

    #[inline(always)]
    fn store<const T: usize>(&mut self, rows: &mut [[f32; LANES]]) {
        assert!(self.rows[T] > 0 && rows.len() >= self.rows[T], "a register is stored with all of its rows");
        // SAFETY: `Amx` proved that the instruction may be used, the register is configured, and the rows that it has of 64
        // bytes each, 64 bytes apart, lie in `rows` (asserted), which is borrowed mutably.
        unsafe {
            asm!("tilestored [{base} + {stride}*1], tmm{t}", base = in(reg) rows.as_mut_ptr(),
                stride = in(reg) size_of::<TileRow>(), t = const T, options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        assert!(self.rows[A] > 0 && self.rows[C] == self.rows[A], "the registers are configured for this product");
        // SAFETY: `Amx` proved that the instruction may be used; A and C have as many rows (asserted), B has sixteen and all
        // rows have 64 bytes (`configure`), as the product needs.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    #[inline(always)]
    fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
        assert!(self.rows[A] > 0 && self.rows[C] == self.rows[A], "the registers are configured for this product");
        // SAFETY: as in `dot`; `Amx` proved AMX-INT8 too.
        unsafe {
            asm!("tdpbsud tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    #[inline(always)]
    fn store_integers<const T: usize>(&mut self, rows: &mut [[i32; LANES]]) {
        assert!(self.rows[T] > 0 && rows.len() >= self.rows[T], "a register is stored with all of its rows");
        // SAFETY: as in `store`; a row of integers has 64 bytes too.
        unsafe {
            asm!("tilestored [{base} + {stride}*1], tmm{t}", base = in(reg) rows.as_mut_ptr(),
                stride = in(reg) size_of::<TileRow>(), t = const T, options(nostack, preserves_flags));
        }
    }
}

/// # Safety
/// The process may use tiles, register `T` is configured, and its rows of 64 bytes, 64 bytes apart, are readable at `base`.
#[inline(always)]
unsafe fn load<const T: usize>(base: *const u8) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("tileloadd tmm{t}, [{base} + {stride}*1]", base = in(reg) base, stride = in(reg) size_of::<TileRow>(),
            t = const T, options(nostack, readonly, preserves_flags));
    }
}

impl Drop for Instructions {
    fn drop(&mut self) {
        // SAFETY: `Amx` proved that the instruction may be used; nobody uses the registers after their owner.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// A model of the instructions in plain arithmetic, after Intel's pseudo code.
#[cfg(test)]
pub(crate) mod model {
    use super::*;

    /// The registers, all of sixteen rows of sixteen elements of 32 bits.
    pub(crate) struct Model {
        registers: [[[u32; 16]; TILE_ROWS]; 8],
        rows: [usize; 8],
    }

    impl Model {
        pub(crate) fn new() -> Model {
            Model { registers: [[[0; 16]; TILE_ROWS]; 8], rows: [0; 8] }
        }

        fn fill<const T: usize>(&mut self, rows: impl ExactSizeIterator<Item = [u32; 16]>) {
            assert!(self.rows[T] > 0 && rows.len() >= self.rows[T]);
            self.registers[T] = [[0; 16]; TILE_ROWS];
            self.registers[T].iter_mut().zip(rows).take(self.rows[T]).for_each(|(register, row)| *register = row);
        }
    }

    /// Denormals are zeros on the way in and out.
    fn flush(x: f32) -> f32 {
        if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
    }

    impl Tiles for Model {
        fn configure(&mut self, upper: usize, lower: usize) {
            let rows = register_rows(upper, lower);
            if rows != self.rows {
                *self = Model { rows, ..Model::new() };
            }
        }

        fn zero<const T: usize>(&mut self) {
            assert!(self.rows[T] > 0);
            self.registers[T] = [[0; 16]; TILE_ROWS];
        }

        fn load<const T: usize>(&mut self, rows: &[TileRow]) {
            self.fill::<T>(rows.iter().copied());
        }

        fn load_sums<const T: usize>(&mut self, rows: &[[f32; LANES]]) {
            self.fill::<T>(rows.iter().map(|row| row.map(f32::to_bits)));
        }

        fn store<const T: usize>(&mut self, rows: &mut [[f32; LANES]]) {
            assert!(self.rows[T] > 0 && rows.len() >= self.rows[T]);
            for (row, register) in rows.iter_mut().zip(&self.registers[T][..self.rows[T]]) {
                *row = register.map(f32::from_bits);
            }
        }

        fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
            assert!(self.rows[A] > 0 && self.rows[C] == self.rows[A]);
            let first = |pair: u32| flush(f32::from_bits(pair << 16));
            let second = |pair: u32| flush(f32::from_bits(pair & 0xffff_0000));
            for m in 0..self.rows[A] {
                for n in 0..LANES {
                    let (mut firsts, mut seconds) = (0.0f32, 0.0f32);
                    for k in 0..TILE_PAIRS {
                        let (a, b) = (self.registers[A][m][k], self.registers[B][k][n]);
                        firsts = flush(first(a).mul_add(first(b), firsts));
                        seconds = flush(second(a).mul_add(second(b), seconds));
                    }
                    let sum = flush(f32::from_bits(self.registers[C][m][n])) + flush(firsts + seconds);
                    self.registers[C][m][n] = flush(sum).to_bits();
                }
            }
        }

        fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
            assert!(self.rows[A] > 0 && self.rows[C] == self.rows[A]);
            for m in 0..self.rows[A] {
                for n in 0..LANES {
                    for quad in 0..TILE_PAIRS {
                        let (a, b) =
                            (self.registers[A][m][quad].to_le_bytes(), self.registers[B][quad][n].to_le_bytes());
                        let products = a.iter().zip(b).map(|(a, b)| i32::from(a.cast_signed()) * i32::from(b));
                        let sum = self.registers[C][m][n].cast_signed().wrapping_add(products.sum());
                        self.registers[C][m][n] = sum.cast_unsigned();
                    }
                }
            }
        }

        fn store_integers<const T: usize>(&mut self, rows: &mut [[i32; LANES]]) {
            assert!(self.rows[T] > 0 && rows.len() >= self.rows[T]);
            for (row, register) in rows.iter_mut().zip(&self.registers[T][..self.rows[T]]) {
                *row = register.map(u32::cast_signed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::model::Model;
    use super::*;

    #[test]
    fn the_self_check_accepts_the_model_and_sees_faults() {
        assert!(is_exact(&mut Model::new()));
        assert!(!is_exact(&mut Forgetful(Model::new())));
        assert!(is_exact_with_bytes(&mut Model::new()));
        assert!(!is_exact_with_bytes(&mut Forgetful(Model::new())));
    }

    #[test]
    fn the_machine_passes_its_own_check() {
        // Nothing to see where the machine has no tiles or the system keeps them; wrong products are a finding.
        assert_ne!(refusal(), Some(WRONG));
    }

    /// Loses the inputs of the upper rows and the second weight register.
    struct Forgetful(Model);

    impl Tiles for Forgetful {
        fn configure(&mut self, upper: usize, lower: usize) {
            self.0.configure(upper, lower);
        }
        fn zero<const T: usize>(&mut self) {
            self.0.zero::<T>();
        }
        fn load<const T: usize>(&mut self, rows: &[TileRow]) {
            match T {
                4 | 7 => self.0.zero::<T>(),
                _ => self.0.load::<T>(rows),
            }
        }
        fn load_sums<const T: usize>(&mut self, rows: &[[f32; LANES]]) {
            self.0.load_sums::<T>(rows);
        }
        fn store<const T: usize>(&mut self, rows: &mut [[f32; LANES]]) {
            self.0.store::<T>(rows);
        }
        fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
            self.0.dot::<C, A, B>();
        }
        fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
            self.0.dot_bytes::<C, A, B>();
        }
        fn store_integers<const T: usize>(&mut self, rows: &mut [[i32; LANES]]) {
            self.0.store_integers::<T>(rows);
        }
    }
}
