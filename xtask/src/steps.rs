//! Runs command lines one after the other, and prints a summary.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::folders::Folders;

/// A command line to run.
pub struct Step {
    program: String,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    component: Option<Component>,
    /// The reason why the step is skipped, if it is.
    skipped: Option<String>,
}

/// An optional part of the Rust toolchain.
struct Component {
    /// The name in rustup.
    name: &'static str,
    /// The cargo subcommand that the component provides.
    command: &'static str,
}

/// The outcome of a step.
#[derive(Debug, PartialEq)]
enum Outcome {
    Passed(Duration),
    Failed(Duration, String),
    /// The step was skipped, for this reason.
    Skipped(String),
    /// The step was not run, because an earlier one failed.
    NotRun,
}

impl Step {
    /// A step that runs cargo with these arguments, split at blanks.
    pub fn cargo(line: &str) -> Self {
        Self::new(&cargo(), line)
    }

    fn new(program: &str, line: &str) -> Self {
        Self::program(program, line.split_whitespace())
    }

    /// A step that runs a program with these arguments, which may contain blanks.
    pub fn program<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            program: program.to_owned(),
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            variables: Vec::new(),
            component: None,
            skipped: None,
        }
    }

    /// Sets an environment variable for the step.
    pub fn variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Skips the step if this component of the toolchain is missing.
    pub fn needs(mut self, name: &'static str, command: &'static str) -> Self {
        self.component = Some(Component { name, command });
        self
    }

    /// Skips the step if there is a reason.
    pub fn skip_if(mut self, reason: Option<String>) -> Self {
        self.skipped = reason;
        self
    }

    fn run(&self, common: &[(&str, &str)]) -> Outcome {
        if let Some(reason) = &self.skipped {
            return Outcome::Skipped(reason.clone());
        }
        if let Some(component) = &self.component
            && !component.is_installed(&self.program)
        {
            return Outcome::Skipped(format!(
                "{0} is not installed: rustup component add {0}",
                component.name
            ));
        }
        let start = Instant::now();
        let status = Command::new(&self.program)
            .args(&self.arguments)
            .envs(common.iter().copied())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .status();
        match status {
            Ok(status) if status.success() => Outcome::Passed(start.elapsed()),
            Ok(status) => Outcome::Failed(start.elapsed(), status.to_string()),
            Err(error) => Outcome::Failed(start.elapsed(), format!("does not start: {error}")),
        }
    }
}

impl Component {
    fn is_installed(&self, cargo: &str) -> bool {
        Command::new(cargo)
            .args([self.command, "--version"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}

/// The command line as one would type it in a shell.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.variables {
            if value.contains(' ') {
                write!(f, "{name}=\"{value}\" ")?;
            } else {
                write!(f, "{name}={value} ")?;
            }
        }
        let is_cargo = self.program == cargo();
        f.write_str(if is_cargo { "cargo" } else { &self.program })?;
        for argument in &self.arguments {
            write!(f, " {argument}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(time) => write!(f, "passed  {:>10}", clock(*time)),
            Self::Failed(time, how) => write!(f, "FAILED  {:>10}  {how}", clock(*time)),
            Self::Skipped(why) => write!(f, "skipped             {why}"),
            Self::NotRun => f.write_str("not run"),
        }
    }
}

/// A progress bar of `len` steps on stderr; it is invisible if stderr is no terminal.
pub fn bar(len: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} left {eta}  {msg}");
    ProgressBar::new(len as u64).with_style(style.expect("a valid template"))
}

/// Runs a command. A failure is an error.
pub fn done(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{command:?} does not start"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// The path of the cargo that started this process.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// The durations of command lines in their last successful runs, stored in the target folder.
pub struct Times {
    file: PathBuf,
    seconds: BTreeMap<String, f64>,
}

impl Times {
    /// Reads the durations from the target folder. A missing file or an invalid line is ignored.
    pub fn read(folders: &Folders) -> Self {
        let file = folders.target.join("xtask-times.txt");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let seconds = text.lines().filter_map(|line| {
            let (seconds, name) = line.split_once('\t')?;
            Some((name.to_owned(), seconds.parse().ok()?))
        });
        let seconds = seconds.collect();
        Self { file, seconds }
    }

    /// A sentence with the expected duration of this line, and of this and the later lines together.
    pub fn estimate(&self, line: &str, later: &[String]) -> Option<String> {
        let this = *self.seconds.get(line)?;
        let left: f64 = later.iter().filter_map(|line| self.seconds.get(line)).sum();
        Some(match (about(this), about(this + left)) {
            (this, _) if later.is_empty() => format!("Takes {this}."),
            (this, left) => format!("Takes {this}; {left} to the end."),
        })
    }

    /// Stores the duration of a line.
    pub fn note(&mut self, line: &str, time: Duration) {
        self.seconds.insert(line.to_owned(), time.as_secs_f64());
        let lines = self.seconds.iter();
        let text: String = lines.map(|(name, s)| format!("{s:.1}\t{name}\n")).collect();
        // If the file cannot be written, the next run only lacks estimates.
        let _ = fs::write(&self.file, text);
    }
}

/// Formats an estimated duration.
fn about(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => "a few seconds".to_owned(),
        s if s < 90.0 => format!("about {:.0} s", (s / 10.0).round() * 10.0),
        s => format!("about {:.0} min", s / 60.0),
    }
}

/// The results of a run of steps.
pub struct Summary<'a> {
    steps: &'a [Step],
    outcomes: Vec<Outcome>,
    time: Duration,
}

/// Runs the steps until one fails. Before each step, stderr shows the command line and the estimate from `times`.
/// `variables` are set for all steps.
pub fn run<'a>(steps: &'a [Step], variables: &[(&str, &str)], times: &mut Times) -> Summary<'a> {
    let start = Instant::now();
    let mut outcomes = Vec::new();
    let lines: Vec<_> = steps.iter().map(Step::to_string).collect();
    for (index, step) in steps.iter().enumerate() {
        let failed = matches!(outcomes.last(), Some(Outcome::Failed(..) | Outcome::NotRun));
        if failed {
            outcomes.push(Outcome::NotRun);
            continue;
        }
        let line = &lines[index];
        eprintln!("\n[{}/{}] {line}", index + 1, steps.len());
        if let Some(estimate) = times.estimate(line, &lines[index + 1..]) {
            eprintln!("{estimate}");
        }
        let outcome = step.run(variables);
        if let Outcome::Passed(time) = outcome {
            times.note(line, time);
        }
        eprintln!("[{}/{}] {outcome}", index + 1, steps.len());
        outcomes.push(outcome);
    }
    Summary {
        steps,
        outcomes,
        time: start.elapsed(),
    }
}

impl Summary<'_> {
    /// The step that failed, if any.
    pub fn failed(&self) -> Option<&Step> {
        let is_failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(..));
        Some(&self.steps[self.outcomes.iter().position(is_failed)?])
    }
}

/// Prints a table with one line per step.
impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.steps.iter().map(Step::to_string).collect();
        let width = names.iter().map(String::len).max().unwrap_or(0);
        for (name, outcome) in names.iter().zip(&self.outcomes) {
            writeln!(f, "{name:width$}  {outcome}")?;
        }
        write!(f, "{:width$}          {:>10}", "total", clock(self.time))
    }
}

/// Formats a duration with a unit.
fn clock(time: Duration) -> String {
    let tenths = (time.as_secs_f64() * 10.0).round() / 10.0;
    if tenths < 60.0 {
        return format!("{tenths:.1} s");
    }
    let seconds = time.as_secs_f64().round();
    format!(
        "{:.0} min {:02.0} s",
        (seconds / 60.0).floor(),
        seconds % 60.0
    )
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn folders(scratch: &Scratch) -> Folders {
        Folders {
            root: scratch.path().to_owned(),
            target: scratch.path().to_owned(),
        }
    }

    #[test]
    fn a_line_takes_what_it_took_the_last_time() {
        let scratch = Scratch::new();
        let mut times = Times::read(&folders(&scratch));
        let lines = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(times.estimate("a", &lines[1..]), None);
        times.note("a", Duration::from_secs(400));
        times.note("a", Duration::from_secs(41));
        times.note("b", Duration::from_millis(200_700));
        let times = Times::read(&folders(&scratch));
        let said = times.estimate("a", &lines[1..]).expect("known");
        assert_eq!(said, "Takes about 40 s; about 4 min to the end.");
        assert_eq!(times.estimate("c", &[]), None);
        assert_eq!(
            times.estimate("b", &[]).expect("known"),
            "Takes about 3 min."
        );
        // The duration of a step that passes is stored; that of a step that fails is not.
        scratch.write("xtask-times.txt", "a line of something else\n");
        let mut times = Times::read(&folders(&scratch));
        run(
            &[Step::new("true", ""), Step::new("false", "")],
            &[],
            &mut times,
        );
        assert_eq!(
            times.estimate("true", &[]).expect("known"),
            "Takes a few seconds."
        );
        assert_eq!(times.estimate("false", &[]), None);
    }

    #[test]
    fn a_step_is_shown_as_one_would_type_it() {
        let step = Step::cargo("doc --workspace").variable("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(
            step.to_string(),
            "RUSTDOCFLAGS=\"-D warnings\" cargo doc --workspace"
        );
        let step = Step::cargo("test").variable("XACT_FULL", "1");
        assert_eq!(step.to_string(), "XACT_FULL=1 cargo test");
    }

    #[test]
    fn the_first_failure_stops_the_run_and_is_named() {
        let scratch = Scratch::new();
        let mark = scratch.path().join("ran");
        let steps = [
            Step::new("true", ""),
            Step::new("false", "--second"),
            Step::new("touch", mark.to_str().expect("UTF-8")),
        ];
        let summary = run(&steps, &[], &mut Times::read(&folders(&scratch)));
        let failed = summary.failed().map(Step::to_string);
        assert_eq!(failed.as_deref(), Some("false --second"));
        assert_eq!(summary.outcomes[2], Outcome::NotRun);
        assert!(!mark.exists());
    }

    #[test]
    fn a_step_without_its_component_is_skipped_and_says_how_to_add_it() {
        // `false fmt --version` fails in the same way as cargo without rustfmt.
        let step = Step::new("false", "fmt --all").needs("rustfmt", "fmt");
        let outcome = step.run(&[]);
        assert!(matches!(outcome, Outcome::Skipped(_)));
        let text = outcome.to_string();
        assert!(text.ends_with("rustup component add rustfmt"), "{text}");
        let scratch = Scratch::new();
        let mut times = Times::read(&folders(&scratch));
        assert!(run(&[step], &[], &mut times).failed().is_none());
    }

    #[test]
    fn a_step_with_a_reason_against_it_is_skipped() {
        let step = Step::new("false", "").skip_if(Some("no need".into()));
        assert_eq!(step.run(&[]), Outcome::Skipped("no need".into()));
        assert!(matches!(
            Step::new("true", "").skip_if(None).run(&[]),
            Outcome::Passed(_)
        ));
    }

    #[test]
    fn variables_reach_the_step() {
        let step = Step {
            arguments: vec!["-c".into(), "test \"$XACT_FULL\" = 1".into()],
            ..Step::new("sh", "")
        };
        assert!(matches!(step.run(&[]), Outcome::Failed(..)));
        let step = step.variable("XACT_FULL", "1");
        assert!(matches!(step.run(&[]), Outcome::Passed(_)));
    }

    #[test]
    fn a_program_that_does_not_exist_fails() {
        let outcome = Step::new("/no/such/program", "").run(&[]);
        assert!(matches!(outcome, Outcome::Failed(..)));
    }

    #[test]
    fn the_table_is_aligned() {
        let steps = [
            Step::new("a", "b c"),
            Step::new("longer", "words"),
            Step::new("d", ""),
        ];
        let summary = Summary {
            steps: &steps,
            outcomes: vec![
                Outcome::Passed(Duration::from_millis(1250)),
                Outcome::Failed(Duration::from_secs(75), "exit status: 101".into()),
                Outcome::NotRun,
            ],
            time: Duration::from_millis(76_250),
        };
        let expected = "a b c         passed       1.3 s\n\
            longer words  FAILED  1 min 15 s  exit status: 101\n\
            d             not run\n\
            total                 1 min 16 s";
        assert_eq!(summary.to_string(), expected);
    }

    #[test]
    fn durations_read_well() {
        for (milliseconds, text) in [
            (40, "0.0 s"),
            (59_940, "59.9 s"),
            (59_960, "1 min 00 s"),
            (605_000, "10 min 05 s"),
        ] {
            assert_eq!(clock(Duration::from_millis(milliseconds)), text);
        }
    }
}
