//! The results of the mutants, and the report.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mutate::{Kind, Mutation};

/// A mutation of a file.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// Relative to the workspace.
    pub file: PathBuf,
    /// The ops whose trials should notice the mutation: all whose kernels include the file.
    pub ops: Vec<String>,
    /// The change.
    pub mutation: Mutation,
    line: usize,
    /// The changed lines, before and after.
    before: Vec<String>,
    after: Vec<String>,
    /// The index among the equal mutations of the same line.
    column: usize,
}

impl Mutant {
    /// Constructs a mutation of `source`, the text of `file`.
    pub fn new(file: &Path, source: &str, mutation: Mutation, ops: Vec<String>) -> Self {
        let start = source[..mutation.start].rfind('\n').map_or(0, |at| at + 1);
        let end = source[mutation.end..]
            .find('\n')
            .map_or(source.len(), |at| mutation.end + at);
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let after = format!(
            "{}{}{}",
            &source[start..mutation.start],
            mutation.replacement,
            &source[mutation.end..end]
        );
        Self {
            file: file.to_path_buf(),
            ops,
            line: mutation.line(source),
            column: mutation.start - start + 1,
            before: lines(&source[start..end]),
            after: lines(&after),
            mutation,
        }
    }

    /// The changed lines, before and after, without indentation.
    pub fn change(&self) -> (Vec<&str>, Vec<&str>) {
        fn trimmed(lines: &[String]) -> Vec<&str> {
            lines.iter().map(|line| line.trim()).collect()
        }
        (trimmed(&self.before), trimmed(&self.after))
    }

    fn diff(&self) -> String {
        let mut text = String::new();
        for line in &self.before {
            let _ = writeln!(text, "-{line}");
        }
        for line in &self.after {
            let _ = writeln!(text, "+{line}");
        }
        text
    }
}

/// A line that identifies the mutant.
impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("{}:{}:{}", self.file.display(), self.line, self.column);
        let after: Vec<_> = self.after.iter().map(|line| line.trim()).collect();
        write!(f, "{place} {}: {}", self.mutation.kind, after.join(" "))
    }
}

/// The status of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// A test failed.
    Caught,
    /// The tests did not end in time.
    TimedOut,
    /// All tests pass.
    Survived,
    /// All tests pass, and an explanation says why that is correct.
    Explained,
    /// The PTX is unchanged.
    Unchanged,
    /// The mutant does not compile.
    BuildError,
}

impl Status {
    const ALL: [Self; 6] = [
        Self::Caught,
        Self::TimedOut,
        Self::Survived,
        Self::Explained,
        Self::Unchanged,
        Self::BuildError,
    ];

    /// The status in one or two words.
    pub fn word(self) -> &'static str {
        match self {
            Self::Caught => "caught",
            Self::TimedOut => "timeout",
            Self::Survived => "SURVIVED",
            Self::Explained => "explained",
            Self::Unchanged => "unchanged",
            Self::BuildError => "build error",
        }
    }

    /// The status for such words.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }

    /// The outcome with this status and this `by`.
    pub fn with(self, by: &str) -> Outcome {
        Outcome {
            status: self,
            by: by.to_owned(),
        }
    }
}

/// A status and its detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it.
    pub status: Status,
    /// The trial that failed, how the process died, the compiler's error, or the explanation; empty otherwise.
    pub by: String,
}

/// The result of a mutant.
pub struct Result {
    /// The mutant.
    pub mutant: Mutant,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it took.
    pub time: Duration,
}

impl fmt::Display for Result {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.outcome.status.word();
        write!(
            f,
            "{status:11} {:5.1} s  {}",
            self.time.as_secs_f64(),
            self.mutant
        )?;
        if self.outcome.by.is_empty() {
            Ok(())
        } else {
            write!(f, "  ({})", self.outcome.by)
        }
    }
}

fn count(results: &[Result], status: Status) -> usize {
    results
        .iter()
        .filter(|result| result.outcome.status == status)
        .count()
}

/// The number of mutants that were noticed, and the number of mutants that count.
fn noticed(results: &[Result]) -> (usize, usize) {
    let noticed = count(results, Status::Caught) + count(results, Status::TimedOut);
    (noticed, noticed + count(results, Status::Survived))
}

/// The share of the counted mutants that were noticed.
pub fn score(results: &[Result]) -> f64 {
    match noticed(results) {
        (_, 0) => 1.0,
        (noticed, all) => noticed as f64 / all as f64,
    }
}

/// The counts so far, as text.
pub fn tally(results: &[Result]) -> String {
    let (noticed, all) = noticed(results);
    format!(
        "{noticed} caught, {} survived, {} not counted",
        all - noticed,
        results.len() - all
    )
}

/// The report, in Markdown.
pub fn report(results: &[Result], of: usize, nvcc: &str) -> String {
    let (noticed, all) = noticed(results);
    let mut text = format!(
        "# Mutants of the kernels\n\n{} of {of} mutants, nvcc {nvcc}. Of {all} that change the kernels, {noticed} are \
         noticed: {:.1} %.\n\n",
        results.len(),
        score(results) * 100.0
    );
    // The table has a row per kind and a column per status.
    let mut kinds: BTreeMap<Kind, [usize; 6]> = BTreeMap::new();
    for result in results {
        let row = kinds.entry(result.mutant.mutation.kind).or_default();
        row[result.outcome.status as usize] += 1;
    }
    text.push_str("| kind       |");
    for status in Status::ALL {
        let _ = write!(text, " {} |", status.word());
    }
    text.push_str("\n| ---------- |");
    for status in Status::ALL {
        let _ = write!(text, " {}: |", "-".repeat(status.word().len() - 1));
    }
    text.push('\n');
    for (kind, row) in kinds {
        let _ = write!(text, "| {kind:10} |");
        for (number, status) in row.into_iter().zip(Status::ALL) {
            let _ = write!(text, " {number:>width$} |", width = status.word().len());
        }
        text.push('\n');
    }
    let seconds: f64 = results.iter().map(|result| result.time.as_secs_f64()).sum();
    let _ = writeln!(
        text,
        "\n{:.1} s a mutant.",
        seconds / results.len().max(1) as f64
    );
    for (title, status) in [
        ("Survivors", Status::Survived),
        ("Explained", Status::Explained),
    ] {
        let mut results = results
            .iter()
            .filter(|r| r.outcome.status == status)
            .peekable();
        if results.peek().is_some() {
            let _ = write!(text, "\n## {title}\n");
        }
        for result in results {
            let mutant = &result.mutant;
            let _ = write!(
                text,
                "\n{}:{}, {}\n\n```diff\n{}```\n",
                mutant.file.display(),
                mutant.line,
                mutant.mutation.kind,
                mutant.diff()
            );
            if !result.outcome.by.is_empty() {
                let _ = write!(text, "\n{}\n", result.outcome.by);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::mutate::mutations;

    fn result(status: Status) -> Result {
        let source = "int a;\nfloat y = a + b;\n";
        let mutation = mutations(source).remove(0);
        Result {
            mutant: Mutant::new(Path::new("kernels/x.cu"), source, mutation, Vec::new()),
            outcome: status.with(""),
            time: Duration::from_secs(10),
        }
    }

    #[test]
    fn only_what_changes_the_kernels_counts() {
        let results = Status::ALL.map(result);
        assert_eq!(noticed(&results), (2, 3));
        assert_eq!(score(&results[3..]), 1.0, "explained ones do not count");
        let text = report(&results, 50, "13.0.88");
        assert!(text.contains("6 of 50 mutants"), "{text}");
        assert!(text.contains("2 are noticed: 66.7 %"), "{text}");
        assert!(
            text.contains("| operator   |      1 |       1 |        1 |"),
            "{text}"
        );
        assert!(text.contains("\nkernels/x.cu:2, operator\n"), "{text}");
        assert!(
            text.contains("-float y = a + b;\n+float y = a - b;\n"),
            "{text}"
        );
    }

    #[test]
    fn words_read_back() {
        for status in Status::ALL {
            assert_eq!(Status::from_word(status.word()), Some(status));
        }
    }

    #[test]
    fn a_mutant_is_one_line() {
        let source = "{\n    f(a,\n      b);\n}\n";
        let mutation = mutations(source).remove(0);
        let mutant = Mutant::new(Path::new("x.cu"), source, mutation, Vec::new());
        assert_eq!(mutant.to_string(), "x.cu:2:5 statement: ;");
        assert_eq!(mutant.diff(), "-    f(a,\n-      b);\n+    ;\n");
    }
}
