//! Calls an op on the CPU backend.

use xact::{Element, Result, cpu};

use super::call::{Call, Results};

impl Call {
    pub fn on_cpu<T: Element>(&self, x: &[T], dy: Option<&[T]>) -> Result<Results<T>> {
        let params = self.params_f32();
        let mut out = vec![T::from_f64(0.0); self.len(x, dy)];
        let mut dparams = vec![0.0; params.len()];
        match (self.gated(), dy) {
            (None, None) => cpu::forward(&self.op, x, &params, &mut out).run()?,
            (None, Some(dy)) => cpu::backward(&self.op, x, dy, &params, &mut out)
                .gradients(&mut dparams)
                .run()?,
            (Some((op, gate)), None) => {
                let xv = cpu::Pair::halves(x, gate.rows, gate.halves)?;
                cpu::gated_forward(op, gate.order, xv, &params, &mut out).run()?;
            }
            (Some((op, gate)), Some(dy)) => {
                let xv = cpu::Pair::halves(x, gate.rows, gate.halves)?;
                let dxv = cpu::PairMut::halves(&mut out, gate.rows, gate.halves)?;
                cpu::gated_backward(op, gate.order, xv, dy, &params, dxv)
                    .gradients(&mut dparams)
                    .run()?;
            }
        }
        Ok(Results {
            out,
            dparams: dparams.into_iter().map(f64::from).collect(),
        })
    }
}
