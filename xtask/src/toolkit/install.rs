//! Installs nvcc from PyPI into `<target>/cuda-toolkit`:
//!
//! - `cuda/`: the toolkit, with `bin/nvcc`
//! - `packages/`: the other files that pip writes, such as NVIDIA's licence
//! - `packages.txt`: the list of pinned packages that was installed
//!
//! The installation is made in a folder beside it, which is renamed after a test kernel has compiled. A folder
//! `cuda-toolkit` is therefore complete. nvcc finds its parts relative to itself, so the folder may be moved.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime};
use std::{env, fs, io, process};

use anyhow::{Context, anyhow, bail};

use super::discovery::{nvcc_in, own_folder, own_home};

/// The pinned packages, as a requirements file of pip.
const PACKAGES: &str = include_str!("packages.txt");

/// The prefix of the folders of unfinished installations; the process id follows.
const PARTIAL: &str = "cuda-toolkit.partial.";

/// Whether the installed toolkit is the pinned one.
pub fn is_current(target: &Path) -> bool {
    fs::read_to_string(own_folder(target).join("packages.txt")).is_ok_and(|text| text == PACKAGES)
}

/// The pinned packages as `name==version`.
pub fn packages() -> impl Iterator<Item = &'static str> {
    PACKAGES.lines().filter_map(|line| {
        let pin = line.split_whitespace().next()?;
        pin.contains("==").then_some(pin)
    })
}

/// A folder that is removed when dropped.
pub struct Removed(pub PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // If this fails, the next installation removes the folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Installs the toolkit and returns the path of its nvcc.
///
/// # Errors
/// The reason, and the other ways to get nvcc. A failure leaves no folder that looks like a toolkit.
pub fn install(target: &Path) -> anyhow::Result<PathBuf> {
    if !super::packages_exist_here() {
        return Err(cannot(anyhow!(
            "the packages are for Linux on x86_64 and aarch64, this is {} on {}",
            env::consts::OS,
            env::consts::ARCH
        )));
    }
    let start = Instant::now();
    sweep(target).context("the target folder cannot be read")?;
    let stage = target.join(format!("{PARTIAL}{}", process::id()));
    fs::create_dir_all(&stage).with_context(|| format!("{} cannot be created", stage.display()))?;
    let _removed = Removed(stage.clone());
    let python = python_with_pip(&stage).map_err(cannot)?;
    announce(target);
    fill(&stage, &python).map_err(cannot)?;
    eprintln!("Compiling a small kernel as a test ...");
    let nvcc = nvcc_in(&stage.join("cuda"))
        .ok_or_else(|| anyhow!("the packages have no nvcc"))
        .map_err(cannot)?;
    super::compile_probe(&nvcc, &stage)?;
    publish(target, &stage).context("the finished toolkit cannot be moved into place")?;
    eprintln!("Installed in {:.0} s.", start.elapsed().as_secs_f64());
    nvcc_in(&own_home(target)).context("the installed toolkit has vanished")
}

/// Prints what is downloaded, from where and under which licence.
fn announce(target: &Path) {
    eprintln!(
        "Installing NVIDIA's compiler from PyPI into {}",
        own_folder(target).display()
    );
    for package in packages() {
        eprintln!("    {package}");
    }
    eprintln!(
        "The download is 109 MB, the folder 277 MB. The packages are under NVIDIA's CUDA Toolkit EULA:\n\
         https://docs.nvidia.com/cuda/eula\n\
         Nothing is written outside the target folder. To use another nvcc: cargo xtask help toolkit"
    );
}

/// An error of the installation, with the other ways to get nvcc.
fn cannot(error: anyhow::Error) -> anyhow::Error {
    anyhow!(
        "nvcc cannot be installed: {error:#}\n\n{}",
        super::other_ways()
    )
}

/// Downloads the packages into `stage` with the pip of `python`, and moves their files to the final layout.
fn fill(stage: &Path, python: &Path) -> anyhow::Result<()> {
    let packages = pip_install(stage, python, PACKAGES)?;
    fs::rename(packages.join("nvidia").join("cu13"), stage.join("cuda"))
        .context("the packages have no folder nvidia/cu13")?;
    for folder in ["tmp", "venv"] {
        match fs::remove_dir_all(stage.join(folder)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Installs the pinned packages of `list` with the pip of `python`, and returns the folder in `stage` that contains them.
pub fn pip_install(stage: &Path, python: &Path, list: &str) -> anyhow::Result<PathBuf> {
    let requirements = stage.join("packages.txt");
    let packages = stage.join("packages");
    // pip unpacks into this folder, because the system's temporary folder may be small, and is outside the target folder.
    let temporary = stage.join("tmp");
    fs::write(&requirements, list)?;
    fs::create_dir_all(&temporary)?;

    let status = Command::new(python)
        .args(["-m", "pip", "install", "--requirement"])
        .arg(&requirements)
        .arg("--target")
        .arg(&packages)
        .args(["--require-hashes", "--no-deps", "--no-cache-dir"])
        .args(["--only-binary", ":all:", "--no-compile"])
        // Set as variables, because a pip version ignores variables that it does not know. The first two would conflict
        // with `--target`.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .env("PIP_NO_INPUT", "1")
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .status()
        .with_context(|| format!("{} does not start", python.display()))?;
    if !status.success() {
        bail!("pip failed ({status}); its output is above. Is the package index reachable?");
    }
    Ok(packages)
}

/// A Python with a working pip: the user's, or that of a virtual environment in `stage`.
pub fn python_with_pip(stage: &Path) -> anyhow::Result<PathBuf> {
    let python = ["python3", "python"]
        .into_iter()
        .find(|python| {
            super::succeeds(
                python,
                &["-c", "import sys; sys.exit(sys.version_info < (3, 8))"],
            )
        })
        .context("there is no working Python 3.8 or newer on PATH (python3, python)")?;
    if super::succeeds(python, &["-m", "pip", "--version"]) {
        return Ok(python.into());
    }
    let folder = stage.join("venv");
    let venv = Command::new(python)
        .args(["-m", "venv"])
        .arg(&folder)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{python} does not start"))?;
    if !venv.status.success() {
        // The venv module writes its errors to stdout.
        let said = [venv.stdout, venv.stderr].concat();
        bail!(
            "{python} has neither pip nor a working venv module \
             (Debian, Ubuntu: apt install python3-pip, or python3-venv). It said:\n{}",
            String::from_utf8_lossy(&said).trim_end()
        );
    }
    Ok(folder.join("bin").join("python"))
}

/// Renames the finished `stage` to its final name, and removes an outdated toolkit first.
fn publish(target: &Path, stage: &Path) -> io::Result<()> {
    let place = own_folder(target);
    let is_whole = || is_current(target) && nvcc_in(&own_home(target)).is_some();
    let old = target.join(format!("{PARTIAL}{}.old", process::id()));
    let _removed = Removed(old.clone());
    if place.symlink_metadata().is_ok() {
        fs::rename(&place, &old)?;
    }
    match fs::rename(stage, &place) {
        // Another process was faster and installed the same packages.
        Err(_) if is_whole() => Ok(()),
        Err(error) => Err(error),
        // A build script that ran during the installation has found no nvcc. Cargo runs it again only if nvcc is newer than
        // that run.
        Ok(()) => match nvcc_in(&own_home(target)) {
            Some(nvcc) => fs::File::open(nvcc)?.set_modified(SystemTime::now()),
            None => Ok(()),
        },
    }
}

/// Removes the folders of interrupted installations.
fn sweep(target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.strip_prefix(PARTIAL)) else {
            continue;
        };
        let process = process.trim_end_matches(".old");
        if process == process::id().to_string() || !Path::new("/proc").join(process).exists() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn every_package_is_pinned_and_hashed_for_both_platforms() {
        let hashes = PACKAGES.matches("--hash=sha256:").count();
        assert_eq!(packages().count(), 7);
        assert_eq!(hashes, 2 * packages().count());
    }

    #[test]
    fn a_toolkit_of_other_pins_is_not_current() {
        let scratch = Scratch::new();
        assert!(!is_current(scratch.path()));
        scratch.write("cuda-toolkit/packages.txt", PACKAGES);
        assert!(is_current(scratch.path()));
        scratch.write(
            "cuda-toolkit/packages.txt",
            &PACKAGES.replace("13.0.88", "13.0.48"),
        );
        assert!(!is_current(scratch.path()));
    }

    #[test]
    fn publishing_replaces_what_was_there() {
        let scratch = Scratch::new();
        scratch.script("cuda-toolkit/cuda/bin/nvcc", "old");
        let new = scratch.script("stage/cuda/bin/nvcc", "new");
        let unpacked = SystemTime::now() - Duration::from_secs(3600);
        let file = fs::File::open(&new).expect("nvcc");
        file.set_modified(unpacked).expect("modification time");
        let before = SystemTime::now() - Duration::from_secs(1);
        scratch.write("stage/packages.txt", PACKAGES);
        publish(scratch.path(), &scratch.path().join("stage")).expect("published");
        assert!(is_current(scratch.path()));
        let nvcc = nvcc_in(&own_home(scratch.path())).expect("nvcc");
        assert!(fs::read_to_string(&nvcc).expect("nvcc").contains("new"));
        let modified = nvcc.metadata().and_then(|data| data.modified());
        assert!(modified.expect("modification time") > before);
        assert!(!new.exists());
        let left = fs::read_dir(scratch.path()).expect("folder").count();
        assert_eq!(left, 1, "the old toolkit is gone");
    }

    #[test]
    fn only_the_leftovers_of_dead_processes_are_swept() {
        let scratch = Scratch::new();
        // Process ids are always far below this number.
        scratch.write("cuda-toolkit.partial.4294967295/file", "");
        scratch.write("cuda-toolkit.partial.4294967295.old/file", "");
        scratch.write("cuda-toolkit.partial.1/file", "");
        scratch.write("cuda-toolkit/file", "");
        sweep(scratch.path()).expect("swept");
        let left = fs::read_dir(scratch.path()).expect("folder").count();
        assert_eq!(left, 2);
    }
}
