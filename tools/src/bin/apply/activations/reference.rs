//! Calls an op of the f64 reference.

use xact::{Activation, Gated, Halves, Result, reference};

use super::call::{Call, Gate, Results};

impl Call {
    /// The results in f64, computed from the definition.
    pub fn reference(&self, x: &[f64], dy: Option<&[f64]>) -> Result<Results<f64>> {
        if let Some((op, gate)) = self.gated() {
            return Ok(self.gated_reference(op, gate, x, dy));
        }
        let (out, dparams) = match dy {
            None => (reference::forward(&self.op, &self.params, x), Vec::new()),
            Some(dy) => reference::backward(&self.op, &self.params, x, dy)?,
        };
        Ok(Results { out, dparams })
    }

    fn gated_reference(
        &self,
        op: &dyn Gated,
        gate: Gate,
        x: &[f64],
        dy: Option<&[f64]>,
    ) -> Results<f64> {
        let pairs = (0..gate.rows * gate.cols).map(|i| {
            let first = i + i / gate.cols * gate.cols;
            let [x_at, v_at] = match gate.halves {
                Halves::GateFirst => [first, first + gate.cols],
                Halves::ValueFirst => [first + gate.cols, first],
            };
            let point = op.evaluate_order(gate.order, &self.params, x[x_at]);
            (point, x[v_at], [x_at, v_at])
        });
        let Some(dy) = dy else {
            return Results {
                out: pairs.map(|(point, v, _)| point.y.value * v).collect(),
                dparams: Vec::new(),
            };
        };
        let (mut dxv, mut sums) = (vec![0.0; x.len()], vec![0.0; self.params.len()]);
        for ((point, v, [x_at, v_at]), dy) in pairs.zip(dy) {
            dxv[x_at] = dy * v * point.slope.value;
            dxv[v_at] = dy * point.y.value;
            for (sum, term) in sums.iter_mut().zip(point.dparams) {
                *sum += dy * v * term;
            }
        }
        let chain = self.op.chain(&self.params);
        Results {
            out: dxv,
            dparams: (sums.iter().zip(chain))
                .map(|(sum, chain)| sum * chain)
                .collect(),
        }
    }
}
