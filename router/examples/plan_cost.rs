//! What one `plan()` costs: median and worst of many steps at 256 rows. Run: `cargo run --release -p router --example plan_cost`.
//!
//! The budget is 50 µs (ARCHITECTURE.md, scheduler). Also counts heap allocations of steady steps, which should be none.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use router::kv::PrefixKey;
use router::request::{GenerateRequest, RequestLimits, RequestParts};
use router::scheduler::{Capacity, RequestId, SampledRow, Scheduler, SchedulerConfig, SlotId, StepOutcome, StepPlan};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: both methods pass their arguments on to `System` unchanged, whose contract is this trait's; counting touches
// no memory but an atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `layout` comes from our caller, who owes `alloc` the same non-zero size as we owe `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: every pointer we handed out came from `System.alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROWS: u32 = 256;
const STEPS: u32 = 2_000;

fn main() {
    let capacity = Capacity { num_blocks: 64 * 1024, max_slots: ROWS, max_step_tokens: 8 * 1024, max_logit_rows: ROWS };
    let config = SchedulerConfig {
        block_size: 16,
        vocab_size: 100_000,
        eos_token_ids: vec![2],
        run_ahead: 2,
        max_draft_tokens: 0,
        prefix_key: PrefixKey::random(),
    };
    let mut scheduler = Scheduler::new(config, capacity);
    let limits = RequestLimits { max_total_tokens: 16 * 1024, vocab_size: 100_000, max_top_n_tokens: 0 };
    for id in 0..2 * ROWS {
        let parts = RequestParts {
            input_ids: (0..300).map(|idx| 10 + id * 300 % 90_000 + idx).collect(),
            sampling: Default::default(),
            max_new_tokens: STEPS + 100,
            ignore_eos: false,
            cache_prompt: true,
            salt: None,
            constraint: None,
        };
        let request = GenerateRequest::new(parts, &limits).expect("within the limits above");
        scheduler.submit(RequestId(id.into()), request).expect("fits the cache");
    }

    let mut outcome = None;
    let mut times = Vec::with_capacity(STEPS as usize);
    let mut admitting = Vec::new();
    let mut allocations = 0;
    while times.len() < STEPS as usize {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let started = Instant::now();
        let step = scheduler.plan().expect("256 rows want to run");
        let elapsed = started.elapsed();
        if step.chunks.is_empty() && step.continues.len() == ROWS as usize {
            allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
            times.push(elapsed);
        } else {
            admitting.push(elapsed);
        }
        let answer = answer(step);
        if let Some(previous) = outcome.replace(answer) {
            scheduler.apply(previous).expect("it answers the oldest plan");
            scheduler.take_outputs().for_each(drop);
        }
    }
    report("steady decode, 256 rows, 256 waiting", &mut times);
    report("admission, 8k tokens", &mut admitting);
    println!("allocations in {STEPS} steady plans: {allocations}");
}

fn answer(step: &StepPlan) -> StepOutcome {
    let sampling = step.chunks.iter().filter(|chunk| chunk.sample).map(|chunk| chunk.slot);
    let sample = |slot: SlotId| SampledRow { slot, token_id: 7 + slot.0, logprob: -1.0, top: None };
    let samples = step.continues.iter().copied().chain(sampling).map(sample).collect();
    StepOutcome { seq: step.seq, samples, ..Default::default() }
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    println!(
        "{what}: median {:?}, 99 % {:?}, worst {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1]
    );
}
