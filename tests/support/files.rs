//! Files that commands write.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes the whole file or none of it. Follows links; replaces nothing but a regular file, whose
/// permissions the new one takes.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot write {}: {e}", path.display());
    let target = behind_links(path).map_err(|e| failed(&e))?;
    let existing = match target.metadata() {
        Ok(existing) if !existing.is_file() => return Err(failed(&"it is not a regular file")),
        Ok(existing) => Some(existing.permissions()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(&e)),
    };
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty());
    let mut file = new_file()
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(|e| failed(&e))?;
    file.write_all(bytes).map_err(|e| failed(&e))?;
    if let Some(permissions) = existing {
        let changed = file.as_file().set_permissions(permissions);
        changed.map_err(|e| failed(&e))?;
    }
    file.persist(&target).map_err(|e| failed(&e))?;
    Ok(())
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
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
}
