//! The entries, their figures, and the table of them for the terminal, as JSON and as golden file.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, bail};

use super::geometry;
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
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    packs: u64,
    inputs: usize,
    outputs: usize,
    dtype: &'static str,
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
        let (packs, inputs, outputs) = match task {
            // Reads x and, in gated forms, v; writes y.
            "forward" => (geometry::PACKS, 1 + gated, 1),
            // Reads dy too; writes dx and, in gated forms, dv.
            "backward" => (geometry::PACKS, 2 + gated, 1 + gated),
            "stats" => (geometry::ROW_PACKS, 1, 0),
            "gradient" => (geometry::ROW_PACKS, 1, 1),
            "fused" | "cluster" => (geometry::ROW_PACKS, 1, 0),
            _ => return None,
        };
        Some(Self {
            packs,
            inputs,
            outputs,
            dtype,
        })
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

/// A device of sm_90.
struct Device {
    name: &'static str,
    bytes_per_second: f64,
}

const H100: Device = Device {
    name: "H100",
    bytes_per_second: 3.35e12,
};

const H200: Device = Device {
    name: "H200",
    bytes_per_second: 4.8e12,
};

impl Device {
    /// The clocks per SM that memory needs for `bytes`, times the number of SMs: 132 SMs at 1.755 GHz.
    fn sm_clocks(&self, bytes: u64) -> f64 {
        132.0 * 1.755e9 / self.bytes_per_second * bytes as f64
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
}

impl Row {
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

    /// The shares of each device's budget. Only for sm_90.
    fn shares(&self) -> Option<[[f64; 2]; 2]> {
        let (entry, counts) = self.main_loop.as_ref()?;
        let figures = entry.figures(*counts);
        (self.architecture == 90).then(|| [H100.shares(&figures), H200.shares(&figures)])
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
        if is_bf16 && let Some([h100, _]) = self.shares() {
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
                let bound = if counts.beside > 0 { "≤ " } else { "" };
                vec![
                    format!("{bound}{:.2}", figures.instructions),
                    format!("{bound}{:.2}", figures.mufu),
                    format!("{bound}{:.2}", figures.conversions),
                    figures.traffic.to_string(),
                ]
            }
        };
        for (cell, width) in cells.into_iter().zip([7, 6, 6, 5]) {
            let _ = write!(line, " {cell:>width$} |");
        }
        let shares = self.shares();
        for device in 0..2 {
            let cell = shares.map_or(String::new(), |shares| {
                let [instructions, mufu] = shares[device].map(|share| share * 100.0);
                format!("{instructions:.0}/{mufu:.0}")
            });
            let _ = write!(line, " {cell:>7} |");
        }
        line
    }
}

const HEAD: &str = "\
| entry                        | arch    | regs | shared | stack | spills | flight | KiB/SM | instr/e | MUFU/e | conv/e | B/e   | H100 %  | H200 %  |
| ---------------------------- | ------- | ---: | -----: | ----: | -----: | -----: | -----: | ------: | -----: | -----: | ----: | ------: | ------: |
";

/// The table with its head.
pub fn text(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
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
         of whole, 16-byte aligned packs through the variant of the op with the fewest; all of them, those of \
         the special-function unit, and conversions. ≤: with both sides of branches on data\n\
         - B/e: bytes per element, each input and output once; of cross-entropy's fused and cluster, these and the \
         figures before are of the loop that reads the logits\n\
         - H100 %, H200 %: share of the time that memory needs for these bytes at its full speed, \
         instructions/MUFU\n\
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
    let head = HEAD.lines().count();
    let table = golden
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(head);
    let before: Vec<&str> = table.filter(counts).collect();
    let now: Vec<String> = rows.iter().map(Row::line).collect();
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
        }
    }

    /// 4 bytes per element: 35.4 instructions and 4.43 MUFU on the H100, 24.7 and 3.09 on the H200.
    #[test]
    fn the_budget_is_that_of_the_bytes() {
        let [h100, h200] = row(16 * 20, 0).shares().expect("sm_90");
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
