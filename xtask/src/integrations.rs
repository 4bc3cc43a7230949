//! The adapters of `integrations/`, each tested by its own steps and only when it is asked for: what they need (compilers,
//! valgrind, other languages) the crate does not.

use std::process::ExitCode;

use clap::ValueEnum;

use crate::candle;
use crate::folders::Folders;
use crate::jobs;
use crate::steps::Step;
use crate::toolkit;

/// What adapts the crate to something else.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Adapter {
    /// integrations/candle: ops and modules for candle
    Candle,
}

impl Adapter {
    /// Lints and tests; `full` is exhaustive.
    fn steps(self, folders: &Folders, full: bool) -> anyhow::Result<Vec<Step>> {
        match self {
            Adapter::Candle => candle::steps(folders, full),
        }
    }
}

/// Tests these adapters, in this order.
pub fn test(folders: &Folders, adapters: &[Adapter], full: bool) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let mut steps = Vec::new();
    for adapter in adapters {
        steps.extend(adapter.steps(folders, full)?);
    }
    jobs::run(&steps)
}
