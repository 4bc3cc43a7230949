//! The code that the tests, tools and benchmarks of xact share: the choice of a device, calls on the device, inputs.
//!
//! It is compiled once for all of them. Without the feature `cuda`, it has only the parts that need no device.

pub mod build;
#[cfg(feature = "cuda")]
pub mod cases;
#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
pub mod choose;
pub mod files;
#[cfg(feature = "cuda")]
pub mod goldfish;
pub mod goldfish_chunks;
pub mod goldfish_golden;
pub mod inputs;
#[cfg(all(feature = "cuda", debug_assertions))] // of no use where it is optimised
pub mod instances;
pub mod limits;
pub mod linear_golden;
#[cfg(feature = "cuda")]
pub mod loss;
pub mod loss_cases;
pub mod loss_check;
pub mod loss_cpu;
pub mod loss_golden;
pub mod loss_trials;
#[cfg(feature = "cuda")]
pub mod machine;
pub mod plot;
pub mod progress;
#[cfg(feature = "cuda")]
pub mod run;
pub mod same;
pub mod strategy;
pub mod table;
pub mod toolkit;
#[cfg(feature = "cuda")]
pub mod trials;

use std::path::Path;

/// The root of the repository.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .expect("the folder of this crate is not the root")
}
