//! Every activation × sample × type, on the device of this process: accuracy at every 16-bit input, lengths and alignments,
//! rows with a pitch, in place, determinism, traffic. The trials are made from the registry, so a new op is tested
//! automatically.
//!
//! `XACT_DEVICE=auto|gpu|emulated[:MODEL]` selects the device; `XACT_FULL=1` runs all variants.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::process::ExitCode;

use cuda_emulator::{Approx, BufferTraffic, LaunchReport, Schedule, Settings};
use half::{bf16, f16};
use libtest_mimic::Failed;
use xact::activation::{Evaluation, Named, Registered, Sample, Visitor};
use xact::raw::Blocks;
use xact::reference::{self, Bounds, Report};
use xact::{Dtype, Element, Gated, Halves, Order, Xielu};
use xact_dev::check;
use xact_dev::choose::Gpu;
use xact_dev::inputs::{self, GRADIENTS, Random, VALUES};
use xact_dev::run::{self, DPARAMS_BEFORE, How, Layout, Place};
use xact_dev::same::bits;
use xact_dev::trials::{self, Outcome, Table};

fn main() -> ExitCode {
    trials::main(|table| xact::activation::for_each(&mut Activations(table)))
}

struct Activations<'a>(&'a mut Table);

impl Activations<'_> {
    fn of_type<A: Registered, T: Element>(&mut self) {
        let name = |what: &str| format!("{}::{what}::{}", A::NAME, T::DTYPE);
        for sample in A::samples() {
            let name = |what: &str| format!("{}::{}", name(what), sample.name.replace(' ', "_"));
            let s = sample.clone();
            self.0.add(name("forward"), false, |gpu, full| {
                forward::<A, T>(gpu, full, s)
            });
            let s = sample.clone();
            self.0.add(name("backward"), false, |gpu, full| {
                backward::<A, T>(gpu, full, s)
            });
        }
        macro_rules! tests {
            ($($needs_emulator:literal $name:ident),+ $(,)?) => {
                $(self.0.add(name(stringify!($name)), $needs_emulator, $name::<A, T>);)+
            };
        }
        tests![
            false lengths_and_alignments,
            false rows_with_a_pitch,
            false empty,
            false parameters_of_the_type_of_x,
            false same_bits_on_any_grid,
            true same_bits_under_any_schedule,
            true traffic,
            true widths,
            false long_sums,
            false limits,
        ];
        if size_of::<T>() == 2 {
            tests![
                false terms,
                false mean_error_of_terms,
                false sums_of_terms,
            ];
        }
    }
}

impl Visitor for Activations<'_> {
    fn visit_gated<A: Gated + Registered>(&mut self) {
        self.gated::<A, f32>();
        self.gated::<A, f16>();
        self.gated::<A, bf16>();
    }

    fn visit<A: Registered>(&mut self) {
        self.of_type::<A, f32>();
        self.of_type::<A, f16>();
        self.of_type::<A, bf16>();
        self.0.add(
            format!("{}::stored_parameters", A::NAME),
            false,
            stored_parameters::<A>,
        );
    }
}

impl Activations<'_> {
    fn gated<A: Gated + Registered, T: Element>(&mut self) {
        for (number, order) in [(1, Order::First), (2, Order::Second)] {
            let name = |what: &str| format!("{}::gated{number}_{what}::{}", A::NAME, T::DTYPE);
            for sample in A::samples() {
                let name = |what: &str| format!("{}::{}", name(what), sample.name);
                let s = sample.clone();
                self.0.add(name("forward"), false, move |gpu, full| {
                    gated_forward::<A, T>(gpu, full, order, &s)
                });
                let s = sample.clone();
                self.0.add(name("backward"), false, move |gpu, full| {
                    gated_backward::<A, T>(gpu, full, order, &s)
                });
            }
            self.0.add(name("places"), false, move |gpu, _| {
                gated_places::<A, T>(gpu, order)
            });
            if size_of::<T>() == 2 {
                self.0.add(name("terms"), false, move |gpu, full| {
                    terms_of::<A, T>(gpu, full, &|gpu, s| Terms::gated(gpu, order, s))
                });
                self.0
                    .add(name("mean_error_of_terms"), false, move |gpu, _| {
                        mean_error_of::<A, T>(gpu, &|gpu, s| Terms::gated(gpu, order, s))
                    });
            }
            self.0.add(name("schedules"), true, move |gpu, full| {
                gated_schedules::<A, T>(gpu, full, order)
            });
            self.0.add(name("traffic"), true, move |gpu, _| {
                gated_traffic::<A, T>(gpu, order)
            });
            self.0.add(name("narrow_rows"), true, move |gpu, _| {
                gated_narrow_rows::<A, T>(gpu, order)
            });
        }
    }
}

/// The number of the `all` combinations of gates, values and gradients to run: all with exact instructions, else one for
/// each gate, unless XACT_FULL=1.
fn turns(full: bool, settings: Settings, all: usize) -> usize {
    if full || settings.approx == Approx::Nearest {
        all
    } else {
        1
    }
}

/// Every 16-bit gate and a dense sweep of f32, each with every one of VALUES and of the large values.
fn gated_forward<A: Gated + Registered, T: Element>(
    gpu: &Gpu,
    full: bool,
    order: Order,
    s: &Sample<A>,
) -> Outcome {
    let x = inputs::accuracy::<A, T>(s, points(full));
    for (settings, ulps) in modes(gpu) {
        for first in 0..turns(full, settings, VALUES.len()) {
            let v = inputs::cycle::<T>(&VALUES, first, x.len());
            let report = cuda_emulator::with_settings(settings, || {
                check::gated_forward(gpu, &s.op, order, &s.params, [&x, &v], ulps)
            });
            passed(&report, (settings, first, s))?;
            rounded::<A, T>(&format!("gated{}", order as u8 + 1), &report, s)?;
        }
        for [v, _] in inputs::large::<T>() {
            let all = inputs::cycle::<T>(&[v], 0, x.len());
            let report = cuda_emulator::with_settings(settings, || {
                check::gated_forward(gpu, &s.op, order, &s.params, [&x, &all], ulps)
            });
            passed(&report, (settings, v, s))?;
        }
    }
    Ok(())
}

/// The same for dx and dv, also with every one of GRADIENTS and of the large gradients. dα is tested over inputs whose sums
/// are finite, separately for each sign: ∂G/∂α is odd, so over both signs the errors of a wrong factor would cancel.
fn gated_backward<A: Gated + Registered, T: Element>(
    gpu: &Gpu,
    full: bool,
    order: Order,
    s: &Sample<A>,
) -> Outcome {
    let x = inputs::accuracy::<A, T>(s, points(full));
    let (negative, positive): (Vec<T>, Vec<T>) = inputs::summable(&x)
        .into_iter()
        .partition(|x| x.to_f64() < 0.0);
    let cycles = |[v, dy]: [usize; 2], len: usize| {
        [(&VALUES[..], v), (&GRADIENTS, dy)].map(|(of, first)| inputs::cycle::<T>(of, first, len))
    };
    for (settings, ulps) in modes(gpu) {
        let backward = |x: &[T], [v, dy]: [Vec<T>; 2]| {
            cuda_emulator::with_settings(settings, || {
                check::gated_backward(gpu, &s.op, order, &s.params, [x, &v, &dy], ulps)
            })
        };
        for first in 0..turns(full, settings, VALUES.len() * GRADIENTS.len()) {
            let firsts = [first % VALUES.len(), first % GRADIENTS.len()];
            let mut report = backward(&x, cycles(firsts, x.len()));
            report.parameters.clear();
            passed(&report, (settings, firsts, s))?;
            rounded::<A, T>(&format!("gated{}", order as u8 + 1), &report, s)?;
        }
        for pair in inputs::large::<T>() {
            let all = pair.map(|v| inputs::cycle::<T>(&[v], 0, x.len()));
            let mut report = backward(&x, all);
            report.parameters.clear();
            passed(&report, (settings, pair, s))?;
        }
        for (name, x) in [("negative", &negative), ("positive", &positive)] {
            passed(&backward(x, cycles([0, 0], x.len())), (settings, name, s))?;
        }
    }
    Ok(())
}

/// The layouts of a gate and a value, of which the blocks divide `cols` columns.
fn layouts(cols: usize) -> Vec<Layout> {
    let blocks = [1, 8, 16, 32, 256].into_iter();
    let blocks = blocks.filter(|&block| cols.is_multiple_of(block));
    let in_turn = blocks.flat_map(|block| {
        [Halves::GateFirst, Halves::ValueFirst].map(|order| Layout::Blocks(order, block))
    });
    [Layout::Separate, Layout::Halves]
        .into_iter()
        .chain(in_turn)
        .collect()
}

/// Gate and value in any layout, of any alignment and pitch, give the same bits as aligned tensors without gaps. The
/// gradients of the parameters are within their bounds of those.
fn gated_places<A: Gated + Registered, T: Element>(gpu: &Gpu, order: Order) -> Outcome {
    let sample = A::samples().remove(1);
    let mut random = Random(61);
    for (rows, cols) in [
        (1, 1),
        (1, 40),
        (3, 7),
        (5, 64),
        (2, 4100),
        (6, 33),
        (40, 16),
        (9, 3),
        (3, 256),
        (0, 32),
        (4, 0),
    ] {
        let n = rows * cols;
        let [x, v, dy] = [2.0, 1.0, 1.0].map(|scale| random.normal::<T>(n, scale));
        let forward =
            |how: &How| run::gated_forward(gpu, &sample.op, order, &sample.params, [&x, &v], how);
        let backward = |how: &How| {
            run::gated_backward(gpu, &sample.op, order, &sample.params, [&x, &v, &dy], how)
        };
        let dense = How {
            rows: rows.min(1),
            ..How::default()
        };
        let y = forward(&dense)?;
        let ([dx, dv], dparams) = backward(&dense)?;
        for layout in layouts(cols) {
            for round in 0..4 {
                // The first round is contiguous, and the second has the alignment of one element.
                let mut place = || match round {
                    0 => Place::default(),
                    1 => Place { offset: 1, gap: 0 },
                    _ => Place {
                        offset: random.bits() as usize % 8,
                        gap: random.bits() as usize % 9,
                    },
                };
                let how = How {
                    rows,
                    x: place(),
                    v: place(),
                    dy: place(),
                    out: place(),
                    layout,
                    in_place: round == 2,
                    emit_y: round == 3,
                    ..dense
                };
                let what = format!("{rows} x {cols}, {how:?}");
                equal(&format!("y, {what}"), &forward(&how)?, &y)?;
                let ([dx_again, dv_again], dparams_again) = backward(&how)?;
                equal(&format!("dx, {what}"), &dx_again, &dx)?;
                equal(&format!("dv, {what}"), &dv_again, &dv)?;
                for (again, of_dense) in dparams_again.iter().zip(&dparams) {
                    // The same terms in another order.
                    let terms = x.iter().zip(&v).zip(&dy).map(|((x, v), dy)| {
                        let upstream = dy.to_f64() * v.to_f64();
                        (upstream * (1.0 + x.to_f64())).abs()
                    });
                    let most = 1e-6 * terms.sum::<f64>();
                    if (f64::from(*again) - f64::from(*of_dense)).abs() > most {
                        return Err(format!("{what}: {again:e}, dense {of_dense:e}").into());
                    }
                }
            }
        }
    }
    Ok(())
}

/// The bits are the same under any schedule and on any grid, and the emulator reports nothing.
fn gated_schedules<A: Gated + Registered, T: Element>(
    gpu: &Gpu,
    full: bool,
    order: Order,
) -> Outcome {
    let sample = A::samples().remove(1);
    let n = 9_008;
    let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<T>(n, 1.5));
    let interleaved = |block| Layout::Blocks(Halves::ValueFirst, block);
    for (layout, in_place) in [
        (Layout::Separate, false),
        (interleaved(1), true),
        (interleaved(16), true),
    ] {
        let run = |blocks| {
            let how = How {
                blocks,
                layout,
                in_place,
                ..How::default()
            };
            run::gated_backward(gpu, &sample.op, order, &sample.params, [&x, &v, &dy], &how)
        };
        let ([dx, dv], dparams) = run(Blocks::All)?;
        let seeds = if full { 20 } else { 2 };
        let in_order = [Schedule::InOrder, Schedule::Reversed].into_iter();
        let schedules = in_order.chain((0..seeds).map(Schedule::Seeded));
        for (blocks, schedule) in schedules.enumerate() {
            let settings = Settings {
                schedule,
                ..Settings::default()
            };
            let blocks = NonZeroU32::new(blocks as u32).into();
            let ([dx_again, dv_again], again) =
                cuda_emulator::with_settings(settings, || run(blocks))?;
            equal("dx", &dx_again, &dx)?;
            equal("dv", &dv_again, &dv)?;
            equal("dparams", &again, &dparams)?;
        }
    }
    Ok(())
}

/// What the emulator counted in a forward and a backward of a gated form.
fn gated_launches<A: Gated + Registered, T: Element>(
    gpu: &Gpu,
    order: Order,
    s: &Sample<A>,
    [x, v, dy]: [&[T]; 3],
    how: &How,
) -> Result<[LaunchReport; 2], Failed> {
    let (y, forward) =
        cuda_emulator::record(|| run::gated_forward(gpu, &s.op, order, &s.params, [x, v], how));
    y?;
    let (gradients, backward) = cuda_emulator::record(|| {
        run::gated_backward(gpu, &s.op, order, &s.params, [x, v, dy], how)
    });
    gradients?;
    // The launch of the second stage follows that of the backward.
    let first = |launches: Vec<LaunchReport>| launches.into_iter().next().ok_or("no launch");
    Ok([first(forward)?, first(backward)?])
}

/// Each byte is moved once, in vectors of 16 bytes: 3 tensors in the forward, 5 in the backward. Of gate and value that
/// alternate one by one, a vector has half a sector.
fn gated_traffic<A: Gated + Registered, T: Element>(gpu: &Gpu, order: Order) -> Outcome {
    let sample = A::samples().remove(1);
    let n = 1 << 15;
    let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<T>(n, 1.5));
    for layout in layouts(n / 8) {
        let how = How {
            layout,
            rows: 8,
            ..How::default()
        };
        let launches = gated_launches(gpu, order, &sample, [&x, &v, &dy], &how)?;
        let bytes = (n * size_of::<T>()) as u64;
        for (launch, (read, written)) in launches.iter().zip([(2, 1), (3, 2)]) {
            let tensors = || run::tensors(launch).filter(|b| b.len >= bytes);
            let sum = |of: fn(&BufferTraffic) -> u64| tensors().map(of).sum::<u64>();
            let counted = (sum(|b| b.bytes_read), sum(|b| b.bytes_written));
            if counted != (read * bytes, written * bytes) {
                return Err(format!("{}, {layout:?}: {counted:?}", launch.kernel).into());
            }
            let narrow = sum(|b| {
                b.loads.by_width[..4]
                    .iter()
                    .chain(&b.stores.by_width[..4])
                    .sum()
            });
            let extra = sum(|b| b.loads.sectors + b.stores.sectors)
                - sum(|b| b.loads.minimum_sectors + b.stores.minimum_sectors);
            let most = match layout {
                Layout::Blocks(_, block) if block * size_of::<T>() < 32 => sum(|b| {
                    let transfers = [&b.loads, &b.stores];
                    transfers.map(|of| of.minimum_sectors).iter().sum()
                }),
                _ => 0,
            };
            if narrow > 0 || extra > most {
                let what = format!("{}, {layout:?}", launch.kernel);
                return Err(format!("{what}: {narrow} narrow, {extra} sectors").into());
            }
        }
    }
    Ok(())
}

/// Short rows share the work of a block: they cost at most twice the instructions of long ones, if they are aligned, and
/// each byte is moved once; otherwise at most 8 times as many. Where gate and value alternate, rows of any length cost at
/// most 3 times the instructions of long rows of halves.
fn gated_narrow_rows<A: Gated + Registered, T: Element>(gpu: &Gpu, order: Order) -> Outcome {
    let sample = A::samples().remove(1);
    let n = 12 * 4096;
    let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<T>(n, 1.5));
    let bytes = (n * size_of::<T>()) as u64;
    let odd = |offset| Place { offset, gap: 1 };
    // The instructions per element of the forward and of the backward.
    let instructions = |layout, cols: usize, aligned: bool| -> Result<[f64; 2], Failed> {
        let mut how = How {
            layout,
            rows: n / cols,
            ..How::default()
        };
        if !aligned {
            (how.x, how.dy, how.out) = (odd(1), odd(2), odd(3));
        }
        let launches = gated_launches(gpu, order, &sample, [&x, &v, &dy], &how)?;
        for (launch, moved) in launches.iter().zip([3, 5]) {
            let tensors = run::tensors(launch).filter(|b| b.len >= bytes);
            let sum: u64 = tensors.map(|b| b.bytes_read + b.bytes_written).sum();
            if sum != moved * bytes {
                let what = format!("{}, {layout:?}, {cols} columns", launch.kernel);
                return Err(format!("{what}: {sum} bytes").into());
            }
        }
        Ok(launches.map(|launch| launch.instructions as f64 / n as f64))
    };
    let long = instructions(Layout::Halves, 4096, true)?;
    for cols in [16, 64, 96, 256, 4096] {
        let gate_first = |layout: &Layout| matches!(layout, Layout::Blocks(Halves::GateFirst, _));
        let in_turn = layouts(cols).into_iter().filter(gate_first);
        let in_turn = in_turn.map(|layout| (layout, true, 3.0));
        let halves = [(true, 2.0), (false, 8.0)];
        let halves = halves.map(|(aligned, most)| (Layout::Halves, aligned, most));
        for (layout, aligned, most) in halves.into_iter().chain(in_turn) {
            let short = instructions(layout, cols, aligned)?;
            for (short, long) in short.into_iter().zip(long) {
                if short > most * long {
                    let what = format!("{layout:?}, {cols} columns, aligned: {aligned}");
                    return Err(
                        format!("{what}: {short:.1} per element, {long:.1} in long rows").into(),
                    );
                }
            }
        }
    }
    Ok(())
}

/// The modes of the approximate instructions, each with its bound. A real device has one mode.
fn modes(gpu: &Gpu) -> Vec<(Settings, f64)> {
    check::modes(gpu, &check::EVERY)
}

/// At the initial parameters and at those of a published model, at least 97 % of 16-bit results are correctly rounded, or the
/// share of an f32 formula less one point, where that is lower.
fn rounded<A: Registered, T: Element>(form: &str, report: &Report, s: &Sample<A>) -> Outcome {
    if size_of::<T>() != 2 || !["initial", "apertus"].contains(&s.name) {
        return Ok(());
    }
    for tensor in &report.tensors {
        // The shares of the f32 formulas are of version 0.1.0 before its kernels had formulas for 16 bits.
        let of_f32 = match (A::NAME, T::DTYPE, form, tensor.name) {
            // Subnormal products with v, of gates that fall exponentially.
            (name, Dtype::Bf16, "gated2", "y") if name != "xatlu" => 96.43,
            _ => 98.0,
        };
        let share = 100.0 * tensor.correctly_rounded as f64 / tensor.len as f64;
        if share < of_f32 - 1.0 {
            return Err(format!("{s:?}, {form}: {share:.2} % of {}", tensor.name).into());
        }
    }
    Ok(())
}

fn passed(report: &Report, context: impl std::fmt::Debug) -> Outcome {
    if report.ok() {
        Ok(())
    } else {
        Err(format!("{context:?}\n{report}").into())
    }
}

/// dx and the parameter gradients are those of the stored parameters.
fn are_gradients<A: Registered, T: Element>(
    s: &Sample<A>,
    [x, dy, dx]: [&[T]; 3],
    dparams: &[f32],
    context: impl std::fmt::Debug,
) -> Outcome {
    let [stored, dparams] =
        [&s.params, dparams].map(|values| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    let bounds = Bounds::of(&s.op);
    let report = reference::check_gradients(&s.op, &stored, x, dy, dx, &dparams, bounds)?;
    passed(&report, context)
}

fn equal<T: Element>(what: &str, got: &[T], expected: &[T]) -> Outcome {
    let differs = got.len() != expected.len() || bits(got) != bits(expected);
    let at =
        (0..got.len().min(expected.len())).find(|&i| bits(&got[i..=i]) != bits(&expected[i..=i]));
    if differs {
        let pair = at.map(|i| (got[i], expected[i]));
        return Err(format!("{what}: differs at {at:?}: {pair:?}").into());
    }
    Ok(())
}

/// The number of points of an f32 accuracy test.
fn points(full: bool) -> u32 {
    if full { 1 << 22 } else { 1 << 15 }
}

/// Every 16-bit input and a dense sweep of f32, in each mode of the approximate instructions.
fn forward<A: Registered, T: Element>(gpu: &Gpu, full: bool, s: Sample<A>) -> Outcome {
    let x = inputs::accuracy::<A, T>(&s, points(full));
    for (settings, ulps) in modes(gpu) {
        let report = cuda_emulator::with_settings(settings, || {
            check::forward(gpu, &s.op, &s.params, &x, ulps)
        });
        passed(&report, (settings, &s))?;
        rounded::<A, T>("plain", &report, &s)?;
    }
    Ok(())
}

/// The same for dx, with a dy of 1, random ones and large ones, and for the parameter gradients over inputs whose sums are
/// finite.
fn backward<A: Registered, T: Element>(gpu: &Gpu, full: bool, s: Sample<A>) -> Outcome {
    let x = inputs::accuracy::<A, T>(&s, points(full));
    let finite = inputs::summable(&x);
    let ones = vec![T::from_f64(1.0); x.len()];
    let random = Random(7).normal::<T>(x.len(), 1.0);
    for (settings, ulps) in modes(gpu) {
        cuda_emulator::with_settings(settings, || {
            let mut report = check::backward(gpu, &s.op, &s.params, &x, &ones, ulps);
            // Inputs of 1e38 make every sum infinite.
            report.parameters.clear();
            passed(&report, (settings, "dy = 1", &s))?;
            rounded::<A, T>("plain", &report, &s)?;
            for [_, dy] in inputs::large::<T>() {
                let all = inputs::cycle::<T>(&[dy], 0, x.len());
                let mut report = check::backward(gpu, &s.op, &s.params, &x, &all, ulps);
                report.parameters.clear();
                passed(&report, (settings, dy, &s))?;
            }
            let report = check::backward(
                gpu,
                &s.op,
                &s.params,
                &finite,
                &random[..finite.len()],
                ulps,
            );
            passed(&report, (settings, "random dy", &s))
        })?;
    }
    Ok(())
}

/// The parameters that the kernel computes from the stored ones are within the bound.
fn stored_parameters<A: Registered>(gpu: &Gpu, _full: bool) -> Outcome {
    /// The bound for the softplus of raw parameters in README.md's section Accuracy.
    const ULPS: f64 = 4.0;
    let required = A::SIGNATURE.params.len() - A::SIGNATURE.optional;
    // Every op once: samples that differ only in their parameters are equal here.
    let ops: BTreeMap<String, A> = A::samples()
        .into_iter()
        .filter(|s| s.params.len() == required)
        .map(|s| (format!("{:?}", s.op), s.op))
        .collect();
    let [x, dy] = [[1.0, -1.0], [1.0; 2]];
    for (settings, ulps) in modes(gpu) {
        let raw = inputs::f32_sweep(512).into_iter();
        let raw = raw.filter(|raw| raw.is_finite() && raw.abs() <= 200.0);
        for (i, raw) in raw.enumerate() {
            for op in ops.values() {
                let params = vec![raw; required];
                // The gradients are within the bound too.
                if i % 8 == 0 {
                    cuda_emulator::with_settings(settings, || {
                        let report = check::backward::<A, f32>(gpu, op, &params, &x, &dy, ulps);
                        passed(&report, (settings, op, raw))
                    })?;
                }
                let measured =
                    cuda_emulator::with_settings(settings, || check::measured(gpu, op, &params));
                let stored: Vec<_> = params.iter().map(|&p| f64::from(p)).collect();
                // f at 1 is linear in the parameters, with coefficient 1.
                let at = |params: &[f64]| op.evaluate(params, 1.0).y.value;
                let (exact, got) = (at(&stored), at(&measured));
                if (got - exact).abs() > ULPS * reference::ulp::<f32>(exact) {
                    return Err(format!("{settings:?} {raw:e}: {got:e}, exact {exact:e}").into());
                }
            }
        }
    }
    Ok(())
}

/// The result does not depend on where the buffers begin: each element has the same bits as in an aligned run, also in
/// place, and no other memory is written.
fn lengths_and_alignments<A: Registered, T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    let tile = 4096;
    let mut lengths: Vec<usize> = (1..=33).chain([63, 64, 65, 255, 256, 257]).collect();
    lengths.extend([tile - 1, tile, tile + 1, 2 * tile - 7, 3 * tile + 5]);
    let vector = 16 / size_of::<T>();
    let mut random = Random(3);
    let x = random.normal::<T>(3 * tile + 5, 2.0);
    let dy = random.normal::<T>(x.len(), 1.0);
    let whole = How::default();
    let y_whole = run::forward(gpu, &sample.op, &sample.params, &x, &whole)?;
    let (dx_whole, _) = run::backward(gpu, &sample.op, &sample.params, &x, &dy, &whole)?;
    for n in lengths {
        let (x, dy) = (&x[..n], &dy[..n]);
        for round in 0..if full { 64 } else { 12 } {
            // The first rounds shift all buffers equally, the others each one separately.
            let mut offset = || {
                let offset = if round < vector {
                    round
                } else {
                    random.bits() as usize % vector
                };
                Place { offset, gap: 0 }
            };
            let how = How {
                x: offset(),
                dy: offset(),
                out: offset(),
                ..whole
            };
            for (in_place, over_x) in [(false, false), (true, false), (false, true)] {
                let how = How {
                    in_place,
                    over_x,
                    emit_y: round % 2 == 1,
                    ..how
                };
                let y = run::forward(gpu, &sample.op, &sample.params, x, &how)?;
                equal(&format!("y, n = {n}, {how:?}"), &y, &y_whole[..n])?;
                let (dx, dparams) = run::backward(gpu, &sample.op, &sample.params, x, dy, &how)?;
                equal(&format!("dx, n = {n}, {how:?}"), &dx, &dx_whole[..n])?;
                are_gradients(&sample, [x, dy, &dx], &dparams, (n, how))?;
            }
        }
    }
    Ok(())
}

/// Rows of any pitch, such as the halves of a [rows, 2n] tensor, give the same results as separate rows.
fn rows_with_a_pitch<A: Registered, T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    let mut random = Random(5);
    for (rows, cols) in [
        (1, 100),
        (2, 8),
        (3, 1),
        (7, 33),
        (5, 4096),
        (4, 4099),
        (300, 5),
        // Several tiles of many rows each.
        (4201, 3),
    ] {
        let x = random.normal::<T>(rows * cols, 2.0);
        let dy = random.normal::<T>(rows * cols, 1.0);
        let dense = How::default();
        let y_dense = run::forward(gpu, &sample.op, &sample.params, &x, &dense)?;
        let (dx_dense, _) = run::backward(gpu, &sample.op, &sample.params, &x, &dy, &dense)?;
        let gaps = [[1, 2, 3], [cols; 3], [8, 8, 8], [0, 0, 0], [0, 5, 0]];
        for gaps in &gaps[..if rows > 1000 { 1 } else { gaps.len() }] {
            let place = |gap| Place {
                offset: gap % 3,
                gap,
            };
            let how = How {
                rows,
                x: place(gaps[0]),
                dy: place(gaps[1]),
                out: place(gaps[2]),
                emit_y: true,
                ..dense
            };
            let what = format!("{rows} x {cols}, gaps {gaps:?}");
            let y = run::forward(gpu, &sample.op, &sample.params, &x, &how)?;
            equal(&format!("y, {what}"), &y, &y_dense)?;
            let (dx, dparams) = run::backward(gpu, &sample.op, &sample.params, &x, &dy, &how)?;
            equal(&format!("dx, {what}"), &dx, &dx_dense)?;
            are_gradients(&sample, [&x, &dy, &dx], &dparams, what)?;
        }
    }
    Ok(())
}

/// f at ±0, and f and f′ at ±inf.
fn limits<A: Registered, T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    for s in A::samples() {
        for (settings, _) in modes(gpu) {
            for params in inputs::parameters_and_tiny_ones(&s) {
                cuda_emulator::with_settings(settings, || {
                    check::limits::<A, T>(gpu, &s.op, &params)
                })?;
            }
        }
    }
    Ok(())
}

/// With no elements, only the parameter gradients are written, as 0; when accumulating, they keep their values.
fn empty<A: Registered, T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    for rows in [0, 1] {
        let how = How {
            rows,
            ..How::default()
        };
        run::forward::<A, T, f32>(gpu, &sample.op, &sample.params, &[], &how)?;
        for (accumulate, expected) in [(false, 0.0), (true, DPARAMS_BEFORE)] {
            let how = How { accumulate, ..how };
            let (_, dparams) =
                run::backward::<A, T, f32>(gpu, &sample.op, &sample.params, &[], &[], &how)?;
            equal("dparams", &dparams, &vec![expected; sample.params.len()])?;
        }
    }
    Ok(())
}

/// Parameters of the type of x give the same results as the same values in f32.
fn parameters_of_the_type_of_x<A: Registered, T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let x = Random(11).normal::<T>(1000, 3.0);
    let dy = Random(12).normal::<T>(1000, 1.0);
    for sample in A::samples() {
        let narrow: Vec<T> = sample
            .params
            .iter()
            .map(|&p| T::from_f64(f64::from(p)))
            .collect();
        let wide: Vec<f32> = narrow.iter().map(|p| p.to_f64() as f32).collect();
        let how = How::default();
        let y = run::forward(gpu, &sample.op, &narrow, &x, &how)?;
        equal("y", &y, &run::forward(gpu, &sample.op, &wide, &x, &how)?)?;
        let (dx, dparams) = run::backward(gpu, &sample.op, &narrow, &x, &dy, &how)?;
        let (dx_wide, dparams_wide) = run::backward(gpu, &sample.op, &wide, &x, &dy, &how)?;
        equal("dx", &dx, &dx_wide)?;
        equal("dparams", &dparams, &dparams_wide)?;
    }
    Ok(())
}

/// The bits are the same on any grid and in every run, and accumulation adds exactly one f32.
fn same_bits_on_any_grid<A: Registered, T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    let n = if full { 1_000_003 } else { 50_003 };
    let x = Random(21).normal::<T>(n, 2.0);
    let dy = Random(22).normal::<T>(n, 1.0);
    let run = |how: &How| run::backward(gpu, &sample.op, &sample.params, &x, &dy, how);
    let (dx, dparams) = run(&How::default())?;
    let few = [1, 2, 3, 7, 1_000_000].map(|blocks| NonZeroU32::new(blocks).into());
    for blocks in few.into_iter().chain([Blocks::Resident]) {
        let how = How {
            blocks,
            ..How::default()
        };
        let (dx_again, dparams_again) = run(&how)?;
        equal(&format!("dx, {blocks:?}"), &dx_again, &dx)?;
        equal(&format!("dparams, {blocks:?}"), &dparams_again, &dparams)?;
    }
    let (_, accumulated) = run(&How {
        accumulate: true,
        ..How::default()
    })?;
    let expected: Vec<_> = dparams.iter().map(|v| DPARAMS_BEFORE + v).collect();
    equal("accumulated dparams", &accumulated, &expected)
}

/// The bits are the same for any order in which blocks, warps and lanes run. The launch would fail on a race, a read of
/// unwritten memory or an access outside a buffer.
fn same_bits_under_any_schedule<A: Registered, T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    // For one op enough chunks that two blocks add up the sums of each parameter, of which any may be the last.
    let n = if (A::NAME, T::DTYPE) == (Xielu::NAME, Dtype::F32) {
        300 * 2048
    } else {
        9_001
    };
    let x = Random(31).normal::<T>(n, 2.0);
    let dy = Random(32).normal::<T>(n, 1.0);
    let how = How {
        x: Place { offset: 1, gap: 0 },
        ..How::default()
    };
    let run = || -> xact::Result<_> {
        let y = run::forward(gpu, &sample.op, &sample.params, &x, &how)?;
        let (dx, dparams) = run::backward(gpu, &sample.op, &sample.params, &x, &dy, &how)?;
        Ok((y, dx, dparams))
    };
    let (y, dx, dparams) = run()?;
    let seeds = if full { 20 } else { 3 };
    let schedules = (0..seeds).map(Schedule::Seeded).chain([Schedule::Reversed]);
    for schedule in schedules {
        let settings = Settings {
            schedule,
            ..Settings::default()
        };
        let again = cuda_emulator::with_settings(settings, run)?;
        equal(&format!("y, {schedule:?}"), &again.0, &y)?;
        equal(&format!("dx, {schedule:?}"), &again.1, &dx)?;
        equal(&format!("dparams, {schedule:?}"), &again.2, &dparams)?;
    }
    Ok(())
}

/// Each input byte is read once and each output byte is written once, in 16-byte accesses if the buffers are aligned, and
/// in the minimum number of sectors.
fn traffic<A: Registered, T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    let size = size_of::<T>() as u64;
    for (n, offset) in [(1 << 16, 0), (100_003, 0), (100_003, 1), (7, 1), (4097, 3)] {
        let x = Random(41).normal::<T>(n, 2.0);
        let dy = Random(42).normal::<T>(n, 1.0);
        let place = Place { offset, gap: 0 };
        let how = How {
            x: place,
            dy: place,
            out: place,
            ..How::default()
        };
        let (y, forward) =
            cuda_emulator::record(|| run::forward(gpu, &sample.op, &sample.params, &x, &how));
        y?;
        let (dx, backward) =
            cuda_emulator::record(|| run::backward(gpu, &sample.op, &sample.params, &x, &dy, &how));
        dx?;
        let bytes = n as u64 * size;
        let vectors = ((n - (16 / size as usize - offset) % (16 / size as usize)) * size as usize
            / 16) as u64;
        for (launch, inputs) in [(&forward[0], 1), (&backward[0], 2)] {
            // The partial sums have a unique length.
            let is_workspace = |b: &BufferTraffic| {
                b.len == run::workspace_bytes(&sample.op, T::DTYPE, 1, n) as u64
            };
            let tensors: Vec<_> = run::tensors(launch).filter(|b| !is_workspace(b)).collect();
            let read: u64 = tensors.iter().map(|b| b.bytes_read).sum();
            let written: u64 = tensors.iter().map(|b| b.bytes_written).sum();
            if (read, written) != (inputs * bytes, bytes) {
                return Err(
                    format!("{}, n = {n}: read {read}, written {written}", launch.kernel).into(),
                );
            }
            for buffer in tensors {
                for access in [&buffer.loads, &buffer.stores] {
                    let narrow: u64 = access.by_width[..4].iter().sum();
                    let total: u64 = access.by_width.iter().sum();
                    if total > 0 && access.by_width[4] != vectors && n > 100 {
                        return Err(format!(
                            "{}, n = {n}, offset {offset}: {:?}, expected {vectors} vectors",
                            launch.kernel, access.by_width
                        )
                        .into());
                    }
                    // A scalar head and a scalar tail.
                    if narrow > 2 * (16 / size) {
                        return Err(format!("{narrow} narrow accesses").into());
                    }
                    if offset == 0 && access.sectors > access.minimum_sectors {
                        return Err(format!(
                            "{}, n = {n}: {} sectors, {} would do",
                            launch.kernel, access.sectors, access.minimum_sectors
                        )
                        .into());
                    }
                }
            }
        }
    }
    Ok(())
}

/// A buffer whose alignment differs from that of x is accessed with the widest possible vectors.
fn widths<A: Registered, T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    let (n, size) = (8192, size_of::<T>());
    let [x, dy] = [71, 72].map(|seed| Random(seed).normal::<T>(n, 2.0));
    let of_width = |width: usize| {
        let mut counts = [0; 5];
        counts[width.trailing_zeros() as usize] = (n * size / width) as u64;
        counts
    };
    for offset in 0..16 / size {
        let width = match offset {
            0 => 16,
            _ => 1 << (offset * size).trailing_zeros(),
        };
        let place = Place { offset, gap: 0 };
        let how = How {
            out: place,
            ..How::default()
        };
        let (y, launches) =
            cuda_emulator::record(|| run::forward(gpu, &sample.op, &sample.params, &x, &how));
        y?;
        let output = run::tensors(&launches[0]).find(|b| b.bytes_written > 0);
        let stores = output.expect("y is written").stores.by_width;
        if stores != of_width(width) {
            return Err(format!("offset {offset}: {stores:?}, expected {width} bytes").into());
        }
        let how = How {
            dy: place,
            ..How::default()
        };
        let (dx, launches) =
            cuda_emulator::record(|| run::backward(gpu, &sample.op, &sample.params, &x, &dy, &how));
        dx?;
        let inputs = run::tensors(&launches[0]).filter(|b| b.bytes_read > 0);
        let mut loads: Vec<_> = inputs.map(|b| b.loads.by_width).collect();
        let mut expected = vec![of_width(16), of_width(width)];
        loads.sort();
        expected.sort();
        if loads != expected {
            let what = format!("dy at offset {offset}: {loads:?}, expected {width} bytes");
            return Err(what.into());
        }
    }
    Ok(())
}

/// Parameter gradients over many elements whose terms cancel are accurate.
fn long_sums<A: Registered, T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    // The sums are f32 for every T, in a loop that all ops share. One op therefore represents all, unless XACT_FULL=1.
    let n = if full || (A::NAME, T::DTYPE) == (Xielu::NAME, Dtype::Bf16) {
        10_000_019
    } else {
        300_007
    };
    let x = Random(51).normal::<T>(n, 3.0);
    // First terms of one sign that a running f32 sum would lose against the total, then their opposites.
    let mut dy = vec![T::from_f64(1.0); n];
    for v in &mut dy[n / 2..] {
        *v = T::from_f64(-0.99);
    }
    let how = How::default();
    let (dx, dparams) = run::backward(gpu, &sample.op, &sample.params, &x, &dy, &how)?;
    are_gradients(&sample, [&x, &dy, &dx], &dparams, n)
}

/// From x and dy to the parameter gradients.
type ParameterGradients<'a, T> = dyn Fn(&[T], &[T]) -> xact::Result<Vec<f32>> + 'a;

/// The backward of a form of an op with v = 1, as the terms of its parameter gradients see it.
struct Terms<'a, A, T> {
    sample: &'a Sample<A>,
    evaluate: Box<dyn Fn(f64) -> Evaluation + 'a>,
    gradients: Box<ParameterGradients<'a, T>>,
}

impl<'a, A: Registered, T: Element> Terms<'a, A, T> {
    fn plain(gpu: &'a Gpu, sample: &'a Sample<A>) -> Self {
        let (op, params) = (&sample.op, wide(&sample.params));
        Terms {
            sample,
            evaluate: Box::new(move |x| op.evaluate(&params, x)),
            gradients: Box::new(move |x, dy| {
                let how = How::default();
                Ok(run::backward(gpu, op, &sample.params, x, dy, &how)?.1)
            }),
        }
    }

    fn gated(gpu: &'a Gpu, order: Order, sample: &'a Sample<A>) -> Self
    where
        A: Gated,
    {
        let (op, params) = (&sample.op, wide(&sample.params));
        Terms {
            sample,
            evaluate: Box::new(move |x| op.evaluate_order(order, &params, x)),
            gradients: Box::new(move |x, dy| {
                let v = vec![T::from_f64(1.0); x.len()];
                let (params, how) = (&sample.params, How::default());
                Ok(run::gated_backward(gpu, op, order, params, [x, &v, dy], &how)?.1)
            }),
        }
    }

    fn chain(&self) -> [f64; xact::activation::MAX_PARAMS] {
        self.sample.op.chain(&wide(&self.sample.params))
    }

    /// The relative error of the chain factor, which is that of softplus.
    fn chain_error(&self) -> f64 {
        self.sample.op.parameter_ulps() * 2f64.powi(-23)
    }
}

/// The terms of a form on a device.
type Of<'f, A, T> = &'f dyn for<'a> Fn(&'a Gpu, &'a Sample<A>) -> Terms<'a, A, T>;

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Each term of a parameter gradient of a 16-bit tensor, alone in its sum, is within 2⁻¹⁴ of its addends.
fn terms<A: Registered, T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    terms_of::<A, T>(gpu, full, &|gpu, s| Terms::plain(gpu, s))
}

/// The values of x for which a kernel is launched alone: a few of each size, or all with XACT_FULL=1.
fn some_of_each_size<T: Element>(full: bool) -> impl Iterator<Item = T> {
    let step = if full { 1 } else { 211 };
    let all = inputs::every_16_bit::<T>().into_iter().step_by(step);
    all.filter(|x| x.to_f64().is_finite())
}

fn terms_of<A: Registered, T: Element>(gpu: &Gpu, full: bool, of: Of<'_, A, T>) -> Outcome {
    /// The bound of README.md's section Accuracy.
    const BOUND: f64 = 1.0 / 16384.0;
    for s in A::samples() {
        let terms = of(gpu, &s);
        let (chain, slack) = (terms.chain(), terms.chain_error());
        for (settings, _) in modes(gpu) {
            for x in some_of_each_size::<T>(full) {
                let exact = (terms.evaluate)(x.to_f64());
                let run = || (terms.gradients)(&[x], &[T::from_f64(1.0)]);
                let got = cuda_emulator::with_settings(settings, run)?;
                for (p, &got) in got.iter().enumerate() {
                    let value = exact.dparams[p] * chain[p];
                    // The last rounding, also of a subnormal; and sums beyond f32 are infinite.
                    let rounding = slack * value.abs() + reference::ulp::<f32>(value);
                    let allowed = BOUND * exact.dparam_addends[p] * chain[p] + rounding;
                    let error = (f64::from(got) - value).abs();
                    if error > allowed && (exact.dparams[p] as f32).is_finite() {
                        let what = (settings, &s, x, p);
                        return Err(format!("{what:?}: {got:e}, exact {value:e}").into());
                    }
                }
            }
        }
    }
    Ok(())
}

/// The signed errors of the terms of 16-bit tensors, relative to their addends, have a mean of at most 2⁻¹⁸ over all inputs:
/// what is left of them in a long sum.
fn mean_error_of_terms<A: Registered, T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    mean_error_of::<A, T>(gpu, &|gpu, s| Terms::plain(gpu, s))
}

/// One sum for each range of sizes of the addends gives the sum of the relative errors, with dy = 1/addends, rounded to T,
/// times a power of two that keeps all numbers within the types. The rounding of dy changes the weight of an error by 2⁻⁸ at
/// most, and the mean by that part of it.
fn mean_error_of<A: Registered, T: Element>(gpu: &Gpu, of: Of<'_, A, T>) -> Outcome {
    /// The bound of README.md's section Accuracy.
    const BOUND: f64 = 1.0 / 262_144.0;
    /// The powers of two in one range.
    const RANGE: i32 = 12;
    let all = inputs::every_16_bit::<T>();
    for s in A::samples() {
        let terms = of(gpu, &s);
        let chain = terms.chain();
        for (p, settings) in (0..s.params.len()).flat_map(|p| {
            modes(gpu)
                .into_iter()
                .map(move |(settings, _)| (p, settings))
        }) {
            let mut ranges: BTreeMap<i32, Vec<(T, Evaluation)>> = BTreeMap::new();
            for &x in all.iter().filter(|x| x.to_f64().is_finite()) {
                let point = (terms.evaluate)(x.to_f64());
                let addends = point.dparam_addends[p];
                // Others are no normal f32 numbers, or not in an f32 sum of many.
                if (2f64.powi(-126)..2f64.powi(108)).contains(&addends) {
                    let range = (addends.log2().floor() as i32).div_euclid(RANGE);
                    ranges.entry(range).or_default().push((x, point));
                }
            }
            // A factor that is 0 in f32 leaves no errors; `terms` sees that the gradient is 0.
            if chain[p] as f32 == 0.0 {
                continue;
            }
            let (mut errors, mut count) = (0.0, 0);
            for (range, points) in ranges {
                // A product that is far from the limits of f32, with a factor that is within T.
                let middle = range * RANGE + RANGE / 2;
                let scale = 2f64.powi(if middle < -60 { middle + 60 } else { middle });
                let dy = |point: &Evaluation| T::from_f64(scale / point.dparam_addends[p]);
                let (x, dy): (Vec<T>, Vec<T>) = points.iter().map(|(x, e)| (*x, dy(e))).unzip();
                let got = cuda_emulator::with_settings(settings, || (terms.gradients)(&x, &dy))?;
                let exact = points.iter().zip(&dy);
                let exact: f64 = exact.map(|((_, e), dy)| e.dparams[p] * dy.to_f64()).sum();
                errors += (f64::from(got[p]) / chain[p] - exact) / scale;
                count += x.len();
            }
            let mean = errors / f64::from(count as u32);
            if mean.abs() > BOUND + terms.chain_error() {
                return Err(format!("{settings:?} {s:?}, gradient {p}: {mean:e}").into());
            }
        }
    }
    Ok(())
}

/// A long sum of a few different terms is the sum of these terms as the kernel computes them alone, within the bound of the
/// summation.
fn sums_of_terms<A: Registered, T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let sample = A::samples().remove(0);
    let terms = Terms::plain(gpu, &sample);
    let x = Random(81).normal::<T>(37, 3.0);
    let dy = Random(82).normal::<T>(41, 1.0);
    let n = 300_007;
    let pairs = x.len() * dy.len();
    let alone: Vec<_> = (0..pairs)
        .map(|i| (terms.gradients)(&[x[i % x.len()]], &[dy[i % dy.len()]]))
        .collect::<Result<_, _>>()?;
    let [x, dy] = [&x, &dy].map(|of| of.iter().copied().cycle().take(n).collect::<Vec<_>>());
    let together = (terms.gradients)(&x, &dy)?;
    for (p, &got) in together.iter().enumerate() {
        let of = |i: usize| f64::from(alone[i % pairs][p]);
        let sum: f64 = (0..n).map(of).sum();
        let magnitude: f64 = (0..n).map(|i| of(i).abs()).sum();
        let error = (f64::from(got) - sum).abs() / magnitude;
        if error > reference::PARAM_GRADIENT_BOUND {
            return Err(format!("gradient {p}: {got:e} for {sum:e}, {error:e}").into());
        }
    }
    Ok(())
}
