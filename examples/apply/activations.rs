//! Activations on the tensors of a file.

use clap::{Args, Command, ValueEnum};
use safetensors::tensor::{Dtype, TensorView};
use xact::cuda::{self, Gradients, Params};
use xact::{
    Activation, AnyActivation, Compat, Element, EpsGradient, Gated, Halves, Order, Parameters,
    Queue, Signature, cpu,
};

use super::arguments::{Task, finite, not_nan, twice};
use super::machine::{Buffer, Machine};
use super::tensors::{Output, Tensors, check_type, each_element, elements, numbers};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    task: Task,
    #[command(flatten)]
    gating: Gating,
    #[command(flatten)]
    xielu: OfXielu,
}

/// The gated forms.
#[derive(Args)]
struct Gating {
    /// The gated form of this order: the last dimension of x holds gate and value, and that of y and dy is half as
    /// long. No other dimension can be split
    #[arg(long, value_enum)]
    gated: Option<OrderName>,
    /// Which half of the last dimension of x, and of dx, is the gate: gate-first if nothing is said
    #[arg(long, value_enum, requires = "gated")]
    halves: Option<HalvesName>,
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

#[derive(Clone, Copy, ValueEnum)]
enum HalvesName {
    /// Gate, then value
    GateFirst,
    /// Value, then gate, as torch.nn.GLU has it
    ValueFirst,
}

/// The options of xIELU.
#[derive(Args)]
struct OfXielu {
    /// alpha_p and alpha_n are used as they are, not passed through a softplus
    #[arg(long)]
    effective: bool,
    /// The slope at 0, unless the input has a tensor beta: 0.5 if nothing is said
    #[arg(long, allow_hyphen_values = true, value_parser = finite)]
    beta: Option<f32>,
    /// Clamp x inside expm1, as Hugging Face does with -1e-6; a tensor eps of the input (rounded to f32) says the same
    #[arg(long, allow_hyphen_values = true, value_parser = not_nan)]
    eps: Option<f32>,
    /// The gradient of the clamp: if nothing is said, autograd with --eps, and analytic with a tensor eps
    #[arg(long, value_enum)]
    eps_gradient: Option<EpsGradientName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum EpsGradientName {
    Analytic,
    Autograd,
}

/// The subcommand of an op of the registry.
pub fn command(name: &'static str) -> Command {
    let op: AnyActivation = name.parse().expect("a name of the registry");
    let Signature {
        params,
        gradients,
        optional,
        ..
    } = *op.signature();
    let (required, optional) = params.split_at(params.len() - optional);
    let mut about = format!(
        "{name}: reads x (f32, f16 or bf16, any shape) and {} (f32 or the type of x, one element each)",
        required.join(", ")
    );
    if !optional.is_empty() {
        about += &format!(", {} where it is there", optional.join(", "));
    }
    about += &format!(
        ", for backward also dy (type and shape of y); writes y, or dx and {} (f32) of the parameters that are there",
        gradients.join(", ")
    );
    let mut command = Arguments::augment_args(Command::new(name)).about(about);
    let mut hide = |arguments: &[&'static str]| {
        for argument in arguments {
            command = std::mem::take(&mut command).mut_arg(argument, |a| a.hide(true));
        }
    };
    if op.as_gated().is_err() {
        hide(&["gated", "halves"]);
    }
    if !matches!(op, AnyActivation::Xielu(_)) {
        hide(&["effective", "beta", "eps", "eps_gradient"]);
    }
    command
}

pub fn apply(op: AnyActivation, arguments: &Arguments) -> Result<(), String> {
    let Arguments {
        task,
        gating,
        xielu,
    } = arguments;
    if gating.gated.is_some() {
        op.as_gated().map_err(|e| e.to_string())?;
    }
    if !matches!(op, AnyActivation::Xielu(_))
        && let Some(flag) = xielu.given()
    {
        let name = op.signature().name;
        return Err(format!("{flag} is an option of xielu; {name} has none"));
    }
    task.files.convert(|tensors| {
        let x = tensors.get("x")?;
        check_type("x", &x, task.files.device)?;
        let call = Call {
            op: xielu.set(op, tensors, x.dtype())?,
            gate: gating.of(x.shape())?,
            params: params(op.signature(), tensors, x.dtype())?,
        };
        let dy = (task.is_backward())
            .then(|| call.upstream(tensors, &x))
            .transpose()?;
        tensors.warn_of_unread();
        let machine = Machine::open(task.files.device)?;
        call.outputs(machine, tensors, &x, dy.as_ref())
    })
}

impl OfXielu {
    /// An option that is given.
    fn given(&self) -> Option<&'static str> {
        let OfXielu {
            effective,
            beta,
            eps,
            eps_gradient,
        } = self;
        let given = [
            ("--effective", *effective),
            ("--beta", beta.is_some()),
            ("--eps", eps.is_some()),
            ("--eps-gradient", eps_gradient.is_some()),
        ];
        given.iter().find(|(_, is)| *is).map(|(flag, _)| *flag)
    }

    /// The op with these options, and with those that are in the file.
    fn set(
        &self,
        op: AnyActivation,
        tensors: &Tensors<'_>,
        beside: Dtype,
    ) -> Result<AnyActivation, String> {
        let AnyActivation::Xielu(mut op) = op else {
            return Ok(op);
        };
        if self.effective {
            op = op.parameters(Parameters::Effective);
        }
        if let Some(beta) = self.beta {
            if tensors.find("beta").is_some() {
                return Err(twice("--beta", "beta"));
            }
            op = op.beta(beta);
        }
        let stored = tensors.find_scalar("eps", beside)?.map(|eps| eps as f32);
        let (eps, default) = match (self.eps, stored) {
            (Some(_), Some(_)) => return Err(twice("--eps", "eps")),
            (Some(eps), None) => (eps, EpsGradientName::Autograd),
            (None, Some(eps)) if eps.is_nan() => return Err("eps is NaN".to_owned()),
            (None, Some(eps)) => (eps, EpsGradientName::Analytic),
            (None, None) if self.eps_gradient.is_some() => {
                return Err(
                    "--eps-gradient is of a clamp, and there is none: give --eps, or a tensor eps"
                        .to_owned(),
                );
            }
            (None, None) => return Ok(op.into()),
        };
        let gradient = match self.eps_gradient.unwrap_or(default) {
            EpsGradientName::Analytic => EpsGradient::Analytic,
            EpsGradientName::Autograd => EpsGradient::Autograd,
        };
        Ok(op.compat(Compat::new(eps).gradient(gradient)).into())
    }
}

/// The parameters; of those that may be left out, as many as are there.
fn params(signature: &Signature, tensors: &Tensors<'_>, beside: Dtype) -> Result<Vec<f64>, String> {
    let (required, optional) =
        (signature.params).split_at(signature.params.len() - signature.optional);
    let mut params = Vec::new();
    for name in required {
        params.push(tensors.scalar(name, beside)?);
    }
    for name in optional {
        match tensors.find_scalar(name, beside)? {
            Some(param) => params.push(param),
            None => break,
        }
    }
    Ok(params)
}

/// How an op gates.
#[derive(Clone, Copy)]
struct Gate {
    order: Order,
    halves: Halves,
    rows: usize,
    /// Elements of a half of a row.
    cols: usize,
}

impl Gating {
    /// How x of this shape is gated.
    fn of(&self, shape: &[usize]) -> Result<Option<Gate>, String> {
        let order = match self.gated {
            None => return Ok(None),
            Some(OrderName::First) => Order::First,
            Some(OrderName::Second) => Order::Second,
        };
        let (width, outer) = match shape.split_last() {
            Some((&width, outer)) if width % 2 == 0 => (width, outer),
            _ => {
                return Err(format!(
                    "x is {shape:?}; the last dimension of a gated x must be even: it holds gate and value, and no \
                     other dimension can be split"
                ));
            }
        };
        Ok(Some(Gate {
            order,
            halves: match self.halves {
                None | Some(HalvesName::GateFirst) => Halves::GateFirst,
                Some(HalvesName::ValueFirst) => Halves::ValueFirst,
            },
            rows: outer.iter().product(),
            cols: width / 2,
        }))
    }
}

/// An op on tensors.
struct Call {
    op: AnyActivation,
    gate: Option<Gate>,
    params: Vec<f64>,
}

/// y or dx, and the gradients of the parameters.
struct Results<T> {
    out: Vec<T>,
    dparams: Vec<f64>,
}

impl Call {
    /// The shape of y for x of this shape.
    fn shape_of_y(&self, x: &[usize]) -> Vec<usize> {
        let mut shape = x.to_vec();
        if let (Some(gate), Some(width)) = (self.gate, shape.last_mut()) {
            *width = gate.cols;
        }
        shape
    }

    /// dy, which must have the type of x and the shape of y.
    fn upstream<'a>(
        &self,
        tensors: &Tensors<'a>,
        x: &TensorView<'_>,
    ) -> Result<TensorView<'a>, String> {
        let (dy, shape) = (tensors.get("dy")?, self.shape_of_y(x.shape()));
        if (dy.dtype(), dy.shape()) != (x.dtype(), &shape[..]) {
            return Err(format!(
                "dy is {:?} {:?}, but x is {:?} {:?}; dy must be {:?} {shape:?}",
                dy.dtype(),
                dy.shape(),
                x.dtype(),
                x.shape(),
                x.dtype(),
            ));
        }
        Ok(dy)
    }

    fn outputs(
        &self,
        machine: Machine,
        tensors: &Tensors<'_>,
        x: &TensorView<'_>,
        dy: Option<&TensorView<'_>>,
    ) -> Result<Vec<Output>, String> {
        let (name, shape) = match dy {
            None => ("y", self.shape_of_y(x.shape())),
            Some(_) => ("dx", x.shape().to_vec()),
        };
        let (out, dparams) = match machine {
            Machine::Reference => {
                let results = self.reference(&numbers(x), dy.map(numbers).as_deref());
                let out = Output::rounded(name, x.dtype(), &shape, &results.out);
                (out, results.dparams)
            }
            Machine::Cpu => each_element!(x.dtype(), T => {
                let dy = dy.map(elements::<T>);
                let results = self.on_cpu(&elements::<T>(x), dy.as_deref());
                let results = results.map_err(|e| e.to_string())?;
                (Output::new(name, x.dtype(), &shape, &results.out), results.dparams)
            }),
            Machine::Device(mut queue) => each_element!(x.dtype(), T => {
                let dy = dy.map(elements::<T>);
                let results = self.on_device(&mut queue, &elements::<T>(x), dy.as_deref());
                let results = results.map_err(|e| e.to_string())?;
                (Output::new(name, x.dtype(), &shape, &results.out), results.dparams)
            }),
        };
        let mut outputs = vec![out];
        if dy.is_some() {
            let of = match x.dtype() {
                Dtype::F64 => Dtype::F64,
                _ => Dtype::F32,
            };
            let Signature {
                params, gradients, ..
            } = self.op.signature();
            for ((name, param), value) in gradients.iter().zip(*params).zip(dparams) {
                let param = tensors.get(param)?;
                outputs.push(Output::rounded(name, of, param.shape(), &[value]));
            }
        }
        Ok(outputs)
    }

    /// In f64, from the definition.
    fn reference(&self, x: &[f64], dy: Option<&[f64]>) -> Results<f64> {
        let mut sums = vec![0.0; self.params.len()];
        let mut add = |upstream: f64, terms: &[f64]| {
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum += upstream * term;
            }
        };
        let out = match self.gated() {
            None => {
                let points = x.iter().map(|&x| self.op.evaluate(&self.params, x));
                match dy {
                    None => points.map(|point| point.y.value).collect(),
                    Some(dy) => (points.zip(dy))
                        .map(|(point, dy)| {
                            add(*dy, &point.dparams);
                            dy * point.slope.value
                        })
                        .collect(),
                }
            }
            Some((op, gate)) => {
                let pairs = (0..gate.rows * gate.cols).map(|i| {
                    let (row, col) = (i / gate.cols, i % gate.cols);
                    let first = 2 * gate.cols * row + col;
                    let [x_at, v_at] = match gate.halves {
                        Halves::GateFirst => [first, first + gate.cols],
                        Halves::ValueFirst => [first + gate.cols, first],
                    };
                    let point = op.evaluate_order(gate.order, &self.params, x[x_at]);
                    (point, x[v_at], [x_at, v_at])
                });
                match dy {
                    None => pairs.map(|(point, v, _)| point.y.value * v).collect(),
                    Some(dy) => {
                        let mut dxv = vec![0.0; x.len()];
                        for ((point, v, [x_at, v_at]), dy) in pairs.zip(dy) {
                            add(dy * v, &point.dparams);
                            dxv[x_at] = dy * v * point.slope.value;
                            dxv[v_at] = dy * point.y.value;
                        }
                        dxv
                    }
                }
            }
        };
        let chain = self.op.chain(&self.params);
        Results {
            out,
            dparams: sums
                .iter()
                .zip(chain)
                .map(|(sum, chain)| sum * chain)
                .collect(),
        }
    }

    fn gated(&self) -> Option<(&dyn Gated, Gate)> {
        let gate = self.gate?;
        Some((self.op.as_gated().expect("checked before"), gate))
    }

    /// The parameters as the backends take them, exactly: they are f32, or 16-bit.
    fn params_f32(&self) -> Vec<f32> {
        self.params.iter().map(|&p| p as f32).collect()
    }

    /// Elements of y or dx.
    fn len<T>(&self, x: &[T], dy: Option<&[T]>) -> usize {
        if dy.is_none() && self.gate.is_some() {
            return x.len() / 2;
        }
        x.len()
    }

    fn on_cpu<T: Element>(&self, x: &[T], dy: Option<&[T]>) -> xact::Result<Results<T>> {
        let params = self.params_f32();
        let mut out = vec![T::from_f64(0.0); self.len(x, dy)];
        let mut dparams = vec![0.0; params.len()];
        match (self.gated(), dy) {
            (None, None) => cpu::forward(&self.op, x, &params, &mut out).run()?,
            (None, Some(dy)) => cpu::backward(&self.op, x, dy, &params, &mut out)
                .gradients(&mut dparams)
                .run()?,
            (Some((op, gate)), None) => {
                let xv = cpu::Pair::halves(x, gate.rows, gate.halves)?;
                cpu::gated_forward(op, gate.order, xv, &params, &mut out).run()?;
            }
            (Some((op, gate)), Some(dy)) => {
                let xv = cpu::Pair::halves(x, gate.rows, gate.halves)?;
                let dxv = cpu::PairMut::halves(&mut out, gate.rows, gate.halves)?;
                cpu::gated_backward(op, gate.order, xv, dy, &params, dxv)
                    .gradients(&mut dparams)
                    .run()?;
            }
        }
        Ok(Results {
            out,
            dparams: dparams.into_iter().map(f64::from).collect(),
        })
    }

    fn on_device<T: Element>(
        &self,
        queue: &mut Queue,
        x: &[T],
        dy: Option<&[T]>,
    ) -> xact::Result<Results<T>> {
        let scalars = |values: &[f32]| -> xact::Result<Vec<Buffer<f32>>> {
            values
                .iter()
                .map(|&value| Buffer::upload(queue, &[value]))
                .collect()
        };
        let params = scalars(&self.params_f32())?;
        let mut dparams = scalars(&vec![0.0; params.len()])?;
        let mut out = Buffer::<T>::zeros(queue, self.len(x, dy))?;
        let x = Buffer::upload(queue, x)?;
        let dy = dy.map(|dy| Buffer::upload(queue, dy)).transpose()?;
        let list = params.iter().filter_map(Buffer::slice);
        let gradients = dparams.iter_mut().filter_map(Buffer::slice_mut);
        match (self.gated(), &dy) {
            (None, None) => {
                let params = Params::list(list);
                cuda::forward(&self.op, x.input(), params, out.output()).launch(queue)?;
            }
            (None, Some(dy)) => {
                let params = Params::list(list);
                let call = cuda::backward(&self.op, x.input(), dy.input(), params, out.output())
                    .gradients(Gradients::list(gradients));
                queue.reserve(call.workspace_bytes()?)?;
                call.launch(queue)?;
            }
            (Some((op, gate)), None) => {
                let (params, xv) = (Params::list(list), halves(&x, gate)?);
                cuda::gated_forward(op, gate.order, xv, params, out.output()).launch(queue)?;
            }
            (Some((op, gate)), Some(dy)) => {
                let (params, xv) = (Params::list(list), halves(&x, gate)?);
                let dxv = halves_mut(&mut out, gate)?;
                let call = cuda::gated_backward(op, gate.order, xv, dy.input(), params, dxv)
                    .gradients(Gradients::list(gradients));
                queue.reserve(call.workspace_bytes()?)?;
                call.launch(queue)?;
            }
        }
        let mut sums = Vec::new();
        for gradient in &dparams {
            sums.extend(gradient.download(queue)?.into_iter().map(f64::from));
        }
        Ok(Results {
            out: out.download(queue)?,
            dparams: sums,
        })
    }
}

/// Gate and value of x on the device.
fn halves<T: Element>(x: &Buffer<T>, gate: Gate) -> xact::Result<cuda::Pair<'_, T>> {
    match x.slice() {
        Some(x) => cuda::Pair::halves(x, gate.rows, gate.halves),
        None => Ok(cuda::Pair::new(x.input(), x.input())),
    }
}

fn halves_mut<T: Element>(dx: &mut Buffer<T>, gate: Gate) -> xact::Result<cuda::PairMut<'_, T>> {
    match dx.slice_mut() {
        Some(dx) => cuda::PairMut::halves(dx, gate.rows, gate.halves),
        None => Ok(cuda::PairMut::new(
            cuda::Output::empty(),
            cuda::Output::empty(),
        )),
    }
}
