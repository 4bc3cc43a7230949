//! The nvcc of this build, for tests that compile.

use std::path::{Path, PathBuf};

use super::build::nvcc;

/// The path of nvcc; `tmp` is cargo's `CARGO_TARGET_TMPDIR`, which only tests have.
///
/// # Panics
/// If there is no nvcc.
pub fn find(tmp: &str) -> PathBuf {
    let root = super::root();
    // `tmp` is `<target>/tmp`.
    let target = Path::new(tmp).parent().expect("the target folder");
    let homes = [target, &root.join("target")].map(nvcc::own_home);
    let surroundings = nvcc::Surroundings::of_this_process(root, homes.into());
    let search = nvcc::find(&surroundings).expect("the variables are right");
    let (nvcc, _) = search.found.expect("nvcc: cargo xtask toolkit");
    nvcc
}
