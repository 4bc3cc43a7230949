//! The adapters of `integrations/`, each tested by its own steps and only when it is asked for: what they need (compilers,
//! valgrind, other languages) the crate does not.

use std::process::ExitCode;

use clap::ValueEnum;

use crate::candle;
use crate::folders::Folders;
use crate::jobs;
use crate::python;
use crate::steps::Step;
use crate::toolkit;

/// The packages of the workspace that are no adapters.
pub const OTHERS: &str = "--workspace --exclude xact-capi";

/// What adapts the crate to something else.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Adapter {
    /// integrations/capi: the C ABI
    C,
    /// integrations/python: the package for PyTorch and NumPy
    Python,
    /// integrations/candle: ops and modules for candle
    Candle,
}

impl Adapter {
    /// Lints and tests; `full` is exhaustive.
    fn steps(self, folders: &Folders, full: bool) -> anyhow::Result<Vec<Step>> {
        Ok(match self {
            Adapter::C => vec![
                Step::cargo("clippy --package xact-capi --all-targets -- -D warnings")
                    .needs("clippy", "clippy"),
                Step::cargo(
                    "clippy --package xact-capi --no-default-features --all-targets -- -D warnings",
                )
                .needs("clippy", "clippy"),
                Step::cargo("test --package xact-capi"),
                Step::cargo("test --package xact-capi --no-default-features --lib"),
            ],
            Adapter::Python => python::steps(folders, full)?,
            Adapter::Candle => candle::steps(folders, full)?,
        })
    }
}

/// Tests these adapters, in this order; all if none is named.
pub fn test(folders: &Folders, adapters: &[Adapter], full: bool) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let all = Adapter::value_variants();
    let mut steps = Vec::new();
    for adapter in if adapters.is_empty() { all } else { adapters } {
        steps.extend(adapter.steps(folders, full)?);
    }
    jobs::run(folders, &steps)
}
