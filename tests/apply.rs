//! `examples/apply.rs` as its users meet it: files in, files out, errors in words. And `verify`, of which
//! they read only the head.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xact::activation::{Registered, Visitor, for_each};
use xact::loss::goldfish::{Layout, Tokens};
use xact::reference::{Bounds, GatedGradients};
use xact::{
    Activation, Compat, CrossEntropy, Element, EpsGradient, Gated, Goldfish, Order, Parameters,
    Strategy, Xielu, reference,
};

/// The program of an example, built now: `cargo test --test apply` alone does not build examples.
fn program(example: &str) -> Command {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().unwrap().parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--example",
            "apply",
            "--example",
            "verify",
        ]);
        if profile.file_name().unwrap() == "release" {
            build.arg("--release");
        }
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().unwrap().success());
        profile.join("examples")
    });
    Command::new(folder.join(format!("{example}{}", std::env::consts::EXE_SUFFIX)))
}

fn apply() -> Command {
    program("apply")
}

/// A tensor of an input file.
struct Tensor(Dtype, Vec<usize>, Vec<u8>);

fn tensor<T: Element>(shape: &[usize], values: &[f64]) -> Tensor {
    let values: Vec<T> = values.iter().map(|&v| T::from_f64(v)).collect();
    let dtype = match T::DTYPE {
        xact::Dtype::F32 => Dtype::F32,
        xact::Dtype::F16 => Dtype::F16,
        _ => Dtype::BF16,
    };
    Tensor(
        dtype,
        shape.to_vec(),
        bytemuck::cast_slice(&values).to_vec(),
    )
}

struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, tensors: &[(&str, Tensor)]) {
        let views = tensors.iter().map(|(name, Tensor(dtype, shape, bytes))| {
            (
                *name,
                TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
            )
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(self.path("in.safetensors"), bytes).unwrap();
    }

    fn run(&self, op: &str, arguments: &[&str]) -> Output {
        apply()
            .arg(op)
            .arg("--input")
            .arg(self.path("in.safetensors"))
            .arg("--output")
            .arg(self.path("out.safetensors"))
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Runs xielu, which must succeed, and reads the output.
    fn outputs(&self, arguments: &[&str]) -> BTreeMap<String, Tensor> {
        self.outputs_of("xielu", arguments)
    }

    fn outputs_of(&self, op: &str, arguments: &[&str]) -> BTreeMap<String, Tensor> {
        let output = self.run(op, arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        read(&self.path("out.safetensors"))
    }

    /// Runs, which must fail with status 2, a message with `words`, and no output file.
    fn refused(&self, op: &str, arguments: &[&str], words: &[&str]) {
        let output = self.run(op, arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        for word in words {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
        assert!(text.lines().count() < 12, "{text}");
        assert!(!self.path("out.safetensors").exists());
    }
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, v)| {
            (
                name,
                Tensor(v.dtype(), v.shape().to_vec(), v.data().to_vec()),
            )
        })
        .collect()
}

const X: [f64; 6] = [-3.0, -0.5, -0.0, 0.25, 1.5, 40.0];
const DY: [f64; 6] = [1.0, -2.0, 0.5, 1.0, 0.25, -1.0];

fn forward_input<T: Element>() -> Vec<(&'static str, Tensor)> {
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

/// The reference of the library, rounded once.
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
    let cases: [(&[&str], Xielu); 4] = [
        (&[], raw),
        (
            &["--effective"],
            raw.parameters(Parameters::Effective),
        ),
        (&["--eps", "-1e-6"], compat(-1e-6, EpsGradient::Autograd)),
        (
            &[
                "--eps=-1e-6",
                "--eps-gradient",
                "analytic",
                "--beta",
                "-0.25",
            ],
            compat(-1e-6, EpsGradient::Analytic).beta(-0.25),
        ),
    ];
    for (flags, op) in cases {
        let (y, dx, dparams) = expected::<T>(&op);
        let forward = [&["--device", "reference", "--direction", "forward"], flags].concat();
        let out = scratch.outputs(&forward);
        assert_eq!(out.keys().collect::<Vec<_>>(), ["y"]);
        assert_eq!((&out["y"].1, &out["y"].2), (&vec![2, 3], &y));
        let backward = [&["--device", "reference", "--direction", "backward"], flags].concat();
        let out = scratch.outputs(&backward);
        assert_eq!(
            out.keys().collect::<Vec<_>>(),
            ["dalpha_n", "dalpha_p", "dx"]
        );
        assert_eq!(out["dx"].2, dx);
        for (&name, exact) in Xielu::GRADIENTS.iter().zip(dparams) {
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

/// The device that the suite runs on.
fn the_device() -> String {
    std::env::var("XACT_DEVICE").unwrap_or_else(|_| "auto".to_owned())
}

fn values<T: Element>(tensor: &Tensor) -> Vec<T> {
    bytemuck::pod_collect_to_vec(&tensor.2)
}

/// A parameter gradient, as the checks take it.
fn number(tensor: &Tensor) -> f64 {
    f64::from(values::<f32>(tensor)[0])
}

fn the_device_is_within_the_bounds<T: Element>(device: &str) {
    let scratch = Scratch::new();
    scratch.write(&backward_input::<T>());
    let (op, x) = (Xielu::default(), X.map(T::from_f64));
    let run = |direction| scratch.outputs(&["--device", device, "--direction", direction]);
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

/// x, alpha and dy of an op with an expanded gate; dy is as wide as the result.
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

/// Runs the op on both backends, and checks each against the reference of the library: that of the
/// command, which rounds once, more strictly.
struct EveryExpanded;

impl EveryExpanded {
    fn check<A: Gated + Registered, T: Element>(order: Option<Order>) {
        let op = A::samples()[0].op;
        let scratch = Scratch::new();
        let input = expanded_input::<T>(order.is_some());
        let (x, dy) = (values::<T>(&input[0].1), values::<T>(&input[2].1));
        scratch.write(&input);
        let flags: &[&str] = match order {
            None => &[],
            Some(Order::First) => &["--gated", "1"],
            Some(Order::Second) => &["--gated", "2"],
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
        let rounded_once = Bounds {
            ulps: 0.5,
            parameter_ulps: 0.0,
        };
        let within = Bounds::of(&op);
        for (device, bounds) in [
            ("reference", rounded_once),
            ("cpu", within),
            (&device, within),
        ] {
            let run = |direction| {
                let arguments = [&["--device", device, "--direction", direction], flags].concat();
                scratch.outputs_of(A::NAME, &arguments)
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
        let first = ["--device", device, "--gated", "1", "--direction"];
        let forward: &[&str] = &[&first[..], &["forward"]].concat();
        let backward: &[&str] = &[&first[..], &["backward"]].concat();
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
    scratch.refused("xsilu", &["--gated", "3"], &["--gated", "3", "1, 2"]);
}

#[test]
fn options_that_are_no_numbers_are_refused() {
    let scratch = Scratch::new();
    scratch.write(&forward_input::<f32>());
    for device in ["reference", "auto"] {
        let forward = ["--direction", "forward", "--device", device];
        for (flag, value, words) in [
            ("--beta", "nan", "a number"),
            ("--beta", "-inf", "finite"),
            ("--beta", "1e39", "finite"),
            ("--eps", "NaN", "a number"),
        ] {
            let arguments = [&forward[..], &[flag, value]].concat();
            scratch.refused("xielu", &arguments, &[flag, value, words]);
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
        let out = scratch.outputs(&["--device", device, "--direction", "forward"]);
        assert_eq!((&out["y"].1, out["y"].2.len()), (&vec![0, 5], 0));
    }
}

#[test]
fn bad_input_is_refused_in_words() {
    let scratch = Scratch::new();
    let forward: &[&str] = &["--direction", "forward", "--device", "reference"];
    let backward: &[&str] = &["--direction", "backward", "--device", "reference"];
    scratch.refused("xielu", forward, &["cannot read"]);
    std::fs::write(scratch.path("in.safetensors"), b"not tensors").unwrap();
    scratch.refused("xielu", forward, &["not a safetensors file"]);

    scratch.write(&forward_input::<f32>());
    scratch.refused("xielu", backward, &["no tensor dy", "alpha_n, alpha_p, x"]);
    scratch.refused("xielo", forward, &["xielo", "xielu"]);
    scratch.refused("xielu", &[forward, &["--gated"]].concat(), &["--gated"]);
    scratch.refused(
        "xielu",
        &["--direction", "sideways"],
        &["sideways", "forward"],
    );
    scratch.refused(
        "xielu",
        &[forward, &["--eps-gradient", "analytic"]].concat(),
        &["--eps"],
    );
    scratch.refused(
        "xielu",
        &[forward, &["--beta", "steep"]].concat(),
        &["steep"],
    );
    scratch.refused(
        "xielu",
        &["--direction", "forward", "--device", "tpu"],
        &["tpu", "emulated"],
    );

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
        .args([
            "xielu",
            "--direction",
            "forward",
            "--device",
            "reference",
            "--input",
        ])
        .arg(scratch.path("in.safetensors"))
        .arg("--output")
        .arg(nowhere)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write"));
}

/// Special files, links and permissions of the output.
#[cfg(unix)]
mod output_file {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

    use super::*;

    const FORWARD: [&str; 4] = ["--direction", "forward", "--device", "reference"];

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// Runs a forward under a umask of 022.
    fn run(scratch: &Scratch) -> Output {
        let apply = apply();
        Command::new("sh")
            .args(["-c", "umask 022; exec \"$@\"", "sh"])
            .arg(apply.get_program())
            .args(["xielu", "--input"])
            .arg(scratch.path("in.safetensors"))
            .arg("--output")
            .arg(scratch.path("out.safetensors"))
            .args(FORWARD)
            .output()
            .unwrap()
    }

    #[test]
    fn has_the_usual_mode_or_keeps_its_own() {
        let scratch = Scratch::new();
        scratch.write(&forward_input::<f32>());
        let out = scratch.path("out.safetensors");
        assert!(run(&scratch).status.success());
        assert_eq!(mode(&out), 0o644);
        fs::set_permissions(&out, Permissions::from_mode(0o664)).unwrap();
        assert!(run(&scratch).status.success());
        assert_eq!(mode(&out), 0o664);
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(scratch.folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn is_written_where_a_link_leads() {
        let scratch = Scratch::new();
        scratch.write(&forward_input::<f32>());
        let (link, target) = (scratch.path("out.safetensors"), scratch.path("real/file"));
        fs::create_dir(scratch.path("real")).unwrap();
        fs::write(&target, b"old").unwrap();
        symlink("real/file", &link).unwrap();
        assert!(run(&scratch).status.success());
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(read(&target).contains_key("y"));
        // Which need not exist yet.
        fs::remove_file(&target).unwrap();
        assert!(run(&scratch).status.success());
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(read(&target).contains_key("y"));
        // Or can never.
        fs::remove_file(&link).unwrap();
        symlink("out.safetensors", &link).unwrap();
        let output = run(&scratch);
        assert_eq!(output.status.code(), Some(2));
        assert!(link.symlink_metadata().unwrap().is_symlink());
    }

    #[test]
    fn is_refused_if_it_is_no_file() {
        let scratch = Scratch::new();
        scratch.write(&forward_input::<f32>());
        let (out, fifo) = (scratch.path("out.safetensors"), scratch.path("fifo"));
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let refused = || {
            let output = run(&scratch);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains("not a regular file"), "{text}");
        };
        symlink("fifo", &out).unwrap();
        refused();
        assert!(out.symlink_metadata().unwrap().is_symlink());
        fs::remove_file(&out).unwrap();
        fs::rename(&fifo, &out).unwrap();
        refused();
        assert!(fs::metadata(&out).unwrap().file_type().is_fifo());
        fs::remove_file(&out).unwrap();
        fs::create_dir(&out).unwrap();
        refused();
    }
}

/// `verify --device cpu` runs every op, and names the backend.
#[test]
fn the_cpu_backend_is_verified() {
    // Of an activation: forms and directions of every sample; of the losses: directions or ids, times what is
    // chosen.
    for (op, dtype, rows) in [
        ("xsilu", "bf16", 36),
        ("cross_entropy", "bf16", 9),
        ("goldfish", "i32", 6),
    ] {
        let mut verify = program("verify");
        verify.args(["--device", "cpu", "--json", "--op", op, "--dtype", dtype]);
        let output = verify.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.lines().count() == rows,
            "{text}"
        );
        assert!(
            text.lines().all(|l| l.contains("the CPU backend")),
            "{text}"
        );
    }
}

/// `verify --json | head -1`.
#[test]
fn verify_stops_quietly_when_its_reader_has_gone() {
    let mut verify = program("verify")
        .args(["--json", "--op", "xielu", "--dtype", "f16"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Dropped after the line, which closes the pipe.
    BufReader::new(verify.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(
        line.starts_with('{') && line.contains("\"xielu\""),
        "{line}"
    );
    let output = verify.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.is_empty(), "{text}");
}

/// A tensor of integers.
fn integers(dtype: Dtype, shape: &[usize], values: &[i64]) -> Tensor {
    let size = if dtype == Dtype::I64 { 8 } else { 4 };
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec());
    Tensor(dtype, shape.to_vec(), bytes.collect())
}

#[test]
fn goldfish_masks_are_those_of_the_reference_on_every_backend() {
    let (k, h, start, seed) = (3, 5, 1, 11);
    let ids: Vec<i64> = (0..60).map(|i| i * i % 17 - 3).collect();
    let (cu_seqlens, exempt) = ([0, 9, 9, 40, 60], [1i64, -3]);
    for (name, strategy) in [
        ("static", Strategy::Static { k, start }),
        ("random", Strategy::Random { k, seed }),
        ("product-table", Strategy::ProductTable { k, h }),
        ("product-avalanche", Strategy::ProductAvalanche { k, h }),
        ("dot-table", Strategy::DotTable { k, h }),
        ("hash64", Strategy::Hash64 { k, h, seed }),
    ] {
        assert_eq!(strategy.name(), name);
        let goldfish = Goldfish::new(strategy).unwrap();
        for (dtype, packed) in [(Dtype::I32, false), (Dtype::I64, true), (Dtype::I32, true)] {
            let scratch = Scratch::new();
            let labels = integers(dtype, &[3, 20], &ids);
            let mut tokens = Tokens::row(&ids);
            tokens.layout = Layout::Rows { len: 20 };
            if packed {
                let offsets = cu_seqlens.map(i64::from);
                scratch.write(&[
                    ("labels", labels),
                    ("cu_seqlens", integers(Dtype::I32, &[5], &offsets)),
                    ("exempt", integers(Dtype::I64, &[2], &exempt)),
                ]);
                tokens.exempt = &exempt;
                tokens.layout = Layout::Documents {
                    cu_seqlens: &cu_seqlens,
                };
            } else {
                scratch.write(&[("labels", labels)]);
            }
            let expected = goldfish.keep(&tokens).unwrap();
            let kept = expected.iter().filter(|&&keep| keep).count() as i64;
            let numbers = "--k 3 --h 5 --start 1 --seed 11";
            for device in ["reference", "cpu", "emulated"] {
                let arguments = format!("--device {device} --strategy {name} {numbers}");
                let arguments: Vec<_> = arguments.split(' ').collect();
                let outputs = scratch.outputs_of("goldfish-mask", &arguments);
                assert_eq!(outputs.len(), 2);
                let Tensor(dtype, shape, bytes) = &outputs["keep"];
                assert_eq!((*dtype, &shape[..]), (Dtype::U8, &[3, 20][..]));
                let keep: Vec<bool> = bytes.iter().map(|&byte| byte == 1).collect();
                assert_eq!(keep, expected, "{name} on {device}");
                let Tensor(dtype, shape, bytes) = &outputs["kept"];
                assert_eq!((*dtype, &shape[..]), (Dtype::I64, &[1][..]));
                assert_eq!(**bytes, kept.to_le_bytes());
            }
        }
    }
}

#[test]
fn goldfish_masks_of_nothing_and_of_what_cannot_be() {
    let op = "goldfish-mask";
    for device in ["reference", "cpu", "emulated"] {
        let on = ["--device", device];
        let with = |arguments: &[&'static str]| [&on[..], arguments].concat();
        let scratch = Scratch::new();
        scratch.write(&[("labels", integers(Dtype::I64, &[2, 0], &[]))]);
        let outputs = scratch.outputs_of(op, &on);
        assert_eq!(
            (&outputs["keep"].1[..], &outputs["keep"].2[..]),
            (&[2, 0][..], &[][..])
        );
        assert_eq!(outputs["kept"].2, [0; 8]);

        let scratch = Scratch::new();
        let labels = || ("labels", integers(Dtype::I32, &[2, 2], &[1, 2, 3, 4]));
        scratch.write(&[labels()]);
        scratch.refused(op, &with(&["--k", "1"]), &["k is 1", "at least 2"]);
        scratch.refused(op, &with(&["--h", "0"]), &["h is 0", "at least 1"]);
        scratch.refused(op, &with(&["--strategy", "best"]), &["best", "hash64"]);
        scratch.write(&[("ids", integers(Dtype::I32, &[1], &[1]))]);
        scratch.refused(op, &on, &["no tensor labels", "ids"]);
        scratch.write(&[("labels", tensor::<f32>(&[2], &[1.0, 2.0]))]);
        scratch.refused(op, &on, &["labels is F32", "I32 or I64"]);
        scratch.write(&[("labels", integers(Dtype::I32, &[], &[1]))]);
        scratch.refused(op, &on, &["labels is a scalar"]);
        scratch.write(&[labels(), ("exempt", integers(Dtype::I32, &[1], &[1]))]);
        scratch.refused(op, &on, &["exempt is I32", "I64"]);
        let falling = integers(Dtype::I32, &[3], &[0, 3, 2]);
        scratch.write(&[labels(), ("cu_seqlens", falling)]);
        scratch.refused(op, &on, &["cu_seqlens[2]", "must not decrease"]);
    }
}

const CLASSES: usize = 9;

/// Six rows of eleven columns, of which nine are classes.
fn loss_input<T: Element>(dtype: Dtype) -> Vec<(&'static str, Tensor)> {
    let logits: Vec<f64> = (0..66)
        .map(|i| f64::from(i * 37 % 29) * 0.25 - 3.0)
        .collect();
    vec![
        ("logits", tensor::<T>(&[6, 11], &logits)),
        ("labels", integers(dtype, &[6], &[0, 8, -1, 3, 3, 5])),
        (
            "weights",
            tensor::<f32>(&[6], &[1.0, 0.5, 1.0, 2.0, 0.0, 1.0]),
        ),
        (
            "dloss",
            tensor::<f32>(&[6], &[1.0, -2.0, 1.0, 0.25, 1.0, 3.0]),
        ),
        (
            "hash_ids",
            integers(Dtype::I32, &[2, 3], &[0, 8, 4, 3, 3, 5]),
        ),
    ]
}

/// Row 2 is ignored, row 4 weighs nothing, and Goldfish drops the second of each row of ids.
fn losses_are_within_the_bounds<T: Element>(dtype: Dtype, device: &str, reductions: &[&str]) {
    let op = CrossEntropy::default().ignore_index(-1).label_smoothing(0.125).z_loss(0.0625).softcap(5.0).vocab(CLASSES as u64);
    let scratch = Scratch::new();
    let input = loss_input::<T>(dtype);
    let logits: Vec<T> = values(&input[0].1);
    let labels = [0, 8, -1, 3, 3, 5];
    let [weights, dloss] = [2, 3].map(|i| values::<f32>(&input[i].1));
    scratch.write(&input);
    let options = "--ignore-index -1 --label-smoothing 0.125 --z-loss 0.0625 --softcap 5 --vocab 9";
    for (goldfish, kept) in [
        ("", &[0, 1, 3, 5][..]),
        ("--goldfish static --k 3 --start 1", &[0, 3, 5]),
    ] {
        for &reduction in reductions {
            let run = |direction| {
                let line = format!(
                    "--device {device} --direction {direction} --reduction {reduction} {options} {goldfish}"
                );
                scratch.outputs_of(
                    "cross-entropy",
                    &line.split_whitespace().collect::<Vec<_>>(),
                )
            };
            let total: f32 = kept.iter().map(|&r| weights[r]).sum();
            let divisor = if reduction == "mean" {
                f64::from(total)
            } else {
                1.0
            };
            let rows: BTreeMap<usize, _> = (kept.iter())
                .map(|&r| {
                    let row = &logits[r * 11..][..CLASSES];
                    let upstream = f64::from(dloss[r]) / divisor;
                    (
                        r,
                        op.evaluate(row, labels[r] as usize, f64::from(weights[r]), upstream),
                    )
                })
                .collect();
            let forward = run("forward");
            assert_eq!(forward.len(), 2);
            let (loss, lse) = (&forward["loss"], &forward["lse"]);
            assert_eq!(
                (loss.0, lse.0, &lse.1[..]),
                (Dtype::F32, Dtype::F32, &[6][..])
            );
            let near = |got: f32, expected: f64, bound: f64| {
                assert!(
                    (f64::from(got) - expected).abs() <= bound,
                    "{got} for {expected} ± {bound}"
                );
            };
            for (r, &got) in values::<f32>(lse).iter().enumerate() {
                rows.get(&r).map_or_else(
                    || assert_eq!(got, 0.0),
                    |row| near(got, row.lse, row.lse_bound),
                );
            }
            if reduction == "none" {
                assert_eq!(loss.1, [6]);
                for (r, &got) in values::<f32>(loss).iter().enumerate() {
                    rows.get(&r).map_or_else(
                        || assert_eq!(got, 0.0),
                        |row| near(got, row.loss, row.loss_bound),
                    );
                }
            } else {
                assert_eq!(loss.1, [0usize; 0]);
                let sum = |f: &dyn Fn(&xact::loss::cross_entropy::Row) -> f64| -> f64 {
                    rows.values().map(f).sum()
                };
                // Beside the errors of the rows, one rounding of the sum and one of the quotient.
                let expected = sum(&|row| row.loss) / divisor;
                near(
                    values::<f32>(loss)[0],
                    expected,
                    sum(&|row| row.loss_bound) / divisor + expected.abs() / f64::from(1 << 23),
                );
            }
            let backward = run("backward");
            assert_eq!(backward.len(), 1);
            let Tensor(of, shape, _) = &backward["dlogits"];
            assert_eq!((*of, &shape[..]), (input[0].1.0, &[6, 11][..]));
            for (i, got) in values::<T>(&backward["dlogits"]).into_iter().enumerate() {
                let (r, class) = (i / 11, i % 11);
                match rows.get(&r).filter(|_| class < CLASSES) {
                    None => assert_eq!(got.to_f64(), 0.0),
                    Some(row) => {
                        let (d, bound) = (row.dlogits[class], row.dlogits_bound[class]);
                        let ends = [d - bound, d + bound].map(|end| T::from_f64(end).to_f64());
                        assert!(
                            (ends[0]..=ends[1]).contains(&got.to_f64()),
                            "{got:?} for {d} ± {bound}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn losses_and_their_gradients_are_within_the_bounds_on_every_backend() {
    for device in ["reference", "cpu", &the_device()] {
        losses_are_within_the_bounds::<f32>(Dtype::I64, device, &["none", "mean", "sum"]);
        losses_are_within_the_bounds::<half::f16>(Dtype::I32, device, &["mean"]);
        losses_are_within_the_bounds::<half::bf16>(Dtype::I64, device, &["mean"]);
    }
}

#[test]
fn losses_of_nothing_and_of_what_cannot_be() {
    let op = "cross-entropy";
    for device in ["reference", "cpu", "emulated"] {
        let with = |line: &str| format!("--device {device} --direction forward {line}");
        let scratch = Scratch::new();
        scratch.write(&[
            ("logits", tensor::<f32>(&[0, 5], &[])),
            ("labels", integers(Dtype::I32, &[0], &[])),
        ]);
        let line = with("");
        let outputs = scratch.outputs_of(op, &line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(values::<f32>(&outputs["loss"]), [0.0]);
        assert!(outputs["lse"].2.is_empty());

        let scratch = Scratch::new();
        let input = || loss_input::<f32>(Dtype::I64);
        scratch.write(&input());
        for (line, words) in [
            (
                "--label-smoothing 1",
                &["label_smoothing is 1", "[0, 1)"][..],
            ),
            ("--z-loss=-1", &["z_loss is -1"]),
            ("--softcap=-2", &["softcap is -2"]),
            ("--vocab 0", &["at least one class"]),
            ("--vocab 12", &["12 are needed"]),
            ("--goldfish hash64 --h 0", &["h is 0"]),
            ("--reduction all", &["all", "mean"]),
        ] {
            let line = with(line);
            scratch.refused(op, &line.split_whitespace().collect::<Vec<_>>(), words);
        }
        let replaced = |name: &'static str, by: Tensor| {
            let mut input: Vec<_> = input().into_iter().filter(|(n, _)| *n != name).collect();
            input.push((name, by));
            scratch.write(&input);
        };
        let refused = |line: &str, words: &[&str]| {
            let line = with(line);
            scratch.refused(op, &line.split_whitespace().collect::<Vec<_>>(), words);
        };
        replaced("labels", integers(Dtype::I64, &[5], &[0; 5]));
        refused("", &["labels has 5", "6 rows"]);
        replaced("labels", tensor::<f32>(&[6], &[0.0; 6]));
        refused("", &["labels is F32"]);
        replaced("weights", tensor::<f32>(&[2], &[0.0; 2]));
        refused("", &["weights has 2"]);
        replaced("weights", tensor::<half::f16>(&[6], &[0.0; 6]));
        refused("", &["weights is F16", "F32"]);
        replaced("logits", tensor::<f32>(&[6], &[0.0; 6]));
        refused("", &["logits is [6]", "[N, V]"]);
        replaced("hash_ids", integers(Dtype::I64, &[2, 2], &[0; 4]));
        refused("--goldfish hash64", &["hash_ids is [2, 2]"]);
    }
}
