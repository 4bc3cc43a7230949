//! The C ABI of `xact`. `include/xact.h`, which cbindgen makes of `types.rs` and `functions.rs`, is its documentation.

// Names of C.
#![allow(non_camel_case_types)]

mod device;
mod functions;
mod goldfish;
mod host;
mod pool;
mod queries;
mod status;
mod types;
