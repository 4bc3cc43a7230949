//! Set-up and one-command jobs of xact. A thin launcher: it starts cargo, pip and nvcc, and does not link
//! the crate, so that it builds in seconds and works where xact itself does not build yet.
//!
//! Whatever it says about set-up goes to stderr; stdout belongs to the job's result.

mod bench;
mod bundle;
mod candle;
mod cargo_messages;
mod folders;
mod format;
mod integrations;
mod jobs;
mod mutants;
mod python;
mod sass;
mod steps;
#[cfg(test)]
mod testing;
mod toolkit;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use folders::Folders;

/// Set-up and one-command jobs of xact.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Find nvcc, or install it under the target folder; prints its path
    ///
    /// Looks at NVCC (path of nvcc); CUDA_HOME, CUDA_PATH, CUDA_ROOT and CUDA_TOOLKIT_ROOT_DIR (folders that
    /// hold bin/nvcc); PATH; /usr/local/cuda, /opt/cuda and /usr; target/cuda-toolkit. Where none has it,
    /// installs pinned packages from PyPI into target/cuda-toolkit: a download of 109 MB, 277 MB on disk,
    /// under NVIDIA's CUDA Toolkit EULA. Nothing outside the target folder is written; removing
    /// target/cuda-toolkit uninstalls it.
    #[command(verbatim_doc_comment)]
    Toolkit,
    /// Check formatting, and lint the library, the emulator and the tools: what to run while working
    ///
    /// Under a minute where little changed since the last time. Tests, examples and benches are compiled and linted by
    /// `test`.
    Check,
    /// Run every check and test: what CI runs, under 10 minutes on 2 cores
    Test {
        /// Test exhaustively (sets XACT_FULL=1), all tests also without the default features, and check all of
        /// docs/accuracy.md
        #[arg(long)]
        full: bool,
        /// Only the tests of this op, such as xielu, cross_entropy or goldfish: those that have its name, or are in a file that has it
        #[arg(long, value_name = "NAME", conflicts_with = "integrations")]
        op: Option<String>,
        /// Only the adapters of integrations/ with these names, or all of them, which no other run tests
        ///
        /// For `python` it installs PyTorch and tools into the user's cache folder: a download of 3 GB, 6 GB on disk;
        /// with `--full` as much again for the least PyTorch. With `--full` the CUDA side of `candle` is type-checked too, which
        /// takes many minutes.
        #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 0..)]
        integrations: Option<Vec<integrations::Adapter>>,
    },
    /// Compare the public API with tests/golden/public_api.txt
    ///
    /// `test` does it too. Needs the Rust that tests/public_api.rs names.
    Api {
        /// Write the golden file
        #[arg(long)]
        golden_update: bool,
    },
    /// Format every Rust and CUDA source
    ///
    /// With rustfmt and with a pinned clang-format, which is installed from PyPI under the target folder where
    /// PATH has none of that release.
    Fmt {
        /// Only this language
        only: Option<format::Language>,
        /// Change nothing, and fail where a file is not formatted
        #[arg(long)]
        check: bool,
    },
    /// Print what every kernel costs as machine code, and compare with tests/golden/sass.md
    ///
    /// Assembles the PTX for sm_80, sm_90, sm_100 and sm_120; registers, spills, and (not for sm_120) the
    /// instructions per element of the main loop as shares of the budget of memory-bound work on H100 and H200.
    /// Fails where a figure differs from the golden file, an entry spills, a bf16 entry is over the budget of the
    /// H100, or the machine code of all four takes more than 4 MB compressed.
    /// The H200, the same processor with 1.43 times the bandwidth, is not held to: there the plain bf16
    /// entries, except the forward of xIELU, and xGELU gated with order 2 need more instructions than memory
    /// gives time for, and fewer would cost accuracy.
    Sass(sass::Options),
    /// Change one thing in the kernels at a time and see whether the tests notice; slow, not part of `test`
    ///
    /// Works on a copy under target/mutants; a run that was stopped goes on where it was, as long as neither
    /// kernels nor tests nor what they are built from changed. Writes target/mutants/report.md. Fails where
    /// less than 97 % of the mutants that change the kernels are noticed, not counting those that
    /// xtask/mutants.txt explains.
    Mutants(mutants::Options),
    /// Pack everything that is to run on a GPU, for a machine that has one and no Rust
    ///
    /// Builds the tests that open a device, the bench, what compares devices and the Python package, with machine code for
    /// every architecture, runs every entry on the emulator, and writes target/gpu-bundle: a folder of at most 64 MiB. There,
    /// `run.sh` compares the device with the emulator, times the kernels and their peers, profiles, and runs
    /// compute-sanitizer, the tests and the checks of the Python package; `--day 1` and `--day 2` are the halves of that,
    /// under 6 minutes each. It ends with a page that says how it went. docs/gpu-day.md has it by the minute. Needs tar
    /// and xz, and the environment of `test --integrations python`, which it makes where it is missing.
    GpuBundle {
        /// Also the bench under other geometries, which `run.sh` times; builds the kernels for each
        #[arg(long)]
        tuning: bool,
        /// Also wheels of peers from PyPI, for what a PyTorch image does not hold
        #[arg(long)]
        wheels: bool,
        /// Run the first day afterwards, with the emulator in the device's place
        #[arg(long)]
        rehearse: bool,
    },
    /// Measure how accurate every op is and write docs/accuracy.md; the arguments are those of `accuracy`
    #[command(disable_help_flag = true)]
    Accuracy {
        /// Passed through; `cargo xtask accuracy --help` lists them
        #[arg(
            value_name = "ARGUMENTS",
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        arguments: Vec<OsString>,
    },
    /// Time the CPU backend beside a copy; the arguments after `--` are those of the bench `cpu`
    Bench {
        /// Also beside PyTorch (eager and torch.compile) and candle, sample by sample
        ///
        /// Installs the packages of integrations/python/requirements.lock into the user's cache folder: on Linux several GB,
        /// of PyTorch's CUDA libraries, though it runs on the CPU. Needs Python 3.11 or newer with venv, and a
        /// C++ compiler for torch.compile. Builds the example `peer` of integrations/candle. Nothing outside the
        /// target folder is written but that environment and PyTorch's cache of compiled code.
        #[arg(long, verbatim_doc_comment)]
        peers: bool,
        /// Passed through; `cargo xtask bench -- --help` lists them
        #[arg(value_name = "ARGUMENTS", last = true)]
        arguments: Vec<OsString>,
    },
    /// Verify every kernel on the best device present; the arguments are those of `verify`
    #[command(disable_help_flag = true)]
    Verify {
        /// Passed through; `cargo xtask verify --help` lists them
        #[arg(
            value_name = "ARGUMENTS",
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let job = Arguments::parse().job;
    let result = Folders::of_this_process().and_then(|folders| match job {
        Job::Toolkit => jobs::toolkit(&folders),
        Job::Check => jobs::check(&folders),
        Job::Test {
            full,
            op,
            integrations,
        } => match (integrations, op) {
            (Some(adapters), _) => integrations::test(&folders, &adapters, full),
            (None, None) => jobs::test(&folders, full),
            (None, Some(op)) => jobs::test_op(&folders, full, &op),
        },
        Job::Api { golden_update } => jobs::api(&folders, golden_update),
        Job::Fmt { only, check } => format::run(&folders, only, check),
        Job::Sass(options) => sass::run(&folders, &options),
        Job::Mutants(options) => mutants::run(&folders, &options),
        Job::GpuBundle {
            tuning,
            wheels,
            rehearse,
        } => {
            let options = bundle::Options {
                tuning,
                wheels,
                rehearse,
            };
            bundle::run(&folders, &options)
        }
        Job::Accuracy { arguments } => jobs::tool(&folders, "accuracy", &arguments),
        Job::Bench { peers, arguments } => bench::run(&folders, peers, &arguments),
        Job::Verify { arguments } => jobs::tool(&folders, "verify", &arguments),
    });
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_tools_get_every_argument() {
        for given in [
            &["--help"][..],
            &["--json", "-v", "xielu"],
            &["xielu", "--help"],
            &["-h"],
        ] {
            for job in ["verify", "accuracy"] {
                let words = ["cargo xtask", job];
                let line = words.iter().chain(given);
                match Arguments::try_parse_from(line).map(|arguments| arguments.job) {
                    Ok(Job::Verify { arguments } | Job::Accuracy { arguments }) => {
                        assert_eq!(arguments, given);
                    }
                    Ok(_) => panic!("another job"),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    #[test]
    fn bad_usage_exits_with_2() {
        for given in [
            &["tset"][..],
            &["test", "--fulll"],
            &["test", "--op"],
            &["test", "--integrations", "fortran"],
            &["test", "--integrations", "c", "--op", "xielu"],
            &["toolkit", "here"],
            &[],
        ] {
            let line = ["cargo xtask"].iter().chain(given);
            match Arguments::try_parse_from(line) {
                Ok(_) => panic!("accepted {given:?}"),
                Err(error) => assert_eq!(error.exit_code(), 2, "{given:?}"),
            }
        }
    }
}
