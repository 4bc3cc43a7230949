//! The results of a run of the GPU bundle, joined: Markdown for people, JSON for machines, plots.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use plotters::style::RGBColor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::compare::Comparison;
use crate::measure::{Machine, Measured, median};
use crate::rows::Row;
use crate::support::files;
use crate::support::plot::{self, Axis, Bar, Line, Panel, Plot, Scale, colour};
use crate::support::table::table;
use crate::work::Result;

/// A file that `gpu --json` wrote.
#[derive(Debug, Deserialize)]
pub struct Speed {
    pub machine: Machine,
    pub rows: Vec<Measured>,
    /// Names of rows that have no figure, and why.
    pub without: Vec<(String, String)>,
}

/// A file that `benches/peers/torch_gpu.py` wrote: one round.
#[derive(Debug, Deserialize)]
pub struct Peers {
    /// Of torch, triton and what else was found; `null` for what was not.
    pub versions: BTreeMap<String, Option<String>>,
    pub rows: Vec<Peer>,
}

/// A peer's time for one of our rows.
#[derive(Debug, Deserialize)]
pub struct Peer {
    /// [`Row::name`](crate::rows::Row::name).
    pub name: String,
    pub peer: String,
    /// `null` if it failed.
    pub ms: Option<f64>,
    /// Of a copy of as many bytes in that process.
    pub copy_ms: Option<f64>,
    pub error: Option<String>,
}

/// A step of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    pub name: String,
    /// `passed`, `FAILED` or `not run`.
    pub outcome: String,
    pub seconds: u64,
    /// Why, or what it counted.
    pub note: String,
}

/// `gpu report`: what `run.sh` left in `parts`, written to `out`.
pub fn write(parts: &Path, out: &Path) -> Result<ExitCode> {
    let parts = Parts::read(parts)?;
    fs::create_dir_all(out)?;
    let put = |name: &str, text: &str| files::replace(&out.join(name), text.as_bytes());
    put("report.md", &parts.markdown())?;
    put(
        "results.json",
        &serde_json::to_string_pretty(&parts.json())?,
    )?;
    if let Some(speed) = &parts.speed {
        put("share_of_copy.svg", &share_of_copy(speed))?;
        put("roofline.svg", &roofline(speed)?)?;
    }
    print!("{}", parts.verdict());
    Ok(ExitCode::SUCCESS)
}

/// Everything that a run left.
#[derive(Default)]
pub struct Parts {
    pub steps: Vec<Step>,
    /// What the machine says of itself.
    pub machine: String,
    /// SM clocks in MHz over the benches.
    pub clocks: Vec<f64>,
    pub speed: Option<Speed>,
    pub comparison: Option<Comparison>,
    /// Rounds of ours and of the peers, in turn.
    pub ours: Vec<Speed>,
    pub peers: Vec<Peers>,
    /// By the name of the geometry.
    pub tuning: BTreeMap<String, Speed>,
}

impl Parts {
    /// Reads a folder; what a step that did not run would have left is missing.
    pub fn read(folder: &Path) -> Result<Parts> {
        let mut parts = Parts::default();
        let mut names: Vec<_> = fs::read_dir(folder)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        for name in names {
            let path = folder.join(&name);
            if !path.is_file() {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|e| format!("{name}: {e}"))?;
            let (stem, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
            let of_json = |e: serde_json::Error| format!("{name}: {e}");
            match (stem, extension) {
                ("steps", "tsv") => parts.steps = steps(&text)?,
                ("machine", "txt") => parts.machine = text.trim().to_owned(),
                ("clocks", "csv") => {
                    parts.clocks = text.lines().filter_map(|l| l.trim().parse().ok()).collect();
                }
                ("speed", "json") => {
                    parts.speed = Some(serde_json::from_str(&text).map_err(of_json)?);
                }
                ("compare", "json") => {
                    parts.comparison = Some(serde_json::from_str(&text).map_err(of_json)?);
                }
                (stem, "json") if stem.starts_with("ours-") => {
                    parts
                        .ours
                        .push(serde_json::from_str(&text).map_err(of_json)?);
                }
                (stem, "json") if stem.starts_with("peers-") => {
                    parts
                        .peers
                        .push(serde_json::from_str(&text).map_err(of_json)?);
                }
                (stem, "json") if stem.starts_with("tuning-") => {
                    let speed = serde_json::from_str(&text).map_err(of_json)?;
                    let geometry = stem["tuning-".len()..].to_owned();
                    parts.tuning.insert(geometry, speed);
                }
                _ => {}
            }
        }
        Ok(parts)
    }

    /// The steps, and what they come to.
    fn verdict(&self) -> String {
        let mut table = table(&["step", "outcome", "s", "note"], &["s"]);
        for step in &self.steps {
            let Step {
                name,
                outcome,
                seconds,
                note,
            } = step;
            table.add_row([
                name.clone(),
                outcome.clone(),
                seconds.to_string(),
                note.clone(),
            ]);
        }
        let count = |outcome: &str| self.steps.iter().filter(|s| s.outcome == outcome).count();
        format!(
            "{table}\n\n{} steps: {} passed, {} failed, {} not run.\n",
            self.steps.len(),
            count("passed"),
            count("FAILED"),
            count("not run"),
        )
    }

    /// The report.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# A run of the GPU bundle\n\n```text\n{}\n```\n",
            self.machine
        );
        let _ = write!(text, "\n{}", self.verdict());
        if let Some(comparison) = &self.comparison {
            let _ = write!(
                text,
                "\n## Emulator and device\n\n{}",
                comparison.in_words()
            );
        }
        if let Some(speed) = &self.speed {
            let _ = write!(
                text,
                "\n## Speed\n\n{}",
                speeds(&speed.machine, &speed.rows)
            );
            text += "\nMedians of alternated samples; bytes are each input once and each output once; the copy is \
                     `cuMemcpyDtoDAsync` of as many bytes in the same run.\n";
            for (name, why) in &speed.without {
                let _ = writeln!(text, "{name}: {why}");
            }
            let mut clocks = self.clocks.clone();
            if !clocks.is_empty() {
                let middle = median(&mut clocks);
                let _ = writeln!(
                    text,
                    "SM clock while the benches ran: {} to {} MHz, median {middle}.",
                    clocks[0],
                    clocks[clocks.len() - 1]
                );
            }
            text += "\n![share of a copy](share_of_copy.svg)\n\n![roofline](roofline.svg)\n";
        }
        if !self.peers.is_empty() {
            let _ = write!(text, "\n## Peers\n\n{}", self.peers_in_words());
        }
        if !self.tuning.is_empty() {
            let _ = write!(text, "\n## Geometry\n\n{}", self.tuning_in_words());
        }
        text
    }

    /// Everything as JSON.
    pub fn json(&self) -> Value {
        let speed =
            |s: &Speed| json!({ "machine": s.machine, "rows": s.rows, "without": s.without });
        let versions: Vec<_> = self.peers.iter().map(|p| &p.versions).collect();
        json!({
            "steps": self.steps,
            "machine": self.machine,
            "sm_clocks_mhz": self.clocks,
            "speed": self.speed.as_ref().map(speed),
            "comparison": self.comparison,
            "peers": self.peer_rows(),
            "peer_versions": versions.first(),
            "tuning": self.tuning.iter().map(|(name, s)| (name.clone(), speed(s))).collect::<BTreeMap<_, _>>(),
        })
    }

    /// A line for each of our rows and each peer that runs it: medians over the rounds.
    fn peer_rows(&self) -> Vec<PeerRow> {
        let ours = |name: &str| -> Vec<&Measured> {
            let rows = self.ours.iter().flat_map(|speed| &speed.rows);
            rows.filter(|row| row.name == name).collect()
        };
        let peers = || self.peers.iter().flat_map(|round| &round.rows);
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for row in peers() {
            let pair = (row.name.as_str(), row.peer.as_str());
            if !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
        let middle = |values: Vec<f64>| (!values.is_empty()).then(|| median(&mut values.clone()));
        pairs
            .into_iter()
            .map(|(name, peer)| {
                let theirs = || peers().filter(|row| row.name == name && row.peer == peer);
                let ours = ours(name);
                PeerRow {
                    row: name.to_owned(),
                    peer: peer.to_owned(),
                    ms: middle(ours.iter().map(|row| row.ms).collect()),
                    copy_ms: middle(ours.iter().map(|row| row.copy_ms).collect()),
                    peer_ms: middle(theirs().filter_map(|row| row.ms).collect()),
                    peer_copy_ms: middle(theirs().filter_map(|row| row.copy_ms).collect()),
                    error: theirs().find_map(|row| row.error.clone()),
                }
            })
            .collect()
    }

    fn peers_in_words(&self) -> String {
        let heads = [
            "row",
            "xact ms",
            "of copy",
            "peer",
            "peer ms",
            "of copy",
            "times as fast",
        ];
        let mut table = table(&heads, &heads);
        let percent = |copy: Option<f64>, ms: Option<f64>| match (copy, ms) {
            (Some(copy), Some(ms)) => format!("{:.0} %", 100.0 * copy / ms),
            _ => String::new(),
        };
        let time = |ms: Option<f64>| ms.map_or("none".to_owned(), |ms| format!("{ms:.4}"));
        for row in self.peer_rows() {
            table.add_row([
                row.row.clone(),
                time(row.ms),
                percent(row.copy_ms, row.ms),
                row.peer.clone(),
                row.error.clone().unwrap_or_else(|| time(row.peer_ms)),
                percent(row.peer_copy_ms, row.peer_ms),
                row.ratio().map_or(String::new(), |r| format!("{r:.2}")),
            ]);
        }
        let versions = self.peers.first().map(|round| {
            let known = round.versions.iter();
            known
                .map(|(name, version)| {
                    format!("{name} {}", version.as_deref().unwrap_or("not there"))
                })
                .collect::<Vec<_>>()
                .join(", ")
        });
        format!(
            "{table}\n\nMedians over {} rounds of ours and {} of theirs, in turn on the same device, each beside a copy in its own \
             process. {}.\n",
            self.ours.len(),
            self.peers.len(),
            versions.unwrap_or_default()
        )
    }

    /// The share of the copy of every row under every geometry.
    fn tuning_in_words(&self) -> String {
        let geometries: Vec<_> = self.tuning.keys().map(String::as_str).collect();
        let heads = [&["row"][..], &geometries, &["best"]].concat();
        let mut table = table(&heads, &geometries);
        let mut rows: Vec<&str> = Vec::new();
        for row in self.tuning.values().flat_map(|speed| &speed.rows) {
            if !rows.contains(&row.name.as_str()) {
                rows.push(&row.name);
            }
        }
        for name in rows {
            let share = |speed: &Speed| {
                let row = speed.rows.iter().find(|row| row.name == name)?;
                row.share_of_copy()
            };
            let shares: Vec<_> = self.tuning.values().map(share).collect();
            let best = (0..shares.len()).max_by(|&a, &b| {
                f64::total_cmp(&shares[a].unwrap_or(0.0), &shares[b].unwrap_or(0.0))
            });
            let cells = shares.iter().map(|share| {
                share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share))
            });
            let best = best.map_or(String::new(), |best| geometries[best].to_owned());
            table.add_row([name.to_owned()].into_iter().chain(cells).chain([best]));
        }
        format!(
            "{table}\n\nShares of a copy in the same process; `src/geometry.rs` says what the names mean.\n"
        )
    }
}

/// One of our rows beside one peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerRow {
    pub row: String,
    pub peer: String,
    pub ms: Option<f64>,
    pub copy_ms: Option<f64>,
    pub peer_ms: Option<f64>,
    pub peer_copy_ms: Option<f64>,
    /// Why the peer has no time.
    pub error: Option<String>,
}

impl PeerRow {
    /// How many times as fast ours is.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.peer_ms? / self.ms?)
    }
}

fn steps(text: &str) -> Result<Vec<Step>> {
    let step = |line: &str| -> Result<Step> {
        let mut words = line.splitn(4, '\t').map(str::to_owned);
        let mut next = || {
            words
                .next()
                .ok_or("steps.tsv: a line of fewer than 4 columns")
        };
        Ok(Step {
            name: next()?,
            outcome: next()?,
            seconds: next()?.parse()?,
            note: next()?,
        })
    };
    text.lines().map(step).collect()
}

/// The tables of speeds: what is in the grid alone is there as the share of a copy.
pub fn speeds(machine: &Machine, rows: &[Measured]) -> String {
    let alone = |found: &&Measured| found.row.completes_the_grid();
    let mut text = format!(
        "{}\n",
        speed_table(machine, rows.iter().filter(|found| !alone(found)))
    );
    if !rows.iter().any(|found| alone(&found)) {
        return text;
    }
    let mut grids: BTreeMap<_, Vec<&Measured>> = BTreeMap::new();
    for found in rows.iter().filter(|found| found.row.grid) {
        let Row {
            op,
            direction,
            dtype,
            ..
        } = &found.row;
        let name = format!("{op} {direction} {dtype}");
        grids.entry(name).or_default().push(found);
    }
    for (name, rows) in grids {
        let _ = write!(text, "\n{name}, share of a copy:\n\n{}\n", grid(&rows));
    }
    text
}

/// The share of a copy by the number of rows, downwards, and of columns.
fn grid(rows: &[&Measured]) -> comfy_table::Table {
    let counts: BTreeSet<_> = rows.iter().map(|found| found.row.rows).collect();
    let columns: BTreeSet<_> = rows.iter().map(|found| found.row.cols).collect();
    let heads: Vec<_> = ["rows".to_owned()]
        .into_iter()
        .chain(columns.iter().map(u64::to_string))
        .collect();
    let heads: Vec<_> = heads.iter().map(String::as_str).collect();
    let mut table = table(&heads, &heads);
    for count in counts {
        let share = |cols: &u64| {
            let mut found = rows.iter();
            let found = found.find(|found| (found.row.rows, found.row.cols) == (count, *cols))?;
            Some(format!("{:.1} %", 100.0 * found.share_of_copy()?))
        };
        let shares = columns.iter().map(|cols| share(cols).unwrap_or_default());
        table.add_row([count.to_string()].into_iter().chain(shares));
    }
    table
}

/// A line for each row.
fn speed_table<'a>(
    machine: &Machine,
    rows: impl Iterator<Item = &'a Measured>,
) -> comfy_table::Table {
    let numbers = ["shape", "ms", "GB/s", "of copy", "of data sheet"];
    let heads = [
        "op",
        "form",
        "direction",
        "type",
        "shape",
        "input",
        "ms",
        "GB/s",
        "of copy",
        "of data sheet",
    ];
    let mut table = table(&heads, &numbers);
    for found in rows {
        let row = &found.row;
        let input = match (row.scale, row.masked) {
            (1.0, 0) => String::new(),
            (1.0, masked) => format!("{masked} % masked"),
            (scale, _) => format!("· {scale}"),
        };
        table.add_row([
            row.op.clone(),
            row.form.clone(),
            row.direction.clone(),
            row.dtype.clone(),
            format!("{} × {}", row.rows, row.cols),
            input,
            format!("{:.4}", found.ms),
            format!("{:.0}", found.gb_per_s()),
            found
                .share_of_copy()
                .map_or(String::new(), |s| format!("{:.1} %", 100.0 * s)),
            format!("{:.1} %", 100.0 * found.gb_per_s() / machine.sheet_gb_per_s),
        ]);
    }
    table
}

/// Bars of the quick rows: what share of a copy's speed each has.
fn share_of_copy(speed: &Speed) -> String {
    let rows = speed.rows.iter().filter(|found| found.row.quick);
    let bars = rows.filter_map(|found| {
        let row = &found.row;
        Some(Bar {
            name: format!(
                "{} {} {}, {} × {}",
                row.op, row.form, row.direction, row.rows, row.cols
            ),
            value: 100.0 * found.share_of_copy()?,
            colour: colour_of(&row.direction),
        })
    });
    plot::bars(
        "Share of a copy's speed, per cent",
        &[format!(
            "{}. Bytes are each input once and each output once.",
            speed.machine.device
        )],
        &bars.collect::<Vec<_>>(),
        100.0,
    )
}

/// Instructions per byte of the main loops, by entry: of `cargo xtask sass`, for sm_90.
fn instructions_per_byte() -> Result<BTreeMap<String, f64>> {
    let golden = include_str!("../../tests/golden/sass.md");
    let mut found = BTreeMap::new();
    for line in golden.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        // entry, arch, regs, shared, stack, spills, instr/e, MUFU/e, conv/e, B/e
        let [_, entry, "sm_90", _, _, _, _, instructions, _, _, bytes, ..] = cells[..] else {
            continue;
        };
        if bytes.is_empty() {
            continue;
        }
        let instructions: f64 = instructions.trim_start_matches('≤').trim().parse()?;
        found.insert(entry.to_owned(), instructions / bytes.parse::<f64>()?);
    }
    Ok(found)
}

/// The entry of a row's main loop.
fn entry(found: &Measured) -> String {
    let row = &found.row;
    let task = match (row.op.as_str(), row.direction.as_str(), row.form.as_str()) {
        ("cross_entropy", "forward", _) => "stats".to_owned(),
        ("cross_entropy", "backward", _) => "gradient".to_owned(),
        (_, direction, "plain") => direction.to_owned(),
        (_, direction, form) => format!("{form}_{direction}"),
    };
    format!("{}_{task}_{}", row.op, row.dtype)
}

/// What memory and the issue of instructions allow, and where the quick rows are.
fn roofline(speed: &Speed) -> Result<String> {
    /// Instructions that an SM of compute capability 8.0 and 9.0 issues in a clock, counted by thread.
    const LANES: f64 = 128.0;
    /// The boost clock that the budgets are made with, in GHz.
    const GHZ: f64 = 1.755;
    let per_byte = instructions_per_byte()?;
    let machine = &speed.machine;
    let issued = machine.sms as f64 * LANES * GHZ;
    let x = Axis {
        label: "instructions per byte".to_owned(),
        scale: Scale::Linear,
        min: 0.0,
        max: 12.0,
    };
    let y = Axis {
        label: "GB/s".to_owned(),
        scale: Scale::Linear,
        min: 0.0,
        max: (machine.sheet_gb_per_s * 1.1).ceil(),
    };
    let issue = Line {
        name: "issue of instructions / at 1.755 GHz".to_owned(),
        colour: colour::SKY,
        points: (1..=120)
            .map(|i| f64::from(i) / 10.0)
            .map(|x| (x, issued / x))
            .filter(|(_, speed)| *speed <= y.max)
            .collect(),
    };
    let panel = |op: &str| {
        let rows = speed.rows.iter();
        let rows = rows.filter(|found| found.row.quick && found.row.op == op);
        // Of several shapes, the first.
        let mut points = BTreeMap::new();
        for found in rows {
            let entry = entry(found);
            if let Some(&at) = per_byte.get(&entry) {
                points.entry(entry).or_insert((at, found));
            }
        }
        let points = points.into_values().map(|(at, found)| Line {
            name: match found.row.form.as_str() {
                "plain" => found.row.direction.clone(),
                form => format!("{form} {}", found.row.direction),
            },
            colour: colour_of(&found.row.direction),
            points: vec![(at, found.gb_per_s())],
        });
        Panel {
            title: op.to_owned(),
            x: x.clone(),
            y: y.clone(),
            lines: [issue.clone()].into_iter().chain(points).collect(),
            level: (machine.sheet_gb_per_s, "memory, data sheet".to_owned()),
        }
    };
    let mut ops: Vec<&str> = Vec::new();
    for found in &speed.rows {
        if per_byte.contains_key(&entry(found)) && !ops.contains(&found.row.op.as_str()) {
            ops.push(&found.row.op);
        }
    }
    Ok(plot::svg(&Plot {
        title: format!("Roofline, {}", machine.device),
        notes: vec![
            "Instructions of the main loops are those of tests/golden/sass.md for sm_90."
                .to_owned(),
        ],
        panels: ops.into_iter().map(panel).collect(),
    }))
}

fn colour_of(direction: &str) -> RGBColor {
    match direction {
        "forward" => colour::BLUE,
        "backward" => colour::VERMILION,
        "fused" => colour::PURPLE,
        _ => colour::SKY,
    }
}
