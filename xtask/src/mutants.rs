//! Mutation testing of the kernels. A mutant has one change in a CUDA source; the tests of the op run until one fails. The
//! work is done in a copy of the workspace under the target folder, with its own target folder. The tests are built once,
//! and load a mutant's PTX instead of their own, so a mutant costs one run of nvcc and the trials.

#[path = "../../build/compile.rs"]
#[allow(dead_code)] // of the build script's own use
pub mod compile;
pub mod copy;
mod explained;
mod mutate;
mod report;
mod trials;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{IsTerminal, Write as _};
use std::path::{Component, Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::folders::Folders;
use crate::sass::geometry;
use crate::{cargo_messages, steps, toolkit};
use compile::Target;
use explained::{EXPLANATIONS, Explanations};
use report::{Mutant, Outcome, Result, Status};
use trials::{Ended, Filter};

/// The minimum share of the mutants that the tests must notice.
const BAR: f64 = 0.97;

/// The test of all activations.
const ACTIVATIONS: &str = "activations";

/// The tool that compares the figures of README.md, to the fourth decimal, with those of the kernels. It notices errors in
/// coefficients that are smaller than the bounds of the tests.
const ACCURACY: &str = "accuracy";
const ACCURACY_ARGUMENTS: [&str; 4] = ["--check", "--readme", "--device", "emulated"];

/// The options of the command line.
#[derive(clap::Args)]
pub struct Options {
    /// Only the kernels of this op, and the headers that they include
    #[arg(long)]
    op: Option<String>,
    /// Print the mutants and run nothing
    #[arg(long)]
    list: bool,
    /// The seed of the sample that --max takes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The maximum number of mutants to run
    #[arg(long)]
    max: Option<usize>,
}

/// Runs the mutants and writes the report.
///
/// # Errors
/// The tests fail without a mutant, or they notice too few mutants.
pub fn run(folders: &Folders, options: &Options) -> anyhow::Result<ExitCode> {
    let all = mutants(&folders.root, options.op.as_deref())?;
    let count = all.len();
    let explanations = Explanations::read(&folders.root)?;
    if options.op.is_none() {
        for stale in explanations.stale(&all) {
            eprintln!("note: {EXPLANATIONS} explains a mutant that no longer exists: {stale}");
        }
    }
    let chosen = sample(all, options.seed, options.max.unwrap_or(usize::MAX));
    if options.list {
        for mutant in &chosen {
            println!("{mutant}");
        }
        eprintln!("{} of {count} mutants", chosen.len());
        return Ok(ExitCode::SUCCESS);
    }
    let toolkit = toolkit::ensure(folders)?;
    eprintln!("{}", toolkit.describe());
    let folder = folders.target.join("mutants");
    let bench = Bench {
        tree: folder.join("tree"),
        target: folder.join("target"),
        substitutes: folder.join("substitutes"),
        nvcc: toolkit.nvcc,
        kernels: kernels(&folders.root)?,
    };
    eprintln!("The copy is {}.", bench.tree.display());
    let fingerprint = copy::synchronise(&folders.root, &bench.tree)?;
    let fingerprint = format!("{fingerprint:016x} {}", toolkit.version);
    let mut journal = Journal::open(&folder.join("results.jsonl"), &fingerprint)?;
    let ops: BTreeSet<_> = chosen.iter().flat_map(|mutant| &mutant.ops).collect();
    let base = bench.base(&ops.into_iter().cloned().collect::<Vec<_>>())?;
    let bar = steps::bar(chosen.len());
    let mut results: Vec<Result> = Vec::new();
    let start = Instant::now();
    let mut fresh = 0_u32;
    for (index, mutant) in chosen.iter().enumerate() {
        bar.set_message(report::tally(&results));
        let result = match journal.known(mutant) {
            Some(result) => result,
            None => {
                let result = bench.run(mutant, &base)?;
                journal.write(&result)?;
                fresh += 1;
                result
            }
        };
        results.push(explanations.judge(result));
        let left = start.elapsed() / fresh.max(1)
            * u32::try_from(chosen.len() - index - 1).unwrap_or(u32::MAX);
        let line = format!(
            "[{}/{}] {}   {}, {} min left",
            index + 1,
            chosen.len(),
            results[index],
            report::tally(&results),
            left.as_secs().div_ceil(60),
        );
        if std::io::stderr().is_terminal() {
            bar.println(line);
        } else {
            eprintln!("{line}");
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let text = report::report(&results, count, &toolkit.version);
    let path = folder.join("report.md");
    fs::write(&path, &text).with_context(|| path.display().to_string())?;
    println!("{text}");
    eprintln!("This report is {}.", path.display());
    let score = report::score(&results);
    if score < BAR {
        bail!(
            "{:.1} % of the mutants are noticed, not {:.0} %",
            score * 100.0,
            BAR * 100.0
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// All mutants in a fixed order: files by name, and places from top to bottom.
fn mutants(root: &Path, op: Option<&str>) -> anyhow::Result<Vec<Mutant>> {
    let users = users(root)?;
    if let Some(op) = op
        && !users.values().flatten().any(|user| user == op)
    {
        bail!("there is no kernels/*/{op}.cu");
    }
    let mut mutants = Vec::new();
    for (file, mut ops) in users {
        if let Some(op) = op {
            let Some(place) = ops.iter().position(|user| user == op) else {
                continue;
            };
            // The trials of the first op run first.
            ops.swap(0, place);
        }
        let path = root.join(&file);
        let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for mutation in mutate::mutations(&source) {
            mutants.push(Mutant::new(&file, &source, mutation, ops.clone()));
        }
    }
    Ok(mutants)
}

/// The source files of the kernels, relative to the workspace, each with the ops whose kernels include it.
fn users(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Vec<String>>> {
    let mut users: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for kernel in kernels(root)? {
        let mut open = vec![kernel.clone()];
        let mut seen = BTreeSet::new();
        while let Some(file) = open.pop() {
            let path = root.join(&file);
            // The build script generates one of the headers, so it is not in the workspace.
            if !path.is_file() || !seen.insert(file.clone()) {
                continue;
            }
            let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let included = source.lines().filter_map(|line| {
                let name = line.strip_prefix("#include \"")?.strip_suffix('"')?;
                Some(normal(&file.parent()?.join(name)))
            });
            open.extend(included);
        }
        for file in seen {
            users.entry(file).or_default().push(op_of(&kernel));
        }
    }
    Ok(users)
}

/// All `kernels/<folder>/<op>.cu`, relative to the workspace.
pub fn kernels(root: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut kernels = BTreeSet::new();
    let mut folders = vec![PathBuf::from("kernels")];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
            let entry = entry?;
            let file = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(file);
            } else if file.extension().is_some_and(|e| e == "cu") {
                kernels.insert(file);
            }
        }
    }
    Ok(kernels)
}

/// The op of a kernel file or of one of its images: the name up to the first dot.
pub fn op_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// Removes `..` from a path.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

/// At most `max` of the mutants, selected by the seed, in their order.
fn sample(mutants: Vec<Mutant>, seed: u64, max: usize) -> Vec<Mutant> {
    // The order is SplitMix64 of the place, so a larger sample contains the smaller ones.
    let draw = |index: usize| {
        let mut z = (seed ^ (index as u64) << 32).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut order: Vec<usize> = (0..mutants.len()).collect();
    order.sort_by_key(|index| draw(*index));
    order.truncate(max);
    order.sort_unstable();
    let mut chosen = order.into_iter().peekable();
    let picked = mutants
        .into_iter()
        .enumerate()
        .filter(|(index, _)| chosen.next_if_eq(index).is_some());
    picked.map(|(_, mutant)| mutant).collect()
}

/// The folders and tools for building and testing mutants.
struct Bench {
    tree: PathBuf,
    target: PathBuf,
    /// The folder for the PTX of the current mutant.
    substitutes: PathBuf,
    nvcc: PathBuf,
    kernels: BTreeSet<PathBuf>,
}

/// The tests, built without a mutant.
struct Base {
    /// The test executables by name.
    executables: BTreeMap<String, PathBuf>,
    accuracy: PathBuf,
    /// The folder of the PTX and of the generated header.
    images: PathBuf,
    /// The time limit without output from a mutant's trials.
    limit: Duration,
}

impl Bench {
    /// The test that has the trials of an op: the op's own, or that of all activations.
    fn test_of<'a>(&self, op: &'a str) -> &'a str {
        let activation = Path::new("kernels/activation").join(format!("{op}.cu"));
        if self.kernels.contains(&activation) {
            ACTIVATIONS
        } else {
            op
        }
    }

    /// The selections of trials of an op, in order: those that notice the most in the least time first.
    fn filters(&self, op: &str) -> Vec<Filter> {
        if self.test_of(op) == ACTIVATIONS {
            // One 16-bit type is first: it is the fastest and notices the most.
            vec![Filter::bf16(op), Filter::others(op)]
        } else {
            vec![Filter::every()]
        }
    }

    /// Builds and runs the tests of some ops without a mutant; they must pass.
    fn base(&self, ops: &[String]) -> anyhow::Result<Base> {
        eprintln!("Building and testing without a mutant.");
        let tests: BTreeSet<_> = ops.iter().map(|op| self.test_of(op)).collect();
        let wanted = tests.iter().flat_map(|test| ["--test", *test]);
        let messages = self.cargo(["test", "--no-run"].into_iter().chain(wanted))?;
        let executable = |messages: &str, kind, name: &str| {
            let executable = cargo_messages::executable(messages, kind, name);
            executable.with_context(|| format!("cargo's messages do not name the {kind} {name}"))
        };
        let executables = tests
            .iter()
            .map(|test| Ok(((*test).to_owned(), executable(&messages, "test", test)?)));
        let executables = executables.collect::<anyhow::Result<_>>()?;
        let messages = self.cargo(["build", "--bin", ACCURACY])?;
        let out = cargo_messages::out_folder(&messages);
        let out =
            out.context("cargo's messages do not name the output folder of xact's build script")?;
        let mut base = Base {
            executables,
            accuracy: executable(&messages, "bin", ACCURACY)?,
            images: out.join("kernels"),
            limit: Duration::from_secs(3600),
        };
        let start = Instant::now();
        let mut longest = Duration::ZERO;
        for op in ops {
            for filter in self.filters(op) {
                let executable = &base.executables[self.test_of(op)];
                match trials::run(executable, &self.tree, None, &filter, base.limit)? {
                    Ended::Passed { trials: 0, .. } => bail!("there are no trials of {op}"),
                    Ended::Passed { silence, .. } => longest = longest.max(silence),
                    ended => bail!("{op} fails without a mutant: {ended:?}"),
                }
            }
        }
        if !self.is_as_accurate(&base, None)? {
            bail!("without a mutant, the table of README.md differs from what the kernels compute");
        }
        // The limit has a margin, because the machine may be busier later.
        base.limit = longest * 3 + Duration::from_secs(20);
        eprintln!(
            "Without a mutant every trial passes, in {:.1} s, with at most {:.1} s between two lines of output.",
            start.elapsed().as_secs_f64(),
            longest.as_secs_f64()
        );
        Ok(base)
    }

    /// Builds targets in the copy, without a mutant, and returns cargo's messages.
    fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> anyhow::Result<String> {
        let messages = cargo_messages::of_building(arguments, |cargo| {
            cargo
                .current_dir(&self.tree)
                .env("CARGO_TARGET_DIR", &self.target)
                // The copy has no toolkit of its own, so it uses this one.
                .env("NVCC", &self.nvcc)
                .stdin(Stdio::null());
        });
        messages.context("without a mutant")
    }

    /// Compiles and tests one mutant, and restores the source.
    fn run(&self, mutant: &Mutant, base: &Base) -> anyhow::Result<Result> {
        let path = self.tree.join(&mutant.file);
        let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::write(&path, mutant.mutation.apply(&source))?;
        let start = Instant::now();
        let outcome = self.outcome(mutant, base);
        fs::write(&path, source)?;
        Ok(Result {
            mutant: mutant.clone(),
            outcome: outcome?,
            time: start.elapsed(),
        })
    }

    fn outcome(&self, mutant: &Mutant, base: &Base) -> anyhow::Result<Outcome> {
        let mut outcome = Status::Unchanged.with("");
        for ops in self.groups(&mutant.ops) {
            match self.compile(&ops, base)? {
                Compiled::Refused(words) => return Ok(Status::BuildError.with(&words)),
                Compiled::Unchanged => continue,
                Compiled::Changed => {}
            }
            for op in &ops {
                outcome = self.trials(op, base)?;
                if outcome.status != Status::Survived {
                    return Ok(outcome);
                }
            }
            if !self.is_as_accurate(base, Some(&self.substitutes))? {
                return Ok(Status::Caught.with("the table of README.md"));
            }
            if let Some(words) = self.refused_by_assembler()? {
                return Ok(Status::BuildError.with(&words));
            }
        }
        Ok(outcome)
    }

    /// Groups of ops whose kernels are compiled and tested together, in order. Any activation notices most mutants of a
    /// header, so the others are often not compiled. The trials of a loss also call the masks.
    fn groups<'a>(&self, ops: &'a [String]) -> Vec<Vec<&'a String>> {
        let is_activation = |op: &&String| self.test_of(op) == ACTIVATIONS;
        let (activations, losses): (Vec<_>, Vec<_>) = ops.iter().partition(is_activation);
        let mut groups: Vec<_> = activations.into_iter().map(|op| vec![op]).collect();
        if !losses.is_empty() {
            groups.push(losses);
        }
        // The trials of the first op run first.
        groups.sort_by_key(|group| group[0] != &ops[0]);
        groups
    }

    /// Compiles the kernels of some ops, and keeps the PTX that differs from the original in the folder of substitutes.
    fn compile(&self, ops: &[&String], base: &Base) -> anyhow::Result<Compiled> {
        let folder = &self.substitutes;
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut compiled = Compiled::Unchanged;
        for op in ops {
            let is_it = |kernel: &&PathBuf| op_of(kernel) == **op;
            let kernel = self.kernels.iter().find(is_it).context("an op's kernel")?;
            // The kernel in the tree may be a mutant, but its targets are marked in a comment, which no mutant changes.
            let source = fs::read_to_string(self.tree.join(kernel))
                .with_context(|| kernel.display().to_string())?;
            for target in Target::of(&source) {
                let name = target.file(op);
                let path = folder.join(&name);
                let mut command =
                    target.compiler(&self.nvcc, kernel, &base.images, &geometry::DEFINES, &path);
                let output = command.current_dir(&self.tree).output();
                let output = output.context("nvcc does not start")?;
                if !output.status.success() {
                    let said = String::from_utf8_lossy(&output.stderr);
                    return Ok(Compiled::Refused(words(&said)));
                }
                let original = fs::read_to_string(base.images.join(&name))?;
                let version = compile::version(&original).context("PTX without a version")?;
                let text = compile::with_version(&fs::read_to_string(&path)?, version);
                let text = text.context("nvcc wrote no version")?;
                if is_same(&text, &original) {
                    fs::remove_file(&path)?;
                } else {
                    fs::write(&path, text)?;
                    compiled = Compiled::Changed;
                }
            }
        }
        Ok(compiled)
    }

    /// Whether a trial of the op fails with the substitutes.
    fn trials(&self, op: &str, base: &Base) -> anyhow::Result<Outcome> {
        let executable = &base.executables[self.test_of(op)];
        let kernels = Some(self.substitutes.as_path());
        for filter in self.filters(op) {
            match trials::run(executable, &self.tree, kernels, &filter, base.limit)? {
                Ended::Passed { .. } => {}
                Ended::Failed(trial) => return Ok(Status::Caught.with(&trial)),
                Ended::Died(how) => return Ok(Status::Caught.with(&how)),
                Ended::TimedOut => return Ok(Status::TimedOut.with("")),
            }
        }
        Ok(Status::Survived.with(""))
    }

    /// Whether the accuracy of the kernels equals the figures of README.md.
    fn is_as_accurate(&self, base: &Base, substitutes: Option<&Path>) -> anyhow::Result<bool> {
        let output = trials::command(&base.accuracy, &self.tree, substitutes)
            .args(ACCURACY_ARGUMENTS)
            .output();
        Ok(output.context("the tool does not start")?.status.success())
    }

    /// Whether the build script would fail with a mutant. This is checked only for mutants that pass the trials.
    fn refused_by_assembler(&self) -> anyhow::Result<Option<String>> {
        for file in fs::read_dir(&self.substitutes)? {
            let path = file?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let mut targets = compile::TARGETS.iter();
            let target = targets.find(|target| name == target.file(&op_of(&path)));
            let cubin = path.with_extension("cubin");
            let architecture = target.context("a target")?.capability;
            let mut command = compile::assembler(&self.nvcc, &path, &cubin, architecture);
            let output = command.output().context("nvcc does not start")?;
            if !output.status.success() {
                return Ok(Some(words(&String::from_utf8_lossy(&output.stderr))));
            }
            fs::remove_file(&cubin)?;
        }
        Ok(None)
    }
}

/// The result of compiling a mutant.
enum Compiled {
    /// nvcc's error.
    Refused(String),
    /// The PTX is unchanged.
    Unchanged,
    /// The changed PTX is in the folder of substitutes.
    Changed,
}

/// The first error in a compiler's output, such as `x.cuh(12): error: …`.
fn words(said: &str) -> String {
    let line = said.lines().find(|line| line.contains("error"));
    let line = line.unwrap_or_default();
    line.rsplit_once("error: ")
        .map_or(line, |(_, words)| words)
        .to_owned()
}

/// Whether two texts are equal except for comments.
fn is_same(a: &str, b: &str) -> bool {
    let code = |text| str::lines(text).filter(|line| !line.starts_with("//"));
    code(a).eq(code(b))
}

/// The results of an earlier run on an identical workspace, so that an interrupted run continues.
struct Journal {
    file: fs::File,
    known: HashMap<String, (Outcome, Duration)>,
}

impl Journal {
    fn open(path: &Path, fingerprint: &str) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines();
        let first = json!({ "workspace": fingerprint }).to_string();
        let is_same = lines.next() == Some(&first);
        let mut known = HashMap::new();
        let mut file = fs::OpenOptions::new();
        let file = file.create(true).append(true).truncate(false);
        if is_same {
            for line in lines {
                // The last line may be incomplete.
                let Ok(value) = serde_json::from_str::<Value>(line) else {
                    continue;
                };
                let status = value["status"].as_str().and_then(Status::from_word);
                if let (Some(mutant), Some(status)) = (value["mutant"].as_str(), status) {
                    let by = value["by"].as_str().unwrap_or_default();
                    let time = Duration::from_secs_f64(value["seconds"].as_f64().unwrap_or(0.0));
                    known.insert(mutant.to_owned(), (status.with(by), time));
                }
            }
        } else {
            fs::write(path, first + "\n").with_context(|| path.display().to_string())?;
        }
        let mut file = file
            .open(path)
            .with_context(|| path.display().to_string())?;
        if is_same && !text.ends_with('\n') {
            // An incomplete last line is ended, so that the next result starts a new line.
            writeln!(file).context("the journal cannot be written")?;
        }
        Ok(Self { file, known })
    }

    fn known(&self, mutant: &Mutant) -> Option<Result> {
        let (outcome, time) = self.known.get(&mutant.to_string())?;
        Some(Result {
            mutant: mutant.clone(),
            outcome: outcome.clone(),
            time: *time,
        })
    }

    fn write(&mut self, result: &Result) -> anyhow::Result<()> {
        let line = json!({
            "mutant": result.mutant.to_string(),
            "status": result.outcome.status.word(),
            "by": result.outcome.by,
            "seconds": result.time.as_secs_f64(),
        });
        writeln!(self.file, "{line}").context("the journal cannot be written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn workspace() -> Scratch {
        let scratch = Scratch::new();
        let include = "#include \"../common/c.cuh\"\n";
        scratch.write(
            "kernels/activation/a.cu",
            &format!("{include}float x = 1.0f + y;\n"),
        );
        scratch.write("kernels/activation/b.cu", "float x = 2.0f;\n");
        scratch.write("kernels/common/c.cuh", "#include \"d.cuh\"\n");
        scratch.write("kernels/common/d.cuh", "float x = 3.0f;\n");
        scratch.write("kernels/loss/e.cu", include);
        scratch
    }

    #[test]
    fn an_ops_mutants_are_those_of_its_file_and_of_what_it_includes() {
        let scratch = workspace();
        let names = |op| -> Vec<String> {
            let mutants = mutants(scratch.path(), op).expect("mutants");
            mutants
                .iter()
                .map(|m| format!("{} {:?}", m.file.display(), m.ops))
                .collect()
        };
        let a = r#"kernels/activation/a.cu ["a"]"#;
        let b = r#"kernels/activation/b.cu ["b"]"#;
        let d = r#"kernels/common/d.cuh ["a", "e"]"#;
        assert_eq!(names(None), [a, a, b, d]);
        assert_eq!(names(Some("a")), [a, a, d]);
        assert_eq!(names(Some("b")), [b]);
        let e_first = r#"kernels/common/d.cuh ["e", "a"]"#;
        assert_eq!(names(Some("e")), [e_first]);
        let error = mutants(scratch.path(), Some("z")).expect_err("no such op");
        assert!(error.to_string().contains("z.cu"), "{error}");
    }

    #[test]
    fn kernels_of_losses_are_tried_together_and_the_first_op_first() {
        let bench = Bench {
            tree: PathBuf::new(),
            target: PathBuf::new(),
            substitutes: PathBuf::new(),
            nvcc: PathBuf::new(),
            kernels: ["activation/a", "activation/b", "loss/e", "loss/f"]
                .map(|name| PathBuf::from(format!("kernels/{name}.cu")))
                .into(),
        };
        let groups = |ops: &[&str]| {
            let ops: Vec<_> = ops.iter().map(|op| op.to_string()).collect();
            let groups = bench.groups(&ops).into_iter();
            groups
                .map(|group| group.into_iter().cloned().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(groups(&["a", "b", "e", "f"]), ["a", "b", "e f"]);
        assert_eq!(groups(&["f", "a", "b", "e"]), ["f e", "a", "b"]);
        assert_eq!(groups(&["b", "a"]), ["b", "a"]);
        assert_eq!(groups(&["e"]), ["e"]);
    }

    #[test]
    fn samples_are_repeatable_nested_and_in_order() {
        let scratch = workspace();
        let all = || mutants(scratch.path(), None).expect("mutants");
        let names = |seed, max| -> Vec<String> {
            sample(all(), seed, max)
                .iter()
                .map(Mutant::to_string)
                .collect()
        };
        let everything = names(1, 100);
        assert_eq!(everything.len(), 4);
        assert_eq!(names(1, 2), names(1, 2));
        assert!(names(1, 2).iter().all(|one| names(1, 3).contains(one)));
        assert!((0..20).any(|seed| names(seed, 2) != names(1, 2)));
    }

    #[test]
    fn a_stopped_run_goes_on_unless_the_workspace_changed() {
        let scratch = workspace();
        let path = scratch.path().join("results.jsonl");
        let all = mutants(scratch.path(), None).expect("mutants");
        let mut journal = Journal::open(&path, "one").expect("journal");
        assert!(journal.known(&all[0]).is_none());
        let result = Result {
            mutant: all[0].clone(),
            outcome: Status::Caught.with("a::forward"),
            time: Duration::from_secs(2),
        };
        journal.write(&result).expect("written");
        write!(journal.file, "{{\"mutant\":\"cut o").expect("written");
        let mut journal = Journal::open(&path, "one").expect("journal");
        assert_eq!(
            journal.known(&all[0]).expect("known").outcome,
            result.outcome
        );
        assert!(journal.known(&all[1]).is_none());
        let mutant = all[1].clone();
        journal
            .write(&Result { mutant, ..result })
            .expect("written");
        let journal = Journal::open(&path, "one").expect("journal");
        assert!(journal.known(&all[1]).is_some());
        let journal = Journal::open(&path, "two").expect("journal");
        assert!(journal.known(&all[0]).is_none());
    }
}
