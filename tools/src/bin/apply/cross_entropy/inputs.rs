//! The tensors that are read from the file.

use std::ops::Range;

use safetensors::tensor::TensorView;
use xact::{CrossEntropy, Goldfish, Rows, Shard};

use super::super::goldfish::{Dropping, Options, widened};
use super::super::tensors::Tensors;
use super::Arguments;

/// The arguments that belong to the rows of logits, `[n, cols]`.
pub struct Inputs {
    pub op: CrossEntropy,
    pub n: usize,
    pub cols: usize,
    pub classes: usize,
    /// The number of ranks among which the classes are divided.
    pub shards: Option<usize>,
    pub weights: Option<Vec<f64>>,
    pub goldfish: Option<Dropping<i64>>,
    /// The divisor of the mean, if it replaces the op's normalizer.
    pub divide_by: Option<f64>,
    pub with_argmax: bool,
    /// For a backward, the upstream gradients.
    pub is_backward: bool,
    pub dloss: Option<Vec<f64>>,
}

/// Columns of the logits: all, or those of a rank.
pub struct Part {
    /// The op with the number of classes of this part.
    pub op: CrossEntropy,
    pub rows: Rows,
    pub shard: Option<Shard>,
}

impl Inputs {
    pub fn read(
        op: CrossEntropy,
        arguments: &Arguments,
        tensors: &Tensors<'_>,
        logits: &TensorView<'_>,
        goldfish: Option<Goldfish>,
    ) -> Result<Inputs, String> {
        let &[n, cols] = logits.shape() else {
            return Err(format!("logits is {:?}; it must be [N, V]", logits.shape()));
        };
        if cols == 0 && n > 0 {
            return Err(format!(
                "logits is [{n}, 0]; there must be at least one column, of one class"
            ));
        }
        let classes = match op.vocab {
            Some(vocab) if n > 0 && vocab > cols as u64 => {
                return Err(format!(
                    "--vocab: a row of logits has {cols} elements, {vocab} are needed"
                ));
            }
            Some(vocab) => vocab.min(cols as u64) as usize,
            None => cols,
        };
        let shards = arguments.shards.map(usize::from);
        if let Some(shards) = shards.filter(|&shards| n > 0 && shards > classes) {
            return Err(format!(
                "--shards is {shards}, but there are {classes} classes, and each rank must have one"
            ));
        }
        let labels = tensors.get("labels")?;
        let weights = tensors.floats("weights", logits.dtype())?;
        let is_backward = arguments.task.is_backward();
        let dloss = match is_backward {
            true => tensors.floats("dloss", logits.dtype())?,
            false => None,
        };
        let lengths = [
            ("labels", Some(labels.shape().iter().product())),
            ("weights", weights.as_ref().map(Vec::len)),
            // A single number is for all rows.
            (
                "dloss",
                dloss.as_ref().map(Vec::len).filter(|&len| len != 1),
            ),
        ];
        for (name, len) in lengths {
            if let Some(len) = len.filter(|&len| len != n) {
                return Err(format!(
                    "{name} has {len} elements, but logits has {n} rows"
                ));
            }
        }
        Ok(Inputs {
            op,
            n,
            cols,
            classes,
            shards,
            weights,
            goldfish: goldfish
                .map(|goldfish| dropping(goldfish, &arguments.numbers, tensors, n))
                .transpose()?,
            divide_by: None,
            with_argmax: false,
            is_backward,
            dloss,
        })
    }

    /// The columns of each rank; all columns if there are no ranks.
    pub fn parts(&self) -> Vec<Part> {
        let part = |columns: Range<usize>, shard| {
            let rows = Rows::new(self.n, columns.len()).pitch(self.cols);
            Part {
                op: match shard {
                    Some(_) => self.op.vocab(columns.len() as u64),
                    None => self.op,
                },
                rows: rows.offset(columns.start),
                shard,
            }
        };
        let Some(shards) = self.shards else {
            return vec![part(0..self.cols, None)];
        };
        let start = |rank| rank * self.classes / shards;
        let of_rank = |rank| part(start(rank)..start(rank + 1), Some(self.shard(start(rank))));
        (0..shards).map(of_rank).collect()
    }

    /// The shard of a rank whose columns start at this class.
    pub fn shard(&self, first_class: usize) -> Shard {
        Shard::new(first_class as u64, self.classes as u64)
    }

    /// The weights as the backends take them.
    pub fn weights_f32(&self) -> Option<Vec<f32>> {
        self.weights.as_deref().map(narrow)
    }

    /// dloss as the backends take it.
    pub fn dloss_f32(&self) -> Option<Vec<f32>> {
        self.dloss.as_deref().map(narrow)
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

fn dropping(
    goldfish: Goldfish,
    options: &Options,
    tensors: &Tensors<'_>,
    n: usize,
) -> Result<Dropping<i64>, String> {
    let view = tensors.get("hash_ids")?;
    let (ids, shape) = (widened("hash_ids", &view)?, view.shape());
    if ids.len() != n {
        return Err(format!(
            "hash_ids is {shape:?}, but logits has {n} rows, one for each id"
        ));
    }
    let halo = tensors.find("halo").map(|halo| widened("halo", &halo));
    let halo = halo.transpose()?.unwrap_or_default();
    Dropping::read(goldfish, options, tensors, ids, shape, halo)
}
