//! Reads `tests/golden/goldfish.json`, the results of the official code and its ports.

use serde_json::Value;
use xact::Strategy;

/// The file.
pub struct Golden(pub Value);

/// A mask of the file.
pub struct Case<'a> {
    /// The strategy and its numbers.
    pub strategy: Strategy,
    /// The ids of a row.
    pub ids: Vec<i64>,
    /// The positions of the labels that the official code drops.
    pub dropped: Vec<usize>,
    /// The keys of the first whole windows, if the file has them.
    pub keys: Vec<i64>,
    /// The number of keys that are 0, if the file has it.
    pub zero_keys: Option<usize>,
    /// The case as JSON.
    pub raw: &'a Value,
}

impl Golden {
    /// Reads the file.
    pub fn read() -> Golden {
        let text = include_str!("../../tests/golden/goldfish.json");
        Golden(serde_json::from_str(text).expect("JSON"))
    }

    /// The ids of the sequence of this name.
    pub fn sequence(&self, name: &str) -> Vec<i64> {
        numbers(&self.0["sequences"][name])
    }

    /// All cases of a mask.
    pub fn cases(&self) -> Vec<Case<'_>> {
        let cases = self.0["mask_cases"].as_array().expect("a list");
        cases.iter().map(|case| self.case(case)).collect()
    }

    fn case<'a>(&self, raw: &'a Value) -> Case<'a> {
        let number = |name: &str| raw[name].as_u64();
        let k = number("k").expect("k") as u32;
        let h = number("h").unwrap_or(0) as u32;
        let strategy = match raw["strategy"].as_str().expect("a name") {
            "static" => Strategy::Static {
                k,
                start: number("start").expect("start"),
            },
            "hash-table" => Strategy::ProductTable { k, h },
            "hash-avalanche" => Strategy::ProductAvalanche { k, h },
            "swissai-moe-dot" => Strategy::DotTable { k, h },
            other => panic!("a strategy {other}"),
        };
        Case {
            strategy,
            ids: self.sequence(raw["seq"].as_str().expect("a name")),
            dropped: numbers(&raw["dropped"])
                .into_iter()
                .map(|i| i as usize)
                .collect(),
            keys: ["keys_first4", "keys_first8"]
                .iter()
                .filter_map(|name| raw.get(*name))
                .flat_map(|keys| keys.as_array().expect("a list"))
                .map(|key| key.as_str().and_then(|k| k.parse().ok()).expect("an i64"))
                .collect(),
            zero_keys: number("keys_zero_count").map(|n| n as usize),
            raw,
        }
    }
}

/// A list of integers.
pub fn numbers(value: &Value) -> Vec<i64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|v| v.as_i64().expect("an i64")).collect()
}

/// The positions of the labels that a mask drops.
pub fn dropped(keep: &[bool]) -> Vec<usize> {
    (0..keep.len()).filter(|&i| !keep[i]).collect()
}
