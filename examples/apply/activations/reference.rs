//! An op in f64.

use xact::{Activation, Halves};

use super::call::{Call, Results};

impl Call {
    /// In f64, from the definition.
    pub fn reference(&self, x: &[f64], dy: Option<&[f64]>) -> Results<f64> {
        let mut sums = vec![0.0; self.params.len()];
        let mut add = |upstream: f64, terms: &[f64]| {
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum += upstream * term;
            }
        };
        let out = match self.gated() {
            None => {
                let points = x.iter().map(|&x| self.op.evaluate(&self.params, x));
                match dy {
                    None => points.map(|point| point.y.value).collect(),
                    Some(dy) => (points.zip(dy))
                        .map(|(point, dy)| {
                            add(*dy, &point.dparams);
                            dy * point.slope.value
                        })
                        .collect(),
                }
            }
            Some((op, gate)) => {
                let pairs = (0..gate.rows * gate.cols).map(|i| {
                    let (row, col) = (i / gate.cols, i % gate.cols);
                    let first = 2 * gate.cols * row + col;
                    let [x_at, v_at] = match gate.halves {
                        Halves::GateFirst => [first, first + gate.cols],
                        Halves::ValueFirst => [first + gate.cols, first],
                    };
                    let point = op.evaluate_order(gate.order, &self.params, x[x_at]);
                    (point, x[v_at], [x_at, v_at])
                });
                match dy {
                    None => pairs.map(|(point, v, _)| point.y.value * v).collect(),
                    Some(dy) => {
                        let mut dxv = vec![0.0; x.len()];
                        for ((point, v, [x_at, v_at]), dy) in pairs.zip(dy) {
                            add(dy * v, &point.dparams);
                            dxv[x_at] = dy * v * point.slope.value;
                            dxv[v_at] = dy * point.y.value;
                        }
                        dxv
                    }
                }
            }
        };
        let chain = self.op.chain(&self.params);
        Results {
            out,
            dparams: sums
                .iter()
                .zip(chain)
                .map(|(sum, chain)| sum * chain)
                .collect(),
        }
    }
}
