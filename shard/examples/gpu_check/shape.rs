//! Models of real extents with random weights, as folders in the folder for temporary files: made once, kept for the next time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

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

pub(crate) const SHAPES: [Shape; 4] = [
    LLAMA_1B,
    // Llama-3.1-8B's.
    Shape { name: "8b", hidden: 4096, intermediate: 14_336, layers: 32, head_dim: 128, is_tied: false, ..LLAMA_1B },
    // Llama-3.1-70B's, which one GPU has no room for: for one rank of several.
    Shape {
        name: "70b",
        hidden: 8192,
        intermediate: 28_672,
        layers: 80,
        heads: 64,
        head_dim: 128,
        is_tied: false,
        ..LLAMA_1B
    },
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
    /// The folder of a checkpoint of this shape, of which rank 0 of `ranks` reads random numbers. What only other ranks read is a hole of the
    /// file: it reads as zeros and takes no room.
    pub(crate) fn write(&self, ranks: usize) -> anyhow::Result<PathBuf> {
        let of = if ranks > 1 { format!("-1of{ranks}") } else { String::new() };
        let dir = std::env::temp_dir().join(format!("gpu-check-{}{of}", self.name));
        if dir.join("config.json").exists() {
            return Ok(dir);
        }
        std::fs::create_dir_all(&dir)?;
        self.write_weights(&dir.join("model.safetensors"), ranks)?;
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

    /// Every tensor of the checkpoint: its name, its extents, and those of the part that rank 0 of `ranks` has, which begins where the tensor
    /// does.
    fn tensors(&self, ranks: usize) -> Vec<(String, Vec<usize>, Vec<usize>)> {
        let Shape { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *self;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let (own_q, own_kv) = (q / ranks, kv_heads.div_ceil(ranks) * head_dim);
        let (own_intermediate, own_vocab) = (intermediate / ranks, vocab.div_ceil(ranks));
        let mut tensors = vec![
            ("model.embed_tokens".to_owned(), vec![vocab, hidden], vec![own_vocab, hidden]),
            ("model.norm".to_owned(), vec![hidden], vec![hidden]),
        ];
        if !self.is_tied {
            tensors.push(("lm_head".to_owned(), vec![vocab, hidden], vec![own_vocab, hidden]));
        }
        for layer in 0..self.layers {
            let of_layer = [
                ("input_layernorm", vec![hidden], vec![hidden]),
                ("self_attn.q_proj", vec![q, hidden], vec![own_q, hidden]),
                ("self_attn.k_proj", vec![kv, hidden], vec![own_kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden], vec![own_kv, hidden]),
                ("self_attn.o_proj", vec![hidden, q], vec![hidden, own_q]),
                ("post_attention_layernorm", vec![hidden], vec![hidden]),
                ("mlp.gate_proj", vec![intermediate, hidden], vec![own_intermediate, hidden]),
                ("mlp.up_proj", vec![intermediate, hidden], vec![own_intermediate, hidden]),
                ("mlp.down_proj", vec![hidden, intermediate], vec![hidden, own_intermediate]),
            ];
            let named = |(name, shape, own)| (format!("model.layers.{layer}.{name}"), shape, own);
            tensors.extend(of_layer.map(named));
        }
        tensors
    }

    /// A file of safetensors: the length of its header, the header, and the tensors one behind the other.
    fn write_weights(&self, path: &Path, ranks: usize) -> anyhow::Result<()> {
        let tensors = self.tensors(ranks);
        let bytes_of = |shape: &[usize]| 2 * shape.iter().product::<usize>();
        let (mut header, mut end) = (Map::new(), 0);
        for (name, shape, _) in &tensors {
            let begin = end;
            end += bytes_of(shape);
            let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] });
            header.insert(format!("{name}.weight"), entry);
        }
        let mut header = Value::Object(header).to_string();
        // So that tensors begin at multiples of eight bytes, as the format wants.
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let file = File::create(path)?;
        file.write_all_at(&(header.len() as u64).to_le_bytes(), 0)?;
        file.write_all_at(header.as_bytes(), 8)?;
        let mut start = 8 + header.len() as u64;
        file.set_len(start + end as u64)?;
        // Every tensor begins with the same numbers.
        let numbers = random_bytes(tensors.iter().map(|(.., own)| bytes_of(own)).max().unwrap_or(0));
        for (_, shape, own) in &tensors {
            let row_bytes = |shape: &[usize]| 2 * shape.last().copied().unwrap_or(0);
            // What lies at once: all of it, or a row of the part.
            let own_bytes = bytes_of(own);
            let piece = if row_bytes(own) == row_bytes(shape) { own_bytes } else { row_bytes(own) };
            for (row, piece) in numbers[..own_bytes].chunks(piece).enumerate() {
                file.write_all_at(piece, start + (row * row_bytes(shape)) as u64)?;
            }
            start += bytes_of(shape) as u64;
        }
        Ok(())
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
