//! Applies activations to the tensors of a file.

mod call;
mod cpu;
mod device;
mod reference;

use clap::{Args, Command, ValueEnum};
use safetensors::tensor::Dtype;
use xact::{Activation, AnyActivation, Compat, EpsGradient, Halves, Order, Parameters, Signature};

use super::arguments::{Task, finite, not_nan, twice};
use super::machine::Machine;
use super::tensors::{Tensors, check_type};
use call::{Call, Gate};

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
    /// Use the gated form of this order: the last dimension of x contains gate and value, and that of y and dy is half as
    /// long. No other dimension can be split
    #[arg(long, value_enum)]
    gated: Option<OrderName>,
    /// The half of the last dimension of x and dx that is the gate; the default is gate-first
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
    /// The gate first, then the value
    GateFirst,
    /// The value first, then the gate, as in torch.nn.GLU
    ValueFirst,
}

/// The options of xIELU.
#[derive(Args)]
struct OfXielu {
    /// Use alpha_p and alpha_n as they are, without a softplus
    #[arg(long)]
    effective: bool,
    /// The slope at 0, if the input has no tensor beta; the default is 0.5
    #[arg(long, allow_hyphen_values = true, value_parser = finite)]
    beta: Option<f32>,
    /// Clamp x inside expm1, as Hugging Face does with -1e-6. A tensor eps of the input, rounded to f32, does the same
    #[arg(long, allow_hyphen_values = true, value_parser = not_nan)]
    eps: Option<f32>,
    /// The gradient of the clamp; the default is autograd with --eps, and analytic with a tensor eps
    #[arg(long, value_enum)]
    eps_gradient: Option<EpsGradientName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum EpsGradientName {
    Analytic,
    Autograd,
}

/// Makes the subcommand of an op of the registry.
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

    /// The op with these options and those in the file.
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

/// The parameters; optional ones only if the file has them.
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

impl Gating {
    /// The gated form for x of this shape.
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
