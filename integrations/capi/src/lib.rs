//! The C ABI of `xact`. Its documentation is `include/xact.h`, which cbindgen generates from `types.rs` and `functions.rs`.
//!
//! `functions.rs` has the exported functions. `device.rs` implements them on a device with `xact::raw`, and `host.rs` on the
//! host with `xact::cpu`.

// The exported types have C names.
#![allow(non_camel_case_types)]

#[cfg(feature = "cuda")]
mod context;
#[cfg_attr(not(feature = "cuda"), path = "no_device.rs")]
mod device;
mod functions;
mod goldfish;
mod host;
mod matrix;
mod memory;
mod options;
mod pool;
mod queries;
mod status;
#[cfg(test)]
mod tests;
mod types;
