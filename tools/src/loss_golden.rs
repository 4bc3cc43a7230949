//! Reads `tests/golden/cross_entropy_torch.safetensors`, the results of PyTorch.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use xact::{CrossEntropy, Normalizer};

/// A case of the file.
pub struct Case {
    /// The name in the file.
    pub name: String,
    /// The options.
    pub op: CrossEntropy,
    /// The number of columns of a row.
    pub cols: usize,
    /// `[rows, cols]`.
    pub logits: Vec<f64>,
    /// The class of each row, or the ignored label.
    pub labels: Vec<i64>,
    /// The weight of each row.
    pub weights: Option<Vec<f32>>,
    /// The upstream gradient of each row.
    pub dloss: Vec<f32>,
    /// `[rows]`.
    pub loss: Vec<f64>,
    /// The logarithm of the sum of exponentials, `[rows]`.
    pub lse: Vec<f64>,
    /// The loss of the batch.
    pub mean: f64,
    /// `[rows, cols]`.
    pub dlogits: Vec<f64>,
}

/// The options of a case of PyTorch's results.
pub fn op(options: &Value) -> CrossEntropy {
    let number = |key: &str| options[key].as_f64().map(|v| v as f32);
    let mut op = CrossEntropy::default()
        .label_smoothing(number("label_smoothing").unwrap_or(0.0))
        .z_loss(number("z_loss").unwrap_or(0.0))
        .normalizer(match options["normalizer"].as_str() {
            None => Normalizer::Kept,
            Some("weight") => Normalizer::Weight,
            Some("none") => Normalizer::None,
            Some(other) => panic!("a normalizer {other}"),
        });
    op.softcap = number("softcap");
    op
}

/// All cases of the file.
pub fn cases() -> Vec<Case> {
    let file = include_bytes!("../../tests/golden/cross_entropy_torch.safetensors");
    let (_, metadata) = SafeTensors::read_metadata(file).expect("a header");
    let metadata = metadata.metadata().as_ref().expect("metadata");
    let cases: Value = serde_json::from_str(&metadata["cases"]).expect("JSON");
    let file = SafeTensors::deserialize(file).expect("tensors");
    let floats = |name: &str| -> Vec<f64> {
        let view = file.tensor(name).expect("a tensor");
        assert_eq!(view.dtype(), Dtype::F64);
        bytemuck::pod_collect_to_vec(view.data())
    };
    let singles = |name: &str| floats(name).into_iter().map(|v| v as f32).collect();
    let cases = cases.as_object().expect("cases").iter();
    let cases = cases.map(|(name, options)| {
        let op = op(options);
        let of = |what: &str| floats(&format!("{name}.{what}"));
        // In PyTorch, the softcap maps −inf to −c, as a very low logit. In xact, −inf remains no class.
        let logit = |z: f64| {
            if op.softcap.is_some() {
                z.max(-16384.0)
            } else {
                z
            }
        };
        let labels = file.tensor(&format!("{name}.labels"));
        let labels = labels.or_else(|_| file.tensor("labels")).expect("labels");
        Case {
            op,
            cols: file.tensor("logits").expect("logits").shape()[1],
            logits: floats("logits").into_iter().map(logit).collect(),
            labels: bytemuck::pod_collect_to_vec(labels.data()),
            weights: (options["weighted"] == true).then(|| singles("weights")),
            dloss: singles("dloss"),
            loss: of("loss"),
            lse: of("lse"),
            mean: of("mean")[0],
            dlogits: of("dlogits"),
            name: name.clone(),
        }
    });
    cases.collect()
}
