//! The Goldfish reference against what the official code and its ports compute, and the properties that are
//! documented. Needs no kernels.

#[path = "support/goldfish_golden.rs"]
mod golden;

use std::collections::HashMap;

use golden::{Golden, dropped, numbers};
use sha2::{Digest, Sha256};
use xact::loss::goldfish::{TABLE_LEN, Tokens, coefficients, table};
use xact::{Goldfish, Strategy};

fn sha256(bytes: impl AsRef<[u8]>) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_table_is_that_of_pytorch() {
    let golden = &Golden::read().0["table_cpu"];
    let table = table();
    assert_eq!(Some(table.len() as u64), golden["size"].as_u64());
    let bytes: Vec<u8> = table.iter().flat_map(|r| r.to_le_bytes()).collect();
    assert_eq!(Some(&*sha256(bytes)), golden["sha256_f32_le"].as_str());
    let units: Vec<i64> = table.iter().map(|r| (r * 16_777_216.0) as i64).collect();
    assert_eq!(units[..32], numbers(&golden["first32_value24"]));
    assert_eq!(units[TABLE_LEN - 4..], numbers(&golden["last4_value24"]));
}

#[test]
fn the_bitmaps_and_cut_offs_are_those_of_pytorch() {
    let golden = Golden::read();
    let thresholds = golden.0["thresholds"].as_object().unwrap();
    assert_eq!(thresholds.len(), 16);
    for (k, expected) in thresholds {
        let k: u32 = k.parse().unwrap();
        let strategy = Strategy::ProductTable { k, h: 4 };
        let goldfish = Goldfish::new(strategy).unwrap();
        let bitmap = goldfish.bitmap().unwrap();
        assert_eq!(Some(bitmap.len() as u64), expected["bitmap_bytes"].as_u64());
        assert_eq!(
            Some(&*sha256(&bitmap)),
            expected["bitmap_le_sha256"].as_str()
        );
        let entries = expected["table_entries_dropped"].as_u64().map(u128::from);
        let (dropped, of) = goldfish.dropped_share();
        assert_eq!((Some(dropped), of), (entries, TABLE_LEN as u128));
        assert_eq!(goldfish.drops_key(0), expected["entry0_dropped"] == true);
        // Both other ways to the same bitmap.
        for other in [
            Goldfish::with_table(strategy, &table()),
            Goldfish::with_bitmap(strategy, &bitmap),
        ] {
            assert_eq!(other.unwrap().bitmap_words(), goldfish.bitmap_words());
        }
        let avalanche = Goldfish::new(Strategy::ProductAvalanche { k, h: 4 }).unwrap();
        let cut = expected["avalanche_cutoff_u32"].as_u64().map(u128::from);
        assert_eq!(avalanche.dropped_share(), (cut.unwrap(), 1 << 32));
    }
}

#[test]
fn the_coefficients_are_those_of_pytorch() {
    assert_eq!(
        coefficients(50)[..3],
        [
            2_926_356_156_851_844_425,
            1_644_205_282_172_016_761,
            4_047_725_135_083_391_131
        ]
    );
    assert!(coefficients(7).iter().all(|c| c % 2 == 1 && *c < 1 << 62));
}

#[test]
fn the_reference_makes_the_official_masks() {
    let golden = Golden::read();
    let cases = golden.cases();
    let mut count: HashMap<&str, usize> = HashMap::new();
    let mut keys_compared = 0;
    for case in &cases {
        let goldfish = Goldfish::new(case.strategy).unwrap();
        let tokens = Tokens::row(&case.ids);
        let mask = goldfish.keep(&tokens).unwrap();
        assert_eq!(dropped(&mask), case.dropped, "{:?}", case.raw);
        let keys = goldfish.keys(&tokens).unwrap();
        let keys: Vec<i64> = keys.into_iter().flatten().map(|key| key as i64).collect();
        assert_eq!(keys[..case.keys.len()], case.keys, "{:?}", case.raw);
        if let Some(zero) = case.zero_keys {
            assert_eq!(keys.iter().filter(|key| **key == 0).count(), zero);
        }
        keys_compared += case.keys.len();
        *count.entry(case.strategy.name()).or_default() += 1;
    }
    assert_eq!(cases.len(), 155);
    assert_eq!(count.len(), 4);
    assert!(keys_compared > 100);
}

/// The numbers of the documentation, and one more, made by another program that follows its text.
#[test]
fn hash64_is_what_its_documentation_says() {
    let cases: [(&[i64], u64, u64); 3] = [
        (&[1, 2, 3, 4], 0, 0x26fa361bfc0aafac),
        (&[0], 0, 0x48218226ff3cd4bf),
        (&[-100, 0, 1 << 31, -1, 7], 42, 0x13b9642202800a42),
    ];
    for (window, seed, key) in cases {
        let h = window.len() as u32;
        let hash = Goldfish::new(Strategy::Hash64 { k: 4, h, seed }).unwrap();
        assert_eq!(hash.key(window), Some(key), "{window:?}");
    }
}
