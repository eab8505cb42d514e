//! Damaged, foreign and impossible models: each is refused with an error that names what is wrong and where.

#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod runner;

use std::fs;
use std::sync::Arc;

use kernels::{DType, Device};
use runner::{Runner, ScratchModel, bits, unique_name, with_ranks};
use safetensors::SafeTensors;
use serde_json::json;
use shard::comm::{Comm, Shm, ShmOptions, Single};
use shard::models::{Model, ModelOptions, RopeKind, RopeOverride};

/// Loads the model and expects this error, in which `DIR` stands for its directory.
#[track_caller]
fn check(model: &ScratchModel, expected: &str) {
    let loaded = Model::load(&model.0, &Device::cpu(1), Arc::new(Single), &ModelOptions::default());
    let Err(error) = loaded else { panic!("loaded, instead of: {expected}") };
    assert_eq!(error.to_string().replace(model.0.to_str().unwrap(), "DIR"), expected);
}

/// A fresh copy with config.json changed.
#[track_caller]
fn check_config(golden: &str, changes: serde_json::Value, expected: &str) {
    let model = ScratchModel::of(golden);
    model.configure(changes);
    check(&model, expected);
}

// --- config.json -------------------------------------------------------------------------------------------------------

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    let llama = "llama-llama3-f32";
    check_config(
        llama,
        json!({"model_type": "mamba"}),
        "DIR/config.json: `model_type` is \"mamba\"; supported: \"llama\", \"mistral\", \"mixtral\", \"qwen2\", \"qwen3\", \
         \"qwen3_moe\", \"gemma\", \"gemma2\", \"gemma3_text\", \"starcoder2\"",
    );
    check_config(
        llama,
        json!({"architectures": ["LlamaForSequenceClassification"]}),
        r#"DIR/config.json: `architectures` is ["LlamaForSequenceClassification"]; supported: ["LlamaForCausalLM"]"#,
    );
    let activations = r#"supported: "silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh""#;
    check_config(
        llama,
        json!({"hidden_act": "relu"}),
        &format!("DIR/config.json: `hidden_act` is \"relu\"; {activations}"),
    );
    check_config(
        "gemma2-softcap-f32",
        json!({"hidden_activation": "relu"}),
        &format!("DIR/config.json: `hidden_activation` is \"relu\"; {activations}"),
    );
    check_config(
        "gemma-tied-bf16",
        json!({"use_bidirectional_attention": true}),
        "DIR/config.json: `use_bidirectional_attention` is true; supported: false",
    );
    check_config(
        "gemma3-two-ropes-f32",
        json!({"attn_logit_softcapping": 50.0}),
        "DIR/config.json: `attn_logit_softcapping` is 50.0; supported: null",
    );
    check_config(
        llama,
        json!({"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0}}),
        "DIR/config.json: `rope_parameters.rope_type` is \"longrope\"; supported: \"default\", \"linear\", \"dynamic\", \
         \"llama3\", \"yarn\"",
    );
    check_config(
        "llama-dynamic-bf16",
        json!({"rope_scaling": {"type": "su", "factor": 2.0}}),
        "DIR/config.json: `rope_scaling.type` is \"su\"; supported: \"default\", \"linear\", \"dynamic\", \"llama3\", \
         \"yarn\"",
    );
    check_config(
        llama,
        json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}),
        "DIR/config.json: `quantization_config.quant_method` is \"bitsandbytes\"; supported: \"awq\", \"gptq\", \
         \"fp8\", \"fbgemm_fp8\", \"compressed-tensors\" and \"modelopt\" of FP8, and float32, float16 and bfloat16 checkpoints \
         that are not quantised",
    );
    check_config(
        llama,
        json!({"compression_config": {"format": "pack-quantized"}}),
        "DIR/config.json: `compression_config.format` is \"pack-quantized\"; supported: \"float-quantized\"",
    );
    check_config(
        "qwen2-bias-f32",
        json!({"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
        "DIR/config.json: `layer_types` is [\"full_attention\",\"linear_attention\",\"full_attention\"]; supported: \
         \"full_attention\", \"sliding_attention\"",
    );
}

#[test]
fn malformed_fields_are_named_with_what_they_should_be() {
    let llama = "llama-llama3-f32";
    let size = "expected a whole number from 1 to 16777216";
    check_config(llama, json!({"hidden_size": null}), &format!("DIR/config.json: `hidden_size` is missing, {size}"));
    check_config(llama, json!({"vocab_size": "many"}), &format!("DIR/config.json: `vocab_size` is \"many\", {size}"));
    check_config(llama, json!({"vocab_size": 0}), &format!("DIR/config.json: `vocab_size` is 0, {size}"));
    check_config(
        llama,
        json!({"intermediate_size": -4}),
        &format!("DIR/config.json: `intermediate_size` is -4, {size}"),
    );
    check_config(
        llama,
        json!({"num_key_value_heads": 3}),
        "DIR/config.json: `num_key_value_heads` is 3, expected a divisor of num_attention_heads 4",
    );
    check_config(
        llama,
        json!({"rope_parameters": {"rope_type": "linear"}}),
        "DIR/config.json: `rope_parameters.factor` is missing, expected a number above 0",
    );
    for (golden, field, changes) in [
        ("gemma2-softcap-f32", "attn_logit_softcapping", json!({"attn_logit_softcapping": -1})),
        ("gemma2-softcap-f32", "final_logit_softcapping", json!({"final_logit_softcapping": 0})),
        ("gemma3-two-ropes-f32", "query_pre_attn_scalar", json!({"query_pre_attn_scalar": 0.0})),
        ("gemma3-two-ropes-bf16", "rope_local_base_freq", json!({"rope_local_base_freq": "many"})),
        ("starcoder2-window-f32", "norm_epsilon", json!({"norm_epsilon": -1e-5})),
    ] {
        let value = changes[field].clone();
        check_config(golden, changes, &format!("DIR/config.json: `{field}` is {value}, expected a number above 0"));
    }
    check_config(
        "gemma3-two-ropes-f32",
        json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
        "DIR/config.json: `rope_parameters.sliding_attention` is missing, expected an object",
    );
    check_config(
        "gemma2-softcap-f32",
        json!({"layer_types": ["full_attention"]}),
        "DIR/config.json: `layer_types` is [\"full_attention\"], expected one entry for each of 3 layers",
    );
    check_config(
        "gemma3-two-ropes-bf16",
        json!({"sliding_window_pattern": 0}),
        "DIR/config.json: `sliding_window_pattern` is 0, expected a whole number from 1 to 1024",
    );
    let model = ScratchModel::of(llama);
    fs::write(model.path("generation_config.json"), r#"{"eos_token_id": [2, "</s>"]}"#).unwrap();
    check(&model, "DIR/generation_config.json: `eos_token_id` is [2,\"</s>\"], expected a token id or a list of them");
    fs::write(model.path("config.json"), "{\"model_type\": ").unwrap();
    check(&model, "DIR/config.json: EOF while parsing a value at line 1 column 15");
    fs::write(model.path("config.json"), "[]").unwrap();
    check(&model, "DIR/config.json: expected a JSON object");
    fs::remove_file(model.path("config.json")).unwrap();
    check(&model, "cannot read DIR/config.json: No such file or directory (os error 2)");
}

#[test]
fn experts_that_cannot_be_are_named() {
    let (mixtral, qwen) = ("mixtral-window-f32", "qwen3-moe-mixed-f32");
    check_config(
        mixtral,
        json!({"num_local_experts": null}),
        "DIR/config.json: `num_local_experts` is missing, expected a whole number from 1 to 1024",
    );
    check_config(
        mixtral,
        json!({"num_local_experts": 1025}),
        "DIR/config.json: `num_local_experts` is 1025, expected a whole number from 1 to 1024",
    );
    check_config(
        mixtral,
        json!({"num_experts_per_tok": 5}),
        "DIR/config.json: `num_experts_per_tok` is 5, expected a whole number from 1 to 4",
    );
    check_config(
        "qwen3-moe-mixed-bf16",
        json!({"num_experts": 64, "num_experts_per_tok": 33}),
        "DIR/config.json: `num_experts_per_tok` is 33, expected a whole number from 1 to 32",
    );
    check_config(
        qwen,
        json!({"moe_intermediate_size": null}),
        "DIR/config.json: `moe_intermediate_size` is missing, expected a whole number from 1 to 16777216",
    );
    check_config(
        qwen,
        json!({"mlp_only_layers": [1, 3]}),
        "DIR/config.json: `mlp_only_layers` is [1,3], expected a list of numbers of layers, below 3",
    );
    check_config(
        qwen,
        json!({"decoder_sparse_step": 0}),
        "DIR/config.json: `decoder_sparse_step` is 0, expected a whole number from 1 to 1024",
    );
    check_config(
        qwen,
        json!({"moe_intermediate_size": 16}),
        "DIR/model.safetensors: tensor `model.layers.0.mlp.experts.0.gate_proj.weight` has shape [24, 32], config.json \
         implies [16, 32]",
    );
    check_config(
        qwen,
        json!({"mlp_only_layers": [], "num_local_experts": 7}),
        "DIR/model.safetensors: tensor `model.layers.0.mlp.gate.weight` has shape [6, 32], config.json implies [7, 32]",
    );
    check_config(qwen, json!({"mlp_only_layers": []}), "weight `model.layers.1.mlp.gate.weight` does not exist in DIR");
    check_config(
        qwen,
        json!({"mlp_only_layers": null, "decoder_sparse_step": 2}),
        "weight `model.layers.0.mlp.gate_proj.weight` does not exist in DIR",
    );
}

#[test]
fn weights_of_experts_sum_to_one_if_the_configuration_says_so() {
    let model = ScratchModel::of("qwen3-moe-mixed-f32");
    let own = logits(&model, &ModelOptions::default());
    model.configure(json!({"norm_topk_prob": true}));
    assert!(logits(&model, &ModelOptions::default()) != own);
}

#[test]
fn a_number_of_ranks_that_does_not_divide_is_refused_with_those_that_do() {
    let model = ScratchModel::of("qwen3-qk-norm-f32");
    let errors = with_ranks(3, |comm| {
        let loaded = Model::load(&model.0, &Device::cpu(1), comm, &ModelOptions::default());
        loaded.err().map(|error| error.to_string())
    });
    let expected = "`--num-shard 3`: num_attention_heads 8 is not divisible by 3; possible: 1, 2, 4, 8";
    assert_eq!(errors, vec![Some(expected.to_owned()); 3]);
}

// --- Weights -----------------------------------------------------------------------------------------------------------

const WEIGHTS: &str = "model.safetensors";
const NORM: &str = "model.layers.1.input_layernorm.weight";

/// A copy whose header text is replaced; the new text must have the same length.
fn edit_header(model: &ScratchModel, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(model.path(WEIGHTS)).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the header has that text");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(model.path(WEIGHTS), bytes).unwrap();
}

#[test]
fn missing_and_cut_files() {
    let model = ScratchModel::of("llama-llama3-f32");
    let bytes = fs::read(model.path(WEIGHTS)).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap());

    fs::write(model.path(WEIGHTS), &bytes[..bytes.len() - 1]).unwrap();
    let last = SafeTensors::read_metadata(&bytes).unwrap().1.offset_keys().pop().unwrap();
    let (end, actual) = (bytes.len(), bytes.len() - 1);
    check(
        &model,
        &format!("DIR/model.safetensors: truncated: tensor `{last}` ends at byte {end}, the file at {actual}"),
    );

    fs::write(model.path(WEIGHTS), &bytes[..100]).unwrap();
    let end = header_bytes + 8;
    check(&model, &format!("DIR/model.safetensors: truncated: the header ends at byte {end}, the file at 100"));

    fs::write(model.path(WEIGHTS), &bytes[..3]).unwrap();
    check(&model, "DIR/model.safetensors: truncated: the header's length ends at byte 8, the file at 3");

    fs::write(model.path(WEIGHTS), [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat()).unwrap();
    check(
        &model,
        "DIR/model.safetensors: not a valid safetensors file: the header claims 18446744073709551615 bytes, the limit is \
         100000000",
    );

    fs::write(model.path(WEIGHTS), [&bytes[..], &[0]].concat()).unwrap();
    check(&model, "DIR/model.safetensors: not a valid safetensors file: 1 bytes follow the last tensor");

    fs::remove_file(model.path(WEIGHTS)).unwrap();
    check(&model, "DIR: no model.safetensors, model.safetensors.index.json or other *.safetensors file");
}

#[test]
fn tensors_that_are_not_what_the_configuration_says() {
    let model = ScratchModel::of("llama-llama3-f32");
    edit_header(&model, NORM, &NORM.replace("input", "inpxt"));
    check(&model, &format!("weight `{NORM}` does not exist in DIR"));

    let model = ScratchModel::of("llama-llama3-f32");
    model.configure(json!({"intermediate_size": 65}));
    check(
        &model,
        "DIR/model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight` has shape [64, 32], config.json implies [65, 32]",
    );

    let model = ScratchModel::of("llama-llama3-f32");
    edit_header(&model, "\"dtype\":\"F32\",\"shape\":[259,32]", "\"dtype\":\"I32\",\"shape\":[259,32]");
    check(&model, "DIR/model.safetensors: tensor `model.embed_tokens.weight` has dtype I32; supported: F32, F16, BF16");

    let model = ScratchModel::of("llama-llama3-f32");
    edit_header(&model, "\"shape\":[259,32]", "\"shape\":[259,33]");
    check(
        &model,
        "DIR/model.safetensors: tensor `model.embed_tokens.weight`: shape [259, 33] of F32 does not fill the bytes 0..33152",
    );
}

// --- Several files -----------------------------------------------------------------------------------------------------

/// Splits model.safetensors into two files with an index.
fn split(model: &ScratchModel) {
    let bytes = fs::read(model.path(WEIGHTS)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut weight_map = serde_json::Map::new();
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for (part, name) in names.iter().enumerate() {
        let of_part = |tensor: &String| usize::from(tensor.contains(".layers.1.")) == part;
        let views: Vec<_> = tensors.tensors().into_iter().filter(|(tensor, _)| of_part(tensor)).collect();
        views.iter().for_each(|(tensor, _)| drop(weight_map.insert(tensor.clone(), json!(name))));
        fs::write(model.path(name), safetensors::serialize(views, None).unwrap()).unwrap();
    }
    let index = json!({"metadata": {"total_size": bytes.len()}, "weight_map": weight_map});
    fs::write(model.path("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(model.path(WEIGHTS)).unwrap();
}

fn logits(model: &ScratchModel, options: &ModelOptions) -> Vec<Vec<f32>> {
    Runner::load_with(&model.0, 1, Arc::new(Single), options).greedy(&[5, 6, 7], 4).steps
}

#[test]
fn an_indexed_checkpoint_and_one_without_index_give_the_same_bits() {
    let model = ScratchModel::of("llama-llama3-f32");
    let expected = bits(&logits(&model, &ModelOptions::default()));
    split(&model);
    assert!(bits(&logits(&model, &ModelOptions::default())) == expected, "indexed");
    fs::remove_file(model.path("model.safetensors.index.json")).unwrap();
    assert!(bits(&logits(&model, &ModelOptions::default())) == expected, "every *.safetensors");
}

#[test]
fn an_index_that_lies_is_refused() {
    let model = ScratchModel::of("llama-llama3-f32");
    split(&model);
    let index = fs::read_to_string(model.path("model.safetensors.index.json")).unwrap();
    let write = |text: String| fs::write(model.path("model.safetensors.index.json"), text).unwrap();

    write(index.replace("00002-of-00002", "00009-of-00002"));
    check(&model, "cannot read DIR/model-00009-of-00002.safetensors: No such file or directory (os error 2)");
    write(index.replace("model-00002-of", "../odel-00002-of"));
    let error = Model::load(&model.0, &Device::cpu(1), Arc::new(Single), &ModelOptions::default()).err().unwrap();
    assert!(error.to_string().contains("expected a file name without directories"), "{error}");
    write(index.replace(NORM, "nonsense"));
    check(&model, "weight `nonsense` does not exist in DIR");

    // Without an index, a tensor in two files could mean either.
    fs::remove_file(model.path("model.safetensors.index.json")).unwrap();
    fs::copy(model.path("model-00002-of-00002.safetensors"), model.path("other.safetensors")).unwrap();
    let error = Model::load(&model.0, &Device::cpu(1), Arc::new(Single), &ModelOptions::default()).err().unwrap();
    let expected = "model-00002-of-00002.safetensors and in DIR/other.safetensors";
    assert!(error.to_string().ends_with(&expected.replace("DIR", model.0.to_str().unwrap())), "{error}");
}

// --- Options -----------------------------------------------------------------------------------------------------------

#[test]
fn dtype_converts_the_weights() {
    let model = ScratchModel::of("llama-llama3-f32");
    let full = logits(&model, &ModelOptions::default());
    for dtype in [DType::Bf16, DType::F16] {
        let options = ModelOptions { dtype: Some(dtype), ..ModelOptions::default() };
        let rounded = logits(&model, &options);
        let difference = full[0].iter().zip(&rounded[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Weights move by up to 2⁻⁹ (bfloat16) or 2⁻¹² (float16) of their size: the logits by something, not by much.
        assert!(difference > 0.0 && difference < 0.2, "{dtype}: {difference}");
        let runner = Runner::load_with(&model.0, 1, Arc::new(Single), &options);
        assert_eq!(runner.model.spec().dtype, Some(dtype));
    }
    // Widening is exact, so only the cache's element type differs.
    let narrow = ScratchModel::of("qwen3-qk-norm-bf16");
    let widened = Runner::load_with(
        &narrow.0,
        1,
        Arc::new(Single),
        &ModelOptions { dtype: Some(DType::F32), ..ModelOptions::default() },
    );
    assert_eq!(widened.model.spec().dtype, Some(DType::F32));
}

#[test]
fn rope_scaling_of_the_command_line_replaces_the_models_own() {
    let model = ScratchModel::of("mistral-window-f32");
    let scaled = |kind, factor| {
        let options = ModelOptions { rope_scaling: Some(RopeOverride { kind, factor }), ..ModelOptions::default() };
        (Runner::load_with(&model.0, 1, Arc::new(Single), &options), logits(&model, &options))
    };
    let own = logits(&model, &ModelOptions::default());
    let (linear, linear_logits) = scaled(RopeKind::Linear, 2.0);
    assert_eq!(linear.model.spec().max_position_embeddings, 1280);
    assert!(linear_logits != own);
    // As if config.json said so.
    model.configure(json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}));
    assert!(bits(&logits(&model, &ModelOptions::default())) == bits(&linear_logits));
    // Dynamic scaling leaves the original positions alone.
    let (dynamic, dynamic_logits) = scaled(RopeKind::Dynamic, 4.0);
    assert_eq!(dynamic.model.spec().max_position_embeddings, 2560);
    assert!(bits(&dynamic_logits) == bits(&own));
}

#[test]
fn a_rank_takes_its_share_of_the_memory() {
    let model = ScratchModel::of("llama-bias-linear-f32");
    let sizes = |world_size| {
        with_ranks(world_size, |comm| {
            let runner = Runner::load(&model.0, 1, comm);
            (runner.model.weights_bytes(), runner.model.kv_bytes_per_block())
        })
    };
    let (whole, halves) = (sizes(1)[0], sizes(2));
    assert_eq!(halves[0].1 * 2, whole.1, "KV heads are shared out");
    // Norms and RoPE tables are on every rank.
    assert!(halves.iter().all(|half| half.0 * 10 < whole.0 * 9), "{whole:?}, {halves:?}");
}

#[test]
fn eos_tokens_are_those_of_the_generation_config() {
    let model = ScratchModel::of("llama-llama3-f32");
    let eos = || Runner::load(&model.0, 1, Arc::new(Single)).model.spec().eos_token_ids.clone();
    fs::write(model.path("generation_config.json"), r#"{"eos_token_id": [7, 9]}"#).unwrap();
    assert_eq!(eos(), [7, 9]);
    fs::write(model.path("generation_config.json"), r#"{"eos_token_id": 5}"#).unwrap();
    assert_eq!(eos(), [5]);
    fs::write(model.path("generation_config.json"), "{}").unwrap();
    assert_eq!(eos(), [2]);
    fs::remove_file(model.path("generation_config.json")).unwrap();
    assert_eq!(eos(), [2]);
}

// --- Groups that cannot form -------------------------------------------------------------------------------------------

#[test]
fn ranks_with_different_geometry_do_not_join() {
    let name = unique_name();
    let options = |capacity_bytes| ShmOptions { capacity_bytes, ..ShmOptions::default() };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Shm::open_with(&name, 0, 2, options(4096)).map(|comm| comm.rank()));
        // The first word of the segment is its geometry: wait until rank 0 has written it.
        let path = std::path::Path::new("/dev/shm").join(&name[1..]);
        let written = |bytes: Vec<u8>| bytes.get(..8).is_some_and(|word| word != [0; 8]);
        while !fs::read(&path).is_ok_and(written) {
            std::thread::yield_now();
        }
        let Some(shard::Error::SegmentInUse { reason: strange, .. }) = Shm::open_with(&name, 1, 2, options(8192)).err()
        else {
            panic!("a rank with other buffers joined");
        };
        assert!(strange.contains("this rank expects 2 and"), "{strange}");
        assert_eq!(Shm::open_with(&name, 1, 2, options(4096)).unwrap().rank(), 1);
        assert_eq!(first.join().unwrap().unwrap(), 0);
    });
}
