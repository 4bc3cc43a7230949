//! Packs everything that a machine with a GPU and without Rust needs: the programs, the script that runs them, the
//! emulator's results, the wheel of the Python package, and the peers.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

use anyhow::{Context, bail, ensure};

use crate::folders::Folders;
use crate::jobs::REQUIRE;
use crate::mutants::copy;
use crate::{cargo_messages, python, steps, toolkit};

/// The script that runs all parts.
const RUN: &str = include_str!("../bundle/run.sh");

/// The tests that open a device. The others need cargo or the sources, and do not test the device.
const TESTS: [&str; 5] = ["activations", "api", "cross_entropy", "device", "goldfish"];

/// The bench, which also compares devices and writes the report.
const BENCH: &str = "gpu";

/// Peers that a PyTorch image does not contain. Liger-Kernel needs only torch and triton. QuACK also needs
/// nvidia-cutlass-dsl, whose library alone has 92 MB, apache-tvm-ffi, torch-c-dlpack-ext and einops in the image; else it
/// is not run.
const WHEELS: [&str; 2] = ["liger-kernel==0.8.5", "quack-kernels==0.6.5"];

/// The maximum size of a bundle: 64 MiB.
const MOST_BYTES: u64 = 64 << 20;

/// The architectures for which machine code is embedded beside the PTX, in the programs and in the bench of each geometry,
/// so that the driver need not compile on the GPU machine.
const ARCHITECTURES: &str = "80;90;100;120";
const ARCHITECTURES_OF_GEOMETRIES: &str = "90;100";

/// The emulator's results, in the archive of the programs.
const EMULATED: &str = "emulated.safetensors";

/// The folder of the Python package's wheel and of the checks on a device; `run.sh` uses the same name.
const PACKAGE: &str = "python";

/// The geometries that `--tuning` compares with the present one: a name, and numbers of src/geometry.rs.
const GEOMETRIES: [(&str, &[(&str, u64)]); 9] = [
    ("present", &[]),
    ("packs-1", &[("PACKS", 1)]),
    (
        "packs-4",
        &[("PACKS", 4), ("BLOCKS_OF_1", 3), ("BLOCKS_OF_2", 2)],
    ),
    ("forward-5-blocks", &[("BLOCKS_OF_1", 5)]),
    ("backward-2-blocks", &[("BLOCKS_OF_2", 2)]),
    (
        "block-128",
        &[
            ("BLOCK", 128),
            ("BLOCKS_OF_1", 8),
            ("BLOCKS_OF_2", 6),
            ("BLOCKS_OF_3", 4),
            ("BLOCKS_OF_ROWS", 6),
        ],
    ),
    (
        "block-512",
        &[
            ("BLOCK", 512),
            ("BLOCKS_OF_1", 2),
            ("BLOCKS_OF_2", 1),
            ("BLOCKS_OF_3", 1),
            ("BLOCKS_OF_ROWS", 1),
        ],
    ),
    ("row-packs-2", &[("ROW_PACKS", 2), ("BLOCKS_OF_ROWS", 4)]),
    ("row-packs-8", &[("ROW_PACKS", 8), ("BLOCKS_OF_ROWS", 2)]),
];

/// The options of the command line.
pub struct Options {
    /// Add the bench with every geometry.
    pub tuning: bool,
    /// Add the wheels of peers.
    pub wheels: bool,
    /// Then run the first day on the emulator instead of a device.
    pub rehearse: bool,
}

/// Builds and packs the bundle, and prints its size.
///
/// # Errors
/// A program does not build, or the bundle is too large.
pub fn run(folders: &Folders, options: &Options) -> anyhow::Result<ExitCode> {
    let toolkit = toolkit::ensure(folders)?;
    eprintln!("{}", toolkit.describe());
    let bundle = folders.target.join("gpu-bundle");
    let stage = folders.target.join("gpu-bundle-stage");
    let programs = stage.join("programs");
    for folder in [&bundle, &stage] {
        match fs::remove_dir_all(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(folder.display().to_string());
            }
            _ => fs::create_dir_all(folder).with_context(|| folder.display().to_string())?,
        }
    }
    fs::create_dir(&programs)?;
    let messages = build(
        Command::new(steps::cargo()).current_dir(&folders.root),
        &TESTS,
        ARCHITECTURES,
    )?;
    for (kind, name) in TESTS
        .map(|name| ("test", name))
        .into_iter()
        .chain([("bench", BENCH)])
    {
        let program = cargo_messages::executable(&messages, kind, name);
        let program = program.with_context(|| format!("cargo's messages do not name {name}"))?;
        copy_file(&program, &programs.join(name))?;
    }
    fs::write(programs.join("tests.txt"), TESTS.join("\n") + "\n")?;
    if options.tuning {
        for (name, numbers) in GEOMETRIES {
            eprintln!("geometry {name}: {numbers:?}");
            let program = with_geometry(folders, &toolkit.nvcc, numbers)?;
            let folder = programs.join("tuning").join(name);
            fs::create_dir_all(&folder)?;
            copy_file(&program, &folder.join(BENCH))?;
        }
    }
    steps::done(
        Command::new(programs.join(BENCH))
            .arg("dump")
            .arg(stage.join(EMULATED))
            .env("XACT_DEVICE", "emulated")
            .env_remove("XACT_REQUIRE_GPU"),
    )?;
    pack(&stage, &bundle)?;
    fs::remove_dir_all(&stage)?;
    let python = package(folders, &bundle.join(PACKAGE))?;
    write_executable(&bundle.join("run.sh"), RUN)?;
    for peer in ["torch_gpu.py", "triton_peer.py", "torch_cpu.py"] {
        let from = folders.root.join("benches/peers").join(peer);
        copy_file(&from, &bundle.join(peer))?;
    }
    fs::write(bundle.join("version.txt"), version(folders))?;
    if options.wheels {
        steps::done(
            Command::new("python3")
                .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
                .arg(bundle.join("wheels"))
                .args(WHEELS),
        )?;
    }
    let bytes = size(&bundle)?;
    println!("{}: {:.1} MiB", bundle.display(), bytes as f64 / 1048576.0);
    ensure!(
        bytes <= MOST_BYTES,
        "that is more than {} MiB",
        MOST_BYTES >> 20
    );
    if options.rehearse {
        // The rehearsal uses a python3 with PyTorch.
        let bin = python.parent().map(Path::to_path_buf).into_iter();
        let rest = env::var_os("PATH").unwrap_or_default();
        steps::done(
            Command::new(bundle.join("run.sh"))
                .args(["--stand-in", "--day", "1", "--out"])
                .arg(folders.target.join("gpu-bundle-rehearsal"))
                .env("PATH", env::join_paths(bin.chain(env::split_paths(&rest)))?),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the wheel of the Python package, and copies it and the checks on a device into a folder. Returns the Python that
/// built it.
fn package(folders: &Folders, to: &Path) -> anyhow::Result<PathBuf> {
    let python = python::environment(folders, python::LOCK)?;
    let wheel = [python::wheel(folders, &python)?];
    let built = steps::run(&wheel, &[REQUIRE], &mut steps::Times::read(folders));
    ensure!(built.failed().is_none(), "the wheel does not build");
    fs::create_dir(to)?;
    for entry in fs::read_dir(python::wheels(folders))? {
        let entry = entry?;
        copy_file(&entry.path(), &to.join(entry.file_name()))?;
    }
    let checks = folders.root.join("integrations/python/tests/device.py");
    copy_file(&checks, &to.join("device.py"))?;
    Ok(python)
}

/// Packs the programs and the emulator's results into `programs.tar.xz`. The programs of the geometries are nearly
/// identical, which only a compressor with a large window, unlike gzip, uses.
fn pack(stage: &Path, bundle: &Path) -> anyhow::Result<()> {
    let mut tar = Command::new("tar")
        .args(["-cf", "-", "-C"])
        .arg(stage)
        .args(["programs", EMULATED])
        .stdout(Stdio::piped())
        .spawn()
        .context("tar does not start")?;
    let stream = tar.stdout.take().context("tar has no output")?;
    let archive = fs::File::create(bundle.join("programs.tar.xz"))?;
    steps::done(
        Command::new("xz")
            .args(["-9", "--stdout"])
            .stdin(stream)
            .stdout(archive),
    )?;
    let status = tar.wait()?;
    ensure!(status.success(), "tar: {status}");
    Ok(())
}

/// Builds the bench and some tests, with machine code for some architectures, and returns cargo's messages.
fn build(cargo: &mut Command, tests: &[&str], architectures: &str) -> anyhow::Result<String> {
    let output = cargo
        .args([
            "test",
            "--package",
            "xact-dev",
            "--profile",
            "bundle",
            "--no-run",
        ])
        .args(["--bench", BENCH])
        .args(tests.iter().flat_map(|test| ["--test", test]))
        .arg("--message-format=json-render-diagnostics")
        .env(REQUIRE.0, REQUIRE.1)
        .env("XACT_CUDA_ARCHS", architectures)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo does not start")?;
    ensure!(output.status.success(), "the programs do not build");
    Ok(String::from_utf8(output.stdout)?)
}

/// Builds the bench from a copy of the workspace with other numbers in src/geometry.rs.
fn with_geometry(
    folders: &Folders,
    nvcc: &Path,
    numbers: &[(&str, u64)],
) -> anyhow::Result<PathBuf> {
    let tree = folders.target.join("tuning/tree");
    copy::synchronise(&folders.root, &tree)?;
    let path = tree.join("src/geometry.rs");
    let text = set(&fs::read_to_string(&path)?, numbers)?;
    fs::write(&path, text)?;
    let mut cargo = Command::new(steps::cargo());
    cargo
        .current_dir(&tree)
        .env("CARGO_TARGET_DIR", folders.target.join("tuning/target"))
        // The copy has no toolkit of its own, so it uses this one.
        .env("NVCC", nvcc);
    let messages = build(&mut cargo, &[], ARCHITECTURES_OF_GEOMETRIES)?;
    let program = cargo_messages::executable(&messages, "bench", BENCH);
    program.context("cargo's messages do not name the bench")
}

/// The text of src/geometry.rs with other numbers.
fn set(text: &str, numbers: &[(&str, u64)]) -> anyhow::Result<String> {
    let mut text = text.to_owned();
    for (name, value) in numbers {
        let start = format!("pub const {name}: u64 = ");
        let Some((before, after)) = text.split_once(&start) else {
            bail!("src/geometry.rs has no number {name}");
        };
        let (_, after) = after.split_once(';').context("a number ends with ;")?;
        text = format!("{before}{start}{value};{after}");
    }
    Ok(text)
}

/// The version of the bundle, with the commit if git knows it.
fn version(folders: &Folders) -> String {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(&folders.root)
        .output();
    let commit = git.ok().filter(|output| output.status.success());
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let commit = commit.unwrap_or_else(|| "of no known commit\n".to_owned());
    format!("xact {} {commit}", env!("CARGO_PKG_VERSION"))
}

fn copy_file(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write_executable(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The size in bytes of the files in a folder and below.
fn size(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.metadata()? {
            data if data.is_dir() => size(&entry.path())?,
            data => data.len(),
        };
    }
    Ok(bytes)
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::Output;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::Scratch;

    /// A test bundle whose programs only report success, for a machine whose tools are scripts.
    struct Stub(Scratch);

    /// The name has spaces, because paths may have them.
    const BUNDLE: &str = "bundle of a test";

    const PASSED: &str = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured'";

    impl Stub {
        fn new() -> Stub {
            let stub = Stub(Scratch::new());
            stub.program("api", PASSED);
            stub.program("activations", PASSED);
            stub.program("cross_entropy", PASSED);
            stub.0.write(
                "stage/programs/tests.txt",
                "api\nactivations\ncross_entropy\n",
            );
            stub.0
                .write(&format!("stage/{EMULATED}"), "of the emulator\n");
            // The script stores its arguments, fails if the test says so, and copies the summary instead of a report.
            stub.program(
                "gpu",
                r#"echo "$XACT_DEVICE ${XACT_REQUIRE_GPU-} $*" >>"$CALLS"
echo "$(cat /proc/$PPID/comm) watches gpu $1" >>"$CALLS"
case "$*" in ${FAIL:-nothing}) echo broken; exit 1 ;; esac
# What reads whatever it gets.
cat >/dev/null
case $1 in
    report) cp "$2"/*.* "$3"; echo 'the page' ;;
    dump) for last; do :; done; echo 'of the device' >"$last" ;;
    profile) echo '    DRAM Throughput     %      91.2' ;;
    compare) cat "$2" "$3" >>"$CALLS" ;;
    load) echo "cache ${CUDA_CACHE_PATH#"$TMPDIR"}, off: ${CUDA_CACHE_DISABLE-no}" >>"$CALLS" ;;
esac
echo done
case "$*" in ${FAIL_AT_THE_END:-nothing}) exit 1 ;; esac"#,
            );
            stub.0
                .write(&format!("{BUNDLE}/version.txt"), "xact of a test\n");
            stub.tool("python3", "exit 1");
            stub.tool("compute-sanitizer", "shift 4; exec \"$@\"");
            stub.tool(
                "ncu",
                "echo \"ncu $*\" >>\"$CALLS\"; while [ ! -x \"$1\" ]; do shift; done; exec \"$@\"",
            );
            stub.tool(
                "nvidia-smi",
                "echo \"$(cat /proc/$PPID/comm) watches nvidia-smi\" >>\"$CALLS\"; echo 1755",
            );
            stub
        }

        fn program(&self, name: &str, body: &str) {
            self.0.script(&format!("stage/programs/{name}"), body);
        }

        fn tool(&self, name: &str, body: &str) {
            self.0.script(&format!("tools/{name}"), body);
        }

        /// Packs the programs, and runs the script with `arguments`.
        fn run(&self, arguments: &[&str]) -> Output {
            self.script(arguments).output().expect("bash")
        }

        /// As above, but the calls of the bench that match `calls` fail, and so must the script.
        fn fails(&self, arguments: &[&str], calls: &str) -> Output {
            let mut script = self.script(arguments);
            let output = script.env("FAIL", calls).output().expect("bash");
            assert_eq!(output.status.code(), Some(1), "{calls}: {output:?}");
            output
        }

        fn script(&self, arguments: &[&str]) -> Command {
            let folder = self.0.path();
            write_executable(&folder.join(BUNDLE).join("run.sh"), RUN).expect("the script");
            fs::create_dir_all(folder.join("tmp of a test")).expect("a folder");
            pack(&folder.join("stage"), &folder.join(BUNDLE)).expect("an archive");
            let path = env::var("PATH").expect("PATH");
            let mut script = Command::new(folder.join(BUNDLE).join("run.sh"));
            script
                .args(arguments)
                .arg("--out")
                .arg(folder.join("results"))
                .env("PATH", format!("{}:{path}", folder.join("tools").display()))
                .env("CALLS", folder.join("calls"))
                .env("TMPDIR", folder.join("tmp of a test"))
                .env("XACT_REQUIRE_GPU", "set by who runs it");
            script
        }

        /// The lines of the summary, each with a name and an outcome.
        fn outcomes(&self) -> Vec<String> {
            let text = fs::read_to_string(self.0.path().join("results/steps.tsv"));
            let text = text.expect("a summary");
            let columns = text
                .lines()
                .map(|line| line.split('\t').collect::<Vec<_>>());
            columns.map(|c| format!("{}: {}", c[0], c[1])).collect()
        }

        fn calls(&self) -> String {
            fs::read_to_string(self.0.path().join("calls")).expect("calls")
        }
    }

    const DEVICE: &str = "device: passed";
    /// The lines of the steps that need no device, which are at the end of a run.
    const DAY_1: [&str; 22] = [
        "facts: passed",
        "dump of the device: passed",
        "speed: passed",
        "python: not run",
        "load PTX cold: passed",
        "load PTX warm: passed",
        "load machine code: passed",
        "choice present: passed",
        "choice cluster-8: passed",
        "choice resident: passed",
        "choice resident-cluster-8: passed",
        "ncu xielu plain forward: passed",
        "ncu xielu plain backward: passed",
        "ncu xielu compat backward: passed",
        "ncu xgelu plain forward: passed",
        "ncu xsilu gated1 forward: passed",
        "ncu xsilu gated1 backward: passed",
        "ncu cross_entropy plain forward: passed",
        "ncu cross_entropy plain fused: passed",
        "memcheck: passed",
        "racecheck: passed",
        "emulator and device: passed",
    ];
    const DAY_2: [&str; 4] = [
        "peers: not run",
        "geometries: not run",
        "suite cross_entropy: passed",
        "suite activations: passed",
    ];

    /// The lines of the steps on the device, and then the others.
    fn after_device(outcomes: &[&[&str]]) -> Vec<String> {
        let all = [&[DEVICE], outcomes.concat().as_slice()].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_run_does_everything_on_the_device_and_speed_before_the_suite() {
        let stub = Stub::new();
        let output = stub.run(&[]);
        assert!(output.status.success(), "{output:?}");
        let (at_the_end, on_the_device) = DAY_1.split_last().expect("steps");
        let expected = [on_the_device, &DAY_2, &[*at_the_end]];
        assert_eq!(stub.outcomes(), after_device(&expected));
        let calls = stub.calls();
        assert!(!calls.contains("emulated "), "{calls}");
        for call in [
            "gpu 1 load --ptx",
            "gpu 1 dump ",
            "gpu 1 compare ",
            // The emulator's results from the bundle, and the results of the device.
            "of the emulator\nof the device\n",
            "gpu 1 --json ",
            "--quick",
            "gpu 1 --choices --resident --cluster 8 --json ",
            "gpu 1 profile xsilu gated1 backward",
            "gpu 1 dump --small ",
            "--only cross_entropy/f32/fused/plain, shared rows ",
            // With the default clocks of the device, and only the kernel that is meant.
            "ncu --clock-control none ",
            // The details include the reasons for stalls.
            " --print-details all ",
            "--kernel-name regex:^cross_entropy_cluster_bf16$ ",
            // The cache of the driver is new in each run, and filled when PTX is loaded the second time.
            "/cuda-cache, off: no\n",
        ] {
            assert!(calls.contains(call), "{call}: {calls}");
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.trim_end().ends_with("the page\ndone"), "{said}");
        // The summary has the counters of ncu.
        assert!(said.contains("DRAM Throughput % 91.2"), "{said}");
        // Every tool and program has a time limit.
        for line in calls.lines().filter(|line| line.contains(" watches ")) {
            assert!(line.starts_with("timeout "), "{line}");
        }
        assert!(
            calls.contains("timeout watches gpu report")
                && calls.contains("timeout watches nvidia-smi")
        );
        for left in [
            "failures.txt",
            "device.safetensors",
            "device.safetensors.gz",
        ] {
            assert!(!stub.0.path().join("results").join(left).exists(), "{left}");
        }
    }

    #[test]
    fn a_day_is_two_runs() {
        let stub = Stub::new();
        assert!(stub.run(&["--day", "1"]).status.success());
        assert_eq!(stub.outcomes(), after_device(&[&DAY_1]));
        assert!(stub.run(&["--day", "2"]).status.success());
        assert_eq!(stub.outcomes(), after_device(&[&DAY_2]));
        assert_eq!(stub.run(&["--day", "3"]).status.code(), Some(2));
        // Each with the seconds of its final steps, of which the comparison takes 30.
        let limit = RUN
            .split_once("limit=${limit:-")
            .expect("the limit of a day");
        let limit: u32 = limit
            .1
            .split('}')
            .next()
            .expect("a number")
            .parse()
            .expect("a number");
        assert!((300..=325).contains(&limit));
    }

    #[test]
    fn parts_are_chosen_and_ordered() {
        let suite = ["suite cross_entropy: passed", "suite activations: passed"];
        for (arguments, expected) in [
            (&["--only", "facts,suite"][..], [&DAY_1[..1], &suite]),
            (
                &["--only", "facts,suite", "--order", "suite"],
                [&suite, &DAY_1[..1]],
            ),
        ] {
            let stub = Stub::new();
            assert!(stub.run(arguments).status.success());
            assert_eq!(stub.outcomes(), after_device(&expected));
        }
        let stub = Stub::new();
        assert!(stub.run(&["--order", "suite,speed"]).status.success());
        let outcomes = stub.outcomes();
        assert_eq!(outcomes[..4], after_device(&[&suite, &["speed: passed"]]));
        assert_eq!(outcomes.len(), 1 + DAY_1.len() + DAY_2.len());
        // Each part that runs is named once.
        let arguments = [
            "--only",
            "facts,suite,facts",
            "--order",
            "speed,suite,suite",
        ];
        assert!(stub.run(&arguments).status.success());
        assert_eq!(stub.outcomes(), after_device(&[&suite, &DAY_1[..1]]));
        let output = stub.run(&["--only", "speed", "--day", "1"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("--day and --only"));
        let output = stub.run(&["--only", "facts,siute"]);
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("no part siute") && said.contains("suite every-row"),
            "{said}"
        );
    }

    #[test]
    fn what_takes_long_is_there_for_whoever_names_it() {
        let stub = Stub::new();
        let output = stub.run(&["--only", "every-test,every-row,every-sanitizer"]);
        assert!(output.status.success(), "{output:?}");
        let expected = [
            "suite api: passed",
            "suite activations: passed",
            "suite cross_entropy: passed",
            "every row: passed",
            "memcheck: passed",
            "racecheck: passed",
            "initcheck: passed",
            "synccheck: passed",
            "memcheck places: passed",
            "memcheck lengths: passed",
        ];
        assert_eq!(stub.outcomes(), after_device(&[&expected]));
        assert!(!stub.calls().contains("--quick"), "{}", stub.calls());
    }

    #[test]
    fn a_stand_in_is_not_timed() {
        let stub = Stub::new();
        stub.program("tuning/present/gpu", "echo \"tuning $*\" >>\"$CALLS\"");
        assert!(stub.run(&["--stand-in"]).status.success());
        let calls = stub.calls();
        for call in [
            "emulated  --smoke",
            "emulated  load",
            "emulated  dump ",
            "emulated  profile --smoke xgelu",
            "tuning --representative --smoke",
        ] {
            assert!(calls.contains(call), "{call}: {calls}");
        }
        assert!(
            !calls.contains("gpu 1") && !calls.contains(".json --"),
            "{calls}"
        );
        let outcomes = stub.outcomes();
        for not_run in ["ncu: not run", "compute-sanitizer: not run"] {
            assert!(outcomes.iter().any(|o| o == not_run), "{outcomes:?}");
        }
    }

    /// Any step may fail.
    #[test]
    fn what_fails_is_named_and_the_rest_still_runs() {
        for (calls, at) in [
            ("load --ptx", &[4, 5][..]),
            ("load", &[6]),
            ("compare *", &[21]),
            ("--json *", &[2]),
            ("--choices --resident --json *", &[9]),
            ("profile xgelu*", &[14]),
            ("dump --small /*", &[19]),
            ("dump --small --only *", &[20]),
        ] {
            let stub = Stub::new();
            stub.fails(&["--day", "1"], calls);
            let mut expected = after_device(&[&DAY_1]);
            for at in at {
                expected[1 + at] = DAY_1[*at].replace("passed", "FAILED");
            }
            assert_eq!(stub.outcomes(), expected, "{calls}");
            let failures = fs::read_to_string(stub.0.path().join("results/failures.txt"));
            assert!(failures.expect("failures").contains("broken"), "{calls}");
            // The results of the device are kept for inspection if they were not compared.
            let kept = stub.0.path().join("results/device.safetensors.gz");
            assert_eq!(kept.exists(), calls.starts_with("compare"), "{calls}");
        }
        for body in [
            "echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured'",
            "echo 'thread panicked'; exit 101",
        ] {
            let stub = Stub::new();
            stub.program("cross_entropy", body);
            assert_eq!(stub.run(&["--only", "suite"]).status.code(), Some(1));
            let expected = ["suite cross_entropy: FAILED", "suite activations: passed"];
            assert_eq!(stub.outcomes(), after_device(&[&expected]));
            let failures = fs::read_to_string(stub.0.path().join("results/failures.txt"));
            let said = body.split('\'').nth(1).expect("quoted");
            assert!(failures.expect("failures").contains(said));
        }
    }

    #[test]
    fn whatever_a_dump_wrote_is_compared() {
        let stub = Stub::new();
        stub.fails(&["--only", "dump"], "dump *");
        let mut expected = after_device(&[&["dump of the device: FAILED"]]);
        assert_eq!(stub.outcomes(), expected);
        // Results outside the bounds are kept, with the output of the comparison.
        let mut script = stub.script(&["--only", "dump"]);
        let output = script.env("FAIL_AT_THE_END", "dump *").output();
        assert_eq!(output.expect("bash").status.code(), Some(1));
        expected.push("emulator and device: passed".to_owned());
        assert_eq!(stub.outcomes(), expected);
    }

    /// If a sandbox does not let a tool watch the device, the step is "not run" and not a failure.
    #[test]
    fn tools_that_do_not_work_here_are_not_run_and_say_why() {
        let not_supported = "echo '========= Error: Device not supported. See the documentation.'";
        for (tool, part, name, body, reason) in [
            (
                "compute-sanitizer",
                "sanitizer",
                "compute-sanitizer",
                Some(format!("{not_supported}; exit 1")),
                "Error: Device not supported",
            ),
            (
                "compute-sanitizer",
                "every-sanitizer",
                "compute-sanitizer",
                Some(format!(
                    "{not_supported}; echo '========= ERROR SUMMARY: 0 errors'"
                )),
                "Error: Device not supported",
            ),
            (
                "compute-sanitizer",
                "sanitizer",
                "compute-sanitizer",
                None,
                "there is no compute-sanitizer",
            ),
            (
                "ncu",
                "ncu",
                "ncu",
                Some(
                    "echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded'; exit 9"
                        .to_owned(),
                ),
                "LibraryNotLoaded",
            ),
        ] {
            let stub = Stub::new();
            match body {
                Some(body) => stub.tool(tool, &body),
                None => fs::remove_file(stub.0.path().join("tools").join(tool)).expect("a tool"),
            }
            let output = stub.run(&["--only", part]);
            assert!(output.status.success(), "{output:?}");
            let expected = after_device(&[&[&format!("{name}: not run")]]);
            assert_eq!(stub.outcomes(), expected, "{reason}");
            let steps = fs::read_to_string(stub.0.path().join("results/steps.tsv"));
            let steps = steps.expect("a summary");
            assert!(steps.contains(reason), "{steps}");
        }
        // An error that the tool finds is a failure, even in the program of the probe.
        let stub = Stub::new();
        stub.tool(
            "compute-sanitizer",
            "echo '========= ERROR SUMMARY: 3 errors'; exit 1",
        );
        assert_eq!(stub.run(&["--only", "sanitizer"]).status.code(), Some(1));
        let expected = ["memcheck: FAILED", "racecheck: FAILED"];
        assert_eq!(stub.outcomes(), after_device(&[&expected]));
    }

    #[test]
    fn without_a_device_nothing_else_is_tried() {
        let stub = Stub::new();
        let output = stub.fails(&[], "--smoke *");
        assert_eq!(stub.outcomes(), ["device: FAILED"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("broken"), "{said}");
    }

    #[test]
    fn peers_run_where_there_is_torch() {
        for (python_has, outcomes) in [
            (
                "torch gpu triton",
                &["peer in Triton: passed", "peers: passed"][..],
            ),
            ("torch gpu", &["peer in Triton: not run", "peers: passed"]),
            ("torch triton", &["peers: not run"]),
            ("", &["peers: not run"]),
        ] {
            let stub = Stub::new();
            let python = r#"echo "$(cat /proc/$PPID/comm) watches python" >>"$CALLS"
[ "$1" != -c ] || { printf '%s\n' HAS; exit 1; }
echo "python $*" >>"$CALLS"
while [ $# -gt 0 ]; do [ "$1" != --ours ] || eval "$(echo "$2" | sed 's/{}/json/')"; shift; done"#;
            stub.tool("python3", &python.replace("HAS", python_has));
            let output = stub.run(&["--only", "peers"]);
            assert!(output.status.success(), "{output:?}");
            assert_eq!(stub.outcomes(), after_device(&[outcomes]));
            let calls = stub.calls();
            let mut watched = calls.lines().filter(|line| line.contains("watches python"));
            assert!(watched.all(|line| line.starts_with("timeout ")), "{calls}");
            if outcomes.len() > 1 {
                // Our rows, with the arguments of the script.
                assert!(calls.contains("gpu 1 --peers --seconds 15 --json json"));
                assert!(calls.contains("timeout watches gpu --peers"));
            }
        }
        // With the stand-in, there is no GPU for the peers either.
        let stub = Stub::new();
        stub.tool("python3", "[ \"$1\" != -c ] || echo torch");
        assert!(
            stub.run(&["--only", "peers", "--stand-in"])
                .status
                .success()
        );
        let expected = ["peer in Triton: not run", "peers: passed"];
        assert_eq!(stub.outcomes(), after_device(&[&expected]));
    }

    /// The wheel is unpacked by pip, or by Python's zipfile. Its checks run with the machine's PyTorch.
    #[test]
    fn the_python_package_is_checked_where_there_is_torch() {
        // The checks are a small script, which the real python3 runs with a module of a small wheel.
        let device = "import sys, own\nprint('checked', own.name, sys.argv[1:])\nprint('left out: nothing')\n";
        for (has, pip, arguments, outcomes) in [
            (
                "torch gpu",
                "true",
                "[]",
                &["wheel: passed", "python: passed"][..],
            ),
            (
                "torch gpu",
                "false",
                "[]",
                &["wheel: passed", "python: passed"],
            ),
            ("torch", "true", "[]", &["python: not run"]),
            ("", "true", "[]", &["python: not run"]),
            (
                "torch",
                "true",
                "['--device', 'cpu']",
                &["wheel: passed", "python: passed"],
            ),
        ] {
            let stub = Stub::new();
            let folder = stub.0.path().join(BUNDLE).join(PACKAGE);
            stub.0
                .write(&format!("{BUNDLE}/{PACKAGE}/device.py"), device);
            stub.0.write("wheel/own.py", "name = 'the wheel'\n");
            let zip = Command::new("python3")
                .args(["-m", "zipfile", "-c"])
                .arg(folder.join("own-1-py3-none-any.whl"))
                .arg(stub.0.path().join("wheel/own.py"))
                .status();
            assert!(zip.expect("python3").success());
            // Without pip, `python3 -m pip` fails.
            let stub_python = r#"case "$*" in
    -c*) printf '%s\n' HAS; exit 1 ;;
    *'pip --version'*) exec PIP ;;
    *'pip install'*) while [ "$1" != --target ]; do shift; done; exec REAL -m zipfile -e "$3" "$2" ;;
esac
exec REAL "$@""#;
            let real = Command::new("python3")
                .args(["-c", "import sys; print(sys.executable)"])
                .output();
            let real = String::from_utf8(real.expect("python3").stdout).expect("a path");
            let stub_python = stub_python
                .replace("HAS", has)
                .replace("PIP", pip)
                .replace("REAL", real.trim());
            stub.tool("python3", &stub_python);
            let stand_in = ["--stand-in"];
            let stand_in = &stand_in[..usize::from(arguments.contains("cpu"))];
            let output = stub.run(&[&["--only", "python"], stand_in].concat());
            assert!(output.status.success(), "{output:?}");
            assert_eq!(stub.outcomes(), after_device(&[outcomes]), "{has} {pip}");
            if outcomes.len() > 1 {
                let steps = fs::read_to_string(stub.0.path().join("results/steps.tsv"));
                let steps = steps.expect("a summary");
                let said = format!("checked the wheel {arguments}");
                assert!(steps.contains(&said), "{steps}");
            }
        }
    }

    /// Replaces torch in a test without torch: a device without memory, on which every maker of a peer fails.
    const NO_TORCH: &str = r#"
import sys, types
class Anything(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return Anything(name)
    def __call__(self, *_, **__): return Anything("result")
torch = Anything("torch")
torch.cuda = Anything("cuda")
torch.cuda.is_available = lambda: True
torch.device = lambda name: types.SimpleNamespace(type=name)
torch.__version__ = "of a test"
functional = Anything("functional")
sys.modules.update({"torch": torch, "torch.nn": Anything("nn"), "torch.nn.functional": functional})
for name in ["triton", "liger_kernel", "quack"]:
    sys.modules[name] = types.ModuleType(name)
import runpy
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"#;

    /// A failing row of ours takes no time from the peers, and rows with a long compilation come last.
    #[test]
    fn peers_run_in_order_whatever_becomes_of_ours() {
        let scratch = Scratch::new();
        let row = |op: &str, name: &str| {
            format!(
                r#"{{"name": "{name}", "op": "{op}", "form": "plain", "direction": "fused", "dtype": "bf16",
"rows": 4, "cols": 8, "scale": 1, "bytes": 64, "representative": true}}"#
            )
        };
        let rows = [row("xielu", "a"), row("cross_entropy", "b")].join(",");
        scratch.write("rows.json", &format!("[{rows}]"));
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/peers");
        let run = |ours: &str| {
            let mut python = Command::new("python3");
            let output = python
                .args(["-c", NO_TORCH])
                .arg(&peers)
                .arg(peers.join("torch_gpu.py"))
                .args(["--rows", "rows.json", "--out", ".", "--ours", ours])
                .current_dir(scratch.path())
                .output();
            output.expect("python3")
        };
        let output = run("sh -c 'echo {} >>calls; exit 3'");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("ours, run 2: exit status 3"), "{said}");
        let text = fs::read_to_string(scratch.path().join("peers.json")).expect("peers");
        let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let found = found["rows"].as_array().expect("rows");
        let order = found.iter().map(|row| {
            let word = |key: &str| row[key].as_str().expect("a word").to_owned();
            format!("{} {}", word("name"), word("peer"))
        });
        assert_eq!(
            order.collect::<Vec<_>>(),
            [
                "a Triton",
                "a torch eager",
                "b Triton",
                "b Liger-Kernel",
                "b torch eager",
                "b QuACK",
                "a torch.compile",
                "b torch.compile",
            ]
        );
        assert_eq!(run("true {}").status.code(), Some(0));
    }

    /// An image may have python3 but no xz.
    #[test]
    fn the_programs_are_unpacked_by_what_there_is() {
        let stub = Stub::new();
        let mut script = stub.script(&["--only", "facts"]);
        let only = stub.0.path().join("only these");
        fs::create_dir(&only).expect("a folder");
        let find = |name: &str| {
            let mut find = Command::new("sh");
            let found = find
                .args(["-c", "command -v \"$0\"", name])
                .output()
                .expect("sh");
            PathBuf::from(String::from_utf8(found.stdout).expect("a path").trim())
        };
        for name in [
            "bash", "sh", "env", "cat", "cp", "cut", "date", "dirname", "grep", "head", "mkdir",
            "mktemp", "rm", "sed", "sleep", "tail", "tar", "timeout", "tr",
        ] {
            std::os::unix::fs::symlink(find(name), only.join(name)).expect("a link");
        }
        let output = script.env("PATH", &only).output().expect("bash");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("xz or python3"));
        let python = Command::new("python3")
            .args(["-c", "import sys; print(sys.executable)"])
            .output()
            .expect("python3");
        let python = String::from_utf8(python.stdout).expect("a path");
        std::os::unix::fs::symlink(python.trim(), only.join("python3")).expect("a link");
        let output = script.output().expect("bash");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(stub.outcomes(), after_device(&[&["facts: not run"]]));
    }

    #[test]
    fn what_hangs_is_stopped() {
        let stub = Stub::new();
        stub.program("cross_entropy", "sleep 600");
        let arguments = ["--only", "suite", "--limit", "6"];
        assert_eq!(stub.run(&arguments).status.code(), Some(1));
        let expected = ["suite cross_entropy: FAILED", "suite activations: FAILED"];
        assert_eq!(stub.outcomes(), after_device(&[&expected]));
        let steps = fs::read_to_string(stub.0.path().join("results/steps.tsv"));
        let steps = steps.expect("a summary");
        assert!(
            steps.contains("stopped after") && steps.contains("no time left"),
            "{steps}"
        );
    }

    #[test]
    fn no_step_outlives_the_run() {
        ended_by("-TERM", 143);
        // bash cannot trap a signal that is ignored when it starts, as SIGHUP is under nohup.
        let status = fs::read_to_string("/proc/self/status").expect("Linux");
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = u64::from_str_radix(ignored.expect("a mask").trim(), 16).expect("a mask");
        if ignored & 1 == 0 {
            ended_by("-HUP", 129);
        }
    }

    fn ended_by(signal: &str, code: i32) {
        let stub = Stub::new();
        stub.program("cross_entropy", "echo $$ >\"$CALLS.pid\"; exec sleep 600");
        let mut run = stub
            .script(&["--only", "speed,suite"])
            .stdout(Stdio::null())
            .spawn()
            .expect("bash");
        let pid = stub.0.path().join("calls.pid");
        let begin = Instant::now();
        let step = loop {
            let text = fs::read_to_string(&pid).unwrap_or_default();
            if let Ok(step) = text.trim().parse::<u32>() {
                break step;
            }
            assert!(begin.elapsed().as_secs() < 60, "the step never begins");
            thread::sleep(Duration::from_millis(20));
        };
        let kill = |signal: &str, pid: u32| {
            let mut kill = Command::new("kill");
            let kill = kill.args([signal, &pid.to_string()]).stderr(Stdio::null());
            kill.status().expect("kill").success()
        };
        assert!(kill("-0", step) && kill(signal, run.id()));
        assert_eq!(run.wait().expect("an end").code(), Some(code));
        assert!(!kill("-0", step));
        let left = fs::read_dir(stub.0.path().join("tmp of a test")).expect("a folder");
        assert_eq!(left.count(), 0);
        // The finished measurements are reported.
        let expected = ["speed: passed", "the run: FAILED"];
        assert_eq!(stub.outcomes(), after_device(&[&expected]));
    }

    /// The same if the report fails.
    #[test]
    fn what_was_measured_is_kept() {
        let stub = Stub::new();
        stub.fails(&["--only", "speed"], "report *");
        let mut tar = Command::new("tar");
        let tar = tar
            .arg("-xOf")
            .arg(stub.0.path().join("results/parts.tar.gz"));
        let steps = tar
            .args(["parts/steps.tsv", "parts/logs/speed.log"])
            .output();
        let steps = String::from_utf8(steps.expect("tar").stdout).expect("text");
        assert!(
            steps.contains("speed\tpassed") && steps.contains("\ndone"),
            "{steps}"
        );
        assert!(!stub.0.path().join("results/parts").exists());
    }

    /// A step that exceeds its time limit does not shorten the following steps.
    #[test]
    fn parts_of_a_day_have_their_seconds() {
        let stub = Stub::new();
        stub.tool("ncu", "case \"$*\" in *--smoke*) exit 0 ;; esac; sleep 600");
        let mut script = stub.script(&["--day", "1", "--order", "ncu"]);
        let path = stub.0.path().join(BUNDLE).join("run.sh");
        let shorter = RUN.replace("part_takes 110", "part_takes 6");
        assert_ne!(shorter, RUN);
        write_executable(&path, &shorter).expect("the script");
        assert_eq!(script.output().expect("bash").status.code(), Some(1));
        let (ncu, others) = (&DAY_1[11..19], [&DAY_1[..11], &DAY_1[19..]].concat());
        let ncu: Vec<_> = ncu.iter().map(|s| s.replace("passed", "FAILED")).collect();
        let ncu: Vec<_> = ncu.iter().map(String::as_str).collect();
        assert_eq!(stub.outcomes(), after_device(&[&ncu, &others]));
    }

    /// The exit status of the tool does not matter.
    #[test]
    fn a_profile_without_counters_is_none() {
        let stub = Stub::new();
        stub.tool(
            "ncu",
            r#"case "$*" in
    *cluster*) echo '==WARNING== No kernels were profiled.' ;;
    *xgelu*) echo 'nothing at all' ;;
    *) echo '    DRAM Throughput     %      91.2' ;;
esac"#,
        );
        assert_eq!(stub.run(&["--only", "ncu"]).status.code(), Some(1));
        let mut expected = after_device(&[&DAY_1[11..19]]);
        expected[4] = DAY_1[14].replace("passed", "FAILED");
        expected[8] = DAY_1[18].replace("passed", "not run");
        assert_eq!(stub.outcomes(), expected);
    }

    #[test]
    fn a_second_run_leaves_nothing_of_the_first() {
        let stub = Stub::new();
        stub.program("activations", "exit 1");
        assert!(!stub.run(&["--only", "suite"]).status.success());
        let old = [
            "roofline.svg",
            "shares.svg",
            "report.md",
            "page.md",
            "device.safetensors.gz",
        ];
        for old in old {
            stub.0.write(&format!("results/{old}"), "old");
        }
        stub.program("activations", PASSED);
        assert!(stub.run(&["--only", "suite"]).status.success());
        for old in old.into_iter().chain(["failures.txt"]) {
            assert!(!stub.0.path().join("results").join(old).exists(), "{old}");
        }
    }

    #[test]
    fn results_need_a_folder_that_can_be_written() {
        let stub = Stub::new();
        stub.0.write("results", "a file");
        let output = stub.run(&[]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--out"));
        assert!(!stub.0.path().join("calls").exists());
    }

    #[test]
    fn geometries_are_timed_one_by_one() {
        let stub = Stub::new();
        for name in ["packs-1", "present"] {
            stub.program(
                &format!("tuning/{name}/gpu"),
                "echo \"tuning $*\" >>\"$CALLS\"",
            );
        }
        assert!(stub.run(&["--only", "geometries"]).status.success());
        let expected = ["geometry packs-1: passed", "geometry present: passed"];
        assert_eq!(stub.outcomes(), after_device(&[&expected]));
        let calls = stub.calls();
        assert!(calls.contains("tuning --representative --json "), "{calls}");
    }

    #[test]
    fn nothing_begins_without_time() {
        let stub = Stub::new();
        let output = stub.run(&["--limit", "0"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let outcomes = stub.outcomes();
        assert!(
            outcomes.iter().all(|o| !o.ends_with("passed")),
            "{outcomes:?}"
        );
        let failures = fs::read_to_string(stub.0.path().join("results/failures.txt"));
        assert_eq!(failures.expect("failures"), "== device: no time left\n");
        // The probes had no time either.
        let stub = Stub::new();
        let mut script = stub.script(&["--only", "peers,python,ncu,sanitizer"]);
        let path = stub.0.path().join(BUNDLE).join("run.sh");
        write_executable(
            &path,
            &RUN.replace("ends=$limit\n        ", "ends=0\n        "),
        )
        .expect("the script");
        assert_eq!(script.output().expect("bash").status.code(), Some(1));
        let expected = [
            "peers: FAILED",
            "python: FAILED",
            "ncu: FAILED",
            "compute-sanitizer: FAILED",
        ];
        assert_eq!(stub.outcomes(), after_device(&[&expected]));
    }

    #[test]
    fn unknown_arguments_exit_with_2() {
        for arguments in [&["--qiuck"][..], &["--limit", "abc"], &["--limit", "-1"]] {
            let status = Stub::new().run(arguments).status;
            assert_eq!(status.code(), Some(2), "{arguments:?}");
        }
        let stub = Stub::new();
        assert!(
            stub.run(&["--only", "facts", "--limit", "08"])
                .status
                .success()
        );
    }

    #[test]
    fn every_test_of_a_device_is_packed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("a root");
        fn opens(path: &Path) -> bool {
            if path.is_dir() {
                let mut entries = fs::read_dir(path).expect("a folder");
                return entries.any(|entry| opens(&entry.expect("an entry").path()));
            }
            path.extension().is_some_and(|e| e == "rs")
                && fs::read_to_string(path)
                    .expect("a test")
                    .contains("choose::")
        }
        // These tests are for the kit itself, or count features of the emulator.
        let left_out = ["gpu_kit", "allocations"];
        let mut packed = 0;
        for entry in fs::read_dir(root.join("tests")).expect("tests") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().and_then(|n| n.to_str()).expect("a name");
            if !left_out.contains(&name) {
                assert_eq!(opens(&path), TESTS.contains(&name), "tests/{name}");
                packed += usize::from(TESTS.contains(&name));
            }
        }
        assert_eq!(packed, TESTS.len());
    }

    #[test]
    fn a_geometry_is_that_of_the_crate_with_other_numbers() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("a root");
        let text = fs::read_to_string(root.join("src/geometry.rs")).expect("the geometry");
        for (name, numbers) in GEOMETRIES {
            let changed = set(&text, numbers).expect("every number exists");
            for (number, value) in numbers {
                let line = format!("pub const {number}: u64 = {value};");
                assert!(changed.contains(&line), "{name}: {line}");
            }
            let different = text.lines().zip(changed.lines()).filter(|(a, b)| a != b);
            assert_eq!(different.count(), numbers.len(), "{name}");
            assert_eq!(text.lines().count(), changed.lines().count());
        }
        assert!(set(&text, &[("PACK", 1)]).is_err());
    }
}
