//! The adapters of `integrations/`, each tested by its own steps and only when it is asked for: what they need (compilers,
//! valgrind, other languages) the crate does not.

use std::process::ExitCode;

use clap::ValueEnum;

use crate::folders::Folders;
use crate::jobs;
use crate::steps::Step;
use crate::toolkit;

/// The packages of the workspace that are no adapters.
pub const OTHERS: &str = "--workspace --exclude xact-capi";

/// What adapts the crate to something else.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Adapter {
    /// integrations/capi: the C ABI
    C,
}

impl Adapter {
    /// Lints and tests.
    fn steps(self) -> Vec<Step> {
        match self {
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
        }
    }
}

/// Tests these adapters, in this order.
pub fn test(folders: &Folders, adapters: &[Adapter]) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let steps: Vec<Step> = adapters
        .iter()
        .flat_map(|adapter| adapter.steps())
        .collect();
    jobs::run(&steps)
}
