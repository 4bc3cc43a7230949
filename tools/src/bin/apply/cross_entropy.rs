//! Computes cross-entropy of the logits and labels of a file.

mod cpu;
mod device;
mod inputs;
mod reference;
mod results;

use std::num::NonZeroUsize;

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use safetensors::tensor::Dtype;
use xact::{CrossEntropy, Normalizer};

use super::arguments::{Backend, Task, finite, twice};
use super::goldfish::{self, widen};
use super::machine::Machine;
use super::tensors::{Output, Tensors, check_type, each_element, each_integer, elements, numbers};
use inputs::Inputs;
use results::Results;
use xact_dev::strategy::Name;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    task: Task,
    /// Mask the rows with this label
    #[arg(long, default_value_t = -100, allow_hyphen_values = true)]
    ignore_index: i64,
    /// Spread this share of the target evenly over all classes
    #[arg(long, default_value_t = 0.0, value_parser = finite)]
    label_smoothing: f32,
    /// Add this multiple of lse² to the loss of each row
    #[arg(long, default_value_t = 0.0, value_parser = finite)]
    z_loss: f32,
    /// Replace each logit by c·tanh(z/c)
    #[arg(long, value_parser = finite)]
    softcap: Option<f32>,
    /// The number of classes, if it is less than the number of columns
    #[arg(long)]
    vocab: Option<u64>,
    /// The reduction of the rows' losses, to which gradients also refer; --normalizer sets the divisor of a mean
    #[arg(long, value_enum, default_value = "mean")]
    reduction: Reduction,
    /// The divisor of the mean; the default is kept, unless there is a tensor normalizer
    #[arg(long, value_parser = normalizers())]
    normalizer: Option<Normalizer>,
    /// Divide the mean by this number instead; a tensor normalizer does the same
    #[arg(long, value_parser = finite)]
    divide_by: Option<f32>,
    /// Make the mean over no rows NaN, not 0
    #[arg(long)]
    empty_is_nan: bool,
    /// The results of a forward to write, separated by commas; the default is loss,lse
    #[arg(long, value_enum, value_delimiter = ',')]
    outputs: Option<Vec<Wanted>>,
    /// Divide the classes among this number of ranks, as under vocabulary parallelism, and combine their statistics
    #[arg(long)]
    shards: Option<NonZeroUsize>,
    /// Drop labels with this strategy
    #[arg(long, value_enum)]
    goldfish: Option<Name>,
    #[command(flatten)]
    numbers: goldfish::Options,
    /// Also print the loss of the rows that Goldfish drops
    #[arg(long, requires = "goldfish")]
    dropped_loss: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Reduction {
    None,
    Mean,
    Sum,
}

/// A result of a forward.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Wanted {
    /// The losses after --reduction (f32)
    Loss,
    /// log Σ e^z of each row (f32)
    Lse,
    /// The z-loss term of each row's loss (f32)
    ZLoss,
    /// The class of the largest logit of each row (i32); the correct rows are then counted too
    Argmax,
}

/// The normalizers by name.
const NORMALIZERS: [(&str, Normalizer, &str); 4] = [
    ("none", Normalizer::None, "1: the mean is the sum"),
    (
        "kept",
        Normalizer::Kept,
        "The number of rows that are kept: neither ignored, nor of weight 0, nor dropped",
    ),
    (
        "labels",
        Normalizer::Labels,
        "The number of rows whose label is not ignored",
    ),
    (
        "weight",
        Normalizer::Weight,
        "The sum of the weights of the rows that are kept",
    ),
];

fn normalizers() -> impl TypedValueParser<Value = Normalizer> {
    let values = NORMALIZERS.map(|(name, _, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(values).map(|given| {
        let named = NORMALIZERS.into_iter().find(|(name, ..)| *name == given);
        named.expect("a possible value").1
    })
}

/// Evaluates a call with the type of the labels: `each_label!(view, L => …)`.
macro_rules! each_label {
    ($view:expr, $L:ident => $body:expr) => {
        each_integer!("labels", $view, [U32: u32, I32: i32, I64: i64], $L => $body)
    };
}

pub fn apply(arguments: &Arguments) -> Result<(), String> {
    let files = &arguments.task.files;
    arguments.check()?;
    let goldfish = arguments.numbers.strategy(arguments.goldfish)?;
    files.convert(|tensors| {
        let logits = tensors.get("logits")?;
        check_type("logits", &logits, files.device)?;
        let labels = tensors.get("labels")?;
        let ids = each_label!(labels, L => Ok(widen::<L>(&labels)))?;
        let (normalizer, divide_by) = arguments.normalizer(tensors, logits.dtype())?;
        let mut op = CrossEntropy::default()
            .ignore_index(arguments.ignore_index)
            .label_smoothing(arguments.label_smoothing)
            .z_loss(arguments.z_loss)
            .normalizer(normalizer)
            .empty_is_nan(arguments.empty_is_nan)
            .dropped_loss(arguments.dropped_loss);
        (op.softcap, op.vocab) = (arguments.softcap, arguments.vocab);
        let inputs = Inputs {
            divide_by,
            with_argmax: arguments.wants(Wanted::Argmax),
            ..Inputs::read(op, arguments, tensors, &logits, goldfish)?
        };
        tensors.warn_of_unread();
        let shape = logits.shape();
        let dtype = logits.dtype();
        let (results, dlogits) = match Machine::open(files.device)? {
            Machine::Reference => {
                let results = inputs.reference(&numbers(&logits), &ids);
                let (results, dlogits) = results.map_err(|e| e.to_string())?;
                (results, Output::rounded(DLOGITS, dtype, shape, &dlogits))
            }
            Machine::Cpu => each_element!(dtype, T => each_label!(labels, L => {
                let results = inputs.on_cpu::<T, L>(&elements(&logits), &elements(&labels));
                let (results, dlogits) = results.map_err(|e| e.to_string())?;
                Ok((results, Output::new(DLOGITS, dtype, shape, &dlogits)))
            }))?,
            Machine::Device(mut queue) => each_element!(dtype, T => each_label!(labels, L => {
                let (logits, labels) = (elements(&logits), elements(&labels));
                let results = inputs.on_device::<T, L>(&mut queue, &logits, &labels);
                let (results, dlogits) = results.map_err(|e| e.to_string())?;
                Ok((results, Output::new(DLOGITS, dtype, shape, &dlogits)))
            }))?,
        };
        results.summary.tell(&ids);
        if arguments.task.is_backward() {
            return Ok(vec![dlogits]);
        }
        Ok(arguments.written(&results, dtype, inputs.n))
    })
}

/// The gradient to write.
const DLOGITS: &str = "dlogits";

impl Arguments {
    /// Fails if an argument would have no effect.
    fn check(&self) -> Result<(), String> {
        if self.vocab == Some(0) {
            return Err("--vocab is 0; there must be at least one class".to_owned());
        }
        if self.shards.is_some() && self.task.files.device == Backend::Reference {
            return Err(
                "--shards is of backends; --device reference takes rows as a whole".to_owned(),
            );
        }
        if self.task.is_backward() && self.outputs.is_some() {
            return Err(
                "--outputs is of --direction forward; a backward writes dlogits".to_owned(),
            );
        }
        Ok(())
    }

    /// Whether a result is written.
    fn wants(&self, result: Wanted) -> bool {
        let wanted = self.outputs.as_deref();
        wanted
            .unwrap_or(&[Wanted::Loss, Wanted::Lse])
            .contains(&result)
    }

    /// The normalizer of the op, or a number.
    fn normalizer(
        &self,
        tensors: &Tensors<'_>,
        beside: Dtype,
    ) -> Result<(Normalizer, Option<f64>), String> {
        if self.reduction != Reduction::Mean {
            let given = [
                ("--normalizer", self.normalizer.is_some()),
                ("--divide-by", self.divide_by.is_some()),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(format!("{flag} is of --reduction mean")),
                None => Ok((Normalizer::None, None)),
            };
        }
        let stored = tensors.floats("normalizer", beside)?;
        let stored = match stored.as_deref() {
            None => None,
            Some(&[normalizer]) => Some(normalizer),
            Some(list) => {
                let elements = list.len();
                return Err(format!(
                    "normalizer has {elements} elements; it must have one"
                ));
            }
        };
        match (self.normalizer, self.divide_by, stored) {
            (Some(_), Some(_), _) => Err(
                "--normalizer and --divide-by both say what to divide by; leave one of them out"
                    .to_owned(),
            ),
            (Some(_), _, Some(_)) => Err(twice("--normalizer", "normalizer")),
            (_, Some(_), Some(_)) => Err(twice("--divide-by", "normalizer")),
            (named, own, stored) => Ok((named.unwrap_or_default(), own.map(f64::from).or(stored))),
        }
    }

    /// The results of a forward that are written.
    fn written(&self, results: &Results, logits: Dtype, n: usize) -> Vec<Output> {
        let dtype = match logits {
            Dtype::F64 => Dtype::F64,
            _ => Dtype::F32,
        };
        let rows = |name, values: &[f64]| Output::rounded(name, dtype, &[n], values);
        let scalar = |value| Output::rounded("loss", dtype, &[], &[value]);
        let wanted = [Wanted::Loss, Wanted::Lse, Wanted::ZLoss, Wanted::Argmax];
        let wanted = wanted.into_iter().filter(|&result| self.wants(result));
        wanted
            .map(|name| match (name, self.reduction) {
                (Wanted::Loss, Reduction::None) => rows("loss", &results.loss),
                (Wanted::Loss, Reduction::Mean) => scalar(results.summary.mean),
                (Wanted::Loss, Reduction::Sum) => scalar(results.summary.loss),
                (Wanted::Lse, _) => rows("lse", &results.lse),
                (Wanted::ZLoss, _) => rows("z_loss", &results.z_loss),
                (Wanted::Argmax, _) => Output::new("argmax", Dtype::I32, &[n], &results.argmax),
            })
            .collect()
    }
}
