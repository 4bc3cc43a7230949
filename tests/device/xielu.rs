//! Properties of xIELU: its softplus, sums whose exact digits are known, and special values.

use half::{bf16, f16};
use xact::activation::xielu::Parameters;
use xact::reference::{self, ULPS, ulp};
use xact::{Compat, Dtype, Element, EpsGradient, Xielu};
use xact_dev::check;
use xact_dev::choose::{Gpu, gpu};
use xact_dev::inputs::{self, Random};
use xact_dev::machine::Machine;
use xact_dev::run::{self, How, Place};
use xact_dev::same::bits;

fn forward(gpu: &Gpu, op: &Xielu, params: [f32; 2], x: f32) -> f32 {
    run::forward(gpu, op, &params, &[x], &How::default()).unwrap()[0]
}

/// The softplus of raw parameters is within 4 ulp for both parameters, for large, small and subnormal values.
#[test]
fn the_softplus_is_within_4_ulp() {
    let gpu = gpu();
    // With β = 0, f(1) = α_p, and for x < 0, f = α_n·(expm1(x) − x) with α_n = softplus(a_n).
    let raw = Xielu::default().beta(0.0);
    let effective = raw.parameters(Parameters::Effective);
    let sweep = (-1100..=1700)
        .map(|i| i as f32 * 0.1)
        .chain([-103.9, -104.1, 1e-6, -1e-6, 0.0, 1e4]);
    for a in sweep {
        let alpha_p = forward(&gpu, &raw, [a, 0.0], 1.0);
        let z = f64::from(a);
        let exact = z.max(0.0) + (-z.abs()).exp().ln_1p();
        let error = (f64::from(alpha_p) - exact).abs() / ulp::<f32>(exact);
        assert!(
            error <= 4.0,
            "softplus({a}) = {alpha_p:e}, exact {exact:e}, {error} ulp"
        );
        // The other parameter goes through the same function.
        for x in [-0.5, -3.0] {
            let got = forward(&gpu, &raw, [0.0, a], x);
            assert_eq!(
                got.to_bits(),
                forward(&gpu, &effective, [0.0, alpha_p], x).to_bits()
            );
        }
    }
}

/// Terms of 21 digits whose sum needs 37: the rounding errors of additions are added back, in a thread, in a block and in
/// the second stage, so that the result is the exact sum rounded once.
#[test]
fn parameter_gradients_lose_nothing() {
    let gpu = gpu();
    let op = Xielu::default().parameters(Parameters::Effective);
    let x = 1.0 + 2f32.powi(-10);
    let term = f64::from(x) * f64::from(x);
    // In one row, many lanes each make few additions. In rows of one element, one lane of each block adds one tile after
    // the other.
    for (n, rows) in [(200_003, 1), (12 * 4096 + 5, 12 * 4096 + 5)] {
        let gap = Place {
            offset: 0,
            gap: usize::from(rows > 1),
        };
        let how = How {
            rows,
            x: gap,
            dy: gap,
            out: gap,
            ..How::default()
        };
        let (x, dy) = (vec![x; n], vec![1.0_f32; n]);
        let (_, dparams) = run::backward(&gpu, &op, &[0.8, 0.8], &x, &dy, &how).unwrap();
        assert_eq!(
            dparams[0],
            (n as f64 * term) as f32,
            "{n} elements in {rows} rows"
        );
        assert_eq!(dparams[1], 0.0);
    }
}

#[test]
fn infinite_and_nan_sums() {
    let gpu = gpu();
    let sums = |x: &[f32], dy: &[f32]| {
        let op = Xielu::default();
        run::backward(&gpu, &op, &[0.2, -1.0], x, dy, &How::default())
            .unwrap()
            .1
    };
    // x² overflows. An infinite sum stays infinite.
    assert_eq!(sums(&[1e30, 1.0, -1.0], &[1.0, 1.0, 1.0])[0], f32::INFINITY);
    assert_eq!(sums(&[1e30, 1.0], &[-1.0, 1.0])[0], f32::NEG_INFINITY);
    assert!(sums(&[1e30, 2e30], &[1.0, -1.0])[0].is_nan());
    // A NaN is treated as x ≤ 0.
    let of_nan = sums(&[f32::NAN, 2.0], &[1.0, 1.0]);
    assert!(of_nan[0].is_finite() && of_nan[1].is_nan());
}

#[test]
fn limits_far_out() {
    let gpu = gpu();
    let effective = Xielu::default().parameters(Parameters::Effective);
    let slope = |op: &Xielu, params: [f32; 2], x: f32| {
        run::backward(&gpu, op, &params, &[x], &[1.0], &How::default())
            .unwrap()
            .0[0]
    };
    let inf = f32::INFINITY;
    assert_eq!(forward(&gpu, &effective, [0.8, 0.8], -inf), inf);
    assert_eq!(forward(&gpu, &effective, [0.8, 0.5], -inf), -0.5);
    assert_eq!(forward(&gpu, &effective, [0.8, 0.25], -inf), -inf);
    assert_eq!(forward(&gpu, &effective, [0.0, 0.8], inf), inf);
    assert_eq!(slope(&effective, [0.8, 0.75], -inf), -0.25);
    // s_n is far below the last digit of β, and is still the slope.
    let faint = slope(&Xielu::default(), [-20.0, -30.0], -1000.0);
    let s_n = (-30f64).exp().ln_1p();
    assert!((f64::from(faint) + s_n).abs() < 1e-6 * s_n, "{faint:e}");
}

/// The limits of f and f′, with parameters of the clamp for which the sum of the usual terms has another sign.
#[test]
fn limits_of_the_clamp() {
    fn check_all<T: Element>(gpu: &Gpu) {
        let raw = Xielu::default();
        let effective = raw.parameters(Parameters::Effective);
        for gradient in [EpsGradient::Analytic, EpsGradient::Autograd] {
            for eps in [-1e-6, 0.0, 1e-6] {
                let clamp = Compat::new(eps).gradient(gradient);
                // s_n far below the last digit of β; and s_n < 0.
                let faint = (raw.compat(clamp), [-20.0, -30.0]);
                let falling = (effective.compat(clamp), [3.0, 0.125]);
                for (op, params) in [faint, falling] {
                    for machine in [Machine::Gpu(gpu), Machine::Cpu] {
                        check::limits::<Xielu, T>(machine, &op, &params).unwrap();
                    }
                }
            }
        }
    }
    let gpu = gpu();
    check_all::<f32>(&gpu);
    check_all::<f16>(&gpu);
    check_all::<bf16>(&gpu);
}

/// A parameter of one side that is NaN or infinite does not reach the results of the other.
#[test]
fn parameters_without_a_value() {
    fn check_all<T: Element>(gpu: &Gpu) {
        let positive = [1e-3, 0.25, 1.0, 30.0];
        let effective = Xielu::default().parameters(Parameters::Effective);
        for op in [effective, effective.compat(Compat::new(-1e-6))] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2e38] {
                for (params, sign) in [([bad, 0.75], -1.0), ([0.75, bad], 1.0)] {
                    let x = positive.map(|x| T::from_f64(sign * x));
                    let ones = [T::from_f64(1.0); 4];
                    for machine in [Machine::Gpu(gpu), Machine::Cpu] {
                        let report = check::forward(machine, &op, &params, &x, ULPS);
                        assert!(report.ok(), "{op:?} {params:?} {report}");
                        let mut report = check::backward(machine, &op, &params, &x, &ones, ULPS);
                        report.parameters.clear();
                        assert!(report.ok(), "{op:?} {params:?} {report}");
                    }
                }
            }
        }
    }
    let gpu = gpu();
    check_all::<f32>(&gpu);
    check_all::<f16>(&gpu);
    check_all::<bf16>(&gpu);
}

/// More tiles than a backward has chunks: the first chunks take two tiles, the others one. Nothing smaller has chunks of
/// several tiles, and the loop over them is that of long training runs. In f32 alone, because T plays no part.
#[test]
fn chunks_of_several_tiles() {
    let gpu = gpu();
    let op = Xielu::default();
    let params = [0.2, -1.0];
    let n = (16_384 + 100) * 2048 + 5;
    // The workspace has a sum of each chunk, and their number grows no more.
    let workspace = |n| run::workspace_bytes(&op, Dtype::F32, 1, n);
    assert_eq!(workspace(n - 101 * 2048), workspace(n));
    // x and dy repeat themselves with a period that is no divisor of a tile.
    let period = 4099;
    let x = Random(91).normal::<f32>(period, 2.0);
    let dy = inputs::cycle::<f32>(&[1.0, 0.5, 0.25], 0, period);
    let run = |x: &[f32], dy: &[f32]| run::backward(&gpu, &op, &params, x, dy, &How::default());
    let (of_period, _) = run(&x, &dy).unwrap();
    let (mut all_x, mut all_dy) = (x.repeat(n / period + 1), dy.repeat(n / period + 1));
    all_x.truncate(n);
    all_dy.truncate(n);
    let (dx, dparams) = run(&all_x, &all_dy).unwrap();
    for (i, dx) in dx.chunks(period).enumerate() {
        assert!(bits(dx) == bits(&of_period[..dx.len()]), "period {i}");
    }
    let sums = |len: usize| {
        let params = params.map(f64::from);
        reference::backward(&op, &params, &x[..len], &dy[..len])
            .unwrap()
            .1
    };
    let (whole, rest) = (sums(period), sums(n % period));
    for p in 0..2 {
        // All terms are positive.
        let exact = whole[p] * (n / period) as f64 + rest[p];
        let error = (f64::from(dparams[p]) - exact).abs() / exact;
        assert!(error < 1e-6, "{}, exact {exact}", dparams[p]);
    }
}

/// At x = eps, the clamp of torch.min passes half of the gradient; just below eps all, just above none.
#[test]
fn the_tie_of_the_clamp() {
    let gpu = gpu();
    let eps = -1e-6_f32;
    let op = Xielu::default()
        .parameters(Parameters::Effective)
        .beta(0.5)
        .compat(Compat::new(eps).gradient(EpsGradient::Autograd));
    let at = |x: f32| {
        run::backward(&gpu, &op, &[0.8, 41.25], &[x], &[1.0], &How::default())
            .unwrap()
            .0[0]
    };
    let near = |got: f32, exact: f64| (f64::from(got) - exact).abs() < 1e-5 * exact.abs();
    assert!(near(at(eps.next_down()), 0.5 - 41.25e-6));
    assert!(near(at(eps), 0.5 - 41.25 / 2.0));
    assert!(near(at(eps.next_up()), 0.5 - 41.25));
    assert!(near(at(0.0), 0.5 - 41.25));
}
