//! The code of the section "From candle" of the repository's README.md.

use candle_core::Result;

#[test]
#[rustfmt::skip] // as it stands in the page
fn it_runs() -> Result<()> {
    // {
    use candle_core::{DType, Device, Tensor};
    use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap, embedding, linear_no_bias};
    use xact_candle::nn::{XieluConfig, xielu};
    use xact_candle::xact::{CrossEntropy, Goldfish, Strategy};
    use xact_candle::{DeviceGoldfish, Tokens, cross_entropy};

    let device = Device::Cpu;
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &device);
    let embed = embedding(1000, 64, vb.pp("embed"))?;
    let up = linear_no_bias(64, 256, vb.pp("up"))?;
    let activation = xielu(&XieluConfig::default(), vb.pp("act_fn"))?;
    let head = linear_no_bias(256, 1000, vb.pp("head"))?;
    let mut optimizer = AdamW::new_lr(variables.all_vars(), 1e-3)?;
    let goldfish = Goldfish::new(Strategy::Hash64 { k: 4, h: 13, seed: 0 });
    let goldfish = DeviceGoldfish::new(&goldfish.map_err(candle_core::Error::wrap)?, &device)?;

    let ids = Tensor::rand(0_f32, 1000.0, (4, 129), &device)?.to_dtype(DType::U32)?;
    let (inputs, labels) = (ids.narrow(1, 0, 128)?, ids.narrow(1, 1, 128)?);
    let logits = inputs.apply(&embed)?.apply(&up)?.apply(&activation)?.apply(&head)?;
    let op = CrossEntropy::default();
    let loss = cross_entropy(&op, &logits, &labels).goldfish(&goldfish, Tokens::rows(&labels)).run()?;
    optimizer.backward_step(&loss)?;
    // }
    Ok(())
}

#[test]
fn it_stands_in_the_page() {
    let lines = include_str!("readme.rs").lines();
    let lines = lines.skip_while(|line| *line != "    // {").skip(1);
    let lines = lines.take_while(|line| *line != "    // }");
    let code: String = lines
        .map(|line| line.strip_prefix("    ").unwrap_or(line).to_owned() + "\n")
        .collect();
    let page = include_str!("../../../README.md");
    let block = page.split("## From candle").nth(1).unwrap_or_default();
    let block = block.split("```rust,ignore\n").nth(1).unwrap_or_default();
    assert_eq!(block.split("```").next(), Some(&code[..]));
}
