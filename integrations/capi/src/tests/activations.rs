//! Every activation in every form and type, compared with the f64 reference.

use std::ffi::c_void;
use std::ptr;

use xact::activation::NAMES;
use xact::half::{bf16, f16};
use xact::reference::{self, Bounds, GatedGradients};
use xact::{Activation, AnyActivation, Element, Order, Parameters};

use super::*;

/// The shape and the pitch of all tensors here.
const ROWS: usize = 3;
const COLS: usize = 203;
const PITCH: usize = 2 * COLS + 5;

/// A tensor whose gaps between the rows have the value 77.
fn spread<T: Element>(values: &[T]) -> Vec<T> {
    let mut all = vec![T::from_f64(77.0); ROWS * PITCH];
    for (row, values) in values.chunks(COLS).enumerate() {
        all[row * PITCH..][..COLS].copy_from_slice(values);
    }
    all
}

/// Reads the rows from an offset on, and checks that the gaps are unchanged.
fn gathered<T: Element>(all: &[T], offset: usize) -> Vec<T> {
    let row = |row: usize| &all[row * PITCH + offset..][..COLS];
    (0..ROWS).flat_map(row).copied().collect()
}

fn matrix(buffer: &Buffer, offset: usize) -> xact_matrix {
    xact_matrix {
        ptr: buffer.at(offset),
        pitch: PITCH as u64,
    }
}

/// Tensors of a call on the host.
struct Case<T> {
    x: Vec<T>,
    v: Vec<T>,
    dy: Vec<T>,
    params: Vec<f32>,
}

fn case<T: Element>(name: &str) -> Case<T> {
    let len = ROWS * COLS;
    let scaled = |seed, scale: f64| elements(noise(len, seed).iter().map(|v| v * scale));
    Case {
        x: scaled(1, 6.0),
        v: scaled(2, 2.0),
        dy: scaled(3, 1.0),
        // The values are exact in every type.
        params: match name {
            "xielu" => vec![0.203_125, -1.046_875],
            _ => vec![0.25],
        },
    }
}

fn args<T: Element>(order: i32) -> xact_activation_args {
    xact_activation_args {
        rows: ROWS as u64,
        cols: COLS as u64,
        dtype: number(T::DTYPE),
        order,
        ..sized()
    }
}

/// A buffer for each scalar, and the addresses.
fn scalars<T: Copy>(backend: &Backend, values: &[T]) -> (Vec<Buffer>, Vec<*mut c_void>) {
    let buffers: Vec<Buffer> = values.iter().map(|&v| backend.put(&[v])).collect();
    let addresses = buffers.iter().map(Buffer::ptr).collect();
    (buffers, addresses)
}

fn orders(op: &AnyActivation) -> Vec<(i32, Option<Order>)> {
    let mut orders = vec![(XACT_ORDER_PLAIN, None)];
    if op.signature().gated {
        orders.push((XACT_ORDER_FIRST, Some(Order::First)));
        orders.push((XACT_ORDER_SECOND, Some(Order::Second)));
    }
    orders
}

fn every_form<T: Element + PartialEq>(backend: &Backend, name: &str, params_are_f32: bool) {
    let reference: AnyActivation = name.parse().unwrap();
    let op = activation(name);
    let case = case::<T>(name);
    let bounds = Bounds::of(&reference);
    let params: Vec<f64> = case.params.iter().map(|&p| p.into()).collect();
    for (number_of_order, order) in orders(&reference) {
        let mut args = args::<T>(number_of_order);
        let of_type: Vec<T> = elements(params.clone());
        let (_scalars, pointers) = match params_are_f32 {
            true => scalars(backend, &case.params),
            false => scalars(backend, &of_type),
        };
        if !params_are_f32 {
            args.param_dtype = number(T::DTYPE);
        }
        args.params = pointers.as_ptr().cast();
        args.param_count = pointers.len() as u64;
        let [x, v, dy] = [&case.x, &case.v, &case.dy].map(|t| backend.put(&spread(t)));
        let blank: Vec<T> = spread(&elements::<T>(vec![77.0; ROWS * COLS]));
        let [y, dx, dv, y_again] = [(); 4].map(|()| backend.put(&blank));
        args.x = matrix(&x, 0);
        args.v = matrix(&v, 0);
        args.y = matrix(&y, 0);
        ok(backend.forward(&op, &args));
        let y: Vec<T> = y.get(ROWS * PITCH);
        assert_eq!(spread(&gathered(&y, 0)), y, "gaps are not written");
        let y = gathered(&y, 0);

        args.y = matrix(&y_again, 0);
        args.dy = matrix(&dy, 0);
        args.dx = matrix(&dx, 0);
        args.dv = matrix(&dv, 0);
        let (dparams, places) = scalars(backend, &vec![3.0_f32; params.len()]);
        args.dparams = places.as_ptr().cast();
        args.dparam_count = places.len() as u64;
        let mut bytes = 0;
        if !backend.is_host() {
            let (rows, cols, dtype) = (args.rows, args.cols, args.dtype);
            ok(unsafe { xact_activation_workspace_bytes(&op, dtype, rows, cols, &mut bytes) });
        }
        let workspace = backend.workspace(bytes);
        args.workspace = workspace.ptr();
        args.workspace_bytes = bytes;
        ok(backend.backward(&op, &args));
        let whole = |buffer: &Buffer| gathered(&buffer.get::<T>(ROWS * PITCH), 0);
        assert_eq!(whole(&y_again), y);
        let read = || -> Vec<f32> { dparams.iter().map(|b| b.get::<f32>(1)[0]).collect() };
        let found = read();
        // Accumulates onto the gradients of the first call.
        args.accumulate = 1;
        args.y.ptr = ptr::null_mut();
        ok(backend.backward(&op, &args));
        let twice: Vec<f32> = found.iter().map(|v| v + v).collect();
        assert_eq!(read(), twice);
        let found: Vec<f64> = found.iter().map(|&v| v.into()).collect();
        let (dx, dv) = (whole(&dx), whole(&dv));
        let reports = match order {
            None => [
                reference::check_forward(&reference, &params, &case.x, &y, bounds),
                reference::check_gradients(
                    &reference, &params, &case.x, &case.dy, &dx, &found, bounds,
                ),
            ],
            Some(order) => {
                let gated = reference.as_gated().unwrap();
                let tensors = GatedGradients {
                    x: &case.x,
                    v: &case.v,
                    dy: &case.dy,
                    dx: &dx,
                    dv: &dv,
                };
                [
                    reference::check_gated_forward(
                        gated, order, &params, &case.x, &case.v, &y, bounds,
                    ),
                    reference::check_gated_gradients(
                        gated, order, &params, &tensors, &found, bounds,
                    ),
                ]
            }
        };
        for report in reports {
            let report = report.unwrap();
            assert!(report.ok(), "{name} {order:?} {}\n{report}", T::DTYPE);
        }
    }
}

#[test]
fn every_op_form_and_type_is_the_reference() {
    on_both(|backend| {
        for name in NAMES {
            every_form::<f32>(backend, name, true);
            every_form::<f16>(backend, name, true);
            every_form::<bf16>(backend, name, true);
            every_form::<bf16>(backend, name, false);
            every_form::<f16>(backend, name, false);
        }
    });
}

#[test]
fn options_are_those_of_the_op() {
    let reference = xact::Xielu::default()
        .beta(0.25)
        .parameters(Parameters::Effective)
        .compat(xact::Compat::new(-1e-3));
    let mut op = activation("xielu");
    op.beta = 0.25;
    op.parameters = XACT_PARAMETERS_EFFECTIVE;
    op.compat = XACT_COMPAT_ANALYTIC;
    op.eps = -1e-3;
    on_both(|backend| {
        let values: Vec<f32> = elements(noise(ROWS * COLS, 7));
        let (x, y) = (backend.put(&values), backend.put(&values));
        let (_scalars, pointers) = scalars(backend, &[0.8_f32, 0.7]);
        let mut args = args::<f32>(XACT_ORDER_PLAIN);
        args.params = pointers.as_ptr().cast();
        args.param_count = 2;
        // With pitch 0, the rows have no gaps.
        args.x.ptr = x.ptr();
        args.y.ptr = y.ptr();
        ok(backend.forward(&op, &args));
        let y: Vec<f32> = y.get(values.len());
        let params = [f64::from(0.8_f32), f64::from(0.7_f32)];
        let bounds = Bounds::of(&reference);
        let report = reference::check_forward(&reference, &params, &values, &y, bounds).unwrap();
        assert!(report.ok(), "{report}");
    });
}

/// The places of the tensors of a backward. Tensors with the same name are the same matrix; "left" and "right" are columns of
/// one larger matrix.
type Places = [&'static str; 6];

/// dx, dv and y of a gated backward, and the gradient of alpha.
fn backward_at(backend: &Backend, [x, v, dy, dx, dv, y]: Places) -> (Vec<Vec<f32>>, f32) {
    let case = case::<f32>("xsilu");
    let op = activation("xsilu");
    let names = ["a", "b", "c", "d", "e", "f", "left", "right"];
    let blank = vec![77.0_f32; ROWS * PITCH + COLS];
    let shared = backend.put(&blank);
    let buffers = names.map(|name| match name {
        "left" | "right" => None,
        _ => Some(backend.put(&blank)),
    });
    let place = |name: &str| {
        let number = names.iter().position(|n| *n == name).unwrap();
        match (&buffers[number], name) {
            (Some(buffer), _) => matrix(buffer, 0),
            (None, "left") => matrix(&shared, 0),
            // There is a gap between them, so they are not halves.
            (None, _) => matrix(&shared, (COLS + 3) * 4),
        }
    };
    let put = |at: xact_matrix, values: &[f32]| {
        // The test writes the rows itself, because a copy by the op would prove nothing.
        for (row, values) in values.chunks(COLS).enumerate() {
            write(backend, at.ptr, row * PITCH, values);
        }
    };
    put(place(x), &case.x);
    put(place(v), &case.v);
    put(place(dy), &case.dy);
    let (_scalars, pointers) = scalars(backend, &case.params);
    let (dparams, places) = scalars(backend, &[0.0_f32]);
    let workspace = backend.workspace(1 << 16);
    let args = xact_activation_args {
        params: pointers.as_ptr().cast(),
        param_count: 1,
        x: place(x),
        v: place(v),
        dy: place(dy),
        dx: place(dx),
        dv: place(dv),
        y: match y {
            "" => sized::<xact_activation_args>().y,
            y => place(y),
        },
        dparams: places.as_ptr().cast(),
        dparam_count: 1,
        workspace: workspace.ptr(),
        workspace_bytes: 1 << 16,
        ..args::<f32>(XACT_ORDER_SECOND)
    };
    ok(backend.backward(&op, &args));
    let results = [dx, dv, y].into_iter().filter(|place| !place.is_empty());
    let results = results.map(|name| {
        let at = place(name);
        (0..ROWS)
            .flat_map(|row| read(backend, at.ptr, row * PITCH, COLS))
            .collect()
    });
    (results.collect(), dparams[0].get::<f32>(1)[0])
}

/// Writes f32 values to an address of the backend.
fn write(backend: &Backend, ptr: *mut c_void, offset: usize, values: &[f32]) {
    let to = ptr.cast::<f32>().wrapping_add(offset);
    #[cfg(feature = "cuda")]
    if let Some(device) = backend.stream() {
        use xact::cudarc::driver::result::memcpy_htod_async;
        let stream = device.stream.cu_stream();
        unsafe { memcpy_htod_async(to.addr() as u64, values, stream) }.unwrap();
        return device.stream.synchronize().unwrap();
    }
    assert!(backend.is_host());
    unsafe { to.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
}

/// Reads f32 values from an address of the backend.
fn read(backend: &Backend, ptr: *mut c_void, offset: usize, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    let from = ptr.cast::<f32>().wrapping_add(offset);
    #[cfg(feature = "cuda")]
    if let Some(device) = backend.stream() {
        use xact::cudarc::driver::result::memcpy_dtoh_sync;
        device.stream.synchronize().unwrap();
        unsafe { memcpy_dtoh_sync(&mut values, from.addr() as u64) }.unwrap();
        return values;
    }
    assert!(backend.is_host());
    unsafe { values.as_mut_ptr().copy_from_nonoverlapping(from, len) };
    values
}

#[test]
fn results_are_the_same_wherever_they_go() {
    on_both(|backend| {
        let (expected, gradient) = backward_at(backend, ["a", "b", "c", "d", "e", "f"]);
        for places in [
            ["a", "b", "c", "a", "b", ""],
            ["a", "b", "c", "a", "b", "c"],
            ["a", "b", "c", "b", "a", "f"],
            ["a", "b", "c", "c", "a", "b"],
            ["a", "b", "c", "d", "c", "a"],
            ["left", "right", "c", "d", "e", "f"],
            ["left", "right", "c", "left", "right", "f"],
            ["left", "right", "c", "right", "left", "c"],
            ["left", "b", "c", "right", "e", "f"],
            ["a", "b", "c", "left", "right", "f"],
            ["a", "b", "left", "d", "e", "right"],
            ["a", "a", "a", "d", "e", "f"],
        ] {
            let (found, of_alpha) = backward_at(backend, places);
            if places[..3] == ["a", "a", "a"] {
                // Inputs that are the same tensor are allowed, but change the result.
                continue;
            }
            assert_eq!(found, expected[..found.len()], "{places:?}");
            // With gaps between the rows, the sums are formed in another order.
            let error = f64::from(of_alpha) - f64::from(gradient);
            assert!(
                error.abs() <= 1e-5 * f64::from(gradient).abs(),
                "{places:?}"
            );
        }
    });
}

#[test]
fn a_plain_op_works_in_place() {
    on_both(|backend| {
        let case = case::<f32>("xielu");
        let op = activation("xielu");
        let (_scalars, pointers) = scalars(backend, &case.params);
        let run = |backward: bool, over: bool| {
            let [x, dy, out] = [&case.x, &case.dy, &case.dy].map(|t| backend.put(t));
            let mut args = args::<f32>(XACT_ORDER_PLAIN);
            args.params = pointers.as_ptr().cast();
            args.param_count = 2;
            args.x.ptr = x.ptr();
            args.dy.ptr = dy.ptr();
            if backward {
                args.dx.ptr = if over { dy.ptr() } else { out.ptr() };
                ok(backend.backward(&op, &args));
                if over { dy } else { out }
            } else {
                args.y.ptr = if over { x.ptr() } else { out.ptr() };
                ok(backend.forward(&op, &args));
                if over { x } else { out }
            }
            .get::<f32>(ROWS * COLS)
        };
        for backward in [false, true] {
            assert_eq!(run(backward, true), run(backward, false));
        }
    });
}

/// Gate and value are the halves of one matrix, and their gradients the halves of another.
#[test]
fn gradients_of_halves_are_halves() {
    on_both(|backend| {
        let case = case::<f32>("xgelu");
        let op = activation("xgelu");
        let (_scalars, pointers) = scalars(backend, &case.params);
        let apart = |gate_first: bool, halves: bool| {
            let rows = case.x.chunks(COLS).zip(case.v.chunks(COLS));
            let both: Vec<f32> = rows
                .flat_map(|(x, v)| if gate_first { [x, v] } else { [v, x] })
                .flatten()
                .copied()
                .collect();
            let (xv, dy) = (backend.put(&both), backend.put(&case.dy));
            let blank = vec![0.0_f32; both.len()];
            let outs = [(); 2].map(|()| backend.put(&blank));
            let mut args = args::<f32>(XACT_ORDER_FIRST);
            args.params = pointers.as_ptr().cast();
            args.param_count = 1;
            let half = |buffer: &Buffer, first: bool| xact_matrix {
                ptr: buffer.at(if first { 0 } else { 4 * COLS }),
                pitch: 2 * COLS as u64,
            };
            args.x = half(&xv, gate_first);
            args.v = half(&xv, !gate_first);
            args.dy.ptr = dy.ptr();
            args.dx = half(&outs[0], gate_first);
            args.dv = half(&outs[usize::from(!halves)], !gate_first);
            ok(backend.backward(&op, &args));
            let at = |buffer: &Buffer, first: bool| -> Vec<f32> {
                let all: Vec<f32> = buffer.get(both.len());
                let of_row = |row: &[f32]| row[if first { 0 } else { COLS }..][..COLS].to_vec();
                all.chunks(2 * COLS).flat_map(of_row).collect()
            };
            let dv = &outs[usize::from(!halves)];
            (at(&outs[0], gate_first), at(dv, !gate_first))
        };
        let expected = apart(true, false);
        for (gate_first, halves) in [(true, true), (false, true), (false, false)] {
            assert_eq!(apart(gate_first, halves), expected);
        }
    });
}

/// Gate and value alternate in one matrix, whose rows may have gaps, and their gradients in another or in the same.
#[test]
fn gate_and_value_may_alternate() {
    const COLS: usize = 208;
    const GAP: usize = 3;
    on_both(|backend| {
        let values = |seed| -> Vec<bf16> { elements(noise(ROWS * COLS, seed)) };
        let (x, v, dy) = (values(1), values(2), values(3));
        let op = activation("xatlu");
        let (_scalars, pointers) = scalars(backend, &[0.25_f32]);
        let blank = || backend.put(&vec![bf16::ZERO; ROWS * COLS]);
        let of_call = || xact_activation_args {
            cols: COLS as u64,
            params: pointers.as_ptr().cast(),
            param_count: 1,
            ..args::<bf16>(XACT_ORDER_SECOND)
        };
        let get = |buffer: &Buffer| buffer.get::<bf16>(ROWS * COLS);
        let inputs = [&x, &v, &dy].map(|values| backend.put(values));
        let (y, dx, dv) = (blank(), blank(), blank());
        let mut args = of_call();
        (args.x.ptr, args.v.ptr) = (inputs[0].ptr(), inputs[1].ptr());
        (args.dy.ptr, args.y.ptr) = (inputs[2].ptr(), y.ptr());
        (args.dx.ptr, args.dv.ptr) = (dx.ptr(), dv.ptr());
        ok(backend.forward(&op, &args));
        ok(backend.backward(&op, &args));
        for (block, value_first, gap) in [(1, 0, 0), (1, 1, GAP), (16, 0, GAP), (8, 1, 0)] {
            let join = |x: &[bf16], v: &[bf16]| -> Vec<bf16> {
                let blocks = x.chunks(block).zip(v.chunks(block));
                let blocks = blocks.flat_map(|(x, v)| match value_first {
                    0 => [x, v].concat(),
                    _ => [v, x].concat(),
                });
                let both: Vec<bf16> = blocks.collect();
                let gap = vec![bf16::ONE; gap];
                let rows = both.chunks(2 * COLS).flat_map(|row| [row, &gap].concat());
                rows.collect()
            };
            let xv = join(&x, &v);
            let expected = join(&get(&dx), &get(&dv));
            let from = backend.put(&xv);
            let y_found = blank();
            let mut args = of_call();
            (args.block, args.value_first) = (block as u64, value_first);
            args.x = xact_matrix {
                ptr: from.ptr(),
                pitch: if gap == 0 { 0 } else { (2 * COLS + gap) as u64 },
            };
            (args.dy.ptr, args.y.ptr) = (inputs[2].ptr(), y_found.ptr());
            ok(backend.forward(&op, &args));
            assert_eq!(get(&y_found), get(&y));
            // Apart, with y over dy, and in place.
            let (apart, dy_and_y) = (backend.put(&join(&dy, &dy)), backend.put(&dy));
            for (to, dy, y_again) in [
                (&apart, &inputs[2], &y_found),
                (&apart, &dy_and_y, &dy_and_y),
                (&from, &inputs[2], &y_found),
            ] {
                args.dx = xact_matrix {
                    ptr: to.ptr(),
                    ..args.x
                };
                (args.dy.ptr, args.y.ptr) = (dy.ptr(), y_again.ptr());
                ok(backend.backward(&op, &args));
                assert_eq!(to.get::<bf16>(xv.len()), expected);
                assert_eq!(get(y_again), get(&y));
            }
        }
        let from = backend.put(&[x, v].concat());
        let mut args = of_call();
        args.x.ptr = from.ptr();
        (args.dy.ptr, args.dx.ptr) = (inputs[2].ptr(), dx.ptr());
        for (block, value_first, y, expected) in [
            (12, 0, &y, XACT_ERROR_BLOCK),
            (32, 0, &y, XACT_ERROR_BLOCK),
            (1 << 60, 0, &y, XACT_ERROR_BLOCK),
            (1, 2, &y, XACT_ERROR_ENUM),
            (1, 0, &from, XACT_ERROR_OVERLAP),
        ] {
            (args.block, args.value_first) = (block, value_first);
            args.y.ptr = y.ptr();
            assert_eq!(backend.forward(&op, &args), expected, "{}", last_error());
        }
    });
}

#[test]
fn an_empty_tensor_needs_no_memory() {
    on_both(|backend| {
        let op = activation("xsilu");
        let (_scalars, pointers) = scalars(backend, &[0.25_f32]);
        let (dparams, places) = scalars(backend, &[3.0_f32]);
        for (rows, cols) in [(0, 5), (5, 0), (0, 0), (1 << 40, 0)] {
            let args = xact_activation_args {
                rows,
                cols,
                dtype: XACT_DTYPE_F32,
                params: pointers.as_ptr().cast(),
                param_count: 1,
                dparams: places.as_ptr().cast(),
                dparam_count: 1,
                ..sized()
            };
            ok(backend.forward(&op, &args));
            ok(backend.backward(&op, &args));
            assert_eq!(dparams[0].get::<f32>(1), [0.0]);
        }
    });
}
