//! `Generate`: a completion by hand, over the same slots and steps as a router's.

use proto::v1::{Chunk, GenerateRequest, GenerateResponse, NewSlot, Plan};
use proto::{Sample, pack_u32};

use super::thread::EngineThread;
use super::{EngineGone, StreamId};
use crate::executor::StepError;
use crate::limits::MAX_GENERATE_TOKENS;

/// Why `Generate` was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A router is served.
    #[error("a Run stream is open; Generate is for a shard that no router uses")]
    Busy,
    /// The other ranks would not run the same step.
    #[error("this shard is one of {world_size} ranks; Generate needs a world size of 1")]
    Ranks {
        /// Number of ranks.
        world_size: usize,
    },
    /// Nothing to continue.
    #[error("`input_ids` is empty")]
    EmptyPrompt,
    /// Prompt and answer are longer than what can be held.
    #[error("`input_ids` and `max_new_tokens` add up to {actual} tokens; the limit is {max}")]
    TooLong {
        /// What was asked for.
        actual: usize,
        /// What is possible.
        max: usize,
    },
    /// A router came while it ran.
    #[error("a Run stream was opened")]
    Interrupted,
    /// The request is out of range.
    #[error("{0}")]
    Invalid(crate::violation::Violation),
    /// A step failed.
    #[error("{0}")]
    Failed(String),
    /// There is nobody to compute it.
    #[error(transparent)]
    Gone(#[from] EngineGone),
}

impl EngineThread {
    /// Completes a prompt in slot 0, up to an end-of-sequence token, which is included.
    pub(super) fn generate(&mut self, request: &GenerateRequest) -> Result<GenerateResponse, GenerateError> {
        if self.stream.is_some() {
            return Err(GenerateError::Busy);
        }
        if self.executor.world_size() > 1 {
            return Err(GenerateError::Ranks { world_size: self.executor.world_size() });
        }
        let response = self.complete(request);
        self.executor.clear();
        response
    }

    fn complete(&mut self, request: &GenerateRequest) -> Result<GenerateResponse, GenerateError> {
        let limits = *self.executor.slots().limits();
        if request.input_ids.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let tokens = request.input_ids.len().saturating_add(request.max_new_tokens as usize);
        let max = limits.max_context.min(MAX_GENERATE_TOKENS);
        if tokens > max {
            return Err(GenerateError::TooLong { actual: tokens, max });
        }

        let started_at: StreamId = *self.latest.borrow();
        let num_blocks = tokens.div_ceil(limits.block_size) as u32;
        let prompt_tokens = request.input_ids.len() as u32;
        let (params, block_table) = (request.params.clone(), pack_u32(0..num_blocks));
        let mut new_slots = vec![NewSlot { params, prompt_tokens, block_table, ..NewSlot::default() }];
        let mut response = GenerateResponse::default();
        let mut chunks = request.input_ids.chunks(limits.max_step_tokens);
        let (mut seq, mut position) = (0, 0);
        while response.output_ids.len() < request.max_new_tokens as usize {
            seq += 1;
            let mut plan = Plan { seq, new_slots: std::mem::take(&mut new_slots), ..Plan::default() };
            if let Some(ids) = chunks.next() {
                let sample = chunks.len() == 0;
                plan.chunks.push(Chunk {
                    slot: 0,
                    start_position: position,
                    ids: pack_u32(ids.iter().copied()),
                    sample,
                });
                position += ids.len() as u32;
            } else {
                plan.continues = pack_u32([0]);
            }
            let result = self.step(&plan).map_err(|error| match error {
                StepError::Violation(violation) => GenerateError::Invalid(violation),
                StepError::Interrupted { .. } => GenerateError::Interrupted,
                error => GenerateError::Failed(error.to_string()),
            })?;
            if let Some(error) = result.row_errors.first() {
                return Err(GenerateError::Failed(error.reason.clone()));
            }
            for Sample { token_id, logprob, .. } in Sample::unpack(&result.samples).expect("packed by the executor") {
                response.output_ids.push(token_id);
                response.logprobs.push(logprob);
                if self.executor.is_eos(token_id) {
                    return Ok(response);
                }
            }
            if *self.latest.borrow() != started_at {
                return Err(GenerateError::Interrupted);
            }
        }
        Ok(response)
    }
}
