//! Runs an op on the tensors of a `.safetensors` file, so that people of other stacks can compare
//! theirs with ours without writing Rust.

#[path = "apply/cross_entropy.rs"]
mod cross_entropy;
#[path = "apply/goldfish.rs"]
mod goldfish;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use support::choose::{self, Choice, Gpu};
use support::files;
use support::machine::{Cpu, Runs};
use support::strategy::{Name, Numbers};
use xact::activation::expanded::{self, Gate};
use xact::activation::{GateOutput, GatedBackward, GatedForward, Input, Order, ParamGradients};
use xact::cudarc::driver::CudaSlice;
use xact::{
    Activation, Compat, Element, EpsGradient, Gated, Parameters, Workspace, Xatlu, Xgelu, Xielu,
    Xsilu, raw, reference,
};

/// Run an op on the tensors of a .safetensors file
#[derive(Parser)]
#[command(name = "apply")]
struct Arguments {
    #[command(subcommand)]
    op: Op,
}

#[derive(Subcommand)]
enum Op {
    /// xIELU: reads x (f32, f16 or bf16, any shape), alpha_p and alpha_n (f32, one element each), for
    /// backward also dy (type and shape of x); writes y, or dx, dalpha_p and dalpha_n
    Xielu {
        #[command(flatten)]
        task: Task,
        /// alpha_p and alpha_n are used as they are, not passed through a softplus
        #[arg(long)]
        effective: bool,
        /// The slope at 0
        #[arg(long, default_value_t = 0.5, allow_hyphen_values = true, value_parser = finite)]
        beta: f32,
        /// Clamp x inside expm1, as Hugging Face does with -1e-6
        #[arg(long, allow_hyphen_values = true, value_parser = not_nan)]
        eps: Option<f32>,
        /// The gradient of the clamp
        #[arg(long, value_enum, default_value = "autograd", requires = "eps")]
        eps_gradient: EpsGradientName,
    },
    /// xATLU: reads x (f32, f16 or bf16, any shape) and alpha (f32, one element), for backward also dy
    /// (type and shape of x); writes y, or dx and dalpha
    Xatlu(Expanded),
    /// xGELU: tensors as for xatlu
    Xgelu(Expanded),
    /// xSiLU: tensors as for xatlu
    Xsilu(Expanded),
    /// Cross-entropy: reads logits (f32, f16 or bf16, [N, V]), labels (i32 or i64, [N]) and, if they are
    /// there, weights and, for backward, dloss (f32, [N]); with --goldfish also hash_ids (i32 or i64, [rows, ids
    /// of a row], N in all), cu_seqlens and exempt as for goldfish-mask; writes loss and lse, or dlogits
    CrossEntropy(cross_entropy::Arguments),
    /// The labels that Goldfish keeps: reads labels (i32 or i64, [rows, labels of a row]) and, if they are
    /// there, cu_seqlens (i32, offsets of documents into the labels of all rows) and exempt (i64, ids that
    /// are never dropped); writes keep (u8, shape of labels) and kept (i64, one element)
    GoldfishMask {
        #[command(flatten)]
        files: Files,
        /// How it is decided
        #[arg(long, value_enum, default_value = "hash64")]
        strategy: Name,
        #[command(flatten)]
        numbers: Numbers,
    },
}

#[derive(clap::Args)]
struct Expanded {
    #[command(flatten)]
    task: Task,
    /// The gated form of this order: the last dimension of x holds gate, then value, and that of y and
    /// dy is half as long
    #[arg(long, value_enum)]
    gated: Option<OrderName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OrderName {
    /// y = G(gate) · value
    #[value(name = "1")]
    First,
    /// y = f(gate) · value
    #[value(name = "2")]
    Second,
}

fn not_nan(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|e| format!("{e}"))?;
    if number.is_nan() {
        return Err("it must be a number".to_owned());
    }
    Ok(number)
}

fn finite(text: &str) -> Result<f32, String> {
    let number = not_nan(text)?;
    if number.is_infinite() {
        return Err("it must be finite in f32".to_owned());
    }
    Ok(number)
}

#[derive(clap::Args)]
struct Task {
    #[command(flatten)]
    files: Files,
    /// What is computed
    #[arg(long, value_enum)]
    direction: Direction,
}

#[derive(clap::Args)]
struct Files {
    /// The .safetensors file to read
    #[arg(long)]
    input: PathBuf,
    /// The .safetensors file to write
    #[arg(long)]
    output: PathBuf,
    /// Who computes: the reference on the CPU (in f64, rounded once), the fast CPU backend, the emulated or a
    /// real device, or the best device there is
    #[arg(long, value_enum, default_value = "auto")]
    device: Backend,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    Reference,
    Cpu,
    Emulated,
    Gpu,
    Auto,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Direction {
    Forward,
    Backward,
}

#[derive(Clone, Copy, ValueEnum)]
enum EpsGradientName {
    Analytic,
    Autograd,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    match arguments.op {
        Op::Xielu {
            task,
            effective,
            beta,
            eps,
            eps_gradient,
        } => {
            let op = Xielu {
                parameters: if effective {
                    Parameters::Effective
                } else {
                    Parameters::Raw
                },
                beta,
                compat: eps.map(|eps| Compat {
                    eps,
                    gradient: match eps_gradient {
                        EpsGradientName::Analytic => EpsGradient::Analytic,
                        EpsGradientName::Autograd => EpsGradient::Autograd,
                    },
                }),
            };
            apply(&Plain(op), &task)
        }
        Op::Xatlu(arguments) => apply_expanded(Xatlu, &arguments),
        Op::Xgelu(arguments) => apply_expanded(Xgelu, &arguments),
        Op::Xsilu(arguments) => apply_expanded(Xsilu, &arguments),
        Op::CrossEntropy(arguments) => convert(&arguments.task.files, |tensors| {
            cross_entropy::apply(&arguments, tensors)
        }),
        Op::GoldfishMask {
            files,
            strategy,
            numbers,
        } => convert(&files, |tensors| {
            goldfish::mask(numbers.of(strategy), &machine(&files)?, tensors)
        }),
    }
}

fn apply_expanded<G: Gate>(op: G, arguments: &Expanded) -> Result<(), String> {
    let order = match arguments.gated {
        None => return apply(&Plain(op), &arguments.task),
        Some(OrderName::First) => Order::First,
        Some(OrderName::Second) => Order::Second,
    };
    apply(&InGate(op, order), &arguments.task)
}

/// A tensor to be written.
struct Output {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// What is computed from the tensors of the input.
trait Compute {
    fn compute<T: Element>(
        &self,
        task: &Task,
        tensors: &SafeTensors<'_>,
    ) -> Result<Vec<Output>, String>;
}

fn apply(op: &impl Compute, task: &Task) -> Result<(), String> {
    convert(&task.files, |tensors| match tensor(tensors, "x")?.dtype() {
        Dtype::F32 => op.compute::<f32>(task, tensors),
        Dtype::F16 => op.compute::<f16>(task, tensors),
        Dtype::BF16 => op.compute::<bf16>(task, tensors),
        other => Err(format!("x is {other:?}; it must be F32, F16 or BF16")),
    })
}

/// Writes what `compute` makes of the tensors that are read.
fn convert(
    files: &Files,
    compute: impl FnOnce(&SafeTensors<'_>) -> Result<Vec<Output>, String>,
) -> Result<(), String> {
    let path = files.input.display();
    let bytes = std::fs::read(&files.input).map_err(|e| format!("cannot read {path}: {e}"))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| format!("{path} is not a safetensors file: {e}"))?;
    write(&files.output, &compute(&tensors)?)
}

/// Who computes.
enum Machine {
    Reference,
    Cpu,
    Gpu(Gpu),
}

fn machine(files: &Files) -> Result<Machine, String> {
    let machine = match files.device {
        Backend::Reference => Machine::Reference,
        Backend::Cpu => Machine::Cpu,
        Backend::Emulated => Machine::Gpu(choose::open(Choice::Emulated)?),
        Backend::Gpu => Machine::Gpu(choose::open(Choice::Gpu)?),
        Backend::Auto => Machine::Gpu(choose::open(Choice::Auto)?),
    };
    let name = match &machine {
        Machine::Reference => "the reference on the CPU",
        Machine::Cpu => &Cpu::name(),
        Machine::Gpu(gpu) => &gpu.name,
    };
    eprintln!("device: {name}");
    Ok(machine)
}

fn output<T: Element>(name: &'static str, like: &TensorView<'_>, values: &[T]) -> Output {
    Output {
        name,
        dtype: like.dtype(),
        shape: like.shape().to_vec(),
        bytes: bytemuck::cast_slice(values).to_vec(),
    }
}

/// dy, which must have the type of x and this shape.
fn upstream<T: Element>(
    tensors: &SafeTensors<'_>,
    x: &TensorView<'_>,
    shape: &[usize],
) -> Result<Vec<T>, String> {
    let dy = tensor(tensors, "dy")?;
    if (dy.dtype(), dy.shape()) != (x.dtype(), shape) {
        return Err(format!(
            "dy is {:?} {:?}, but x is {:?} {:?}; dy must be {:?} {shape:?}",
            dy.dtype(),
            dy.shape(),
            x.dtype(),
            x.shape(),
            x.dtype(),
        ));
    }
    Ok(elements(&dy))
}

/// The op by itself.
struct Plain<A>(A);

impl<A: Activation> Compute for Plain<A> {
    fn compute<T: Element>(
        &self,
        task: &Task,
        tensors: &SafeTensors<'_>,
    ) -> Result<Vec<Output>, String> {
        let Plain(op) = self;
        let x_view = tensor(tensors, "x")?;
        let x = elements::<T>(&x_view);
        // Optional parameters are those at the end; one that is not in the file has the value of its flag.
        let (required, optional) = A::PARAMS.split_at(A::PARAMS.len() - A::OPTIONAL);
        let given = optional.iter().filter(|name| tensors.tensor(name).is_ok());
        let params = required
            .iter()
            .chain(given)
            .map(|name| scalar(tensors, name))
            .collect::<Result<Vec<f32>, _>>()?;
        let params_f64: Vec<_> = params.iter().map(|&p| f64::from(p)).collect();
        if task.direction == Direction::Forward {
            let y = match machine(&task.files)? {
                Machine::Reference => Ok(round(&reference::forward(op, &params_f64, &x))),
                Machine::Cpu => Cpu.forward(op, &params, &x),
                Machine::Gpu(gpu) => gpu.forward(op, &params, &x),
            };
            let y = y.map_err(|e| e.to_string())?;
            return Ok(vec![output("y", &x_view, &y)]);
        }
        let dy = upstream::<T>(tensors, &x_view, x_view.shape())?;
        let gradients = match machine(&task.files)? {
            Machine::Reference => reference::backward(op, &params_f64, &x, &dy)
                .map(|(dx, dparams)| (round(&dx), round(&dparams))),
            Machine::Cpu => Cpu.backward(op, &params, &x, &dy),
            Machine::Gpu(gpu) => gpu.backward(op, &params, &x, &dy),
        };
        let (dx, dparams) = gradients.map_err(|e| e.to_string())?;
        let mut outputs = vec![output("dx", &x_view, &dx)];
        for ((name, param), value) in A::GRADIENTS.iter().zip(A::PARAMS).zip(dparams) {
            outputs.push(output(name, &tensor(tensors, param)?, &[value]));
        }
        Ok(outputs)
    }
}

/// A gated form of the op.
struct InGate<G>(G, Order);

impl<G: Gate> Compute for InGate<G> {
    fn compute<T: Element>(
        &self,
        task: &Task,
        tensors: &SafeTensors<'_>,
    ) -> Result<Vec<Output>, String> {
        let x_view = tensor(tensors, "x")?;
        let alpha = scalar(tensors, "alpha")?;
        let (width, outer) = match x_view.shape().split_last() {
            Some((&width, outer)) if width % 2 == 0 => (width, outer),
            _ => {
                return Err(format!(
                    "x is {:?}; the last dimension of a gated x must be even: first the gate, then the \
                     value",
                    x_view.shape()
                ));
            }
        };
        let x = elements::<T>(&x_view);
        let shape = [outer, &[width / 2]].concat();
        let call = Halves {
            x: &x,
            rows: outer.iter().product(),
            alpha,
        };
        if task.direction == Direction::Forward {
            let y = match machine(&task.files)? {
                Machine::Reference => Ok(self.reference_forward(&call)),
                Machine::Cpu => self.cpu_forward(&call),
                Machine::Gpu(gpu) => self.forward(&gpu, &call),
            };
            let y = y.map_err(|e| e.to_string())?;
            let mut y = output("y", &x_view, &y);
            y.shape = shape;
            return Ok(vec![y]);
        }
        let dy = upstream::<T>(tensors, &x_view, &shape)?;
        let gradients = match machine(&task.files)? {
            Machine::Reference => Ok(self.reference_backward(&call, &dy)),
            Machine::Cpu => self.cpu_backward(&call, &dy),
            Machine::Gpu(gpu) => self.backward(&gpu, &call, &dy),
        };
        let (dx, dalpha) = gradients.map_err(|e| e.to_string())?;
        let alpha_view = tensor(tensors, "alpha")?;
        Ok(vec![
            output("dx", &x_view, &dx),
            output("dalpha", &alpha_view, &[dalpha]),
        ])
    }
}

/// What a gated form reads.
struct Halves<'a, T> {
    /// `[rows, 2·n]`, gate and value.
    x: &'a [T],
    rows: usize,
    alpha: f32,
}

impl<T: Element> Halves<'_, T> {
    /// The elements of a half of a row.
    fn cols(&self) -> usize {
        self.x.len().checked_div(self.rows).unwrap_or(0) / 2
    }

    /// Gate and value, and where in x they are.
    fn pairs(&self) -> impl Iterator<Item = (f64, f64, [usize; 2])> {
        let cols = self.cols();
        let gates = (0..self.x.len()).filter(move |i| i % (2 * cols) < cols);
        gates.map(move |i| (self.x[i].to_f64(), self.x[i + cols].to_f64(), [i, i + cols]))
    }
}

impl<T: Element> Halves<'_, T> {
    /// The gates, and the values.
    fn apart(&self) -> [Vec<T>; 2] {
        let cols = self.cols().max(1);
        [0, 1].map(|half| {
            let halves = self.x.chunks_exact(cols).skip(half).step_by(2);
            halves.flatten().copied().collect()
        })
    }
}

/// The buffer of `values` on the device, which has none of length 0.
fn upload<T: Element>(gpu: &Gpu, values: &[T]) -> CudaSlice<T> {
    if values.is_empty() {
        gpu.stream.clone_htod(&[T::from_f64(0.0)])
    } else {
        gpu.stream.clone_htod(values)
    }
    .expect("memory on the device")
}

impl<G: Gate> InGate<G> {
    fn reference_forward<T: Element>(&self, call: &Halves<'_, T>) -> Vec<T> {
        let InGate(op, order) = *self;
        let y = call.pairs().map(|(x, v, _)| {
            let gate = op.evaluate_order(order, &[f64::from(call.alpha)], x);
            T::from_f64(gate.y.value * v)
        });
        y.collect()
    }

    fn reference_backward<T: Element>(&self, call: &Halves<'_, T>, dy: &[T]) -> (Vec<T>, f32) {
        let InGate(op, order) = *self;
        let params = [f64::from(call.alpha)];
        let (mut dx, mut dalpha) = (call.x.to_vec(), 0.0);
        for ((x, v, [at_x, at_v]), dy) in call.pairs().zip(dy) {
            let (gate, dy) = (op.evaluate_order(order, &params, x), dy.to_f64());
            dx[at_x] = T::from_f64(dy * v * gate.slope.value);
            dx[at_v] = T::from_f64(dy * gate.y.value);
            dalpha += dy * v * gate.dparams[0];
        }
        (dx, (dalpha * op.chain(&params)[0]) as f32)
    }

    fn cpu_forward<T: Element>(&self, call: &Halves<'_, T>) -> xact::Result<Vec<T>> {
        let InGate(op, order) = *self;
        let [x, v] = call.apart();
        Cpu.gated_forward(&op, order, &[call.alpha], [&x, &v])
    }

    fn cpu_backward<T: Element>(
        &self,
        call: &Halves<'_, T>,
        dy: &[T],
    ) -> xact::Result<(Vec<T>, f32)> {
        let InGate(op, order) = *self;
        let [x, v] = call.apart();
        let ([dx, dv], dparams) = Cpu.gated_backward(&op, order, &[call.alpha], [&x, &v, dy])?;
        let cols = call.cols().max(1);
        let rows = dx.chunks_exact(cols).zip(dv.chunks_exact(cols));
        let both = rows.flat_map(|(dx, dv)| [dx, dv].concat()).collect();
        Ok((both, dparams[0]))
    }

    /// On the device, through the safe API.
    fn forward<T: Element>(&self, gpu: &Gpu, call: &Halves<'_, T>) -> xact::Result<Vec<T>> {
        let InGate(op, order) = *self;
        let Gpu { device, stream, .. } = gpu;
        let len = call.x.len() / 2;
        let (x, alpha) = (upload(gpu, call.x), upload(gpu, &[call.alpha]));
        let mut y = upload(gpu, &call.x[..len]);
        let (x, mut y_view) = (x.slice(..call.x.len()), y.slice_mut(..len));
        let [x, v] = Input::halves(&x, call.rows)?;
        let params = expanded::Params { alpha: &alpha };
        let forward = GatedForward {
            x,
            v,
            params,
            y: (&mut y_view).into(),
        };
        op.gated_forward(device, stream, order, forward)?;
        Ok(download(gpu, &y, len))
    }

    /// On the device, through the safe API: dx and dalpha.
    fn backward<T: Element>(
        &self,
        gpu: &Gpu,
        call: &Halves<'_, T>,
        dy: &[T],
    ) -> xact::Result<(Vec<T>, f32)> {
        let InGate(op, order) = *self;
        let Gpu { device, stream, .. } = gpu;
        let len = call.x.len();
        let (x, alpha) = (upload(gpu, call.x), upload(gpu, &[call.alpha]));
        let (dy, mut dx) = (upload(gpu, dy), upload(gpu, call.x));
        let mut dalpha = upload(gpu, &[0.0]);
        let (rows, cols) = (call.rows as u64, call.cols() as u64);
        let bytes = raw::workspace_bytes::<G>(T::DTYPE, rows, cols)?;
        let mut workspace = Workspace::new(stream, bytes)?;
        let (x, dy, mut dx_view) = (x.slice(..len), dy.slice(..len / 2), dx.slice_mut(..len));
        let [x, v] = Input::halves(&x, call.rows)?;
        let backward = GatedBackward {
            x,
            v,
            dy: (&dy).into(),
            gradient: GateOutput::Halves {
                buffer: &mut dx_view,
                rows: call.rows,
            },
            y: None,
            params: expanded::Params { alpha: &alpha },
            dparams: ParamGradients {
                out: expanded::Gradients {
                    dalpha: &mut dalpha,
                },
                accumulate: false,
                workspace: &mut workspace,
            },
        };
        op.gated_backward(device, stream, order, backward)?;
        Ok((download(gpu, &dx, len), download(gpu, &dalpha, 1)[0]))
    }
}

fn download<T: Element>(gpu: &Gpu, buffer: &CudaSlice<T>, len: usize) -> Vec<T> {
    let mut values = gpu.stream.clone_dtoh(buffer).expect("a copy of the result");
    values.truncate(len);
    values
}

fn round<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

fn tensor<'a>(tensors: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, String> {
    tensors.tensor(name).map_err(|_| {
        let mut names = tensors.names();
        names.sort_unstable();
        format!(
            "the input has no tensor {name} (it has: {})",
            names.join(", ")
        )
    })
}

fn elements<T: Element>(view: &TensorView<'_>) -> Vec<T> {
    bytemuck::pod_collect_to_vec(view.data())
}

fn scalar(tensors: &SafeTensors<'_>, name: &str) -> Result<f32, String> {
    let view = tensor(tensors, name)?;
    match (view.dtype(), elements::<f32>(&view).as_slice()) {
        (Dtype::F32, &[value]) => Ok(value),
        (dtype, _) => Err(format!(
            "{name} is {dtype:?} {:?}; it must be F32 with one element",
            view.shape()
        )),
    }
}

/// Writes the whole file or none of it.
fn write(path: &Path, outputs: &[Output]) -> Result<(), String> {
    let views = outputs
        .iter()
        .map(|o| Ok((o.name, TensorView::new(o.dtype, o.shape.clone(), &o.bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
    let bytes = views.and_then(|views| safetensors::serialize(views, None));
    let bytes = bytes.map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    files::replace(path, &bytes)
}
