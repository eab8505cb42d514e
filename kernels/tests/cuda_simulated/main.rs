//! Every CUDA kernel on the processor, through the simulator, against the operation that it is an arm of. Inputs are rounded to the
//! kernel's type first; what is left between the two are the kernel's own roundings.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

mod all_reduce;
mod attention;
mod element;
mod experts;
mod linear;
mod process;
mod quantized;
mod ranks;
mod rows;
mod sampling;
mod simulator;

use std::path::Path;
use std::sync::LazyLock;

use element::{f32_bytes, u32_bytes};
use simulator::Argument::{Buffer, U32};
use simulator::{Argument, SANITIZED, Simulator};

/// Where the matrix instruction's 16 x 16 operand has an element: 32 lanes of four pairs. Lane `4 r + c` holds of the rows r and r + 8
/// the columns 2 c, 2 c + 1 and 2 c + 8, 2 c + 9 (PTX ISA, fragments of mma.m16n8k16).
pub(crate) fn in_square(row: usize, col: usize) -> usize {
    static PLACES: LazyLock<[[usize; 16]; 16]> = LazyLock::new(|| {
        let elements = |lane: usize| {
            let (r, c) = (lane / 4, lane % 4 * 2);
            [(r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1), (r, c + 8), (r, c + 9), (r + 8, c + 8), (r + 8, c + 9)]
        };
        let mut places = [[0; 16]; 16];
        for (at, (row, col)) in (0..32).flat_map(elements).enumerate() {
            places[row][col] = at;
        }
        places
    });
    PLACES[row][col]
}

#[test]
fn the_simulator_finds_mistakes() {
    let mistakes = [Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_simulated/mistakes.cu")];
    let plain = Simulator::build("mistakes", &[], &mistakes);
    let sanitized = Simulator::build("mistakes-sanitized", SANITIZED, &mistakes);
    let says = |simulator: &Simulator, kernel: &str, arguments: &[Argument<'_>], sentence: &str| {
        let output = simulator.try_run(kernel, [1, 1, 1], 64, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(sentence), "{kernel}: {stderr}");
    };
    let (numbers, x) = (u32_bytes(&[0; 40]), f32_bytes(&(0..64).map(|x| x as f32).collect::<Vec<_>>()));
    says(&plain, "writes_beyond", &[Buffer(&numbers), U32(40)], "writes_beyond wrote beyond buffer 0");
    says(&sanitized, "writes_beyond", &[Buffer(&numbers), U32(40)], "mistakes.cu:6");
    says(&plain, "diverges", &[Buffer(&x)], "threads wait at the barriers of lines 30 and 33");
    says(&plain, "deadlocks", &[Buffer(&x)], "threads wait for others that never come");
    says(&plain, "writes_beyond", &[Buffer(&numbers)], "writes_beyond has 2 parameters, not 1");
    says(&plain, "forgotten", &[], "there is no kernel forgotten");

    let zeros = f32_bytes(&[0.0; 64]);
    let reversed = |kernel: &str| {
        let after = plain.run(kernel, [1, 1, 1], 64, &[Buffer(&zeros), Buffer(&x)]).swap_remove(0);
        after.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>()
    };
    assert!(reversed("lacks_a_barrier")[0].is_nan(), "shared memory that nobody wrote is no number");
    assert!(reversed("has_its_barrier").into_iter().eq((0..64).rev().map(|x| x as f32)));
}
