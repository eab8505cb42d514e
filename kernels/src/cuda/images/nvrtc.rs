//! NVRTC: CUDA C++ to machine code within this process.
//!
//! Its functions are looked up in the library that was found (`libraries.rs`), so that one which an old version lacks is an error and
//! no panic, and no other file of the same name is called instead. NVRTC lets threads compile at the same time, each its own program
//! (NVRTC's guide, "Thread Safety").

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use super::{CudaSource, Target};
use crate::cuda::libraries::{self, Library};
use crate::{Error, Result};

/// Lines of the compiler's log that an error repeats: the first message and where it stands.
const LOG_LINES: usize = 8;

/// The functions that are used, all present, with their types in nvrtc.h. Results are integers here: a version from the future may
/// have ones that no enum of today knows.
pub(super) struct Nvrtc {
    version: (c_int, c_int),
    create_program: CreateProgram,
    compile_program: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    get_cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    get_cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    get_program_log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    get_program_log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy_program: unsafe extern "C" fn(*mut Program) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// program, source, name, number of headers, their texts, their names.
type CreateProgram = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

/// `nvrtcProgram`.
type Program = *mut std::ffi::c_void;

impl Nvrtc {
    /// # Errors
    /// [`Error::CudaUnavailable`].
    pub(super) fn open() -> Result<Nvrtc> {
        let library = libraries::open(Library::Nvrtc)?;
        macro_rules! find {
            ($name:literal) => {
                // SAFETY: the types of `Nvrtc`'s fields are those that nvrtc.h declares under these names, since 11.1 and unchanged;
                // the library is never closed.
                unsafe { library.get($name) }.map(|function| *function).map_err(|_| Error::CudaUnavailable {
                    reason: format!("the NVRTC that was found is too old or none: it has no {}", $name),
                })
            };
        }
        let get_version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = find!("nvrtcVersion")?;
        let mut nvrtc = Nvrtc {
            version: (0, 0),
            create_program: find!("nvrtcCreateProgram")?,
            compile_program: find!("nvrtcCompileProgram")?,
            get_cubin_size: find!("nvrtcGetCUBINSize")?,
            get_cubin: find!("nvrtcGetCUBIN")?,
            get_program_log_size: find!("nvrtcGetProgramLogSize")?,
            get_program_log: find!("nvrtcGetProgramLog")?,
            destroy_program: find!("nvrtcDestroyProgram")?,
            get_error_string: find!("nvrtcGetErrorString")?,
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the function writes two numbers.
        nvrtc.check("nvrtcVersion", unsafe { get_version(&raw mut major, &raw mut minor) })?;
        nvrtc.version = (major, minor);
        Ok(nvrtc)
    }

    /// `13.0`.
    pub(super) fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// The machine code of a file: a cubin.
    ///
    /// # Errors
    /// [`Error::Cuda`], with the first lines of what the compiler says.
    pub(super) fn compile(&self, headers: &[(&str, &str)], source: &CudaSource, target: &Target) -> Result<Vec<u8>> {
        let string = |text: &str| CString::new(text).expect("sources, names and options have no zero bytes");
        let names: Vec<CString> = headers.iter().map(|(name, _)| string(name)).collect();
        let texts: Vec<CString> = headers.iter().map(|(_, text)| string(text)).collect();
        let options: Vec<CString> = target.options.iter().map(|option| string(option)).collect();
        let [names, texts, options_of_call] = [&names, &texts, &options].map(|strings| pointers(strings));
        let (name, text) = (string(source.file), string(source.text));

        let mut program = Destroyed { nvrtc: self, program: ptr::null_mut() };
        // SAFETY: every string ends with a zero and lives until the end of this function, beyond the program; both lists have as many
        // pointers as there are headers; the function writes one handle.
        let created = unsafe {
            (self.create_program)(
                &raw mut program.program,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", created)?;

        // SAFETY: the program is one and no other thread has it; the list has as many strings as it says.
        let compiled = unsafe {
            (self.compile_program)(program.program, options_of_call.len() as c_int, options_of_call.as_ptr())
        };
        self.check("nvrtcCompileProgram", compiled).map_err(|error| match error {
            Error::Cuda { call, code } => {
                let log = program.log();
                let log = log.lines().take(LOG_LINES).collect::<Vec<_>>().join("\n");
                let (architecture, version) = (&target.architecture, self.version());
                Error::Cuda {
                    call,
                    code: format!("{code}: {} for {architecture}, NVRTC {version}\n{log}", source.file),
                }
            }
            other => other,
        })?;
        program.cubin()
    }

    fn check(&self, call: &'static str, result: c_int) -> Result<()> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the function takes any number, and returns a string that lives for ever.
        let words = unsafe { CStr::from_ptr((self.get_error_string)(result)) };
        Err(Error::Cuda { call, code: words.to_string_lossy().into_owned() })
    }
}

/// A program that is destroyed in the end, or none yet.
struct Destroyed<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Destroyed<'_> {
    /// What the compiler says; nothing if it does not even say that.
    fn log(&self) -> String {
        let log = self.bytes(self.nvrtc.get_program_log_size, self.nvrtc.get_program_log, "nvrtcGetProgramLog");
        let log = log.unwrap_or_default();
        String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        self.bytes(self.nvrtc.get_cubin_size, self.nvrtc.get_cubin, "nvrtcGetCUBIN")
    }

    /// What a pair of functions gives: one says how much it is, the other writes it.
    fn bytes(
        &self,
        get_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
        call: &'static str,
    ) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: callers hand in functions of NVRTC; this one writes one number.
        self.nvrtc.check(call, unsafe { get_size(self.program, &raw mut size) })?;
        let mut bytes = vec![0u8; size];
        // SAFETY: as above; this one writes as many bytes as the other said, and there are as many.
        self.nvrtc.check(call, unsafe { get(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Destroyed<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program was created and is destroyed only here. A failure leaves nothing to be done.
            let _ = unsafe { (self.nvrtc.destroy_program)(&raw mut self.program) };
        }
    }
}

/// Pointers to strings, which live as long as these.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}
