//! Measures the costs of the kernels' machine code: registers and spills, and for the main loops the bytes in flight and the
//! instructions per element. Compares them with the budgets and with a golden file.

#[path = "../../build/cubin.rs"]
#[allow(dead_code)] // of the build script's own use
mod cubin;
mod flow;
mod listing;
mod mark;
mod path;
mod table;

#[path = "../../src/geometry.rs"]
#[allow(dead_code)] // of the crate's own use
pub mod geometry;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::{env, fs, thread};

use anyhow::{Context, bail};

use crate::folders::Folders;
use crate::mutants::compile;
use crate::toolkit::{self, Toolkit, discovery};
use crate::{cargo_messages, steps};
use listing::Function;
use mark::{Label, Mark};
use table::{Entry, Loop, Row};

/// The architectures whose instructions are counted: A100, H100 and H200, B200. For the other architectures with embedded
/// machine code, only the resources are checked: registers and spills.
const LISTED: [u32; 3] = [80, 90, 100];

/// The maximum size in bytes of the compressed machine code for all architectures in the crate.
const MOST_BYTES: usize = 4_000_000;

/// The options of the command line.
#[derive(clap::Args)]
pub struct Options {
    /// Write the golden file
    #[arg(long, conflicts_with = "op")]
    golden_update: bool,
    /// Only the entries of this op
    #[arg(long)]
    op: Option<String>,
}

/// Prints the table, and compares it with the golden file or writes that.
///
/// # Errors
/// The main loop of an entry is not found, an entry spills or has too few bytes in flight, an entry exceeds its budget, or a
/// figure differs from the golden file.
pub fn run(folders: &Folders, options: &Options) -> anyhow::Result<ExitCode> {
    let toolkit = toolkit::ensure(folders)?;
    eprintln!("{}", toolkit.describe());
    let nvdisasm = disassembler(folders, &toolkit)?;
    let kernels = build_kernels(folders)?;
    let work = folders.target.join("sass");
    let (mut rows, mut problems) = measure(&toolkit.nvcc, &nvdisasm, &kernels, &work)?;
    if let Some(op) = &options.op {
        rows.retain(|row| row.is_of(op));
        problems.retain(|problem| problem.starts_with(&format!("{op}_")));
        if rows.is_empty() {
            bail!("no entry is called {op}_…");
        }
    }
    print!("{}", table::text(&rows));
    eprintln!("The listings and the hot paths are in {}.", work.display());
    if options.op.is_none() {
        let bytes = embedded_bytes(&kernels, &work)?;
        eprintln!("Machine code of all architectures: {bytes} bytes, compressed.");
        if bytes > MOST_BYTES {
            problems.push(format!(
                "the machine code takes {bytes} bytes in the crate, more than {MOST_BYTES}"
            ));
        }
    }
    let golden = golden_path(&folders.root);
    if options.golden_update {
        // Entries without figures are not written. Figures that are too high are written, and also reported.
        if !problems.is_empty() {
            bail!("not written:\n{}", problems.join("\n"));
        }
        fs::write(&golden, table::golden(&rows, &toolkit.version))
            .with_context(|| format!("{} cannot be written", golden.display()))?;
        eprintln!("{} is written.", golden.display());
    }
    problems.extend(rows.iter().flat_map(|row| row.problems()));
    problems.extend(table::not_above(&rows));
    match read_golden(&folders.root)? {
        None => problems.push(format!(
            "{} does not exist: run `cargo xtask sass --golden-update`",
            golden.display()
        )),
        Some((version, _)) if version != toolkit.version => eprintln!(
            "Not compared with the golden file: its figures are for nvcc {version}, and this is {}.",
            toolkit.version
        ),
        Some((_, text)) => {
            let differences = table::differences(&text, &rows, options.op.as_deref());
            if !differences.is_empty() {
                problems.push(format!(
                    "the figures differ from {} (-); if the change is intended, run `cargo xtask sass --golden-update`\n{}",
                    golden.display(),
                    differences.join("\n")
                ));
            }
        }
    }
    if problems.is_empty() {
        eprintln!(
            "No entry spills, no load waits for another, and every loop is within its budget."
        );
        Ok(ExitCode::SUCCESS)
    } else {
        bail!("{}", problems.join("\n"));
    }
}

/// The reason why `cargo xtask sass` would compare nothing; `None` if it would compare.
pub fn why_not(folders: &Folders, toolkit: &Toolkit) -> anyhow::Result<Option<String>> {
    if let Err(error) = disassembler(folders, toolkit) {
        return Ok(Some(error.to_string()));
    }
    Ok(read_golden(&folders.root)?
        .filter(|(version, _)| *version != toolkit.version)
        .map(|(version, _)| {
            format!(
                "the golden figures are for nvcc {version}, and this is {}",
                toolkit.version
            )
        }))
}

fn golden_path(root: &Path) -> PathBuf {
    root.join("tests/golden/sass.md")
}

/// The content of the golden file and the release of nvcc that it names; `None` if there is no file.
fn read_golden(root: &Path) -> anyhow::Result<Option<(String, String)>> {
    let path = golden_path(root);
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let version = table::golden_version(&text)
        .with_context(|| format!("{} does not name its nvcc", path.display()))?;
    Ok(Some((version.to_owned(), text)))
}

/// The path of nvdisasm: beside nvcc, in the toolkit under the target folder, or on PATH.
fn disassembler(folders: &Folders, toolkit: &Toolkit) -> anyhow::Result<PathBuf> {
    let own = discovery::own_home(&folders.target).join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let beside = toolkit.nvcc.parent().map(Path::to_path_buf);
    let places = beside
        .into_iter()
        .chain([own])
        .chain(env::split_paths(&path));
    let name = format!("nvdisasm{}", env::consts::EXE_SUFFIX);
    let mut found = places
        .map(|place| place.join(&name))
        .filter(|file| file.is_file());
    found.next().with_context(|| {
        format!(
            "nvdisasm is neither beside {} nor on PATH; it comes with the CUDA toolkit, and \
             `cargo xtask toolkit` installs it where no other nvcc is found",
            toolkit.nvcc.display()
        )
    })
}

/// Builds xact with the features of the tests, and returns the PTX files that it embeds.
fn build_kernels(folders: &Folders) -> anyhow::Result<Vec<PathBuf>> {
    let messages = cargo_messages::of_building(["build", "--lib"], |cargo| {
        cargo.current_dir(&folders.root);
    })?;
    let out = cargo_messages::out_folder(&messages)
        .context("cargo's messages do not name the output folder of xact's build script")?;
    let kernels = out.join("kernels");
    let entries = fs::read_dir(&kernels).with_context(|| kernels.display().to_string())?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ptx"));
    paths.sort();
    Ok(paths)
}

/// Assembles and measures every kernel file for every architecture, in parallel. Returns the rows in order, and the errors
/// for main loops that were not found.
fn measure(
    nvcc: &Path,
    nvdisasm: &Path,
    kernels: &[PathBuf],
    work: &Path,
) -> anyhow::Result<(Vec<Row>, Vec<String>)> {
    fs::create_dir_all(work).with_context(|| work.display().to_string())?;
    let jobs: Vec<_> = cubin::ALL
        .iter()
        .flat_map(|&architecture| {
            let images = cubin::images_for(kernels, architecture);
            images.into_iter().map(move |ptx| (ptx, architecture))
        })
        .collect();
    let bar = steps::bar(jobs.len());
    let left = Mutex::new(jobs.iter());
    let next = || left.lock().expect("no panic").next();
    let work_off = || -> anyhow::Result<(Vec<Row>, Vec<String>)> {
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        while let Some(&(ptx, architecture)) = next() {
            let found = look_at(nvcc, nvdisasm, ptx, architecture, work)?;
            rows.extend(found.0);
            problems.extend(found.1);
            bar.inc(1);
        }
        Ok((rows, problems))
    };
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work_off)).collect();
        workers.into_iter().try_for_each(|worker| {
            let found = worker.join().expect("no panic")?;
            rows.extend(found.0);
            problems.extend(found.1);
            anyhow::Ok(())
        })
    })?;
    bar.finish_and_clear();
    rows.sort_by(|a, b| (&a.entry, a.architecture).cmp(&(&b.entry, b.architecture)));
    problems.sort();
    Ok((rows, problems))
}

/// Measures one kernel file for one architecture.
fn look_at(
    nvcc: &Path,
    nvdisasm: &Path,
    ptx: &Path,
    architecture: u32,
    work: &Path,
) -> anyhow::Result<(Vec<Row>, Vec<String>)> {
    // The PTX may be assembled for a later architecture than it was compiled for.
    let (stem, _) = cubin::image_name(ptx).with_context(|| ptx.display().to_string())?;
    let cubin = work.join(format!("{stem}.sm_{architecture}.cubin"));
    let (_, said) =
        output(compile::assembler(nvcc, ptx, &cubin, architecture).args(["-Xptxas", "-v"]))?;
    let resources = table::resources(&said)?;
    if !LISTED.contains(&architecture) {
        let rows = resources.into_iter().map(|(entry, resources)| Row {
            entry,
            architecture,
            resources,
            main_loop: None,
            loops: Vec::new(),
        });
        return Ok((rows.collect(), Vec::new()));
    }
    let functions = disassemble(nvdisasm, &cubin, &["-c"])?;
    let ptx_text = fs::read_to_string(ptx).with_context(|| ptx.display().to_string())?;
    let marks = mark::marks(&ptx_text).with_context(|| ptx.display().to_string())?;
    let functions = if marks.is_empty() {
        functions
    } else {
        let lines = work.join(format!("{stem}.sm_{architecture}.lines.cubin"));
        output(compile::assembler(nvcc, ptx, &lines, architecture).arg("-Xptxas=-lineinfo"))?;
        let with_lines = disassemble(nvdisasm, &lines, &["-c", "-gp"])?;
        check_same(&functions, &with_lines)?;
        with_lines
    };
    let functions: HashMap<_, _> = functions.iter().map(|f| (f.name.as_str(), f)).collect();
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    for (name, resources) in resources {
        let function = functions.get(name.as_str());
        let function = function.with_context(|| format!("{name}: no machine code"))?;
        let entry = Entry::parse(&name);
        let marks: Vec<&Mark> = marks.iter().filter(|mark| mark.entry == name).collect();
        let loops = match &entry {
            None => Ok(Vec::new()),
            Some(entry) => loops_of(function, entry, &marks, work, architecture),
        };
        let mut loops = loops.unwrap_or_else(|error| {
            problems.push(format!(
                "{name} for sm_{architecture}: no main loop: {error:#}"
            ));
            Vec::new()
        });
        loops.sort_by(|a, b| a.label.cmp(&b.label));
        rows.push(Row {
            entry: name,
            architecture,
            resources,
            main_loop: entry.and_then(|entry| entry.main_loop(&loops)),
            loops: if marks.is_empty() { Vec::new() } else { loops },
        });
    }
    Ok((rows, problems))
}

/// Reads the machine code of a file, and keeps the listing beside it.
fn disassemble(nvdisasm: &Path, cubin: &Path, options: &[&str]) -> anyhow::Result<Vec<Function>> {
    // nvdisasm also prints warnings that do not matter here.
    let (text, _) = output(Command::new(nvdisasm).args(options).arg(cubin))?;
    fs::write(cubin.with_extension("sass"), &text).context("the listing cannot be written")?;
    listing::parse(&text).with_context(|| cubin.display().to_string())
}

/// Fails unless ptxas made the same code with line numbers as without.
fn check_same(without: &[Function], with: &[Function]) -> anyhow::Result<()> {
    for (function, other) in without.iter().zip(with) {
        let text = |f: &Function| f.code.iter().map(|i| format!("{i}\n")).collect::<String>();
        if function.name != other.name || text(function) != text(other) {
            bail!("{}: -lineinfo changes the code", function.name);
        }
    }
    Ok(())
}

/// The main loops of an entry: those with marks, or the one that is found without.
fn loops_of(
    function: &Function,
    entry: &Entry,
    marks: &[&Mark],
    folder: &Path,
    architecture: u32,
) -> anyhow::Result<Vec<Loop>> {
    let (labels, paths) = if marks.is_empty() {
        let path = path::main_loop(function, entry.work())?;
        (vec![Label::default()], vec![path])
    } else {
        let works = marks.iter().map(|mark| {
            let work = entry.with_y(mark.label.with_y).work();
            (mark.load, work)
        });
        let paths = path::marked_loops(function, &works.collect::<Vec<_>>())?;
        (marks.iter().map(|mark| mark.label.clone()).collect(), paths)
    };
    let mut loops = Vec::new();
    for (label, path) in labels.into_iter().zip(paths) {
        let name = format!("{}{}.sm_{architecture}.path", function.name, label.suffix());
        let file = folder.join(name.replace(' ', "."));
        fs::write(file, path.text(function)).context("the path cannot be written")?;
        loops.push(Loop {
            label,
            counts: path.counts,
        });
    }
    Ok(loops)
}

/// The size in bytes of the assembled kernel files as `XACT_CUDA_ARCHS=all` embeds them.
fn embedded_bytes(kernels: &[PathBuf], work: &Path) -> anyhow::Result<usize> {
    let mut bytes = 0;
    for architecture in cubin::ALL {
        for ptx in cubin::images_for(kernels, architecture) {
            let (stem, _) = cubin::image_name(ptx).with_context(|| ptx.display().to_string())?;
            let path = work.join(format!("{stem}.sm_{architecture}.cubin"));
            let code = fs::read(&path).with_context(|| path.display().to_string())?;
            bytes += cubin::compress(&code)?.len();
        }
    }
    Ok(bytes)
}

/// Runs a command, and returns its stdout and stderr.
fn output(command: &mut Command) -> anyhow::Result<(String, String)> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} does not start", command.get_program().display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if !output.status.success() {
        bail!("{command:?} failed ({}):\n{stdout}{stderr}", output.status);
    }
    Ok((stdout, stderr))
}
