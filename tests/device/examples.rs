//! The examples, included as they are, on the device of the tests. (`tests/repository/package.rs` copies the quickstart.)

#[path = "../../examples/layer.rs"]
#[allow(dead_code)] // main
mod layer;
#[path = "../../examples/quickstart.rs"]
#[allow(dead_code)] // main
mod quickstart;

use xact::{AnyActivation, cpu};

fn device() {
    xact_dev::choose::open_for_tests().expect("a device");
}

#[test]
fn the_quickstart_runs() {
    device();
    quickstart::run().unwrap();
}

/// Two steps of a layer accumulate twice the gradients of one call on the CPU.
#[test]
fn a_layer_of_any_op_has_its_gradients() {
    device();
    for name in xact::activation::NAMES {
        let got = layer::run(name).unwrap();
        let op: AnyActivation = name.parse().unwrap();
        let params = vec![0.25; got.len()];
        let x = [-2.0_f32, -0.5, 0.5, 2.0];
        let (mut y, mut dx, mut dparams) = ([0.0; 4], [0.0; 4], vec![0.0; got.len()]);
        cpu::forward(&op, &x, &params, &mut y).run().unwrap();
        let call = cpu::backward(&op, &x, &y, &params, &mut dx);
        call.gradients(&mut dparams).run().unwrap();
        for (got, once) in got.into_iter().zip(dparams) {
            assert!(
                (got - 2.0 * once).abs() <= 1e-6 * once.abs(),
                "{name}: {got} {once}"
            );
        }
    }
    assert!(
        layer::run("relu")
            .unwrap_err()
            .to_string()
            .contains("xielu")
    );
}
