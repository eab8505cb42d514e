//! Random layers as AWQ, GPTQ and makers of FP8 checkpoints would leave them, packed as the libraries' own loops do it, and models made of them: one in a quantised
//! layout, one of the floats that the integers stand for.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test binary uses another part of it")]

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use kernels::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    Awq,
    Gptq,
    GptqV2,
}

/// How a checkpoint is quantised.
#[derive(Clone, Copy, Debug)]
pub struct Quantizer {
    pub layout: Layout,
    pub bits: usize,
    pub group_size: Option<usize>,
    /// Inputs belong to groups in no order.
    pub act_order: bool,
    /// The type of the scales.
    pub scales: DType,
}

impl Quantizer {
    pub const AWQ: Quantizer =
        Quantizer { layout: Layout::Awq, bits: 4, group_size: Some(128), act_order: false, scales: DType::F16 };
    pub const GPTQ: Quantizer = Quantizer { layout: Layout::Gptq, ..Quantizer::AWQ };

    /// `quantization_config` of config.json.
    pub fn config(&self) -> Value {
        let group_size = self.group_size.map_or(-1, |size| size as i64);
        match self.layout {
            Layout::Awq => json!({"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": true,
                                  "version": "gemm"}),
            Layout::Gptq => json!({"quant_method": "gptq", "bits": self.bits, "group_size": group_size,
                                   "desc_act": self.act_order, "sym": false}),
            Layout::GptqV2 => json!({"quant_method": "gptq", "bits": self.bits, "group_size": group_size,
                                     "desc_act": self.act_order, "sym": false, "checkpoint_format": "gptq_v2"}),
        }
    }
}

/// What quantises the layers of a model.
pub trait LayerQuantizer {
    /// `quantization_config` of config.json.
    fn config(&self) -> Value;
    /// A random layer `name` of so many outputs and inputs: its tensors, and the weights that these stand for.
    fn layer(&self, random: &mut Random, name: &str, shape: [usize; 2]) -> (Vec<Tensor>, Vec<f32>);
}

impl LayerQuantizer for Quantizer {
    fn config(&self) -> Value {
        Quantizer::config(self)
    }

    fn layer(&self, random: &mut Random, name: &str, shape: [usize; 2]) -> (Vec<Tensor>, Vec<f32>) {
        let layer = QuantizedLayer::random(random, shape, self);
        (layer.tensors(name, self), layer.weights())
    }
}

/// How the scales of an FP8 checkpoint are divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fp8Scales {
    /// One for a matrix, as AutoFP8 writes it.
    Matrix,
    /// One for an output, as compressed-tensors does.
    Outputs,
    /// One for so many outputs and inputs, as DeepSeek does.
    Blocks([usize; 2]),
}

impl LayerQuantizer for Fp8Scales {
    fn config(&self) -> Value {
        match self {
            Fp8Scales::Matrix => json!({"quant_method": "fp8", "activation_scheme": "static"}),
            Fp8Scales::Outputs => json!({"quant_method": "compressed-tensors", "format": "float-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights":
                    {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true}}}}),
            Fp8Scales::Blocks(block) => json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": block}),
        }
    }

    /// Numbers below 2, of which one in eight is subnormal. Scales of three bits: weights of float16 and bfloat16 are exact.
    fn layer(&self, random: &mut Random, name: &str, [outputs, inputs]: [usize; 2]) -> (Vec<Tensor>, Vec<f32>) {
        let name = |suffix: &str| format!("{name}.{suffix}");
        let codes: Vec<u8> =
            (0..outputs * inputs).map(|_| (random.below(96 - 32) + random.below(2) * 128) as u8).collect();
        let (suffix, shape, [rows, cols]) = match *self {
            Fp8Scales::Matrix => ("weight_scale", vec![], [outputs, inputs]),
            Fp8Scales::Outputs => ("weight_scale", vec![outputs, 1], [1, inputs]),
            Fp8Scales::Blocks([rows, cols]) => {
                ("weight_scale_inv", vec![outputs.div_ceil(rows), inputs.div_ceil(cols)], [rows, cols])
            }
        };
        let scale = 1.0 / (inputs as f32).sqrt();
        let scale = f32::from_bits(scale.to_bits() & !0x7f_ffff);
        let scales: Vec<f32> =
            (0..shape.iter().product()).map(|_| scale * (4 + random.below(4)) as f32 / 4.0).collect();
        let weight = |at: usize| {
            let block = at / inputs / rows * inputs.div_ceil(cols) + at % inputs / cols;
            e4m3(codes[at]) * scales[block]
        };
        let weights = (0..codes.len()).map(weight).collect();
        let codes = Tensor { name: name("weight"), dtype: Dtype::F8_E4M3, shape: vec![outputs, inputs], data: codes };
        // Nobody reads that of inputs.
        let inputs_scale = Tensor::float(name("input_scale"), DType::F32, &[], &[f32::NAN]);
        (vec![codes, Tensor::float(name(suffix), DType::F32, &shape, &scales), inputs_scale], weights)
    }
}

/// What an E4M3 code is, by its definition; of a NaN something else.
pub fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// A tensor of a checkpoint.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn int32(name: String, shape: &[usize], words: &[u32]) -> Tensor {
        let data = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Tensor { name, dtype: Dtype::I32, shape: shape.to_vec(), data }
    }

    pub fn float(name: String, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
        let (dtype, data) = match dtype {
            DType::F32 => (Dtype::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::F16 => (Dtype::F16, values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
            DType::Bf16 => (Dtype::BF16, values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()),
        };
        Tensor { name, dtype, shape: shape.to_vec(), data }
    }
}

/// Writes model.safetensors.
pub fn write(dir: &Path, tensors: &[Tensor]) {
    std::fs::create_dir_all(dir).unwrap();
    let view = |tensor| {
        let Tensor { name, dtype, shape, data }: &Tensor = tensor;
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    };
    let views: Vec<(&str, TensorView<'_>)> = tensors.iter().map(view).collect();
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Reproducible numbers.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    /// From -1 to 1.
    pub fn signed(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }
}

/// A linear layer: weight[o][i] = scales[g][o] * (codes[i][o] - zeros[g][o]), g = groups[i].
#[derive(Clone)]
pub struct QuantizedLayer {
    pub shape: [usize; 2],
    pub codes: Vec<Vec<u32>>,
    pub zeros: Vec<Vec<u32>>,
    pub scales: Vec<Vec<f32>>,
    pub groups: Vec<usize>,
}

impl QuantizedLayer {
    pub fn random(random: &mut Random, [outputs, inputs]: [usize; 2], quantizer: &Quantizer) -> QuantizedLayer {
        let group_size = quantizer.group_size.unwrap_or(inputs);
        let (num_groups, levels) = (inputs.div_ceil(group_size), 1 << quantizer.bits);
        let mut groups: Vec<usize> = (0..inputs).map(|input| input / group_size).collect();
        if quantizer.act_order {
            (1..inputs).rev().for_each(|at| groups.swap(at, random.below(at + 1)));
        }
        // The first version stores zero points less one, in as many bits.
        let first_zero = usize::from(quantizer.layout == Layout::Gptq);
        // Outputs as large as inputs: codes and zero points differ by two fifths of the levels on average (root mean square).
        let scale = 1.0 / (0.4 * levels as f32 * (inputs as f32).sqrt());
        let mut list = |rows: usize, value: &mut dyn FnMut(&mut Random) -> f32| -> Vec<Vec<f32>> {
            (0..rows).map(|_| (0..outputs).map(|_| value(random)).collect()).collect()
        };
        let codes = list(inputs, &mut |random| random.below(levels) as f32);
        let zeros = list(num_groups, &mut |random| (first_zero + random.below(levels)) as f32);
        let scales = list(num_groups, &mut |random| {
            let value = scale * (1.0 + random.signed() / 2.0);
            match quantizer.scales {
                DType::F32 => value,
                DType::F16 => f16::from_f32(value).to_f32(),
                DType::Bf16 => bf16::from_f32(value).to_f32(),
            }
        });
        let whole = |rows: Vec<Vec<f32>>| rows.iter().map(|row| row.iter().map(|x| *x as u32).collect()).collect();
        QuantizedLayer { shape: [outputs, inputs], codes: whole(codes), zeros: whole(zeros), scales, groups }
    }

    /// The weights, `[outputs][inputs]`.
    pub fn weights(&self) -> Vec<f32> {
        let [outputs, inputs] = self.shape;
        let weight = |output: usize, input: usize| {
            let group = self.groups[input];
            self.scales[group][output] * (self.codes[input][output] as f32 - self.zeros[group][output] as f32)
        };
        (0..outputs).flat_map(|output| (0..inputs).map(move |input| weight(output, input))).collect()
    }

    /// The tensors of layer `name`.
    pub fn tensors(&self, name: &str, quantizer: &Quantizer) -> Vec<Tensor> {
        let ([outputs, inputs], groups) = (self.shape, self.scales.len());
        let name = |suffix: &str| format!("{name}.{suffix}");
        let scales = Tensor::float(name("scales"), quantizer.scales, &[groups, outputs], &self.scales.concat());
        if quantizer.layout == Layout::Awq {
            let words = |rows: &[Vec<u32>]| rows.iter().flat_map(|row| awq_words(row)).collect::<Vec<_>>();
            return vec![
                Tensor::int32(name("qweight"), &[inputs, outputs / 8], &words(&self.codes)),
                Tensor::int32(name("qzeros"), &[groups, outputs / 8], &words(&self.zeros)),
                scales,
            ];
        }
        let bits = quantizer.bits;
        let columns: Vec<Vec<u32>> = (0..outputs)
            .map(|output| gptq_words(&self.codes.iter().map(|row| row[output]).collect::<Vec<_>>(), bits))
            .collect();
        let rows = inputs / 32 * bits;
        let codes: Vec<u32> = (0..rows).flat_map(|row| columns.iter().map(move |column| column[row])).collect();
        let less = u32::from(quantizer.layout == Layout::Gptq);
        let zeros: Vec<u32> = self
            .zeros
            .iter()
            .flat_map(|row| gptq_words(&row.iter().map(|zero| zero - less).collect::<Vec<_>>(), bits))
            .collect();
        let groups_of_inputs: Vec<u32> = self.groups.iter().map(|group| *group as u32).collect();
        vec![
            Tensor::int32(name("qweight"), &[rows, outputs], &codes),
            Tensor::int32(name("qzeros"), &[groups, outputs / 32 * bits], &zeros),
            scales,
            Tensor::int32(name("g_idx"), &[inputs], &groups_of_inputs),
        ]
    }
}

/// AutoAWQ's loop over a row.
pub fn awq_words(row: &[u32]) -> Vec<u32> {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    row.chunks_exact(8).map(|eight| (0..8).fold(0, |word, at| word | eight[ORDER[at]] << (4 * at))).collect()
}

/// AutoGPTQ's loops over a column of codes or a row of zero points: with 3 bits, 32 of them go in three words, two of them across words.
pub fn gptq_words(values: &[u32], bits: usize) -> Vec<u32> {
    if bits != 3 {
        return values
            .chunks_exact(32 / bits)
            .map(|values| values.iter().enumerate().fold(0, |word, (at, value)| word | value << (bits * at)))
            .collect();
    }
    let mut words = Vec::new();
    for v in values.chunks_exact(32) {
        let ten = |first: usize, shift: usize| (0..10).fold(0, |word, at| word | v[first + at] << (3 * at + shift));
        words.push(ten(0, 0) | v[10] << 30);
        words.push(v[10] >> 2 & 1 | ten(11, 1) | v[21] << 31);
        words.push(v[21] >> 1 & 3 | ten(22, 2));
    }
    words
}

pub const VOCAB_SIZE: usize = 96;
const HIDDEN: usize = 128;
const INTERMEDIATE: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;

/// Experts of a layer that has some, and those that a row goes to.
const EXPERTS: usize = 3;
const EXPERTS_PER_ROW: usize = 2;

/// A llama of two layers, or a mixtral, quantised and as floats, in folders of their own.
pub struct Models {
    pub quantized: PathBuf,
    pub floats: PathBuf,
}

impl Models {
    /// All linear layers but those whose names end with one of `unquantized`; the output head if `head`.
    pub fn new(dir: &Path, quantizer: &dyn LayerQuantizer, unquantized: &[&str], head: bool) -> Models {
        Models::write(dir, quantizer, unquantized, head, false)
    }

    /// With experts, whose router is not quantised.
    pub fn with_experts(dir: &Path, quantizer: &dyn LayerQuantizer, unquantized: &[&str]) -> Models {
        Models::write(dir, quantizer, &[unquantized, &["gate"]].concat(), false, true)
    }

    fn write(
        dir: &Path,
        quantizer: &dyn LayerQuantizer,
        unquantized: &[&str],
        head: bool,
        has_experts: bool,
    ) -> Models {
        let models = Models { quantized: dir.join("quantized"), floats: dir.join("floats") };
        let mut random = Random(7);
        let (mut quantized, mut floats) = (Vec::new(), Vec::new());
        let mut linear = |name: String, shape: [usize; 2], is_quantized: bool| {
            let (tensors, weights) = quantizer.layer(&mut random, &name, shape);
            let float = Tensor::float(format!("{name}.weight"), DType::F32, &shape, &weights);
            floats.push(float.clone());
            match is_quantized {
                true => quantized.extend(tensors),
                false => quantized.push(float),
            }
        };
        linear("lm_head".to_owned(), [VOCAB_SIZE, HIDDEN], head);
        for layer in 0..2 {
            let attention = [
                ("self_attn.q_proj", [HEADS * DIM, HIDDEN]),
                ("self_attn.k_proj", [KV_HEADS * DIM, HIDDEN]),
                ("self_attn.v_proj", [KV_HEADS * DIM, HIDDEN]),
                ("self_attn.o_proj", [HIDDEN, HEADS * DIM]),
            ];
            let (up, down) = ([INTERMEDIATE, HIDDEN], [HIDDEN, INTERMEDIATE]);
            let mut layers: Vec<(String, [usize; 2])> = attention.map(|(name, shape)| (name.to_owned(), shape)).into();
            if has_experts {
                layers.push(("block_sparse_moe.gate".to_owned(), [EXPERTS, HIDDEN]));
                for (expert, (name, shape)) in
                    (0..EXPERTS).flat_map(|expert| [("w1", up), ("w2", down), ("w3", up)].map(|layer| (expert, layer)))
                {
                    layers.push((format!("block_sparse_moe.experts.{expert}.{name}"), shape));
                }
            } else {
                let mlp = [("mlp.gate_proj", up), ("mlp.up_proj", up), ("mlp.down_proj", down)];
                layers.extend(mlp.map(|(name, shape)| (name.to_owned(), shape)));
            }
            for (name, shape) in layers {
                let is_quantized = !unquantized.iter().any(|suffix| name.ends_with(suffix));
                linear(format!("model.layers.{layer}.{name}"), shape, is_quantized);
            }
        }
        let mut add = |name: &str, shape: &[usize], middle: f32| {
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| middle + random.signed() * (1.0 - middle / 2.0)).collect();
            let tensor = Tensor::float(name.to_owned(), DType::F32, shape, &values);
            quantized.push(tensor.clone());
            floats.push(tensor);
        };
        add("model.embed_tokens.weight", &[VOCAB_SIZE, HIDDEN], 0.0);
        add("model.norm.weight", &[HIDDEN], 1.0);
        for layer in 0..2 {
            add(&format!("model.layers.{layer}.input_layernorm.weight"), &[HIDDEN], 1.0);
            add(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &[HIDDEN], 1.0);
        }
        write(&models.quantized, &quantized);
        write(&models.floats, &floats);

        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE, "num_hidden_layers": 2, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": DIM, "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": false, "eos_token_id": 1,
        });
        let mut config = config;
        if has_experts {
            config["architectures"] = json!(["MixtralForCausalLM"]);
            config["model_type"] = "mixtral".into();
            config["num_local_experts"] = EXPERTS.into();
            config["num_experts_per_tok"] = EXPERTS_PER_ROW.into();
        }
        std::fs::write(models.floats.join("config.json"), config.to_string()).unwrap();
        config["quantization_config"] = quantizer.config();
        std::fs::write(models.quantized.join("config.json"), config.to_string()).unwrap();
        models
    }
}
