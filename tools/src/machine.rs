//! The backend that runs an activation: a CUDA device, or the CPU backend.

use xact::activation::Registered;
use xact::{Element, Gated, Order, Result, cpu};

use super::choose::Gpu;
use super::run::{self, How};

/// A backend.
#[derive(Clone, Copy)]
pub enum Machine<'a> {
    /// A CUDA device.
    Gpu(&'a Gpu),
    /// The CPU backend.
    Cpu,
}

impl<'a> From<&'a Gpu> for Machine<'a> {
    fn from(gpu: &'a Gpu) -> Self {
        Machine::Gpu(gpu)
    }
}

/// The name of the CPU backend in reports.
pub fn cpu_name() -> String {
    let set = cpu::InstructionSet::current().name();
    format!("the CPU backend, {set}")
}

fn nan<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// Calls of every form and direction on tensors without gaps.
impl Machine<'_> {
    /// Returns y.
    pub fn forward<A: Registered, T: Element>(
        self,
        op: &A,
        params: &[f32],
        x: &[T],
    ) -> Result<Vec<T>> {
        if let Machine::Gpu(gpu) = self {
            return run::forward(gpu, op, params, x, &How::default());
        }
        let mut y = nan(x.len());
        cpu::forward(op, x, params, &mut y).run()?;
        Ok(y)
    }

    /// Returns dx, and the gradients of the parameters.
    pub fn backward<A: Registered, T: Element>(
        self,
        op: &A,
        params: &[f32],
        x: &[T],
        dy: &[T],
    ) -> Result<(Vec<T>, Vec<f32>)> {
        if let Machine::Gpu(gpu) = self {
            return run::backward(gpu, op, params, x, dy, &How::default());
        }
        let (mut dx, mut dparams) = (nan(x.len()), nan(params.len()));
        let call = cpu::backward(op, x, dy, params, &mut dx);
        call.gradients(&mut dparams).run()?;
        Ok((dx, dparams))
    }

    /// Returns y for x and v.
    pub fn gated_forward<A: Gated + Registered, T: Element>(
        self,
        op: &A,
        order: Order,
        params: &[f32],
        [x, v]: [&[T]; 2],
    ) -> Result<Vec<T>> {
        if let Machine::Gpu(gpu) = self {
            return run::gated_forward(gpu, op, order, params, [x, v], &How::default());
        }
        let mut y = nan(x.len());
        cpu::gated_forward(op, order, (x, v), params, &mut y).run()?;
        Ok(y)
    }

    /// Returns dx and dv, and the gradients of the parameters, for x, v and dy.
    pub fn gated_backward<A: Gated + Registered, T: Element>(
        self,
        op: &A,
        order: Order,
        params: &[f32],
        [x, v, dy]: [&[T]; 3],
    ) -> Result<([Vec<T>; 2], Vec<f32>)> {
        if let Machine::Gpu(gpu) = self {
            return run::gated_backward(gpu, op, order, params, [x, v, dy], &How::default());
        }
        let (mut dx, mut dv, mut dparams) = (nan(x.len()), nan(x.len()), nan(params.len()));
        let call = cpu::gated_backward(op, order, (x, v), dy, params, (&mut dx, &mut dv));
        call.gradients(&mut dparams).run()?;
        Ok(([dx, dv], dparams))
    }
}
