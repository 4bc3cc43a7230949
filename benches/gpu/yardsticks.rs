//! The yardsticks of the rows: the fastest ways in which the device moves bytes without computing.
//!
//! There are several, because none is reliable alone. The driver's copy has been reported to run at half speed as a graph
//! node of exactly 512 MiB, 1 or 2 GiB, and at two thirds outside of graphs on some drivers. A copy also does not show how
//! fast a device reads without writing.

#![allow(unsafe_code)]

use serde::{Deserialize, Serialize};
use xact::cudarc::driver::{CudaFunction, CudaSlice, DevicePtr, LaunchConfig, PushKernelArg};
use xact::cudarc::nvrtc::Ptx;
use xact::raw::CUdeviceptr;
use xact::{Dtype, loss};
use xact_dev::choose::Gpu;

use crate::rows::Row;
use crate::work::{self, Result, Tiles};

const PTX: &str = include_str!("yardsticks.ptx");
/// The threads of a block, the 16-byte vectors that each moves, and the bytes of all of them, as in the PTX.
const BLOCK: u32 = 256;
const BLOCK_BYTES: u64 = BLOCK as u64 * 4 * VECTOR;
/// The minimum size that the kernels move, of which every size must be a multiple.
pub const VECTOR: u64 = 16;
/// The maximum number of bytes of a copy that is a node of a graph.
const NODE_BYTES: u64 = 256 << 20;

/// A way to move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Yardstick {
    /// `cuMemcpyDtoDAsync`, queued one by one.
    #[serde(rename = "stream copy")]
    StreamCopy,
    /// The same as nodes of a graph, of at most 256 MiB each.
    #[serde(rename = "graph copy")]
    GraphCopy,
    /// A kernel that copies, with four 16-byte vectors in flight in each thread.
    #[serde(rename = "copy kernel")]
    CopyKernel,
    /// A kernel that reads the same bytes and writes nothing.
    #[serde(rename = "read kernel")]
    ReadKernel,
}

impl Yardstick {
    pub const ALL: [Yardstick; 4] = [
        Yardstick::StreamCopy,
        Yardstick::GraphCopy,
        Yardstick::CopyKernel,
        Yardstick::ReadKernel,
    ];

    /// The yardsticks of which the fastest is used for a row. A row that only reads is not compared with copies.
    pub fn of(row: &Row) -> &'static [Yardstick] {
        let only_reads = row.op == loss::NAMES[0] && row.direction == "forward";
        let (copies, reads) = Yardstick::ALL.split_at(3);
        if only_reads { reads } else { copies }
    }

    pub fn name(self) -> &'static str {
        match self {
            Yardstick::StreamCopy => "stream copy",
            Yardstick::GraphCopy => "graph copy",
            Yardstick::CopyKernel => "copy kernel",
            Yardstick::ReadKernel => "read kernel",
        }
    }

    /// How often each byte of its part of a buffer is transferred to or from memory.
    pub fn passes(self) -> u64 {
        match self {
            Yardstick::ReadKernel => 1,
            _ => 2,
        }
    }
}

/// The yardsticks on two buffers of random numbers. The numbers matter, because the bits that switch in the memory and its
/// wires affect the power, and so the clocks.
pub struct Yardsticks<'a> {
    gpu: &'a Gpu,
    copy: CudaFunction,
    read: CudaFunction,
    buffers: [CudaSlice<u8>; 2],
    _sink: CudaSlice<u32>,
    /// The addresses of the buffers. Asking for them during a capture would wait for events from outside of it.
    at: [CUdeviceptr; 3],
}

impl<'a> Yardsticks<'a> {
    /// Loads the kernels, and fills two buffers of `bytes` bytes.
    pub fn new(gpu: &'a Gpu, tiles: &mut Tiles<'_>, bytes: u64) -> Result<Yardsticks<'a>> {
        let module = gpu.device.context().load_module(Ptx::from_src(PTX))?;
        let mut random = || -> Result<CudaSlice<u8>> {
            let slice = gpu.stream.alloc_zeros::<u8>(bytes as usize)?;
            let (base, len) = (slice.device_ptr(&gpu.stream).0, slice.len() as u64);
            tiles.fill(base, len, Dtype::Bf16, 1.0)?;
            Ok(slice)
        };
        let (buffers, sink) = ([random()?, random()?], gpu.stream.alloc_zeros::<u32>(1)?);
        let [from, to] = [0, 1].map(|i: usize| buffers[i].device_ptr(&gpu.stream).0);
        let at = [from, to, sink.device_ptr(&gpu.stream).0];
        Ok(Yardsticks {
            gpu,
            at,
            buffers,
            copy: module.load_function("yardstick_copy")?,
            read: module.load_function("yardstick_read")?,
            _sink: sink,
        })
    }

    /// The size in bytes of each buffer.
    pub fn bytes(&self) -> u64 {
        self.buffers[0].len() as u64
    }

    /// Queues one copy or read of `part` bytes from `offset` on; a copy writes to the other buffer. Both numbers are
    /// multiples of [`VECTOR`].
    pub fn queue(&self, which: Yardstick, offset: u64, part: u64) -> Result<()> {
        assert!(offset.is_multiple_of(VECTOR) && part.is_multiple_of(VECTOR));
        assert!(offset + part <= self.bytes());
        let Gpu { stream, .. } = self.gpu;
        let [from, to, sink] = self.at;
        let (from, to) = (from + offset, to + offset);
        let (vectors, blocks) = (part / VECTOR, u32::try_from(part.div_ceil(BLOCK_BYTES))?);
        let shape = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        match which {
            Yardstick::StreamCopy => work::copy(self.gpu, to, from, part)?,
            Yardstick::GraphCopy => {
                let mut done = 0;
                while done < part {
                    let node = NODE_BYTES.min(part - done);
                    work::copy(self.gpu, to + done, from + done, node)?;
                    done += node;
                }
            }
            Yardstick::CopyKernel => {
                let mut launch = stream.launch_builder(&self.copy);
                launch.arg(&to).arg(&from).arg(&vectors);
                // SAFETY: the arguments are those of the entry, and both ranges are inside buffers that `self` keeps.
                unsafe { launch.launch(shape) }?;
            }
            Yardstick::ReadKernel => {
                // Any number: four random vectors rarely have this sum.
                let never = 0x9e37_79b9u32;
                let mut launch = stream.launch_builder(&self.read);
                launch.arg(&sink).arg(&from).arg(&vectors).arg(&never);
                // SAFETY: as above.
                unsafe { launch.launch(shape) }?;
            }
        }
        Ok(())
    }

    /// Runs each yardstick on a part with a tail. Fails if a copy is wrong.
    pub fn check(&self) -> Result<()> {
        let part = self.bytes().min(1 << 20) - VECTOR;
        let stream = &self.gpu.stream;
        let [from, to] = [0, 1].map(|i| self.buffers[i].slice(..part as usize));
        let expected = stream.clone_dtoh(&from)?;
        for which in Yardstick::ALL {
            let before = stream.clone_dtoh(&to)?;
            let zeros = stream.alloc_zeros::<u8>(part as usize)?;
            let at = |slice: &dyn DevicePtr<u8>| slice.device_ptr(stream).0;
            work::copy(self.gpu, at(&self.buffers[1]), at(&zeros), part)?;
            self.queue(which, 0, part)?;
            let copied = stream.clone_dtoh(&to)? == expected;
            if copied != (which.passes() == 2) {
                return Err(format!("the yardstick {} does not do its work", which.name()).into());
            }
            let again = stream.clone_htod(&before)?;
            work::copy(self.gpu, at(&self.buffers[1]), at(&again), part)?;
            stream.synchronize()?;
        }
        Ok(())
    }
}
