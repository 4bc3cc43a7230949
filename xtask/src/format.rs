//! Formats all Rust and CUDA sources in the tree.
//!
//! `cargo fmt` follows `mod` lines, so it finds neither files that a macro declares nor crates outside the workspace. This
//! module walks the folders instead, which also works without git.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{fs, process};

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;

use crate::folders::Folders;
use crate::toolkit::install::{Removed, pip_install, python_with_pip};

/// The pinned package, as a requirements file of pip.
const PACKAGES: &str = include_str!("format/packages.txt");

/// The languages that can be formatted.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Language {
    /// Formatted with the toolchain's rustfmt.
    Rust,
    /// Formatted with a pinned clang-format.
    Cuda,
}

impl Language {
    fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Rust => &["rs"],
            Self::Cuda => &["cu", "cuh"],
        }
    }

    /// The command of the formatter, without the files.
    fn command(self, folders: &Folders, check: bool) -> anyhow::Result<Command> {
        Ok(match self {
            Self::Rust => {
                let mut command = Command::new("rustfmt");
                command.args(check.then_some("--check"));
                command
            }
            Self::Cuda => {
                let mut command = Command::new(clang_format(&folders.target)?);
                if check {
                    command.args(["--dry-run", "--Werror"]);
                } else {
                    command.arg("-i");
                }
                command
            }
        })
    }
}

/// Formats the sources of one language or of both, or checks that they are formatted.
pub fn run(folders: &Folders, only: Option<Language>, check: bool) -> anyhow::Result<ExitCode> {
    let all = [Language::Rust, Language::Cuda];
    let mut passed = true;
    for language in all.into_iter().filter(|l| only.is_none_or(|o| o == *l)) {
        let mut files = Vec::new();
        list(&folders.root, language.extensions(), &mut files)?;
        files.sort();
        let mut command = language.command(folders, check)?;
        let status = command.current_dir(&folders.root).args(&files).status();
        passed &= status
            .with_context(|| format!("{} does not start", command.get_program().display()))?
            .success();
    }
    if check && !passed {
        eprintln!("To format the sources: cargo xtask fmt");
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The reason why the CUDA sources cannot be checked: clang-format is missing and cannot be installed. `None` if they can.
pub fn why_not(folders: &Folders) -> Option<String> {
    let error = clang_format(&folders.target).err()?;
    Some(format!("{error:#}"))
}

/// The files with these extensions below `folder`, except in build output and hidden folders.
fn list(folder: &Path, extensions: &[&str], files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let is_build_output = path.join("CACHEDIR.TAG").exists() || name == "target";
        if is_build_output || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            list(&path, extensions, files)?;
        } else if path
            .extension()
            .is_some_and(|end| extensions.iter().any(|e| end == *e))
        {
            files.push(path);
        }
    }
    Ok(())
}

/// The pinned clang-format: from PATH if it has the pinned release, else from the target folder. If it is missing there, it
/// is installed from PyPI.
fn clang_format(target: &Path) -> anyhow::Result<PathBuf> {
    let pin = PACKAGES.lines().find_map(|line| line.split_once("=="));
    let (_, version) = pin.context("no release is pinned")?;
    let version = version.trim_end_matches(" \\");
    let is_pinned = |program: &Path| {
        let output = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        output.is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.split_whitespace().any(|word| word == version)
        })
    };
    let place = target.join("clang-format");
    let installed = place.join("clang_format/data/bin/clang-format");
    for program in [Path::new("clang-format"), &installed] {
        if is_pinned(program) {
            return Ok(program.to_owned());
        }
    }
    let failed = |error: anyhow::Error| {
        anyhow!(
            "clang-format {version} is neither on PATH nor under the target folder, and cannot be installed: {error:#}"
        )
    };
    eprintln!(
        "Installing clang-format {version} from PyPI into {}: a download of 2 MB, under the Apache License 2.0.",
        place.display()
    );
    install(target, &place).map_err(failed)?;
    if !is_pinned(&installed) {
        bail!("{} does not run", installed.display());
    }
    Ok(installed)
}

/// Installs the package into a temporary folder beside `place`, and renames that to `place`.
fn install(target: &Path, place: &Path) -> anyhow::Result<()> {
    let stage = target.join(format!("clang-format.partial.{}", process::id()));
    fs::create_dir_all(&stage).with_context(|| format!("{} cannot be created", stage.display()))?;
    let _removed = Removed(stage.clone());
    let python = python_with_pip(&stage)?;
    let packages = pip_install(&stage, &python, PACKAGES)?;
    if place.exists() {
        fs::remove_dir_all(place).with_context(|| place.display().to_string())?;
    }
    fs::rename(packages, place).with_context(|| place.display().to_string())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn every_source_is_listed_and_no_build_output() {
        let scratch = Scratch::new();
        for file in [
            "src/a.rs",
            "src/deep/er/b.rs",
            "kernels/c.cu",
            "target/d.rs",
            "peer/target/e.rs",
            "out/CACHEDIR.TAG",
            "out/f.rs",
            ".git/g.rs",
            "h.rst",
        ] {
            scratch.write(file, "");
        }
        let mut files = Vec::new();
        list(scratch.path(), &["rs"], &mut files).expect("readable");
        files.sort();
        let expected = ["src/a.rs", "src/deep/er/b.rs"].map(|file| scratch.path().join(file));
        assert_eq!(files, expected);
    }

    #[test]
    fn the_installed_release_is_used_only_if_it_is_the_pinned_one() {
        let scratch = Scratch::new();
        let path = "clang-format/clang_format/data/bin/clang-format";
        let program = scratch.script(path, "echo clang-format version 20.1.7");
        let found = clang_format(scratch.path()).expect("is there");
        assert!(found == program || found == Path::new("clang-format"));
    }
}
