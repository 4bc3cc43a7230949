//! The cases of the commands: every op, form, direction, type and sample.

use half::{bf16, f16};
use xact::activation::{Registered, Sample, Visitor};
use xact::reference::Report;
use xact::{Element, Gated, Order};

use super::check;
use super::inputs::{self, GRADIENTS, Random, VALUES};
use super::machine::Machine;

/// A form and direction of `A` in `T` with one of its samples.
pub struct Case<A, T> {
    /// `forward`, `gated1 backward` and so on.
    pub direction: &'static str,
    /// The options and the parameters of the op.
    pub sample: Sample<A>,
    run: Check<A, T>,
}

type Check<A, T> = Box<dyn Fn(Machine<'_>, &Sample<A>, &[T], f64) -> Report>;

impl<A: Registered, T: Element> Case<A, T> {
    /// Runs the case on `x`, and compares the result with the reference.
    pub fn check(&self, machine: Machine<'_>, x: &[T], ulps: f64) -> Report {
        (self.run)(machine, &self.sample, x, ulps)
    }
}

/// A function of every case.
pub trait CaseVisitor {
    /// Is called with one case of the list.
    fn case<A: Registered, T: Element>(&mut self, case: Case<A, T>);
}

/// Calls `visitor` with every case, in the order of the registry.
pub fn for_each(visitor: &mut impl CaseVisitor) {
    xact::activation::for_each(&mut Cases(visitor));
}

struct Cases<'a, V>(&'a mut V);

impl<V: CaseVisitor> Cases<'_, V> {
    fn plain<A: Registered, T: Element>(&mut self) {
        self.add::<A, T>("forward", forward);
        self.add::<A, T>("backward", backward);
    }

    fn gated<A: Gated + Registered, T: Element>(&mut self) {
        for order in Order::ALL {
            let [forward, backward] = match order {
                Order::First => ["gated1 forward", "gated1 backward"],
                Order::Second => ["gated2 forward", "gated2 backward"],
            };
            self.add::<A, T>(forward, move |m, s, x, u| gated_forward(m, order, s, x, u));
            self.add::<A, T>(backward, move |m, s, x, u| {
                gated_backward(m, order, s, x, u)
            });
        }
    }

    /// A case for each sample.
    fn add<A: Registered, T: Element>(
        &mut self,
        direction: &'static str,
        check: impl Fn(Machine<'_>, &Sample<A>, &[T], f64) -> Report + Copy + 'static,
    ) {
        for sample in A::samples() {
            self.0.case(Case {
                direction,
                sample,
                run: Box::new(check),
            });
        }
    }
}

fn forward<A: Registered, T: Element>(
    machine: Machine<'_>,
    s: &Sample<A>,
    x: &[T],
    ulps: f64,
) -> Report {
    check::forward(machine, &s.op, &s.params, x, ulps)
}

fn backward<A: Registered, T: Element>(
    machine: Machine<'_>,
    s: &Sample<A>,
    x: &[T],
    ulps: f64,
) -> Report {
    let dy = Random(1).normal::<T>(x.len(), 1.0);
    check::backward(machine, &s.op, &s.params, x, &dy, ulps)
}

fn gated_forward<A: Gated + Registered, T: Element>(
    machine: Machine<'_>,
    order: Order,
    s: &Sample<A>,
    x: &[T],
    ulps: f64,
) -> Report {
    let v = inputs::cycle::<T>(&VALUES, 0, x.len());
    check::gated_forward(machine, &s.op, order, &s.params, [x, &v], ulps)
}

fn gated_backward<A: Gated + Registered, T: Element>(
    machine: Machine<'_>,
    order: Order,
    s: &Sample<A>,
    x: &[T],
    ulps: f64,
) -> Report {
    let v = inputs::cycle::<T>(&VALUES, 0, x.len());
    let dy = inputs::cycle::<T>(&GRADIENTS, 0, x.len());
    check::gated_backward(machine, &s.op, order, &s.params, [x, &v, &dy], ulps)
}

impl<V: CaseVisitor> Visitor for Cases<'_, V> {
    fn visit<A: Registered>(&mut self) {
        self.plain::<A, f32>();
        self.plain::<A, f16>();
        self.plain::<A, bf16>();
    }

    fn visit_gated<A: Gated + Registered>(&mut self) {
        self.gated::<A, f32>();
        self.gated::<A, f16>();
        self.gated::<A, bf16>();
    }
}
