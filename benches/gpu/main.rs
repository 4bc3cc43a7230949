//! Times the kernels on a GPU: milliseconds, bytes per second, and shares of the bandwidth of a yardstick in the same run
//! and of the data sheet.
//!
//! ```text
//! cargo bench --bench gpu -- [--quick] [--op NAME] [--dtype NAME] [--json FILE]
//! cargo bench --bench gpu -- profile "xielu plain forward bf16"        # plain launches, for ncu
//! ```
//!
//! Without a GPU it prints that, and ends with exit status 0, or 1 if `XACT_REQUIRE_GPU=1`, because an emulated device has
//! no speed. `--smoke` runs every row once at a tiny size on any device and times nothing.

mod clocks;
mod compare;
mod devices;
mod measure;
mod page;
mod report;
mod rows;
mod work;
mod yardsticks;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use clocks::Sampler;
use measure::{Bench, Machine, Speed};
use rows::{Chosen, Row};
use serde_json::json;
use work::Result;
use xact::cuda::{self, Kernels};
use xact::cudarc::driver::CudaContext;
use xact::{Device, activation, loss};
use xact_dev::choose::{Choice, Gpu, gpu_required, open};
use xact_dev::{files, progress};

/// The interval at which the results are written during the measurements.
const WRITTEN_EVERY: Duration = Duration::from_secs(2);

/// Time the kernels on a GPU beside copies of the same number of bytes, and further commands for a machine with a GPU
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    job: Option<Job>,
    #[command(flatten)]
    measure: Measure,
    /// Passed by cargo
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Args)]
struct Measure {
    /// Time only this op
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new([activation::NAMES, loss::NAMES].concat()))]
    op: Option<String>,
    /// Time only this element type
    #[arg(long, value_parser = ["f32", "f16", "bf16", "i32", "i64"])]
    dtype: Option<String>,
    /// Time only a few rows
    #[arg(long)]
    quick: bool,
    /// Time only the rows that peers run too
    #[arg(long)]
    peers: bool,
    /// Time only the six representative rows
    #[arg(long)]
    representative: bool,
    /// Time only the rows for trying the choices of a launch
    #[arg(long)]
    choices: bool,
    /// Launch as many blocks as can be resident on the device, not one for each piece of work
    #[arg(long)]
    resident: bool,
    /// Use at least this number of blocks for each row of logits that a cluster shares, not as few as the row fits into
    #[arg(long, value_name = "BLOCKS")]
    cluster: Option<NonZeroU32>,
    /// The number of samples of each row; rows that only complete the grid have fewer
    #[arg(long, default_value_t = 11)]
    samples: usize,
    /// Start no further row after this number of seconds
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Also write the results to this file
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
    /// Load every kernel, and print the time that takes and what was loaded
    Load {
        /// Load the PTX, even if machine code is embedded
        #[arg(long)]
        ptx: bool,
    },
    /// Launch one row a few times without a graph, for a profiler such as ncu
    Profile {
        /// The name of the row, or its beginning; the first match in `--list` is used
        row: String,
        /// Use a tiny size, on any device
        #[arg(long)]
        smoke: bool,
    },
    /// Run every kernel entry on one device, and write its results
    Dump {
        /// The safetensors file to write
        file: PathBuf,
        /// Use few of the inputs, for slow tools such as compute-sanitizer
        #[arg(long)]
        small: bool,
        /// Run only calls whose name, op/type/direction/parameters, starts with this
        #[arg(long, value_name = "NAME", default_value = "")]
        only: String,
    },
    /// Compare the results of two devices: bit for bit, or within the bounds of approximate instructions
    Compare {
        /// The file of the emulator
        emulated: PathBuf,
        /// The file of the other device
        device: PathBuf,
        /// Write the rows to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Combine the results of a run of the GPU bundle into a page, a report, JSON and plots
    Report {
        /// The folder with the parts of the run
        parts: PathBuf,
        /// The folder to write to
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.job {
        None => run(&arguments.measure),
        Some(Job::Load { ptx }) => load(ptx),
        Some(Job::Profile { row, smoke }) => profile(&row, smoke),
        Some(Job::Dump { file, small, only }) => compare::dump(&file, small, &only),
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
            && (row.representative || !arguments.representative)
            && (row.choices || !arguments.choices)
    });
    for row in &mut rows {
        row.chosen = Chosen {
            resident: arguments.resident,
            cluster: arguments.cluster,
        };
    }
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
    // All work is on one stream, and waits on events from outside would break the captures.
    no_event_tracking(&gpu);
    if arguments.smoke {
        return smoke(&gpu, rows);
    }
    if gpu.emulated {
        println!("No GPU, nothing measured: {} has no speed.", gpu.name);
        return Ok(ExitCode::SUCCESS);
    }
    let machine = Machine::of(&gpu)?;
    let mut bench = Bench::new(&gpu, &machine, arguments.samples, measure::YARDSTICK_BYTES)?;
    // The clock sampler starts here, because the earlier work of the device does not belong to a row.
    let sampler = Sampler::of(&gpu)?;
    let (free, _) = gpu.device.context().mem_get_info()?;
    let plan = |row| measure::seconds(row, &machine, free as u64, arguments.samples);
    let planned: f64 = rows.iter().map(plan).sum();
    eprintln!("{} rows, some {planned:.0} s", rows.len());
    let begin = Instant::now();
    let bar = progress::bar(rows.len());
    let mut speed = Speed {
        machine,
        clocks: None,
        yardsticks: bench.yardsticks()?,
        rows: Vec::new(),
        without: Vec::new(),
    };
    let mut written = begin;
    for (i, row) in rows.iter().enumerate() {
        bar.set_message(row.name());
        let late = arguments
            .seconds
            .is_some_and(|most| begin.elapsed().as_secs_f64() > most);
        let why_not = match (!late).then(|| bench.measure(row)) {
            Some(Ok(Some(found))) => {
                speed.rows.push(found);
                None
            }
            Some(Ok(None)) => Some("does not fit into the memory".to_owned()),
            Some(Err(e)) => Some(format!("FAILED: {e}")),
            None => Some("FAILED: no time left".to_owned()),
        };
        speed.without.extend(why_not.map(|why| (row.name(), why)));
        speed.clocks = sampler.as_ref().and_then(Sampler::so_far);
        // The results are written from time to time, because the process may be killed, and at the end.
        if let Some(path) = &arguments.json
            && (i + 1 == rows.len() || written.elapsed() > WRITTEN_EVERY)
        {
            files::replace(path, serde_json::to_string_pretty(&speed)?.as_bytes())?;
            written = Instant::now();
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    progress::print(&report::speed_in_words(&speed));
    let failed = speed.without.iter();
    let failed = failed.filter(|(_, why)| why.starts_with("FAILED")).count();
    println!("{} rows measured, {failed} failed.", speed.rows.len());
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn load(ptx: bool) -> Result<ExitCode> {
    let begin = Instant::now();
    let gpu = Choice::from_env().and_then(open)?;
    let device = if ptx {
        // A new context, which has loaded nothing.
        let kernels = Kernels {
            images: cuda::images(),
            cubins: &[],
        };
        Device::with_kernels(&CudaContext::new(gpu.device.context().ordinal())?, kernels)?
    } else {
        gpu.device
    };
    let opened = begin.elapsed();
    device.preload()?;
    let loaded = device.loaded_images();
    // The emulator loads only PTX.
    if !ptx && !gpu.emulated {
        let machine_code = loaded.iter().filter(|name| name.ends_with(".cubin"));
        print!(
            "machine code: {} of {} files; ",
            machine_code.count(),
            loaded.len()
        );
    }
    println!(
        "{}: every kernel loaded in {:.2} s, after {:.2} s to open the device: {}",
        gpu.name,
        (begin.elapsed() - opened).as_secs_f64(),
        opened.as_secs_f64(),
        loaded.join(" ")
    );
    Ok(ExitCode::SUCCESS)
}

fn profile(name: &str, smoke: bool) -> Result<ExitCode> {
    let mut rows = rows::all().into_iter();
    let row = rows.find(|row| row.name().starts_with(name));
    let row = row.ok_or_else(|| format!("no row begins with {name}: --list names them"))?;
    let row = if smoke { row.tiny() } else { row };
    let gpu = Choice::from_env().and_then(open)?;
    no_event_tracking(&gpu);
    if gpu.emulated && !smoke {
        return Err(format!("{} has no speed: --smoke only launches", gpu.name).into());
    }
    measure::profile(&gpu, &row)?;
    println!("launched on {}: {}", gpu.name, row.name());
    Ok(ExitCode::SUCCESS)
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
    measure::smoke_yardsticks(gpu)?;
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
