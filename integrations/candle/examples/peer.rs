//! candle's side of `cargo xtask bench --peers`, with the protocol of `benches/peers/torch_cpu.py`. It has the ops that
//! candle computes without this crate: silu and gelu, which equal xSiLU and xGELU at α = 0, and cross_entropy of f32
//! logits.

use std::hint::black_box;
use std::io::{BufRead, Write, stdin, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use serde_json::{Value, json};

/// The minimum duration of a sample, as in `benches/cpu.rs`.
const SAMPLE: Duration = Duration::from_millis(2);

type Call = Box<dyn FnMut() -> Result<()>>;
type Function = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor>>;

fn main() -> Result<()> {
    let name = format!("candle {}", version());
    answer(&json!({ "name": name, "variants": ["candle"] }))?;
    let mut prepared: Option<(Call, u32)> = None;
    for line in stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        if request.is_object() {
            prepared = None;
            if let Some(mut call) = call(&request)? {
                seconds(&mut call, 3)?;
                let repeats = SAMPLE.as_secs_f64() / seconds(&mut call, 2)?;
                prepared = Some((call, repeats.ceil() as u32));
            }
            let variants: &[&str] = if prepared.is_some() { &["candle"] } else { &[] };
            answer(&json!({ "variants": variants }))?;
        } else {
            let (call, repeats) = prepared.as_mut().context("nothing is prepared")?;
            answer(&json!(seconds(call, *repeats)?))?;
        }
    }
    Ok(())
}

/// The version of candle, which candle does not provide.
fn version() -> &'static str {
    let lock = include_str!("../Cargo.lock").lines();
    let mut lines = lock.skip_while(|line| *line != "name = \"candle-core\"");
    let version = lines.nth(1).and_then(|line| line.split('"').nth(1));
    version.unwrap_or("of unknown version")
}

fn answer(value: &Value) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{value}")?;
    out.flush().map_err(Into::into)
}

fn call(row: &Value) -> Result<Option<Call>> {
    let number = |name: &str| row[name].as_u64().map_or(0, |n| n as usize);
    let step = row["pass"] == "step";
    let dtype = match row["dtype"].as_str() {
        Some("f32") => DType::F32,
        Some("f16") => DType::F16,
        Some("bf16") => DType::BF16,
        _ => return Ok(None),
    };
    let random = |shape: &[usize]| Tensor::randn(0f32, 2f32, shape, &Device::Cpu)?.to_dtype(dtype);
    let (input, function): (Tensor, Function) = match (row["op"].as_str(), row["form"].as_str()) {
        (Some("xsilu"), Some("plain")) => (random(&[number("len")])?, Box::new(Tensor::silu)),
        (Some("xgelu"), Some("plain")) => (random(&[number("len")])?, Box::new(Tensor::gelu_erf)),
        // candle sums 16-bit types in the same type, which is not comparable.
        (Some("cross_entropy"), _) if dtype == DType::F32 => {
            let (rows, vocab) = (number("rows"), number("vocab"));
            let labels: Vec<u32> = (0..rows).map(|r| (r * 7919 % vocab) as u32).collect();
            let labels = Tensor::new(labels, &Device::Cpu)?;
            let loss = move |z: &Tensor| cross_entropy(z, &labels);
            (random(&[rows, vocab])?, Box::new(loss))
        }
        _ => return Ok(None),
    };
    if !step {
        return Ok(Some(Box::new(move || {
            black_box(function(black_box(&input))?);
            Ok(())
        })));
    }
    let input = Var::from_tensor(&input)?;
    Ok(Some(Box::new(move || {
        black_box(function(input.as_tensor())?.backward()?);
        Ok(())
    })))
}

/// The seconds of one call, averaged over `repeats` calls.
fn seconds(call: &mut Call, repeats: u32) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..repeats {
        call()?;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(repeats))
}
