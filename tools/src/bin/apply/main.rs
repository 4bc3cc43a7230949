//! Runs an op on the tensors of a `.safetensors` file, so that other implementations can be compared without writing Rust.

mod activations;
mod arguments;
mod cross_entropy;
mod goldfish;
mod machine;
mod tensors;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Loss, Op};

fn main() -> ExitCode {
    let done = match Arguments::parse().op {
        Op::Activation(op, arguments) => activations::apply(op, &arguments),
        Op::Loss(Loss::CrossEntropy(arguments)) => cross_entropy::apply(&arguments),
        Op::Loss(Loss::Goldfish(arguments)) => goldfish::apply(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}
