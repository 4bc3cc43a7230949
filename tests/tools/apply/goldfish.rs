//! `apply` with Goldfish masks.

use xact::{Goldfish, Strategy, Tokens};

use super::*;

#[test]
fn goldfish_masks_are_those_of_the_reference_on_every_backend() {
    let (k, h, start, seed) = (3, 5, 1, 11);
    let ids: Vec<i64> = (0..60).map(|i| i * i % 17 - 3).collect();
    let (cu_seqlens, exempt) = ([0, 9, 9, 40, 60], [1i64, -3]);
    let hash = "--k 3 --h 5";
    for (name, numbers, strategy) in [
        ("static", "--k 3 --start 1", Strategy::Static { k, start }),
        ("random", "--k 3 --seed 11", Strategy::Random { k, seed }),
        ("product-table", hash, Strategy::ProductTable { k, h }),
        (
            "product-avalanche",
            hash,
            Strategy::ProductAvalanche { k, h },
        ),
        ("dot-table", hash, Strategy::DotTable { k, h }),
        (
            "hash64",
            "--k 3 --h 5 --seed 11",
            Strategy::Hash64 { k, h, seed },
        ),
    ] {
        assert_eq!(strategy.name(), name);
        let goldfish = Goldfish::new(strategy).unwrap();
        for (dtype, packed) in [(Dtype::I32, false), (Dtype::I64, true), (Dtype::I32, true)] {
            let scratch = Scratch::new();
            let labels = integers(dtype, &[3, 20], &ids);
            let tokens = if packed {
                let offsets = cu_seqlens.map(i64::from);
                scratch.write(&[
                    ("labels", labels),
                    ("cu_seqlens", integers(Dtype::I32, &[5], &offsets)),
                    ("exempt", integers(Dtype::I64, &[2], &exempt)),
                ]);
                Tokens::documents(&ids, &cu_seqlens).exempt(&exempt)
            } else {
                scratch.write(&[("labels", labels)]);
                Tokens::rows(&ids, 20)
            };
            let expected = goldfish.keep(&tokens).unwrap();
            let kept = expected.iter().filter(|&&keep| keep).count() as i64;
            for device in ["reference", "cpu", "emulated"] {
                let line = format!("--device {device} --strategy {name} {numbers}");
                let outputs = scratch.outputs_of("goldfish", &line);
                assert_eq!(outputs.len(), 2);
                let Tensor(dtype, shape, bytes) = &outputs["keep"];
                assert_eq!((*dtype, &shape[..]), (Dtype::U8, &[3, 20][..]));
                let keep: Vec<bool> = bytes.iter().map(|&byte| byte == 1).collect();
                assert_eq!(keep, expected, "{name} on {device}");
                let Tensor(dtype, shape, bytes) = &outputs["kept"];
                assert_eq!((*dtype, &shape[..]), (Dtype::I64, &[1][..]));
                assert_eq!(**bytes, kept.to_le_bytes());
            }
        }
    }
}

#[test]
fn goldfish_masks_of_nothing_and_of_what_cannot_be() {
    let op = "goldfish";
    for device in ["reference", "cpu", "emulated"] {
        let on = format!("--device {device}");
        let with = |line: &str| format!("{on} {line}");
        let scratch = Scratch::new();
        scratch.write(&[("labels", integers(Dtype::I64, &[2, 0], &[]))]);
        let outputs = scratch.outputs_of(op, &on);
        assert_eq!(
            (&outputs["keep"].1[..], &outputs["keep"].2[..]),
            (&[2, 0][..], &[][..])
        );
        assert_eq!(outputs["kept"].2, [0; 8]);

        let scratch = Scratch::new();
        let labels = || ("labels", integers(Dtype::I32, &[2, 2], &[1, 2, 3, 4]));
        scratch.write(&[labels()]);
        scratch.refused(op, &with("--k 1"), &["k is 1", "[2, 2^32)"]);
        scratch.refused(op, &with("--h 0"), &["h is 0", "[1, 2^32)"]);
        scratch.refused(op, &with("--strategy best"), &["best", "hash64"]);
        scratch.write(&[("ids", integers(Dtype::I32, &[1], &[1]))]);
        scratch.refused(op, &on, &["no tensor labels", "ids"]);
        scratch.write(&[("labels", tensor::<f32>(&[2], &[1.0, 2.0]))]);
        scratch.refused(op, &on, &["labels is F32", "I32 or I64"]);
        scratch.write(&[("labels", integers(Dtype::I32, &[], &[1]))]);
        scratch.refused(op, &on, &["labels is a scalar"]);
        scratch.write(&[labels(), ("exempt", integers(Dtype::I32, &[1], &[1]))]);
        scratch.refused(op, &on, &["exempt is I32", "I64"]);
        let falling = integers(Dtype::I32, &[3], &[0, 3, 2]);
        scratch.write(&[labels(), ("cu_seqlens", falling)]);
        scratch.refused(op, &on, &["cu_seqlens[2]", "must not decrease"]);
    }
}

/// Two rows, in chunks that begin or continue a document; and the same text in columns.
#[test]
fn chunks_and_columns_decide_as_the_reference() {
    let ids: Vec<i64> = (0..48).map(|i| i * i % 17 - 3).collect();
    let columns: Vec<i64> = (0..48).map(|i| ids[i % 2 * 24 + i / 2]).collect();
    let (cu_seqlens, preceding) = ([0, 11, 24, 30, 48], [0i64, 40, 3, 0]);
    let strategy = Strategy::Hash64 {
        k: 2,
        h: 5,
        seed: 0,
    };
    let tokens = Tokens::chunks(&ids, &cu_seqlens, &preceding).halo(&ids[..16]);
    let expected = Goldfish::new(strategy).unwrap().keep(&tokens).unwrap();
    let bytes: Vec<u8> = expected.iter().map(|&keep| keep.into()).collect();
    let of_columns: Vec<u8> = (0..48).map(|i| bytes[i % 2 * 24 + i / 2]).collect();
    for device in ["reference", "cpu", &the_device()] {
        for (shape, ids, flag, expected) in [
            ([2, 24], &ids, "", &bytes),
            ([24, 2], &columns, "--seq-first", &of_columns),
        ] {
            let scratch = Scratch::new();
            scratch.write(&[
                ("labels", integers(Dtype::I32, &shape, ids)),
                (
                    "cu_seqlens",
                    integers(Dtype::I32, &[5], &cu_seqlens.map(i64::from)),
                ),
                ("preceding", integers(Dtype::I64, &[4], &preceding)),
                ("halo", integers(Dtype::I32, &[4, 4], tokens.halo)),
            ]);
            let line = format!("--device {device} --k 2 --h 5 {flag}");
            let outputs = scratch.outputs_of("goldfish", &line);
            assert_eq!(*outputs["keep"].2, **expected, "{flag} on {device}");
        }
        let scratch = Scratch::new();
        scratch.write(&[
            ("labels", integers(Dtype::I32, &[1, 4], &[1, 2, 3, 4])),
            ("cu_seqlens", integers(Dtype::I32, &[2], &[0, 4])),
            ("preceding", integers(Dtype::I64, &[1], &[-1])),
        ]);
        let line = format!("--device {device}");
        scratch.refused("goldfish", &line, &["preceding is -1"]);
    }
}

/// The slices of a row, with a halo, have the same decisions as the whole row.
#[test]
fn a_halo_makes_slices_decide_as_the_whole() {
    let ids: Vec<i64> = (0..48).map(|i| i * i % 17 - 3).collect();
    for device in ["reference", "cpu", &the_device()] {
        let line = format!("--device {device} --k 2 --h 5");
        let keep = |labels: Tensor, halo: Option<Tensor>| {
            let scratch = Scratch::new();
            let mut input = vec![("labels", labels)];
            input.extend(halo.map(|halo| ("halo", halo)));
            scratch.write(&input);
            scratch.says("goldfish", &line).0["keep"].2.clone()
        };
        let whole = keep(integers(Dtype::I32, &[2, 24], &ids), None);
        let rows = |from: usize, to: usize| [&ids[from..to], &ids[24 + from..24 + to]].concat();
        let sliced = keep(
            integers(Dtype::I32, &[2, 10], &rows(14, 24)),
            Some(integers(Dtype::I32, &[2, 4], &rows(10, 14))),
        );
        assert_eq!(sliced, [&whole[14..24], &whole[38..]].concat());
        let cut = keep(integers(Dtype::I32, &[2, 10], &rows(14, 24)), None);
        assert_ne!(sliced, cut);
    }
}

#[test]
fn numbers_that_a_strategy_has_not_are_refused() {
    let scratch = Scratch::new();
    scratch.write(&[("labels", integers(Dtype::I64, &[1, 1], &[3]))]);
    for (strategy, flag) in [
        ("hash64", "--start"),
        ("static", "--h"),
        ("random", "--start"),
        ("static", "--seed"),
        ("dot-table", "--seed"),
    ] {
        let line = format!("--device cpu --strategy {strategy} {flag} 3");
        scratch.refused("goldfish", &line, &[strategy, flag]);
    }
    let labels = integers(Dtype::I64, &[1, 1], &[3]);
    scratch.write(&[
        ("labels", labels),
        ("halo", integers(Dtype::I32, &[1], &[3])),
    ]);
    scratch.refused("goldfish", "--device cpu", &["halo is I32", "I64"]);
}

#[test]
fn ids_may_be_of_any_width() {
    let ids: Vec<i64> = (0..60).map(|i| i * i % 17).collect();
    for device in ["reference", "cpu", &the_device()] {
        let keep = |dtype: Dtype| {
            let scratch = Scratch::new();
            scratch.write(&[("labels", integers(dtype, &[3, 20], &ids))]);
            let line = format!("--device {device} --k 2 --h 5");
            scratch.says("goldfish", &line).0["keep"].2.clone()
        };
        let expected = keep(Dtype::I64);
        for dtype in [Dtype::U8, Dtype::U16, Dtype::U32, Dtype::I32] {
            assert_eq!(keep(dtype), expected, "{dtype:?}");
        }
    }
}
