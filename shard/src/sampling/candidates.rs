//! The tokens that may still be chosen.

use super::TokenCounts;

/// Scores of the remaining tokens, ascending by token id. A warper changes scores or removes tokens; it never adds.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    ids: Vec<u32>,
    scores: Vec<f32>,
    /// Per-candidate values of the warper at work.
    pub(super) scratch: Scratch,
}

/// Buffers that the truncating warpers share.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) keys: Vec<u32>,
    pub(super) weights: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) histogram: Vec<f64>,
}

impl Candidates {
    /// Starts over with the whole vocabulary.
    pub(super) fn load(&mut self, logits: &[f32]) {
        self.ids.clear();
        self.ids.extend(0..logits.len() as u32);
        self.scores.clear();
        self.scores.extend_from_slice(logits);
    }

    /// Tokens left, ascending.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Their scores.
    pub(super) fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// Their scores, to change, with the scratch buffers beside them.
    pub(super) fn scores_mut(&mut self) -> (&mut [f32], &mut Scratch) {
        (&mut self.scores, &mut self.scratch)
    }

    /// The score of a token, while no token was removed yet.
    pub(super) fn score_mut(&mut self, token_id: u32) -> &mut f32 {
        debug_assert_eq!(self.ids[token_id as usize], token_id, "penalties come before warpers that remove tokens");
        &mut self.scores[token_id as usize]
    }

    /// Subtracts from every counted token what its count costs, while no token was removed yet.
    pub(super) fn penalise(&mut self, counts: &TokenCounts, cost: impl Fn(f32) -> f32) {
        for (token_id, count) in counts.iter() {
            *self.score_mut(token_id) -= cost(count as f32);
        }
    }

    /// Makes a token impossible, while no token was removed yet.
    pub(super) fn forbid(&mut self, token_id: u32) {
        *self.score_mut(token_id) = f32::NEG_INFINITY;
    }

    /// Whether any token can still come.
    pub(super) fn is_any_possible(&self) -> bool {
        self.scores.iter().any(|&score| score > f32::NEG_INFINITY)
    }

    /// Removes the tokens whose bit is zero or missing, while no token was removed yet: bit i of word n is token 64 n + i.
    pub(super) fn retain_bits(&mut self, words: impl Iterator<Item = u64>) {
        debug_assert!(self.ids.iter().copied().eq(0..self.ids.len() as u32), "an index is an id up to here");
        let (mut kept, len) = (0, self.ids.len());
        for (first, mut word) in (0..len).step_by(64).zip(words) {
            if len - first < 64 {
                word &= (1 << (len - first)) - 1;
            }
            while word != 0 {
                let index = first + word.trailing_zeros() as usize;
                self.ids[kept] = index as u32;
                self.scores[kept] = self.scores[index];
                kept += 1;
                word &= word - 1;
            }
        }
        self.ids.truncate(kept);
        self.scores.truncate(kept);
    }

    /// Removes the candidates whose index `keep` refuses.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(usize, f32, &Scratch) -> bool) {
        let mut kept = 0;
        for index in 0..self.ids.len() {
            if keep(index, self.scores[index], &self.scratch) {
                self.ids[kept] = self.ids[index];
                self.scores[kept] = self.scores[index];
                kept += 1;
            }
        }
        self.ids.truncate(kept);
        self.scores.truncate(kept);
    }
}

/// What a penalty makes of three scores, for its tests.
#[cfg(test)]
#[track_caller]
pub(super) fn check_penalised(tokens: &[u32], apply: impl FnOnce(&mut Candidates, &TokenCounts), expected: [f32; 3]) {
    let (mut candidates, mut counts) = (Candidates::default(), TokenCounts::default());
    candidates.load(&[1.0, -1.0, 0.0]);
    counts.extend(tokens.iter().copied());
    apply(&mut candidates, &counts);
    assert_eq!(candidates.scores(), expected, "after tokens {tokens:?}");
}

/// What is left after a warper, for its tests.
#[cfg(test)]
#[track_caller]
pub(super) fn check_kept(logits: &[f32], warp: impl FnOnce(&mut Candidates), expected: &[u32]) {
    let mut candidates = Candidates::default();
    candidates.load(logits);
    warp(&mut candidates);
    assert_eq!(candidates.ids(), expected, "of logits {logits:?}");
    for (&id, &score) in candidates.ids().iter().zip(candidates.scores()) {
        assert_eq!(score.to_bits(), logits[id as usize].to_bits(), "a truncating warper leaves the scores as they are");
    }
}
