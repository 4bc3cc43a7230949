//! `goldfish_audit`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use xact::loss::goldfish::Tokens;
use xact::{Goldfish, Strategy};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_goldfish_audit"))
}

fn run(file: &Path, arguments: &str) -> Output {
    let mut program = program();
    program.arg(file).args(arguments.split_whitespace());
    program.output().unwrap()
}

/// The JSON lines of a run, which must succeed.
fn audit(file: &Path, arguments: &str) -> Vec<Value> {
    let output = run(file, &format!("{arguments} --json"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

fn write(folder: &Path, name: &str, ids: &[i64], size: usize) -> PathBuf {
    let path = folder.join(name);
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes()[..size].to_vec());
    std::fs::write(&path, bytes.collect::<Vec<_>>()).unwrap();
    path
}

/// Ids with repetitions, so that windows repeat.
fn some_ids(count: i64) -> Vec<i64> {
    (0..count).map(|i| i * i % 53 + i / 97 % 13).collect()
}

/// All figures, counted again in the simplest way.
#[test]
fn the_numbers_are_those_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let ids = some_ids(5003);
    let file = write(folder.path(), "ids.bin", &ids, 2);
    for (row, len) in [("", ids.len()), ("--row 100", 100)] {
        let arguments = format!("--dtype u16 --k 3,4 --h 2,5 --ids 3 {row}");
        let audits = audit(&file, &arguments);
        assert_eq!(audits.len(), 12);
        for audit in audits {
            let number = |name: &str| audit[name].as_u64().unwrap();
            let (k, h) = (number("k") as u32, number("h") as u32);
            let strategy = match audit["strategy"].as_str().unwrap() {
                "product-table" => Strategy::ProductTable { k, h },
                "dot-table" => Strategy::DotTable { k, h },
                "hash64" => Strategy::Hash64 { k, h, seed: 0 },
                other => panic!("{other}"),
            };
            let goldfish = Goldfish::new(strategy).unwrap();
            let (whole, rest) = ids.split_at(ids.len() / len * len);
            let tokens = Tokens::rows(whole, len);
            let mut keep = goldfish.keep(&tokens).unwrap();
            keep.extend(goldfish.keep(&Tokens::row(rest)).unwrap());
            let mut keys = goldfish.keys(&tokens).unwrap();
            keys.extend(goldfish.keys(&Tokens::row(rest)).unwrap());
            let rows = ids.chunks(len);
            let windows: Vec<_> = rows.flat_map(|row| row.windows(h as usize)).collect();
            let keys: Vec<_> = keys.into_iter().flatten().collect();
            assert_eq!(number("labels"), ids.len() as u64);
            assert_eq!(
                number("dropped"),
                keep.iter().filter(|&&k| !k).count() as u64
            );
            assert_eq!(number("windows"), windows.len() as u64);
            let distinct = windows.iter().collect::<HashSet<_>>().len();
            assert_eq!(audit["distinct_windows"].as_f64(), Some(distinct as f64));
            let distinct = keys.iter().collect::<HashSet<_>>().len();
            assert_eq!(audit["distinct_keys"].as_f64(), Some(distinct as f64));
            assert_eq!(
                number("zero_keys"),
                keys.iter().filter(|&&k| k == 0).count() as u64
            );
            let runs = keep.split(|&keep| !keep).map(<[bool]>::len);
            assert_eq!(number("longest_run"), runs.max().unwrap() as u64);
            let most = audit["most"].as_array().unwrap();
            assert_eq!(most.len(), 3);
            for of_id in most.iter().chain(audit["least"].as_array().unwrap()) {
                let id = of_id["id"].as_i64().unwrap();
                let is_label = |i: &usize| ids[*i] == id && i % len + 1 >= h as usize;
                let labels: Vec<_> = (0..ids.len()).filter(is_label).collect();
                let dropped = labels.iter().filter(|&&i| !keep[i]).count();
                assert_eq!(of_id["labels"].as_u64(), Some(labels.len() as u64));
                assert_eq!(of_id["dropped"].as_u64(), Some(dropped as u64));
            }
        }
    }
}

#[test]
fn every_way_to_store_ids_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let ids = some_ids(3000);
    let bin = |name: &str, size| write(folder.path(), name, &ids, size);
    let arguments = "--k 4 --h 3";
    let expected = audit(&bin("a.bin", 2), &format!("--dtype u16 {arguments}"));
    for (dtype, size) in [("u32", 4), ("i32", 4), ("i64", 8)] {
        let file = bin(dtype, size);
        assert_eq!(
            audit(&file, &format!("--dtype {dtype} {arguments}")),
            expected
        );
    }
    let skipped: Vec<i64> = [&[9, 9, 9][..], &ids].concat();
    let file = write(folder.path(), "skipped.bin", &skipped, 2);
    assert_eq!(
        audit(&file, &format!("--dtype u16 --skip 6 {arguments}")),
        expected
    );
    let path = folder.path().join("ids.safetensors");
    for (dtype, size) in [
        (Dtype::U16, 2),
        (Dtype::U32, 4),
        (Dtype::I32, 4),
        (Dtype::I64, 8),
    ] {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|id| id.to_le_bytes()[..size].to_vec())
            .collect();
        let view = || TensorView::new(dtype, vec![30, 100], &bytes).unwrap();
        let other = TensorView::new(Dtype::U8, vec![3], &[1, 2, 3]).unwrap();
        let one = safetensors::serialize([("ids", view())], None).unwrap();
        std::fs::write(&path, one).unwrap();
        assert_eq!(audit(&path, arguments), expected);
        let two = safetensors::serialize([("a", other), ("ids", view())], None).unwrap();
        std::fs::write(&path, two).unwrap();
        assert_eq!(audit(&path, &format!("--tensor ids {arguments}")), expected);
    }
    // Negative ids differ from large ones.
    let negative: Vec<i64> = ids.iter().map(|id| -1 - id).collect();
    let file = write(folder.path(), "negative.bin", &negative, 4);
    let [signed, unsigned] =
        ["i32", "u32"].map(|dtype| audit(&file, &format!("--dtype {dtype} {arguments}")));
    assert_ne!(signed, unsigned);
}

/// Windows cross the boundaries of blocks of a million ids, and the number of many windows is estimated accurately.
#[test]
fn large_files_are_read_in_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<i64> = (0..1_200_000).collect();
    let file = write(folder.path(), "large.bin", &ids, 4);
    let audits = audit(&file, "--dtype u32 --strategy hash64 --k 3 --h 5");
    let goldfish = Goldfish::new(Strategy::Hash64 {
        k: 3,
        h: 5,
        seed: 0,
    })
    .unwrap();
    let keep = goldfish.keep(&Tokens::row(&ids)).unwrap();
    let dropped = keep.iter().filter(|&&keep| !keep).count() as u64;
    assert_eq!(audits[0]["dropped"].as_u64(), Some(dropped));
    assert_eq!(audits[0]["windows"].as_u64(), Some(1_200_000 - 4));
    for name in ["distinct_windows", "distinct_keys"] {
        let estimate = audits[0][name].as_f64().unwrap();
        assert!((estimate / 1.2e6 - 1.0).abs() < 0.01, "{name}: {estimate}");
    }
}

/// The words of this crate's sources, as ids in the order of frequency.
fn ordinary_text() -> Vec<i64> {
    fn visit(folder: &Path, text: &mut String) {
        let mut entries: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                visit(&path, text);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    for folder in ["src", "tests", "emulator/src"] {
        visit(&xact_dev::root().join(folder), &mut text);
    }
    let words: Vec<_> = text
        .split_inclusive(|c: char| !c.is_alphanumeric())
        .collect();
    let mut count = std::collections::BTreeMap::<_, i64>::new();
    words
        .iter()
        .for_each(|word| *count.entry(*word).or_default() += 1);
    let mut ranked: Vec<_> = count.into_iter().map(|(word, n)| (-n, word)).collect();
    ranked.sort_unstable();
    let ranks: std::collections::HashMap<_, _> = (3..)
        .zip(&ranked)
        .map(|(rank, (_, word))| (*word, rank))
        .collect();
    words.iter().map(|word| ranks[word]).collect()
}

#[test]
fn the_product_collapses_on_ordinary_text_and_hash64_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "text.bin", &ordinary_text(), 4);
    let svg = folder.path().join("gaps.svg");
    let arguments = format!("--dtype u32 --k 50 --h 13,50 --svg {}", svg.display());
    let share = |audit: &Value, of: &str, to: &str| {
        audit[of].as_f64().unwrap() / audit[to].as_f64().unwrap()
    };
    for audit in audit(&file, &arguments) {
        let told_apart = share(&audit, "distinct_keys", "distinct_windows");
        let zero = share(&audit, "zero_keys", "windows");
        match (
            audit["strategy"].as_str().unwrap(),
            audit["h"].as_u64().unwrap(),
        ) {
            ("product-table", 50) => assert!(told_apart < 0.9 && zero > 1e-4, "{audit}"),
            ("product-table", _) => assert!(zero < 1e-5, "{audit}"),
            _ => assert!(told_apart > 0.99 && zero == 0.0, "{audit}"),
        }
    }
    let svg = std::fs::read_to_string(svg).unwrap();
    for word in [
        "<svg",
        "product-table",
        "hash64",
        "k = 50, h = 13",
        "text.bin",
    ] {
        assert!(svg.contains(word), "{word}");
    }
    let output = run(&file, "--dtype u32 --h 50 --k 50");
    let table = String::from_utf8(output.stdout).unwrap();
    for word in ["| product-table | 50 | 50 |", "windows told apart", "least"] {
        assert!(table.contains(word), "{word} is not in {table}");
    }
}

#[test]
fn what_cannot_be_audited_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "ids.bin", &some_ids(1001), 2);
    let empty = write(folder.path(), "empty.bin", &[], 2);
    let missing = folder.path().join("missing.bin");
    let refused = |file: &Path, arguments: &str, words: &str| {
        let output = run(file, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(words), "{words} is not in: {error}");
    };
    refused(&file, "", "say with --dtype");
    refused(&file, "--dtype u32", "not a whole number of ids");
    refused(&file, "--dtype u16 --skip 2003", "cannot be skipped");
    refused(&file, "--dtype u16 --skip 2002", "no ids");
    refused(&empty, "--dtype u16", "no ids");
    refused(&missing, "--dtype u16", "missing.bin");
    refused(&file, "--dtype u16 --k 1", "k is 1");
    refused(&file, "--dtype u16 --h 0", "h is 0");
    refused(&file, "--dtype u16 --row 0", "a row must have an id");
    refused(&file, "--dtype u16 --strategy static", "nothing to audit");
    let into_folder = format!("--dtype u16 --svg {}", folder.path().display());
    refused(&file, &into_folder, "not a regular file");
    let path = folder.path().join("two.safetensors");
    let view = |dtype, len| TensorView::new(dtype, vec![len], &[0; 4]).unwrap();
    // The tensors are in the file in the order of their sizes.
    let tensors = [
        ("b", view(Dtype::I32, 1)),
        ("a", view(Dtype::U16, 2)),
        ("c", view(Dtype::U8, 4)),
    ];
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    refused(&path, "", "a, b, c");
    refused(&path, "--tensor d", "no tensor d");
    refused(&path, "--tensor c", "c is U8");
    assert_eq!(audit(&path, "--tensor b")[0]["labels"].as_u64(), Some(1));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    refused(&path, "--tensor a", "it ends before a does");
    std::fs::write(&path, [255; 100]).unwrap();
    refused(&path, "", "not a safetensors file");
    // In a text that is shorter than a window, all labels are kept.
    let short = write(folder.path(), "short.bin", &[1, 2, 3], 2);
    for audit in audit(&short, "--dtype u16") {
        assert_eq!(
            (audit["dropped"].as_u64(), audit["windows"].as_u64()),
            (Some(0), Some(0))
        );
    }
}
