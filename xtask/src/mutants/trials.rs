//! Runs the trials of a libtest-mimic executable until the first failure.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

/// A selection of trials.
pub struct Filter(Vec<String>);

impl Filter {
    /// All trials of all ops.
    pub fn every() -> Self {
        Self(Vec::new())
    }

    /// The bf16 trials of an op, and its trials without a type.
    pub fn bf16(op: &str) -> Self {
        Self::of(op).without(&["::f32", "::f16"])
    }

    /// The trials of an op with other types.
    pub fn others(op: &str) -> Self {
        Self::of(op).without(&["::bf16", "::stored_parameters"])
    }

    fn of(op: &str) -> Self {
        Self(vec![format!("{op}::")])
    }

    fn without(mut self, skipped: &[&str]) -> Self {
        self.0.extend(
            skipped
                .iter()
                .flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]),
        );
        self
    }
}

/// The outcome of a run.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// All trials passed: their number, and the longest time without output.
    Passed { trials: usize, silence: Duration },
    /// This trial failed; the others were stopped.
    Failed(String),
    /// The process ended without reporting a failed trial.
    Died(String),
    /// There was no output for longer than the limit.
    TimedOut,
}

/// The command of an executable in `folder`, which loads the substitutes instead of its own kernels.
pub fn command(executable: &Path, folder: &Path, substitutes: Option<&Path>) -> Command {
    let mut command = Command::new(executable);
    command
        .current_dir(folder)
        // Cargo starts tests in the package's folder.
        .env("CARGO_MANIFEST_DIR", folder)
        .env("XACT_DEVICE", "emulated")
        .envs(substitutes.map(|kernels| ("XACT_SUBSTITUTES", kernels)))
        .stdin(Stdio::null());
    command
}

/// Runs the trials in `folder` with the substitutes instead of their own kernels. The trials are stopped if there is no
/// output for `limit`.
pub fn run(
    executable: &Path,
    folder: &Path,
    substitutes: Option<&Path>,
    filter: &Filter,
    limit: Duration,
) -> anyhow::Result<Ended> {
    let mut child = command(executable, folder, substitutes)
        .args(&filter.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{} does not start", executable.display()))?;
    let stdout = child.stdout.take().expect("piped");
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut passed = 0;
    let mut heard = Instant::now();
    let mut silence = Duration::ZERO;
    let ended = loop {
        match lines.recv_timeout(limit) {
            Ok(line) => {
                silence = silence.max(heard.elapsed());
                heard = Instant::now();
                match trial(&line) {
                    Some((name, false)) => break Some(Ended::Failed(name.to_owned())),
                    Some((_, true)) => passed += 1,
                    None => {}
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => break Some(Ended::TimedOut),
            Err(mpsc::RecvTimeoutError::Disconnected) => break None,
        }
    };
    if ended.is_some() {
        // The process may have ended in the meantime.
        let _ = child.kill();
    }
    drop(lines);
    let status = child.wait().context("the test cannot be waited for")?;
    let _ = reader.join();
    Ok(ended.unwrap_or_else(|| {
        if status.success() {
            Ended::Passed {
                trials: passed,
                silence,
            }
        } else {
            Ended::Died(status.to_string())
        }
    }))
}

/// The name of the trial in a line of output, and whether it passed.
fn trial(line: &str) -> Option<(&str, bool)> {
    let (name, how) = line.strip_prefix("test ")?.rsplit_once("... ")?;
    match how.trim() {
        "ok" => Some((name.trim(), true)),
        "FAILED" => Some((name.trim(), false)),
        _ => None,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn ended(body: &str, limit: Duration) -> Ended {
        let scratch = Scratch::new();
        let script = scratch.script("test", body);
        run(&script, scratch.path(), None, &Filter::every(), limit).expect("starts")
    }

    #[test]
    fn the_first_failure_ends_the_run() {
        let minute = Duration::from_secs(60);
        let body = "echo 'test a::b   ... ok'; echo 'test a::c ... FAILED'; exec sleep 50";
        let start = Instant::now();
        assert_eq!(ended(body, minute), Ended::Failed("a::c".into()));
        assert!(start.elapsed() < Duration::from_secs(20));
        let one = ended("echo 'test a::b ... ok'", minute);
        assert!(matches!(one, Ended::Passed { trials: 1, .. }), "{one:?}");
        assert!(matches!(ended("kill -9 $$", minute), Ended::Died(_)));
        assert_eq!(
            ended("exec sleep 50", Duration::from_millis(200)),
            Ended::TimedOut
        );
        let steady = "for i in 1 2 3 4; do sleep 0.5; echo \"test a::$i ... ok\"; done";
        let steady = ended(steady, Duration::from_millis(1500));
        assert!(
            matches!(steady, Ended::Passed { trials: 4, silence } if silence >= Duration::from_millis(500)),
            "{steady:?}"
        );
    }

    #[test]
    fn the_trials_are_told_where_the_changed_kernels_are() {
        let scratch = Scratch::new();
        let script = scratch.script("test", "echo \"test $XACT_SUBSTITUTES ... FAILED\"");
        let with = |kernels: Option<&Path>| {
            let minute = Duration::from_secs(60);
            run(&script, scratch.path(), kernels, &Filter::every(), minute).expect("starts")
        };
        assert_eq!(with(Some(Path::new("/k"))), Ended::Failed("/k".into()));
        assert_eq!(with(None), Ended::Failed(String::new()));
    }

    #[test]
    fn the_two_runs_cover_every_trial_once() {
        let matches = |filter: &Filter, name: &str| {
            let skipped = filter.0.iter().skip_while(|word| *word != "--skip");
            let skipped: Vec<_> = skipped.filter(|word| *word != "--skip").collect();
            name.contains(&filter.0[0]) && !skipped.iter().any(|word| name.contains(word.as_str()))
        };
        for name in [
            "xielu::forward::f32::initial",
            "xielu::empty::f16",
            "xielu::backward::bf16::initial",
            "xielu::stored_parameters",
        ] {
            let runs = [Filter::bf16("xielu"), Filter::others("xielu")];
            assert_eq!(
                runs.iter().filter(|run| matches(run, name)).count(),
                1,
                "{name}"
            );
        }
    }
}
