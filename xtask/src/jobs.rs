//! The jobs of the command line, one function each.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::folders::Folders;
use crate::format;
use crate::integrations;
use crate::mutants;
use crate::sass;
use crate::steps::{self, Step, Times};
use crate::toolkit;

/// Makes a missing nvcc a build error. Every job sets this variable to the same value, because a change of it rebuilds the
/// kernels.
pub const REQUIRE: (&str, &str) = ("XACT_REQUIRE_NVCC", "1");

/// The crate, and the package with its tests and tools.
const CRATE_AND_TESTS: &str = "--package xact --package xact-dev";

/// Finds or installs nvcc, compiles a kernel with it, and prints its path to stdout.
pub fn toolkit(folders: &Folders) -> anyhow::Result<ExitCode> {
    let toolkit = toolkit::ensure(folders)?;
    toolkit.try_out(folders)?;
    eprintln!("{}", toolkit.describe());
    println!("{}", toolkit.nvcc.display());
    Ok(ExitCode::SUCCESS)
}

/// Runs the formatting checks, the lints, the tests and the documentation.
pub fn test(folders: &Folders, full: bool) -> anyhow::Result<ExitCode> {
    let toolkit = toolkit::ensure(folders)?;
    eprintln!("{}", toolkit.describe());
    let tests = |line: &str| tests(full, line);
    // Without the default features, only the CPU backend differs, which then has one thread. All other tests would repeat
    // the same work, such as the sweeps over all values of a type. Every kernel file has rows in README.md.
    let (without_features, accuracy) = if full {
        ("--tests", "")
    } else {
        ("--test cpu -- lengths", "--readme")
    };
    let without_features =
        format!("test {CRATE_AND_TESTS} --no-default-features {without_features}");
    let accuracy =
        format!("run --package xact-dev --bin accuracy -- --check --device emulated {accuracy}");
    let mut steps = formatting_and_lints(folders, "--all-targets");
    steps.extend([
        tests(&format!("test {}", integrations::OTHERS)),
        tests(&format!(
            "test {CRATE_AND_TESTS} --no-default-features --lib --test reference"
        )),
        tests(&without_features),
        // The figures in README.md and docs/ come from the emulator.
        Step::cargo(&accuracy),
        Step::cargo("xtask sass").skip_if(sass::why_not(folders, &toolkit)?),
        Step::cargo(&format!("doc {} --no-deps", integrations::OTHERS))
            .variable("RUSTDOCFLAGS", "-D warnings"),
    ]);
    if full {
        // These steps are last, because they rebuild the crate.
        let machine_code = Step::cargo("test --package xact-dev --test images --test loading");
        steps.push(machine_code.variable("XACT_CUDA_ARCHS", "all"));
        steps.push(Step::cargo("xtask gpu-bundle --rehearse"));
    }
    run(folders, &steps)
}

/// Runs the formatting checks, and lints everything except the tests.
pub fn check(folders: &Folders) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    run(folders, &formatting_and_lints(folders, "--lib --bins"))
}

/// Runs the tests of one op: those with the op in their name or in the name of their file or folder.
pub fn test_op(folders: &Folders, full: bool, op: &str) -> anyhow::Result<ExitCode> {
    let ops = ops(&folders.root)?;
    if !ops.iter().any(|known| known == op) {
        bail!("no op is called {op}: there are {}", ops.join(", "));
    }
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let line = format!("test {CRATE_AND_TESTS} --tests -- {op}");
    run(folders, &[tests(full, &line)])
}

/// Compares the public API with its golden file.
pub fn api(folders: &Folders, golden_update: bool) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let mut step = Step::cargo("test --package xact-dev --test public_api");
    if golden_update {
        step = step.variable("XACT_GOLDEN_UPDATE", "1");
    }
    run(folders, &[step])
}

/// The first steps of `test` and `check`; `targets` are cargo's options for the targets to lint.
fn formatting_and_lints(folders: &Folders, targets: &str) -> Vec<Step> {
    let clippy = |packages: &str| {
        Step::cargo(&format!("clippy {packages} {targets} -- -D warnings"))
            .needs("clippy", "clippy")
    };
    vec![
        Step::cargo("xtask fmt --check rust").needs("rustfmt", "fmt"),
        Step::cargo("xtask fmt --check cuda").skip_if(format::why_not(folders)),
        clippy(integrations::OTHERS),
        // Without the kernels, other code is unused, so this build is linted too.
        clippy(&format!("{CRATE_AND_TESTS} --no-default-features")),
    ]
}

/// A step that runs tests; `full` adds the exhaustive ones.
fn tests(full: bool, line: &str) -> Step {
    let step = Step::cargo(line);
    if full {
        step.variable("XACT_FULL", "1")
    } else {
        step
    }
}

/// Runs the steps and prints the summary.
pub fn run(folders: &Folders, steps: &[Step]) -> anyhow::Result<ExitCode> {
    eprintln!("Every step runs with {}={}.", REQUIRE.0, REQUIRE.1);
    first_time(folders);
    let summary = steps::run(steps, &[REQUIRE], &mut Times::read(folders));
    println!("\n{summary}");
    match summary.failed() {
        Some(step) => bail!("this step failed: {step}"),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The names of the ops, which are those of the kernel files.
fn ops(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut ops: Vec<_> = mutants::kernels(root)?
        .iter()
        .map(|file| mutants::op_of(file))
        .collect();
    ops.sort();
    Ok(ops)
}

/// In the first build, tells the user that the kernels are compiled, which cargo does not show.
fn first_time(folders: &Folders) {
    if !folders.target.join("xact-kernels").is_dir() {
        eprintln!(
            "The first build also compiles the kernels: nvcc takes about a minute, and cargo shows no progress meanwhile."
        );
    }
}

/// Runs one of the tools, in a release build, because the emulator executes every instruction.
pub fn tool(folders: &Folders, name: &str, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    first_time(folders);
    let mut cargo = Command::new(steps::cargo());
    cargo.args([
        "run",
        "--release",
        "--package",
        "xact-dev",
        "--bin",
        name,
        "--",
    ]);
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let line = format!("{name} {}", words.join(" "));
    let mut times = Times::read(folders);
    if let Some(estimate) = times.estimate(&line, &[]) {
        eprintln!("{estimate}");
    }
    let start = Instant::now();
    let status = cargo
        .args(arguments)
        .env(REQUIRE.0, REQUIRE.1)
        .status()
        .context("cargo does not start")?;
    if status.success() {
        times.note(&line, start.elapsed());
    }
    Ok(ExitCode::from(code(status)))
}

/// The exit status to pass on; for a signal, that of a shell.
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
    fn the_ops_are_the_kernel_files() {
        let scratch = crate::testing::Scratch::new();
        for file in ["loss/b.cu", "activation/a.cu", "common/c.cuh"] {
            scratch.write(&format!("kernels/{file}"), "");
        }
        assert_eq!(ops(scratch.path()).expect("readable"), ["a", "b"]);
    }

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
