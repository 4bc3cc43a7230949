//! Calls an op on a device.

use xact::cuda::{self, Gradients, Params};
use xact::{Element, Queue, Result};

use super::super::machine::Buffer;
use super::call::{Call, Gate, Results};

impl Call {
    pub fn on_device<T: Element>(
        &self,
        queue: &mut Queue,
        x: &[T],
        dy: Option<&[T]>,
    ) -> Result<Results<T>> {
        let scalars = |values: &[f32]| -> Result<Vec<Buffer<f32>>> {
            values
                .iter()
                .map(|&value| Buffer::upload(queue, &[value]))
                .collect()
        };
        let params = scalars(&self.params_f32())?;
        let mut dparams = scalars(&vec![0.0; params.len()])?;
        let mut out = Buffer::<T>::zeros(queue, self.len(x, dy))?;
        let x = Buffer::upload(queue, x)?;
        let dy = dy.map(|dy| Buffer::upload(queue, dy)).transpose()?;
        let list = params.iter().filter_map(Buffer::slice);
        let gradients = dparams.iter_mut().filter_map(Buffer::slice_mut);
        match (self.gated(), &dy) {
            (None, None) => {
                let params = Params::list(list);
                cuda::forward(&self.op, x.input(), params, out.output()).launch(queue)?;
            }
            (None, Some(dy)) => {
                let params = Params::list(list);
                let call = cuda::backward(&self.op, x.input(), dy.input(), params, out.output())
                    .gradients(Gradients::list(gradients));
                queue.reserve(call.workspace_bytes()?)?;
                call.launch(queue)?;
            }
            (Some((op, gate)), None) => {
                let (params, xv) = (Params::list(list), halves(&x, gate)?);
                cuda::gated_forward(op, gate.order, xv, params, out.output()).launch(queue)?;
            }
            (Some((op, gate)), Some(dy)) => {
                let (params, xv) = (Params::list(list), halves(&x, gate)?);
                let dxv = halves_mut(&mut out, gate)?;
                let call = cuda::gated_backward(op, gate.order, xv, dy.input(), params, dxv)
                    .gradients(Gradients::list(gradients));
                queue.reserve(call.workspace_bytes()?)?;
                call.launch(queue)?;
            }
        }
        let mut sums = Vec::new();
        for gradient in &dparams {
            sums.extend(gradient.download(queue)?.into_iter().map(f64::from));
        }
        Ok(Results {
            out: out.download(queue)?,
            dparams: sums,
        })
    }
}

/// Gate and value of x on the device.
fn halves<T: Element>(x: &Buffer<T>, gate: Gate) -> Result<cuda::Pair<'_, T>> {
    match x.slice() {
        Some(x) => cuda::Pair::halves(x, gate.rows, gate.halves),
        None => Ok(cuda::Pair::new(x.input(), x.input())),
    }
}

fn halves_mut<T: Element>(dx: &mut Buffer<T>, gate: Gate) -> Result<cuda::PairMut<'_, T>> {
    match dx.slice_mut() {
        Some(dx) => cuda::PairMut::halves(dx, gate.rows, gate.halves),
        None => Ok(cuda::PairMut::new(
            cuda::Output::empty(),
            cuda::Output::empty(),
        )),
    }
}
