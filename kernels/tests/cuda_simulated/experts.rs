//! Mixture of experts: what a router chooses, how pairs are sorted, products of tiles bit by bit as those of plain layers, and sums.

use crate::element::{ELEMENTS, f32_bytes, u32_bytes};
use crate::linear::{Form, Layer, ROW_KERNELS};
use crate::simulator::Argument::{Buffer, U32};
use crate::simulator::{SIMULATORS, Simulator};

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Experts and weights of every row.
fn choose(simulator: &Simulator, logits: &[f32], [num_experts, per_row]: [usize; 2], normalise: bool) -> [Vec<u8>; 2] {
    let rows = logits.len() / num_experts;
    let (list, logits) = (u32_bytes(&vec![u32::MAX; rows * per_row]), f32_bytes(logits));
    let arguments =
        [Buffer(&list), Buffer(&list), Buffer(&logits), U32(num_experts), U32(per_row), U32(usize::from(normalise))];
    let mut after = simulator.run("route_experts", [rows, 1, 1], 32, &arguments);
    [after.swap_remove(1), after.swap_remove(0)]
}

#[test]
fn routers_choose_the_largest_and_the_lowest_of_equal_ones() {
    const ROWS: usize = 5;
    for [num_experts, per_row] in [[1, 1], [4, 2], [33, 32], [128, 8], [1024, 10]] {
        // Few values, so that many are equal.
        let logits: Vec<f32> =
            ELEMENTS[0].random(1, ROWS * num_experts).iter().map(|x| (x * 16.0).round() / 4.0 + 0.0).collect();
        for simulator in &*SIMULATORS {
            for normalise in [false, true] {
                let [experts, weights] = choose(simulator, &logits, [num_experts, per_row], normalise);
                let (experts, weights) = (words(&experts), floats(&weights));
                for (row, logits) in logits.chunks_exact(num_experts).enumerate() {
                    let context = format!("row {row} of {num_experts} experts");
                    let mut expected: Vec<usize> = (0..num_experts).collect();
                    // Stable: equal ones stay by number.
                    expected.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
                    expected.truncate(per_row);
                    expected.sort_unstable();
                    let chosen = &experts[row * per_row..][..per_row];
                    assert!(chosen.iter().map(|expert| *expert as usize).eq(expected.iter().copied()), "{context}");
                    let exponential = |expert: usize| f64::from(logits[expert]).exp();
                    let of_chosen: f64 = expected.iter().map(|expert| exponential(*expert)).sum();
                    let sum = if normalise { of_chosen } else { (0..num_experts).map(exponential).sum() };
                    for (weight, expert) in weights[row * per_row..].iter().zip(&expected) {
                        let expected = exponential(*expert) / sum;
                        // An exponential, a sum of a few dozen in every lane, and a quotient.
                        assert!((f64::from(*weight) / expected - 1.0).abs() < 5e-6, "{context}: {weight}, {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_without_numbers_fails_alone() {
    let (nan, least) = (f32::NAN, f32::NEG_INFINITY);
    let rows = [[0.5, 2.0, 1.0, 0.0], [nan; 4], [0.0, nan, 1.0, 0.0], [least; 4], [f32::INFINITY, 0.0, 0.0, 0.0]];
    for simulator in &*SIMULATORS {
        for normalise in [false, true] {
            let [experts, weights] = choose(simulator, rows.as_flattened(), [4, 2], normalise);
            assert_eq!(words(&experts), [1, 2, 0, 1, 0, 2, 0, 1, 0, 1]);
            let [_, alone] = choose(simulator, &rows[0], [4, 2], normalise);
            assert_eq!(weights[..8], alone);
            assert!(floats(&weights[8..]).iter().all(|weight| weight.is_nan()), "{:?}", floats(&weights));
        }
    }
}

#[test]
fn pairs_are_sorted_and_cut_into_tiles() {
    // None, a few, more than a block has threads; of the last, one expert has nearly all.
    for (rows, [num_experts, per_row], tile_rows) in
        [(1, [4, 1], 8), (37, [9, 3], 8), (300, [5, 2], 64), (400, [3, 1], 128)]
    {
        let experts: Vec<u32> = (0..rows)
            .flat_map(|row| {
                (0..per_row).map(move |at| if rows == 400 && row % 50 > 0 { 1 } else { row * row + at * 2 })
            })
            .map(|expert| (expert % num_experts) as u32)
            .collect();
        let pairs = experts.len();
        let mut sorted: Vec<usize> = (0..pairs).collect();
        sorted.sort_by_key(|pair| experts[*pair]);
        let mut places = vec![0; pairs];
        sorted.iter().enumerate().for_each(|(place, pair)| places[*pair] = place as u32);
        let sorted_rows: Vec<u32> = sorted.iter().map(|pair| (pair / per_row) as u32).collect();
        let (mut tiles, mut first) = (Vec::new(), 0);
        for expert in 0..num_experts as u32 {
            let count = experts.iter().filter(|of_pair| **of_pair == expert).count();
            for start in (0..count).step_by(tile_rows) {
                tiles.extend([expert, (first + start) as u32, tile_rows.min(count - start) as u32]);
            }
            first += count;
        }
        // Some that are not needed.
        tiles.extend([0; 3 * 5]);
        let num_tiles = tiles.len() / 3;
        for simulator in &*SIMULATORS {
            let list = u32_bytes(&vec![u32::MAX; pairs]);
            let (room, experts) = (u32_bytes(&vec![u32::MAX; tiles.len()]), u32_bytes(&experts));
            let lists = [Buffer(&list), Buffer(&list), Buffer(&room), Buffer(&experts)];
            let counts = [pairs, per_row, tile_rows, num_tiles].map(U32);
            let after = simulator.run("group_pairs", [num_experts, 1, 1], 256, &[&lists[..], &counts].concat());
            let context = format!("{rows} rows, {num_experts} experts");
            assert_eq!(words(&after[0]), places, "{context}");
            assert_eq!(words(&after[1]), sorted_rows, "{context}");
            assert_eq!(words(&after[2]), tiles, "{context}");
        }
    }
}

#[test]
fn tiles_of_experts_have_the_bits_of_plain_layers() {
    for element in &ELEMENTS {
        // Outputs that do not fill the last tile of an expert, and several blocks of them.
        for (n, k, parts) in [(20, 32, 1), (136, 96, 2)] {
            let layer = Layer { element, n, k, parts };
            let row_bytes = k * 2;
            // Two experts have rows, one of them more than a tile.
            let rows_of_experts = [5, 0, 11];
            let x = element.bytes(&layer.x(16));
            for simulator in &*SIMULATORS {
                // Any elements are a packed weight.
                let weight = layer.pack(simulator);
                let weights: Vec<Vec<u8>> = (0..3)
                    .map(|expert| {
                        let mut weight = weight.clone();
                        weight.rotate_left(expert * 32);
                        weight
                    })
                    .collect();
                let stack = weights.concat();
                let of_expert = |expert: usize, rows: std::ops::Range<usize>| {
                    let x = &x[rows.start * row_bytes..rows.end * row_bytes];
                    layer.few(simulator, ROW_KERNELS[0], (&weights[expert], x), Form::Plain)
                };
                let expected = [of_expert(0, 0..5), of_expert(2, 5..16)].concat();
                let row_kernels =
                    ROW_KERNELS.map(|(row_tiles, outputs)| (format!("rows_{row_tiles}"), 8 * row_tiles, outputs));
                let many = ["tiles_128", "wgmma_128"].map(|kernel| (kernel.to_owned(), 128, 128));
                for (kernel, tile_rows, outputs) in row_kernels.into_iter().chain(many) {
                    let (mut tiles, mut first) = (Vec::new(), 0);
                    for (expert, count) in rows_of_experts.into_iter().enumerate() {
                        for start in (0..count).step_by(tile_rows) {
                            tiles.extend([expert, first + start, tile_rows.min(count - start)].map(|x| x as u32));
                        }
                        first += count;
                    }
                    tiles.extend([0; 3]);
                    let (blocks, num_tiles) = (n.div_ceil(outputs), tiles.len() / 3);
                    let (out, tiles) = (element.bytes(&[f32::NAN].repeat(16 * n)), u32_bytes(&tiles));
                    let mut arguments = vec![Buffer(&out), Buffer(&x), Buffer(&stack), Buffer(&tiles), U32(n), U32(k)];
                    let (grid, threads) = match kernel.starts_with("rows") {
                        true => ([blocks, num_tiles, 1], 32 * parts),
                        false => ([num_tiles, blocks, 1], 256),
                    };
                    if threads == 256 {
                        arguments.push(U32(parts));
                    }
                    let name = format!("linear_experts_{kernel}_{}", element.name);
                    let actual = simulator.run(&name, grid, threads, &arguments).swap_remove(0);
                    assert!(actual == expected, "{name}: {}", n * k);
                }
            }
        }
    }
}

#[test]
fn rows_of_experts_are_weighted_and_summed() {
    let (rows, per_row) = (3, 4);
    for element in &ELEMENTS {
        for cols in [8, 1032] {
            let x = element.random(1, rows * per_row * cols);
            let weights: Vec<f32> = ELEMENTS[1].random(2, rows * per_row).iter().map(|x| x.abs()).collect();
            let places: Vec<u32> = (0..rows * per_row).map(|pair| (pair * 5 % (rows * per_row)) as u32).collect();
            let expected: Vec<f32> = (0..rows * cols)
                .map(|at| {
                    let pairs = at / cols * per_row..(at / cols + 1) * per_row;
                    let of_pair = |pair: usize| weights[pair] * x[places[pair] as usize * cols + at % cols];
                    pairs.map(of_pair).sum()
                })
                .collect();
            for simulator in &*SIMULATORS {
                let (out, x) = (element.bytes(&vec![f32::NAN; rows * cols]), element.bytes(&x));
                let (weights, places) = (f32_bytes(&weights), u32_bytes(&places));
                let arguments = [Buffer(&out), Buffer(&x), Buffer(&weights), Buffer(&places), U32(per_row), U32(cols)];
                let name = format!("combine_experts_{}", element.name);
                let after = simulator.run(&name, [rows, 1, 1], 128, &arguments);
                element.assert_close(&after[0], &expected, 1.0, &format!("{name} of {cols} columns"));
            }
        }
    }
}
