//! The instances of generic functions that most tests and tools use, compiled once. In profiles with little optimisation,
//! such as `dev`, a crate uses the instances of the crates that it depends on.
//!
//! This only affects build times.

use std::hint::black_box;

use half::{bf16, f16};
use xact::activation::{Registered, Visitor};
use xact::{Element, Gated};

use super::cases::{self, Case, CaseVisitor};
use super::{loss, loss_cases, loss_check, loss_cpu, run};

/// Instantiates the functions; not called.
pub fn all() {
    xact::activation::for_each(&mut All);
    cases::for_each(&mut All);
    of_losses::<f32>();
    of_losses::<f16>();
    of_losses::<bf16>();
}

struct All;

impl CaseVisitor for All {
    fn case<A: Registered, T: Element>(&mut self, case: Case<A, T>) {
        black_box((Case::<A, T>::check as fn(&_, _, &_, _) -> _, case));
    }
}

impl Visitor for All {
    fn visit<A: Registered>(&mut self) {
        fn of_type<A: Registered, T: Element>() {
            black_box((
                run::forward::<A, T, f32> as fn(&_, &_, &_, &_, &_) -> _,
                run::backward::<A, T, f32> as fn(&_, &_, &_, &_, &_, &_) -> _,
            ));
        }
        of_type::<A, f32>();
        of_type::<A, f16>();
        of_type::<A, bf16>();
    }

    fn visit_gated<A: Gated + Registered>(&mut self) {
        fn of_type<A: Gated + Registered, T: Element>() {
            black_box((
                run::gated_forward::<A, T> as fn(&_, &_, _, &_, _, &_) -> _,
                run::gated_backward::<A, T> as fn(&_, &_, _, &_, _, &_) -> _,
            ));
        }
        of_type::<A, f32>();
        of_type::<A, f16>();
        of_type::<A, bf16>();
    }
}

fn of_losses<T: Element>() {
    black_box((
        loss::Uploaded::new::<T> as fn(_, &_, _) -> _,
        loss::forward_backward::<T> as fn(&_, &_, &_, &_) -> _,
        loss::with_gradient::<T> as fn(&_, &_, &_, &_) -> _,
        loss::sharded::<T> as fn(&_, &_, &_, &_, _) -> _,
        loss_cases::batch::<T> as fn(_, _, _, _, _) -> _,
        loss_cases::special_rows::<T> as fn() -> _,
        loss_check::check::<T> as fn(&_, &_, &_, &_) -> _,
        loss_check::expected::<T> as fn(&_, &_, &_) -> _,
        loss_cpu::forward_backward::<T> as fn(&_, &_, _) -> _,
        loss_cpu::with_gradient::<T> as fn(&_, &_, _) -> _,
        loss_cpu::sharded::<T> as fn(&_, &_, &_) -> _,
    ));
}
