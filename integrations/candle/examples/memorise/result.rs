//! What is measured of a trained model, and the file that holds it.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::Result;
use candle_core::{D, Device, IndexOp, Tensor};
use serde::{Deserialize, Serialize};
use xact_candle::cross_entropy;
use xact_candle::xact::{self, CrossEntropy};

use crate::config::{Config, Objective, Part};
use crate::measure::{longest_kept, rouge_l, verbatim};
use crate::model::{Cache, Model};
use crate::text::{BEGIN, Corpus};
use crate::train::{self, Progress, Training};

/// The result of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The sizes of the experiment.
    pub config: Config,
    /// The training.
    pub part: Part,
    /// The parameters of the model.
    pub parameters: usize,
    /// The steps of the training.
    pub steps: usize,
    /// The labels that entered the loss.
    pub supervised: u64,
    /// The labels that Goldfish dropped.
    pub dropped: u64,
    /// The mean training loss up to each of these steps.
    pub losses: Vec<(usize, f64)>,
    /// The mean loss of the held-out sequences, without Goldfish.
    pub validation: f64,
    /// The canaries.
    pub canaries: Vec<Canary>,
    /// The decisions of the strategy in the whole text, if there is one.
    pub mask: Option<Mask>,
    /// A number that differs for weights that differ.
    pub fingerprint: String,
    /// The processor time of the training and the measurement.
    pub cpu_seconds: f64,
    /// Its duration.
    pub seconds: f64,
}

/// What became of a canary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// How often the training saw it.
    pub repetitions: usize,
    /// The ids after the prompt.
    pub len: usize,
    /// How many of them the greedy continuation has, before it first differs.
    pub verbatim: usize,
    /// Rouge-L of the greedy continuation.
    pub rouge_l: f64,
    /// The loss of the labels after the prompt that are kept.
    pub kept: Losses,
    /// Of those that are dropped. For plain cross-entropy, of those that Goldfish with k = 4 and h = 13 would drop.
    pub dropped: Losses,
}

/// The losses of some labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// Their sum.
    pub sum: f64,
    /// Their number.
    pub count: usize,
}

/// The decisions of a strategy in the text, read as one row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mask {
    /// The labels.
    pub labels: usize,
    /// Those that are dropped.
    pub dropped: usize,
    /// The labels in the longest run without a dropped one.
    pub longest_kept: usize,
    /// The labels whose window has the key that most windows have.
    pub commonest_key: usize,
}

/// Measures a trained model.
pub fn measure(
    training: &Training,
    config: &Config,
    part: Part,
    corpus: &Corpus,
) -> Result<Outcome> {
    let Progress {
        steps,
        supervised,
        dropped,
        ref losses,
        cpu_seconds,
        seconds,
        ..
    } = training.progress;
    let (start, start_cpu) = (Instant::now(), train::cpu_seconds());
    let validation = losses_of(&training.model, &corpus.validation)?.concat();
    let validation =
        validation.iter().map(|&loss| f64::from(loss)).sum::<f64>() / validation.len() as f64;
    Ok(Outcome {
        config: config.clone(),
        part,
        parameters: training.model.parameters(),
        steps,
        supervised,
        dropped,
        losses: losses.clone(),
        validation,
        canaries: canaries(&training.model, config, part, corpus)?,
        mask: mask(part.objective, &corpus.ids)?,
        fingerprint: training.fingerprint()?,
        cpu_seconds: cpu_seconds + train::cpu_seconds() - start_cpu,
        seconds: seconds + start.elapsed().as_secs_f64(),
    })
}

fn canaries(model: &Model, config: &Config, part: Part, corpus: &Corpus) -> Result<Vec<Canary>> {
    let strategy = match part.objective {
        Objective::Plain => Objective::Paper,
        other => other,
    };
    let goldfish = strategy.goldfish()?;
    let losses = losses_of(model, &corpus.canaries)?;
    let continuations = continuations(model, config, &corpus.canaries)?;
    let repetitions = corpus.repetitions(config, part.seed);
    let mut measured = Vec::new();
    for (i, original) in corpus.canaries.iter().enumerate() {
        let keep = match &goldfish {
            Some(goldfish) => goldfish.keep(&xact::Tokens::row(original))?,
            None => vec![true; original.len()],
        };
        let of = |kept: bool| {
            let labels = keep.iter().zip(&losses[i]).skip(config.prompt);
            let mut losses = Losses::default();
            for (_, &loss) in labels.filter(|&(&keep, _)| keep == kept) {
                losses.sum += f64::from(loss);
                losses.count += 1;
            }
            losses
        };
        let (continuation, original) = (&continuations[i], &original[config.prompt..]);
        measured.push(Canary {
            repetitions: repetitions[i],
            len: original.len(),
            verbatim: verbatim(continuation, original),
            rouge_l: rouge_l(continuation, original),
            kept: of(true),
            dropped: of(false),
        });
    }
    Ok(measured)
}

/// The loss of every label of every sequence.
fn losses_of(model: &Model, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
    /// As many as bound the memory of the logits.
    const AT_ONCE: usize = 16;
    let mut losses = Vec::new();
    for sequences in sequences.chunks(AT_ONCE) {
        let sequences: Vec<&[u32]> = sequences.iter().map(|ids| &ids[..]).collect();
        let (inputs, labels) = train::tensors(&sequences)?;
        let logits = model.forward(&inputs, &mut Cache::default())?.detach();
        let op = CrossEntropy::default();
        let loss = cross_entropy(&op, &logits, &labels);
        let each = loss.reduction(xact_candle::Reduction::None).run()?;
        losses.extend(each.to_vec2::<f32>()?);
    }
    Ok(losses)
}

/// The greedy continuations of the prompts.
fn continuations(model: &Model, config: &Config, sequences: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
    let mut cache = Cache::default();
    let prompts = sequences.iter().flat_map(|ids| {
        let prompt = ids[..config.prompt].iter().copied();
        [BEGIN].into_iter().chain(prompt)
    });
    let shape = (sequences.len(), config.prompt + 1);
    let mut inputs = Tensor::from_vec(prompts.collect(), shape, &Device::Cpu)?;
    let mut continuations = vec![Vec::new(); sequences.len()];
    for _ in config.prompt..config.context {
        let logits = model.forward(&inputs, &mut cache)?.detach();
        let last = logits.i((.., logits.dim(1)? - 1, ..))?;
        let next = last.argmax(D::Minus1)?;
        for (continuation, id) in continuations.iter_mut().zip(next.to_vec1::<u32>()?) {
            continuation.push(id);
        }
        inputs = next.unsqueeze(1)?;
    }
    Ok(continuations)
}

fn mask(objective: Objective, ids: &[u32]) -> Result<Option<Mask>> {
    let Some(goldfish) = objective.goldfish()? else {
        return Ok(None);
    };
    let row = xact::Tokens::row(ids);
    let keep = goldfish.keep(&row)?;
    let mut counts = HashMap::new();
    for key in goldfish.keys(&row)?.into_iter().flatten() {
        *counts.entry(key).or_insert(0) += 1;
    }
    Ok(Some(Mask {
        labels: keep.len(),
        dropped: keep.iter().filter(|&&keep| !keep).count(),
        longest_kept: longest_kept(&keep),
        commonest_key: counts.into_values().max().unwrap_or_default(),
    }))
}
