//! Models of any shape with random weights: for what does not depend on what a model says.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::large_tokenizer::byte_alphabet;

/// A Llama-architecture model with a byte-level tokenizer: one token per byte, and an end token that greedy decoding
/// never chooses, so that a generation is exactly as long as asked for.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Attention heads; `hidden_size / num_heads` is the head dimension.
    pub num_heads: usize,
    /// KV heads.
    pub num_kv_heads: usize,
    /// Context.
    pub max_position_embeddings: usize,
    /// Seed of the weights.
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> TinyModel {
        TinyModel {
            hidden_size: 64,
            intermediate_size: 128,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            max_position_embeddings: 8192,
            seed: 1,
        }
    }
}

/// Ids 0..256 are bytes; this one ends a text.
const END: usize = 256;
const VOCAB_SIZE: usize = 257;

impl TinyModel {
    /// Writes the model to a folder that lives as long as the returned value.
    pub fn write(&self) -> TempDir {
        let dir = TempDir::new().expect("a folder for temporary files can be made");
        let write = |name: &str, contents: &[u8]| fs::write(dir.path().join(name), contents).expect("it is writable");
        write("config.json", self.config().to_string().as_bytes());
        write("tokenizer.json", tokenizer().to_string().as_bytes());
        write("tokenizer_config.json", json!({ "eos_token": "<|end|>" }).to_string().as_bytes());
        write_safetensors(&dir.path().join("model.safetensors"), &self.tensors());
        dir
    }

    /// The config.json.
    pub fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "vocab_size": VOCAB_SIZE,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": false,
            "torch_dtype": "float32",
            "eos_token_id": END,
        })
    }

    fn tensors(&self) -> Vec<Tensor> {
        let mut random = Random(self.seed);
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let kv = hidden / self.num_heads * self.num_kv_heads;
        let mut tensors = Vec::new();
        let mut matrix = |name: String, rows: usize, columns: usize| {
            // Variance 1/columns keeps activations of order one through all layers.
            let scale = (columns as f32).sqrt().recip();
            let values = (0..rows * columns).map(|_| random.normal() * scale).collect();
            tensors.push(Tensor { name, shape: vec![rows, columns], values });
        };
        matrix("model.embed_tokens.weight".to_owned(), VOCAB_SIZE, hidden);
        matrix("lm_head.weight".to_owned(), VOCAB_SIZE, hidden);
        for layer in 0..self.num_layers {
            for (name, rows, columns) in [
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", kv, hidden),
                ("self_attn.v_proj", kv, hidden),
                ("self_attn.o_proj", hidden, hidden),
                ("mlp.gate_proj", inner, hidden),
                ("mlp.up_proj", inner, hidden),
                ("mlp.down_proj", hidden, inner),
            ] {
                matrix(format!("model.layers.{layer}.{name}.weight"), rows, columns);
            }
        }
        // Its logit is zero, and the largest of 256 random ones is positive: greedy decoding never ends by itself.
        tensors[1].values[END * hidden..].fill(0.0);
        let mut norm = |name: String| tensors.push(Tensor { name, shape: vec![hidden], values: vec![1.0; hidden] });
        norm("model.norm.weight".to_owned());
        for layer in 0..self.num_layers {
            norm(format!("model.layers.{layer}.input_layernorm.weight"));
            norm(format!("model.layers.{layer}.post_attention_layernorm.weight"));
        }
        tensors
    }
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// The file format: length of the header (u64), header (JSON), values.
fn write_safetensors(path: &Path, tensors: &[Tensor]) {
    let mut header = Map::new();
    let mut data: Vec<u8> = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, data.len()] });
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(path, file).expect("the model folder is writable");
}

/// One token per byte, in the alphabet of GPT-2 (bytes that are not printable become characters from U+0100 on).
fn tokenizer() -> Value {
    let vocab: Map<String, Value> =
        byte_alphabet().enumerate().map(|(byte, character)| (character.to_string(), json!(byte))).collect();
    let end = json!({
        "id": END, "content": "<|end|>", "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    });
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// SplitMix64 (Steele et al., 2014): small, seeded, good enough for weights.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is small beside 2^64.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Close to standard normal: the sum of twelve uniforms has variance one.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}
