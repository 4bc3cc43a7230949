//! What runs an activation: a CUDA device, or the CPU backend.

use xact::activation::Registered;
use xact::{Element, Gated, Order, Result, cpu};

use super::choose::Gpu;
use super::run::{self, How};

/// Results of a backward: the gradients of the inputs, and those of the parameters.
pub type Gradients<G> = (G, Vec<f32>);

/// Dense calls of every form and direction.
pub trait Runs {
    /// y.
    fn forward<A: Registered, T: Element>(&self, op: &A, params: &[f32], x: &[T])
    -> Result<Vec<T>>;

    /// dx.
    fn backward<A: Registered, T: Element>(
        &self,
        op: &A,
        params: &[f32],
        x: &[T],
        dy: &[T],
    ) -> Result<Gradients<Vec<T>>>;

    /// y, for x and v.
    fn gated_forward<A: Gated + Registered, T: Element>(
        &self,
        op: &A,
        order: Order,
        params: &[f32],
        inputs: [&[T]; 2],
    ) -> Result<Vec<T>>;

    /// dx and dv, for x, v and dy.
    fn gated_backward<A: Gated + Registered, T: Element>(
        &self,
        op: &A,
        order: Order,
        params: &[f32],
        inputs: [&[T]; 3],
    ) -> Result<Gradients<[Vec<T>; 2]>>;
}

impl Runs for Gpu {
    fn forward<A: Registered, T: Element>(
        &self,
        op: &A,
        params: &[f32],
        x: &[T],
    ) -> Result<Vec<T>> {
        run::forward(self, op, params, x, &How::default())
    }

    fn backward<A: Registered, T: Element>(
        &self,
        op: &A,
        params: &[f32],
        x: &[T],
        dy: &[T],
    ) -> Result<Gradients<Vec<T>>> {
        run::backward(self, op, params, x, dy, &How::default())
    }

    fn gated_forward<A: Gated + Registered, T: Element>(
        &self,
        op: &A,
        order: Order,
        params: &[f32],
        inputs: [&[T]; 2],
    ) -> Result<Vec<T>> {
        run::gated_forward(self, op, order, params, inputs, &How::default())
    }

    fn gated_backward<A: Gated + Registered, T: Element>(
        &self,
        op: &A,
        order: Order,
        params: &[f32],
        inputs: [&[T]; 3],
    ) -> Result<Gradients<[Vec<T>; 2]>> {
        run::gated_backward(self, op, order, params, inputs, &How::default())
    }
}

/// The CPU backend.
#[derive(Clone, Copy)]
pub struct Cpu;

impl Cpu {
    /// What reports call it.
    pub fn name() -> String {
        let set = cpu::InstructionSet::current().name();
        format!("the CPU backend, {set}")
    }
}

fn nan<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

impl Runs for Cpu {
    fn forward<A: Registered, T: Element>(
        &self,
        op: &A,
        params: &[f32],
        x: &[T],
    ) -> Result<Vec<T>> {
        let mut y = nan(x.len());
        cpu::forward(op, x, params, &mut y).run()?;
        Ok(y)
    }

    fn backward<A: Registered, T: Element>(
        &self,
        op: &A,
        params: &[f32],
        x: &[T],
        dy: &[T],
    ) -> Result<Gradients<Vec<T>>> {
        let (mut dx, mut dparams) = (nan(x.len()), nan(params.len()));
        let call = cpu::backward(op, x, dy, params, &mut dx);
        call.gradients(&mut dparams).run()?;
        Ok((dx, dparams))
    }

    fn gated_forward<A: Gated + Registered, T: Element>(
        &self,
        op: &A,
        order: Order,
        params: &[f32],
        [x, v]: [&[T]; 2],
    ) -> Result<Vec<T>> {
        let mut y = nan(x.len());
        cpu::gated_forward(op, order, (x, v), params, &mut y).run()?;
        Ok(y)
    }

    fn gated_backward<A: Gated + Registered, T: Element>(
        &self,
        op: &A,
        order: Order,
        params: &[f32],
        [x, v, dy]: [&[T]; 3],
    ) -> Result<Gradients<[Vec<T>; 2]>> {
        let (mut dx, mut dv, mut dparams) = (nan(x.len()), nan(x.len()), nan(params.len()));
        let call = cpu::gated_backward(op, order, (x, v), dy, params, (&mut dx, &mut dv));
        call.gradients(&mut dparams).run()?;
        Ok(([dx, dv], dparams))
    }
}
