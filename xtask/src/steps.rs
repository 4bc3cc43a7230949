//! Runs command lines one after the other, and sums them up.

use std::fmt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A command line to run.
pub struct Step {
    program: String,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    component: Option<Component>,
    /// Why the step is skipped.
    skipped: Option<String>,
}

/// A part of the Rust toolchain that need not be installed.
struct Component {
    /// As rustup calls it.
    name: &'static str,
    /// The cargo sub-command that it brings.
    command: &'static str,
}

/// How a step ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    Passed(Duration),
    Failed(Duration, String),
    /// A component is missing.
    Skipped(String),
    /// An earlier step failed.
    NotRun,
}

impl Step {
    /// A step that runs cargo with these words.
    pub fn cargo(line: &str) -> Self {
        Self::new(&cargo(), line)
    }

    fn new(program: &str, line: &str) -> Self {
        Self::program(program, line.split_whitespace())
    }

    /// A step that runs a program with these arguments, which may have blanks in them.
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

    /// The step is skipped where this component of the toolchain is missing.
    pub fn needs(mut self, name: &'static str, command: &'static str) -> Self {
        self.component = Some(Component { name, command });
        self
    }

    /// The step is skipped where there is a reason to.
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

/// The command line as one would type it.
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

/// The cargo that started this process.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// What a run of steps came to.
pub struct Summary<'a> {
    steps: &'a [Step],
    outcomes: Vec<Outcome>,
    time: Duration,
}

/// Runs the steps until one fails, each announced on stderr. `variables` are set for all of them.
pub fn run<'a>(steps: &'a [Step], variables: &[(&str, &str)]) -> Summary<'a> {
    let start = Instant::now();
    let mut outcomes = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let failed = matches!(outcomes.last(), Some(Outcome::Failed(..) | Outcome::NotRun));
        if failed {
            outcomes.push(Outcome::NotRun);
            continue;
        }
        eprintln!("\n[{}/{}] {step}", index + 1, steps.len());
        let outcome = step.run(variables);
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
    /// The step that failed.
    pub fn failed(&self) -> Option<&Step> {
        let is_failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(..));
        Some(&self.steps[self.outcomes.iter().position(is_failed)?])
    }
}

/// A table of one line per step.
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

/// A duration as people say it.
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
        let scratch = crate::testing::Scratch::new();
        let mark = scratch.path().join("ran");
        let steps = [
            Step::new("true", ""),
            Step::new("false", "--second"),
            Step::new("touch", mark.to_str().expect("UTF-8")),
        ];
        let summary = run(&steps, &[]);
        let failed = summary.failed().map(Step::to_string);
        assert_eq!(failed.as_deref(), Some("false --second"));
        assert_eq!(summary.outcomes[2], Outcome::NotRun);
        assert!(!mark.exists());
    }

    #[test]
    fn a_step_without_its_component_is_skipped_and_says_how_to_add_it() {
        // `false fmt --version` fails as cargo does where rustfmt is missing.
        let step = Step::new("false", "fmt --all").needs("rustfmt", "fmt");
        let outcome = step.run(&[]);
        assert!(matches!(outcome, Outcome::Skipped(_)));
        let text = outcome.to_string();
        assert!(text.ends_with("rustup component add rustfmt"), "{text}");
        assert!(run(&[step], &[]).failed().is_none());
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
