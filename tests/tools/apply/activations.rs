//! `apply` with activations.

use safetensors::tensor::Dtype;
use xact::activation::{Named, Registered, Visitor, for_each};
use xact::reference::{Bounds, GatedGradients};
use xact::{
    Activation, Compat, Element, EpsGradient, Gated, Order, Parameters, Xatlu, Xielu, reference,
};

use super::*;

pub const X: [f64; 6] = [-3.0, -0.5, -0.0, 0.25, 1.5, 40.0];
const DY: [f64; 6] = [1.0, -2.0, 0.5, 1.0, 0.25, -1.0];

pub fn forward_input<T: Element>() -> Vec<(&'static str, Tensor)> {
    vec![
        ("x", tensor::<T>(&[2, 3], &X)),
        ("alpha_p", tensor::<f32>(&[1], &[0.2])),
        ("alpha_n", tensor::<f32>(&[], &[-1.0])),
    ]
}

fn backward_input<T: Element>() -> Vec<(&'static str, Tensor)> {
    let mut tensors = forward_input::<T>();
    tensors.push(("dy", tensor::<T>(&[2, 3], &DY)));
    tensors
}

const PARAMS: [f64; 2] = [0.2_f32 as f64, -1.0];

/// The library's reference, rounded once.
fn expected<T: Element>(op: &Xielu) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
    let x = X.map(T::from_f64);
    let round = |values: Vec<f64>| -> Vec<u8> {
        let values: Vec<T> = values.into_iter().map(T::from_f64).collect();
        bytemuck::cast_slice(&values).to_vec()
    };
    let y = reference::forward(op, &PARAMS, &x);
    let (dx, dparams) = reference::backward(op, &PARAMS, &x, &DY.map(T::from_f64)).unwrap();
    (
        round(y),
        round(dx),
        dparams.iter().map(|&v| v as f32).collect(),
    )
}

fn the_reference_is_the_librarys<T: Element>() {
    let scratch = Scratch::new();
    scratch.write(&backward_input::<T>());
    let raw = Xielu::default();
    let compat = |eps, gradient| raw.compat(Compat::new(eps).gradient(gradient));
    for (flags, op) in [
        ("", raw),
        ("--effective", raw.parameters(Parameters::Effective)),
        ("--eps -1e-6", compat(-1e-6, EpsGradient::Autograd)),
        (
            "--eps=-1e-6 --eps-gradient analytic --beta -0.25",
            compat(-1e-6, EpsGradient::Analytic).beta(-0.25),
        ),
    ] {
        let (y, dx, dparams) = expected::<T>(&op);
        let run = |direction: &str| {
            let line = format!("--device reference --direction {direction} {flags}");
            scratch.outputs_of("xielu", &line)
        };
        let out = run("forward");
        assert_eq!(out.keys().collect::<Vec<_>>(), ["y"]);
        assert_eq!((&out["y"].1, &out["y"].2), (&vec![2, 3], &y));
        let out = run("backward");
        assert_eq!(
            out.keys().collect::<Vec<_>>(),
            ["dalpha_n", "dalpha_p", "dx"]
        );
        assert_eq!(out["dx"].2, dx);
        for (&name, exact) in Xielu::SIGNATURE.gradients.iter().zip(dparams) {
            assert_eq!(out[name].0, Dtype::F32);
            assert_eq!(out[name].2, exact.to_le_bytes());
        }
        assert_eq!(
            (&out["dalpha_p"].1, &out["dalpha_n"].1),
            (&vec![1], &vec![])
        );
    }
}

#[test]
fn the_reference_is_the_librarys_in_every_type() {
    the_reference_is_the_librarys::<f32>();
    the_reference_is_the_librarys::<half::f16>();
    the_reference_is_the_librarys::<half::bf16>();
}

/// A parameter gradient in the form that the checks take.
fn number(tensor: &Tensor) -> f64 {
    f64::from(values::<f32>(tensor)[0])
}

fn the_device_is_within_the_bounds<T: Element>(device: &str) {
    let scratch = Scratch::new();
    scratch.write(&backward_input::<T>());
    let (op, x) = (Xielu::default(), X.map(T::from_f64));
    let run = |direction: &str| {
        let line = format!("--device {device} --direction {direction}");
        scratch.outputs_of("xielu", &line)
    };
    let y = values::<T>(&run("forward")["y"]);
    let report = reference::check_forward(&op, &PARAMS, &x, &y, Bounds::of(&op)).unwrap();
    assert!(report.ok(), "{report}");
    let out = run("backward");
    let dy = DY.map(T::from_f64);
    let report = reference::check_gradients(
        &op,
        &PARAMS,
        &x,
        &dy,
        &values::<T>(&out["dx"]),
        &[number(&out["dalpha_p"]), number(&out["dalpha_n"])],
        Bounds::of(&op),
    );
    let report = report.unwrap();
    assert!(report.ok(), "{report}");
}

#[test]
fn the_device_agrees_with_the_reference() {
    for device in [&the_device(), "cpu"] {
        the_device_is_within_the_bounds::<f32>(device);
        the_device_is_within_the_bounds::<half::f16>(device);
        the_device_is_within_the_bounds::<half::bf16>(device);
    }
}

const ALPHA: f64 = 0.3_f32 as f64;

/// x, alpha and dy of an op with an expanded gate; dy has the width of the result.
fn expanded_input<T: Element>(gated: bool) -> Vec<(&'static str, Tensor)> {
    let dy_shape: &[usize] = if gated { &[2, 1, 3] } else { &[2, 1, 6] };
    let x: Vec<f64> = X
        .iter()
        .chain(&[2.0, -1.25, 0.5, 3.0, -0.75, 1e-3])
        .copied()
        .collect();
    let dy: Vec<f64> = DY.iter().chain(&DY).copied().collect();
    vec![
        ("x", tensor::<T>(&[2, 1, 6], &x)),
        ("alpha", tensor::<f32>(&[], &[ALPHA])),
        (
            "dy",
            tensor::<T>(dy_shape, &dy[..if gated { 6 } else { 12 }]),
        ),
    ]
}

/// Runs the op on both backends, and checks both against the library's reference. The result of `apply`'s own reference,
/// which rounds once, has a stricter bound.
struct EveryExpanded;

impl EveryExpanded {
    fn check<A: Gated + Registered, T: Element>(order: Option<Order>) {
        let op = A::samples()[0].op;
        let scratch = Scratch::new();
        let input = expanded_input::<T>(order.is_some());
        let (x, dy) = (values::<T>(&input[0].1), values::<T>(&input[2].1));
        scratch.write(&input);
        let flags = match order {
            None => "",
            Some(Order::First) => "--gated 1",
            Some(Order::Second) => "--gated 2",
        };
        let y_shape = if order.is_some() {
            vec![2, 1, 3]
        } else {
            vec![2, 1, 6]
        };
        let halves = |t: &[T]| -> (Vec<T>, Vec<T>) {
            (
                t.chunks(6).flat_map(|row| row[..3].to_vec()).collect(),
                t.chunks(6).flat_map(|row| row[3..].to_vec()).collect(),
            )
        };
        let device = the_device();
        let rounded_once = Bounds::new(0.5);
        let within = Bounds::of(&op);
        for (device, bounds) in [
            ("reference", rounded_once),
            ("cpu", within),
            (&device, within),
        ] {
            let run = |direction: &str| {
                let line = format!("--device {device} --direction {direction} {flags}");
                scratch.outputs_of(A::NAME, &line)
            };
            let out = run("forward");
            assert_eq!(out.keys().collect::<Vec<_>>(), ["y"]);
            assert_eq!(out["y"].1, y_shape);
            let y = values::<T>(&out["y"]);
            let back = run("backward");
            assert_eq!(back.keys().collect::<Vec<_>>(), ["dalpha", "dx"]);
            assert_eq!(
                (&back["dx"].1, &back["dalpha"].1),
                (&vec![2, 1, 6], &vec![])
            );
            let (dx, dalpha) = (values::<T>(&back["dx"]), [number(&back["dalpha"])]);
            let reports = if let Some(order) = order {
                let ((x, v), (dx, dv)) = (halves(&x), halves(&dx));
                let (x, v, dy, dx, dv) = (&*x, &*v, &*dy, &*dx, &*dv);
                let tensors = GatedGradients { x, v, dy, dx, dv };
                [
                    reference::check_gated_forward(&op, order, &[ALPHA], x, v, &y, bounds),
                    reference::check_gated_gradients(
                        &op,
                        order,
                        &[ALPHA],
                        &tensors,
                        &dalpha,
                        bounds,
                    ),
                ]
            } else {
                [
                    reference::check_forward(&op, &[ALPHA], &x, &y, bounds),
                    reference::check_gradients(&op, &[ALPHA], &x, &dy, &dx, &dalpha, bounds),
                ]
            };
            for report in reports {
                let report = report.unwrap();
                assert!(report.ok(), "{} {order:?} {device}: {report}", A::NAME);
            }
        }
    }
}

impl Visitor for EveryExpanded {
    fn visit<A: Registered>(&mut self) {}

    fn visit_gated<A: Gated + Registered>(&mut self) {
        for order in [None, Some(Order::First), Some(Order::Second)] {
            EveryExpanded::check::<A, f32>(order);
            EveryExpanded::check::<A, half::bf16>(order);
        }
        EveryExpanded::check::<A, half::f16>(Some(Order::First));
    }
}

#[test]
fn expanded_gates_and_gated_forms_are_within_the_bounds() {
    for_each(&mut EveryExpanded);
}

#[test]
fn gated_input_must_be_two_halves() {
    let scratch = Scratch::new();
    for device in ["reference", "cpu", "auto"] {
        let [forward, backward] = ["forward", "backward"]
            .map(|direction| format!("--device {device} --gated 1 --direction {direction}"));
        let (forward, backward) = (&*forward, &*backward);
        let with = |name: &'static str, tensor: Tensor| {
            let mut input = expanded_input::<f32>(true);
            input.retain(|(n, _)| *n != name);
            input.push((name, tensor));
            scratch.write(&input);
        };
        with("x", tensor::<f32>(&[2, 3], &X));
        scratch.refused("xsilu", forward, &["x is [2, 3]", "last dimension", "even"]);
        scratch.refused(
            "xsilu",
            backward,
            &["x is [2, 3]", "last dimension", "even"],
        );
        with("x", tensor::<f32>(&[], &[1.0]));
        scratch.refused("xsilu", forward, &["x is []", "last dimension"]);
        with("dy", tensor::<f32>(&[2, 3], &DY));
        scratch.refused("xsilu", backward, &["dy is F32 [2, 3]", "F32 [2, 1, 3]"]);
        with("dy", tensor::<half::f16>(&[2, 1, 3], &DY));
        scratch.refused("xsilu", backward, &["dy is F16", "F32 [2, 1, 3]"]);
        with("alpha", tensor::<f32>(&[2], &[0.0, 0.0]));
        scratch.refused("xsilu", forward, &["alpha", "[2]", "one element"]);
        with("x", tensor::<f32>(&[0, 4], &[]));
        let out = scratch.outputs_of("xsilu", forward);
        assert_eq!(out["y"].1, [0, 2]);
        let mut input = expanded_input::<f32>(true);
        input[0].1 = tensor::<f32>(&[3, 0], &[]);
        input[2].1 = tensor::<f32>(&[3, 0], &[]);
        scratch.write(&input);
        let out = scratch.outputs_of("xsilu", backward);
        assert_eq!((&out["dx"].1, number(&out["dalpha"])), (&vec![3, 0], 0.0));
        std::fs::remove_file(scratch.path("out.safetensors")).unwrap();
    }
    scratch.refused("xsilu", "--gated 3", &["--gated", "3", "1, 2"]);
}

#[test]
fn options_that_are_no_numbers_are_refused() {
    let scratch = Scratch::new();
    scratch.write(&forward_input::<f32>());
    for device in ["reference", "auto"] {
        for (flag, value, words) in [
            ("--beta", "nan", "a number"),
            ("--beta", "-inf", "finite"),
            ("--beta", "1e39", "finite"),
            ("--eps", "NaN", "a number"),
        ] {
            let line = format!("--direction forward --device {device} {flag} {value}");
            scratch.refused("xielu", &line, &[flag, value, words]);
        }
    }
}

#[test]
fn an_empty_tensor_is_fine() {
    let scratch = Scratch::new();
    let mut input = forward_input::<f32>();
    input[0].1 = tensor::<f32>(&[0, 5], &[]);
    scratch.write(&input);
    for device in ["reference", "cpu", "auto"] {
        let line = format!("--device {device} --direction forward");
        let out = scratch.outputs_of("xielu", &line);
        assert_eq!((&out["y"].1, out["y"].2.len()), (&vec![0, 5], 0));
    }
}

#[test]
fn bad_input_is_refused_in_words() {
    let scratch = Scratch::new();
    let forward = "--direction forward --device reference";
    let backward = "--direction backward --device reference";
    scratch.refused("xielu", forward, &["cannot read"]);
    std::fs::write(scratch.path("in.safetensors"), b"not tensors").unwrap();
    scratch.refused("xielu", forward, &["not a safetensors file"]);

    scratch.write(&forward_input::<f32>());
    scratch.refused("xielu", backward, &["no tensor dy", "alpha_n, alpha_p, x"]);
    scratch.refused("xielo", forward, &["xielo", "xielu"]);
    for (line, words) in [
        ("--device reference --gated", &["--gated"][..]),
        ("--device reference --eps-gradient analytic", &["--eps"]),
        ("--device reference --beta steep", &["steep"]),
        ("--device tpu", &["tpu", "emulated"]),
    ] {
        scratch.refused("xielu", &format!("--direction forward {line}"), words);
    }
    scratch.refused("xielu", "--direction sideways", &["sideways", "forward"]);

    let with = |name: &'static str, tensor: Tensor| {
        let mut input = backward_input::<f32>();
        input.retain(|(n, _)| *n != name);
        input.push((name, tensor));
        scratch.write(&input);
    };
    with("x", Tensor(Dtype::I32, vec![1], vec![0; 4]));
    scratch.refused("xielu", forward, &["x is I32", "BF16"]);
    with("alpha_p", tensor::<half::bf16>(&[1], &[0.2]));
    scratch.refused("xielu", forward, &["alpha_p", "F32", "one element"]);
    with("alpha_n", tensor::<f32>(&[2], &[0.2, 0.3]));
    scratch.refused("xielu", forward, &["alpha_n", "[2]", "one element"]);
    with("dy", tensor::<f32>(&[3, 2], &DY));
    scratch.refused("xielu", backward, &["dy", "[3, 2]", "[2, 3]"]);
    with("dy", tensor::<half::f16>(&[2, 3], &DY));
    scratch.refused("xielu", backward, &["dy", "F16"]);
    with("x", tensor::<f32>(&[2, 3], &X));
    let nowhere = scratch.path("no/such/folder/out.safetensors");
    let output = apply()
        .arg("xielu")
        .args(forward.split(' '))
        .arg("--input")
        .arg(scratch.path("in.safetensors"))
        .arg("--output")
        .arg(&nowhere)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    // The error is found before any work, and does not mention temporary files.
    let folder = nowhere.parent().unwrap();
    let expected = format!(
        "error: cannot write {}: there is no folder {}\n",
        nowhere.display(),
        folder.display()
    );
    assert_eq!(text, expected);
}

/// The first layer of Apertus-8B, with the buffers of Hugging Face's module.
#[test]
fn a_checkpoint_means_what_is_in_it() {
    let checkpoint = || {
        vec![
            ("x", tensor::<f32>(&[3], &[0.0, -1e-7, -1.0])),
            ("alpha_p", tensor::<f32>(&[1], &[166.0])),
            ("alpha_n", tensor::<f32>(&[1], &[40.75])),
            ("beta", tensor::<f32>(&[], &[0.5])),
            ("eps", tensor::<f32>(&[], &[-1e-6])),
            ("dy", tensor::<f32>(&[3], &[1.0, 1.0, 1.0])),
        ]
    };
    let scratch = Scratch::new();
    for device in ["reference", "cpu", &the_device()] {
        scratch.write(&checkpoint());
        let run = |line: &str| scratch.outputs_of("xielu", &format!("--device {device} {line}"));
        let y = values::<f32>(&run("--direction forward")["y"]);
        near(&y, &[-4.124_997_9e-5, -3.717_497_9e-5, 14.675_027], 2e-7);
        let out = run("--direction backward");
        assert_eq!(
            out.keys().collect::<Vec<_>>(),
            ["dalpha_n", "dalpha_p", "dbeta", "dx"]
        );
        // α_n contains β, which adds Σ expm1(min(x, eps)).
        assert_eq!((out["dbeta"].0, &out["dbeta"].1[..]), (Dtype::F32, &[][..]));
        near(
            &[number(&out["dbeta"]) as f32],
            &[(-1f64).exp_m1() - 2e-6],
            2e-7,
        );
        // The gradient of the clamp is analytic by default.
        let (near_beta, steep) = (0.5, 0.5 - 41.25);
        near(&values::<f32>(&out["dx"])[..2], &[near_beta; 2], 1e-4);
        let out = run("--direction backward --eps-gradient autograd");
        near(&values::<f32>(&out["dx"])[..2], &[steep; 2], 1e-6);

        // As in the checkpoint, in bf16, with the clamp's eps rounded to bf16.
        let mut rounded = checkpoint();
        for (_, Tensor(dtype, _, bytes)) in &mut rounded {
            let of_f32: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
            let of_bf16: Vec<_> = of_f32.into_iter().map(half::bf16::from_f32).collect();
            (*dtype, *bytes) = (Dtype::BF16, bytemuck::cast_slice(&of_bf16).to_vec());
        }
        scratch.write(&rounded);
        let eps = half::bf16::from_f32(-1e-6).to_f32();
        let op = Xielu::default().compat(Compat::new(eps));
        let params = [166.0, 40.75, 0.5];
        let x = values::<half::bf16>(&rounded[0].1);
        let y = values::<half::bf16>(&run("--direction forward")["y"]);
        let bounds = Bounds::of(&op);
        let report = reference::check_forward(&op, &params, &x, &y, bounds).unwrap();
        assert!(report.ok(), "{device}: {report}");
        let out = run("--direction backward");
        let dparams = ["dalpha_p", "dalpha_n", "dbeta"].map(|name| number(&out[name]));
        let dy = [half::bf16::from_f32(1.0); 3];
        let dx = values::<half::bf16>(&out["dx"]);
        let report =
            reference::check_gradients(&op, &params, &x, &dy, &dx, &dparams, bounds).unwrap();
        assert!(report.ok(), "{device}: {report}");
    }
    std::fs::remove_file(scratch.path("out.safetensors")).unwrap();

    scratch.write(&checkpoint());
    let refused = |flags: &str, words: &[&str]| {
        let line = format!("--direction forward --device cpu {flags}");
        scratch.refused("xielu", &line, words);
    };
    refused("--beta 0.5", &["--beta", "tensor beta"]);
    refused("--eps -1e-6", &["--eps", "tensor eps"]);
    let mut bad = checkpoint();
    bad[4].1 = tensor::<f32>(&[2], &[-1e-6; 2]);
    scratch.write(&bad);
    refused("", &["eps is F32 [2]", "one element"]);
    bad[4].1 = tensor::<f32>(&[], &[f64::NAN]);
    scratch.write(&bad);
    refused("", &["eps is NaN"]);
}

#[test]
fn what_is_not_read_is_said_and_what_is_not_used_is_refused() {
    let scratch = Scratch::new();
    let forward = "--direction forward --device cpu";
    let mut input = expanded_input::<f32>(false);
    input.push(("weight", tensor::<f32>(&[1], &[1.0])));
    scratch.write(&input);
    let (_, text) = scratch.says("xatlu", forward);
    assert!(text.contains("not read of the input: dy, weight"), "{text}");
    scratch.write(&input[..2]);
    let (_, text) = scratch.says("xatlu", forward);
    assert!(!text.contains("not read"), "{text}");
    std::fs::remove_file(scratch.path("out.safetensors")).unwrap();

    let refused = |op: &str, line: &str, words: &[&str]| {
        scratch.refused(op, &format!("{forward} {line}"), words);
    };
    for flag in [
        "--effective",
        "--beta 1",
        "--eps -1e-6",
        "--eps-gradient analytic",
    ] {
        let name = flag.split(' ').next().unwrap();
        refused("xatlu", flag, &[name, "xielu", "xatlu has none"]);
    }
    refused("xielu", "--gated 1", &["xielu has no gated forms"]);
    refused("xatlu", "--halves value-first", &["--gated"]);
}

#[test]
fn the_value_may_be_first() {
    let scratch = Scratch::new();
    scratch.write(&[
        ("x", tensor::<f32>(&[1, 2], &[3.0, 1.0])),
        ("alpha", tensor::<f32>(&[], &[0.0])),
        ("dy", tensor::<f32>(&[1, 1], &[1.0])),
    ]);
    for device in ["reference", "cpu", &the_device()] {
        let run = |line: &str| {
            let line = format!("--device {device} --gated 1 {line}");
            scratch.says("xsilu", &line).0
        };
        let first = run("--direction forward --halves value-first");
        near(&values::<f32>(&first["y"]), &[2.193_175_8], 1e-7);
        let first = run("--direction backward --halves value-first");
        near(
            &values::<f32>(&first["dx"]),
            &[0.731_058_6, 0.589_835_8],
            2e-7,
        );
        let gate = run("--direction forward --halves gate-first");
        near(&values::<f32>(&gate["y"]), &[0.952_574_1], 1e-7);
        assert_eq!(gate["y"].2, run("--direction forward")["y"].2);
    }

    // The tensor has several rows.
    let swapped = |values: &[f64]| -> Vec<f64> {
        let rows = values.chunks(6);
        rows.flat_map(|row| [&row[3..], &row[..3]].concat())
            .collect()
    };
    let input = expanded_input::<f32>(true);
    let x: Vec<f64> = values::<f32>(&input[0].1)
        .iter()
        .map(|&v| v.into())
        .collect();
    for device in ["reference", "cpu", &the_device()] {
        let run = |halves: &str| {
            ["forward", "backward"].map(|direction| {
                let line = format!(
                    "--device {device} --gated 2 --direction {direction} --halves {halves}"
                );
                scratch.says("xatlu", &line).0
            })
        };
        scratch.write(&input);
        let [y, gradients] = run("gate-first");
        let mut other = expanded_input::<f32>(true);
        other[0].1 = tensor::<f32>(&[2, 1, 6], &swapped(&x));
        scratch.write(&other);
        let [y_of_other, of_other] = run("value-first");
        assert_eq!(y["y"].2, y_of_other["y"].2);
        assert_eq!(gradients["dalpha"].2, of_other["dalpha"].2);
        let dx: Vec<f64> = (values::<f32>(&gradients["dx"]).iter())
            .map(|&v| v.into())
            .collect();
        let expected = tensor::<f32>(&[2, 1, 6], &swapped(&dx));
        assert_eq!(of_other["dx"].2, expected.2);
    }
}

#[test]
fn the_reference_takes_f64_and_answers_in_it() {
    let scratch = Scratch::new();
    let (x, alpha) = (X.map(|x| x + 1e-12), 0.3);
    let input = [
        ("x", doubles(&[2, 3], &x)),
        ("alpha", doubles(&[1], &[alpha])),
        ("dy", doubles(&[2, 3], &DY)),
    ];
    scratch.write(&input);
    for device in ["cpu", "emulated"] {
        let forward = format!("--device {device} --direction forward");
        scratch.refused("xatlu", &forward, &["x is F64", "--device reference"]);
    }
    let run = |line: &str| scratch.outputs_of("xatlu", &format!("--device reference {line}"));
    let of = |tensor: &Tensor| -> Vec<f64> {
        assert_eq!(tensor.0, Dtype::F64);
        bytemuck::pod_collect_to_vec(&tensor.2)
    };
    let points = x.map(|x| Xatlu.evaluate(&[alpha], x));
    let forward = run("--direction forward");
    assert_eq!(of(&forward["y"]), points.map(|point| point.y.value));
    let backward = run("--direction backward");
    let dx: Vec<f64> = (points.iter().zip(DY))
        .map(|(point, dy)| dy * point.slope.value)
        .collect();
    assert_eq!(of(&backward["dx"]), dx);
    let dalpha: f64 = (points.iter().zip(DY))
        .map(|(point, dy)| dy * point.dparams[0])
        .sum();
    assert!((of(&backward["dalpha"])[0] - dalpha).abs() <= 1e-14 * dalpha.abs());
}
