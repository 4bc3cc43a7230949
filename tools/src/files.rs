//! Writes the output files of commands.

use std::error::Error;
use std::fs::Permissions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Writes the whole file or nothing. It follows links, and replaces only a regular file, whose permissions it keeps.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), String> {
    Destination::new(path)?.write(bytes)
}

/// An output file that was checked before the work.
pub struct Destination<'a> {
    path: &'a Path,
    /// The path without links.
    target: PathBuf,
    /// The permissions of the file that is replaced.
    permissions: Option<Permissions>,
}

impl<'a> Destination<'a> {
    /// Fails if the folder does not exist or cannot be written, or if the path is not a regular file. Leaves no files.
    pub fn new(path: &'a Path) -> Result<Self, String> {
        let mut destination = Destination {
            path,
            target: behind_links(path).map_err(|e| failed(path, &e))?,
            permissions: None,
        };
        destination.permissions = match destination.target.metadata() {
            Ok(existing) if !existing.is_file() => {
                return Err(failed(path, &io::Error::other("it is not a regular file")));
            }
            Ok(existing) => Some(existing.permissions()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed(path, &e)),
        };
        destination.temporary()?;
        Ok(destination)
    }

    /// Writes the whole file or nothing.
    pub fn write(self, bytes: &[u8]) -> Result<(), String> {
        let mut file = self.temporary()?;
        let failed = |e: io::Error| failed(self.path, &e);
        file.write_all(bytes).map_err(failed)?;
        if let Some(permissions) = self.permissions {
            file.as_file()
                .set_permissions(permissions)
                .map_err(failed)?;
        }
        file.persist(&self.target).map_err(|e| failed(e.error))?;
        Ok(())
    }

    fn temporary(&self) -> Result<NamedTempFile, String> {
        let folder = (self.target.parent()).filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        (new_file().tempfile_in(folder)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                let e = format!("there is no folder {}", folder.display());
                failed(self.path, &io::Error::other(e))
            }
            _ => failed(self.path, &e),
        })
    }
}

/// The error text. Unlike tempfile's own, it does not name the temporary file.
fn failed(path: &Path, e: &io::Error) -> String {
    let cause = e
        .source()
        .map_or_else(|| e.to_string(), ToString::to_string);
    format!("cannot write {}: {cause}", path.display())
}

/// The target of `path` if that is a link, even if the target does not exist yet.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    /// More links than this are a circle.
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        if !path.symlink_metadata().is_ok_and(|data| data.is_symlink()) {
            return Ok(path);
        }
        let link = path.read_link()?;
        path = path
            .parent()
            .map_or(link.clone(), |folder| folder.join(link));
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// A temporary file with the permissions of a new file; those of tempfile are for the owner only.
fn new_file() -> tempfile::Builder<'static, 'static> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The system applies the umask when it creates the file.
        builder.permissions(Permissions::from_mode(0o666));
    }
    builder
}
