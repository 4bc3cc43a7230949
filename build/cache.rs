//! The cache of nvcc's output in the target folder. The same text is compiled only once by the same nvcc with the same
//! flags, whatever the profile, the PATH or the branch.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io, process};

/// The maximum number of files; the least recently used are deleted. 64 files are about ten states of all kernels, 90 MB.
const MOST: usize = 64;

/// A folder of files, each named after a hash of what it was made from.
pub struct Cache(PathBuf);

impl Cache {
    /// The cache of the target folder that contains OUT_DIR, or a folder beside OUT_DIR if the target folder cannot be found.
    pub fn beside(out: &Path) -> Cache {
        // `<target>/<profile>/build/<package>/out`, with a triple before the profile if one is given. Newer cargos add a hash
        // after the package.
        let build = out.ancestors().find(|folder| folder.ends_with("build"));
        let target = build.and_then(|build| build.parent()?.parent());
        Cache(target.unwrap_or(out).join("xact-kernels"))
    }

    /// Returns the file for `key`, which must name everything that the content depends on. If there is none, `make` makes it.
    ///
    /// # Errors
    /// Those of `make`. A file that cannot be written to the cache is made again the next time.
    pub fn get(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<Vec<u8>, String> {
        let path = self.0.join(name(key));
        if let Ok(content) = fs::read(&path) {
            // The modification time marks the file as recently used.
            let file = fs::File::options().append(true).open(&path);
            let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(content);
        }
        let content = make()?;
        let _ = self.keep(&path, &content);
        Ok(content)
    }

    /// Writes a file atomically, because another process may write the same file.
    fn keep(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let new = path.with_extension(format!("{}.new", process::id()));
        fs::write(&new, content)?;
        fs::rename(&new, path)?;
        let mut files: Vec<_> = fs::read_dir(&self.0)?
            .map(|file| {
                let file = file?;
                Ok((file.metadata()?.modified()?, file.path()))
            })
            .collect::<io::Result<_>>()?;
        files.sort();
        for (_, old) in files.iter().rev().skip(MOST) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// The file name for a key: 128 bits of its hash.
fn name(key: &str) -> String {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, key).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}

/// A C++ text without comments and without the blanks around lines.
pub fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            code.push(' ');
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else {
            let end = match first {
                '"' | '\'' => literal(rest, first),
                _ => first.len_utf8(),
            };
            code += &rest[..end];
            end
        };
        rest = &rest[end..];
    }
    let lines = code.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The length of the literal at the start of a text. A digit separator, as in 1'000, counts as a literal that ends at the end
/// of its line.
fn literal(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '\n' => return at,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}
