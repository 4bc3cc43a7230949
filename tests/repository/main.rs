//! The repository and the published packages: pages, packages, dependencies, layers.

mod dependencies;
mod docs;
mod layers;
#[cfg(unix)]
mod package;
