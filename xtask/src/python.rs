//! The Python environment, and the tests of the Python package in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use std::{env, fs};

use anyhow::Context;

use crate::folders::Folders;
use crate::steps::{Step, done};

/// What the environment is made of, relative to the root: pinned packages, as pip reads them.
const LOCK: &str = "integrations/python/requirements.lock";

/// The oldest glibc that the wheel runs with: that of RHEL 8 and Debian 10, manylinux's name for it.
const GLIBC: &str = "2_28";

/// Makes the environment where it is not yet there; returns its Python.
///
/// It lies in the user's cache folder under a name that is made of the pinned packages and the version of Python, so that
/// checkouts and branches that pin the same share it.
///
/// # Errors
/// There is no Python that can make environments, or pip fails: what it says is shown.
pub fn environment(folders: &Folders) -> anyhow::Result<PathBuf> {
    let lock = folders.root.join(LOCK);
    let wanted =
        fs::read_to_string(&lock).with_context(|| format!("{} cannot be read", lock.display()))?;
    let base = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let version = Command::new(&base)
        .args(["-c", "import sys; print(*sys.version_info[:2], sep='.')"])
        .output()
        .with_context(|| {
            format!(
                "{} does not start; set PYTHON to a Python of 3.10 or later",
                base.display()
            )
        })?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let cache = cache_folder()?;
    let environment = cache.join(format!("python{version}-{:016x}", fnv(&wanted)));
    let python = environment.join("bin/python");
    fs::create_dir_all(&cache).with_context(|| format!("{} cannot be made", cache.display()))?;
    // Two runs at once wait for each other.
    let guard = fs::File::create(environment.with_extension("lock"))?;
    guard.lock().context("the cache folder cannot be locked")?;
    // Written last, so that an installation that was stopped is not taken for one.
    let whole = environment.join("whole");
    if !whole.exists() {
        let start = Instant::now();
        eprintln!(
            "Installing PyTorch and the tools of {} into {}: a download of 3 GB, 6 GB on disk. It takes minutes.",
            lock.display(),
            environment.display()
        );
        done(
            Command::new(&base)
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
        )?;
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "--no-deps",
            "--requirement",
        ]);
        done(pip.arg(&lock))?;
        fs::write(&whole, "")?;
        eprintln!("Installed in {:.0} s.", start.elapsed().as_secs_f64());
    }
    Ok(python)
}

/// Where it may be kept: `$XDG_CACHE_HOME/xact`, or `~/.cache/xact`.
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

/// FNV-1a, which is the same in every release of Rust.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The steps that build the wheel and test it.
///
/// # Errors
/// As [`environment`].
pub fn steps(folders: &Folders, full: bool) -> anyhow::Result<Vec<Step>> {
    let python = environment(folders)?;
    let package = folders.root.join("integrations/python");
    let own = folders.target.join("python");
    let (wheels, site) = (own.join("wheels"), own.join("site"));
    // What an earlier state of the package left there would be taken along.
    for stale in [&package.join("build"), &wheels, &site] {
        match fs::remove_dir_all(stale) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let [python, package, wheels, site, target] =
        [&python, &package, &wheels, &site, &folders.target].map(|path| path.display().to_string());
    let run = |words: &[&str]| Step::program(&python, words.iter().copied());
    // The build starts cargo-zigbuild, which is in the environment, and finds ziglang by it.
    let bin = Path::new(&python).parent().map(Path::to_path_buf);
    let rest = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(bin.into_iter().chain(env::split_paths(&rest)))?;
    let mut tests = run(&["-m", "pytest", "-q", "--durations=10", &package])
        .variable("PYTHONPATH", &*site)
        .variable("XACT_WHEELS", &*wheels);
    if full {
        tests = tests.variable("XACT_FULL", "1");
    }
    let pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"];
    let pip = |words: &[&str]| run(&[&pip, words].concat());
    Ok(vec![
        run(&["-m", "ruff", "check", "--quiet", &package]),
        run(&["-m", "ruff", "format", "--quiet", "--check", &package]),
        run(&[&format!("{package}/tools/abi.py"), "--check"]),
        pip(&[
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            &wheels,
            &package,
        ])
        .variable("PATH", path.to_string_lossy())
        .variable("CARGO_TARGET_DIR", target)
        .variable("XACT_MANYLINUX", GLIBC)
        .variable("XACT_CUDA_ARCHS", "all"),
        pip(&[
            "install",
            "--no-deps",
            "--no-index",
            "--find-links",
            &wheels,
            "--target",
            &site,
            "xact-kernels",
        ]),
        tests,
    ])
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
}
