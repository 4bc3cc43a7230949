//! The parts of the crate's build script, for tests that do what it does.

#[path = "../../build/cache.rs"]
pub mod cache;
#[path = "../../build/compile.rs"]
pub mod compile;
#[path = "../../build/cubin.rs"]
pub mod cubin;
#[path = "../../build/nvcc.rs"]
pub mod nvcc;
