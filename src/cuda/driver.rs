//! The CUDA driver library: whether it can be loaded, and its errors.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_uint, c_void};
use std::path::Path;
use std::sync::OnceLock;

use cudarc::driver::{CudaContext, DriverError, sys};

use crate::error::{Error, Result};

/// The file names of the driver library, in the order in which cudarc tries them: those of Linux, then that of Windows.
const DRIVER_NAMES: [&str; 7] = [
    "libcuda.so",
    "libcuda.so.12",
    "libcuda.so.11",
    "libcuda.so.10",
    "libcuda.so.9",
    "libcuda.so.1",
    "nvcuda.dll",
];

/// Folders that may have the driver although the loader does not search them: on Debian, Fedora, WSL, NixOS, and in old
/// containers.
const DRIVER_FOLDERS: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
    "/usr/local/nvidia/lib64",
];

/// Checks that the CUDA driver library can be loaded. Without it, the functions of cudarc panic, also `CudaContext::new`, so
/// a program that opens a context itself calls this first.
///
/// # Errors
/// [`Error::NoDriver`], with the file names that were tried and why they were not loaded.
pub fn check_driver() -> Result<()> {
    driver().map(|_| ())
}

/// Returns the driver library. Without it, cudarc panics even when it formats an error, so no function of cudarc is called
/// before this one succeeds.
pub(super) fn driver() -> Result<&'static libloading::Library> {
    static DRIVER: OnceLock<std::result::Result<libloading::Library, String>> = OnceLock::new();
    let loaded = DRIVER.get_or_init(|| {
        let mut reasons = Vec::new();
        for name in DRIVER_NAMES {
            // SAFETY: loading the CUDA driver runs its initialisers, which the program asked for
            // by using CUDA; cudarc loads the same library.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Ok(library),
                Err(e) => reasons
                    .push(std::error::Error::source(&e).map_or(e.to_string(), ToString::to_string)),
            }
        }
        let folders = DRIVER_FOLDERS.map(Path::new);
        let why = why_not(&reasons, &folders);
        Err(if cfg!(target_feature = "crt-static") {
            of_static_program(&why)
        } else {
            why
        })
    });
    loaded.as_ref().map_err(|why| Error::NoDriver {
        tried: DRIVER_NAMES.join(", "),
        why: why.clone(),
    })
}

/// Why the driver was not loaded, from the loader's message for each name: the message for a library that exists but does
/// not load, or else the path of a library in a folder that the loader does not search.
fn why_not(reasons: &[String], folders: &[&Path]) -> String {
    let absent = |reason: &&String| reason.contains("No such file");
    if let Some(reason) = reasons.iter().find(|reason| !absent(reason)) {
        return reason.clone();
    }
    let names = ["libcuda.so.1", "libcuda.so"];
    let there = folders.iter().find_map(|folder| {
        names
            .map(|name| folder.join(name))
            .into_iter()
            .find(|file| file.exists())
    });
    match there {
        Some(file) => format!(
            "{} exists, but the loader does not search this folder: add it to LD_LIBRARY_PATH",
            file.display()
        ),
        None => "no such file".to_owned(),
    }
}

/// The reason in a program that is linked statically. Such programs load no libraries (musl), or only those of the very C
/// library that they were linked with (glibc), which the driver rarely is.
fn of_static_program(why: &str) -> String {
    format!(
        "this program is linked statically, and such programs load few libraries or none: {why}; link it dynamically \
         (`-C target-feature=-crt-static`)"
    )
}

pub(super) fn driver_error(doing: &'static str, error: DriverError) -> Error {
    Error::Driver {
        doing,
        // The name of the enum variant. `Display` of the error would call the driver.
        name: format!("{:?}", error.0),
    }
}

/// The CUDA version that the driver supports, 12040 for 12.4; 0 if the driver does not return it.
pub(super) fn driver_version() -> u32 {
    let mut version = 0;
    // SAFETY: writes one int to a live one; a driver is loaded, or this would not be reached.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    match status {
        sys::CUresult::CUDA_SUCCESS => u32::try_from(version).unwrap_or(0),
        _ => 0,
    }
}

/// The text of a CUDA version, such as `12.4` for 12040.
pub(super) fn version_text(version: u32) -> String {
    match version {
        0 => "unknown".to_owned(),
        _ => format!("{}.{}", version / 1000, version % 1000 / 10),
    }
}

/// Whether a loading error is about the image, so that another image may load. Other errors would occur again.
pub(super) fn speaks_of_image(error: sys::CUresult) -> bool {
    use sys::CUresult::*;
    matches!(
        error,
        CUDA_ERROR_INVALID_VALUE
            | CUDA_ERROR_INVALID_IMAGE
            | CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUDA_ERROR_INVALID_PTX
            | CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUDA_ERROR_JIT_COMPILATION_DISABLED
            | CUDA_ERROR_INVALID_SOURCE
            | CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND
            | CUDA_ERROR_SHARED_OBJECT_INIT_FAILED
            | CUDA_ERROR_NOT_FOUND
            | CUDA_ERROR_NOT_SUPPORTED
    )
}

/// The log of the driver's compiler or linker for an image that was not loaded. May be empty.
pub(super) fn load_log(context: &CudaContext, image: &CStr) -> String {
    /// Enough for the first errors of any image.
    const BYTES: usize = 16 << 10;
    if context.bind_to_thread().is_err() {
        return String::new();
    }
    let mut log = vec![0_u8; BYTES];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    // The driver takes the size in the place of a pointer.
    let mut values = [log.as_mut_ptr().cast(), BYTES as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: `image` ends with a 0 byte, and `log`, of the size that the options say, outlives the call. A module that
    // is loaded after all is unloaded before anyone has its handle.
    unsafe {
        let status = sys::cuModuleLoadDataEx(
            &mut module,
            image.as_ptr().cast(),
            options.len() as c_uint,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        );
        if status == sys::CUresult::CUDA_SUCCESS {
            sys::cuModuleUnload(module);
        }
    }
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_that_of_what_is_there() {
        let absent = "libcuda.so: cannot open shared object file: No such file or directory";
        let absent = || absent.to_owned();
        let folder = tempfile::tempdir().expect("a folder");
        let folders = [folder.path()];
        assert_eq!(why_not(&[absent(), absent()], &folders), "no such file");
        let broken = "libcuda.so.1: invalid ELF header";
        assert_eq!(
            why_not(&[absent(), broken.to_owned(), absent()], &folders),
            broken
        );
        std::fs::write(folder.path().join("libcuda.so.1"), "").expect("a file");
        let said = why_not(&[absent()], &folders);
        assert!(
            said.contains("LD_LIBRARY_PATH") && said.contains("libcuda.so.1"),
            "{said}"
        );
        assert_eq!(why_not(&[broken.to_owned()], &folders), broken);
    }
}
