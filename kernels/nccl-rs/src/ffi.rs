//! What `nccl.h` declares, as far as it is used.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// Opaque: `ncclComm_t` points to it.
#[repr(C)]
pub(crate) struct RawComm {
    _private: [u8; 0],
}

pub(crate) type CommPtr = *mut RawComm;
/// `cudaStream_t`, which is the driver's `CUstream`.
pub(crate) type StreamPtr = *mut c_void;

/// `ncclUniqueId`, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawUniqueId(pub(crate) [u8; UNIQUE_ID_BYTES]);

/// `NCCL_UNIQUE_ID_BYTES`.
pub(crate) const UNIQUE_ID_BYTES: usize = 128;

/// The beginning of `ncclConfig_t` as version 2.14 defined it. A library takes as many bytes as `size` says, and the defaults of what
/// came later if `version` is older: so one definition serves all of them.
#[repr(C)]
pub(crate) struct Config {
    pub(crate) size: usize,
    pub(crate) magic: c_uint,
    pub(crate) version: c_uint,
    pub(crate) blocking: c_int,
    /// What rounds the size up; in later versions a field that is set to its default for callers of this one.
    pub(crate) padding: c_int,
}

impl Config {
    /// Calls return before they are complete.
    pub(crate) const NONBLOCKING: Config =
        Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: 21_400, blocking: 0, padding: c_int::MIN };
}

/// The elements of a buffer: `ncclDataType_t`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// Signed bytes.
    Int8 = 0,
    /// Unsigned bytes.
    Uint8 = 1,
    /// 32-bit signed integers.
    Int32 = 2,
    /// 32-bit unsigned integers.
    Uint32 = 3,
    /// 64-bit signed integers.
    Int64 = 4,
    /// 64-bit unsigned integers.
    Uint64 = 5,
    /// IEEE half precision.
    Float16 = 6,
    /// IEEE single precision.
    Float32 = 7,
    /// IEEE double precision.
    Float64 = 8,
    /// bfloat16.
    Bfloat16 = 9,
}

/// How elements of ranks become one: `ncclRedOp_t`. NCCL chooses the order of additions by size, topology and version: where bits
/// must not depend on them, gather and add.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum.
    Sum = 0,
    /// The product.
    Prod = 1,
    /// The largest.
    Max = 2,
    /// The smallest.
    Min = 3,
    /// The sum divided by the number of ranks.
    Avg = 4,
}

/// `ncclResult_t`.
pub(crate) type RawResult = c_int;
pub(crate) const SUCCESS: RawResult = 0;
/// Not complete yet: ask again.
pub(crate) const IN_PROGRESS: RawResult = 7;

pub(crate) type GetVersion = unsafe extern "C" fn(*mut c_int) -> RawResult;
pub(crate) type GetUniqueId = unsafe extern "C" fn(*mut RawUniqueId) -> RawResult;
pub(crate) type CommInitRankConfig =
    unsafe extern "C" fn(*mut CommPtr, c_int, RawUniqueId, c_int, *mut Config) -> RawResult;
/// Of `ncclCommFinalize`, `ncclCommDestroy` and `ncclCommAbort`.
pub(crate) type CommCall = unsafe extern "C" fn(CommPtr) -> RawResult;
pub(crate) type CommGetAsyncError = unsafe extern "C" fn(CommPtr, *mut RawResult) -> RawResult;
pub(crate) type GetErrorString = unsafe extern "C" fn(RawResult) -> *const c_char;
pub(crate) type GetLastError = unsafe extern "C" fn(CommPtr) -> *const c_char;
/// Of `ncclGroupStart` and `ncclGroupEnd`.
pub(crate) type Group = unsafe extern "C" fn() -> RawResult;
/// Of `ncclAllReduce` and `ncclReduceScatter`.
pub(crate) type Reduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, DataType, ReduceOp, CommPtr, StreamPtr) -> RawResult;
pub(crate) type AllGather =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, DataType, CommPtr, StreamPtr) -> RawResult;
pub(crate) type Broadcast =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, DataType, c_int, CommPtr, StreamPtr) -> RawResult;
pub(crate) type Send = unsafe extern "C" fn(*const c_void, usize, DataType, c_int, CommPtr, StreamPtr) -> RawResult;
pub(crate) type Recv = unsafe extern "C" fn(*mut c_void, usize, DataType, c_int, CommPtr, StreamPtr) -> RawResult;
