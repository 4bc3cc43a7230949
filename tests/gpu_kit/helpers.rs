//! The code that tests and commands share.

use xact::activation::Registered;
use xact::{Activation, Xgelu, Xielu, Xsilu};
use xact_dev::choose::{Choice, open};
use xact_dev::plot::{self, Axis, Line, Panel, Plot, Scale, colour};
use xact_dev::{inputs, run};

fn axis(scale: Scale, min: f64, max: f64) -> Axis {
    Axis {
        label: "x < 1 & y".to_owned(),
        scale,
        min,
        max,
    }
}

fn drawn(x: &Axis, y: &Axis, points: &[(f64, f64)]) -> String {
    plot::svg(&Plot {
        title: "Title".to_owned(),
        notes: vec!["A note.".to_owned()],
        panels: vec![Panel {
            title: "A panel".to_owned(),
            x: x.clone(),
            y: y.clone(),
            lines: vec![Line::envelope(
                "a / name",
                colour::BLUE,
                x,
                points.iter().copied(),
            )],
            level: (1.0, "one".to_owned()),
        }],
    })
}

#[test]
fn a_spike_among_many_points_is_drawn() {
    let (x, y) = (axis(Scale::Linear, -1.0, 1.0), axis(Scale::Log, 0.1, 1e3));
    let mut points: Vec<_> = (-50_000..=50_000)
        .map(|i| (f64::from(i) / 5e4, 1.0))
        .collect();
    let flat = drawn(&x, &y, &points);
    points[70_001].1 = 100.0;
    let spike = drawn(&x, &y, &points);
    assert_ne!(flat, spike);
    assert!(spike.len() < 20_000, "{}", spike.len());
    // Points outside the axis are drawn at its end.
    points[70_001].1 = f64::INFINITY;
    let beyond = drawn(&x, &y, &points);
    points[70_001].1 = 1e3;
    assert_eq!(beyond, drawn(&x, &y, &points));
}

#[test]
fn the_labels_of_an_axis_are_round_numbers() {
    let y = axis(Scale::Log, 0.1, 1e6);
    let has = |x: Axis, labels: &[&str]| {
        let text = drawn(&x, &y, &[]);
        for label in labels {
            assert!(
                text.lines().any(|line| line.trim() == *label),
                "{label} is not in {text}"
            );
        }
    };
    has(axis(Scale::Linear, -0.3, 0.3), &["−0.3", "0", "0.1"]);
    has(
        axis(Scale::Linear, -110.0, 20.0),
        &["−110", "−10", "0", "20"],
    );
    let symmetric = Scale::SymmetricLog { linear: 1e-5 };
    has(
        axis(symmetric, -10.0, 10.0),
        &["−10", "−10⁻⁵", "0", "10⁻⁵", "0.1", "10"],
    );
    has(
        axis(Scale::Log, 1e-12, 1e12),
        &["10⁻¹²", "1", "10¹²", "Title", "A note.", "A panel"],
    );
    has(
        axis(Scale::Log2, 0.9, 140.0),
        &["1", "2", "4", "8", "16", "32", "64", "128"],
    );
    has(
        axis(Scale::Log, 1e-12, 1e12),
        &["x &lt; 1 &amp; y", "a", "name", "one"],
    );
}

#[test]
fn a_line_without_a_name_is_drawn_and_not_in_the_legend() {
    let panel = |name: &str| {
        let line = Line {
            name: name.to_owned(),
            colour: colour::BLUE,
            points: vec![(0.0, 0.5), (1.0, 2.0)],
        };
        let axis = axis(Scale::Linear, 0.0, 3.0);
        let text = plot::svg(&Plot {
            title: "Title".to_owned(),
            notes: Vec::new(),
            panels: vec![Panel {
                title: "A panel".to_owned(),
                x: axis.clone(),
                y: axis,
                lines: vec![line],
                level: (1.0, "one".to_owned()),
            }],
        });
        text.matches("#0072B2").count()
    };
    // The line, and its sample in the legend.
    assert_eq!((panel("a name"), panel("")), (2, 1));
}

#[test]
fn inputs_surround_roots_and_switch_over_points() {
    let sample = &Xielu::samples()[0];
    let x = inputs::accuracy::<Xielu, f32>(sample, 64);
    let f = |x: f32| {
        let params: Vec<_> = sample.params.iter().map(|&p| f64::from(p)).collect();
        sample.op.evaluate(&params, f64::from(x)).y.value
    };
    // f changes its sign between neighbours near -2.4.
    let near = x.iter().filter(|x| (-3.0..-2.0).contains(*x));
    assert!(
        near.clone()
            .any(|&x| f(x) * f(x.next_up()) <= 0.0 || f(x) * f(x.next_down()) <= 0.0)
    );
    for switch in [-1.25f32, -1.25f32.next_up(), -1.25f32.next_down()] {
        assert!(x.contains(&switch), "{switch}");
    }
    let x = inputs::accuracy::<Xgelu, f32>(&Xgelu::samples()[0], 64);
    assert!(x.contains(&16.0f32.next_up()) && x.contains(&-16.0));
}

#[test]
fn where_a_gpu_is_required_nothing_is_emulated() {
    for present in [false, true] {
        assert_eq!(Choice::Auto.emulates(present, false), Ok(!present));
        assert_eq!(Choice::Auto.emulates(present, true), Ok(false));
        for required in [false, true] {
            assert_eq!(Choice::Gpu.emulates(present, required), Ok(false));
        }
        assert_eq!(Choice::Emulated(0).emulates(present, false), Ok(true));
        assert!(Choice::Emulated(0).emulates(present, true).is_err());
    }
}

#[test]
fn the_emulator_is_the_model_that_is_asked_for() {
    let choice = |text: &str| text.parse::<Choice>();
    for (text, ordinal) in [
        ("emulated", 0),
        ("emulated:H100", 0),
        ("emulated:a100", 1),
        ("emulated:h200", 3),
        ("emulated:b200", 4),
    ] {
        assert_eq!(choice(text), Ok(Choice::Emulated(ordinal)), "{text}");
    }
    let said = choice("emulated:v100").expect_err("no such device");
    assert!(said.contains("NVIDIA H200 (emulated)"), "{said}");
    assert!(choice("h200").is_err());

    // The device loads the kernels for sm_90 and runs them.
    let gpu = open(choice("emulated:b200").expect("a device")).expect("the emulator");
    assert!(gpu.emulated && gpu.name.contains("B200"), "{}", gpu.name);
    let (op, params) = (Xsilu, [0.0]);
    let y = run::forward(&gpu, &op, &params, &[2.0f32], &run::How::default()).expect("a forward");
    let exact = op.evaluate(&[0.0], 2.0).y.value;
    assert!((f64::from(y[0]) - exact).abs() < 1e-6, "{y:?}");
}
