//! The training of a part: its steps, and the checkpoints from which it continues with the same bits.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use xact_candle::xact::CrossEntropy;
use xact_candle::{DeviceGoldfish, Tokens, cross_entropy};

use crate::config::{Config, Part};
use crate::model::{Cache, Model};
use crate::text::{BEGIN, Corpus};

/// The steps between two checkpoints, and between two lines of progress.
const INTERVAL: usize = 50;

/// How far a training is; the rest of a checkpoint are tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    config: Config,
    part: Part,
    /// The steps that are done.
    pub step: usize,
    /// All steps.
    pub steps: usize,
    /// The labels that entered the loss.
    pub supervised: u64,
    /// The labels that Goldfish dropped.
    pub dropped: u64,
    /// The mean loss of every [`INTERVAL`] steps, each with the step after them.
    pub losses: Vec<(usize, f64)>,
    /// Of the steps since.
    open: Vec<f64>,
    /// The processor time of all processes that trained this part.
    pub cpu_seconds: f64,
    /// Their duration.
    pub seconds: f64,
}

/// A model in training.
pub struct Training {
    /// The model.
    pub model: Model,
    /// How far it is.
    pub progress: Progress,
    moments: Vec<Moments>,
}

/// The moments of AdamW for one variable.
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Training {
    /// The training in the checkpoint `path`, or a new one if there is none.
    pub fn open(config: &Config, part: Part, steps: usize, path: &Path) -> Result<Training> {
        let model = Model::new(config, part.seed)?;
        let zeros = |(_, var): &(String, Var)| Moments {
            first: vec![0.0; var.elem_count()],
            second: vec![0.0; var.elem_count()],
        };
        let mut training = Training {
            moments: model.variables.iter().map(zeros).collect(),
            model,
            progress: Progress {
                config: config.clone(),
                part,
                step: 0,
                steps,
                supervised: 0,
                dropped: 0,
                losses: Vec::new(),
                open: Vec::new(),
                cpu_seconds: 0.0,
                seconds: 0.0,
            },
        };
        if path.exists() {
            let read = training.read(path);
            read.with_context(|| format!("the checkpoint {}", path.display()))?;
        }
        Ok(training)
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let mut take = |name: String| {
            let tensor = tensors.remove(&name);
            tensor.with_context(|| format!("it has no tensor {name:?}"))
        };
        let progress: Progress =
            serde_json::from_slice(&take("progress".to_owned())?.to_vec1::<u8>()?)?;
        ensure!(
            (&progress.config, progress.part) == (&self.progress.config, self.progress.part),
            "it belongs to another configuration: remove it, or choose another --folder"
        );
        for ((name, var), moments) in self.model.variables.iter().zip(&mut self.moments) {
            var.set(&take(format!("weight.{name}"))?)?;
            moments.first = take(format!("first.{name}"))?.to_vec1()?;
            moments.second = take(format!("second.{name}"))?.to_vec1()?;
        }
        self.progress = progress;
        Ok(())
    }

    /// Writes a checkpoint. If the process is killed, the last one remains.
    fn write(&self, path: &Path) -> Result<()> {
        let progress = serde_json::to_vec(&self.progress)?;
        let mut tensors = HashMap::from([line("progress".to_owned(), &progress)?]);
        for ((name, var), moments) in self.model.variables.iter().zip(&self.moments) {
            tensors.insert(format!("weight.{name}"), var.as_tensor().clone());
            tensors.extend([
                line(format!("first.{name}"), &moments.first)?,
                line(format!("second.{name}"), &moments.second)?,
            ]);
        }
        let new = path.with_extension("new");
        candle_core::safetensors::save(&tensors, &new)?;
        fs::rename(&new, path)?;
        Ok(())
    }

    /// Trains to the end, or for `limit` steps. Returns whether the end is reached.
    pub fn run(&mut self, corpus: &Corpus, path: &Path, limit: Option<usize>) -> Result<bool> {
        let Progress { config, part, .. } = self.progress.clone();
        let sequences = corpus.sequences(&config, part)?;
        let goldfish = part.objective.goldfish()?;
        let goldfish = goldfish.map(|g| DeviceGoldfish::new(&g, &Device::Cpu));
        let goldfish = goldfish.transpose()?;
        let steps = self.progress.steps;
        let end = limit.map_or(steps, |limit| steps.min(self.progress.step + limit));
        let bar = xact_dev::progress::bar(steps);
        let earlier = self.progress.clone();
        let (start, start_cpu) = (Instant::now(), cpu_seconds());
        let batches = sequences.chunks_exact(config.batch);
        for batch in batches.take(end).skip(earlier.step) {
            self.step(batch, goldfish.as_ref())?;
            bar.set_position(self.progress.step as u64);
            let is_last = self.progress.step == end;
            if self.progress.step.is_multiple_of(INTERVAL) || self.progress.step == steps {
                let open = std::mem::take(&mut self.progress.open);
                let loss = open.iter().sum::<f64>() / open.len() as f64;
                self.progress.losses.push((self.progress.step, loss));
                let line = self.line(part, loss);
                bar.set_message(line.clone());
                if bar.is_hidden() {
                    eprintln!("{line}");
                }
            }
            if is_last || self.progress.step.is_multiple_of(INTERVAL) {
                self.progress.cpu_seconds = earlier.cpu_seconds + cpu_seconds() - start_cpu;
                self.progress.seconds = earlier.seconds + start.elapsed().as_secs_f64();
                self.write(path)?;
            }
        }
        bar.finish_and_clear();
        Ok(self.progress.step == steps)
    }

    fn line(&self, part: Part, loss: f64) -> String {
        let Progress {
            step,
            steps,
            supervised,
            dropped,
            ..
        } = self.progress;
        let kept = supervised as f64 / (supervised + dropped) as f64;
        format!(
            "{part}: step {step} of {steps}, loss {loss:.3}, kept {:.1} %",
            kept * 100.0
        )
    }

    fn step(&mut self, batch: &[&[u32]], goldfish: Option<&DeviceGoldfish>) -> Result<()> {
        let (inputs, labels) = tensors(batch)?;
        let logits = self.model.forward(&inputs, &mut Cache::default())?;
        let op = CrossEntropy::default();
        let mut loss = cross_entropy(&op, &logits, &labels);
        if let Some(goldfish) = goldfish {
            loss = loss.goldfish(goldfish, Tokens::rows(&labels));
        }
        let outputs = loss.run_with_outputs()?;
        self.update(&outputs.loss.backward()?)?;
        let summary = outputs.summary.read()?;
        self.progress.step += 1;
        self.progress.supervised += summary.kept;
        self.progress.dropped += summary.dropped;
        self.progress.open.push(summary.mean.into());
        Ok(())
    }

    /// A step of AdamW on gradients with a norm of at most 1. candle's own keeps its moments to itself, so that no checkpoint
    /// could hold them.
    fn update(&mut self, gradients: &GradStore) -> Result<()> {
        const BETAS: (f32, f32) = (0.9, 0.98);
        const EPS: f32 = 1e-8;
        let Progress {
            config,
            step,
            steps,
            ..
        } = &self.progress;
        let variables = &self.model.variables;
        let gradient = |(name, var): &(String, Var)| -> Result<Vec<f32>> {
            let gradient = gradients.get(var);
            let gradient = gradient.with_context(|| format!("{name} has no gradient"))?;
            Ok(gradient.flatten_all()?.to_vec1()?)
        };
        let gradients: Vec<Vec<f32>> = variables.iter().map(gradient).collect::<Result<_>>()?;
        let squares = gradients.iter().flatten().map(|&g| f64::from(g).powi(2));
        let scale = squares.sum::<f64>().sqrt().max(1.0).recip() as f32;
        let rate = learning_rate(config, *step, *steps);
        let count = *step as i32 + 1;
        let unbiased = (1.0 - BETAS.0.powi(count), 1.0 - BETAS.1.powi(count));
        for (((_, var), moments), gradient) in
            variables.iter().zip(&mut self.moments).zip(&gradients)
        {
            let mut weights: Vec<f32> = var.flatten_all()?.to_vec1()?;
            let decay = if var.rank() > 1 {
                1.0 - (rate * config.weight_decay) as f32
            } else {
                1.0
            };
            let Moments { first, second } = moments;
            let moments = first.iter_mut().zip(second);
            for ((weight, (first, second)), gradient) in
                weights.iter_mut().zip(moments).zip(gradient)
            {
                let gradient = gradient * scale;
                *first = BETAS.0 * *first + (1.0 - BETAS.0) * gradient;
                *second = BETAS.1 * *second + (1.0 - BETAS.1) * gradient * gradient;
                let size = (*second / unbiased.1).sqrt() + EPS;
                *weight = *weight * decay - rate as f32 * (*first / unbiased.0) / size;
            }
            var.set(&Tensor::from_vec(weights, var.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    /// A number that differs for weights that differ in a bit (FNV-1a).
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for (_, var) in &self.model.variables {
            for weight in var.flatten_all()?.to_vec1::<f32>()? {
                hash = (hash ^ u64::from(weight.to_bits())).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Ok(format!("{hash:016x}"))
    }
}

fn learning_rate(config: &Config, step: usize, steps: usize) -> f64 {
    let warm_up = steps.div_ceil(10);
    if step < warm_up {
        return config.learning_rate * (step + 1) as f64 / warm_up as f64;
    }
    let part = (step - warm_up) as f64 / (steps - warm_up) as f64;
    let cosine = (1.0 + (std::f64::consts::PI * part).cos()) / 2.0;
    config.learning_rate * (0.1 + 0.9 * cosine)
}

/// Inputs and labels, `[B, T]`: each id is the label of the input before it, and the first follows the id of the beginning.
pub fn tensors(sequences: &[&[u32]]) -> Result<(Tensor, Tensor)> {
    let shape = (sequences.len(), sequences[0].len());
    let inputs = sequences.iter().flat_map(|ids| {
        let (_, before) = ids.split_last().unwrap_or((&BEGIN, &[]));
        [BEGIN].into_iter().chain(before.iter().copied())
    });
    let inputs = Tensor::from_vec(inputs.collect(), shape, &Device::Cpu)?;
    let labels = Tensor::from_vec(sequences.concat(), shape, &Device::Cpu)?;
    Ok((inputs, labels))
}

fn line<T: candle_core::WithDType>(name: String, values: &[T]) -> Result<(String, Tensor)> {
    Ok((
        name,
        Tensor::from_slice(values, values.len(), &Device::Cpu)?,
    ))
}

/// The processor time of this process, in user code and in the system; 0 where Linux's /proc is not there.
pub fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in brackets, may have spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}
