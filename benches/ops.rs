//! Times the CPU backend and the f64 references by size, to compare versions of this crate:
//!
//! ```text
//! cargo bench --bench ops -- [--save-baseline NAME | --baseline NAME] [FILTER]
//! ```
//!
//! A group is op/direction/dtype. Its benchmarks are lengths. The throughput counts each input once and each output once.
//! `benches/cpu.rs` compares the backend with a copy and with peers, in alternation.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use half::{bf16, f16};
use xact::activation::{self, Registered, Visitor};
use xact::cpu::cross_entropy as ce;
use xact::cpu::goldfish as mask;
use xact::{CrossEntropy, Element, Goldfish, Tokens, cpu, loss, reference};
use xact_dev::{inputs, strategy};

/// The lengths of tensors: one in the cache on one thread, and one on all threads.
const LENGTHS: [usize; 2] = [1 << 14, 1 << 20];
/// The lengths for the references, which compute element by element in f64.
const REFERENCE_LENGTHS: [usize; 2] = [1 << 10, 1 << 14];
/// The rows and classes of cross-entropy.
const ROWS: usize = 64;
const VOCABS: [usize; 2] = [1 << 15, 1 << 17];

fn main() {
    let criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
        .without_plots()
        .configure_from_args();
    let mut bench = Bench(criterion);
    activation::for_each(&mut bench);
    bench.cross_entropy::<f32>();
    bench.cross_entropy::<f16>();
    bench.cross_entropy::<bf16>();
    bench.goldfish();
    bench.cross_entropy_reference();
    bench.0.final_summary();
}

struct Bench(Criterion);

impl Visitor for Bench {
    fn visit<A: Registered>(&mut self) {
        self.activation::<A, f32>();
        self.activation::<A, f16>();
        self.activation::<A, bf16>();
        self.activation_reference::<A>();
    }
}

impl Bench {
    /// One benchmark: `group` is op/direction/dtype.
    fn run(&mut self, group: String, len: usize, bytes: usize, mut f: impl FnMut()) {
        let mut group = self.0.benchmark_group(group);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| b.iter(&mut f));
        group.finish();
    }

    fn activation<A: Registered, T: Element>(&mut self) {
        let sample = A::samples().remove(0);
        for len in LENGTHS {
            let [x, dy] = [1, 2].map(|seed| random::<T>(seed, len));
            let (mut out, mut dparams) = (x.clone(), vec![0.0; sample.params.len()]);
            let (name, dtype, bytes) = (A::NAME, T::DTYPE.name(), size_of_val(&*x));
            self.run(format!("{name}/forward/{dtype}"), len, 2 * bytes, || {
                let call = cpu::forward(&sample.op, black_box(&x), &sample.params, &mut out);
                call.run().expect("equal lengths");
            });
            self.run(format!("{name}/backward/{dtype}"), len, 3 * bytes, || {
                cpu::backward(&sample.op, black_box(&x), &dy, &sample.params, &mut out)
                    .gradients(&mut dparams)
                    .run()
                    .expect("equal lengths");
            });
        }
    }

    /// The losses alone, and with the gradient in place.
    fn cross_entropy<T: Element>(&mut self) {
        let (name, dtype, op) = (loss::NAMES[0], T::DTYPE.name(), CrossEntropy::default());
        for vocab in VOCABS {
            let mut logits = random::<T>(1, ROWS * vocab);
            let labels: Vec<i64> = (0..ROWS).map(|r| (r * 7919 % vocab) as i64).collect();
            let bytes = size_of_val(&*logits);
            self.run(format!("{name}/forward/{dtype}"), vocab, bytes, || {
                let call = ce::forward(&op, black_box(&logits), &labels);
                black_box(call.run().expect("equal lengths"));
            });
            self.run(format!("{name}/gradient/{dtype}"), vocab, 2 * bytes, || {
                let call = ce::forward_with_gradient(&op, black_box(&mut logits), &labels);
                black_box(call.run().expect("equal lengths"));
            });
        }
    }

    /// Masks as weights.
    fn goldfish(&mut self) {
        // All strategies but the static one.
        for strategy in &strategy::all(50, 50, 0, 0)[1..] {
            let goldfish = Goldfish::new(*strategy).expect("a strategy");
            for len in LENGTHS {
                let mut numbers = inputs::Random(1);
                let ids: Vec<i32> = (0..len).map(|_| (numbers.bits() >> 48) as i32).collect();
                let mut weights = vec![0.0f32; len];
                let group = format!("{}/{}/i32", loss::NAMES[1], strategy.name());
                self.run(group, len, 2 * size_of_val(&*ids), || {
                    let call = mask::mask(&goldfish, Tokens::row(black_box(&ids)));
                    black_box(call.weights(&mut weights).run().expect("one row"));
                });
            }
        }
    }

    fn activation_reference<A: Registered>(&mut self) {
        let sample = A::samples().remove(0);
        let params: Vec<f64> = sample.params.iter().map(|&p| p.into()).collect();
        for len in REFERENCE_LENGTHS {
            let [x, dy] = [1, 2].map(|seed| random::<f32>(seed, len));
            let name = A::NAME;
            self.run(format!("{name}/forward/f64"), len, len * (4 + 8), || {
                black_box(reference::forward(&sample.op, &params, black_box(&x)));
            });
            self.run(
                format!("{name}/backward/f64"),
                len,
                len * (2 * 4 + 8),
                || {
                    let gradients = reference::backward(&sample.op, &params, black_box(&x), &dy);
                    black_box(gradients.expect("equal lengths"));
                },
            );
        }
    }

    /// A row with its gradient.
    fn cross_entropy_reference(&mut self) {
        let op = CrossEntropy::default();
        for vocab in REFERENCE_LENGTHS {
            let logits = random::<f32>(1, vocab);
            let group = format!("{}/gradient/f64", loss::NAMES[0]);
            self.run(group, vocab, vocab * (4 + 8), || {
                black_box(op.evaluate(black_box(&logits), vocab / 2, 1.0, 1.0));
            });
        }
    }
}

/// Numbers of the size of activations.
fn random<T: Element>(seed: u64, len: usize) -> Vec<T> {
    // The period of 2^14 + 1 is too long for a branch predictor to learn, and short enough to generate quickly.
    let period: Vec<T> = inputs::Random(seed).normal((1 << 14) + 1, 2.0);
    period.iter().copied().cycle().take(len).collect()
}
