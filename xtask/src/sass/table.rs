//! The entries, their figures, and the table of them for the terminal, as JSON and as golden file.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, bail};

use super::geometry;
use super::mark::Label;
use super::path::{Counts, Work};

/// The resources of an entry as ptxas reports them, in bytes except for the registers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The number of 32-bit registers per thread.
    pub registers: u64,
    /// Static shared memory per block.
    pub shared: u64,
    /// Stack frame per thread.
    pub stack: u64,
    /// Stores of spilled registers.
    pub spill_stores: u64,
    /// Loads of spilled registers.
    pub spill_loads: u64,
}

/// An entry whose main loop is counted. The name is `<op>_[gated1_|gated2_]{forward,backward}_{f32,f16,bf16}`, or that of
/// cross-entropy's `stats` and `gradient`. `fused` and `cluster` have both loops of those, of which the first is counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    packs: u64,
    inputs: usize,
    outputs: usize,
    dtype: &'static str,
    /// The maximum of instructions per element on sm_90.
    budget: Option<f64>,
}

impl Entry {
    /// `None` for other kinds of entries.
    pub fn parse(name: &str) -> Option<Self> {
        let (rest, dtype) = name.rsplit_once('_')?;
        let dtype = ["f32", "f16", "bf16"]
            .into_iter()
            .find(|known| *known == dtype)?;
        let (op, task) = rest.rsplit_once('_')?;
        let gated = usize::from(op.ends_with("_gated1") || op.ends_with("_gated2"));
        let (packs, inputs, outputs, budget) = match task {
            // Reads x and, in gated forms, v; writes y.
            "forward" => (geometry::PACKS, 1 + gated, 1, Some([20.0, 24.0][gated])),
            // Reads dy too; writes dx and, in gated forms, dv.
            "backward" => (
                geometry::PACKS,
                2 + gated,
                1 + gated,
                Some([33.0, 41.0][gated]),
            ),
            "stats" => (geometry::ROW_PACKS, 1, 0, None),
            "gradient" => (geometry::ROW_PACKS, 1, 1, None),
            "fused" | "cluster" => (geometry::ROW_PACKS, 1, 0, None),
            _ => return None,
        };
        Some(Self {
            packs,
            inputs,
            outputs,
            dtype,
            budget: budget.filter(|_| dtype != "f32"),
        })
    }

    /// The entry as it is if it writes y too. The budget grows with the bytes.
    pub fn with_y(&self, with_y: bool) -> Self {
        if !with_y {
            return self.clone();
        }
        let outputs = self.outputs + 1;
        let longer = Self {
            outputs,
            ..self.clone()
        };
        let share = longer.traffic() as f64 / self.traffic() as f64;
        Self {
            budget: self.budget.map(|budget| budget * share),
            ..longer
        }
    }

    /// The loop of the table of entries: of those that do not write y, the one with the fewest instructions. In flight is
    /// what all of them have.
    pub fn main_loop(self, loops: &[Loop]) -> Option<(Self, Counts)> {
        let plain = loops.iter().filter(|l| !l.label.with_y);
        let fewest = plain.map(|l| l.counts).min_by_key(|c| c.instructions)?;
        let in_flight = loops.iter().map(|l| l.counts.in_flight).min()?;
        Some((
            self,
            Counts {
                in_flight,
                ..fewest
            },
        ))
    }

    fn element_bytes(&self) -> u64 {
        if self.dtype == "f32" { 4 } else { 2 }
    }

    /// The work of one iteration of the main loop.
    pub fn work(&self) -> Work {
        Work {
            packs: usize::try_from(self.packs).expect("small"),
            inputs: self.inputs,
            outputs: self.outputs,
        }
    }

    /// The bytes to move per element: every input once and every output once.
    fn traffic(&self) -> u64 {
        self.element_bytes() * (self.inputs + self.outputs) as u64
    }

    /// The elements of one iteration of a thread.
    fn elements(&self) -> u64 {
        self.packs * geometry::VECTOR_BYTES / self.element_bytes()
    }

    /// The bytes that a thread should request before it waits: a whole tile, or [`BYTES_OF_INPUT`] for each input.
    fn wanted_in_flight(&self) -> u64 {
        (self.packs * geometry::VECTOR_BYTES).max(BYTES_OF_INPUT) * self.inputs as u64
    }

    /// The bytes that a multiprocessor should request before its threads wait.
    fn wanted_of_multiprocessor(&self) -> u64 {
        if self.inputs > 1 { 48 << 10 } else { 32 << 10 }
    }

    fn figures(&self, counts: Counts) -> Figures {
        let per_element = |count: usize| count as f64 / self.elements() as f64;
        Figures {
            instructions: per_element(counts.instructions),
            mufu: per_element(counts.mufu),
            conversions: per_element(counts.conversions),
            traffic: self.traffic(),
        }
    }
}

/// The bytes of each input that a thread requests before it waits. With the number of threads that the registers allow,
/// this keeps the memory of an H100 (32 KiB per multiprocessor) and an H200 (48 KiB) busy.
const BYTES_OF_INPUT: u64 = 32;

/// The registers of a multiprocessor, for compute capability 8.0 to 12.1.
const REGISTERS: u64 = 65_536;

/// A warp of 32 threads gets registers in units of 256.
const REGISTERS_STEP: u64 = 8;

/// Instructions per element.
struct Figures {
    instructions: f64,
    mufu: f64,
    conversions: f64,
    traffic: u64,
}

/// A device, with the figures of its data sheet.
struct Device {
    name: &'static str,
    architecture: u32,
    multiprocessors: f64,
    hertz: f64,
    bytes_per_second: f64,
}

const H100: Device = Device {
    name: "H100",
    architecture: 90,
    multiprocessors: 132.0,
    hertz: 1.755e9,
    bytes_per_second: 3.35e12,
};

const H200: Device = Device {
    name: "H200",
    bytes_per_second: 4.8e12,
    ..H100
};

const B200: Device = Device {
    name: "B200",
    architecture: 100,
    multiprocessors: 148.0,
    hertz: 1.965e9,
    bytes_per_second: 8.0e12,
};

/// The devices of the table, in the order of its columns.
const DEVICES: [Device; 3] = [H100, H200, B200];

impl Device {
    /// The clocks per SM that memory needs for `bytes`, times the number of SMs.
    fn sm_clocks(&self, bytes: u64) -> f64 {
        self.multiprocessors * self.hertz / self.bytes_per_second * bytes as f64
    }

    /// The shares of the budget that the instructions (128 lanes per clock) and MUFU (16 per clock) take. 1 is the time
    /// that memory needs for the element at its full bandwidth.
    fn shares(&self, figures: &Figures) -> [f64; 2] {
        let clocks = self.sm_clocks(figures.traffic);
        [
            figures.instructions / (128.0 * clocks),
            figures.mufu / (16.0 * clocks),
        ]
    }
}

/// An entry on an architecture.
pub struct Row {
    /// The name of the entry.
    pub entry: String,
    /// The architecture: 90 for sm_90.
    pub architecture: u32,
    /// The resources that ptxas reports.
    pub resources: Resources,
    /// The counts of the main loop, if the entry has one that is counted.
    pub main_loop: Option<(Entry, Counts)>,
    /// The marked loops.
    pub loops: Vec<Loop>,
}

/// A marked loop of an entry.
pub struct Loop {
    /// What the mark says.
    pub label: Label,
    /// The instructions on the hot path.
    pub counts: Counts,
}

/// Loops that exceed the budget, with the least that was found and why it is not less.
struct Above {
    /// The op and the functor, which is empty if there is one only.
    op: &'static str,
    functor: &'static str,
    /// The maximum of instructions per element of the forward and the backward, and of the gated ones.
    limits: [f64; 4],
    reason: &'static str,
}

/// Why loops that write y again exceed the budget.
const TWO_FORMULAS: &str =
    "y has the bits of a forward, so its formula is computed beside that of the derivative";

/// Why the clamped functor of xIELU exceeds the budget.
const CLAMPED: &str =
    "y again as in other ops; without it f16 takes 33.25, of which the tie at eps is one select";

/// Why the general functor of xIELU exceeds the budget.
const RARE: &str = "for parameters that training leaves alone (an α_p or s_n of 0, not finite, or with a clamp an s_n below \
     2^-12·β), with the formulas of f32 for every type";

const ABOVE: [Above; 5] = [
    Above {
        op: "xatlu",
        functor: "any",
        limits: [0.0, 47.0, 0.0, 54.2],
        reason: TWO_FORMULAS,
    },
    Above {
        op: "xatlu",
        functor: "zero",
        limits: [0.0, 45.8, 0.0, 52.7],
        reason: TWO_FORMULAS,
    },
    Above {
        op: "xatlu",
        functor: "minusone",
        limits: [0.0, 47.6, 0.0, 55.9],
        reason: TWO_FORMULAS,
    },
    Above {
        op: "xielu",
        functor: "clamped",
        limits: [0.0, 50.2, 0.0, 0.0],
        reason: CLAMPED,
    },
    Above {
        op: "xielu",
        functor: "general",
        limits: [60.0, 114.0, 0.0, 0.0],
        reason: RARE,
    },
];

impl Above {
    fn is_of(&self, entry: &str, label: &Label) -> bool {
        let of_op = entry
            .strip_prefix(self.op)
            .is_some_and(|rest| rest.starts_with('_'));
        of_op && label.functor == self.functor
    }

    fn limit(&self, entry: &str) -> f64 {
        let gated = entry.contains("_gated");
        let backward = entry.contains("_backward_");
        self.limits[usize::from(backward) + 2 * usize::from(gated)]
    }
}

/// The entries of [`ABOVE`] whose loops are all within the budget.
pub fn not_above(rows: &[Row]) -> Vec<String> {
    let is_needed = |above: &Above| {
        let mut loops = rows
            .iter()
            .flat_map(|row| row.loops.iter().map(move |l| (row, l)));
        // With an op alone, the others have no rows.
        let mut any = false;
        let exceeds = loops.any(|(row, l)| {
            let is_of = above.is_of(&row.entry, &l.label);
            any |= is_of;
            is_of && row.excess(l).is_some()
        });
        exceeds || !any
    };
    let needless = ABOVE.iter().filter(|above| !is_needed(above));
    let text = |above: &Above| {
        let (op, functor) = (above.op, above.functor);
        format!("{op} {functor}: every loop is within the budget, so table.rs needs no reason")
    };
    needless.map(text).collect()
}

impl Row {
    /// The instructions per element of a loop that exceeds the budget, and the budget.
    fn excess(&self, of: &Loop) -> Option<[f64; 2]> {
        let (entry, _) = self
            .main_loop
            .as_ref()
            .filter(|_| self.architecture == 90)?;
        let entry = entry.with_y(of.label.with_y);
        let instructions = entry.figures(of.counts).instructions;
        let budget = entry.budget?;
        (instructions > budget).then_some([instructions, budget])
    }

    /// Whether the entry belongs to this op.
    pub fn is_of(&self, op: &str) -> bool {
        self.entry
            .strip_prefix(op)
            .is_some_and(|rest| rest.starts_with('_'))
    }

    /// The threads of a multiprocessor that the registers allow, at most 2048.
    fn threads(&self) -> u64 {
        let of_thread = self.resources.registers.next_multiple_of(REGISTERS_STEP);
        let blocks = REGISTERS / (of_thread * geometry::BLOCK);
        (blocks * geometry::BLOCK).min(2048)
    }

    /// The bytes that a thread and a multiprocessor have requested when they first wait.
    fn in_flight(&self) -> Option<[u64; 2]> {
        let (_, counts) = self.main_loop.as_ref()?;
        let of_thread = counts.in_flight as u64 * geometry::VECTOR_BYTES;
        Some([of_thread, of_thread * self.threads()])
    }

    /// The shares of each device's budget, if the code is for it.
    fn shares(&self) -> [Option<[f64; 2]>; 3] {
        DEVICES.map(|device| {
            let (entry, counts) = self.main_loop.as_ref()?;
            (self.architecture == device.architecture)
                .then(|| device.shares(&entry.figures(*counts)))
        })
    }

    /// The violations of the limits, as texts.
    pub fn problems(&self) -> Vec<String> {
        let at = format!("{} for sm_{}", self.entry, self.architecture);
        let mut problems = Vec::new();
        let spills = self.resources.spill_stores + self.resources.spill_loads;
        if spills > 0 {
            problems.push(format!("{at} spills registers"));
        }
        if let (Some((entry, _)), Some([of_thread, of_all])) = (&self.main_loop, self.in_flight()) {
            let wanted = entry.wanted_in_flight();
            if of_thread < wanted {
                problems.push(format!(
                    "{at}: a thread waits when it has asked for {of_thread} bytes, not {wanted}"
                ));
            }
            let wanted = entry.wanted_of_multiprocessor();
            if of_all < wanted {
                problems.push(format!(
                    "{at}: a multiprocessor asks for {:.0} KiB at once, not {}",
                    of_all as f64 / 1024.0,
                    wanted >> 10
                ));
            }
        }
        let is_bf16 = self
            .main_loop
            .as_ref()
            .is_some_and(|(entry, _)| entry.dtype == "bf16");
        for l in &self.loops {
            let Some([instructions, budget]) = self.excess(l) else {
                continue;
            };
            let above = ABOVE
                .iter()
                .find(|above| above.is_of(&self.entry, &l.label));
            let limit = above.map_or(budget, |above| above.limit(&self.entry));
            if instructions > limit {
                let reason = above.map_or("", |above| above.reason);
                problems.push(format!(
                    "{at}{}: {instructions:.2} instructions per element, more than {limit} {reason}",
                    l.label.suffix()
                ));
            }
        }
        if is_bf16 && let [Some(h100), ..] = self.shares() {
            for (share, what) in h100.into_iter().zip(["instructions", "MUFU"]) {
                if share > 1.0 {
                    problems.push(format!(
                        "{at}: its {what} take {:.0} % of the budget of the {}",
                        share * 100.0,
                        H100.name
                    ));
                }
            }
        }
        problems
    }

    /// A line of the table, without the newline. The widths are fixed, so a new row does not change the others.
    fn line(&self) -> String {
        let resources = &self.resources;
        let mut line = format!(
            "| {:<28} | sm_{:<4} | {:>4} | {:>6} | {:>5} | {:>6} |",
            self.entry,
            self.architecture,
            resources.registers,
            resources.shared,
            resources.stack,
            format!("{}/{}", resources.spill_stores, resources.spill_loads),
        );
        let flight = self.in_flight();
        for (place, unit, width) in [(0, 1, 6), (1, 1024, 6)] {
            let cell = flight.map_or(String::new(), |bytes| (bytes[place] / unit).to_string());
            let _ = write!(line, " {cell:>width$} |");
        }
        let cells = match &self.main_loop {
            None => vec![String::new(); 4],
            Some((entry, counts)) => {
                let figures = entry.figures(*counts);
                vec![
                    bounded(*counts, figures.instructions),
                    bounded(*counts, figures.mufu),
                    bounded(*counts, figures.conversions),
                    figures.traffic.to_string(),
                ]
            }
        };
        for (cell, width) in cells.into_iter().zip([7, 6, 6, 5]) {
            let _ = write!(line, " {cell:>width$} |");
        }
        for share in self.shares() {
            let cell = share.map_or(String::new(), |share| {
                let [instructions, mufu] = share.map(|share| share * 100.0);
                format!("{instructions:.0}/{mufu:.0}")
            });
            let _ = write!(line, " {cell:>7} |");
        }
        line
    }

    /// The lines of the table of loops. Only for the architectures of [`DEVICES`].
    fn loop_lines(&self) -> impl Iterator<Item = String> {
        let main_loop = self.main_loop.as_ref();
        let devices: Vec<_> = [H200, B200]
            .into_iter()
            .filter(|device| device.architecture == self.architecture)
            .collect();
        devices.into_iter().flat_map(move |device| {
            self.loops.iter().filter_map(move |l| {
                let entry = main_loop?.0.with_y(l.label.with_y);
                let figures = entry.figures(l.counts);
                let budget = entry.budget.filter(|_| device.architecture == 90);
                Some(format!(
                    "| {:<44} | sm_{:<4} | {:>4} | {:>6} | {:>7} | {:>6} | {:>6} | {:>4} | {:>4} | {:>5} |",
                    format!("{}{}", self.entry, l.label.suffix()),
                    self.architecture,
                    l.label.sums,
                    l.counts.in_flight as u64 * geometry::VECTOR_BYTES,
                    bounded(l.counts, figures.instructions),
                    bounded(l.counts, figures.mufu),
                    budget.map_or(String::new(), |budget| format!("{budget:.1}")),
                    device.name,
                    format!("{:.0}", device.shares(&figures)[0] * 100.0),
                    figures.traffic,
                ))
            })
        })
    }
}

/// A figure per element, with a sign if it is a bound.
fn bounded(counts: Counts, figure: f64) -> String {
    let bound = if counts.beside > 0 { "≤ " } else { "" };
    format!("{bound}{figure:.2}")
}

const HEAD: &str = "\
| entry                        | arch    | regs | shared | stack | spills | flight | KiB/SM | instr/e | MUFU/e | conv/e | B/e   | H100 %  | H200 %  | B200 %  |
| ---------------------------- | ------- | ---: | -----: | ----: | -----: | -----: | -----: | ------: | -----: | -----: | ----: | ------: | ------: | ------: |
";

const LOOPS_HEAD: &str = "\
| loop                                         | arch    | sums | flight | instr/e | MUFU/e | budget | of   |    % | B/e   |
| -------------------------------------------- | ------- | ---: | -----: | ------: | -----: | -----: | ---- | ---: | ----: |
";

/// The tables of entries and of loops, with their heads.
pub fn text(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
    }
    text.push('\n');
    text.push_str(LOOPS_HEAD);
    for line in rows.iter().flat_map(Row::loop_lines) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The text before the release of nvcc in the golden file.
const VERSION: &str = "Release of nvcc: ";

/// The content of the golden file.
pub fn golden(rows: &[Row], version: &str) -> String {
    format!(
        "# Static cost of the kernels\n\
         \n\
         Written by `cargo xtask sass --golden-update`; `cargo xtask sass` compares with it. The PTX that the \
         crate ships, assembled by ptxas.\n\
         \n\
         {VERSION}{version}\n\
         \n\
         - shared, stack, spills (stores/loads): bytes\n\
         - flight: bytes that a thread has asked for before the first instruction that waits for some of them, in \
         the main loop below; KiB/SM: the same of all threads of a multiprocessor that the registers allow\n\
         - instr/e, MUFU/e, conv/e: instructions per element that a thread issues in the main loop, on the way \
         of whole, 16-byte aligned packs through the variant of the op with the fewest, in a backward with the \
         sums of the parameter gradients; all of them, those of the special-function unit, and conversions. \
         ≤: with both sides of branches on data\n\
         - B/e: bytes per element, each input and output once; of cross-entropy's fused and cluster, these and the \
         figures before are of the loop that reads the logits\n\
         - H100 %, H200 %, B200 %: share of the time that memory needs for these bytes at its full speed, \
         instructions/MUFU\n\
         - the second table has every main loop of the activations: the functor, if the op has several; y, if a \
         backward writes y again; sums: the parameter gradients that are summed; budget: the maximum of instr/e; \
         of, %: the share of that device's issue slots\n\
         \n\
         {}",
        text(rows)
    )
}

/// The release of nvcc that a golden file names.
pub fn golden_version(golden: &str) -> Option<&str> {
    golden
        .lines()
        .find_map(|line| line.strip_prefix(VERSION))
        .map(str::trim)
}

/// The lines of the golden file that differ, with `-`, and the new lines, with `+`. With an op, only its entries are
/// compared.
pub fn differences(golden: &str, rows: &[Row], op: Option<&str>) -> Vec<String> {
    let counts = |line: &&str| match op {
        None => true,
        Some(op) => line.starts_with(&format!("| {op}_")),
    };
    let is_head = |line: &&str| {
        [HEAD, LOOPS_HEAD]
            .iter()
            .any(|head| head.lines().any(|l| l == *line))
    };
    let table = golden
        .lines()
        .filter(|line| line.starts_with('|') && !is_head(line));
    let before: Vec<&str> = table.filter(counts).collect();
    let of_loops = rows.iter().flat_map(Row::loop_lines);
    let now: Vec<String> = rows.iter().map(Row::line).chain(of_loops).collect();
    let known: BTreeSet<&str> = before.iter().copied().collect();
    let new: BTreeSet<&str> = now.iter().map(String::as_str).collect();
    let key = |line: &str| line.split('|').take(3).collect::<String>();
    let gone = known.difference(&new).map(|line| (key(line), '-', *line));
    let come = new.difference(&known).map(|line| (key(line), '+', *line));
    let mut lines: Vec<_> = gone.chain(come).collect();
    lines.sort_by(|a, b| (&a.0, a.1 == '+').cmp(&(&b.0, b.1 == '+')));
    lines
        .into_iter()
        .map(|(_, sign, line)| format!("{sign} {line}"))
        .collect()
}

/// Reads the resources of each entry from the output of `ptxas -v`.
///
/// # Errors
/// The output differs from that of a known ptxas.
pub fn resources(said: &str) -> anyhow::Result<Vec<(String, Resources)>> {
    let mut entries: Vec<(String, Resources)> = Vec::new();
    // Device functions, which are not entries, are recognised by their names.
    let mut described = String::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            entries.push((name.to_owned(), Resources::default()));
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            described = name.trim().to_owned();
        } else if let Some((name, resources)) = entries.last_mut() {
            let number = |what: &str| -> anyhow::Result<u64> {
                let before = line.split(what).next().unwrap_or_default();
                let number = before.trim_end().rsplit(' ').next().unwrap_or_default();
                number
                    .parse()
                    .with_context(|| format!("ptxas says: {line}"))
            };
            if line.contains("bytes stack frame") && described == *name {
                resources.stack = number("bytes stack frame")?;
                resources.spill_stores = number("bytes spill stores")?;
                resources.spill_loads = number("bytes spill loads")?;
            } else if line.contains(" registers") {
                resources.registers = number("registers")?;
                if line.contains(" bytes smem") {
                    resources.shared = number("bytes smem")?;
                }
            }
        }
    }
    if entries.is_empty()
        || entries
            .iter()
            .any(|(_, resources)| resources.registers == 0)
    {
        bail!("ptxas does not say what every entry uses:\n{said}");
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_an_entry_moves() {
        for (name, inputs, outputs, traffic) in [
            ("xielu_forward_bf16", 1, 1, 4),
            ("xielu_backward_bf16", 2, 1, 6),
            ("xatlu_gated1_forward_f16", 2, 1, 6),
            ("xatlu_gated2_backward_bf16", 3, 2, 10),
            ("xielu_forward_f32", 1, 1, 8),
            ("cross_entropy_stats_bf16", 1, 0, 2),
            ("cross_entropy_gradient_bf16", 1, 1, 4),
            ("cross_entropy_cluster_bf16", 1, 0, 2),
        ] {
            let entry = Entry::parse(name).expect(name);
            let work = entry.work();
            assert_eq!(
                (work.inputs, work.outputs, entry.traffic()),
                (inputs, outputs, traffic),
                "{name}"
            );
        }
        for name in [
            "xielu_dparams_bf16",
            "cross_entropy_finish",
            "forward_bf16",
            "xielu_forward_f64",
            "xielu",
        ] {
            assert_eq!(Entry::parse(name), None, "{name}");
        }
    }

    fn row(instructions: usize, spill_stores: u64) -> Row {
        let name = "xielu_forward_bf16";
        Row {
            entry: name.to_owned(),
            architecture: 90,
            resources: Resources {
                registers: 40,
                spill_stores,
                ..Resources::default()
            },
            main_loop: Entry::parse(name).map(|entry| {
                let counts = Counts {
                    instructions,
                    mufu: 16,
                    conversions: 0,
                    beside: 0,
                    in_flight: 2,
                };
                (entry, counts)
            }),
            loops: Vec::new(),
        }
    }

    fn with_loop(instructions: usize, functor: &str, with_y: bool) -> Row {
        let mut row = row(instructions, 0);
        row.loops.push(Loop {
            label: Label {
                functor: functor.to_owned(),
                sums: 2,
                with_y,
            },
            counts: row.main_loop.as_ref().expect("a loop").1,
        });
        row
    }

    #[test]
    fn a_loop_above_its_budget_is_a_problem_unless_there_is_a_reason() {
        assert_eq!(
            with_loop(16 * 20, "", false).problems(),
            Vec::<String>::new()
        );
        let problems = with_loop(16 * 20 + 1, "", false).problems();
        assert!(
            problems.len() == 1 && problems[0].contains("20.06"),
            "{problems:?}"
        );
        // y again makes 6 bytes of 4.
        assert_eq!(
            with_loop(16 * 30, "", true).problems(),
            Vec::<String>::new()
        );
        assert_eq!(with_loop(16 * 30 + 1, "", true).problems().len(), 1);
        // The reason of the functor allows more, but not everything.
        let above = ABOVE
            .iter()
            .find(|above| above.functor == "general")
            .expect("one");
        let most = (above.limits[0] * 16.0) as usize;
        // So many instructions also exceed what an H100 has time for.
        let excess = |instructions| {
            let problems = with_loop(instructions, "general", false).problems();
            problems.into_iter().find(|p| p.contains("per element"))
        };
        assert_eq!(excess(most), None);
        let problem = excess(most + 1).expect("a problem");
        assert!(problem.contains(above.reason), "{problem}");
        // A reason that is not needed is a problem.
        assert_eq!(
            not_above(&[with_loop(most, "general", false)]),
            Vec::<String>::new()
        );
        assert_eq!(not_above(&[with_loop(16 * 20, "general", false)]).len(), 1);
    }

    #[test]
    fn the_table_of_loops_shows_every_loop() {
        let row = with_loop(16 * 20, "ideal", true);
        let lines: Vec<String> = row.loop_lines().collect();
        assert_eq!(lines.len(), 1);
        for cell in [
            "xielu_forward_bf16 ideal y",
            " 20.00 ",
            " 30.0 ",
            " H200 ",
            "|   54 |",
            "|     6 |",
        ] {
            assert!(lines[0].contains(cell), "{cell}: {}", lines[0]);
        }
        let golden = golden(&[row], "13.0.88");
        assert_eq!(
            differences(&golden, &[with_loop(16 * 20, "ideal", true)], None),
            Vec::<String>::new()
        );
        assert_eq!(
            differences(&golden, &[with_loop(16 * 20, "ideal", false)], None).len(),
            2
        );
    }

    /// 4 bytes per element: 35.4 instructions and 4.43 MUFU on the H100, 24.7 and 3.09 on the H200.
    #[test]
    fn the_budget_is_that_of_the_bytes() {
        let [Some(h100), Some(h200), None] = row(16 * 20, 0).shares() else {
            panic!("those of sm_90");
        };
        for (share, expected) in [
            (h100, [20.0 / 35.4, 1.0 / 4.43]),
            (h200, [20.0 / 24.7, 1.0 / 3.09]),
        ] {
            for (share, expected) in share.into_iter().zip(expected) {
                assert!((share / expected - 1.0).abs() < 2e-3, "{share} {expected}");
            }
        }
    }

    #[test]
    fn loads_that_wait_are_problems() {
        // 64 registers allow 1024 threads, with 32 bytes each.
        let mut forward = row(16 * 20, 0);
        forward.resources.registers = 64;
        assert_eq!(forward.in_flight(), Some([32, 32 << 10]));
        assert_eq!(forward.problems(), Vec::<String>::new());
        // 768 threads are too few.
        forward.resources.registers = 65;
        let problems = forward.problems();
        assert!(
            problems.len() == 1 && problems[0].contains("24 KiB"),
            "{problems:?}"
        );
        // Only one of two loads is in flight.
        let mut forward = row(16 * 20, 0);
        if let Some((_, counts)) = &mut forward.main_loop {
            counts.in_flight = 1;
        }
        let problems = forward.problems();
        assert!(problems[0].contains("16 bytes, not 32"), "{problems:?}");
    }

    #[test]
    fn spills_and_excess_are_problems() {
        assert_eq!(row(16 * 35, 0).problems(), Vec::<String>::new());
        assert_eq!(row(16 * 36, 4).problems().len(), 2);
    }

    #[test]
    fn a_golden_file_equals_itself_and_shows_what_differs() {
        let golden = golden(&[row(320, 0)], "13.0.88");
        assert_eq!(golden_version(&golden), Some("13.0.88"));
        assert!(differences(&golden, &[row(320, 0)], None).is_empty());
        let lines = differences(&golden, &[row(330, 0)], Some("xielu"));
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("- | xielu_forward_bf16") && lines[0].contains(" 20.00 |"));
        assert!(lines[1].starts_with("+ | xielu_forward_bf16") && lines[1].contains(" 20.62 |"));
        assert!(
            differences(&golden, &[], Some("xi")).is_empty(),
            "another op"
        );
        assert_eq!(differences(&golden, &[], None).len(), 1, "an entry is gone");
    }

    #[test]
    fn the_words_of_ptxas_are_read() {
        let said = "\
            ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'a_dparams_f32' for 'sm_90'\n\
            ptxas info    : Function properties for a_dparams_f32\n\
            \x20   16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 28 registers, used 1 barriers, 128 bytes smem\n\
            ptxas info    : Compiling entry function 'a_forward_f32' for 'sm_90'\n\
            ptxas info    : Function properties for a_forward_f32\n\
            \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 40 registers, 504 bytes cmem[0]\n";
        let entries = resources(said).expect("read");
        let expected = Resources {
            registers: 28,
            shared: 128,
            stack: 16,
            spill_stores: 8,
            spill_loads: 12,
        };
        assert_eq!(entries[0], ("a_dparams_f32".to_owned(), expected));
        assert_eq!((entries[1].1.registers, entries[1].1.shared), (40, 0));
        assert!(resources("ptxas info    : 0 bytes gmem\n").is_err());
    }
}
