//! The plans of one batch: prompts in chunks within the step's budget, then steps in which every row decodes.
//!
//! Pure: what a shard is told, without the shard.

use proto::pack_u32;
use proto::v1::{Chunk, NewSlot, Plan, SamplingParams};

use super::group::Facts;
use crate::error::Error;
use crate::random::Random;

/// How large a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) rows: u32,
    pub(super) sequence_length: u32,
    pub(super) decode_length: u32,
}

impl Shape {
    /// Steps after prefill, which makes the first token.
    pub(super) fn decode_steps(self) -> u32 {
        self.decode_length - 1
    }

    /// Tokens of a row whose KV is computed: all but the last one sampled.
    fn computed_tokens(self) -> u64 {
        u64::from(self.sequence_length) + u64::from(self.decode_steps())
    }

    fn blocks_per_row(self, block_size: u32) -> u64 {
        self.computed_tokens().div_ceil(block_size.into())
    }

    /// Whether the shards can hold such a batch.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with the first limit that it breaks.
    pub(super) fn check(self, facts: &Facts) -> Result<(), Error> {
        let Shape { rows, sequence_length, decode_length } = self;
        let most = |what: String, value: u64, limit: &'static str, most: u32| match value <= most.into() {
            true => Ok(()),
            false => Err(Error::TooLarge { what, value, limit, most: most.into() }),
        };
        let batch = || "--batch-size".to_owned();
        most(batch(), rows.into(), "max_slots", facts.max_slots)?;
        most(batch(), rows.into(), "max_step_tokens", facts.max_step_tokens)?;
        most(batch(), rows.into(), "max_logit_rows", facts.max_logit_rows)?;
        let total = u64::from(sequence_length) + u64::from(decode_length);
        let lengths = format!("--sequence-length {sequence_length} + --decode-length {decode_length}");
        most(lengths.clone(), total, "max_position_embeddings", facts.max_position_embeddings)?;
        let blocks = u64::from(rows) * self.blocks_per_row(facts.block_size);
        most(format!("--batch-size {rows} x ({lengths}), in KV blocks,"), blocks, "num_blocks", facts.num_blocks)
    }
}

/// A batch of random prompts.
pub(super) struct Batch<'a> {
    shape: Shape,
    facts: &'a Facts,
    sampling: &'a SamplingParams,
    prompts: Vec<Vec<u32>>,
}

impl<'a> Batch<'a> {
    /// Draws the prompts.
    pub(super) fn new(shape: Shape, facts: &'a Facts, sampling: &'a SamplingParams, mut random: Random) -> Batch<'a> {
        let mut prompt = || (0..shape.sequence_length).map(|_| random.below(facts.vocab_size.into()) as u32).collect();
        let prompts = (0..shape.rows).map(|_| prompt()).collect();
        Batch { shape, facts, sampling, prompts }
    }

    /// The prompts, row after row, each step as full as the shards allow.
    pub(super) fn prefill(&self) -> Vec<Plan> {
        let mut plans = vec![Plan::default()];
        let mut room = self.facts.max_step_tokens as usize;
        for (slot, prompt) in (0..).zip(&self.prompts) {
            let mut position = 0;
            while position < prompt.len() {
                if room == 0 {
                    plans.push(Plan::default());
                    room = self.facts.max_step_tokens as usize;
                }
                let plan = plans.last_mut().expect("there is one from the start");
                if position == 0 {
                    plan.new_slots.push(self.new_slot(slot));
                }
                let end = prompt.len().min(position + room);
                plan.chunks.push(Chunk {
                    slot,
                    start_position: position as u32,
                    ids: pack_u32(prompt[position..end].iter().copied()),
                    sample: end == prompt.len(),
                });
                room -= end - position;
                position = end;
            }
        }
        plans
    }

    /// The steps after it.
    pub(super) fn decode(&self) -> impl Iterator<Item = Plan> {
        let first = Plan { continues: pack_u32(0..self.shape.rows), ..Plan::default() };
        let rest = Plan { same_rows: true, ..Plan::default() };
        std::iter::once(first).chain(std::iter::repeat(rest)).take(self.shape.decode_steps() as usize)
    }

    /// Gives slots and blocks back.
    pub(super) fn free(&self) -> Plan {
        Plan { freed_slots: pack_u32(0..self.shape.rows), ..Plan::default() }
    }

    fn new_slot(&self, slot: u32) -> NewSlot {
        // `Shape::check` has found room for all of them, so this is below num_blocks.
        let blocks = self.shape.blocks_per_row(self.facts.block_size) as u32;
        NewSlot {
            slot,
            params: Some(SamplingParams {
                seed: self.sampling.seed.map(|seed| seed.wrapping_add(slot.into())),
                ..self.sampling.clone()
            }),
            block_table: pack_u32(slot * blocks..(slot + 1) * blocks),
            prompt_tokens: self.shape.sequence_length,
            request_id: slot.into(),
            ..NewSlot::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proto::unpack_u32;

    use super::*;

    fn facts() -> Facts {
        Facts {
            target: "test".to_owned(),
            world_size: 1,
            vocab_size: 100,
            max_position_embeddings: 64,
            block_size: 16,
            num_blocks: 6,
            max_slots: 4,
            max_step_tokens: 8,
            max_logit_rows: 4,
            max_top_n_tokens: 5,
        }
    }

    fn shape(rows: u32, sequence_length: u32, decode_length: u32) -> Shape {
        Shape { rows, sequence_length, decode_length }
    }

    #[test]
    fn every_limit_is_named() {
        #[track_caller]
        fn check(shape: Shape, change: fn(&mut Facts), expected: Expect) {
            let mut facts = facts();
            change(&mut facts);
            expected.assert_eq(&shape.check(&facts).map_or_else(|error| error.to_string(), |()| "ok".to_owned()));
        }
        check(shape(4, 10, 7), |_| (), expect!["ok"]);
        check(shape(5, 10, 7), |_| (), expect!["--batch-size is 5; the shards' max_slots is 4"]);
        check(
            shape(3, 10, 7),
            |facts| facts.max_step_tokens = 2,
            expect!["--batch-size is 3; the shards' max_step_tokens is 2"],
        );
        check(
            shape(3, 10, 7),
            |facts| facts.max_logit_rows = 2,
            expect!["--batch-size is 3; the shards' max_logit_rows is 2"],
        );
        check(
            shape(1, 60, 5),
            |_| (),
            expect!["--sequence-length 60 + --decode-length 5 is 65; the shards' max_position_embeddings is 64"],
        );
        check(
            shape(4, 10, 8),
            |_| (),
            expect![[
                r#"--batch-size 4 x (--sequence-length 10 + --decode-length 8), in KV blocks, is 8; the shards' num_blocks is 6"#
            ]],
        );
        check(
            shape(u32::MAX, u32::MAX, u32::MAX),
            |facts| facts.max_slots = u32::MAX,
            expect!["--batch-size is 4294967295; the shards' max_step_tokens is 8"],
        );
    }

    /// "slots opened; slot@start+length of each chunk, * if it samples", a line per plan.
    fn script(plans: &[Plan]) -> String {
        let line = |plan: &Plan| {
            let new: Vec<_> = plan.new_slots.iter().map(|new| new.slot.to_string()).collect();
            let chunks: Vec<_> = plan
                .chunks
                .iter()
                .map(|chunk| {
                    let sample = if chunk.sample { "*" } else { "" };
                    format!("{}@{}+{}{sample}", chunk.slot, chunk.start_position, chunk.ids.len() / 4)
                })
                .collect();
            format!("new {}; {}", new.join(" "), chunks.join(" "))
        };
        plans.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn prompts_fill_steps_up_to_their_budget() {
        let (facts, sampling) = (facts(), SamplingParams::default());
        let batch = |rows, length| Batch::new(shape(rows, length, 3), &facts, &sampling, Random::new(1));
        expect![[r#"
            new 0 1; 0@0+5* 1@0+3
            new 2; 1@3+2* 2@0+5*"#]]
        .assert_eq(&script(&batch(3, 5).prefill()));
        expect![[r#"
            new 0; 0@0+8
            new ; 0@8+8
            new ; 0@16+4*"#]]
        .assert_eq(&script(&batch(1, 20).prefill()));
        expect![[r#"
            new 0; 0@0+8*
            new 1; 1@0+8*"#]]
        .assert_eq(&script(&batch(2, 8).prefill()));
    }

    #[test]
    fn rows_share_no_block_and_every_slot_is_freed() {
        let (facts, sampling) = (facts(), SamplingParams { seed: Some(7), ..SamplingParams::default() });
        let batch = Batch::new(shape(3, 16, 2), &facts, &sampling, Random::new(1));
        let plans = batch.prefill();
        let slots: Vec<_> = plans.iter().flat_map(|plan| &plan.new_slots).collect();
        let tables: Vec<Vec<u32>> = slots.iter().map(|new| unpack_u32(&new.block_table).unwrap().collect()).collect();
        // 16 prompt tokens and the first of the reply.
        assert_eq!(tables, [[0, 1], [2, 3], [4, 5]]);
        assert_eq!(slots.iter().map(|new| new.params.as_ref().unwrap().seed).collect::<Vec<_>>(), [7, 8, 9].map(Some));
        assert_eq!(unpack_u32(&batch.free().freed_slots).unwrap().collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn decode_repeats_its_rows() {
        let (facts, sampling) = (facts(), SamplingParams::default());
        let decode: Vec<_> = Batch::new(shape(2, 4, 4), &facts, &sampling, Random::new(1)).decode().collect();
        assert_eq!(decode.len(), 3);
        assert!(!decode[0].same_rows && decode[0].continues == pack_u32(0..2));
        assert!(decode[1..].iter().all(|plan| plan.same_rows && plan.continues.is_empty()));
    }

    #[test]
    fn a_seed_draws_the_same_prompts_below_the_vocabulary() {
        let (facts, sampling) = (facts(), SamplingParams::default());
        let batch = |seed| Batch::new(shape(2, 50, 3), &facts, &sampling, Random::new(seed)).prompts;
        assert_eq!(batch(1), batch(1));
        assert_ne!(batch(1), batch(2));
        assert_ne!(batch(1)[0], batch(1)[1]);
        assert!(batch(1).iter().flatten().all(|&id| id < 100));
    }
}
