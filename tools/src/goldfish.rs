//! Runs the Goldfish mask through the raw API on buffers with canaries.

#![allow(unsafe_code)]

use xact::cudarc::driver::{CudaSlice, DevicePtr};
use xact::loss::goldfish::{Layout, TokenId, Tokens};
use xact::raw::Blocks;
use xact::raw::goldfish::{self, Counts, Decision, DeviceSlice, IdType, Mask};
use xact::{Goldfish, Result};

use super::choose::Gpu;

const CANARY: u8 = 0xa5;
const MARGIN: usize = 64;

/// Bytes on the device, between canaries.
struct Buffer {
    bytes: CudaSlice<u8>,
    start: usize,
    len: usize,
    element: usize,
}

impl Buffer {
    /// Uploads `content`, which begins `offset` elements after a 16-byte boundary.
    fn upload(gpu: &Gpu, content: &[u8], element: usize, offset: usize) -> Buffer {
        let start = MARGIN + offset * element;
        let mut host = vec![CANARY; start + content.len() + MARGIN];
        host[start..start + content.len()].copy_from_slice(content);
        Buffer {
            bytes: gpu.stream.clone_htod(&host).expect("upload"),
            start,
            len: content.len(),
            element,
        }
    }

    fn run(&self, gpu: &Gpu) -> DeviceSlice {
        DeviceSlice {
            ptr: self.bytes.device_ptr(&gpu.stream).0 + self.start as u64,
            len: (self.len / self.element) as u64,
        }
    }

    fn download(&self, gpu: &Gpu) -> Vec<u8> {
        let mut host = gpu.stream.clone_dtoh(&self.bytes).expect("download");
        let content = host[self.start..self.start + self.len].to_vec();
        host[self.start..self.start + self.len].fill(CANARY);
        assert!(host.iter().all(|&b| b == CANARY), "a write outside");
        content
    }
}

/// The little-endian bytes of ids.
fn id_bytes<I: TokenId>(ids: &[I]) -> Vec<u8> {
    let bytes = ids.iter().map(|&id| Into::<i64>::into(id).to_le_bytes());
    bytes.flat_map(|b| b[..size_of::<I>()].to_vec()).collect()
}

/// The layout and the options of a mask.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// The number of elements from a 16-byte boundary to the start of every buffer.
    pub offset: usize,
    /// The number of blocks of a launch.
    pub blocks: Blocks,
}

/// The mask of the device. Checks that both forms are equal and agree with the counts.
pub fn keep<I: TokenId>(
    gpu: &Gpu,
    goldfish: &Goldfish,
    tokens: &Tokens<'_, I>,
    how: How,
) -> Result<Vec<bool>> {
    let labels = tokens.hash_ids.len();
    let upload = |bytes: &[u8], element| Buffer::upload(gpu, bytes, element, how.offset);
    let ids = upload(&id_bytes(tokens.hash_ids), size_of::<I>());
    let halo = upload(&id_bytes(tokens.halo), size_of::<I>());
    let exempt = upload(&id_bytes(tokens.exempt), 8);
    let offsets: &[i32] = match tokens.layout {
        Layout::Documents { cu_seqlens } | Layout::Chunks { cu_seqlens, .. } => cu_seqlens,
        _ => &[],
    };
    let preceding: &[i64] = match tokens.layout {
        Layout::Chunks { preceding, .. } => preceding,
        _ => &[],
    };
    let cu_seqlens = upload(bytemuck::cast_slice(offsets), 4);
    let preceding = upload(bytemuck::cast_slice(preceding), 8);
    let words = goldfish.bitmap_words().unwrap_or_default();
    let bitmap = Buffer::upload(gpu, bytemuck::cast_slice(words), 4, 0);
    let coefficients = goldfish.coefficients().unwrap_or_default();
    let coefficients = Buffer::upload(gpu, bytemuck::cast_slice(coefficients), 8, 0);
    let (keep, weights) = (upload(&vec![7; labels], 1), upload(&vec![7; 4 * labels], 4));
    let counts = upload(&[7; 16], 8);
    let workspace_bytes = goldfish::workspace_bytes(labels as u64);
    // SAFETY: the memory is deliberately uninitialised, so that the emulator reports a count that is read before it is
    // written.
    let workspace = unsafe { gpu.stream.alloc::<u8>(workspace_bytes.max(1) as usize) };
    let workspace = workspace.expect("workspace");
    let call = Mask {
        decision: Decision {
            goldfish,
            bitmap: bitmap.run(gpu).ptr,
            coefficients: coefficients.run(gpu).ptr,
            tokens: goldfish::Tokens {
                hash_ids: ids.run(gpu).ptr,
                id_type: match std::any::type_name::<I>() {
                    "u8" => IdType::U8,
                    "u16" => IdType::U16,
                    "u32" => IdType::U32,
                    "i32" => IdType::I32,
                    _ => IdType::I64,
                },
                layout: match tokens.layout {
                    Layout::Rows { len } => goldfish::Layout::Rows { len: len as u64 },
                    Layout::Chunks { .. } => goldfish::Layout::Chunks {
                        cu_seqlens: cu_seqlens.run(gpu),
                        preceding: preceding.run(gpu),
                    },
                    _ => goldfish::Layout::Documents {
                        cu_seqlens: cu_seqlens.run(gpu),
                    },
                },
                halo: halo.run(gpu),
                exempt: exempt.run(gpu),
                interleaved: tokens.interleaved as u64,
            },
        },
        labels: labels as u64,
        keep: Some(keep.run(gpu).ptr),
        weights: Some(weights.run(gpu).ptr),
        counts: Some(Counts {
            out: counts.run(gpu).ptr,
            workspace: workspace.device_ptr(&gpu.stream).0,
            workspace_bytes,
        }),
        blocks: how.blocks,
    };
    // SAFETY: the buffers live until the downloads below, which wait for the stream.
    unsafe { goldfish::mask(&gpu.device, gpu.stream.cu_stream(), &call) }?;
    let lists = [&halo, &exempt, &cu_seqlens, &preceding];
    for input in [&ids, &bitmap, &coefficients].into_iter().chain(lists) {
        input.download(gpu);
    }
    let keep = keep.download(gpu);
    let weights: Vec<f32> = bytemuck::pod_collect_to_vec(&weights.download(gpu));
    let as_weights: Vec<f32> = keep.iter().map(|&k| f32::from(k)).collect();
    assert_eq!(weights, as_weights);
    assert!(keep.iter().all(|&k| k <= 1));
    let kept = keep.iter().filter(|&&k| k == 1).count() as u64;
    let counts: Vec<u64> = bytemuck::pod_collect_to_vec(&counts.download(gpu));
    assert_eq!(counts, [kept, labels as u64 - kept]);
    Ok(keep.into_iter().map(|k| k == 1).collect())
}
