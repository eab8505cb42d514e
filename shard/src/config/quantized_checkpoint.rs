//! Checkpoints that were quantised beforehand: what config.json, or the older file beside it, says about their layout.
//!
//! Sources: transformers `GPTQConfig` and `AwqConfig`; AutoGPTQ and GPTQModel `quantize_config.json`; AutoAWQ `quant_config.json`.
//! Which layers are quantised is not read from there (`modules_to_not_convert`, `dynamic`, `lm_head`): the tensors say it.

use super::{ConfigFile, Fp8Checkpoint, ModelOptions, Quantization};
use crate::error::{Error, Result};
use crate::limits::MAX_DIMENSION;

/// Who quantised a checkpoint, by the names of TGI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantMethod {
    /// `awq`: activation-aware weight quantisation (arXiv:2306.00978).
    Awq,
    /// `gptq` (arXiv:2210.17323).
    Gptq,
    /// `fp8`: E4M3 numbers.
    Fp8,
    /// `compressed-tensors`, of which FP8 is supported.
    CompressedTensors,
}

impl QuantMethod {
    /// TGI's name of it.
    pub fn name(self) -> &'static str {
        match self {
            QuantMethod::Awq => "awq",
            QuantMethod::Gptq => "gptq",
            QuantMethod::Fp8 => "fp8",
            QuantMethod::CompressedTensors => "compressed-tensors",
        }
    }
}

/// How integers lie in the tensors of quantised layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedLayout {
    /// AutoAWQ's GEMM version: eight outputs of an input in a word, interleaved.
    AwqGemm,
    /// AutoGPTQ's: neighbouring inputs of an output in a word; zero points are stored less one.
    Gptq,
    /// GPTQModel's second version: zero points are stored as they are.
    GptqV2,
}

/// A quantised checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizedCheckpoint {
    /// Small integers.
    Integers(PackedIntegers),
    /// FP8 numbers.
    Fp8(Fp8Checkpoint),
}

/// A checkpoint of AWQ or GPTQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedIntegers {
    /// Where its integers lie.
    pub layout: PackedLayout,
    /// Bits of a weight: 2, 3, 4 or 8.
    pub bits: usize,
    /// Inputs with one scale and zero point; `None`: all of them.
    pub group_size: Option<usize>,
}

impl QuantizedCheckpoint {
    /// What the model directory says; `None` if the checkpoint is not quantised.
    ///
    /// # Errors
    /// A method or layout that is not supported, by name; a field that is missing or malformed; [`Error::Quantize`] if the
    /// command line asks for something else.
    pub fn of(config: &ConfigFile, options: &ModelOptions) -> Result<Option<QuantizedCheckpoint>> {
        let description = match config.object("quantization_config")? {
            Some(description) => Some(description),
            // As compressed-tensors called it first.
            None => config
                .object("compression_config")?
                .map(|description| description.with_default("quant_method", "compressed-tensors")),
        };
        let description = match description {
            Some(description) => Some(description),
            None => older_file(config)?,
        };
        let checkpoint = description.as_ref().map(QuantizedCheckpoint::read).transpose()?;

        // The mode that quantises while loading has found its work done.
        if options.quantization == Some(Quantization::Fp8) && matches!(checkpoint, Some(QuantizedCheckpoint::Fp8(_))) {
            return Ok(checkpoint);
        }
        let (asked, takes) = match (options.quantization, options.quant_method) {
            (Some(mode), _) => (mode.name(), None),
            (None, Some(method)) => (method.name(), Some(method)),
            (None, None) => return Ok(checkpoint),
        };
        let actual = checkpoint.map(|checkpoint| checkpoint.method());
        if takes != actual {
            let path = description.as_ref().unwrap_or(config).path().to_owned();
            return Err(Error::Quantize { asked, takes: state(takes), path, actual: state(actual) });
        }
        Ok(checkpoint)
    }

    /// Who quantised it.
    pub fn method(&self) -> QuantMethod {
        match self {
            QuantizedCheckpoint::Fp8(checkpoint) => checkpoint.method,
            QuantizedCheckpoint::Integers(PackedIntegers { layout: PackedLayout::AwqGemm, .. }) => QuantMethod::Awq,
            QuantizedCheckpoint::Integers(_) => QuantMethod::Gptq,
        }
    }

    fn read(config: &ConfigFile) -> Result<QuantizedCheckpoint> {
        let field = |names: [&'static str; 2]| names.into_iter().find(|name| config.get(name).is_some());
        let method_field = field(["quant_method", "method"]).unwrap_or("quant_method");
        let method = config.text(method_field)?.map(str::to_lowercase);
        if let Some(fp8) = Fp8Checkpoint::read(config, method.as_deref())? {
            return Ok(QuantizedCheckpoint::Fp8(fp8));
        }
        let format_field = field(["checkpoint_format", "format"]).unwrap_or("checkpoint_format");
        let format = config.text(format_field)?.map(str::to_lowercase);
        // The older files need not say; that of AutoAWQ has a version of the layout and AutoGPTQ's has none.
        let is_awq = match method.as_deref() {
            Some("awq") => true,
            Some("gptq") => false,
            Some(_) => return Err(config.unsupported(method_field, SUPPORTED)),
            None => config.get("version").is_some(),
        };
        if config.flag("is_marlin_format", false)? {
            return Err(config.unsupported("is_marlin_format", "false"));
        }
        if !matches!(config.text("pack_dtype")?, None | Some("int32")) {
            return Err(config.unsupported("pack_dtype", "\"int32\""));
        }
        let bits_field = field(["bits", "w_bit"]).unwrap_or("bits");
        let group_field = field(["group_size", "q_group_size"]).unwrap_or("group_size");
        let bits = config.optional_size(bits_field, 64)?;
        let (layout, bits, default_group) = match is_awq {
            true => {
                check_awq(config, format_field, format.as_deref())?;
                if bits.is_some_and(|bits| bits != 4) {
                    return Err(config.unsupported(bits_field, "4"));
                }
                // Defaults of transformers' AwqConfig.
                (PackedLayout::AwqGemm, 4, Some(128))
            }
            false => {
                let layout = match format.as_deref() {
                    None | Some("gptq") => PackedLayout::Gptq,
                    Some("gptq_v2") => PackedLayout::GptqV2,
                    Some(_) => return Err(config.unsupported(format_field, "\"gptq\", \"gptq_v2\"")),
                };
                refuse_overrides(config)?;
                let Some(bits) = bits else { return Err(config.wrong(bits_field, "2, 3, 4 or 8")) };
                if !matches!(bits, 2 | 3 | 4 | 8) {
                    return Err(config.unsupported(bits_field, "2, 3, 4, 8"));
                }
                (layout, bits, None)
            }
        };
        let group_size = match config.get(group_field) {
            Some(size) if size.as_i64() == Some(-1) => None,
            Some(_) => config.optional_size(group_field, MAX_DIMENSION)?,
            None if default_group.is_some() => default_group,
            // Libraries disagree about what its absence means.
            None => return Err(config.wrong(group_field, "a number of inputs, or -1 for all of them")),
        };
        Ok(QuantizedCheckpoint::Integers(PackedIntegers { layout, bits, group_size }))
    }
}

const SUPPORTED: &str = "\"awq\", \"gptq\", \"fp8\", \"fbgemm_fp8\", \"compressed-tensors\" and \"modelopt\" of FP8, and float32, float16 and bfloat16 checkpoints that are not quantised";

/// The file beside config.json in which AutoGPTQ and AutoAWQ described a checkpoint before config.json did.
fn older_file(config: &ConfigFile) -> Result<Option<ConfigFile>> {
    for name in ["quantize_config.json", "quant_config.json"] {
        let path = config.path().with_file_name(name);
        if path.exists() {
            return ConfigFile::read(&path).map(Some);
        }
    }
    Ok(None)
}

/// Refuses layouts of AWQ other than AutoAWQ's GEMM version. "exllama" and "ipex" are programs that read that one.
fn check_awq(config: &ConfigFile, format_field: &str, format: Option<&str>) -> Result<()> {
    let version = config.text("version")?.map(str::to_lowercase);
    if !matches!(version.as_deref(), None | Some("gemm" | "exllama" | "ipex")) {
        return Err(config.unsupported("version", "\"gemm\""));
    }
    if !matches!(format, None | Some("gemm")) {
        return Err(config.unsupported(format_field, "\"gemm\""));
    }
    // Its checkpoints interleave otherwise.
    if config.text("backend")?.is_some_and(|backend| backend.eq_ignore_ascii_case("llm-awq")) {
        return Err(config.unsupported("backend", "\"autoawq\""));
    }
    Ok(())
}

/// GPTQModel's `dynamic`: patterns of layer names. Those with "-:" name layers that are not quantised; all others give layers bits or
/// groups of their own.
fn refuse_overrides(config: &ConfigFile) -> Result<()> {
    let overrides = config.object("dynamic")?;
    match overrides.as_ref().and_then(|overrides| overrides.fields().find(|pattern| !pattern.starts_with("-:"))) {
        Some(_) => {
            Err(config.unsupported("dynamic", "patterns that begin with \"-:\", of layers that are not quantised"))
        }
        None => Ok(()),
    }
}

fn state(method: Option<QuantMethod>) -> String {
    method.map_or("not quantised".to_owned(), |method| format!("quantised with {}", method.name()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;

    /// A directory with these files, removed when dropped.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str, files: &[(&str, Value)]) -> Files {
            let dir = std::env::temp_dir().join(format!("tgi-quantized-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            for (file, contents) in files {
                std::fs::write(dir.join(file), contents.to_string()).unwrap();
            }
            Files(dir)
        }

        fn read(&self, options: &ModelOptions) -> Result<Option<QuantizedCheckpoint>, String> {
            let config = ConfigFile::read(&self.0.join("config.json")).unwrap();
            QuantizedCheckpoint::of(&config, options)
                .map_err(|error| error.to_string().replace(self.0.to_str().unwrap(), "DIR"))
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn read(name: &str, quantization_config: Value) -> Result<Option<QuantizedCheckpoint>, String> {
        Files::new(name, &[("config.json", json!({ "quantization_config": quantization_config }))])
            .read(&ModelOptions::default())
    }

    fn some(layout: PackedLayout, bits: usize, group_size: Option<usize>) -> Option<QuantizedCheckpoint> {
        Some(QuantizedCheckpoint::Integers(PackedIntegers { layout, bits, group_size }))
    }

    fn fp8(method: QuantMethod, block: Option<[usize; 2]>) -> Option<QuantizedCheckpoint> {
        Some(QuantizedCheckpoint::Fp8(Fp8Checkpoint { method, block }))
    }

    /// compressed-tensors' description of a group of layers with such weights.
    fn compressed(weights: Value) -> Value {
        let group = json!({"weights": weights, "targets": ["Linear"], "input_activations": {"num_bits": 8}});
        json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}})
    }

    #[test]
    fn the_spellings_of_all_libraries_are_read() {
        let table = [
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": true,
                       "modules_to_not_convert": null}),
                some(PackedLayout::AwqGemm, 4, Some(128)),
            ),
            (json!({"quant_method": "awq"}), some(PackedLayout::AwqGemm, 4, Some(128))),
            (
                json!({"quant_method": "awq", "group_size": 64, "version": "exllama"}),
                some(PackedLayout::AwqGemm, 4, Some(64)),
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true}),
                some(PackedLayout::Gptq, 4, Some(128)),
            ),
            (
                json!({"quant_method": "gptq", "bits": 3, "group_size": -1, "checkpoint_format": "gptq"}),
                some(PackedLayout::Gptq, 3, None),
            ),
            (
                json!({"method": "gptq", "bits": 8, "group_size": 32, "format": "gptq_v2", "pack_dtype": "int32",
                       "dynamic": {"-:.*\\.down_proj": {}}}),
                some(PackedLayout::GptqV2, 8, Some(32)),
            ),
            (json!({"quant_method": "fp8", "activation_scheme": "static"}), fp8(QuantMethod::Fp8, None)),
            (
                json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 64]}),
                fp8(QuantMethod::Fp8, Some([128, 64])),
            ),
            (json!({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}), fp8(QuantMethod::Fp8, None)),
            (json!({"quant_method": "modelopt", "quant_algo": "FP8"}), fp8(QuantMethod::Fp8, None)),
            (
                compressed(json!({"type": "float", "num_bits": 8, "symmetric": true, "strategy": "channel"})),
                fp8(QuantMethod::CompressedTensors, None),
            ),
            (
                compressed(json!({"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]})),
                fp8(QuantMethod::CompressedTensors, Some([128, 128])),
            ),
        ];
        for (index, (config, expected)) in table.into_iter().enumerate() {
            assert_eq!(read(&format!("spelling-{index}"), config.clone()), Ok(expected), "{config}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let table = [
            (
                json!({"quant_method": "exl2"}),
                "`quantization_config.quant_method` is \"exl2\"; supported: \"awq\", \"gptq\", \"fp8\", ",
            ),
            (json!({"quant_method": "fp8", "fmt": "e5m2"}), "fmt` is \"e5m2\"; supported: \"e4m3\""),
            (
                json!({"quant_method": "fp8", "weight_block_size": [128]}),
                "weight_block_size` is [128], expected two numbers",
            ),
            (
                json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
                "quant_algo` is \"NVFP4\"; supported: \"FP8\"",
            ),
            (
                json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
                "format` is \"pack-quantized\"; supported: \"float-quantized\"",
            ),
            (compressed(json!({"type": "int", "num_bits": 8})), "weights.type` is \"int\"; supported: \"float\""),
            (compressed(json!({"type": "float", "num_bits": 4})), "weights.num_bits` is 4; supported: 8"),
            (
                compressed(json!({"type": "float", "num_bits": 8, "strategy": "group"})),
                "config_groups.group_0.weights.strategy` is \"group\"; supported: \"tensor\", \"channel\", \"block\"",
            ),
            (
                compressed(json!({"type": "float", "num_bits": 8, "strategy": "block"})),
                "weights.block_structure` is missing, expected two numbers",
            ),
            (json!({"quant_method": "awq", "version": "GEMV"}), "version` is \"GEMV\"; supported: \"gemm\""),
            (json!({"quant_method": "awq", "backend": "llm-awq"}), "backend` is \"llm-awq\"; supported: \"autoawq\""),
            (json!({"quant_method": "awq", "bits": 3}), "bits` is 3; supported: 4"),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}),
                "checkpoint_format` is \"marlin\"; supported: \"gptq\", \"gptq_v2\"",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "is_marlin_format": true}),
                "is_marlin_format` is true; supported: false",
            ),
            (json!({"quant_method": "gptq", "bits": 5, "group_size": 128}), "bits` is 5; supported: 2, 3, 4, 8"),
            (json!({"quant_method": "gptq", "group_size": 128}), "bits` is missing, expected 2, 3, 4 or 8"),
            (json!({"quant_method": "gptq", "bits": 4}), "group_size` is missing, expected a number of inputs"),
            (json!({"quant_method": "gptq", "bits": 4, "group_size": 0}), "group_size` is 0, expected a whole number"),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {".*\\.1\\..*": {"bits": 8}}}),
                "supported: patterns that begin with \"-:\"",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "pack_dtype": "int16"}),
                "supported: \"int32\"",
            ),
        ];
        for (index, (config, expected)) in table.into_iter().enumerate() {
            let error = read(&format!("unsupported-{index}"), config.clone()).unwrap_err();
            assert!(error.contains(expected) && error.starts_with("DIR/config.json: "), "{config}: {error}");
        }
    }

    #[test]
    fn older_files_are_read_beside_a_silent_config() {
        let options = ModelOptions::default();
        let gptq = json!({"bits": 4, "group_size": 128, "damp_percent": 0.1, "desc_act": false});
        let files = Files::new("older-gptq", &[("config.json", json!({})), ("quantize_config.json", gptq)]);
        assert_eq!(files.read(&options), Ok(some(PackedLayout::Gptq, 4, Some(128))));
        let awq = json!({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"});
        let files = Files::new("older-awq", &[("config.json", json!({})), ("quant_config.json", awq)]);
        assert_eq!(files.read(&options), Ok(some(PackedLayout::AwqGemm, 4, Some(64))));
        let bad = json!({"bits": 7, "group_size": 128});
        let files = Files::new("older-bad", &[("config.json", json!({})), ("quantize_config.json", bad)]);
        assert_eq!(files.read(&options).unwrap_err(), "DIR/quantize_config.json: `bits` is 7; supported: 2, 3, 4, 8");
        assert_eq!(Files::new("plain", &[("config.json", json!({}))]).read(&options), Ok(None));
    }

    #[test]
    fn the_flag_must_be_what_the_checkpoint_is() {
        let quantized = json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}});
        let quantized = Files::new("flag-gptq", &[("config.json", quantized)]);
        let plain = Files::new("flag-plain", &[("config.json", json!({}))]);
        let method = |method| ModelOptions { quant_method: Some(method), ..ModelOptions::default() };
        let mode = ModelOptions { quantization: Some(Quantization::Int8), ..ModelOptions::default() };
        let eight = Files::new("flag-fp8", &[("config.json", json!({"quantization_config": {"quant_method": "fp8"}}))]);
        let fp8_mode = ModelOptions { quantization: Some(Quantization::Fp8), ..ModelOptions::default() };
        for options in [&fp8_mode, &method(QuantMethod::Fp8), &ModelOptions::default()] {
            assert_eq!(eight.read(options), Ok(fp8(QuantMethod::Fp8, None)));
        }
        assert!(eight.read(&mode).unwrap_err().contains("it is quantised with fp8"));
        assert!(quantized.read(&fp8_mode).unwrap_err().contains("it is quantised with gptq"));
        let older = json!({"compression_config": compressed(json!({"type": "float", "num_bits": 8}))});
        let older = Files::new("flag-compressed", &[("config.json", older)]);
        for options in [&fp8_mode, &method(QuantMethod::CompressedTensors)] {
            assert_eq!(older.read(options), Ok(fp8(QuantMethod::CompressedTensors, None)));
        }
        assert_eq!(quantized.read(&method(QuantMethod::Gptq)), Ok(some(PackedLayout::Gptq, 4, Some(128))));
        assert_eq!(plain.read(&mode), Ok(None));
        assert_eq!(
            quantized.read(&method(QuantMethod::Awq)).unwrap_err(),
            "`--quantize awq` takes a checkpoint that is quantised with awq; according to DIR/config.json it is quantised \
             with gptq"
        );
        assert_eq!(
            plain.read(&method(QuantMethod::Gptq)).unwrap_err(),
            "`--quantize gptq` takes a checkpoint that is quantised with gptq; according to DIR/config.json it is not \
             quantised"
        );
        assert_eq!(
            quantized.read(&mode).unwrap_err(),
            "`--quantize eetq` takes a checkpoint that is not quantised; according to DIR/config.json it is quantised with gptq"
        );
    }
}
