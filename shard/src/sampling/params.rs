//! Sampling parameters as a slot keeps them: with what follows from them, worked out once, when the slot is made.

use proto::v1::SamplingParams;

use super::device::DeviceLists;
use super::processor::Needs;
use super::processors;

/// How a row's tokens are chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// What the client asked for; every field is in its range.
    pub sampling: SamplingParams,
    /// Tokens from this position on are the reply.
    pub prompt_tokens: u32,
    /// Every sampled row has a mask of the tokens that its grammar allows.
    pub masked: bool,
    /// What the active processors must know of the tokens before.
    pub(super) needs: Needs,
    /// Whether there are active processors, at one position of the reply at least.
    is_processed: bool,
    /// What a device that samples is told of it.
    pub(super) lists: DeviceLists,
}

impl Params {
    /// Parameters that passed [`SamplingParams::check`].
    pub fn new(sampling: SamplingParams, prompt_tokens: u32, masked: bool) -> Params {
        let mut params = Params { sampling, prompt_tokens, masked, ..Params::default() };
        for processor in processors(&params) {
            if (processor.is_active)(&params, prompt_tokens) {
                params.needs = params.needs.and((processor.needs)(&params));
                params.is_processed = true;
            }
        }
        params.lists = DeviceLists::new(&params);
        params
    }

    /// Whether the processed scores at `position` are the logits as they are.
    pub(super) fn is_plain(&self, position: u32) -> bool {
        !(self.is_processed && processors(self).any(|processor| (processor.is_active)(self, position)))
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{TokenBias, TokenSequence, Watermark};

    use super::*;

    /// One parameter each, in every way that matters to somebody.
    fn changes() -> Vec<SamplingParams> {
        let words = |lengths: &[usize]| {
            let word = |&length| TokenSequence { ids: vec![1; length] };
            lengths.iter().map(word).collect()
        };
        let off = SamplingParams::default;
        vec![
            SamplingParams { temperature: Some(0.5), ..off() },
            SamplingParams { top_k: Some(3), ..off() },
            SamplingParams { top_p: Some(0.5), ..off() },
            SamplingParams { typical_p: Some(0.5), ..off() },
            SamplingParams { min_p: Some(0.5), ..off() },
            SamplingParams { repetition_penalty: Some(1.5), ..off() },
            SamplingParams { frequency_penalty: Some(0.5), ..off() },
            SamplingParams { presence_penalty: Some(-0.5), ..off() },
            SamplingParams { occurrence_penalty: Some(0.5), ..off() },
            SamplingParams { logit_bias: vec![TokenBias { token_id: 1, bias: 0.5 }], ..off() },
            SamplingParams { min_tokens: Some(3), ..off() },
            SamplingParams { bad_words: words(&[1]), ..off() },
            SamplingParams { bad_words: words(&[1, 2]), ..off() },
            SamplingParams { bad_words: words(&[3, 1]), ..off() },
            SamplingParams { watermark: Some(Watermark { gamma: 0.5, delta: 2.0 }), ..off() },
        ]
    }

    /// One parameter each, with the value that changes nothing.
    fn neutral() -> Vec<SamplingParams> {
        let off = SamplingParams::default;
        vec![
            off(),
            SamplingParams { temperature: Some(1.0), top_p: Some(1.0), typical_p: Some(1.0), ..off() },
            SamplingParams { repetition_penalty: Some(1.0), frequency_penalty: Some(0.0), ..off() },
            SamplingParams { presence_penalty: Some(0.0), occurrence_penalty: Some(0.0), ..off() },
            SamplingParams { min_p: Some(0.0), min_tokens: Some(0), ..off() },
            SamplingParams { seed: Some(7), top_n_tokens: Some(5), prompt_logprobs: true, ..off() },
        ]
    }

    #[test]
    fn only_what_changes_scores_leaves_the_fast_path() {
        let drawing = |sampling| Params::new(SamplingParams { do_sample: true, ..sampling }, 4, false);
        for sampling in neutral() {
            assert!(drawing(sampling.clone()).is_plain(4), "{sampling:?}");
        }
        for sampling in changes() {
            assert!(!drawing(sampling.clone()).is_plain(4), "{sampling:?}");
        }
        assert!(!Params::new(SamplingParams::default(), 4, true).is_plain(4), "a row under a grammar");
        let short = drawing(SamplingParams { min_tokens: Some(2), ..SamplingParams::default() });
        assert_eq!([4, 5, 6].map(|position| short.is_plain(position)), [false, false, true], "it may end from there");
        let greedy = SamplingParams { min_p: Some(0.5), temperature: Some(0.5), ..SamplingParams::default() };
        assert!(Params::new(greedy, 4, false).is_plain(4), "greedy rows have no warpers");
    }

    #[test]
    fn the_contract_and_the_processors_agree_on_what_needs_cached_ids() {
        for do_sample in [false, true] {
            for sampling in neutral().into_iter().chain(changes()) {
                let params = Params::new(SamplingParams { do_sample, ..sampling }, 4, true);
                let Needs { counts, reply_counts, recent } = params.needs;
                // The token after a cached prefix is computed before anything is sampled.
                let needs_cached_ids = counts || reply_counts || recent > 1;
                assert_eq!(params.sampling.needs_cached_ids(), needs_cached_ids, "{:?}", params.sampling);
            }
        }
    }

    #[test]
    fn every_processor_is_tried_by_these_tests() {
        let drawing = |sampling| Params::new(SamplingParams { do_sample: true, ..sampling }, 4, true);
        let all: Vec<Params> = changes().into_iter().map(drawing).collect();
        for (index, processor) in processors(&all[0]).enumerate() {
            assert!(all.iter().any(|params| (processor.is_active)(params, 4)), "processor {index} is never active");
        }
    }

    #[test]
    fn needs_add_up() {
        let sampling = SamplingParams {
            frequency_penalty: Some(1.0),
            presence_penalty: Some(1.0),
            watermark: Some(Watermark { gamma: 0.5, delta: 2.0 }),
            bad_words: vec![TokenSequence { ids: vec![1, 2, 3] }],
            ..SamplingParams::default()
        };
        let needs = Params::new(sampling, 0, false).needs;
        assert_eq!(needs, Needs { counts: true, reply_counts: true, recent: 2 });
    }
}
