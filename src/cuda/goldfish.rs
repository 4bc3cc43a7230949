//! Goldfish on a device: masks, and what a loss needs to decide on its own.

#![allow(unsafe_code)] // the safe calls of `raw`: what they vouch for stands at each

use std::sync::Arc;

use super::device::Device;
use super::driver::driver_error;
use super::queue::{Owned, Parts, Queue};
use super::raw::goldfish::{self as raw, Decision, DeviceSlice, IdType, Layout};
use super::tensor::{Addresses, Input, Output};
use crate::error::Result;
use crate::loss::goldfish::{Goldfish, TokenId};

/// A [`Goldfish`] whose tables are on a device: made once by [`Goldfish::upload`], used by any number of calls, on any
/// queue of the context. A clone is of the same tables.
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
    /// Copies the tables to the device: allocates at most 125 kB and 8·h bytes, on the queue's stream.
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
    /// What was uploaded.
    pub fn goldfish(&self) -> &Goldfish {
        &self.goldfish
    }
}

/// The ids that decide: [`Tokens`](crate::Tokens) on the device.
#[derive(Clone, Copy)]
pub struct DeviceTokens<'a, I> {
    hash_ids: Input<'a, I>,
    /// Labels of a row, unless there are `cu_seqlens`.
    len: usize,
    cu_seqlens: Option<Input<'a, i32>>,
    halo: Option<Input<'a, I>>,
    exempt: Option<Input<'a, i64>>,
}

impl<'a, I: TokenId> DeviceTokens<'a, I> {
    /// Rows of `len` labels each, with an id for each label.
    pub fn rows(hash_ids: impl Into<Input<'a, I>>, len: usize) -> Self {
        DeviceTokens {
            hash_ids: hash_ids.into(),
            len,
            cu_seqlens: None,
            halo: None,
            exempt: None,
        }
    }

    /// One segment, cut into documents by offsets that do not decrease. The host does not see them: if they do
    /// decrease, windows end at one of them or another, but nothing outside the ids and the halo is read.
    pub fn documents(
        hash_ids: impl Into<Input<'a, I>>,
        cu_seqlens: impl Into<Input<'a, i32>>,
    ) -> Self {
        DeviceTokens {
            cu_seqlens: Some(cu_seqlens.into()),
            ..DeviceTokens::rows(hash_ids, 0)
        }
    }

    /// Sets the ids before the first label of each segment, `[segments, n]`.
    #[must_use]
    pub fn halo(mut self, halo: impl Into<Input<'a, I>>) -> Self {
        self.halo = Some(halo.into());
        self
    }

    /// Sets the ids that are never dropped, in any order. Each label that would be dropped is compared with all.
    #[must_use]
    pub fn exempt(mut self, exempt: impl Into<Input<'a, i64>>) -> Self {
        self.exempt = Some(exempt.into());
        self
    }
}

/// Tokens of any type.
pub(super) trait Ids {
    fn len(&self) -> usize;

    /// Fails unless all buffers are whole and of the device's context. Their lengths are checked by the raw call, since
    /// lengths are all that it is given of them.
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
            layout: match &self.cu_seqlens {
                Some(_) => Layout::Documents {
                    cu_seqlens: run(&self.cu_seqlens, addresses),
                },
                None => Layout::Rows {
                    len: self.len as u64,
                },
            },
            halo: run(&self.halo, addresses),
            exempt: run(&self.exempt, addresses),
        }
    }
}

/// Fails unless the tables are of the device's context.
pub(super) fn check_tables(goldfish: &DeviceGoldfish, device: &Device) -> Result<()> {
    if let Some(bitmap) = goldfish.tables.bitmap.as_deref() {
        Input::from(bitmap).check_context("the bitmap", device)?;
    }
    if let Some(coefficients) = goldfish.tables.coefficients.as_deref() {
        Input::from(coefficients).check_context("the coefficients", device)?;
    }
    Ok(())
}

/// A decision whose buffers are checked.
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

/// Decides about every label: the same as [`Goldfish::keep`], on every device and grid. An output that is not given is
/// not computed.
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
    /// Writes the decisions, one for each label: 1 kept, 0 dropped.
    pub fn keep(mut self, keep: impl Into<Output<'a, u8>>) -> Self {
        self.keep = Some(keep.into());
        self
    }

    /// Writes them as weights of a loss: 1 kept, 0 dropped.
    pub fn weights(mut self, weights: impl Into<Output<'a, f32>>) -> Self {
        self.weights = Some(weights.into());
        self
    }

    /// Writes two numbers: labels kept, labels dropped.
    pub fn counts(mut self, counts: impl Into<Output<'a, i64>>) -> Self {
        self.counts = Some(counts.into());
        self
    }

    /// Bytes of workspace that the launch needs.
    ///
    /// # Errors
    /// None today; it is a `Result` so that an option may bring one.
    pub fn workspace_bytes(&self) -> Result<u64> {
        let labels = self.tokens.len() as u64;
        Ok(self
            .counts
            .as_ref()
            .map_or(0, |_| raw::workspace_bytes(labels)))
    }

    /// Launches the call on the queue.
    ///
    /// # Errors
    /// [`Length`](crate::Error::Length): an output is not of one element for each label, the number of
    /// labels is no multiple of a row, or that of halo ids none of the segments.
    /// [`WrongContext`](crate::Error::WrongContext), [`WrongThread`](crate::Error::WrongThread), [`Workspace`](crate::Error::Workspace),
    /// [`Overlap`](crate::Error::Overlap), or what loading and launching say. Nothing is written then.
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
