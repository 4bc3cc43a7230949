//! A stand-in for the CUDA driver that executes PTX on the CPU.
//!
//! [`install`] puts it in the place of `libcuda.so`. After that, all users of the CUDA driver API in this process, such as
//! cudarc, find five devices: an H100 (ordinal 0), an A100 (1), an H100 that an MPS limit reduces to two multiprocessors
//! (2), an H200 (3) and a B200 (4). The emulator parses and executes the same PTX that a GPU gets, instruction by
//! instruction, with exact IEEE arithmetic. [`Check`] lists the bugs that it reports, [`Settings`] the schedules and
//! approximations that it can choose, and [`LaunchReport`] what it counts.
//!
//! A launch runs to its end inside `cuLaunchKernel`, a long one on all idle cores (see [`Settings::workers`]). A bug ends
//! the launch, is printed to stderr, and becomes the error that CUDA would give. Unlike with CUDA, that launch itself
//! returns the error, and the context stays usable, so that one process can try many bugs. [`last_finding`] and [`record`]
//! return the bug as a value.
//!
//! The emulator supports what `xact` uses: see the table in [`instructions`]. An unsupported instruction, modifier, directive
//! or driver call stops the work with an error that names it.
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
