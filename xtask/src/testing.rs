//! Temporary folders for the unit tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

/// A new empty folder, which is removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates the folder.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("xtask-test-{}-{count}", process::id()));
        fs::create_dir_all(&folder).expect("temporary folder");
        Self(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file, creates its parent folders, and returns its path.
    pub fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.join(path);
        let parent = path.parent().expect("a parent");
        fs::create_dir_all(parent).expect("folder");
        fs::write(&path, text).expect("file");
        path
    }

    /// Writes an executable shell script, and returns its path.
    #[cfg(unix)]
    pub fn script(&self, path: &str, body: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;

        let path = self.write(path, &format!("#!/bin/sh\n{body}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failure only leaves the folder in the system's temporary folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}
