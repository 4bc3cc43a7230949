//! The driver library: whether there is one, and its errors.

#![allow(unsafe_code)]

use std::sync::OnceLock;

use cudarc::driver::{DriverError, sys};

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

/// The CUDA version that the driver supports, such as `12.4`.
pub(super) fn driver_version() -> String {
    let mut version = 0;
    // SAFETY: writes one int to a live one; a driver is loaded, or this would not be reached.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    match status {
        sys::CUresult::CUDA_SUCCESS => format!("{}.{}", version / 1000, version % 1000 / 10),
        _ => "unknown".to_owned(),
    }
}
