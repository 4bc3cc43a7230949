//! Whether a model recites passages that its training text repeats, and whether Goldfish prevents that.
//!
//! ```text
//! cargo run --release --manifest-path integrations/candle/Cargo.toml --target-dir target/candle --example memorise -- --help
//! ```
//!
//! A part is one training: an objective and a seed. Parts are independent, can run in several processes, and continue from
//! their last checkpoint. docs/memorisation.md has the results.

mod config;
mod measure;
mod model;
mod random;
mod report;
mod result;
mod text;
mod train;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use config::{Config, Part};
use result::Outcome;
use text::Corpus;
use train::Training;

/// Trains small models with and without Goldfish, and measures which passages they recite.
#[derive(Parser)]
struct Args {
    /// The small version, of seconds
    #[arg(long)]
    quick: bool,
    /// The folder of the vocabulary, the checkpoints and the results. The default is in target/
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Train only these parts, for example plain-0. The default is all that have no result yet
    #[arg(long = "part", value_name = "PART")]
    parts: Vec<String>,
    /// Stop each part after so many more steps; the next call continues
    #[arg(long, value_name = "STEPS")]
    stop_after: Option<usize>,
    /// Train nothing; write the page and the plot from the results in the folder
    #[arg(long, conflicts_with_all = ["parts", "stop_after"])]
    report: bool,
    /// The folder of the page and the plot
    #[arg(long, value_name = "FOLDER", requires = "report")]
    docs: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("memorise: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let config = if args.quick {
        Config::quick()
    } else {
        Config::full()
    };
    let folder = args.folder.clone().unwrap_or_else(|| {
        let name = if args.quick {
            "memorise-quick"
        } else {
            "memorise"
        };
        xact_dev::root().join("target").join(name)
    });
    if args.report {
        let outcomes = outcomes(&config, &folder, true)?;
        let docs = args.docs.clone();
        let docs = docs.unwrap_or_else(|| xact_dev::root().join("docs"));
        return report::write(&config, &outcomes, &docs);
    }
    let parts = chosen(&config, &args.parts)?;
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let tokenizer = text::tokenizer(&config, &folder)?;
    let corpus = Corpus::new(&config, &tokenizer)?;
    for part in parts {
        if outcome(&config, &folder, part)?.is_none() {
            train(&config, &folder, part, &corpus, args.stop_after)?;
        }
    }
    println!(
        "{}",
        report::table(&config, &outcomes(&config, &folder, false)?)
    );
    Ok(())
}

/// The parts with these names; all of them if there are none.
fn chosen(config: &Config, names: &[String]) -> Result<Vec<Part>> {
    let all = config.parts();
    for name in names {
        if !all.iter().any(|part| part.to_string() == *name) {
            let known: Vec<String> = all.iter().map(Part::to_string).collect();
            bail!("there is no part {name:?}; there are {}", known.join(", "));
        }
    }
    let is_chosen = |part: &Part| names.is_empty() || names.contains(&part.to_string());
    Ok(all.into_iter().filter(is_chosen).collect())
}

/// Trains a part to its end and writes its result, or stops it earlier.
fn train(
    config: &Config,
    folder: &Path,
    part: Part,
    corpus: &Corpus,
    stop_after: Option<usize>,
) -> Result<()> {
    let checkpoint = folder.join(format!("{part}.safetensors"));
    let steps = corpus.sequences(config, part)?.len() / config.batch;
    let mut training = Training::open(config, part, steps, &checkpoint)?;
    if training.run(corpus, &checkpoint, stop_after)? {
        let outcome = result::measure(&training, config, part, corpus)?;
        let text = serde_json::to_string_pretty(&outcome)? + "\n";
        let path = result_path(folder, part);
        xact_dev::files::replace(&path, text.as_bytes()).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

fn result_path(folder: &Path, part: Part) -> PathBuf {
    folder.join(format!("{part}.json"))
}

/// The result of a part, if there is one.
fn outcome(config: &Config, folder: &Path, part: Part) -> Result<Option<Outcome>> {
    let path = result_path(folder, part);
    if !path.exists() {
        return Ok(None);
    }
    let read = || -> Result<Outcome> {
        let outcome: Outcome = serde_json::from_slice(&fs::read(&path)?)?;
        ensure!(
            (&outcome.config, outcome.part) == (config, part),
            "it belongs to another configuration: remove it, or choose another --folder"
        );
        Ok(outcome)
    };
    read()
        .with_context(|| format!("the result {}", path.display()))
        .map(Some)
}

/// The results in the folder; if `all`, it is an error if one is missing.
fn outcomes(config: &Config, folder: &Path, all: bool) -> Result<Vec<Outcome>> {
    ensure!(folder.is_dir(), "there is no folder {}", folder.display());
    let mut outcomes = Vec::new();
    for part in config.parts() {
        match outcome(config, folder, part)? {
            Some(outcome) => outcomes.push(outcome),
            None if all => bail!("{} has no result of {part} yet", folder.display()),
            None => {}
        }
    }
    Ok(outcomes)
}
