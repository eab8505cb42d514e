//! The decoder-only transformer, written once: what a family states in its specification is assembled here.
//!
//! ```text
//! x = embed(ids)
//! for each layer:   x += o(attention(rope(qkv(norm(x)))))
//!                   x += down(f(gate(norm(x))) · up(norm(x)))      or, without a gate, down(f(up(norm(x)))), or a sum over experts
//! logits = head(norm(x))
//! ```
//!
//! Some families also normalise what a block adds, or let scores and logits level off. The residual stream `x` is kept unnormalised in
//! `residual`; each addition to it is fused with the norm that follows.

use std::path::Path;
use std::sync::Arc;

use kernels::ops::{self, RopeTable, Scoring, SequenceRows};
use kernels::{AlwaysThere, Arena, DType, Device, KvCache, KvDType, StepLimits, Tensor};
use proto::{MAX_BAD_WORDS, MAX_LOGIT_BIASES};

use super::step::{StepInput, StepPlan, StepRows};
use crate::comm::Comm;
use crate::config::{DecoderSpec, RopeSpec};
use crate::error::Result;
use crate::layers::{
    ColumnParallelLinear, ExpertNames, Experts, LmHead, Loader, Norm, Partition, Projection, RmsNorm,
    RowParallelLinear, VocabParallelEmbedding,
};
use crate::limits::{MAX_TOP_N_TOKENS, MAX_TOP_TIES};
use crate::weights::{Checkpoint, PackedWeights, ReadAhead};

/// This rank's part of a decoder.
pub(super) struct Decoder {
    pub(super) spec: DecoderSpec,
    pub(super) weights_bytes: u64,
    device: Device,
    shape: RankShape,
    rope: RopeTable,
    /// That of layers with a window, if it is another.
    window_rope: Option<RopeTable>,
    embed_tokens: VocabParallelEmbedding,
    layers: Vec<Layer>,
    norm: Norm,
    lm_head: LmHead,
}

/// What this rank's activations and cache measure.
#[derive(Clone, Copy)]
struct RankShape {
    /// The type of activations; logits are f32.
    activations: DType,
    kv_dtype: KvDType,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
}

struct Layer {
    input_norm: Norm,
    attention: Attention,
    norm_after_attention: Option<RmsNorm>,
    mlp_norm: Norm,
    mlp: MlpOrExperts,
    norm_after_mlp: Option<RmsNorm>,
}

struct Attention {
    qkv_proj: ColumnParallelLinear,
    qk_norm: Option<[RmsNorm; 2]>,
    o_proj: RowParallelLinear,
    scoring: Scoring,
}

enum MlpOrExperts {
    Mlp(Mlp),
    Experts(Experts),
}

struct Mlp {
    /// Of an MLP without a gate only the second half.
    gate_up_proj: ColumnParallelLinear,
    down_proj: RowParallelLinear,
}

/// How a checkpoint calls its tensors, without ".weight" and ".bias". `{}` stands for the layer's number.
pub(super) struct TensorNames {
    pub(super) embed_tokens: &'static str,
    pub(super) input_norm: &'static str,
    pub(super) q_proj: &'static str,
    pub(super) k_proj: &'static str,
    pub(super) v_proj: &'static str,
    pub(super) q_norm: &'static str,
    pub(super) k_norm: &'static str,
    pub(super) o_proj: &'static str,
    /// Of what attention adds, if it is normalised.
    pub(super) norm_after_attention: Option<&'static str>,
    pub(super) mlp_norm: &'static str,
    /// Of what the MLP adds, if it is normalised.
    pub(super) norm_after_mlp: Option<&'static str>,
    /// `None`: the MLP has no gate.
    pub(super) gate_proj: Option<&'static str>,
    pub(super) up_proj: &'static str,
    pub(super) down_proj: &'static str,
    pub(super) experts: Option<ExpertTemplates>,
    pub(super) norm: &'static str,
    pub(super) lm_head: &'static str,
}

/// The same of the experts of a layer; a second `{}` stands for the expert's number.
pub(super) struct ExpertTemplates {
    pub(super) gate: &'static str,
    pub(super) gate_proj: &'static str,
    pub(super) up_proj: &'static str,
    pub(super) down_proj: &'static str,
}

// --- The forward pass ------------------------------------------------------------------------------------------------

impl Decoder {
    /// See [`Model::forward`](super::Model::forward). T rows, of which S are sampled; E = hidden_size, V = vocab_size.
    pub(super) fn forward(&self, arena: &mut Arena, kv: &mut KvCache, step: &StepInput<'_>) -> Result<Tensor> {
        let (rows, sampled) = (step.input_ids.host().len(), step.sample_rows.host().len());
        let (width, dtype) = (self.spec.hidden_size, self.shape.activations);
        let mut logits = arena.tensor(&[sampled, self.spec.vocab_size], DType::F32)?; // [S, V]

        let mark = arena.mark();
        let mut residual = arena.tensor(&[rows, width], dtype)?; // [T, E], the residual stream
        let mut x = arena.tensor(&[rows, width], dtype)?; // [T, E], normalised
        let mut branch = arena.tensor(&[rows, width], dtype)?; // [T, E], this rank's part of what a block adds to the stream

        if let Some(continued) = &step.continued {
            ops::sample::continue_rows(residual.device(), continued)?;
        }
        self.embed_tokens.forward(&mut residual, step.input_ids)?;
        self.layers[0].input_norm.forward(&mut x, &residual)?;
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(&layer.attention, index, arena, &mut branch, &x, kv, step)?;
            let norm_after = layer.norm_after_attention.as_ref();
            layer.attention.o_proj.add_to(&mut residual, &mut branch, norm_after, &layer.mlp_norm, &mut x)?;
            let norm_after = layer.norm_after_mlp.as_ref();
            let next_norm = self.layers.get(index + 1).map_or(&self.norm, |next| &next.input_norm);
            match &layer.mlp {
                MlpOrExperts::Mlp(mlp) => {
                    self.mlp(mlp, arena, &mut branch, &x)?;
                    mlp.down_proj.add_to(&mut residual, &mut branch, norm_after, next_norm, &mut x)?;
                }
                MlpOrExperts::Experts(experts) => {
                    experts.forward_part(arena, &mut branch, &x)?;
                    experts.add_to(&mut residual, &mut branch, norm_after, next_norm, &mut x)?;
                }
            }
        }
        let mut last = arena.tensor(&[sampled, width], dtype)?; // [S, E]
        ops::gather_rows(&mut last, &x, step.sample_rows)?;
        self.lm_head.forward(arena, &mut logits, &last)?;
        if let Some(cap) = self.spec.logit_softcap {
            ops::soft_cap(&mut logits, cap)?;
        }
        arena.release(mark);
        Ok(logits)
    }

    /// `out = o_proj(attention(rope(qkv_proj(x))))`, H query and K key-value heads of width D on this rank.
    fn attention(
        &self,
        layer: &Attention,
        index: usize,
        arena: &mut Arena,
        out: &mut Tensor,
        x: &Tensor,
        kv: &mut KvCache,
        step: &StepInput<'_>,
    ) -> Result<()> {
        let RankShape { activations, num_heads, num_kv_heads, head_dim, .. } = self.shape;
        let mark = arena.mark();
        let mut qkv = arena.tensor(&[x.rows(), (num_heads + 2 * num_kv_heads) * head_dim], activations)?;
        let mut attended = arena.tensor(&[x.rows(), num_heads * head_dim], activations)?; // [T, H·D]

        layer.qkv_proj.forward(&mut qkv, x)?; // [T, (H + 2·K)·D]
        if let Some([q_norm, k_norm]) = &layer.qk_norm {
            q_norm.forward_heads(&mut qkv, 0..num_heads)?;
            k_norm.forward_heads(&mut qkv, num_heads..num_heads + num_kv_heads)?;
        }
        let rope = self.window_rope.as_ref().filter(|_| layer.scoring.window.is_some()).unwrap_or(&self.rope);
        ops::rope_and_store_kv(&mut qkv, num_heads, rope, step.positions, step.slot_mapping, kv, index)?;
        ops::attention(&mut attended, &qkv, kv, index, &step.attention, layer.scoring)?;
        layer.o_proj.forward_part(out, &attended)?; // [T, E], to be summed over ranks

        arena.release(mark);
        Ok(())
    }

    /// `out = down_proj(f(gate_proj(x)) · up_proj(x))`, with I of the intermediate width on this rank.
    fn mlp(&self, layer: &Mlp, arena: &mut Arena, out: &mut Tensor, x: &Tensor) -> Result<()> {
        let RankShape { activations, intermediate_size, .. } = self.shape;
        let mark = arena.mark();
        let mut gate_up = arena.tensor(&[x.rows(), layer.gate_up_proj.out_features()], activations)?; // [T, 2·I], or [T, I]
        let mut activated = arena.tensor(&[x.rows(), intermediate_size], activations)?; // [T, I]

        layer.gate_up_proj.forward(&mut gate_up, x)?;
        ops::activate(&mut activated, &gate_up, self.spec.activation)?;
        layer.down_proj.forward_part(out, &activated)?; // [T, E], to be summed over ranks

        arena.release(mark);
        Ok(())
    }

    // --- Memory ------------------------------------------------------------------------------------------------------

    /// See [`Model::arena_bytes`](super::Model::arena_bytes).
    pub(super) fn arena_bytes(&self, max_tokens: usize, max_sampled: usize) -> usize {
        assert!(max_tokens > 0, "a step has rows");
        let tokens = max_tokens as u32;
        // As many sequences of one token each: their positions exist in every model.
        let blocks: Vec<u32> = (0..tokens).collect();
        let sequence = |row: usize| SequenceRows {
            first_row: row,
            num_rows: 1,
            start_position: 0,
            block_table: &blocks[row..row + 1],
        };
        let step = StepRows {
            input_ids: &vec![0; max_tokens],
            continued: &[],
            positions: &vec![0; max_tokens],
            slot_mapping: &blocks.iter().map(|block| block * kernels::BLOCK_SIZE as u32).collect::<Vec<_>>(),
            sequences: &(0..max_tokens).map(sequence).collect::<Vec<_>>(),
            sample_rows: &vec![0; max_sampled],
        };
        let plan = self.plan(&step, max_tokens).expect("a plan has memory, and this step is well-formed");
        plan.arena_bytes
    }

    /// See [`Model::plan`](super::Model::plan).
    pub(super) fn plan(&self, step: &StepRows<'_>, num_blocks: usize) -> Result<StepPlan> {
        let mut arena = Arena::plan();
        let mut kv = self.kv_cache_on(&Device::plan(), num_blocks)?;
        self.forward(&mut arena, &mut kv, &StepInput::of_host(step))?;
        let ledger = arena.device().ledger().expect("the arena's device is a plan");
        Ok(StepPlan { arena_bytes: arena.high_water_bytes(), cost: ledger.total() })
    }

    /// See [`Model::step_limits`](super::Model::step_limits).
    pub(super) fn step_limits(
        &self,
        max_rows: usize,
        max_slots: usize,
        max_logit_rows: usize,
        max_context: usize,
    ) -> StepLimits {
        let RankShape { num_heads, num_kv_heads, head_dim, .. } = self.shape;
        let DecoderSpec { vocab_size, ref eos_token_ids, .. } = self.spec;
        StepLimits {
            max_rows,
            // A sequence has a row at least.
            max_sequences: max_slots.min(max_rows),
            max_slots,
            max_logit_rows,
            vocab_size,
            max_tops: MAX_TOP_N_TOKENS as usize + MAX_TOP_TIES,
            max_list_words: 2 * MAX_LOGIT_BIASES + MAX_BAD_WORDS + eos_token_ids.len(),
            max_context,
            num_heads,
            num_kv_heads,
            head_dim,
        }
    }

    /// See [`Model::new_kv_cache`](super::Model::new_kv_cache).
    pub(super) fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache> {
        self.kv_cache_on(&self.device, num_blocks)
    }

    fn kv_cache_on(&self, device: &Device, num_blocks: usize) -> Result<KvCache> {
        let RankShape { kv_dtype, num_kv_heads, head_dim, .. } = self.shape;
        Ok(KvCache::new(device, self.layers.len(), num_blocks, num_kv_heads, head_dim, kv_dtype)?)
    }

    /// See [`Model::kv_bytes_per_block`](super::Model::kv_bytes_per_block).
    pub(super) fn kv_bytes_per_block(&self) -> usize {
        let RankShape { kv_dtype, num_kv_heads, head_dim, .. } = self.shape;
        KvCache::bytes_per_block(self.layers.len(), num_kv_heads, head_dim, kv_dtype)
    }

    // --- Loading -----------------------------------------------------------------------------------------------------

    /// Reads this rank's slices of the weights in `dir`.
    pub(super) fn load(
        dir: &Path,
        device: &Device,
        comm: Arc<dyn Comm>,
        mut spec: DecoderSpec,
        names: &TensorNames,
        packed_weights_cache: Option<&Path>,
    ) -> Result<Decoder> {
        let partition = Partition::new(&spec, comm.rank(), comm.world_size())?;
        let checkpoint = Checkpoint::open(dir)?;
        let vocab = [spec.vocab_size, spec.hidden_size];
        let dtype = match spec.dtype {
            Some(dtype) => dtype,
            None => checkpoint.matrix(&format!("{}.weight", names.embed_tokens), vocab[0], vocab[1])?.dtype(),
        };
        // Kernels of a GPU compute with 16 bits, of which bfloat16 has the range of float32.
        let is_rounded = matches!(device, Device::Cuda(_)) && dtype == DType::F32;
        let dtype = if is_rounded { DType::Bf16 } else { dtype };
        spec.dtype = Some(dtype);

        // Once without reading anything: what is missing or misshapen is found now rather than after minutes of packing, and the
        // disk can be told what comes next.
        let plan = Device::plan();
        let planner = Loader::new(&checkpoint, &plan, partition, dtype, spec.quantization, &AlwaysThere)
            .with_quantized_checkpoint(spec.quantized_checkpoint);
        Parts::load(&planner, &comm, &spec, names)?;
        let pages = ReadAhead::new(&checkpoint, planner.into_sources());
        let layout = spec.quantization.map_or(dtype.to_string(), |mode| format!("{dtype}-{}", mode.name()));
        let cache = match (packed_weights_cache, spec.quantized_checkpoint) {
            (Some(folder), None) => checkpoint.packed_cache(folder, &comm, layout),
            (Some(_), Some(_)) => {
                tracing::warn!(
                    "packed weights are not kept: the checkpoint is quantised, and packed as fast as they would be read"
                );
                None
            }
            (None, _) => None,
        };
        let packed = PackedWeights::of(cache.as_ref());
        let is_packed = matches!(packed, PackedWeights::Read(_));
        let loader = Loader::new(&checkpoint, device, partition, dtype, spec.quantization, &pages)
            .with_quantized_checkpoint(spec.quantized_checkpoint)
            .with_packed_weights(packed);
        let load = || Parts::load(&loader, &comm, &spec, names);
        let Parts { embed_tokens, layers, norm, lm_head } = if is_packed { load()? } else { pages.during(load)? };
        loader.finish_packed_weights();
        if let Some(layers) = loader.dequantized_layers().filter(|_| comm.rank() == 0) {
            tracing::warn!("{layers}");
        }

        let rope = rope_table(device, &spec, &spec.rope)?;
        let window_rope = spec.window_rope.as_ref().map(|rope| rope_table(device, &spec, rope)).transpose()?;
        let rope_bytes = rope.bytes() + window_rope.as_ref().map_or(0, RopeTable::bytes);
        Ok(Decoder {
            device: device.clone(),
            shape: RankShape {
                activations: device.activation_dtype(dtype),
                kv_dtype: spec.kv_dtype.unwrap_or_else(|| dtype.into()),
                num_heads: partition.even(spec.num_heads).len(),
                num_kv_heads: partition.kv_heads(spec.num_kv_heads).len(),
                head_dim: spec.head_dim,
                intermediate_size: partition.even(spec.intermediate_size).len(),
            },
            embed_tokens,
            layers,
            norm,
            lm_head,
            weights_bytes: loader.loaded_bytes() + rope_bytes as u64,
            rope,
            window_rope,
            spec,
        })
    }
}

fn rope_table(device: &Device, spec: &DecoderSpec, rope: &RopeSpec) -> Result<RopeTable> {
    let (dim, positions, factor) = (spec.head_dim, spec.max_position_embeddings, rope.attention_factor());
    Ok(match rope.depends_on_position() {
        true => RopeTable::per_position(device, dim, positions, |p| rope.frequencies(dim, p), factor)?,
        false => RopeTable::new(device, dim, positions, &rope.frequencies(dim, 0), factor)?,
    })
}

/// What comes from the checkpoint.
struct Parts {
    embed_tokens: VocabParallelEmbedding,
    layers: Vec<Layer>,
    norm: Norm,
    lm_head: LmHead,
}

impl Parts {
    /// In the order in which most checkpoints store them.
    fn load(loader: &Loader<'_>, comm: &Arc<dyn Comm>, spec: &DecoderSpec, names: &TensorNames) -> Result<Parts> {
        let vocab = [spec.vocab_size, spec.hidden_size];
        // As transformers: the factor has the type of the embeddings.
        let scale = match spec.scales_embeddings {
            true => loader.dtype.rounded((spec.hidden_size as f64).sqrt() as f32),
            false => 1.0,
        };
        let (lm_head, embed_tokens);
        if spec.tie_word_embeddings {
            lm_head = LmHead::load(loader, comm, names.embed_tokens, vocab)?;
            embed_tokens = VocabParallelEmbedding::tied(loader, comm, names.embed_tokens, vocab, &lm_head, scale)?;
        } else {
            lm_head = LmHead::load(loader, comm, names.lm_head, vocab)?;
            embed_tokens = VocabParallelEmbedding::load(loader, comm, names.embed_tokens, vocab, scale)?;
        }
        let layer = |index| Layer::load(loader, comm, spec, names, index);
        Ok(Parts {
            embed_tokens,
            lm_head,
            layers: (0..spec.num_layers).map(layer).collect::<Result<_>>()?,
            norm: Norm::load(loader, names.norm, spec.hidden_size, spec.norm)?,
        })
    }
}

impl Layer {
    fn load(
        loader: &Loader<'_>,
        comm: &Arc<dyn Comm>,
        spec: &DecoderSpec,
        names: &TensorNames,
        index: usize,
    ) -> Result<Layer> {
        let name = |template: &str| template.replacen("{}", &index.to_string(), 1);
        let norm = |template: &str| Norm::load(loader, &name(template), spec.hidden_size, spec.norm);
        let norm_after = |template: Option<&str>| {
            template.map(|of| RmsNorm::load(loader, &name(of), spec.hidden_size, spec.norm)).transpose()
        };
        let head_norm = |template: &str| RmsNorm::load(loader, &name(template), spec.head_dim, spec.norm);
        let (hidden, intermediate) = (spec.hidden_size, spec.intermediate_size);

        // A head is `head_dim` neighbouring outputs; a rank's heads are neighbours.
        let dim = spec.head_dim;
        let features = |heads: std::ops::Range<usize>| heads.start * dim..heads.end * dim;
        let q = features(loader.partition.even(spec.num_heads));
        let kv = features(loader.partition.kv_heads(spec.num_kv_heads));
        let mlp = loader.partition.even(intermediate);
        let projection =
            |name, out_features, mine: &std::ops::Range<usize>| Projection { name, out_features, mine: mine.clone() };
        let (q_name, k_name, v_name) = (name(names.q_proj), name(names.k_proj), name(names.v_proj));
        let (gate_name, up_name) = (names.gate_proj.map(name), name(names.up_proj));

        let (q_features, kv_features) = (spec.num_heads * dim, spec.num_kv_heads * dim);
        let qkv_proj = [
            projection(&q_name, q_features, &q),
            projection(&k_name, kv_features, &kv),
            projection(&v_name, kv_features, &kv),
        ];
        let gate_up_proj: Vec<Projection<'_>> =
            gate_name.iter().chain([&up_name]).map(|name| projection(name, intermediate, &mlp)).collect();
        Ok(Layer {
            input_norm: norm(names.input_norm)?,
            attention: Attention {
                qkv_proj: ColumnParallelLinear::load(loader, hidden, spec.qkv_bias, &qkv_proj)?,
                qk_norm: match spec.qk_norm {
                    true => Some([head_norm(names.q_norm)?, head_norm(names.k_norm)?]),
                    false => None,
                },
                o_proj: RowParallelLinear::load(
                    loader,
                    comm,
                    &name(names.o_proj),
                    [hidden, q_features],
                    q,
                    spec.o_bias,
                )?,
                scoring: Scoring {
                    scale: spec.attention_scale,
                    softcap: spec.attention_softcap,
                    window: spec.windows[index].map(|window| window as u32),
                },
            },
            norm_after_attention: norm_after(names.norm_after_attention)?,
            mlp_norm: norm(names.mlp_norm)?,
            mlp: match &spec.experts {
                Some(experts) if experts.layers[index] => {
                    let names = names.experts.as_ref().expect("a family that has experts names them");
                    let names = ExpertNames {
                        gate: name(names.gate),
                        gate_proj: name(names.gate_proj),
                        up_proj: name(names.up_proj),
                        down_proj: name(names.down_proj),
                    };
                    MlpOrExperts::Experts(Experts::load(loader, comm, &names, hidden, experts, spec.activation)?)
                }
                _ => MlpOrExperts::Mlp(Mlp {
                    gate_up_proj: ColumnParallelLinear::load(loader, hidden, spec.mlp_bias, &gate_up_proj)?,
                    down_proj: RowParallelLinear::load(
                        loader,
                        comm,
                        &name(names.down_proj),
                        [hidden, intermediate],
                        mlp,
                        spec.mlp_bias,
                    )?,
                }),
            },
            norm_after_mlp: norm_after(names.norm_after_mlp)?,
        })
    }
}
