//! Every strategy, alone and in the loss, compared with the decisions of the Rust reference.

use std::ffi::c_void;
use std::ptr;

use xact::loss::goldfish::{TABLE_LEN, table};
use xact::{Goldfish, Strategy, Tokens};

use super::*;
use crate::goldfish::xact_goldfish;

const LABELS: usize = 3000;

/// Pairs of the same strategy in the header's type and in the Rust type.
fn strategies() -> Vec<(xact_goldfish_strategy, Strategy)> {
    let of = |kind, k, h, seed, start| xact_goldfish_strategy {
        kind,
        k,
        h,
        seed,
        start,
        ..sized()
    };
    vec![
        (
            of(XACT_STRATEGY_STATIC, 4, 0, 0, 2),
            Strategy::Static { k: 4, start: 2 },
        ),
        (
            of(XACT_STRATEGY_RANDOM, 4, 0, 11, 0),
            Strategy::Random { k: 4, seed: 11 },
        ),
        (
            of(XACT_STRATEGY_PRODUCT_TABLE, 4, 13, 0, 0),
            Strategy::ProductTable { k: 4, h: 13 },
        ),
        (
            of(XACT_STRATEGY_PRODUCT_AVALANCHE, 3, 5, 0, 0),
            Strategy::ProductAvalanche { k: 3, h: 5 },
        ),
        (
            of(XACT_STRATEGY_DOT_TABLE, 4, 50, 0, 0),
            Strategy::DotTable { k: 4, h: 50 },
        ),
        (
            of(XACT_STRATEGY_HASH64, 4, 13, 7, 0),
            Strategy::Hash64 {
                k: 4,
                h: 13,
                seed: 7,
            },
        ),
    ]
}

pub fn create(strategy: &xact_goldfish_strategy) -> *mut xact_goldfish {
    let mut handle = ptr::null_mut();
    ok(unsafe { xact_goldfish_create(strategy, &mut handle) });
    handle
}

/// The tables of a strategy in the memory of a backend.
fn tables(backend: &Backend, handle: *const xact_goldfish) -> [Buffer; 2] {
    let (mut words, mut count) = (ptr::null(), 0);
    ok(unsafe { xact_goldfish_bitmap(handle, &mut words, &mut count) });
    let bitmap = match words.is_null() {
        true => &[][..],
        false => unsafe { std::slice::from_raw_parts(words, count as usize) },
    };
    let (mut values, mut count) = (ptr::null(), 0);
    ok(unsafe { xact_goldfish_coefficients(handle, &mut values, &mut count) });
    let coefficients = match values.is_null() {
        true => &[][..],
        false => unsafe { std::slice::from_raw_parts(values, count as usize) },
    };
    [backend.put(bitmap), backend.put(coefficients)]
}

/// Masks ids, and returns `keep`.
fn mask(
    backend: &Backend,
    handle: *const xact_goldfish,
    id_type: i32,
    ids: *const c_void,
    change: impl Fn(&mut xact_decision),
) -> Vec<u8> {
    let [bitmap, coefficients] = tables(backend, handle);
    let mut decision = xact_decision {
        goldfish: handle,
        hash_ids: ids,
        id_type,
        bitmap: bitmap.ptr(),
        coefficients: coefficients.ptr(),
        ..sized()
    };
    change(&mut decision);
    let keep = backend.put(&[7_u8; LABELS]);
    let weights = backend.put(&[7.0_f32; LABELS]);
    let counts = backend.put(&[7_i64; 2]);
    let mut bytes = 8;
    if !backend.is_host() {
        ok(unsafe { xact_goldfish_workspace_bytes(LABELS as u64, &mut bytes) });
    }
    let workspace = backend.workspace(bytes);
    let args = xact_goldfish_args {
        labels: LABELS as u64,
        decision: &decision,
        keep: keep.ptr(),
        weights: weights.ptr(),
        counts: counts.ptr(),
        workspace: workspace.ptr(),
        workspace_bytes: bytes,
        ..sized()
    };
    ok(backend.mask(&args));
    let keep: Vec<u8> = keep.get(LABELS);
    let as_weights: Vec<f32> = keep.iter().map(|&k| k.into()).collect();
    assert_eq!(weights.get::<f32>(LABELS), as_weights);
    let kept = keep.iter().map(|&k| i64::from(k)).sum::<i64>();
    assert_eq!(counts.get::<i64>(2), [kept, LABELS as i64 - kept]);
    keep
}

fn ids() -> Vec<i64> {
    (0..LABELS as i64).map(|i| i * i * 7919 % 251 + 1).collect()
}

fn bytes(keep: Vec<bool>) -> Vec<u8> {
    keep.into_iter().map(u8::from).collect()
}

#[test]
fn every_strategy_and_type_of_ids() {
    let wide = ids();
    on_both(|backend| {
        for (of_c, strategy) in strategies() {
            let handle = create(&of_c);
            let goldfish = Goldfish::new(strategy).unwrap();
            let expected = bytes(goldfish.keep(&Tokens::row(&wide)).unwrap());
            assert!(expected.contains(&0) && expected.contains(&1));
            macro_rules! of_type {
                ($number:ident, $type:ty) => {
                    let ids: Vec<$type> = wide.iter().map(|&id| id as $type).collect();
                    let ids = backend.put(&ids);
                    let keep = mask(backend, handle, $number, ids.ptr(), |_| {});
                    assert_eq!(keep, expected, "{strategy:?}");
                };
            }
            of_type!(XACT_ID_U8, u8);
            of_type!(XACT_ID_U16, u16);
            of_type!(XACT_ID_U32, u32);
            of_type!(XACT_ID_I32, i32);
            of_type!(XACT_ID_I64, i64);
            let mut h = 77;
            ok(unsafe { xact_goldfish_window(handle, &mut h) });
            assert_eq!(h, strategy.h().map_or(0, u64::from));
            let mut share = 0.0;
            ok(unsafe { xact_goldfish_dropped_share(handle, &mut share) });
            assert!((share * f64::from(strategy.k()) - 1.0).abs() < 1e-2);
            ok(unsafe { xact_goldfish_free(handle) });
        }
    });
    ok(unsafe { xact_goldfish_free(ptr::null_mut()) });
}

#[test]
fn rows_documents_halos_and_exempt_ids() {
    let wide = ids();
    let (of_c, strategy) = strategies().pop().unwrap();
    let goldfish = Goldfish::new(strategy).unwrap();
    let handle = create(&of_c);
    on_both(|backend| {
        let ids = backend.put(&wide);
        let halo: Vec<i64> = (0..3 * 12).collect();
        let exempt = [wide[20], wide[100], -5];
        let (on_halo, on_exempt) = (backend.put(&halo), backend.put(&exempt));
        let found = mask(backend, handle, XACT_ID_I64, ids.ptr(), |decision| {
            decision.row_len = 1000;
            decision.halo = on_halo.ptr();
            decision.halo_len = halo.len() as u64;
            decision.exempt = on_exempt.ptr();
            decision.exempt_len = 3;
        });
        let tokens = Tokens::rows(&wide, 1000).halo(&halo).exempt(&exempt);
        assert_eq!(found, bytes(goldfish.keep(&tokens).unwrap()));

        let offsets = [-3, 700, 700, 2999];
        let on_offsets = backend.put(&offsets);
        let found = mask(backend, handle, XACT_ID_I64, ids.ptr(), |decision| {
            decision.layout = XACT_LAYOUT_DOCUMENTS;
            decision.cu_seqlens = on_offsets.ptr();
            decision.cu_seqlens_len = 4;
        });
        let tokens = Tokens::documents(&wide, &offsets);
        assert_eq!(found, bytes(goldfish.keep(&tokens).unwrap()));

        let (offsets, preceding) = ([0, 700, 700, 2999], [5, 0, 1000]);
        let (on_offsets, on_preceding) = (backend.put(&offsets), backend.put(&preceding));
        let found = mask(backend, handle, XACT_ID_I64, ids.ptr(), |decision| {
            decision.layout = XACT_LAYOUT_CHUNKS;
            decision.cu_seqlens = on_offsets.ptr();
            decision.cu_seqlens_len = 4;
            decision.preceding = on_preceding.ptr();
            decision.preceding_len = 3;
            decision.halo = on_halo.ptr();
            decision.halo_len = halo.len() as u64;
            decision.interleaved = 2;
        });
        let tokens = Tokens::chunks(&wide, &offsets, &preceding)
            .halo(&halo)
            .interleaved(2);
        assert_eq!(found, bytes(goldfish.keep(&tokens).unwrap()));
    });
    ok(unsafe { xact_goldfish_free(handle) });
}

#[test]
fn tables_of_the_caller() {
    let (of_c, strategy) = strategies().swap_remove(2);
    let own = table().iter().map(|r| 1.0 - r).collect::<Vec<f32>>();
    let goldfish = Goldfish::with_table(strategy, &own).unwrap();
    let bitmap = goldfish.bitmap().unwrap();
    let expected = bytes(goldfish.keep(&Tokens::row(&ids())).unwrap());
    let host = Backend::host();
    let on_host = host.put(&ids());
    let of_table = xact_goldfish_strategy {
        table: own.as_ptr(),
        table_len: TABLE_LEN as u64,
        ..of_c
    };
    let of_bitmap = xact_goldfish_strategy {
        bitmap: bitmap.as_ptr(),
        bitmap_bytes: bitmap.len() as u64,
        ..of_c
    };
    for given in [of_table, of_bitmap] {
        let handle = create(&given);
        let found = mask(&host, handle, XACT_ID_I64, on_host.ptr(), |_| {});
        assert_eq!(found, expected);
        ok(unsafe { xact_goldfish_free(handle) });
    }
    let mut handle = ptr::null_mut();
    let mut refused = |given: xact_goldfish_strategy| {
        let status = unsafe { xact_goldfish_create(&given, &mut handle) };
        assert!(handle.is_null() && !last_error().is_empty());
        status
    };
    let short = xact_goldfish_strategy {
        table_len: 5,
        ..of_table
    };
    assert_eq!(refused(short), XACT_ERROR_LENGTH);
    let both = xact_goldfish_strategy {
        bitmap: bitmap.as_ptr(),
        bitmap_bytes: bitmap.len() as u64,
        ..of_table
    };
    assert_eq!(refused(both), XACT_ERROR_OUT_OF_RANGE);
    let none = xact_goldfish_strategy {
        kind: XACT_STRATEGY_HASH64,
        ..of_table
    };
    assert_eq!(refused(none), XACT_ERROR_NO_TABLE);
    for (k, h, kind, status) in [
        (1, 13, XACT_STRATEGY_HASH64, XACT_ERROR_OUT_OF_RANGE),
        (4, 0, XACT_STRATEGY_HASH64, XACT_ERROR_OUT_OF_RANGE),
        (4, 1 << 40, XACT_STRATEGY_HASH64, XACT_ERROR_OUT_OF_RANGE),
        (4, 13, 0, XACT_ERROR_ENUM),
        (4, 13, 99, XACT_ERROR_ENUM),
    ] {
        let given = xact_goldfish_strategy {
            k,
            h,
            kind,
            ..sized()
        };
        assert_eq!(refused(given), status);
    }
}

/// The loss drops the same rows as the mask.
#[test]
fn the_loss_drops_what_the_mask_drops() {
    const COLS: usize = 8;
    let wide = ids();
    on_both(|backend| {
        for (of_c, _) in strategies() {
            let handle = create(&of_c);
            let [bitmap, coefficients] = tables(backend, handle);
            let ids = backend.put(&wide);
            let keep = mask(backend, handle, XACT_ID_I64, ids.ptr(), |_| {});
            let dropped = keep.iter().filter(|&&k| k == 0).count() as u64;
            let decision = xact_decision {
                goldfish: handle,
                hash_ids: ids.ptr(),
                id_type: XACT_ID_I64,
                bitmap: bitmap.ptr(),
                coefficients: coefficients.ptr(),
                ..sized()
            };
            let logits = backend.put(&elements::<f32>(noise(LABELS * COLS, 3)));
            let labels: Vec<i32> = (0..LABELS as i32).map(|i| i % COLS as i32).collect();
            let labels = backend.put(&labels);
            let loss = backend.put(&[7.0_f32; LABELS]);
            let summary = backend.workspace(72);
            let mut bytes = 8;
            if !backend.is_host() {
                ok(unsafe { xact_cross_entropy_workspace_bytes(LABELS as u64, &mut bytes) });
            }
            let workspace = backend.workspace(bytes);
            let mut args = xact_cross_entropy_args {
                rows: LABELS as u64,
                cols: COLS as u64,
                dtype: XACT_DTYPE_F32,
                label_type: XACT_ID_I32,
                labels: labels.ptr(),
                decision: &decision,
                loss: loss.ptr(),
                summary: summary.ptr(),
                workspace: workspace.ptr(),
                workspace_bytes: bytes,
                ..sized()
            };
            args.logits.ptr = logits.ptr();
            let op = xact_cross_entropy {
                dropped_loss: 1,
                ..cross_entropy()
            };
            ok(backend.loss(Loss::Forward, &op, &args));
            let summary = summary.get::<xact_cross_entropy_summary>(1)[0];
            assert_eq!(
                (summary.dropped, summary.kept),
                (dropped, LABELS as u64 - dropped)
            );
            assert!(summary.dropped_loss > 0.0);
            let losses: Vec<f32> = loss.get(LABELS);
            assert!(
                losses
                    .iter()
                    .zip(&keep)
                    .all(|(&l, &k)| (l > 0.0) == (k == 1))
            );
            ok(unsafe { xact_goldfish_free(handle) });
        }
    });
}
