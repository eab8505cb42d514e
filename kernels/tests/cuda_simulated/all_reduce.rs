//! Sums over the ranks of a group in one kernel, with one shot and with two: one rank alone, in a region that looks as if its peers had been
//! there before it; and ranks that are processes on the simulated driver (`all_reduce.cc`).

use std::path::Path;
use std::process::Command;

use crate::element::{ELEMENTS, Element, f32_bytes, u32_bytes};
use crate::simulator::Argument::{Buffer, F32, Null, U32};
use crate::simulator::{Argument, SIMULATORS, Simulator};

/// As `all_reduce.cu` has them.
const MAX_RANKS: usize = 8;
const THREADS: usize = 128;
const HEAD_WORDS: usize = 64;
/// Elements of a vector, and threads of a row that is normalised.
const VECTOR: usize = 8;
const ROW_THREADS: usize = 256;
/// Blocks that have flags, as `all_reduce_two_shot.cu` has them.
const MAX_BLOCKS: usize = 64;

const EPS: f32 = 1e-5;

/// The memory that a rank exports for one shot, in words of four bytes.
struct Region {
    num_ranks: usize,
    room: usize,
    words: Vec<u32>,
}

impl Region {
    /// That of a rank which has made so many calls.
    fn new(num_ranks: usize, room: usize, calls: u32) -> Region {
        let mut words = vec![0; HEAD_WORDS + 16 * num_ranks * room];
        words[0] = calls;
        Region { num_ranks, room, words }
    }

    /// Has a rank's part of the call `flag` arrive, from this vector on.
    fn push(&mut self, sender: usize, flag: u32, vector: usize, part: &[u8]) {
        let buffer = flag as usize % 2;
        for (at, pair) in part.as_chunks::<4>().0.iter().enumerate() {
            let (vector, half, word) = (vector + at / 4, at / 2 % 2, at % 2);
            let place = ((buffer * self.num_ranks + sender) * 2 + half) * self.room + vector;
            let start = HEAD_WORDS + place * 4 + word * 2;
            self.words[start..start + 2].copy_from_slice(&[u32::from_le_bytes(*pair), flag]);
        }
    }
}

/// The same for two shots.
struct TwoShotRegion {
    num_ranks: usize,
    room: usize,
    words: Vec<u32>,
}

impl TwoShotRegion {
    /// That of a rank which has made so many calls.
    fn new(num_ranks: usize, room: usize, calls: u32) -> TwoShotRegion {
        let vectors = 2 * room + MAX_BLOCKS * (num_ranks - 1);
        let mut words = vec![0; HEAD_WORDS + 2 * MAX_BLOCKS * MAX_RANKS + 4 * vectors];
        words[0] = calls;
        TwoShotRegion { num_ranks, room, words }
    }

    /// Has a rank tell these blocks that it has pushed both parts and sums.
    fn tell(&mut self, sender: usize, call: u32, blocks: usize) {
        for at in (0..2 * MAX_BLOCKS).filter(|at| at % MAX_BLOCKS < blocks) {
            self.words[HEAD_WORDS + at * MAX_RANKS + sender] = call;
        }
    }

    /// Has the sum of a vector.
    fn set_sum(&mut self, vector: usize, sum: &[u8]) {
        let start = HEAD_WORDS + 2 * MAX_BLOCKS * MAX_RANKS + 4 * vector;
        for (word, pair) in self.words[start..].iter_mut().zip(sum.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*pair);
        }
    }

    /// Has a rank's part of this vector of a block's share arrive. Shares of a block have `share` vectors, and those of the blocks before it
    /// `most`.
    fn set_part(&mut self, sender: usize, (block, most): (usize, usize), share: usize, at: usize, part: &[u8]) {
        self.set_sum(self.room + block * self.num_ranks * most + sender * share + at, part);
    }
}

/// What the regions of a group are like before and after a call.
struct Regions {
    own: Vec<u32>,
    own_after: Vec<u32>,
    /// Of the next rank, of the one after it, and so on; before the call they are empty.
    peers_after: Vec<Vec<u32>>,
}

/// A call of one rank of a group, and what the group is like before and after it.
struct Call {
    rank: usize,
    num_ranks: usize,
    room: usize,
    flag: u32,
    vectors: usize,
    /// Of every rank.
    parts: Vec<Vec<f32>>,
}

impl Call {
    fn new(element: &Element, rank: usize, num_ranks: usize, room: usize, flag: u32, vectors: usize) -> Call {
        let part = |of: usize| element.random(20 + of as u64, vectors * VECTOR);
        Call { rank, num_ranks, room, flag, vectors, parts: (0..num_ranks).map(part).collect() }
    }

    /// In the order of the ranks, rounded once.
    fn sum(&self, element: &Element) -> Vec<u8> {
        let mut sums = self.parts[0].clone();
        for part in &self.parts[1..] {
            sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        element.bytes(&sums)
    }

    /// The rank's own region, to which all others have pushed.
    fn own(&self, element: &Element) -> Region {
        let mut own = Region::new(self.num_ranks, self.room, self.flag.wrapping_sub(1));
        for (of, part) in self.parts.iter().enumerate().filter(|(of, _)| *of != self.rank) {
            own.push(of, self.flag, 0, &element.bytes(part));
        }
        own
    }

    /// What a peer's region, which was empty, has of the rank afterwards: its part, and the vector whose turn it is to be written.
    fn pushed(&self, element: &Element) -> Region {
        let mut region = Region::new(self.num_ranks, self.room, 0);
        region.push(self.rank, self.flag, 0, &element.bytes(&self.parts[self.rank]));
        let swept = self.flag as usize / 2 % self.room;
        if swept >= self.vectors {
            region.push(self.rank, self.flag, swept, &[0; 2 * VECTOR]);
        }
        region
    }

    /// With one shot.
    fn one_shot(&self, element: &Element) -> Regions {
        let own = self.own(element).words;
        let mut own_after = own.clone();
        own_after[0] = self.flag;
        Regions { own, own_after, peers_after: vec![self.pushed(element).words; self.num_ranks - 1] }
    }

    /// With two shots, by as many blocks, each of which has `most` vectors.
    fn two_shots(&self, element: &Element, blocks: usize, most: usize) -> Regions {
        let num_ranks = self.num_ranks;
        let empty = |calls| TwoShotRegion::new(num_ranks, self.room, calls);
        let (mut own, mut own_after) = (empty(self.flag.wrapping_sub(1)), empty(self.flag));
        let mut peers: Vec<TwoShotRegion> = (1..num_ranks).map(|_| empty(0)).collect();
        let (sum, parts) = (self.sum(element), self.parts.iter().map(|part| element.bytes(part)));
        let parts: Vec<Vec<u8>> = parts.collect();
        for peer in (0..num_ranks).filter(|peer| *peer != self.rank) {
            own.tell(peer, self.flag, blocks);
            own_after.tell(peer, self.flag, blocks);
        }
        peers.iter_mut().for_each(|peer| peer.tell(self.rank, self.flag, MAX_BLOCKS));
        for vector in 0..self.vectors {
            let (block, of_block) = (vector / most, vector % most);
            let share = most.min(self.vectors - block * most).div_ceil(num_ranks);
            let (owner, at) = (of_block / share, of_block % share);
            let bytes = vector * 2 * VECTOR..(vector + 1) * 2 * VECTOR;
            let of_blocks = (block, most.div_ceil(num_ranks));
            own_after.set_sum(vector, &sum[bytes.clone()]);
            if owner == self.rank {
                peers.iter_mut().for_each(|peer| peer.set_sum(vector, &sum[bytes.clone()]));
                for sender in (0..num_ranks).filter(|sender| *sender != owner) {
                    for region in [&mut own, &mut own_after] {
                        region.set_part(sender, of_blocks, share, at, &parts[sender][bytes.clone()]);
                    }
                }
            } else {
                own.set_sum(vector, &sum[bytes.clone()]);
                let peer = &mut peers[(owner + num_ranks - self.rank - 1) % num_ranks];
                peer.set_part(self.rank, of_blocks, share, at, &parts[self.rank][bytes]);
            }
        }
        let peers_after = peers.into_iter().map(|peer| peer.words).collect();
        Regions { own: own.words, own_after: own_after.words, peers_after }
    }

    /// Runs a kernel with what it has for arguments before those of the group. Its buffers afterwards, having seen that the group is as
    /// it should be.
    fn run(
        &self,
        simulator: &Simulator,
        kernel: &str,
        grid: usize,
        threads: usize,
        arguments: &[Argument<'_>],
        regions: &Regions,
    ) -> Vec<Vec<u8>> {
        let context = format!("{kernel}: rank {} of {}, call {}", self.rank, self.num_ranks, self.flag);
        let (own, empty) = (u32_bytes(&regions.own), vec![0; regions.own.len() * 4]);
        let aborted = u32_bytes(&[0]);
        let group = [U32(self.rank), U32(self.num_ranks), U32(self.room), Buffer(&aborted), Buffer(&own)];
        let peers = (1..MAX_RANKS).map(|peer| if peer < self.num_ranks { Buffer(&empty) } else { Null });
        let all: Vec<Argument<'_>> = arguments.iter().copied().chain(group).chain(peers).collect();
        let mut after = simulator.run(kernel, [grid, 1, 1], threads, &all);
        let group = after.split_off(after.len() - self.num_ranks - 1);
        assert!(
            group[1] == u32_bytes(&regions.own_after),
            "{context}: the region counts the call, and has what it should"
        );
        for (region, expected) in group[2..].iter().zip(&regions.peers_after) {
            assert!(*region == u32_bytes(expected), "{context}: what peers received");
        }
        after
    }
}

#[test]
fn sums_over_ranks_are_in_their_order() {
    for element in &ELEMENTS {
        for (rank, num_ranks) in [(0, 2), (1, 2), (1, 3), (7, 8)] {
            // The first call and one of the other buffer; the last number and the one behind it.
            for (flag, vectors) in [(1, 1), (2, 130), (u32::MAX, 3), (0, 300)] {
                let call = Call::new(element, rank, num_ranks, 301, flag, vectors);
                for simulator in &*SIMULATORS {
                    let x = element.bytes(&call.parts[rank]);
                    let arguments = [Buffer(&x), U32(vectors)];
                    // As many blocks as it may have, and fewer.
                    for grid in [vectors.div_ceil(THREADS), 1] {
                        let (kernel, regions) = (format!("all_reduce_{}", element.name), call.one_shot(element));
                        let after = call.run(simulator, &kernel, grid, THREADS, &arguments, &regions);
                        assert!(after[0] == call.sum(element), "{kernel}, rank {rank} of {num_ranks}: {vectors}");
                    }
                    // Of 24 blocks of 130 vectors, the last two have none.
                    for grid in [vectors.min(24), vectors.div_ceil(ROW_THREADS)] {
                        let kernel = format!("all_reduce_two_shot_{}", element.name);
                        let regions = call.two_shots(element, grid, vectors.div_ceil(grid));
                        let after = call.run(simulator, &kernel, grid, ROW_THREADS, &arguments, &regions);
                        assert!(after[0] == call.sum(element), "{kernel}, rank {rank} of {num_ranks}: {vectors}");
                    }
                }
            }
        }
    }
}

#[test]
fn sums_that_are_normalised_have_the_bits_of_both_kernels() {
    for element in &ELEMENTS {
        for (rows, cols) in [(1, 8), (3, 64), (2, 4104)] {
            let call = Call::new(element, 1, 3, rows * cols / VECTOR + 1, 5, rows * cols / VECTOR);
            let residual = element.bytes(&element.random(2, rows * cols));
            let scale = f32_bytes(&element.random(3, cols));
            let zeros = element.bytes(&vec![0.0; rows * cols]);
            for simulator in &*SIMULATORS {
                let sum = call.sum(element);
                let arguments =
                    [Buffer(&zeros), Buffer(&residual), Buffer(&sum), Buffer(&scale), F32(EPS), U32(1), U32(cols)];
                let name = format!("add_rms_norm_{}", element.name);
                let expected = simulator.run(&name, [rows, 1, 1], ROW_THREADS, &arguments);
                let x = element.bytes(&call.parts[1]);
                let pointers = [Buffer(&zeros), Buffer(&residual), Buffer(&x), Buffer(&scale)];
                let norm = [F32(EPS), U32(1), U32(cols)];
                let arguments = [&pointers[..], &norm].concat();
                let (kernel, regions) = (format!("all_reduce_add_rms_norm_{}", element.name), call.one_shot(element));
                let after = call.run(simulator, &kernel, rows, ROW_THREADS, &arguments, &regions);
                assert!(after[..2] == expected[..2], "{kernel}: {rows} rows of {cols}");
                // Two rows a block, the last has what is left.
                let (kernel, blocks) = (format!("all_reduce_two_shot_add_rms_norm_{}", element.name), rows.div_ceil(2));
                let regions = call.two_shots(element, blocks, rows.div_ceil(blocks) * cols / VECTOR);
                let arguments = [&pointers[..], &[U32(rows)], &norm].concat();
                let after = call.run(simulator, &kernel, blocks, ROW_THREADS, &arguments, &regions);
                assert!(after[..2] == expected[..2], "{kernel}: {rows} rows of {cols}");
            }
        }
    }
}

#[test]
fn who_waits_for_a_rank_that_never_comes_returns_when_the_group_is_aborted() {
    let (element, vectors, room) = (&ELEMENTS[0], 40, 40);
    let x = element.bytes(&element.random(1, vectors * VECTOR));
    let aborted = u32_bytes(&[1]);
    let one_shot = ("all_reduce_bf16", THREADS, Region::new(2, room, 0).words);
    let two_shots = ("all_reduce_two_shot_bf16", ROW_THREADS, TwoShotRegion::new(2, room, 0).words);
    for (kernel, threads, region) in [one_shot, two_shots] {
        let region = u32_bytes(&region);
        let mut arguments = vec![Buffer(&x), U32(vectors), U32(0), U32(2), U32(room)];
        arguments.extend([Buffer(&aborted), Buffer(&region), Buffer(&region)]);
        arguments.extend([Null; MAX_RANKS - 2]);
        for simulator in &*SIMULATORS {
            simulator.run(kernel, [1, 1, 1], threads, &arguments);
        }
    }
}

#[test]
fn ranks_that_are_processes_sum_over_memory_of_each_other() {
    let environment = cusim::Simulation::build().environment();
    // Of real GPUs there may be one.
    let Some((_, driver)) = environment.iter().find(|(variable, _)| *variable == cusim::DRIVER_VARIABLE) else {
        return;
    };
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let executable = Path::new(env!("CARGO_TARGET_TMPDIR")).join("all_reduce");
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O1", "-pthread", "-fno-strict-aliasing", "-DCUSIM"]);
    compiler.args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]);
    compiler.arg("-I").arg(package.join("cuda/sim")).arg("-I").arg(package.join("cuda"));
    compiler.arg("-o").arg(&executable).arg(package.join("tests/cuda_simulated/all_reduce.cc")).arg("-ldl");
    let run = |command: &mut Command| {
        let output = command.output().expect("the C++ compiler that the README asks for, and what it made");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    };
    run(&mut compiler);
    run(Command::new(&executable).arg(driver));
}
