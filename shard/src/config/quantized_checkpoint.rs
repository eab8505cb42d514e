//! Checkpoints that were quantised beforehand: what config.json, or the older file beside it, says about their layout.
//!
//! Sources: transformers `GPTQConfig` and `AwqConfig`; AutoGPTQ and GPTQModel `quantize_config.json`; AutoAWQ `quant_config.json`.
//! Which layers are quantised is not read from there (`modules_to_not_convert`, `dynamic`, `lm_head`): the tensors say it.

use super::{ConfigFile, ModelOptions};
use crate::error::{Error, Result};
use crate::limits::MAX_DIMENSION;

/// Who quantised a checkpoint, by the names of TGI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantMethod {
    /// `awq`: activation-aware weight quantisation (arXiv:2306.00978).
    Awq,
    /// `gptq` (arXiv:2210.17323).
    Gptq,
}

impl QuantMethod {
    /// TGI's name of it.
    pub fn name(self) -> &'static str {
        match self {
            QuantMethod::Awq => "awq",
            QuantMethod::Gptq => "gptq",
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
pub struct QuantizedCheckpoint {
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
        if config.get("compression_config").is_some() {
            return Err(config.unsupported("compression_config", SUPPORTED));
        }
        let description = match config.object("quantization_config")? {
            Some(description) => Some(description),
            None => older_file(config)?,
        };
        let checkpoint = description.as_ref().map(QuantizedCheckpoint::read).transpose()?;

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
        match self.layout {
            PackedLayout::AwqGemm => QuantMethod::Awq,
            PackedLayout::Gptq | PackedLayout::GptqV2 => QuantMethod::Gptq,
        }
    }

    fn read(config: &ConfigFile) -> Result<QuantizedCheckpoint> {
        let field = |names: [&'static str; 2]| names.into_iter().find(|name| config.get(name).is_some());
        let method_field = field(["quant_method", "method"]).unwrap_or("quant_method");
        let method = config.text(method_field)?.map(str::to_lowercase);
        let format_field = field(["checkpoint_format", "format"]).unwrap_or("checkpoint_format");
        let format = config.text(format_field)?.map(str::to_lowercase);
        // The older files need not say; that of AutoAWQ has a version of the layout and AutoGPTQ's has none.
        let method = match method.as_deref() {
            Some("awq") => QuantMethod::Awq,
            Some("gptq") => QuantMethod::Gptq,
            Some(_) => return Err(config.unsupported(method_field, SUPPORTED)),
            None if config.get("version").is_some() => QuantMethod::Awq,
            None => QuantMethod::Gptq,
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
        let (layout, bits, default_group) = match method {
            QuantMethod::Awq => {
                check_awq(config, format_field, format.as_deref())?;
                if bits.is_some_and(|bits| bits != 4) {
                    return Err(config.unsupported(bits_field, "4"));
                }
                // Defaults of transformers' AwqConfig.
                (PackedLayout::AwqGemm, 4, Some(128))
            }
            QuantMethod::Gptq => {
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
        Ok(QuantizedCheckpoint { layout, bits, group_size })
    }
}

const SUPPORTED: &str = "\"awq\", \"gptq\", and float32, float16 and bfloat16 checkpoints that are not quantised";

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
    use crate::config::Quantization;

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
        Some(QuantizedCheckpoint { layout, bits, group_size })
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
        ];
        for (index, (config, expected)) in table.into_iter().enumerate() {
            assert_eq!(read(&format!("spelling-{index}"), config.clone()), Ok(expected), "{config}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let table = [
            (json!({"quant_method": "fp8"}), "quant_method` is \"fp8\"; supported: \"awq\", \"gptq\", and float32"),
            (
                json!({"quant_method": "compressed-tensors"}),
                "`quantization_config.quant_method` is \"compressed-tensors\"",
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
