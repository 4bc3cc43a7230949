//! A stand-in for the CUDA driver that executes PTX on the CPU.
//!
//! [`install`] puts it in the place of `libcuda.so`. From then on whatever uses the CUDA driver API
//! in this process, cudarc for instance, finds five devices: an H100 (ordinal 0), an A100 (1),
//! the two multiprocessors of an H100 that a limit may leave (2), an H200 (3) and a B200 (4).
//! The same PTX that a GPU gets is parsed and executed, instruction by instruction, with exact IEEE
//! arithmetic. It runs where no GPU is, and sees what a GPU hides: see [`Check`] for the bugs that it
//! reports, [`Settings`] for the freedoms of a GPU that it can take, [`LaunchReport`] for what it
//! counts.
//!
//! A launch runs to its end inside `cuLaunchKernel`, a long one on all idle cores (see [`Settings::workers`]). A bug ends the launch,
//! is printed to stderr, and becomes the error that CUDA would give, but at once and for this launch
//! only: the context stays usable, so that one process can try many bugs. [`last_finding`] and
//! [`record`] return it as a value.
//!
//! It supports what `xact` ships: see the table in [`instructions`]. An instruction, modifier, directive or
//! driver call that it does not know stops the work with its name; nothing is skipped in silence.
//!
//! ```
//! use cuda_emulator::{Schedule, Settings, install, record, with_settings};
//!
//! install().unwrap();
//! let random = Settings { schedule: Schedule::Seeded(7), ..Settings::default() };
//! let ((), reports) = record(|| with_settings(random, || { /* launch kernels */ }));
//! assert!(reports.is_empty());
//! ```

mod arith;
mod device;
#[allow(non_snake_case)]
mod driver;
mod exec;
#[cfg(test)]
mod fuzz;
mod install;
pub mod instructions;
mod lanes;
mod lower;
mod memory;
mod ptx;
mod race;
mod real;
mod report;
mod settings;
mod shadow;
mod traffic;

pub use device::device_names;
pub use driver::in_driver_call;
pub use driver::module::substitute;
pub use install::{InstallError, install};
pub use real::real_device_present;
pub use report::{Check, Finding, LaunchReport, last_finding, record};
pub use settings::{Approx, Schedule, Settings, with_settings};
pub use traffic::{AccessCounts, BankPhases, BufferTraffic};
