//! A call of an op on tensors, independent of the backend.

use safetensors::tensor::{Dtype, TensorView};
use xact::{Activation, AnyActivation, Gated, Halves, Order, Signature};

use super::super::machine::Machine;
use super::super::tensors::{Output, Tensors, each_element, elements, numbers};

/// The gated form of a call.
#[derive(Clone, Copy)]
pub struct Gate {
    pub order: Order,
    pub halves: Halves,
    pub rows: usize,
    /// The number of elements of a half of a row.
    pub cols: usize,
}

/// A call of an op on tensors.
pub struct Call {
    pub op: AnyActivation,
    pub gate: Option<Gate>,
    pub params: Vec<f64>,
}

/// The results: y or dx, and the gradients of the parameters.
pub struct Results<T> {
    pub out: Vec<T>,
    pub dparams: Vec<f64>,
}

impl Call {
    /// The shape of y for x of this shape.
    fn shape_of_y(&self, x: &[usize]) -> Vec<usize> {
        let mut shape = x.to_vec();
        if let (Some(gate), Some(width)) = (self.gate, shape.last_mut()) {
            *width = gate.cols;
        }
        shape
    }

    /// dy, which must have the type of x and the shape of y.
    pub fn upstream<'a>(
        &self,
        tensors: &Tensors<'a>,
        x: &TensorView<'_>,
    ) -> Result<TensorView<'a>, String> {
        let (dy, shape) = (tensors.get("dy")?, self.shape_of_y(x.shape()));
        if (dy.dtype(), dy.shape()) != (x.dtype(), &shape[..]) {
            return Err(format!(
                "dy is {:?} {:?}, but x is {:?} {:?}; dy must be {:?} {shape:?}",
                dy.dtype(),
                dy.shape(),
                x.dtype(),
                x.shape(),
                x.dtype(),
            ));
        }
        Ok(dy)
    }

    /// The tensors to write: y, or dx and the gradients of the parameters.
    pub fn outputs(
        &self,
        machine: Machine,
        tensors: &Tensors<'_>,
        x: &TensorView<'_>,
        dy: Option<&TensorView<'_>>,
    ) -> Result<Vec<Output>, String> {
        let (name, shape) = match dy {
            None => ("y", self.shape_of_y(x.shape())),
            Some(_) => ("dx", x.shape().to_vec()),
        };
        let (out, dparams) = match machine {
            Machine::Reference => {
                let results = self.reference(&numbers(x), dy.map(numbers).as_deref());
                let results = results.map_err(|e| e.to_string())?;
                let out = Output::rounded(name, x.dtype(), &shape, &results.out);
                (out, results.dparams)
            }
            Machine::Cpu => each_element!(x.dtype(), T => {
                let dy = dy.map(elements::<T>);
                let results = self.on_cpu(&elements::<T>(x), dy.as_deref());
                let results = results.map_err(|e| e.to_string())?;
                (Output::new(name, x.dtype(), &shape, &results.out), results.dparams)
            }),
            Machine::Device(mut queue) => each_element!(x.dtype(), T => {
                let dy = dy.map(elements::<T>);
                let results = self.on_device(&mut queue, &elements::<T>(x), dy.as_deref());
                let results = results.map_err(|e| e.to_string())?;
                (Output::new(name, x.dtype(), &shape, &results.out), results.dparams)
            }),
        };
        let mut outputs = vec![out];
        if dy.is_some() {
            let of = match x.dtype() {
                Dtype::F64 => Dtype::F64,
                _ => Dtype::F32,
            };
            let Signature {
                params, gradients, ..
            } = self.op.signature();
            for ((name, param), value) in gradients.iter().zip(*params).zip(dparams) {
                let param = tensors.get(param)?;
                outputs.push(Output::rounded(name, of, param.shape(), &[value]));
            }
        }
        Ok(outputs)
    }

    /// The gated form of the op, if the call is gated.
    pub fn gated(&self) -> Option<(&dyn Gated, Gate)> {
        let gate = self.gate?;
        Some((self.op.as_gated().expect("checked before"), gate))
    }

    /// The parameters as f32, which is exact, because they are f32 or 16-bit.
    pub fn params_f32(&self) -> Vec<f32> {
        self.params.iter().map(|&p| p as f32).collect()
    }

    /// The number of elements of y or dx.
    pub fn len<T>(&self, x: &[T], dy: Option<&[T]>) -> usize {
        if dy.is_none() && self.gate.is_some() {
            return x.len() / 2;
        }
        x.len()
    }
}
