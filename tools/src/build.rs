//! The parts of the crate's build script that tests use.

#[path = "../../build/cache.rs"]
pub mod cache;
#[path = "../../build/compile.rs"]
pub mod compile;
#[path = "../../build/cubin.rs"]
pub mod cubin;
#[path = "../../build/nvcc.rs"]
pub mod nvcc;
