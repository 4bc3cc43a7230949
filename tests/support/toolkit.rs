//! The compiler of this build, for tests that compile.

use std::path::{Path, PathBuf};

#[allow(dead_code)] // the build script and xtask use all of it
#[path = "../../build/nvcc.rs"]
pub mod nvcc;

/// Its path.
pub fn find() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // CARGO_TARGET_TMPDIR is `<target>/tmp`.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target folder");
    let homes = [target, &root.join("target")].map(nvcc::own_home);
    let surroundings = nvcc::Surroundings::of_this_process(root, homes.into());
    let search = nvcc::find(&surroundings).expect("the variables are right");
    let (nvcc, _) = search.found.expect("nvcc: cargo xtask toolkit");
    nvcc
}
