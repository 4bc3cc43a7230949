//! Values that users found wrong or missing, computed with more digits than f64 has, on the CPU backend, on the device and
//! in the reference.

use cuda_emulator::Settings;
use half::bf16;
use xact::activation::{Registered, Visitor};
use xact::loss::cross_entropy::RowStatus;
use xact::loss::goldfish::{TokenId, Tokens};
use xact::raw::goldfish::IdType;
use xact::{
    Activation, CrossEntropy, Element, Error, Gated, Goldfish, Normalizer, Order, Parameters, Rows,
    Strategy, Xatlu, Xgelu, Xielu, Xsilu, cpu, reference,
};
use xact_dev::check::{EVERY, modes};
use xact_dev::choose::{Gpu, gpu};
use xact_dev::inputs::{Random, every_16_bit};
use xact_dev::loss::{self, Batch, Results, Uploaded};
use xact_dev::loss_cpu;
use xact_dev::run::{self, How, Place};

/// Whether the first digits are equal.
fn near(got: f64, exact: f64) -> bool {
    (got - exact).abs() <= 1e-6 * exact.abs()
}

/// The parameter gradients on the CPU and on the device.
fn dparams<A: Registered, T: Element>(
    gpu: &Gpu,
    op: &A,
    params: &[f32],
    x: &[T],
    dy: &[T],
) -> [Vec<f32>; 2] {
    let (mut dx, mut of_cpu) = (
        vec![T::from_f64(f64::NAN); x.len()],
        vec![0.0; params.len()],
    );
    let call = cpu::backward(op, x, dy, params, &mut dx);
    call.gradients(&mut of_cpu).run().unwrap();
    let (_, of_device) = run::backward(gpu, op, params, x, dy, &How::default()).unwrap();
    [of_cpu, of_device]
}

/// The same for a gated form.
fn gated_dparams<A: Gated + Registered>(
    gpu: &Gpu,
    op: &A,
    order: Order,
    params: &[f32],
    [x, v, dy]: [&[f32]; 3],
) -> [Vec<f32>; 2] {
    let [mut dx, mut dv] = [(); 2].map(|()| vec![f32::NAN; x.len()]);
    let mut of_cpu = vec![0.0; params.len()];
    let call = cpu::gated_backward(op, order, (x, v), dy, params, (&mut dx, &mut dv));
    call.gradients(&mut of_cpu).run().unwrap();
    let (_, of_device) =
        run::gated_backward(gpu, op, order, params, [x, v, dy], &How::default()).unwrap();
    [of_cpu, of_device]
}

/// dy·x² of xIELU's α_p where x² exceeds f32, and dy·q(x) and dy·x·h(x) where x² is below the range of f32.
#[test]
fn parameter_gradients_where_the_square_of_x_is_no_f32() {
    fn check<A: Registered, T: Element>(
        op: &A,
        params: &[f32],
        x: f64,
        dy: f64,
        p: usize,
        exact: f64,
    ) {
        let gpu = gpu();
        let (x, dy) = (T::from_f64(x), T::from_f64(dy));
        // In 16-bit types, x and dy differ slightly from those of the table.
        let given = (x.to_f64(), dy.to_f64());
        let wide: Vec<f64> = params.iter().map(|&p| f64::from(p)).collect();
        let (_, by_reference) = reference::backward(op, &wide, &[x], &[dy]).unwrap();
        if T::DTYPE == xact::Dtype::F32 {
            assert!(
                near(by_reference[p], exact),
                "{op:?}: {by_reference:?} for {exact:e}"
            );
        }
        // A term of a 16-bit tensor is as accurate as its addends; x² has one.
        let point = op.evaluate(&wide, x.to_f64());
        let addends = (point.dparam_addends[p] * dy.to_f64() * op.chain(&wide)[p]).abs();
        let is_short = T::DTYPE != xact::Dtype::F32;
        let allowed = if is_short { addends / 16384.0 } else { 0.0 };
        for got in dparams(&gpu, op, params, &[x], &[dy]) {
            let got = f64::from(got[p]);
            assert!(
                near(got, by_reference[p]) || (got - by_reference[p]).abs() <= allowed,
                "{op:?} at {given:?}: {got:e} for {}",
                by_reference[p]
            );
        }
    }
    fn both<A: Registered>(op: A, params: &[f32], x: f64, dy: f64, p: usize, exact: f64) {
        check::<A, f32>(&op, params, x, dy, p, exact);
        check::<A, bf16>(&op, params, x, dy, p, exact);
    }
    let xielu = Xielu::default();
    let effective = xielu.parameters(Parameters::Effective);
    for op in [
        xielu,
        xielu.compat(xact::Compat::new(1.0).gradient(xact::EpsGradient::Analytic)),
    ] {
        both(op, &[0.2, -1.0], 1e20, 1e-30, 0, 5.498_340e9);
        both(op, &[0.2, -1.0], 1e-23, 1e20, 0, 5.498_34e-27);
        // This is softplus'(−1)·½.
        both(op, &[0.2, -1.0], -1e-23, 1e20, 1, 1.344_707e-27);
    }
    both(effective, &[0.2, -1.0], -1e-23, 1e20, 1, 5e-27);
    for sign in [1.0, -1.0] {
        both(Xatlu, &[0.3], sign * 1e-23, 1e20, 0, 6.366_198e-27);
        both(Xgelu, &[0.3], sign * 1e-23, 1e20, 0, 7.978_846e-27);
        both(Xsilu, &[0.3], sign * 1e-23, 1e20, 0, 5e-27);
        both(Xsilu, &[0.3], sign * 1e20, 1e-30, 0, 1e-10);
    }
}

/// An element with an upstream gradient of 0 adds nothing to a parameter gradient, for any finite x: padding rows contain
/// whatever the memory had.
#[test]
fn elements_without_upstream_gradient_add_nothing() {
    const SIZES: [f32; 8] = [
        f32::MAX,
        3.7e19,
        1e5,
        1.5,
        1e-3,
        1e-23,
        f32::MIN_POSITIVE,
        1e-45,
    ];
    struct Check(Gpu);
    impl Visitor for Check {
        fn visit<A: Registered>(&mut self) {
            for sample in A::samples() {
                for x in SIZES.into_iter().flat_map(|x| [x, -x]) {
                    // The value is also finite in 16 bits.
                    self.plain::<A, f32>(&sample.op, &sample.params, x);
                    self.plain::<A, bf16>(&sample.op, &sample.params, x.clamp(-3e38, 3e38));
                }
            }
        }
        fn visit_gated<A: Gated + Registered>(&mut self) {
            for sample in A::samples() {
                for (order, x) in Order::ALL.into_iter().flat_map(|o| SIZES.map(|x| (o, x))) {
                    for v in [-1e10, f32::MAX] {
                        let of = |n: usize| {
                            let tensors = [&[1.0, x, -x][..n], &[1.0, v, v], &[1.0, 0.0, 0.0]];
                            let tensors = tensors.map(|tensor| &tensor[..n]);
                            gated_dparams(&self.0, &sample.op, order, &sample.params, tensors)
                        };
                        assert_eq!(of(3), of(1), "{sample:?}, order {order:?}, x = ±{x:e}");
                    }
                }
            }
        }
    }
    impl Check {
        fn plain<A: Registered, T: Element>(&self, op: &A, params: &[f32], x: f32) {
            let [x, one, zero] = [x, 1.0, 0.0].map(|v| T::from_f64(v.into()));
            let wide: Vec<f64> = params.iter().map(|&p| f64::from(p)).collect();
            let of = |n: usize| {
                let (x, dy) = (&[one, x][..n], &[one, zero][..n]);
                let (_, by_reference) = reference::backward(op, &wide, x, dy).unwrap();
                (dparams(&self.0, op, params, x, dy), by_reference)
            };
            assert_eq!(of(2), of(1), "{op:?} {params:?} at {x:?}");
        }
    }
    xact::activation::for_each(&mut Check(gpu()));
    // The case that the user found.
    let op = Xielu::default();
    for [dalpha_p, _] in dparams(&gpu(), &op, &[0.0, 0.0], &[1.0, 2f32.powi(65)], &[1.0, 0.0])
        .map(|d| <[f32; 2]>::try_from(d).unwrap())
    {
        assert_eq!(dalpha_p, 0.5);
    }
}

/// f and f′ far from 0, where both are below the smallest number of the type: −0, on the left for α = 0, and for f′ on the
/// right for α = −1.
#[test]
fn far_tails_keep_their_sign() {
    fn check<A: Registered, T: Element>(op: A, magnitudes: [f64; 2]) {
        let gpu = gpu();
        for (x, alpha, of_y) in magnitudes
            .into_iter()
            .flat_map(|x| [(-x, 0.0, true), (x, -1.0, false)])
        {
            let (x, one) = ([T::from_f64(x)], [T::from_f64(1.0)]);
            let what = format!("{op:?} of {}, alpha {alpha}, at {x:?}", T::DTYPE);
            let wide = [f64::from(alpha)];
            let (by_reference, _) = reference::backward(&op, &wide, &x, &one).unwrap();
            let mut y = [T::from_f64(f64::NAN)];
            let mut results = vec![(
                "reference",
                reference::forward(&op, &wide, &x)[0],
                by_reference[0],
            )];
            let (mut dx, mut dparams) = (y, [0.0]);
            let params = [alpha];
            let call = cpu::backward(&op, &x, &one, &params, &mut dx);
            call.y(&mut y).gradients(&mut dparams).run().unwrap();
            results.push(("cpu", y[0].to_f64(), dx[0].to_f64()));
            let how = How::default();
            let y = run::forward(&gpu, &op, &[alpha], &x, &how).unwrap();
            let (dx, _) = run::backward(&gpu, &op, &[alpha], &x, &one, &how).unwrap();
            results.push(("device", y[0].to_f64(), dx[0].to_f64()));
            for (by, y, dx) in results {
                let minus_zero = |v: f64| v == 0.0 && v.is_sign_negative();
                assert!(minus_zero(dx), "{by}: dx of {what}: {dx}");
                assert!(!of_y || minus_zero(y), "{by}: y of {what}: {y}");
            }
        }
    }
    fn types<A: Registered>(op: A) {
        check::<A, f32>(op, [1e5, f64::INFINITY]);
        check::<A, half::f16>(op, [65504.0, f64::INFINITY]);
        check::<A, bf16>(op, [1e30, f64::INFINITY]);
    }
    types(Xgelu);
    types(Xsilu);
}

/// xATLU's f′ on the side on which its linear part is 0 (the left for α = 0, the right for α = −1) falls as |x|⁻³. It is
/// within 5 ulp of itself for every x, in the reference, on the CPU and on the device, or 10 with approximate instructions at
/// either end of their error. Of 16-bit tensors it is within one ulp of itself.
#[test]
fn far_slopes_of_xatlu_keep_their_digits() {
    // (arctan(1/u) − u/(1 + u²))/π in 40 digits.
    let exact = [
        (1.5, 4.025_478_664_924_927e-2),
        (10.0, 2.096_871_153_267_703_5e-4),
        (1e3, 2.122_063_361_415_576_7e-10),
        (5e3, 1.697_652_644_826_222_9e-12),
        (1e6, 2.122_065_907_889_391_3e-19),
        (2f32.powi(40), 1.596_464_951_551_706_6e-37),
    ];
    let at = |alpha: f64, x: f64| Xatlu.evaluate(&[alpha], x).slope.value;
    for (u, exact) in exact {
        let u = f64::from(u);
        for got in [at(0.0, -u), at(-1.0, u)] {
            assert!(
                (got - exact).abs() < 1e-14 * exact,
                "at {u}: {got:e}, exact {exact:e}"
            );
        }
    }
    fn check<T: Element>(u: &[T], gpu: &Gpu, settings: Settings, ulps: f64) {
        for (alpha, sign) in [(0.0, -1.0), (-1.0, 1.0)] {
            let x: Vec<T> = u.iter().map(|u| T::from_f64(sign * u.to_f64())).collect();
            let dy = vec![T::from_f64(1.0); x.len()];
            let (mut by_cpu, params) = (dy.clone(), [alpha as f32]);
            let call = cpu::backward(&Xatlu, &x, &dy, &params, &mut by_cpu);
            call.run().unwrap();
            let how = How::default();
            let run = || {
                run::backward(gpu, &Xatlu, &params, &x, &dy, &how)
                    .unwrap()
                    .0
            };
            let by_device = cuda_emulator::with_settings(settings, run);
            for ((x, cpu), device) in x.iter().zip(by_cpu).zip(by_device) {
                let exact = Xatlu.evaluate(&[alpha], x.to_f64()).slope.value;
                for (by, got) in [("cpu", cpu), ("device", device)] {
                    let error = (got.to_f64() - exact).abs() / reference::ulp::<T>(exact);
                    assert!(
                        error <= ulps,
                        "{by}, {settings:?}, {x:?}: {got:?}, exact {exact:e}, {error} ulp"
                    );
                }
            }
        }
    }
    let gpu = gpu();
    let dense: Vec<f32> = (0..200_000).map(|i| 1e-3 * 1.000_55f32.powi(i)).collect();
    let dense: Vec<f32> = dense.into_iter().filter(|u| u.is_finite()).collect();
    for (settings, ulps) in modes(&gpu, &EVERY) {
        check::<f32>(&dense, &gpu, settings, ulps);
        check::<half::f16>(&positive(), &gpu, settings, 1.0);
        check::<bf16>(&positive(), &gpu, settings, 1.0);
    }
}

/// The positive finite values of a 16-bit type.
fn positive<T: Element>() -> Vec<T> {
    let all = every_16_bit::<T>().into_iter();
    all.filter(|x| x.to_f64().is_finite() && x.to_f64() > 0.0)
        .collect()
}

/// The results of all calls on the CPU and on the device for a batch, compared with the reference.
fn losses<T: Element>(op: &CrossEntropy, batch: &Batch<T>) -> Vec<Results<T>> {
    let gpu = gpu();
    let uploaded = Uploaded::new(&gpu, batch, loss::How::default());
    let how = loss_cpu::How {
        all_outputs: true,
        ..loss_cpu::How::default()
    };
    let all = vec![
        loss::forward_backward(&gpu, op, batch, &uploaded).unwrap(),
        loss::with_gradient(&gpu, op, batch, &uploaded).unwrap(),
        loss_cpu::forward_backward(op, batch, how).unwrap(),
        loss_cpu::with_gradient(op, batch, how).unwrap(),
    ];
    let expected = loss::expected(op, batch, &[]);
    for got in &all {
        assert!(loss::check(op, batch, &expected, got).ok());
    }
    all
}

/// With a softcap too, a logit of −inf is no class, and a logit of +inf becomes c.
#[test]
fn minus_infinity_stays_under_a_softcap() {
    let ninf = f32::NEG_INFINITY;
    let op = CrossEntropy::default().softcap(30.0);
    let batch = Batch::new(vec![-60.0, ninf, ninf, -59.0], 4, vec![0]);
    // The accuracy of an f32: the cap has an error of a few units in the last place.
    let exact = op.evaluate(&batch.logits, 0, 1.0, 1.0);
    assert!(
        near(exact.loss, 0.730_296_9) && exact.loss_bound < 1e-4,
        "{exact:?}"
    );
    for got in losses(&op, &batch) {
        assert_eq!(got.dlogits[1..3], [0.0; 2]);
    }
    // The mean of the logits is −inf, as without a cap.
    let smooth = op.label_smoothing(0.1);
    for got in losses(&smooth, &batch) {
        assert_eq!(got.loss, [f32::INFINITY]);
        assert_eq!(got.dlogits[1..3], [0.0; 2]);
    }
    // As the target, alone, and beside +inf; in the first packs of a long row and in the last.
    let mut long = vec![ninf; 4000];
    (long[2000], long[3999]) = (-70.0, f32::INFINITY);
    for (logits, label) in [
        (vec![-1.0, ninf], 1),
        (vec![ninf; 2], 0),
        (vec![f32::INFINITY, ninf], 0),
        (long, 2000),
    ] {
        let cols = logits.len();
        for got in losses(&op, &Batch::new(logits.clone(), cols, vec![label])) {
            assert_eq!(
                got.loss[0] == f32::INFINITY,
                logits[label as usize] == ninf && cols == 2 && label == 1
            );
            assert_eq!(got.loss[0].is_nan(), logits.iter().all(|&z| z == ninf));
        }
    }
}

/// u32 labels, which candle has: 4,294,967,196 is not −100.
#[test]
fn u32_labels_are_read_unsigned() {
    let gpu = gpu();
    let op = CrossEntropy::default();
    let logits: Vec<f32> = (0..12).map(|i| (i * i % 7) as f32 / 2.0).collect();
    let labels = [2_u32, 4_294_967_196, 0];
    let batch = Batch::new(logits, 4, labels.map(i64::from).to_vec());
    let expected = loss::expected(&op, &batch, &[]);
    assert_eq!(
        expected.statuses,
        [RowStatus::Kept, RowStatus::Bad, RowStatus::Kept]
    );
    let wide = loss_cpu::with_gradient(&op, &batch, loss_cpu::How::default()).unwrap();
    for labels in [IdType::U32, IdType::I64] {
        let how = loss::How {
            labels,
            ..loss::How::default()
        };
        let uploaded = Uploaded::new(&gpu, &batch, how);
        let got = loss::with_gradient(&gpu, &op, &batch, &uploaded).unwrap();
        assert!(loss::check(&op, &batch, &expected, &got).ok());
        assert_eq!((got.summary.kept, got.summary.bad_row), (3, 1));
    }
    let (mut loss, mut logits) = ([0.0; 3], batch.logits.clone());
    let call = cpu::cross_entropy::forward_with_gradient(&op, &mut logits, &labels);
    let summary = call.loss(&mut loss).run().unwrap();
    assert_eq!(summary.bad_row, 1);
    assert_eq!(
        loss.map(f32::to_bits)[..],
        wide.loss.iter().map(|l| l.to_bits()).collect::<Vec<_>>()
    );
    for (labels, name) in [(IdType::U8, "u8"), (IdType::U16, "u16")] {
        let how = loss::How {
            labels,
            ..loss::How::default()
        };
        let uploaded = Uploaded::new(&gpu, &batch, how);
        let refused = loss::with_gradient(&gpu, &op, &batch, &uploaded).unwrap_err();
        assert_eq!(refused, Error::LabelType { labels: name });
        assert!(
            refused
                .to_string()
                .contains("convert them to i32, i64 or u32"),
            "{refused}"
        );
    }
}

/// Ids of a narrower type and their halo give the same decisions as the same numbers in i64, on the host and on the device.
#[test]
fn ids_of_every_type_decide_alike() {
    fn check<I: TokenId + TryFrom<u64>>(random: &mut Random, most: u64) {
        let gpu = gpu();
        let mut draw = |n: usize| -> Vec<I> {
            (0..n)
                .filter_map(|_| I::try_from(random.bits() % (most + 1)).ok())
                .collect()
        };
        let (mut ids, halo) = (draw(600), draw(8));
        ids[7] = I::try_from(most).ok().unwrap();
        let wide = |ids: &[I]| -> Vec<i64> { ids.iter().map(|&id| id.into()).collect() };
        let (wide_ids, wide_halo) = (wide(&ids), wide(&halo));
        let exempt = [wide_ids[7]];
        let narrow = Tokens::rows(&ids, 300).halo(&halo).exempt(&exempt);
        let wide = Tokens::rows(&wide_ids, 300)
            .halo(&wide_halo)
            .exempt(&exempt);
        for strategy in [
            Strategy::Hash64 {
                k: 2,
                h: 5,
                seed: 3,
            },
            Strategy::DotTable { k: 2, h: 5 },
            Strategy::ProductTable { k: 2, h: 3 },
            Strategy::ProductAvalanche { k: 2, h: 3 },
        ] {
            let goldfish = Goldfish::new(strategy).unwrap();
            let keep = goldfish.keep(&wide).unwrap();
            assert!(keep.contains(&false) && keep[7]);
            assert_eq!(goldfish.keep(&narrow).unwrap(), keep);
            let mut of_cpu = vec![7; 600];
            let call = cpu::goldfish::mask(&goldfish, narrow);
            call.keep(&mut of_cpu).run().unwrap();
            assert!(of_cpu.iter().zip(&keep).all(|(&a, &b)| a == u8::from(b)));
            let how = xact_dev::goldfish::How::default();
            let of_device = xact_dev::goldfish::keep(&gpu, &goldfish, &narrow, how).unwrap();
            assert_eq!(of_device, keep, "{strategy:?}");
        }
    }
    let mut random = Random(5);
    check::<u8>(&mut random, u8::MAX.into());
    check::<u16>(&mut random, u16::MAX.into());
    check::<u32>(&mut random, u32::MAX.into());
    check::<i32>(&mut random, i32::MAX as u64);
    check::<i64>(&mut random, i64::MAX as u64);
}

/// Weights that are advantages: they may be 0 and have any sum.
#[test]
fn advantages_by_the_number_of_labels() {
    let batch = Batch {
        weights: Some(vec![1.0, 0.0, -1.0, 0.5]),
        ..Batch::new([0.0_f32, 1.0].repeat(4), 2, vec![0, 1, 0, 1])
    };
    for (normalizer, mean) in [
        (Normalizer::None, 0.156_630_8),
        (Normalizer::Labels, 0.039_157_7),
        (Normalizer::Kept, 0.052_210_3),
    ] {
        let op = CrossEntropy::default().normalizer(normalizer);
        for got in losses(&op, &batch) {
            // The terms are 1.3 and −1.3.
            let error = (f64::from(got.summary.mean) - mean).abs();
            assert!(
                error < 1e-7 + 2f64.powi(-23),
                "{normalizer:?}: {}",
                got.summary.mean
            );
            assert_eq!((got.summary.labels, got.summary.kept), (4, 3));
        }
    }
}

/// The summary has the first row with a loss of NaN, whatever the cause; masked rows and rows with bad labels do not count.
#[test]
fn the_row_of_a_nan_is_named() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let good = [0.5, 1.0, -1.0];
    for (bad, weight) in [
        ([0.0, nan, 0.0], 1.0),
        ([0.0, inf, 0.0], 1.0),
        ([-inf; 3], 1.0),
        (good, nan),
    ] {
        let rows = [good, [nan; 3], good, [nan; 3], bad, bad];
        let batch = Batch {
            weights: Some(vec![1.0, 1.0, 1.0, 0.0, weight, weight]),
            ..Batch::new(rows.concat(), 3, vec![0, -100, 3, 1, 2, 0])
        };
        for got in losses(&CrossEntropy::default(), &batch) {
            assert_eq!(
                (got.summary.nan_row, got.summary.bad_row),
                (4, 2),
                "{bad:?}"
            );
        }
    }
    let fine = Batch::new([good, [1.0, -inf, 2.0]].concat(), 3, vec![0, 1]);
    for got in losses(&CrossEntropy::default(), &fine) {
        assert_eq!((got.loss[1], got.summary.nan_row), (inf, u64::MAX));
    }
}

/// The f64 references take f64 inputs, so that derivatives can be checked without rounding.
#[test]
fn the_references_take_f64() {
    // This is not an f32 number, which would show in differences in f64.
    let logits = [0.1, -0.7, 1.3, 2.9, -60.1];
    let op = CrossEntropy::default()
        .label_smoothing(0.125)
        .z_loss(0.5)
        .softcap(5.0);
    let loss = |logits: &[f64]| op.evaluate(logits, 1, 1.5, 1.0).loss;
    let row = op.evaluate(&logits, 1, 1.5, 1.0);
    for j in 0..logits.len() {
        let moved = |h: f64| {
            let mut moved = logits;
            moved[j] += h;
            loss(&moved)
        };
        let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        assert!(
            (numeric - row.dlogits[j]).abs() < 1e-9,
            "{j}: {numeric} for {row:?}"
        );
    }
    let same = |narrow: Vec<f64>, wide: Vec<f64>| assert_eq!(narrow, wide);
    let x = [0.5_f32, -1.25, 3.0];
    let wide = x.map(f64::from);
    same(
        reference::forward(&Xsilu, &[0.3], &x),
        reference::forward(&Xsilu, &[0.3], &wide),
    );
    let (dx, dalpha) = reference::backward(&Xsilu, &[0.3], &[0.1, 1e200], &[1.0, 0.0]).unwrap();
    let slope = Activation::evaluate(&Xsilu, &[0.3], 0.1);
    assert_eq!((dx[0], dalpha[0]), (slope.slope.value, slope.dparams[0]));
    // Beyond the range of f32, with a square beyond that of f64.
    let (_, dalpha) =
        reference::backward(&Xielu::default(), &[0.0, 0.0], &[1.0, 1e200], &[1.0, 0.0]).unwrap();
    assert_eq!(dalpha, [0.5, 0.0]);
}

/// With a halo, hash strategies make the same decisions for the slices of a row as for the whole row. For strategies
/// without a window, a halo has no effect, and Static needs an offset before the slice.
#[test]
fn what_a_halo_does_for_slices() {
    let gpu = gpu();
    let ids: Vec<i64> = (0..120).map(|i| i * i % 97).collect();
    let keep = |goldfish: &Goldfish, tokens: &Tokens<'_, i64>| {
        let keep = goldfish.keep(tokens).unwrap();
        let how = xact_dev::goldfish::How::default();
        assert_eq!(
            xact_dev::goldfish::keep(&gpu, goldfish, tokens, how).unwrap(),
            keep
        );
        let mut of_cpu = vec![7; keep.len()];
        let call = cpu::goldfish::mask(goldfish, *tokens);
        call.keep(&mut of_cpu).run().unwrap();
        assert!(of_cpu.iter().zip(&keep).all(|(&a, &b)| a == u8::from(b)));
        keep
    };
    for (strategy, by_halo, by_offset) in [
        (
            Strategy::Hash64 {
                k: 3,
                h: 4,
                seed: 1,
            },
            true,
            true,
        ),
        (Strategy::ProductTable { k: 3, h: 4 }, true, true),
        (Strategy::ProductAvalanche { k: 3, h: 4 }, true, true),
        (Strategy::DotTable { k: 3, h: 4 }, true, true),
        (Strategy::Static { k: 3, start: 1 }, false, true),
        (Strategy::Random { k: 3, seed: 1 }, false, false),
    ] {
        let goldfish = Goldfish::new(strategy).unwrap();
        let whole = keep(&goldfish, &Tokens::row(&ids));
        let slices = |offsets: bool| -> Vec<bool> {
            let slices = (0..3).flat_map(|slice| {
                let start = 40 * slice;
                let before = [-(start as i32)];
                let ids = &ids[..start + 40];
                let (halo, ids) = (&ids[start.saturating_sub(3)..start], &ids[start..]);
                let tokens = if offsets {
                    Tokens::documents(ids, &before)
                } else {
                    Tokens::rows(ids, 40)
                };
                let tokens = tokens.halo(halo);
                keep(&goldfish, &tokens)
            });
            slices.collect()
        };
        assert_eq!(slices(false) == whole, by_halo, "{strategy:?}");
        assert_eq!(
            slices(true) == whole,
            by_offset,
            "{strategy:?} with offsets"
        );
    }
}

/// `logits[:, :-1]` of `[B, S, V]` without a copy: rows in groups, with the memory between the groups unchanged. The bits
/// are those of the rows without gaps, if the alignment is the same.
#[test]
fn rows_in_groups() {
    fn check<T: Element>(rows: usize, group: usize, cols: usize, gap: usize, offset: usize) {
        let gpu = gpu();
        let op = CrossEntropy::default().label_smoothing(0.1).z_loss(0.01);
        let labels = (0..rows).map(|r| {
            if r % 5 == 3 {
                -100
            } else {
                (r * 7 % cols) as i64
            }
        });
        let logits = Random(7).normal::<T>(rows * cols, 2.0);
        let batch = Batch::new(logits, cols, labels.collect());
        let expected = loss::expected(&op, &batch, &[]);
        let place = Place { offset, gap };
        let grouped = loss::How {
            logits: place,
            dlogits: Place {
                gap: gap + cols,
                ..place
            },
            groups: Some(group),
            ..loss::How::default()
        };
        let of = |how: loss::How| {
            let uploaded = Uploaded::new(&gpu, &batch, how);
            let in_place = Uploaded::new(
                &gpu,
                &batch,
                loss::How {
                    in_place: true,
                    ..how
                },
            );
            [
                loss::forward_backward(&gpu, &op, &batch, &uploaded).unwrap(),
                loss::forward_backward(&gpu, &op, &batch, &in_place).unwrap(),
                loss::with_gradient(&gpu, &op, &batch, &uploaded).unwrap(),
            ]
        };
        let dense = of(loss::How {
            logits: Place { gap: 0, ..place },
            dlogits: Place { gap: 0, ..place },
            ..loss::How::default()
        });
        for (got, dense) in of(grouped).iter().zip(&dense) {
            assert!(loss::check(&op, &batch, &expected, got).ok());
            if cols.is_multiple_of(8) && gap.is_multiple_of(8) {
                loss::same("groups", got, dense).unwrap();
            }
        }
        // On the CPU, the alignment does not matter.
        let how = loss_cpu::How::default();
        let dense = loss_cpu::with_gradient(&op, &batch, how).unwrap();
        for how in [
            how,
            loss_cpu::How {
                in_place: true,
                ..how
            },
        ] {
            let how = loss_cpu::How {
                gaps: [gap, gap + cols],
                groups: Some(group),
                ..how
            };
            loss::same(
                "one call",
                &loss_cpu::with_gradient(&op, &batch, how).unwrap(),
                &dense,
            )
            .unwrap();
            loss::same(
                "two calls",
                &loss_cpu::forward_backward(&op, &batch, how).unwrap(),
                &dense,
            )
            .unwrap();
        }
    }
    for (rows, group, cols, gap, offset) in [
        (6, 2, 40, 40, 0),
        (6, 3, 33, 33, 1),
        // One row per group; all rows in one group; and no gap.
        (4, 1, 40, 8, 0),
        (5, 5, 24, 3, 0),
        (6, 2, 24, 0, 0),
        // Rows that are divided among blocks, and more rows than clusters.
        (4, 2, 70_000, 70_000, 0),
        (150, 50, 1024, 1024, 0),
        (600, 3, 45, 7, 3),
    ] {
        check::<f32>(rows, group, cols, gap, offset);
        check::<bf16>(rows, group, cols, gap, offset);
    }
}

/// Incomplete or overlapping groups are errors (on the device: `cross_entropy_api`).
#[test]
fn groups_that_cannot_be() {
    let refused = |n: usize, rows, pitch| {
        let (logits, labels) = (vec![0.0_f32; n * 8], vec![0_i64; n]);
        let logits = cpu::Input::rows(&logits, Rows::new(n, 8).groups(rows, pitch));
        let op = CrossEntropy::default();
        cpu::cross_entropy::forward(&op, logits, &labels)
            .run()
            .unwrap_err()
    };
    let length = |what, expected, got| Error::Length {
        what,
        expected,
        got,
    };
    assert_eq!(refused(5, 2, 24), length("logits", 6, 5));
    assert_eq!(
        refused(6, 2, 15),
        Error::GroupPitch {
            what: "logits",
            pitch: 15,
            len: 16
        }
    );
    // From the first element to the last.
    assert_eq!(refused(6, 2, 24), length("logits", 64, 48));
    assert!(matches!(
        refused(6, 2, usize::MAX / 2),
        Error::Length { .. }
    ));
    assert!(matches!(refused(6, 0, 24), Error::Length { .. }));
}

/// A gate in its tail, times a large v or dy: 16-bit formulas must have the digits of the tail, or 0.
#[test]
fn tails_times_large_numbers() {
    let gpu = gpu();
    let f16 = |v: f64| half::f16::from_f64(v);
    // x·Φ(x)·v at x = −5.15625 and v = 128, and at x = −6.1953125 and v = 65504.
    for (x, v, exact) in [
        (-5.15625, 128.0, -8.3142e-5),
        (-6.1953125, 65504.0, -1.18031e-4),
    ] {
        let (x, v) = ([f16(x)], [f16(v)]);
        let mut by_cpu = [f16(f64::NAN)];
        let call = cpu::gated_forward(&Xgelu, Order::Second, (&x, &v), &[0.0], &mut by_cpu);
        call.run().unwrap();
        let how = How::default();
        let by_device = run::gated_forward(&gpu, &Xgelu, Order::Second, &[0.0], [&x, &v], &how);
        for got in [by_cpu[0], by_device.unwrap()[0]] {
            let got = f64::from(got);
            assert!(
                (got - exact).abs() < 1.2e-7,
                "{x:?}·{v:?}: {got:e}, exact {exact:e}"
            );
        }
    }
    // xSiLU's f′ is below 1e-36 there.
    let (x, dy) = ([f16(-100.0), f16(-65504.0)], [f16(65504.0); 2]);
    let mut by_cpu = [f16(f64::NAN); 2];
    let call = cpu::backward(&Xsilu, &x, &dy, &[0.0], &mut by_cpu);
    call.run().unwrap();
    let (by_device, _) = run::backward(&gpu, &Xsilu, &[0.0], &x, &dy, &How::default()).unwrap();
    for got in by_cpu.iter().chain(&by_device) {
        assert_eq!(got.to_f64(), 0.0, "{got:?}");
    }
    // Terms of 0 have addends that are not: the gate of order 1 at x = 0.
    let one = [f16(1.0)];
    let tensors = reference::GatedGradients {
        x: &[f16(0.0)],
        v: &one,
        dy: &one,
        dx: &[f16(0.39894228)],
        dv: &[f16(0.5)],
    };
    let bounds = reference::Bounds::of(&Xgelu);
    let order = Order::First;
    for (dalpha, ok) in [(1e-5, true), (1e-3, false)] {
        let report =
            reference::check_gated_gradients(&Xgelu, order, &[0.0], &tensors, &[dalpha], bounds);
        assert_eq!(report.unwrap().ok(), ok, "{dalpha}");
    }
}
