//! What ranks make of each other's parts, what stands in for others, and ids that the host does not know.

use std::time::{Duration, Instant};

use crate::element::{ELEMENTS, f32_bytes, u32_bytes};
use crate::simulator::Argument::{Buffer, U32};
use crate::simulator::SIMULATORS;

#[test]
fn parts_are_added_in_order_and_rounded_once() {
    for simulator in &*SIMULATORS {
        for element in &ELEMENTS {
            for (ranks, len) in [(1, 8), (2, 2056), (3, 40), (8, 4096)] {
                // Large ones cancel: another order, or a rounding in between, shows.
                let part = |rank: usize| {
                    let sign = if rank.is_multiple_of(2) { 1.0 } else { -1.0 };
                    let values = element.random(30 + rank as u64, len);
                    element.rounded(&values.iter().map(|x| x + sign * 64.0).collect::<Vec<f32>>())
                };
                let parts: Vec<Vec<f32>> = (0..ranks).map(part).collect();
                let sums = (0..len).map(|at| parts[1..].iter().fold(parts[0][at], |sum, part| sum + part[at]));
                let expected = element.bytes(&sums.collect::<Vec<f32>>());
                let (out, parts) = (vec![0xff; len * 2], element.bytes(&parts.concat()));
                let arguments = [Buffer(&out), Buffer(&parts), U32(ranks), U32(len)];
                let grid = [len.div_ceil(8 * 256), 1, 1];
                let name = format!("sum_ranks_{}", element.name);
                let actual = simulator.run(&name, grid, 256, &arguments).swap_remove(0);
                assert!(actual == expected, "{ranks} ranks, {len} of {}", element.name);
            }
        }
    }
}

#[test]
fn columns_of_ranks_lie_beside_each_other() {
    for simulator in &*SIMULATORS {
        for (rows, cols, stride, parts) in [(1, 5, 5, 1), (3, 7, 4, 2), (2, 700, 256, 3), (2, 3, 2, 3)] {
            let value = |row: usize, col: usize| (row * 1000 + col) as f32;
            let of_part = |part: usize| {
                (0..rows).flat_map(move |row| (0..stride).map(move |col| value(row, part * stride + col)))
            };
            let gathered = f32_bytes(&(0..parts).flat_map(of_part).collect::<Vec<f32>>());
            let out = f32_bytes(&vec![f32::NAN; rows * cols]);
            let arguments = [Buffer(&out), Buffer(&gathered), U32(rows), U32(cols), U32(stride)];
            // Fewer blocks than rows, which then share them.
            let grid = [cols.div_ceil(256), rows.min(2), 1];
            let actual = simulator.run("concat_columns", grid, 256, &arguments).swap_remove(0);
            let expected: Vec<f32> = (0..rows).flat_map(|row| (0..cols).map(move |col| value(row, col))).collect();
            assert!(actual == f32_bytes(&expected), "{rows} x {cols} in parts of {stride}");
        }
    }
}

#[test]
fn what_stands_in_for_others_takes_its_time() {
    let begun = Instant::now();
    SIMULATORS[0].run("spin", [1, 1, 1], 1, &[U32(30_000_000)]);
    assert!(begun.elapsed() >= Duration::from_millis(30), "{:?}", begun.elapsed());
}

#[test]
fn unknown_ids_are_those_that_were_sampled() {
    const NO_RESULT: u32 = u32::MAX;
    for simulator in &*SIMULATORS {
        let ids: Vec<u32> = (0..70).collect();
        let from: Vec<u32> = (0..70).map(|row| if row % 3 == 0 { 69 - row } else { NO_RESULT }).collect();
        let sampled: Vec<u32> = (0..70).flat_map(|result| [1000 + result, 7, 7, 7]).collect();
        let arguments = [Buffer(&u32_bytes(&ids)), Buffer(&u32_bytes(&sampled)), Buffer(&u32_bytes(&from)), U32(70)];
        let actual = simulator.run("continue_rows", [3, 1, 1], 32, &arguments).swap_remove(0);
        let expected: Vec<u32> = (0..70).map(|row| if row % 3 == 0 { 1069 - row } else { row }).collect();
        assert!(actual == u32_bytes(&expected));
    }
}
