//! The driver's calls, each with its error. Memory is in `memory.rs`.
//!
//! Everything runs on the one stream of a [`Context`], in the order in which it was asked for; nothing here waits but
//! [`Context::synchronize`] and what says so.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::libraries::{self, Library};
use crate::{Error, Result};

/// The least version of the driver: that of the CUDA release with which the kernels are compiled.
const OLDEST_DRIVER: i32 = 13_000;

/// What a GPU is.
#[derive(Clone, Debug)]
pub(crate) struct Properties {
    /// Its name, as the driver gives it.
    pub(crate) name: String,
    /// Major and minor number of its compute capability.
    pub(crate) capability: (u32, u32),
    /// Multiprocessors.
    pub(crate) multiprocessors: u32,
}

/// A GPU's primary context with one stream. Handles of the driver are pointers that any thread may use.
pub(crate) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Tells it from another that the driver put at the same address later.
    number: u64,
    pub(crate) properties: Properties,
}

// SAFETY: the driver's handles may be used from any thread; every call binds the context to its thread first (`bind`), and the
// stream orders what they ask for.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Context {}

thread_local! {
    /// The number of the context of this thread's calls; 0 is none's.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

impl Context {
    /// The context of a GPU, counted among those that `CUDA_VISIBLE_DEVICES` shows.
    ///
    /// # Errors
    /// [`Error::CudaUnavailable`] without a driver, with an old one, or if there is no such GPU; [`Error::Cuda`].
    pub(crate) fn open(ordinal: usize) -> Result<Context> {
        let count = count_devices()?;
        if ordinal >= count {
            let reason = match count {
                0 => "the driver sees no GPU; CUDA_VISIBLE_DEVICES may hide them".to_owned(),
                count => format!("there is no GPU {ordinal}: the driver sees {count}, counted from 0"),
            };
            return Err(Error::CudaUnavailable { reason });
        }
        let mut device = 0;
        // SAFETY: `cuInit` was called by `count_devices`; the function writes one handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, ordinal as c_int) })?;
        let properties = Properties::of(device)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: `device` was given out by the driver; the function writes one handle. `drop` releases it.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) })?;
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let number = OPENED.fetch_add(1, Ordering::Relaxed) + 1;
        let mut opened = Context { device, context, stream: std::ptr::null_mut(), number, properties };
        opened.bind()?;
        // Beside the legacy stream, with which it would wait.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context was bound above; the function writes one handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut opened.stream, flags) })?;
        Ok(opened)
    }

    /// Makes it the context of the calling thread, as every other call of the driver needs it.
    pub(crate) fn bind(&self) -> Result<()> {
        BOUND.with(|bound| {
            if bound.get() != self.number {
                // SAFETY: the context was retained in `open` and lives as long as `self`.
                check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })?;
                bound.set(self.number);
            }
            Ok(())
        })
    }

    /// The stream.
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Waits until everything so far is done, and hears what went wrong meanwhile.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// What `ask` asks of the stream, as a graph; none of it is done yet. Nothing else may be asked of it meanwhile.
    pub(crate) fn capture<T>(self: &Arc<Self>, ask: impl FnOnce() -> Result<T>) -> Result<(T, Graph)> {
        self.bind()?;
        // Only this thread's calls: others load weights or free memory without being in the way.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })?;
        let asked = ask();
        let mut graph = std::ptr::null_mut();
        // SAFETY: as above; the function writes one handle. Whatever became of `ask`, the capture has to end.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.stream, &raw mut graph) });
        let asked = asked?;
        ended?;
        let mut captured = Graph { context: self.clone(), executable: std::ptr::null_mut() };
        // SAFETY: the graph was just captured; the function writes one handle.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut captured.executable, graph, 0) };
        // SAFETY: what was instantiated does not need it any more; destroyed once.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        check("cuGraphInstantiate", made)?;
        Ok((asked, captured))
    }

    /// Bytes of memory that are free, and all there are.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the function writes two numbers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    /// Copies `source` to the device. The source may change as soon as it returns.
    ///
    /// # Safety
    /// `to` is the address of as many bytes of this device.
    pub(crate) unsafe fn upload(&self, to: u64, source: &[u8]) -> Result<()> {
        if source.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `source` is borrowed for the call, and a copy from memory that is not pinned has left it when the call returns; the
        // caller answers for `to`.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(to, source.as_ptr().cast(), source.len(), self.stream) };
        check("cuMemcpyHtoDAsync", copied)?;
        self.synchronize()
    }

    /// Copies within the device, once the stream comes to it.
    ///
    /// # Safety
    /// Both are addresses of as many bytes of this device, apart from each other.
    pub(crate) unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's obligation; the stream lives as long as `self`.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) })
    }

    /// Copies from the device, and waits for it.
    ///
    /// # Safety
    /// `from` is the address of as many bytes of this device.
    pub(crate) unsafe fn download(&self, from: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `out` is borrowed until the stream has passed the copy, which the next line waits for; the caller answers for `from`.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), from, out.len(), self.stream) };
        check("cuMemcpyDtoHAsync", copied)?;
        self.synchronize()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Errors of what was still running have nobody left to hear them.
        let _ = self.bind();
        // SAFETY: both handles came from `open`, and whatever uses them holds the `Context` that is dropped here.
        unsafe {
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
        BOUND.with(|bound| bound.set(0));
    }
}

impl Properties {
    fn of(device: sys::CUdevice) -> Result<Properties> {
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: `device` was given out by the driver; the function writes one number.
            check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) })?;
            Ok::<_, Error>(u32::try_from(value).unwrap_or(0))
        };
        let mut name: [c_char; 128] = [0; 128];
        // SAFETY: the function writes at most that many bytes, the last of them zero.
        let named = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device) };
        check("cuDeviceGetName", named)?;
        // SAFETY: the driver ended the name with a zero within the array.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(Properties {
            name,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        })
    }
}

/// The GPUs that the driver shows.
///
/// # Errors
/// [`Error::CudaUnavailable`] without a driver or with an old one.
fn count_devices() -> Result<usize> {
    libraries::load(Library::Driver)?;
    // SAFETY: the library is there, and the call takes no pointers.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        failed => {
            let reason = format!("the NVIDIA driver does not start: {}", words(failed));
            return Err(Error::CudaUnavailable { reason });
        }
    }
    let mut version = 0;
    // SAFETY: the function writes one number.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    if version < OLDEST_DRIVER {
        let [has, needs] =
            [version, OLDEST_DRIVER].map(|version| format!("{}.{}", version / 1000, version % 1000 / 10));
        let reason = format!("the NVIDIA driver knows CUDA {has}; the kernels need {needs}, so driver 580 or newer");
        return Err(Error::CudaUnavailable { reason });
    }
    let mut count = 0;
    // SAFETY: the function writes one number.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The result of a call of the driver.
pub(crate) fn check(call: &'static str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(Error::Cuda { call, code: words(failed) }),
    }
}

/// `CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)`.
fn words(result: CUresult) -> String {
    let text = |f: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: both functions write a pointer to a string that lives for ever, or null for a code that they do not know.
        let known = unsafe { f(result, &raw mut text) };
        (known == CUresult::CUDA_SUCCESS && !text.is_null())
            // SAFETY: not null, so such a string.
            .then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(string)) => format!("{name} ({string})"),
        _ => format!("error {}", result as u32),
    }
}

// --- Events and modules ------------------------------------------------------------------------------------------------

/// A place in the stream that can be waited for.
pub(crate) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: as for `Context`.
unsafe impl Send for Event {}

impl Event {
    /// One that has been passed.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Event> {
        context.bind()?;
        let mut event = std::ptr::null_mut();
        // Nobody asks when it was passed, which would cost time.
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is bound; the function writes one handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
        Ok(Event { context: context.clone(), event })
    }

    /// Moves it to the end of the stream.
    pub(crate) fn record(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both handles live as long as `self`.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.event, self.context.stream) })
    }

    /// Whether the stream has passed it.
    pub(crate) fn is_passed(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        match unsafe { sys::cuEventQuery(self.event) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("cuEventQuery", result).map(|()| true),
        }
    }

    /// Waits until the stream has passed it.
    pub(crate) fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: created in `new`, destroyed only here.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

/// Launches with their arguments, ready to be asked for with one call. Memory that they name has to live as long.
pub struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: as for `Context`.
unsafe impl Send for Graph {}

impl Graph {
    /// Asks for all of it, behind everything else on the stream.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    ///
    /// # Safety
    /// The memory that was named when it was captured is still there, and the lists that its operations read hold what their
    /// contracts demand.
    pub unsafe fn launch(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both handles live as long as `self`; for what runs the caller answers.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.executable, self.context.stream) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.executable.is_null() && self.context.bind().is_ok() {
            // SAFETY: instantiated in `capture`, destroyed only here; the driver waits for a launch under way.
            let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}

/// Machine code on the device. It stays there as long as the context.
pub(crate) struct Module(sys::CUmodule);

// SAFETY: as for `Context`, whose owner keeps it.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel on the device.
#[derive(Clone, Copy)]
pub(crate) struct Function(pub(crate) sys::CUfunction);

// SAFETY: as for `Context`, whose owner keeps its module.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// Loads machine code for this device.
    pub(crate) fn load(context: &Context, code: &[u8]) -> Result<Module> {
        context.bind()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the code is a whole image that states its own length, as nvcc and NVRTC write it (`images.rs` has checked it against its
        // checksum); the function writes one handle.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut module, code.as_ptr().cast()) })?;
        Ok(Module(module))
    }

    /// A kernel by its name, if the module has it.
    pub(crate) fn function(&self, name: &str) -> Result<Option<Function>> {
        let name = CString::new(name).expect("names of kernels have no zeros");
        let mut function = std::ptr::null_mut();
        // SAFETY: the module was loaded and never unloaded; the name ends with a zero; the function writes one handle.
        match unsafe { sys::cuModuleGetFunction(&raw mut function, self.0, name.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => Ok(None),
            result => check("cuModuleGetFunction", result).map(|()| Some(Function(function))),
        }
    }
}
