//! Everything that can go wrong in a shard, as one enum with fields.

use std::path::PathBuf;

use crate::comm::Stamp;

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a shard could not start, or why a step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- Model files -------------------------------------------------------------------------------------------------
    /// A file of the model directory could not be opened, read or mapped.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file is not JSON, or not of the expected form.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message with line and column.
        reason: String,
    },
    /// config.json (or the command line) asks for something this server cannot run.
    #[error("{}: `{field}` is {value}; supported: {supported}", path.display())]
    Unsupported {
        /// The file that says so.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What would work.
        supported: String,
    },
    /// A field of config.json is missing, of the wrong type or out of range.
    #[error("{}: `{field}` is {value}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value as JSON, or "missing".
        value: String,
        /// What it should be.
        expected: String,
    },
    /// `--quantize` and the checkpoint contradict each other.
    #[error("`--quantize {asked}` takes a checkpoint that is {takes}; according to {} it is {actual}", path.display())]
    Quantize {
        /// The mode that the command line asks for.
        asked: &'static str,
        /// What it needs: "quantised with gptq", "not quantised".
        takes: String,
        /// The file that describes the checkpoint.
        path: PathBuf,
        /// What the checkpoint is, in the same words.
        actual: String,
    },
    /// The model cannot be cut into this many ranks.
    #[error(
        "`--num-shard {world_size}`: {field} {value} is not divisible by {world_size}; possible: {}",
        list(possible)
    )]
    Indivisible {
        /// Ranks asked for.
        world_size: usize,
        /// The dimension that does not divide.
        field: &'static str,
        /// Its size.
        value: usize,
        /// World sizes that this model can be cut into, as far as worth naming.
        possible: Vec<usize>,
    },

    // --- Weights -----------------------------------------------------------------------------------------------------
    /// The directory holds no weights.
    #[error("{}: no model.safetensors, model.safetensors.index.json or other *.safetensors file", dir.display())]
    NoWeights {
        /// The model directory.
        dir: PathBuf,
    },
    /// A safetensors file is damaged.
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A safetensors file ends before its contents do.
    #[error("{}: truncated: {what} ends at byte {expected}, the file at {actual}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// "the header", or the tensor that is cut.
        what: String,
        /// Byte at which it should end.
        expected: u64,
        /// Length of the file.
        actual: u64,
    },
    /// A tensor is declared with a shape, type or position that contradict each other.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    TensorInfo {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The contradiction.
        reason: String,
    },
    /// Two files hold a tensor of the same name, so either could be meant.
    #[error("tensor `{tensor}` is in {} and in {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// A file that holds it.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// The model needs a tensor that no file of the checkpoint has.
    #[error("weight `{tensor}` does not exist in {}", dir.display())]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The model directory.
        dir: PathBuf,
    },
    /// A tensor has another shape than config.json implies.
    #[error("{}: tensor `{tensor}` has shape {actual:?}, config.json implies {expected:?}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
        /// Shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor has an element type that cannot be used in its place.
    #[error("{}: tensor `{tensor}` has dtype {dtype}; supported: {supported}", path.display())]
    TensorDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype, in the file format's spelling.
        dtype: String,
        /// Those that would work.
        supported: &'static str,
    },

    // --- Collectives -------------------------------------------------------------------------------------------------
    /// The shared-memory segment could not be made or mapped.
    #[error("shared memory {name}: {action}: {source}")]
    SharedMemory {
        /// The segment.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The ranks of a group were started with different geometry or under a name that is in use.
    #[error("shared memory {name}: {reason}")]
    SegmentInUse {
        /// The segment.
        name: String,
        /// Who holds it, or how the geometries differ.
        reason: String,
    },
    /// A rank did not arrive at a collective (or at start-up) in time.
    #[error("rank {peer} did not arrive within {waited_ms} ms ({waiting_for})")]
    PeerTimeout {
        /// The rank that is missing.
        peer: usize,
        /// How long this rank waited, in milliseconds.
        waited_ms: u128,
        /// The collective, or "to attach".
        waiting_for: String,
    },
    /// The process of another rank has ended.
    #[error("rank {peer} (process {pid}) is gone ({waiting_for})")]
    PeerDead {
        /// The rank.
        peer: usize,
        /// Its process id.
        pid: u32,
        /// The collective, or "to attach".
        waiting_for: String,
    },
    /// The ranks disagree on which collective this is.
    #[error("rank {guilty} is at {actual}, the others at {expected}")]
    RankMismatch {
        /// The rank that differs from the majority (with two ranks: from rank 0).
        guilty: usize,
        /// Where most ranks are.
        expected: Box<Stamp>,
        /// Where the guilty one is.
        actual: Box<Stamp>,
    },
    /// The epoch ended on this rank while it was in a collective, or its peers are in another epoch.
    #[error("the epoch ended during a collective ({waiting_for})")]
    EpochEnded {
        /// The collective, or "to begin an epoch".
        waiting_for: String,
    },
    /// An earlier collective failed, so the group's state is unknown until the next epoch.
    #[error("the rank group failed earlier in this epoch")]
    GroupFailed,

    // --- Computation -------------------------------------------------------------------------------------------------
    /// An operation refused its arguments.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
}

/// `1, 2, 4`
fn list(values: &[usize]) -> String {
    values.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
