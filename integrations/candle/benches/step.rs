//! A training step (forward and backward) of each op beside candle's own composition, in one alternated run.
//!
//! ```text
//! cargo bench --manifest-path integrations/candle/Cargo.toml --target-dir target/candle -- [NAME]... [--samples N]
//!     [--len N]
//! ```
//!
//! A name is that of an op or a dtype; without names, all run. A time is the median of the samples. "candle adds" is the
//! accumulation of the gradient of x by candle: a fill with zeros and an addition. Both steps contain it; the last ratio is
//! without it. The share of a copy is that of our step without it. It counts the bytes that must move: each input of the
//! forward and of the backward once, and each output once.
//!
//! Every step allocates its results, so that it includes the page faults of fresh memory; the copy does not.

#[allow(dead_code)] // gates
#[path = "../tests/common/composed.rs"]
mod composed;

use std::hint::black_box;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use rayon::prelude::*;
use xact_candle::xact::CrossEntropy;

/// Rows and classes of the loss.
const LOGITS: (usize, usize) = (512, 32_000);

type Function = fn(&Tensor, &[Var], &Tensor) -> Result<Tensor>;

/// An op of xact, and candle's composition.
struct Op {
    name: &'static str,
    params: &'static [f32],
    ours: Function,
    candles: Function,
    /// The number of tensors of the size of x that a step must read or write.
    passes: usize,
}

const OPS: [Op; 5] = [
    Op {
        name: "xielu",
        params: &[0.2, -1.05],
        ours: |x, p, _| xact_candle::xielu(x, &p[0], &p[1]),
        candles: |x, p, _| composed::xielu(x, &p[0], &p[1]),
        passes: 5,
    },
    Op {
        name: "xatlu",
        params: &[0.25],
        ours: |x, p, _| xact_candle::xatlu(x, &p[0]),
        candles: |x, p, _| composed::xatlu(x, &p[0]),
        passes: 5,
    },
    Op {
        name: "xgelu",
        params: &[0.25],
        ours: |x, p, _| xact_candle::xgelu(x, &p[0]),
        candles: |x, p, _| composed::xgelu(x, &p[0]),
        passes: 5,
    },
    Op {
        name: "xsilu",
        params: &[0.25],
        ours: |x, p, _| xact_candle::xsilu(x, &p[0]),
        candles: |x, p, _| composed::xsilu(x, &p[0]),
        passes: 5,
    },
    Op {
        name: "cross_entropy",
        params: &[],
        ours: |x, _, labels| xact_candle::cross_entropy(&CrossEntropy::default(), x, labels).run(),
        candles: |x, _, labels| candle_nn::loss::cross_entropy(x, labels),
        passes: 3,
    },
];

fn main() -> Result<()> {
    let (mut names, mut samples, mut len) = (Vec::new(), 5, 1 << 24);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<usize> {
            let next = arguments.next().and_then(|text| text.parse().ok());
            next.ok_or_else(|| candle_core::Error::msg(format!("{argument} needs a number")))
        };
        match argument.as_str() {
            "--samples" => samples = number()?.max(1),
            "--len" => len = number()?,
            "--bench" => {}
            _ => names.push(argument),
        }
    }
    println!(
        "{}, {} threads; medians of {samples} samples, in turn",
        cpu(),
        rayon::current_num_threads()
    );
    println!();
    println!(
        "| op | dtype | elements | bytes | ours ms | candle ms | ratio | candle adds ms | ratio without | share of a copy |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for dtype in [DType::F32, DType::BF16] {
        for op in &OPS {
            // Names of ops select ops, and names of dtypes select dtypes.
            let chosen = |name: &str, all: &[&str]| {
                let mut given = names
                    .iter()
                    .filter(|n| all.contains(&n.as_str()))
                    .peekable();
                given.peek().is_none() || given.any(|n| n == name)
            };
            let all = OPS.map(|op| op.name);
            if chosen(op.name, &all) && chosen(dtype.as_str(), &["f32", "bf16"]) {
                row(op, dtype, len, samples)?;
            }
        }
    }
    Ok(())
}

fn row(op: &Op, dtype: DType, len: usize, samples: usize) -> Result<()> {
    let device = Device::Cpu;
    let x = if op.name == "cross_entropy" {
        Tensor::randn(0_f32, 2.0, LOGITS, &device)?
    } else {
        Tensor::randn(0_f32, 2.0, len, &device)?
    };
    let x = Var::from_tensor(&x.to_dtype(dtype)?)?;
    // candle has no operations with operands of two types, so its scalars have the type of x.
    let params = |dtype: DType| -> Result<Vec<Var>> {
        let var = |&p: &f32| Var::from_tensor(&Tensor::new(&[p], &device)?.to_dtype(dtype)?);
        op.params.iter().map(var).collect()
    };
    let (our_params, candles_params) = (params(DType::F32)?, params(dtype)?);
    let labels: Vec<u32> = (0..LOGITS.0)
        .map(|r| (r * 7919 % LOGITS.1) as u32)
        .collect();
    let labels = Tensor::new(labels, &device)?;
    let step = |function: Function, params: &[Var]| -> Result<()> {
        black_box(function(&x, params, &labels)?.backward()?);
        Ok(())
    };
    let (from, mut to) = (vec![1_u8; 1 << 27], vec![0_u8; 1 << 27]);
    let mut copy = || {
        let piece = from.len() / rayon::current_num_threads();
        let pieces = to.par_chunks_mut(piece).zip(from.par_chunks(piece));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut to);
    };
    let gradient = x.as_tensor().ones_like()?;
    let add = || -> Result<()> {
        black_box((x.zeros_like()? + &gradient)?);
        Ok(())
    };
    let mut times = [const { Vec::new() }; 4];
    // The first sample is for warming up.
    for _ in 0..=samples {
        times[0].push(seconds(|| step(op.ours, &our_params))?);
        times[1].push(seconds(|| step(op.candles, &candles_params))?);
        times[2].push(seconds(add)?);
        times[3].push(seconds(|| {
            copy();
            Ok(())
        })?);
    }
    let [ours, candles, adds, copy] = times.map(|times| median(times[1..].to_vec()));
    let bytes = op.passes * x.elem_count() * dtype.size_in_bytes();
    let copied = 2.0 * (1_u64 << 27) as f64 / copy;
    let share = bytes as f64 / (ours - adds) / copied;
    println!(
        "| {} | {} | {} | {bytes} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} % |",
        op.name,
        dtype.as_str(),
        x.elem_count(),
        ours * 1e3,
        candles * 1e3,
        candles / ours,
        adds * 1e3,
        (candles - adds) / (ours - adds),
        share * 100.0,
    );
    Ok(())
}

fn seconds(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    call()?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The model of the CPU.
fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split(": ").nth(1));
    name.unwrap_or("unknown CPU").to_owned()
}
