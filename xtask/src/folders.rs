//! The folders of the workspace and of its build output.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The two folders that all other paths are relative to.
pub struct Folders {
    /// The root of the workspace.
    pub root: PathBuf,
    /// Cargo's target folder, absolute.
    pub target: PathBuf,
}

impl Folders {
    /// The folders of the cargo invocation that started this process.
    pub fn of_this_process() -> anyhow::Result<Self> {
        // `cargo run` sets the variable, which is correct even if the checkout was moved after the build.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package
            .parent()
            .context("the package folder has no parent")?;
        let executable = env::current_exe().context("the path of xtask itself is unknown")?;
        let target = target_of(&executable)
            .with_context(|| format!("{} is in no target folder", executable.display()))?;
        Ok(Self {
            root: root.to_path_buf(),
            target,
        })
    }
}

/// The target folder that contains `executable`. It is found from the path, because CARGO_TARGET_DIR may be relative to
/// another folder, and cargo sets no variable for `build.target-dir` in its configuration.
fn target_of(executable: &Path) -> Option<PathBuf> {
    // The path is `<target>/<profile>/xtask`, or `<target>/<triple>/<profile>/xtask` if a triple is configured. Cargo
    // writes these files to the target folder.
    let marked = executable.ancestors().skip(1).take(4).find(|folder| {
        folder.join(".rustc_info.json").is_file() || folder.join("CACHEDIR.TAG").is_file()
    });
    marked
        .or_else(|| executable.parent()?.parent())
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn the_target_folder_is_the_marked_one() {
        let scratch = Scratch::new();
        scratch.write("out/CACHEDIR.TAG", "");
        for executable in [
            "out/debug/xtask",
            "out/x86_64-unknown-linux-gnu/debug/xtask",
        ] {
            let target = target_of(&scratch.path().join(executable));
            assert_eq!(
                target,
                Some(scratch.path().join("out")),
                "executable: {executable}"
            );
        }
    }

    #[test]
    fn an_unmarked_target_folder_is_two_up() {
        let scratch = Scratch::new();
        let target = target_of(&scratch.path().join("out/debug/xtask"));
        assert_eq!(target, Some(scratch.path().join("out")));
    }
}
