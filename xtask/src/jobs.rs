//! The jobs, one function each.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
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
    let tests = |line: &str| tests(full, line);
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
    let mut steps = formatting_and_lints(folders, "--all-targets");
    steps.extend([
        tests("test --workspace"),
        tests("test --package xact --no-default-features --lib --test reference"),
        tests(&without_features),
        // The figures of README.md and docs/ are those of the emulator.
        Step::cargo(&accuracy),
        Step::cargo("xtask sass").skip_if(sass::why_not(folders, &toolkit)?),
        Step::cargo("doc --workspace --no-deps").variable("RUSTDOCFLAGS", "-D warnings"),
    ]);
    if full {
        // Last, since it builds the crate anew.
        let machine_code = Step::cargo("test --package xact --test cubins --test loading");
        steps.push(machine_code.variable("XACT_CUDA_ARCHS", "all"));
        steps.push(Step::cargo("xtask gpu-bundle --rehearse"));
    }
    run(&steps)
}

/// Formatting, and lints of what is built without the tests.
pub fn check(folders: &Folders) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    run(&formatting_and_lints(folders, "--lib --bins"))
}

/// The tests of one op: those that have its name, and the files that have it.
pub fn test_op(folders: &Folders, full: bool, op: &str) -> anyhow::Result<ExitCode> {
    let ops = ops(&folders.root)?;
    if !ops.iter().any(|known| known == op) {
        bail!("no op is called {op}: there are {}", ops.join(", "));
    }
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let mut steps = vec![tests(full, &format!("test --package xact --tests -- {op}"))];
    let files = stems(&folders.root.join("tests"), "rs")?;
    if files.iter().any(|file| file.contains(op)) {
        steps.push(tests(full, &format!("test --package xact --test *{op}*")));
    }
    run(&steps)
}

/// The public API against its golden file.
pub fn api(folders: &Folders, golden_update: bool) -> anyhow::Result<ExitCode> {
    eprintln!("{}", toolkit::ensure(folders)?.describe());
    let mut step = Step::cargo("test --package xact --test public_api");
    if golden_update {
        step = step.variable("XACT_GOLDEN_UPDATE", "1");
    }
    run(&[step])
}

/// What `test` and `check` begin with; `targets` are those that are linted.
fn formatting_and_lints(folders: &Folders, targets: &str) -> Vec<Step> {
    let clippy = |packages: &str| {
        Step::cargo(&format!("clippy {packages} {targets} -- -D warnings"))
            .needs("clippy", "clippy")
    };
    vec![
        Step::cargo("xtask fmt --check rust").needs("rustfmt", "fmt"),
        Step::cargo("xtask fmt --check cuda").skip_if(format::why_not(folders)),
        clippy("--workspace"),
        // Without the kernels other code is dead, and other imports are unused.
        clippy("--package xact --no-default-features"),
    ]
}

/// A step of tests; `full` is exhaustive.
fn tests(full: bool, line: &str) -> Step {
    let step = Step::cargo(line);
    if full {
        step.variable("XACT_FULL", "1")
    } else {
        step
    }
}

/// Runs the steps and prints how they went.
pub fn run(steps: &[Step]) -> anyhow::Result<ExitCode> {
    eprintln!("Every step runs with {}={}.", REQUIRE.0, REQUIRE.1);
    let summary = steps::run(steps, &[REQUIRE]);
    println!("\n{summary}");
    match summary.failed() {
        Some(step) => bail!("this step failed: {step}"),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The ops, which are the kernel files.
fn ops(root: &Path) -> anyhow::Result<Vec<String>> {
    let kernels = root.join("kernels");
    let mut ops = Vec::new();
    for folder in fs::read_dir(&kernels).with_context(|| kernels.display().to_string())? {
        ops.extend(stems(&folder?.path(), "cu")?);
    }
    ops.sort();
    Ok(ops)
}

/// The names of the files with this extension, without it.
fn stems(folder: &Path, extension: &str) -> anyhow::Result<Vec<String>> {
    let mut stems = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == extension) {
            let stem = path.file_stem().context("a file without a name")?;
            stems.push(stem.to_string_lossy().into_owned());
        }
    }
    stems.sort();
    Ok(stems)
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
