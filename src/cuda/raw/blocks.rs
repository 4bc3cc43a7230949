//! [`Blocks`]: the number of blocks of a launch.

use std::num::NonZeroU32;

use crate::cuda::device::{Device, Function};
use crate::cuda::driver::driver_error;
use crate::cuda::grid::{Grid, active_blocks, active_clusters};
use crate::error::Result;

/// How many blocks a launch has. If there are fewer blocks than pieces of work, each block takes several pieces in turn. The
/// result is the same to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blocks {
    /// One block for each piece of work. The hardware starts new blocks as others finish.
    #[default]
    All,
    /// At most this number of blocks, to leave multiprocessors to other work. Kernels with clusters use at least one cluster.
    AtMost(NonZeroU32),
    /// As many blocks as the device holds at once (persistent blocks).
    Resident,
}

impl From<Option<NonZeroU32>> for Blocks {
    fn from(most: Option<NonZeroU32>) -> Blocks {
        most.map_or(Blocks::All, Blocks::AtMost)
    }
}

impl Blocks {
    /// The grid for `pieces` of work, one for each cluster, up to the largest grid that CUDA accepts. `shape` has the cluster
    /// size and the shared memory, and its number of blocks is not set yet.
    pub(super) fn grid(
        self,
        device: &Device,
        function: &Function,
        pieces: u64,
        shape: Grid,
    ) -> Result<Grid> {
        if self == Blocks::Resident {
            // The driver is asked below, and a launch binds the context only later.
            let bound = device.context().bind_to_thread();
            bound.map_err(|e| driver_error("asking how many blocks fit", e))?;
        }
        let widest = i32::MAX as u32 / shape.cluster;
        let most = match self {
            Blocks::All => widest,
            Blocks::AtMost(blocks) => blocks.get() / shape.cluster,
            Blocks::Resident if shape.cluster > 1 => {
                let one = Grid {
                    blocks: shape.cluster,
                    ..shape
                };
                active_clusters(&function.function, one)?
            }
            Blocks::Resident => {
                device.multiprocessors() * active_blocks(&function.function, shape.shared_bytes)?
            }
        };
        let clusters = pieces.min(most.clamp(1, widest).into()) as u32;
        Ok(Grid {
            blocks: clusters * shape.cluster,
            ..shape
        })
    }
}
