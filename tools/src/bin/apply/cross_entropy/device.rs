//! The loss on a device.

use xact::cuda::cross_entropy::{Divisor, backward, finish, forward, partial};
use xact::loss::cross_entropy::Label;
use xact::{CrossEntropySummary, Element, Queue, Result};

use super::super::machine::Buffer;
use super::inputs::Inputs;
use super::results::{Results, Summary, widen};

impl Inputs {
    /// The results, and the gradient of a backward.
    pub fn on_device<T: Element, L: Label>(
        &self,
        queue: &mut Queue,
        logits: &[T],
        labels: &[L],
    ) -> Result<(Results, Vec<T>)> {
        let n = self.n;
        let (elements, labels) = (logits.len(), Buffer::upload(queue, labels)?);
        let logits = Buffer::upload(queue, logits)?;
        let upload = |values: Option<Vec<f32>>| {
            (values.map(|values| Buffer::upload(queue, &values))).transpose()
        };
        let (weights, dloss) = (upload(self.weights_f32())?, upload(self.dloss_f32())?);
        let normalizer = upload(self.divide_by.map(|n| vec![n as f32]))?;
        let goldfish = (self.goldfish.as_ref())
            .map(|goldfish| goldfish.upload(queue))
            .transpose()?;
        let mut loss = Buffer::zeros(queue, n)?;
        let mut z_loss = Buffer::zeros(queue, n)?;
        let mut lse = Buffer::zeros(queue, n)?;
        let mut argmax = Buffer::upload(queue, &vec![-1; n])?;
        let mut summary = Buffer::<CrossEntropySummary>::zeros(queue, 1)?;
        // This is a macro, because each call has another type.
        macro_rules! set_rows {
            ($call:expr) => {{
                let mut call = $call;
                if let Some(weights) = &weights {
                    call = call.weights(weights.input());
                }
                if let Some(goldfish) = &goldfish {
                    call = call.goldfish(goldfish.strategy(), goldfish.tokens());
                }
                call
            }};
        }
        macro_rules! launch_for_outputs {
            ($call:expr) => {{
                let mut call = set_rows!($call)
                    .loss(loss.output())
                    .z_loss(z_loss.output())
                    .lse(lse.output());
                if self.with_argmax {
                    call = call.argmax(argmax.output());
                }
                if let Some(normalizer) = &normalizer {
                    call = call.normalizer(normalizer.input());
                }
                queue.reserve(call.workspace_bytes()?)?;
                call.launch(queue)?;
            }};
        }
        let bytes = self.op.saved_bytes(n as u64) as usize;
        let (parts, mut gathered) = (self.parts(), Vec::new());
        for part in &parts {
            let Some(shard) = part.shard else { continue };
            let mut of_rank = Buffer::zeros(queue, bytes)?;
            let input = logits.input_rows(part.rows);
            let call = partial(&part.op, input, labels.input(), shard, of_rank.output());
            let mut call = set_rows!(call);
            if self.with_argmax {
                call = call.with_argmax();
            }
            queue.reserve(call.workspace_bytes()?)?;
            call.launch(queue)?;
            gathered.extend(of_rank.download(queue)?);
        }
        let saved = if self.shards.is_some() {
            let saved = Buffer::upload(queue, &gathered)?;
            let (labels, shard) = (labels.input(), self.shard(0));
            launch_for_outputs!(finish(
                &self.op,
                labels,
                shard,
                saved.input(),
                summary.output()
            ));
            saved
        } else {
            let mut saved = Buffer::zeros(queue, bytes)?;
            let (input, labels) = (logits.input_rows(parts[0].rows), labels.input());
            let call = forward(&self.op, input, labels, summary.output());
            launch_for_outputs!(call.saved(saved.output()));
            saved
        };
        let mut dlogits = Buffer::zeros(queue, if self.is_backward { elements } else { 0 })?;
        for part in parts.iter().filter(|_| self.is_backward) {
            let (input, divisor) = (
                logits.input_rows(part.rows),
                Divisor::summary(summary.input()),
            );
            let output = dlogits.output_rows(part.rows);
            let (labels, saved) = (labels.input(), saved.input());
            let mut call = set_rows!(backward(&part.op, input, labels, saved, divisor, output));
            if let Some(shard) = part.shard {
                call = call.shard(shard);
            }
            if let Some(dloss) = &dloss {
                call = call.dloss(dloss.input());
            }
            call.launch(queue)?;
        }
        let summary = summary.download(queue)?[0];
        let results = Results {
            loss: widen(&loss.download(queue)?),
            z_loss: widen(&z_loss.download(queue)?),
            lse: widen(&lse.download(queue)?),
            argmax: argmax.download(queue)?,
            summary: Summary::of(&summary, self.with_argmax, self.op.dropped_loss),
        };
        Ok((results, dlogits.download(queue)?))
    }
}
