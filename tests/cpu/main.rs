//! The CPU backend, as a table of trials: the activations by their names in the registry, so that a new op is tested
//! automatically, `cross_entropy::`, `linear_cross_entropy::` and `goldfish::`.
//!
//! `XACT_FULL=1` has denser sweeps, and longer and more rows.

mod activations;
mod cross_entropy;
mod goldfish;
mod linear_cross_entropy;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use xact::cpu::InstructionSet;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let sets: Vec<_> = InstructionSet::available()
        .iter()
        .map(|s| s.name())
        .collect();
    eprintln!("instruction sets: {}", sets.join(", "));
    let mut table = Table(Vec::new());
    activations::add_to(&mut table);
    cross_entropy::add_to(&mut table);
    goldfish::add_to(&mut table);
    linear_cross_entropy::add_to(&mut table);
    libtest_mimic::run(&arguments, table.0).exit_code()
}

type Outcome = Result<(), Failed>;

struct Table(Vec<Trial>);

impl Table {
    fn add(&mut self, name: impl Into<String>, test: impl FnOnce() -> Outcome + Send + 'static) {
        self.0.push(Trial::test(name, test));
    }
}
