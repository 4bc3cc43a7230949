//! Goldfish masks: equal to the golden files, and to the reference over strategies, windows, layouts, halos and exempt ids,
//! in every instruction set and with any number of threads.

use super::Table;
use xact::cpu::InstructionSet;
use xact::cpu::goldfish::mask;
use xact::loss::goldfish::{Layout, TABLE_LEN, TokenId, Tokens};
use xact::{Error, Goldfish, Result, Strategy};
use xact_dev::goldfish_chunks::{Division, Share, documents};
use xact_dev::goldfish_golden::{Golden, dropped};
use xact_dev::inputs::Random;
use xact_dev::strategy;

/// Adds the trials of the masks.
pub(crate) fn add_to(table: &mut Table) {
    macro_rules! tests {
        ($($name:ident),+ $(,)?) => {$(
            table.add(concat!("goldfish::", stringify!($name)), || {
                $name();
                Ok(())
            });
        )+};
    }
    tests![
        golden,
        the_reference,
        chunks_of_documents,
        any_instruction_set_and_number_of_threads,
        a_table_of_the_callers,
        nothing_and_bad_input,
    ];
}

/// The mask in both forms, and its counts.
fn keep<I: TokenId>(goldfish: &Goldfish, tokens: &Tokens<'_, I>) -> Result<Vec<bool>> {
    let n = tokens.hash_ids.len();
    let (mut keep, mut weights) = (vec![7; n], vec![7.0; n]);
    let call = mask(goldfish, *tokens)
        .keep(&mut keep)
        .weights(&mut weights);
    let counts = call.run()?;
    assert!(keep.iter().all(|&keep| keep <= 1));
    let as_weights: Vec<f32> = keep.iter().map(|&keep| f32::from(keep)).collect();
    assert_eq!(weights, as_weights);
    let kept = keep.iter().filter(|&&keep| keep == 1).count() as u64;
    let dropped = n as u64 - kept;
    assert_eq!((counts.kept, counts.dropped), (kept, dropped));
    Ok(keep.into_iter().map(|keep| keep == 1).collect())
}

fn golden() {
    let mut cases = 0;
    for case in Golden::read().cases() {
        let goldfish = Goldfish::new(case.strategy).unwrap();
        let mask = keep(&goldfish, &Tokens::row(&case.ids)).unwrap();
        assert_eq!(dropped(&mask), case.dropped, "{:?}", case.strategy);
        let narrow: std::result::Result<Vec<i32>, _> =
            case.ids.iter().map(|&id| id.try_into()).collect();
        if let Ok(narrow) = narrow {
            let mask = keep(&goldfish, &Tokens::row(&narrow)).unwrap();
            assert_eq!(dropped(&mask), case.dropped, "{:?}, i32", case.strategy);
        }
        cases += 1;
    }
    assert!(cases > 10, "{cases} cases");
}

fn strategies(k: u32, h: u32, seed: u64) -> [Strategy; 6] {
    strategy::all(k, h, seed % 5, seed)
}

/// Some ids are negative, some exceed 32 bits, and there are few enough that exempt ones occur.
fn ids(random: &mut Random, len: usize) -> Vec<i64> {
    let one = |_| (random.bits() % 90) as i64 * 0x0123_4567_89ab - 7;
    (0..len).map(one).collect()
}

fn the_reference() {
    let mut random = Random(5);
    let ids = ids(&mut random, 4 * 3 * 5 * 67);
    let n = ids.len();
    let narrow: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let halo = self::ids(&mut random, 60);
    let narrow_halo: Vec<i32> = halo.iter().map(|&id| id as i32).collect();
    let exempt: Vec<i64> = (1000..1050).chain(ids[..9].iter().copied()).collect();
    let cu_seqlens = [-13, 70, 71, 71, 200, 3000, 3033];
    for h in [1, 2, 13, 31, 32, 33, 50, 64, 70, 5000, u32::MAX] {
        // The coefficients of a longer window would not fit.
        let strategies = strategies(2, h, 3).into_iter();
        let strategies =
            strategies.filter(|s| h < 1 << 20 || !matches!(s, Strategy::DotTable { .. }));
        for goldfish in strategies.map(|s| Goldfish::new(s).unwrap()) {
            for layout in [
                Layout::Rows { len: n },
                Layout::Rows { len: n / 12 },
                Layout::Rows { len: n / 60 },
                Layout::Documents {
                    cu_seqlens: &cu_seqlens,
                },
                Layout::Documents { cu_seqlens: &[] },
                Layout::Chunks {
                    cu_seqlens: &cu_seqlens[1..],
                    preceding: &[30, 1, 0, 9, 5000],
                },
            ] {
                for (halo_len, rows) in [(0, 1), (60, 1), (60, 12)] {
                    let mut tokens = Tokens::row(&ids)
                        .interleaved(rows)
                        .halo(&halo[..halo_len])
                        .exempt(&exempt[..halo_len.min(exempt.len())]);
                    tokens.layout = layout;
                    let expected = goldfish.keep(&tokens);
                    assert_eq!(
                        keep(&goldfish, &tokens),
                        expected,
                        "{goldfish:?} {layout:?}"
                    );
                    let mut tokens = Tokens::row(&narrow)
                        .interleaved(rows)
                        .halo(&narrow_halo[..halo_len])
                        .exempt(&exempt);
                    tokens.layout = layout;
                    let expected = goldfish.keep(&tokens);
                    assert_eq!(
                        keep(&goldfish, &tokens),
                        expected,
                        "{goldfish:?} {layout:?}"
                    );
                }
            }
        }
    }
}

/// Shares of ranks, with empty chunks and chunks that are shorter than windows.
fn chunks_of_documents() {
    let mut random = Random(8);
    for i in 0..200 {
        let mut below = |n| (random.bits() % n) as usize;
        let division = Division {
            ranks: 1 + below(4),
            zig_zag: i % 2 == 0,
            each_document: i % 4 < 2,
            halo_len: below(12),
        };
        let (h, number) = (1 + below(9) as u32, 1 + below(5));
        let lens: Vec<usize> = (0..number).map(|_| below(90)).collect();
        let documents = documents(&lens, &mut random);
        for goldfish in strategies(2, h, i).map(|s| Goldfish::new(s).unwrap()) {
            for rank in 0..division.ranks {
                let share = Share::new(&documents, division, rank, || 3);
                let expected = share.expected(&goldfish, &documents);
                let got = keep(&goldfish, &share.tokens()).unwrap();
                assert_eq!(got, expected, "{goldfish:?} {share:?}");
                let share = share.without_needless_offsets();
                let got = keep(&goldfish, &share.tokens()).unwrap();
                assert_eq!(got, expected, "{goldfish:?} {share:?}");
            }
        }
    }
}

/// Long enough for several threads, and for windows that extend from one thread's labels into another's.
fn any_instruction_set_and_number_of_threads() {
    let ids = ids(&mut Random(6), 3 * 7001);
    for goldfish in strategies(3, 50, 1).map(|s| Goldfish::new(s).unwrap()) {
        for layout in [
            Layout::Rows { len: 7001 },
            Layout::Documents {
                cu_seqlens: &[0, 5000, 12_000],
            },
            Layout::Chunks {
                cu_seqlens: &[10, 5000, 5001, 21_000],
                preceding: &[20, 3, 0],
            },
        ] {
            let mut tokens = Tokens::row(&ids).interleaved(3);
            tokens.layout = layout;
            if let Layout::Chunks { .. } = layout {
                tokens = tokens.halo(&ids[..3 * 40]);
            }
            let expected = goldfish.keep(&tokens);
            for set in InstructionSet::available() {
                let got = set.force(|| keep(&goldfish, &tokens));
                assert_eq!(got, expected, "{goldfish:?}, {}", set.name());
            }
            #[cfg(feature = "rayon")]
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let got = pool.build().unwrap().install(|| keep(&goldfish, &tokens));
                assert_eq!(got, expected, "{goldfish:?}, {threads} threads");
            }
        }
    }
}

fn a_table_of_the_callers() {
    let ids = ids(&mut Random(7), 5000);
    let all = vec![0.0; TABLE_LEN];
    let strategy = Strategy::ProductTable { k: 4, h: 3 };
    let goldfish = Goldfish::with_table(strategy, &all).unwrap();
    let mask = keep(&goldfish, &Tokens::row(&ids)).unwrap();
    assert_eq!(dropped(&mask), (2..5000).collect::<Vec<_>>());
}

fn nothing_and_bad_input() {
    let goldfish = Goldfish::new(Strategy::Hash64 {
        k: 2,
        h: 2,
        seed: 0,
    })
    .unwrap();
    assert_eq!(keep::<i64>(&goldfish, &Tokens::row(&[])), Ok(vec![]));
    assert_eq!(keep(&goldfish, &Tokens::row(&[5i32])), Ok(vec![true]));
    let ids = [1i64, 2, 3, 4];
    let tokens = Tokens::row(&ids);
    let bad = [
        Tokens::rows(&ids, 3),
        Tokens::rows(&ids, 2).halo(&[1, 2, 3]),
        Tokens::documents(&ids, &[0, 2, 1]),
        Tokens::chunks(&ids, &[0, 2, 1], &[0, 0]),
        Tokens::chunks(&ids, &[0, 2, 4], &[0]),
        Tokens::chunks(&ids, &[0, 2, 4], &[0, -1]),
        tokens.interleaved(3),
    ];
    for tokens in bad {
        let expected = goldfish.keep(&tokens);
        assert!(expected.is_err());
        assert_eq!(keep(&goldfish, &tokens), expected);
    }
    for (keep_len, weights_len) in [(3, 4), (4, 5)] {
        let (mut keep, mut weights) = ([7; 5], [7.0; 5]);
        let call = mask(&goldfish, tokens)
            .keep(&mut keep[..keep_len])
            .weights(&mut weights[..weights_len]);
        let result = call.run();
        assert!(matches!(result, Err(Error::Length { .. })), "{result:?}");
        assert_eq!((keep, weights), ([7; 5], [7.0; 5]));
    }
}
