//! The border between the scheduler's plain vectors and `shard.proto`: translated here and nowhere else.

use proto::v1::{self, Plan, StepResult};
use proto::{PackedError, Sample, pack_u32, unpack_u32};

use crate::request::SamplingParams;
use crate::scheduler::{SampledRow, SlotId, StepOutcome, StepPlan};

/// A plan as it travels. A steady decode step is an empty message with a number and a flag.
pub(crate) fn encode(step: &StepPlan) -> Plan {
    let continues: &[SlotId] = if step.same_rows { &[] } else { &step.continues };
    Plan {
        seq: step.seq,
        same_rows: step.same_rows,
        continues: pack_u32(continues.iter().map(|slot| slot.0)),
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
                params: Some(sampling(&new.sampling)),
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
    for top in &result.top_tokens {
        let ids = unpack_u32(&top.ids).map_err(|error| cut("top_tokens.ids", error))?;
        let logprobs = unpack_u32(&top.logprobs).map_err(|error| cut("top_tokens.logprobs", error))?;
        if ids.len() != logprobs.len() {
            return Err(format!("top_tokens has {} ids and {} logprobs", ids.len(), logprobs.len()));
        }
        let row = samples.iter_mut().find(|sample| sample.slot.0 == top.slot);
        let row = row.ok_or_else(|| format!("top_tokens of slot {}, which has no sample", top.slot))?;
        row.top = Some(ids.zip(logprobs.map(f32::from_bits)).collect());
    }
    let row_errors = result.row_errors.iter().map(|error| (SlotId(error.slot), error.reason.clone())).collect();
    Ok(StepOutcome { seq: result.seq, samples, row_errors })
}

fn sampling(params: &SamplingParams) -> v1::SamplingParams {
    let SamplingParams {
        do_sample,
        temperature,
        top_k,
        top_p,
        typical_p,
        repetition_penalty,
        frequency_penalty,
        seed,
        top_n_tokens,
    } = *params;
    v1::SamplingParams {
        do_sample,
        temperature,
        top_k,
        top_p,
        typical_p,
        repetition_penalty,
        frequency_penalty,
        seed,
        top_n_tokens,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockId;
    use crate::scheduler::Chunk;

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
        assert_eq!(decode(&stranger).unwrap_err(), "top_tokens of slot 4, which has no sample");
    }
}
