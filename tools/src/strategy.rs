//! The Goldfish strategies, and their selection on the command line.

use clap::ValueEnum;
use xact::Strategy;

/// The names of the strategies, in the order of [`all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Every k-th label
    Static,
    /// One label in k, independent of the ids
    Random,
    /// The product of the ids selects an entry of a table: the official hash-table, Apertus v1
    ProductTable,
    /// A hash of the product of the ids: the official hash-avalanche
    ProductAvalanche,
    /// The weighted sum of the ids selects an entry of a table: the successor in Apertus 2
    DotTable,
    /// The 64-bit hash of this crate
    Hash64,
}

/// The numbers of a strategy.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// About one label in this number is dropped.
    pub k: u32,
    /// The number of ids in a window.
    pub h: u32,
    /// The first label of a row that is dropped.
    pub start: u64,
    /// Any number.
    pub seed: u64,
}

impl Numbers {
    /// The strategy of this name; numbers that it does not have are ignored.
    pub fn of(&self, name: Name) -> Strategy {
        let Numbers { k, h, start, seed } = *self;
        all(k, h, start, seed)[name as usize]
    }
}

/// All strategies, each with the numbers that it has.
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
