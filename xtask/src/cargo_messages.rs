//! Reads cargo's messages (`--message-format=json`).

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{jobs, steps};

/// Builds targets of `xact-dev` with kernels, and returns cargo's messages; `prepare` adds the targets and the options.
pub fn of_building<'a>(
    arguments: impl IntoIterator<Item = &'a str>,
    prepare: impl FnOnce(&mut Command),
) -> anyhow::Result<String> {
    let mut command = Command::new(steps::cargo());
    command
        .args(arguments)
        .args(["--package", "xact-dev"])
        .arg("--message-format=json-render-diagnostics")
        .env(jobs::REQUIRE.0, jobs::REQUIRE.1)
        .stderr(Stdio::inherit());
    prepare(&mut command);
    let output = command.output().context("cargo does not start")?;
    ensure!(output.status.success(), "xact does not build");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The output folder of xact's build script.
pub fn out_folder(messages: &str) -> Option<PathBuf> {
    let mut folders = of(messages, "build-script-executed").filter_map(|message| {
        let is_xact = is_xact(message["package_id"].as_str()?);
        is_xact.then_some(PathBuf::from(message["out_dir"].as_str()?))
    });
    folders.next()
}

/// The executable of the target `name` of kind `kind`: `test`, `bench` or `bin`.
pub fn executable(messages: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let mut executables = of(messages, "compiler-artifact").filter_map(|message| {
        let target = &message["target"];
        let is_it = target["name"] == name && target["kind"][0] == kind;
        is_it.then_some(PathBuf::from(message["executable"].as_str()?))
    });
    executables.next()
}

fn of<'a>(messages: &'a str, reason: &'a str) -> impl Iterator<Item = Value> + 'a {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    messages.filter(move |message: &Value| message["reason"] == reason)
}

/// Whether a package id is xact's: `path+file:///somewhere#xact@0.1.0`, or `…/xact#0.1.0` if the folder has the same name.
fn is_xact(package: &str) -> bool {
    package.rsplit_once('#').is_some_and(|(place, version)| {
        place.starts_with("path+")
            && (version.starts_with("xact@") || !version.contains('@') && place.ends_with("/xact"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_script_is_found() {
        let message = |package: &str, out: &str| {
            format!(
                r#"{{"reason":"build-script-executed","package_id":"{package}","out_dir":"{out}"}}"#
            )
        };
        let others = [
            message(
                "registry+https://example.invalid/index#xact@9.9.9",
                "/registry",
            ),
            message("path+file:///w/emulator#cuda-emulator@0.1.0", "/emulator"),
            message("path+file:///w/tools#xact-dev@0.1.0", "/tools"),
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w#xact@0.1.0"}"#.to_owned(),
        ]
        .join("\n");
        assert_eq!(out_folder(&others), None);
        for package in ["path+file:///w#xact@0.1.0", "path+file:///w/xact#0.1.0"] {
            let messages = format!("{others}\n{}", message(package, "/out"));
            assert_eq!(out_folder(&messages), Some(PathBuf::from("/out")));
        }
    }

    #[test]
    fn the_test_is_found() {
        let message = |kind: &str, name: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":"/deps/{name}"}}"#
            )
        };
        let messages = [message("bin", "activations"), message("test", "api")].join("\n");
        assert_eq!(executable(&messages, "test", "activations"), None);
        let messages = messages + "\n" + &message("test", "activations");
        let expected = PathBuf::from("/deps/activations");
        assert_eq!(executable(&messages, "test", "activations"), Some(expected));
    }
}
