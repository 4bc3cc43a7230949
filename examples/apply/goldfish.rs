//! The Goldfish mask of the labels of a file.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xact::cpu;
use xact::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, ValidAsZeroBits};
use xact::loss::goldfish::device::{Counts, DeviceLayout, DeviceTokens, Mask};
use xact::loss::goldfish::{Layout, TokenId, Tokens};
use xact::{Error, Goldfish, Strategy, Workspace, raw};

use super::support::choose::Gpu;
use super::{Machine, Output, tensor};

/// What is read of the file.
struct Inputs<'a, I> {
    ids: Vec<I>,
    /// Labels of a row.
    len: usize,
    cu_seqlens: Option<Vec<i32>>,
    exempt: Vec<i64>,
    labels: &'a TensorView<'a>,
}

/// `keep` and `kept`.
pub fn mask(
    strategy: Strategy,
    machine: &Machine,
    tensors: &SafeTensors<'_>,
) -> Result<Vec<Output>, String> {
    let labels = tensor(tensors, "labels")?;
    match labels.dtype() {
        Dtype::I32 => mask_of::<i32>(strategy, machine, tensors, &labels),
        Dtype::I64 => mask_of::<i64>(strategy, machine, tensors, &labels),
        other => Err(format!("labels is {other:?}; it must be I32 or I64")),
    }
}

fn mask_of<I: TokenId + bytemuck::Pod + DeviceRepr + ValidAsZeroBits>(
    strategy: Strategy,
    machine: &Machine,
    tensors: &SafeTensors<'_>,
    labels: &TensorView<'_>,
) -> Result<Vec<Output>, String> {
    let Some(&len) = labels.shape().last() else {
        return Err("labels is a scalar; it must be [rows, labels of a row]".to_owned());
    };
    let inputs = Inputs {
        ids: bytemuck::pod_collect_to_vec::<u8, I>(labels.data()),
        len,
        cu_seqlens: list(tensors, "cu_seqlens", Dtype::I32)?,
        exempt: list(tensors, "exempt", Dtype::I64)?.unwrap_or_default(),
        labels,
    };
    let goldfish = Goldfish::new(strategy).map_err(|e| e.to_string())?;
    let keep = match machine {
        Machine::Reference => inputs.reference(&goldfish),
        Machine::Cpu => inputs.on_cpu(&goldfish),
        Machine::Gpu(gpu) => inputs.on_device(&goldfish, gpu),
    };
    let (keep, kept) = keep.map_err(|e| e.to_string())?;
    Ok(vec![
        Output {
            name: "keep",
            dtype: Dtype::U8,
            shape: inputs.labels.shape().to_vec(),
            bytes: keep,
        },
        Output {
            name: "kept",
            dtype: Dtype::I64,
            shape: vec![1],
            bytes: kept.to_le_bytes().to_vec(),
        },
    ])
}

/// The elements of a tensor that need not be there.
pub fn list<T: bytemuck::Pod>(
    tensors: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
) -> Result<Option<Vec<T>>, String> {
    let Ok(view) = tensors.tensor(name) else {
        return Ok(None);
    };
    if view.dtype() != dtype {
        return Err(format!(
            "{name} is {:?}; it must be {dtype:?}",
            view.dtype()
        ));
    }
    Ok(Some(bytemuck::pod_collect_to_vec(view.data())))
}

impl<I: TokenId + DeviceRepr + ValidAsZeroBits> Inputs<'_, I> {
    fn tokens(&self) -> Tokens<'_, I> {
        Tokens {
            hash_ids: &self.ids,
            layout: match &self.cu_seqlens {
                Some(cu_seqlens) => Layout::Documents { cu_seqlens },
                None => Layout::Rows { len: self.len },
            },
            halo: &[],
            exempt: &self.exempt,
        }
    }

    fn on_cpu(&self, goldfish: &Goldfish) -> xact::Result<(Vec<u8>, i64)> {
        let mut keep = vec![0; self.ids.len()];
        let call = cpu::goldfish::Mask {
            tokens: self.tokens(),
            keep: Some(&mut keep),
            weights: None,
        };
        let counts = cpu::goldfish::mask(goldfish, call)?;
        Ok((keep, counts.kept as i64))
    }

    fn reference(&self, goldfish: &Goldfish) -> xact::Result<(Vec<u8>, i64)> {
        let keep = goldfish.keep(&self.tokens())?;
        let kept = keep.iter().filter(|&&keep| keep).count() as i64;
        Ok((keep.into_iter().map(u8::from).collect(), kept))
    }

    fn on_device(&self, goldfish: &Goldfish, gpu: &Gpu) -> xact::Result<(Vec<u8>, i64)> {
        let Gpu { device, stream, .. } = gpu;
        // The device cannot refuse them.
        let offsets = self.cu_seqlens.as_deref().unwrap_or_default();
        if let Some(at) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
            return Err(Error::Offsets { at: at as u64 + 1 });
        }
        let goldfish = goldfish.upload(device, stream)?;
        let n = self.ids.len();
        let (ids, exempt) = (upload(gpu, &self.ids), upload(gpu, &self.exempt));
        let cu_seqlens = upload(gpu, offsets);
        let mut keep = upload(gpu, &vec![0u8; n]);
        let mut counts = upload(gpu, &[0i64; 2]);
        let mut workspace = Workspace::new(stream, raw::goldfish::workspace_bytes(n as u64))?;
        let (ids, exempt) = (view(&ids, n), view(&exempt, self.exempt.len()));
        let cu_seqlens = view(&cu_seqlens, offsets.len());
        let mut keep_view = keep.slice_mut(..n);
        let call = Mask {
            tokens: DeviceTokens {
                hash_ids: &ids,
                layout: match &self.cu_seqlens {
                    Some(_) => DeviceLayout::Documents {
                        cu_seqlens: &cu_seqlens,
                    },
                    None => DeviceLayout::Rows { len: self.len },
                },
                halo: None,
                exempt: Some(&exempt),
            },
            keep: Some(&mut keep_view),
            weights: None,
            counts: Some(Counts {
                out: &mut counts,
                workspace: &mut workspace,
            }),
        };
        goldfish.mask(device, stream, call)?;
        let mut keep = stream.clone_dtoh(&keep).expect("a copy of the result");
        keep.truncate(n);
        let counts = stream.clone_dtoh(&counts).expect("a copy of the result");
        Ok((keep, counts[0]))
    }
}

/// The buffer of `values` on the device, which has none of length 0.
pub fn upload<T: DeviceRepr + ValidAsZeroBits>(gpu: &Gpu, values: &[T]) -> CudaSlice<T> {
    if values.is_empty() {
        gpu.stream.alloc_zeros(1)
    } else {
        gpu.stream.clone_htod(values)
    }
    .expect("memory on the device")
}

pub fn view<T: DeviceRepr>(buffer: &CudaSlice<T>, len: usize) -> CudaView<'_, T> {
    buffer.slice(..len)
}
