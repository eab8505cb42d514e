//! Models of real extents with random weights, as folders in the folder for temporary files: made once, kept for the next time.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

/// A model's extents.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab: usize,
    pub(crate) is_tied: bool,
    /// Positions of a decoding row; rows of decode steps; lengths of prompts.
    pub(crate) contexts: &'static [usize],
    pub(crate) batches: &'static [usize],
    pub(crate) prompts: &'static [usize],
}

/// Llama-3.2-1B's.
const LLAMA_1B: Shape = Shape {
    name: "1b",
    hidden: 2048,
    intermediate: 8192,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    vocab: 128_256,
    is_tied: true,
    contexts: &[64, 1024],
    batches: &[1, 8, 32, 64, 128, 256],
    prompts: &[512, 4096, 16_384],
};

pub(crate) const SHAPES: [Shape; 3] = [
    LLAMA_1B,
    // Llama-3.1-8B's.
    Shape { name: "8b", hidden: 4096, intermediate: 14_336, layers: 32, head_dim: 128, is_tied: false, ..LLAMA_1B },
    // For a try of this program where the GPU is a simulated one.
    Shape {
        name: "tiny",
        hidden: 128,
        intermediate: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        vocab: 512,
        is_tied: false,
        contexts: &[64],
        batches: &[1, 3],
        prompts: &[80],
    },
];

impl Shape {
    /// The folder of a checkpoint of this shape.
    pub(crate) fn write(&self) -> anyhow::Result<PathBuf> {
        let dir = std::env::temp_dir().join(format!("gpu-check-{}", self.name));
        if dir.join("config.json").exists() {
            return Ok(dir);
        }
        std::fs::create_dir_all(&dir)?;
        self.write_weights(&dir.join("model.safetensors"))?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "vocab_size": self.vocab,
            "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
            "tie_word_embeddings": self.is_tied, "torch_dtype": "bfloat16", "eos_token_id": 1,
        });
        // Last: a folder with it is complete.
        std::fs::write(dir.join("config.json"), config.to_string())?;
        Ok(dir)
    }

    /// The linear layers of a decoder layer as they are multiplied (q, k and v together, gate and up too), and the output layer: name,
    /// outputs, inputs.
    pub(crate) fn linears(&self) -> [(&'static str, usize, usize); 5] {
        let Shape { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *self;
        [
            ("qkv", (heads + 2 * kv_heads) * head_dim, hidden),
            ("o", hidden, heads * head_dim),
            ("gate_up", 2 * intermediate, hidden),
            ("down", hidden, intermediate),
            ("head", vocab, hidden),
        ]
    }

    fn write_weights(&self, path: &Path) -> anyhow::Result<()> {
        let Shape { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *self;
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.is_tied {
            shapes.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
        }
        for layer in 0..self.layers {
            let tensors = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![heads * head_dim, hidden]),
                ("self_attn.k_proj", vec![kv_heads * head_dim, hidden]),
                ("self_attn.v_proj", vec![kv_heads * head_dim, hidden]),
                ("self_attn.o_proj", vec![hidden, heads * head_dim]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![intermediate, hidden]),
                ("mlp.up_proj", vec![intermediate, hidden]),
                ("mlp.down_proj", vec![hidden, intermediate]),
            ];
            shapes.extend(
                tensors.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)),
            );
        }
        let bytes_of = |shape: &[usize]| 2 * shape.iter().product::<usize>();
        // Every tensor begins with the same numbers.
        let numbers = random_bytes(shapes.iter().map(|(_, shape)| bytes_of(shape)).max().unwrap_or(0));
        let views = shapes.iter().map(|(name, shape)| {
            let view = TensorView::new(Dtype::BF16, shape.clone(), &numbers[..bytes_of(shape)]);
            (name, view.expect("there are as many numbers"))
        });
        Ok(serialize_to_file(views, None, path)?)
    }
}

/// Numbers of bfloat16 of about 0.02 with random signs and digits, as weights have; the first 32 MB of them, again and again. `bytes` is even.
pub(crate) fn random_bytes(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        half::bf16::from_f32(((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.035).to_le_bytes()
    };
    let block: Vec<u8> = (0..bytes.min(32 << 20) / 2).flat_map(|_| random()).collect();
    let mut numbers = block.repeat(bytes.div_ceil(block.len().max(1)));
    numbers.truncate(bytes);
    numbers
}
