//! `verify`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// `verify --device cpu` runs every op, and names the backend.
#[test]
fn the_cpu_backend_is_verified() {
    // Activations have all forms and directions of every sample; losses have directions or ids, times their options.
    for (op, dtype, rows) in [
        ("xsilu", "bf16", 36),
        ("cross_entropy", "bf16", 9),
        ("goldfish", "i32", 6),
    ] {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_verify"));
        verify.args(["--device", "cpu", "--json", "--op", op, "--dtype", dtype]);
        let output = verify.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.lines().count() == rows,
            "{text}"
        );
        assert!(
            text.lines().all(|l| l.contains("the CPU backend")),
            "{text}"
        );
    }
}

/// `verify --json | head -1`.
#[test]
fn verify_stops_quietly_when_its_reader_has_gone() {
    let mut verify = Command::new(env!("CARGO_BIN_EXE_verify"))
        .args(["--json", "--op", "xielu", "--dtype", "f16"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // The reader is dropped after one line, which closes the pipe.
    BufReader::new(verify.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(
        line.starts_with('{') && line.contains("\"xielu\""),
        "{line}"
    );
    let output = verify.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.is_empty(), "{text}");
}
