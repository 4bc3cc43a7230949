//! The Goldfish strategies, and one of them on the command line.

use clap::ValueEnum;
use xact::Strategy;

/// The names of the strategies, in the order of [`all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Every k-th label
    Static,
    /// One label in k, whatever the text
    Random,
    /// Product of the ids, table lookup: the official hash-table, Apertus v1
    ProductTable,
    /// Product of the ids, mixed: the official hash-avalanche
    ProductAvalanche,
    /// Weighted sum of the ids, table lookup: the successor in Apertus 2
    DotTable,
    /// The hash of this crate
    Hash64,
}

/// The numbers of a strategy.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// About one label in this many is dropped.
    pub k: u32,
    /// Ids in a window.
    pub h: u32,
    /// The first label of a row that is dropped.
    pub start: u64,
    /// Any number.
    pub seed: u64,
}

impl Numbers {
    /// The strategy of this name; numbers that it does not have are not used.
    pub fn of(&self, name: Name) -> Strategy {
        let Numbers { k, h, start, seed } = *self;
        all(k, h, start, seed)[name as usize]
    }
}

/// All strategies, each with those of the numbers that it has.
pub const fn all(k: u32, h: u32, start: u64, seed: u64) -> [Strategy; 6] {
    [
        Strategy::Static { k, start },
        Strategy::Random { k, seed },
        Strategy::ProductTable { k, h },
        Strategy::ProductAvalanche { k, h },
        Strategy::DotTable { k, h },
        Strategy::Hash64 { k, h, seed },
    ]
}
