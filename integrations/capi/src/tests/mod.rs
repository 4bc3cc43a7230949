//! Calls the exported functions as a C program does, on the host and on the emulated device.

// As in C, every call is unsafe, and the conditions are in the header.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

mod activations;
#[cfg(feature = "cuda")]
mod contexts;
mod fuzz;
mod goldfish;
mod head;
mod header;
mod losses;
mod refusals;
mod structs;
mod threads;

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use xact::{Dtype, Element};

use crate::functions::*;
use crate::types::*;

#[cfg(feature = "cuda")]
use {
    crate::device::xact_device,
    std::sync::Arc,
    xact::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr},
};

/// The target of calls: a stream of a device, or the host.
pub struct Backend {
    #[cfg(feature = "cuda")]
    device: Option<Stream>,
}

#[cfg(feature = "cuda")]
pub struct Stream {
    pub handle: *mut xact_device,
    pub stream: Arc<CudaStream>,
}

/// Memory of a backend.
pub enum Buffer {
    /// Aligned to 8.
    Host(*mut [u64]),
    #[cfg(feature = "cuda")]
    Device(CudaSlice<u8>, Arc<CudaStream>),
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self {
            Buffer::Host(words) => drop(unsafe { Box::from_raw(*words) }),
            #[cfg(feature = "cuda")]
            Buffer::Device(..) => {}
        }
    }
}

/// Calls `test` with each available backend.
pub fn on_both(test: impl Fn(&Backend)) {
    test(&Backend::host());
    #[cfg(feature = "cuda")]
    test(&Backend::device());
}

/// The text of the last error of this thread.
pub fn last_error() -> String {
    unsafe { CStr::from_ptr(xact_last_error()) }
        .to_str()
        .unwrap()
        .to_owned()
}

/// Panics with the error text if a call failed.
#[track_caller]
pub fn ok(status: xact_status) {
    assert_eq!(status, XACT_OK, "{}", last_error());
}

/// A struct of arguments with `size` set and all other fields 0.
pub fn sized<T>() -> T {
    let mut args: T = unsafe { std::mem::zeroed() };
    unsafe { (&raw mut args).cast::<u64>().write(size_of::<T>() as u64) };
    args
}

/// An activation with its default options. The name is leaked.
pub fn activation(name: &str) -> xact_activation {
    let name = CString::new(name).unwrap().into_raw();
    let mut op: xact_activation = sized();
    ok(unsafe { xact_activation_init(&mut op, size_of::<xact_activation>() as u64, name) });
    op
}

/// The loss with its default options.
pub fn cross_entropy() -> xact_cross_entropy {
    let mut op: xact_cross_entropy = sized();
    ok(unsafe { xact_cross_entropy_init(&mut op, size_of::<xact_cross_entropy>() as u64) });
    op
}

pub fn number(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F32 => XACT_DTYPE_F32,
        Dtype::F16 => XACT_DTYPE_F16,
        Dtype::Bf16 => XACT_DTYPE_BF16,
        other => panic!("{other}"),
    }
}

/// Pseudo-random numbers in (−1, 1).
pub fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub fn elements<T: Element>(values: impl IntoIterator<Item = f64>) -> Vec<T> {
    values.into_iter().map(T::from_f64).collect()
}

impl Backend {
    pub fn host() -> Backend {
        Backend {
            #[cfg(feature = "cuda")]
            device: None,
        }
    }

    #[cfg(feature = "cuda")]
    pub fn device() -> Backend {
        cuda_emulator::install().unwrap();
        let mut handle = ptr::null_mut();
        ok(unsafe { xact_device_open(0, &mut handle) });
        ok(unsafe { xact_device_preload(handle, ptr::null()) });
        let context = CudaContext::new(0).unwrap();
        // All calls of a test are on one stream, as in a capture.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        Backend {
            device: Some(Stream { handle, stream }),
        }
    }

    #[cfg(feature = "cuda")]
    pub fn stream(&self) -> Option<&Stream> {
        self.device.as_ref()
    }

    /// Whether this is the host.
    pub fn is_host(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.device.is_none();
        #[cfg(not(feature = "cuda"))]
        true
    }

    pub fn put<T: Copy>(&self, values: &[T]) -> Buffer {
        let bytes = size_of_val(values);
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), bytes) };
            let padded = [bytes, &[0; 8]].concat();
            let buffer = device.stream.clone_htod(&padded).unwrap();
            return Buffer::Device(buffer, device.stream.clone());
        }
        let words: Box<[u64]> = vec![0; bytes / 8 + 1].into();
        let words = Box::into_raw(words);
        unsafe { ptr::copy_nonoverlapping(values.as_ptr().cast(), words.cast::<u8>(), bytes) };
        Buffer::Host(words)
    }

    /// Memory for a workspace; the host needs none.
    pub fn workspace(&self, bytes: u64) -> Buffer {
        self.put(&vec![0_u64; bytes.div_ceil(8) as usize])
    }

    pub fn forward(&self, op: &xact_activation, args: &xact_activation_args) -> xact_status {
        #[cfg(feature = "cuda")]
        if let Some(Stream { handle, stream }) = &self.device {
            return unsafe {
                xact_activation_forward(*handle, stream.cu_stream().cast(), op, args)
            };
        }
        unsafe { xact_activation_forward_host(op, args) }
    }

    pub fn backward(&self, op: &xact_activation, args: &xact_activation_args) -> xact_status {
        #[cfg(feature = "cuda")]
        if let Some(Stream { handle, stream }) = &self.device {
            return unsafe {
                xact_activation_backward(*handle, stream.cu_stream().cast(), op, args)
            };
        }
        unsafe { xact_activation_backward_host(op, args) }
    }

    pub fn mask(&self, args: &xact_goldfish_args) -> xact_status {
        #[cfg(feature = "cuda")]
        if let Some(Stream { handle, stream }) = &self.device {
            return unsafe { xact_goldfish_mask(*handle, stream.cu_stream().cast(), args) };
        }
        unsafe { xact_goldfish_mask_host(args) }
    }

    pub fn loss(
        &self,
        function: Loss,
        op: &xact_cross_entropy,
        args: &xact_cross_entropy_args,
    ) -> xact_status {
        #[cfg(feature = "cuda")]
        if let Some(Stream { handle, stream }) = &self.device {
            let call = match function {
                Loss::Forward => xact_cross_entropy_forward,
                Loss::WithGradient => xact_cross_entropy_forward_with_gradient,
                Loss::Backward => xact_cross_entropy_backward,
                Loss::PartialStats => xact_cross_entropy_partial_stats,
                Loss::Finish => xact_cross_entropy_finish,
            };
            return unsafe { call(*handle, stream.cu_stream().cast(), op, args) };
        }
        let call = match function {
            Loss::Forward => xact_cross_entropy_forward_host,
            Loss::WithGradient => xact_cross_entropy_forward_with_gradient_host,
            Loss::Backward => xact_cross_entropy_backward_host,
            Loss::PartialStats => xact_cross_entropy_partial_stats_host,
            Loss::Finish => xact_cross_entropy_finish_host,
        };
        unsafe { call(op, args) }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Loss {
    Forward,
    WithGradient,
    Backward,
    PartialStats,
    Finish,
}

impl Buffer {
    /// The address of the byte at `offset`.
    pub fn at(&self, offset: usize) -> *mut c_void {
        match self {
            Buffer::Host(words) => words.cast::<u8>().wrapping_add(offset).cast(),
            #[cfg(feature = "cuda")]
            Buffer::Device(bytes, stream) => {
                let (address, _) = bytes.device_ptr(stream);
                ptr::without_provenance_mut(address as usize + offset)
            }
        }
    }

    pub fn ptr<T>(&self) -> *mut T {
        self.at(0).cast()
    }

    /// The first `len` elements.
    pub fn get<T: Copy>(&self, len: usize) -> Vec<T> {
        let read = |first: *const u8| {
            (0..len)
                .map(|i| unsafe { first.cast::<T>().add(i).read_unaligned() })
                .collect()
        };
        match self {
            Buffer::Host(words) => read(words.cast()),
            #[cfg(feature = "cuda")]
            Buffer::Device(bytes, stream) => read(stream.clone_dtoh(bytes).unwrap().as_ptr()),
        }
    }
}
