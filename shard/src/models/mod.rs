//! Models: the registry of families, and what the engine sees of a loaded one.
//!
//! A family that fits the decoder of `decoder.rs` is one file of facts and one line in [`FAMILIES`].

mod decode_graphs;
mod decoder;
mod gemma;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod mixtral;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod starcoder2;
mod step;

use std::path::Path;
use std::sync::Arc;

use kernels::{Arena, Device, KvCache, StepLimits, Tensor};

pub use crate::config::{DecoderSpec, ModelOptions, QuantMethod, Quantization, RopeKind, RopeOverride};
pub use decode_graphs::{DecodeGraphs, GraphStep};
pub use step::{SequenceRows, StepInput, StepPlan, StepRows};

use crate::comm::Comm;
use crate::config::ConfigFile;
use crate::error::Result;
use decoder::{Decoder, TensorNames};

/// Every family, by name.
const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    starcoder2::FAMILY,
];

/// What makes a family.
struct Family {
    /// `model_type` of config.json.
    model_type: &'static str,
    /// The class with a language-model head, as in `architectures`.
    architecture: &'static str,
    /// Reads what differs from [`DecoderSpec::from_config`].
    spec: fn(&ConfigFile, &ModelOptions) -> Result<DecoderSpec>,
    /// How the checkpoint calls its tensors.
    names: &'static TensorNames,
}

/// A model, or this rank's part of it, ready to run.
pub struct Model {
    decoder: Decoder,
}

impl Model {
    /// Loads the model in `dir` (config.json, generation_config.json, *.safetensors). Of the weights, only this rank's
    /// slices are read. `spec().dtype` is `Some` afterwards.
    ///
    /// # Errors
    /// Whatever is wrong with the files; [`Error::Indivisible`](crate::Error::Indivisible) if `comm` has a number of ranks
    /// into which the model cannot be cut.
    pub fn load(dir: &Path, device: &Device, comm: Arc<dyn Comm>, options: &ModelOptions) -> Result<Model> {
        let config = ConfigFile::read(&dir.join("config.json"))?;
        let family = Family::of(&config)?;
        let spec = (family.spec)(&config, options)?;
        Ok(Model {
            decoder: Decoder::load(dir, device, comm, spec, family.names, options.packed_weights_cache.as_deref())?,
        })
    }

    /// What kind of model it is. Sizes are those of the whole model.
    pub fn spec(&self) -> &DecoderSpec {
        &self.decoder.spec
    }

    /// The memory that this rank's weights take, in bytes.
    pub fn weights_bytes(&self) -> u64 {
        self.decoder.weights_bytes
    }

    /// The memory that a KV block of this rank takes over all layers, in bytes.
    pub fn kv_bytes_per_block(&self) -> usize {
        self.decoder.kv_bytes_per_block()
    }

    /// What the lists of steps with up to so many rows, slots, rows with logits and positions have to hold.
    pub fn step_limits(
        &self,
        max_rows: usize,
        max_slots: usize,
        max_logit_rows: usize,
        max_context: usize,
    ) -> StepLimits {
        self.decoder.step_limits(max_rows, max_slots, max_logit_rows, max_context)
    }

    /// An empty KV cache for this rank's heads.
    ///
    /// # Errors
    /// [`kernels::Error::OutOfMemory`].
    pub fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache> {
        self.decoder.new_kv_cache(num_blocks)
    }

    /// The bytes that [`Model::forward`] takes of its arena for a step of up to `max_tokens` rows in `max_rows` sequences,
    /// of which `max_sampled` are sampled: found by running it on the plan device.
    pub fn arena_bytes(&self, max_tokens: usize, max_rows: usize, max_sampled: usize) -> usize {
        // Attention works in memory of its threads, so the number of sequences takes no part of the arena.
        let _ = max_rows;
        self.decoder.arena_bytes(max_tokens, max_sampled)
    }

    /// What a step with these rows and a cache of `num_blocks` blocks takes, without computing it.
    ///
    /// # Errors
    /// As [`forward`](Model::forward).
    pub fn plan(&self, step: &StepRows<'_>, num_blocks: usize) -> Result<StepPlan> {
        self.decoder.plan(step, num_blocks)
    }

    /// Computes the rows of `step`, writes their keys and values to `kv`, and gives the logits of the sampled rows: f32
    /// `[sample_rows, vocab_size]`, equal on every rank, on top of `arena`'s stack (release a mark taken before).
    ///
    /// A row's logits depend, bit for bit, only on the tokens of its sequence up to its position.
    ///
    /// # Errors
    /// A position, slot or block out of range; a full arena; a failed collective, after which the group cannot go on.
    pub fn forward(&self, arena: &mut Arena, kv: &mut KvCache, step: &StepInput<'_>) -> Result<Tensor> {
        self.decoder.forward(arena, kv, step)
    }
}

impl Family {
    /// The family that config.json names.
    fn of(config: &ConfigFile) -> Result<&'static Family> {
        let supported =
            || FAMILIES.iter().map(|family| format!("\"{}\"", family.model_type)).collect::<Vec<_>>().join(", ");
        let model_type = config.text("model_type")?.ok_or_else(|| config.wrong("model_type", &supported()))?;
        let family = FAMILIES.iter().find(|family| family.model_type == model_type);
        let family = family.ok_or_else(|| config.unsupported("model_type", &supported()))?;
        // A classifier or encoder of the same family has no head to generate with.
        let architectures = config.texts("architectures")?.unwrap_or_default();
        if !architectures.is_empty() && !architectures.iter().any(|name| name == family.architecture) {
            return Err(config.unsupported("architectures", &format!("[\"{}\"]", family.architecture)));
        }
        Ok(family)
    }
}
