//! What is trained, and for how long.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use xact_candle::xact::{Error, Goldfish, Strategy};

/// The sizes of the experiment. A checkpoint and a result name the sizes that they belong to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The ids of the vocabulary.
    pub vocabulary: usize,
    /// The ids of a sequence: of a canary, of a piece of the text.
    pub context: usize,
    /// The ids of a canary that the model is given before it continues.
    pub prompt: usize,
    /// The features of a token between layers.
    pub width: usize,
    /// The layers, each with attention and an MLP of 4·width features.
    pub layers: usize,
    /// The heads of attention.
    pub heads: usize,
    /// How often canaries are repeated; 0 for canaries that no training sees.
    pub repetitions: Vec<usize>,
    /// The canaries of each number of repetitions.
    pub canaries: usize,
    /// The sequences held out for the validation loss.
    pub validation: usize,
    /// The labels that enter the loss in a training, at least.
    pub supervised: usize,
    /// The sequences of a step.
    pub batch: usize,
    /// The highest learning rate, after a linear warm-up over a tenth of the steps; it then falls to a tenth along a cosine.
    pub learning_rate: f64,
    /// The decay of matrices, as in AdamW.
    pub weight_decay: f64,
    /// The seeds that are trained.
    pub seeds: u64,
}

impl Config {
    /// The experiment.
    pub fn full() -> Config {
        Config {
            vocabulary: 1024,
            context: 192,
            prompt: 64,
            width: 160,
            layers: 3,
            heads: 5,
            repetitions: vec![0, 1, 2, 4, 8, 16, 32, 64, 128],
            canaries: 6,
            validation: 64,
            supervised: 1_000_000,
            batch: 4,
            learning_rate: 3e-3,
            weight_decay: 0.1,
            seeds: 3,
        }
    }

    /// A version of seconds that shows the same: a smaller model, which sees little besides the canaries.
    pub fn quick() -> Config {
        Config {
            width: 96,
            layers: 2,
            heads: 3,
            repetitions: vec![0, 16, 128],
            canaries: 2,
            validation: 8,
            supervised: 80_000,
            seeds: 1,
            ..Config::full()
        }
    }

    /// All trainings, each with its name: those of a seed one after the other.
    pub fn parts(&self) -> Vec<Part> {
        let of_seed = |seed| {
            Objective::value_variants()
                .iter()
                .map(move |&objective| Part { objective, seed })
        };
        (0..self.seeds).flat_map(of_seed).collect()
    }
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Cross-entropy.
    Plain,
    /// Goldfish as in its paper: k = 4, h = 13.
    Paper,
    /// Goldfish as in Apertus v1: k = 50, h = 50, the product of the ids.
    Product,
    /// The same k and h, with a sound hash.
    Hash64,
}

impl Objective {
    /// The name for readers.
    pub fn title(self) -> &'static str {
        match self {
            Objective::Plain => "cross-entropy",
            Objective::Paper => "Goldfish k = 4, h = 13, ProductTable",
            Objective::Product => "Goldfish k = 50, h = 50, ProductTable",
            Objective::Hash64 => "Goldfish k = 50, h = 50, Hash64",
        }
    }

    /// The strategy of Goldfish.
    pub fn strategy(self) -> Option<Strategy> {
        match self {
            Objective::Plain => None,
            Objective::Paper => Some(Strategy::ProductTable { k: 4, h: 13 }),
            Objective::Product => Some(Strategy::ProductTable { k: 50, h: 50 }),
            Objective::Hash64 => Some(Strategy::Hash64 {
                k: 50,
                h: 50,
                seed: 0,
            }),
        }
    }

    /// The strategy with its tables.
    pub fn goldfish(self) -> Result<Option<Goldfish>, Error> {
        self.strategy().map(Goldfish::new).transpose()
    }
}

/// One training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// What it minimises.
    pub objective: Objective,
    /// The seed of its weights and of the order of its data.
    pub seed: u64,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let name = self.objective.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        write!(f, "{name}-{}", self.seed)
    }
}
