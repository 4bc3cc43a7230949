//! Tests as a table, made at run time.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use xact::Device;

use super::choose::{Gpu, gpu_required, open_for_tests};

/// How a trial ends.
pub type Outcome = Result<(), Failed>;

/// The trials of a program, on the device of its process.
pub struct Table {
    gpu: Gpu,
    full: bool,
    trials: Vec<Trial>,
}

impl Table {
    /// A trial that gets the device, and whether everything is to run that there is (`XACT_FULL=1`).
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

    /// A trial that opens the device itself, or two where it needs them.
    pub fn plain(&mut self, name: &str, devices: usize, test: fn()) {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        let ignored = devices > 1 && Device::new(1).is_err();
        self.trials.push(trial.with_ignored_flag(ignored));
    }
}

/// The main function of a test: opens the device, and runs the trials that `fill` adds. Where a GPU is required, those that
/// the machine cannot run (they need the emulator, or a second device) are no part of the list, so that none is ignored;
/// how many they are goes to stderr. Elsewhere they are shown as ignored.
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
