//! Making `dlopen("libcuda.so")` find this crate.

use std::fmt;
use std::sync::OnceLock;

/// Why the emulator could not be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallError {
    message: String,
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot install the CUDA emulator: {}", self.message)
    }
}

impl std::error::Error for InstallError {}

/// Makes the emulator the `libcuda.so` of this process until the process ends.
///
/// Call it before anything opens the driver. It may be called any number of times, from any thread; all calls return the
/// result of the first.
///
/// # Errors
/// On systems other than Linux, and if another `libcuda.so` is already loaded.
///
/// ```
/// cuda_emulator::install().unwrap();
/// let context = cudarc::driver::CudaContext::new(0).unwrap();
/// assert!(context.name().unwrap().ends_with("(emulated)"));
/// ```
pub fn install() -> Result<(), InstallError> {
    static RESULT: OnceLock<Result<(), InstallError>> = OnceLock::new();
    RESULT
        .get_or_init(|| load().map_err(|message| InstallError { message }))
        .clone()
}

#[cfg(not(shim))]
fn load() -> Result<(), String> {
    // The calls exist, so that they are compiled and checked everywhere.
    let _ = &TABLE;
    Err("only Linux on x86-64 and aarch64 is supported".into())
}

/// The address of a driver call.
#[cfg_attr(not(shim), allow(dead_code))]
struct Call(*const ());

// SAFETY: the addresses of functions, which nobody writes to.
unsafe impl Sync for Call {}

const CALLS: &[*const ()] = &include!(concat!(env!("OUT_DIR"), "/table.rs"));
static TABLE: [Call; CALLS.len()] = {
    let mut table = [const { Call(std::ptr::null()) }; CALLS.len()];
    let mut i = 0;
    while i < CALLS.len() {
        table[i] = Call(CALLS[i]);
        i += 1;
    }
    table
};

#[cfg(shim)]
fn load() -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    static SHIM: &[u8] = include_bytes!(env!("CUDA_EMULATOR_SHIM"));
    let path = std::env::temp_dir().join(format!(
        "cuda-emulator-{}-{:x}.so",
        std::process::id(),
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos())
    ));
    std::fs::write(&path, SHIM).map_err(|e| format!("writing {}: {e}", path.display()))?;
    // SAFETY: the shim has no initialisers; it is our own file, written just before.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    // The file is not needed any more, whether it was loaded or not.
    let _ = std::fs::remove_file(&path);
    let library = library.map_err(|e| format!("loading the shim: {e}"))?;
    // SAFETY: the shim defines this function with this type.
    let table = unsafe {
        let f = library.get::<extern "C" fn() -> *mut usize>(b"cuda_emulator_table\0");
        f.map_err(|e| format!("the shim: {e}"))?()
    };
    for (i, call) in TABLE.iter().enumerate() {
        // SAFETY: the build script made the shim's table as long as ours, and nobody calls through
        // it before `install` has returned.
        unsafe { table.add(i).write(call.0 as usize) };
    }
    // Never unloaded: its functions are in use by whoever opened it.
    std::mem::forget(library);
    // A real driver that was opened first would be what others get.
    // SAFETY: opening what is already open runs nothing.
    let found = unsafe { Library::open(Some("libcuda.so"), RTLD_NOW) }
        .map_err(|e| format!("opening it: {e}"))?;
    // SAFETY: only the presence of the symbol is asked.
    if unsafe { found.get::<extern "C" fn()>(b"cuda_emulator_table\0") }.is_err() {
        return Err("another libcuda.so is already loaded".into());
    }
    std::mem::forget(found);
    Ok(())
}
