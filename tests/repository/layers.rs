//! The files of `src` use each other in one direction: a cycle of imports fails.
//!
//! A file uses another if a path in it (in a `use`, or anywhere in code) names an item that the other defines; re-exports
//! are followed to that file. `mod` and `pub use` are no uses. An import of a module is no use either, but the paths
//! through it are. A parent whose items a child names is used by the child.
//!
//! The analysis is simpler than the compiler's, and sufficient here:
//! - The modules are the files, so a module that a macro declares is found.
//! - `use m::*` uses the file of `m`, and brings the items of `m` into scope.
//! - In the tokens of macros, only paths of two or more segments count.
//! - A name that is not found in a module comes from a macro. It belongs to the child that defines it, or to a module
//!   that is imported with `*`, or else to the module itself.
//! - Code under `#[cfg(test)]`, links in documentation and methods do not count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use syn::visit::{self, Visit};

/// A path in code, or the path of a module from the root of the crate.
type Segments = Vec<String>;

/// A module: a file, or a `mod` with a body.
#[derive(Default)]
struct Module {
    /// The file of the module.
    file: String,
    /// The names that the module defines (`None`) and imports (`Some`).
    names: BTreeMap<String, Option<Segments>>,
    /// The modules that are imported with `*`.
    globs: Vec<Segments>,
    /// The paths in the code, without those of `pub use`.
    paths: Vec<Segments>,
}

/// The target of a path.
enum Target {
    Module(Segments),
    Item(String),
}

#[derive(Default)]
struct Modules(BTreeMap<Segments, Module>);

/// Reads one file.
struct Reader<'a> {
    modules: &'a mut Modules,
    file: &'a str,
    at: Segments,
}

impl Reader<'_> {
    fn module(&mut self) -> &mut Module {
        let module = self.modules.0.entry(self.at.clone()).or_default();
        self.file.clone_into(&mut module.file);
        module
    }

    fn import(&mut self, tree: &syn::UseTree, mut path: Segments, is_public: bool) {
        let (name, path) = match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                return self.import(&part.tree, path, is_public);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, path.clone(), is_public);
                }
                return;
            }
            syn::UseTree::Glob(_) => {
                self.module().globs.push(path.clone());
                path.push("*".into());
                (None, path)
            }
            syn::UseTree::Name(part) => {
                if part.ident != "self" {
                    path.push(part.ident.to_string());
                }
                (path.last().cloned(), path)
            }
            syn::UseTree::Rename(part) => {
                if part.ident != "self" {
                    path.push(part.ident.to_string());
                }
                (Some(part.rename.to_string()), path)
            }
        };
        if let Some(name) = name {
            self.module().names.insert(name, Some(path.clone()));
        }
        if !is_public {
            self.module().paths.push(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        use syn::Item::*;
        let (attributes, name) = match item {
            Const(item) => (&item.attrs, Some(&item.ident)),
            Enum(item) => (&item.attrs, Some(&item.ident)),
            Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Macro(item) => (&item.attrs, item.ident.as_ref()),
            Static(item) => (&item.attrs, Some(&item.ident)),
            Struct(item) => (&item.attrs, Some(&item.ident)),
            Trait(item) => (&item.attrs, Some(&item.ident)),
            Type(item) => (&item.attrs, Some(&item.ident)),
            Union(item) => (&item.attrs, Some(&item.ident)),
            Impl(item) => (&item.attrs, None),
            Mod(item) => (&item.attrs, None),
            Use(item) => (&item.attrs, None),
            _ => return visit::visit_item(self, item),
        };
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|option| option.is_ident("test"))
        };
        if attributes.iter().any(is_test) {
            return;
        }
        if let Some(name) = name {
            self.module().names.insert(name.to_string(), None);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_some() {
            self.at.push(item.ident.to_string());
            self.module();
            visit::visit_item_mod(self, item);
            self.at.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_public = !matches!(item.vis, syn::Visibility::Inherited);
        self.import(&item.tree, Segments::new(), is_public);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let segments = path.segments.iter().map(|part| part.ident.to_string());
            let segments = segments.collect();
            self.module().paths.push(segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        let text = item.tokens.to_string().replace(" :: ", "::");
        for word in text.split(|c: char| !(c.is_alphanumeric() || "_:".contains(c))) {
            let segments: Segments = word
                .split("::")
                .map_while(|part| (!part.is_empty()).then(|| part.to_owned()))
                .collect();
            if segments.len() > 1 {
                self.module().paths.push(segments);
            }
        }
    }

    /// The path in `pub(in path)` uses nothing.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}
}

impl Modules {
    /// Reads files, given by their paths in `src` and their texts.
    fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Modules {
        let mut modules = Modules::default();
        for (file, text) in files {
            let stem = file.strip_suffix(".rs").expect("a Rust file");
            let mut at: Segments = stem.split('/').map(str::to_owned).collect();
            at.pop_if(|last| *last == "mod" || (*last == "lib" && stem == "lib"));
            let syntax = syn::parse_file(text).unwrap_or_else(|e| panic!("{file}: {e}"));
            let mut reader = Reader {
                modules: &mut modules,
                file,
                at,
            };
            reader.module();
            reader.visit_file(&syntax);
        }
        modules
    }

    /// The target of `path` in the module `at`; `None` if it is outside the crate.
    fn resolve(&self, at: &[String], path: &[String], depth: usize) -> Option<Target> {
        let mut here = at.to_vec();
        let mut is_bare = true;
        for (i, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" => here.clear(),
                "super" => drop(here.pop()),
                "self" => {}
                "*" => return Some(Target::Item(self.0.get(&here)?.file.clone())),
                _ => {
                    let is_last = i + 1 == path.len();
                    match self.step(&here, name, is_bare, is_last, depth)? {
                        Target::Module(module) => here = module,
                        item => return Some(item),
                    }
                }
            }
            is_bare = false;
        }
        Some(Target::Module(here))
    }

    /// The target of `name` in a module. `is_bare` is whether `name` is the first segment.
    fn step(
        &self,
        at: &[String],
        name: &str,
        is_bare: bool,
        is_last: bool,
        depth: usize,
    ) -> Option<Target> {
        // An import that refers to itself: `use x::x`, where x is another crate.
        let depth = depth.checked_sub(1)?;
        let module = self.0.get(at)?;
        let child = [at, &[name.to_owned()]].concat();
        let is_module = self.0.contains_key(&child);
        // A module and an item may have the same name; only the module can have further segments.
        match module.names.get(name) {
            _ if is_module && !is_last => return Some(Target::Module(child)),
            Some(None) => return Some(Target::Item(module.file.clone())),
            // Not the import of a macro that is defined in this module.
            Some(Some(path)) if path != &[name.to_owned()] => {
                return self.resolve(at, path, depth);
            }
            _ if is_module => return Some(Target::Module(child)),
            _ => {}
        }
        let globs = module
            .globs
            .iter()
            .filter_map(|glob| match self.resolve(at, glob, depth)? {
                Target::Module(from) => Some(from),
                Target::Item(_) => None,
            });
        let globs: Vec<Segments> = globs.collect();
        let in_globs = globs
            .iter()
            .find_map(|from| self.step(from, name, true, is_last, depth));
        if in_globs.is_some() || is_bare {
            return in_globs;
        }
        let defines = |(path, child): &(&Segments, &Module)| {
            path.len() == at.len() + 1
                && path.starts_with(at)
                && child.names.get(name) == Some(&None)
        };
        let child = self.0.iter().find(defines).map(|(_, child)| child);
        let maker = child.or_else(|| self.0.get(globs.first()?));
        Some(Target::Item(maker.unwrap_or(module).file.clone()))
    }

    /// The files that each file uses, each with a path as evidence.
    fn uses(&self) -> BTreeMap<&str, BTreeMap<String, String>> {
        let mut uses: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
        for (at, module) in &self.0 {
            for path in &module.paths {
                if let Some(Target::Item(file)) = self.resolve(at, path, 16)
                    && file != module.file
                {
                    let used = uses.entry(&module.file).or_default();
                    used.entry(file).or_insert_with(|| path.join("::"));
                }
            }
        }
        uses
    }

    /// The files that are in cycles, and the shortest cycle, one line per step.
    fn circle(&self) -> Option<String> {
        let uses = self.uses();
        let circles: Vec<_> = uses
            .keys()
            .filter_map(|file| way_back(&uses, file))
            .collect();
        let shortest = circles.iter().min_by_key(|circle| circle.len())?;
        let files: Vec<_> = circles.iter().map(|circle| circle[0]).collect();
        let mut text = format!(
            "{} files are in circles: {}\n",
            files.len(),
            files.join(" ")
        );
        text += "The shortest:\n";
        for step in shortest.windows(2) {
            let path = &uses[step[0]][step[1]];
            text += &format!("  {} uses {path} of {}\n", step[0], step[1]);
        }
        Some(text)
    }
}

/// The shortest cycle through a file.
fn way_back<'a>(
    uses: &'a BTreeMap<&str, BTreeMap<String, String>>,
    start: &'a str,
) -> Option<Vec<&'a str>> {
    let mut queue = VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = queue.pop_front() {
        for next in uses.get(way[way.len() - 1]).into_iter().flatten() {
            let way = [way.as_slice(), &[next.0.as_str()]].concat();
            if next.0 == start {
                return Some(way);
            }
            if seen.insert(next.0) {
                queue.push_back(way);
            }
        }
    }
    None
}

/// The files of this crate, by their paths in `src`.
fn sources() -> BTreeMap<String, String> {
    fn list(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
        for entry in folder.read_dir().expect("a folder") {
            let path = entry.expect("readable").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            let name = format!("{prefix}{name}");
            if path.is_dir() {
                list(&path, &format!("{name}/"), files);
            } else if name.ends_with(".rs") {
                files.insert(name, std::fs::read_to_string(&path).expect("UTF-8"));
            }
        }
    }
    let mut files = BTreeMap::new();
    let folder = xact_dev::root().join("src");
    list(&folder, "", &mut files);
    files
}

#[test]
fn no_file_uses_what_uses_it() {
    let files = sources();
    let modules = Modules::of(files.iter().map(|(file, text)| (&**file, &**text)));
    assert!(modules.uses().len() > 20, "paths are found");
    if let Some(circle) = modules.circle() {
        panic!("{circle}");
    }
}

/// The code for the device is in one folder, so that few places need the feature.
#[test]
fn few_lines_ask_for_cuda() {
    let files = sources();
    let asks = |text: &str| {
        text.lines()
            .filter(|line| line.contains("feature = \"cuda\""))
            .count()
    };
    let found: Vec<_> = files
        .iter()
        .map(|(file, text)| (file, asks(text)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let lines: usize = found.iter().map(|(_, count)| count).sum();
    assert!(lines <= 8, "{lines} lines: {found:?}");
}

/// `from file → to file` of everything in these files.
fn uses(files: &[(&str, &str)]) -> Vec<String> {
    let modules = Modules::of(files.iter().copied());
    let uses = modules.uses();
    let pairs = uses
        .iter()
        .flat_map(|(from, to)| to.keys().map(move |to| (from, to)));
    pairs.map(|(from, to)| format!("{from} → {to}")).collect()
}

#[test]
fn a_circle_is_found_and_told_as_a_way() {
    let modules = Modules::of([
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "pub struct B; fn f() { crate::c::g() }"),
        ("c.rs", "pub fn g() { let _: super::a::A; }"),
    ]);
    let circle = modules.circle().expect("a circle");
    let expected = "3 files are in circles: a.rs b.rs c.rs\nThe shortest:\n  a.rs uses crate::b::B of b.rs\n  \
        b.rs uses crate::c::g of c.rs\n  c.rs uses super::a::A of a.rs\n";
    assert_eq!(circle, expected);
    let none = Modules::of([
        ("lib.rs", "mod a; pub use a::A;"),
        ("a.rs", "pub struct A;"),
    ]);
    assert!(none.circle().is_none());
}

#[test]
fn re_exports_lead_to_the_file_that_defines() {
    let files = [
        ("lib.rs", "pub mod ops; mod error; pub use error::Error;"),
        ("error.rs", "pub enum Error { No }"),
        (
            "ops/mod.rs",
            "mod one; pub use one::{One as First, two}; pub use one::*;",
        ),
        (
            "ops/one.rs",
            "pub struct One; pub fn two() -> crate::Error {} pub const THREE: u8 = 3;",
        ),
        ("user.rs", "use crate::ops::First; use crate::Error::No;"),
        ("glob.rs", "fn f() { crate::ops::THREE; }"),
    ];
    let expected = [
        "glob.rs → ops/one.rs",
        "ops/one.rs → error.rs",
        "user.rs → error.rs",
        "user.rs → ops/one.rs",
    ];
    assert_eq!(uses(&files), expected);
}

#[test]
fn a_child_that_names_its_parent_uses_it() {
    let files = [
        ("lib.rs", "mod a;"),
        ("a.rs", "mod child; pub struct A; fn f() { child::g() }"),
        ("a/child.rs", "pub fn g() { super::A; }"),
    ];
    assert_eq!(uses(&files), ["a.rs → a/child.rs", "a/child.rs → a.rs"]);
    // Names that the parent only imports are not the parent's.
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B; mod child;"),
        ("a/child.rs", "use super::B;"),
        ("b.rs", "pub struct B;"),
    ];
    assert_eq!(uses(&files), ["a.rs → b.rs", "a/child.rs → b.rs"]);
}

#[test]
fn what_only_declares_or_tests_uses_nothing() {
    let files = [
        (
            "lib.rs",
            "pub mod a; pub use a::{A, b}; pub(crate) use a::c;",
        ),
        (
            "a.rs",
            "pub struct A; pub fn b() {} pub(crate) fn c() {} pub(in crate::a) fn e() {}
            #[cfg(test)] mod tests { use crate::D; }
            /// [`D`](crate::D)
            #[cfg(test)] use crate::D as E; use std::fmt; use crate::d;",
        ),
        ("d.rs", "pub struct D;"),
    ];
    assert_eq!(uses(&files), [""; 0]);
    // A name that is re-exported and used counts as a use.
    let files = [
        ("lib.rs", "mod a; pub use a::A; type B = A;"),
        ("a.rs", "pub struct A;"),
    ];
    assert_eq!(uses(&files), ["lib.rs → a.rs"]);
}

#[test]
fn the_bodies_of_macros_count_and_what_they_declare_is_found() {
    let files = [
        (
            "lib.rs",
            "mod ops; macro_rules! m { () => { $crate::b::B; } }",
        ),
        (
            "ops/mod.rs",
            "macro_rules! list { ($s:ident: $O:ident) => { pub mod $s; pub use $s::$O; } } list!(one: One);",
        ),
        (
            "ops/one.rs",
            "pub struct One; fn f() { println!(\"{}\", crate::b::B); }",
        ),
        ("b.rs", "pub struct B; fn f(_: crate::ops::One) {}"),
    ];
    let expected = ["b.rs → ops/one.rs", "lib.rs → b.rs", "ops/one.rs → b.rs"];
    assert_eq!(uses(&files), expected);
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "pub use crate::b::*;"),
        ("b.rs", "include!(\"made.rs\");"),
        ("c.rs", "use crate::a::Made;"),
    ];
    assert_eq!(uses(&files), ["c.rs → b.rs"]);
}

#[test]
fn modules_within_a_file_and_imported_modules_are_seen_through() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "pub mod inner { pub trait T {} pub struct S(super::X); } struct X;",
        ),
        (
            "b.rs",
            "use crate::a::inner::{self, T as _}; fn f(_: inner::S) {}",
        ),
        ("c.rs", "use crate::a::inner as it; use it::*;"),
        ("d.rs", "use super::a; fn f(a: &[u8]) { a.len(); }"),
    ];
    assert_eq!(uses(&files), ["b.rs → a.rs", "c.rs → a.rs"]);
}
