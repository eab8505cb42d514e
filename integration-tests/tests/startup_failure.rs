//! What cannot start says why, in its own words, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::fs;
use std::net::TcpListener;

use integration_tests::{Exit, Setup, TinyModel};
use serde_json::json;
use tempfile::TempDir;

/// Starts a server that cannot start, and checks how it ends.
#[track_caller]
fn fails(setup: Setup, texts: &[&str]) -> Exit {
    let exit = setup.run();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    let error = exit.log.split("Error: ").last().unwrap_or_default();
    for text in texts {
        assert!(error.contains(text), "the closing error says {text:?}:\n{}", exit.log);
    }
    assert!(exit.leftovers.is_empty(), "{:?}", exit.leftovers);
    exit
}

#[track_caller]
fn model_fails(dir: &TempDir, args: &[&str], texts: &[&str]) {
    fails(Setup::new().model(dir.path()).args(args), texts);
}

fn rewrite_config(dir: &TempDir, key: &str, value: serde_json::Value) {
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn missing_files_are_named_before_anything_is_started() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = TinyModel::default().write();
        fs::remove_file(dir.path().join(name)).unwrap();
        let wanted = if name == "model.safetensors" { "no *.safetensors file" } else { name };
        let exit = fails(Setup::new().model(dir.path()), &[wanted]);
        assert!(!exit.log.contains("Starting"), "{}", exit.log);
    }
}

#[test]
fn truncated_weights_are_found_by_the_shard() {
    for shards in ["1", "2"] {
        let dir = TinyModel::default().write();
        let path = dir.path().join("model.safetensors");
        let length = fs::metadata(&path).unwrap().len();
        fs::File::options().write(true).open(&path).unwrap().set_len(length - 1000).unwrap();
        model_fails(&dir, &["--num-shard", shards], &["shard-", "failed to start", "model.safetensors", "truncated"]);
    }
}

#[test]
fn a_file_that_is_no_safetensors_file() {
    let dir = TinyModel::default().write();
    fs::write(dir.path().join("model.safetensors"), "this is not a model").unwrap();
    model_fails(&dir, &[], &["shard-0 failed to start", "model.safetensors"]);
}

#[test]
fn an_unsupported_architecture_is_named_with_those_that_are() {
    let dir = TinyModel::default().write();
    rewrite_config(&dir, "model_type", json!("mamba"));
    rewrite_config(&dir, "architectures", json!(["MambaForCausalLM"]));
    model_fails(&dir, &[], &["shard-0 failed to start", "mamba", "llama"]);
}

#[test]
fn heads_that_do_not_divide() {
    let dir = TinyModel::default().write();
    model_fails(&dir, &["--num-shard", "3"], &["--num-shard 3", "divisible", "possible: 1, 2"]);
}

#[test]
fn a_broken_tokenizer_is_found_by_the_router() {
    let dir = TinyModel::default().write();
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    model_fails(&dir, &[], &["router failed to start", "tokenizer"]);
}

#[test]
fn a_taken_port_is_found_before_the_weights_are_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // The harness chooses free ports, so this runs the executable itself.
    let exit = std::process::Command::new(integration_tests::executable())
        .args(["--hostname", "127.0.0.1"])
        .env("PORT", &port)
        .output()
        .unwrap();
    assert_eq!(exit.status.code(), Some(1));
    let error = String::from_utf8(exit.stderr).unwrap();
    assert_eq!(
        error,
        format!(
            "Error: cannot listen on 127.0.0.1:{port}: another process is listening there; choose another one with \
             `--port` or `--hostname`\n"
        )
    );
}

#[test]
fn sockets_that_cannot_be_made() {
    fails(Setup::new().args(&["--shard-uds-path", "/no/such/folder/tgi"]), &["/no/such/folder"]);
}

#[test]
fn a_hub_id_gets_advice() {
    let exit = fails(Setup::new().args(&["--model-id", "some-org/some-model"]), &["hub", "--local-dir"]);
    assert!(!exit.log.contains("Starting"));
}

#[test]
fn flags_of_tgi_that_cannot_be_honoured_are_refused_by_name() {
    fails(Setup::new().args(&["--otlp-endpoint", "x"]), &["`--otlp-endpoint` (or OTLP_ENDPOINT) is not supported yet"]);
    fails(Setup::new().env("OTLP_ENDPOINT", "x"), &["`--otlp-endpoint` (or OTLP_ENDPOINT) is not supported yet"]);
    for mode in ["exl2", "marlin"] {
        let expected = format!("`quantize` is `{mode}`, a format of checkpoints that is not supported");
        fails(Setup::new().args(&["--quantize", mode]), &[expected.as_str()]);
    }
    fails(Setup::new().env("QUANTIZE", "bitsandbytes-fp4"), &["`bitsandbytes-nf4` takes as much memory"]);
}

#[test]
fn a_mode_of_quantisation_that_the_checkpoint_contradicts_is_refused_by_the_shard() {
    let plain = TinyModel::default().write();
    let expected =
        ["`--quantize awq` takes a checkpoint that is quantised with awq", "config.json it is not quantised"];
    model_fails(&plain, &["--quantize", "awq"], &expected);
    let quantized = TinyModel::default().write();
    let description = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
    rewrite_config(&quantized, "quantization_config", description);
    let expected = ["`--quantize fp8` takes a checkpoint that is not quantised", "it is quantised with gptq"];
    model_fails(&quantized, &["--quantize", "fp8"], &expected);
    rewrite_config(&quantized, "quantization_config", json!({"quant_method": "exl2", "bits": 4.0}));
    model_fails(&quantized, &[], &["`quantization_config.quant_method` is \"exl2\"; supported: \"awq\", \"gptq\""]);
}

#[test]
fn an_unknown_type_of_the_kv_cache_is_answered_with_those_that_are_known() {
    let exit = Setup::new().args(&["--kv-cache-dtype", "int8"]).run();
    assert_eq!(exit.code, Some(2), "{}", exit.log);
    assert!(exit.log.contains("invalid value 'int8' for '--kv-cache-dtype"), "{}", exit.log);
    assert!(exit.log.contains("[possible values: auto, bf16, f16, f32, fp8_e4m3fn, fp8_e5m2]"), "{}", exit.log);
}

#[test]
fn an_empty_key_neither_opens_nor_closes_the_server() {
    fails(Setup::new().env("API_KEY", ""), &["Invalid argument: `api_key` number 1 is empty"]);
}

#[test]
fn mistyped_flags_are_exit_code_2_with_a_suggestion() {
    let exit = Setup::new().args(&["--num-shards", "2"]).run();
    assert_eq!(exit.code, Some(2), "{}", exit.log);
    assert!(exit.log.contains("--num-shard"), "{}", exit.log);
}

#[test]
fn contradicting_flags_have_the_texts_of_tgi() {
    fails(
        Setup::new().args(&["--max-input-tokens", "10", "--max-total-tokens", "10"]),
        &["Invalid argument: `max_input_tokens`(10) must be < `max_total_tokens`(10)"],
    );
}
