//! Values and gradients of the activations for every kind of tensor, compared with the f64 reference, finite differences
//! and candle's own composition.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var, WithDType};
use common::{bits, close, composed, f64s, numbers, refused, scalar, tensor, var};
use xact::half::{bf16, f16};
use xact::reference::{self, Bounds, GatedGradients};
use xact::{
    AnyActivation, Compat, EpsGradient, Gated, Halves, Order, Parameters, Xatlu, Xgelu, Xielu,
    Xsilu,
};
use xact_candle::{activation, gated, gated_halves, gated_interleaved};

/// The ops, with parameters for the tests.
fn ops() -> Vec<(AnyActivation, Vec<f32>)> {
    vec![
        (Xielu::default().into(), vec![0.2, -1.05]),
        (Xielu::default().into(), vec![166.0, 40.75]),
        (Xielu::default().into(), vec![0.5, -0.25, 0.125]),
        (
            Xielu::default().parameters(Parameters::Effective).into(),
            vec![0.8, 0.75, 0.5],
        ),
        (
            Xielu::default()
                .compat(Compat::new(-0.5).gradient(EpsGradient::Autograd))
                .into(),
            vec![0.2, -1.05],
        ),
        (Xatlu.into(), vec![0.25]),
        (Xgelu.into(), vec![-0.75]),
        (Xsilu.into(), vec![1.5]),
    ]
}

fn gated_ops() -> Vec<(AnyActivation, f32)> {
    vec![
        (Xatlu.into(), 0.25),
        (Xgelu.into(), -0.75),
        (Xsilu.into(), 0.0),
    ]
}

trait Float: xact::Element + WithDType {}
impl Float for f32 {}
impl Float for f16 {}
impl Float for bf16 {}

fn elements<T: Float>(tensor: &Tensor) -> Vec<T> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn scalars(values: &[f32]) -> Vec<Var> {
    values.iter().map(|&value| scalar(value)).collect()
}

fn refs(scalars: &[Var]) -> Vec<&Tensor> {
    scalars.iter().map(Var::as_tensor).collect()
}

fn gradients(loss: &Tensor, of: &[&Tensor]) -> Vec<Tensor> {
    let store = loss.backward().unwrap();
    of.iter()
        .map(|tensor| store.get(tensor).expect("a gradient").clone())
        .collect()
}

/// Σ y·dy, so that dy is the upstream gradient.
fn loss(y: &Tensor, dy: &Tensor) -> Tensor {
    (y * dy).unwrap().sum_all().unwrap()
}

fn values_and_gradients_are_the_references<T: Float>() {
    let dtype = <T as WithDType>::DTYPE;
    for (op, values) in ops() {
        for len in [1, 2, 7, 8, 31, 1025] {
            let x = var(&tensor(len as u64, &[len], 6.0, dtype));
            let dy = tensor(99, &[len], 1.0, dtype);
            let params = scalars(&values);
            let y = activation(op, &x, &refs(&params)).unwrap();
            assert_eq!((y.dtype(), y.dims()), (dtype, &[len][..]));
            let values: Vec<f64> = values.iter().map(|&v| v.into()).collect();
            let (xs, dys) = (elements::<T>(&x), elements::<T>(&dy));
            let bounds = Bounds::of(&op);
            let report =
                reference::check_forward(&op, &values, &xs, &elements::<T>(&y), bounds).unwrap();
            assert!(report.ok(), "{op:?} y of {len}: {report:?}");
            let mut of = vec![x.as_tensor()];
            of.extend(refs(&params));
            let got = gradients(&loss(&y, &dy), &of);
            assert_eq!((got[0].dtype(), got[0].dims()), (dtype, x.dims()));
            let dparams: Vec<f64> = got[1..].iter().flat_map(f64s).collect();
            let dx = elements::<T>(&got[0]);
            let report =
                reference::check_gradients(&op, &values, &xs, &dys, &dx, &dparams, bounds).unwrap();
            assert!(report.ok(), "{op:?} gradients of {len}: {report:?}");
        }
    }
}

#[test]
fn f32_values_and_gradients_are_the_references() {
    values_and_gradients_are_the_references::<f32>();
}

#[test]
fn f16_values_and_gradients_are_the_references() {
    values_and_gradients_are_the_references::<f16>();
}

#[test]
fn bf16_values_and_gradients_are_the_references() {
    values_and_gradients_are_the_references::<bf16>();
}

/// Gate and value that alternate in one tensor give the results of separate tensors, also in rows with a pitch.
#[test]
fn interleaved_gates_and_values_are_the_same_as_separate_ones() {
    for dtype in [DType::F32, DType::BF16] {
        let (rows, n) = (3, 32);
        let [x, v, dy] = [1, 2, 3].map(|seed| tensor(seed, &[rows, n], 2.0, dtype));
        let alpha = scalar(0.25);
        for (op, order) in [
            (Xatlu.into(), Order::First),
            (AnyActivation::from(Xsilu), Order::Second),
        ] {
            let (x, v) = (var(&x), var(&v));
            let y = gated(op, order, &x, &v, &[&alpha]).unwrap();
            let expected = gradients(&loss(&y, &dy), &[&x, &v]);
            for (first, block) in [
                (Halves::GateFirst, 1),
                (Halves::ValueFirst, 1),
                (Halves::ValueFirst, 8),
                (Halves::GateFirst, 32),
            ] {
                let join = |x: &Tensor, v: &Tensor| {
                    let sides = match first {
                        Halves::GateFirst => [x, v],
                        Halves::ValueFirst => [v, x],
                    };
                    let blocks = sides.map(|t| t.reshape((rows, n / block, block)).unwrap());
                    let both = Tensor::stack(&blocks, 2).unwrap();
                    both.reshape((rows, 2 * n)).unwrap().detach()
                };
                let xv = join(&x, &v);
                // A view of a wider tensor, too.
                let wide = Tensor::cat(&[&xv, &dy], 1).unwrap();
                for (from, cols) in [(var(&xv), 2 * n), (var(&wide), 2 * n)] {
                    let view = from.narrow(1, 0, cols).unwrap();
                    let y_again = gated_interleaved(op, order, &view, first, block, &[&alpha]);
                    let y_again = y_again.unwrap();
                    assert_eq!(bits(&y_again), bits(&y));
                    let found = gradients(&loss(&y_again, &dy), &[&from]);
                    let found = found[0].narrow(1, 0, cols).unwrap().contiguous().unwrap();
                    assert_eq!(bits(&found), bits(&join(&expected[0], &expected[1])));
                }
            }
        }
        for block in [0, 2, 12, 64] {
            let xv = tensor(1, &[rows, 2 * n], 1.0, dtype);
            let call = gated_interleaved(
                Xsilu,
                Order::First,
                &xv,
                Halves::GateFirst,
                block,
                &[&alpha],
            );
            assert!(call.unwrap_err().to_string().contains("blocks of"));
        }
    }
}

fn gated_values_and_gradients_are_the_references<T: Float>() {
    let dtype = <T as WithDType>::DTYPE;
    for (op, alpha) in gated_ops() {
        for order in Order::ALL {
            for (rows, n) in [(1, 1), (3, 5), (4, 8), (2, 33)] {
                let xv = var(&tensor(n as u64, &[rows, 2 * n], 5.0, dtype));
                let dy = tensor(7, &[rows, n], 1.0, dtype);
                let whole = [xv.narrow(1, 0, n).unwrap(), xv.narrow(1, n, n).unwrap()];
                for halves in [Halves::GateFirst, Halves::ValueFirst] {
                    let [x, v] = match halves {
                        Halves::GateFirst => [&whole[0], &whole[1]],
                        Halves::ValueFirst => [&whole[1], &whole[0]],
                    };
                    let alpha = scalar(alpha);
                    // The halves, views of them, and separate tensors.
                    let packed = gated_halves(op, order, &xv, halves, &[&alpha]).unwrap();
                    let views = gated(op, order, x, v, &[&alpha]).unwrap();
                    let owned = [x, v].map(|t| var(&t.contiguous().unwrap()));
                    let apart = gated(op, order, &owned[0], &owned[1], &[&alpha]).unwrap();
                    assert_eq!(bits(&packed), bits(&views));
                    assert_eq!(bits(&packed), bits(&apart));
                    assert_eq!(packed.dims(), [rows, n]);

                    let (xs, vs) = (elements::<T>(x), elements::<T>(v));
                    let values = [f64s(&alpha)[0]];
                    let gate = op.as_gated().unwrap();
                    let bounds = Bounds::of(&op);
                    let ys = elements::<T>(&packed);
                    let report =
                        reference::check_gated_forward(gate, order, &values, &xs, &vs, &ys, bounds)
                            .unwrap();
                    assert!(report.ok(), "{op:?} {order:?}: {report:?}");

                    let of_packed = gradients(&loss(&packed, &dy), &[&xv, &alpha]);
                    let of_views = gradients(&loss(&views, &dy), &[&xv, &alpha]);
                    let of_apart = gradients(&loss(&apart, &dy), &[&owned[0], &owned[1], &alpha]);
                    assert_eq!(bits(&of_packed[0]), bits(&of_views[0]));
                    let [dx, dv] = match halves {
                        Halves::GateFirst => [0, n],
                        Halves::ValueFirst => [n, 0],
                    }
                    .map(|at| of_packed[0].narrow(1, at, n).unwrap());
                    assert_eq!(bits(&dx), bits(&of_apart[0]));
                    assert_eq!(bits(&dv), bits(&of_apart[1]));
                    let (dx, dv) = (elements::<T>(&dx), elements::<T>(&dv));
                    for dalpha in [&of_packed[1], &of_views[1], &of_apart[2]] {
                        let report = reference::check_gated_gradients(
                            gate,
                            order,
                            &values,
                            &GatedGradients {
                                x: &xs,
                                v: &vs,
                                dy: &elements::<T>(&dy),
                                dx: &dx,
                                dv: &dv,
                            },
                            &f64s(dalpha),
                            bounds,
                        )
                        .unwrap();
                        assert!(report.ok(), "{op:?} {order:?}: {report:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn gated_f32_values_and_gradients_are_the_references() {
    gated_values_and_gradients_are_the_references::<f32>();
}

#[test]
fn gated_16_bit_values_and_gradients_are_the_references() {
    gated_values_and_gradients_are_the_references::<f16>();
    gated_values_and_gradients_are_the_references::<bf16>();
}

/// Views of a tensor, each with a property that code without regard to the layout gets wrong.
fn views(base: &Tensor) -> Vec<(&'static str, Tensor)> {
    let narrow = |dim, start, len| base.narrow(dim, start, len).unwrap();
    vec![
        ("offset", narrow(0, 1, 2)),
        ("pitch", narrow(2, 0, 5)),
        ("pitch and offset", narrow(2, 3, 7)),
        ("groups", narrow(1, 1, 2)),
        ("both", narrow(1, 0, 3).narrow(2, 2, 5).unwrap()),
        ("one column", narrow(2, 4, 1)),
        ("transposed", base.t().unwrap()),
        ("permuted", base.permute((2, 0, 1)).unwrap()),
        ("turned outside", base.transpose(0, 1).unwrap()),
        ("one", base.get(1).unwrap().get(2).unwrap().get(3).unwrap()),
        ("flat", base.flatten_all().unwrap()),
        (
            "broadcast",
            narrow(0, 0, 1).broadcast_as((5, 4, 10)).unwrap(),
        ),
        (
            "broadcast inside",
            narrow(2, 6, 1).broadcast_as((3, 4, 6)).unwrap(),
        ),
        (
            "ones around",
            base.unsqueeze(0).unwrap().unsqueeze(4).unwrap(),
        ),
        ("empty rows", narrow(0, 1, 0)),
        ("empty columns", narrow(2, 10, 0)),
    ]
}

/// A view gives the same bits as its copy, and its gradient is at the positions of its elements.
#[test]
fn views_are_as_their_copies() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let base = var(&tensor(3, &[3, 4, 10], 4.0, dtype));
        for (op, values) in ops() {
            for (name, view) in views(&base) {
                let params = scalars(&values);
                let y = activation(op, &view, &refs(&params)).unwrap();
                assert_eq!(y.dims(), view.dims(), "{name}");
                let copy = Tensor::from_slice(&f64s(&view), view.dims(), &Device::Cpu).unwrap();
                let copy = var(&copy.to_dtype(dtype).unwrap());
                let expected = activation(op, &copy, &refs(&params)).unwrap();
                assert_eq!(bits(&y), bits(&expected), "{name}");

                let dy = tensor(4, view.dims(), 1.0, dtype);
                let mut of = vec![base.as_tensor()];
                of.extend(refs(&params));
                let got = gradients(&loss(&y, &dy), &of);
                of[0] = &copy;
                let expected = gradients(&loss(&expected, &dy), &of);
                for (got, expected) in got[1..].iter().zip(&expected[1..]) {
                    let part = if view.elem_count() == 0 { 0.0 } else { 1e-5 };
                    close(&f64s(got), &f64s(expected), part);
                }
                // candle itself knows the positions of the elements.
                let scattered = (&view * expected[0].detach()).unwrap().sum_all().unwrap();
                let scattered = gradients(&scattered, &[&base]);
                assert_eq!(bits(&got[0]), bits(&scattered[0]), "{name} {op:?}");
            }
        }
    }
}

/// Gate and value are views with different layouts.
#[test]
fn pairs_of_views_are_as_their_copies() {
    let base = tensor(3, &[3, 4, 10], 4.0, DType::F32);
    let other = tensor(5, &[3, 4, 10], 4.0, DType::F32);
    let alpha = scalar(0.25);
    let mut pairs = 0;
    for (x_name, x) in views(&base) {
        for (v_name, v) in views(&other).into_iter().chain(views(&base)) {
            if x.dims() != v.dims() {
                continue;
            }
            pairs += 1;
            let (x, v) = (var_of_view(&x), var_of_view(&v));
            let y = gated(Xsilu, Order::Second, &x.1, &v.1, &[&alpha]).unwrap();
            let copies = [&x.1, &v.1].map(|t| var(&t.contiguous().unwrap().copy().unwrap()));
            let expected = gated(Xsilu, Order::Second, &copies[0], &copies[1], &[&alpha]).unwrap();
            assert_eq!(bits(&y), bits(&expected), "{x_name}, {v_name}");
            let dy = tensor(6, y.dims(), 1.0, DType::F32);
            let expected = gradients(&loss(&expected, &dy), &[&copies[0], &copies[1]]);
            let got = gradients(&loss(&y, &dy), &[&x.0, &v.0]);
            for ((got, expected), view) in got.iter().zip(&expected).zip([&x, &v]) {
                let scattered = (&view.1 * expected.detach()).unwrap().sum_all().unwrap();
                let scattered = gradients(&scattered, &[&view.0]);
                assert_eq!(bits(got), bits(&scattered[0]), "{x_name}, {v_name}");
            }
        }
    }
    assert!(pairs >= 32, "{pairs}");
}

/// A variable, and the same view of it as the tensor is of its own storage.
fn var_of_view(view: &Tensor) -> (Var, Tensor) {
    // A layout cannot be copied, so the view is made again, from a copy of the whole storage.
    let (storage, layout) = view.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        panic!("not on the CPU")
    };
    let whole = storage.as_slice::<f32>().unwrap();
    let whole = Var::from_slice(whole, whole.len(), &Device::Cpu).unwrap();
    let mut again = None;
    for (_, candidate) in views(&whole.reshape((3, 4, 10)).unwrap()) {
        if candidate.layout() == layout {
            again = Some(candidate);
        }
    }
    (whole.clone(), again.expect("one of the views"))
}

/// The halves of packed views.
#[test]
fn packed_views_are_as_their_copies() {
    let base = var(&tensor(3, &[3, 4, 10], 4.0, DType::BF16));
    let alpha = scalar(-0.25);
    let mut tried = 0;
    for (name, view) in views(&base) {
        if view.dims().last().is_none_or(|width| width % 2 != 0) {
            let refused_text = "a gate and a value half of equal length";
            refused(
                gated_halves(Xgelu, Order::First, &view, Halves::GateFirst, &[&alpha]),
                refused_text,
            );
            continue;
        }
        tried += 1;
        let copy = var(&view.contiguous().unwrap().copy().unwrap());
        for halves in [Halves::GateFirst, Halves::ValueFirst] {
            let call = |xv: &Tensor| gated_halves(Xgelu, Order::First, xv, halves, &[&alpha]);
            let (y, expected) = (call(&view).unwrap(), call(&copy).unwrap());
            assert_eq!(bits(&y), bits(&expected), "{name}");
            let dy = tensor(6, y.dims(), 1.0, DType::BF16);
            let expected = gradients(&loss(&expected, &dy), &[&copy]);
            let got = gradients(&loss(&y, &dy), &[&base]);
            let scattered = (&view * expected[0].detach()).unwrap().sum_all().unwrap();
            let scattered = gradients(&scattered, &[&base]);
            assert_eq!(bits(&got[0]), bits(&scattered[0]), "{name}");
        }
    }
    assert!(tried >= 6, "{tried}");
}

/// For every input and every parameter, through the graph.
#[test]
fn gradients_are_finite_differences() {
    type Call = Box<dyn Fn(&[&Tensor]) -> Result<Tensor>>;
    let mut calls: Vec<(String, Call, Vec<Vec<f32>>)> = Vec::new();
    let x = vec![-3.1_f32, -1.2, -0.4, 0.3, 0.9, 2.2, 3.7];
    let v = numbers(8, x.len(), 2.0);
    for (op, values) in ops() {
        // A clamp has no derivative at its bound. None of these x is close to a bound, except autograd's 0.
        let call: Call = Box::new(move |t| activation(op, t[0], &t[1..]));
        let mut inputs = vec![x.clone()];
        inputs.extend(values.iter().map(|&value| vec![value]));
        calls.push((format!("{op:?}"), call, inputs));
    }
    for (op, alpha) in gated_ops() {
        for order in Order::ALL {
            let call: Call = Box::new(move |t| gated(op, order, t[0], t[1], &t[2..]));
            let inputs = vec![x.clone(), v.clone(), vec![alpha]];
            calls.push((format!("{op:?} {order:?}"), call, inputs));
        }
    }
    let dy = tensor(5, &[x.len()], 1.0, DType::F32);
    for (name, call, inputs) in calls {
        // Trained parameters are large, and so is the rounding error of a step in f32.
        let scale = inputs[1..]
            .iter()
            .flatten()
            .fold(1.0, |m: f32, p| m.max(p.abs()));
        let value = |inputs: &[Vec<f32>]| {
            let tensors: Vec<Var> = inputs
                .iter()
                .map(|values| Var::new(&values[..], &Device::Cpu).unwrap())
                .collect();
            let y = call(&refs(&tensors)).unwrap();
            let sum: f64 = f64s(&y).iter().zip(f64s(&dy)).map(|(y, dy)| y * dy).sum();
            (sum, tensors, y)
        };
        let (_, tensors, y) = value(&inputs);
        let got = gradients(&loss(&y, &dy), &refs(&tensors));
        for (which, gradient) in got.iter().enumerate() {
            let gradient = f64s(gradient);
            let mut expected = Vec::new();
            for i in 0..gradient.len() {
                let at = |step: f32| {
                    let mut moved = inputs.clone();
                    moved[which][i] += step;
                    (value(&moved).0, f64::from(moved[which][i]))
                };
                let ((high, b), (low, a)) = (at(0.02), at(-0.02));
                expected.push((high - low) / (b - a));
            }
            close(&gradient, &expected, 2e-3 * f64::from(scale).sqrt());
            assert!(
                gradient.iter().any(|g| g.abs() > 1e-3),
                "{name}: {gradient:?}"
            );
        }
    }
}

/// candle's own formulas in f64, differentiated by candle.
#[test]
fn gradients_are_those_of_candles_composition() {
    let x = numbers(1, 101, 5.0);
    let v = numbers(2, 101, 2.0);
    let dy = numbers(3, 101, 1.0);
    let of = |values: &[f32], dtype| {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        var(&tensor.to_dtype(dtype).unwrap())
    };
    type Call<'a> = &'a dyn Fn(&[&Tensor]) -> Result<Tensor>;
    let compare = |name: &str, params: &[f32], ours: Call, theirs: Call, part: f64| {
        let results = [(DType::F32, ours), (DType::F64, theirs)].map(|(dtype, call)| {
            let mut tensors = vec![of(&x, dtype), of(&v, dtype)];
            tensors.extend(params.iter().map(|&p| of(&[p], dtype)));
            let y = call(&refs(&tensors)).unwrap();
            let store = loss(&y, &of(&dy, dtype)).backward().unwrap();
            let mut results = vec![f64s(&y)];
            results.extend(tensors.iter().filter_map(|t| store.get(t)).map(f64s));
            results
        });
        assert_eq!(results[0].len(), results[1].len(), "{name}");
        for (ours, theirs) in results[0].iter().zip(&results[1]) {
            close(ours, theirs, part);
        }
    };
    compare(
        "xielu",
        &[0.2, -1.05],
        &|t| xact_candle::xielu(t[0], t[2], t[3]),
        &|t| composed::xielu(t[0], t[2], t[3]),
        2e-6,
    );
    compare(
        "xsilu",
        &[0.3],
        &|t| xact_candle::xsilu(t[0], t[2]),
        &|t| composed::xsilu(t[0], t[2]),
        1e-6,
    );
    compare(
        "xgelu",
        &[0.3],
        &|t| xact_candle::xgelu(t[0], t[2]),
        &|t| composed::xgelu(t[0], t[2]),
        1e-6,
    );
    // The arctangent of the composition has no more digits.
    compare(
        "xatlu",
        &[0.3],
        &|t| xact_candle::xatlu(t[0], t[2]),
        &|t| composed::xatlu(t[0], t[2]),
        1e-3,
    );
    compare(
        "gated xsilu",
        &[0.3],
        &|t| gated(Xsilu, Order::First, t[0], t[1], &t[2..]),
        &|t| composed::gate_xsilu(t[0], t[2])? * t[1],
        1e-6,
    );
    compare(
        "gated xgelu",
        &[0.3],
        &|t| gated(Xgelu, Order::Second, t[0], t[1], &t[2..]),
        &|t| composed::xgelu(t[0], t[2])? * t[1],
        1e-6,
    );
}

/// A parameter receives a gradient of its own shape and type, for any x.
#[test]
fn parameters_of_any_type_and_shape() {
    let values = numbers(1, 64, 3.0);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let x = Tensor::new(&values[..], &Device::Cpu).unwrap();
        let x = var(&x.to_dtype(dtype).unwrap());
        let mut expected = None;
        for param_dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            for dims in [&[][..], &[1], &[1, 1]] {
                let of = |value: f32| {
                    let tensor = Tensor::full(value, dims, &Device::Cpu).unwrap();
                    var(&tensor.to_dtype(param_dtype).unwrap())
                };
                // The numbers are exact in every type.
                let (alpha_p, alpha_n) = (of(0.5), of(-1.25));
                let y = xact_candle::xielu(&x, &alpha_p, &alpha_n).unwrap();
                assert_eq!(y.dtype(), dtype);
                let store = y.sum_all().unwrap().backward().unwrap();
                let got = [&alpha_p, &alpha_n].map(|p| {
                    let gradient = store.get(p).unwrap();
                    assert_eq!((gradient.dims(), gradient.dtype()), (dims, param_dtype));
                    f64s(gradient)[0]
                });
                let expected = *expected.get_or_insert(got);
                for (got, expected) in got.iter().zip(expected) {
                    let part = if param_dtype == DType::BF16 {
                        4e-3
                    } else {
                        5e-4
                    };
                    let exact = matches!(param_dtype, DType::F32 | DType::F64);
                    close(&[*got], &[expected], if exact { 0.0 } else { part });
                }
            }
        }
    }
}

/// All layers may share a variable as their scalar.
#[test]
fn parameters_may_be_views() {
    let x = var(&tensor(1, &[3, 7], 3.0, DType::F32));
    let all = Var::new(&[[9.0_f32, -1.25, 9.0], [9.0, 0.5, 9.0]], &Device::Cpu).unwrap();
    let of = |row| all.get(row).unwrap().narrow(0, 1, 1).unwrap();
    let (alpha_p, alpha_n) = (scalar(0.5), scalar(-1.25));
    for (ours, expected) in [
        (
            xact_candle::xsilu(&x, &of(1)),
            xact_candle::xsilu(&x, &alpha_p),
        ),
        (
            gated(Xsilu, Order::First, &x, &x, &[&of(1)]),
            gated(Xsilu, Order::First, &x, &x, &[&alpha_p]),
        ),
        (
            xact_candle::xielu(&x, &of(1), &of(0)),
            xact_candle::xielu(&x, &alpha_p, &alpha_n),
        ),
    ] {
        let (ours, expected) = (ours.unwrap(), expected.unwrap());
        assert_eq!(bits(&ours), bits(&expected));
        let got = f64s(&gradients(&ours.sum_all().unwrap(), &[&all])[0]);
        let store = expected.sum_all().unwrap().backward().unwrap();
        let of = |p: &Var| store.get(p).map_or(0.0, |gradient| f64s(gradient)[0]);
        assert_eq!(got, [0.0, of(&alpha_n), 0.0, 0.0, of(&alpha_p), 0.0]);
    }
}

/// A variable is used at several places, and candle adds the gradients.
#[test]
fn gradients_accumulate_over_uses() {
    let x = var(&tensor(1, &[5, 6], 3.0, DType::F32));
    let (alpha_p, alpha_n) = (scalar(0.2), scalar(-1.0));
    let of = [x.as_tensor(), &alpha_p, &alpha_n];
    let once = |x: &Tensor| xact_candle::xielu(x, &alpha_p, &alpha_n).unwrap();
    let part = |start| {
        let y = once(&x.narrow(0, start, 3).unwrap()).sum_all().unwrap();
        gradients(&y, &of)
    };
    let sum = (once(&x.narrow(0, 0, 3).unwrap()).sum_all().unwrap()
        + once(&x.narrow(0, 2, 3).unwrap()).sum_all().unwrap())
    .unwrap();
    let got = gradients(&sum, &of);
    for ((got, a), b) in got.iter().zip(part(0)).zip(part(2)) {
        close(&f64s(got), &f64s(&(a + b).unwrap()), 1e-6);
    }
    // The same tensor as gate and value; one scalar as both parameters.
    let y = gated(Xsilu, Order::First, &x, &x, &[&alpha_p]).unwrap();
    let expected = xact_candle::xsilu(&x, &alpha_p).unwrap();
    close(&f64s(&y), &f64s(&expected), 1e-6);
    let (got, expected) = (
        gradients(&y.sum_all().unwrap(), &[&x, &alpha_p]),
        gradients(&expected.sum_all().unwrap(), &[&x, &alpha_p]),
    );
    close(&f64s(&got[0]), &f64s(&expected[0]), 1e-5);
    close(&f64s(&got[1]), &f64s(&expected[1]), 1e-5);
    let both = xact_candle::xielu(&x, &alpha_p, &alpha_p).unwrap();
    let twin = scalar(0.2);
    let apart = xact_candle::xielu(&x, &alpha_p, &twin).unwrap();
    let got = gradients(&both.sum_all().unwrap(), &[&alpha_p]);
    let expected = gradients(&apart.sum_all().unwrap(), &[&alpha_p, &twin]);
    let expected = (&expected[0] + &expected[1]).unwrap();
    close(&f64s(&got[0]), &f64s(&expected), 1e-6);
    // A second backward through the same graph works.
    let y = once(&x).sum_all().unwrap();
    assert_eq!(bits(&gradients(&y, &of)[0]), bits(&gradients(&y, &of)[0]));
}

/// Tensors that are not tracked have no gradient, and none is computed.
#[test]
fn only_what_is_tracked_has_a_gradient() {
    let values = tensor(1, &[4, 6], 3.0, DType::F32);
    let (x, alpha) = (var(&values), scalar(0.5));
    let fixed = alpha.detach();
    let y = xact_candle::xsilu(&values, &fixed).unwrap();
    assert!(!y.track_op());

    let store = xact_candle::xsilu(&x, &fixed).unwrap().backward().unwrap();
    assert!(store.get(&x).is_some() && store.get(&fixed).is_none());
    let store = xact_candle::xsilu(&values, &alpha)
        .unwrap()
        .backward()
        .unwrap();
    assert!(store.get(&alpha).is_some() && store.get(&values).is_none());
    for (x, v) in [(x.as_tensor(), &values), (&values, x.as_tensor())] {
        let y = gated(Xsilu, Order::Second, x, v, &[&fixed]).unwrap();
        let store = y.backward().unwrap();
        assert_eq!(store.get(x).is_some(), x.track_op());
        assert_eq!(store.get(v).is_some(), v.track_op());
    }
    let xv = values.clone();
    let y = gated_halves(Xsilu, Order::Second, &xv, Halves::GateFirst, &[&alpha]).unwrap();
    let store = y.backward().unwrap();
    assert!(store.get(&alpha).is_some() && store.get(&xv).is_none());
    // Only one of two scalars is tracked.
    let (alpha_p, alpha_n) = (scalar(0.1), scalar(0.2).as_detached_tensor());
    let y = xact_candle::xielu(&x, &alpha_p, &alpha_n).unwrap();
    let store = y.backward().unwrap();
    assert!(store.get(&alpha_p).is_some() && store.get(&alpha_n).is_none());
}

/// Empty tensors have no values, and the gradients of the parameters are 0.
#[test]
fn empty_tensors_are_legal() {
    for dims in [&[0][..], &[0, 4], &[4, 0], &[2, 0, 6]] {
        let x = var(&Tensor::zeros(dims, DType::BF16, &Device::Cpu).unwrap());
        let (alpha_p, alpha_n) = (scalar(0.5), scalar(0.5));
        let y = xact_candle::xielu(&x, &alpha_p, &alpha_n).unwrap();
        assert_eq!(y.dims(), dims);
        let got = gradients(&y.sum_all().unwrap(), &[&x, &alpha_p, &alpha_n]);
        assert_eq!(got[0].dims(), dims);
        assert_eq!((f64s(&got[1]), f64s(&got[2])), (vec![0.0], vec![0.0]));
        let y = gated(Xatlu, Order::First, &x, &x, &[&alpha_p]).unwrap();
        assert_eq!(y.dims(), dims);
        let got = gradients(&y.sum_all().unwrap(), &[&x, &alpha_p]);
        assert_eq!((got[0].dims(), f64s(&got[1])), (dims, vec![0.0]));
        if dims.last().is_some_and(|width| width % 2 == 0) {
            let y = gated_halves(Xatlu, Order::First, &x, Halves::ValueFirst, &[&alpha_p]);
            let got = gradients(&y.unwrap().sum_all().unwrap(), &[&x, &alpha_p]);
            assert_eq!((got[0].dims(), f64s(&got[1])), (dims, vec![0.0]));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let x = tensor(1, &[4, 6], 3.0, DType::F32);
    let alpha = scalar(0.5);
    let of = |dtype| x.to_dtype(dtype).unwrap();
    refused(xact_candle::xsilu(&of(DType::F64), &alpha), "x is f64");
    refused(xact_candle::xsilu(&of(DType::I64), &alpha), "x is i64");
    refused(
        xact_candle::xsilu(&x, &of(DType::F32)),
        "must have one element",
    );
    refused(
        xact_candle::xsilu(&x, &Tensor::new(&[1_u32], &Device::Cpu).unwrap()),
        "alpha is u32",
    );
    refused(activation(Xsilu, &x, &[]), "xsilu has the parameters alpha");
    refused(activation(Xsilu, &x, &[&alpha, &alpha]), "2 are given");
    refused(
        activation(Xielu::default(), &x, &[&alpha]),
        "alpha_p, alpha_n, beta",
    );
    refused(
        gated(Xielu::default(), Order::First, &x, &x, &[&alpha, &alpha]),
        "xielu has no gated forms",
    );
    refused(
        gated_halves(
            Xielu::default(),
            Order::First,
            &x,
            Halves::GateFirst,
            &[&alpha, &alpha],
        ),
        "xielu has no gated forms",
    );
    refused(
        gated(Xsilu, Order::First, &x, &x.t().unwrap(), &[&alpha]),
        "v is [6, 4]; it must be [4, 6]",
    );
    refused(
        gated(Xsilu, Order::First, &x, &of(DType::BF16), &[&alpha]),
        "v is bf16; it must be f32",
    );
    refused(
        gated_halves(
            Xsilu,
            Order::First,
            &scalar(0.5),
            Halves::GateFirst,
            &[&alpha],
        ),
        "a gate and a value half",
    );
    refused(
        gated_halves(
            Xsilu,
            Order::First,
            &x.get(0).unwrap().get(0).unwrap(),
            Halves::GateFirst,
            &[&alpha],
        ),
        "a gate and a value half",
    );
}

/// ±inf, NaN, −0 and subnormal inputs give the right results.
#[test]
fn special_values_are_those_of_the_ops() {
    let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, 1e-40];
    let x = Tensor::new(&x, &Device::Cpu).unwrap();
    let y = xact_candle::xielu(&x, &scalar(0.2), &scalar(-1.0)).unwrap();
    let y = y.to_vec1::<f32>().unwrap();
    assert!(y[0] == f32::INFINITY && y[1] == f32::INFINITY && y[2].is_nan());
    assert_eq!((y[3].to_bits(), y[4] > 0.0), ((-0.0_f32).to_bits(), true));
    let _: &dyn Gated = &Xsilu;
}
