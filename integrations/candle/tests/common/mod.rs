//! Functions for several tests.
#![allow(dead_code)] // each uses its part

pub mod composed;

use candle_core::{DType, Device, Result, Tensor, Var};

/// Pseudo-random numbers in [−spread, spread], the same in every run.
pub fn numbers(seed: u64, len: usize, spread: f64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len)
        .map(|_| ((next() * 2.0 - 1.0) * spread) as f32)
        .collect()
}

/// A tensor of such numbers.
pub fn tensor(seed: u64, dims: &[usize], spread: f64, dtype: DType) -> Tensor {
    let len = dims.iter().product();
    let tensor = Tensor::from_vec(numbers(seed, len, spread), dims, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

pub fn var(tensor: &Tensor) -> Var {
    Var::from_tensor(tensor).unwrap()
}

pub fn scalar(value: f32) -> Var {
    Var::new(&[value], &Device::Cpu).unwrap()
}

/// All elements in f64.
pub fn f64s(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    tensor.to_vec1().unwrap()
}

/// The bits of all elements.
pub fn bits(tensor: &Tensor) -> Vec<u64> {
    f64s(tensor).into_iter().map(f64::to_bits).collect()
}

/// Panics unless the result is an error whose text contains these words.
#[track_caller]
pub fn refused<T>(result: Result<T>, words: &str) {
    match result {
        Ok(_) => panic!("accepted, and not refused for {words:?}"),
        Err(error) => assert!(error.to_string().contains(words), "{error}"),
    }
}

/// Panics unless the numbers agree within this share of the largest.
#[track_caller]
pub fn close(got: &[f64], expected: &[f64], part: f64) {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0, |m: f64, e| m.max(e.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= part * largest,
            "number {i} is {got:e}, expected {expected:e}; the largest is {largest:e}"
        );
    }
}
