//! The GPU kit (`benches/gpu`), with the emulator as the device: its rows move the bytes that their speeds are computed
//! from, its comparison finds a wrong bit, and its report is correct. Also tests the code that tests and tools share.

#[path = "../../benches/gpu/clocks.rs"]
#[allow(dead_code)] // only a real device has clocks
mod clocks;
#[allow(dead_code)] // its jobs are the bench's
#[path = "../../benches/gpu/compare.rs"]
mod compare;
#[path = "../../benches/gpu/devices.rs"]
mod devices;
mod helpers;
#[allow(dead_code)] // only a real device is timed
#[path = "../../benches/gpu/measure.rs"]
mod measure;
#[path = "../../benches/gpu/page.rs"]
mod page;
#[path = "../../benches/gpu/report.rs"]
mod report;
#[path = "../../benches/gpu/rows.rs"]
mod rows;
#[path = "../../benches/gpu/work.rs"]
mod work;
#[path = "../../benches/gpu/yardsticks.rs"]
mod yardsticks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU32;
use std::sync::LazyLock;

use clocks::{Clocks, Sampler};
use compare::{Call, Comparison, Dump, Output, never_launched};
use devices::Goal;
use measure::{Bench, Machine, Measured, Memory, Speed};
use report::Parts;
use rows::Row;
use serde_json::json;
use xact::activation::{Registered, Visitor};
use xact::{Dtype, Gated};
use xact_dev::choose::{Choice, Gpu, open};
use yardsticks::{Yardstick, Yardsticks};

fn gpu() -> Gpu {
    open(Choice::Emulated(0)).expect("the emulator")
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
        if A::NAME == "xielu" {
            self.has(A::NAME, rows::COMPAT);
        }
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
            // One row in 50 is dropped, with a tolerance of 5 standard deviations of 12.7 each.
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
    // The bytes per element that memory must move: 2b, 3b and 4b, 5b and 6b, b and 2b.
    let tokens = 5 * 4096 * 8192;
    for (name, bytes) in [
        ("xielu plain forward bf16 20480x8192", 4 * tokens),
        ("xielu plain backward f32 20480x8192", 12 * tokens),
        ("xielu plain backward+y bf16 65536x21504", 8 * 65536 * 21504),
        ("xielu compat backward bf16 20480x8192", 6 * tokens),
        ("xgelu plain forward f16 65536x8192", 4 << 29),
        ("xsilu gated1 backward bf16 8192x32768", 10 * 8192 * 32768),
        (
            "xatlu gated2 backward+y f32 16384x14336",
            24 * 16384 * 14336,
        ),
        ("cross_entropy plain forward bf16 8192x131072", 2 << 30),
        ("cross_entropy plain fused f32 8192x131072", 8 << 30),
        ("goldfish hash64 mask i64 16384x4096", 12 << 26),
        // This strategy depends only on the positions.
        ("goldfish static mask i64 16384x4096", 4 << 26),
    ] {
        assert_eq!(
            row(&format!("{name} scale 1 masked 0%")).bytes,
            bytes,
            "{name}"
        );
    }
    // Masked rows are written but not read.
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
        most_mhz: 1980.0,
        memory: Memory::Sheet(3_355.443),
    }
}

/// The bench finishes within its share of a run's time, on a device with the memory of an H100.
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
    rows.retain(|row| row.representative);
    let few = seconds(&rows);
    println!(
        "all {all:.0} s, quick {quick:.0} s, {} representative {few:.0} s",
        rows.len()
    );
    assert!(
        all < 200.0 && quick < 20.0 && few < 5.0,
        "{all} s, {quick} s, {few} s"
    );
    assert_eq!(rows.len(), 6);
}

/// The rows on the page of a run are among the rows of a day.
#[test]
fn quick_rows_are_those_of_the_goals() {
    let quick: Vec<_> = rows::all().into_iter().filter(|row| row.quick).collect();
    let has = |f: &dyn Fn(&Row) -> bool| quick.iter().any(f);
    assert!(has(&|row| row.form == "gated2") && has(&|row| row.direction == "backward+y"));
    assert!(has(&|row| row.form == rows::COMPAT) && has(&|row| row.rows == 16));
    let goals = |device: &str| -> Vec<_> {
        let found = quick.iter().map(|row| Goal::of(device, row));
        found.flatten().collect()
    };
    for (device, forward, gradient) in [
        ("NVIDIA H200", 4400.0, 1.0),
        ("NVIDIA H100 80GB HBM3", 3163.0, 1.4),
    ] {
        let goals = goals(device);
        for (goal, count) in [(Goal::GbPerS(forward), 1), (Goal::Ms(gradient), 1)] {
            assert_eq!(
                goals.iter().filter(|&&g| g == goal).count(),
                count,
                "{goal:?}"
            );
        }
        let shares = goals.iter().filter(|&&g| g == Goal::Share(0.95)).count();
        assert_eq!(shares, goals.len() - 2);
        assert!(shares >= 20);
    }
    // Other devices, and parts of one, have no goals; a Grace Hopper is not an H200.
    for device in [
        "NVIDIA B200",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA H100 PCIe",
        "NVIDIA H200 MIG 1g.18gb",
        "NVIDIA GH200 480GB",
    ] {
        assert_eq!(goals(device), [], "{device}");
    }
    assert_eq!(devices::sheet_gb_per_s("NVIDIA H200"), Some(4800.0));
    assert_eq!(
        devices::sheet_gb_per_s("NVIDIA A100-SXM4-80GB"),
        Some(2039.0)
    );
    assert_eq!(devices::sheet_gb_per_s("NVIDIA L4"), None);
}

/// The yardsticks that are kernels move each byte once, in whole vectors, for any remainder in the last block.
#[test]
fn yardsticks_move_what_they_are_divided_by() {
    let gpu = gpu();
    let mut tiles = work::Tiles::new(&gpu, 1021);
    let yardsticks = Yardsticks::new(&gpu, &mut tiles, 1 << 17).expect("yardsticks");
    yardsticks.check().expect("copies that copy");
    for which in [Yardstick::CopyKernel, Yardstick::ReadKernel] {
        for (offset, part) in [
            (0, 16),
            (16, (1 << 14) - 16),
            (16, 1 << 14),
            (0, 3 * (1 << 14) + 272),
            (48, 4096),
        ] {
            let (queued, launches) =
                cuda_emulator::record(|| yardsticks.queue(which, offset, part));
            queued.expect("a launch");
            let [launch] = &launches[..] else {
                panic!("{} launches", launches.len());
            };
            let sum = |f: fn(&cuda_emulator::BufferTraffic) -> u64| -> u64 {
                launch.buffers.iter().map(f).sum()
            };
            let written = if which.passes() == 2 { part } else { 0 };
            assert_eq!(sum(|b| b.bytes_read), part, "{which:?} {part}");
            assert_eq!(sum(|b| b.bytes_written), written, "{which:?} {part}");
            assert_eq!(sum(|b| b.loads.by_width[4]), part / 16, "{which:?} {part}");
        }
    }
}

/// A row that only reads is compared with the yardstick that only reads.
#[test]
fn every_row_has_its_yardstick() {
    for row in rows::all() {
        let reads = Yardstick::of(&row) == [Yardstick::ReadKernel];
        assert_eq!(
            reads,
            row.op == "cross_entropy" && row.direction == "forward",
            "{}",
            row.name()
        );
        assert!(reads || Yardstick::of(&row).iter().all(|y| y.passes() == 2));
    }
}

#[test]
fn clocks_are_sampled_until_nobody_asks() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(Sampler::start("no such program".as_ref(), "").is_none());
    // The script is not executed directly, because a child of another thread may still have it open for writing.
    let sampler = |body: &str| {
        let path = folder.path().join("place.sh");
        fs::write(&path, body).expect("a script");
        Sampler::start("sh".as_ref(), path.to_str().expect("a path")).expect("sh")
    };
    let chatty = sampler("echo 1980; echo N/A; echo 345; echo 1755; exec sleep 600");
    let begin = std::time::Instant::now();
    let found = loop {
        match chatty.so_far() {
            Some(found) if found.least == 345.0 && found.median == 1755.0 => break found,
            found => assert!(begin.elapsed().as_secs() < 60, "{found:?}"),
        }
        std::thread::yield_now();
    };
    assert_eq!(found.most, 1980.0);
    drop(chatty);
    assert!(
        begin.elapsed().as_secs() < 60,
        "the program outlives its reader"
    );
    assert_eq!(sampler("exit 6").so_far(), None);
}

#[test]
fn a_profile_is_plain_launches_of_one_row() {
    let gpu = gpu();
    let launches = |form| {
        let name = format!("xielu {form} forward bf16 20480x8192 scale 1 masked 0%");
        let tiny = row(&name).tiny();
        let (done, launches) = cuda_emulator::record(|| measure::profile(&gpu, &tiny));
        done.expect("launches");
        let kernels: Vec<_> = launches.iter().map(|l| l.kernel.as_str()).collect();
        assert_eq!(kernels, ["xielu_forward_bf16"; 3]);
        launches[0].by_opcode.clone()
    };
    // The clamped formula is another path of the kernel.
    assert_ne!(launches("plain"), launches(rows::COMPAT));
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
        // Forwards prepare a backward from saved statistics.
        let timed = launches.iter().filter(|launch| {
            row.direction != "backward"
                || !["_stats_", "_finish", "_totals"]
                    .iter()
                    .any(|task| launch.kernel.contains(task))
        });
        // The tensors of three turns. Scalars and statistics do not count, because every thread reads them, from the cache.
        let tensors = 3 * 2 * row.rows * row.cols;
        let buffers = timed.flat_map(|launch| &launch.buffers);
        let buffers = buffers.filter(|buffer| buffer.len >= tensors);
        let moved: u64 = buffers.map(|b| b.bytes_read + b.bytes_written).sum();
        let per_turn = moved / 3;
        let besides = match (row.op.as_str(), row.form.as_str()) {
            // A warp may read a row's target twice.
            ("cross_entropy", _) => 32 * 4 * row.rows,
            // The other 12 ids of a label's window, and a word of the bitmap.
            ("goldfish", _) => (12 * 8 + 4) * row.rows * row.cols,
            _ => 0,
        };
        // The gradient of a target does not depend on its logit, which is not read if it is alone in its vector.
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
    let dump = Dump::of(&gpu(), true, "");
    assert_eq!(never_launched(&dump), Vec::<&str>::new());
    assert!(dump.calls.iter().all(|call| call.in_bounds));
    // Integers have one correct result; exponentials do not.
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

/// A dump of an exact call and of an approximate call.
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

/// The emulator's dump, compared with a changed dump of another device.
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
    // If all instructions are exactly rounded, one wrong bit is an error.
    assert!(!changed(|dump| dump.calls[0].outputs[0].bytes[1] ^= 1).ok());
    // Otherwise the distance is reported: here one ulp up, away from 0.
    let apart = changed(|dump| dump.calls[1].outputs[0].bytes[4] ^= 1);
    assert!(apart.ok());
    assert_eq!(
        (apart.tensors[1].same, apart.tensors[1].apart),
        (2, Some(1))
    );
    assert!(apart.in_words().contains("66.67 %"), "{}", apart.in_words());
    // There is no distance from NaN to a number.
    let number = changed(|dump| dump.calls[1].outputs[0].bytes[8..].copy_from_slice(&[0; 4]));
    assert_eq!(number.tensors[1].apart, None);
    assert!(!changed(|dump| dump.calls[1].in_bounds = false).ok());
    let fewer = changed(|dump| drop(dump.calls.pop()));
    assert_eq!(fewer.unpaired, ["b/t/forward/p/y"]);
    assert!(!fewer.ok());
    // Two real devices do not know which calls are exact.
    let theirs = small_dump("device", false).to_bytes().expect("a file");
    assert!(Comparison::of(&theirs, &theirs).is_err());
}

/// A part of a dump equals the whole dump for the names in the part.
#[test]
fn a_dump_can_be_of_some_calls() {
    let whole = Dump::of(&gpu(), true, "goldfish/i32/");
    let part = Dump::of(&gpu(), true, "goldfish/i32/mask/hash64");
    assert_eq!(part.calls.len(), 1);
    assert!(whole.calls.len() > 1 && whole.calls.contains(&part.calls[0]));
}

fn measured(name: &str, ms: f64, yardstick_ms: f64) -> Measured {
    let row = row(name);
    Measured {
        name: row.name(),
        ms,
        ms_min: ms,
        ms_max: ms,
        yardstick: Yardstick::of(&row)[0],
        yardstick_ms,
        samples: 11,
        calls: 3,
        turns: 3,
        row,
    }
}

const FORWARD: &str = "xielu plain forward bf16 20480x8192 scale 1 masked 0%";

/// Rows that are only in the grid have no line of their own.
#[test]
fn the_grid_has_tables() {
    let grid = |direction, shape, ms| {
        let name = format!("cross_entropy plain {direction} bf16 {shape} scale 1 masked 0%");
        measured(&name, ms, 0.5)
    };
    let mut small = grid("forward", "1x32000", 0.0072);
    small.yardstick_ms = 0.001;
    let rows = [
        grid("forward", "8192x131072", 1.0),
        grid("forward", "1024x32000", 2.0),
        small,
        grid("fused", "8192x131072", 0.625),
    ];
    let text = report::speeds(&machine(), &rows);
    let lines: Vec<Vec<_>> = text
        .lines()
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let has = |cells: &[&str]| assert!(lines.contains(&cells.to_vec()), "{cells:?} in\n{text}");
    has(&["", "rows", "32000", "131072", ""]);
    has(&["", "1", "7.20 µs", "", ""]);
    has(&["", "1024", "25.0 %", "", ""]);
    has(&["", "8192", "", "50.0 %", ""]);
    has(&["", "8192", "80.0 %", ""]);
    assert!(text.contains("8192 × 131072") && !text.contains("1024 × 32000"));
    let text = report::speeds(&machine(), &rows[..1]);
    assert!(!text.contains("share of the yardstick:"), "{text}");
}

/// A run of the bench on a device in which rows take this number of milliseconds, and their yardsticks 0.2.
fn speed_of(device: &str, rows: &[(&str, f64)]) -> Speed {
    let rows = rows.iter().map(|&(name, ms)| measured(name, ms, 0.2));
    Speed {
        machine: Machine {
            device: device.to_owned(),
            ..machine()
        },
        clocks: Some(Clocks {
            least: 1755.0,
            median: 1800.0,
            most: 1980.0,
        }),
        yardsticks: Yardstick::ALL
            .into_iter()
            .zip([2500.0, 3000.0, 3010.0, 3100.0])
            .collect(),
        rows: rows.collect(),
        without: vec![("another row".to_owned(), "does not fit".to_owned())],
    }
}

/// A file of the bench in which one row takes this number of milliseconds.
fn speed(ms: f64) -> String {
    serde_json::to_string(&speed_of("a device", &[(FORWARD, ms)])).expect("JSON")
}

fn peers(ms: Option<f64>, error: Option<&str>) -> String {
    let row = json!({ "name": FORWARD, "peer": "torch eager", "ms": ms, "error": error });
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
    put("facts.txt", "Clocks: all of them\n");
    put("ncu.txt", "DRAM Throughput 90\n");
    // 671,088,640 bytes in 0.25 ms are 2684 GB/s, 80 % of a copy that takes 0.2 ms, and of the data sheet.
    let rows = [
        (FORWARD, 0.25),
        (
            "xielu compat backward bf16 20480x8192 scale 1 masked 0%",
            0.4,
        ),
        (
            "xielu plain backward+y bf16 20480x8192 scale 1 masked 0%",
            0.5,
        ),
    ];
    let all = speed_of("a device", &rows);
    put("speed.json", &serde_json::to_string(&all).expect("JSON"));
    for (round, ours) in [0.2, 0.3].into_iter().enumerate() {
        put(&format!("ours-{round}.json"), &speed(ours));
    }
    put("peers.json", &peers(Some(1.0), None));
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
    has_line(&[
        "xielu",
        "20480 × 8192",
        "0.2500 ms",
        "2684",
        "80.0 %",
        "stream copy",
    ]);
    has_line(&["read kernel", "3100", "92.4 %"]);
    has_line(&["another row: does not fit"]);
    has_line(&["SM clock", "1755 to 1980 MHz, median 1800"]);
    has_line(&["DRAM Throughput 90"]);
    has_line(&["Clocks: all of them"]);
    // The median of two of our runs: 1.0 over 0.25.
    has_line(&[FORWARD, "torch eager", "1.0000", "4.00"]);
    has_line(&["torch 2.9", "quack not there"]);
    has_line(&["80.0 %", "90.9 %", "packs-4 |"]);
    let json: serde_json::Value = serde_json::from_str(&read("results.json")).expect("JSON");
    assert_eq!(json["peers"][0]["peer_ms"], 1.0);
    assert_eq!(json["speed"]["rows"][0]["ms"], 0.25);
    assert!(read("shares.svg").contains("80.0"));
    let roofline = read("roofline.svg");
    // The listing has no figures for the loops of these rows, and the plot says so.
    assert!(roofline.contains("Left out") && roofline.contains("backward+y, compat"));
    for words in ["xielu", "forward", "at 1800 MHz, median of the run"] {
        assert!(roofline.contains(words), "{words}");
    }
    assert_eq!(
        read("page.md"),
        page::of(&Parts::read(&parts).expect("parts"))
    );
    // The results have at most eight files.
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
    // A peer without a time has a reason.
    put("ours-1.json", &speed(0.25));
    put("peers.json", &peers(None, Some("OutOfMemoryError")));
    let text = Parts::read(folder.path()).expect("parts").markdown();
    assert!(text.contains("OutOfMemoryError"), "{text}");
}

/// A file that cannot be read is named, and the rest of the report is complete.
#[test]
fn a_file_that_was_cut_off_is_a_line_of_the_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let put = |name: &str, text: &[u8]| fs::write(folder.path().join(name), text).expect("a file");
    // The text is cut in the middle of ×, and a note has a megabyte.
    let note = "×".repeat(1 << 20);
    let steps = [
        &b"dump\tpassed\t3\t20480 \xc3\nspeed\tpassed\t9\t"[..],
        note.as_bytes(),
        b"\nncu\tpas",
    ];
    put("steps.tsv", &steps.concat());
    put("machine.txt", b"a machine \xff\n");
    put("speed.json", b"{");
    put("choice-present.json", speed(0.25).as_bytes());
    let parts = Parts::read(folder.path()).expect("parts");
    assert_eq!(parts.steps.len(), 2);
    assert_eq!(parts.steps[1].note, "×".repeat(200));
    assert_eq!(parts.choices.len(), 1);
    for text in [page::of(&parts), parts.markdown()] {
        for words in [
            "unreadable: speed.json",
            "unreadable: steps.tsv: ncu",
            "a machine",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}

/// A step of a run.
fn step(name: &str, outcome: &str, note: &str) -> report::Step {
    report::Step {
        name: name.to_owned(),
        outcome: outcome.to_owned(),
        seconds: 1,
        note: note.to_owned(),
    }
}

#[test]
fn the_page_says_what_matters() {
    const GATED: &str = "xsilu gated1 backward bf16 8192x32768 scale 1 masked 0%";
    const GRADIENT: &str = "cross_entropy plain fused bf16 8192x128256 scale 1 masked 0%";
    const EIGHT: NonZeroU32 = NonZeroU32::new(8).unwrap();
    let has = |parts: &Parts, words: &[&str]| {
        let text = page::of(parts);
        let found = text
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "{words:?} in\n{text}");
    };
    let mut parts = Parts {
        machine: "driver 580".to_owned(),
        ..Parts::default()
    };
    has(&parts, &["driver 580"]);
    has(&parts, &["Nothing stands out"]);
    parts.steps = vec![
        step("dump", "passed", ""),
        step("load cold", "passed", "loaded in 8 s"),
        step("python", "passed", "checked with PyTorch 2.11.0"),
        step("racecheck", "not run", "the sandbox refuses the device"),
        step("suite api", "FAILED", "1 ignored"),
    ];
    has(&parts, &["Steps: 3 passed, 1 FAILED, 1 not run"]);
    has(
        &parts,
        &["racecheck not run: the sandbox refuses the device"],
    );
    has(&parts, &["suite api FAILED: 1 ignored"]);
    has(&parts, &["load cold: loaded in 8 s"]);
    has(&parts, &["python: checked with PyTorch 2.11.0"]);
    has(&parts, &["What failed comes first"]);
    parts.comparison = Some(changed(|dump| dump.calls[0].outputs[0].bytes[1] ^= 1));
    has(&parts, &["they DIFFER", "1 failed"]);
    parts.comparison = Some(changed(|_| ()));
    has(&parts, &["they agree", "0 failed"]);

    // Without goals, the page does not mention them. One goal is met; one is missed by its share, and one met by its time.
    let rows = [(FORWARD, 0.21), (GATED, 0.4), (GRADIENT, 0.9)];
    parts.speed = Some(speed_of("a device", &rows));
    has(&parts, &["No goals"]);
    parts.speed = Some(speed_of("NVIDIA H200", &rows));
    has(&parts, &["Goals: 2 met, 1 MISSED"]);
    has(
        &parts,
        &[GATED, "≥ 95 % of the stream copy", "50.0 %", "MISSED"],
    );
    has(&parts, &[GRADIENT, "≤ 1.00 ms", "0.900 ms", "met"]);
    has(
        &parts,
        &["Farthest from its goal", GATED, "run.sh --only ncu"],
    );
    has(&parts, &["median 1800"]);
    has(&parts, &["The stream copy reaches 83 % of the fastest"]);
    let text = page::of(&parts);
    assert!(!text.contains("The graph copy reaches"), "{text}");

    // This row reaches 53 % of its goal, that row 91 %, although its share of its yardstick is smaller.
    let rows = [(GATED, 0.4), (GRADIENT, 1.1)];
    parts.speed = Some(speed_of("NVIDIA H200", &rows));
    has(&parts, &["Goals: 0 met, 2 MISSED"]);
    has(&parts, &["Farthest from its goal", GATED]);
    let text = page::of(&parts);
    assert!(text.find(GATED) < text.find(GRADIENT), "{text}");

    // PTX that was loaded instead of machine code is no failure, but was not the purpose of the step.
    for (count, said) in [(6, false), (4, true)] {
        let note = format!("machine code: {count} of 6 files; loaded in 8 s");
        parts.steps = vec![step("load machine code", "passed", &note)];
        let text = page::of(&parts);
        assert_eq!(text.contains("Only 4 of 6 files"), said, "{text}");
    }

    // A peer is faster, and a geometry is better.
    parts.ours = vec![speed_of("a device", &[(FORWARD, 0.25)])];
    parts.peers = serde_json::from_str(&peers(Some(0.2), None)).expect("peers");
    has(&parts, &[FORWARD, "torch eager", "0.80"]);
    has(&parts, &["Peers are ahead in 1 rows"]);
    for (name, ms) in [("present", 0.25), ("packs-4", 0.22)] {
        let speed = speed_of("a device", &[(FORWARD, ms)]);
        parts.tuning.insert(name.to_owned(), speed);
    }
    has(&parts, &["packs-4", FORWARD, "80.0 to 90.9 %"]);
    for (name, ms) in [("present", 0.5), ("cluster-8", 0.4)] {
        // The size of a cluster does not affect an activation.
        let mut speed = speed_of("a device", &[(GRADIENT, ms), (GATED, ms)]);
        for found in &mut speed.rows {
            found.row.chosen.cluster = (name != "present").then_some(EIGHT);
        }
        parts.choices.insert(name.to_owned(), speed);
    }
    let brings = "The choice cluster-8 (raw::cross_entropy) brings";
    has(&parts, &[GRADIENT, brings]);
    assert_eq!(page::of(&parts).matches(brings).count(), 1);
    assert!(
        page::of(&parts).lines().count() < 70,
        "more than a minute's reading"
    );
}

/// Every kind of row is timed beside its yardstick, with the emulator's clock.
#[test]
fn a_row_is_timed_beside_its_yardstick() {
    let gpu = gpu();
    let machine = Machine {
        l2_bytes: 1 << 12,
        ..Machine::of(&gpu).expect("a machine")
    };
    // The emulated H100 has the data sheet of a real one.
    assert_eq!(machine.memory, Memory::Sheet(3350.0));
    let mut bench = Bench::new(&gpu, &machine, 3, 1 << 16).expect("a bench");
    let mut speed = Speed {
        clocks: None,
        yardsticks: bench.yardsticks().expect("yardsticks"),
        rows: Vec::new(),
        without: Vec::new(),
        machine,
    };
    for name in [
        "xielu plain backward bf16 20480x8192",
        "cross_entropy plain forward bf16 8192x131072",
        "cross_entropy plain fused f32 8192x131072",
        "cross_entropy plain backward f16 8192x131072",
        "goldfish hash64 mask i64 16384x4096",
    ] {
        let tiny = row(&format!("{name} scale 1 masked 0%")).tiny();
        let found = bench.measure(&tiny).expect("a time").expect("it fits");
        assert!(Yardstick::of(&tiny).contains(&found.yardstick), "{found:?}");
        assert!(found.ms_min <= found.ms && found.ms <= found.ms_max && found.ms_min > 0.0);
        assert!(found.yardstick_ms > 0.0 && found.turns >= 3 && found.samples == 3);
        speed.rows.push(found);
    }
    let kinds: Vec<_> = speed.yardsticks.iter().map(|(which, _)| *which).collect();
    assert_eq!(kinds, Yardstick::ALL);
    assert!(speed.yardsticks.iter().all(|(_, gb_per_s)| *gb_per_s > 0.0));
    let text = serde_json::to_string(&speed).expect("JSON");
    assert_eq!(
        serde_json::from_str::<Speed>(&text)
            .expect("what was written")
            .rows
            .len(),
        5
    );
    assert!(report::speed_in_words(&speed).contains("nothing here samples it"));
}

/// The names in `run.sh` exist: rows and kernels to profile, and calls with clusters.
#[test]
fn the_script_names_what_there_is() {
    let script = include_str!("../../xtask/bundle/run.sh");
    let between = |start: &str| {
        let (_, rest) = script.split_once(start).expect(start);
        rest.split('\'').next().expect("a quoted text")
    };
    let profiles: Vec<_> = between("profiles='").lines().collect();
    assert_eq!(profiles.len(), 8);
    for line in profiles {
        let (kernel, name) = line.split_once(' ').expect("a kernel and a row");
        assert!(
            xact::cuda::entry_names().iter().any(|n| n == kernel),
            "{kernel}"
        );
        let found = rows::all()
            .into_iter()
            .find(|row| row.name().starts_with(name));
        let found = found.unwrap_or_else(|| panic!("no row {name}"));
        // A row of this size needs no cluster.
        if !kernel.contains("cluster") {
            let gpu = gpu();
            let (done, launches) = cuda_emulator::record(|| measure::profile(&gpu, &found.tiny()));
            done.expect("launches");
            assert!(launches.iter().any(|l| l.kernel == kernel), "{line}");
        }
    }
    let dump = Dump::of(&gpu(), true, between("clusters='"));
    let entries: Vec<_> = dump.calls.iter().flat_map(|call| &call.entries).collect();
    assert!(entries.iter().any(|e| e.contains("cluster")), "{entries:?}");
}
