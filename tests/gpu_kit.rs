//! The GPU kit (`benches/gpu`) does what it says, with the emulator in the device's place: its rows move the bytes that
//! they are divided by, its comparison sees a wrong bit, its report adds up.

#[allow(dead_code)] // its jobs are the bench's
#[path = "../benches/gpu/compare.rs"]
mod compare;
#[allow(dead_code)] // only a real device is timed
#[path = "../benches/gpu/measure.rs"]
mod measure;
#[path = "../benches/gpu/report.rs"]
mod report;
#[path = "../benches/gpu/rows.rs"]
mod rows;
mod support;
#[path = "../benches/gpu/work.rs"]
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::LazyLock;

use compare::{Call, Comparison, Dump, Output, never_launched};
use measure::{Machine, Measured};
use report::Parts;
use rows::Row;
use serde_json::json;
use support::choose::{Choice, Gpu, open};
use xact::activation::{Registered, Visitor};
use xact::{Dtype, Gated};

fn gpu() -> Gpu {
    open(Choice::Emulated).expect("the emulator")
}

fn row(name: &str) -> Row {
    static ROWS: LazyLock<BTreeMap<String, Row>> = LazyLock::new(|| {
        rows::all()
            .into_iter()
            .map(|row| (row.name(), row))
            .collect()
    });
    let found = ROWS.get(name).unwrap_or_else(|| panic!("no row {name}"));
    found.clone()
}

/// Checks that every form of every activation is measured in both directions.
struct Forms(Vec<Row>);

impl Forms {
    fn has(&self, op: &str, form: &str) {
        for dtype in Dtype::ALL {
            for direction in ["forward", "backward", "backward+y"] {
                let is_it = |row: &Row| {
                    (row.op.as_str(), row.form.as_str()) == (op, form)
                        && (row.direction.as_str(), row.dtype.as_str()) == (direction, dtype.name())
                };
                assert!(self.0.iter().any(is_it), "{op} {form} {direction} {dtype}");
            }
        }
    }
}

impl Visitor for Forms {
    fn visit<A: Registered>(&mut self) {
        self.has(A::NAME, "plain");
    }

    fn visit_gated<A: Gated + Registered>(&mut self) {
        self.has(A::NAME, "gated1");
        self.has(A::NAME, "gated2");
    }
}

#[test]
fn the_rows_are_the_protocols() {
    let all = rows::all();
    let names: BTreeSet<_> = all.iter().map(Row::name).collect();
    assert_eq!(names.len(), all.len());
    xact::activation::for_each(&mut Forms(all.clone()));
    for direction in ["forward", "fused", "backward"] {
        for dtype in Dtype::ALL {
            let of = |form, shape| {
                row(&format!(
                    "cross_entropy {form} {direction} {dtype} {shape} scale 1 masked 0%"
                ))
            };
            for rows in [1, 16, 128, 1024, 4096, 8192, 16_384, 32_768] {
                for cols in [
                    32_000, 50_257, 50_304, 65_536, 128_256, 131_072, 151_936, 262_144,
                ] {
                    assert!(of("plain", format!("{rows}x{cols}")).grid);
                }
            }
            // One row in 50 is dropped, give or take 5 of 12.7 standard deviations each.
            let whole = of("plain", "8192x131072".to_owned());
            let goldfish = of("goldfish", "8192x131072".to_owned());
            let dropped = (whole.bytes - goldfish.bytes) / (131_072 * dtype.size());
            assert!((100..228).contains(&dropped), "{dropped}");
        }
    }
    for strategy in [
        "static",
        "random",
        "product-table",
        "product-avalanche",
        "dot-table",
        "hash64",
    ] {
        for ids in ["i32", "i64"] {
            row(&format!(
                "goldfish {strategy} mask {ids} 16384x4096 scale 1 masked 0%"
            ));
        }
    }
    // The tables of what memory must move: 2b, 3b and 4b, 5b and 6b, b and 2b bytes an element.
    let tokens = 5 * 4096 * 8192;
    for (name, bytes) in [
        ("xielu plain forward bf16 20480x8192", 4 * tokens),
        ("xielu plain backward f32 20480x8192", 12 * tokens),
        ("xielu plain backward+y bf16 65536x21504", 8 * 65536 * 21504),
        ("xgelu plain forward f16 65536x8192", 4 << 29),
        ("xsilu gated1 backward bf16 8192x32768", 10 * 8192 * 32768),
        (
            "xatlu gated2 backward+y f32 16384x14336",
            24 * 16384 * 14336,
        ),
        ("cross_entropy plain forward bf16 8192x131072", 2 << 30),
        ("cross_entropy plain fused f32 8192x131072", 8 << 30),
        ("goldfish hash64 mask i64 16384x4096", 12 << 26),
        // It decides by the place alone.
        ("goldfish static mask i64 16384x4096", 4 << 26),
    ] {
        assert_eq!(
            row(&format!("{name} scale 1 masked 0%")).bytes,
            bytes,
            "{name}"
        );
    }
    // Masked rows are written and not read.
    for (direction, masked, bytes) in [
        ("forward", 100, 0),
        ("fused", 100, 2u64 << 30),
        ("fused", 30, (8192 - 2457 + 8192) * 131_072 * 2),
    ] {
        let name =
            format!("cross_entropy plain {direction} bf16 8192x131072 scale 1 masked {masked}%");
        assert_eq!(row(&name).bytes, bytes, "{name}");
        let masked_rows = (0..8192).filter(|&r| row(&name).is_masked(r)).count();
        assert_eq!(masked_rows as u64, 8192 * masked / 100);
    }
}

fn machine() -> Machine {
    Machine {
        device: "a device".to_owned(),
        l2_bytes: 50 << 20,
        sms: 132,
        sheet_gb_per_s: 3_355.443,
    }
}

/// The bench has its part of a run's minutes, on a device with the memory of an H100.
#[test]
fn the_rows_fit_into_the_time() {
    let seconds = |rows: &[Row]| -> f64 {
        let plan = |row| measure::seconds(row, &machine(), 79 << 30, 11);
        rows.iter().map(plan).sum()
    };
    let mut rows = rows::all();
    let all = seconds(&rows);
    rows.retain(|row| row.quick);
    let quick = seconds(&rows);
    println!("all {all:.0} s, quick {quick:.0} s");
    assert!(all < 200.0 && quick < 20.0, "{all} s, {quick} s");
}

/// Every row runs, writes its output, and moves the bytes that its speed is computed from.
#[test]
fn the_bytes_are_those_that_move() {
    let gpu = gpu();
    gpu.device.preload().expect("the kernels");
    let mut tiny: Vec<_> = rows::all().into_iter().map(Row::tiny).collect();
    tiny.sort_by_key(Row::name);
    tiny.dedup_by_key(|row| row.name());
    for row in tiny {
        let (written, launches) = cuda_emulator::record(|| measure::smoke(&gpu, &row));
        assert!(written.expect("a run"), "{} wrote nothing", row.name());
        // A backward from stats is prepared by forwards.
        let timed = launches.iter().filter(|launch| {
            row.direction != "backward"
                || !["_stats_", "_finish", "_totals"]
                    .iter()
                    .any(|task| launch.kernel.contains(task))
        });
        // The tensors of three turns; scalars and statistics are read by every thread, from the cache.
        let tensors = 3 * 2 * row.rows * row.cols;
        let buffers = timed.flat_map(|launch| &launch.buffers);
        let buffers = buffers.filter(|buffer| buffer.len >= tensors);
        let moved: u64 = buffers.map(|b| b.bytes_read + b.bytes_written).sum();
        let per_turn = moved / 3;
        let besides = match (row.op.as_str(), row.form.as_str()) {
            // A warp may read a row's target once more.
            ("cross_entropy", _) => 32 * 4 * row.rows,
            // The other 12 ids of a label's window, and a word of the bitmap.
            ("goldfish", _) => (12 * 8 + 4) * row.rows * row.cols,
            _ => 0,
        };
        // The gradient of a target does not depend on its logit: where it is alone in its vector, it is not read.
        let unread = match (row.op.as_str(), row.direction.as_str()) {
            ("cross_entropy", "backward") => 4 * row.rows,
            _ => 0,
        };
        let range = row.bytes - unread..=row.bytes + besides;
        assert!(
            range.contains(&per_turn),
            "{}: {per_turn} is not in {range:?}",
            row.name()
        );
    }
}

#[test]
fn every_entry_is_compared() {
    let dump = Dump::of(&gpu(), true);
    assert_eq!(never_launched(&dump), Vec::<&str>::new());
    assert!(dump.calls.iter().all(|call| call.in_bounds));
    // Integers have one right answer, exponentials do not.
    for call in &dump.calls {
        match call.op.as_str() {
            "goldfish" => assert_eq!(call.exact, Some(true), "{call:?}"),
            "xsilu" | "cross_entropy" => assert_eq!(call.exact, Some(false), "{call:?}"),
            _ => {}
        }
    }
    let bytes = dump.to_bytes().expect("a file");
    let comparison = Comparison::of(&bytes, &bytes).expect("two files");
    assert!(comparison.ok());
    let mut without = dump;
    for call in &mut without.calls {
        call.entries.retain(|entry| entry != "xgelu_forward_f16");
    }
    assert_eq!(never_launched(&without), ["xgelu_forward_f16"]);
}

/// A dump of an exact call and an approximate one.
fn small_dump(device: &str, emulated: bool) -> Dump {
    let call = |op: &str, exact, dtype, bytes: &[u8]| Call {
        op: op.to_owned(),
        dtype: "t".to_owned(),
        direction: "forward".to_owned(),
        params: "p".to_owned(),
        in_bounds: true,
        entries: Vec::new(),
        exact: emulated.then_some(exact),
        outputs: vec![Output {
            name: "y",
            dtype,
            bytes: bytes.to_vec(),
        }],
    };
    let floats = [1.0f32, -2.0, f32::NAN].map(f32::to_le_bytes).concat();
    Dump {
        device: device.to_owned(),
        calls: vec![
            call("a", true, safetensors::Dtype::U8, &[1, 0, 1]),
            call("b", false, safetensors::Dtype::F32, &floats),
        ],
    }
}

/// The emulator's dump against another device's that was changed.
fn changed(change: impl FnOnce(&mut Dump)) -> Comparison {
    let mut theirs = small_dump("device", false);
    change(&mut theirs);
    let files = [small_dump("emulator", true), theirs].map(|dump| dump.to_bytes().expect("a file"));
    Comparison::of(&files[0], &files[1]).expect("two dumps")
}

#[test]
fn a_wrong_bit_is_seen() {
    let same = changed(|_| ());
    assert!(same.ok());
    assert_eq!(same.devices, ["emulator", "device"]);
    // Where everything is exactly rounded, one is too many.
    assert!(!changed(|dump| dump.calls[0].outputs[0].bytes[1] ^= 1).ok());
    // Where it is not, the distance is told: here one ulp up, away from 0.
    let apart = changed(|dump| dump.calls[1].outputs[0].bytes[4] ^= 1);
    assert!(apart.ok());
    assert_eq!(
        (apart.tensors[1].same, apart.tensors[1].apart),
        (2, Some(1))
    );
    assert!(apart.in_words().contains("66.67 %"), "{}", apart.in_words());
    // From NaN to a number there is no distance.
    let number = changed(|dump| dump.calls[1].outputs[0].bytes[8..].copy_from_slice(&[0; 4]));
    assert_eq!(number.tensors[1].apart, None);
    assert!(!changed(|dump| dump.calls[1].in_bounds = false).ok());
    let fewer = changed(|dump| drop(dump.calls.pop()));
    assert_eq!(fewer.unpaired, ["b/t/forward/p/y"]);
    assert!(!fewer.ok());
    // Two real devices cannot say what is exact.
    let theirs = small_dump("device", false).to_bytes().expect("a file");
    assert!(Comparison::of(&theirs, &theirs).is_err());
}

fn measured(name: &str, ms: f64, copy_ms: f64) -> Measured {
    let row = row(name);
    Measured {
        name: row.name(),
        row,
        ms,
        ms_min: ms,
        ms_max: ms,
        copy_ms,
        samples: 11,
        calls: 3,
        turns: 3,
    }
}

const FORWARD: &str = "xielu plain forward bf16 20480x8192 scale 1 masked 0%";

/// Of the grid, what nothing else asks for has no line of its own.
#[test]
fn the_grid_has_tables() {
    let grid = |direction, shape, ms| {
        let name = format!("cross_entropy plain {direction} bf16 {shape} scale 1 masked 0%");
        measured(&name, ms, 0.5)
    };
    let rows = [
        grid("forward", "8192x131072", 1.0),
        grid("forward", "16x32000", 2.0),
        grid("fused", "8192x131072", 0.625),
    ];
    let text = report::speeds(&machine(), &rows);
    let lines: Vec<Vec<_>> = text
        .lines()
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let has = |cells: &[&str]| assert!(lines.contains(&cells.to_vec()), "{cells:?} in\n{text}");
    has(&["", "rows", "32000", "131072", ""]);
    has(&["", "16", "25.0 %", "", ""]);
    has(&["", "8192", "", "50.0 %", ""]);
    has(&["", "8192", "80.0 %", ""]);
    assert!(text.contains("8192 × 131072") && !text.contains("16 × 32000"));
    let text = report::speeds(&machine(), &rows[..1]);
    assert!(!text.contains("share of a copy:"), "{text}");
}

/// A file of the bench in which one row takes so many milliseconds.
fn speed(ms: f64) -> String {
    json!({ "machine": machine(), "rows": [measured(FORWARD, ms, 0.2)], "without": [["another row", "does not fit"]] }).to_string()
}

fn peers(ms: Option<f64>, error: Option<&str>) -> String {
    let row = json!({ "name": FORWARD, "peer": "torch eager", "ms": ms, "copy_ms": 0.25, "error": error });
    json!({ "versions": { "torch": "2.9", "quack": null }, "rows": [row] }).to_string()
}

#[test]
fn the_report_adds_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let (parts, out) = (folder.path().join("parts"), folder.path().join("out"));
    fs::create_dir(&parts).expect("a folder");
    let put = |name: &str, text: &str| fs::write(parts.join(name), text).expect("a file");
    put(
        "steps.tsv",
        "suite api\tpassed\t3\t13 passed\nspeed\tFAILED\t0\tno time left\npeers\tnot run\t0\tno torch\n",
    );
    put("machine.txt", "a machine\n");
    put("clocks.csv", "1980\n1755\nnonsense\n1800\n");
    // 671,088,640 bytes in 0.25 ms: 2684 GB/s, 80 % of a copy that takes 0.2 ms, and of the sheet.
    put("speed.json", &speed(0.25));
    for (round, (ours, theirs)) in [(0.25, 0.9), (0.2, 1.0), (0.3, 5.0)]
        .into_iter()
        .enumerate()
    {
        put(&format!("ours-{round}.json"), &speed(ours));
        put(&format!("peers-{round}.json"), &peers(Some(theirs), None));
    }
    put("tuning-present.json", &speed(0.25));
    put("tuning-packs-4.json", &speed(0.22));
    report::write(&parts, &out).expect("a report");
    let read = |name: &str| fs::read_to_string(out.join(name)).expect("a file");
    let text = read("report.md");
    let has_line = |words: &[&str]| {
        let found = text
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "{words:?} in\n{text}");
    };
    has_line(&["3 steps: 1 passed, 1 failed, 1 not run."]);
    has_line(&["speed", "FAILED", "no time left"]);
    has_line(&["xielu", "20480 × 8192", "0.2500", "2684", "80.0 %"]);
    has_line(&["another row: does not fit"]);
    has_line(&["SM clock", "1755 to 1980 MHz, median 1800"]);
    // The medians of three rounds: 1.0 over 0.25.
    has_line(&[FORWARD, "torch eager", "1.0000", "4.00"]);
    has_line(&["torch 2.9", "quack not there"]);
    has_line(&["80.0 %", "90.9 %", "packs-4 |"]);
    let json: serde_json::Value = serde_json::from_str(&read("results.json")).expect("JSON");
    assert_eq!(json["peers"][0]["peer_ms"], 1.0);
    assert_eq!(json["speed"]["rows"][0]["ms"], 0.25);
    assert!(read("share_of_copy.svg").contains("80.0"));
    assert!(read("roofline.svg").contains("xielu") && read("roofline.svg").contains("forward"));
    // A folder is carried back as at most eight files.
    assert!(fs::read_dir(&out).expect("a folder").count() <= 7);
}

#[test]
fn what_was_not_measured_is_not_in_the_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
    put("steps.tsv", "speed\tnot run\t0\tno GPU\n");
    let text = Parts::read(folder.path()).expect("parts").markdown();
    assert!(
        !text.contains("GB/s") && !text.contains("## Peers"),
        "{text}"
    );
    // A peer without a time says why.
    put("ours-1.json", &speed(0.25));
    put("peers-1.json", &peers(None, Some("OutOfMemoryError")));
    let text = Parts::read(folder.path()).expect("parts").markdown();
    assert!(text.contains("OutOfMemoryError"), "{text}");
    // Half a file is an error, not a row less.
    put("speed.json", "{");
    assert!(Parts::read(folder.path()).is_err());
}
