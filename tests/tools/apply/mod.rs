//! `apply`: input files, output files, and error texts.

mod activations;
mod goldfish;
mod losses;
#[cfg(unix)]
mod output_file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xact::Element;

fn apply() -> Command {
    Command::new(env!("CARGO_BIN_EXE_apply"))
}

/// A tensor of an input file.
struct Tensor(Dtype, Vec<usize>, Vec<u8>);

fn tensor<T: Element>(shape: &[usize], values: &[f64]) -> Tensor {
    let values: Vec<T> = values.iter().map(|&v| T::from_f64(v)).collect();
    let dtype = match T::DTYPE {
        xact::Dtype::F32 => Dtype::F32,
        xact::Dtype::F16 => Dtype::F16,
        _ => Dtype::BF16,
    };
    Tensor(
        dtype,
        shape.to_vec(),
        bytemuck::cast_slice(&values).to_vec(),
    )
}

struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, tensors: &[(&str, Tensor)]) {
        let views = tensors.iter().map(|(name, Tensor(dtype, shape, bytes))| {
            (
                *name,
                TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
            )
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(self.path("in.safetensors"), bytes).unwrap();
    }

    fn run(&self, op: &str, line: &str) -> Output {
        apply()
            .arg(op)
            .arg("--input")
            .arg(self.path("in.safetensors"))
            .arg("--output")
            .arg(self.path("out.safetensors"))
            .args(line.split_whitespace())
            .output()
            .unwrap()
    }

    /// Runs the command, which must succeed, and returns its output file.
    fn outputs_of(&self, op: &str, line: &str) -> BTreeMap<String, Tensor> {
        self.says(op, line).0
    }

    /// The same, and also returns stderr.
    fn says(&self, op: &str, line: &str) -> (BTreeMap<String, Tensor>, String) {
        let output = self.run(op, line);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        (read(&self.path("out.safetensors")), text)
    }

    /// Runs the command, which must fail with status 2, a message with `words`, and no output file.
    fn refused(&self, op: &str, line: &str, words: &[&str]) {
        let output = self.run(op, line);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        for word in words {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
        assert!(text.lines().count() < 12, "{text}");
        assert!(!self.path("out.safetensors").exists());
    }
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, v)| {
            (
                name,
                Tensor(v.dtype(), v.shape().to_vec(), v.data().to_vec()),
            )
        })
        .collect()
}

/// The device of the suite.
fn the_device() -> String {
    std::env::var("XACT_DEVICE").unwrap_or_else(|_| "auto".to_owned())
}

fn values<T: Element>(tensor: &Tensor) -> Vec<T> {
    bytemuck::pod_collect_to_vec(&tensor.2)
}

/// A tensor of f64.
fn doubles(shape: &[usize], values: &[f64]) -> Tensor {
    let bytes = bytemuck::cast_slice(values).to_vec();
    Tensor(Dtype::F64, shape.to_vec(), bytes)
}

/// Panics unless the numbers are within this relative distance of the expected ones.
fn near(got: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len());
    for (&got, &expected) in got.iter().zip(expected) {
        let distance = (f64::from(got) - expected).abs();
        assert!(distance <= bound * expected.abs(), "{got} for {expected}");
    }
}

/// A tensor of integers.
fn integers(dtype: Dtype, shape: &[usize], values: &[i64]) -> Tensor {
    let size = match dtype {
        Dtype::U8 => 1,
        Dtype::U16 => 2,
        Dtype::U32 | Dtype::I32 => 4,
        _ => 8,
    };
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec());
    Tensor(dtype, shape.to_vec(), bytes.collect())
}

#[test]
fn ops_are_called_by_their_names_in_the_registry() {
    let output = apply().arg("--help").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for name in [xact::activation::NAMES, xact::loss::NAMES].concat() {
        assert!(text.lines().any(|line| line.trim_start().starts_with(name)));
    }
    // The old names are still accepted.
    assert!(!text.contains("cross-entropy") && !text.contains("goldfish-mask"));
    let scratch = Scratch::new();
    scratch.write(&[("labels", integers(Dtype::I64, &[1, 1], &[3]))]);
    let outputs = scratch.outputs_of("goldfish-mask", "--device cpu");
    assert_eq!(outputs["keep"].2, [1]);
    std::fs::remove_file(scratch.path("out.safetensors")).unwrap();
    let forward = "--device cpu --direction forward";
    scratch.refused("cross-entropy", forward, &["no tensor logits", "labels"]);
}
