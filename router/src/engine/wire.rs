//! The border between the scheduler's plain vectors and `shard.proto`: translated here and nowhere else.

use std::time::Duration;

use proto::v1::{self, Plan, StepResult};
use proto::{PackedError, Sample, pack_u32, unpack_u32};

use crate::scheduler::{PromptLogprob, PromptRun, SampledRow, SlotId, StepOutcome, StepPlan};

/// A plan as it travels. A steady decode step is an empty message with a number and a flag.
pub(crate) fn encode(step: &StepPlan) -> Plan {
    let continues: &[SlotId] = if step.same_rows { &[] } else { &step.continues };
    Plan {
        seq: step.seq,
        same_rows: step.same_rows,
        continues: pack_u32(continues.iter().map(|slot| slot.0)),
        draft_limits: step.draft_limits.clone().into(),
        chunks: step
            .chunks_with_ids()
            .map(|(chunk, ids)| v1::Chunk {
                slot: chunk.slot.0,
                start_position: chunk.start_position,
                ids: pack_u32(ids.iter().copied()),
                sample: chunk.sample,
            })
            .collect(),
        new_slots: step
            .new_slots
            .iter()
            .map(|new| v1::NewSlot {
                slot: new.slot.0,
                params: Some(new.sampling.clone()),
                prompt_tokens: new.prompt_tokens,
                masked: new.masked,
                speculates: new.speculates,
                block_table: pack_u32(new.block_table.iter().map(|block| block.0)),
                cached_tokens: new.cached_tokens,
                cached_ids: pack_u32(new.cached_ids.iter().copied()),
                request_id: new.request.0,
            })
            .collect(),
        appended_blocks: pack_u32(step.appended_blocks.iter().flat_map(|(slot, block)| [slot.0, block.0])),
        freed_slots: pack_u32(step.freed_slots.iter().map(|slot| slot.0)),
    }
}

/// A result as the scheduler reads it.
///
/// # Errors
/// Which field is malformed; the epoch must end.
pub(crate) fn decode(result: &StepResult) -> Result<StepOutcome, String> {
    let cut = |field: &str, error: PackedError| format!("{field}: {error}");
    let samples = Sample::unpack(&result.samples).map_err(|error| cut("samples", error))?;
    let mut samples: Vec<SampledRow> = samples
        .map(|sample| SampledRow {
            slot: SlotId(sample.slot),
            token_id: sample.token_id,
            logprob: sample.logprob,
            top: None,
        })
        .collect();
    // Both are in row order, and those of a row in the order of its tokens.
    let mut rows = samples.iter_mut();
    for top in &result.top_tokens {
        let row = rows.find(|sample| sample.slot.0 == top.slot);
        let row = row.ok_or_else(|| format!("top_tokens of slot {}, which has no sample for them", top.slot))?;
        row.top = Some(top_tokens(top)?);
    }
    let row_errors = result.row_errors.iter().map(|error| (SlotId(error.slot), error.reason.clone())).collect();
    let prompt_runs = result.prompt_logprobs.iter().map(prompt_run).collect::<Result<_, _>>()?;
    let timings = result.timings.unwrap_or_default();
    Ok(StepOutcome {
        seq: result.seq,
        samples,
        row_errors,
        prompt_runs,
        draft_tokens: result.draft_tokens.to_vec(),
        took: Duration::from_nanos(timings.forward_ns.saturating_add(timings.sample_ns)),
    })
}

fn top_tokens(top: &v1::TopTokens) -> Result<Box<[(u32, f32)]>, String> {
    let ids = unpack_u32(&top.ids).map_err(|error| format!("top_tokens.ids: {error}"))?;
    let logprobs = unpack_u32(&top.logprobs).map_err(|error| format!("top_tokens.logprobs: {error}"))?;
    match ids.len() == logprobs.len() {
        true => Ok(ids.zip(logprobs.map(f32::from_bits)).collect()),
        false => Err(format!("top_tokens has {} ids and {} logprobs", ids.len(), logprobs.len())),
    }
}

fn prompt_run(run: &v1::PromptLogprobs) -> Result<PromptRun, String> {
    let logprobs = unpack_u32(&run.logprobs).map_err(|error| format!("prompt_logprobs.logprobs: {error}"))?;
    let (tokens, tops) = (logprobs.len(), run.top_tokens.len());
    if tops != 0 && tops != tokens {
        return Err(format!("prompt_logprobs has {tokens} logprobs and {tops} top_tokens"));
    }
    let mut tops = run.top_tokens.iter();
    let logprobs = logprobs.map(|bits| {
        let top = tops.next().map(top_tokens).transpose()?;
        Ok(PromptLogprob { logprob: f32::from_bits(bits), top })
    });
    Ok(PromptRun {
        slot: SlotId(run.slot),
        first_position: run.first_token_position,
        logprobs: logprobs.collect::<Result<_, String>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockId;
    use crate::scheduler::{Chunk, NewSlot, RequestId};

    #[test]
    fn a_steady_step_is_a_few_bytes() {
        let steady = StepPlan {
            seq: 70_000,
            same_rows: true,
            continues: (0..256).map(SlotId).collect(),
            appended_blocks: (0..16).map(|i| (SlotId(i), BlockId(i))).collect(),
            ..Default::default()
        };
        let plan = encode(&steady);
        assert!(plan.continues.is_empty());
        let bytes = plan.appended_blocks.len() + plan.freed_slots.len() + plan.chunks.len() + 16;
        assert!(bytes < 200, "{bytes}");
    }

    #[test]
    fn a_new_slot_says_what_is_asked_and_where_the_reply_begins() {
        let new = NewSlot {
            slot: SlotId(3),
            request: RequestId(1),
            sampling: v1::SamplingParams { min_p: Some(0.5), ..Default::default() },
            prompt_tokens: 17,
            masked: true,
            speculates: true,
            block_table: vec![BlockId(4)],
            cached_tokens: 16,
            cached_ids: vec![],
        };
        let expected = v1::NewSlot {
            slot: 3,
            params: Some(new.sampling.clone()),
            block_table: pack_u32([4]),
            cached_tokens: 16,
            cached_ids: pack_u32([]),
            request_id: 1,
            prompt_tokens: 17,
            masked: true,
            speculates: true,
        };
        assert_eq!(encode(&StepPlan { new_slots: vec![new], ..Default::default() }).new_slots, [expected]);
    }

    #[test]
    fn each_chunk_carries_its_own_ids() {
        let chunk = |slot, num_tokens| Chunk { slot: SlotId(slot), start_position: 0, num_tokens, sample: true };
        let step = StepPlan { chunks: vec![chunk(1, 2), chunk(0, 1)], chunk_ids: vec![7, 8, 9], ..Default::default() };
        let ids: Vec<Vec<u32>> = encode(&step).chunks.iter().map(|c| unpack_u32(&c.ids).unwrap().collect()).collect();
        assert_eq!(ids, [vec![7, 8], vec![9]]);
    }

    #[test]
    fn top_tokens_find_their_row_and_malformed_fields_are_named() {
        let sample = Sample { slot: 3, token_id: 5, logprob: -0.5 };
        let top = v1::TopTokens {
            slot: 3,
            ids: pack_u32([5, 6]),
            logprobs: pack_u32([(-0.5f32).to_bits(), (-1.5f32).to_bits()]),
        };
        let result = StepResult {
            seq: 1,
            samples: Sample::pack(&[sample]),
            top_tokens: vec![top.clone()],
            ..Default::default()
        };
        let outcome = decode(&result).unwrap();
        assert_eq!(outcome.samples[0].top.as_deref(), Some([(5, -0.5), (6, -1.5)].as_slice()));

        let cut = StepResult { samples: result.samples.slice(1..), ..result.clone() };
        assert_eq!(decode(&cut).unwrap_err(), "samples: packed field of 11 bytes is not a multiple of 12");
        let stranger = StepResult { top_tokens: vec![v1::TopTokens { slot: 4, ..top }], ..result };
        assert_eq!(decode(&stranger).unwrap_err(), "top_tokens of slot 4, which has no sample for them");
    }

    #[test]
    fn prompt_logprobs_keep_their_positions_and_alternatives() {
        let bits = |values: &[f32]| pack_u32(values.iter().map(|value| value.to_bits()));
        let top = |id: u32| v1::TopTokens { slot: 3, ids: pack_u32([id]), logprobs: bits(&[-0.25]) };
        let run = v1::PromptLogprobs {
            slot: 3,
            first_token_position: 5,
            logprobs: bits(&[-1.0, f32::NEG_INFINITY]),
            top_tokens: vec![top(7), top(8)],
        };
        let result = StepResult { seq: 1, prompt_logprobs: vec![run.clone()], ..Default::default() };
        let outcome = decode(&result).unwrap();
        assert_eq!((outcome.prompt_runs[0].slot, outcome.prompt_runs[0].first_position), (SlotId(3), 5));
        let logprobs = &outcome.prompt_runs[0].logprobs;
        assert_eq!(logprobs[0], PromptLogprob { logprob: -1.0, top: Some([(7, -0.25)].into()) });
        assert_eq!(logprobs[1], PromptLogprob { logprob: f32::NEG_INFINITY, top: Some([(8, -0.25)].into()) });

        let lacking = v1::PromptLogprobs { top_tokens: vec![top(7)], ..run };
        let result = StepResult { prompt_logprobs: vec![lacking], ..result };
        assert_eq!(decode(&result).unwrap_err(), "prompt_logprobs has 2 logprobs and 1 top_tokens");
    }
}
