//! What is read in the repository and what is published of it: pages, packages, dependencies, layers.

mod dependencies;
mod docs;
mod layers;
#[cfg(unix)]
mod package;
