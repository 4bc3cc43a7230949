//! The loss on the CPU backend.

use xact::cpu::cross_entropy::{backward, finish, forward, partial};
use xact::cpu::{Input, Output};
use xact::loss::cross_entropy::Label;
use xact::{Element, Result};

use super::inputs::Inputs;
use super::results::{Results, Summary, widen};

impl Inputs {
    /// The results, and the gradient of a backward.
    pub fn on_cpu<T: Element, L: Label>(
        &self,
        logits: &[T],
        labels: &[L],
    ) -> Result<(Results, Vec<T>)> {
        let n = self.n;
        let (weights, dloss) = (self.weights_f32(), self.dloss_f32());
        let [mut loss, mut z_loss, mut lse] = [(); 3].map(|()| vec![0.0; n]);
        let mut argmax = vec![-1; n];
        // This is a macro, because each call has another type.
        macro_rules! set_rows {
            ($call:expr) => {{
                let mut call = $call;
                if let Some(weights) = &weights {
                    call = call.weights(weights);
                }
                if let Some(goldfish) = &self.goldfish {
                    call = call.goldfish(goldfish.strategy(), goldfish.tokens());
                }
                call
            }};
        }
        macro_rules! set_outputs {
            ($call:expr) => {{
                let mut call = $call.loss(&mut loss).z_loss(&mut z_loss).lse(&mut lse);
                if self.with_argmax {
                    call = call.argmax(&mut argmax);
                }
                if let Some(normalizer) = self.divide_by {
                    call = call.normalizer(normalizer as f32);
                }
                call
            }};
        }
        let (parts, mut saved) = (self.parts(), Vec::new());
        for part in &parts {
            let Some(shard) = part.shard else { continue };
            let mut of_rank = vec![0; part.op.saved_bytes(n as u64) as usize];
            let input = Input::rows(logits, part.rows);
            let mut call = set_rows!(partial(&part.op, input, labels, shard, &mut of_rank));
            if self.with_argmax {
                call = call.with_argmax();
            }
            call.run()?;
            saved.extend(of_rank);
        }
        let summary = if self.shards.is_some() {
            let call = finish(&self.op, labels, self.shard(0), &saved);
            set_outputs!(set_rows!(call)).run()?
        } else {
            saved = vec![0; self.op.saved_bytes(n as u64) as usize];
            let input = Input::rows(logits, parts[0].rows);
            let call = forward(&self.op, input, labels).saved(&mut saved);
            set_outputs!(set_rows!(call)).run()?
        };
        let mut dlogits = Vec::new();
        if self.is_backward {
            dlogits = vec![T::from_f64(0.0); logits.len()];
            for part in &parts {
                let input = Input::rows(logits, part.rows);
                let output = Output::rows(&mut dlogits, part.rows);
                let divisor = summary.normalizer;
                let call = backward(&part.op, input, labels, &saved, divisor, output);
                let mut call = set_rows!(call);
                if let Some(shard) = part.shard {
                    call = call.shard(shard);
                }
                if let Some(dloss) = &dloss {
                    call = call.dloss(dloss);
                }
                call.run()?;
            }
        }
        let results = Results {
            loss: widen(&loss),
            z_loss: widen(&z_loss),
            lse: widen(&lse),
            argmax,
            summary: Summary::of(&summary, self.with_argmax, self.op.dropped_loss),
        };
        Ok((results, dlogits))
    }
}
