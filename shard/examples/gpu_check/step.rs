//! A step of a model: its rows, and what it takes.

use kernels::machine::median_duration;
use kernels::{Arena, BLOCK_SIZE, Device, StepLists};
use serde_json::{Value, json};
use shard::models::{DecodeGraphs, Model, SequenceRows, StepInput, StepRows};

use crate::shape::Shape;

/// Sequences that compute their last rows.
pub(crate) struct Step {
    tables: Vec<Vec<u32>>,
    rows: usize,
    context: usize,
    vocab: usize,
}

/// What a step takes.
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    /// A tenth of ten in a row; of prompts, which hide what the host does, as `seconds`.
    pub(crate) seconds_of_ten: f64,
    pub(crate) bytes: f64,
    pub(crate) flops: f64,
}

impl Cost {
    pub(crate) fn report(&self, rows: usize, context: usize) -> Value {
        let Cost { seconds, seconds_of_ten, bytes, flops } = self;
        json!({ "rows": rows, "context": context, "seconds": seconds, "seconds_of_ten": seconds_of_ten,
            "bytes": bytes, "flops": flops })
    }
}

impl Step {
    pub(crate) fn new(shape: &Shape, sequences: usize, rows: usize, context: usize) -> Step {
        let blocks = context.div_ceil(BLOCK_SIZE);
        // As a server hands them out: sequences that grow side by side take blocks in turn.
        let table = |sequence| (0..blocks).map(move |block| (block * sequences + sequence) as u32).collect();
        Step { tables: (0..sequences).map(table).collect(), rows, context, vocab: shape.vocab }
    }

    pub(crate) fn measure(&self, model: &Model, device: &Device) -> anyhow::Result<Cost> {
        let Step { tables, rows, context, vocab } = self;
        let (sequences, start) = (tables.len(), context - rows);
        let positions: Vec<u32> = tables.iter().flat_map(|_| start as u32..*context as u32).collect();
        let slot = |table: &[u32], position: usize| {
            table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
        };
        let slots: Vec<u32> =
            tables.iter().flat_map(|table| (start..*context).map(move |at| slot(table, at))).collect();
        let ids: Vec<u32> = (0..positions.len()).map(|row| (row * 7919 % vocab) as u32).collect();
        let mut spans = Vec::with_capacity(sequences);
        for (index, table) in tables.iter().enumerate() {
            let (first_row, num_rows) = (index * rows, *rows);
            spans.push(SequenceRows { first_row, num_rows, start_position: start, block_table: table });
        }
        let sample_rows: Vec<u32> = (1..=sequences).map(|end| (end * rows - 1) as u32).collect();
        let step = StepRows {
            input_ids: &ids,
            continued: &[],
            positions: &positions,
            slot_mapping: &slots,
            sequences: &spans,
            sample_rows: &sample_rows,
        };

        let blocks = sequences * context.div_ceil(BLOCK_SIZE);
        let plan = model.plan(&step, blocks)?;
        let mut kv = model.new_kv_cache(blocks)?;
        let mut arena = Arena::new(device, plan.arena_bytes)?;
        let mut lists = StepLists::new(device, model.step_limits(ids.len(), sequences, sequences, *context))?;
        let single_rows = if *rows == 1 { &[sequences][..] } else { &[] };
        let mut graphs = DecodeGraphs::capture(single_rows, model, device, &mut arena, &mut kv, &mut lists)?;
        let mut run = |times: usize| -> anyhow::Result<()> {
            for _ in 0..times {
                let mark = arena.mark();
                match graphs.begin(&step, &mut lists)? {
                    Some(step) => {
                        lists.send()?;
                        step.forward(model, &mut arena)?;
                    }
                    None => {
                        lists.begin()?;
                        let input = StepInput::new(&step, &mut lists)?;
                        lists.send()?;
                        model.forward(&mut arena, &mut kv, &input)?;
                    }
                }
                arena.release(mark);
            }
            Ok(device.synchronize()?)
        };
        run(1)?;
        let mut median = |times| median_duration(|| run(times).expect("it ran once")).as_secs_f64() / times as f64;
        let seconds = median(1);
        let seconds_of_ten = if *rows == 1 { median(10) } else { seconds };
        Ok(Cost { seconds, seconds_of_ten, bytes: plan.cost.bytes as f64, flops: plan.cost.flops as f64 })
    }
}
