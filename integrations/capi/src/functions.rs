//! The exported functions. Each hands what it got to another module, inside of [`guard`].
//!
//! What they demand of a caller in Rust is what the header demands: a pointer is null or points to what the header
//! says, for as long as it says.

#![allow(unsafe_code)]
// The header says it once for all.
#![allow(clippy::missing_safety_doc)]

use std::ffi::{c_char, c_void};

use crate::device::{self, xact_device};
use crate::goldfish::{self, xact_goldfish};
use crate::status::{self, guard};
use crate::types::*;
use crate::{host, pool, queries};

// What the library is.

/// The version of the interface that the library has: XACT_ABI_VERSION of the header that it was built with. A program
/// works with a library of the same number.
#[unsafe(no_mangle)]
pub extern "C" fn xact_abi_version() -> u32 {
    XACT_ABI_VERSION
}

/// The version of the library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn xact_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The text of the last error of a function that the calling thread called: UTF-8, empty if there was none. It is valid
/// until the thread's next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn xact_last_error() -> *const c_char {
    status::last_error()
}

/// XACT_OK if the library holds kernels; else XACT_ERROR_KERNELS_NOT_BUILT, and the text says why. It looks for no
/// driver and no device.
#[unsafe(no_mangle)]
pub extern "C" fn xact_kernels_built() -> xact_status {
    guard(device::kernels_built)
}

/// XACT_OK if the library holds kernels and the CUDA driver library can be loaded; else XACT_ERROR_KERNELS_NOT_BUILT or
/// XACT_ERROR_NO_DRIVER. It opens no device, and does not initialise CUDA, so that the process may still be forked.
#[unsafe(no_mangle)]
pub extern "C" fn xact_cuda_available() -> xact_status {
    guard(device::cuda_available)
}

/// Sets how many threads the functions of the host use from now on, in all threads of the process: 1 to 1024, or 0 for
/// as many as there are cores, or as the environment variable RAYON_NUM_THREADS says. Results are the same to the bit.
/// Each number that is used starts threads, which sleep when it is no longer the one.
///
/// XACT_ERROR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub extern "C" fn xact_set_num_threads(threads: u64) -> xact_status {
    guard(|| pool::set_num_threads(threads))
}

// Queries.

/// How many activations there are.
#[unsafe(no_mangle)]
pub extern "C" fn xact_activation_count() -> u64 {
    queries::activation_count()
}

/// The name of activation number `index`, from 0; null beyond the last.
#[unsafe(no_mangle)]
pub extern "C" fn xact_activation_name(index: u64) -> *const c_char {
    queries::activation_name(index)
}

/// Fills in `signature`, whose size the caller has filled in: the parameters and forms of the activation of this name.
/// Its strings live as long as the library.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_UNKNOWN_OP.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_describe(
    name: *const c_char,
    signature: *mut xact_signature,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { queries::describe(name, signature) })
}

/// Bytes of an element of a type of the XACT_DTYPE numbers; 0 of any other number.
#[unsafe(no_mangle)]
pub extern "C" fn xact_dtype_size(dtype: i32) -> u64 {
    queries::dtype_size(dtype)
}

/// Bytes of an id of a type of the XACT_ID numbers; 0 of any other number.
#[unsafe(no_mangle)]
pub extern "C" fn xact_id_size(id_type: i32) -> u64 {
    queries::id_size(id_type)
}

// Devices.

/// Opens device number `ordinal`, from 0, with its primary context, which CUDA's runtime and PyTorch use too, and
/// writes a handle to `*device`. All handles of one device share the kernels, which stay loaded until the process ends.
///
/// XACT_ERROR_NULL, XACT_ERROR_KERNELS_NOT_BUILT, XACT_ERROR_NO_DRIVER, XACT_ERROR_DRIVER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_device_open(
    ordinal: i32,
    device: *mut *mut xact_device,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::open(ordinal, device) })
}

/// The same for the CUcontext that is current in the calling thread. If it is not a primary one, close the handle
/// before you destroy the context.
///
/// XACT_ERROR_WRONG_CONTEXT if no context is current, and as xact_device_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_device_open_current(device: *mut *mut xact_device) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::open_current(device) })
}

/// Loads the kernels of the op of this name (one of the activations, "cross_entropy" or "goldfish") on to the device,
/// or all kernels if `name` is null. Without it they are loaded when they are first used, which a stream that is being
/// captured does not allow. Of code for another architecture than the device's the driver compiles what is loaded, in
/// several threads.
///
/// XACT_ERROR_NULL, XACT_ERROR_UNKNOWN_OP, XACT_ERROR_DRIVER, XACT_ERROR_DRIVER_TOO_OLD, XACT_ERROR_DEVICE_TOO_OLD,
/// XACT_ERROR_NOT_LOADED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_device_preload(
    device: *const xact_device,
    name: *const c_char,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::preload(device, name) })
}

/// Gives a handle back; null does nothing. Work that was launched with it goes on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_device_close(device: *mut xact_device) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::close(device) })
}

// Activations.

/// Fills in the struct of `size` bytes, sizeof(xact_activation), with the name of an activation and its default
/// options. The string must live as long as the struct is used.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_UNKNOWN_OP.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_init(
    op: *mut xact_activation,
    size: u64,
    name: *const c_char,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { queries::activation_init(op, size, name) })
}

/// Writes to `*bytes` how large the workspace of a backward of this shape must be on a device, whatever the pitches. A
/// larger tensor never needs less.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_UNKNOWN_OP,
/// XACT_ERROR_TOO_LARGE, XACT_ERROR_KERNELS_NOT_BUILT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_workspace_bytes(
    op: *const xact_activation,
    dtype: i32,
    rows: u64,
    cols: u64,
    bytes: *mut u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::activation_workspace_bytes(op, dtype, rows, cols, bytes) })
}

/// Launches y = f(x), or y = g(x)·v, on `stream`, a CUstream; null is the default stream. y may be x or v.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_UNKNOWN_OP, XACT_ERROR_NOT_GATED, XACT_ERROR_PARAM_DTYPE, XACT_ERROR_PITCH, XACT_ERROR_TOO_LARGE,
/// XACT_ERROR_OVERLAP; XACT_ERROR_DRIVER, XACT_ERROR_DRIVER_TOO_OLD, XACT_ERROR_DEVICE_TOO_OLD, XACT_ERROR_NOT_LOADED
/// if it cannot be launched.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_forward(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::activation_forward(device, stream, op, args) })
}

/// Launches dx, and dv if gated, on `stream`; and the gradients of the parameters, and y, if they are given. dx, dv and
/// y may each be one of x, v and dy.
///
/// As xact_activation_forward, and XACT_ERROR_WORKSPACE. Only if the driver refuses a second launch after it took a
/// first are some results written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_backward(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::activation_backward(device, stream, op, args) })
}

/// The same as xact_activation_forward on the host, when it returns.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_UNKNOWN_OP, XACT_ERROR_NOT_GATED, XACT_ERROR_PARAM_DTYPE, XACT_ERROR_PITCH, XACT_ERROR_TOO_LARGE,
/// XACT_ERROR_OVERLAP, XACT_ERROR_THREADS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_forward_host(
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::activation_forward(op, args) })
}

/// The same as xact_activation_backward on the host, when it returns.
///
/// As xact_activation_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_backward_host(
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::activation_backward(op, args) })
}

// The loss.

/// Fills in the struct of `size` bytes, sizeof(xact_cross_entropy), with the default options.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_init(
    op: *mut xact_cross_entropy,
    size: u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { queries::cross_entropy_init(op, size) })
}

/// Writes to `*bytes` in how many bytes a forward with these options saves what the backward needs of `rows` rows. They
/// are opaque, and the same on the host and on every device, so that those of several ranks can be gathered.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_saved_bytes(
    op: *const xact_cross_entropy,
    rows: u64,
    bytes: *mut u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { queries::saved_bytes(op, rows, bytes) })
}

/// Writes to `*bytes` how large the workspace of any call with this many rows must be on a device. More rows never need
/// less.
///
/// XACT_ERROR_NULL, XACT_ERROR_KERNELS_NOT_BUILT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_workspace_bytes(
    rows: u64,
    bytes: *mut u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::cross_entropy_workspace_bytes(rows, bytes) })
}

/// Computes losses, and what the backward needs, of whole rows. It launches on `stream`, a CUstream; null is the
/// default stream.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_OUT_OF_RANGE, XACT_ERROR_LABEL_TYPE, XACT_ERROR_PITCH, XACT_ERROR_GROUP_PITCH, XACT_ERROR_TOO_LARGE,
/// XACT_ERROR_OVERLAP, XACT_ERROR_CLASSES, XACT_ERROR_WORKSPACE; XACT_ERROR_DRIVER, XACT_ERROR_DRIVER_TOO_OLD,
/// XACT_ERROR_DEVICE_TOO_OLD, XACT_ERROR_NOT_LOADED if it cannot be launched. Only if the driver refuses a launch after
/// it took an earlier one are some results written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_forward(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::cross_entropy_forward(device, stream, op, args) })
}

/// Computes losses of whole rows, and overwrites the logits with their gradients: where a row fits on the chip, the
/// logits are read once and written once.
///
/// As xact_cross_entropy_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_forward_with_gradient(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::cross_entropy_forward_with_gradient(device, stream, op, args) })
}

/// Computes gradients from what a forward has saved, or from what all ranks have. It launches on `stream`.
///
/// As xact_cross_entropy_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_backward(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::cross_entropy_backward(device, stream, op, args) })
}

/// Computes what a rank saves of its columns, to be gathered from all ranks. Those of hosts and devices may be mixed.
///
/// As xact_cross_entropy_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_partial_stats(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::cross_entropy_partial_stats(device, stream, op, args) })
}

/// Computes losses from what all ranks have saved: the same bits on every rank.
///
/// As xact_cross_entropy_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_finish(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::cross_entropy_finish(device, stream, op, args) })
}

/// The same as xact_cross_entropy_forward on the host, when it returns.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_OUT_OF_RANGE, XACT_ERROR_LABEL_TYPE, XACT_ERROR_PITCH, XACT_ERROR_GROUP_PITCH, XACT_ERROR_TOO_LARGE,
/// XACT_ERROR_OVERLAP, XACT_ERROR_CLASSES, XACT_ERROR_OFFSETS, XACT_ERROR_THREADS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_forward_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_forward(op, args) })
}

/// The same as xact_cross_entropy_forward_with_gradient on the host, when it returns.
///
/// As xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_forward_with_gradient_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_forward_with_gradient(op, args) })
}

/// The same as xact_cross_entropy_backward on the host, when it returns.
///
/// As xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_backward_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_backward(op, args) })
}

/// The same as xact_cross_entropy_partial_stats on the host, when it returns.
///
/// As xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_partial_stats_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_partial_stats(op, args) })
}

/// The same as xact_cross_entropy_finish on the host, when it returns.
///
/// As xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_finish_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_finish(op, args) })
}

// Goldfish.

/// Makes a strategy ready to decide, and writes a handle to `*goldfish`, which xact_goldfish_free frees. A strategy
/// with a table takes some milliseconds. The struct and what it points to are not needed afterwards.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_OUT_OF_RANGE,
/// XACT_ERROR_LENGTH, XACT_ERROR_NO_TABLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_create(
    strategy: *const xact_goldfish_strategy,
    goldfish: *mut *mut xact_goldfish,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { goldfish::create(strategy, goldfish) })
}

/// Frees a handle; null does nothing. Work that was launched with it goes on, since what a device reads of it is the
/// caller's copy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_free(goldfish: *mut xact_goldfish) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { goldfish::free(goldfish) })
}

/// Writes to `*words` and `*count` the bits of the table's entries, from the lowest of the first word on, 1 if it
/// drops; null and 0 if the strategy has no table. They live as long as the handle. A device needs a copy of them.
///
/// XACT_ERROR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_bitmap(
    goldfish: *const xact_goldfish,
    words: *mut *const u32,
    count: *mut u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { goldfish::bitmap(goldfish, words, count) })
}

/// Writes to `*values` and `*count` the coefficients of XACT_STRATEGY_DOT_TABLE, the oldest id's first; null and 0 of
/// other strategies. They live as long as the handle. A device needs a copy of them.
///
/// XACT_ERROR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_coefficients(
    goldfish: *const xact_goldfish,
    values: *mut *const i64,
    count: *mut u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { goldfish::coefficients(goldfish, values, count) })
}

/// Writes to `*h` the ids of a window; 0 if the ids do not matter. A halo of h - 1 ids decides as a whole row does.
///
/// XACT_ERROR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_window(
    goldfish: *const xact_goldfish,
    h: *mut u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { goldfish::window(goldfish, h) })
}

/// Writes to `*share` the share of labels that are dropped of text without repetitions: about 1/k.
///
/// XACT_ERROR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_dropped_share(
    goldfish: *const xact_goldfish,
    share: *mut f64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { goldfish::dropped_share(goldfish, share) })
}

/// Writes to `*bytes` how large the workspace of the counts of this many labels must be on a device. More labels never
/// need less.
///
/// XACT_ERROR_NULL, XACT_ERROR_KERNELS_NOT_BUILT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_workspace_bytes(
    labels: u64,
    bytes: *mut u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::goldfish_workspace_bytes(labels, bytes) })
}

/// Launches the decisions about labels on `stream`, a CUstream; null is the default stream. No labels give counts of 0.
/// Offsets that decrease are not noticed: windows end at one of them or another, but nothing outside of the ids is
/// read.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_TOO_LARGE, XACT_ERROR_OVERLAP, XACT_ERROR_WORKSPACE; XACT_ERROR_DRIVER, XACT_ERROR_DRIVER_TOO_OLD,
/// XACT_ERROR_DEVICE_TOO_OLD, XACT_ERROR_NOT_LOADED if it cannot be launched.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_mask(
    device: *const xact_device,
    stream: *mut c_void,
    args: *const xact_goldfish_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::goldfish_mask(device, stream, args) })
}

/// The same as xact_goldfish_mask on the host, when it returns.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_TOO_LARGE, XACT_ERROR_OVERLAP, XACT_ERROR_OFFSETS, XACT_ERROR_THREADS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_mask_host(args: *const xact_goldfish_args) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::goldfish_mask(args) })
}
