//! Files that commands write.

use std::error::Error;
use std::fs::Permissions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Writes the whole file or none of it. Follows links; replaces nothing but a regular file, whose
/// permissions the new one takes.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), String> {
    Destination::new(path)?.write(bytes)
}

/// A file that can be written, as far as that is known before it is.
pub struct Destination<'a> {
    path: &'a Path,
    /// Behind links.
    target: PathBuf,
    /// Those of the file that is replaced.
    permissions: Option<Permissions>,
}

impl<'a> Destination<'a> {
    /// Fails where there is no folder that takes files, or something that is no file. Leaves no trace.
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

    /// Writes the whole file or none of it.
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

/// The message, which names no temporary file, as tempfile's own errors do.
fn failed(path: &Path, e: &io::Error) -> String {
    let cause = e
        .source()
        .map_or_else(|| e.to_string(), ToString::to_string);
    format!("cannot write {}: {cause}", path.display())
}

/// Where `path` leads if it is a link, also to something that does not exist yet.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    /// More than that is a circle.
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

/// A temporary file with the permissions of any new file, where tempfile's own are the owner's alone.
fn new_file() -> tempfile::Builder<'static, 'static> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The umask takes its part when the file is made.
        builder.permissions(Permissions::from_mode(0o666));
    }
    builder
}
