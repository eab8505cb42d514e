//! Small models with random weights, one of every family: what a family adds to config.json, and which tensors it has.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "a part of a test binary")]

use std::path::PathBuf;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

use crate::runner::unique_name;

/// Token ids of every model.
pub const VOCAB_SIZE: usize = 200;

/// What families add to the first of them.
pub fn families() -> Vec<(&'static str, Value)> {
    vec![
        ("llama", json!({})),
        ("mistral", json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 40})),
        ("qwen2", json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": true})),
        ("qwen3", json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})),
        (
            "gemma",
            json!({"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": true}),
        ),
        // A soft-cap that most scores feel.
        (
            "gemma2",
            json!({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "sliding_window": 40,
            "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 10.0}),
        ),
        (
            "gemma3",
            json!({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 40,
            "sliding_window_pattern": 2, "query_pre_attn_scalar": 24, "rope_local_base_freq": 500.0}),
        ),
        (
            "starcoder2",
            json!({"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "sliding_window": 40,
            "hidden_act": "gelu"}),
        ),
        (
            "mixtral",
            json!({
                "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "intermediate_size": EXPERT_SIZE,
                "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
            }),
        ),
        (
            "qwen3_moe",
            json!({
                "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": EXPERTS,
                "num_experts_per_tok": 3, "moe_intermediate_size": EXPERT_SIZE, "mlp_only_layers": [0],
            }),
        ),
    ]
}

const EXPERTS: usize = 5;
/// Of four ranks, 32 each.
const EXPERT_SIZE: usize = 128;

/// The tensors of a layer's experts, and their shapes; `None` of a layer that has a single MLP.
pub fn experts(family: &str, layer: usize, hidden: usize) -> Option<Vec<(String, [usize; 2])>> {
    let (block, names) = match (family, layer) {
        ("mixtral", _) => ("block_sparse_moe", ["w1", "w3", "w2"]),
        ("qwen3_moe", 1) => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        _ => return None,
    };
    let up = [EXPERT_SIZE, hidden];
    let of_expert = |expert| {
        let name = move |name| format!("{block}.experts.{expert}.{name}.weight");
        names.map(name).into_iter().zip([up, up, [hidden, EXPERT_SIZE]])
    };
    Some(
        [(format!("{block}.gate.weight"), [EXPERTS, hidden])]
            .into_iter()
            .chain((0..EXPERTS).flat_map(of_expert))
            .collect(),
    )
}

/// A model of two layers with random weights in a folder of its own, with extents that the kernels take.
pub struct RandomModel(pub PathBuf);

impl RandomModel {
    pub fn new(family: &str, changes: &Value) -> RandomModel {
        const HIDDEN: usize = 64;
        const INTERMEDIATE: usize = 128;
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
        let is_gemma = family.starts_with("gemma");
        let (has_norms_after, has_biases) = (matches!(family, "gemma2" | "gemma3"), family == "starcoder2");
        if has_biases {
            shapes.push(("model.norm.bias".to_owned(), vec![HIDDEN]));
        }
        if config["tie_word_embeddings"] == false {
            shapes.push(("lm_head.weight".to_owned(), vec![VOCAB_SIZE, HIDDEN]));
        }
        for layer in 0..2 {
            let mut add =
                |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            for (name, out) in [("q_proj", HEADS * DIM), ("k_proj", KV_HEADS * DIM), ("v_proj", KV_HEADS * DIM)] {
                add(&format!("self_attn.{name}.weight"), &[out, HIDDEN]);
                if family == "qwen2" || has_biases {
                    add(&format!("self_attn.{name}.bias"), &[out]);
                }
            }
            if family.starts_with("qwen3") || family == "gemma3" {
                add("self_attn.q_norm.weight", &[DIM]);
                add("self_attn.k_norm.weight", &[DIM]);
            }
            add("self_attn.o_proj.weight", &[HIDDEN, HEADS * DIM]);
            add("input_layernorm.weight", &[HIDDEN]);
            add("post_attention_layernorm.weight", &[HIDDEN]);
            if has_norms_after {
                add("pre_feedforward_layernorm.weight", &[HIDDEN]);
                add("post_feedforward_layernorm.weight", &[HIDDEN]);
            }
            if has_biases {
                for (name, len) in [("mlp.c_fc", INTERMEDIATE), ("mlp.c_proj", HIDDEN), ("self_attn.o_proj", HIDDEN)] {
                    add(&format!("{name}.bias"), &[len]);
                }
                add("input_layernorm.bias", &[HIDDEN]);
                add("post_attention_layernorm.bias", &[HIDDEN]);
                add("mlp.c_fc.weight", &[INTERMEDIATE, HIDDEN]);
                add("mlp.c_proj.weight", &[HIDDEN, INTERMEDIATE]);
                continue;
            }
            match experts(family, layer, HIDDEN) {
                Some(experts) => experts.iter().for_each(|(name, shape)| add(name, shape)),
                None => {
                    add("mlp.gate_proj.weight", &[INTERMEDIATE, HIDDEN]);
                    add("mlp.up_proj.weight", &[INTERMEDIATE, HIDDEN]);
                    add("mlp.down_proj.weight", &[HIDDEN, INTERMEDIATE]);
                }
            }
        }
        let (is_f16, mut state) = (config["torch_dtype"] == "float16", 1u32);
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut tensor = |(name, shape): (String, Vec<usize>)| {
            let (centre, scale) = match name.contains("norm") && !name.ends_with("bias") {
                // Gemma's norms multiply by one more than their weight.
                true => (if is_gemma { 0.0 } else { 1.0 }, 0.1),
                false => (0.0, 0.25),
            };
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
