//! What the commands run: every op, form, direction, type and sample.

use half::{bf16, f16};
use xact::activation::{Sample, Visitor};
use xact::reference::Report;
use xact::{Activation, Element, Gated, Order};

use super::check;
use super::choose::Gpu;
use super::inputs::{self, GRADIENTS, Random, VALUES};

/// A form and direction of `A` in `T` with one of its samples.
pub struct Case<A, T> {
    /// `forward`, `gated1 backward` and so on.
    pub direction: &'static str,
    pub sample: Sample<A>,
    check: Check<A, T>,
}

type Check<A, T> = Box<dyn Fn(&Gpu, &Sample<A>, &[T], f64) -> Report>;

impl<A: Activation, T: Element> Case<A, T> {
    /// Runs it on `x`, and compares with the reference.
    pub fn check(&self, gpu: &Gpu, x: &[T], ulps: f64) -> Report {
        (self.check)(gpu, &self.sample, x, ulps)
    }
}

/// Something to do with every case.
pub trait CaseVisitor {
    fn case<A: Activation, T: Element>(&mut self, case: Case<A, T>);
}

/// Calls `visitor` with every case, in the order of the registry.
pub fn for_each(visitor: &mut impl CaseVisitor) {
    xact::activation::for_each(&mut Cases(visitor));
}

struct Cases<'a, V>(&'a mut V);

impl<V: CaseVisitor> Cases<'_, V> {
    fn plain<A: Activation, T: Element>(&mut self) {
        self.add::<A, T>("forward", |gpu, s, x, ulps| {
            check::forward(gpu, &s.op, &s.params, x, ulps)
        });
        self.add::<A, T>("backward", |gpu, s, x, ulps| {
            let dy = Random(1).normal::<T>(x.len(), 1.0);
            check::backward(gpu, &s.op, &s.params, x, &dy, ulps)
        });
    }

    fn gated<A: Gated, T: Element>(&mut self) {
        for order in Order::ALL {
            let [forward, backward] = match order {
                Order::First => ["gated1 forward", "gated1 backward"],
                Order::Second => ["gated2 forward", "gated2 backward"],
            };
            self.add::<A, T>(forward, move |gpu, s, x, ulps| {
                let v = inputs::cycle::<T>(&VALUES, 0, x.len());
                check::gated_forward(gpu, &s.op, order, &s.params, [x, &v], ulps)
            });
            self.add::<A, T>(backward, move |gpu, s, x, ulps| {
                let v = inputs::cycle::<T>(&VALUES, 0, x.len());
                let dy = inputs::cycle::<T>(&GRADIENTS, 0, x.len());
                check::gated_backward(gpu, &s.op, order, &s.params, [x, &v, &dy], ulps)
            });
        }
    }

    /// A case for each sample.
    fn add<A: Activation, T: Element>(
        &mut self,
        direction: &'static str,
        check: impl Fn(&Gpu, &Sample<A>, &[T], f64) -> Report + Copy + 'static,
    ) {
        for sample in A::samples() {
            self.0.case(Case {
                direction,
                sample,
                check: Box::new(check),
            });
        }
    }
}

impl<V: CaseVisitor> Visitor for Cases<'_, V> {
    fn visit<A: Activation>(&mut self) {
        self.plain::<A, f32>();
        self.plain::<A, f16>();
        self.plain::<A, bf16>();
    }

    fn visit_gated<A: Gated>(&mut self) {
        self.gated::<A, f32>();
        self.gated::<A, f16>();
        self.gated::<A, bf16>();
    }
}
