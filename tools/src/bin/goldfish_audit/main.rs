//! Measures the effects of a Goldfish strategy on a corpus: the share of labels that it drops, the share of the text's
//! windows that it distinguishes, long runs without a drop, and the ids with the highest and lowest rates of drops.
//!
//! The token ids are read in blocks, in the formats of training stacks, so memory does not grow with the file.

mod audit;
mod distinct;
mod ids;

use std::path::PathBuf;
use std::process::ExitCode;

use audit::Audit;
use clap::Parser;
use ids::{Format, Ids};
use xact::Goldfish;
use xact_dev::plot::{self, Axis, Line, Panel, Plot, Scale, colour};
use xact_dev::strategy::{Name, Numbers};
use xact_dev::{files, progress, table};

/// Audit Goldfish strategies on a file of token ids
///
/// Audits every combination of the strategies, k and h. Each id counts as a label, whose window ends with the id.
#[derive(Parser)]
#[command(name = "goldfish_audit")]
struct Arguments {
    /// A .safetensors file with a tensor of ids, or a file of little-endian ids, such as the .bin files of Megatron and
    /// nanoGPT
    file: PathBuf,
    /// The type of the ids in a .bin file
    #[arg(long, value_enum)]
    dtype: Option<Format>,
    /// The number of bytes before the first id of a .bin file
    #[arg(long, default_value_t = 0)]
    skip: u64,
    /// The name of the tensor in a .safetensors file; not needed if there is only one
    #[arg(long)]
    tensor: Option<String>,
    /// The number of ids in a row; no window crosses a row. Without this option, the file is one row
    #[arg(long)]
    row: Option<usize>,
    /// The strategies, of those that depend on the ids
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "product-table,dot-table,hash64"
    )]
    strategy: Vec<Name>,
    /// Drop about one label in this number
    #[arg(long, value_delimiter = ',', default_value = "50")]
    k: Vec<u32>,
    /// The number of ids in a window
    #[arg(long, value_delimiter = ',', default_value = "50")]
    h: Vec<u32>,
    /// hash64: any number
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The number of ids to show of those with the highest and lowest rates of drops
    #[arg(long, default_value_t = 5)]
    ids: usize,
    /// Write the histogram of the gaps between drops to this SVG file
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Print one JSON object per line instead of the tables
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let mut audits = audits(arguments)?;
    let mut ids = match &arguments.dtype {
        Some(format) => Ids::raw(&arguments.file, *format, arguments.skip),
        None => Ids::safetensors(&arguments.file, arguments.tensor.as_deref()),
    }
    .map_err(|e| format!("{}: {e}", arguments.file.display()))?;
    let bar = progress::bar(ids.len() as usize);
    bar.set_message("ids");
    audit::all(&mut audits, &mut ids, arguments.row, |done| {
        bar.set_position(done)
    })
    .map_err(|e| format!("{}: {e}", arguments.file.display()))?;
    bar.finish_and_clear();
    if let Some(path) = &arguments.svg {
        files::replace(path, plot::svg(&gaps(arguments, &audits)).as_bytes())?;
    }
    if arguments.json {
        for audit in &audits {
            if !progress::print(&format!("{}\n", audit.json(arguments.ids))) {
                break;
            }
        }
    } else {
        progress::print(&in_words(arguments, &audits));
    }
    Ok(())
}

/// Runs one audit for each combination.
fn audits(arguments: &Arguments) -> Result<Vec<Audit>, String> {
    let mut audits = Vec::new();
    for (&k, &h) in (arguments.k.iter()).flat_map(|k| arguments.h.iter().map(move |h| (k, h))) {
        for &name in &arguments.strategy {
            let strategy = Numbers {
                k,
                h,
                start: 0,
                seed: arguments.seed,
            }
            .of(name);
            if strategy.h().is_none() {
                return Err(format!(
                    "{} does not look at the text; there is nothing to audit",
                    strategy.name()
                ));
            }
            let goldfish = Goldfish::new(strategy).map_err(|e| e.to_string())?;
            audits.push(Audit::new(goldfish));
        }
    }
    Ok(audits)
}

/// Prints the tables.
fn in_words(arguments: &Arguments, audits: &[Audit]) -> String {
    let heads = [
        "strategy",
        "k",
        "h",
        "labels",
        "dropped",
        "1/k",
        "windows told apart",
        "key 0",
        "longest run",
    ];
    let mut overview = table::table(&heads, &heads[1..]);
    let heads = ["strategy", "k", "h", "dropped", "id", "labels", "rate"];
    let mut of_ids = table::table(&heads, &["k", "h", "id", "labels", "rate"]);
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    for audit in audits {
        let name = [
            audit.name().to_owned(),
            audit.k().to_string(),
            audit.h().to_string(),
        ];
        let numbers = [
            audit.labels.to_string(),
            percent(audit.rate()),
            percent(1.0 / f64::from(audit.k())),
            percent(audit.told_apart()),
            percent(audit.zero_keys()),
            audit.longest_run().to_string(),
        ];
        overview.add_row([&name[..], &numbers].concat());
        let (most, least) = audit.extreme_ids(arguments.ids);
        for (which, ids) in [("most", most), ("least", least)] {
            for id in ids {
                let numbers = [
                    which.to_owned(),
                    id.id.to_string(),
                    id.labels.to_string(),
                    percent(id.rate()),
                ];
                of_ids.add_row([&name[..], &numbers].concat());
            }
        }
    }
    let mut text = format!(
        "{overview}\ndropped: of all labels. windows told apart: distinct keys to distinct windows; estimated from a \
         sample above {} of\neither. key 0: windows whose key is 0, of all. longest run: labels between two drops.\n",
        distinct::EXACT
    );
    if of_ids.is_empty() {
        text += &format!(
            "\nNo id has {} times k labels, from which its rate would say something.\n",
            audit::LEAST_DROPS
        );
    } else {
        text += &format!(
            "\n{of_ids}\nThe ids dropped most and least, of those with {} times k labels. Text that repeats is decided alike each \
             time, which\nmoves such rates and all others.\n",
            audit::LEAST_DROPS
        );
    }
    if let Some(lumped) = audits
        .iter()
        .map(|audit| audit.lumped)
        .max()
        .filter(|&n| n > 0)
    {
        text += &format!("{lumped} labels of further ids were not counted by id.\n");
    }
    text
}

/// The histogram of the gaps.
fn gaps(arguments: &Arguments, audits: &[Audit]) -> Plot {
    const COLOURS: [plotters::style::RGBColor; 4] =
        [colour::BLUE, colour::VERMILION, colour::SKY, colour::PURPLE];
    let mut panels = Vec::new();
    for (&k, &h) in (arguments.k.iter()).flat_map(|k| arguments.h.iter().map(move |h| (k, h))) {
        let of_panel: Vec<_> = audits.iter().filter(|a| (a.k(), a.h()) == (k, h)).collect();
        let mean = f64::from(k);
        let lines = of_panel
            .iter()
            .zip(COLOURS.iter().cycle())
            .map(|(audit, &colour)| Line {
                name: format!("{} / mean gap {:.1}", audit.name(), audit.mean_gap()),
                colour,
                points: audit.gap_points(),
            });
        panels.push(Panel {
            title: format!("k = {k}, h = {h}"),
            x: Axis {
                label: "gap, in labels".to_owned(),
                scale: Scale::Linear,
                min: 0.0,
                max: audit::GAPS_OF_K * mean,
            },
            y: Axis {
                label: "to independent drops".to_owned(),
                scale: Scale::Log,
                min: 0.01,
                max: 100.0,
            },
            lines: lines.collect(),
            level: (1.0, "independent drops, / one in k".to_owned()),
        });
    }
    let file = arguments.file.file_name().unwrap_or_default();
    Plot {
        title: "Gaps between dropped labels".to_owned(),
        notes: vec![
            format!("{}, {} labels", file.display(), audits.first().map_or(0, |a| a.labels)),
            "Gaps of each length, divided by how many independent drops of one label in k would give.".to_owned(),
        ],
        panels,
    }
}
