//! What devices with kernels of their own do of it (`kernels/cuda/process.cu`, `truncate.cu`, `sample.cu`, `top.cu`): which requests they sample,
//! and what they are told of each.
//!
//! A request is sampled by its device for the whole reply or not at all: a log-probability has other last bits on the processor, and
//! which of them computes it must not depend on the step that a position falls into.

use kernels::ops::sample::{Draw, Penalties, Top};

use super::Params;
use crate::limits::MAX_TOP_TIES;

/// What a device is told of a request beside its draw; worked out once, when the slot is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeviceLists {
    /// What is added to scores, ascending by token.
    pub(crate) biases: Vec<(u32, f32)>,
    /// Tokens that never come.
    pub(crate) bans: Vec<u32>,
}

impl DeviceLists {
    /// Those of requests that are for the device.
    pub(super) fn new(params: &Params) -> DeviceLists {
        let sampling = &params.sampling;
        if !params.is_for_device() {
            return DeviceLists::default();
        }
        DeviceLists {
            biases: sampling.logit_bias.iter().map(|entry| (entry.token_id, entry.bias)).collect(),
            // Of one token each: those of several look back at the last tokens.
            bans: sampling.bad_words.iter().filter_map(|word| word.ids.last().copied()).collect(),
        }
    }
}

impl Params {
    /// Whether a device samples its rows: everything but what looks back at the last tokens, which the host may not have yet.
    pub(crate) fn is_for_device(&self) -> bool {
        self.needs.recent == 0
    }

    /// Whether its scores depend on how often tokens occurred.
    pub(crate) fn counts_tokens(&self) -> bool {
        self.needs.counts || self.needs.reply_counts
    }

    /// How a device draws from it; `None` if it takes the best.
    pub(crate) fn device_draw(&self) -> Option<Draw> {
        let sampling = &self.sampling;
        sampling.do_sample.then(|| Draw {
            seed: sampling.seed(),
            temperature: sampling.temperature.unwrap_or(1.0),
            top_k: sampling.top_k.map(i32::unsigned_abs),
            top_p: sampling.top_p.filter(|p| *p < 1.0),
            min_p: sampling.min_p.filter(|min_p| *min_p > 0.0),
            typical_p: sampling.typical_p.filter(|p| *p < 1.0),
        })
    }

    /// The likeliest tokens that a device reports.
    pub(crate) fn device_top(&self) -> Top {
        let n = self.sampling.top_n_tokens() as usize;
        Top { n, most: if n > 0 { n + MAX_TOP_TIES } else { 0 } }
    }

    /// How a device penalises tokens that occurred; `None` if it does not.
    pub(crate) fn device_penalties(&self) -> Option<Penalties> {
        let (sampling, none) = (&self.sampling, Penalties::NONE);
        self.counts_tokens().then(|| Penalties {
            repetition: sampling.repetition_penalty.unwrap_or(none.repetition),
            frequency: sampling.frequency_penalty.unwrap_or(none.frequency),
            presence: sampling.presence_penalty.unwrap_or(none.presence),
            occurrence: sampling.occurrence_penalty.unwrap_or(none.occurrence),
        })
    }

    /// The position from which on it may end: below, no end-of-sequence token comes.
    pub(crate) fn may_end_from(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.sampling.min_tokens())
    }

    /// The lists that a device is told.
    pub(crate) fn device_lists(&self) -> &DeviceLists {
        &self.lists
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{SamplingParams, TokenBias, TokenSequence, Watermark};

    use super::*;

    fn drawing(sampling: SamplingParams) -> Params {
        Params::new(SamplingParams { do_sample: true, ..sampling }, 4, false)
    }

    fn off() -> SamplingParams {
        SamplingParams::default()
    }

    fn words(words: &[&[u32]]) -> Vec<TokenSequence> {
        words.iter().map(|ids| TokenSequence { ids: ids.to_vec() }).collect()
    }

    #[test]
    fn a_device_is_told_what_it_knows() {
        let params = drawing(SamplingParams {
            temperature: Some(0.7),
            top_k: Some(5),
            top_p: Some(0.9),
            min_p: Some(0.1),
            typical_p: Some(0.8),
            top_n_tokens: Some(2),
            seed: Some(3),
            repetition_penalty: Some(1.1),
            occurrence_penalty: Some(-0.5),
            min_tokens: Some(2),
            logit_bias: vec![TokenBias { token_id: 1, bias: 0.5 }],
            bad_words: words(&[&[7], &[2]]),
            ..off()
        });
        assert!(params.is_for_device() && params.counts_tokens());
        let draw = Draw {
            seed: 3,
            temperature: 0.7,
            top_k: Some(5),
            top_p: Some(0.9),
            min_p: Some(0.1),
            typical_p: Some(0.8),
        };
        assert_eq!((params.device_draw(), params.device_top()), (Some(draw), Top { n: 2, most: 2 + MAX_TOP_TIES }));
        let penalties = Penalties { repetition: 1.1, occurrence: -0.5, ..Penalties::NONE };
        assert_eq!(params.device_penalties(), Some(penalties));
        assert_eq!(params.may_end_from(), 6);
        let lists = DeviceLists { biases: vec![(1, 0.5)], bans: vec![7, 2] };
        assert_eq!(params.device_lists(), &lists);
        assert!(Params::new(off(), 4, true).is_for_device(), "under a grammar");
    }

    #[test]
    fn what_changes_nothing_is_nothing() {
        let params = drawing(SamplingParams {
            top_p: Some(1.0),
            typical_p: Some(1.0),
            min_p: Some(0.0),
            repetition_penalty: Some(1.0),
            frequency_penalty: Some(0.0),
            seed: Some(7),
            prompt_logprobs: true,
            ..off()
        });
        assert!(params.is_for_device() && !params.counts_tokens());
        assert_eq!((params.device_draw(), params.device_penalties()), (Some(Draw::plain(7)), None));
        assert_eq!(params.device_top(), Top::default());
        let greedy = Params::new(SamplingParams { typical_p: Some(0.5), ..off() }, 4, false);
        assert!(greedy.is_for_device() && greedy.device_draw().is_none(), "greedy rows have no warpers");
    }

    #[test]
    fn what_it_does_not_know_is_the_processors() {
        for sampling in [
            SamplingParams { bad_words: words(&[&[7], &[2, 3]]), ..off() },
            SamplingParams { watermark: Some(Watermark { gamma: 0.5, delta: 2.0 }), ..off() },
        ] {
            let params = drawing(SamplingParams { logit_bias: vec![TokenBias { token_id: 1, bias: 0.5 }], ..sampling });
            assert!(!params.is_for_device(), "{:?}", params.sampling);
            assert_eq!(params.device_lists(), &DeviceLists::default());
        }
    }
}
