//! Goldfish on a device: the mask kernel, and the inputs of a decision inside cross-entropy.

#![allow(unsafe_code)] // the safe calls of `raw`; each block says what it guarantees

use std::sync::Arc;

use super::device::Device;
use super::driver::driver_error;
use super::queue::{Owned, Parts, Queue};
use super::raw::goldfish::{self as raw, Decision, DeviceSlice, IdType, Layout};
use super::tensor::{Addresses, Input, Output};
use crate::error::Result;
use crate::loss::goldfish::{Goldfish, TokenId};

/// A [`Goldfish`] whose tables are on a device. [`Goldfish::upload`] makes it, and any number of calls on any queue of the
/// context can use it. A clone shares the tables.
#[derive(Clone, Debug)]
pub struct DeviceGoldfish {
    goldfish: Goldfish,
    tables: Arc<Tables>,
}

#[derive(Debug)]
struct Tables {
    bitmap: Option<Owned<u32>>,
    coefficients: Option<Owned<i64>>,
}

impl Goldfish {
    /// Copies the tables to the device. Allocates at most 125 kB plus 8·h bytes on the stream of the queue.
    ///
    /// # Errors
    /// [`Driver`](crate::Error::Driver) or [`WrongThread`](crate::Error::WrongThread).
    pub fn upload(&self, queue: &Queue) -> Result<DeviceGoldfish> {
        queue.check_thread()?;
        let doing = |e| driver_error("copying the tables of Goldfish to the device", e);
        let stream = queue.stream();
        let bitmap = self.bitmap_words().map(|words| stream.clone_htod(words));
        let coefficients = self.coefficients().map(|c| stream.clone_htod(c));
        let bitmap = bitmap.transpose().map_err(doing)?;
        let coefficients = coefficients.transpose().map_err(doing)?;
        Ok(DeviceGoldfish {
            goldfish: self.clone(),
            tables: Arc::new(Tables {
                bitmap: bitmap.map(|bitmap| queue.own(bitmap)),
                coefficients: coefficients.map(|coefficients| queue.own(coefficients)),
            }),
        })
    }
}

impl DeviceGoldfish {
    /// Returns the strategy that was uploaded.
    pub fn goldfish(&self) -> &Goldfish {
        &self.goldfish
    }
}

/// The ids from which a strategy decides, in device memory: [`Tokens`](crate::Tokens) has the meaning of each part.
#[derive(Clone, Copy)]
pub struct DeviceTokens<'a, I> {
    hash_ids: Input<'a, I>,
    /// The number of labels of a row; not used with `cu_seqlens`.
    len: usize,
    cu_seqlens: Option<Input<'a, i32>>,
    /// Only with `cu_seqlens`, whose segments are then chunks.
    preceding: Option<Input<'a, i64>>,
    halo: Option<Input<'a, I>>,
    exempt: Option<Input<'a, i64>>,
    interleaved: usize,
}

impl<'a, I: TokenId> DeviceTokens<'a, I> {
    /// The ids of rows of `len` labels each, `[N]` for N labels.
    pub fn rows(hash_ids: impl Into<Input<'a, I>>, len: usize) -> Self {
        DeviceTokens {
            hash_ids: hash_ids.into(),
            len,
            cu_seqlens: None,
            preceding: None,
            halo: None,
            exempt: None,
            interleaved: 1,
        }
    }

    /// The ids of one segment with documents that begin at the offsets `cu_seqlens`, i32 values that must not decrease. The
    /// host cannot check them: if they decrease, the windows stop at unspecified offsets, but nothing outside the ids and
    /// the halo is read.
    pub fn documents(
        hash_ids: impl Into<Input<'a, I>>,
        cu_seqlens: impl Into<Input<'a, i32>>,
    ) -> Self {
        DeviceTokens {
            cu_seqlens: Some(cu_seqlens.into()),
            ..DeviceTokens::rows(hash_ids, 0)
        }
    }

    /// The ids of chunks of documents, which begin at the offsets `cu_seqlens`, `[chunks + 1]`, and are preceded by
    /// `preceding[c]` labels of the same document, `[chunks]`. The offsets must not be negative or decrease, and the numbers
    /// must not be negative. The host cannot check them: if offsets decrease, the windows stop at unspecified offsets, and
    /// negative numbers count as 0, but nothing outside the ids and the halo is read.
    pub fn chunks(
        hash_ids: impl Into<Input<'a, I>>,
        cu_seqlens: impl Into<Input<'a, i32>>,
        preceding: impl Into<Input<'a, i64>>,
    ) -> Self {
        DeviceTokens {
            preceding: Some(preceding.into()),
            ..DeviceTokens::documents(hash_ids, cu_seqlens)
        }
    }

    /// Sets that `rows` rows of text are interleaved, as the columns of `[s, rows]` tensors
    /// ([`Tokens::interleaved`](crate::Tokens::interleaved)).
    #[must_use]
    pub fn interleaved(mut self, rows: usize) -> Self {
        self.interleaved = rows;
        self
    }

    /// Sets the halo, `[segments, n]`: the n ids before the first label of each segment.
    #[must_use]
    pub fn halo(mut self, halo: impl Into<Input<'a, I>>) -> Self {
        self.halo = Some(halo.into());
        self
    }

    /// Sets the ids that are never dropped, i64 in any order. The kernel compares each label that it would drop with all of
    /// them.
    #[must_use]
    pub fn exempt(mut self, exempt: impl Into<Input<'a, i64>>) -> Self {
        self.exempt = Some(exempt.into());
        self
    }
}

/// [`DeviceTokens`] of any id type.
pub(super) trait Ids {
    fn len(&self) -> usize;

    /// Fails unless all buffers are contiguous and belong to the device's context. The raw call checks the lengths.
    fn check(&self, device: &Device) -> Result<()>;

    fn resolve<'b>(&'b self, addresses: &mut Addresses<'b>) -> raw::Tokens;
}

impl<I: TokenId> Ids for DeviceTokens<'_, I> {
    fn len(&self) -> usize {
        self.hash_ids.len()
    }

    fn check(&self, device: &Device) -> Result<()> {
        let line = |what, tensor: &Input<'_, I>| tensor.check_line(what, device, tensor.len());
        line("hash_ids", &self.hash_ids)?;
        self.halo
            .iter()
            .try_for_each(|halo| line("the halo", halo))?;
        if let Some(exempt) = &self.exempt {
            exempt.check_line("the exempt ids", device, exempt.len())?;
        }
        if let Some(preceding) = &self.preceding {
            preceding.check_line("preceding", device, preceding.len())?;
        }
        match &self.cu_seqlens {
            Some(cu_seqlens) => cu_seqlens.check_line("cu_seqlens", device, cu_seqlens.len()),
            None => Ok(()),
        }
    }

    fn resolve<'b>(&'b self, addresses: &mut Addresses<'b>) -> raw::Tokens {
        fn run<'b, T>(
            tensor: &'b Option<Input<'_, T>>,
            addresses: &mut Addresses<'b>,
        ) -> DeviceSlice {
            tensor
                .as_ref()
                .map_or(DeviceSlice::default(), |tensor| DeviceSlice {
                    ptr: addresses.input(tensor),
                    len: tensor.len() as u64,
                })
        }
        raw::Tokens {
            hash_ids: addresses.input(&self.hash_ids),
            id_type: IdType::of::<I>(),
            layout: match (&self.cu_seqlens, &self.preceding) {
                (Some(_), Some(_)) => Layout::Chunks {
                    cu_seqlens: run(&self.cu_seqlens, addresses),
                    preceding: run(&self.preceding, addresses),
                },
                (Some(_), None) => Layout::Documents {
                    cu_seqlens: run(&self.cu_seqlens, addresses),
                },
                (None, _) => Layout::Rows {
                    len: self.len as u64,
                },
            },
            halo: run(&self.halo, addresses),
            exempt: run(&self.exempt, addresses),
            interleaved: self.interleaved as u64,
        }
    }
}

/// Fails unless the tables belong to the device's context.
pub(super) fn check_tables(goldfish: &DeviceGoldfish, device: &Device) -> Result<()> {
    if let Some(bitmap) = goldfish.tables.bitmap.as_deref() {
        Input::from(bitmap).check_context("the bitmap", device)?;
    }
    if let Some(coefficients) = goldfish.tables.coefficients.as_deref() {
        Input::from(coefficients).check_context("the coefficients", device)?;
    }
    Ok(())
}

/// The raw decision from checked buffers.
pub(super) fn decision<'b>(
    goldfish: &'b DeviceGoldfish,
    tokens: raw::Tokens,
    addresses: &mut Addresses<'b>,
) -> Decision<'b> {
    Decision {
        goldfish: &goldfish.goldfish,
        bitmap: (goldfish.tables.bitmap.as_deref()).map_or(0, |bitmap| addresses.read(bitmap)),
        coefficients: (goldfish.tables.coefficients.as_deref()).map_or(0, |c| addresses.read(c)),
        tokens,
    }
}

/// Returns a call that decides for every label whether it is kept. The decisions equal those of [`Goldfish::keep`] on every
/// device and grid. The methods of the call set the outputs.
///
/// ```no_run
/// # use xact::{Goldfish, Queue, Strategy, cuda, cudarc::driver::CudaContext};
/// use xact::cuda::goldfish::{self, DeviceTokens};
/// # let stream = CudaContext::new(0)?.new_stream()?;
/// # let mut queue = Queue::new(&stream)?;
/// # let (ids, mut weights) = (stream.alloc_zeros::<i32>(8192)?, stream.alloc_zeros::<f32>(8192)?);
/// let strategy = Goldfish::new(Strategy::Hash64 { k: 4, h: 13, seed: 0 })?.upload(&queue)?;
/// let tokens = DeviceTokens::rows(&ids, 4096);
/// goldfish::mask(&strategy, tokens).weights(&mut weights).launch(&mut queue)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn mask<'a, I: TokenId>(
    goldfish: &'a DeviceGoldfish,
    tokens: DeviceTokens<'a, I>,
) -> Mask<'a, I> {
    Mask {
        goldfish,
        tokens,
        keep: None,
        weights: None,
        counts: None,
    }
}

/// A call of [`mask`].
#[must_use = "nothing is launched until `launch`"]
pub struct Mask<'a, I> {
    goldfish: &'a DeviceGoldfish,
    tokens: DeviceTokens<'a, I>,
    keep: Option<Output<'a, u8>>,
    weights: Option<Output<'a, f32>>,
    counts: Option<Output<'a, i64>>,
}

impl<'a, I: TokenId> Mask<'a, I> {
    /// Sets an output for the decisions, `[N] u8`: 1 for kept, 0 for dropped.
    pub fn keep(mut self, keep: impl Into<Output<'a, u8>>) -> Self {
        self.keep = Some(keep.into());
        self
    }

    /// Sets an output for the decisions as weights of a loss, `[N] f32`: 1 for kept, 0 for dropped.
    pub fn weights(mut self, weights: impl Into<Output<'a, f32>>) -> Self {
        self.weights = Some(weights.into());
        self
    }

    /// Sets an output for the number of kept and of dropped labels, `[2] i64`.
    pub fn counts(mut self, counts: impl Into<Output<'a, i64>>) -> Self {
        self.counts = Some(counts.into());
        self
    }

    /// Returns the bytes of workspace that the launch needs.
    ///
    /// # Errors
    /// None. It is a `Result` so that a later option can add one.
    pub fn workspace_bytes(&self) -> Result<u64> {
        let labels = self.tokens.len() as u64;
        Ok(self
            .counts
            .as_ref()
            .map_or(0, |_| raw::workspace_bytes(labels)))
    }

    /// Launches the call on the stream of the queue.
    ///
    /// # Errors
    /// - [`Length`](crate::Error::Length): an output does not have one element for each label, the number of labels is not a
    ///   multiple of the row length or of the interleaved rows, the number of halo ids not a multiple of the number of
    ///   segments, or there is not one offset more than chunks;
    /// - [`WrongContext`](crate::Error::WrongContext), [`WrongThread`](crate::Error::WrongThread),
    ///   [`Overlap`](crate::Error::Overlap);
    /// - [`Workspace`](crate::Error::Workspace): the workspace of the queue is too small;
    /// - the errors of [`Device::preload`](crate::Device::preload), if a kernel is not loaded yet, and
    ///   [`Driver`](crate::Error::Driver), if the driver refuses the launch.
    ///
    /// When a check fails, nothing is written.
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let Mask {
            goldfish,
            tokens,
            mut keep,
            mut weights,
            mut counts,
        } = self;
        let Parts {
            device,
            stream,
            workspace,
        } = queue.parts()?;
        check_tables(goldfish, device)?;
        tokens.check(device)?;
        let labels = tokens.len();
        if let Some(keep) = &keep {
            keep.check_line("keep", device, labels)?;
        }
        if let Some(weights) = &weights {
            weights.check_line("weights", device, labels)?;
        }
        if let Some(counts) = &counts {
            counts.check_line("counts", device, 2)?;
        }
        let mut addresses = Addresses::on(stream);
        let tokens = tokens.resolve(&mut addresses);
        let (workspace, workspace_bytes) = addresses.workspace(workspace);
        let counts = counts.as_mut().map(|out| raw::Counts {
            out: addresses.output(out),
            workspace,
            workspace_bytes,
        });
        let call = raw::Mask {
            decision: decision(goldfish, tokens, &mut addresses),
            labels: labels as u64,
            keep: keep.as_mut().map(|keep| addresses.output(keep)),
            weights: weights.as_mut().map(|weights| addresses.output(weights)),
            counts,
            blocks: super::raw::Blocks::All,
        };
        // SAFETY: all buffers are borrowed here, the outputs mutably, hold what the call says (an element for each
        // label as checked above, the others by their own lengths), and are of the device's context, as is the
        // stream; the workspace is the queue's. cudarc orders their later use and freeing after the launch.
        unsafe { raw::mask(device, stream.cu_stream(), &call) }
    }
}
