//! The kernels on a GPU: milliseconds, bytes per second, the share of a copy's in the same run and of the data
//! sheet's.
//!
//! ```text
//! cargo bench --bench gpu -- [--quick] [--op NAME] [--dtype NAME] [--json FILE]
//! ```
//!
//! Without a GPU it says so and ends with exit status 0, or 1 if `XACT_REQUIRE_GPU=1`: an emulated device has no
//! speed. `--smoke` runs every row once at a tiny size on any device and times nothing.

mod compare;
mod measure;
mod report;
mod rows;
#[path = "../../tests/support/mod.rs"]
mod support;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use measure::{Bench, Machine, Measured};
use rows::Row;
use serde_json::json;
use support::choose::{Choice, Gpu, gpu_required, open};
use support::{files, progress};
use work::Result;
use xact::{activation, loss};

/// How often the results are written while rows are measured.
const WRITTEN_EVERY: Duration = Duration::from_secs(2);

/// Time the kernels on a GPU beside a copy, and what goes with it on a machine that has one
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    job: Option<Job>,
    #[command(flatten)]
    measure: Measure,
    /// What cargo passes on
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Args)]
struct Measure {
    /// Only this op
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new([activation::NAMES, loss::NAMES].concat()))]
    op: Option<String>,
    /// Only this element type
    #[arg(long, value_parser = ["f32", "f16", "bf16", "i32", "i64"])]
    dtype: Option<String>,
    /// Only a few rows
    #[arg(long)]
    quick: bool,
    /// Only the rows that peers run too
    #[arg(long)]
    peers: bool,
    /// Samples of each row, but for the many of the grid
    #[arg(long, default_value_t = 11)]
    samples: usize,
    /// Begin no further row after so many seconds
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Write the results here too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the rows as JSON and run nothing
    #[arg(long)]
    list: bool,
    /// Run every row once at a tiny size and time nothing
    #[arg(long)]
    smoke: bool,
}

#[derive(Subcommand)]
enum Job {
    /// Run every kernel entry on one device and write what it computes
    Dump {
        /// A safetensors file
        file: PathBuf,
        /// Few of the inputs, for slow observers such as compute-sanitizer
        #[arg(long)]
        small: bool,
    },
    /// Compare what two devices computed: bit for bit, or within the bounds of approximate instructions
    Compare {
        /// What the emulator wrote
        emulated: PathBuf,
        /// What the other device wrote
        device: PathBuf,
        /// Write the rows here
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Join the results of a run of the GPU bundle into Markdown, JSON and plots
    Report {
        /// The folder of the run's parts
        parts: PathBuf,
        /// The folder to write to
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.job {
        None => run(&arguments.measure),
        Some(Job::Dump { file, small }) => compare::dump(&file, small),
        Some(Job::Compare {
            emulated,
            device,
            json,
        }) => compare::compare(&emulated, &device, json.as_deref()),
        Some(Job::Report { parts, out }) => report::write(&parts, &out),
    };
    done.unwrap_or_else(|e| {
        eprintln!("error: {e}");
        ExitCode::FAILURE
    })
}

fn run(arguments: &Measure) -> Result<ExitCode> {
    let is = |choice: &Option<String>, name: &str| choice.as_ref().is_none_or(|c| c == name);
    let mut rows = rows::all();
    rows.retain(|row| {
        is(&arguments.op, &row.op)
            && is(&arguments.dtype, &row.dtype)
            && (row.quick || !arguments.quick)
            && (row.peers || !arguments.peers)
    });
    if arguments.list {
        let named = rows.iter().map(|row| {
            let mut named = json!(row);
            named["name"] = row.name().into();
            named
        });
        let list: Vec<_> = named.collect();
        progress::print(&format!("{}\n", serde_json::to_string_pretty(&list)?));
        return Ok(ExitCode::SUCCESS);
    }
    let gpu = match Choice::from_env().and_then(open) {
        Ok(gpu) => gpu,
        Err(e) if gpu_required() => return Err(e.into()),
        Err(e) => {
            println!("No GPU, nothing measured: {e}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    // Everything runs on one stream, and waits on events from outside would break the captures.
    no_event_tracking(&gpu);
    if arguments.smoke {
        return smoke(&gpu, rows);
    }
    if gpu.emulated {
        println!("No GPU, nothing measured: {} has no speed.", gpu.name);
        return Ok(ExitCode::SUCCESS);
    }
    let machine = Machine::of(&gpu)?;
    let mut bench = Bench::new(&gpu, &machine, arguments.samples)?;
    let (free, _) = gpu.device.context().mem_get_info()?;
    let plan = |row| measure::seconds(row, &machine, free as u64, arguments.samples);
    let planned: f64 = rows.iter().map(plan).sum();
    eprintln!("{} rows, some {planned:.0} s", rows.len());
    let begin = Instant::now();
    let bar = progress::bar(rows.len());
    let (mut measured, mut without) = (Vec::new(), Vec::new());
    let mut written = begin;
    for (i, row) in rows.iter().enumerate() {
        bar.set_message(row.name());
        let late = arguments
            .seconds
            .is_some_and(|most| begin.elapsed().as_secs_f64() > most);
        match (!late).then(|| bench.measure(row)) {
            Some(Ok(Some(found))) => measured.push(found),
            Some(Ok(None)) => without.push((row.name(), "does not fit into the memory".to_owned())),
            Some(Err(e)) => without.push((row.name(), format!("FAILED: {e}"))),
            None => without.push((row.name(), "FAILED: no time left".to_owned())),
        }
        // Now and then, in case that the process is ended, and at the end.
        if let Some(path) = &arguments.json
            && (i + 1 == rows.len() || written.elapsed() > WRITTEN_EVERY)
        {
            let found = json!({ "machine": machine, "rows": measured, "without": without });
            files::replace(path, serde_json::to_string_pretty(&found)?.as_bytes())?;
            written = Instant::now();
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    progress::print(&in_words(&machine, &measured, &without));
    let failed = without.iter().any(|(_, why)| why.starts_with("FAILED"));
    Ok(ExitCode::from(u8::from(failed)))
}

#[allow(unsafe_code)]
fn no_event_tracking(gpu: &Gpu) {
    // SAFETY: this process queues all its work on one stream.
    unsafe { gpu.device.context().disable_event_tracking() };
}

fn smoke(gpu: &Gpu, rows: Vec<Row>) -> Result<ExitCode> {
    let mut tiny: Vec<_> = rows.into_iter().map(Row::tiny).collect();
    tiny.sort_by_key(Row::name);
    tiny.dedup_by_key(|row| row.name());
    gpu.device.preload()?;
    let mut failed = 0;
    for row in &tiny {
        if !measure::smoke(gpu, row)? {
            eprintln!("{} wrote nothing", row.name());
            failed += 1;
        }
    }
    println!(
        "{} rows at tiny sizes on {}, {failed} failed; nothing timed.",
        tiny.len(),
        gpu.name
    );
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// The table, and what it means.
fn in_words(machine: &Machine, rows: &[Measured], without: &[(String, String)]) -> String {
    let mut text = format!(
        "{}\n{}: {} SMs, {:.0} MB of L2, {:.0} GB/s by its memory clock and bus. Medians; bytes are each input once \
         and each output\nonce; the copy is cuMemcpyDtoDAsync of as many bytes, alternated with each row.\n",
        report::speeds(machine, rows),
        machine.device,
        machine.sms,
        machine.l2_bytes as f64 / 1e6,
        machine.sheet_gb_per_s,
    );
    for (name, why) in without {
        text += &format!("{name}: {why}\n");
    }
    text
}
