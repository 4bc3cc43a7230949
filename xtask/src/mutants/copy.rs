//! Copies the workspace, including uncommitted changes.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The folders that are not copied: build output and the history.
const LEFT_OUT: [&str; 2] = ["target", ".git"];

/// Makes `to` equal to `from`, and returns a fingerprint of the files that can affect the results of mutants. A file that
/// is already equal is not written, so cargo rebuilds only what changed.
pub fn synchronise(from: &Path, to: &Path) -> anyhow::Result<u64> {
    let mut files = BTreeSet::new();
    list(from, Path::new(""), &mut files)?;
    let mut old = BTreeSet::new();
    if to.is_dir() {
        list(to, Path::new(""), &mut old)?;
    }
    for gone in old.difference(&files) {
        let path = to.join(gone);
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    let mut fingerprint = DefaultHasher::new();
    for file in &files {
        let (source, copy) = (from.join(file), to.join(file));
        let bytes = fs::read(&source).with_context(|| source.display().to_string())?;
        // Explanations and texts are not in the fingerprint, because they do not change the results.
        if !file.starts_with("xtask") && file.extension().is_none_or(|e| e != "md") {
            (file, &bytes).hash(&mut fingerprint);
        }
        if fs::read(&copy).is_ok_and(|there| there == bytes) {
            continue;
        }
        if let Some(parent) = copy.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        // The content is written anew instead of fs::copy, because cargo must see a new time of modification.
        fs::write(&copy, bytes).with_context(|| copy.display().to_string())?;
    }
    Ok(fingerprint.finish())
}

fn list(root: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    let path = root.join(folder);
    for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        let is_top = folder.as_os_str().is_empty();
        if is_top && LEFT_OUT.iter().any(|left_out| Path::new(left_out) == name) {
            continue;
        }
        if entry.path().is_dir() {
            list(root, &name, files)?;
        } else {
            files.insert(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn the_copy_follows_the_workspace_and_touches_only_what_changed() {
        let (from, to) = (Scratch::new(), Scratch::new());
        let to = to.path().join("tree");
        from.write("a/b.cu", "1");
        from.write("c.rs", "2");
        from.write("target/debug/big", "3");
        from.write(".git", "4");
        let first = synchronise(from.path(), &to).expect("copied");
        let read = |name: &str| fs::read_to_string(to.join(name)).ok();
        assert_eq!(read("a/b.cu").as_deref(), Some("1"));
        assert!(!to.join("target").exists() && !to.join(".git").exists());
        let written = |name: &str| {
            fs::metadata(to.join(name))
                .and_then(|m| m.modified())
                .expect("there")
        };
        let before = written("c.rs");
        // A file that a mutant has changed, a removed file and a new file.
        fs::write(to.join("a/b.cu"), "mutant").expect("written");
        assert_eq!(synchronise(from.path(), &to).expect("copied"), first);
        assert_eq!(read("a/b.cu").as_deref(), Some("1"));
        from.write("xtask/explanations", "of no weight");
        assert_eq!(synchronise(from.path(), &to).expect("copied"), first);
        fs::remove_file(from.path().join("a/b.cu")).expect("removed");
        from.write("a/d.cu", "5");
        assert_ne!(synchronise(from.path(), &to).expect("copied"), first);
        assert_eq!(
            (read("a/b.cu"), read("a/d.cu").as_deref()),
            (None, Some("5"))
        );
        assert_eq!(written("c.rs"), before);
    }
}
