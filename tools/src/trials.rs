//! Tests as a table that is built at run time.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use xact::Device;

use super::choose::{Gpu, gpu_required, open_for_tests};

/// The result of a trial.
pub type Outcome = Result<(), Failed>;

/// The trials of a program, on the device of its process.
pub struct Table {
    gpu: Gpu,
    full: bool,
    trials: Vec<Trial>,
}

impl Table {
    /// Adds a trial that gets the device, and whether to run all variants (`XACT_FULL=1`).
    pub fn add(
        &mut self,
        name: String,
        needs_emulator: bool,
        test: impl FnOnce(&Gpu, bool) -> Outcome + Send + 'static,
    ) {
        let (gpu, full) = (self.gpu.clone(), self.full);
        let ignored = needs_emulator && !gpu.emulated;
        self.trials
            .push(Trial::test(name, move || test(&gpu, full)).with_ignored_flag(ignored));
    }

    /// Adds a trial that opens a device itself, or two.
    pub fn plain(&mut self, name: &str, devices: usize, test: fn()) {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        let ignored = devices > 1 && Device::new(1).is_err();
        self.trials.push(trial.with_ignored_flag(ignored));
    }
}

/// The main function of a test. It opens the device, and runs the trials that `fill` adds. If a GPU is required, trials
/// that the machine cannot run (because they need the emulator or a second device) are not listed, so that none is ignored,
/// and their number is printed to stderr. Otherwise they are listed as ignored.
pub fn main(fill: impl FnOnce(&mut Table)) -> ExitCode {
    let arguments = Arguments::from_args();
    let gpu = match open_for_tests() {
        Ok(gpu) => gpu,
        Err(code) => return code,
    };
    let mut table = Table {
        gpu,
        full: std::env::var("XACT_FULL").is_ok_and(|v| v == "1"),
        trials: Vec::new(),
    };
    fill(&mut table);
    let mut trials = table.trials;
    if gpu_required() {
        let all = trials.len();
        trials.retain(|trial| !trial.has_ignored_flag());
        eprintln!("left out: {} trials", all - trials.len());
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
