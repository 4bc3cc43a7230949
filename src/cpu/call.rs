//! A call of the elementwise loops: its tensors, divided into chunks.
//!
//! The loops are generic over the op and the element type, and each pair is compiled for every instruction set. An op takes
//! an [`AnyCall`], which is not generic, so that the loops are compiled in this crate and not again in its users.

use super::function::Function;
use super::map::{self, CHUNK, Sums, run_all};
use super::segment::Segment;
use crate::activation::MAX_PARAMS;
use crate::dtype::{Dtype, Element};

/// The gradients of the parameters. A forward returns zeros.
pub type Gradients = [f32; MAX_PARAMS];

/// The tensors of a call, all of one length.
pub struct Call<'a, T, const GATED: bool> {
    pub backward: bool,
    pub rows: Vec<Segment<'a, T>>,
}

/// A call of any element type.
pub enum AnyCall<'a, const GATED: bool> {
    F32(Call<'a, f32, GATED>),
    F16(Call<'a, half::f16, GATED>),
    Bf16(Call<'a, half::bf16, GATED>),
}

impl<'a, T: Element, const GATED: bool> From<Call<'a, T, GATED>> for AnyCall<'a, GATED> {
    fn from(call: Call<'a, T, GATED>) -> Self {
        match T::DTYPE {
            Dtype::F32 => AnyCall::F32(call.cast()),
            Dtype::F16 => AnyCall::F16(call.cast()),
            Dtype::Bf16 => AnyCall::Bf16(call.cast()),
        }
    }
}

impl<const GATED: bool> AnyCall<'_, GATED> {
    /// Runs the loops with the function for the element type. `chain` has the factors that turn the sums into the gradients
    /// of the stored parameters.
    pub fn run(
        self,
        f32: impl Function,
        f16: impl Function,
        bf16: impl Function,
        chain: Gradients,
    ) -> Gradients {
        let sums = match self {
            AnyCall::F32(call) => call.run(f32),
            AnyCall::F16(call) => call.run(f16),
            AnyCall::Bf16(call) => call.run(bf16),
        };
        std::array::from_fn(|p| (f64::from(chain[p]) * sums[p]) as f32)
    }
}

impl<'a, T: Element, const GATED: bool> Call<'a, T, GATED> {
    /// The same tensors, where `U` is the same type as `T`.
    fn cast<U: Element>(self) -> Call<'a, U, GATED> {
        use bytemuck::{cast_slice, cast_slice_mut};
        let cast = |row: Segment<'a, T>| Segment {
            x: row.x.map(cast_slice),
            v: row.v.map(cast_slice),
            dy: row.dy.map(cast_slice),
            out: cast_slice_mut(row.out),
            dv: cast_slice_mut(row.dv),
            y: row.y.map(cast_slice_mut),
            xv: row.xv,
            dxv: row.dxv,
        };
        Call {
            backward: self.backward,
            rows: self.rows.into_iter().map(cast).collect(),
        }
    }

    fn run<F: Function>(self, f: F) -> Sums {
        let Call { backward, rows } = self;
        let len = rows.iter().map(Segment::len).sum();
        let work = |segments: Vec<Segment<'a, T>>| map::Work::<F, T, GATED> {
            f,
            backward,
            segments,
        };
        run_all(
            len,
            Chunks {
                rows: rows.into_iter(),
                rest: None,
            }
            .map(work),
        )
    }
}

/// Divides the rows of a call into chunks of at most [`CHUNK`] elements: long rows are divided, and short rows are gathered.
/// The division depends on the shape alone.
struct Chunks<'a, T> {
    rows: std::vec::IntoIter<Segment<'a, T>>,
    /// The rest of a row that is longer than a chunk.
    rest: Option<Segment<'a, T>>,
}

impl<'a, T> Iterator for Chunks<'a, T> {
    type Item = Vec<Segment<'a, T>>;

    fn next(&mut self) -> Option<Vec<Segment<'a, T>>> {
        let (mut chunk, mut room) = (Vec::new(), CHUNK);
        while room > 0 {
            let Some(mut row) = self.rest.take().or_else(|| self.rows.next()) else {
                break;
            };
            // A long row begins a new chunk, so that it is divided as if it were the only row.
            if row.len() > room && !chunk.is_empty() {
                self.rest = Some(row);
                break;
            }
            let first = row.take(room);
            room -= first.len();
            if !first.out.is_empty() {
                chunk.push(first);
            }
            if !row.out.is_empty() {
                self.rest = Some(row);
            }
        }
        (!chunk.is_empty()).then_some(chunk)
    }
}
