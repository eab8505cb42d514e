//! Every way a plan can contradict the slots, and what a legal plan computes.

use proto::pack_u32;
use proto::v1::{Chunk, SamplingParams, TokenSequence};

use super::Prediction::Row;
use super::*;

const LIMITS: SlotLimits = SlotLimits {
    device_samples: false,
    max_slots: 4,
    num_blocks: 8,
    block_size: 4,
    max_context: 12,
    max_step_tokens: 10,
    max_logit_rows: 4,
    vocab_size: 100,
};

fn new_slot(slot: u32, blocks: &[u32]) -> NewSlot {
    NewSlot { slot, block_table: pack_u32(blocks.iter().copied()), request_id: slot.into(), ..NewSlot::default() }
}

fn chunk(slot: u32, start_position: u32, ids: &[u32], sample: bool) -> Chunk {
    Chunk { slot, start_position, ids: pack_u32(ids.iter().copied()), sample }
}

fn sampled(slot: u32, position: u32, logits: usize, row: usize) -> SampledRow {
    SampledRow { slot, position, logits, row, draft_tokens: 0 }
}

fn packed_u32(values: &[u32]) -> bytes::Bytes {
    pack_u32(values.iter().copied())
}

/// After plan 1: slot 0 holds 3 sampled tokens in block 5, slot 1 holds 2 of an unfinished prompt in block 6.
fn started() -> (Slots, Rows) {
    let (mut slots, mut rows) = (Slots::new(LIMITS), Rows::default());
    let plan = Plan {
        seq: 1,
        new_slots: vec![new_slot(0, &[5]), new_slot(1, &[6])],
        chunks: vec![chunk(0, 0, &[1, 2, 3], true), chunk(1, 0, &[4, 5], false)],
        ..Plan::default()
    };
    slots.check(&plan).unwrap();
    slots.apply(&plan, &mut rows);
    slots.get_mut(0).last_token = 42;
    (slots, rows)
}

#[test]
fn rows_are_laid_out_in_plan_order() {
    let (mut slots, rows) = started();
    assert_eq!(rows.input_ids, [1, 2, 3, 4, 5]);
    assert_eq!(rows.positions, [0, 1, 2, 0, 1]);
    assert_eq!(rows.slot_mapping, [20, 21, 22, 24, 25]);
    assert_eq!((&rows.logit_rows[..], &rows.sampled[..]), (&[2][..], &[sampled(0, 3, 0, 2)][..]));

    let plan = Plan {
        seq: 2,
        continues: packed_u32(&[0]),
        chunks: vec![chunk(1, 2, &[6, 7, 8], true)],
        appended_blocks: packed_u32(&[1, 2]),
        ..Plan::default()
    };
    slots.check(&plan).unwrap();
    let mut rows = Rows::default();
    slots.apply(&plan, &mut rows);
    assert_eq!(rows.input_ids, [42, 6, 7, 8]);
    assert_eq!(rows.positions, [3, 2, 3, 4]);
    assert_eq!(rows.slot_mapping, [23, 26, 27, 8]);
    let spans = [
        Span { slot: 0, first_row: 0, num_rows: 1, start_position: 3 },
        Span { slot: 1, first_row: 1, num_rows: 3, start_position: 2 },
    ];
    assert_eq!(rows.spans, spans);
    assert_eq!(
        (&rows.logit_rows[..], &rows.sampled[..]),
        (&[0, 3][..], &[sampled(0, 4, 0, 0), sampled(1, 5, 1, 3)][..])
    );
    assert!(rows.scored.is_empty() && rows.kept.is_empty());
}

#[test]
fn same_rows_repeats_the_continues_of_the_last_plan() {
    let (mut slots, mut rows) = started();
    let plans = [
        Plan { seq: 2, continues: packed_u32(&[0]), appended_blocks: packed_u32(&[0, 7]), ..Plan::default() },
        Plan { seq: 3, same_rows: true, ..Plan::default() },
        Plan { seq: 4, same_rows: true, ..Plan::default() },
    ];
    for plan in plans {
        slots.check(&plan).unwrap();
        slots.apply(&plan, &mut rows);
    }
    assert_eq!((rows.positions, rows.slot_mapping), (vec![5], vec![29]));
}

#[test]
fn a_slot_can_be_freed_and_filled_by_one_plan() {
    let (mut slots, mut rows) = started();
    let plan = Plan {
        seq: 2,
        freed_slots: packed_u32(&[0]),
        new_slots: vec![NewSlot { cached_tokens: 4, ..new_slot(0, &[3, 2]) }],
        chunks: vec![chunk(0, 4, &[9], true)],
        ..Plan::default()
    };
    slots.check(&plan).unwrap();
    slots.apply(&plan, &mut rows);
    assert_eq!((rows.input_ids, rows.positions, rows.slot_mapping), (vec![9], vec![4], vec![8]));
}

#[test]
fn the_history_holds_cached_computed_and_sampled_tokens() {
    let penalty = SamplingParams {
        repetition_penalty: Some(1.5),
        presence_penalty: Some(1.0),
        bad_words: vec![TokenSequence { ids: vec![1, 2, 3] }],
        ..SamplingParams::default()
    };
    let new = NewSlot {
        params: Some(penalty.clone()),
        prompt_tokens: 3,
        cached_tokens: 4,
        cached_ids: packed_u32(&[1, 1, 2, 3]),
        ..new_slot(0, &[0, 1])
    };
    let (mut slots, mut rows) = (Slots::new(LIMITS), Rows::default());
    let plan = Plan { seq: 1, new_slots: vec![new], chunks: vec![chunk(0, 4, &[1], true)], ..Plan::default() };
    slots.check(&plan).unwrap();
    slots.apply(&plan, &mut rows);
    slots.get_mut(0).last_token = 9;
    let plan = Plan { seq: 2, continues: packed_u32(&[0]), ..Plan::default() };
    slots.check(&plan).unwrap();
    slots.apply(&plan, &mut rows);

    let params = Params::new(penalty, 3, false);
    let mut expected = History::default();
    (0..).zip([1, 1, 2, 3, 1, 9]).for_each(|(position, id)| expected.push(&params, position, id));
    assert_eq!(slots.get(0).history, expected);
}

#[test]
fn a_device_that_counts_is_told_of_every_token() {
    let mut slots = Slots::new(SlotLimits { device_samples: true, max_logit_rows: 9, ..LIMITS });
    let mut rows = Rows::default();
    let penalised = SamplingParams { presence_penalty: Some(1.0), ..SamplingParams::default() };
    let watermark = Some(proto::v1::Watermark { gamma: 0.5, delta: 2.0 });
    let open = |slot, blocks: &[u32], params: SamplingParams| NewSlot {
        params: Some(params),
        prompt_tokens: 5,
        ..new_slot(slot, blocks)
    };
    let cached = NewSlot {
        cached_tokens: 4,
        cached_ids: packed_u32(&[7, 8, 7, 9]),
        speculates: true,
        ..open(2, &[0, 1, 5], penalised.clone())
    };
    let apply = |slots: &mut Slots, rows: &mut Rows, seq, plan: Plan| {
        let plan = Plan { seq, ..plan };
        slots.check(&plan).unwrap();
        slots.apply(&plan, rows);
    };
    // Opened and freed before a step has rows, then opened again; and two whose tokens nobody counts, or the processor.
    let plan = Plan { new_slots: vec![open(2, &[3], penalised.clone())], ..Plan::default() };
    apply(&mut slots, &mut rows, 1, plan);
    let by_processor = SamplingParams { watermark, ..penalised };
    let plan = Plan {
        freed_slots: packed_u32(&[2]),
        new_slots: vec![new_slot(0, &[2]), cached, open(1, &[4], by_processor)],
        chunks: vec![chunk(0, 0, &[1], true), chunk(2, 4, &[8, 8], true), chunk(1, 0, &[5], true)],
        ..Plan::default()
    };
    apply(&mut slots, &mut rows, 2, plan);
    let [prompt, reply] = [false, true].map(|is_reply| counted_as(2, is_reply));
    assert_eq!(rows.counted, [NOT_COUNTED, prompt, reply], "what comes behind the last is not counted either");
    let earlier = [7, 8, 7, 9].map(|id| (id, prompt)).to_vec();
    assert_eq!(slots.take_opened(), [OpenedSlot { slot: 2, earlier }]);
    assert_eq!([0, 1, 2].map(|slot| slots.get(slot).on_device), [true, false, true]);
    assert_eq!([1, 2].map(|slot| slots.get(slot).history == History::default()), [false, true]);

    // Drafts would need counts of their own.
    slots.get_mut(2).last_token = 7;
    let plan = Plan { continues: packed_u32(&[2, 0]), draft_limits: vec![2, 0].into(), ..Plan::default() };
    apply(&mut slots, &mut rows, 3, plan);
    assert_eq!((&rows.draft_tokens[..], &rows.counted[..]), (&[0, 0][..], &[reply][..]));
    assert_eq!(slots.take_opened(), []);
}

#[test]
fn prompt_tokens_are_scored_by_the_row_before_them() {
    let params = SamplingParams { prompt_logprobs: true, ..SamplingParams::default() };
    let (mut slots, mut rows) = (Slots::new(LIMITS), Rows::default());
    let mut seq = 0;
    let mut apply = |slots: &mut Slots, chunk: Chunk, new_slots: Vec<NewSlot>| {
        seq += 1;
        let plan = Plan { seq, chunks: vec![chunk], new_slots, ..Plan::default() };
        slots.check(&plan).unwrap();
        slots.apply(&plan, &mut rows);
        let scored =
            rows.scored.iter().map(|token| (token.position, token.token_id, token.predicted_by)).collect::<Vec<_>>();
        (rows.logit_rows.clone(), scored, rows.kept.clone(), rows.sampled.clone())
    };
    let new = NewSlot { params: Some(params.clone()), prompt_tokens: 6, ..new_slot(0, &[0, 1]) };
    // The first token has no prediction; the last row predicts the first token of the next chunk.
    let (logit_rows, scored, kept, _) = apply(&mut slots, chunk(0, 0, &[10, 11, 12], false), vec![new.clone()]);
    assert_eq!(logit_rows, [0, 1, 2]);
    assert_eq!(scored, [(1, 11, Row(0)), (2, 12, Row(1))]);
    assert_eq!(kept, [(0, 2)]);
    slots.get_mut(0).kept = Some(KeptLogits { logits: vec![0.0; 100], of_device: None });
    // The prompt ends: its last row is sampled, and no row of the reply is scored.
    let (logit_rows, scored, kept, samples) = apply(&mut slots, chunk(0, 3, &[13, 14, 15, 16], true), vec![]);
    assert_eq!(logit_rows, [0, 1, 3]);
    assert_eq!(scored, [(3, 13, Prediction::Kept), (4, 14, Row(0)), (5, 15, Row(1))]);
    assert!(kept.is_empty());
    assert_eq!(samples, [sampled(0, 7, 2, 3)]);
    // Behind a cached prefix nothing predicted the first token.
    let cached = NewSlot { cached_tokens: 4, params: Some(params), prompt_tokens: 6, ..new_slot(1, &[2, 3]) };
    let (logit_rows, scored, kept, _) = apply(&mut slots, chunk(1, 4, &[14, 15], true), vec![cached]);
    assert_eq!((logit_rows, scored), (vec![0, 1], vec![(5, 15, Row(0))]));
    assert!(kept.is_empty());
    // What was kept goes with its slot.
    slots.get_mut(0).kept = Some(KeptLogits { logits: vec![0.0; 100], of_device: None });
    let plan = Plan { seq: 4, freed_slots: packed_u32(&[0]), new_slots: vec![new], ..Plan::default() };
    slots.check(&plan).unwrap();
    slots.apply(&plan, &mut Rows::default());
    assert!(slots.get(0).kept.is_none());
}

#[test]
fn clearing_starts_an_epoch() {
    let (mut slots, _) = started();
    slots.clear();
    assert!(slots.inspect().is_empty());
    let plan = Plan { seq: 1, new_slots: vec![new_slot(0, &[5])], ..Plan::default() };
    slots.check(&plan).unwrap();
}

/// `plan` as number 2 after [`started`] is refused with `expected`, and leaves no trace.
#[track_caller]
fn check(plan: Plan, expected: &str) {
    let (mut slots, _) = started();
    slots.scratch.clear();
    let before = format!("{slots:?}");
    let plan = Plan { seq: if plan.seq == 0 { 2 } else { plan.seq }, ..plan };
    let violation = slots.check(&plan).unwrap_err();
    assert_eq!(violation.to_string(), expected);
    slots.scratch.clear();
    assert_eq!(format!("{slots:?}"), before);
}

#[test]
fn sequence_numbers_count_up() {
    check(Plan { seq: 1, ..Plan::default() }, "plan 1 arrived, expected plan 2");
    check(Plan { seq: 3, ..Plan::default() }, "plan 3 arrived, expected plan 2");
}

#[test]
fn unknown_and_dead_slots() {
    let plan = |slot| Plan { continues: packed_u32(&[slot]), ..Plan::default() };
    check(plan(4), "slot 4 does not exist: ids end below 4");
    check(plan(u32::MAX), "slot 4294967295 does not exist: ids end below 4");
    check(plan(2), "slot 2 is not live");
    check(Plan { freed_slots: packed_u32(&[2]), ..Plan::default() }, "slot 2 is not live");
    check(Plan { freed_slots: packed_u32(&[0, 0]), ..Plan::default() }, "slot 0 is not live");
    check(Plan { freed_slots: packed_u32(&[0]), ..plan(0) }, "slot 0 is not live");
    check(Plan { appended_blocks: packed_u32(&[2, 0]), ..Plan::default() }, "slot 2 is not live");
    check(Plan { chunks: vec![chunk(2, 0, &[1], false)], ..Plan::default() }, "slot 2 is not live");
    check(Plan { new_slots: vec![new_slot(0, &[])], ..Plan::default() }, "slot 0 is live already: free it first");
    let twice = Plan { new_slots: vec![new_slot(2, &[]), new_slot(2, &[])], ..Plan::default() };
    check(twice, "slot 2 is live already: free it first");
}

#[test]
fn a_slot_has_rows_in_one_place() {
    let expected = "slot 0 appears twice among the rows of the plan";
    check(Plan { continues: packed_u32(&[0, 0]), ..Plan::default() }, expected);
    let both = Plan { continues: packed_u32(&[0]), chunks: vec![chunk(0, 4, &[1], false)], ..Plan::default() };
    check(both, expected);
    let two = Plan { chunks: vec![chunk(1, 2, &[1], false), chunk(1, 3, &[1], false)], ..Plan::default() };
    check(two, "slot 1 appears twice among the rows of the plan");
}

#[test]
fn chunks_follow_each_other() {
    let expected = "slot 1: the chunk starts at position 1, the sequence is at 2";
    check(Plan { chunks: vec![chunk(1, 1, &[1], false)], ..Plan::default() }, expected);
    check(Plan { chunks: vec![chunk(1, 2, &[], true)], ..Plan::default() }, "slot 1: the chunk has no tokens");
    let expected = "slot 1: token 100 does not exist: ids end below 100";
    check(Plan { chunks: vec![chunk(1, 2, &[99, 100], true)], ..Plan::default() }, expected);
    let expected = "slot 1 cannot continue: its last chunk did not sample";
    check(Plan { continues: packed_u32(&[1]), ..Plan::default() }, expected);
}

#[test]
fn blocks_exist_and_suffice() {
    let expected = "slot 0: block 8 does not exist: ids end below 8";
    check(Plan { appended_blocks: packed_u32(&[0, 8]), ..Plan::default() }, expected);
    let expected = "slot 2: block 9 does not exist: ids end below 8";
    check(Plan { new_slots: vec![new_slot(2, &[1, 9])], ..Plan::default() }, expected);
    let expected = "slot 2 has 4 blocks; the longest sequence fills 3";
    check(Plan { new_slots: vec![new_slot(2, &[0, 1, 2, 3])], ..Plan::default() }, expected);
    let appended = Plan { appended_blocks: packed_u32(&[0, 1, 0, 2, 0, 3]), ..Plan::default() };
    check(appended, "slot 0 has 4 blocks; the longest sequence fills 3");
    let expected = "slot 1 would hold 5 tokens, which takes 2 blocks; it has 1";
    check(Plan { chunks: vec![chunk(1, 2, &[1, 2, 3], false)], ..Plan::default() }, expected);
    let long = Plan {
        appended_blocks: packed_u32(&[1, 0, 1, 1]),
        chunks: vec![chunk(1, 2, &[1; 11], false)],
        ..Plan::default()
    };
    check(long, "slot 1 would hold 13 tokens; the longest sequence is 12");
}

#[test]
fn cached_prefixes_are_full_blocks_with_their_ids_where_needed() {
    let cached = |cached_tokens, cached_ids: &[u32], penalty| {
        let params = SamplingParams { frequency_penalty: Some(penalty), ..SamplingParams::default() };
        let cached_ids = packed_u32(cached_ids);
        let new = NewSlot { cached_tokens, cached_ids, params: Some(params), ..new_slot(2, &[0, 1]) };
        Plan { new_slots: vec![new], ..Plan::default() }
    };
    let no_blocks =
        |tokens| format!("slot 2: {tokens} cached tokens are no multiple of 4 or more than the 8 that its blocks hold");
    check(cached(3, &[], 0.0), &no_blocks(3));
    check(cached(12, &[], 0.0), &no_blocks(12));
    check(cached(4, &[], 1.0), "slot 2: 0 cached ids for 4 cached tokens");
    check(cached(4, &[1; 3], 0.0), "slot 2: 3 cached ids for 4 cached tokens");
    check(cached(4, &[1, 2, 3, 100], 1.0), "slot 2: token 100 does not exist: ids end below 100");
}

#[test]
fn parameters_are_in_range() {
    let params = SamplingParams { top_p: Some(2.0), ..SamplingParams::default() };
    let new = NewSlot { params: Some(params), ..new_slot(2, &[]) };
    check(Plan { new_slots: vec![new], ..Plan::default() }, "slot 2: `top_p` is 2, must be within (0, 1]");
}

#[test]
fn same_rows_stands_alone() {
    let expected = "`same_rows` together with `continues` or `chunks`";
    check(Plan { same_rows: true, continues: packed_u32(&[0]), ..Plan::default() }, expected);
    let chunks = vec![chunk(1, 2, &[1], false)];
    check(Plan { same_rows: true, chunks, ..Plan::default() }, expected);
    let first = Slots::new(LIMITS).check(&Plan { seq: 1, same_rows: true, ..Plan::default() });
    assert_eq!(first, Err(Violation::NoPreviousRows));
}

#[test]
fn a_step_has_a_budget() {
    let plan = Plan {
        appended_blocks: packed_u32(&[1, 0, 1, 1]),
        chunks: vec![chunk(1, 2, &[1; 10], false)],
        continues: packed_u32(&[0]),
        ..Plan::default()
    };
    check(plan, "the plan has 11 tokens; a step computes at most 10");
}

/// After plan 2: slot 0 holds 5 tokens of a period of two, and 1, 2 come next in it.
fn speculating() -> (Slots, Rows) {
    let limits = SlotLimits { max_logit_rows: 9, ..LIMITS };
    let (mut slots, mut rows) = (Slots::new(limits), Rows::default());
    let plan = Plan {
        seq: 1,
        new_slots: vec![NewSlot { speculates: true, ..new_slot(0, &[5, 6]) }, new_slot(1, &[7])],
        chunks: vec![chunk(0, 0, &[9, 1, 2, 1], true), chunk(1, 0, &[1, 2, 1], true)],
        ..Plan::default()
    };
    slots.check(&plan).unwrap();
    slots.apply(&plan, &mut rows);
    (slots.get_mut(0).last_token, slots.get_mut(1).last_token) = (2, 2);
    (slots, rows)
}

#[test]
fn a_draft_is_computed_after_the_last_token_and_taken_back_where_it_was_wrong() {
    let (mut slots, mut rows) = speculating();
    let drafts = |seq, same_rows, draft_limits: &[u8]| Plan {
        seq,
        same_rows,
        continues: if same_rows { Default::default() } else { packed_u32(&[1, 0]) },
        draft_limits: draft_limits.to_vec().into(),
        ..Plan::default()
    };
    let plan = drafts(2, false, &[0, 3]);
    slots.check(&plan).unwrap();
    slots.apply(&plan, &mut rows);
    assert_eq!(rows.input_ids, [2, 2, 1, 2, 1]);
    assert_eq!(rows.positions, [3, 4, 5, 6, 7]);
    assert_eq!(rows.slot_mapping, [31, 24, 25, 26, 27]);
    assert_eq!(rows.logit_rows, [0, 1, 2, 3, 4]);
    assert_eq!(rows.spans[1], Span { slot: 0, first_row: 1, num_rows: 4, start_position: 4 });
    let drafted = SampledRow { draft_tokens: 3, ..sampled(0, 5, 1, 1) };
    assert_eq!(rows.sampled, [sampled(1, 4, 0, 0), drafted]);
    assert_eq!((rows.draft_of(&drafted), &rows.draft_tokens[..]), (&[1, 2, 1][..], &[0, 3][..]));

    // The sampler agreed with the first token only, and chose 9 after it.
    slots.settle(&drafted, &[1, 2, 1], 1);
    slots.get_mut(0).last_token = 9;
    assert_eq!(slots.inspect()[0].length, 6);
    slots.get_mut(1).block_table.push(4);
    slots.shapes[1].num_blocks += 1;
    // What was taken back is no part of the next draft's search: 1, 9 never came before, neither does 9 go on to anything.
    let plan = drafts(3, true, &[0, 1]);
    slots.check(&plan).unwrap();
    slots.apply(&plan, &mut rows);
    assert_eq!((&rows.positions[..], &rows.draft_tokens[..]), (&[4, 6][..], &[0, 0][..]));
}

#[test]
fn drafts_have_their_limits() {
    let check = |change: fn(&mut Plan), expected: &str| {
        let (mut slots, _) = speculating();
        let draft_limits = vec![0, 3].into();
        let mut plan = Plan { seq: 2, continues: packed_u32(&[1, 0]), draft_limits, ..Plan::default() };
        change(&mut plan);
        let verdict = slots.check(&plan);
        assert_eq!(verdict.map_or_else(|violation| violation.to_string(), |()| "legal".into()), expected);
    };
    check(|_| (), "legal");
    check(|plan| plan.draft_limits = vec![1].into(), "`draft_limits` has 1 bytes for 2 rows that continue");
    check(|plan| plan.draft_limits = vec![1, 1].into(), "slot 1 may have a draft of 1 tokens; its longest is 0");
    check(|plan| plan.draft_limits = vec![0, 33].into(), "slot 0 may have a draft of 33 tokens; its longest is 32");
    let blocks = "slot 0 would hold 9 tokens, which takes 3 blocks; it has 2";
    check(|plan| plan.draft_limits = vec![0, 4].into(), blocks);
    check(|plan| (plan.appended_blocks, plan.draft_limits) = (packed_u32(&[0, 1]), vec![0, 7].into()), "legal");
    check(
        |plan| (plan.appended_blocks, plan.draft_limits) = (packed_u32(&[0, 1]), vec![0, 8].into()),
        "slot 0 would hold 13 tokens; the longest sequence is 12",
    );
    check(
        |plan| plan.new_slots = vec![NewSlot { speculates: true, masked: true, ..new_slot(2, &[]) }],
        "slot 2 cannot both speculate and wait for masks",
    );
    check(
        |plan| plan.new_slots = vec![NewSlot { speculates: true, cached_tokens: 4, ..new_slot(2, &[0]) }],
        "slot 2: 0 cached ids for 4 cached tokens",
    );
    check(
        |plan| {
            plan.new_slots = vec![new_slot(2, &[0])];
            plan.chunks = vec![chunk(2, 0, &[1; 4], false)];
            (plan.appended_blocks, plan.draft_limits) = (packed_u32(&[0, 1]), vec![0, 5].into());
        },
        "the plan has 11 tokens; a step computes at most 10",
    );
}

#[test]
fn rows_with_logits_have_a_budget() {
    let params = SamplingParams { prompt_logprobs: true, ..SamplingParams::default() };
    let plan = |ids: &[u32], prompt_tokens| Plan {
        new_slots: vec![NewSlot { params: Some(params.clone()), prompt_tokens, ..new_slot(2, &[0, 1]) }],
        chunks: vec![chunk(2, 0, ids, false)],
        continues: packed_u32(&[0]),
        ..Plan::default()
    };
    check(plan(&[1; 4], 9), "the plan needs the logits of 5 rows; a step has room for 4");
    // Rows beyond the one that predicts the prompt's last token are not wanted.
    let (mut slots, _) = started();
    slots.check(&Plan { seq: 2, appended_blocks: packed_u32(&[0, 7]), ..plan(&[1; 5], 4) }).unwrap();
    slots.check(&Plan { seq: 2, appended_blocks: packed_u32(&[0, 7]), ..plan(&[1; 3], 9) }).unwrap();
}

#[test]
fn cut_fields_are_named() {
    let cut = |length| bytes::Bytes::from(vec![0; length]);
    let named = |field: &str, length, record| format!("`{field}` has {length} bytes, which is no multiple of {record}");
    check(Plan { freed_slots: cut(3), ..Plan::default() }, &named("freed_slots", 3, 4));
    check(Plan { continues: cut(5), ..Plan::default() }, &named("continues", 5, 4));
    check(Plan { appended_blocks: cut(12), ..Plan::default() }, &named("appended_blocks", 12, 8));
    let chunks = vec![Chunk { ids: cut(6), ..chunk(1, 2, &[], false) }];
    check(Plan { chunks, ..Plan::default() }, &named("chunks.ids", 6, 4));
    let new_slots = vec![NewSlot { block_table: cut(1), ..new_slot(2, &[]) }];
    check(Plan { new_slots, ..Plan::default() }, &named("block_table", 1, 4));
}
