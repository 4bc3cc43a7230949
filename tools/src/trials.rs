//! Tests as a table, made at run time.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use super::choose::gpu_required;

/// Runs trials. Where a GPU is required, those that the machine cannot run (they need the emulator, or a second
/// device) are no part of the list, so that none is ignored; how many they are goes to stderr. Elsewhere they are
/// shown as ignored.
pub fn run(arguments: &Arguments, mut trials: Vec<Trial>) -> ExitCode {
    if gpu_required() {
        let all = trials.len();
        trials.retain(|trial| !trial.has_ignored_flag());
        eprintln!("left out: {} trials", all - trials.len());
    }
    libtest_mimic::run(arguments, trials).exit_code()
}
