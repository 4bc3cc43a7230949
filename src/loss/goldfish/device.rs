//! Goldfish on a device.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::{Goldfish, TokenId};
use crate::device::{Device, Workspace, driver_error};
use crate::error::Result;
use crate::raw;

/// A [`Goldfish`] whose tables are on a device: made once, used by any number of calls, on any stream of the
/// device.
#[derive(Clone, Debug)]
pub struct DeviceGoldfish {
    pub(crate) goldfish: Goldfish,
    pub(crate) bitmap: Option<CudaSlice<u32>>,
    pub(crate) coefficients: Option<CudaSlice<i64>>,
}

/// How labels are cut into segments: [`Layout`](super::Layout), with offsets on the device.
#[derive(Clone, Copy)]
pub enum DeviceLayout<'a> {
    /// Rows of `len` labels each.
    Rows {
        /// Labels of a row; the number of labels is a multiple.
        len: usize,
    },
    /// One segment, cut into documents.
    Documents {
        /// Offsets that do not decrease. The host does not see them: if they do decrease, windows end at one
        /// of them or another, but nothing outside the ids and the halo is read.
        cu_seqlens: &'a dyn DevicePtr<i32>,
    },
}

/// The ids that decide: [`Tokens`](super::Tokens) on the device.
#[derive(Clone, Copy)]
pub struct DeviceTokens<'a, I> {
    /// One id for each label.
    pub hash_ids: &'a dyn DevicePtr<I>,
    /// How they are cut.
    pub layout: DeviceLayout<'a>,
    /// `[segments, n]`: the n ids before the first label of each segment.
    pub halo: Option<&'a dyn DevicePtr<I>>,
    /// Ids that are never dropped, in any order. Each label that would be dropped is compared with all.
    pub exempt: Option<&'a dyn DevicePtr<i64>>,
}

impl<'a, I> DeviceTokens<'a, I> {
    /// Rows of `len` labels, without halo and exempt ids.
    pub fn rows(hash_ids: &'a dyn DevicePtr<I>, len: usize) -> Self {
        DeviceTokens {
            hash_ids,
            layout: DeviceLayout::Rows { len },
            halo: None,
            exempt: None,
        }
    }
}

/// What [`DeviceGoldfish::mask`] reads and writes. An output that is not given is not computed.
pub struct Mask<'a, I> {
    /// The ids.
    pub tokens: DeviceTokens<'a, I>,
    /// One for each label: 1 kept, 0 dropped.
    pub keep: Option<&'a mut dyn DevicePtrMut<u8>>,
    /// The same as weights of a loss: 1 kept, 0 dropped.
    pub weights: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// How many are kept and dropped.
    pub counts: Option<Counts<'a>>,
}

/// Where the numbers of kept and dropped labels go.
pub struct Counts<'a> {
    /// Two numbers, overwritten: labels kept, labels dropped.
    pub out: &'a mut dyn DevicePtrMut<i64>,
    /// Of this stream, at least [`workspace_bytes`](raw::goldfish::workspace_bytes).
    pub workspace: &'a mut Workspace,
}

impl Goldfish {
    /// Copies the tables to the device: allocates at most 125 kB and 8·h bytes, on `stream`.
    ///
    /// # Errors
    /// [`WrongContext`](crate::Error::WrongContext), [`Driver`](crate::Error::Driver).
    pub fn upload(&self, device: &Device, stream: &Arc<CudaStream>) -> Result<DeviceGoldfish> {
        device.check_stream(stream)?;
        let doing = |e| driver_error("copying the tables of Goldfish to the device", e);
        let bitmap = self.bitmap_words().map(|words| stream.clone_htod(words));
        let coefficients = self.coefficients().map(|c| stream.clone_htod(c));
        Ok(DeviceGoldfish {
            goldfish: self.clone(),
            bitmap: bitmap.transpose().map_err(doing)?,
            coefficients: coefficients.transpose().map_err(doing)?,
        })
    }
}

impl DeviceGoldfish {
    /// What was uploaded.
    pub fn goldfish(&self) -> &Goldfish {
        &self.goldfish
    }

    /// Decides about every label. The same as [`Goldfish::keep`], on every device and grid.
    ///
    /// # Errors
    /// [`Length`](crate::Error::Length): an output is not of one element for each label, the number of
    /// labels is no multiple of a row, or that of halo ids none of the segments.
    /// [`WrongContext`](crate::Error::WrongContext), [`Workspace`](crate::Error::Workspace),
    /// [`WrongStream`](crate::Error::WrongStream), [`Overlap`](crate::Error::Overlap), or what loading and
    /// launching say. Nothing is written then.
    pub fn mask<I: TokenId>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: Mask<'_, I>,
    ) -> Result<()> {
        raw::goldfish::safe::mask(self, device, stream, call)
    }
}
