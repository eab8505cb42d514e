//! Shared by the tests of the engine: a tiny model with random weights, and a shard in this process that serves it.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses another part of it")]

pub mod serving;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use shard::Args;

pub const VOCAB_SIZE: usize = 96;
pub const EOS: u32 = 95;
/// The embedding of this token is NaN in [`TinyModel::with_nan`].
pub const NAN_TOKEN: u32 = 13;

/// splitmix64: test values that are the same everywhere.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A llama of two layers in a directory of its own, removed when dropped.
pub struct TinyModel {
    pub dir: PathBuf,
}

impl TinyModel {
    pub fn new() -> TinyModel {
        TinyModel::write(|_, _| {})
    }

    /// Token [`NAN_TOKEN`] as input makes every logit of its row NaN.
    pub fn with_nan() -> TinyModel {
        TinyModel::write(|name, values| {
            if name == "model.embed_tokens.weight" {
                let width = values.len() / VOCAB_SIZE;
                values[NAN_TOKEN as usize * width..][..width].fill(f32::NAN);
            }
        })
    }

    fn write(change: impl Fn(&str, &mut [f32])) -> TinyModel {
        const HIDDEN: usize = 32;
        const INTERMEDIATE: usize = 48;
        const LAYERS: usize = 2;
        const HEADS: usize = 4;
        const KV_HEADS: usize = 2;
        let head_dim = HIDDEN / HEADS;
        let dir = temp_path("model");
        std::fs::create_dir_all(&dir).unwrap();
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": false,
            "torch_dtype": "float32",
            "eos_token_id": EOS,
        });
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();

        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCAB_SIZE, HIDDEN]),
            ("model.norm.weight".to_owned(), vec![HIDDEN]),
            ("lm_head.weight".to_owned(), vec![VOCAB_SIZE, HIDDEN]),
        ];
        for layer in 0..LAYERS {
            let mut add = |name: &str, shape: &[usize]| {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            add("input_layernorm", &[HIDDEN]);
            add("self_attn.q_proj", &[HEADS * head_dim, HIDDEN]);
            add("self_attn.k_proj", &[KV_HEADS * head_dim, HIDDEN]);
            add("self_attn.v_proj", &[KV_HEADS * head_dim, HIDDEN]);
            add("self_attn.o_proj", &[HIDDEN, HEADS * head_dim]);
            add("post_attention_layernorm", &[HIDDEN]);
            add("mlp.gate_proj", &[INTERMEDIATE, HIDDEN]);
            add("mlp.up_proj", &[INTERMEDIATE, HIDDEN]);
            add("mlp.down_proj", &[HIDDEN, INTERMEDIATE]);
        }
        let mut random = Random(1);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
            .into_iter()
            .map(|(name, shape)| {
                let mut uniform = || (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
                // Large enough that tokens, and not the bias of the random head, decide what comes next.
                let scale = if shape.len() == 1 { 0.1 } else { 0.5 };
                let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
                let count = shape.iter().product::<usize>();
                let mut values: Vec<f32> = (0..count).map(|_| centre + scale * uniform()).collect();
                change(&name, &mut values);
                (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
        TinyModel { dir }
    }

    /// The arguments of a shard that serves it: 8 slots, 64 tokens a step, 128 blocks.
    pub fn args(&self, more: &[&str]) -> Args {
        let dir = self.dir.to_str().unwrap();
        let base = ["shard", "--model-dir", dir, "--max-batch-size", "8", "--max-step-tokens", "64"];
        let rest = ["--max-batch-total-tokens", "2048"];
        Args::parse_from(base.iter().chain(&rest).chain(more))
    }
}

impl Drop for TinyModel {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A path that no other test uses.
pub fn temp_path(what: &str) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let name = format!("tgi-shard-{what}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    Path::new(&std::env::temp_dir()).join(name)
}
