//! Runs calls through the raw API on buffers with a canary around every row.

#![allow(unsafe_code)]

use cuda_emulator::{BufferTraffic, LaunchReport};
use xact::activation::Registered;
use xact::cudarc::driver::{CudaSlice, DevicePtr};
use xact::raw::{self, Blocks, Matrix};
use xact::{Dtype, Element, Gated, Halves, Order, Result};

use super::choose::Gpu;
use super::same::bits;

/// The value of the bytes around a tensor.
const CANARY: u8 = 0xa5;
/// The number of canary bytes before and after a tensor; more than the head of a tile.
const MARGIN: usize = 64;

/// The placement of the rows of a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The number of elements from a 16-byte boundary to the start of the tensor.
    pub offset: usize,
    /// The number of elements from the end of a row to the start of the next.
    pub gap: usize,
}

/// How a gate and a value lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Two tensors.
    Separate,
    /// The halves of one tensor, the gate first.
    Halves,
    /// Blocks of so many columns in turn.
    Blocks(Halves, usize),
}

impl Layout {
    /// Two rows in one.
    fn join<T: Copy>(self, x: &[T], v: &[T]) -> Vec<T> {
        match self {
            Layout::Separate | Layout::Halves => [x, v].concat(),
            Layout::Blocks(order, block) => {
                let (first, second) = match order {
                    Halves::GateFirst => (x, v),
                    Halves::ValueFirst => (v, x),
                };
                let blocks = first.chunks(block).zip(second.chunks(block));
                blocks.flat_map(|(a, b)| [a, b].concat()).collect()
            }
        }
    }

    /// The rows that `join` has joined.
    fn part<T: Copy>(self, both: &[T]) -> [Vec<T>; 2] {
        let (block, order) = match self {
            Layout::Separate | Layout::Halves => (both.len() / 2, Halves::GateFirst),
            Layout::Blocks(order, block) => (block, order),
        };
        let side = |skip: usize| both.chunks(block.max(1)).skip(skip).step_by(2).flatten();
        let [first, second] = [0, 1].map(|skip| side(skip).copied().collect());
        match order {
            Halves::GateFirst => [first, second],
            Halves::ValueFirst => [second, first],
        }
    }
}

/// The layout and the options of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// The number of rows of the tensors.
    pub rows: usize,
    /// The placement of x.
    pub x: Place,
    /// The placement of v.
    pub v: Place,
    /// The placement of dy.
    pub dy: Place,
    /// The placement of the outputs.
    pub out: Place,
    /// Whether x and v, and dx and dv, are in one tensor each, placed by `x` and `out`.
    pub layout: Layout,
    /// Whether y overwrites x, or dx overwrites dy. Gated: whether dx and dv overwrite x and v.
    pub in_place: bool,
    /// Whether dx overwrites x.
    pub over_x: bool,
    /// Whether the gradients of parameters are added to the values in their buffers.
    pub accumulate: bool,
    /// Whether the backward writes y again, which is compared with that of the forward.
    pub emit_y: bool,
    /// The number of blocks of a launch.
    pub blocks: Blocks,
}

impl Default for How {
    fn default() -> Self {
        How {
            rows: 1,
            x: Place::default(),
            v: Place::default(),
            dy: Place::default(),
            out: Place::default(),
            layout: Layout::Separate,
            in_place: false,
            over_x: false,
            accumulate: false,
            emit_y: false,
            blocks: Blocks::All,
        }
    }
}

/// The values of the parameter gradients before a backward.
pub const DPARAMS_BEFORE: f32 = 1.5;

/// A tensor on the device, with canaries.
pub struct Tensor {
    bytes: CudaSlice<u8>,
    start: usize,
    rows: usize,
    cols: usize,
    pitch: usize,
    element: usize,
}

impl Tensor {
    /// Uploads `data` as `rows` rows, with canaries between and around them.
    pub fn upload<T: bytemuck::Pod>(gpu: &Gpu, data: &[T], rows: usize, place: Place) -> Tensor {
        let cols = data.len().checked_div(rows).unwrap_or(0);
        assert_eq!(rows * cols, data.len());
        let element = size_of::<T>();
        let pitch = cols + place.gap;
        let start = MARGIN + place.offset * element;
        let mut host = vec![CANARY; start + rows * pitch * element + MARGIN];
        for (r, row) in data.chunks_exact(cols.max(1)).enumerate() {
            let at = start + r * pitch * element;
            host[at..at + cols * element].copy_from_slice(bytemuck::cast_slice(row));
        }
        Tensor {
            bytes: gpu.stream.clone_htod(&host).expect("upload"),
            start,
            rows,
            cols,
            pitch,
            element,
        }
    }

    /// The rows, and whether all canaries are unchanged.
    pub fn download<T: bytemuck::Pod>(&self, gpu: &Gpu) -> (Vec<T>, bool) {
        let mut host = gpu.stream.clone_dtoh(&self.bytes).expect("download");
        let mut rows = Vec::with_capacity(self.rows * self.cols);
        for r in 0..self.rows {
            let at = self.start + r * self.pitch * self.element;
            let row = &mut host[at..at + self.cols * self.element];
            rows.extend(bytemuck::pod_collect_to_vec::<u8, T>(row));
            row.fill(CANARY);
        }
        let intact = host.iter().all(|&b| b == CANARY);
        (rows, intact)
    }

    /// The argument of a raw call.
    pub fn matrix(&self, gpu: &Gpu) -> Matrix {
        let (base, _guard) = self.bytes.device_ptr(&gpu.stream);
        Matrix {
            ptr: base + self.start as u64,
            pitch: self.pitch as u64,
        }
    }
}

/// Uploads `values`, and calls `f` with the device pointer of each.
pub fn with_scalars<P: Element, R>(
    gpu: &Gpu,
    values: &[P],
    f: impl FnOnce(&[raw::CUdeviceptr]) -> R,
) -> R {
    let buffers: Vec<_> = values
        .iter()
        .map(|v| Tensor::upload(gpu, &[*v], 1, Place::default()))
        .collect();
    let pointers: Vec<_> = buffers.iter().map(|b| b.matrix(gpu).ptr).collect();
    f(&pointers)
}

fn common<'a, T: Element, P: Element>(
    how: &How,
    cols: usize,
    params: &'a [raw::CUdeviceptr],
) -> raw::Common<'a> {
    raw::Common {
        dtype: T::DTYPE,
        rows: how.rows as u64,
        cols: cols as u64,
        params,
        param_dtype: P::DTYPE,
        blocks: how.blocks,
    }
}

/// Computes y on the device.
pub fn forward<A: Registered, T: Element, P: Element>(
    gpu: &Gpu,
    op: &A,
    params: &[P],
    x: &[T],
    how: &How,
) -> Result<Vec<T>> {
    let input = Tensor::upload(gpu, x, how.rows, how.x);
    let blank = vec![T::from_f64(f64::NAN); x.len()];
    let output = (!how.in_place).then(|| Tensor::upload(gpu, &blank, how.rows, how.out));
    let output = output.as_ref().unwrap_or(&input);
    with_scalars(gpu, params, |params| {
        let call = raw::Forward {
            common: common::<T, P>(how, input.cols, params),
            x: input.matrix(gpu),
            y: output.matrix(gpu),
        };
        // SAFETY: the buffers live until the download below, which waits for the stream.
        unsafe { raw::forward(&gpu.device, gpu.stream.cu_stream(), op, &call) }
    })?;
    let (y, intact) = output.download(gpu);
    assert!(intact, "the forward wrote outside y");
    if !how.in_place {
        let (after, intact) = input.download::<T>(gpu);
        assert!(intact && bits(&after) == bits(x), "the forward changed x");
    }
    Ok(y)
}

/// The parameter gradients of a backward, and its workspace.
struct Sums {
    tensors: Vec<Tensor>,
    out: Vec<raw::CUdeviceptr>,
    workspace: raw::CUdeviceptr,
    workspace_bytes: u64,
    _keep: CudaSlice<u8>,
}

impl Sums {
    fn new(gpu: &Gpu, params: usize, workspace_bytes: usize) -> Sums {
        let before = || Tensor::upload(gpu, &[DPARAMS_BEFORE], 1, Place::default());
        let tensors: Vec<_> = (0..params).map(|_| before()).collect();
        // SAFETY: the memory is deliberately uninitialised, so that the emulator reports a partial sum that is read before
        // it is written.
        let workspace = unsafe { gpu.stream.alloc::<u8>(workspace_bytes.max(1)) };
        let workspace = workspace.expect("workspace");
        let at = workspace.device_ptr(&gpu.stream).0;
        Sums {
            out: tensors.iter().map(|t| t.matrix(gpu).ptr).collect(),
            tensors,
            workspace: at,
            workspace_bytes: workspace_bytes as u64,
            _keep: workspace,
        }
    }

    fn dparams(&self, accumulate: bool) -> raw::Dparams<'_> {
        raw::Dparams {
            out: &self.out,
            accumulate,
            workspace: self.workspace,
            workspace_bytes: self.workspace_bytes,
        }
    }

    fn download(&self, gpu: &Gpu) -> Vec<f32> {
        let values = self.tensors.iter().map(|tensor| {
            let (value, intact) = tensor.download::<f32>(gpu);
            assert!(intact, "the backward wrote outside a parameter gradient");
            value[0]
        });
        values.collect()
    }
}

/// Computes dx and the parameter gradients on the device.
pub fn backward<A: Registered, T: Element, P: Element>(
    gpu: &Gpu,
    op: &A,
    params: &[P],
    x: &[T],
    dy: &[T],
    how: &How,
) -> Result<(Vec<T>, Vec<f32>)> {
    let input = Tensor::upload(gpu, x, how.rows, how.x);
    let gradient = Tensor::upload(gpu, dy, how.rows, how.dy);
    let blank = vec![T::from_f64(f64::NAN); x.len()];
    let elsewhere = Tensor::upload(gpu, &blank, how.rows, how.out);
    let output = match (how.in_place, how.over_x) {
        (true, _) => &gradient,
        (false, true) => &input,
        (false, false) => &elsewhere,
    };
    let y = (how.emit_y).then(|| Tensor::upload(gpu, &blank, how.rows, how.out));
    let needed = workspace_bytes(op, T::DTYPE, how.rows, input.cols);
    let sums = Sums::new(gpu, params.len(), needed);
    with_scalars(gpu, params, |params| {
        let call = raw::Backward {
            common: common::<T, P>(how, input.cols, params),
            x: input.matrix(gpu),
            dy: gradient.matrix(gpu),
            dx: output.matrix(gpu),
            y: y.as_ref().map(|y| y.matrix(gpu)),
            dparams: Some(sums.dparams(how.accumulate)),
        };
        // SAFETY: the buffers live until the downloads below, which wait for the stream.
        unsafe { raw::backward(&gpu.device, gpu.stream.cu_stream(), op, &call) }
    })?;
    let (dx, intact) = output.download(gpu);
    assert!(intact, "the backward wrote outside dx");
    if !how.over_x {
        let (after, intact) = input.download::<T>(gpu);
        assert!(intact && bits(&after) == bits(x), "the backward changed x");
    }
    if !how.in_place {
        let (after, intact) = gradient.download::<T>(gpu);
        assert!(
            intact && bits(&after) == bits(dy),
            "the backward changed dy"
        );
    }
    if let Some(y) = y {
        let (again, intact) = y.download::<T>(gpu);
        let expected = forward(
            gpu,
            op,
            params,
            x,
            &How {
                emit_y: false,
                ..*how
            },
        )?;
        assert!(
            intact && bits(&again) == bits(&expected),
            "y was emitted wrong"
        );
    }
    Ok((dx, sums.download(gpu)))
}

/// A gate and a value on the device: two tensors, or one.
struct Pair {
    tensors: Vec<Tensor>,
    layout: Layout,
}

impl Pair {
    fn upload<T: Element>(
        gpu: &Gpu,
        [x, v]: [&[T]; 2],
        how: &How,
        [at_x, at_v]: [Place; 2],
    ) -> Pair {
        let layout = how.layout;
        let tensors = if layout == Layout::Separate {
            vec![
                Tensor::upload(gpu, x, how.rows, at_x),
                Tensor::upload(gpu, v, how.rows, at_v),
            ]
        } else {
            let cols = x.len().checked_div(how.rows).unwrap_or(0).max(1);
            let rows = x.chunks_exact(cols).zip(v.chunks_exact(cols));
            let both: Vec<T> = rows.flat_map(|(x, v)| layout.join(x, v)).collect();
            vec![Tensor::upload(gpu, &both, how.rows, at_x)]
        };
        Pair { tensors, layout }
    }

    fn raw(&self, gpu: &Gpu) -> raw::Pair {
        let xv = self.tensors[0].matrix(gpu);
        match self.layout {
            Layout::Separate => raw::Pair::Separate {
                x: xv,
                v: self.tensors[1].matrix(gpu),
            },
            Layout::Halves => {
                let half = self.tensors[0].cols / 2 * self.tensors[0].element;
                let ptr = xv.ptr + half as u64;
                raw::Pair::Separate {
                    x: xv,
                    v: Matrix { ptr, ..xv },
                }
            }
            Layout::Blocks(order, block) => raw::Pair::Interleaved {
                xv,
                order,
                block: block as u64,
            },
        }
    }

    fn download<T: Element>(&self, gpu: &Gpu) -> ([Vec<T>; 2], bool) {
        let mut intact = true;
        let mut parts: Vec<Vec<T>> = Vec::new();
        for tensor in &self.tensors {
            let (values, whole) = tensor.download(gpu);
            parts.push(values);
            intact &= whole;
        }
        if self.layout != Layout::Separate {
            let rows = parts[0].chunks_exact(self.tensors[0].cols.max(1));
            let (x, v): (Vec<_>, Vec<_>) = rows.map(|row| self.layout.part(row).into()).unzip();
            parts = vec![x.concat(), v.concat()];
        }
        let [x, v] = <[Vec<T>; 2]>::try_from(parts).expect("a pair");
        ([x, v], intact)
    }
}

/// Computes y of a gated form on the device.
pub fn gated_forward<A: Gated + Registered, T: Element>(
    gpu: &Gpu,
    op: &A,
    order: Order,
    params: &[f32],
    [x, v]: [&[T]; 2],
    how: &How,
) -> Result<Vec<T>> {
    let input = Pair::upload(gpu, [x, v], how, [how.x, how.v]);
    let blank = vec![T::from_f64(f64::NAN); x.len()];
    let output = Tensor::upload(gpu, &blank, how.rows, how.out);
    with_scalars(gpu, params, |params| {
        let call = raw::GatedForward {
            common: common::<T, f32>(how, output.cols, params),
            order,
            xv: input.raw(gpu),
            y: output.matrix(gpu),
        };
        // SAFETY: the buffers live until the download below, which waits for the stream.
        unsafe { raw::gated_forward(&gpu.device, gpu.stream.cu_stream(), op, &call) }
    })?;
    let (y, intact) = output.download(gpu);
    assert!(intact, "the gated forward wrote outside y");
    Ok(y)
}

/// Computes dx, dv and the parameter gradients of a gated form on the device.
pub fn gated_backward<A: Gated + Registered, T: Element>(
    gpu: &Gpu,
    op: &A,
    order: Order,
    params: &[f32],
    [x, v, dy]: [&[T]; 3],
    how: &How,
) -> Result<([Vec<T>; 2], Vec<f32>)> {
    let input = Pair::upload(gpu, [x, v], how, [how.x, how.v]);
    let upstream = Tensor::upload(gpu, dy, how.rows, how.dy);
    let blank = vec![T::from_f64(f64::NAN); x.len()];
    let output =
        (!how.in_place).then(|| Pair::upload(gpu, [&blank, &blank], how, [how.out, how.v]));
    let output = output.as_ref().unwrap_or(&input);
    let y = (how.emit_y).then(|| Tensor::upload(gpu, &blank, how.rows, how.dy));
    let needed = workspace_bytes(op, T::DTYPE, how.rows, upstream.cols);
    let sums = Sums::new(gpu, params.len(), needed);
    with_scalars(gpu, params, |params| {
        let call = raw::GatedBackward {
            common: common::<T, f32>(how, upstream.cols, params),
            order,
            xv: input.raw(gpu),
            dy: upstream.matrix(gpu),
            dxv: output.raw(gpu),
            y: y.as_ref().map(|y| y.matrix(gpu)),
            dparams: Some(sums.dparams(how.accumulate)),
        };
        // SAFETY: the buffers live until the downloads below, which wait for the stream.
        unsafe { raw::gated_backward(&gpu.device, gpu.stream.cu_stream(), op, &call) }
    })?;
    let (gradients, intact) = output.download(gpu);
    assert!(intact, "the gated backward wrote outside dx and dv");
    if !how.in_place {
        let ([x_after, v_after], intact) = input.download::<T>(gpu);
        assert!(intact && bits(&x_after) == bits(x) && bits(&v_after) == bits(v));
    }
    if let Some(y) = y {
        let (again, intact) = y.download::<T>(gpu);
        let expected = gated_forward(gpu, op, order, params, [x, v], how)?;
        assert!(
            intact && bits(&again) == bits(&expected),
            "y was emitted wrong"
        );
    }
    Ok((gradients, sums.download(gpu)))
}

/// The workspace size that the raw API asks for. (A tensor with gaps may be divided into more chunks than one without.)
pub fn workspace_bytes<A: Registered>(op: &A, dtype: Dtype, rows: usize, cols: usize) -> usize {
    raw::workspace_bytes(op, dtype, rows as u64, cols as u64).expect("a small shape") as usize
}

/// The tensors and the workspace among the buffers of a launch. The scalars are left out, because every thread reads them,
/// from the cache.
pub fn tensors(launch: &LaunchReport) -> impl Iterator<Item = &BufferTraffic> {
    // No tensor with its margins, and no workspace (whole pairs of f32), has such a length.
    let scalar = [2, 4].map(|element| 2 * MARGIN as u64 + element);
    launch
        .buffers
        .iter()
        .filter(move |buffer| !scalar.contains(&buffer.len))
}
