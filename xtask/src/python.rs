//! Makes the Python environment, and tests the Python package in it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, ensure};

use crate::folders::Folders;
use crate::steps::{self, Step, done};

/// The lock file of the environment, relative to the root: pinned packages, as pip reads them.
pub const LOCK: &str = "integrations/python/requirements.lock";

/// The lock file with the oldest supported PyTorch and the tools of the tests only.
const LEAST: &str = "integrations/python/requirements-least.lock";

/// The oldest glibc that the wheel supports, that of RHEL 8 and Debian 10, as in the names of manylinux.
const GLIBC: &str = "2_28";

/// Makes the environment of a lock file if it does not exist, and returns the path of its Python.
///
/// The environment is in the user's cache folder. Its name depends on the pinned packages and on the version of Python, so
/// checkouts and branches with the same pins share it.
///
/// # Errors
/// There is no Python that can make environments, or pip fails; pip's errors are shown.
pub fn environment(folders: &Folders, lock: &str) -> anyhow::Result<PathBuf> {
    let lock = folders.root.join(lock);
    let wanted =
        fs::read_to_string(&lock).with_context(|| format!("{} cannot be read", lock.display()))?;
    let base = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let version = Command::new(&base)
        .args(["-c", "import sys; print(*sys.version_info[:2], sep='.')"])
        .output()
        .with_context(|| {
            format!(
                "{} does not start; set PYTHON to a Python of 3.11 or later",
                base.display()
            )
        })?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let cache = cache_folder()?;
    let environment = cache.join(format!("python{version}-{:016x}", fnv(&wanted)));
    let python = environment.join("bin/python");
    fs::create_dir_all(&cache).with_context(|| format!("{} cannot be made", cache.display()))?;
    // The lock makes a second run wait.
    let guard = fs::File::create(environment.with_extension("lock"))?;
    guard.lock().context("the cache folder cannot be locked")?;
    // This file is written last, so an interrupted installation does not count as complete.
    let whole = environment.join("whole");
    if !whole.exists() {
        let start = Instant::now();
        eprintln!(
            "Installing PyTorch, transformers and the tools of {} into {}: a download of 3 GB, 6 GB on disk. It takes minutes.",
            lock.display(),
            environment.display()
        );
        done(
            Command::new(&base)
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
        )?;
        let packages = wanted.lines().filter(|line| line.contains("==")).count();
        install(&python, &lock, packages)?;
        fs::write(&whole, "")?;
        eprintln!("Installed in {:.0} s.", start.elapsed().as_secs_f64());
    }
    Ok(python)
}

/// Installs the packages of a lock file. On a terminal, a bar shows the package that pip is working on; a log gets no
/// progress. pip's errors are always shown.
fn install(python: &Path, lock: &Path, packages: usize) -> anyhow::Result<()> {
    let mut pip = Command::new(python)
        .args(["-m", "pip", "install", "--disable-pip-version-check"])
        .args(["--no-cache-dir", "--no-deps", "--progress-bar", "off"])
        .arg("--requirement")
        .arg(lock)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("pip does not start")?;
    let said = pip.stdout.take().context("pip has no output")?;
    let bar = steps::bar(packages);
    bar.enable_steady_tick(Duration::from_secs(1));
    for line in BufReader::new(said).lines() {
        let line = line?;
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["Collecting", package, ..] => {
                bar.inc(1);
                bar.set_message(package.to_owned());
            }
            ["Downloading", .., size, unit] => {
                bar.set_message(format!("{} {size} {unit}", bar.message()));
            }
            ["Installing", ..] => bar.set_message("unpacking"),
            _ => {}
        }
    }
    bar.finish_and_clear();
    let status = pip.wait()?;
    ensure!(status.success(), "pip: {status}");
    Ok(())
}

/// The folder for environments: `$XDG_CACHE_HOME/xact`, or `~/.cache/xact`.
fn cache_folder() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(caches
        .context("neither XDG_CACHE_HOME nor HOME names a folder")?
        .join("xact"))
}

/// The 64-bit FNV-1a hash, which, unlike the standard hasher, is the same in every release of Rust.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The folders of the Python package: the sources, the built wheel, and the folder into which the wheel is installed.
struct Made {
    package: PathBuf,
    wheels: PathBuf,
    site: PathBuf,
}

impl Made {
    fn of(folders: &Folders) -> Made {
        let own = folders.target.join("python");
        Made {
            package: folders.root.join("integrations/python"),
            wheels: own.join("wheels"),
            site: own.join("site"),
        }
    }
}

/// The folder into which [`wheel`] writes the wheel.
pub fn wheels(folders: &Folders) -> PathBuf {
    Made::of(folders).wheels
}

/// The step that builds the wheel, with machine code for every architecture, for Linux with glibc 2.28 or later.
///
/// # Errors
/// An earlier wheel cannot be removed.
pub fn wheel(folders: &Folders, python: &Path) -> anyhow::Result<Step> {
    let Made {
        package, wheels, ..
    } = Made::of(folders);
    remove(&wheels)?;
    let [wheels, package] = [&wheels, &package].map(|path| path.display().to_string());
    let words = ["wheel", "--no-deps", "--no-build-isolation"];
    let step = pip(
        python,
        words.into_iter().chain(["--wheel-dir", &wheels, &package]),
    );
    Ok(step
        .variable("CARGO_TARGET_DIR", folders.target.display().to_string())
        .variable("XACT_MANYLINUX", GLIBC)
        .variable("XACT_CUDA_ARCHS", "all"))
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| folder.display().to_string())
        }
        _ => Ok(()),
    }
}

fn run<'a>(python: &Path, words: impl IntoIterator<Item = &'a str>) -> Step {
    Step::program(&python.display().to_string(), words)
}

fn pip<'a>(python: &Path, words: impl IntoIterator<Item = &'a str>) -> Step {
    let pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"];
    run(python, pip.into_iter().chain(words))
}

/// The steps that build and test the wheel. With `full`, they also test the sdist, and test the wheel with the oldest
/// supported PyTorch.
///
/// # Errors
/// The errors of [`environment`].
pub fn steps(folders: &Folders, full: bool) -> anyhow::Result<Vec<Step>> {
    let python = environment(folders, LOCK)?;
    let wheel = wheel(folders, &python)?;
    let made = Made::of(folders);
    remove(&made.site)?;
    let [package, wheels, site] =
        [made.package, made.wheels, made.site].map(|path| path.display().to_string());
    let mut tests = run(&python, ["-m", "pytest", "-q", "--durations=10", &*package])
        .variable("PYTHONPATH", &*site)
        .variable("XACT_WHEELS", &*wheels);
    if full {
        tests = tests.variable("XACT_FULL", "1");
    }
    let words = ["install", "--no-deps", "--no-index", "--find-links"];
    let mut steps = vec![
        run(&python, ["-m", "ruff", "check", "--quiet", &*package]),
        run(
            &python,
            ["-m", "ruff", "format", "--quiet", "--check", &*package],
        ),
        run(&python, [&*format!("{package}/tools/abi.py"), "--check"]),
        wheel,
        pip(
            &python,
            words
                .into_iter()
                .chain([&*wheels, "--target", &*site, "xact-kernels"]),
        ),
        tests,
    ];
    if full {
        let least = environment(folders, LEAST)?;
        let tests = ["-m", "pytest", "-q", "-m", "not inductor", &*package];
        steps.push(run(&least, tests).variable("PYTHONPATH", site));
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_environment_is_that_of_its_packages() {
        // Published values of 64-bit FNV-1a.
        assert_eq!(fnv(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv("a"), 0xaf63_dc4c_8601_ec8c);
    }

    /// The pinned packages and README.md agree with the minimum versions in pyproject.toml.
    #[test]
    fn the_least_versions_are_one() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("a root");
        let text = |path: &str| fs::read_to_string(root.join(path)).expect(path);
        let project = text("integrations/python/pyproject.toml");
        let (lock, readme) = (text(LEAST), text("integrations/python/README.md"));
        for (package, name) in [("torch", "PyTorch"), ("transformers", "transformers")] {
            let (_, rest) = project
                .split_once(&format!("\"{package}>="))
                .expect("the extra");
            let least = rest.split('"').next().expect("a version");
            let pinned = lock
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{package}==")));
            assert_eq!(pinned, Some(format!("{least}.0").as_str()));
            assert!(readme.contains(&format!("{name} {least} or later")));
        }
    }
}
