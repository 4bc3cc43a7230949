//! The threads of the host functions. tests/fork.c tests forked processes.

use std::thread;

use super::*;

/// The length of tensors, large enough that several threads are used.
const LEN: usize = 1 << 18;

fn gradient() -> (Vec<f32>, f32) {
    let host = Backend::host();
    let op = activation("xielu");
    let (x, dy) = (noise(LEN, 1), noise(LEN, 2));
    let [x, dy] = [x, dy].map(|values| host.put(&elements::<f32>(values)));
    let dx = host.put(&vec![0.0_f32; LEN]);
    let params = [0.2_f32, -1.0];
    let params = [&params[0], &params[1]].map(|p| ptr::from_ref(p).cast());
    let mut gradients = [0.0_f32; 2];
    let [a, b] = &mut gradients;
    let places: [*mut f32; 2] = [a, b];
    let mut args = xact_activation_args {
        rows: 1,
        cols: LEN as u64,
        dtype: XACT_DTYPE_F32,
        params: params.as_ptr(),
        param_count: 2,
        dparams: places.as_ptr(),
        dparam_count: 2,
        ..sized()
    };
    args.x.ptr = x.ptr();
    args.dy.ptr = dy.ptr();
    args.dx.ptr = dx.ptr();
    ok(host.backward(&op, &args));
    (dx.get(LEN), gradients[0])
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let expected = gradient();
    for threads in [1, 3, 0, 3] {
        ok(xact_set_num_threads(threads));
        assert_eq!(gradient(), expected, "{threads}");
    }
    // Several threads call at once, while the number of threads changes.
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let call = move || {
                ok(xact_set_num_threads(caller % 3));
                gradient()
            };
            thread::spawn(call)
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.join().unwrap(), expected);
    }
    assert_eq!(xact_set_num_threads(1025), XACT_ERROR_OUT_OF_RANGE);
    assert!(last_error().contains("1025"));
    ok(xact_set_num_threads(0));
}
