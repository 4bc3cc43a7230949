//! The tensors of the input and output files.

use std::cell::RefCell;
use std::collections::BTreeSet;

use bytemuck::Pod;
use half::{bf16, f16};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xact::Element;

use super::arguments::Backend;

/// The tensors of the input. The struct records which are read.
pub struct Tensors<'a> {
    file: SafeTensors<'a>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Tensors<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self, SafeTensorError> {
        Ok(Tensors {
            file: SafeTensors::deserialize(bytes)?,
            read: RefCell::default(),
        })
    }

    /// An optional tensor.
    pub fn find(&self, name: &str) -> Option<TensorView<'a>> {
        let view = self.file.tensor(name).ok()?;
        self.read.borrow_mut().insert(name.to_owned());
        Some(view)
    }

    /// A required tensor.
    pub fn get(&self, name: &str) -> Result<TensorView<'a>, String> {
        self.find(name).ok_or_else(|| {
            let mut names = self.file.names();
            names.sort_unstable();
            format!(
                "the input has no tensor {name} (it has: {})",
                names.join(", ")
            )
        })
    }

    /// Prints the names of the tensors that were not read. Call it after all reads.
    pub fn warn_of_unread(&self) {
        let read = self.read.borrow();
        let mut unread = self.file.names();
        unread.retain(|&name| !read.contains(name));
        unread.sort_unstable();
        if !unread.is_empty() {
            eprintln!("warning: not read of the input: {}", unread.join(", "));
        }
    }

    /// The elements of an optional tensor of this type.
    pub fn list<T: Pod>(&self, name: &str, dtype: Dtype) -> Result<Option<Vec<T>>, String> {
        let Some(view) = self.find(name) else {
            return Ok(None);
        };
        if view.dtype() != dtype {
            return Err(format!(
                "{name} is {:?}; it must be {dtype:?}",
                view.dtype()
            ));
        }
        Ok(Some(elements(&view)))
    }

    /// The numbers of an optional tensor: f32, or f64 if the other tensors are f64.
    pub fn floats(&self, name: &str, beside: Dtype) -> Result<Option<Vec<f64>>, String> {
        let Some(view) = self.find(name) else {
            return Ok(None);
        };
        match view.dtype() {
            Dtype::F32 => {}
            Dtype::F64 if beside == Dtype::F64 => {}
            other => return Err(format!("{name} is {other:?}; it must be F32")),
        }
        Ok(Some(numbers(&view)))
    }

    /// An optional scalar, of f32 or of the type of the tensors.
    pub fn find_scalar(&self, name: &str, beside: Dtype) -> Result<Option<f64>, String> {
        let Some(view) = self.find(name) else {
            return Ok(None);
        };
        let of_type = [Dtype::F32, beside].contains(&view.dtype());
        match view.shape() {
            shape if of_type && shape.iter().product::<usize>() == 1 => Ok(Some(numbers(&view)[0])),
            shape => {
                let or = match beside {
                    Dtype::F32 => String::new(),
                    other => format!(" or {other:?}"),
                };
                Err(format!(
                    "{name} is {:?} {shape:?}; it must be F32{or} with one element",
                    view.dtype()
                ))
            }
        }
    }

    /// A required scalar.
    pub fn scalar(&self, name: &str, beside: Dtype) -> Result<f64, String> {
        self.get(name)?;
        let scalar = self.find_scalar(name, beside)?;
        Ok(scalar.expect("it is there"))
    }
}

/// Evaluates a call with the element type of a name in files: `each_element!(dtype, T => …)`.
macro_rules! each_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            Dtype::F32 => {
                type $T = f32;
                $body
            }
            Dtype::F16 => {
                type $T = half::f16;
                $body
            }
            Dtype::BF16 => {
                type $T = half::bf16;
                $body
            }
            other => unreachable!("{other:?} is only for the reference"),
        }
    };
}
pub(crate) use each_element;

/// Evaluates a call with the integer type of a tensor. The arguments list the allowed types: names in files, and in Rust.
macro_rules! each_integer {
    ($name:expr, $view:expr, [$($Name:ident: $type:ident),*], $I:ident => $body:expr) => {
        match $view.dtype() {
            $(safetensors::tensor::Dtype::$Name => {
                type $I = $type;
                $body
            })*
            other => Err($crate::tensors::no_such_type($name, other, &[$(stringify!($Name)),*])),
        }
    };
}
pub(crate) use each_integer;

/// The error for a tensor of a wrong type.
pub fn no_such_type(name: &str, dtype: Dtype, types: &[&str]) -> String {
    let (last, others) = types.split_last().expect("some type");
    format!(
        "{name} is {dtype:?}; it must be {} or {last}",
        others.join(", ")
    )
}

/// Fails unless the backend takes this type.
pub fn check_type(name: &str, view: &TensorView<'_>, backend: Backend) -> Result<(), String> {
    match view.dtype() {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
        Dtype::F64 if backend == Backend::Reference => Ok(()),
        Dtype::F64 => Err(format!(
            "{name} is F64, which only --device reference takes; for others it must be F32, F16 or BF16"
        )),
        other => Err(format!(
            "{name} is {other:?}; it must be F32, F16 or BF16, or F64 for --device reference"
        )),
    }
}

/// The elements of a tensor of `T`.
pub fn elements<T: Pod>(view: &TensorView<'_>) -> Vec<T> {
    bytemuck::pod_collect_to_vec(view.data())
}

/// The elements of a tensor of floating point numbers, exactly.
pub fn numbers(view: &TensorView<'_>) -> Vec<f64> {
    match view.dtype() {
        Dtype::F64 => elements(view),
        dtype => {
            each_element!(dtype, T => elements::<T>(view).iter().map(|v| v.to_f64()).collect())
        }
    }
}

/// A tensor to be written.
pub struct Output {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Output {
    /// Of elements of this type.
    pub fn new<T: Pod>(name: &'static str, dtype: Dtype, shape: &[usize], values: &[T]) -> Output {
        Output {
            name,
            dtype,
            shape: shape.to_vec(),
            bytes: bytemuck::cast_slice(values).to_vec(),
        }
    }

    /// Of numbers, rounded to this type.
    pub fn rounded(name: &'static str, dtype: Dtype, shape: &[usize], values: &[f64]) -> Output {
        fn narrow<T: Element>(values: &[f64]) -> Vec<T> {
            values.iter().map(|&v| T::from_f64(v)).collect()
        }
        match dtype {
            Dtype::F64 => Output::new(name, dtype, shape, values),
            Dtype::F32 => Output::new(name, dtype, shape, &narrow::<f32>(values)),
            Dtype::F16 => Output::new(name, dtype, shape, &narrow::<f16>(values)),
            Dtype::BF16 => Output::new(name, dtype, shape, &narrow::<bf16>(values)),
            other => unreachable!("{other:?} holds no such numbers"),
        }
    }
}

/// The bytes of a file.
pub fn serialize(outputs: &[Output]) -> Result<Vec<u8>, String> {
    let views = outputs
        .iter()
        .map(|o| Ok((o.name, TensorView::new(o.dtype, o.shape.clone(), &o.bytes)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>();
    let bytes = views.and_then(|views| safetensors::serialize(views, None));
    bytes.map_err(|e| format!("cannot make a safetensors file: {e}"))
}
