//! The steps that test the crate for candle. It is a separate package with its own lock file and target folder, so candle's
//! dependencies are not part of the workspace.

use std::path::PathBuf;

use anyhow::Context;

use crate::folders::Folders;
use crate::steps::{self, Step};
use crate::toolkit;

/// The target folder of the crate for candle and of its peer.
pub fn target(folders: &Folders) -> PathBuf {
    folders.target.join("candle")
}

/// The options with which cargo builds the package.
pub fn own_options(folders: &Folders) -> anyhow::Result<[String; 5]> {
    let text = |path: PathBuf| {
        let text = path.to_str().map(str::to_owned);
        text.with_context(|| format!("{} is no UTF-8", path.display()))
    };
    let manifest = text(folders.root.join("integrations/candle/Cargo.toml"))?;
    let target = text(target(folders))?;
    let word = str::to_owned;
    Ok([
        word("--locked"),
        word("--manifest-path"),
        manifest,
        word("--target-dir"),
        target,
    ])
}

/// The steps that lint and test the crate on the CPU. With `full`, they also type-check the CUDA code. For that, candle's
/// build compiles its own kernels, which takes minutes and needs an nvcc. The CUDA code is not linked, because that would
/// need the CUDA libraries.
pub fn steps(folders: &Folders, full: bool) -> anyhow::Result<Vec<Step>> {
    let own = own_options(folders)?;
    let step = |line: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        // Cargo's own options must precede the `--`.
        let end = words.iter().position(|word| *word == "--");
        let at = end.unwrap_or(words.len());
        words.splice(at..at, own.iter().map(String::as_str));
        Step::program(&steps::cargo(), words)
    };
    let clippy = |line: &str| step(line).needs("clippy", "clippy");
    let mut steps = vec![
        clippy("clippy --all-targets -- -D warnings"),
        step("test"),
        step("doc --no-deps").variable("RUSTDOCFLAGS", "-D warnings"),
    ];
    if full {
        let nvcc = toolkit::ensure(folders)?.nvcc;
        let cuda = clippy("clippy --features cuda --lib -- -D warnings");
        steps.push(
            cuda.variable("NVCC", nvcc.display().to_string())
                .variable("CUDA_COMPUTE_CAP", "80"),
        );
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_named_before_what_cargo_passes_on() {
        let folders = Folders {
            root: "/a b".into(),
            target: "/out".into(),
        };
        let steps = steps(&folders, false).expect("UTF-8");
        let lines: Vec<String> = steps.iter().map(Step::to_string).collect();
        let own =
            "--locked --manifest-path /a b/integrations/candle/Cargo.toml --target-dir /out/candle";
        assert_eq!(
            lines[0],
            format!("cargo clippy --all-targets {own} -- -D warnings")
        );
        assert_eq!(lines[1], format!("cargo test {own}"));
    }
}
