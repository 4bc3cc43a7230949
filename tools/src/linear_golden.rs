//! Reads `tests/golden/linear_cross_entropy_torch.safetensors`, the results of PyTorch.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use xact::CrossEntropy;

use super::loss_golden::op;

/// A case of the file.
pub struct Case {
    /// The name in the file.
    pub name: String,
    /// The options.
    pub op: CrossEntropy,
    /// The number of columns of the hidden states and of the weights.
    pub cols: usize,
    /// `[rows, cols]`.
    pub hidden: Vec<f64>,
    /// `[classes, cols]`.
    pub weight: Vec<f64>,
    /// The class of each row, or the ignored label.
    pub labels: Vec<i64>,
    /// The weight of each row.
    pub weights: Option<Vec<f32>>,
    /// The upstream gradient of each row.
    pub dloss: Vec<f32>,
    /// `[rows]`.
    pub loss: Vec<f64>,
    /// The loss of the batch.
    pub mean: f64,
    /// `[rows, cols]`.
    pub d_hidden: Vec<f64>,
    /// `[classes, cols]`.
    pub d_weight: Vec<f64>,
}

/// All cases of the file.
pub fn cases() -> Vec<Case> {
    let file = include_bytes!("../../tests/golden/linear_cross_entropy_torch.safetensors");
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
    let labels = file.tensor("labels").expect("labels");
    let cases = cases.as_object().expect("cases").iter();
    let cases = cases.map(|(name, options)| {
        let of = |what: &str| floats(&format!("{name}.{what}"));
        Case {
            op: op(options),
            cols: file.tensor("hidden").expect("hidden").shape()[1],
            hidden: floats("hidden"),
            weight: floats("weight"),
            labels: bytemuck::pod_collect_to_vec(labels.data()),
            weights: (options["weighted"] == true).then(|| singles("weights")),
            dloss: singles("dloss"),
            loss: of("loss"),
            mean: of("mean")[0],
            d_hidden: of("d_hidden"),
            d_weight: of("d_weight"),
            name: name.clone(),
        }
    });
    cases.collect()
}
