//! Cross-entropy of the logits and labels of a file.

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
    /// Rows with this label are masked
    #[arg(long, default_value_t = -100, allow_hyphen_values = true)]
    ignore_index: i64,
    /// This part of the target is spread evenly over all classes
    #[arg(long, default_value_t = 0.0, value_parser = finite)]
    label_smoothing: f32,
    /// Adds this much of lse² to the loss of each row
    #[arg(long, default_value_t = 0.0, value_parser = finite)]
    z_loss: f32,
    /// Logits pass through c·tanh(z/c)
    #[arg(long, value_parser = finite)]
    softcap: Option<f32>,
    /// Classes, if fewer than columns
    #[arg(long)]
    vocab: Option<u64>,
    /// What the losses of the rows become, and what gradients are of; --normalizer says what a mean is over
    #[arg(long, value_enum, default_value = "mean")]
    reduction: Reduction,
    /// What the mean is divided by: kept if nothing is said, and there is no tensor normalizer
    #[arg(long, value_parser = normalizers())]
    normalizer: Option<Normalizer>,
    /// Divide the mean by this number instead; a tensor normalizer says the same
    #[arg(long, value_parser = finite)]
    divide_by: Option<f32>,
    /// The mean over no rows is NaN, not 0
    #[arg(long)]
    empty_is_nan: bool,
    /// What is written of a forward, with commas between: loss,lse if nothing is said
    #[arg(long, value_enum, value_delimiter = ',')]
    outputs: Option<Vec<Wanted>>,
    /// Cut the classes among so many ranks, as under vocabulary parallelism, whose statistics are put together
    #[arg(long)]
    shards: Option<NonZeroUsize>,
    /// Drop labels by this strategy
    #[arg(long, value_enum)]
    goldfish: Option<Name>,
    #[command(flatten)]
    numbers: goldfish::Options,
    /// Tell the loss of the rows that Goldfish drops, too
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
    /// What the losses become by --reduction (f32)
    Loss,
    /// log Σ e^z of each row (f32)
    Lse,
    /// The part of each row's loss that is z-loss (f32)
    ZLoss,
    /// The class of the largest logit of each row (i32); the correct ones are counted then
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

/// Calls for the type of labels: `each_label!(view, L => …)`.
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

/// The gradient in the file.
const DLOGITS: &str = "dlogits";

impl Arguments {
    /// Refuses what would not be used.
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

    /// What the mean is divided by: what the op says, or a number.
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

    /// What is written of the results of a forward.
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
