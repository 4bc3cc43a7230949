//! The strategy and the token ids of Goldfish, as tensors.

use candle_core::{DType, Device, Result, Tensor};
use xact::Goldfish;

use crate::error::{check_device, check_dtype};

/// The dtypes of ids.
const IDS: [DType; 4] = [DType::U8, DType::U32, DType::I32, DType::I64];

/// A [`Goldfish`] with its tables on a device. Make it once and use it in any number of calls. A clone shares the tables.
#[derive(Clone, Debug)]
pub struct DeviceGoldfish {
    pub(crate) goldfish: Goldfish,
    /// `[words] u32`, if the strategy has a table.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    // the CPU backend reads the tables of `goldfish`
    pub(crate) bitmap: Option<Tensor>,
    /// `[h] i64`, if the strategy has coefficients.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(crate) coefficients: Option<Tensor>,
}

impl DeviceGoldfish {
    /// Copies the tables to the device: at most 125 kB and 8·h bytes. For the CPU nothing is copied.
    ///
    /// # Errors
    /// The errors of candle's copy.
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

/// The token ids that decide which labels Goldfish drops: one id for each label, in u8, u32, i32 or i64. The dtype may
/// differ from that of the labels. Labels that are ignored have an id too.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub(crate) ids: Tensor,
    pub(crate) cu_seqlens: Option<Tensor>,
    pub(crate) preceding: Option<Tensor>,
    pub(crate) halo: Option<Tensor>,
    pub(crate) exempt: Option<Tensor>,
    seq_first: bool,
}

impl Tokens {
    /// Ids of shape `[.., S]`: each row of S labels is a segment.
    pub fn rows(ids: &Tensor) -> Tokens {
        Tokens {
            ids: ids.clone(),
            cu_seqlens: None,
            preceding: None,
            halo: None,
            exempt: None,
            seq_first: false,
        }
    }

    /// Ids of any shape as one segment, which the offsets `cu_seqlens`, `[documents + 1] i32`, cut into documents. Offsets
    /// must not decrease. On the CPU, offsets that do are an error. On CUDA they are not noticed, and nothing out of bounds
    /// is read.
    pub fn documents(ids: &Tensor, cu_seqlens: &Tensor) -> Tokens {
        Tokens {
            cu_seqlens: Some(cu_seqlens.clone()),
            ..Tokens::rows(ids)
        }
    }

    /// Ids of any shape as chunks of documents, such as those of a context-parallel rank: chunk c begins at label
    /// `cu_seqlens[c]`, and `preceding[c]` labels of its document are before it. `cu_seqlens` is `[chunks + 1] i32`, and
    /// `preceding` is `[chunks] i64` ([`xact::Tokens::chunks`]). Offsets must not be negative or decrease, and the numbers
    /// must not be negative. On the CPU that is an error. On CUDA it is not noticed, and nothing out of bounds is read.
    pub fn chunks(ids: &Tensor, cu_seqlens: &Tensor, preceding: &Tensor) -> Tokens {
        Tokens {
            preceding: Some(preceding.clone()),
            ..Tokens::documents(ids, cu_seqlens)
        }
    }

    /// Sets that the text runs along the first dimension of the ids, `[S, ..]`, as of the labels, so that the rows of S labels
    /// are the columns. They are decided as the transposed ones ([`xact::Tokens::interleaved`]). The offsets and the halo are
    /// those of the transposed ids.
    #[must_use]
    pub fn seq_first(mut self) -> Tokens {
        self.seq_first = true;
        self
    }

    /// Sets the ids before the first label of each segment: `[segments, n]`, in the dtype of the other ids.
    #[must_use]
    pub fn halo(mut self, halo: &Tensor) -> Tokens {
        self.halo = Some(halo.clone());
        self
    }

    /// Sets the ids that are never dropped: `[n] i64`, in any order.
    #[must_use]
    pub fn exempt(mut self, exempt: &Tensor) -> Tokens {
        self.exempt = Some(exempt.clone());
        self
    }

    /// The number of labels of a row.
    pub(crate) fn row_len(&self) -> usize {
        let dims = self.ids.dims();
        let len = if self.seq_first {
            dims.first()
        } else {
            dims.last()
        };
        len.copied().unwrap_or(1)
    }

    /// The number of rows that are interleaved.
    pub(crate) fn interleaved(&self) -> usize {
        match self.seq_first {
            true => self.ids.dims().iter().skip(1).product(),
            false => 1,
        }
    }

    /// Fails unless dtypes and devices are right. xact checks the lengths.
    pub(crate) fn check(&self, logits: &Tensor) -> Result<()> {
        check_dtype("the ids of the tokens", &self.ids, &IDS)?;
        let (ids, exempt) = (self.ids.dtype(), DType::I64);
        for (what, tensor, dtype) in [
            ("the ids of the tokens", Some(&self.ids), ids),
            ("the halo", self.halo.as_ref(), ids),
            ("cu_seqlens", self.cu_seqlens.as_ref(), DType::I32),
            ("preceding", self.preceding.as_ref(), DType::I64),
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
    interleaved: usize,
    cu_seqlens: Option<Vec<i32>>,
    preceding: Option<Vec<i64>>,
    halo: Vec<i64>,
    exempt: Vec<i64>,
}

/// All elements of an integer tensor, as i64.
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
            interleaved: tokens.interleaved(),
            cu_seqlens: cu_seqlens.transpose()?,
            preceding: tokens.preceding.as_ref().map(integers).transpose()?,
            halo: optional(&tokens.halo)?,
            exempt: optional(&tokens.exempt)?,
        })
    }

    /// Returns the tokens in xact's type.
    pub(crate) fn tokens(&self) -> xact::Tokens<'_, i64> {
        let tokens = match (&self.cu_seqlens, &self.preceding) {
            (Some(cu_seqlens), Some(preceding)) => {
                xact::Tokens::chunks(&self.ids, cu_seqlens, preceding)
            }
            (Some(cu_seqlens), None) => xact::Tokens::documents(&self.ids, cu_seqlens),
            (None, _) => xact::Tokens::rows(&self.ids, self.row_len),
        };
        let tokens = tokens.halo(&self.halo).exempt(&self.exempt);
        tokens.interleaved(self.interleaved)
    }
}
