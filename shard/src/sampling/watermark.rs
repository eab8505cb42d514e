//! Watermark: a pseudo-random part of the vocabulary, the green list, becomes more likely, so that whoever knows the rule
//! can tell generated text by its surplus of green tokens.
//!
//!   score[t] = score[t] + delta   for every t in green(token before)
//!
//! The green list is the first ⌊gamma · vocab_size⌋ entries of a permutation drawn with the seed 15485863 · (token before):
//! the scheme "lefthash" (formerly "simple_1"). Permutation and generator are those of PyTorch on the CPU, so that the
//! detectors that people have for TGI find our text too.
//! Source: arXiv:2301.10226 §3; TGI `WatermarkLogitsProcessor`; `torch.randperm`.

use proto::v1::Watermark;

use super::candidates::Candidates;
use super::processor::{Needs, Processor};

/// What tells whose watermark it is; TGI's and the paper's published detectors use this prime.
const HASH_KEY: u64 = 15_485_863;

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.watermark.is_some(),
    needs: |_| Needs { recent: 1, ..Needs::default() },
    apply: |candidates, row, _| {
        if let (Some(watermark), Some(&previous)) = (&row.params.sampling.watermark, row.history.recent().last()) {
            apply(candidates, watermark, previous);
        }
    },
};

/// Adds delta to the green list of `previous`, the token before.
pub(super) fn apply(candidates: &mut Candidates, watermark: &Watermark, previous: u32) {
    let vocab_size = candidates.ids().len();
    let green = (vocab_size as f64 * watermark.gamma) as usize;
    let (scores, scratch) = candidates.scores_mut();
    let permutation = &mut scratch.keys;
    permutation.clear();
    permutation.extend(0..vocab_size as u32);
    let mut random = MersenneTwister::new(HASH_KEY.wrapping_mul(previous.into()));
    // A Fisher-Yates shuffle from the front; what comes behind the green part is not looked at.
    for at in 0..green {
        // The last entry has no choice left, and PyTorch draws nothing for it; a draw here would change nothing.
        let other = at + random.next() as usize % (vocab_size - at);
        permutation.swap(at, other);
        scores[permutation[at] as usize] += watermark.delta;
    }
}

/// MT19937: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998), seeded as in their revision of 2002.
struct MersenneTwister {
    state: [u32; MersenneTwister::N],
    next: usize,
}

impl MersenneTwister {
    const N: usize = 624;
    const M: usize = 397;

    /// Only the lower half of the seed counts, as in PyTorch.
    fn new(seed: u64) -> MersenneTwister {
        let mut state = [seed as u32; MersenneTwister::N];
        for at in 1..state.len() {
            let previous = state[at - 1];
            state[at] = (previous ^ previous >> 30).wrapping_mul(1_812_433_253).wrapping_add(at as u32);
        }
        MersenneTwister { state, next: MersenneTwister::N }
    }

    fn next(&mut self) -> u32 {
        if self.next == MersenneTwister::N {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9D2C_5680;
        word ^= word << 15 & 0xEFC6_0000;
        word ^ word >> 18
    }

    fn twist(&mut self) {
        const N: usize = MersenneTwister::N;
        for at in 0..N {
            let joined = self.state[at] & 0x8000_0000 | self.state[(at + 1) % N] & 0x7FFF_FFFF;
            let odd = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[at] = self.state[(at + MersenneTwister::M) % N] ^ joined >> 1 ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Green ids of a vocabulary.
    fn green(vocab_size: usize, gamma: f64, previous: u32) -> Vec<u32> {
        let mut candidates = Candidates::default();
        candidates.load(&vec![1.0; vocab_size]);
        apply(&mut candidates, &Watermark { gamma, delta: 2.0 }, previous);
        assert!(candidates.scores().iter().all(|&score| score == 1.0 || score == 3.0));
        (0..vocab_size as u32).filter(|&id| candidates.scores()[id as usize] == 3.0).collect()
    }

    #[test]
    fn the_generator_gives_the_published_numbers() {
        // The C++ standard ([rand.predef]) fixes the 10000th number of a default-constructed mt19937.
        let mut random = MersenneTwister::new(5489);
        assert_eq!(random.next(), 3_499_211_612);
        assert_eq!((2..=10_000).map(|_| random.next()).last(), Some(4_123_659_995));
        assert_eq!(MersenneTwister::new(5489 + (7 << 32)).next(), 3_499_211_612, "the upper half does not count");
    }

    #[test]
    fn the_green_list_is_the_head_of_pytorchs_permutation() {
        // torch.manual_seed(0); torch.randperm(10) is [4, 1, 7, 5, 3, 9, 0, 8, 6, 2].
        let heads: [&[u32]; 4] = [&[4], &[1, 4], &[1, 4, 5, 7], &[0, 1, 3, 4, 5, 6, 7, 8, 9]];
        for (gamma, head) in [0.1, 0.2, 0.4, 0.9].into_iter().zip(heads) {
            assert_eq!(green(10, gamma, 0), head, "gamma {gamma}");
        }
    }

    #[test]
    fn gamma_is_the_decimal_that_was_written_down() {
        // As a float32, 0.7 is a little less.
        assert_eq!(green(1000, 0.7, 3).len(), 700);
    }

    #[test]
    fn the_token_before_chooses_the_list_and_gamma_its_size() {
        for gamma in [0.1, 0.5, 0.9] {
            assert_eq!(green(1001, gamma, 7).len(), (1001.0 * gamma) as usize);
        }
        let (one, two) = (green(1000, 0.5, 7), green(1000, 0.5, 8));
        assert_eq!(one, green(1000, 0.5, 7));
        let common = one.iter().filter(|id| two.contains(id)).count();
        // Independent halves share 250 on average, with a standard deviation of 8.
        assert!((210..=290).contains(&common), "{common} of 500 tokens are in both lists");
        assert!(green(1, 0.5, 7).is_empty());
    }
}
