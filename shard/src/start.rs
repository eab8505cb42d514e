//! From the command line to an executor that has run its first step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::{Arena, BLOCK_SIZE, DType, Device, KvDType, StepLists};
use proto::pack_u32;
use proto::v1::{Chunk, InfoResponse, NewSlot, Plan};

use crate::args::{Args, DeviceKind, Dtype, KvCacheDtype, Quantize, RopeScaling};
use crate::capacity::{CapacityError, CapacityInput, UsableMemory, capacity};
use crate::comm::{Comm, Nccl, Shm, Single};
use crate::executor::{Executor, StepError};
use crate::limits::{
    CUDA_KV_MEMORY_FRACTION, CUDA_RESERVED_BYTES, CUDA_RESERVED_BYTES_PER_GRAPH, KV_MEMORY_FRACTION,
    MAX_CUDA_RESERVED_FRACTION, MAX_CUDA_STEP_TOKENS, MAX_TOP_N_TOKENS, MIN_LOGIT_ROWS, SHM_BUFFER_BYTES,
};
use crate::masks::NoMasks;
use crate::memory::available_bytes;
use crate::models::{Model, ModelOptions, QuantMethod, Quantization, RopeKind, RopeOverride};
use crate::slots::SlotLimits;

/// Why a shard cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The rank is none of the group's.
    #[error("--rank {rank} is not below --world-size {world_size}")]
    Rank {
        /// The rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// Ranks cannot find each other.
    #[error("--world-size {world_size} needs --comm-name, the same for all ranks")]
    NoCommName {
        /// Number of ranks.
        world_size: usize,
    },
    /// There is no such device, or it cannot be used.
    #[error(transparent)]
    Device(#[from] kernels::Error),
    /// The model cannot be loaded, or the ranks cannot reach each other.
    #[error(transparent)]
    Model(#[from] crate::Error),
    /// Memory or context do not suffice.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// The KV cache or the activations could not be allocated.
    #[error("cannot allocate {what}: {source}")]
    Allocation {
        /// What was to be allocated.
        what: &'static str,
        /// Why not.
        source: Box<crate::Error>,
    },
    /// The first step failed.
    #[error("the model does not run: {0}")]
    FirstStep(#[source] Box<StepError>),
    /// The first step has no result.
    #[error("the model does not compute a distribution: {reason}")]
    FirstRow {
        /// What the sampler said.
        reason: String,
    },
}

/// A rank that is ready to serve.
pub struct Started {
    /// The executor, without live rows.
    pub executor: Executor,
    /// The way to the other ranks.
    pub comm: Arc<dyn Comm>,
    /// What this rank tells a router.
    pub info: InfoResponse,
}

/// Joins the rank group, loads the model, allocates KV cache and activations, and runs a first step.
///
/// # Errors
/// [`StartError`]; its text is one line for the operator.
pub fn start(args: &Args) -> Result<Started, StartError> {
    let (rank, world_size) = (args.rank, args.world_size.get());
    if rank >= world_size {
        return Err(StartError::Rank { rank, world_size });
    }
    let device = open_device(args)?;
    let comm = open_comm(args, &device)?;
    start_on(args, device, comm)
}

/// The same for a rank that has joined its group already.
///
/// # Errors
/// [`StartError`].
pub fn start_with(args: &Args, comm: Arc<dyn Comm>) -> Result<Started, StartError> {
    start_on(args, open_device(args)?, comm)
}

fn start_on(args: &Args, device: Device, comm: Arc<dyn Comm>) -> Result<Started, StartError> {
    let began = Instant::now();
    let threads = args.compute_threads();
    let options = ModelOptions {
        dtype: args.dtype.map(dtype),
        kv_dtype: kv_dtype(args.kv_cache_dtype),
        quantization: args.quantize.and_then(quantization),
        quant_method: args.quantize.and_then(quant_method),
        rope_scaling: rope_override(args),
        // What is packed for a GPU is packed by it, faster than a disk reads.
        packed_weights_cache: args.packed_weights_cache.clone().filter(|_| args.device == DeviceKind::Cpu),
    };
    let model = Model::load(&args.model_dir, &device, comm.clone(), &options)?;

    let (max_slots, max_step_tokens) = (args.max_batch_size.get(), args.max_step_tokens.get());
    // A row is a token, and a sequence has at least one.
    let max_rows = max_slots.min(max_step_tokens);
    // Every slot may be sampled; and a prompt's log-probabilities need the logits of its rows.
    let max_logit_rows = max_slots.max(MIN_LOGIT_ROWS).min(max_step_tokens);
    let arena_bytes = model.arena_bytes(max_step_tokens, max_rows, max_logit_rows);
    let longest = args.max_total_tokens.unwrap_or(usize::MAX).min(model.spec().max_position_embeddings);
    let list_limits = model.step_limits(max_step_tokens, max_slots, max_logit_rows, longest);
    let capacity = capacity(&CapacityInput {
        block_size: BLOCK_SIZE,
        bytes_per_block: model.kv_bytes_per_block(),
        max_slots,
        max_position_embeddings: model.spec().max_position_embeddings,
        max_total_tokens: args.max_total_tokens,
        max_batch_total_tokens: args.max_batch_total_tokens,
        memory: usable_memory(&device, args, comm.world_size())?,
        arena_bytes: (arena_bytes + list_limits.bytes(&device)) as u64,
    })?;
    let allocation = |what| move |error| StartError::Allocation { what, source: Box::new(error) };
    let kv = model.new_kv_cache(capacity.num_blocks).map_err(allocation("the KV cache"))?;
    let arena = Arena::new(&device, arena_bytes).map_err(|error| allocation("the activations")(error.into()))?;

    let lists = StepLists::new(&device, list_limits).map_err(|error| allocation("the lists of steps")(error.into()))?;

    let spec = model.spec();
    let limits = SlotLimits {
        max_slots,
        num_blocks: capacity.num_blocks,
        block_size: BLOCK_SIZE,
        max_context: capacity.max_context,
        max_step_tokens,
        max_logit_rows,
        vocab_size: spec.vocab_size,
        device_samples: args.device == DeviceKind::Cuda,
    };
    let info = InfoResponse {
        protocol_version: proto::PROTOCOL_VERSION,
        rank: comm.rank() as u32,
        world_size: comm.world_size() as u32,
        device: device.describe(),
        dtype: dtype_name(spec.dtype.expect("a loaded model has a dtype")).to_owned(),
        model_type: spec.model_type.clone(),
        vocab_size: spec.vocab_size as u32,
        max_position_embeddings: spec.max_position_embeddings as u32,
        block_size: BLOCK_SIZE as u32,
        num_blocks: capacity.num_blocks as u32,
        max_slots: max_slots as u32,
        max_step_tokens: max_step_tokens as u32,
        eos_token_ids: spec.eos_token_ids.clone(),
        weights_bytes: model.weights_bytes(),
        kv_cache_bytes: kv.bytes() as u64,
        arena_bytes: arena_bytes as u64,
        max_top_n_tokens: MAX_TOP_N_TOKENS,
        max_logit_rows: max_logit_rows as u32,
        quantize: spec.quantize().to_owned(),
        kv_cache_dtype: kv.dtype().to_string(),
    };
    let quantize = if info.quantize.is_empty() { String::new() } else { format!(", {}", info.quantize) };
    tracing::info!(
        "{} on {}: {} MiB weights ({}{quantize}), {} MiB KV cache ({}, {} tokens), {} MiB activations, loaded in {} ms",
        info.model_type,
        info.device,
        info.weights_bytes >> 20,
        info.dtype,
        info.kv_cache_bytes >> 20,
        info.kv_cache_dtype,
        capacity.num_blocks * BLOCK_SIZE,
        info.arena_bytes >> 20,
        began.elapsed().as_millis(),
    );
    let mut executor = Executor::new(model, comm.clone(), &device, kv, arena, lists, limits, threads);
    warm_up(&mut executor)?;
    if args.device == DeviceKind::Cuda {
        executor.capture_graphs(&args.graph_rows())?;
        tracing::info!("decode steps of {:?} rows are graphs", executor.graph_rows());
    }
    Ok(Started { executor, comm, info })
}

/// The device that the command line names.
fn open_device(args: &Args) -> Result<Device, StartError> {
    if (args.device, args.dtype) == (DeviceKind::Cuda, Some(Dtype::Float32)) {
        let reason = "--dtype float32 is not computed on a GPU: bfloat16 and float16 are".to_owned();
        return Err(kernels::Error::Unsupported { reason }.into());
    }
    if args.device == DeviceKind::Cuda && args.max_step_tokens.get() > MAX_CUDA_STEP_TOKENS {
        let reason = format!("--max-step-tokens is at most {MAX_CUDA_STEP_TOKENS} on a GPU");
        return Err(kernels::Error::Unsupported { reason }.into());
    }
    let threads = args.compute_threads();
    Ok(match args.device {
        DeviceKind::Cpu => Device::cpu(threads),
        // As TGI: every rank sees all GPUs and takes the one of its number.
        DeviceKind::Cuda => {
            Device::cuda(args.rank, threads, &cuda_code::CODE, &|progress| tracing::info!("{progress}"))?
        }
    })
}

/// The memory that is left for the KV cache and the activations.
fn usable_memory(device: &Device, args: &Args, world_size: usize) -> Result<Option<UsableMemory>, StartError> {
    Ok(match device.memory()? {
        Some((free, total)) => {
            let beyond = total - (total as f64 * args.cuda_memory_fraction) as usize;
            let available_bytes = free.saturating_sub(beyond) as u64;
            let reserved = CUDA_RESERVED_BYTES + CUDA_RESERVED_BYTES_PER_GRAPH * args.graph_rows().len() as u64;
            let reserved_fraction = (reserved as f64 / available_bytes as f64).min(MAX_CUDA_RESERVED_FRACTION);
            let fraction = CUDA_KV_MEMORY_FRACTION.min(1.0 - reserved_fraction);
            Some(UsableMemory { available_bytes, fraction, ranks: 1 })
        }
        None => available_bytes().map(|available_bytes| UsableMemory {
            available_bytes,
            fraction: KV_MEMORY_FRACTION,
            ranks: world_size,
        }),
    })
}

/// Joins the group of ranks.
fn open_comm(args: &Args, device: &Device) -> Result<Arc<dyn Comm>, StartError> {
    let (rank, world_size) = (args.rank, args.world_size.get());
    if world_size == 1 {
        return Ok(Arc::new(Single));
    }
    let name = args.comm_name.as_deref().ok_or(StartError::NoCommName { world_size })?;
    let shared = Shm::open(name, rank, world_size, SHM_BUFFER_BYTES)?;
    Ok(match args.device {
        DeviceKind::Cpu => Arc::new(shared),
        DeviceKind::Cuda => Arc::new(Nccl::open(shared, device)?),
    })
}

/// Computes a prompt of a few tokens and continues it once: touches weights and buffers, lets ranks meet, and finds a
/// model that computes nonsense before a client does.
fn warm_up(executor: &mut Executor) -> Result<(), StartError> {
    let limits = executor.slots().limits();
    let tokens = limits.max_step_tokens.min(limits.max_context - 1).clamp(1, BLOCK_SIZE - 1) as u32;
    let prompt = Plan {
        seq: 1,
        new_slots: vec![NewSlot { block_table: pack_u32([0]), ..NewSlot::default() }],
        chunks: vec![Chunk { slot: 0, start_position: 0, ids: pack_u32((0..tokens).map(|_| 0)), sample: true }],
        ..Plan::default()
    };
    let next = Plan { seq: 2, continues: pack_u32([0]), ..Plan::default() };
    let plans = if limits.max_context > tokens as usize { &[prompt, next][..] } else { &[prompt][..] };
    for plan in plans {
        let result = executor
            .step(0, plan, Duration::ZERO, &mut NoMasks)
            .map_err(|error| StartError::FirstStep(Box::new(error)))?;
        if let Some(error) = result.row_errors.into_iter().next() {
            return Err(StartError::FirstRow { reason: error.reason });
        }
    }
    executor.clear();
    Ok(())
}

fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::Float32 => DType::F32,
        Dtype::Float16 => DType::F16,
        Dtype::Bfloat16 => DType::Bf16,
    }
}

fn kv_dtype(dtype: KvCacheDtype) -> Option<KvDType> {
    match dtype {
        KvCacheDtype::Auto => None,
        KvCacheDtype::Bf16 => Some(KvDType::Bf16),
        KvCacheDtype::F16 => Some(KvDType::F16),
        KvCacheDtype::F32 => Some(KvDType::F32),
        KvCacheDtype::Fp8E4m3fn => Some(KvDType::F8E4m3),
        KvCacheDtype::Fp8E5m2 => Some(KvDType::F8E5m2),
    }
}

/// As config.json and the command line spell it.
fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::Bf16 => "bfloat16",
    }
}

/// What is quantised while loading, where the checkpoint is not.
fn quantization(mode: Quantize) -> Option<Quantization> {
    match mode {
        Quantize::Eetq => Some(Quantization::Int8),
        Quantize::Fp8 => Some(Quantization::Fp8),
        Quantize::BitsandbytesNf4 => Some(Quantization::Nf4),
        Quantize::Awq | Quantize::Gptq | Quantize::CompressedTensors => None,
    }
}

/// What the checkpoint was quantised with.
fn quant_method(mode: Quantize) -> Option<QuantMethod> {
    match mode {
        Quantize::Awq => Some(QuantMethod::Awq),
        Quantize::Gptq => Some(QuantMethod::Gptq),
        Quantize::CompressedTensors => Some(QuantMethod::CompressedTensors),
        Quantize::Eetq | Quantize::Fp8 | Quantize::BitsandbytesNf4 => None,
    }
}

fn rope_override(args: &Args) -> Option<RopeOverride> {
    let kind = match args.rope_scaling? {
        RopeScaling::Linear => RopeKind::Linear,
        RopeScaling::Dynamic => RopeKind::Dynamic,
    };
    Some(RopeOverride { kind, factor: args.rope_factor? })
}
