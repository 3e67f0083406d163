//! Files that are written whole, or stay as they were.

use std::fs::{self, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{fchown, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Symbolic links that are followed, as Linux does.
const LINKS_MAX: usize = 40;

/// Writes a file. What takes its place is written beside it first, so that a disk that is full costs nobody the old
/// one. Links are followed; what is no regular file, such as a pipe, is written directly.
///
/// # Errors
/// Names the file, and what has become of it.
pub fn write(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = |error: io::Error, and: &str| anyhow::anyhow!("writing {}: {error}{and}", file.display());
    let old = match fs::metadata(file) {
        Ok(old) => Some(old),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error, "")),
    };
    let target = target(file).map_err(|error| failed(error, ""))?;
    match (target, old) {
        (Some(target), Some(old)) if old.is_file() => {
            replace(&target, Some(&old), bytes).map_err(|error| failed(error, "; the file is as it was"))
        }
        (Some(target), None) => replace(&target, None, bytes).map_err(|error| failed(error, "; there is no file")),
        // At its end: somebody else may have begun to write there, as in `{ …; } > file` with /dev/stdout.
        _ => OpenOptions::new()
            .append(true)
            .open(file)
            .and_then(|mut opened| opened.write_all(bytes))
            .map_err(|error| failed(error, "")),
    }
}

/// Where links lead; nowhere, if that is what a process has open.
fn target(file: &Path) -> io::Result<Option<PathBuf>> {
    let mut path = file.to_path_buf();
    for _ in 0..LINKS_MAX {
        if fs::canonicalize(folder(&path))?.starts_with("/proc") {
            return Ok(None);
        }
        if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink()) {
            return Ok(Some(path));
        }
        path = folder(&path).join(fs::read_link(&path)?);
    }
    Err(io::Error::other("too many symbolic links"))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn replace(target: &Path, old: Option<&Metadata>, bytes: &[u8]) -> io::Result<()> {
    if old.is_some() {
        // Where writing is forbidden, so is replacing.
        drop(OpenOptions::new().append(true).open(target)?);
    }
    // What a new file gets, less the umask.
    let mode = old.map_or(0o666, Metadata::mode);
    let mut beside = tempfile::Builder::new()
        .prefix(".sweepstream-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder(target))?;
    beside.write_all(bytes)?;
    if let Some(old) = old {
        // Only root may give files away; whoever else writes is their owner then.
        drop(fchown(beside.as_file(), Some(old.uid()), Some(old.gid())));
        beside.as_file().set_permissions(old.permissions())?;
    }
    beside.as_file().sync_all()?;
    drop(beside.persist(target).map_err(|error| error.error)?);
    Ok(())
}
