//! From a row of logits to a token: penalties, then warpers, then a choice.
//!
//! Stateless: the result is a function of the logits, the parameters, the tokens so far, the grammar's mask and the absolute
//! position, so a row that was preempted, cached, chunked or recovered samples what it would have sampled undisturbed.
//!
//! The order, in which TGI's parameters keep TGI's places:
//!
//! 1. logit bias: it is part of what the client takes for the model's logits;
//! 2. watermark, repetition penalty, frequency penalty; then OpenAI's presence and occurrence penalties;
//! 3. what must not come: ends before `min_tokens`, bad words, tokens that the grammar forbids;
//! 4. if the row draws: temperature, top-k, top-p, min-p, typical-p. Min-p stands where transformers has it; vLLM has it before
//!    top-k, which differs only in what the later ones take for the whole;
//! 5. the draw, or the mode. Log-probabilities are the log-softmax of the processed scores.
//!
//! Steps 1 to 3 hold for greedy rows too. A new parameter is one file here, which defines its [`Processor`], and one line in
//! [`PROCESSORS`] or [`WARPERS`]; `device.rs` says what devices with kernels of their own do of it.

mod bad_words;
mod candidates;
mod device;
mod frequency_penalty;
mod grammar_mask;
mod history;
mod logit_bias;
mod min_p;
mod min_tokens;
mod occurrence_penalty;
mod params;
mod presence_penalty;
mod processor;
mod prompt_logprobs;
mod repetition_penalty;
mod select;
mod temperature;
mod token_counts;
mod top_k;
mod top_n_tokens;
mod top_p;
mod typical_p;
mod watermark;

pub use grammar_mask::mask_bytes;
pub use history::History;
pub use params::Params;
pub use token_counts::TokenCounts;
pub use top_n_tokens::TopTokens;

use candidates::Candidates;
use kernels::Device;
use kernels::ops::sample::{Sampled, argmax, gumbel_argmax, row_stats};
use processor::Processor;

/// What changes the scores of every row, in order.
const PROCESSORS: &[Processor] = &[
    logit_bias::PROCESSOR,
    watermark::PROCESSOR,
    repetition_penalty::PROCESSOR,
    frequency_penalty::PROCESSOR,
    presence_penalty::PROCESSOR,
    occurrence_penalty::PROCESSOR,
    min_tokens::PROCESSOR,
    bad_words::PROCESSOR,
    grammar_mask::PROCESSOR,
];

/// What then changes those of rows that draw, in order.
#[rustfmt::skip]
const WARPERS: &[Processor] = &[
    temperature::PROCESSOR,
    top_k::PROCESSOR,
    top_p::PROCESSOR,
    min_p::PROCESSOR,
    typical_p::PROCESSOR,
];

/// All processors for a row with these parameters, active or not.
fn processors(params: &Params) -> impl Iterator<Item = &'static Processor> + use<> {
    PROCESSORS.iter().chain(if params.sampling.do_sample { WARPERS } else { &[] })
}

/// Why one row could not be sampled. Other rows of the step are not affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowFailure {
    /// The model computed something that is not a score.
    #[error("the logit of token {token_id} at position {position} is {value}")]
    NotAScore {
        /// First token concerned.
        token_id: usize,
        /// "NaN" or "inf".
        value: String,
        /// Position of the token that was to be sampled.
        position: u32,
    },
    /// Every token has probability zero, or the scores overflow after the penalties and the temperature.
    #[error("no token can be sampled at position {position}: the processed scores sum to {sum}")]
    NoCandidate {
        /// Position of the token that was to be sampled.
        position: u32,
        /// log-sum-exp of the processed scores.
        sum: String,
    },
    /// What is forbidden leaves nothing.
    #[error(
        "no token is allowed at position {position}: the grammar, `min_tokens`, `bad_words` and `logit_bias` together \
         forbid all of them"
    )]
    NothingAllowed {
        /// Position of the token that was to be sampled.
        position: u32,
    },
    /// A defect of ours, contained in the row that met it.
    #[error("sampling panicked: {0}")]
    Panic(String),
}

/// A sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token_id: u32,
    /// Log-softmax of the processed scores at the token.
    pub logprob: f32,
}

impl Choice {
    /// The token at `position` that a device has chosen.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn of_device(sampled: &Sampled, position: u32) -> Result<Choice, RowFailure> {
        if let Some(token_id) = sampled.unsound {
            return Err(RowFailure::NotAScore {
                token_id: token_id as usize,
                value: "not finite".to_owned(),
                position,
            });
        }
        if sampled.log_sum_exp == f32::NEG_INFINITY {
            return Err(RowFailure::NothingAllowed { position });
        }
        if !sampled.log_sum_exp.is_finite() {
            return Err(RowFailure::NoCandidate { position, sum: sampled.log_sum_exp.to_string() });
        }
        Ok(Choice { token_id: sampled.id, logprob: sampled.logprob })
    }
}

/// What a row brings to the sampler.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Scores of the whole vocabulary, `[vocab_size]`.
    pub logits: &'a [f32],
    /// Its request's parameters.
    pub params: &'a Params,
    /// The tokens before the one to sample, as far as the parameters need them.
    pub history: &'a History,
    /// The model's end-of-sequence tokens.
    pub eos_token_ids: &'a [u32],
    /// The mask of a row whose parameters say `masked`: bit `id % 8` of byte `id / 8` allows a token.
    pub allowed: Option<&'a [u8]>,
    /// Absolute position of the token to sample, which is also the number of tokens before it.
    pub position: u32,
}

/// The buffers that sampling needs, so that a row allocates nothing. One per thread.
pub struct Sampler {
    device: Device,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler that uses the instruction set of `device`.
    pub fn new(device: Device) -> Sampler {
        Sampler { device, candidates: Candidates::default() }
    }

    /// Chooses the next token of `row` and writes its most likely tokens to `top` if the parameters ask for them.
    ///
    /// # Errors
    /// [`RowFailure`] if the logits or the processed scores are no distribution.
    pub fn sample(&mut self, row: Row<'_>, top: &mut TopTokens) -> Result<Choice, RowFailure> {
        let Row { logits, params, position, .. } = row;
        check_scores(logits, position)?;

        let Sampler { device, candidates } = self;
        // Most rows are greedy, or draw from the model's own distribution: those are scored where they lie.
        if params.is_plain(position) {
            return choose(device, logits, None, params, position, top);
        }
        candidates.load(logits);
        let run = |processors: &[Processor], candidates: &mut Candidates| {
            for processor in processors.iter().filter(|processor| (processor.is_active)(params, position)) {
                (processor.apply)(candidates, &row, device);
            }
        };
        run(PROCESSORS, candidates);
        if !candidates.is_any_possible() {
            return Err(RowFailure::NothingAllowed { position });
        }
        if params.sampling.do_sample {
            run(WARPERS, candidates);
        }
        choose(device, candidates.scores(), Some(candidates.ids()), params, position, top)
    }
}

/// Picks among processed `scores`. `ids` are the tokens they belong to, ascending; `None` is the whole vocabulary.
fn choose(
    device: &Device,
    scores: &[f32],
    ids: Option<&[u32]>,
    params: &Params,
    position: u32,
    top: &mut TopTokens,
) -> Result<Choice, RowFailure> {
    let id_of = |index: u32| ids.map_or(index, |ids| ids[index as usize]);
    let normalizer = row_stats(device, scores).log_sum_exp;
    if !normalizer.is_finite() {
        return Err(RowFailure::NoCandidate { position, sum: normalizer.to_string() });
    }
    top.select(scores, id_of, normalizer, params.sampling.top_n_tokens());
    let seed = params.sampling.seed();
    let index = match params.sampling.do_sample {
        false => argmax(device, scores),
        true => gumbel_argmax(device, scores, ids, seed, position),
    };
    Ok(Choice { token_id: id_of(index), logprob: scores[index as usize] - normalizer })
}

/// Minus infinity is a score (a token that cannot come); NaN and plus infinity are a failed computation.
fn check_scores(logits: &[f32], position: u32) -> Result<(), RowFailure> {
    // One comparison per score and no early exit inside a block: this is the form that vectorises.
    let sound = |block: &[f32]| block.iter().fold(true, |sound, &logit| sound & (logit < f32::INFINITY));
    if logits.chunks(1024).all(sound) {
        return Ok(());
    }
    let token_id =
        logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY).expect("a block was unsound");
    Err(RowFailure::NotAScore { token_id, value: logits[token_id].to_string(), position })
}

#[cfg(test)]
mod tests;
