//! The exported functions. Each calls a function of another module inside [`guard`].
//!
//! Their safety conditions are those of the header: a pointer is null, or points to what the header says for as long as
//! the header says.

#![allow(unsafe_code)]
// The header states the conditions once for all functions.
#![allow(clippy::missing_safety_doc)]

use std::ffi::{c_char, c_void};

use crate::device::{self, xact_device};
use crate::goldfish::{self, xact_goldfish};
use crate::status::{self, guard};
use crate::types::*;
use crate::{host, pool, queries};

// What the library is.

/// Returns the version of the library's interface: XACT_ABI_VERSION of the header that the library was built with. A
/// program works with a library whose number equals that of its own header.
#[unsafe(no_mangle)]
pub extern "C" fn xact_abi_version() -> u32 {
    XACT_ABI_VERSION
}

/// Returns the version of the library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn xact_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Returns the text of the calling thread's last error, in UTF-8; empty if there was none. The pointer is valid until
/// the thread's next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn xact_last_error() -> *const c_char {
    status::last_error()
}

/// Returns XACT_OK if the library has kernels; else XACT_ERROR_KERNELS_NOT_BUILT, and the text says why. It looks for
/// neither a driver nor a device.
#[unsafe(no_mangle)]
pub extern "C" fn xact_kernels_built() -> xact_status {
    guard(device::kernels_built)
}

/// Returns XACT_OK if the library has kernels and the CUDA driver library can be loaded; else
/// XACT_ERROR_KERNELS_NOT_BUILT or XACT_ERROR_NO_DRIVER. It opens no device and does not initialise CUDA, so the process
/// may still be forked.
#[unsafe(no_mangle)]
pub extern "C" fn xact_cuda_available() -> xact_status {
    guard(device::cuda_available)
}

/// Sets the number of threads that host functions use, for the whole process: 1 to 1024, or 0 for the value of the
/// environment variable RAYON_NUM_THREADS, or else the number of cores. The results are bitwise the same for every
/// number. The first call with each number starts that many threads; they sleep while another number is set.
///
/// XACT_ERROR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub extern "C" fn xact_set_num_threads(threads: u64) -> xact_status {
    guard(|| pool::set_num_threads(threads))
}

// Queries.

/// Returns the number of activations.
#[unsafe(no_mangle)]
pub extern "C" fn xact_activation_count() -> u64 {
    queries::activation_count()
}

/// Returns the name of activation number `index`, counted from 0; null if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn xact_activation_name(index: u64) -> *const c_char {
    queries::activation_name(index)
}

/// Writes the parameters and forms of the activation `name` to `signature`, whose `size` the caller has set. The strings
/// are valid as long as the library is loaded.
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

/// Returns the size in bytes of an element of a type, one of the XACT_DTYPE numbers; 0 for any other number.
#[unsafe(no_mangle)]
pub extern "C" fn xact_dtype_size(dtype: i32) -> u64 {
    queries::dtype_size(dtype)
}

/// Returns the size in bytes of an id of a type, one of the XACT_ID numbers; 0 for any other number.
#[unsafe(no_mangle)]
pub extern "C" fn xact_id_size(id_type: i32) -> u64 {
    queries::id_size(id_type)
}

// Devices.

/// Opens device number `ordinal`, counted from 0, with its primary context, which the CUDA runtime and PyTorch also use,
/// and writes a handle to `*device`. All handles of a device share the kernels, which stay loaded until the process ends.
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

/// Opens the device of the CUcontext that is current in the calling thread, with that context, and writes a handle to
/// `*device`. If it is not the primary context, close the handle before you destroy the context.
///
/// XACT_ERROR_WRONG_CONTEXT if no context is current, and the errors of xact_device_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_device_open_current(device: *mut *mut xact_device) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::open_current(device) })
}

/// Loads the kernels of the op `name` (an activation, "cross_entropy" or "goldfish") onto the device, or all kernels if
/// `name` is null. Otherwise a kernel is loaded when it is first used, which fails while a stream is captured. If the
/// library has no machine code for the device's architecture, the driver compiles the kernels, in several threads.
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

/// Closes a handle; null does nothing. Work that was launched with the handle continues.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_device_close(device: *mut xact_device) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { device::close(device) })
}

// Activations.

/// Writes the name of an activation and its default options to `*op`; `size` is sizeof(xact_activation). The struct
/// stores the pointer `name`, so the string must live as long as the struct is used.
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

/// Writes to `*bytes` the size of the device workspace that a backward of this shape needs, for any pitches. A larger
/// tensor never needs less.
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

/// Launches the forward on `stream`, a CUstream or null for the default stream: y = f(x), G(x)·v or f(x)·v. y may be x or
/// v.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_UNKNOWN_OP, XACT_ERROR_NOT_GATED, XACT_ERROR_PARAM_DTYPE, XACT_ERROR_PITCH, XACT_ERROR_BLOCK,
/// XACT_ERROR_TOO_LARGE, XACT_ERROR_OVERLAP; XACT_ERROR_DRIVER, XACT_ERROR_DRIVER_TOO_OLD, XACT_ERROR_DEVICE_TOO_OLD,
/// XACT_ERROR_NOT_LOADED if it cannot be launched.
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

/// Launches the backward on `stream`: it computes dx, dv if gated, and the gradients of the parameters and y if their
/// pointers are not null. dx, dv and y may each be one of x, v and dy.
///
/// The errors of xact_activation_forward, and XACT_ERROR_WORKSPACE. If the driver refuses a second launch after it
/// accepted the first, some results are written.
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

/// Computes the same as xact_activation_forward on the host, and returns when the results are written.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_UNKNOWN_OP, XACT_ERROR_NOT_GATED, XACT_ERROR_PARAM_DTYPE, XACT_ERROR_PITCH, XACT_ERROR_BLOCK,
/// XACT_ERROR_TOO_LARGE, XACT_ERROR_OVERLAP, XACT_ERROR_THREADS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_forward_host(
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::activation_forward(op, args) })
}

/// Computes the same as xact_activation_backward on the host, and returns when the results are written.
///
/// The errors of xact_activation_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_activation_backward_host(
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::activation_backward(op, args) })
}

// The loss.

/// Writes the default options to `*op`; `size` is sizeof(xact_cross_entropy).
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

/// Writes to `*bytes` the size of `saved` for `rows` rows with these options. The format of `saved` is opaque. It is the
/// same on the host and on every device, so the bytes of several ranks can be gathered.
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

/// Writes to `*bytes` the size of the device workspace that any call with `rows` rows needs. More rows never need less.
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

/// Computes the losses of whole rows, and `saved` for the backward. It launches on `stream`, a CUstream or null for the
/// default stream.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_OUT_OF_RANGE, XACT_ERROR_LABEL_TYPE, XACT_ERROR_PITCH, XACT_ERROR_GROUP_PITCH, XACT_ERROR_TOO_LARGE,
/// XACT_ERROR_OVERLAP, XACT_ERROR_CLASSES, XACT_ERROR_WORKSPACE; XACT_ERROR_DRIVER, XACT_ERROR_DRIVER_TOO_OLD,
/// XACT_ERROR_DEVICE_TOO_OLD, XACT_ERROR_NOT_LOADED if it cannot be launched. If the driver refuses a launch after it
/// accepted an earlier one, some results are written.
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

/// Computes the losses of whole rows, and overwrites the logits with their gradients. If a row fits on the chip, the
/// logits are read once and written once. It launches on `stream`.
///
/// The errors of xact_cross_entropy_forward.
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

/// Computes the gradients of the logits from the `saved` bytes of a forward, or of all ranks. It launches on `stream`.
///
/// The errors of xact_cross_entropy_forward.
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

/// Computes the `saved` bytes of a rank's columns, which are then gathered from all ranks. Ranks on hosts and on devices
/// may be mixed. It launches on `stream`.
///
/// The errors of xact_cross_entropy_forward.
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

/// Computes the losses from the gathered `saved` bytes of all ranks. The results are bitwise the same on every rank. It
/// launches on `stream`.
///
/// The errors of xact_cross_entropy_forward.
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

/// Computes the same as xact_cross_entropy_forward on the host, and returns when the results are written.
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

/// Computes the same as xact_cross_entropy_forward_with_gradient on the host, and returns when the results are written.
///
/// The errors of xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_forward_with_gradient_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_forward_with_gradient(op, args) })
}

/// Computes the same as xact_cross_entropy_backward on the host, and returns when the results are written.
///
/// The errors of xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_backward_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_backward(op, args) })
}

/// Computes the same as xact_cross_entropy_partial_stats on the host, and returns when the results are written.
///
/// The errors of xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_partial_stats_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_partial_stats(op, args) })
}

/// Computes the same as xact_cross_entropy_finish on the host, and returns when the results are written.
///
/// The errors of xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_cross_entropy_finish_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::cross_entropy_finish(op, args) })
}

// The head of a language model. It has host functions only.

/// Computes the losses of hidden states and their totals on the host, and returns when the results are written.
///
/// XACT_ERROR_SHAPE, XACT_ERROR_PARAM_DTYPE, XACT_ERROR_KEPT_ROW, XACT_ERROR_BUDGET, and the errors of
/// xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_linear_cross_entropy_forward_host(
    op: *const xact_cross_entropy,
    args: *const xact_linear_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::linear_cross_entropy_forward(op, args) })
}

/// Computes what xact_linear_cross_entropy_forward_host computes, and the gradients that are not null.
///
/// The errors of xact_linear_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_linear_cross_entropy_forward_with_gradient_host(
    op: *const xact_cross_entropy,
    args: *const xact_linear_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::linear_cross_entropy_forward_with_gradient(op, args) })
}

/// Computes the gradients that are not null from the `gathered` bytes of a forward with the same options, labels, weights,
/// decision and list of kept rows. The logits are computed again.
///
/// The errors of xact_linear_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_linear_cross_entropy_backward_host(
    op: *const xact_cross_entropy,
    args: *const xact_linear_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::linear_cross_entropy_backward(op, args) })
}

/// Computes the `saved` bytes of a rank's classes, which are then gathered from all ranks for
/// xact_cross_entropy_finish_host and xact_linear_cross_entropy_backward_host. A list of kept rows must have every row that
/// the loss keeps.
///
/// The errors of xact_linear_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_linear_cross_entropy_partial_stats_host(
    op: *const xact_cross_entropy,
    args: *const xact_linear_cross_entropy_args,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::linear_cross_entropy_partial_stats(op, args) })
}

/// Lists the rows that need logits, in ascending order, from labels, weights and decision: `kept_rows`, `[args->rows]` or
/// null, gets `*count` rows. The number of classes is xact_cross_entropy.vocab. Make the list where the text is loaded, and
/// give it to the functions of the head.
///
/// The errors of xact_cross_entropy_forward_host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_kept_rows_host(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
    kept_rows: *mut i32,
    count: *mut u64,
) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::kept_rows(op, args, kept_rows, count) })
}

// Goldfish.

/// Prepares a strategy, and writes a handle to `*goldfish`; free it with xact_goldfish_free. A strategy with a table
/// takes some milliseconds. The struct, `table` and `bitmap` are not needed afterwards.
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

/// Frees a handle; null does nothing. Work that was launched with the handle continues, because a device reads only the
/// caller's copies of the tables.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_free(goldfish: *mut xact_goldfish) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { goldfish::free(goldfish) })
}

/// Writes to `*words` and `*count` the address and the number of the words of the bitmap: one bit for each entry of the
/// table, from the lowest bit of the first word on, 1 if the entry drops. Null and 0 if the strategy has no table. The
/// words live as long as the handle. For a device, copy them to device memory (xact_decision.bitmap).
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

/// Writes to `*values` and `*count` the address and the number of the coefficients of XACT_STRATEGY_DOT_TABLE, that of
/// the window's first id first; null and 0 for other strategies. The coefficients live as long as the handle. For a
/// device, copy them to device memory (xact_decision.coefficients).
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

/// Writes to `*h` the number of ids in a window; 0 if the strategy does not depend on ids. With a halo of h - 1 ids, a
/// part of a row gets the same decisions as in the whole row.
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

/// Writes to `*share` the share of labels that the strategy drops from text without repetitions, about 1/k.
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

/// Writes to `*bytes` the size of the device workspace that a mask of `labels` labels with `counts` needs. More labels
/// never need less.
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

/// Decides which labels are dropped. It launches on `stream`, a CUstream or null for the default stream. For 0 labels the
/// counts are 0. The host cannot check the offsets and the numbers of preceding labels: if offsets decrease, the windows stop
/// at unspecified offsets, and negative numbers of chunks count as 0, but nothing outside the ids and the halo is read.
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

/// Computes the same as xact_goldfish_mask on the host, and returns when the results are written.
///
/// XACT_ERROR_NULL, XACT_ERROR_MISALIGNED, XACT_ERROR_STRUCT_SIZE, XACT_ERROR_ENUM, XACT_ERROR_LENGTH,
/// XACT_ERROR_OUT_OF_RANGE, XACT_ERROR_TOO_LARGE, XACT_ERROR_OVERLAP, XACT_ERROR_OFFSETS, XACT_ERROR_THREADS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xact_goldfish_mask_host(args: *const xact_goldfish_args) -> xact_status {
    // SAFETY: the caller vouches for the pointers, as the header says.
    guard(|| unsafe { host::goldfish_mask(args) })
}
