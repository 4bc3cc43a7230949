//! Times the CPU backend: nanoseconds per element, bytes per second, the share of the bandwidth of a copy, and the speed-up
//! over other implementations.
//!
//! ```text
//! cargo bench --bench cpu -- [--op NAME]... [--dtype NAME]... [--form NAME]... [--len N]... [--json]
//!     [--set NAME] [--write FOLDER]
//! cargo xtask bench --peers -- [the same]
//! ```
//!
//! Samples of an op, of a copy in the same type and of each peer alternate, so that other load on the machine affects all
//! of them; the median of each counts. The bytes are the minimum: each input once and each output once. The copy uses the
//! same threads; if one thread copies faster, that figure is used.

#[path = "cpu/peers.rs"]
mod peers;
#[path = "cpu/table.rs"]
mod table;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::json;
use xact::activation::{self, Registered, Visitor};
use xact::cpu::cross_entropy as ce;
use xact::cpu::goldfish;
use xact::loss::goldfish::Tokens;
use xact::{CrossEntropy, Element, Gated, Goldfish, Order, cpu, loss};
use xact_dev::{inputs, strategy};

use peers::Peer;
use table::{Measured, Row, Table};

/// Time the CPU backend and, for comparison, a copy
#[derive(Parser)]
struct Arguments {
    /// Time only these ops
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new([activation::NAMES, loss::NAMES].concat()))]
    op: Vec<String>,
    /// Time only these element types
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    dtype: Vec<String>,
    /// Time only these forms: plain, "order 1", "order 2", "ROWS × VOCAB", or a strategy
    #[arg(long)]
    form: Vec<String>,
    /// The number of elements of a tensor, or of ids of a Goldfish mask
    #[arg(long, default_values_t = [1 << 16, 1 << 20, 1 << 24])]
    len: Vec<usize>,
    /// The number of rows of cross-entropy
    #[arg(long, default_value_t = 512)]
    rows: usize,
    /// The number of classes of cross-entropy
    #[arg(long, default_value_t = 131_072)]
    vocab: usize,
    /// The number of samples of each row
    #[arg(long, default_value_t = 15)]
    samples: usize,
    /// Print one JSON object per line instead of the table
    #[arg(long)]
    json: bool,
    /// Also run this program, which times another implementation, as benches/peers/torch_cpu.py does
    #[arg(long, value_name = "COMMAND")]
    peer: Vec<String>,
    /// Use this instruction set and not the fastest one
    #[arg(long, value_parser = set)]
    set: Option<cpu::InstructionSet>,
    /// Write the table and a plot to FOLDER/cpu_SET.md and FOLDER/cpu_SET.svg, after every row; a relative FOLDER is
    /// one of the repository
    #[arg(long, value_name = "FOLDER", value_parser = folder)]
    write: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// The minimum duration of a sample, much longer than the clock's resolution.
const SAMPLE: Duration = Duration::from_millis(2);

/// The name of an instruction set in arguments and in the names of files: avx2, avx512.
fn short(set: cpu::InstructionSet) -> String {
    set.name().replace('-', "").to_lowercase()
}

fn set(name: &str) -> Result<cpu::InstructionSet, String> {
    let sets = cpu::InstructionSet::available();
    let named = sets.iter().copied().find(|&set| short(set) == name);
    named.ok_or_else(|| {
        let names: Vec<String> = sets.into_iter().map(short).collect();
        format!("this CPU has {}", names.join(", "))
    })
}

/// The folder of a table, which must exist before hours of measurements go into it.
fn folder(path: &str) -> Result<PathBuf, String> {
    // Cargo runs a bench in the folder of its crate.
    let folder = xact_dev::root().join(path);
    match folder.is_dir() {
        true => Ok(folder),
        false => Err(format!("{} is not a folder", folder.display())),
    }
}

fn main() {
    let arguments = Arguments::parse();
    let set = arguments.set.unwrap_or_else(cpu::InstructionSet::current);
    set.force(|| run(arguments));
}

fn run(arguments: Arguments) {
    let peers: Vec<Peer> = arguments.peer.iter().map(|p| Peer::start(p)).collect();
    let table = Table::new(&machine(), &peers);
    if !arguments.json {
        print!("{}", table.head());
    }
    let mut bench = Bench {
        arguments,
        peers,
        table,
    };
    activation::for_each(&mut bench);
    bench.cross_entropy::<f32>();
    bench.cross_entropy::<f16>();
    bench.cross_entropy::<bf16>();
    bench.goldfish();
}

/// The processor, its instruction set, and the threads in use.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("model name"));
    let processor = line.and_then(|l| l.split(": ").nth(1));
    format!(
        "{}, {}, {} threads",
        processor.unwrap_or(std::env::consts::ARCH),
        cpu::InstructionSet::current().name(),
        rayon::current_num_threads()
    )
}

struct Bench {
    arguments: Arguments,
    peers: Vec<Peer>,
    table: Table,
}

impl Visitor for Bench {
    fn visit<A: Registered>(&mut self) {
        self.plain::<A, f32>();
        self.plain::<A, f16>();
        self.plain::<A, bf16>();
    }

    fn visit_gated<A: Gated + Registered>(&mut self) {
        self.gated::<A, f32>();
        self.gated::<A, f16>();
        self.gated::<A, bf16>();
    }
}

impl Bench {
    fn wants(&self, op: &str, dtype: &str) -> bool {
        wanted(&self.arguments.op, op) && wanted(&self.arguments.dtype, dtype)
    }

    fn wants_form(&self, form: &str) -> bool {
        wanted(&self.arguments.form, form)
    }

    fn plain<A: Registered, T: Element>(&mut self) {
        if !self.wants(A::NAME, T::DTYPE.name()) {
            return;
        }
        let sample = A::samples().remove(0);
        let (op, params) = (sample.op, sample.params);
        for len in self.arguments.len.clone() {
            let [x, dy] = [1, 2].map(|seed| random::<T>(seed, len));
            let (mut y, mut dx) = (x.clone(), x.clone());
            let mut dparams = vec![0.0; params.len()];
            let mut forward = || {
                let call = cpu::forward(&op, black_box(&x), &params, &mut y);
                call.run().expect("equal lengths");
                black_box(&mut y);
            };
            let mut backward = || {
                let call = cpu::backward(&op, black_box(&x), &dy, &params, &mut dx);
                let call = call.gradients(&mut dparams);
                call.run().expect("equal lengths");
                black_box((&mut dx, &mut dparams));
            };
            let row = |pass, tensors| Row::new::<T>(A::NAME, "plain", pass, tensors);
            self.row(row("forward", 2), &x, &mut forward);
            self.row(row("backward", 3), &x, &mut backward);
            self.step(row("step", 5), &x, || {
                forward();
                backward();
            });
        }
    }

    fn gated<A: Gated + Registered, T: Element>(&mut self) {
        if !self.wants(A::NAME, T::DTYPE.name()) {
            return;
        }
        let sample = A::samples().remove(0);
        let (op, params) = (sample.op, sample.params);
        for len in self.arguments.len.clone() {
            let [x, v, dy] = [1, 2, 3].map(|seed| random::<T>(seed, len));
            let [mut y, mut dx, mut dv] = [(); 3].map(|()| x.clone());
            let mut dparams = vec![0.0; params.len()];
            for (form, order) in [("order 1", Order::First), ("order 2", Order::Second)] {
                let mut forward = || {
                    let call = cpu::gated_forward(&op, order, (black_box(&x), &v), &params, &mut y);
                    call.run().expect("equal lengths");
                    black_box(&mut y);
                };
                let mut backward = || {
                    let (xv, dxv) = ((black_box(&x), &v), (&mut dx, &mut dv));
                    let call = cpu::gated_backward(&op, order, xv, &dy, &params, dxv);
                    let call = call.gradients(&mut dparams);
                    call.run().expect("equal lengths");
                    black_box((&mut dx, &mut dv, &mut dparams));
                };
                let row = |pass, tensors| Row::new::<T>(A::NAME, form, pass, tensors);
                self.row(row("forward", 3), &x, &mut forward);
                self.row(row("backward", 5), &x, &mut backward);
                self.step(row("step", 8), &x, || {
                    forward();
                    backward();
                });
            }
        }
    }

    /// The losses; the gradients from the saved statistics of a forward; and both in one call, in place. (From the second
    /// call on, the logits in place are gradients, which cost the same.)
    fn cross_entropy<T: Element>(&mut self) {
        let name = loss::NAMES[0];
        if !self.wants(name, T::DTYPE.name()) {
            return;
        }
        let Arguments { rows: n, vocab, .. } = self.arguments;
        let op = CrossEntropy::default();
        let logits = random::<T>(1, n * vocab);
        let labels: Vec<i64> = (0..n).map(|r| (r * 7919 % vocab) as i64).collect();
        let mut saved = vec![0; op.saved_bytes(n as u64) as usize];
        let mut normalizer = 1.0;
        let form = format!("{n} × {vocab}");
        let row = |pass, tensors| Row {
            matrix: Some((n, vocab)),
            ..Row::new::<T>(name, &form, pass, tensors)
        };
        self.row(row("forward", 1), &logits, || {
            let call = ce::forward(&op, black_box(&logits), &labels).saved(&mut saved);
            normalizer = call.run().expect("equal lengths").normalizer;
        });
        let mut dlogits = logits.clone();
        self.row(row("backward", 2), &logits, || {
            let logits = black_box(&logits);
            let call = ce::backward(&op, logits, &labels, &saved, normalizer, &mut dlogits);
            call.run().expect("equal lengths");
            black_box(&mut dlogits);
        });
        self.row(row("step", 2), &logits, || {
            let call = ce::forward_with_gradient(&op, black_box(&mut dlogits), &labels);
            call.run().expect("equal lengths");
        });
    }

    /// Masks as weights, of i32 ids in rows of 4096, with the longest windows that are in use.
    fn goldfish(&mut self) {
        let (name, dtype) = (loss::NAMES[1], "i32");
        if !self.wants(name, dtype) {
            return;
        }
        for len in self.arguments.len.clone() {
            let mut numbers = inputs::Random(1);
            let ids: Vec<i32> = (0..len)
                .map(|_| (numbers.bits() % 131_072) as i32)
                .collect();
            let tokens = Tokens::rows(&ids, 4096.min(len));
            let mut weights = vec![0.0f32; len];
            // All strategies but the static one.
            for strategy in &strategy::all(50, 50, 0, 0)[1..] {
                let goldfish = Goldfish::new(*strategy).expect("a strategy");
                let row = Row {
                    dtype,
                    ..Row::new::<f32>(name, strategy.name(), "mask", 2)
                };
                self.row(row, &ids, || {
                    let call = goldfish::mask(&goldfish, black_box(tokens)).weights(&mut weights);
                    black_box(call.run().expect("whole rows"));
                });
            }
        }
    }

    /// A forward and a backward together. The peers are only timed so, because they keep other values between the two.
    fn step<T: Copy + Send + Sync>(&mut self, row: Row<'_>, x: &[T], run: impl FnMut()) {
        if !self.peers.is_empty() {
            self.row(row, x, run);
        }
    }

    /// Times `run` in turn with copies of x, and with the peers' calls for the row.
    fn row<T: Copy + Send + Sync>(&mut self, row: Row<'_>, x: &[T], mut run: impl FnMut()) {
        if !self.wants_form(row.form) {
            return;
        }
        let mut to = x.to_vec();
        let mut copy = || {
            to.copy_from_slice(black_box(x));
            black_box(&mut to);
        };
        let mut to = x.to_vec();
        let part = x.len().div_ceil(rayon::current_num_threads());
        let mut shared_copy = || {
            let parts = to.par_chunks_mut(part).zip(x.par_chunks(part));
            parts.for_each(|(to, x)| to.copy_from_slice(black_box(x)));
            black_box(&mut to);
        };
        let mut timed: [(&mut dyn FnMut(), Vec<f64>); 3] = [
            (&mut run, Vec::new()),
            (&mut copy, Vec::new()),
            (&mut shared_copy, Vec::new()),
        ];
        let repeats = timed.each_mut().map(|(f, _)| repeats(f));
        let mut request = json!({
            "op": row.op, "form": row.form, "dtype": row.dtype, "pass": row.pass, "len": x.len(),
        });
        if let Some((rows, vocab)) = row.matrix {
            request["rows"] = rows.into();
            request["vocab"] = vocab.into();
        }
        let asked = ["forward", "step"].contains(&row.pass);
        for peer in self.peers.iter_mut().filter(|_| asked) {
            peer.prepare(&request);
        }
        for _ in 0..self.arguments.samples {
            for ((f, times), repeats) in timed.iter_mut().zip(repeats) {
                times.push(seconds(f, repeats));
            }
            for peer in &mut self.peers {
                peer.sample();
            }
        }
        let [run, copy, shared] = timed.map(|(_, times)| median(times));
        let measured = Measured {
            len: x.len(),
            bytes: size_of_val(x),
            seconds: run,
            copy: copy.min(shared),
            peers: self
                .peers
                .iter_mut()
                .flat_map(Peer::take)
                .map(|(name, times)| (name, median(times)))
                .collect(),
        };
        if self.arguments.json {
            println!("{}", measured.json(&row));
        } else {
            println!("{}", self.table.row(&row, &measured));
        }
        self.table.add(&row, measured);
        if let Some(folder) = &self.arguments.write {
            let set = short(cpu::InstructionSet::current());
            self.table.write(folder, &set);
        }
    }
}

/// The seconds of one call, averaged over `repeats` calls.
fn seconds(f: &mut dyn FnMut(), repeats: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..repeats {
        f();
    }
    start.elapsed().as_secs_f64() / f64::from(repeats)
}

/// Whether a name is selected; without a selection, all are.
fn wanted(chosen: &[String], name: &str) -> bool {
    chosen.is_empty() || chosen.iter().any(|c| c == name)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The number of calls that fill a sample, after some calls to warm up.
fn repeats(f: &mut dyn FnMut()) -> u32 {
    seconds(f, 2);
    (SAMPLE.as_secs_f64() / seconds(f, 3)).ceil() as u32
}

/// Numbers of the size of activations.
fn random<T: Element>(seed: u64, len: usize) -> Vec<T> {
    // The period of 2^14 + 1 is too long for a branch predictor to learn, and short enough to generate quickly.
    let period: Vec<T> = inputs::Random(seed).normal((1 << 14) + 1, 2.0);
    period.iter().copied().cycle().take(len).collect()
}
