//! The C ABI of `xact`. Its documentation is `include/xact.h`, which cbindgen makes of `types.rs` and `functions.rs`.
//!
//! `functions.rs` has the exported functions, `device.rs` what they do on a device, by `xact::raw`, and `host.rs` what they
//! do on the host, by `xact::cpu`.

// Names of C.
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
