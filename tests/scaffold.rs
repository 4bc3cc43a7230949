//! The cost of a fifth activation: a gated op is added to a copy of the repository, with three new files and three edited
//! lines. It then has the whole test suite.
//!
//! The test compiles most of the crate again, so only `cargo xtask test --full` and CI run it (`XACT_FULL=1`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use xact_dev::toolkit;

/// The new op, and the op that it copies.
const NEW: &str = "xdummy";
const OLD: &str = "xsilu";

/// The files of an op.
const FILES: [&str; 3] = [
    "kernels/activation/xsilu.cu",
    "src/activation/xsilu.rs",
    "src/cpu/xsilu.rs",
];

/// Lines of the old op that are followed by a line of the new op.
const LINES: [(&str, &str); 3] = [
    ("src/activation/mod.rs", "pub mod xsilu;"),
    ("src/activation/registry.rs", "xsilu: Xsilu("),
    ("tests/golden/expanded_oracle.py", "\"xsilu\": lambda x:"),
];

/// The text of the new op.
fn renamed(text: &str) -> String {
    text.replace(OLD, NEW)
        .replace("Xsilu", "Xdummy")
        .replace("Logistic", "Dummy")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) {
    let same = fs::read_to_string(path).is_ok_and(|old| old == text);
    if !same {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// Copies the sources. Equal files keep their time, so that little is compiled again.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        if name == "target" || name.to_string_lossy().starts_with('.') && name != ".cargo" {
            continue;
        }
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            let text = fs::read(&path).expect("a file");
            let to = to.join(name);
            if fs::read(&to).ok().as_ref() != Some(&text) {
                fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
                fs::write(&to, text).expect("a file");
            }
        }
    }
}

fn main() -> std::process::ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    let wanted = ["XACT_FULL", "CI"]
        .iter()
        .any(|name| env::var_os(name).is_some());
    let trial =
        libtest_mimic::Trial::test("a_fifth_activation_is_three_files_and_three_lines", || {
            a_fifth_activation();
            Ok(())
        });
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(!wanted)]).exit_code()
}

fn a_fifth_activation() {
    let root = xact_dev::root();
    let copy_of = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("scaffold");
    copy(root, &copy_of);
    for file in FILES {
        write(
            &copy_of.join(file.replace(OLD, NEW)),
            &renamed(&read(&root.join(file))),
        );
    }
    for (file, mark) in LINES {
        let text = read(&root.join(file));
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let at = lines.iter().position(|line| line.contains(mark));
        let at = at.unwrap_or_else(|| panic!("{file} has no line with {mark}"));
        let (before, after) = lines.split_at(at + 1);
        let new = renamed(lines[at]);
        write(
            &copy_of.join(file),
            &[before.concat(), new, after.concat()].concat(),
        );
    }
    // This is the text that the edited script would write for the same formula.
    let oracle = "tests/golden/expanded_oracle.json";
    let mut json: serde_json::Value =
        serde_json::from_str(&read(&root.join(oracle))).expect("JSON");
    json["gates"][NEW] = json["gates"][OLD].clone();
    write(&copy_of.join(oracle), &json.to_string());
    // Runs the suite of every op, whose trials have the op's name, and the references.
    for (test, filter) in [
        ("reference", "every_op_has_an_oracle"),
        ("cpu", NEW),
        ("activations", NEW),
    ] {
        let output = Command::new(env!("CARGO"))
            .args([
                "test",
                "--offline",
                "--package",
                "xact-dev",
                "--test",
                test,
                "--",
                filter,
            ])
            .current_dir(&copy_of)
            .env("CARGO_TARGET_DIR", copy_of.join("target"))
            .env("NVCC", toolkit::find(env!("CARGO_TARGET_TMPDIR")))
            .env_remove("XACT_FULL")
            .output()
            .expect("cargo starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{test}: {said}{errors}");
        assert!(
            !said.contains("result: ok. 0 passed"),
            "{test} has no trial of {NEW}: {said}"
        );
    }
    let _ = fs::remove_dir_all(copy_of.join("target"));
}
