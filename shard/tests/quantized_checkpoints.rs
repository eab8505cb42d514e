//! Checkpoints of AWQ and GPTQ, and of FP8: their integers and numbers are read as the libraries wrote them, on every rank, and computed with as the floats that
//! they stand for.

#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod quantizer;
mod runner;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use kernels::{AlwaysThere, DType, Device, Int4Rows, Int4Source};
use quantizer::{Fp8Scales, LayerQuantizer, Layout, Models, QuantizedLayer, Quantizer, Random, Tensor};
use runner::{Runner, ScratchModel, bits, unique_name, with_ranks};
use serde_json::json;
use shard::comm::Single;
use shard::config::{Fp8Checkpoint, PackedIntegers, PackedLayout};
use shard::layers::{ColumnParallelLinear, Loader, Partition, Projection};
use shard::models::{Model, ModelOptions, QuantMethod, Quantization};
use shard::weights::{Checkpoint, Fp8Matrix, Obstacle, QuantizedMatrix};

fn folder() -> ScratchModel {
    ScratchModel(std::env::temp_dir().join(unique_name().trim_start_matches('/')))
}

fn described(quantizer: &Quantizer) -> PackedIntegers {
    let layout = match quantizer.layout {
        Layout::Awq => PackedLayout::AwqGemm,
        Layout::Gptq => PackedLayout::Gptq,
        Layout::GptqV2 => PackedLayout::GptqV2,
    };
    PackedIntegers { layout, bits: quantizer.bits, group_size: quantizer.group_size }
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

// --- Integers ----------------------------------------------------------------------------------------------------------

/// The weights of a layer of these words, all inputs one group with a scale of a half.
fn weights_of(
    layout: PackedLayout,
    bits: usize,
    [outputs, inputs]: [usize; 2],
    codes: (&[usize], &[u32]),
    zeros: (&[usize], &[u32]),
) -> Vec<f32> {
    let dir = folder();
    quantizer::write(
        &dir.0,
        &[
            Tensor::int32("layer.qweight".to_owned(), codes.0, codes.1),
            Tensor::int32("layer.qzeros".to_owned(), zeros.0, zeros.1),
            Tensor::float("layer.scales".to_owned(), DType::F16, &[1, outputs], &vec![0.5; outputs]),
        ],
    );
    let checkpoint = Checkpoint::open(&dir.0).unwrap();
    let quantized = PackedIntegers { layout, bits, group_size: None };
    let matrix = QuantizedMatrix::open(&checkpoint, &quantized, "layer", [outputs, inputs]).unwrap();
    values(&matrix.slice(0..outputs, 0..inputs).dequantize(&Device::cpu(1), DType::F32))
}

#[test]
fn words_mean_what_their_definitions_say() {
    // Output 0 in the lowest four bits, then 2, 4, 6, 1, 3, 5, 7.
    let awq =
        weights_of(PackedLayout::AwqGemm, 4, [8, 2], (&[2, 1], &[0x7531_6420, 0xFFFF_FFFF]), (&[1, 1], &[0x1111_1110]));
    let expected: Vec<f32> = (0..8)
        .flat_map(|output| {
            let zero = if output == 0 { 0.0 } else { 1.0 };
            [0.5 * (output as f32 - zero), 0.5 * (15.0 - zero)]
        })
        .collect();
    assert_eq!(awq, expected);

    // Input 0 in the lowest four bits. The last zero point is 15, of which the first version makes 16.
    let words = vec![0x7654_3210; 8];
    for (layout, more) in [(PackedLayout::Gptq, 1.0), (PackedLayout::GptqV2, 0.0)] {
        let gptq = weights_of(layout, 4, [8, 8], (&[1, 8], &words), (&[1, 1], &[0xF654_3210]));
        let weight = |output: usize, input: usize| {
            let zero = if output == 7 { 15.0 } else { output as f32 } + more;
            0.5 * (input as f32 - zero)
        };
        let expected: Vec<f32> = (0..64).map(|at| weight(at / 8, at % 8)).collect();
        assert_eq!(gptq, expected, "{layout:?}");
    }

    // 0, 1, .. 7, 0, .. with three bits each: the eleventh is cut after two bits, the twenty-second after one.
    let three = [0o1076543210 | 0b10 << 30, 0o4321076543 << 1 | 1 << 31, 0o7654321076 << 2 | 0b10];
    let words: Vec<u32> = three.iter().flat_map(|word| vec![*word; 32]).collect();
    let gptq = weights_of(PackedLayout::GptqV2, 3, [32, 32], (&[3, 32], &words), (&[1, 3], &[0; 3]));
    let expected: Vec<f32> = (0..32 * 32).map(|at| 0.5 * (at % 8) as f32).collect();
    assert_eq!(gptq, expected);
}

/// Writes a random layer, takes a slice of it, and expects the weights that the layer stands for; the integers too, if there is no obstacle.
#[track_caller]
fn check_slice(quantizer: &Quantizer, outputs: Range<usize>, inputs: Range<usize>, obstacle: Option<Obstacle>) {
    const SHAPE: [usize; 2] = [160, 256];
    let layer = QuantizedLayer::random(&mut Random(5), SHAPE, quantizer);
    let dir = folder();
    quantizer::write(&dir.0, &layer.tensors("layer", quantizer));
    let checkpoint = Checkpoint::open(&dir.0).unwrap();
    let slice = QuantizedMatrix::open(&checkpoint, &described(quantizer), "layer", SHAPE).unwrap();
    let slice = slice.slice(outputs.clone(), inputs.clone());
    let weights = layer.weights();
    let row = |output: usize| &weights[output * SHAPE[1]..][inputs.clone()];
    let expected: Vec<f32> = outputs.clone().flat_map(|output| row(output).to_vec()).collect();
    let context = format!("{quantizer:?}, outputs {outputs:?}, inputs {inputs:?}");
    assert!(values(&slice.dequantize(&Device::cpu(3), DType::F32)) == expected, "{context}");
    assert_eq!(slice.obstacle(), obstacle, "{context}");
    if obstacle.is_some() {
        return;
    }
    let cols = inputs.len();
    let mut rows = Int4Rows::default();
    // Some rows from the middle of a word on, then all of them, in the same lists.
    for part in [3..outputs.len() - 2, 0..outputs.len()] {
        slice.read(part.clone(), &mut rows);
        let blocks = part.len() * cols / 64;
        assert_eq!([rows.codes.len(), rows.scales.len(), rows.zeros.len()], [blocks * 32, blocks, blocks], "{context}");
        let weight = |at: usize| {
            let code = rows.codes[at / 2] >> (at % 2 * 4) & 15;
            rows.scales[at / 64].to_f32() * (f32::from(code) - f32::from(rows.zeros[at / 64]))
        };
        let actual: Vec<f32> = (0..part.len() * cols).map(weight).collect();
        assert!(actual == expected[part.start * cols..part.end * cols], "{context}, rows {part:?}");
    }
}

#[test]
fn every_layout_gives_back_its_weights() {
    for layout in [Layout::Awq, Layout::Gptq, Layout::GptqV2] {
        for (group_size, obstacle) in
            [(Some(64), None), (Some(128), None), (None, None), (Some(32), Some(Obstacle::GroupSize(32)))]
        {
            let quantizer = Quantizer { layout, group_size, ..Quantizer::AWQ };
            check_slice(&quantizer, 0..160, 0..256, obstacle);
            check_slice(&quantizer, 37..131, 0..256, obstacle);
            check_slice(&quantizer, 0..160, 64..192, obstacle);
            let cut = obstacle.or(Some(Obstacle::Cut));
            check_slice(&quantizer, 5..20, 32..96, cut);
        }
        check_slice(&Quantizer { layout, scales: DType::Bf16, ..Quantizer::AWQ }, 0..160, 128..256, None);
        let float32 = Quantizer { layout, scales: DType::F32, ..Quantizer::AWQ };
        check_slice(&float32, 0..160, 0..256, Some(Obstacle::Scales));
    }
    for layout in [Layout::Gptq, Layout::GptqV2] {
        let act_order = Quantizer { layout, act_order: true, ..Quantizer::AWQ };
        check_slice(&act_order, 8..31, 64..256, Some(Obstacle::ActivationOrder));
        for bits in [2, 3, 8] {
            let quantizer = Quantizer { bits, ..act_order };
            check_slice(&quantizer, 0..160, 0..256, Some(Obstacle::Bits(bits)));
            check_slice(&quantizer, 11..99, 3..70, Some(Obstacle::Bits(bits)));
        }
    }
}

// --- Tensors that are wrong ---------------------------------------------------------------------------------------------

/// Changes the tensors of a layer of 64 outputs and 128 inputs, and expects this error.
#[track_caller]
fn check_error(quantizer: &Quantizer, change: impl Fn(&mut Vec<Tensor>), expected: &str) {
    let dir = folder();
    let mut tensors = QuantizedLayer::random(&mut Random(3), [64, 128], quantizer).tensors("layer", quantizer);
    change(&mut tensors);
    quantizer::write(&dir.0, &tensors);
    let checkpoint = Checkpoint::open(&dir.0).unwrap();
    let error = QuantizedMatrix::open(&checkpoint, &described(quantizer), "layer", [64, 128]).err().unwrap();
    assert_eq!(error.to_string().replace(dir.0.to_str().unwrap(), "DIR"), expected);
}

#[test]
fn tensors_that_are_not_as_the_configuration_says_are_named() {
    let of = |suffix: &str| format!("layer.{suffix}");
    let replace = |with: Tensor| {
        move |tensors: &mut Vec<Tensor>| {
            tensors.retain(|tensor| tensor.name != with.name);
            tensors.push(with.clone());
        }
    };
    let file = "DIR/model.safetensors: tensor";
    check_error(
        &Quantizer::AWQ,
        replace(Tensor::int32(of("qweight"), &[16, 64], &[0; 1024])),
        &format!("{file} `layer.qweight` has shape [16, 64], config.json implies [128, 8]"),
    );
    check_error(
        &Quantizer::GPTQ,
        replace(Tensor::int32(of("qweight"), &[128, 8], &[0; 1024])),
        &format!("{file} `layer.qweight` has shape [128, 8], config.json implies [16, 64]"),
    );
    check_error(
        &Quantizer::GPTQ,
        replace(Tensor::int32(of("qzeros"), &[2, 8], &[0; 16])),
        &format!("{file} `layer.qzeros` has shape [2, 8], config.json implies [1, 8]"),
    );
    check_error(
        &Quantizer::AWQ,
        replace(Tensor::float(of("qweight"), DType::F32, &[128, 8], &[0.0; 1024])),
        &format!("{file} `layer.qweight` has dtype F32; supported: I32"),
    );
    check_error(
        &Quantizer::AWQ,
        replace(Tensor::int32(of("scales"), &[1, 64], &[0; 64])),
        &format!("{file} `layer.scales` has dtype I32; supported: F32, F16, BF16"),
    );
    check_error(
        &Quantizer::GPTQ,
        replace(Tensor::int32(of("g_idx"), &[128], &[[0; 127].as_slice(), &[u32::MAX]].concat())),
        &format!("{file} `layer.g_idx`: input 127 is of group -1, of 1"),
    );
    check_error(
        &Quantizer::AWQ,
        |tensors| tensors.retain(|tensor| !tensor.name.ends_with("qzeros")),
        "weight `layer.qzeros` does not exist in DIR",
    );
}

// --- FP8 numbers --------------------------------------------------------------------------------------------------------

const BLOCKS: Fp8Scales = Fp8Scales::Blocks([32, 48]);

#[test]
fn fp8_numbers_give_back_their_weights() {
    const SHAPE: [usize; 2] = [80, 112];
    for quantizer in [Fp8Scales::Matrix, Fp8Scales::Outputs, BLOCKS] {
        let dir = folder();
        let (tensors, weights) = quantizer.layer(&mut Random(3), "layer", SHAPE);
        quantizer::write(&dir.0, &tensors);
        let checkpoint = Checkpoint::open(&dir.0).unwrap();
        let block = if let Fp8Scales::Blocks(block) = quantizer { Some(block) } else { None };
        let described = Fp8Checkpoint { method: QuantMethod::Fp8, block };
        assert!(Fp8Matrix::is_in(&checkpoint, "layer") && !Fp8Matrix::is_in(&checkpoint, "other"));
        for (outputs, inputs) in [(0..80, 0..112), (13..77, 0..112), (0..80, 41..107)] {
            let matrix = Fp8Matrix::open(&checkpoint, &described, "layer", SHAPE).unwrap();
            let slice = matrix.slice(outputs.clone(), inputs.clone());
            let expected: Vec<f32> =
                outputs.clone().flat_map(|output| weights[output * SHAPE[1]..][inputs.clone()].to_vec()).collect();
            let context = format!("{quantizer:?}, outputs {outputs:?}, inputs {inputs:?}");
            assert!(values(&slice.dequantize(&Device::cpu(3), DType::F32)) == expected, "{context}");
            assert_eq!(slice.obstacle(), block.map(|_| Obstacle::Blocks), "{context}");
            let Some(view) = slice.view() else { continue };
            let actual: Vec<f32> = (0..outputs.len())
                .flat_map(|row| {
                    let codes = &view.codes[row * view.row_stride + view.first_col..][..view.cols];
                    codes.iter().map(move |code| quantizer::e4m3(*code) * view.scales[row])
                })
                .collect();
            assert!(actual == expected, "{context}");
        }
    }
}

#[test]
fn scales_of_another_shape_are_refused() {
    let (tensors, _) = BLOCKS.layer(&mut Random(3), "layer", [80, 112]);
    let error = |tensors: &[Tensor], block| {
        let dir = folder();
        quantizer::write(&dir.0, tensors);
        let checkpoint = Checkpoint::open(&dir.0).unwrap();
        let described = Fp8Checkpoint { method: QuantMethod::Fp8, block };
        Fp8Matrix::open(&checkpoint, &described, "layer", [80, 112]).err().unwrap().to_string()
    };
    let wrong = error(&tensors, Some([128, 128]));
    assert!(
        wrong.contains("`layer.weight_scale_inv`: shape [3, 3] is neither that of one scale, nor of one"),
        "{wrong}"
    );
    assert!(wrong.ends_with("for each of 80 outputs, nor of blocks of 128 outputs and 128 inputs"), "{wrong}");
    let wrong = error(&tensors, None);
    assert!(wrong.ends_with("nor of blocks, of which the configuration says nothing"), "{wrong}");
    let wrong = error(&tensors[..1], None);
    assert!(wrong.starts_with("weight `layer.weight_scale` does not exist in"), "{wrong}");
}

/// A processor multiplies such numbers, widened, with float32 inputs: but for the order of sums, which is that of groups, nothing differs from
/// a model of these floats. Where it has dot products of pairs, inputs are rounded to bfloat16.
fn fp8_tolerance() -> f64 {
    if Device::cpu(1).linear_input_dtype(DType::Bf16) == DType::Bf16 { 2e-2 } else { 1e-5 }
}

#[test]
fn a_model_of_fp8_numbers_is_near_that_of_their_floats() {
    for quantizer in [Fp8Scales::Matrix, Fp8Scales::Outputs] {
        let dir = folder();
        let models = Models::new(&dir.0, &quantizer, &["gate_proj"], true);
        let expected = logits(&models.floats, DType::F32, 1);
        for world_size in [1, 2] {
            let error = relative_error(&logits(&models.quantized, DType::F32, world_size), &expected);
            println!("{quantizer:?}, {world_size} ranks: relative error {error:.1e}");
            assert!(error < fp8_tolerance(), "{quantizer:?}, {world_size} ranks: {error}");
        }
        let bytes = |dir| Runner::load_with(dir, 1, Arc::new(Single), &ModelOptions::default()).model.weights_bytes();
        assert!(bytes(&models.quantized) < bytes(&models.floats));
    }
}

#[test]
fn blocks_of_fp8_numbers_become_floats() {
    let dir = folder();
    let models = Models::new(&dir.0, &BLOCKS, &[], false);
    for world_size in [1, 2] {
        for dtype in [DType::Bf16, DType::F16] {
            let [actual, expected] = [&models.quantized, &models.floats].map(|dir| logits(dir, dtype, world_size));
            assert!(bits(&actual) == bits(&expected), "{dtype}, {world_size} ranks");
        }
    }
}

#[test]
fn an_fp8_model_says_so() {
    let dir = folder();
    let outputs = Models::new(&dir.0.join("outputs"), &Fp8Scales::Outputs, &[], false);
    let matrix = Models::new(&dir.0.join("matrix"), &Fp8Scales::Matrix, &[], false);
    let fp8 = ModelOptions { quantization: Some(Quantization::Fp8), ..ModelOptions::default() };
    let awq = ModelOptions { quant_method: Some(QuantMethod::Awq), ..ModelOptions::default() };
    for (models, name) in [(&outputs, "compressed-tensors"), (&matrix, "fp8")] {
        let load = |options: &ModelOptions| Model::load(&models.quantized, &Device::cpu(1), Arc::new(Single), options);
        for options in [&ModelOptions::default(), &fp8] {
            let model = load(options).unwrap();
            assert_eq!((model.spec().quantize(), model.spec().quantization), (name, None));
        }
        let error = load(&awq).err().unwrap().to_string();
        assert!(error.ends_with(&format!("it is quantised with {name}")), "{error}");
    }
}

// --- Models -------------------------------------------------------------------------------------------------------------

const PROMPT: [u32; 9] = [3, 14, 15, 92, 65, 35, 89, 79, 32];

/// The logits of a prompt and four tokens after it, which are given so that nearly equal models see the same ones.
fn logits(dir: &Path, dtype: DType, world_size: usize) -> Vec<Vec<f32>> {
    let options = ModelOptions { dtype: Some(dtype), ..ModelOptions::default() };
    let rows = with_ranks(world_size, |comm| {
        let mut runner = Runner::load_with(dir, 2, comm, &options);
        let piece = |start: usize, ids| runner::Piece { sequence: 0, start, ids, logits: runner::Wanted::All };
        let mut rows = runner.step(&[piece(0, &PROMPT)]);
        for (at, id) in [5, 6, 7, 8].iter().enumerate() {
            rows.extend(runner.step(&[piece(PROMPT.len() + at, std::slice::from_ref(id))]));
        }
        rows
    });
    assert!(rows.iter().all(|rank| bits(rank) == bits(&rows[0])), "the ranks disagree");
    rows.into_iter().next().unwrap()
}

#[test]
fn what_becomes_floats_gives_the_bits_of_a_model_of_these_floats() {
    let awq = Quantizer { group_size: Some(32), ..Quantizer::AWQ };
    let gptq = Quantizer { group_size: Some(32), ..Quantizer::GPTQ };
    let table = [
        (awq, DType::F16),
        (awq, DType::Bf16),
        (gptq, DType::F16),
        (Quantizer { layout: Layout::GptqV2, ..gptq }, DType::F32),
        (Quantizer { act_order: true, group_size: Some(64), ..gptq }, DType::F16),
        (Quantizer { bits: 3, ..gptq }, DType::Bf16),
        (Quantizer { bits: 8, group_size: None, ..gptq }, DType::F16),
    ];
    for (quantizer, dtype) in table {
        let dir = folder();
        let models = Models::new(&dir.0, &quantizer, &[], false);
        for world_size in [1, 2] {
            let (actual, expected) =
                (logits(&models.quantized, dtype, world_size), logits(&models.floats, dtype, world_size));
            assert!(bits(&actual) == bits(&expected), "{quantizer:?} as {dtype}, {world_size} ranks");
        }
    }
}

/// ‖actual − expected‖ / ‖expected‖ over all rows.
fn relative_error(actual: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let pairs = || actual.iter().flatten().zip(expected.iter().flatten());
    let difference: f64 = pairs().map(|(a, e)| f64::from(a - e).powi(2)).sum();
    let whole: f64 = pairs().map(|(_, e)| f64::from(*e).powi(2)).sum();
    (difference / whole).sqrt()
}

/// The processor rounds inputs to a 127th of the largest of 64. That one is two and a half times their root mean square (five times, where a
/// few are much larger), so the rounding errors are 0.6 % to 1.2 % of it, and so are those of a product's outputs. The errors of a
/// path through two layers with four products each add up as squares: at most 3.4 %. A wrong zero point, scale or order of codes
/// leaves nothing of the logits.
#[test]
fn what_stays_integers_is_near_a_model_of_the_floats_they_stand_for() {
    for (layout, group_size) in [
        (Layout::Awq, Some(64)),
        (Layout::Awq, Some(128)),
        (Layout::Awq, None),
        (Layout::Gptq, Some(128)),
        (Layout::GptqV2, Some(64)),
    ] {
        let quantizer = Quantizer { layout, group_size, ..Quantizer::AWQ };
        let dir = folder();
        let models = Models::new(&dir.0, &quantizer, &[], false);
        let expected = logits(&models.floats, DType::F32, 1);
        for world_size in [1, 2] {
            let error = relative_error(&logits(&models.quantized, DType::F32, world_size), &expected);
            println!("{layout:?}, groups of {group_size:?}, {world_size} ranks: relative error {error:.1e}");
            assert!(error < 4e-2, "{layout:?}, groups of {group_size:?}, {world_size} ranks: {error}");
        }
    }
}

#[test]
fn experts_are_quantised_layers_too() {
    let dir = folder();
    let eight_bits = Quantizer { bits: 8, ..Quantizer::GPTQ };
    let models = Models::with_experts(&dir.0.join("floats"), &eight_bits, &[]);
    for world_size in [1, 2] {
        let [actual, expected] = [&models.quantized, &models.floats].map(|dir| logits(dir, DType::Bf16, world_size));
        assert!(bits(&actual) == bits(&expected), "{world_size} ranks");
    }
    let models = Models::with_experts(&dir.0.join("integers"), &Quantizer::AWQ, &[]);
    let expected = logits(&models.floats, DType::F32, 1);
    for world_size in [1, 2] {
        let error = relative_error(&logits(&models.quantized, DType::F32, world_size), &expected);
        println!("{world_size} ranks: relative error {error:.1e}");
        assert!((1e-4..4e-2).contains(&error), "{world_size} ranks: {error}");
    }
    let models = Models::with_experts(&dir.0.join("numbers"), &Fp8Scales::Outputs, &[]);
    let expected = logits(&models.floats, DType::F32, 1);
    for world_size in [1, 2] {
        let error = relative_error(&logits(&models.quantized, DType::F32, world_size), &expected);
        assert!(error < fp8_tolerance(), "fp8, {world_size} ranks: {error}");
    }
}

#[test]
fn what_stays_integers_takes_the_memory_of_integers() {
    let dir = folder();
    let models = Models::new(&dir.0, &Quantizer::AWQ, &[], false);
    let options = ModelOptions { dtype: Some(DType::F16), ..ModelOptions::default() };
    let bytes = |dir| Runner::load_with(dir, 1, Arc::new(Single), &options).model.weights_bytes() as f64;
    // Two layers of q, k, v; o; gate, up; down: 12 bits less of each weight but for scales and zero points, of 64 weights 6 bytes at most.
    let weights = f64::from(2 * (256 * 128 + 128 * 128 + 512 * 128 + 128 * 256));
    let saved = bytes(&models.floats) - bytes(&models.quantized);
    assert!(saved >= weights * (1.5 - 6.0 / 64.0) && saved <= weights * 1.5, "{saved} bytes of {weights} weights");
}

#[test]
fn layers_that_are_not_quantised_are_loaded_beside_those_that_are() {
    // The stacks of k and of up become floats as a whole, o and down are alone; so is the head.
    let act_order = Quantizer { act_order: true, group_size: Some(64), ..Quantizer::GPTQ };
    for (unquantized, head) in [(&["k_proj", "up_proj"][..], false), (&["down_proj", "o_proj"], true)] {
        let dir = folder();
        let models = Models::new(&dir.0, &act_order, unquantized, head);
        for world_size in [1, 2] {
            let [actual, expected] =
                [&models.quantized, &models.floats].map(|dir| logits(dir, DType::Bf16, world_size));
            assert!(bits(&actual) == bits(&expected), "{unquantized:?}, head {head}, {world_size} ranks");
        }
    }
    // All are floats for a reason of their own or of their neighbours.
    let dir = folder();
    let models = Models::new(&dir.0, &Quantizer::AWQ, &["q_proj", "gate_proj", "o_proj", "down_proj"], true);
    let [actual, expected] = [&models.quantized, &models.floats].map(|dir| logits(dir, DType::F16, 1));
    assert!(bits(&actual) == bits(&expected));
}

#[test]
fn a_quantised_model_says_so_and_has_16_bits_by_default() {
    let dir = folder();
    let models = Models::new(&dir.0, &Quantizer::GPTQ, &[], false);
    let load = |options: &ModelOptions| Model::load(&models.quantized, &Device::cpu(1), Arc::new(Single), options);
    let model = load(&ModelOptions::default()).unwrap();
    assert_eq!((model.spec().quantize(), model.spec().dtype), ("gptq", Some(DType::F16)));
    let asked = |method| ModelOptions { quant_method: Some(method), ..ModelOptions::default() };
    assert_eq!(load(&asked(QuantMethod::Gptq)).unwrap().spec().quantize(), "gptq");
    let error = load(&asked(QuantMethod::Awq)).err().unwrap().to_string();
    assert!(error.starts_with("`--quantize awq` takes a checkpoint that is quantised with awq; "), "{error}");
    assert_eq!(Runner::load(&models.floats, 1, Arc::new(Single)).model.spec().quantize(), "");

    // As older libraries wrote it.
    let config = ScratchModel(models.quantized.clone());
    config.configure(json!({"quantization_config": null, "torch_dtype": "bfloat16"}));
    let older = json!({"bits": 4, "group_size": 128, "desc_act": false});
    std::fs::write(config.path("quantize_config.json"), older.to_string()).unwrap();
    let model = load(&ModelOptions::default()).unwrap();
    assert_eq!((model.spec().quantize(), model.spec().dtype), ("gptq", Some(DType::Bf16)));
}

// --- What a loader knows ------------------------------------------------------------------------------------------------

/// Loads rank 0's half of a q and k of which only q is quantised, then of gate and up, and expects these words about it.
#[track_caller]
fn check_words(quantizer: &Quantizer, expected: &str) {
    let dir = folder();
    let models = Models::new(&dir.0, quantizer, &["k_proj"], false);
    let options = ModelOptions { dtype: Some(DType::Bf16), ..ModelOptions::default() };
    let model = Model::load(&models.quantized, &Device::cpu(1), Arc::new(Single), &options).unwrap();
    let checkpoint = Checkpoint::open(&models.quantized).unwrap();
    let partition = Partition::new(model.spec(), 0, 2).unwrap();
    for device in [Device::cpu(1), Device::plan()] {
        let loader = Loader::new(&checkpoint, &device, partition, DType::Bf16, None, &AlwaysThere)
            .with_quantized_checkpoint(model.spec().quantized_checkpoint);
        let load = |names: [(&str, usize); 2]| {
            let projections =
                names.map(|(name, out_features)| Projection { name, out_features, mine: 0..out_features / 2 });
            ColumnParallelLinear::load(&loader, 128, false, &projections).unwrap().out_features()
        };
        assert_eq!(load([("model.layers.0.self_attn.q_proj", 128), ("model.layers.0.self_attn.k_proj", 64)]), 96);
        assert_eq!(loader.loaded_bytes(), 96 * 128 * 2, "{}: both are bfloat16", device.describe());
        assert_eq!(load([("model.layers.0.mlp.gate_proj", 256), ("model.layers.0.mlp.up_proj", 256)]), 256);
        assert_eq!(loader.dequantized_layers().unwrap(), expected);
        // Codes, zero points and scales of all outputs of q, gate and up; the float32 rows of this rank's half of k.
        let groups = 128 / quantizer.group_size.unwrap();
        let quantized = |outputs: usize| outputs * 128 / 2 + groups * outputs / 2 + groups * outputs * 2;
        let bytes: usize = loader.into_sources().iter().map(|source| source.len()).sum();
        assert_eq!(bytes, quantized(128) + 32 * 128 * 4 + 2 * quantized(256));
    }
}

#[test]
fn layers_that_become_floats_are_counted_with_their_reasons() {
    check_words(
        &Quantizer { act_order: true, group_size: Some(64), ..Quantizer::GPTQ },
        "3 of 3 quantised linear layers become bfloat16 while loading, 16 bits a weight: 3 because of activation order \
         (desc_act)",
    );
    check_words(
        &Quantizer::AWQ,
        "1 of 3 quantised linear layers become bfloat16 while loading, 16 bits a weight: 1 because of another layer that is \
         computed together with it",
    );
}
