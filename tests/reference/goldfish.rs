//! The Goldfish reference, compared with the results of the official code and its ports, and its documented properties. It
//! needs no kernels.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use sha2::{Digest, Sha256};
use xact::loss::goldfish::{Layout, TABLE_LEN, Tokens, coefficients, table};
use xact::{Error, Goldfish, Strategy};
use xact_dev::goldfish_chunks::{Division, Share, documents, interleave};
use xact_dev::goldfish_golden::{Golden, dropped, numbers};
use xact_dev::inputs::Random;
use xact_dev::strategy;

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
        // The two other ways to give the same bitmap.
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

/// The numbers in the documentation, and one more, computed by a separate program that follows its text.
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

/// The strategies that hash windows.
fn hashes(k: u32, h: u32) -> [Strategy; 4] {
    [
        Strategy::ProductTable { k, h },
        Strategy::ProductAvalanche { k, h },
        Strategy::DotTable { k, h },
        Strategy::Hash64 { k, h, seed: 7 },
    ]
}

fn keep(strategy: Strategy, tokens: &Tokens<'_, i64>) -> Vec<bool> {
    let goldfish = Goldfish::new(strategy).expect("a strategy");
    goldfish.keep(tokens).expect("a layout")
}

fn row(strategy: Strategy, ids: &[i64]) -> Vec<bool> {
    keep(strategy, &Tokens::row(ids))
}

/// `count` ids from 1 to `vocabulary`, from SplitMix64.
fn random_ids(seed: u64, count: usize, vocabulary: u64) -> Vec<i64> {
    let mut state = seed;
    let mut bits = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let ids = (0..count).map(|_| (bits() >> 16) % vocabulary + 1);
    ids.map(|id| id as i64).collect()
}

#[test]
fn nothing_is_dropped_before_a_whole_window() {
    for strategy in hashes(2, 13) {
        for len in [0, 1, 12] {
            assert!(row(strategy, &random_ids(1, len, 100)).iter().all(|&k| k));
        }
        let first = (0..40).map(|seed| {
            let keep = row(strategy, &random_ids(seed, 13, 100));
            assert!(keep[..12].iter().all(|&k| k));
            keep[12]
        });
        let kept = first.filter(|&k| k).count();
        assert!((5..=35).contains(&kept), "{strategy:?}: {kept} of 40");
    }
}

#[test]
fn a_repeated_block_is_dropped_alike_whatever_comes_before() {
    let golden = Golden::read();
    let ids = golden.sequence("repeat_block_len150");
    let behind = golden.sequence("repeat_block_prefixed_len157");
    assert_eq!(behind[7..], ids);
    for (k, h) in [(4, 4), (3, 13), (4, 13), (50, 13)] {
        for strategy in hashes(k, h) {
            let (mask, before) = (row(strategy, &ids), h as usize - 1);
            assert_eq!(mask[before..50], mask[50 + before..100]);
            assert_eq!(mask[before..50], mask[100 + before..]);
            assert_eq!(row(strategy, &behind)[7 + before..], mask[before..]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_label_changes_the_decisions_of_its_windows_alone(
        ids in prop::collection::vec(any::<i64>(), 60..100),
        at in 0usize..60,
        to in any::<i64>(),
        h in 1u32..40,
    ) {
        let mut edited = ids.clone();
        edited[at] = to;
        let end = at + h as usize;
        for strategy in hashes(2, h) {
            let (before, after) = (row(strategy, &ids), row(strategy, &edited));
            prop_assert_eq!(&before[..at], &after[..at]);
            prop_assert_eq!(before.get(end..), after.get(end..));
        }
    }

    #[test]
    fn a_product_does_not_see_the_order_nor_an_id_1(
        (window, other) in prop::collection::vec(any::<i64>(), 1..60)
            .prop_flat_map(|w| (Just(w.clone()), Just(w).prop_shuffle())),
        at in 0usize..60,
    ) {
        let h = window.len() as u32;
        let [product, ..] = hashes(4, h).map(|s| Goldfish::new(s).unwrap());
        prop_assert_eq!(product.key(&window), product.key(&other));
        let mut longer = window.clone();
        longer.insert(at.min(window.len()), 1);
        let [one_more, ..] = hashes(4, h + 1).map(|s| Goldfish::new(s).unwrap());
        prop_assert_eq!(one_more.key(&longer), product.key(&window));
    }

    #[test]
    fn the_sums_see_the_order(
        ids in prop::collection::vec(0i64..200_000, 2..60),
        a in 0usize..60,
        b in 0usize..60,
    ) {
        let (a, b) = (a % ids.len(), b % ids.len());
        prop_assume!(ids[a] != ids[b]);
        let mut swapped = ids.clone();
        swapped.swap(a, b);
        for strategy in &hashes(4, ids.len() as u32)[2..] {
            let goldfish = Goldfish::new(*strategy).unwrap();
            prop_assert_ne!(goldfish.key(&ids), goldfish.key(&swapped));
        }
    }

    /// A row that is divided among ranks in slices, each with the ids before it.
    #[test]
    fn with_a_halo_a_slice_is_dropped_as_the_whole(
        ids in prop::collection::vec(0i64..50, 96),
        cuts in prop::sample::subsequence((0..=96).collect::<Vec<i32>>(), 0..8),
        h in 1u32..30,
        more in 0usize..3,
    ) {
        let halo_len = h as usize - 1 + more;
        for strategy in hashes(2, h) {
            let whole = Tokens::documents(&ids, &cuts);
            let (rows, documents) = (row(strategy, &ids), keep(strategy, &whole));
            for start in [32usize, 64] {
                let halo = &ids[start - halo_len..start];
                let slice = Tokens::row(&ids[start..start + 32]).halo(halo);
                prop_assert_eq!(&keep(strategy, &slice)[..], &rows[start..start + 32]);
                let cu_seqlens: Vec<_> = cuts.iter().map(|c| c - start as i32).collect();
                let first = cu_seqlens.partition_point(|&c| c <= 0).saturating_sub(1);
                let slice = Tokens::documents(slice.hash_ids, &cu_seqlens[first..]).halo(halo);
                prop_assert_eq!(&keep(strategy, &slice)[..], &documents[start..start + 32]);
            }
        }
    }

    /// Documents that are divided among ranks in chunks, each with the ids before it.
    #[test]
    fn chunks_are_dropped_as_the_whole_document(
        lens in prop::collection::vec(0usize..60, 1..6),
        division in divisions(),
        h in 1u32..14,
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let documents = documents(&lens, &mut random);
        for strategy in strategy::all(2, h, seed % 7, seed) {
            let goldfish = Goldfish::new(strategy).unwrap();
            for rank in 0..division.ranks {
                let share = Share::new(&documents, division, rank, || random.bits() as i64);
                let expected = share.expected(&goldfish, &documents);
                let keep = goldfish.keep(&share.tokens()).unwrap();
                prop_assert_eq!(&keep, &expected, "{:?}", share);
                let share = share.without_needless_offsets();
                prop_assert_eq!(&goldfish.keep(&share.tokens()).unwrap(), &expected, "{:?}", share);
            }
        }
    }

    /// The decisions about the columns of `[s, b]` tensors are those about the rows of the transposed ones.
    #[test]
    fn columns_are_dropped_as_rows(
        (rows, len, parts) in (1usize..5, 1usize..6, 1usize..4),
        cuts in prop::collection::vec((0..70i32, 0..9i64), 1..5),
        halo_len in 0usize..5,
        h in 1u32..9,
        seed in any::<u64>(),
    ) {
        let s = len * parts;
        let ids = random_ids(seed, rows * s, 20);
        let columns = interleave(&ids, rows);
        // Each row of text begins a chunk.
        let starts = (0..rows as i32).map(|row| (row * s as i32, 2));
        let mut cuts: Vec<(i32, i64)> = cuts.into_iter().chain(starts).collect();
        cuts.sort_unstable();
        let (mut cu_seqlens, preceding): (Vec<_>, Vec<_>) = cuts.into_iter().unzip();
        cu_seqlens.push(80);
        let halo = random_ids(seed ^ 1, halo_len * 20, 20);
        for strategy in strategy::all(2, h, seed % 7, seed) {
            for (layout, segments) in [
                (Layout::Rows { len: s }, rows),
                (Layout::Rows { len }, rows * parts),
                (Layout::Documents { cu_seqlens: &cu_seqlens }, 1),
                (Layout::Chunks { cu_seqlens: &cu_seqlens, preceding: &preceding }, preceding.len()),
            ] {
                let [transposed, interleaved] = [(&ids, 1), (&columns, rows)].map(|(ids, rows)| {
                    let mut tokens = Tokens::row(ids)
                        .interleaved(rows)
                        .halo(&halo[..segments * halo_len]);
                    tokens.layout = layout;
                    tokens
                });
                let expected = interleave(&keep(strategy, &transposed), rows);
                prop_assert_eq!(keep(strategy, &interleaved), expected, "{:?}", layout);
            }
        }
    }

    /// The decisions about a document do not depend on the other documents of its row.
    #[test]
    fn with_offsets_packing_does_not_matter(
        documents in prop::collection::vec(prop::collection::vec(0i64..50, 0..40), 1..8),
        seed in any::<u64>(),
        h in 1u32..20,
    ) {
        let mut order: Vec<usize> = (0..documents.len()).collect();
        order.sort_by_key(|&i| seed.rotate_left(i as u32 * 7) ^ (seed >> 3));
        let mut strategies = hashes(2, h).to_vec();
        strategies.push(Strategy::Static { k: 3, start: 2 });
        for strategy in strategies {
            let mut ids = Vec::new();
            let mut cu_seqlens = vec![0];
            for &i in &order {
                ids.extend_from_slice(&documents[i]);
                cu_seqlens.push(ids.len() as i32);
            }
            let packed = keep(strategy, &Tokens::documents(&ids, &cu_seqlens));
            for (&i, at) in order.iter().zip(cu_seqlens.windows(2)) {
                let part = &packed[at[0] as usize..at[1] as usize];
                prop_assert_eq!(part, &row(strategy, &documents[i])[..]);
            }
        }
    }
}

/// How text is divided among up to 4 ranks, with halos that are too short for some windows, or longer than they need.
fn divisions() -> impl proptest::strategy::Strategy<Value = Division> {
    (1usize..5, any::<bool>(), any::<bool>(), 0usize..16).prop_map(
        |(ranks, zig_zag, each_document, halo_len)| Division {
            ranks,
            zig_zag,
            each_document,
            halo_len,
        },
    )
}

/// One document of the ids 31 to 46, in four chunks of which rank 0 has the first and the last, and rank 1 the others.
#[test]
fn two_ranks_in_zig_zag_order_decide_as_the_whole_document() {
    let strategy = Strategy::Hash64 {
        k: 2,
        h: 3,
        seed: 0,
    };
    let bits = |keep: &[bool]| -> String {
        let bits = keep.iter().map(|&keep| if keep { '1' } else { '0' });
        bits.collect()
    };
    let document: Vec<i64> = (31..47).collect();
    assert_eq!(bits(&row(strategy, &document)), "1110010100111000");
    for (halo, rank0, rank1) in [(2, "11101000", "01010011"), (0, "11101100", "11011111")] {
        let division = Division {
            ranks: 2,
            zig_zag: true,
            each_document: true,
            halo_len: halo,
        };
        let documents = [document.clone()];
        let shares = [0, 1].map(|rank| Share::new(&documents, division, rank, || 7));
        assert_eq!(shares[0].preceding, [0, 12]);
        assert_eq!(shares[1].preceding, [4, 8]);
        let masks = shares.map(|share| bits(&keep(strategy, &share.tokens())));
        assert_eq!(masks, [rank0, rank1]);
    }
}

/// Where no offset is at the start of a row, a window that would cross it is incomplete, and the position counts on.
#[test]
fn no_window_crosses_the_start_of_an_interleaved_row() {
    let ids = random_ids(12, 40, 9);
    let columns = interleave(&ids, 2);
    let halo = [3; 6];
    let [chunk, document] = [
        Tokens::chunks(&columns, &[0, 40], &[50]),
        Tokens::documents(&columns, &[]),
    ]
    .map(|tokens| tokens.interleaved(2).halo(&halo));
    for strategy in hashes(2, 4) {
        let first = keep(strategy, &Tokens::row(&ids[..20]).halo(&halo));
        let expected = [first, row(strategy, &ids[20..])].concat();
        assert_eq!(keep(strategy, &chunk), interleave(&expected, 2));
        assert_eq!(keep(strategy, &document), interleave(&expected, 2));
    }
    let strategy = Strategy::Static { k: 7, start: 2 };
    let expected = interleave(&row(strategy, &ids), 2);
    assert_eq!(keep(strategy, &document), expected);
}

#[test]
fn rows_are_decided_apart() {
    let ids = random_ids(3, 7 * 30, 40);
    let mut strategies = hashes(2, 5).to_vec();
    strategies.push(Strategy::Static { k: 4, start: 3 });
    for strategy in strategies {
        let rows = Tokens::rows(&ids, 30);
        let apart: Vec<bool> = ids.chunks(30).flat_map(|ids| row(strategy, ids)).collect();
        assert_eq!(keep(strategy, &rows), apart);
    }
}

#[test]
fn static_counts_from_the_start_of_the_row_or_the_document() {
    let strategy = Strategy::Static { k: 4, start: 3 };
    let ids = [0; 20];
    assert_eq!(dropped(&row(strategy, &ids)), [3, 7, 11, 15, 19]);
    // The first document began two labels earlier, and the labels from the last offset on are a document too.
    let cu_seqlens = [-2, 6, 6, 16];
    let documents = keep(strategy, &Tokens::documents(&ids, &cu_seqlens));
    assert_eq!(dropped(&documents), [1, 5, 9, 13, 19]);
    let late = Strategy::Static {
        k: 2,
        start: u64::MAX,
    };
    assert!(row(late, &ids).iter().all(|&keep| keep));
}

#[test]
fn random_drops_one_in_k_and_depends_on_the_seed() {
    let ids = vec![5; 100_000];
    for k in [2, 4, 50] {
        let [one, two] = [1, 2].map(|seed| row(Strategy::Random { k, seed }, &ids));
        assert_ne!(one, two);
        assert_rate(&one, 1.0 / f64::from(k), "random");
    }
}

#[test]
fn exempt_ids_are_kept_and_still_hashed() {
    let ids = random_ids(4, 4000, 20);
    let exempt = [17, 3, -5];
    for strategy in hashes(3, 4) {
        let without = row(strategy, &ids);
        let with = keep(strategy, &Tokens::row(&ids).exempt(&exempt));
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(with[i], without[i] || exempt.contains(id));
        }
        assert_ne!(with, without);
    }
}

#[test]
fn i32_ids_decide_as_i64_ids() {
    let wide: Vec<i64> = random_ids(5, 3000, 1 << 32)
        .into_iter()
        .map(|id| i64::from(id as i32))
        .collect();
    assert!(wide.iter().any(|&id| id < 0));
    let narrow: Vec<i32> = wide.iter().map(|&id| id as i32).collect();
    for strategy in hashes(3, 6) {
        let goldfish = Goldfish::new(strategy).unwrap();
        let narrow = goldfish.keep(&Tokens::row(&narrow)).unwrap();
        assert_eq!(narrow, row(strategy, &wide));
    }
}

/// The rate of drops is within four standard deviations of the expected one.
fn assert_rate(keep: &[bool], p: f64, what: impl std::fmt::Debug) {
    let (n, dropped) = (keep.len() as f64, dropped(keep).len() as f64);
    let bound = 4.0 * (p * (1.0 - p) / n).sqrt();
    assert!((dropped / n - p).abs() < bound, "{what:?}: {}", dropped / n);
}

const VOCABULARY: u64 = 131_072;

#[test]
fn rates_are_those_of_the_table() {
    let ids = random_ids(6, 200_000, VOCABULARY - 1);
    let rate = |strategy: Strategy| {
        let (dropped, of) = Goldfish::new(strategy).unwrap().dropped_share();
        let keep = row(strategy, &ids);
        let p = dropped as f64 / of as f64;
        assert_rate(&keep[strategy.h().unwrap() as usize - 1..], p, strategy);
    };
    for k in [3, 4, 50] {
        for h in [4, 13] {
            hashes(k, h).into_iter().for_each(rate);
        }
        rate(Strategy::ProductTable { k, h: 24 });
        for h in [1, 50, 64] {
            rate(Strategy::Hash64 { k, h, seed: 0 });
        }
        rate(Strategy::DotTable { k, h: 50 });
    }
}

#[test]
fn the_product_collapses_at_50() {
    let ids = random_ids(8, 400_000, VOCABULARY - 1);
    let zero_keys = |strategy| {
        let keys = Goldfish::new(strategy).unwrap();
        let keys = keys.keys(&Tokens::row(&ids)).unwrap();
        let zero = keys.iter().filter(|&&key| key == Some(0)).count();
        zero as f64 / ids.len() as f64
    };
    let [product, _, dot, hash64] = hashes(50, 50);
    assert!((zero_keys(product) - 0.0938).abs() < 0.01);
    assert_eq!((zero_keys(dot), zero_keys(hash64)), (0.0, 0.0));
    // The avalanche starts with the lower 32 bits of the product.
    let keys = Goldfish::new(Strategy::ProductAvalanche { k: 3, h: 24 }).unwrap();
    let keys = keys.keys(&Tokens::row(&ids)).unwrap();
    let zero = keys.iter().flatten().filter(|&&key| key as u32 == 0);
    assert!((zero.count() as f64 / ids.len() as f64 - 0.1403).abs() < 0.01);
    // An id 0 makes the product 0. The first entry of the table then decides, which drops for k up to 4.
    for (k, drops) in [(4, true), (5, false)] {
        let goldfish = Goldfish::new(Strategy::ProductTable { k, h: 3 }).unwrap();
        assert_eq!(goldfish.key(&[7, 0, 9]), Some(0));
        assert_eq!(goldfish.drops_key(0), drops);
    }
}

/// χ² of equally probable buckets, in standard deviations from its mean.
fn chi_square(buckets: &[usize]) -> f64 {
    let expected = buckets.iter().sum::<usize>() as f64 / buckets.len() as f64;
    let square = |&n: &usize| (n as f64 - expected).powi(2) / expected;
    let freedom = buckets.len() as f64 - 1.0;
    (buckets.iter().map(square).sum::<f64>() - freedom) / (2.0 * freedom).sqrt()
}

fn histogram(of: usize, values: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut buckets = vec![0; of];
    values.for_each(|v| buckets[v] += 1);
    buckets
}

#[test]
fn hash64_is_uniform() {
    // Weak hashes fail on consecutive numbers. No id repeats, so no window does.
    let counting: Vec<i64> = (0..200_000).collect();
    let multiples: Vec<i64> = (0..200_000).map(|i| (i - 100_000) << 20).collect();
    for h in [1, 4, 13, 50, 64] {
        for (ids, seed) in [(&counting, 0), (&counting, 1), (&multiples, 0)] {
            let hash = Goldfish::new(Strategy::Hash64 { k: 2, h, seed }).unwrap();
            let keys = hash.keys(&Tokens::row(ids)).unwrap();
            let keys: Vec<u64> = keys.into_iter().flatten().collect();
            assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
            for shift in [0, 27, 54] {
                let bits = keys.iter().map(|key| (key >> shift) as usize & 1023);
                let far = chi_square(&histogram(1024, bits));
                assert!(far.abs() < 5.0, "h = {h}, seed {seed}, bits {shift}: {far}");
            }
            for k in [2, 3, 4, 50] {
                let hash = Goldfish::new(Strategy::Hash64 { k, h, seed }).unwrap();
                let keep: Vec<bool> = keys.iter().map(|&key| !hash.drops_key(key)).collect();
                assert_rate(&keep, 1.0 / f64::from(k), (k, h, seed));
            }
        }
    }
}

#[test]
fn the_index_of_the_product_is_uniform_at_13_and_not_at_50() {
    let ids = random_ids(9, 200_000, VOCABULARY - 1);
    let far = |strategy| {
        let keys = Goldfish::new(strategy).unwrap();
        let keys = keys.keys(&Tokens::row(&ids)).unwrap();
        let entries = keys.into_iter().flatten();
        let entries = entries.map(|key| (key as i64).rem_euclid(TABLE_LEN as i64) as usize);
        chi_square(&histogram(1000, entries.map(|e| e * 1000 / TABLE_LEN)))
    };
    let [product, _, dot, _] = hashes(50, 13);
    assert!(far(product).abs() < 5.0 && far(dot).abs() < 5.0);
    let [product, _, dot, _] = hashes(50, 50);
    assert!(far(product) > 1000.0 && far(dot).abs() < 5.0);
}

/// Windows of equal or alternating ids have distinct keys.
#[test]
fn equal_ids_do_not_cancel_in_hash64() {
    let mut keys = HashSet::new();
    let mut windows = 0;
    for h in [2, 4, 13, 50, 64] {
        let hash = Goldfish::new(Strategy::Hash64 { k: 2, h, seed: 0 }).unwrap();
        for a in -60i64..60 {
            for b in -60..60 {
                let window: Vec<i64> = (0..h).map(|j| if j % 2 == 0 { a } else { b }).collect();
                keys.insert(hash.key(&window).unwrap());
                windows += 1;
            }
        }
    }
    assert_eq!(keys.len(), windows);
}

/// After an edit, a decision is independent of the earlier one: it changes with probability 2·(1/k)·(1 − 1/k).
#[test]
fn an_edit_draws_a_new_decision_in_hash64() {
    let (k, h, trials) = (4, 13, 40_000);
    let hash = Goldfish::new(Strategy::Hash64 { k, h, seed: 3 }).unwrap();
    let drops = |window: &[i64]| hash.drops_key(hash.key(window).unwrap());
    let ids = random_ids(10, trials + h as usize, 30_000);
    for at in [0, 6, 12] {
        let changed = (0..trials).map(|i| {
            let window = &ids[i..i + h as usize];
            let mut edited = window.to_vec();
            edited[at] ^= 1;
            drops(window) == drops(&edited)
        });
        let same: Vec<bool> = changed.collect();
        assert_rate(&same, 2.0 * 0.25 * 0.75, at);
    }
}

#[test]
fn gaps_between_drops_are_geometric() {
    let ids = random_ids(11, 400_000, VOCABULARY - 1);
    let keep = row(
        Strategy::Hash64 {
            k: 4,
            h: 13,
            seed: 0,
        },
        &ids,
    );
    let drops = dropped(&keep);
    let gaps = drops.windows(2).map(|pair| pair[1] - pair[0]);
    // A gap g has probability ¼·(¾)^(g−1); all gaps from 16 on are in one bucket.
    let seen = histogram(16, gaps.map(|gap| gap.min(16) - 1));
    let n = drops.len() as f64 - 1.0;
    let chi: f64 = (0..16)
        .map(|i| {
            let p = 0.75f64.powi(i) * if i == 15 { 1.0 } else { 0.25 };
            (seen[i as usize] as f64 - n * p).powi(2) / (n * p)
        })
        .sum();
    assert!(chi < 15.0 + 5.0 * 30f64.sqrt(), "{chi}");
}

#[test]
fn what_cannot_be_decided_is_refused() {
    let small = |what, range, got| Some(Error::OutOfRange { what, got, range });
    let k = |got| small("k", "[2, 2^32)", got);
    let new = |strategy| Goldfish::new(strategy).err();
    assert_eq!(new(Strategy::Static { k: 1, start: 0 }), k(1.0));
    assert_eq!(new(Strategy::Random { k: 0, seed: 0 }), k(0.0));
    for strategy in hashes(1, 4) {
        assert_eq!(new(strategy), k(1.0));
    }
    for strategy in hashes(4, 0) {
        assert_eq!(new(strategy), small("h", "[1, 2^32)", 0.0));
    }
    let table = Strategy::ProductTable { k: 4, h: 4 };
    let length = |what, expected, got| {
        Some(Error::Length {
            what,
            expected,
            got,
        })
    };
    assert_eq!(
        Goldfish::with_table(table, &[0.5; 10]).err(),
        length("the table", TABLE_LEN as u64, 10)
    );
    assert_eq!(
        Goldfish::with_bitmap(table, &[0; 125_000]).err(),
        length("the bitmap", 125_001, 125_000)
    );
    let [_, avalanche, _, hash64] = hashes(4, 4);
    for strategy in [avalanche, hash64] {
        let strategy_name = strategy.name();
        assert_eq!(
            Goldfish::with_bitmap(strategy, &[0; 125_001]).err(),
            Some(Error::NoTable {
                strategy: strategy_name
            })
        );
    }
    let goldfish = Goldfish::new(table).unwrap();
    let ids = [1i64; 10];
    let refused = |layout, halo| {
        let mut tokens = Tokens::row(&ids).halo(halo);
        tokens.layout = layout;
        goldfish.keep(&tokens).err()
    };
    let rows = |len| Layout::Rows { len };
    assert_eq!(refused(rows(4), &[]), length("hash_ids", 12, 10));
    assert_eq!(refused(rows(0), &[]), length("hash_ids", 0, 10));
    assert_eq!(refused(rows(5), &[1; 3]), length("the halo", 4, 3));
    let cu_seqlens = [0, 4, 3, 10];
    let layout = Layout::Documents {
        cu_seqlens: &cu_seqlens,
    };
    assert_eq!(refused(layout, &[]), Some(Error::Offsets { at: 2 }));
    let chunks = |cu_seqlens, preceding, halo| {
        let tokens = Tokens::chunks(&ids, cu_seqlens, preceding).halo(halo);
        goldfish.keep(&tokens).err()
    };
    assert_eq!(
        chunks(&[0, 4, 3, 10], &[0; 3], &[]),
        Some(Error::Offsets { at: 2 })
    );
    assert_eq!(chunks(&[0, 10], &[], &[]), length("cu_seqlens", 1, 2));
    assert_eq!(chunks(&[], &[], &[]), length("cu_seqlens", 1, 0));
    assert_eq!(chunks(&[0, 10], &[0; 2], &[]), length("cu_seqlens", 3, 2));
    assert_eq!(
        chunks(&[0, 4, 10], &[0, 4], &[1; 3]),
        length("the halo", 4, 3)
    );
    assert_eq!(chunks(&[0], &[], &[1]), length("the halo", 0, 1));
    assert_eq!(
        chunks(&[-1, 10], &[0], &[]),
        small("cu_seqlens", "[0, 2^31)", -1.0)
    );
    assert_eq!(
        chunks(&[0, 4, 10], &[0, -2], &[]),
        small("preceding", "[0, 2^63)", -2.0)
    );
    let interleaved = |rows| goldfish.keep(&Tokens::row(&ids).interleaved(rows)).err();
    assert_eq!(interleaved(0), length("hash_ids", 0, 10));
    assert_eq!(interleaved(3), length("hash_ids", 12, 10));
    let nothing = Tokens::<i64>::row(&[]).interleaved(0);
    assert!(goldfish.keep(&nothing).unwrap().is_empty());
    // Offsets beyond the labels are not reached, and no number of preceding labels is too large.
    let far = Tokens::chunks(&ids, &[4, 20, 30], &[i64::MAX, i64::MAX]).halo(&[1; 4]);
    assert_eq!(goldfish.keep(&far).unwrap().len(), 10);
    assert!(goldfish.keep(&Tokens::<i64>::row(&[])).unwrap().is_empty());
    assert_eq!(goldfish.key(&ids), None, "a window of another length");
}

#[test]
fn a_table_of_the_callers_is_compared_in_f32() {
    let strategy = Strategy::ProductTable { k: 3, h: 1 };
    let third = 1.0f32 / 3.0;
    let mut table = vec![1.0; TABLE_LEN];
    table[..4].copy_from_slice(&[third, third.next_down(), f32::NAN, 0.0]);
    let goldfish = Goldfish::with_table(strategy, &table).unwrap();
    assert_eq!(goldfish.dropped_share(), (2, TABLE_LEN as u128));
    assert_eq!(
        [0, 1, 2, 3, 4].map(|key| goldfish.drops_key(key)),
        [false, true, false, true, false]
    );
    // The last bits of the last byte of a bitmap belong to no entry.
    let bitmap = vec![u8::MAX; TABLE_LEN.div_ceil(8)];
    let goldfish = Goldfish::with_bitmap(strategy, &bitmap).unwrap();
    assert_eq!(
        goldfish.dropped_share(),
        (TABLE_LEN as u128, TABLE_LEN as u128)
    );
}
