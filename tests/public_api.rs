//! The public API equals tests/golden/public_api.txt, so every change of it is visible.
//!
//! `cargo xtask api --golden-update` writes the file (`XACT_GOLDEN_UPDATE=1`). It omits hidden items, blanket
//! implementations, and auto traits such as Send and Sync, which would double the number of lines.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use libtest_mimic::{Arguments, Failed, Trial};

/// The format of rustdoc's JSON that the `public-api` of Cargo.toml reads, and a toolchain that writes it.
const FORMAT: u64 = 57;
const COMPILER: &str = "1.95";

/// The variable that makes a stable rustdoc write JSON, which is an unstable feature.
const BOOTSTRAP: (&str, &str) = ("RUSTC_BOOTSTRAP", "1");
const JSON: [&str; 4] = ["-Z", "unstable-options", "--output-format", "json"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let format = format_of_this_compiler();
    if format != Some(FORMAT) {
        eprintln!(
            "ignored: the public API is listed from rustdoc's JSON of format {FORMAT}, and this rustdoc writes {}. \
             Run this test with Rust {COMPILER}.",
            format.map_or("none".into(), |format| format.to_string())
        );
    }
    let trial = Trial::test("the_public_api_is_the_recorded_one", compare);
    let trial = trial.with_ignored_flag(format != Some(FORMAT));
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

fn compare() -> Result<(), Failed> {
    let golden = xact_dev::root().join("tests/golden/public_api.txt");
    let found = listing()?;
    if env::var_os("XACT_GOLDEN_UPDATE").is_some() {
        return Ok(fs::write(&golden, found)?);
    }
    let recorded = fs::read_to_string(&golden)?;
    if recorded == found {
        return Ok(());
    }
    let lines = |text: &str| -> HashSet<String> { text.lines().map(str::to_owned).collect() };
    let (known, now) = (lines(&recorded), lines(&found));
    let mut changes = String::new();
    for line in recorded.lines().filter(|line| !now.contains(*line)) {
        writeln!(changes, "- {line}")?;
    }
    for line in found.lines().filter(|line| !known.contains(*line)) {
        writeln!(changes, "+ {line}")?;
    }
    Err(format!(
        "the public API is not that of tests/golden/public_api.txt:\n{changes}\
         If this is meant: cargo xtask api --golden-update, and a line in CHANGELOG.md."
    )
    .into())
}

/// One line per item. An item that is exported at several places has its implementations once.
fn listing() -> Result<String, Failed> {
    let output = Command::new(env!("CARGO"))
        .args([
            "rustdoc",
            "--offline",
            "--package",
            "xact",
            "--lib",
            "--all-features",
        ])
        .arg("--target-dir")
        .arg(scratch())
        .arg("--")
        .args(JSON)
        // With the features of docs.rs, which also tests that build.
        .args(["--cfg", "docsrs"])
        .current_dir(xact_dev::root())
        .env(BOOTSTRAP.0, BOOTSTRAP.1)
        // The API does not depend on the kernels, so none are compiled.
        .env("DOCS_RS", "1")
        .env_remove("XACT_REQUIRE_NVCC")
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let api = public_api::Builder::from_rustdoc_json(scratch().join("doc/xact.json"))
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .build()?;
    let mut seen = HashSet::new();
    let lines = api.items().map(|item| format!("{item}\n"));
    Ok(lines.filter(|line| seen.insert(line.clone())).collect())
}

/// The format of the JSON that rustdoc writes for an empty crate.
fn format_of_this_compiler() -> Option<u64> {
    let folder = scratch();
    fs::create_dir_all(&folder).ok()?;
    let source = folder.join("empty.rs");
    fs::write(&source, "").ok()?;
    let rustdoc = env::var_os("RUSTDOC").unwrap_or_else(|| "rustdoc".into());
    let status = Command::new(rustdoc)
        .args(JSON)
        .arg(source)
        .arg("--out-dir")
        .arg(&folder)
        .env(BOOTSTRAP.0, BOOTSTRAP.1)
        .status();
    let text = status
        .ok()?
        .success()
        .then(|| fs::read(folder.join("empty.json")))?;
    let json: serde_json::Value = serde_json::from_slice(&text.ok()?).ok()?;
    json["format_version"].as_u64()
}

/// A separate target folder, because build scripts of dependencies depend on the variable, and would be rerun in the shared
/// folder at every change.
fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("public-api")
}
