//! The device functions without the feature `cuda`: each is an error.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};

use xact::Error;

use crate::status::Result;
use crate::types::*;

/// Without the feature `cuda` there is no device.
pub enum xact_device {}

pub fn kernels_built() -> Result<()> {
    let reason = "it was built without its feature `cuda`";
    Err(Error::KernelsNotBuilt { reason }.into())
}

pub use self::kernels_built as cuda_available;

macro_rules! none {
    ($($name:ident($($argument:ty),*);)*) => {$(
        pub unsafe fn $name($(_: $argument),*) -> Result<()> {
            kernels_built()
        }
    )*};
}
none! {
    open(i32, *mut *mut xact_device);
    open_current(*mut *mut xact_device);
    preload(*const xact_device, *const c_char);
    close(*mut xact_device);
    activation_workspace_bytes(*const xact_activation, i32, u64, u64, *mut u64);
    activation_forward(*const xact_device, *mut c_void, *const xact_activation, *const xact_activation_args);
    activation_backward(*const xact_device, *mut c_void, *const xact_activation, *const xact_activation_args);
    cross_entropy_workspace_bytes(u64, *mut u64);
    cross_entropy_forward(*const xact_device, *mut c_void, *const xact_cross_entropy, *const xact_cross_entropy_args);
    cross_entropy_forward_with_gradient(
        *const xact_device, *mut c_void, *const xact_cross_entropy, *const xact_cross_entropy_args
    );
    cross_entropy_backward(*const xact_device, *mut c_void, *const xact_cross_entropy, *const xact_cross_entropy_args);
    cross_entropy_partial_stats(
        *const xact_device, *mut c_void, *const xact_cross_entropy, *const xact_cross_entropy_args
    );
    cross_entropy_finish(*const xact_device, *mut c_void, *const xact_cross_entropy, *const xact_cross_entropy_args);
    goldfish_workspace_bytes(u64, *mut u64);
    goldfish_mask(*const xact_device, *mut c_void, *const xact_goldfish_args);
}
