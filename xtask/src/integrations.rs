//! The adapters in `integrations/`. Each is tested only on request, by its own steps, because it needs tools that the crate
//! does not (compilers, valgrind, other languages).

use std::process::ExitCode;

use clap::ValueEnum;

use crate::candle;
use crate::folders::Folders;
use crate::jobs;
use crate::python;
use crate::steps::Step;
use crate::toolkit;

/// The packages of the workspace that are not adapters.
pub const OTHERS: &str = "--workspace --exclude xact-capi";

/// An adapter of the crate to a language or a framework.
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
    /// The steps that lint and test the adapter; `full` adds the exhaustive tests.
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

/// Tests these adapters in this order; all adapters if the list is empty.
pub fn test(folders: &Folders, adapters: &[Adapter], full: bool) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let all = Adapter::value_variants();
    let mut steps = Vec::new();
    for adapter in if adapters.is_empty() { all } else { adapters } {
        steps.extend(adapter.steps(folders, full)?);
    }
    jobs::run(folders, &steps)
}
