//! Set-up and one-command jobs of xact. xtask starts cargo, pip and nvcc. It does not link with xact, so it builds in
//! seconds, and works even if xact does not build.
//!
//! Messages about set-up go to stderr; the result of a job goes to stdout.

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
    /// Find nvcc, or install it under the target folder, and print its path
    ///
    /// Looks for nvcc in this order: NVCC (path of nvcc); CUDA_HOME, CUDA_PATH, CUDA_ROOT and
    /// CUDA_TOOLKIT_ROOT_DIR (folders with bin/nvcc); PATH; /usr/local/cuda, /opt/cuda and /usr;
    /// target/cuda-toolkit. If there is none, installs pinned packages from PyPI into target/cuda-toolkit: a
    /// download of 109 MB, 277 MB on disk, under NVIDIA's CUDA Toolkit EULA. It writes nothing outside the target
    /// folder; to uninstall, remove target/cuda-toolkit.
    #[command(verbatim_doc_comment)]
    Toolkit,
    /// Check the formatting, and lint the library, the emulator and the tools; for use while you work
    ///
    /// Takes under a minute if little has changed since the last run. Only `test` compiles and lints the tests, examples
    /// and benches.
    Check,
    /// Run all checks and tests of CI; takes under 10 minutes on 2 cores
    Test {
        /// Also run the exhaustive tests (XACT_FULL=1), run all tests without the default features too, and check all of
        /// docs/accuracy.md
        #[arg(long)]
        full: bool,
        /// Run only the tests of this op, such as xielu, cross_entropy or goldfish, selected by the name of the test or file
        #[arg(long, value_name = "NAME", conflicts_with = "integrations")]
        op: Option<String>,
        /// Test only the adapters in integrations/ with these names, or all adapters; no other run tests them
        ///
        /// For `python` it installs PyTorch and tools into the user's cache folder: a download of 3 GB, 6 GB on disk.
        /// With `--full` it installs the oldest supported PyTorch too, of about the same size, and type-checks the CUDA
        /// code of `candle`, which takes many minutes.
        #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 0..)]
        integrations: Option<Vec<integrations::Adapter>>,
    },
    /// Compare the public API with tests/golden/public_api.txt
    ///
    /// `test` does the same. Needs the Rust toolchain that tests/public_api.rs names.
    Api {
        /// Write the golden file instead
        #[arg(long)]
        golden_update: bool,
    },
    /// Format all Rust and CUDA sources
    ///
    /// Uses rustfmt and a pinned release of clang-format. If PATH does not have that release, it is installed from PyPI
    /// under the target folder.
    Fmt {
        /// Format only this language
        only: Option<format::Language>,
        /// Change nothing, and fail if a file is not formatted
        #[arg(long)]
        check: bool,
    },
    /// Print the costs of every kernel's machine code, and compare them with tests/golden/sass.md
    ///
    /// Assembles the PTX for sm_80, sm_90, sm_100 and sm_120, and prints registers and spills. Except for sm_120, it also
    /// prints the instructions per element of the main loop, as shares of the budget of memory-bound work on H100 and
    /// H200. Fails if a figure differs from the golden file, an entry spills, a bf16 entry exceeds the budget of the H100,
    /// or the machine code for all four architectures has more than 4 MB compressed.
    /// There is no limit for the H200, the same processor with 1.43 times the bandwidth: there, the plain bf16 entries
    /// (except the forward of xIELU) and xGELU gated with order 2 exceed the budget, and fewer instructions would cost
    /// accuracy.
    Sass(sass::Options),
    /// Run the tests on mutants of the kernels, which each have one change; slow, not part of `test`
    ///
    /// Works on a copy under target/mutants. A run that was stopped continues, unless the kernels, the tests or the files
    /// that they are built from have changed. Writes target/mutants/report.md. Fails unless the tests notice 97 %
    /// of the mutants. Mutants that do not compile, that do not change the PTX, or that xtask/mutants.txt explains do not
    /// count.
    Mutants(mutants::Options),
    /// Pack the tests and benches for a machine with a GPU and without Rust
    ///
    /// Builds the tests that open a device, the bench, the tool that compares devices and the Python package, with machine
    /// code for every architecture. Runs every entry on the emulator, and writes target/gpu-bundle, a folder of at most
    /// 64 MiB. On the GPU machine, its `run.sh` compares the device with the emulator, times the kernels and their peers,
    /// profiles, and runs compute-sanitizer, the tests and the checks of the Python package. `--day 1` and `--day 2` are
    /// the two halves of that, under 6 minutes each. The last step writes a page with the results. docs/gpu-day.md has the
    /// plan by the minute. Needs tar and xz, and the environment of `test --integrations python`, which it makes if it is
    /// missing.
    GpuBundle {
        /// Add the bench with other geometries, which `run.sh` times; this builds the kernels for each geometry
        #[arg(long)]
        tuning: bool,
        /// Add the wheels of peers from PyPI that a PyTorch image does not contain
        #[arg(long)]
        wheels: bool,
        /// Then run the first day on the emulator instead of a device
        #[arg(long)]
        rehearse: bool,
    },
    /// Measure the accuracy of every op and write docs/accuracy.md; the arguments are passed to `accuracy`
    #[command(disable_help_flag = true)]
    Accuracy {
        /// Arguments of `accuracy`; `cargo xtask accuracy --help` lists them
        #[arg(
            value_name = "ARGUMENTS",
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        arguments: Vec<OsString>,
    },
    /// Time the CPU backend and, for comparison, a copy; the arguments after `--` are passed to the bench `cpu`
    Bench {
        /// Also time PyTorch (eager and torch.compile) and candle, alternating the samples
        ///
        /// Installs the packages of integrations/python/requirements.lock into the user's cache folder: on Linux
        /// several GB, which are mostly PyTorch's CUDA libraries, although the bench runs on the CPU. Needs
        /// Python 3.11 or newer with venv, and a C++ compiler for torch.compile. Builds the example `peer` of
        /// integrations/candle. Outside the target folder it writes only that environment and PyTorch's cache
        /// of compiled code.
        #[arg(long, verbatim_doc_comment)]
        peers: bool,
        /// Arguments of the bench; `cargo xtask bench -- --help` lists them
        #[arg(value_name = "ARGUMENTS", last = true)]
        arguments: Vec<OsString>,
    },
    /// Verify every kernel on the best available device; the arguments are passed to `verify`
    #[command(disable_help_flag = true)]
    Verify {
        /// Arguments of `verify`; `cargo xtask verify --help` lists them
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
