//! Whether this machine has a real device, so that the emulator is not needed.

use std::ffi::{c_int, c_uint};

/// Whether a real CUDA driver is installed and finds a device.
///
/// Asks the driver library itself: a driver without a device (in a container, say) counts as none.
pub fn real_device_present() -> bool {
    device_count().is_some_and(|count| count > 0)
}

fn device_count() -> Option<c_int> {
    type CuInit = unsafe extern "C" fn(c_uint) -> c_int;
    type CuDeviceGetCount = unsafe extern "C" fn(*mut c_int) -> c_int;
    const CUDA_SUCCESS: c_int = 0;

    // Not by the name `libcuda.so`, which would then stay bound to the real driver when the emulator is
    // installed because it has no device.
    let names = ["libcuda.so.1", "nvcuda.dll"];
    // SAFETY: loading the CUDA driver runs its initialisers, as every CUDA program does.
    let open = |name: &&str| unsafe { libloading::Library::new(*name) }.ok();
    let library = names.iter().find_map(open)?;
    let mut count = 0;
    // SAFETY: both functions have these signatures in every CUDA driver; `count` is live. The library
    // stays loaded below, because drivers do not support being unloaded.
    let found = unsafe {
        let init = library.get::<CuInit>(b"cuInit\0").ok()?;
        let get_count = library
            .get::<CuDeviceGetCount>(b"cuDeviceGetCount\0")
            .ok()?;
        init(0) == CUDA_SUCCESS && get_count(&mut count) == CUDA_SUCCESS
    };
    std::mem::forget(library);
    found.then_some(count)
}
