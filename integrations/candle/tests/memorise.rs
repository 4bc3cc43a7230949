//! The example `memorise`: its figures, its quick run, its checkpoints and its refusals; and the page that it has written.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

#[path = "../examples/memorise/measure.rs"]
mod measure;

use measure::{longest_kept, mean_and_deviation, rouge_l, verbatim};

#[test]
fn rouge_l_is_that_of_the_longest_common_subsequence() {
    let original = [1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(rouge_l(&original, &original), 1.0);
    assert_eq!(rouge_l(&[9; 8], &original), 0.0);
    // 1 3 5 7, of lengths 4 and 8: 2·4/12.
    assert_eq!(rouge_l(&[1, 3, 5, 7], &original), 8.0 / 12.0);
    // 2 3 4 or 6 7 8: the order counts.
    assert_eq!(rouge_l(&[6, 7, 8, 2, 3, 4, 9, 9], &original), 6.0 / 16.0);
    // One wrong id costs one place; the ids after it count.
    assert_eq!(rouge_l(&[1, 2, 9, 4, 5, 6, 7, 8], &original), 14.0 / 16.0);
    assert_eq!(rouge_l(&[], &original), 0.0);
    assert_eq!(rouge_l(&[], &[]), 1.0);
}

#[test]
fn a_recital_ends_at_the_first_other_id() {
    assert_eq!(verbatim(&[1, 2, 3], &[1, 2, 3]), 3);
    assert_eq!(verbatim(&[1, 9, 3], &[1, 2, 3]), 1);
    assert_eq!(verbatim(&[9, 2, 3], &[1, 2, 3]), 0);
    assert_eq!(verbatim(&[1, 2], &[1, 2, 3]), 2);
}

#[test]
fn the_longest_run_is_between_dropped_labels_or_ends() {
    let keep = |text: &str| text.chars().map(|c| c == 'k').collect::<Vec<_>>();
    for (text, longest) in [
        ("", 0),
        ("d", 0),
        ("kkk", 3),
        ("kkkdkd", 3),
        ("kdkkdkkkk", 4),
        ("dkkkkkddkkd", 5),
    ] {
        assert_eq!(longest_kept(&keep(text)), longest, "{text:?}");
    }
}

#[test]
fn the_spread_is_that_of_a_sample() {
    assert_eq!(mean_and_deviation(&[1.0, 2.0, 3.0]), (2.0, 1.0));
    assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
}

/// A folder in which the example writes.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

/// The example with these arguments, built as this test is.
fn memorise(arguments: &[&str]) -> Command {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let target = target.expect("the target folder");
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--locked", "--example", "memorise"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .arg("--target-dir")
        .arg(target);
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        build.arg("--release");
        "release"
    };
    assert!(build.status().expect("cargo starts").success());
    let mut command = Command::new(target.join(profile).join("examples/memorise"));
    command.args(arguments);
    // The tests run beside each other, and threads that wait for work would take the time of the others.
    command.env("RAYON_NUM_THREADS", "1");
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = memorise(arguments);
    let output = command.arg("--folder").arg(folder).output();
    output.expect("the example starts")
}

fn success(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the example says when it refuses.
fn refusal(output: Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn result(folder: &Path, part: &str) -> Value {
    let text = fs::read(folder.join(format!("{part}.json"))).expect("a result");
    serde_json::from_slice(&text).expect("JSON")
}

/// The share of the canaries with this number of repetitions that are recited without a mistake.
fn recited(result: &Value, repetitions: u64) -> f64 {
    let canaries = result["canaries"].as_array().expect("canaries").iter();
    let canaries: Vec<_> = canaries
        .filter(|c| c["repetitions"] == repetitions)
        .collect();
    let recited = canaries
        .iter()
        .filter(|c| c["verbatim"] == c["len"])
        .count();
    recited as f64 / canaries.len() as f64
}

#[test]
fn the_quick_run_recites_without_goldfish_and_not_with_it() {
    let folder = folder();
    let table = success(run(folder.path(), &["--quick"]));
    let [plain, paper, product, hash64] =
        ["plain-0", "paper-0", "product-0", "hash64-0"].map(|part| result(folder.path(), part));
    assert_eq!(recited(&plain, 128), 1.0, "{table}");
    assert!(recited(&paper, 128) < recited(&plain, 128), "{table}");
    assert_eq!(recited(&plain, 0), 0.0, "{table}");
    for (result, least, most) in [
        (&plain, 1.0, 1.0),
        (&paper, 0.74, 0.80),
        (&product, 0.98, 0.995),
        (&hash64, 0.98, 0.99),
    ] {
        let count = |name: &str| result[name].as_f64().expect("a number");
        let (supervised, dropped) = (count("supervised"), count("dropped"));
        // A batch more at most.
        assert!((80_000.0..82_000.0).contains(&supervised), "{supervised}");
        let kept = supervised / (supervised + dropped);
        assert!((least..=most).contains(&kept), "{kept}");
    }
    // The results are there, so nothing is trained.
    assert_eq!(success(run(folder.path(), &["--quick"])), table);

    // The page of these results.
    let docs = folder.path().to_str().expect("UTF-8");
    success(run(folder.path(), &["--quick", "--report", "--docs", docs]));
    let plot = fs::read_to_string(folder.path().join("memorisation.svg")).expect("a plot");
    assert!(plot.contains("Recited without a mistake"));
}

#[test]
fn a_training_that_stops_or_is_killed_ends_with_the_same_bits() {
    let part = ["--quick", "--part", "paper-0"];
    let (whole, stopped, killed) = (folder(), folder(), folder());
    success(run(whole.path(), &part));

    let table = success(run(
        stopped.path(),
        &[&part[..], &["--stop-after", "30"]].concat(),
    ));
    assert!(table.contains("No part has a result yet"), "{table}");
    assert!(!stopped.path().join("paper-0.json").exists());
    success(run(stopped.path(), &part));

    let mut command = memorise(&part);
    command.arg("--folder").arg(killed.path());
    let mut process = command.stderr(Stdio::null()).spawn().expect("it starts");
    let checkpoint = killed.path().join("paper-0.safetensors");
    wait_for(&checkpoint);
    process.kill().expect("it runs");
    process.wait().expect("it ends");
    success(run(killed.path(), &part));

    let [whole, stopped, killed] = [&whole, &stopped, &killed].map(|folder| {
        let mut result = result(folder.path(), "paper-0");
        let fields = result.as_object_mut().expect("an object");
        for time in ["cpu_seconds", "seconds"] {
            fields.remove(time);
        }
        result
    });
    assert_eq!(stopped, whole);
    assert_eq!(killed, whole);
}

/// The page in docs/ is what the example writes from the results beside it.
#[test]
fn the_page_is_that_of_the_results() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = root.join("examples/memorise/results");
    let docs = folder();
    let to = docs.path().to_str().expect("UTF-8");
    success(run(&results, &["--report", "--docs", to]));
    for name in ["memorisation.md", "memorisation.svg"] {
        let [written, kept] = [docs.path(), &root.join("../../docs")]
            .map(|folder| fs::read_to_string(folder.join(name)).expect("a page"));
        assert!(written == kept, "docs/{name} is not what --report writes");
    }
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "no {}",
            path.display()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn refusals_say_what_to_do() {
    let folder = folder();
    let said = refusal(run(folder.path(), &["--part", "plane-0"]));
    assert!(
        said.contains(r#"there is no part "plane-0"; there are plain-0,"#),
        "{said}"
    );
    let said = refusal(run(&folder.path().join("none"), &["--report"]));
    assert!(said.contains("there is no folder"), "{said}");
    let said = refusal(run(folder.path(), &["--report"]));
    assert!(said.contains("has no result of plain-0 yet"), "{said}");
    let said = refusal(run(folder.path(), &["--quick", "--stop-after", "many"]));
    assert!(said.contains("--stop-after"), "{said}");

    // A checkpoint of the other sizes, and one of another part.
    let steps = ["--quick", "--part", "plain-0", "--stop-after", "1"];
    success(run(folder.path(), &steps));
    let said = refusal(run(
        folder.path(),
        &["--part", "plain-0", "--stop-after", "1"],
    ));
    assert!(said.contains("plain-0.safetensors"), "{said}");
    assert!(
        said.contains("belongs to another configuration: remove it"),
        "{said}"
    );
    let path = |part: &str| folder.path().join(format!("{part}.safetensors"));
    fs::copy(path("plain-0"), path("paper-0")).expect("a copy");
    let said = refusal(run(folder.path(), &["--quick", "--part", "paper-0"]));
    assert!(said.contains("belongs to another configuration"), "{said}");
    fs::write(path("hash64-0"), b"no tensors").expect("a file");
    let said = refusal(run(folder.path(), &["--quick", "--part", "hash64-0"]));
    assert!(said.contains("the checkpoint"), "{said}");
}
