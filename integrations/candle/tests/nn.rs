//! The modules: names and types of published checkpoints, and an MLP of Apertus, compared with the f64 reference.

mod common;

use std::collections::HashMap;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{AdamW, Init, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear_no_bias};
use common::{close, f64s, refused, tensor};
use xact::{Activation as _, Compat, EpsGradient, Halves, Order, Xielu};
use xact_candle::nn::{self, XieluConfig};

const PREFIX: &str = "model.layers.0.mlp";

/// The MLP of a layer with the names and types of Apertus-8B-Instruct-2509 and the scalars of its first layer, but with
/// fewer features.
fn checkpoint() -> HashMap<String, Tensor> {
    let bf16 = |values: &[f32], dims: &[usize]| {
        let tensor = Tensor::from_slice(values, dims, &Device::Cpu).unwrap();
        tensor.to_dtype(DType::BF16).unwrap()
    };
    HashMap::from([
        ("up_proj.weight", tensor(1, &[24, 8], 0.05, DType::BF16)),
        ("down_proj.weight", tensor(2, &[8, 24], 0.2, DType::BF16)),
        ("act_fn.alpha_p", bf16(&[166.0], &[1])),
        ("act_fn.alpha_n", bf16(&[40.75], &[1])),
        ("act_fn.beta", bf16(&[0.5], &[])),
        ("act_fn.eps", bf16(&[-1e-6], &[])),
    ])
    .into_iter()
    .map(|(name, tensor)| (format!("{PREFIX}.{name}"), tensor))
    .collect()
}

struct Mlp {
    up: candle_nn::Linear,
    activation: nn::Activation,
    down: candle_nn::Linear,
}

impl Mlp {
    fn new(config: &XieluConfig, vb: VarBuilder) -> candle_core::Result<Mlp> {
        Ok(Mlp {
            up: linear_no_bias(8, 24, vb.pp("up_proj"))?,
            activation: nn::xielu(config, vb.pp("act_fn"))?,
            down: linear_no_bias(24, 8, vb.pp("down_proj"))?,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.apply(&self.up)?
            .apply(&self.activation)?
            .apply(&self.down)
    }
}

/// rows·weightᵀ in f64.
fn product(rows: &[f64], weight: &[f64], width: usize) -> Vec<f64> {
    rows.chunks_exact(width)
        .flat_map(|row| {
            let dot = move |w: &[f64]| w.iter().zip(row).map(|(w, x)| w * x).sum::<f64>();
            weight.chunks_exact(width).map(dot)
        })
        .collect()
}

#[test]
fn an_mlp_of_apertus_is_the_reference() {
    let tensors = checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    for (dtype, part) in [(DType::F32, 2e-6), (DType::BF16, 2e-2)] {
        let vb = VarBuilder::from_buffered_safetensors(bytes.clone(), dtype, &Device::Cpu).unwrap();
        for config in [
            XieluConfig::default(),
            XieluConfig::default().clamp(EpsGradient::Autograd),
        ] {
            let mlp = Mlp::new(&config, vb.pp(PREFIX)).unwrap();
            let [alpha_p, alpha_n] = mlp.activation.params() else {
                panic!("two scalars")
            };
            assert_eq!((alpha_p.dims(), alpha_p.dtype()), (&[1][..], DType::F32));
            assert_eq!((f64s(alpha_p), f64s(alpha_n)), (vec![166.0], vec![40.75]));
            let x = tensor(3, &[5, 8], 3.0, dtype);
            let y = mlp.forward(&x).unwrap();
            assert_eq!(y.dtype(), dtype);
            let weight = |name: &str| f64s(&tensors[&format!("{PREFIX}.{name}.weight")]);
            let op = match config.clamp {
                None => Xielu::default(),
                Some(gradient) => {
                    let eps = f64s(&tensors[&format!("{PREFIX}.act_fn.eps")])[0] as f32;
                    Xielu::default().compat(Compat::new(eps).gradient(gradient))
                }
            };
            let hidden = product(&f64s(&x), &weight("up_proj"), 8);
            let hidden: Vec<f64> = hidden
                .iter()
                .map(|&h| op.evaluate(&[166.0, 40.75], h).y.value)
                .collect();
            close(&f64s(&y), &product(&hidden, &weight("down_proj"), 24), part);
        }
    }
}

#[test]
fn a_checkpoint_of_another_shape_or_without_scalars_is_refused() {
    let vb = |tensors: HashMap<String, Tensor>| {
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu).pp(PREFIX)
    };
    let act_fn = format!("{PREFIX}.act_fn");
    let xielu = |tensors| nn::xielu(&XieluConfig::default(), vb(tensors).pp("act_fn"));
    for name in ["alpha_p", "alpha_n"] {
        let mut tensors = checkpoint();
        tensors.remove(&format!("{act_fn}.{name}"));
        refused(xielu(tensors), name);
        let mut tensors = checkpoint();
        tensors.insert(format!("{act_fn}.{name}"), tensor(1, &[2], 1.0, DType::F32));
        refused(xielu(tensors), "shape mismatch");
    }
    let mut tensors = checkpoint();
    tensors.insert(format!("{act_fn}.beta"), tensor(1, &[3], 1.0, DType::F32));
    refused(xielu(tensors), "shape mismatch");
    // The buffers may be missing.
    let mut tensors = checkpoint();
    for name in ["beta", "eps"] {
        tensors.remove(&format!("{act_fn}.{name}"));
    }
    let config = XieluConfig::default().clamp(EpsGradient::Analytic);
    let made = nn::xielu(&config, vb(tensors.clone()).pp("act_fn")).unwrap();
    assert_eq!(
        made.op(),
        Xielu::default().compat(Compat::new(-1e-6)).into()
    );
    let trained = XieluConfig::default().train_beta(true);
    refused(
        nn::xielu(&trained, vb(tensors).pp("act_fn")),
        "beta is to be trained",
    );
    refused(nn::xsilu(vb(checkpoint()).pp("act_fn")), "alpha");
}

/// A checkpoint whose β exceeds the initial α_n is valid.
#[test]
fn beta_is_the_checkpoints() {
    let mut tensors = checkpoint();
    let beta = Tensor::new(1.25_f32, &Device::Cpu).unwrap();
    tensors.insert(format!("{PREFIX}.act_fn.beta"), beta);
    let vb = VarBuilder::from_tensors(tensors, DType::BF16, &Device::Cpu);
    let made = nn::xielu(&XieluConfig::default(), vb.pp(PREFIX).pp("act_fn")).unwrap();
    assert_eq!(made.op(), Xielu::default().beta(1.25).into());
    let config = XieluConfig::default().initial(0.8, 0.25);
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    refused(nn::xielu(&config, vb), "no raw alpha_n");
}

/// A new module has the names and shapes of a checkpoint, and trains.
#[test]
fn a_new_module_is_made_trained_and_saved() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::BF16, &Device::Cpu);
    let config = XieluConfig::default().train_beta(true);
    let activation = nn::xielu(&config, vb.pp("act_fn")).unwrap();
    let names = |map: &VarMap| {
        let data = map.data().lock().unwrap();
        let mut names: Vec<(String, Vec<usize>)> = data
            .iter()
            .map(|(name, var)| (name.clone(), var.dims().to_vec()))
            .collect();
        names.sort();
        names
    };
    let expected = [("alpha_n", 1), ("alpha_p", 1), ("beta", 0), ("eps", 0)]
        .map(|(name, rank)| (format!("act_fn.{name}"), vec![1; rank]));
    assert_eq!(names(&map), expected);
    let before: Vec<f64> = activation.params().iter().flat_map(f64s).collect();
    close(&before, &[0.203_381_5, -1.050_225_7, 0.5], 1e-6);

    let x = tensor(1, &[16, 12], 2.0, DType::BF16);
    let params = ParamsAdamW {
        lr: 0.05,
        weight_decay: 0.0,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(map.all_vars(), params).unwrap();
    let loss = |activation: &nn::Activation| {
        let y = activation
            .forward(&x)
            .unwrap()
            .to_dtype(DType::F32)
            .unwrap();
        y.sqr().unwrap().mean_all().unwrap()
    };
    let first = loss(&activation);
    for _ in 0..5 {
        optimizer.backward_step(&loss(&activation)).unwrap();
    }
    assert!(f64s(&loss(&activation))[0] < f64s(&first)[0]);
    let after: Vec<f64> = activation.params().iter().flat_map(f64s).collect();
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| before != after)
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("act.safetensors");
    map.save(&path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(bytes, DType::BF16, &Device::Cpu).unwrap();
    let loaded = nn::xielu(&config, vb.pp("act_fn")).unwrap();
    assert_eq!(f64s(&loss(&loaded)), f64s(&loss(&activation)));
}

#[test]
fn gated_modules_take_the_halves() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let x = tensor(1, &[3, 10], 2.0, DType::F32);
    for (name, make) in [
        ("xatlu", nn::xatlu as fn(VarBuilder) -> _),
        ("xgelu", nn::xgelu),
        ("xsilu", nn::xsilu),
    ] {
        let vb = vb.pp(name);
        let alpha = vb.get_with_hints(1, "alpha", Init::Const(0.25)).unwrap();
        let module: nn::Activation = make(vb).unwrap();
        assert_eq!(module.op().signature().name, name);
        for (order, halves) in [
            (Order::First, Halves::GateFirst),
            (Order::Second, Halves::ValueFirst),
        ] {
            let gated = module.clone().gated(order, halves).unwrap();
            assert_eq!(gated.activation().op(), module.op());
            let expected =
                xact_candle::gated_halves(module.op(), order, &x, halves, &[&alpha]).unwrap();
            assert_eq!(f64s(&gated.forward(&x).unwrap()), f64s(&expected));
        }
    }
    let xielu = nn::xielu(&XieluConfig::default(), vb.pp("xielu")).unwrap();
    let refused_text = "no gated forms";
    refused(xielu.gated(Order::First, Halves::GateFirst), refused_text);
}
