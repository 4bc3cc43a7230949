//! The dependencies satisfy deny.toml: licences, versions and sources.
//!
//! This is a part of cargo-deny, which takes minutes to build: a failure here is a failure there too.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[test]
fn every_licence_is_allowed_and_needed() {
    let allowed = BTreeSet::from_iter(list("allow"));
    let mut needed = BTreeSet::new();
    for package in packages() {
        let name = &package["name"];
        let licence = package["license"].as_str().unwrap_or_default();
        // All of the licences that AND joins, and one of those that OR joins. There is no deeper nesting here.
        for part in licence.split(" AND ") {
            let choices: Vec<&str> = part
                .trim_matches(['(', ')'])
                .split(" OR ")
                .flat_map(|choice| choice.split('/'))
                .collect();
            assert!(
                choices.iter().any(|choice| allowed.contains(*choice)),
                "{name} has the licence {licence:?}: use another package, or allow it in deny.toml and say for which"
            );
            if let [only] = choices[..] {
                needed.insert(only.to_owned());
            }
        }
    }
    assert_eq!(allowed, needed, "deny.toml allows what nothing needs");
}

#[test]
fn what_is_there_in_several_versions_is_named() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let [name, version] = ["name", "version"].map(|key| text(&package[key]));
        versions.entry(name).or_default().insert(version);
    }
    // Each entry has its reason.
    let mut skips = list("skip");
    skips.retain(|word| word.contains('@'));
    for (name, versions) in versions {
        if versions.len() == 1 {
            continue;
        }
        let mut left = Vec::new();
        for version in versions {
            let is_it =
                |skip: &String| format!("{name}@{version}.").starts_with(&format!("{skip}."));
            match skips.iter().position(is_it) {
                Some(at) => drop(skips.remove(at)),
                None => left.push(version),
            }
        }
        assert!(
            left.len() < 2,
            "{name} is compiled in the versions {left:?}: choose dependencies that agree, or name all but one in \
             deny.toml, with the reason; cargo tree --invert {name}@VERSION says who asks"
        );
    }
    assert!(
        skips.is_empty(),
        "deny.toml names versions that are not there, or alone: {skips:?}"
    );
}

#[test]
fn every_dependency_has_a_version_and_comes_from_the_registry() {
    for package in packages() {
        let name = &package["name"];
        let source = package["source"].as_str();
        assert!(
            source.is_none_or(|source| source == REGISTRY),
            "{name} comes from {source:?}"
        );
        if source.is_some() {
            continue;
        }
        for dependency in package["dependencies"].as_array().expect("a list") {
            assert!(
                dependency["req"] != "*" || dependency["path"].is_string(),
                "{name} asks for {} in any version",
                dependency["name"]
            );
        }
    }
}

/// All packages of Cargo.lock.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(xact_dev::root())
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("a list").clone()
}

/// The quoted words of a list in deny.toml; none contains `#` or `]`.
fn list(key: &str) -> Vec<String> {
    let file = xact_dev::root().join("deny.toml");
    let rules = std::fs::read_to_string(file).expect("deny.toml");
    let rules: String = rules
        .lines()
        .filter_map(|line| line.split('#').next())
        .collect();
    let (_, rest) = rules
        .split_once(&format!("{key} = ["))
        .unwrap_or_else(|| panic!("deny.toml has no list {key}"));
    let (words, _) = rest.split_once(']').expect("the end of the list");
    let words = words.split('"').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}
