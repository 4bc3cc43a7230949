//! The text, its vocabulary, and its division into canaries, validation and training text.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerBuilder, TokenizerImpl,
};
use xact_candle::xact::Tokens;

use crate::config::{Config, Part};
use crate::random::Random;

/// The texts; text/README.md has their sources.
const TEXTS: [&str; 3] = [
    include_str!("text/alice.txt"),
    include_str!("text/as-you-like-it.txt"),
    include_str!("text/paradise-lost.txt"),
];

/// The id before every sequence. It is never a label.
pub const BEGIN: u32 = 0;

type Tokenizer = TokenizerImpl<
    BPE,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// The vocabulary in `folder`, which is trained if it is not there.
pub fn tokenizer(config: &Config, folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let failed = |e: tokenizers::Error| anyhow!("{}: {e}", path.display());
    if !path.exists() {
        let trained = train(config).map_err(failed)?;
        let text = trained.to_string(false).map_err(failed)?;
        xact_dev::files::replace(&path, text.as_bytes()).map_err(anyhow::Error::msg)?;
    }
    let tokenizer: Tokenizer =
        serde_json::from_slice(&fs::read(&path)?).with_context(|| path.display().to_string())?;
    let size = tokenizer.get_vocab_size(true);
    ensure!(
        size == config.vocabulary,
        "{} has {size} ids, not {}: choose another folder",
        path.display(),
        config.vocabulary
    );
    Ok(tokenizer)
}

fn train(config: &Config) -> tokenizers::Result<Tokenizer> {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(config.vocabulary)
        .special_tokens(vec![AddedToken::from("<|begin|>", true)])
        .show_progress(false)
        .build();
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::from(ByteLevel::default())))
        .with_post_processor(None::<PostProcessorWrapper>)
        .with_decoder(Some(DecoderWrapper::from(ByteLevel::default())))
        .build()?;
    tokenizer.train(&mut trainer, TEXTS.into_iter().map(words))?;
    Ok(tokenizer)
}

/// The words with single spaces: the lines of a play and of prose are broken in different ways.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Sequences of `context` ids that follow each other in the text and belong to one use each.
pub struct Corpus {
    /// All ids, in the order of the text.
    pub ids: Vec<u32>,
    /// The canaries of all numbers of repetitions.
    pub canaries: Vec<Vec<u32>>,
    /// The sequences of the validation loss.
    pub validation: Vec<Vec<u32>>,
    /// The other sequences.
    pub training: Vec<Vec<u32>>,
}

impl Corpus {
    /// Divides the text. The division is the same for every training.
    pub fn new(config: &Config, tokenizer: &Tokenizer) -> Result<Corpus> {
        let mut ids = Vec::new();
        for text in TEXTS {
            let encoding = tokenizer.encode_fast(words(text), false);
            ids.extend_from_slice(encoding.map_err(|e| anyhow!("{e}"))?.get_ids());
        }
        let mut sequences: Vec<Vec<u32>> = ids
            .chunks_exact(config.context)
            .map(<[_]>::to_vec)
            .collect();
        Random::new(0, 0).shuffle(&mut sequences);
        let canaries = config.repetitions.len() * config.canaries;
        ensure!(
            sequences.len() > canaries + config.validation,
            "the text has too few sequences: {}",
            sequences.len()
        );
        let training = sequences.split_off(canaries + config.validation);
        let validation = sequences.split_off(canaries);
        Ok(Corpus {
            ids,
            canaries: sequences,
            validation,
            training,
        })
    }

    /// How often a training repeats each canary. Another seed repeats other canaries.
    pub fn repetitions(&self, config: &Config, seed: u64) -> Vec<usize> {
        let levels = config.repetitions.iter();
        let mut all: Vec<usize> = levels
            .flat_map(|&level| [level].repeat(config.canaries))
            .collect();
        Random::new(seed, 1).shuffle(&mut all);
        all
    }

    /// The sequences of a training in their order: the canaries, and as much of the text, several times if need be, as
    /// brings the labels that enter the loss to their number.
    pub fn sequences(&self, config: &Config, part: Part) -> Result<Vec<&[u32]>> {
        let goldfish = part.objective.goldfish()?;
        let kept = |ids: &[u32]| -> Result<usize> {
            let Some(goldfish) = &goldfish else {
                return Ok(ids.len());
            };
            let keep = goldfish.keep(&Tokens::row(ids))?;
            Ok(keep.iter().filter(|&&keep| keep).count())
        };
        let mut supervised = 0;
        let mut sequences: Vec<&[u32]> = Vec::new();
        let repetitions = self.repetitions(config, part.seed);
        for (canary, repetitions) in self.canaries.iter().zip(repetitions) {
            supervised += repetitions * kept(canary)?;
            sequences.extend([&canary[..]].repeat(repetitions));
        }
        let mut random = Random::new(part.seed, 2);
        let mut order: Vec<&[u32]> = self.training.iter().map(|ids| &ids[..]).collect();
        for at in (0..order.len()).cycle() {
            if supervised >= config.supervised && sequences.len().is_multiple_of(config.batch) {
                break;
            }
            if at == 0 {
                random.shuffle(&mut order);
            }
            supervised += kept(order[at])?;
            sequences.push(order[at]);
        }
        random.shuffle(&mut sequences);
        Ok(sequences)
    }
}
