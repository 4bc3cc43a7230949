//! A decoder-only model: learned positions, RMS norms before attention and MLP, xIELU, and the embedding as its head.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Module, Result, Shape, Tensor, Var,
    bail,
};
use candle_nn::{Embedding, Init, Linear, RmsNorm, VarBuilder, VarMap};
use xact_candle::nn::{Activation, XieluConfig, xielu};

use crate::config::Config;
use crate::random::Random;

/// The model, and its variables by name.
pub struct Model {
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    heads: usize,
    /// In the order of their names.
    pub variables: Vec<(String, Var)>,
}

struct Layer {
    attention_norm: RmsNorm,
    /// Query, key and value, one after the other.
    queries: Linear,
    output: Linear,
    mlp_norm: RmsNorm,
    up: Linear,
    activation: Activation,
    down: Linear,
}

/// The keys and the values of the ids so far, for each layer.
#[derive(Default)]
pub struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
}

impl Model {
    /// A model with the first weights of this seed.
    pub fn new(config: &Config, seed: u64) -> Result<Model> {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let (width, deviation) = (config.width, 0.02);
        // The projections onto the sum of all layers start smaller, so that the sum does not grow with the layers.
        let narrow = deviation / (2.0 * config.layers as f64).sqrt();
        let mut random = Random::new(seed, 3);
        let mut matrix = |vb: VarBuilder, rows: usize, columns: usize, deviation: f64| {
            let weight = vb.get_with_hints((rows, columns), "weight", Init::Const(0.0))?;
            let numbers = (0..rows * columns).map(|_| (random.normal() * deviation) as f32);
            let numbers = Tensor::from_vec(numbers.collect(), (rows, columns), &Device::Cpu)?;
            set(&map, &vb, &numbers)?;
            Ok::<_, candle_core::Error>(weight)
        };
        let mut embedding = |name: &str, rows: usize| {
            let weight = matrix(vb.pp(name), rows, width, deviation)?;
            Ok::<_, candle_core::Error>(Embedding::new(weight, width))
        };
        let tokens = embedding("tokens", config.vocabulary)?;
        let positions = embedding("positions", config.context)?;
        let mut layers = Vec::new();
        for layer in 0..config.layers {
            let vb = vb.pp(format!("layers.{layer}"));
            let mut linear = |name: &str, outputs: usize, inputs: usize, deviation: f64| {
                let weight = matrix(vb.pp(name), outputs, inputs, deviation)?;
                Ok::<_, candle_core::Error>(Linear::new(weight, None))
            };
            layers.push(Layer {
                attention_norm: norm(config, vb.pp("attention_norm"))?,
                queries: linear("queries", 3 * width, width, deviation)?,
                output: linear("output", width, width, narrow)?,
                mlp_norm: norm(config, vb.pp("mlp_norm"))?,
                up: linear("up", 4 * width, width, deviation)?,
                activation: xielu(&XieluConfig::default(), vb.pp("act_fn"))?,
                down: linear("down", width, 4 * width, narrow)?,
            });
        }
        let norm = norm(config, vb.pp("norm"))?;
        let mut variables: Vec<(String, Var)> = match map.data().lock() {
            Ok(data) => data.clone().into_iter().collect(),
            Err(_) => bail!("a thread has panicked"),
        };
        // β and ε of xIELU are no parameters.
        variables.retain(|(name, _)| !name.ends_with(".beta") && !name.ends_with(".eps"));
        variables.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Model {
            tokens,
            positions,
            layers,
            norm,
            heads: config.heads,
            variables,
        })
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        let sizes = self.variables.iter().map(|(_, var)| var.elem_count());
        sizes.sum()
    }

    /// The logits `[B, T, V]` of ids `[B, T]`. The ids follow those that the cache has seen.
    pub fn forward(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let (batch, len) = ids.dims2()?;
        let positions = Tensor::arange(cache.len as u32, (cache.len + len) as u32, ids.device())?;
        let x = self.tokens.forward(ids)?;
        let mut x = x.broadcast_add(&self.positions.forward(&positions)?)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let attended = layer.attention(&x, self.heads, i, cache)?;
            x = (x + attended)?;
            let mlp = layer.mlp_norm.forward_diff(&x)?.apply(&layer.up)?;
            let mlp = mlp.apply(&layer.activation)?.apply(&layer.down)?;
            x = (x + mlp)?;
        }
        cache.len += len;
        let x = self.norm.forward_diff(&x)?.flatten_to(1)?;
        let logits = x.matmul(&self.tokens.embeddings().t()?)?;
        logits.reshape((batch, len, ()))
    }
}

impl Layer {
    fn attention(
        &self,
        x: &Tensor,
        heads: usize,
        layer: usize,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let (batch, len, width) = x.dims3()?;
        let all = self.attention_norm.forward_diff(x)?.apply(&self.queries)?;
        let all = all.reshape((batch, len, 3 * heads, width / heads))?;
        let part = |i| {
            all.narrow(2, i * heads, heads)?
                .transpose(1, 2)?
                .contiguous()
        };
        let (queries, mut keys, mut values) = (part(0)?, part(1)?, part(2)?);
        if let Some((earlier_keys, earlier_values)) = cache.layers.get(layer) {
            keys = Tensor::cat(&[earlier_keys, &keys], 2)?;
            values = Tensor::cat(&[earlier_values, &values], 2)?;
        }
        let scores = queries.matmul(&keys.t()?)?;
        let scale = ((width / heads) as f32).sqrt().recip();
        let attended = causal_softmax(&scores, scale)?.matmul(&values)?;
        match cache.layers.get_mut(layer) {
            Some(entry) => *entry = (keys, values),
            None => cache.layers.push((keys, values)),
        }
        let attended = attended.transpose(1, 2)?.flatten_from(2)?;
        attended.apply(&self.output)
    }
}

fn norm(config: &Config, vb: VarBuilder) -> Result<RmsNorm> {
    candle_nn::rms_norm(config.width, 1e-5, vb)
}

/// Sets the weight that `vb` has made.
fn set(map: &VarMap, vb: &VarBuilder, weight: &Tensor) -> Result<()> {
    let name = format!("{}.weight", vb.prefix());
    match map.data().lock() {
        Ok(data) => data.get(&name).map_or(Ok(()), |var| var.set(weight)),
        Err(_) => bail!("a thread has panicked"),
    }
}

/// softmax(scale·x) of `[.., T, S]` scores, in which the last T of S ids see themselves and what is before them. Of candle's
/// own, one has no gradient, and the other makes a pass over the scores for each of its operations.
fn causal_softmax(scores: &Tensor, scale: f32) -> Result<Tensor> {
    scores.apply_op1(CausalSoftmax { scale })
}

struct CausalSoftmax {
    scale: f32,
}

/// dx = scale·y·(dy − Σ y·dy).
struct CausalSoftmaxGradient {
    scale: f32,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal_softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(storage, layout)?;
        let &[.., len, seen] = layout.dims() else {
            bail!("scores are at least a matrix")
        };
        let mut y = vec![0_f32; x.len()];
        for (row, (x, y)) in x.chunks(seen).zip(y.chunks_mut(seen)).enumerate() {
            let visible = seen - len + row % len + 1;
            let (x, y) = (&x[..visible], &mut y[..visible]);
            let highest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (y, x) in y.iter_mut().zip(x) {
                *y = (self.scale * (x - highest)).exp();
            }
            let factor = y.iter().sum::<f32>().recip();
            for y in y {
                *y *= factor;
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let gradient = CausalSoftmaxGradient { scale: self.scale };
        y.apply_op2_no_bwd(&dy.contiguous()?, &gradient).map(Some)
    }
}

impl CustomOp2 for CausalSoftmaxGradient {
    fn name(&self) -> &'static str {
        "causal_softmax_gradient"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (y, dy) = (elements(y, layout)?, elements(dy, dy_layout)?);
        let &[.., seen] = layout.dims() else {
            bail!("scores are at least a matrix")
        };
        let mut dx = vec![0_f32; y.len()];
        let rows = y.chunks(seen).zip(dy.chunks(seen));
        for ((y, dy), dx) in rows.zip(dx.chunks_mut(seen)) {
            let sum: f32 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
            for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = self.scale * y * (dy - sum);
            }
        }
        Ok((CpuStorage::F32(dx), layout.shape().clone()))
    }
}

fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("the scores have gaps"),
    }
}
