//! The safe API's way in, as `super::super::safe` is for activations.

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::{Counts, Decision, IdType, Layout, Mask, Run, Tokens, check_labels};
use crate::device::Device;
use crate::error::Result;
use crate::loss::goldfish::{TokenId, device};

/// A decision whose buffers are checked and resolved to addresses. What it was resolved from stays borrowed,
/// and the guards order other streams' use; both must outlive the launch.
pub(crate) struct Resolved<'a> {
    pub(crate) decision: Decision<'a>,
    _guards: Vec<SyncOnDrop<'a>>,
}

/// Checks that all buffers are of the device's context. Their lengths are checked by the raw call, since
/// lengths are all that it is given of them.
pub(crate) fn check<I: TokenId>(
    goldfish: &device::DeviceGoldfish,
    tokens: &device::DeviceTokens<'_, I>,
    device: &Device,
) -> Result<()> {
    if let Some(bitmap) = &goldfish.bitmap {
        device.check_buffer("the bitmap", bitmap.stream())?;
    }
    if let Some(coefficients) = &goldfish.coefficients {
        device.check_buffer("the coefficients", coefficients.stream())?;
    }
    device.check_buffer("hash_ids", tokens.hash_ids.stream())?;
    if let Some(halo) = tokens.halo {
        device.check_buffer("the halo", halo.stream())?;
    }
    if let Some(exempt) = tokens.exempt {
        device.check_buffer("the exempt ids", exempt.stream())?;
    }
    if let device::DeviceLayout::Documents { cu_seqlens } = tokens.layout {
        device.check_buffer("cu_seqlens", cu_seqlens.stream())?;
    }
    Ok(())
}

/// Resolves what [`check`] has found right.
pub(crate) fn resolve<'a, I: TokenId>(
    goldfish: &'a device::DeviceGoldfish,
    tokens: &device::DeviceTokens<'a, I>,
    stream: &'a CudaStream,
) -> Resolved<'a> {
    fn run<'a, T>(
        buffer: Option<&'a (dyn DevicePtr<T> + 'a)>,
        stream: &'a CudaStream,
        guards: &mut Vec<SyncOnDrop<'a>>,
    ) -> Run {
        let Some(buffer) = buffer else {
            return Run::default();
        };
        let (ptr, guard) = buffer.device_ptr(stream);
        guards.push(guard);
        Run {
            ptr,
            len: buffer.len() as u64,
        }
    }
    let mut guards = Vec::new();
    let layout = match tokens.layout {
        device::DeviceLayout::Rows { len } => Layout::Rows { len: len as u64 },
        device::DeviceLayout::Documents { cu_seqlens } => Layout::Documents {
            cu_seqlens: run(Some(cu_seqlens), stream, &mut guards),
        },
    };
    let bitmap = goldfish.bitmap.as_ref().map(|b| b as &dyn DevicePtr<u32>);
    let coefficients = goldfish.coefficients.as_ref();
    let coefficients = coefficients.map(|b| b as &dyn DevicePtr<i64>);
    let decision = Decision {
        goldfish: &goldfish.goldfish,
        bitmap: run(bitmap, stream, &mut guards).ptr,
        coefficients: run(coefficients, stream, &mut guards).ptr,
        tokens: Tokens {
            hash_ids: run(Some(tokens.hash_ids), stream, &mut guards).ptr,
            id_type: IdType::of::<I>(),
            layout,
            halo: run(tokens.halo, stream, &mut guards),
            exempt: run(tokens.exempt, stream, &mut guards),
        },
    };
    Resolved {
        decision,
        _guards: guards,
    }
}

pub(crate) fn mask<I: TokenId>(
    goldfish: &device::DeviceGoldfish,
    device: &Device,
    stream: &CudaStream,
    call: device::Mask<'_, I>,
) -> Result<()> {
    let device::Mask {
        tokens,
        keep,
        weights,
        counts,
    } = call;
    device.check_stream(stream)?;
    check(goldfish, &tokens, device)?;
    let labels = tokens.hash_ids.len();
    if let Some(keep) = &keep {
        device.check_buffer("keep", keep.stream())?;
        check_labels("keep", labels, keep.len())?;
    }
    if let Some(weights) = &weights {
        device.check_buffer("weights", weights.stream())?;
        check_labels("weights", labels, weights.len())?;
    }
    let counts = match counts {
        Some(device::Counts { out, workspace }) => {
            device.check_buffer("counts", out.stream())?;
            check_labels("counts", 2, out.len())?;
            let bytes = workspace.bytes();
            Some((out, workspace.buffer_for(stream)?, bytes))
        }
        None => None,
    };
    let resolved = resolve(goldfish, &tokens, stream);
    let (keep, _keep) = keep.map(|b| b.device_ptr_mut(stream)).unzip();
    let (weights, _weights) = weights.map(|b| b.device_ptr_mut(stream)).unzip();
    let (counts, _counts) = counts
        .map(|(out, workspace, workspace_bytes)| {
            let (out, out_guard) = out.device_ptr_mut(stream);
            let (workspace, guard) = workspace.device_ptr_mut(stream);
            let counts = Counts {
                out,
                workspace,
                workspace_bytes,
            };
            (counts, [out_guard, guard])
        })
        .unzip();
    let call = Mask {
        decision: resolved.decision,
        labels: labels as u64,
        keep,
        weights,
        counts,
        max_blocks: None,
    };
    // SAFETY: all buffers are borrowed here, the outputs mutably, hold what the call says (an element for each
    // label as checked above, the others by their own lengths), and are of the device's context, as is the
    // stream; the workspace is of the stream. cudarc orders their later use and freeing after the launch.
    unsafe { super::mask(device, stream.cu_stream(), &call) }
}
