//! The driver library: whether there is one, and its errors.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::{CudaContext, DriverError, sys};

use crate::error::{Error, Result};

/// The driver library's names, in the order in which cudarc looks for them: those that exist on Linux,
/// then that on Windows.
const DRIVER_NAMES: [&str; 7] = [
    "libcuda.so",
    "libcuda.so.12",
    "libcuda.so.11",
    "libcuda.so.10",
    "libcuda.so.9",
    "libcuda.so.1",
    "nvcuda.dll",
];

/// The driver library, if this machine has one. cudarc panics where there is none, even when it
/// formats an error, so nothing of cudarc is called before this succeeds.
pub(super) fn driver() -> Result<&'static libloading::Library> {
    static DRIVER: OnceLock<Option<libloading::Library>> = OnceLock::new();
    DRIVER
        .get_or_init(|| {
            DRIVER_NAMES.iter().find_map(|name| {
                // SAFETY: loading the CUDA driver runs its initialisers, which the program asked for
                // by using CUDA; cudarc loads the same library.
                unsafe { libloading::Library::new(*name) }.ok()
            })
        })
        .as_ref()
        .ok_or_else(|| Error::NoDriver {
            tried: DRIVER_NAMES.join(", "),
        })
}

pub(super) fn driver_error(doing: &'static str, error: DriverError) -> Error {
    Error::Driver {
        doing,
        // The name of the enum's variant. The error's own Display would ask the driver.
        name: format!("{:?}", error.0),
    }
}

/// The CUDA version that the driver supports, 12040 for 12.4; 0 if it does not say.
pub(super) fn driver_version() -> u32 {
    let mut version = 0;
    // SAFETY: writes one int to a live one; a driver is loaded, or this would not be reached.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    match status {
        sys::CUresult::CUDA_SUCCESS => u32::try_from(version).unwrap_or(0),
        _ => 0,
    }
}

/// Such as `12.4`.
pub(super) fn version_text(version: u32) -> String {
    match version {
        0 => "unknown".to_owned(),
        _ => format!("{}.{}", version / 1000, version % 1000 / 10),
    }
}

/// Whether an error of loading an image speaks of the image, so that another may do better: the others would be the
/// same again.
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

/// What the driver's compiler or linker says about an image that it did not load; empty if it says nothing.
pub(super) fn load_log(context: &CudaContext, image: &CStr) -> String {
    /// As much as the first errors of any text need.
    const BYTES: usize = 16 << 10;
    if context.bind_to_thread().is_err() {
        return String::new();
    }
    let mut log = vec![0_u8; BYTES];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    // The driver takes a size where a pointer would stand.
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
