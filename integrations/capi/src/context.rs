//! The current CUDA context of a thread, and the devices of contexts.

#![allow(unsafe_code)]

use std::mem;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use xact::cuda::check_driver;
use xact::cudarc::driver::sys::{self, CUcontext, CUresult};
use xact::cudarc::driver::{CudaContext, DriverError};
use xact::{Device, Error};

use crate::status::Result;

/// Restores the thread's current context when dropped.
pub struct Restored(CUcontext);

impl Restored {
    /// Remembers the current context. The driver must be loadable.
    pub fn new() -> Restored {
        // Before CUDA is initialised, the call fails, and no context is current.
        Restored(current().unwrap_or(ptr::null_mut()))
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        if current() != Ok(self.0) {
            // SAFETY: the context was current in this thread. If it has been destroyed since, the driver returns an error,
            // and so does the caller's next call.
            unsafe { sys::cuCtxSetCurrent(self.0) };
        }
    }
}

fn current() -> std::result::Result<CUcontext, CUresult> {
    let mut context = ptr::null_mut();
    // SAFETY: writes a live place.
    match unsafe { sys::cuCtxGetCurrent(&mut context) } {
        CUresult::CUDA_SUCCESS => Ok(context),
        error => Err(error),
    }
}

fn driver_error(doing: &'static str, error: CUresult) -> Error {
    let name = format!("{error:?}");
    Error::Driver { doing, name }
}

/// The device with its primary context; every call returns the same one.
///
/// Devices are never released, because at process exit the release would come after a framework has shut CUDA down.
pub fn device(ordinal: usize) -> Result<Device> {
    static DEVICES: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());
    // A poisoned lock means that another thread panicked between two insertions; the list is whole.
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = devices.iter().find(|(of, _)| *of == ordinal) {
        return Ok(device.clone());
    }
    let device = Device::new(ordinal)?;
    devices.push((ordinal, device.clone()));
    Ok(device)
}

/// The device with the context that is current in this thread.
pub fn current_device() -> Result<Device> {
    xact::cuda::check_kernels()?;
    check_driver()?;
    let doing = "asking for the current context";
    let context = match current() {
        Ok(context) if !context.is_null() => context,
        Ok(_) | Err(CUresult::CUDA_ERROR_NOT_INITIALIZED) => {
            let what = "the current context, of which there is none,";
            return Err(Error::WrongContext { what }.into());
        }
        Err(error) => return Err(driver_error(doing, error).into()),
    };
    let failed = |error: DriverError| driver_error(doing, error.0);
    let mut number = 0;
    // SAFETY: writes a live place.
    unsafe { sys::cuCtxGetDevice(&mut number) }
        .result()
        .map_err(failed)?;
    // A CUdevice is the ordinal of the device.
    let ordinal = number as usize;
    let (mut flags, mut is_active) = (0, 0);
    // SAFETY: as above.
    unsafe { sys::cuDevicePrimaryCtxGetState(number, &mut flags, &mut is_active) }
        .result()
        .map_err(failed)?;
    if is_active != 0 {
        let primary = device(ordinal)?;
        if primary.context().cu_ctx() == context {
            return Ok(primary);
        }
    }
    // SAFETY: the context is live, and of that device.
    let foreign = unsafe { CudaContext::from_raw_context(ordinal, number, context) };
    let foreign = foreign.map_err(failed)?;
    // With the last reference, cudarc would destroy the context, which belongs to the caller.
    mem::forget(Arc::clone(&foreign));
    Ok(Device::from_context(&foreign)?)
}
