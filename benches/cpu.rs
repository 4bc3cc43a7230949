//! The CPU backend: nanoseconds per element, bytes per second, and the share of what a copy moves.
//!
//! ```text
//! cargo bench --bench cpu -- [--op NAME] [--dtype NAME] [--len N]... [--rows N] [--vocab N] [--json]
//! ```
//!
//! Every sample of an op is beside one of a copy in the same type, in turn, so that what else the machine does
//! meets both; of each the median counts. Bytes are the floor: each input once, each output once. The copy is
//! split over the same threads, and where one thread copies faster, that counts.

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::Parser;
use half::{bf16, f16};
use rayon::prelude::*;
use xact::activation::{self, Visitor};
use xact::cpu::cross_entropy as ce;
use xact::cpu::goldfish::{self, Mask};
use xact::loss::goldfish::{Layout, Tokens};
use xact::{
    Activation, CrossEntropy, CrossEntropySummary, Element, Gated, Goldfish, Order, RowStats,
    Strategy, cpu, loss,
};

/// Time the CPU backend beside a copy
#[derive(Parser)]
struct Arguments {
    /// Only this op
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new([activation::NAMES, loss::NAMES].concat()))]
    op: Option<String>,
    /// Only this element type
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
    /// Elements of a tensor; ids of a Goldfish mask
    #[arg(long, default_values_t = [1 << 16, 1 << 24])]
    len: Vec<usize>,
    /// Rows of cross-entropy
    #[arg(long, default_value_t = 512)]
    rows: usize,
    /// Classes of cross-entropy
    #[arg(long, default_value_t = 131_072)]
    vocab: usize,
    /// Samples of each row
    #[arg(long, default_value_t = 15)]
    samples: usize,
    /// One JSON object a line instead of the table
    #[arg(long)]
    json: bool,
    /// What cargo passes on
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a sample takes at least, so that the clock's resolution does not matter.
const SAMPLE: Duration = Duration::from_millis(2);

fn main() {
    let arguments = Arguments::parse();
    if !arguments.json {
        let set = cpu::InstructionSet::current().name();
        println!(
            "{}, {set}, {} threads\n",
            processor(),
            rayon::current_num_threads()
        );
        println!("| op | form | type | elements | direction | ns/element | GB/s | of a copy |");
        println!("| --- | --- | --- | ---: | --- | ---: | ---: | ---: |");
    }
    let mut rows = Rows(&arguments);
    activation::for_each(&mut rows);
    rows.cross_entropy::<f32>();
    rows.cross_entropy::<f16>();
    rows.cross_entropy::<bf16>();
    rows.goldfish();
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("model name"));
    line.and_then(|l| l.split(": ").nth(1))
        .unwrap_or(std::env::consts::ARCH)
        .to_owned()
}

struct Rows<'a>(&'a Arguments);

impl Visitor for Rows<'_> {
    fn visit<A: Activation>(&mut self) {
        self.plain::<A, f32>();
        self.plain::<A, f16>();
        self.plain::<A, bf16>();
    }

    fn visit_gated<A: Gated>(&mut self) {
        self.gated::<A, f32>();
        self.gated::<A, f16>();
        self.gated::<A, bf16>();
    }
}

impl Rows<'_> {
    fn wants(&self, op: &str, dtype: &str) -> bool {
        let is = |choice: &Option<String>, name| choice.as_ref().is_none_or(|c| c == name);
        is(&self.0.op, op) && is(&self.0.dtype, dtype)
    }

    fn plain<A: Activation, T: Element>(&self) {
        if !self.wants(A::NAME, T::DTYPE.name()) {
            return;
        }
        let sample = A::samples().remove(0);
        let (op, params) = (sample.op, sample.params);
        for &len in &self.0.len {
            let [x, dy] = [1, 2].map(|seed| random::<T>(seed, len));
            let mut out = x.clone();
            self.row(A::NAME, T::DTYPE.name(), "plain", "forward", 2, &x, || {
                cpu::forward(&op, &params, black_box(&x), &mut out).expect("equal lengths");
                black_box(&mut out);
            });
            let mut dparams = vec![0.0; params.len()];
            self.row(A::NAME, T::DTYPE.name(), "plain", "backward", 3, &x, || {
                let call = cpu::Backward {
                    x: black_box(&x),
                    dy: &dy,
                    dx: &mut out,
                    y: None,
                    dparams: &mut dparams,
                    accumulate: false,
                };
                cpu::backward(&op, &params, call).expect("equal lengths");
                black_box((&mut out, &mut dparams));
            });
        }
    }

    fn gated<A: Gated, T: Element>(&self) {
        if !self.wants(A::NAME, T::DTYPE.name()) {
            return;
        }
        let sample = A::samples().remove(0);
        let (op, params) = (sample.op, sample.params);
        for &len in &self.0.len {
            let [x, v, dy] = [1, 2, 3].map(|seed| random::<T>(seed, len));
            let (mut dx, mut dv) = (x.clone(), x.clone());
            for (form, order) in [("order 1", Order::First), ("order 2", Order::Second)] {
                self.row(A::NAME, T::DTYPE.name(), form, "forward", 3, &x, || {
                    cpu::gated_forward(&op, order, &params, black_box(&x), &v, &mut dx)
                        .expect("equal lengths");
                    black_box(&mut dx);
                });
                let mut dparams = vec![0.0; params.len()];
                self.row(A::NAME, T::DTYPE.name(), form, "backward", 5, &x, || {
                    let call = cpu::GatedBackward {
                        x: black_box(&x),
                        v: &v,
                        dy: &dy,
                        dx: &mut dx,
                        dv: &mut dv,
                        y: None,
                        dparams: &mut dparams,
                        accumulate: false,
                    };
                    cpu::gated_backward(&op, order, &params, call).expect("equal lengths");
                    black_box((&mut dx, &mut dv, &mut dparams));
                });
            }
        }
    }

    /// Losses; gradients from the stats of a forward; both at once, in place. (From the second call on, what
    /// is in place are gradients, which cost the same.)
    fn cross_entropy<T: Element>(&self) {
        let (name, dtype) = (loss::NAMES[0], T::DTYPE.name());
        if !self.wants(name, dtype) {
            return;
        }
        let Arguments { rows: n, vocab, .. } = *self.0;
        let op = CrossEntropy::default();
        let logits = random::<T>(1, n * vocab);
        let labels: Vec<i64> = (0..n).map(|r| (r * 7919 % vocab) as i64).collect();
        let mut stats = vec![RowStats::default(); n];
        let rows = ce::Rows::new(&labels);
        let matrix = ce::Matrix::dense(&logits, vocab);
        let mut summary = CrossEntropySummary::default();
        let form = format!("{n} × {vocab}");
        self.row(name, dtype, &form, "forward", 1, &logits, || {
            let call = ce::Forward {
                logits: black_box(matrix),
                rows,
                outputs: ce::Outputs {
                    stats: Some(&mut stats),
                    ..ce::Outputs::default()
                },
                normalizer: None,
            };
            summary = ce::forward(&op, call).expect("equal lengths");
        });
        let mut dlogits = logits.clone();
        self.row(name, dtype, &form, "backward", 2, &logits, || {
            let call = ce::Backward {
                logits: black_box(matrix),
                rows,
                stats: &stats,
                dlogits: ce::MatrixMut::dense(&mut dlogits, vocab),
                divisor: summary.normalizer,
                dloss: None,
            };
            ce::backward(&op, call).expect("equal lengths");
            black_box(&mut dlogits);
        });
        self.row(name, dtype, &form, "fused", 2, &logits, || {
            let call = ce::ForwardWithGradient {
                logits: ce::MatrixMut::dense(black_box(&mut dlogits), vocab),
                rows,
                outputs: ce::Outputs::default(),
                normalizer: None,
                dloss: None,
            };
            ce::forward_with_gradient(&op, call).expect("equal lengths");
        });
    }

    /// Masks as weights, of i32 ids in rows of 4096, with the longest windows that are in use.
    fn goldfish(&self) {
        let (name, dtype) = (loss::NAMES[1], "i32");
        if !self.wants(name, dtype) {
            return;
        }
        let (k, h, seed) = (50, 50, 0);
        for &len in &self.0.len {
            let mut numbers = inputs::Random(1);
            let ids: Vec<i32> = (0..len)
                .map(|_| (numbers.bits() % 131_072) as i32)
                .collect();
            let tokens = Tokens {
                layout: Layout::Rows { len: 4096.min(len) },
                ..Tokens::row(&ids)
            };
            let mut weights = vec![0.0f32; len];
            for strategy in [
                Strategy::Random { k, seed },
                Strategy::ProductTable { k, h },
                Strategy::ProductAvalanche { k, h },
                Strategy::DotTable { k, h },
                Strategy::Hash64 { k, h, seed },
            ] {
                let goldfish = Goldfish::new(strategy).expect("a strategy");
                self.row(name, dtype, strategy.name(), "mask", 2, &ids, || {
                    let call = Mask {
                        tokens: black_box(tokens),
                        keep: None,
                        weights: Some(&mut weights),
                    };
                    black_box(goldfish::mask(&goldfish, call).expect("whole rows"));
                });
            }
        }
    }

    /// Times `run`, which moves `tensors` tensors like `x`, beside copies of x.
    #[allow(clippy::too_many_arguments)] // the columns of the table
    fn row<T: Copy + Send + Sync>(
        &self,
        name: &str,
        dtype: &str,
        form: &str,
        direction: &str,
        tensors: usize,
        x: &[T],
        mut run: impl FnMut(),
    ) {
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
        for _ in 0..self.0.samples {
            for ((f, times), repeats) in timed.iter_mut().zip(repeats) {
                times.push(seconds(f, repeats));
            }
        }
        let [run, copy, shared] = timed.map(|(_, mut times)| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        let bytes = size_of_val(x) as f64;
        let speed = tensors as f64 * bytes / run;
        let copy_speed = 2.0 * bytes / copy.min(shared);
        let len = x.len();
        let (ns, gb, share) = (run * 1e9 / len as f64, speed / 1e9, speed / copy_speed);
        if self.0.json {
            println!(
                "{{\"op\":\"{name}\",\"form\":\"{form}\",\"dtype\":\"{dtype}\",\"len\":{len},\"direction\":\"{direction}\",\
                 \"ns_per_element\":{ns},\"gb_per_s\":{gb},\"copy_gb_per_s\":{},\"share\":{share}}}",
                copy_speed / 1e9
            );
        } else {
            println!(
                "| {name} | {form} | {dtype} | 2^{:.0} | {direction} | {ns:.3} | {gb:.1} | {:.0} % |",
                (len as f64).log2(),
                share * 100.0
            );
        }
    }
}

/// Seconds of one call, over `repeats` of them.
fn seconds(f: &mut dyn FnMut(), repeats: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..repeats {
        f();
    }
    start.elapsed().as_secs_f64() / f64::from(repeats)
}

/// How many calls fill a sample, after a few to warm up.
fn repeats(f: &mut dyn FnMut()) -> u32 {
    seconds(f, 2);
    (SAMPLE.as_secs_f64() / seconds(f, 3)).ceil() as u32
}

/// Numbers of the size of activations.
fn random<T: Element>(seed: u64, len: usize) -> Vec<T> {
    // Of period 2^14 + 1: what a branch predictor could not learn does not occur, and making them is quick.
    let period: Vec<T> = inputs::Random(seed).normal((1 << 14) + 1, 2.0);
    period.iter().copied().cycle().take(len).collect()
}

#[allow(dead_code)] // of what the tests share, the random numbers
#[path = "../tests/support/inputs.rs"]
mod inputs;
