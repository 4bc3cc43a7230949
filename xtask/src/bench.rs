//! Runs the bench of the CPU backend, and sets up the peers for it.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use crate::folders::Folders;
use crate::{candle, jobs, python, steps};

/// Runs `cargo bench --bench cpu`.
///
/// # Errors
/// A peer cannot be set up, or cargo cannot be started.
pub fn run(folders: &Folders, peers: bool, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut command = Command::new(steps::cargo());
    command.current_dir(&folders.root).args([
        "bench",
        "--package",
        "xact-dev",
        "--bench",
        "cpu",
        // The bench needs no kernels.
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

/// The command that starts PyTorch's peer.
fn torch(folders: &Folders) -> anyhow::Result<OsString> {
    let python = python::environment(folders, python::LOCK)?;
    command(&[&python, &folders.root.join("benches/peers/torch_cpu.py")])
}

/// Builds candle's peer, an example of `integrations/candle`, and returns its command.
fn candle_peer(folders: &Folders) -> anyhow::Result<OsString> {
    let mut build = Command::new(steps::cargo());
    build.args(["build", "--release", "--example", "peer"]);
    steps::done(build.args(candle::own_options(folders)?))?;
    command(&[&candle::target(folders).join("release/examples/peer")])
}

/// Joins the words of a command with blanks. The bench splits the command at blanks, so a word with a blank is an error.
fn command(words: &[&Path]) -> anyhow::Result<OsString> {
    let words: Vec<_> = words.iter().map(|w| w.as_os_str()).collect();
    for word in &words {
        if word.to_string_lossy().contains(char::is_whitespace) {
            bail!("the path of a peer has a blank in it: {}", word.display());
        }
    }
    Ok(words.join(" ".as_ref()))
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
