//! The bench of the CPU backend, and the peers that it can be timed beside.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use anyhow::{Context, bail};

use crate::folders::Folders;
use crate::{candle, jobs, steps};

/// Runs `cargo bench --bench cpu`.
///
/// # Errors
/// A peer cannot be set up, or cargo does not start.
pub fn run(folders: &Folders, peers: bool, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut command = Command::new(steps::cargo());
    command.current_dir(&folders.root).args([
        "bench",
        "--package",
        "xact",
        "--bench",
        "cpu",
        // Nothing of it needs kernels.
        "--no-default-features",
        "--features",
        "rayon",
        "--",
    ]);
    if peers {
        for peer in [torch(folders)?, candle_peer(folders)?] {
            command.arg("--peer").arg(peer);
        }
    }
    let status = command.args(arguments).status();
    let status = status.context("cargo does not start")?;
    Ok(ExitCode::from(jobs::code(status)))
}

/// The folder of what peers need.
fn own_folder(folders: &Folders) -> PathBuf {
    folders.target.join("peers")
}

/// Installs PyTorch, unless what is asked for is there already; returns the command of its peer.
fn torch(folders: &Folders) -> anyhow::Result<OsString> {
    let here = folders.root.join("benches/peers");
    let requirements = here.join("requirements.txt");
    let wanted = fs::read(&requirements)
        .with_context(|| format!("{} cannot be read", requirements.display()))?;
    let venv = own_folder(folders).join("venv");
    let python = venv.join("bin/python");
    // Written last, so that an installation that was stopped is not taken for one.
    let installed = venv.join("installed.txt");
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        let base = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        eprintln!(
            "Installing {} into {}; this takes minutes.",
            requirements.display(),
            venv.display()
        );
        done(
            Command::new(base)
                .args(["-m", "venv", "--clear"])
                .arg(&venv),
        )?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "-r"]);
        done(pip.arg(&requirements))?;
        fs::write(&installed, wanted)
            .with_context(|| format!("{} cannot be written", installed.display()))?;
    }
    command(&[&python, &here.join("torch_cpu.py")])
}

/// Builds candle's peer, an example of the crate for candle; returns its command.
fn candle_peer(folders: &Folders) -> anyhow::Result<OsString> {
    let target = candle::target(folders);
    let mut build = Command::new(steps::cargo());
    build.args(["build", "--release", "--locked", "--example", "peer"]);
    build.arg("--manifest-path");
    build.arg(folders.root.join("integrations/candle/Cargo.toml"));
    done(build.arg("--target-dir").arg(&target))?;
    command(&[&target.join("release/examples/peer")])
}

/// The bench splits a command at its blanks.
fn command(words: &[&Path]) -> anyhow::Result<OsString> {
    let words: Vec<_> = words.iter().map(|w| w.as_os_str()).collect();
    for word in &words {
        if word.to_string_lossy().contains(char::is_whitespace) {
            bail!("the path of a peer has a blank in it: {}", word.display());
        }
    }
    Ok(words.join(" ".as_ref()))
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let status = command.status();
    let status = status.with_context(|| format!("{program} does not start"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_no_blanks_within_its_words() {
        let joined = command(&[Path::new("/a/python"), Path::new("/b/x.py")]);
        assert_eq!(joined.expect("no blanks"), "/a/python /b/x.py");
        assert!(command(&[Path::new("/a b/python")]).is_err());
    }
}
