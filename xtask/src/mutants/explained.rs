//! Mutants that no test can notice or needs to notice, each with the reason.
//!
//! An explanation names the changed lines, not their numbers. It therefore stays valid when other parts of the file change,
//! and becomes stale when the lines themselves change.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use super::report::{Mutant, Result, Status};

/// The file with the explanations. It has blocks separated by empty lines. A block has the path of the file, the old lines
/// with `-`, the new lines with `+`, and the reason with `=`.
pub const EXPLANATIONS: &str = "xtask/mutants.txt";

/// The explanations of a workspace.
#[derive(Default)]
pub struct Explanations(Vec<Explanation>);

#[derive(Default, Debug, PartialEq, Eq)]
struct Explanation {
    file: String,
    before: Vec<String>,
    after: Vec<String>,
    reason: String,
}

impl Explanations {
    /// Reads the explanations. A workspace without the file has none.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let path = root.join(EXPLANATIONS);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut explanations = Vec::new();
        let mut current = Explanation::default();
        for (number, line) in (1..).zip(text.lines().chain([""])) {
            let rest = || line[1..].trim().to_owned();
            match line.chars().next() {
                Some('#') => {}
                Some('-') => current.before.push(rest()),
                Some('+') => current.after.push(rest()),
                Some('=') => {
                    if !current.reason.is_empty() {
                        current.reason.push(' ');
                    }
                    current.reason += &rest();
                }
                Some(_) if current.file.is_empty() => current.file = line.trim().to_owned(),
                Some(_) => bail!("line {number}: neither -, + nor ="),
                None if current == Explanation::default() => {}
                None => {
                    let empty = current.before.is_empty() || current.after.is_empty();
                    if empty || current.file.is_empty() || current.reason.is_empty() {
                        bail!("line {number}: the block before lacks its file, -, + or =");
                    }
                    explanations.push(std::mem::take(&mut current));
                }
            }
        }
        Ok(Self(explanations))
    }

    /// The result; if it is a survivor that is explained, with that status.
    pub fn judge(&self, mut result: Result) -> Result {
        if result.outcome.status == Status::Survived
            && let Some(explanation) = self.0.iter().find(|e| e.is_of(&result.mutant))
        {
            result.outcome = Status::Explained.with(&explanation.reason);
        }
        result
    }

    /// The explanations that match none of the mutants.
    pub fn stale(&self, mutants: &[Mutant]) -> Vec<String> {
        let stale = self
            .0
            .iter()
            .filter(|e| !mutants.iter().any(|mutant| e.is_of(mutant)));
        stale
            .map(|e| format!("{}: {}", e.file, e.after.join(" ")))
            .collect()
    }
}

impl Explanation {
    fn is_of(&self, mutant: &Mutant) -> bool {
        let (before, after) = mutant.change();
        mutant.file == Path::new(&self.file) && before == self.before && after == self.after
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mutants::mutate::mutations;

    fn survivor(which: usize) -> Result {
        let source = "{\n    a = b + c * d;\n}\n";
        let mutation = mutations(source).remove(which);
        Result {
            mutant: Mutant::new(Path::new("kernels/x.cu"), source, mutation, Vec::new()),
            outcome: Status::Survived.with(""),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn a_change_is_known_by_its_lines() {
        let text =
            "# Comment\n\nkernels/x.cu\n- a = b + c * d;\n+ a = b - c * d;\n= c is 0\n= here\n";
        let explanations = Explanations::parse(text).expect("readable");
        let outcomes = [0, 1, 2].map(|which| explanations.judge(survivor(which)).outcome);
        let explained = Status::Explained.with("c is 0 here");
        assert_eq!(
            outcomes
                .iter()
                .filter(|outcome| **outcome == explained)
                .count(),
            1
        );
        let mutants = [0, 1, 2].map(|which| survivor(which).mutant);
        assert!(explanations.stale(&mutants).is_empty());
        assert_eq!(explanations.stale(&[]), ["kernels/x.cu: a = b - c * d;"]);
    }

    #[test]
    fn a_block_must_be_whole() {
        for text in [
            "kernels/x.cu\n- a\n+ b\n",
            "- a\n+ b\n= c\n",
            "kernels/x.cu\nkernels/y.cu\n",
        ] {
            assert!(Explanations::parse(text).is_err(), "{text}");
        }
    }
}
