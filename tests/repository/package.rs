//! The published crate: the output of `cargo package`, and programs that depend on it.
//!
//! The tests work offline, and are fast after the first run, because the programs' dependencies are compiled once and kept.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use xact_dev::build::nvcc;
use xact_dev::toolkit;

/// The program calls the reference and opens a device.
const PROGRAM: &str = r#"
use xact::{Parameters, Xielu, reference};

fn main() {
    let op = Xielu::default().parameters(Parameters::Effective);
    let y = reference::forward(&op, &[3.0, 1.0], &[2.0_f32, 0.0]);
    println!("{y:?}");
    #[cfg(feature = "cuda")]
    match xact::Device::new(0) {
        Ok(_) => println!("Ok"),
        Err(error) => println!("{error:?}\n{error}"),
    }
}
"#;

/// α_p·x² + β·x for α_p = 3 and β = 0.5.
const REFERENCE: &str = "[13.0, 0.0]";

#[test]
fn the_package_holds_what_a_build_needs_and_no_more() {
    let package = unpacked("contents");
    let top: BTreeSet<_> = fs::read_dir(&package)
        .expect("the package")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    let needed = [
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "build",
        "build.rs",
        "docs",
        "examples",
        "kernels",
        "src",
    ];
    // Cargo adds these files itself; the first one only in a repository.
    let may = [
        ".cargo_vcs_info.json",
        "Cargo.lock",
        "Cargo.toml.orig",
        "CHANGELOG.md",
    ];
    for name in needed {
        assert!(top.contains(OsStr::new(name)), "{name} is missing: {top:?}");
    }
    for name in top {
        let known = needed.iter().chain(&may).any(|known| name == *known);
        assert!(known, "{} is published", name.display());
    }
    let manifest = fs::read_to_string(package.join("Cargo.toml")).expect("the manifest");
    assert!(!manifest.contains("cuda-emulator"), "{manifest}");
}

#[test]
fn a_program_has_the_kernels() {
    let nvcc = toolkit::find(env!("CARGO_TARGET_TMPDIR"));
    let program = Program::new("with-nvcc", &unpacked("with-nvcc"), true);
    let output = program
        .cargo("run")
        .env("NVCC", &nvcc)
        .env("XACT_REQUIRE_NVCC", "1")
        .output();
    let said = text(&success(output).stdout);
    let (reference, device) = said.split_once('\n').expect("two lines");
    assert_eq!(reference, REFERENCE);
    // On a machine with the driver, the result is Ok or an error of the driver.
    let known = ["NoDriver {", "Ok\n", "Driver {"];
    assert!(known.iter().any(|k| device.starts_with(k)), "{device}");

    // The quickstart in README.md compiles, and without a driver reports that.
    let output = program
        .cargo("run")
        .args(["--bin", "quickstart"])
        .env("NVCC", nvcc)
        .output()
        .expect("cargo starts");
    let said = text(&output.stderr);
    match output.status.code() {
        Some(0) => assert!(text(&output.stdout).starts_with("y = ["), "{output:?}"),
        Some(2) => assert!(said.contains("driver"), "{said}"),
        _ => panic!("{said}"),
    }
}

#[test]
fn a_program_without_nvcc_has_the_references_and_says_what_to_do() {
    let package = unpacked("without-nvcc");
    // These folders cannot be hidden from the build script.
    let search = package.join("build/nvcc.rs");
    let code = fs::read_to_string(&search).expect("the search");
    let blind = code.replace(
        r#"[&str; 3] = ["/usr/local/cuda", "/opt/cuda", "/usr"]"#,
        "[&str; 0] = []",
    );
    assert_ne!(
        blind, code,
        "the usual folders have changed: adapt this test"
    );
    fs::write(&search, blind).expect("the search");

    let program = Program::new("without-nvcc", &package, true);
    let path = path_without_nvcc(&program.folder);
    let cargo = |job: &str, require: &str| {
        let mut command = program.cargo(job);
        command.env("PATH", &path).env("XACT_REQUIRE_NVCC", require);
        command.output()
    };
    let refused = cargo("build", "1").expect("cargo starts");
    let said = text(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("XACT_REQUIRE_NVCC=1, but no nvcc"), "{said}");
    assert!(said.contains("set CUDA_HOME"), "{said}");

    let output = success(cargo("run", ""));
    let said = text(&output.stdout);
    let (reference, device) = said.split_once('\n').expect("two lines");
    assert_eq!(reference, REFERENCE);
    assert!(device.starts_with("KernelsNotBuilt {"), "{device}");
    for word in ["no nvcc", "install the CUDA toolkit", "CUDA_HOME"] {
        assert!(device.contains(word), "{word} is missing: {device}");
    }
    // Cargo prints the warning to those who build the crate from a path.
    let said = text(&output.stderr);
    assert!(said.contains("without its CUDA kernels"), "{said}");
}

#[test]
fn a_program_without_the_cuda_feature_has_the_references_alone() {
    let program = Program::new("references", &unpacked("references"), false);
    let said = text(&success(program.cargo("run").output()).stdout);
    assert_eq!(said.trim_end(), REFERENCE);
    let tree = program
        .cargo("tree")
        .args(["-e", "normal", "--prefix", "none"])
        .output();
    let tree = names(&success(tree).stdout);
    assert!(tree.contains("half"), "{tree:?}");
    for absent in ["arrayvec", "cudarc", "libloading", "lzma-rust2"] {
        assert!(!tree.contains(absent), "{tree:?}");
    }
}

/// The dependencies of a user of the crate.
#[test]
fn the_dependencies_are_few() {
    let tree = cargo("tree")
        .args(["--package", "xact", "--edges", "normal"])
        .args(["--prefix", "none", "--depth", "1"])
        .output();
    // half depends on libm through num-traits in any case. rayon is a default feature, which can be left out.
    let expected = [
        "arrayvec",
        "bytemuck",
        "cudarc",
        "half",
        "libloading",
        "libm",
        "lzma-rust2",
        "rayon",
        "xact",
    ];
    let tree = names(&success(tree).stdout);
    assert_eq!(tree, expected.map(str::to_owned).into());
}

/// Otherwise a command that selects only the tools, such as `cargo run --bin accuracy`, would compile everything again.
#[test]
fn the_tools_alone_are_built_with_the_features_of_the_workspace() {
    let packages = |of: &[&str]| -> BTreeSet<String> {
        let tree = cargo("tree")
            .args(of)
            .args([
                "--edges",
                "normal,build,dev",
                "--prefix",
                "none",
                "--no-dedupe",
            ])
            .args(["--format", "{p} {f}"])
            .output();
        let lines = text(&success(tree).stdout);
        lines.lines().map(str::to_owned).collect()
    };
    // Packages that no default run builds may have other features.
    let workspace = ["--workspace", "--exclude", "xact-capi"];
    let (alone, together) = (packages(&["--package", "xact-dev"]), packages(&workspace));
    let others: Vec<_> = alone.difference(&together).collect();
    assert!(others.is_empty(), "only without the workspace: {others:?}");
}

/// Cargo, offline, without environment variables that would redirect the build script or cargo.
fn cargo(job: &str) -> Command {
    let mut command = Command::new(env!("CARGO"));
    let meant = ["NVCC", "XACT_REQUIRE_NVCC", "XACT_CUDA_ARCHS", "DOCS_RS"];
    for name in meant.iter().chain(&nvcc::HOMES) {
        command.env_remove(name);
    }
    for name in [
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_BUILD_BUILD_DIR",
    ] {
        command.env_remove(name);
    }
    command
        .current_dir(xact_dev::root())
        .env("CARGO_TERM_COLOR", "never")
        .args([job, "--offline"]);
    command
}

/// A copy of the output of `cargo package`. Each test has its own copy, because tests may run in parallel, and keeps it, so
/// that only changes are compiled again.
fn unpacked(name: &str) -> PathBuf {
    let target = scratch(&format!("packages/{name}"));
    let output = cargo("package")
        .args(["--package", "xact", "--no-verify", "--allow-dirty"])
        .arg("--target-dir")
        .arg(&target)
        .output();
    let said = text(&success(output).stderr);
    let warned = said.lines().find(|line| line.starts_with("warning: "));
    assert_eq!(warned, None, "{said}");
    let file = concat!("package/xact-", env!("CARGO_PKG_VERSION"), ".crate");
    let fresh = scratch(&format!("fresh/{name}"));
    let output = Command::new("tar")
        // The files in a package all have the same old time, by which cargo would not notice changes.
        .arg("-xzmf")
        .arg(target.join(file))
        .arg("-C")
        .arg(&fresh)
        .arg("--strip-components=1")
        .output();
    success(output);
    let kept = folder(&format!("unpacked/{name}"));
    fs::create_dir_all(&kept).expect("a folder");
    update(&kept, &fresh);
    kept
}

/// Makes `old` equal to `new`, without touching files that are already equal.
fn update(old: &Path, new: &Path) {
    let names = |folder: &Path| -> BTreeSet<OsString> {
        let entries = fs::read_dir(folder).expect("a folder");
        entries
            .map(|entry| entry.expect("an entry").file_name())
            .collect()
    };
    let (was, is) = (names(old), names(new));
    for name in was.difference(&is) {
        let old = old.join(name);
        if old.is_dir() {
            fs::remove_dir_all(old).expect("a folder");
        } else {
            fs::remove_file(old).expect("a file");
        }
    }
    for name in &is {
        let (old, new) = (old.join(name), new.join(name));
        if new.is_dir() {
            fs::create_dir_all(&old).expect("a folder");
            update(&old, &new);
        } else {
            let text = fs::read(&new).expect("a file");
            if fs::read(&old).ok().as_ref() != Some(&text) {
                fs::write(&old, text).expect("a file");
            }
        }
    }
}

/// A program that depends on a copy of the package.
struct Program {
    folder: PathBuf,
}

impl Program {
    fn new(name: &str, package: &Path, cuda: bool) -> Self {
        let folder = scratch(&format!("programs/{name}"));
        let default = if cuda { "\"cuda\"" } else { "" };
        let manifest = format!(
            "[package]\n\
             name = {name:?}\n\
             edition = \"2024\"\n\
             default-run = {name:?}\n\
             [dependencies]\n\
             xact = {{ path = {package:?}, default-features = false }}\n\
             [features]\n\
             default = [{default}]\n\
             cuda = [\"xact/cuda\"]\n\
             [profile.dev]\n\
             debug = false\n\
             [workspace]\n"
        );
        fs::create_dir(folder.join("src")).expect("a folder");
        fs::write(folder.join("Cargo.toml"), manifest).expect("the manifest");
        fs::write(folder.join("src/main.rs"), PROGRAM).expect("the program");
        if cuda {
            let quickstart = include_str!("../../examples/quickstart.rs");
            fs::create_dir(folder.join("src/bin")).expect("a folder");
            fs::write(folder.join("src/bin/quickstart.rs"), quickstart).expect("the quickstart");
        }
        // The versions in Cargo.lock, which this build has already downloaded.
        fs::copy(
            xact_dev::root().join("Cargo.lock"),
            folder.join("Cargo.lock"),
        )
        .expect("the lock file");
        Program { folder }
    }

    fn cargo(&self, job: &str) -> Command {
        let mut command = cargo(job);
        // All programs share the target folder, which is deep enough that no toolkit is found above it.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package-test/programs/target");
        command
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", target);
        command
    }
}

/// A folder for these tests.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("package-test")
        .join(name)
}

/// An empty folder.
fn scratch(name: &str) -> PathBuf {
    let folder = folder(name);
    // The folder may not exist.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// PATH without nvcc. A folder that contains nvcc and other programs, such as /usr/bin, is replaced by one with links to
/// the others.
fn path_without_nvcc(scratch: &Path) -> OsString {
    let path = env::var_os("PATH").expect("PATH");
    let folders = env::split_paths(&path).enumerate().map(|(i, folder)| {
        if !folder.join("nvcc").exists() {
            return folder;
        }
        let links = scratch.join(format!("path-{i}"));
        fs::create_dir(&links).expect("a folder");
        for entry in fs::read_dir(&folder).expect("a folder of PATH") {
            let entry = entry.expect("an entry");
            if entry.file_name() != "nvcc" {
                std::os::unix::fs::symlink(entry.path(), links.join(entry.file_name()))
                    .expect("a link");
            }
        }
        links
    });
    env::join_paths(folders).expect("folders of PATH")
}

fn success(output: std::io::Result<Output>) -> Output {
    let output = output.expect("it starts");
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The packages in the output of `cargo tree`.
fn names(tree: &[u8]) -> BTreeSet<String> {
    text(tree)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}
