//! The command line: a subcommand for each op, and the arguments that all subcommands have.

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum};
use xact::AnyActivation;
use xact::activation::NAMES;

use super::tensors::{self, Output, Tensors};
use super::{activations, cross_entropy, goldfish};
use xact_dev::files::Destination;

/// Run an op on the tensors of a .safetensors file
///
/// Standard error names the device and the tensors of the file that are not read, and describes the results. On any error,
/// the exit status is 2 and there is no output file.
#[derive(Parser)]
#[command(name = "apply")]
pub struct Arguments {
    #[command(subcommand)]
    pub op: Op,
}

/// The op, by its name in the registry.
pub enum Op {
    Activation(AnyActivation, activations::Arguments),
    Loss(Loss),
}

#[derive(Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Loss {
    /// Compute the cross entropy. Reads logits (f32, f16 or bf16, [N, V]), labels (u32, i32 or i64, [N]) and, if present,
    /// weights (f32, [N]) and normalizer (f32, one element); for backward also dloss (f32, [N] or one element); with
    /// --goldfish also hash_ids (integers, [rows, ids of a row], N in all), cu_seqlens, preceding, halo and exempt, as
    /// goldfish does. Writes loss and the results of --outputs, or dlogits
    #[command(alias = "cross-entropy")]
    CrossEntropy(cross_entropy::Arguments),
    /// Compute which labels Goldfish keeps. Reads labels (u8, u16, u32, i32 or i64, [rows, labels of a row]) and, if
    /// present, cu_seqlens (i32, offsets of documents into the labels of all rows), preceding (i64, one less: the offsets
    /// are then those of chunks, and this is the number of labels that precede each in its document), halo (type of labels,
    /// the ids before the first label of each row, of each chunk, or of all rows with cu_seqlens alone) and exempt (i64,
    /// ids that are never dropped). Writes keep (u8, shape of labels) and kept (i64, one element)
    #[command(alias = "goldfish-mask")]
    Goldfish(goldfish::Arguments),
}

impl FromArgMatches for Op {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Op, clap::Error> {
        if let Some((name, arguments)) = matches.subcommand()
            && let Ok(op) = name.parse()
        {
            let arguments = activations::Arguments::from_arg_matches(arguments)?;
            return Ok(Op::Activation(op, arguments));
        }
        Loss::from_arg_matches(matches).map(Op::Loss)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Op::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for Op {
    fn augment_subcommands(command: Command) -> Command {
        let activations = NAMES.iter().map(|name| activations::command(name));
        Loss::augment_subcommands(command.subcommands(activations))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Op::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        NAMES.contains(&name) || Loss::has_subcommand(name)
    }
}

/// The arguments of every op with a gradient.
#[derive(Args)]
pub struct Task {
    #[command(flatten)]
    pub files: Files,
    /// The direction to compute
    #[arg(long, value_enum)]
    direction: Direction,
}

impl Task {
    pub fn is_backward(&self) -> bool {
        self.direction == Direction::Backward
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Direction {
    Forward,
    Backward,
}

/// The arguments of every op.
#[derive(Args)]
pub struct Files {
    /// The .safetensors file to read
    #[arg(long)]
    input: PathBuf,
    /// The .safetensors file to write
    #[arg(long)]
    output: PathBuf,
    /// The backend: the reference on the CPU (in f64, rounded once; only it takes tensors of f64, and then writes f64), the
    /// fast CPU backend, the emulated or a real device, or the best available device
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Backend,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Backend {
    Reference,
    Cpu,
    Emulated,
    Gpu,
    Auto,
}

impl Files {
    /// Computes the results from the tensors that are read, and writes them. Checks first that the output can be written.
    pub fn convert(
        &self,
        compute: impl FnOnce(&Tensors<'_>) -> Result<Vec<Output>, String>,
    ) -> Result<(), String> {
        let destination = Destination::new(&self.output)?;
        let path = self.input.display();
        let bytes = std::fs::read(&self.input).map_err(|e| format!("cannot read {path}: {e}"))?;
        let tensors =
            Tensors::new(&bytes).map_err(|e| format!("{path} is not a safetensors file: {e}"))?;
        destination.write(&tensors::serialize(&compute(&tensors)?)?)
    }
}

/// Parses a number or an infinity.
pub fn not_nan(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|e| format!("{e}"))?;
    if number.is_nan() {
        return Err("it must be a number".to_owned());
    }
    Ok(number)
}

/// Parses a number in the range of f32.
pub fn finite(text: &str) -> Result<f32, String> {
    let number = not_nan(text)?;
    if number.is_infinite() {
        return Err("it must be finite in f32".to_owned());
    }
    Ok(number)
}

/// The error if a flag and a tensor set the same option.
pub fn twice(flag: &str, tensor: &str) -> String {
    format!("{flag} is given, and the input has a tensor {tensor}; leave one of them out")
}
