//! Writes the measurements as a Markdown table and as a plot.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use xact::Element;

use crate::peers::Peer;
use xact_dev::plot::{self, Axis, Line, Panel, Plot, Scale, colour};

/// A row of the table: the op and its shape.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub op: &'a str,
    pub form: &'a str,
    pub dtype: &'a str,
    pub pass: &'a str,
    /// The minimum number of tensors that are moved.
    pub tensors: usize,
    /// The rows and classes of cross-entropy.
    pub matrix: Option<(usize, usize)>,
}

impl<'a> Row<'a> {
    pub fn new<T: Element>(op: &'a str, form: &'a str, pass: &'a str, tensors: usize) -> Self {
        Row {
            op,
            form,
            dtype: T::DTYPE.name(),
            pass,
            tensors,
            matrix: None,
        }
    }
}

/// The measurements of a row; times are seconds of one call.
pub struct Measured {
    /// The number of elements of a tensor.
    pub len: usize,
    /// The number of bytes of a tensor.
    pub bytes: usize,
    pub seconds: f64,
    /// The time of a copy of a tensor.
    pub copy: f64,
    /// The times of the peers.
    pub peers: Vec<(String, f64)>,
}

impl Measured {
    fn ns(&self, seconds: f64) -> f64 {
        seconds * 1e9 / self.len as f64
    }

    fn gb_per_s(&self, row: &Row<'_>) -> f64 {
        (row.tensors * self.bytes) as f64 / self.seconds / 1e9
    }

    fn share(&self, row: &Row<'_>) -> f64 {
        self.gb_per_s(row) / (2.0 * self.bytes as f64 / self.copy / 1e9)
    }

    /// The measurements as one JSON object.
    pub fn json(&self, row: &Row<'_>) -> Value {
        let ns = |(name, seconds): &(String, f64)| (name.clone(), self.ns(*seconds).into());
        json!({
            "op": row.op, "form": row.form, "dtype": row.dtype, "len": self.len, "pass": row.pass,
            "ns_per_element": self.ns(self.seconds), "gb_per_s": self.gb_per_s(row),
            "copy_ns_per_element": self.ns(self.copy), "share_of_copy": self.share(row),
            "peers_ns_per_element": self.peers.iter().map(ns).collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// All rows.
pub struct Table {
    about: String,
    variants: Vec<String>,
    text: String,
    lines: Vec<Series>,
}

/// A curve of the plot: nanoseconds per element of an implementation of an op, by length.
struct Series {
    op: String,
    name: String,
    points: Vec<(f64, f64)>,
}

const OURS: &str = "xact";
const COPY: &str = "a copy";

impl Table {
    /// An empty table of measurements on `machine`.
    pub fn new(machine: &str, peers: &[Peer]) -> Table {
        let mut about = format!("Ran on {machine}");
        for peer in peers {
            write!(about, "; {}", peer.name).expect("a string");
        }
        Table {
            about,
            variants: peers.iter().flat_map(|p| p.variants.clone()).collect(),
            text: String::new(),
            lines: Vec::new(),
        }
    }

    /// The text before the table.
    pub fn head(&self) -> String {
        let mut head =
            "| op | form | type | elements | pass | ns/element | GB/s | of a copy |".to_owned();
        let mut rule = "| --- | --- | --- | ---: | --- | ---: | ---: | ---: |".to_owned();
        for variant in &self.variants {
            write!(head, " {variant} |").expect("a string");
            rule.push_str(" ---: |");
        }
        format!("{}.\n\n{head}\n{rule}\n", self.about)
    }

    /// A line of the table. A peer's cell has its ns/element, and that divided by ours.
    pub fn row(&self, row: &Row<'_>, measured: &Measured) -> String {
        let len = measured.len;
        let elements = if len.is_power_of_two() {
            format!("2^{}", len.ilog2())
        } else {
            len.to_string()
        };
        let mut line = format!(
            "| {} | {} | {} | {elements} | {} | {:.3} | {:.1} | {:.0} % |",
            row.op,
            row.form,
            row.dtype,
            row.pass,
            measured.ns(measured.seconds),
            measured.gb_per_s(row),
            measured.share(row) * 100.0
        );
        for variant in &self.variants {
            match measured.peers.iter().find(|(name, _)| name == variant) {
                Some((_, seconds)) => {
                    let times = seconds / measured.seconds;
                    write!(line, " {:.3} ({times:.1}×) |", measured.ns(*seconds))
                }
                None => write!(line, " |"),
            }
            .expect("a string");
        }
        line
    }

    /// Adds a row.
    pub fn add(&mut self, row: &Row<'_>, measured: Measured) {
        self.text.push_str(&self.row(row, &measured));
        self.text.push('\n');
        let plotted = row.form == "plain" && row.dtype == "f32" && row.pass == "step";
        if !plotted {
            return;
        }
        let ours = [(OURS, measured.seconds), (COPY, measured.copy)];
        let peers = measured.peers.iter().map(|(n, s)| (n.as_str(), *s));
        for (name, seconds) in ours.into_iter().chain(peers) {
            let point = (measured.len as f64, measured.ns(seconds));
            let same = |s: &&mut Series| s.op == row.op && s.name == name;
            match self.lines.iter_mut().find(same) {
                Some(series) => series.points.push(point),
                None => self.lines.push(Series {
                    op: row.op.to_owned(),
                    name: name.to_owned(),
                    points: vec![point],
                }),
            }
        }
    }

    /// Writes the rows so far to `cpu_SET.md` and `cpu_SET.svg`.
    pub fn write(&self, folder: &Path, set: &str) {
        let plotted = self.lines.iter().any(|series| series.points.len() > 1);
        let image = if plotted {
            format!("![ns per element](cpu_{set}.svg)\n\n")
        } else {
            String::new()
        };
        let page = format!(
            "# The CPU backend beside a copy and beside others\n\nWritten by `cargo xtask bench --peers -- {}`.\n{ABOUT}\n{image}{}{}",
            arguments(),
            self.head(),
            self.text
        );
        put(&folder.join(format!("cpu_{set}.md")), &page);
        if plotted {
            put(
                &folder.join(format!("cpu_{set}.svg")),
                &plot::svg(&self.plot()),
            );
        }
    }

    fn plot(&self) -> Plot {
        let mut ops: Vec<&str> = self.lines.iter().map(|series| series.op.as_str()).collect();
        ops.dedup();
        ops.sort_unstable();
        ops.dedup();
        let values = |pick: fn(&(f64, f64)) -> f64| {
            let all = self.lines.iter().flat_map(|s| &s.points).map(pick);
            all.fold((f64::INFINITY, 0.0f64), |(low, high), v| {
                (low.min(v), high.max(v))
            })
        };
        let (shortest, longest) = values(|point| point.0);
        let (fastest, slowest) = values(|point| point.1);
        let panel = |op: &str| {
            let of_op = self.lines.iter().filter(|series| series.op == op);
            let copy = of_op.clone().find(|series| series.name == COPY);
            let copy = copy
                .and_then(|series| series.points.last())
                .map_or(0.0, |p| p.1);
            let colours = [colour::BLUE, colour::VERMILION, colour::PURPLE, colour::SKY];
            let lines = of_op.filter(|series| series.name != COPY);
            Panel {
                title: format!("{op}, f32, forward and backward"),
                x: Axis {
                    label: "elements".to_owned(),
                    scale: Scale::Log,
                    min: shortest,
                    max: longest,
                },
                y: Axis {
                    label: "ns per element".to_owned(),
                    scale: Scale::Log,
                    min: fastest / 1.5,
                    max: slowest * 1.5,
                },
                lines: lines
                    .zip(colours)
                    .map(|(series, colour)| Line {
                        name: series.name.clone(),
                        colour,
                        points: series.points.clone(),
                    })
                    .collect(),
                level: (copy, "a copy of the / longest tensor".to_owned()),
            }
        };
        Plot {
            title: "A training step on the CPU".to_owned(),
            notes: vec![self.about.clone()],
            panels: ops.into_iter().map(panel).collect(),
        }
    }
}

/// The command line, without the arguments that `cargo xtask bench` adds.
fn arguments() -> String {
    let mut words = std::env::args().skip(1);
    let mut own = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {}
            "--peer" => drop(words.next()),
            _ if word.contains(' ') => own.push(format!("'{word}'")),
            _ => own.push(word),
        }
    }
    own.join(" ")
}

const ABOUT: &str = "\
Medians; every sample of ours is followed by one of a copy of one tensor, in the same type on the same threads, and by
one of each peer. GB/s and the share of the copy's are of the least that must be moved: each input once, each output
once. At 2^16 elements a copy stays in the cache and one thread works, so the share says little there. A *step* is a
forward and the backward, parameter gradients with it; of cross-entropy the loss with the gradient, in place. `eager`
and `compile` are PyTorch's, with the formulas that model code has (benches/peers/torch_cpu.py), at the same shapes on
as many threads; `candle` is candle's silu, gelu and cross_entropy. Beside the ns/element of a peer stands how many
times ours that is.
";

fn put(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
