//! Computes the Goldfish mask of the labels of a file, and reads the decision of a loss.

use bytemuck::Pod;
use safetensors::tensor::{Dtype, TensorView};
use xact::cuda::goldfish::{self as device, DeviceGoldfish, DeviceTokens};
use xact::loss::goldfish::TokenId;
use xact::{Goldfish, Queue, Strategy, Tokens, cpu};

use super::arguments::Files;
use super::machine::{Buffer, Machine};
use super::tensors::{Output, Tensors, elements};
use xact_dev::strategy::{Name, Numbers};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    files: Files,
    /// The strategy
    #[arg(long, value_enum, default_value = "hash64")]
    strategy: Name,
    #[command(flatten)]
    options: Options,
}

/// The numbers of a strategy.
#[derive(clap::Args)]
pub struct Options {
    /// Drop about one label in this number; the default is 50
    #[arg(long)]
    k: Option<u32>,
    /// The number of ids in a window, for strategies that depend on ids; the default is 50
    #[arg(long)]
    h: Option<u32>,
    /// static: the first label of a row that is dropped; the default is 0
    #[arg(long)]
    start: Option<u64>,
    /// random and hash64: any number; the default is 0
    #[arg(long)]
    seed: Option<u64>,
    /// The text runs along the first dimension of the ids, [labels of a row, rows]: decide as about the transposed ids
    #[arg(long)]
    seq_first: bool,
}

impl Options {
    /// The strategy of this name with these numbers, if one is named. All numbers that are given must belong to it.
    pub fn strategy(&self, name: Option<Name>) -> Result<Option<Goldfish>, String> {
        let strategy = name.map(|name| {
            let numbers = Numbers {
                k: self.k.unwrap_or(50),
                h: self.h.unwrap_or(50),
                start: self.start.unwrap_or(0),
                seed: self.seed.unwrap_or(0),
            };
            numbers.of(name)
        });
        let has_h = strategy.is_some_and(|strategy| strategy.h().is_some());
        let has_start = matches!(strategy, Some(Strategy::Static { .. }));
        let has_seed = matches!(
            strategy,
            Some(Strategy::Random { .. } | Strategy::Hash64 { .. })
        );
        for (flag, is_given, is_used) in [
            ("--k", self.k.is_some(), strategy.is_some()),
            ("--h", self.h.is_some(), has_h),
            ("--start", self.start.is_some(), has_start),
            ("--seed", self.seed.is_some(), has_seed),
            ("--seq-first", self.seq_first, strategy.is_some()),
        ] {
            if is_given && !is_used {
                return Err(match strategy {
                    None => format!("{flag} is of --goldfish, which is not given"),
                    Some(strategy) => format!("{} has no {flag}", strategy.name()),
                });
            }
        }
        let goldfish = strategy.map(Goldfish::new).transpose();
        goldfish.map_err(|e| e.to_string())
    }
}

/// Evaluates a call with the type of the ids of a tensor: `each_id!("hash_ids", view, I => …)`.
macro_rules! each_id {
    ($name:expr, $view:expr, $I:ident => $body:expr) => {
        $crate::tensors::each_integer!(
            $name, $view, [U8: u8, U16: u16, U32: u32, I32: i32, I64: i64], $I => $body
        )
    };
}

/// The ids of a tensor as i64, which give the same decisions.
pub fn widened(name: &str, view: &TensorView<'_>) -> Result<Vec<i64>, String> {
    each_id!(name, view, I => Ok(widen::<I>(view)))
}

/// The same for a tensor of `I`.
pub fn widen<I: TokenId + Pod>(view: &TensorView<'_>) -> Vec<i64> {
    elements::<I>(view).into_iter().map(Into::into).collect()
}

/// The strategy and the tokens that decide which labels are dropped.
pub struct Dropping<I> {
    goldfish: Goldfish,
    ids: Vec<I>,
    /// The number of ids of a row.
    len: usize,
    /// The number of rows that are interleaved.
    interleaved: usize,
    cu_seqlens: Option<Vec<i32>>,
    preceding: Option<Vec<i64>>,
    halo: Vec<I>,
    exempt: Vec<i64>,
}

impl<I: TokenId> Dropping<I> {
    /// Reads the other tensors of a decision with ids of this shape.
    pub fn read(
        goldfish: Goldfish,
        options: &Options,
        tensors: &Tensors<'_>,
        ids: Vec<I>,
        shape: &[usize],
        halo: Vec<I>,
    ) -> Result<Dropping<I>, String> {
        let cu_seqlens = tensors.list("cu_seqlens", Dtype::I32)?;
        let (len, interleaved) = match options.seq_first {
            true => (shape.first(), shape.iter().skip(1).product()),
            false => (shape.last(), 1),
        };
        // Without offsets it is not read, which is said.
        let preceding = match cu_seqlens {
            Some(_) => tensors.list("preceding", Dtype::I64)?,
            None => None,
        };
        Ok(Dropping {
            goldfish,
            ids,
            len: len.copied().unwrap_or(1),
            interleaved,
            cu_seqlens,
            preceding,
            halo,
            exempt: tensors.list("exempt", Dtype::I64)?.unwrap_or_default(),
        })
    }

    pub fn strategy(&self) -> &Goldfish {
        &self.goldfish
    }

    pub fn tokens(&self) -> Tokens<'_, I> {
        let tokens = match (&self.cu_seqlens, &self.preceding) {
            (Some(cu_seqlens), Some(preceding)) => Tokens::chunks(&self.ids, cu_seqlens, preceding),
            (Some(cu_seqlens), None) => Tokens::documents(&self.ids, cu_seqlens),
            (None, _) => Tokens::rows(&self.ids, self.len),
        };
        let tokens = tokens.halo(&self.halo).exempt(&self.exempt);
        tokens.interleaved(self.interleaved)
    }

    /// Whether each label is kept, by the reference.
    pub fn keep(&self) -> xact::Result<Vec<bool>> {
        self.goldfish.keep(&self.tokens())
    }

    /// Copies the tokens to the device. They are checked first, because the device cannot check the numbers.
    pub fn upload(&self, queue: &Queue) -> xact::Result<OnDevice<I>> {
        self.tokens().check()?;
        Ok(OnDevice {
            goldfish: self.goldfish.upload(queue)?,
            ids: Buffer::upload(queue, &self.ids)?,
            len: self.len,
            interleaved: self.interleaved,
            cu_seqlens: (self.cu_seqlens.as_ref())
                .map(|offsets| Buffer::upload(queue, offsets))
                .transpose()?,
            preceding: (self.preceding.as_ref())
                .map(|preceding| Buffer::upload(queue, preceding))
                .transpose()?,
            halo: Buffer::upload(queue, &self.halo)?,
            exempt: Buffer::upload(queue, &self.exempt)?,
        })
    }
}

/// The same tokens on a device.
pub struct OnDevice<I> {
    goldfish: DeviceGoldfish,
    ids: Buffer<I>,
    len: usize,
    interleaved: usize,
    cu_seqlens: Option<Buffer<i32>>,
    preceding: Option<Buffer<i64>>,
    halo: Buffer<I>,
    exempt: Buffer<i64>,
}

impl<I: TokenId> OnDevice<I> {
    pub fn strategy(&self) -> &DeviceGoldfish {
        &self.goldfish
    }

    pub fn tokens(&self) -> DeviceTokens<'_, I> {
        let ids = self.ids.input();
        let tokens = match (&self.cu_seqlens, &self.preceding) {
            (Some(cu_seqlens), Some(preceding)) => {
                DeviceTokens::chunks(ids, cu_seqlens.input(), preceding.input())
            }
            (Some(cu_seqlens), None) => DeviceTokens::documents(ids, cu_seqlens.input()),
            (None, _) => DeviceTokens::rows(ids, self.len),
        };
        let tokens = tokens.halo(self.halo.input()).exempt(self.exempt.input());
        tokens.interleaved(self.interleaved)
    }
}

pub fn apply(arguments: &Arguments) -> Result<(), String> {
    let strategy = arguments.options.strategy(Some(arguments.strategy))?;
    arguments.files.convert(|tensors| {
        let labels = tensors.get("labels")?;
        let goldfish = strategy.expect("it is named");
        each_id!("labels", labels, I => mask::<I>(goldfish, arguments, tensors, &labels))
    })
}

/// The tensors `keep` and `kept`.
fn mask<I: TokenId + Pod>(
    goldfish: Goldfish,
    arguments: &Arguments,
    tensors: &Tensors<'_>,
    labels: &TensorView<'_>,
) -> Result<Vec<Output>, String> {
    let shape = labels.shape();
    if shape.is_empty() {
        return Err("labels is a scalar; it must be [rows, labels of a row]".to_owned());
    }
    let halo = tensors.list("halo", labels.dtype())?.unwrap_or_default();
    let ids = elements(labels);
    let dropping = Dropping::<I>::read(goldfish, &arguments.options, tensors, ids, shape, halo)?;
    tensors.warn_of_unread();
    let keep = match Machine::open(arguments.files.device)? {
        Machine::Reference => dropping.keep().map(|keep| {
            let kept = keep.iter().filter(|&&keep| keep).count() as i64;
            (keep.into_iter().map(u8::from).collect(), kept)
        }),
        Machine::Cpu => dropping.on_cpu(),
        Machine::Device(mut queue) => dropping.on_device(&mut queue),
    };
    let (keep, kept): (Vec<u8>, i64) = keep.map_err(|e| e.to_string())?;
    Ok(vec![
        Output::new("keep", Dtype::U8, shape, &keep),
        Output::new("kept", Dtype::I64, &[1], &[kept]),
    ])
}

impl<I: TokenId> Dropping<I> {
    fn on_cpu(&self) -> xact::Result<(Vec<u8>, i64)> {
        let mut keep = vec![0; self.ids.len()];
        let counts = cpu::goldfish::mask(&self.goldfish, self.tokens())
            .keep(&mut keep)
            .run()?;
        Ok((keep, counts.kept as i64))
    }

    fn on_device(&self, queue: &mut Queue) -> xact::Result<(Vec<u8>, i64)> {
        let of_device = self.upload(queue)?;
        let mut keep = Buffer::zeros(queue, self.ids.len())?;
        let mut counts = Buffer::zeros(queue, 2)?;
        let call = device::mask(of_device.strategy(), of_device.tokens())
            .keep(keep.output())
            .counts(counts.output());
        queue.reserve(call.workspace_bytes()?)?;
        call.launch(queue)?;
        Ok((keep.download(queue)?, counts.download(queue)?[0]))
    }
}
