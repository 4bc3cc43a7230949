//! The texts that are read outside the repository (on docs.rs and in the package), and the main pages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Texts on docs.rs or in the package, in which a relative link into the repository would not work.
const PUBLISHED: [&str; 7] = [
    "README.md",
    "docs/accuracy.md",
    "docs/building.md",
    "docs/gpu-day.md",
    "docs/losses.md",
    "docs/performance.md",
    "docs/pitfalls.md",
];

/// Texts that are read in the repository.
const OF_THE_REPOSITORY: [&str; 6] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/huggingface.md",
    "docs/memorisation.md",
];

/// The files that may contain the placeholder for the address of the repository.
const PLACEHOLDER: &str = "https://example.invalid";

fn read(file: &str) -> String {
    let path = xact_dev::root().join(file);
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The targets of the links of a page.
fn links(page: &str) -> Vec<String> {
    let text = read(page);
    let targets = text.split("](").skip(1);
    let targets = targets.map(|rest| rest.split([')', '\n']).next().unwrap_or_default());
    targets.map(str::to_owned).collect()
}

#[test]
fn pages_link_to_what_is_there() {
    let root = xact_dev::root();
    let files = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/");
    for page in PUBLISHED {
        for target in links(page) {
            let is_absolute = target.starts_with("https://") || target.starts_with('#');
            assert!(is_absolute, "{page}: {target}");
            if let Some(file) = target.strip_prefix(files) {
                assert!(root.join(file).exists(), "{page}: there is no {file}");
            }
        }
    }
    for page in OF_THE_REPOSITORY {
        let folder = root.join(page);
        let folder = folder.parent().expect("a page is in a folder");
        for target in links(page) {
            let is_there = target.starts_with("https://") || folder.join(&target).exists();
            assert!(is_there, "{page}: there is no {target}");
        }
    }
}

/// Cargo.toml has the placeholder, with a mark that names the other places to replace it.
#[test]
fn the_address_of_the_repository_is_one() {
    assert_eq!(
        env!("CARGO_PKG_REPOSITORY"),
        env!("CARGO_PKG_HOMEPAGE"),
        "Cargo.toml"
    );
    let pages = PUBLISHED.iter().chain(&OF_THE_REPOSITORY);
    for page in pages.chain(&["Cargo.toml"]) {
        for (at, _) in read(page).match_indices(PLACEHOLDER) {
            let rest = &read(page)[at..];
            assert!(
                rest.starts_with(env!("CARGO_PKG_REPOSITORY")),
                "{page} names another address of the repository than Cargo.toml: {}",
                rest.lines().next().unwrap_or_default()
            );
        }
    }
}

#[test]
fn readme_installs_this_version_with_the_least_rust() {
    let minor = concat!(
        env!("CARGO_PKG_VERSION_MAJOR"),
        ".",
        env!("CARGO_PKG_VERSION_MINOR")
    );
    for line in [
        format!("\nxact = \"{minor}\"\n"),
        format!("Rust {} and later", env!("CARGO_PKG_RUST_VERSION")),
    ] {
        assert!(
            read("README.md").contains(&line),
            "README.md has no {line:?}"
        );
    }
}

/// The line for cudarc in README.md has the features of the crate's own dependency.
#[test]
fn readme_has_the_features_of_cudarc_that_the_manifest_has() {
    let features = |file| {
        let text = read(file);
        let (_, line) = text.split_once("\ncudarc = {").expect("a line of cudarc");
        let (_, list) = line.split_once("features = [").expect("its features");
        list.split(']').next().map(str::to_owned)
    };
    assert_eq!(features("README.md"), features("Cargo.toml"));
}

/// ARCHITECTURE.md lists every file with unsafe code, for reviewers.
#[test]
fn architecture_names_every_file_with_unsafe_code() {
    fn list(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                list(&path, files);
            } else if read(path.to_str().expect("UTF-8")).contains("allow(unsafe_code)") {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    list(&xact_dev::root().join("src"), &mut files);
    let page = read("ARCHITECTURE.md");
    let (_, section) = page
        .split_once("## Where unsafe code is")
        .expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let named: BTreeSet<&str> = section.split('`').skip(1).step_by(2).collect();
    let found: BTreeSet<String> = files
        .iter()
        .map(|file| file.strip_prefix(xact_dev::root()).expect("of ours"))
        .map(|file| file.to_str().expect("UTF-8").to_owned())
        .collect();
    assert_eq!(named, found.iter().map(|file| &**file).collect());
}
