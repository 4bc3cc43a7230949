//! What Goldfish decides from, as tensors.

use candle_core::{DType, Device, Result, Tensor};
use xact::Goldfish;

use crate::error::{check_device, check_dtype};

/// The types of ids.
const IDS: [DType; 4] = [DType::U8, DType::U32, DType::I32, DType::I64];

/// A [`Goldfish`] whose tables are on a device: made once, used by any number of calls. A clone has the same tables.
#[derive(Clone, Debug)]
pub struct DeviceGoldfish {
    pub(crate) goldfish: Goldfish,
    /// `[words] u32`, of the strategies with a table.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))] // the CPU reads those of `goldfish`
    pub(crate) bitmap: Option<Tensor>,
    /// `[h] i64`, of the strategy with coefficients.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(crate) coefficients: Option<Tensor>,
}

impl DeviceGoldfish {
    /// Copies the tables to the device, at most 125 kB and 8·h bytes. On the CPU nothing is copied.
    ///
    /// # Errors
    /// What candle says of the copy.
    pub fn new(goldfish: &Goldfish, device: &Device) -> Result<DeviceGoldfish> {
        let elsewhere = !device.is_cpu();
        let bitmap = goldfish.bitmap_words().filter(|_| elsewhere);
        let coefficients = goldfish.coefficients().filter(|_| elsewhere);
        Ok(DeviceGoldfish {
            goldfish: goldfish.clone(),
            bitmap: bitmap.map(|words| Tensor::new(words, device)).transpose()?,
            coefficients: coefficients.map(|c| Tensor::new(c, device)).transpose()?,
        })
    }
}

/// The ids that decide which labels are dropped. There is one for each label; their type, u8, u32, i32 or i64, need not
/// be that of the labels, and labels that are ignored still have an id.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub(crate) ids: Tensor,
    pub(crate) cu_seqlens: Option<Tensor>,
    pub(crate) halo: Option<Tensor>,
    pub(crate) exempt: Option<Tensor>,
}

impl Tokens {
    /// Ids `[.., S]`: rows of S labels each.
    pub fn rows(ids: &Tensor) -> Tokens {
        Tokens {
            ids: ids.clone(),
            cu_seqlens: None,
            halo: None,
            exempt: None,
        }
    }

    /// Ids of any shape as one segment, cut into documents by `[documents + 1] i32` offsets that do not decrease. On the
    /// CPU it is an error if they do; on a device nobody sees it, and nothing out of bounds is read.
    pub fn documents(ids: &Tensor, cu_seqlens: &Tensor) -> Tokens {
        Tokens {
            cu_seqlens: Some(cu_seqlens.clone()),
            ..Tokens::rows(ids)
        }
    }

    /// Sets the ids before the first label of each segment, `[segments, n]`, of the type of the others.
    #[must_use]
    pub fn halo(mut self, halo: &Tensor) -> Tokens {
        self.halo = Some(halo.clone());
        self
    }

    /// Sets the ids that are never dropped, `[n] i64`, in any order.
    #[must_use]
    pub fn exempt(mut self, exempt: &Tensor) -> Tokens {
        self.exempt = Some(exempt.clone());
        self
    }

    /// Labels of a row, of which the number of labels is a multiple.
    pub(crate) fn row_len(&self) -> usize {
        self.ids.dims().last().copied().unwrap_or(1)
    }

    /// Fails unless types and devices are right. Numbers are checked by xact.
    pub(crate) fn check(&self, logits: &Tensor) -> Result<()> {
        check_dtype("the ids of the tokens", &self.ids, &IDS)?;
        let (ids, exempt) = (self.ids.dtype(), DType::I64);
        for (what, tensor, dtype) in [
            ("the ids of the tokens", Some(&self.ids), ids),
            ("the halo", self.halo.as_ref(), ids),
            ("cu_seqlens", self.cu_seqlens.as_ref(), DType::I32),
            ("the exempt ids", self.exempt.as_ref(), exempt),
        ] {
            if let Some(tensor) = tensor {
                check_dtype(what, tensor, &[dtype])?;
                check_device(what, tensor, logits)?;
            }
        }
        Ok(())
    }
}

/// Tokens on the host.
pub(crate) struct HostTokens {
    ids: Vec<i64>,
    row_len: usize,
    cu_seqlens: Option<Vec<i32>>,
    halo: Vec<i64>,
    exempt: Vec<i64>,
}

/// Integers of any type, in order.
pub(crate) fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    tensor.flatten_all()?.to_dtype(DType::I64)?.to_vec1()
}

impl HostTokens {
    pub(crate) fn new(tokens: &Tokens) -> Result<HostTokens> {
        let optional = |tensor: &Option<Tensor>| tensor.as_ref().map_or(Ok(Vec::new()), integers);
        let cu_seqlens = tokens.cu_seqlens.as_ref();
        let cu_seqlens = cu_seqlens.map(|offsets| offsets.flatten_all()?.to_vec1());
        Ok(HostTokens {
            ids: integers(&tokens.ids)?,
            row_len: tokens.row_len(),
            cu_seqlens: cu_seqlens.transpose()?,
            halo: optional(&tokens.halo)?,
            exempt: optional(&tokens.exempt)?,
        })
    }

    /// As xact takes them.
    pub(crate) fn tokens(&self) -> xact::Tokens<'_, i64> {
        let tokens = match &self.cu_seqlens {
            Some(cu_seqlens) => xact::Tokens::documents(&self.ids, cu_seqlens),
            None => xact::Tokens::rows(&self.ids, self.row_len),
        };
        tokens.halo(&self.halo).exempt(&self.exempt)
    }
}
