//! Counts the decisions of a strategy.

use std::collections::{BTreeMap, HashMap};
use std::thread;

use serde_json::json;
use xact::loss::goldfish::Tokens;
use xact::{Goldfish, Strategy};

use crate::distinct::Distinct;
use crate::ids::Ids;

/// The number of ids in memory at a time, unless a row is longer.
const BLOCK: usize = 1 << 20;
/// The maximum length of a row.
const LONGEST_ROW: usize = 1 << 26;
/// Ids below this number are counted individually; larger than any vocabulary.
const COUNTED_IDS: usize = 1 << 21;
/// The rate of an id is significant from this number of expected drops on.
pub const LEAST_DROPS: u64 = 20;
/// The histogram ends at this multiple of k.
pub const GAPS_OF_K: f64 = 8.0;
/// The number of bars.
const BARS: usize = 40;

/// A strategy, and its counts so far.
pub struct Audit {
    goldfish: Goldfish,
    pub labels: u64,
    dropped: u64,
    windows: u64,
    zero_keys: u64,
    keys: Distinct,
    distinct_windows: f64,
    /// The number of labels since the last drop, and its maximum.
    run: u64,
    longest_run: u64,
    /// The number of gaps of each length between drops, up to [`GAPS_OF_K`]·k.
    gaps: Vec<u64>,
    all_gaps: u64,
    ids: HashMap<i64, Count>,
    /// The number of labels with ids beyond [`COUNTED_IDS`].
    pub lumped: u64,
}

#[derive(Clone, Copy, Default)]
struct Count {
    labels: u64,
    dropped: u64,
}

/// An id, the number of its labels with a whole window, and the number of those that were dropped.
pub struct OfId {
    pub id: i64,
    pub labels: u64,
    dropped: u64,
}

impl OfId {
    pub fn rate(&self) -> f64 {
        self.dropped as f64 / self.labels as f64
    }
}

/// Reads all ids, and passes them to all audits. `progress` gets the number of ids that are done.
pub fn all(
    audits: &mut [Audit],
    ids: &mut Ids,
    row: Option<usize>,
    progress: impl Fn(u64),
) -> Result<(), String> {
    let block = match row {
        Some(0) => return Err("a row must have an id".to_owned()),
        Some(row) if row > LONGEST_ROW => {
            return Err(format!("a row may have {LONGEST_ROW} ids"));
        }
        Some(row) => row * (BLOCK / row).max(1),
        None => BLOCK,
    };
    let fingerprints = |h| {
        Goldfish::new(Strategy::Hash64 {
            k: 2,
            h,
            seed: 0x5eed,
        })
    };
    let mut windows = BTreeMap::new();
    for audit in audits.iter() {
        let fingerprints = fingerprints(audit.h()).map_err(|e| e.to_string())?;
        windows.insert(audit.h(), (fingerprints, Distinct::new()));
    }
    let most = windows.keys().next_back().map_or(0, |&h| h as usize - 1);
    let (mut halo, mut done) = (Vec::new(), 0);
    loop {
        let new = ids.next(block)?;
        if new.is_empty() {
            break;
        }
        done += new.len() as u64;
        // The last row of a file may be shorter.
        let whole = row.map_or(0, |row| new.len() / row * row);
        let parts = match row {
            Some(row) => vec![(&new[..whole], row), (&new[whole..], new.len() - whole)],
            None => vec![(&new[..], new.len())],
        };
        for (hash_ids, len) in parts.into_iter().filter(|(ids, _)| !ids.is_empty()) {
            let tokens = Tokens::rows(hash_ids, len).halo(&halo);
            thread::scope(|scope| {
                for audit in audits.iter_mut() {
                    scope.spawn(|| audit.add(&tokens));
                }
                for (fingerprints, distinct) in windows.values_mut() {
                    scope.spawn(|| {
                        let keys = fingerprints.keys(&tokens).expect("whole rows");
                        keys.into_iter().flatten().for_each(|key| distinct.add(key));
                    });
                }
            });
        }
        if row.is_none() {
            halo.extend_from_slice(&new[new.len().saturating_sub(most)..]);
            halo.drain(..halo.len().saturating_sub(most));
        }
        progress(done);
    }
    for audit in audits {
        audit.distinct_windows = windows[&audit.h()].1.estimate();
    }
    Ok(())
}

impl Audit {
    pub fn new(goldfish: Goldfish) -> Audit {
        let bars = GAPS_OF_K * f64::from(goldfish.strategy().k());
        Audit {
            goldfish,
            labels: 0,
            dropped: 0,
            windows: 0,
            zero_keys: 0,
            keys: Distinct::new(),
            distinct_windows: 0.0,
            run: 0,
            longest_run: 0,
            gaps: vec![0; bars as usize],
            all_gaps: 0,
            ids: HashMap::new(),
            lumped: 0,
        }
    }

    fn add(&mut self, tokens: &Tokens<'_, i64>) {
        // A bijection that makes the key look random, which the keys of other strategies do not.
        let hash = Goldfish::new(Strategy::Hash64 {
            k: 2,
            h: 1,
            seed: 0,
        })
        .expect("a strategy");
        let keys = self.goldfish.keys(tokens).expect("whole rows");
        for (&id, key) in tokens.hash_ids.iter().zip(keys) {
            self.labels += 1;
            let drops = key.is_some_and(|key| self.goldfish.drops_key(key));
            if let Some(key) = key {
                self.windows += 1;
                self.zero_keys += u64::from(key == 0);
                self.keys.add(hash.key(&[key as i64]).expect("a window"));
                if self.ids.len() < COUNTED_IDS || self.ids.contains_key(&id) {
                    let count = self.ids.entry(id).or_default();
                    count.labels += 1;
                    count.dropped += u64::from(drops);
                } else {
                    self.lumped += 1;
                }
            }
            if !drops {
                self.run += 1;
                self.longest_run = self.longest_run.max(self.run);
                continue;
            }
            // There is no drop before the first one.
            if self.dropped > 0 {
                self.all_gaps += 1;
                if let Some(count) = self.gaps.get_mut(self.run as usize) {
                    *count += 1;
                }
            }
            self.dropped += 1;
            self.run = 0;
        }
    }

    pub fn name(&self) -> &'static str {
        self.goldfish.strategy().name()
    }

    pub fn k(&self) -> u32 {
        self.goldfish.strategy().k()
    }

    pub fn h(&self) -> u32 {
        self.goldfish.strategy().h().expect("it looks at the text")
    }

    /// The share of labels that are dropped.
    pub fn rate(&self) -> f64 {
        self.dropped as f64 / self.labels as f64
    }

    /// The number of distinct keys per distinct window; 1 if there are no windows.
    pub fn told_apart(&self) -> f64 {
        if self.windows == 0 {
            return 1.0;
        }
        self.keys.estimate() / self.distinct_windows
    }

    /// The share of windows whose key is 0.
    pub fn zero_keys(&self) -> f64 {
        self.zero_keys as f64 / self.windows.max(1) as f64
    }

    pub fn longest_run(&self) -> u64 {
        self.longest_run
    }

    pub fn mean_gap(&self) -> f64 {
        1.0 / self.rate()
    }

    /// The `count` ids with the highest and the lowest rates of drops, of the significant ones, without duplicates.
    pub fn extreme_ids(&self, count: usize) -> (Vec<OfId>, Vec<OfId>) {
        let least = LEAST_DROPS * u64::from(self.k());
        let of_id = |(&id, &Count { labels, dropped }): (&i64, &Count)| OfId {
            id,
            labels,
            dropped,
        };
        let mut ids: Vec<_> = self.ids.iter().map(of_id).collect();
        ids.retain(|of| of.labels >= least);
        ids.sort_by(|a, b| b.rate().total_cmp(&a.rate()).then(a.id.cmp(&b.id)));
        let most = ids.len().min(count);
        let rest = ids.split_off(most);
        let least = rest.into_iter().rev().take(count).collect();
        (ids, least)
    }

    /// The bars of the histogram: the middle of each, and its count divided by that of independent drops.
    pub fn gap_points(&self) -> Vec<(f64, f64)> {
        let width = self.gaps.len().div_ceil(BARS);
        let p = 1.0 / f64::from(self.k());
        let bars = self.gaps.chunks(width).enumerate();
        let points = bars.map(|(i, bar)| {
            let (first, last) = (i * width, i * width + bar.len());
            // A gap of g + 1 labels has the probability (1 − p)^g·p.
            let kept = |g: usize| (1.0 - p).powi(g as i32);
            let expected = (kept(first) - kept(last)) * self.all_gaps as f64;
            let middle = (first + last + 1) as f64 / 2.0;
            (middle, bar.iter().sum::<u64>() as f64 / expected)
        });
        points.filter(|(_, ratio)| ratio.is_finite()).collect()
    }

    pub fn json(&self, ids: usize) -> serde_json::Value {
        let (most, least) = self.extreme_ids(ids);
        let list = |ids: Vec<OfId>| -> Vec<_> {
            let entry =
                |of: OfId| json!({ "id": of.id, "labels": of.labels, "dropped": of.dropped });
            ids.into_iter().map(entry).collect()
        };
        json!({
            "strategy": self.name(),
            "k": self.k(),
            "h": self.h(),
            "labels": self.labels,
            "dropped": self.dropped,
            "rate": self.rate(),
            "windows": self.windows,
            "distinct_windows": self.distinct_windows,
            "distinct_keys": self.keys.estimate(),
            "zero_keys": self.zero_keys,
            "longest_run": self.longest_run,
            "most": list(most),
            "least": list(least),
        })
    }
}
