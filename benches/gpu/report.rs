//! The combined results of a run of the GPU bundle: Markdown, JSON and plots.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use plotters::style::RGBColor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xact_dev::files;
use xact_dev::plot::{self, Axis, Bar, Line, Panel, Plot, Scale, colour};
use xact_dev::table::table;

use crate::compare::Comparison;
use crate::devices::Goal;
use crate::measure::{Machine, Measured, Speed, median};
use crate::page;
use crate::rows::{COMPAT, Row};
use crate::work::Result;

/// A file that `benches/peers/torch_gpu.py` wrote.
#[derive(Debug, Deserialize)]
pub struct Peers {
    /// The versions of torch, triton and other packages; `null` for missing ones.
    pub versions: BTreeMap<String, Option<String>>,
    pub rows: Vec<Peer>,
}

/// A peer's time for one of our rows.
#[derive(Debug, Deserialize)]
pub struct Peer {
    /// [`Row::name`](crate::rows::Row::name).
    pub name: String,
    pub peer: String,
    /// `null` if the peer failed.
    pub ms: Option<f64>,
    pub error: Option<String>,
}

/// A step of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    pub name: String,
    /// `passed`, `FAILED` or `not run`.
    pub outcome: String,
    pub seconds: u64,
    /// The reason, or the numbers that the step counted.
    pub note: String,
}

/// The command `gpu report`: reads the results of `run.sh` in `parts`, and writes to `out`.
pub fn write(parts: &Path, out: &Path) -> Result<ExitCode> {
    let parts = Parts::read(parts)?;
    fs::create_dir_all(out)?;
    let put = |name: &str, text: &str| files::replace(&out.join(name), text.as_bytes());
    let page = page::of(&parts);
    put("page.md", &page)?;
    put("report.md", &parts.markdown())?;
    put(
        "results.json",
        &serde_json::to_string_pretty(&parts.json())?,
    )?;
    if let Some(speed) = &parts.speed {
        put("shares.svg", &shares(speed))?;
        put("roofline.svg", &roofline(speed)?)?;
    }
    print!("{page}");
    Ok(ExitCode::SUCCESS)
}

/// All results of a run.
#[derive(Default)]
pub struct Parts {
    pub steps: Vec<Step>,
    /// The description of the machine.
    pub machine: String,
    /// The clocks and power, from nvidia-smi.
    pub facts: String,
    /// The output of ncu for the profiled rows.
    pub profiles: String,
    pub speed: Option<Speed>,
    pub comparison: Option<Comparison>,
    /// Our measurements before and after the peers.
    pub ours: Vec<Speed>,
    pub peers: Option<Peers>,
    /// By the name of the geometry, including [`PRESENT`].
    pub tuning: BTreeMap<String, Speed>,
    /// By the choices of the launches, including [`PRESENT`].
    pub choices: BTreeMap<String, Speed>,
    /// The files that cannot be read, with the reasons.
    pub unreadable: Vec<String>,
}

/// The maximum number of characters of a note; a test may print a line of megabytes.
const NOTE: usize = 200;

impl Parts {
    /// Reads a folder. The results of a step that did not run are missing. A file that was cut off is skipped, so that the
    /// other results are kept.
    pub fn read(folder: &Path) -> Result<Parts> {
        let mut parts = Parts::default();
        let mut names: Vec<_> = fs::read_dir(folder)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        for name in names {
            let path = folder.join(&name);
            if path.is_file()
                && let Err(e) = parts.read_file(&path, &name)
            {
                parts.unreadable.push(format!("{name}: {e}"));
            }
        }
        Ok(parts)
    }

    fn read_file(&mut self, path: &Path, name: &str) -> Result<()> {
        // The output of a program may end within a character.
        let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        match (stem, extension) {
            ("steps", "tsv") => {
                for line in text.lines() {
                    match step(line) {
                        Ok(step) => self.steps.push(step),
                        Err(e) => self.unreadable.push(format!("{name}: {line}: {e}")),
                    }
                }
            }
            ("machine", "txt") => self.machine = text.trim().to_owned(),
            ("facts", "txt") => self.facts = text.trim().to_owned(),
            ("ncu", "txt") => self.profiles = text.trim().to_owned(),
            ("speed", "json") => self.speed = Some(serde_json::from_str(&text)?),
            ("compare", "json") => self.comparison = Some(serde_json::from_str(&text)?),
            (stem, "json") if stem.starts_with("ours-") => {
                self.ours.push(serde_json::from_str(&text)?);
            }
            ("peers", "json") => self.peers = Some(serde_json::from_str(&text)?),
            (stem, "json") => {
                for (kind, tried) in [
                    ("tuning-", &mut self.tuning),
                    ("choice-", &mut self.choices),
                ] {
                    if let Some(name) = stem.strip_prefix(kind) {
                        tried.insert(name.to_owned(), serde_json::from_str(&text)?);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The table of the steps, and the totals.
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
        for file in &self.unreadable {
            let _ = writeln!(text, "\nunreadable: {file}");
        }
        if let Some(comparison) = &self.comparison {
            let _ = write!(
                text,
                "\n## Emulator and device\n\n{}",
                comparison.in_words()
            );
        }
        if let Some(speed) = &self.speed {
            let _ = write!(text, "\n## Speed\n\n{}", speed_in_words(speed));
            text += "\n![shares](shares.svg)\n\n![roofline](roofline.svg)\n";
        }
        if let Some(peers) = &self.peers {
            let _ = write!(text, "\n## Peers\n\n{}", self.peers_in_words(peers));
        }
        for (head, tried, names) in [
            ("Choices of launches", &self.choices, "`run.sh`"),
            ("Geometry", &self.tuning, "`xtask/src/bundle.rs`"),
        ] {
            if !tried.is_empty() {
                let _ = write!(text, "\n## {head}\n\n{}", tried_in_words(tried, names));
            }
        }
        for (head, said) in [("Profiles", &self.profiles), ("Device", &self.facts)] {
            if !said.is_empty() {
                let _ = write!(text, "\n## {head}\n\n```text\n{said}\n```\n");
            }
        }
        text
    }

    /// All results as JSON.
    pub fn json(&self) -> Value {
        json!({
            "steps": self.steps,
            "unreadable": self.unreadable,
            "machine": self.machine,
            "speed": self.speed,
            "comparison": self.comparison,
            "peers": self.peer_rows(),
            "peer_versions": self.peers.as_ref().map(|peers| &peers.versions),
            "choices": self.choices,
            "tuning": self.tuning,
        })
    }

    /// A line for each of our rows and each peer that runs it, with the median of our measurements.
    pub fn peer_rows(&self) -> Vec<PeerRow> {
        let middle = |mut values: Vec<f64>| (!values.is_empty()).then(|| median(&mut values));
        let rows = self.peers.iter().flat_map(|peers| &peers.rows);
        rows.map(|theirs| {
            let ours = self.ours.iter().flat_map(|speed| &speed.rows);
            let ours: Vec<_> = ours.filter(|row| row.name == theirs.name).collect();
            PeerRow {
                row: theirs.name.clone(),
                peer: theirs.peer.clone(),
                ms: middle(ours.iter().map(|row| row.ms).collect()),
                yardstick_ms: middle(ours.iter().map(|row| row.yardstick_ms).collect()),
                peer_ms: theirs.ms,
                error: theirs.error.clone(),
            }
        })
        .collect()
    }

    fn peers_in_words(&self, peers: &Peers) -> String {
        let heads = [
            "row",
            "xact ms",
            "of yardstick",
            "peer",
            "peer ms",
            "its share",
            "times as fast",
        ];
        let mut table = table(&heads, &heads);
        let percent = |yardstick: Option<f64>, ms: Option<f64>| match (yardstick, ms) {
            (Some(yardstick), Some(ms)) => format!("{:.0} %", 100.0 * yardstick / ms),
            _ => String::new(),
        };
        let time = |ms: Option<f64>| ms.map_or("none".to_owned(), |ms| format!("{ms:.4}"));
        for row in self.peer_rows() {
            table.add_row([
                row.row.clone(),
                time(row.ms),
                percent(row.yardstick_ms, row.ms),
                row.peer.clone(),
                row.error.clone().unwrap_or_else(|| time(row.peer_ms)),
                percent(row.yardstick_ms, row.peer_ms),
                row.ratio().map_or(String::new(), |r| format!("{r:.2}")),
            ]);
        }
        let known = peers.versions.iter();
        let versions: Vec<_> = known
            .map(|(name, version)| format!("{name} {}", version.as_deref().unwrap_or("not there")))
            .collect();
        format!(
            "{table}\n\nOurs before and after theirs on the same device, shares of the yardstick of our row. {}.\n",
            versions.join(", ")
        )
    }
}

/// The runs to compare with.
pub const PRESENT: &str = "present";

/// The share of the yardstick of every row, in the present and in the other runs.
fn tried_in_words(tried: &BTreeMap<String, Speed>, names: &str) -> String {
    let keys: Vec<_> = tried.keys().map(String::as_str).collect();
    let heads = [&["row"][..], &keys, &["best"]].concat();
    let mut table = table(&heads, &keys);
    let mut rows: Vec<&str> = Vec::new();
    for row in tried.values().flat_map(|speed| &speed.rows) {
        if !rows.contains(&row.name.as_str()) {
            rows.push(&row.name);
        }
    }
    for name in rows {
        let share = |speed: &Speed| {
            let row = speed.rows.iter().find(|row| row.name == name)?;
            row.share()
        };
        let shares: Vec<_> = tried.values().map(share).collect();
        let best = (0..shares.len())
            .max_by(|&a, &b| f64::total_cmp(&shares[a].unwrap_or(0.0), &shares[b].unwrap_or(0.0)));
        let cells = shares
            .iter()
            .map(|share| share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share)));
        let best = best.map_or(String::new(), |best| keys[best].to_owned());
        table.add_row([name.to_owned()].into_iter().chain(cells).chain([best]));
    }
    format!(
        "{table}\n\nShares of the yardstick in the same process; {names} says what the names mean.\n"
    )
}

/// One of our rows and a peer's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerRow {
    pub row: String,
    pub peer: String,
    pub ms: Option<f64>,
    pub yardstick_ms: Option<f64>,
    pub peer_ms: Option<f64>,
    /// The reason why the peer has no time.
    pub error: Option<String>,
}

impl PeerRow {
    /// The peer's time divided by ours.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.peer_ms? / self.ms?)
    }
}

fn step(line: &str) -> Result<Step> {
    let mut words = line.splitn(4, '\t').map(str::to_owned);
    let mut next = || words.next().ok_or("a line of fewer than 4 columns");
    Ok(Step {
        name: next()?,
        outcome: next()?,
        seconds: next()?.parse()?,
        note: next()?.chars().take(NOTE).collect(),
    })
}

/// The tables of a run of the bench.
pub fn speed_in_words(speed: &Speed) -> String {
    let machine = &speed.machine;
    let mut text = format!(
        "{}\n\n{}\n{}: {} SMs, {:.0} MB of L2, {:.0} GB/s by {}. Medians of samples in turn; bytes are each input once \
         and each output\nonce. A cross-entropy that writes no gradient is held against the kernel that only reads, all \
         else against the fastest of\nthe copies at as many bytes, which the column names; so is a mask that decides by the place alone, though it only \
         writes. Where memory takes less time \
         than launches, the time is in µs\nand no share is given.\n",
        yardsticks(speed),
        speeds(machine, &speed.rows),
        machine.device,
        machine.sms,
        machine.l2_bytes as f64 / 1e6,
        machine.memory.gb_per_s(),
        machine.memory.source(),
    );
    let _ = writeln!(text, "{}", clocks_in_words(speed));
    let goals = goals(speed);
    if !goals.is_empty() {
        let heads = ["goal of", "goal", "measured", "verdict"];
        let mut table = table(&heads, &heads[2..3]);
        for (found, goal) in goals {
            let [goal_in_words, measured] = goal.in_words(found);
            table.add_row([
                found.name.clone(),
                goal_in_words,
                measured,
                verdict(goal.is_met(found)).to_owned(),
            ]);
        }
        let _ = write!(text, "\n{table}\n");
    }
    for (name, why) in &speed.without {
        let _ = writeln!(text, "{name}: {why}");
    }
    text
}

/// The state of a goal.
pub fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

/// The rows that have a goal on their device.
pub fn goals(speed: &Speed) -> Vec<(&Measured, Goal)> {
    let rows = speed.rows.iter();
    rows.filter_map(|found| Some((found, Goal::of(&speed.machine.device, &found.row)?)))
        .collect()
}

/// The table of the yardsticks.
pub fn yardsticks(speed: &Speed) -> comfy_table::Table {
    let memory = speed.machine.memory;
    let of = format!("of {}", memory.source());
    let heads = ["yardstick", "GB/s", of.as_str()];
    let mut table = table(&heads, &heads[1..]);
    for (yardstick, gb_per_s) in &speed.yardsticks {
        table.add_row([
            yardstick.name().to_owned(),
            format!("{gb_per_s:.0}"),
            format!("{:.1} %", 100.0 * gb_per_s / memory.gb_per_s()),
        ]);
    }
    table
}

pub fn clocks_in_words(speed: &Speed) -> String {
    match speed.clocks {
        Some(clocks) => format!(
            "SM clock while it ran: {} to {} MHz, median {}.",
            clocks.least, clocks.most, clocks.median
        ),
        None => "SM clock: nothing here samples it.".to_owned(),
    }
}

/// The tables of speeds. Rows that are only in the grid have only the share of a yardstick.
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
        let _ = write!(
            text,
            "\n{name}, share of the yardstick:\n\n{}\n",
            grid(&rows)
        );
    }
    text
}

/// The share of the yardstick, or the time if launches dominate, with the number of rows downwards and of columns to the
/// right.
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
            Some(if found.is_bound_by_launches() {
                found.time()
            } else {
                found.share_in_words()
            })
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
    let of = format!("of {}", machine.memory.source());
    let numbers = ["shape", "time", "GB/s", "share", of.as_str()];
    let heads = [
        "op",
        "form",
        "direction",
        "type",
        "shape",
        "input",
        "time",
        "GB/s",
        "share",
        "yardstick",
        of.as_str(),
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
            found.time(),
            format!("{:.0}", found.gb_per_s()),
            found.share_in_words(),
            found.yardstick.name().to_owned(),
            format!(
                "{:.1} %",
                100.0 * found.gb_per_s() / machine.memory.gb_per_s()
            ),
        ]);
    }
    table
}

/// A bar chart of the quick rows: the share of each yardstick's speed.
fn shares(speed: &Speed) -> String {
    let rows = speed.rows.iter();
    let rows = rows.filter(|found| found.row.quick && !found.is_bound_by_launches());
    let bars = rows.filter_map(|found| {
        let row = &found.row;
        Some(Bar {
            name: format!(
                "{} {} {}, {} × {}",
                row.op, row.form, row.direction, row.rows, row.cols
            ),
            value: 100.0 * found.share()?,
            colour: colour_of(&row.direction),
        })
    });
    plot::bars(
        "Share of the yardstick's speed, per cent",
        &[format!(
            "{}. Bytes are each input once and each output once; cross-entropy forward is held against a kernel that \
             only reads, all else against the fastest copy.",
            speed.machine.device
        )],
        &bars.collect::<Vec<_>>(),
        100.0,
    )
}

/// Instructions per byte of the main loops by entry, from the first table of `cargo xtask sass` for sm_90. Entries with two
/// loops are left out, because their figures are only for the first.
fn instructions_per_byte() -> Result<BTreeMap<String, f64>> {
    let golden = include_str!("../../tests/golden/sass.md");
    let mut lines = golden
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let heads = lines.next().ok_or("tests/golden/sass.md has no table")?;
    let column = |name: &str| {
        let at = heads.iter().position(|head| *head == name);
        at.ok_or_else(|| format!("tests/golden/sass.md has no column {name}"))
    };
    let (entry, arch) = (column("entry")?, column("arch")?);
    let (instructions, bytes) = (column("instr/e")?, column("B/e")?);
    let mut found = BTreeMap::new();
    for cells in lines.filter(|cells| cells[arch] == "sm_90" && !cells[bytes].is_empty()) {
        if ["_fused_", "_cluster_"]
            .iter()
            .any(|two| cells[entry].contains(two))
        {
            continue;
        }
        let of_element: f64 = cells[instructions].trim_start_matches('≤').trim().parse()?;
        found.insert(
            cells[entry].to_owned(),
            of_element / cells[bytes].parse::<f64>()?,
        );
    }
    Ok(found)
}

/// The entry with a row's main loop.
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

/// The limits of memory and of instruction issue, and the quick rows.
fn roofline(speed: &Speed) -> Result<String> {
    /// The instructions that an SM of compute capability 8.0 and 9.0 issues per clock, counted per thread.
    const LANES: f64 = 128.0;
    let per_byte = instructions_per_byte()?;
    let machine = &speed.machine;
    let (mhz, whose) = match speed.clocks {
        Some(clocks) => (clocks.median, "median of the run"),
        None => (machine.most_mhz, "the device's highest"),
    };
    let issued = machine.sms as f64 * LANES * mhz / 1e3;
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
        max: (machine.memory.gb_per_s() * 1.1).ceil(),
    };
    let issue = Line {
        name: format!("issue of instructions / at {mhz:.0} MHz, {whose}"),
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
        // If there are several shapes, the first.
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
            level: (
                machine.memory.gb_per_s(),
                format!("memory, {}", machine.memory.source()),
            ),
        }
    };
    // The listing has the loop of one variant; a point for another variant would be wrong.
    let quick = speed.rows.iter().filter(|found| found.row.quick);
    let left_out: BTreeSet<&str> = quick
        .filter(|found| !per_byte.contains_key(&entry(found)))
        .map(|found| match (&*found.row.form, &*found.row.direction) {
            (COMPAT, _) => COMPAT,
            (_, direction) => direction,
        })
        .collect();
    let mut ops: Vec<&str> = Vec::new();
    for found in &speed.rows {
        if per_byte.contains_key(&entry(found)) && !ops.contains(&found.row.op.as_str()) {
            ops.push(&found.row.op);
        }
    }
    Ok(plot::svg(&Plot {
        title: format!("Roofline, {}", machine.device),
        notes: [
            "Instructions of the main loops are those of tests/golden/sass.md for sm_90."
                .to_owned(),
        ]
        .into_iter()
        .chain((!left_out.is_empty()).then(|| {
            let left_out: Vec<_> = left_out.into_iter().collect();
            format!(
                "Left out, since it counts other loops: {}.",
                left_out.join(", ")
            )
        }))
        .collect(),
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
