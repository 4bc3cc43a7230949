//! Cross-entropy of the logits and labels of a file.

use clap::ValueEnum;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xact::cpu::cross_entropy as on_cpu;
use xact::loss::cross_entropy::Fate;
use xact::loss::cross_entropy::device::{
    Backward, Divisor, Dloss, Forward, Goldfish as Decision, Outputs, Rows, workspace_bytes,
};
use xact::loss::goldfish::device::{DeviceLayout, DeviceTokens};
use xact::loss::goldfish::{Layout, Tokens};
use xact::{
    CrossEntropy, CrossEntropySummary, Element, Error, Goldfish, Normalizer, RowStats, Strategy,
    Workspace,
};

use super::goldfish::{list, upload, view};
use super::support::choose::Gpu;
use super::support::strategy::{Name, Numbers};
use super::{Direction, Machine, Output, Task, elements, finite, machine, output, tensor};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    pub task: Task,
    /// Rows with this label are masked
    #[arg(long, default_value_t = -100, allow_hyphen_values = true)]
    ignore_index: i64,
    /// This part of the target is spread evenly over all classes
    #[arg(long, default_value_t = 0.0, value_parser = finite)]
    label_smoothing: f32,
    /// Adds this much of lse² to the loss of each row
    #[arg(long, default_value_t = 0.0, value_parser = finite)]
    z_loss: f32,
    /// Logits pass through c·tanh(z/c)
    #[arg(long, value_parser = finite)]
    softcap: Option<f32>,
    /// Classes, if fewer than columns
    #[arg(long)]
    vocab: Option<u64>,
    /// What the losses of the rows become; the mean is over the weights of the rows that are not masked
    #[arg(long, value_enum, default_value = "mean")]
    reduction: Reduction,
    /// Drop labels by this strategy; reads hash_ids, and cu_seqlens and exempt if they are there
    #[arg(long, value_enum)]
    goldfish: Option<Name>,
    #[command(flatten)]
    numbers: Numbers,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Reduction {
    None,
    Mean,
    Sum,
}

/// The tensors of the file.
struct Inputs<T> {
    logits: Vec<T>,
    cols: usize,
    labels: Vec<i64>,
    weights: Option<Vec<f32>>,
    dloss: Option<Vec<f32>>,
    goldfish: Option<Dropping>,
}

/// What decides which rows are dropped.
struct Dropping {
    goldfish: Goldfish,
    hash_ids: Vec<i64>,
    /// Labels of a row of hash_ids.
    len: usize,
    cu_seqlens: Option<Vec<i32>>,
    exempt: Vec<i64>,
}

/// Losses and lse of the rows, what they are reduced to, and the gradients if they are asked for.
struct Results<T> {
    loss: Vec<f32>,
    lse: Vec<f32>,
    mean: f32,
    sum: f32,
    dlogits: Vec<T>,
}

pub fn apply(arguments: &Arguments, tensors: &SafeTensors<'_>) -> Result<Vec<Output>, String> {
    let logits = tensor(tensors, "logits")?;
    match logits.dtype() {
        Dtype::F32 => compute::<f32>(arguments, tensors, &logits),
        Dtype::F16 => compute::<f16>(arguments, tensors, &logits),
        Dtype::BF16 => compute::<bf16>(arguments, tensors, &logits),
        other => Err(format!("logits is {other:?}; it must be F32, F16 or BF16")),
    }
}

fn compute<T: Element>(
    arguments: &Arguments,
    tensors: &SafeTensors<'_>,
    view: &TensorView<'_>,
) -> Result<Vec<Output>, String> {
    let op = CrossEntropy {
        ignore_index: arguments.ignore_index,
        label_smoothing: arguments.label_smoothing,
        z_loss: arguments.z_loss,
        softcap: arguments.softcap,
        vocab: arguments.vocab,
        normalizer: match arguments.reduction {
            Reduction::Mean => Normalizer::Weight,
            Reduction::None | Reduction::Sum => Normalizer::None,
        },
        ..CrossEntropy::default()
    };
    let strategy = arguments.goldfish.map(|name| arguments.numbers.of(name));
    let inputs = Inputs::<T>::read(tensors, view, strategy)?;
    let backward = arguments.task.direction == Direction::Backward;
    let results = match machine(&arguments.task.files)? {
        Machine::Reference => inputs.reference(&op),
        Machine::Cpu => inputs.on_cpu(&op, backward),
        Machine::Gpu(gpu) => inputs.on_device(&op, &gpu, backward),
    };
    let results = results.map_err(|e| e.to_string())?;
    if backward {
        return Ok(vec![output("dlogits", view, &results.dlogits)]);
    }
    let n = inputs.labels.len();
    let (loss, shape) = match arguments.reduction {
        Reduction::None => (results.loss, vec![n]),
        Reduction::Mean => (vec![results.mean], vec![]),
        Reduction::Sum => (vec![results.sum], vec![]),
    };
    let of_f32 = |name, shape, values: &[f32]| Output {
        name,
        dtype: Dtype::F32,
        shape,
        bytes: bytemuck::cast_slice(values).to_vec(),
    };
    Ok(vec![
        of_f32("loss", shape, &loss),
        of_f32("lse", vec![n], &results.lse),
    ])
}

/// The integers of a tensor.
fn integers(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<i64>, String> {
    let view = tensor(tensors, name)?;
    match view.dtype() {
        Dtype::I64 => Ok(bytemuck::pod_collect_to_vec(view.data())),
        Dtype::I32 => {
            let values: Vec<i32> = bytemuck::pod_collect_to_vec(view.data());
            Ok(values.into_iter().map(i64::from).collect())
        }
        other => Err(format!("{name} is {other:?}; it must be I32 or I64")),
    }
}

impl<T: Element> Inputs<T> {
    fn read(
        tensors: &SafeTensors<'_>,
        view: &TensorView<'_>,
        strategy: Option<Strategy>,
    ) -> Result<Self, String> {
        let &[n, cols] = view.shape() else {
            return Err(format!("logits is {:?}; it must be [N, V]", view.shape()));
        };
        let labels = integers(tensors, "labels")?;
        let weights = list(tensors, "weights", Dtype::F32)?;
        let dloss: Option<Vec<f32>> = list(tensors, "dloss", Dtype::F32)?;
        let lengths = [
            ("labels", Some(labels.len())),
            ("weights", weights.as_ref().map(Vec::len)),
            ("dloss", dloss.as_ref().map(Vec::len)),
        ];
        for (name, len) in lengths {
            if len.is_some_and(|len| len != n) {
                return Err(format!(
                    "{name} has {} elements, but logits has {n} rows",
                    len.unwrap_or(0)
                ));
            }
        }
        Ok(Inputs {
            logits: elements(view),
            cols,
            labels,
            weights,
            dloss,
            goldfish: strategy
                .map(|strategy| Dropping::read(tensors, strategy, n))
                .transpose()?,
        })
    }

    fn reference(&self, op: &CrossEntropy) -> xact::Result<Results<T>> {
        op.check()?;
        let n = self.labels.len();
        let vocab = op.vocab.unwrap_or(self.cols as u64);
        if vocab > self.cols as u64 {
            return Err(Error::Length {
                what: "a row of logits",
                expected: vocab,
                got: self.cols as u64,
            });
        }
        let classes = vocab as usize;
        let dropped = match &self.goldfish {
            Some(goldfish) => goldfish.reference()?,
            None => vec![false; n],
        };
        let weight = |r: usize| self.weights.as_ref().map_or(1.0, |w| w[r]);
        let fates: Vec<_> = (0..n)
            .map(|r| op.fate(self.labels[r], weight(r), dropped[r], classes as u64))
            .collect();
        let counts = |&r: &usize| matches!(fates[r], Fate::Kept | Fate::Bad);
        let weights = (0..n).filter(counts).map(|r| f64::from(weight(r)));
        let normalizer = match op.normalizer {
            Normalizer::None => 1.0,
            _ => weights.sum(),
        };
        let mut results = Results {
            loss: vec![0.0; n],
            lse: vec![0.0; n],
            mean: 0.0,
            sum: 0.0,
            dlogits: vec![T::from_f64(0.0); self.logits.len()],
        };
        let mut sum = 0.0;
        for r in (0..n).filter(counts) {
            let gradient = &mut results.dlogits[r * self.cols..][..classes];
            if fates[r] == Fate::Bad {
                (results.loss[r], results.lse[r], sum) = (f32::NAN, f32::NAN, f64::NAN);
                gradient.fill(T::from_f64(f64::NAN));
                continue;
            }
            let dloss = self.dloss.as_ref().map_or(1.0, |d| f64::from(d[r]));
            let row = op.evaluate(
                &self.logits[r * self.cols..][..classes],
                self.labels[r] as usize,
                f64::from(weight(r)),
                dloss / normalizer,
            );
            (results.loss[r], results.lse[r]) = (row.loss as f32, row.lse as f32);
            sum += row.loss;
            for (to, d) in gradient.iter_mut().zip(row.dlogits) {
                *to = T::from_f64(d);
            }
        }
        results.sum = sum as f32;
        results.mean = if fates.iter().any(|f| matches!(f, Fate::Kept | Fate::Bad)) {
            (sum / normalizer) as f32
        } else {
            0.0
        };
        Ok(results)
    }

    fn on_cpu(&self, op: &CrossEntropy, backward: bool) -> xact::Result<Results<T>> {
        let n = self.labels.len();
        let (mut loss, mut lse) = (vec![0.0; n], vec![0.0; n]);
        let mut stats = vec![RowStats::default(); n];
        let goldfish = self.goldfish.as_ref().map(|dropping| on_cpu::Goldfish {
            strategy: &dropping.goldfish,
            tokens: dropping.tokens(),
        });
        let rows = on_cpu::Rows {
            weights: self.weights.as_deref(),
            goldfish,
            ..on_cpu::Rows::new(&self.labels)
        };
        let logits = on_cpu::Matrix::dense(&self.logits, self.cols);
        let call = on_cpu::Forward {
            logits,
            rows,
            outputs: on_cpu::Outputs {
                loss: Some(&mut loss),
                lse: Some(&mut lse),
                stats: Some(&mut stats),
                ..on_cpu::Outputs::default()
            },
            normalizer: None,
        };
        let summary = on_cpu::forward(op, call)?;
        let mut dlogits = Vec::new();
        if backward {
            dlogits = vec![T::from_f64(0.0); self.logits.len()];
            let call = on_cpu::Backward {
                logits,
                rows,
                stats: &stats,
                dlogits: on_cpu::MatrixMut::dense(&mut dlogits, self.cols),
                divisor: summary.normalizer,
                dloss: (self.dloss.as_ref()).map(|values| on_cpu::Dloss { values, stride: 1 }),
            };
            on_cpu::backward(op, call)?;
        }
        self.tell(&summary);
        Ok(Results {
            loss,
            lse,
            mean: summary.mean,
            sum: summary.loss,
            dlogits,
        })
    }

    /// Says what the results do not.
    fn tell(&self, summary: &CrossEntropySummary) {
        if summary.bad_row < self.labels.len() as u64 {
            let row = summary.bad_row as usize;
            eprintln!(
                "warning: the label of row {row}, {}, is no class; its results are NaN",
                self.labels[row]
            );
        }
        if self.goldfish.is_some() {
            eprintln!("kept {} rows, dropped {}", summary.kept, summary.dropped);
        }
    }

    /// Through the safe API.
    fn on_device(&self, op: &CrossEntropy, gpu: &Gpu, backward: bool) -> xact::Result<Results<T>> {
        let Gpu { device, stream, .. } = gpu;
        let n = self.labels.len();
        let (logits, labels) = (upload(gpu, &self.logits), upload(gpu, &self.labels));
        let weights = self.weights.as_ref().map(|w| upload(gpu, w));
        let dloss = self.dloss.as_ref().map(|d| upload(gpu, d));
        let (logits, labels) = (view(&logits, self.logits.len()), view(&labels, n));
        let weights = weights.as_ref().map(|w| view(w, n));
        let dloss = dloss.as_ref().map(|d| view(d, n));
        let dropping = match &self.goldfish {
            Some(dropping) => Some((dropping, dropping.check(gpu)?)),
            None => None,
        };
        let uploaded = dropping.as_ref().map(|(dropping, strategy)| {
            let ids = upload(gpu, &dropping.hash_ids);
            let exempt = upload(gpu, &dropping.exempt);
            let offsets = dropping.cu_seqlens.as_deref().unwrap_or_default();
            (*dropping, strategy, ids, exempt, upload(gpu, offsets))
        });
        let views = uploaded
            .as_ref()
            .map(|(dropping, strategy, ids, exempt, offsets)| {
                let len = dropping.cu_seqlens.as_ref().map_or(0, Vec::len);
                (
                    *dropping,
                    *strategy,
                    view(ids, n),
                    view(exempt, dropping.exempt.len()),
                    view(offsets, len),
                )
            });
        let rows = Rows {
            labels: &labels,
            weights: weights.as_ref().map(|w| w as _),
            goldfish: views
                .as_ref()
                .map(|(dropping, strategy, ids, exempt, offsets)| Decision {
                    strategy,
                    tokens: DeviceTokens {
                        hash_ids: ids,
                        layout: match &dropping.cu_seqlens {
                            Some(_) => DeviceLayout::Documents {
                                cu_seqlens: offsets,
                            },
                            None => DeviceLayout::Rows { len: dropping.len },
                        },
                        halo: None,
                        exempt: Some(exempt),
                    },
                }),
            shard: None,
        };
        let (mut loss, mut lse) = (upload(gpu, &vec![0f32; n]), upload(gpu, &vec![0f32; n]));
        let mut stats = upload(gpu, &vec![RowStats::default(); n]);
        let mut summary = upload(gpu, &[CrossEntropySummary::default()]);
        let mut workspace = Workspace::new(stream, workspace_bytes(n as u64))?;
        let shape = xact::activation::Rows {
            offset: 0,
            rows: n,
            cols: self.cols,
            pitch: self.cols,
        };
        let input = || xact::activation::Input::rows(&logits, shape);
        op.forward(
            device,
            stream,
            Forward {
                logits: input(),
                rows,
                outputs: Outputs {
                    loss: Some(&mut loss.slice_mut(..n)),
                    z_loss: None,
                    lse: Some(&mut lse.slice_mut(..n)),
                    argmax: None,
                    stats: &mut stats.slice_mut(..n),
                    summary: &mut summary,
                },
                normalizer: None,
                workspace: &mut workspace,
            },
        )?;
        let mut dlogits = Vec::new();
        if backward {
            let mut gradient = upload(gpu, &self.logits);
            let mut gradient_view = gradient.slice_mut(..self.logits.len());
            op.backward(
                device,
                stream,
                Backward {
                    logits: input(),
                    rows,
                    stats: &view(&stats, n),
                    dlogits: xact::activation::Output::rows(&mut gradient_view, shape),
                    divisor: Divisor::Summary(&summary),
                    dloss: dloss.as_ref().map(|buffer| Dloss { buffer, stride: 1 }),
                },
            )?;
            dlogits = stream.clone_dtoh(&gradient).expect("a copy of the result");
            dlogits.truncate(self.logits.len());
        }
        let copy = |buffer| {
            let mut values: Vec<f32> = stream.clone_dtoh(buffer).expect("a copy of the result");
            values.truncate(n);
            values
        };
        let summary = stream.clone_dtoh(&summary).expect("a copy of the result")[0];
        self.tell(&summary);
        Ok(Results {
            loss: copy(&loss),
            lse: copy(&lse),
            mean: summary.mean,
            sum: summary.loss,
            dlogits,
        })
    }
}

impl Dropping {
    fn read(tensors: &SafeTensors<'_>, strategy: Strategy, n: usize) -> Result<Dropping, String> {
        let hash_ids = integers(tensors, "hash_ids")?;
        let shape = tensor(tensors, "hash_ids")?.shape().to_vec();
        if hash_ids.len() != n {
            return Err(format!(
                "hash_ids is {shape:?}, but logits has {n} rows, one for each id"
            ));
        }
        Ok(Dropping {
            goldfish: Goldfish::new(strategy).map_err(|e| e.to_string())?,
            hash_ids,
            len: shape.last().copied().unwrap_or(1),
            cu_seqlens: list(tensors, "cu_seqlens", Dtype::I32)?,
            exempt: list(tensors, "exempt", Dtype::I64)?.unwrap_or_default(),
        })
    }

    fn tokens(&self) -> Tokens<'_, i64> {
        Tokens {
            hash_ids: &self.hash_ids,
            layout: match &self.cu_seqlens {
                Some(cu_seqlens) => Layout::Documents { cu_seqlens },
                None => Layout::Rows { len: self.len },
            },
            halo: &[],
            exempt: &self.exempt,
        }
    }

    fn reference(&self) -> xact::Result<Vec<bool>> {
        let keep = self.goldfish.keep(&self.tokens())?;
        Ok(keep.into_iter().map(|keep| !keep).collect())
    }

    /// The strategy on the device, which cannot refuse offsets that decrease.
    fn check(&self, gpu: &Gpu) -> xact::Result<xact::loss::goldfish::device::DeviceGoldfish> {
        let offsets = self.cu_seqlens.as_deref().unwrap_or_default();
        if let Some(at) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
            return Err(Error::Offsets { at: at as u64 + 1 });
        }
        self.goldfish.upload(&gpu.device, &gpu.stream)
    }
}
