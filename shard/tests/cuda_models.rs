//! Models on a GPU, here the simulated one: logits near those of the processor, and the same bits however rows are scheduled.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod runner;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use half::bf16;
use kernels::{DType, Device};
use runner::{Piece, Runner, Wanted, arg_max, bits, unique_name};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use shard::comm::Single;
use shard::models::ModelOptions;

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

fn tokens(count: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % VOCAB_SIZE as u32
    };
    (0..count).map(|_| next()).collect()
}

// --- Every family ------------------------------------------------------------------------------------------------------

const VOCAB_SIZE: usize = 200;

/// What families add to the first of them.
fn families() -> Vec<(&'static str, Value)> {
    vec![
        ("llama", json!({})),
        ("mistral", json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 40})),
        ("qwen2", json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": true})),
        ("qwen3", json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})),
    ]
}

/// A model of two layers with random weights in a folder of its own, with extents that the kernels take.
struct RandomModel(PathBuf);

impl RandomModel {
    fn new(family: &str, changes: &Value) -> RandomModel {
        const HIDDEN: usize = 64;
        const INTERMEDIATE: usize = 96;
        const HEADS: usize = 4;
        const KV_HEADS: usize = 2;
        const DIM: usize = 32;
        let dir = std::env::temp_dir().join(unique_name().trim_start_matches('/'));
        std::fs::create_dir_all(&dir).unwrap();
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE, "num_hidden_layers": 2, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": DIM, "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "eos_token_id": 1,
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();

        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCAB_SIZE, HIDDEN]),
            ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ];
        if config["tie_word_embeddings"] == false {
            shapes.push(("lm_head.weight".to_owned(), vec![VOCAB_SIZE, HIDDEN]));
        }
        for layer in 0..2 {
            let mut add =
                |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            for (name, out) in [("q_proj", HEADS * DIM), ("k_proj", KV_HEADS * DIM), ("v_proj", KV_HEADS * DIM)] {
                add(&format!("self_attn.{name}.weight"), &[out, HIDDEN]);
                if family == "qwen2" {
                    add(&format!("self_attn.{name}.bias"), &[out]);
                }
            }
            if family == "qwen3" {
                add("self_attn.q_norm.weight", &[DIM]);
                add("self_attn.k_norm.weight", &[DIM]);
            }
            add("self_attn.o_proj.weight", &[HIDDEN, HEADS * DIM]);
            add("input_layernorm.weight", &[HIDDEN]);
            add("post_attention_layernorm.weight", &[HIDDEN]);
            add("mlp.gate_proj.weight", &[INTERMEDIATE, HIDDEN]);
            add("mlp.up_proj.weight", &[INTERMEDIATE, HIDDEN]);
            add("mlp.down_proj.weight", &[HIDDEN, INTERMEDIATE]);
        }
        let (is_f16, mut state) = (config["torch_dtype"] == "float16", 1u32);
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut tensor = |(name, shape): (String, Vec<usize>)| {
            let is_norm = name.contains("norm");
            let (centre, scale) = if is_norm { (1.0, 0.1) } else { (0.0, 0.25) };
            let values = (0..shape.iter().product()).map(|_| centre + scale * uniform());
            let bytes: Vec<u8> = match is_f16 {
                true => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
                false => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            };
            (name, shape, bytes)
        };
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes.into_iter().map(&mut tensor).collect();
        let dtype = if is_f16 { Dtype::F16 } else { Dtype::BF16 };
        let views =
            tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
        serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
        RandomModel(dir)
    }
}

impl Drop for RandomModel {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

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
            let error = relative_error(&actual, &expected);
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

// --- The demo model ----------------------------------------------------------------------------------------------------

#[test]
fn the_demo_model_agrees_with_the_processor_on_its_own_text() {
    let gpu = gpu();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model");
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
