//! Every activation × form × sample × type, compared with the reference under the bounds of exact arithmetic, at every
//! 16-bit input; the same bits in every instruction set and with any number of threads; lengths, in place, errors.

use super::{Outcome, Table};
use half::{bf16, f16};
use xact::activation::{Registered, Sample, Visitor};
use xact::cpu::{self, Input, InstructionSet, Output, Pair, PairMut};
use xact::reference::{self, Bounds, GatedGradients, Report, ULPS_EXACT, ulp};
use xact::{
    AnyActivation, Compat, Element, EpsGradient, Error, Gated, Halves, Order, Parameters, Rows,
    Xgelu, Xielu, Xsilu,
};
use xact_dev::inputs::{self, GRADIENTS, Random, VALUES};
use xact_dev::limits::{self, X};

/// Adds the trials of each op, and those that all ops share.
pub(crate) fn add_to(table: &mut Table) {
    xact::activation::for_each(table);
    table.add("softplus", softplus);
    table.add("errors", errors);
    table.add("value_first", value_first);
    table.add("rows_with_gaps", rows_with_gaps::<f32>);
    table.add("rows_with_gaps_bf16", rows_with_gaps::<bf16>);
    table.add("gated_in_place", gated_in_place);
    table.add("shapes", shapes);
    table.add("gradients_left_out", gradients_left_out);
    table.add("by_name", by_name);
}

impl Table {
    fn plain<A: Registered, T: Element>(&mut self) {
        let name = |what: &str| format!("{}::{what}::{}", A::NAME, T::DTYPE);
        for s in A::samples() {
            let name = |what: &str| format!("{}::{}", name(what), s.name.replace(' ', "_"));
            let (a, b, c) = (s.clone(), s.clone(), s.clone());
            self.add(name("forward"), move || forward::<A, T>(&a));
            self.add(name("backward"), move || backward::<A, T>(&b));
            self.add(name("same_bits"), move || same_bits::<A, T>(&c));
        }
        self.add(name("limits"), limits::<A, T>);
        self.add(name("lengths"), lengths::<A, T>);
        self.add(name("long_sums"), long_sums::<A, T>);
    }

    fn gated<A: Gated + Registered, T: Element>(&mut self) {
        for (number, order) in [(1, Order::First), (2, Order::Second)] {
            let name = |what: &str| format!("{}::gated{number}_{what}::{}", A::NAME, T::DTYPE);
            for s in A::samples() {
                let name = |what: &str| format!("{}::{}", name(what), s.name);
                let (a, b, c) = (s.clone(), s.clone(), s.clone());
                self.add(name("forward"), move || gated_forward::<A, T>(order, &a));
                self.add(name("backward"), move || gated_backward::<A, T>(order, &b));
                self.add(name("same_bits"), move || {
                    gated_same_bits::<A, T>(order, &c)
                });
            }
        }
    }
}

impl Visitor for Table {
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

const BOUNDS: Bounds = Bounds::new(ULPS_EXACT);

fn passed(report: &Report, what: impl std::fmt::Debug) -> Outcome {
    if report.ok() {
        return Ok(());
    }
    Err(format!("{what:?}: {report}").into())
}

fn points() -> u32 {
    let full = std::env::var("XACT_FULL").is_ok_and(|v| v == "1");
    if full { 1 << 22 } else { 1 << 15 }
}

fn nan<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// The parameters that the backend uses; see [`Registered::measured`].
fn measured<A: Registered>(s: &Sample<A>) -> Vec<f64> {
    s.op.measured(&s.params, &mut |op, params, x| {
        let mut y = [0.0];
        cpu::forward(op, &[x], params, &mut y)
            .run()
            .expect("one element");
        y[0]
    })
}

fn stored<A>(s: &Sample<A>) -> Vec<f64> {
    s.params.iter().map(|&p| f64::from(p)).collect()
}

/// Computes dx, y again and the parameter gradients.
fn run_backward<A: Registered, T: Element>(
    s: &Sample<A>,
    x: &[T],
    dy: &[T],
) -> (Vec<T>, Vec<T>, Vec<f32>) {
    let (mut dx, mut y) = (nan::<T>(x.len()), nan::<T>(x.len()));
    let mut dparams = vec![f32::NAN; s.params.len()];
    let call = cpu::backward(&s.op, x, dy, &s.params, &mut dx);
    let call = call.y(&mut y).gradients(&mut dparams);
    call.run().expect("equal lengths");
    (dx, y, dparams)
}

/// Computes dx, dv, y again and the parameter gradients.
fn run_gated_backward<A: Gated + Registered, T: Element>(
    order: Order,
    s: &Sample<A>,
    [x, v, dy]: [&[T]; 3],
) -> ([Vec<T>; 3], Vec<f32>) {
    let [mut dx, mut dv, mut y] = [(); 3].map(|()| nan::<T>(x.len()));
    let mut dparams = vec![f32::NAN; s.params.len()];
    let dxv = (&mut dx, &mut dv);
    let call = cpu::gated_backward(&s.op, order, (x, v), dy, &s.params, dxv);
    let call = call.y(&mut y).gradients(&mut dparams);
    call.run().expect("equal lengths");
    ([dx, dv, y], dparams)
}

fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Every 16-bit input, and a dense sweep of f32.
fn forward<A: Registered, T: Element>(s: &Sample<A>) -> Outcome {
    let x = inputs::accuracy::<A, T>(s, points());
    let mut y = nan::<T>(x.len());
    cpu::forward(&s.op, &x, &s.params, &mut y).run()?;
    passed(
        &reference::check_forward(&s.op, &measured(s), &x, &y, BOUNDS)?,
        s,
    )
}

/// The same for dx, and for the parameter gradients over inputs whose sums are finite, separately for each sign.
fn backward<A: Registered, T: Element>(s: &Sample<A>) -> Outcome {
    let x = inputs::accuracy::<A, T>(s, points());
    let cycles = (0..GRADIENTS.len()).map(|first| inputs::cycle(&GRADIENTS, first, x.len()));
    let large = inputs::large::<T>().into_iter();
    for dy in cycles.chain(large.map(|[_, dy]| inputs::cycle(&[dy], 0, x.len()))) {
        let (dx, y, dparams) = run_backward(s, &x, &dy);
        let dparams = to_f64(&dparams);
        let mut report =
            reference::check_gradients(&s.op, &measured(s), &x, &dy, &dx, &dparams, BOUNDS)?;
        report.parameters.clear();
        passed(&report, s)?;
        let mut expected = nan::<T>(x.len());
        cpu::forward(&s.op, &x, &s.params, &mut expected).run()?;
        equal("y again", &y, &expected)?;
    }
    let (negative, positive): (Vec<T>, Vec<T>) = inputs::summable(&x)
        .into_iter()
        .partition(|x| x.to_f64() < 0.0);
    for x in [negative, positive] {
        let dy = inputs::cycle::<T>(&GRADIENTS, 0, x.len());
        let (dx, _, dparams) = run_backward(s, &x, &dy);
        let dparams = to_f64(&dparams);
        let mut report =
            reference::check_gradients(&s.op, &stored(s), &x, &dy, &dx, &dparams, BOUNDS)?;
        report.tensors.clear();
        passed(&report, s)?;
    }
    Ok(())
}

/// Every gate with every one of VALUES and of the large values.
fn gated_forward<A: Gated + Registered, T: Element>(order: Order, s: &Sample<A>) -> Outcome {
    let x = inputs::accuracy::<A, T>(s, points());
    let cycles = (0..VALUES.len()).map(|first| inputs::cycle::<T>(&VALUES, first, x.len()));
    let large = inputs::large::<T>().into_iter();
    for v in cycles.chain(large.map(|[v, _]| inputs::cycle(&[v], 0, x.len()))) {
        let mut y = nan::<T>(x.len());
        cpu::gated_forward(&s.op, order, (&x, &v), &s.params, &mut y).run()?;
        let report = reference::check_gated_forward(&s.op, order, &stored(s), &x, &v, &y, BOUNDS)?;
        passed(&report, s)?;
    }
    Ok(())
}

/// The same for dx and dv, also with every one of GRADIENTS and of the large gradients; dα as in [`backward`].
fn gated_backward<A: Gated + Registered, T: Element>(order: Order, s: &Sample<A>) -> Outcome {
    let x = inputs::accuracy::<A, T>(s, points());
    let cycles = |x: &[T], first: usize| {
        [&VALUES[..], &GRADIENTS].map(|of| inputs::cycle::<T>(of, first % of.len(), x.len()))
    };
    let check = |x: &[T], [v, dy]: [Vec<T>; 2]| {
        let ([dx, dv, y], dparams) = run_gated_backward(order, s, [x, &v, &dy]);
        let mut expected = nan::<T>(x.len());
        let call = cpu::gated_forward(&s.op, order, (x, &v), &s.params, &mut expected);
        call.run().expect("equal lengths");
        assert!(equal("y again", &y, &expected).is_ok());
        let tensors = GatedGradients {
            x,
            v: &v,
            dy: &dy,
            dx: &dx,
            dv: &dv,
        };
        let dparams = to_f64(&dparams);
        reference::check_gated_gradients(&s.op, order, &stored(s), &tensors, &dparams, BOUNDS)
    };
    for first in 0..VALUES.len() * GRADIENTS.len() {
        let mut report = check(&x, cycles(&x, first))?;
        report.parameters.clear();
        passed(&report, (first, s))?;
    }
    for pair in inputs::large::<T>() {
        let mut report = check(&x, pair.map(|v| inputs::cycle(&[v], 0, x.len())))?;
        report.parameters.clear();
        passed(&report, (pair, s))?;
    }
    let (negative, positive): (Vec<T>, Vec<T>) = inputs::summable(&x)
        .into_iter()
        .partition(|x| x.to_f64() < 0.0);
    passed(&check(&negative, cycles(&negative, 0))?, s)?;
    passed(&check(&positive, cycles(&positive, 0))?, s)
}

fn equal<T: bytemuck::Pod + std::fmt::Debug>(what: &str, got: &[T], expected: &[T]) -> Outcome {
    let bytes = |v: &[T]| bytemuck::cast_slice::<T, u8>(v).to_vec();
    if bytes(got) == bytes(expected) {
        return Ok(());
    }
    let differ = |i: &usize| bytes(&got[*i..=*i]) != bytes(&expected[*i..=*i]);
    let at = (0..got.len()).find(differ);
    let values = at.map(|i| (got[i], expected[i]));
    Err(format!("{what} [{at:?}]: {values:?}").into())
}

/// Runs `f` in every instruction set and, with a tensor that is long enough for several threads, on pools of several sizes.
fn everywhere(len: usize, mut f: impl FnMut(&str) -> Outcome + Send) -> Outcome {
    for set in InstructionSet::available() {
        set.force(|| f(set.name()))?;
    }
    let pools: &[usize] = match len {
        LONG if cfg!(feature = "rayon") => &[1, 2, 3, 7],
        _ => &[],
    };
    for &threads in pools {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        pool.install(|| f(&format!("{threads} threads")))?;
    }
    Ok(())
}

/// Long enough for several threads and for every kind of value, and not a multiple of a block.
const LONG: usize = 300_007;
const SHORT: usize = 40_009;

/// [`LONG`] for the first sample only, because the division among threads does not depend on parameters.
fn length<A: Registered>(s: &Sample<A>) -> usize {
    if s.name == A::samples()[0].name {
        LONG
    } else {
        SHORT
    }
}

/// `len` values: first of all magnitudes, then ordinary ones.
fn mixed<T: Element>(seed: u64, len: usize) -> Vec<T> {
    let mut x: Vec<T> = inputs::f32_sweep(1 << 14)
        .into_iter()
        .map(|x| T::from_f64(f64::from(x)))
        .collect();
    x.extend(Random(seed).normal::<T>(len - x.len(), 3.0));
    x
}

fn same_bits<A: Registered, T: Element>(s: &Sample<A>) -> Outcome {
    let len = length(s);
    let x = mixed::<T>(1, len);
    let dy = Random(2).normal::<T>(len, 1.0);
    let finite = inputs::summable(&x);
    let results = || {
        let (dx, y, _) = run_backward(s, &x, &dy);
        let (_, _, dparams) = run_backward(s, &finite, &dy[..finite.len()]);
        (dx, y, dparams)
    };
    let (dx, y, dparams) = results();
    everywhere(len, |what| {
        let again = results();
        equal(&format!("dx, {what}"), &again.0, &dx)?;
        equal(&format!("y, {what}"), &again.1, &y)?;
        equal(&format!("dparams, {what}"), &again.2, &dparams)
    })
}

fn gated_same_bits<A: Gated + Registered, T: Element>(order: Order, s: &Sample<A>) -> Outcome {
    let len = length(s);
    let (x, v, dy) = (
        mixed::<T>(1, len),
        Random(2).normal::<T>(len, 1.0),
        mixed::<T>(3, len),
    );
    let finite = inputs::summable(&x);
    let n = finite.len();
    let finite_dy = Random(4).normal::<T>(n, 1.0);
    let results = || {
        let (tensors, _) = run_gated_backward(order, s, [&x, &v, &dy]);
        let (_, dparams) = run_gated_backward(order, s, [&finite, &v[..n], &finite_dy]);
        (tensors, dparams)
    };
    let (tensors, dparams) = results();
    everywhere(len, |what| {
        let (again, dparams_again) = results();
        for ((name, again), first) in ["dx", "dv", "y"].iter().zip(&again).zip(&tensors) {
            equal(&format!("{name}, {what}"), again, first)?;
        }
        equal(&format!("dparams, {what}"), &dparams_again, &dparams)
    })
}

/// f at ±0, and f and f′ at ±inf.
fn limits<A: Registered, T: Element>() -> Outcome {
    for s in A::samples() {
        for params in inputs::parameters_and_tiny_ones(&s) {
            let mut s = s.clone();
            s.params = params;
            let (x, ones) = (X.map(T::from_f64), [T::from_f64(1.0); 4]);
            let mut y = nan::<T>(x.len());
            cpu::forward(&s.op, &x, &s.params, &mut y).run()?;
            let (dx, ..) = run_backward(&s, &x, &ones);
            limits::compare(&s.op, &measured(&s), &y, &dx)?;
        }
    }
    Ok(())
}

/// In tensors of any length, out of place and in place, an element has the same bits as alone. Parameter gradients are
/// added to the old values, or replace them.
fn lengths<A: Registered, T: Element>() -> Outcome {
    let s = A::samples().remove(0);
    let all = Random(5).normal::<T>(270_001, 3.0);
    let dall = Random(6).normal::<T>(270_001, 1.0);
    let (dx_all, y_all, _) = run_backward(&s, &all, &dall);
    for len in [
        0, 1, 2, 15, 16, 17, 255, 256, 257, 1000, 32_767, 32_768, 32_769, 262_143, 262_144,
        262_145, 270_001,
    ] {
        let (x, upstream) = (&all[..len], &dall[..len]);
        let mut y = nan::<T>(len);
        cpu::forward(&s.op, x, &s.params, &mut y).run()?;
        equal("y", &y, &y_all[..len])?;
        let mut y = x.to_vec();
        cpu::forward_in_place(&s.op, &mut y, &s.params).run()?;
        equal("y in place", &y, &y_all[..len])?;
        let (dx, _, dparams) = run_backward(&s, x, upstream);
        equal("dx", &dx, &dx_all[..len])?;
        let mut dy = upstream.to_vec();
        let mut sums = vec![1.5; dparams.len()];
        let call = cpu::backward_in_place(&s.op, x, &mut dy, &s.params);
        call.accumulate(&mut sums).run()?;
        equal("dx in place", &dy, &dx_all[..len])?;
        let expected: Vec<f32> = dparams.iter().map(|d| 1.5 + d).collect();
        equal("dparams", &sums, &expected)?;
        if len == 0 && dparams.iter().any(|&d| d != 0.0) {
            return Err(format!("the sum of nothing is {dparams:?}").into());
        }
    }
    Ok(())
}

/// First terms of one sign that a running f32 sum would lose against the total, then their opposites.
fn long_sums<A: Registered, T: Element>() -> Outcome {
    let s = A::samples().remove(0);
    let n = 1_000_003;
    let x = Random(51).normal::<T>(n, 3.0);
    let mut dy = vec![T::from_f64(1.0); n];
    dy[n / 2..].fill(T::from_f64(-0.99));
    let (dx, _, dparams) = run_backward(&s, &x, &dy);
    let dparams = to_f64(&dparams);
    let mut report =
        reference::check_gradients(&s.op, &stored(&s), &x, &dy, &dx, &dparams, BOUNDS)?;
    report.tensors.clear();
    passed(&report, s)
}

/// The softplus of raw parameters is within 4 ulp, for both parameters.
fn softplus() -> Outcome {
    let raw = Xielu::default().beta(0.0);
    let effective = raw.parameters(Parameters::Effective);
    let run = |op: &Xielu, params: [f32; 2], x: f32| {
        let mut y = [0.0];
        cpu::forward(op, &[x], &params, &mut y)
            .run()
            .expect("one element");
        y[0]
    };
    for a in inputs::f32_sweep(4096) {
        if !a.is_finite() || a.abs() > 1e4 {
            continue;
        }
        let got = run(&raw, [a, 0.0], 1.0);
        let z = f64::from(a);
        let exact = z.max(0.0) + (-z.abs()).exp().ln_1p();
        if (f64::from(got) - exact).abs() > 4.0 * ulp::<f32>(exact) {
            return Err(format!("softplus({a:e}) = {got:e}, exact {exact:e}").into());
        }
        for x in [-0.5, -3.0] {
            let (one, other) = (run(&raw, [0.0, a], x), run(&effective, [0.0, got], x));
            equal("softplus of a_n", &[one], &[other])?;
        }
    }
    Ok(())
}

/// The error names the tensor with a wrong length, and nothing is written.
fn errors() -> Outcome {
    let op = Xielu::default().compat(Compat::new(-1e-6).gradient(EpsGradient::Analytic));
    let params = [0.2f32, -1.0];
    let x = [1.0f32; 5];
    let length = |what, expected, got| {
        Err(Error::Length {
            what,
            expected,
            got,
        })
    };
    let mut y = [7.0; 4];
    let call = cpu::forward(&op, &x, &params, &mut y);
    assert_eq!(call.run(), length("y", 5, 4));
    assert_eq!(
        cpu::forward(&op, &x[..4], &params[..1], &mut y).run(),
        length("params", 2, 1)
    );
    assert_eq!(
        cpu::forward_in_place(&op, &mut y, &[]).run(),
        length("params", 2, 0)
    );
    assert_eq!(
        cpu::forward_in_place(&op, &mut y, &[0.0; 4]).run(),
        length("params", 3, 4)
    );
    assert_eq!(y, [7.0; 4]);
    let alpha = [0.25f32];
    let gated = |v: &[f32], y: &mut [f32]| {
        cpu::gated_forward(&Xsilu, Order::First, (&x, v), &alpha, y).run()
    };
    assert_eq!(gated(&x[1..], &mut [0.0; 5]), length("v", 5, 4));
    assert_eq!(gated(&x, &mut [0.0; 6]), length("y", 5, 6));
    for [dy, dx, y, dparams] in [[4, 5, 5, 2], [5, 4, 5, 2], [5, 5, 4, 2], [5, 5, 5, 3]] {
        let mut out = [[7.0f32; 5]; 2];
        let mut sums = [7.0f32; 3];
        let [dx_out, y_out] = &mut out;
        let call = cpu::backward(&op, &x, &x[..dy], &params, &mut dx_out[..dx])
            .y(&mut y_out[..y])
            .gradients(&mut sums[..dparams]);
        let result = call.run();
        assert!(matches!(result, Err(Error::Length { .. })), "{result:?}");
        assert_eq!((out, sums), ([[7.0; 5]; 2], [7.0; 3]));
    }
    for wrong in 0..4 {
        let len = |which: usize| if which == wrong { 4 } else { 5 };
        let (mut dx, mut dv, mut dalpha) = ([7.0; 5], [7.0; 5], [7.0]);
        let (xv, dy) = ((&x, &x[..len(0)]), &x[..len(1)]);
        let dxv = (&mut dx[..len(2)], &mut dv[..len(3)]);
        let call = cpu::gated_backward(&Xgelu, Order::Second, xv, dy, &alpha, dxv);
        let what = ["v", "dy", "dx", "dv"][wrong];
        let result = call.gradients(&mut dalpha).run();
        assert_eq!(result, length(what, 5, 4));
        assert_eq!((dx, dv, dalpha), ([7.0; 5], [7.0; 5], [7.0]));
    }
    Ok(())
}

/// [[3, 1]] is a value and its gate.
fn value_first() -> Outcome {
    let (xv, mut y, mut dxv, mut dalpha) = ([3.0f32, 1.0], [0.0f32], [0.0f32; 2], [0.0]);
    let pair = || Pair::halves(&xv, 1, Halves::ValueFirst);
    cpu::gated_forward(&Xsilu, Order::First, pair()?, &[0.0], &mut y).run()?;
    let gradient = PairMut::halves(&mut dxv, 1, Halves::ValueFirst)?;
    cpu::gated_backward(&Xsilu, Order::First, pair()?, &[1.0], &[0.0], gradient)
        .gradients(&mut dalpha)
        .run()?;
    let near = |got: f32, expected: f32| assert!((got - expected).abs() <= 2e-7, "{got}");
    near(y[0], 2.193_175_8);
    near(dxv[0], 0.731_058_6);
    near(dxv[1], 0.589_835_8);
    // The same tensor in place.
    let mut both = xv;
    let pair = PairMut::halves(&mut both, 1, Halves::ValueFirst)?;
    let call = cpu::gated_backward_in_place(&Xsilu, Order::First, pair, &[1.0], &[0.0]);
    call.run()?;
    equal("in place", &both, &dxv)
}

/// Values as the rows of a larger tensor, whose other elements are 7.
struct Spread<T> {
    elements: Vec<T>,
    rows: Rows,
}

impl<T: Element> Spread<T> {
    fn new(values: &[T], rows: usize, offset: usize, gap: usize) -> Spread<T> {
        let cols = values.len() / rows;
        let mut elements = vec![T::from_f64(7.0); offset];
        for row in values.chunks(cols) {
            elements.extend(row);
            elements.extend(vec![T::from_f64(7.0); gap]);
        }
        Spread {
            elements,
            rows: Rows::new(rows, cols).pitch(cols + gap).offset(offset),
        }
    }

    fn input(&self) -> Input<'_, T> {
        Input::rows(&self.elements, self.rows)
    }

    fn output(&mut self) -> Output<'_, T> {
        Output::rows(&mut self.elements, self.rows)
    }
}

/// Rows with gaps, halves in either order, and blocks in turn, give the same bits as tensors without gaps, except for the
/// order of the sums, and the memory between the rows is unchanged.
fn rows_with_gaps<T: Element>() -> Outcome {
    // Short rows, of which many are gathered; rows that are divided; and enough of both for several threads.
    for (rows, cols) in [
        (1, 5),
        (7, 3),
        (2000, 33),
        (4, 40_000),
        (90_000, 3),
        (5, 768),
    ] {
        let n = rows * cols;
        let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<T>(n, 2.0));
        let spread = |values: &[T], offset, gap| Spread::new(values, rows, offset, gap);
        let s = Xielu::samples().remove(0);
        let (dx, y, dparams) = run_backward(&s, &x, &dy);
        let near = |what: &str, got: &[f32], expected: &[f32]| -> Outcome {
            let close = |(got, expected): (&f32, &f32)| {
                // The terms have both signs, so the error is relative to their number.
                (got - expected).abs() <= 1e-6 * expected.abs().max(n as f32 / 100.0)
            };
            if got.iter().zip(expected).all(close) {
                return Ok(());
            }
            Err(format!("{what}, {rows} × {cols}: {got:?}, {expected:?}").into())
        };
        let blank = nan::<T>(n);
        let (from, upstream) = (spread(&x, 1, 2), spread(&dy, 0, 5));
        let [mut out, mut again] = [spread(&blank, 3, 1), spread(&blank, 0, 0)];
        cpu::forward(&s.op, from.input(), &s.params, out.output()).run()?;
        equal("y", &out.elements, &spread(&y, 3, 1).elements)?;
        let mut sums = vec![f32::NAN; 2];
        cpu::backward(
            &s.op,
            from.input(),
            upstream.input(),
            &s.params,
            out.output(),
        )
        .y(again.output())
        .gradients(&mut sums)
        .run()?;
        equal("dx", &out.elements, &spread(&dx, 3, 1).elements)?;
        equal("y again", &again.elements, &y)?;
        near("dparams", &sums, &dparams)?;
        let mut in_place = spread(&dy, 2, 4);
        let dense = Input::from(&x);
        cpu::backward_in_place(&s.op, dense, in_place.output(), &s.params).run()?;
        equal(
            "dx in place",
            &in_place.elements,
            &spread(&dx, 2, 4).elements,
        )?;
        let mut in_place = spread(&x, 2, 4);
        cpu::forward_in_place(&s.op, in_place.output(), &s.params).run()?;
        equal("y in place", &in_place.elements, &spread(&y, 2, 4).elements)?;

        for halves in [Halves::GateFirst, Halves::ValueFirst] {
            let join = |gate: &[T], value: &[T]| -> Vec<T> {
                let rows = gate.chunks(cols).zip(value.chunks(cols));
                let both = rows.flat_map(|(gate, value)| match halves {
                    Halves::GateFirst => [gate, value].concat(),
                    Halves::ValueFirst => [value, gate].concat(),
                });
                both.collect()
            };
            for order in Order::ALL {
                let s = Xsilu::samples().remove(1);
                let ([dx, dv, y], dparams) = run_gated_backward(order, &s, [&x, &v, &dy]);
                let (xv, blank) = (join(&x, &v), join(&blank, &blank));
                let pair = || Pair::halves(&xv, rows, halves);
                let mut got = nan::<T>(n);
                cpu::gated_forward(&s.op, order, pair()?, &s.params, &mut got).run()?;
                equal("gated y", &got, &y)?;
                let (mut dxv, mut again, mut sums) = (blank, spread(&got, 1, 1), [f32::NAN]);
                let out = PairMut::halves(&mut dxv, rows, halves)?;
                cpu::gated_backward(&s.op, order, pair()?, upstream.input(), &s.params, out)
                    .y(again.output())
                    .gradients(&mut sums)
                    .run()?;
                equal("dx and dv", &dxv, &join(&dx, &dv))?;
                equal("gated y again", &again.elements, &spread(&y, 1, 1).elements)?;
                near("dalpha", &sums, &dparams)?;
                let mut both = xv.clone();
                let place = PairMut::halves(&mut both, rows, halves)?;
                let mut sums_in_place = [f32::NAN];
                cpu::gated_backward_in_place(&s.op, order, place, upstream.input(), &s.params)
                    .gradients(&mut sums_in_place)
                    .run()?;
                equal("halves in place", &both, &dxv)?;
                equal("dalpha in place", &sums_in_place, &sums)?;

                for block in [1, 8, 32, 256] {
                    if !cols.is_multiple_of(block) {
                        continue;
                    }
                    let join = |gate: &[T], value: &[T]| -> Vec<T> {
                        let blocks = gate.chunks(block).zip(value.chunks(block));
                        let both = blocks.flat_map(|(gate, value)| match halves {
                            Halves::GateFirst => [gate, value].concat(),
                            Halves::ValueFirst => [value, gate].concat(),
                        });
                        both.collect()
                    };
                    let what = |what: &str| format!("{what} in blocks of {block}");
                    let (xv, expected) = (join(&x, &v), join(&dx, &dv));
                    // A contiguous tensor, and rows with gaps.
                    let pair = || Pair::interleaved(&xv, halves, block);
                    let mut got = spread(&nan::<T>(n), 1, 1);
                    cpu::gated_forward(&s.op, order, pair(), &s.params, got.output()).run()?;
                    equal(&what("y"), &got.elements, &spread(&y, 1, 1).elements)?;
                    let (mut dxv, mut sums) = (nan::<T>(2 * n), [f32::NAN]);
                    let out = PairMut::interleaved(&mut dxv, halves, block);
                    cpu::gated_backward(&s.op, order, pair(), &dy, &s.params, out)
                        .y(again.output())
                        .gradients(&mut sums)
                        .run()?;
                    equal(&what("dx and dv"), &dxv, &expected)?;
                    equal(
                        &what("y again"),
                        &again.elements,
                        &spread(&y, 1, 1).elements,
                    )?;
                    near(&what("dalpha"), &sums, &dparams)?;
                    let mut both = spread(&xv, 3, 2);
                    let place = PairMut::interleaved(both.output(), halves, block);
                    cpu::gated_backward_in_place(&s.op, order, place, upstream.input(), &s.params)
                        .run()?;
                    equal(
                        &what("in place"),
                        &both.elements,
                        &spread(&expected, 3, 2).elements,
                    )?;
                    // From one layout to another.
                    let (mut dx_apart, mut dv_apart) = (nan::<T>(n), nan::<T>(n));
                    let out = (&mut dx_apart, &mut dv_apart);
                    cpu::gated_backward(&s.op, order, pair(), &dy, &s.params, out).run()?;
                    equal(&what("dx from a pair"), &dx_apart, &dx)?;
                    equal(&what("dv from a pair"), &dv_apart, &dv)?;
                    let mut dxv = nan::<T>(2 * n);
                    let out = PairMut::interleaved(&mut dxv, halves, block);
                    cpu::gated_backward(&s.op, order, (&x, &v), &dy, &s.params, out).run()?;
                    equal(&what("dx and dv of two tensors"), &dxv, &expected)?;
                }
            }
        }
    }
    Ok(())
}

/// Gradients that overwrite gate and value have the same bits as separate ones.
fn gated_in_place() -> Outcome {
    let n = LONG;
    let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<bf16>(n, 2.0));
    for order in Order::ALL {
        let s = Xgelu::samples().remove(0);
        let ([dx, dv, y], dparams) = run_gated_backward(order, &s, [&x, &v, &dy]);
        let (mut x, mut v, mut again, mut sums) = (x.clone(), v.clone(), nan(n), [1.5]);
        let pair = (&mut x, &mut v);
        cpu::gated_backward_in_place(&s.op, order, pair, &dy, &s.params)
            .y(&mut again)
            .accumulate(&mut sums)
            .run()?;
        equal("dx", &x, &dx)?;
        equal("dv", &v, &dv)?;
        equal("y", &again, &y)?;
        equal("dparams", &sums, &[1.5 + dparams[0]])?;
    }
    Ok(())
}

/// Shapes that differ are an error with their names, and only logits may have rows in groups.
fn shapes() -> Outcome {
    let (x, mut y) = ([1.0f32; 12], [7.0f32; 12]);
    let shape = |what, expected, got| {
        Err(Error::Shape {
            what,
            expected,
            got,
        })
    };
    let (wide, tall) = (Rows::new(3, 4), Rows::new(4, 3));
    let xv = (Input::rows(&x, wide), Input::rows(&x, tall));
    let call = cpu::gated_forward(&Xsilu, Order::First, xv, &[0.5], &mut y);
    let refused = call.run();
    assert_eq!(refused, shape("v", [3, 4], [4, 3]));
    let message = refused.unwrap_err().to_string();
    assert_eq!(message, "v is 4 × 3, but the others are 3 × 4");
    let call = cpu::forward(
        &Xsilu,
        Input::rows(&x, tall),
        &[0.5],
        Output::rows(&mut y, wide),
    );
    assert_eq!(call.run(), shape("y", [4, 3], [3, 4]));
    let mut dxv = [7.0f32; 24];
    let pair = PairMut::halves(&mut dxv, 4, Halves::GateFirst)?;
    let xv = (Input::rows(&x, wide), &x);
    let call = cpu::gated_backward(&Xsilu, Order::Second, xv, &x, &[0.5], pair);
    assert_eq!(call.run(), shape("dx", [3, 4], [4, 3]));
    let groups = Rows::new(4, 3).groups(2, 6);
    let call = cpu::forward(&Xsilu, Input::rows(&x, groups), &[0.5], &mut y);
    assert_eq!(call.run(), Err(Error::Groups { what: "x" }));
    let call = cpu::forward(&Xsilu, &x, &[0.5], Output::rows(&mut y, groups));
    assert_eq!(call.run(), Err(Error::Groups { what: "y" }));
    let call = cpu::forward_in_place(&Xsilu, Output::rows(&mut y, groups), &[0.5]);
    assert_eq!(call.run(), Err(Error::Groups { what: "x" }));
    let halves = |len, rows| Err(Error::Halves { len, rows });
    assert_eq!(
        Pair::halves(&x, 5, Halves::ValueFirst).map(|_| ()),
        halves(12, 5)
    );
    assert_eq!(
        PairMut::halves(&mut y, 4, Halves::GateFirst).map(|_| ()),
        halves(12, 4)
    );
    let long = [1.0f32; 24];
    for (block, cols) in [(0, 12), (2, 12), (3, 12), (8, 12), (24, 12), (512, 12)] {
        let pair = Pair::interleaved(&long, Halves::GateFirst, block);
        let call = cpu::gated_forward(&Xsilu, Order::First, pair, &[0.5], &mut y);
        let block = block as u64;
        assert_eq!(call.run(), Err(Error::Block { block, cols }));
    }
    let pair = Pair::interleaved(&long[..23], Halves::GateFirst, 1);
    let call = cpu::gated_forward(&Xsilu, Order::First, pair, &[0.5], &mut y);
    assert_eq!(
        call.run(),
        Err(Error::Length {
            what: "x",
            expected: 22,
            got: 23
        })
    );
    let wide = Input::rows(&long, Rows::new(3, 7));
    let pair = Pair::interleaved(wide, Halves::GateFirst, 1);
    let call = cpu::gated_forward(&Xsilu, Order::First, pair, &[0.5], &mut y);
    assert_eq!(call.run(), shape("x", [3, 6], [3, 7]));
    let pair = PairMut::interleaved(&mut dxv[..22], Halves::GateFirst, 1);
    let xv = (&x, &x);
    let call = cpu::gated_backward(&Xsilu, Order::Second, xv, &x, &[0.5], pair);
    assert_eq!(
        call.run(),
        Err(Error::Length {
            what: "dx",
            expected: 24,
            got: 22
        })
    );
    assert_eq!((y, dxv), ([7.0; 12], [7.0; 24]));
    Ok(())
}

/// dx is the same without parameter gradients, and dbeta can be left out alone.
fn gradients_left_out() -> Outcome {
    let (x, dy) = ([-1.5f32, 0.25, 3.0], [1.0f32, -2.0, 0.5]);
    let params = [0.5, -0.25, 0.125];
    let run = |given: usize| {
        let (mut dx, mut sums) = ([0.0; 3], [7.0; 3]);
        let op = Xielu::default();
        let call = cpu::backward(&op, &x, &dy, &params, &mut dx);
        let result = match given {
            0 => call.run(),
            given => call.gradients(&mut sums[..given]).run(),
        };
        (result, dx, sums)
    };
    let (all, dx, sums) = run(3);
    all?;
    assert_eq!(run(0), (Ok(()), dx, [7.0; 3]));
    assert_eq!(run(2), (Ok(()), dx, [sums[0], sums[1], 7.0]));
    let length = Err(Error::Length {
        what: "dparams",
        expected: 2,
        got: 1,
    });
    assert_eq!(run(1), (length, [0.0; 3], [7.0; 3]));
    Ok(())
}

/// An op that is named by a string gives the same results.
fn by_name() -> Outcome {
    let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<f16>(1000, 2.0));
    let sample = Xielu::samples().remove(0);
    let op: AnyActivation = "xielu".parse()?;
    assert_eq!(
        op.as_gated().map(|_| ()),
        Err(Error::NotGated { op: "xielu" })
    );
    let (dx, y, dparams) = run_backward(&sample, &x, &dy);
    let (mut out, mut again, mut sums) = (nan(1000), nan(1000), [0.0; 2]);
    cpu::forward(&op, &x, &sample.params, &mut out).run()?;
    equal("y", &out, &y)?;
    cpu::backward(&op, &x, &dy, &sample.params, &mut out)
        .y(&mut again)
        .gradients(&mut sums)
        .run()?;
    equal("dx", &out, &dx)?;
    equal("y again", &again, &y)?;
    equal("dparams", &sums, &dparams)?;
    let sample = Xsilu::samples().remove(1);
    let op: AnyActivation = "xsilu".parse()?;
    let op = op.as_gated()?;
    for order in Order::ALL {
        let ([dx, dv, y], dparams) = run_gated_backward(order, &sample, [&x, &v, &dy]);
        let (mut out, mut of_v, mut sums) = (nan(1000), nan(1000), [0.0]);
        cpu::gated_forward(op, order, (&x, &v), &sample.params, &mut out).run()?;
        equal("gated y", &out, &y)?;
        let dxv = (&mut out, &mut of_v);
        cpu::gated_backward(op, order, (&x, &v), &dy, &sample.params, dxv)
            .gradients(&mut sums)
            .run()?;
        equal("gated dx", &out, &dx)?;
        equal("dv", &of_v, &dv)?;
        equal("dalpha", &sums, &dparams)?;
    }
    let unknown = "xrelu".parse::<AnyActivation>().unwrap_err();
    assert!(matches!(&unknown, Error::UnknownOp { name, .. } if name == "xrelu"));
    assert!(
        unknown.to_string().contains("xielu, xatlu, xgelu, xsilu"),
        "{unknown}"
    );
    Ok(())
}
