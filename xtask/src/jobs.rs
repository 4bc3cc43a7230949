//! The jobs, one function each.

use std::ffi::OsString;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, bail};

use crate::folders::Folders;
use crate::format;
use crate::sass;
use crate::steps::{self, Step};
use crate::toolkit;

/// Makes a missing nvcc a build error instead of a crate without kernels. Set alike by every job, because
/// each change of it rebuilds the kernels.
pub const REQUIRE: (&str, &str) = ("XACT_REQUIRE_NVCC", "1");

/// Finds or installs nvcc, compiles a kernel with it, and prints its path to stdout.
pub fn toolkit(folders: &Folders) -> anyhow::Result<ExitCode> {
    let toolkit = toolkit::ensure(folders)?;
    toolkit.try_out(folders)?;
    eprintln!("{}", toolkit.describe());
    println!("{}", toolkit.nvcc.display());
    Ok(ExitCode::SUCCESS)
}

/// Formatting, lints, tests and documentation.
pub fn test(folders: &Folders, full: bool) -> anyhow::Result<ExitCode> {
    let toolkit = toolkit::ensure(folders)?;
    eprintln!("{}", toolkit.describe());
    let tests = |line: &str| {
        let step = Step::cargo(line);
        if full {
            step.variable("XACT_FULL", "1")
        } else {
            step
        }
    };
    // Without the default features the tests would do again what they did, the sweeps of whole types among them;
    // what differs is the CPU backend, in one thread. Every kernel file has rows in README.md.
    let (without_features, accuracy) = if full {
        ("--tests", "")
    } else {
        ("--test cpu -- lengths", "--readme")
    };
    let without_features = format!("test --package xact --no-default-features {without_features}");
    let accuracy =
        format!("run --package xact --example accuracy -- --check --device emulated {accuracy}");
    let mut steps = vec![
        Step::cargo("xtask fmt --check rust").needs("rustfmt", "fmt"),
        Step::cargo("xtask fmt --check cuda").skip_if(format::why_not(folders)),
        Step::cargo("clippy --workspace --all-targets -- -D warnings").needs("clippy", "clippy"),
        // Without the kernels other code is dead, and other imports are unused.
        Step::cargo("clippy --package xact --no-default-features --all-targets -- -D warnings")
            .needs("clippy", "clippy"),
        tests("test --workspace"),
        tests("test --package xact --no-default-features --lib --test reference"),
        tests(&without_features),
        // The figures of README.md and docs/ are those of the emulator.
        Step::cargo(&accuracy),
        Step::cargo("xtask sass").skip_if(sass::why_not(folders, &toolkit)?),
        Step::cargo("doc --workspace --no-deps").variable("RUSTDOCFLAGS", "-D warnings"),
    ];
    if full {
        // Last, since it builds the crate anew.
        let machine_code = Step::cargo("test --package xact --test cubins --test loading");
        steps.push(machine_code.variable("XACT_CUDA_ARCHS", "all"));
    }
    eprintln!("Every step runs with {}={}.", REQUIRE.0, REQUIRE.1);
    let summary = steps::run(&steps, &[REQUIRE]);
    println!("\n{summary}");
    match summary.failed() {
        Some(step) => bail!("this step failed: {step}"),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// An example of the crate, built for speed: the emulator executes every instruction.
pub fn example(folders: &Folders, name: &str, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let status = Command::new(steps::cargo())
        .args([
            "run",
            "--release",
            "--package",
            "xact",
            "--example",
            name,
            "--",
        ])
        .args(arguments)
        .env(REQUIRE.0, REQUIRE.1)
        .status()
        .context("cargo does not start")?;
    Ok(ExitCode::from(code(status)))
}

/// The exit status to pass on; that of a signal is the shell's.
pub fn code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_passed_on() {
        for (script, expected) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)] {
            let status = Command::new("sh")
                .args(["-c", script])
                .status()
                .expect("sh");
            assert_eq!(code(status), expected, "{script}");
        }
    }
}
