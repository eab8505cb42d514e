//! Models on a GPU, here the simulated one: logits near those of the processor, and the same bits however rows are scheduled.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod families;
mod quantizer;
mod runner;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Parser;
use families::{RandomModel, VOCAB_SIZE, experts, families};
use half::bf16;
use kernels::{DType, Device, KvDType, Tensor};
use proto::v1::{Chunk, NewSlot, Plan, SamplingParams, StepResult, TokenBias, TokenSequence, TopTokens, Watermark};
use proto::{Sample, pack_u32};
use quantizer::{Fp8Scales, LayerQuantizer, Models, Quantizer};
use runner::{Piece, Runner, ScratchModel, Wanted, arg_max, bits, unique_name};
use serde_json::{Value, json};
use shard::comm::{Comm, Nccl, Shm, Single};
use shard::executor::{Executor, StepInFlight};
use shard::masks::{MaskError, MaskSource, NoMasks, StepMasks};
use shard::models::{Model, ModelOptions, Quantization};
use shard::{Args, start};

/// The simulated GPU: one for all tests, as one process has one. They take turns, since a capture wants its stream for itself.
fn gpu() -> MutexGuard<'static, Device> {
    static GPU: LazyLock<Mutex<Device>> = LazyLock::new(|| {
        cusim::Simulation::build().enter();
        let device = Device::cuda(0, 1, &cuda_code::CODE, &|progress| println!("{progress}"));
        Mutex::new(device.unwrap_or_else(|error| panic!("{error}")))
    });
    GPU.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load_on(gpu: &Device, dir: &Path) -> Runner {
    Runner::load_on(dir, gpu, Arc::new(Single), &ModelOptions::default())
}

/// The definition: the same weights, and everything else in f32.
fn on_cpu(dir: &Path) -> Runner {
    let options = ModelOptions { dtype: Some(DType::F32), ..ModelOptions::default() };
    Runner::load_on(dir, &Device::cpu(1), Arc::new(Single), &options)
}

fn piece(sequence: usize, ids: &[u32], start: usize, end: usize) -> Piece<'_> {
    Piece { sequence, start, ids: &ids[start..end], logits: Wanted::All }
}

/// All logits of `ids`, in chunks of the given lengths, the last of which repeats.
fn chunked(runner: &mut Runner, sequence: usize, ids: &[u32], lengths: &[usize]) -> Vec<Vec<f32>> {
    let (mut rows, mut start) = (Vec::new(), 0);
    let mut lengths = lengths.iter().chain(std::iter::repeat(lengths.last().unwrap()));
    while start < ids.len() {
        let end = (start + lengths.next().unwrap()).min(ids.len());
        rows.extend(runner.step(&[piece(sequence, ids, start, end)]));
        start = end;
    }
    rows
}

/// ‖actual − expected‖ / ‖expected‖ over all rows.
fn relative_error(actual: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let pairs = || actual.iter().flatten().zip(expected.iter().flatten());
    let difference: f64 = pairs().map(|(a, e)| square(a - e)).sum();
    let whole: f64 = pairs().map(|(_, e)| square(*e)).sum();
    (difference / whole).sqrt()
}

/// [`relative_error`] of a model of this family. Where two experts are as likely, roundings choose the one or the other, which is a step:
/// of a family that has experts, it leaves out the quarter of the rows that is furthest away.
fn error_of(family: &str, actual: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let mut rows: Vec<usize> = (0..actual.len()).collect();
    if experts(family, 1, 0).is_some() {
        let error = |row: &usize| relative_error(&actual[*row..=*row], &expected[*row..=*row]);
        rows.sort_by(|a, b| error(a).total_cmp(&error(b)));
        rows.truncate(actual.len() * 3 / 4);
    }
    let kept = |logits: &[Vec<f32>]| rows.iter().map(|row| logits[*row].clone()).collect::<Vec<_>>();
    relative_error(&kept(actual), &kept(expected))
}

fn tokens(count: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % VOCAB_SIZE as u32
    };
    (0..count).map(|_| next()).collect()
}

// --- Every family ------------------------------------------------------------------------------------------------------

#[test]
fn logits_of_every_family_are_near_those_of_the_processor() {
    let gpu = gpu();
    // What is left are roundings, some twenty behind each other, which a model this narrow averages over little: float16's are eight
    // times finer than bfloat16's, and so must the error be.
    let types = [("bfloat16", 2e-2), ("float16", 2.5e-3)];
    for (family, mut changes) in families() {
        for (dtype, bound) in types {
            changes["torch_dtype"] = dtype.into();
            let model = RandomModel::new(family, &changes);
            let ids = tokens(90, 1);
            let expected = chunked(&mut on_cpu(&model.0), 0, &ids, &[90]);
            let actual = chunked(&mut load_on(&gpu, &model.0), 0, &ids, &[90]);
            let error = error_of(family, &actual, &expected);
            println!("{family} in {dtype}: relative error {error:.1e}");
            assert!(error < bound, "{family} in {dtype}: relative error {error}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_chunks_or_neighbours() {
    let gpu = gpu();
    for (family, changes) in families() {
        let model = RandomModel::new(family, &changes);
        // Beyond a tile of 64 rows and a split of 256 positions.
        let ids = tokens(270, 2);
        let whole = bits(&chunked(&mut load_on(&gpu, &model.0), 0, &ids, &[270]));
        for lengths in [&[200, 1][..], &[64, 63, 9, 16]] {
            let other = bits(&chunked(&mut load_on(&gpu, &model.0), 0, &ids, lengths));
            let differs = whole.iter().zip(&other).position(|(a, b)| a != b);
            assert!(differs.is_none(), "{family}: chunks of {lengths:?} differ at position {differs:?}");
        }

        // Among others that decode and prefill, in other rows of the same steps.
        let others = [tokens(90, 3), tokens(33, 4)];
        let mut mixed = load_on(&gpu, &model.0);
        mixed.step(&[piece(5, &others[0], 0, 40)]);
        let first = mixed.step(&[piece(5, &others[0], 40, 41), piece(2, &ids, 0, 100), piece(3, &others[1], 0, 33)]);
        let mut rows = bits(&first[1..101]);
        for at in 100..110 {
            let step = mixed.step(&[piece(5, &others[0], at - 59, at - 58), piece(2, &ids, at, at + 1)]);
            rows.extend(bits(&step[1..]));
        }
        assert!(rows == whole[..110], "{family}: batch mates change logits");
    }
}

#[test]
fn steps_that_a_graph_computes_have_the_bits_of_others() {
    let gpu = gpu();
    for (family, changes) in families() {
        let model = RandomModel::new(family, &changes);
        let ids = [tokens(50, 5), tokens(21, 6), tokens(34, 7)];
        let run = |mut runner: Runner| {
            let mut rows = Vec::new();
            for (sequence, ids) in ids.iter().enumerate() {
                runner.step(&[piece(sequence, ids, 0, 16)]);
            }
            // Three rows, then two, then one: filled up to four, two and one.
            for (sequences, positions) in [(0..3, 16..20), (0..2, 20..21), (0..1, 21..30)] {
                for at in positions {
                    let step = sequences.clone().map(|sequence| piece(sequence, &ids[sequence], at, at + 1));
                    rows.extend(runner.step(&step.collect::<Vec<_>>()));
                }
            }
            (bits(&rows), runner.graph_steps)
        };
        let (eager, graph_steps) = run(load_on(&gpu, &model.0));
        assert_eq!(graph_steps, 0);
        let (by_graph, graph_steps) = run(load_on(&gpu, &model.0).with_graphs(&[1, 2, 4]));
        assert_eq!(graph_steps, 14, "{family}: every step of single rows is a graph's");
        assert!(by_graph == eager, "{family}: a graph computes other bits");
    }
}

// --- Quantised weights -------------------------------------------------------------------------------------------------

#[test]
fn quantised_models_are_near_those_of_the_processor_and_keep_their_bits() {
    let gpu = gpu();
    let ids = tokens(150, 9);
    for (dtype, family) in [("bfloat16", "llama"), ("float16", "qwen2")] {
        for mode in [Quantization::Int8, Quantization::Fp8, Quantization::Nf4] {
            let changes = families().into_iter().find(|(name, _)| *name == family).unwrap().1;
            let mut changes = changes.as_object().unwrap().clone();
            changes.insert("torch_dtype".to_owned(), dtype.into());
            let model = RandomModel::new(family, &changes.into());
            let options = ModelOptions { quantization: Some(mode), ..ModelOptions::default() };
            let on = |device: &Device| Runner::load_on(&model.0, device, Arc::new(Single), &options);
            let expected = chunked(&mut on(&Device::cpu(1)), 0, &ids, &[150]);
            let whole = chunked(&mut on(&gpu), 0, &ids, &[150]);
            let context = format!("{family} in {dtype}, {}", mode.name());
            let mut graphed = on(&gpu).with_graphs(&[1]);
            for (lengths, runner) in [(&[66, 50, 9, 17, 5][..], &mut on(&gpu)), (&[140, 1], &mut graphed)] {
                let other = chunked(runner, 0, &ids, lengths);
                assert!(bits(&other) == bits(&whole), "{context}: chunks of {lengths:?} differ");
            }
            assert_eq!(graphed.graph_steps, 10);
            // The same weights; the processor quantises inputs too, in groups of 64 to a 127th of their largest.
            let error = relative_error(&whole, &expected);
            println!("{context}: relative error {error:.1e}");
            assert!(error < 3e-2, "{context}: relative error {error}");
        }
    }
}

#[test]
fn experts_that_are_quantised_are_refused() {
    let gpu = gpu();
    let changes = families().into_iter().find(|(name, _)| *name == "mixtral").unwrap().1;
    let model = RandomModel::new("mixtral", &changes);
    let options = ModelOptions { quantization: Some(Quantization::Fp8), ..ModelOptions::default() };
    let error = Model::load(&model.0, &gpu, Arc::new(Single), &options).err().unwrap().to_string();
    assert_eq!(error, "Fp8 experts run on CPUs only: on a GPU they are bfloat16 or float16, not quantised");
}

#[test]
fn quantised_checkpoints_are_near_those_of_the_processor_and_keep_their_bits() {
    let gpu = gpu();
    let ids: Vec<u32> = tokens(110, 9).iter().map(|id| id % quantizer::VOCAB_SIZE as u32).collect();
    // What stays integers, and what becomes floats.
    let act_order = Quantizer { act_order: true, group_size: Some(32), ..Quantizer::GPTQ };
    let table: [(&str, &dyn LayerQuantizer, DType); 5] = [
        ("awq", &Quantizer::AWQ, DType::F16),
        ("gptq", &Quantizer::GPTQ, DType::Bf16),
        ("gptq with activation order", &act_order, DType::F16),
        ("fp8, a scale per matrix", &Fp8Scales::Matrix, DType::Bf16),
        ("fp8, a scale per output", &Fp8Scales::Outputs, DType::F16),
    ];
    for (name, quantizer, dtype) in table {
        let dir = ScratchModel(std::env::temp_dir().join(unique_name().trim_start_matches('/')));
        let models = Models::new(&dir.0, quantizer, &[], false);
        let options = ModelOptions { dtype: Some(dtype), ..ModelOptions::default() };
        let on = |device: &Device| Runner::load_on(&models.quantized, device, Arc::new(Single), &options);
        let expected = chunked(&mut on(&Device::cpu(1)), 0, &ids, &[110]);
        let whole = chunked(&mut on(&gpu), 0, &ids, &[110]);
        let context = format!("{name} as {dtype}");
        for lengths in [&[66, 30, 9, 5][..], &[100, 1]] {
            let other = chunked(&mut on(&gpu), 0, &ids, lengths);
            assert!(bits(&other) == bits(&whole), "{context}: chunks of {lengths:?} differ");
        }
        // The same weights; of integers, the processor rounds inputs to a 127th of the largest of 64.
        let error = relative_error(&whole, &expected);
        println!("{context}: relative error {error:.1e}");
        assert!(error < 4e-2, "{context}: relative error {error}");
    }
}

#[test]
fn experts_of_four_bits_become_floats() {
    let gpu = gpu();
    let ids: Vec<u32> = tokens(20, 9).iter().map(|id| id % quantizer::VOCAB_SIZE as u32).collect();
    let dir = ScratchModel(std::env::temp_dir().join(unique_name().trim_start_matches('/')));
    let models = Models::with_experts(&dir.0, &Quantizer::AWQ, &["q_proj", "k_proj", "v_proj", "o_proj"]);
    let options = ModelOptions { dtype: Some(DType::F16), ..ModelOptions::default() };
    let on_gpu = |dir: &Path| chunked(&mut Runner::load_on(dir, &gpu, Arc::new(Single), &options), 0, &ids, &[20]);
    assert!(bits(&on_gpu(&models.quantized)) == bits(&on_gpu(&models.floats)));
}

// --- A cache of eight bits -----------------------------------------------------------------------------------------------

#[test]
fn models_with_a_cache_of_eight_bits_are_near_those_of_the_processor_and_keep_their_bits() {
    let gpu = gpu();
    let ids = tokens(150, 10);
    // A number that differs by d from the processor's before it is stored is stored as another one in d / unit of all cases, and is
    // then off by a whole unit, 2^-3 or 2^-2 of it at most: the root of d * unit on the average, where d is some three roundings of the
    // model's type. Attention averages over positions, and twice that is left for what follows.
    let types = [("bfloat16", 3.0 / 256.0), ("float16", 3.0 / 2048.0)];
    let caches = [(KvDType::F8E4m3, 1.0 / 8.0), (KvDType::F8E5m2, 1.0 / 4.0)];
    for (dtype, difference) in types {
        for (cache, unit) in caches {
            let model = RandomModel::new("llama", &json!({"torch_dtype": dtype}));
            let options = ModelOptions { kv_dtype: Some(cache), ..ModelOptions::default() };
            let on_cpu = ModelOptions { dtype: Some(DType::F32), ..options.clone() };
            let on = |device: &Device, options| Runner::load_on(&model.0, device, Arc::new(Single), options);
            let expected = chunked(&mut on(&Device::cpu(1), &on_cpu), 0, &ids, &[150]);
            let whole = chunked(&mut on(&gpu, &options), 0, &ids, &[150]);
            let context = format!("{cache} under {dtype}");
            let mut graphed = on(&gpu, &options).with_graphs(&[1]);
            for (lengths, runner) in [(&[66, 50, 9, 17, 5][..], &mut on(&gpu, &options)), (&[140, 1], &mut graphed)] {
                let other = chunked(runner, 0, &ids, lengths);
                assert!(bits(&other) == bits(&whole), "{context}: chunks of {lengths:?} differ");
            }
            assert_eq!(graphed.graph_steps, 10);
            let (error, bound) = (relative_error(&whole, &expected), 2.0 * f64::sqrt(difference * unit));
            println!("{context}: relative error {error:.1e}");
            assert!(error < bound, "{context}: relative error {error}");
        }
    }
}

// --- Steps in flight ---------------------------------------------------------------------------------------------------

/// An executor of the model on the GPU, with graphs of so many rows.
fn executor(dir: &Path, graphs: &str) -> Executor {
    let dir = dir.to_str().unwrap();
    let args = ["shard", "--model-dir", dir, "--device", "cuda", "--threads", "1", "--max-batch-size", "4"];
    let sizes = ["--max-step-tokens", "64", "--max-batch-total-tokens", "512", "--cuda-graphs", graphs];
    let args = Args::parse_from(args.iter().chain(&sizes));
    start::start_with(&args, Arc::new(Single)).unwrap_or_else(|error| panic!("{error}")).executor
}

/// Plans of four requests that come, go and take each other's slots.
fn plans() -> Vec<Plan> {
    let params = |seed| Some(SamplingParams { do_sample: seed > 0, seed: Some(seed), ..SamplingParams::default() });
    let open = |slot: u32, seed, first_block: u32| NewSlot {
        slot,
        params: params(seed),
        prompt_tokens: 5,
        block_table: pack_u32(first_block..first_block + 2),
        ..NewSlot::default()
    };
    let prompt = |slot, seed| Chunk { slot, start_position: 0, ids: pack_u32(tokens(5, seed)), sample: true };
    let mut plans = vec![Plan { new_slots: vec![open(0, 0, 0)], chunks: vec![prompt(0, 11)], ..Plan::default() }];
    plans.push(Plan {
        new_slots: vec![open(1, 7, 2), open(2, 8, 4)],
        continues: pack_u32([0]),
        chunks: vec![prompt(1, 12), prompt(2, 13)],
        ..Plan::default()
    });
    plans.push(Plan { continues: pack_u32([2, 0, 1]), ..Plan::default() });
    plans.extend((0..4).map(|_| Plan { same_rows: true, ..Plan::default() }));
    // One rests, one ends; in the ended one's slot another begins at once.
    plans.push(Plan { continues: pack_u32([1]), freed_slots: pack_u32([2]), ..Plan::default() });
    plans.push(Plan {
        new_slots: vec![open(2, 9, 4)],
        continues: pack_u32([0, 1]),
        chunks: vec![prompt(2, 14)],
        ..Plan::default()
    });
    plans.extend((0..5).map(|_| Plan { continues: pack_u32([0, 2]), ..Plan::default() }));
    for (seq, plan) in (1..).zip(&mut plans) {
        plan.seq = seq;
    }
    plans
}

#[test]
fn steps_in_flight_sample_what_steps_one_by_one_do() {
    let _gpu = gpu();
    let model = RandomModel::new("llama", &json!({}));
    let answer = |result: StepResult| (result.samples, result.row_errors);
    let mut one_by_one = executor(&model.0, "0");
    let step = |plan: &Plan| one_by_one.step(1, plan, Duration::ZERO, &mut NoMasks).unwrap();
    let expected: Vec<_> = plans().iter().map(step).map(answer).collect();
    assert!(expected.iter().all(|(samples, errors)| !samples.is_empty() && errors.is_empty()));

    let (mut pipelined, mut in_flight, mut answers) = (executor(&model.0, "1,4"), VecDeque::new(), Vec::new());
    for plan in plans() {
        if in_flight.len() == 2 {
            let oldest = in_flight.pop_front().unwrap();
            answers.push(answer(pipelined.finish(oldest, &mut NoMasks).unwrap()));
        }
        assert!(in_flight.back().is_none_or(|newest| pipelined.can_follow(newest, &plan)), "step {}", plan.seq);
        in_flight.push_back(pipelined.submit(1, &plan, Duration::ZERO).unwrap());
    }
    for step in in_flight {
        answers.push(answer(pipelined.finish(step, &mut NoMasks).unwrap()));
    }
    assert_eq!(answers, expected);
}

// --- Penalties, biases, bans and masks ---------------------------------------------------------------------------------

/// What the requests of [`processed_plans`] ask for, slot by slot; the last begins in a slot that another has left.
fn processed_requests() -> Vec<SamplingParams> {
    let off = SamplingParams::default;
    let bias = |token_id, bias| TokenBias { token_id, bias };
    let word = |id| TokenSequence { ids: vec![id] };
    vec![
        SamplingParams {
            do_sample: true,
            seed: Some(3),
            repetition_penalty: Some(1.7),
            frequency_penalty: Some(20.0),
            top_p: Some(0.9),
            top_n_tokens: Some(3),
            ..off()
        },
        SamplingParams {
            presence_penalty: Some(1.5),
            occurrence_penalty: Some(0.7),
            logit_bias: vec![bias(7, 4.0), bias(9, 4.5), bias(150, f32::NEG_INFINITY)],
            ..off()
        },
        // It would end at once.
        SamplingParams {
            min_tokens: Some(4),
            logit_bias: vec![bias(EOS, 100.0)],
            repetition_penalty: Some(1.1),
            ..off()
        },
        SamplingParams {
            do_sample: true,
            seed: Some(5),
            typical_p: Some(0.7),
            top_n_tokens: Some(128),
            bad_words: (0..50).map(word).collect(),
            ..off()
        },
        SamplingParams { repetition_penalty: Some(100.0), ..off() },
    ]
}

const EOS: u32 = 1;

/// Plans of such requests, of which `change` makes others: the third has its beginning in the cache, the fourth has a grammar.
fn processed_plans(change: impl Fn(SamplingParams) -> SamplingParams) -> Vec<Plan> {
    let requests: Vec<SamplingParams> = processed_requests().into_iter().map(change).collect();
    let open = |slot: u32, request: usize, prompt_tokens| NewSlot {
        slot,
        params: Some(requests[request].clone()),
        prompt_tokens,
        block_table: pack_u32(slot * 4..slot * 4 + 2),
        ..NewSlot::default()
    };
    let prompt = |slot, start_position, len, seed| Chunk {
        slot,
        start_position,
        ids: pack_u32(tokens(len, seed)),
        sample: true,
    };
    let mut plans = vec![Plan {
        new_slots: vec![open(0, 0, 9), open(1, 1, 5)],
        chunks: vec![prompt(0, 0, 9, 21), prompt(1, 0, 5, 22)],
        ..Plan::default()
    }];
    plans.extend((0..3).map(|_| Plan { continues: pack_u32([0, 1]), ..Plan::default() }));
    let cached = NewSlot { cached_tokens: 16, cached_ids: pack_u32(tokens(16, 23)), ..open(2, 2, 16) };
    // Two of its tokens belong to the reply: it was interrupted.
    plans.push(Plan {
        new_slots: vec![cached],
        continues: pack_u32([1, 0]),
        chunks: vec![prompt(2, 16, 2, 24)],
        ..Plan::default()
    });
    plans.extend((0..3).map(|_| Plan { continues: pack_u32([2, 0, 1]), ..Plan::default() }));
    plans.push(Plan {
        new_slots: vec![NewSlot { masked: true, ..open(3, 3, 6) }],
        continues: pack_u32([0, 1]),
        chunks: vec![prompt(3, 0, 6, 25)],
        ..Plan::default()
    });
    plans.extend((0..4).map(|_| Plan { continues: pack_u32([0, 1, 2, 3]), ..Plan::default() }));
    // Opened before it has a row.
    plans.push(Plan { freed_slots: pack_u32([0, 3]), new_slots: vec![open(0, 4, 5)], ..Plan::default() });
    plans.push(Plan { continues: pack_u32([1]), chunks: vec![prompt(0, 0, 5, 26)], ..Plan::default() });
    plans.extend((0..4).map(|_| Plan { continues: pack_u32([1, 0]), ..Plan::default() }));
    for (seq, plan) in (1..).zip(&mut plans) {
        plan.seq = seq;
    }
    plans
}

/// Every step allows other tokens.
struct Grammar;

impl MaskSource for Grammar {
    fn take(&mut self, seq: u64, slots: &[u32]) -> Result<StepMasks, MaskError> {
        let words = |slot: u32| pack_u32((0..4).map(|word| 0x9249_2492u32.rotate_left(slot + word + seq as u32)));
        Ok(slots.iter().map(|slot| (*slot, words(*slot))).collect())
    }
}

/// What a step says.
struct Answer {
    samples: Vec<Sample>,
    /// By slot, the ids with their log-probabilities.
    top: Vec<(u32, Vec<(u32, f32)>)>,
}

/// The samples of all plans, with the likeliest tokens where they are reported, as many as possible in flight, and how many steps were.
fn run(executor: &mut Executor, plans: &[Plan]) -> (Vec<Answer>, usize) {
    let (mut in_flight, mut answers, mut overlapped) = (VecDeque::<StepInFlight>::new(), Vec::new(), 0);
    let mut finish = |executor: &mut Executor, step| {
        let result = executor.finish(step, &mut Grammar).unwrap();
        assert_eq!(result.row_errors, []);
        let top = |top: TopTokens| {
            let logprobs = proto::unpack_f32(&top.logprobs).unwrap();
            (top.slot, proto::unpack_u32(&top.ids).unwrap().zip(logprobs).collect())
        };
        let samples = Sample::unpack(&result.samples).unwrap().collect();
        answers.push(Answer { samples, top: result.top_tokens.into_iter().map(top).collect() });
    };
    for plan in plans {
        while in_flight.len() == 2 || in_flight.back().is_some_and(|newest| !executor.can_follow(newest, plan)) {
            finish(executor, in_flight.pop_front().unwrap());
        }
        overlapped += in_flight.len();
        in_flight.push_back(executor.submit(1, plan, Duration::ZERO).unwrap());
    }
    in_flight.into_iter().for_each(|step| finish(executor, step));
    (answers, overlapped)
}

#[test]
fn a_device_samples_what_the_processor_samples_from_its_logits() {
    let _gpu = gpu();
    let model = RandomModel::new("llama", &json!({}));
    // A watermark is the processor's; this one changes nothing.
    let watermark = Some(Watermark { gamma: 0.5, delta: 0.0 });
    let by_processor = processed_plans(|params| SamplingParams { watermark, ..params });
    let (expected, overlapped) = run(&mut executor(&model.0, "0"), &by_processor);
    assert_eq!(overlapped, 0);

    for graphs in ["0", "1,4"] {
        let (actual, overlapped) = run(&mut executor(&model.0, graphs), &processed_plans(|params| params));
        assert!(overlapped >= 8, "{overlapped} steps were asked for while others were in flight");
        assert_eq!(actual.len(), expected.len());
        for (step, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            let samples = |answer: &Answer| answer.samples.iter().map(|s| (s.slot, s.token_id)).collect::<Vec<_>>();
            assert_eq!(samples(actual), samples(expected), "step {step}");
            let top = |answer: &Answer| {
                let ids = |(slot, tokens): &(u32, Vec<(u32, f32)>)| {
                    (*slot, tokens.iter().map(|(id, _)| *id).collect::<Vec<u32>>())
                };
                answer.top.iter().map(ids).collect::<Vec<_>>()
            };
            assert_eq!(top(actual), top(expected), "step {step}");
            let logprobs = |answer: &Answer| {
                let top = answer.top.iter().flat_map(|(_, tokens)| tokens.iter().map(|(_, logprob)| *logprob));
                answer.samples.iter().map(|sample| sample.logprob).chain(top).collect::<Vec<f32>>()
            };
            for (actual, expected) in logprobs(actual).into_iter().zip(logprobs(expected)) {
                let difference = (actual - expected).abs();
                assert!(difference <= 1e-5 * expected.abs().max(1.0), "step {step}: {actual} instead of {expected}");
            }
        }
    }

    // What was asked for is in it.
    let of_slot =
        |slot: u32| expected.iter().flat_map(|answer| &answer.samples).filter(move |sample| sample.slot == slot);
    let ends: Vec<bool> = of_slot(2).map(|sample| sample.token_id == EOS).collect();
    assert_eq!(ends[..3], [false, false, true], "two tokens of the reply came back, two more have to come");
    assert!(of_slot(3).all(|sample| sample.token_id >= 50));
    let last: Vec<u32> = of_slot(0).map(|sample| sample.token_id).collect();
    let last: BTreeSet<u32> = last[last.len() - 5..].iter().copied().collect();
    assert_eq!(last.len(), 5, "a token that came is a hundred times less likely");
    assert!(expected[1].top.iter().any(|(slot, tokens)| *slot == 0 && (1..=11).contains(&tokens.len())));
}

/// What a request says of its prompt of tokens, cut into chunks of such lengths: per token its log-probability and the likeliest ones.
fn prompt_scores(
    executor: &mut Executor,
    ids: &[u32],
    chunks: &[usize],
    params: &SamplingParams,
) -> Vec<(f32, Vec<(u32, f32)>)> {
    executor.clear();
    let (mut scores, mut start) = (Vec::new(), 0);
    for (seq, len) in (1..).zip(chunks) {
        let opens = NewSlot {
            params: Some(SamplingParams { prompt_logprobs: true, ..params.clone() }),
            prompt_tokens: ids.len() as u32,
            block_table: pack_u32(0..ids.len().div_ceil(16) as u32),
            ..NewSlot::default()
        };
        let chunk = Chunk {
            slot: 0,
            start_position: start as u32,
            ids: pack_u32(ids[start..start + len].iter().copied()),
            sample: start + len == ids.len(),
        };
        let new_slots = if start == 0 { vec![opens] } else { Vec::new() };
        let plan = Plan { seq, new_slots, chunks: vec![chunk], ..Plan::default() };
        let result = executor.step(1, &plan, Duration::ZERO, &mut NoMasks).unwrap();
        assert_eq!(result.row_errors, []);
        for scored in &result.prompt_logprobs {
            let top = |top: &TopTokens| {
                let logprobs = proto::unpack_f32(&top.logprobs).unwrap();
                proto::unpack_u32(&top.ids).unwrap().zip(logprobs).collect::<Vec<_>>()
            };
            scores.extend(proto::unpack_f32(&scored.logprobs).unwrap().zip(scored.top_tokens.iter().map(top)));
        }
        start += len;
    }
    assert_eq!((start, scores.len()), (ids.len(), ids.len() - 1));
    scores
}

#[test]
fn prompts_are_scored_by_the_device_with_the_same_bits_in_all_chunks() {
    let _gpu = gpu();
    let model = RandomModel::new("llama", &json!({}));
    let (mut executor, ids) = (executor(&model.0, "0"), tokens(60, 31));
    let params = SamplingParams { top_n_tokens: Some(3), ..SamplingParams::default() };
    let whole = prompt_scores(&mut executor, &ids, &[60], &params);
    for chunks in [&[1, 59][..], &[20, 7, 33], &[30, 29, 1]] {
        assert_eq!(prompt_scores(&mut executor, &ids, chunks, &params), whole, "chunks of {chunks:?}");
    }
    // A watermark is the processor's.
    let watermark = Some(Watermark { gamma: 0.5, delta: 0.0 });
    let expected = prompt_scores(&mut executor, &ids, &[60], &SamplingParams { watermark, ..params });
    let flat = |(logprob, top): &(f32, Vec<(u32, f32)>)| {
        let (ids, logprobs): (Vec<u32>, Vec<f32>) = top.iter().copied().unzip();
        (ids, [vec![*logprob], logprobs].concat())
    };
    for (position, (actual, expected)) in whole.iter().map(flat).zip(expected.iter().map(flat)).enumerate() {
        assert_eq!(actual.0, expected.0, "position {position}");
        for (actual, expected) in actual.1.iter().zip(&expected.1) {
            assert!((actual - expected).abs() <= 1e-5 * expected.abs().max(1.0), "position {position}");
        }
    }
}

// --- Several GPUs ------------------------------------------------------------------------------------------------------

/// Runs `f` as every rank of a group, each on a thread and with a GPU of its own. What each returned, in rank order; `None` if there
/// are not as many GPUs.
fn with_gpus<T: Send>(world_size: usize, f: impl Fn(&Device, Arc<dyn Comm>) -> T + Sync) -> Option<Vec<T>> {
    let first = gpu();
    let open = |ordinal| Device::cuda(ordinal, 1, &cuda_code::CODE, &|progress| println!("{progress}"));
    let others: Result<Vec<Device>, _> = (1..world_size).map(open).collect();
    let devices = match others {
        Ok(others) => [vec![first.clone()], others].concat(),
        Err(error) => {
            println!("skipped: {world_size} ranks need as many GPUs: {error}");
            return None;
        }
    };
    let name = unique_name();
    Some(std::thread::scope(|scope| {
        let start = |(rank, device)| {
            let (name, f) = (&name, &f);
            scope.spawn(move || {
                let shared = Shm::open(name, rank, world_size, 4096).unwrap();
                f(device, Arc::new(Nccl::open(shared, device).unwrap_or_else(|error| panic!("{error}"))))
            })
        };
        let ranks: Vec<_> = devices.iter().enumerate().map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    }))
}

#[test]
fn sums_over_gpus_are_added_in_the_order_of_the_ranks() {
    // In any other order, or rounded in between, these are other sums: in f32 2^24 + 1 is 2^24.
    let value = |rank: usize, at: usize| {
        [16_777_216.0, 1.0, -16_777_216.0, 0.5][(rank + at) % 4] * 2f32.powi((at / 4 % 7) as i32)
    };
    for world_size in [2, 3, 4] {
        // Beyond what is gathered whole, with and without a rest, and in more than one piece.
        for (rows, cols) in [(1, 8), (3, 40), (700, 1024), (701, 1032), (9000, 2048)] {
            let len = rows * cols;
            let sums = with_gpus(world_size, |device, comm| {
                let own = (0..len).flat_map(|at| bf16::from_f32(value(comm.rank(), at)).to_le_bytes());
                let mut x = Tensor::from_bytes(device, &[rows, cols], DType::Bf16, &own.collect::<Vec<u8>>()).unwrap();
                comm.gpus().unwrap().all_reduce(&mut x).unwrap();
                x.to_vec().unwrap()
            });
            let Some(sums) = sums else { return };
            let sum = |at| (1..world_size).fold(value(0, at), |sum, rank| sum + value(rank, at));
            let expected: Vec<f32> = (0..len).map(|at| bf16::from_f32(sum(at)).to_f32()).collect();
            assert!(sums.iter().all(|sum| *sum == expected), "{world_size} ranks, {rows} x {cols}");
        }
    }
}

#[test]
fn ranks_on_gpus_agree_with_each_other_and_with_the_processor() {
    for world_size in [2, 4] {
        for (family, changes) in families() {
            let model = RandomModel::new(family, &changes);
            let ids = tokens(90, 8);
            let expected = chunked(&mut on_cpu(&model.0), 0, &ids, &[90]);
            let of_ranks = with_gpus(world_size, |device, comm| {
                let load = || Runner::load_on(&model.0, device, comm.clone(), &ModelOptions::default());
                let whole = chunked(&mut load(), 0, &ids, &[90]);
                let pieces = chunked(&mut load(), 0, &ids, &[33, 40, 1]);
                let mut graphed = load().with_graphs(&[1]);
                let by_graph = chunked(&mut graphed, 0, &ids, &[80, 1]);
                assert_eq!(graphed.graph_steps, 10);
                [whole, pieces, by_graph]
            });
            let Some(of_ranks) = of_ranks else { return };
            let whole = &of_ranks[0][0];
            for (rank, logits) in of_ranks.iter().enumerate() {
                for (other, how) in logits.iter().zip(["in one step", "in chunks", "by a graph"]) {
                    assert!(bits(other) == bits(whole), "{family}, {world_size} ranks: rank {rank} {how}");
                }
            }
            let error = error_of(family, whole, &expected);
            println!("{family} on {world_size} GPUs: relative error {error:.1e}");
            assert!(error < 2e-2, "{family} on {world_size} GPUs: relative error {error}");
        }
    }
}

#[test]
fn a_rank_with_another_plan_is_named_before_any_gpu_waits() {
    let errors = with_gpus(2, |_, comm| {
        let plan_hash = comm.rank() as u64;
        let error = comm.begin_step(shard::comm::StepTag { epoch: 1, seq: 1, plan_hash }).unwrap_err();
        assert!(!comm.is_lost(), "no GPU has begun");
        error.to_string()
    });
    let Some(errors) = errors else { return };
    assert!(errors.iter().all(|error| error.contains("rank 1 is at epoch 1, step 1")), "{errors:?}");
}

#[test]
fn a_step_that_outlives_its_epoch_is_ended_and_the_rank_with_it() {
    let ends = with_gpus(2, |device, comm| {
        comm.begin_step(shard::comm::StepTag { epoch: 1, seq: 1, plan_hash: 0 }).unwrap();
        let mut x = Tensor::zeros(device, &[1, 8], DType::Bf16).unwrap();
        if comm.rank() == 1 {
            // Never comes; the other rank's GPU waits for it.
            return None;
        }
        comm.gpus().unwrap().all_reduce(&mut x).unwrap();
        comm.abort();
        let end = device.synchronize().map(|()| comm.finish_step());
        assert!(comm.is_lost());
        Some(end.unwrap().unwrap_err().to_string())
    });
    let Some(ends) = ends else { return };
    let end = ends[0].as_ref().unwrap();
    assert!(end.contains("its GPU"), "{end}");
}

// --- The demo model ----------------------------------------------------------------------------------------------------

#[test]
fn the_demo_model_agrees_with_the_processor_on_its_own_text() {
    let gpu = gpu();
    // As whoever runs this program says, which may have been carried to a machine where the repository lies elsewhere.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let dir = Path::new(&package).join("../launcher/demo-model");
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let (mut on_gpu, mut on_cpu) = (load_on(&gpu, &dir), on_cpu(&dir));
    let (mut agreed, mut rows, mut worst) = (0, 0, 0.0f64);
    for text in &golden {
        // transformers' own greedy text, fed token by token to both.
        let ids: Vec<u32> = ["input_ids", "greedy_ids"]
            .iter()
            .flat_map(|list| text[list].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32))
            .collect();
        let [actual, expected] = [&mut on_gpu, &mut on_cpu].map(|runner| chunked(runner, 0, &ids, &[ids.len()]));
        agreed += actual.iter().zip(&expected).filter(|(a, e)| arg_max(a) == arg_max(e)).count();
        rows += ids.len();
        worst = worst.max(relative_error(&actual, &expected));
    }
    println!("{agreed} of {rows} best tokens agree; relative error of a text's logits at most {worst:.1e}");
    assert!(agreed * 100 >= rows * 99, "{agreed} of {rows} best tokens agree");
    assert!(worst <= 1e-2, "relative error {worst}");
}
