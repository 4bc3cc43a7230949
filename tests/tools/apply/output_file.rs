//! Special files, links and permissions of the output file.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

use super::activations::forward_input;
use super::*;

const FORWARD: [&str; 4] = ["--direction", "forward", "--device", "reference"];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Runs a forward with a umask of 022.
fn run(scratch: &Scratch) -> Output {
    let apply = apply();
    Command::new("sh")
        .args(["-c", "umask 022; exec \"$@\"", "sh"])
        .arg(apply.get_program())
        .args(["xielu", "--input"])
        .arg(scratch.path("in.safetensors"))
        .arg("--output")
        .arg(scratch.path("out.safetensors"))
        .args(FORWARD)
        .output()
        .unwrap()
}

#[test]
fn has_the_usual_mode_or_keeps_its_own() {
    let scratch = Scratch::new();
    scratch.write(&forward_input::<f32>());
    let out = scratch.path("out.safetensors");
    assert!(run(&scratch).status.success());
    assert_eq!(mode(&out), 0o644);
    fs::set_permissions(&out, Permissions::from_mode(0o664)).unwrap();
    assert!(run(&scratch).status.success());
    assert_eq!(mode(&out), 0o664);
    // No other file is left in the folder.
    assert_eq!(fs::read_dir(scratch.folder.path()).unwrap().count(), 2);
}

#[test]
fn is_written_where_a_link_leads() {
    let scratch = Scratch::new();
    scratch.write(&forward_input::<f32>());
    let (link, target) = (scratch.path("out.safetensors"), scratch.path("real/file"));
    fs::create_dir(scratch.path("real")).unwrap();
    fs::write(&target, b"old").unwrap();
    symlink("real/file", &link).unwrap();
    assert!(run(&scratch).status.success());
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert!(read(&target).contains_key("y"));
    // The target need not exist.
    fs::remove_file(&target).unwrap();
    assert!(run(&scratch).status.success());
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert!(read(&target).contains_key("y"));
    // Or cannot exist.
    fs::remove_file(&link).unwrap();
    symlink("out.safetensors", &link).unwrap();
    let output = run(&scratch);
    assert_eq!(output.status.code(), Some(2));
    assert!(link.symlink_metadata().unwrap().is_symlink());
}

#[test]
fn is_refused_if_it_is_no_file() {
    let scratch = Scratch::new();
    scratch.write(&forward_input::<f32>());
    let (out, fifo) = (scratch.path("out.safetensors"), scratch.path("fifo"));
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let refused = || {
        let output = run(&scratch);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("not a regular file"), "{text}");
    };
    symlink("fifo", &out).unwrap();
    refused();
    assert!(out.symlink_metadata().unwrap().is_symlink());
    fs::remove_file(&out).unwrap();
    fs::rename(&fifo, &out).unwrap();
    refused();
    assert!(fs::metadata(&out).unwrap().file_type().is_fifo());
    fs::remove_file(&out).unwrap();
    fs::create_dir(&out).unwrap();
    refused();
}
