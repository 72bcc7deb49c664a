//! The catalogue on disk: `catalog.json`, replaced whole. Its first line says how long the second is and what its
//! checksum is.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    rc::Rc,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::placement::Drives;
use crate::{
    catalog::{Catalog, LogEntry},
    limits::{DEVICE_BLOCK_BYTES_MAX, PARTITIONS_PER_LOG_MAX},
    runtime::{Buffer, File, OpenMode, Runtime},
    testing::bug::{PlantedBug, planted},
};

/// Its name in the data directory.
pub const FILE_NAME: &str = "catalog.json";
const VERSION: u32 = 1;

/// Why the catalogue cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CatalogError {
    /// Reading or writing failed.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// There is no room for a new version. The old one is as it was.
    #[error("the drive of {} is full", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a catalogue that we wrote.
    #[error(
        "{} is damaged: {reason}; restore it from a copy, the logs themselves are in the folder `logs`",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another version wrote it.
    #[error("{} has format version {found}, this version reads {VERSION}; nothing was changed", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// There are logs, but no catalogue of them.
    #[error("{} is missing, but the folder `logs` beside it is not empty; restore it from a copy", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
}

impl CatalogError {
    /// The file that it is about.
    pub fn path(&self) -> &Path {
        match self {
            CatalogError::Io { path, .. }
            | CatalogError::Full { path }
            | CatalogError::Damaged { path, .. }
            | CatalogError::Version { path, .. }
            | CatalogError::Missing { path } => path,
        }
    }
}

/// What every version's first line says, whatever else is in it.
#[derive(Deserialize)]
struct VersionLine {
    pyralog_catalog: u32,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    pyralog_catalog: u32,
    bytes: usize,
    crc32c: u32,
}

#[derive(Serialize, Deserialize)]
struct Body {
    next_uid: u64,
    #[serde(default)]
    revision: u64,
    logs: Vec<LogEntry>,
}

fn encode(catalog: &Catalog) -> Vec<u8> {
    let logs = catalog.logs().map(|log| LogEntry::clone(log)).collect();
    let body = Body { next_uid: catalog.next_uid(), revision: catalog.revision(), logs };
    let body = serde_json::to_string(&body).unwrap_or_default();
    let crc32c = crc32c::crc32c(body.as_bytes());
    let envelope = Envelope { pyralog_catalog: VERSION, bytes: body.len(), crc32c };
    format!("{}\n{body}\n", serde_json::to_string(&envelope).unwrap_or_default()).into_bytes()
}

/// Reads the bytes of the catalogue at `path`.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<Catalog, CatalogError> {
    let damaged = |reason: &str| CatalogError::Damaged { path: path.to_path_buf(), reason: reason.to_owned() };
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it has no first line"))?;
    let not_ours = |_| damaged("its first line is not ours");
    let VersionLine { pyralog_catalog: found } = serde_json::from_slice(&bytes[..line]).map_err(not_ours)?;
    let checked = serde_json::from_slice::<Envelope>(&bytes[..line]).map_err(not_ours).and_then(|envelope| {
        let body = bytes[line + 1..].get(..envelope.bytes).ok_or_else(|| damaged("it is cut off"))?;
        let holds = crc32c::crc32c(body) == envelope.crc32c;
        if holds { Ok(body) } else { Err(damaged("its checksum is wrong")) }
    });
    if found != VERSION {
        // The checksum of every version is its own.
        return Err(match checked {
            Ok(_) => damaged(&format!("it says version {found}, and has the checksum of version {VERSION}")),
            Err(_) => CatalogError::Version { path: path.to_path_buf(), found },
        });
    }
    let body = checked?;
    let body: Body = serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
    let possible = |log: &LogEntry| log.uid.0 < body.next_uid && (1..=PARTITIONS_PER_LOG_MAX).contains(&log.partitions);
    if !body.logs.iter().all(possible) {
        return Err(damaged("a log in it is impossible"));
    }
    let uids: BTreeSet<_> = body.logs.iter().map(|log| log.uid).collect();
    let names: BTreeSet<_> = body.logs.iter().map(|log| &log.name).collect();
    if uids.len() != body.logs.len() || names.len() != body.logs.len() {
        return Err(damaged("two logs in it have the same number or name"));
    }
    Ok(Catalog::from_parts((body.next_uid, body.revision), body.logs))
}

/// Reads the catalogue of a server: the latest of those on its drives, and whether all have it. A drive that has none,
/// or a damaged one, does no harm while another has one.
///
/// Errors: no drive has one, but one should; or one is of another version.
pub async fn load_latest<R: Runtime>(runtime: &R, drives: &Drives) -> Result<(Catalog, bool), CatalogError> {
    let (mut latest, mut first_error) = (None::<Catalog>, None);
    let mut revisions = BTreeSet::new();
    for (_, dir) in drives.all() {
        match load(runtime, dir).await {
            Ok(catalog) => {
                revisions.insert(catalog.revision());
                let is_later = latest.as_ref().is_none_or(|latest| catalog.revision() > latest.revision());
                latest = if is_later { Some(catalog) } else { latest };
            }
            Err(error @ CatalogError::Version { .. }) => return Err(error),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    match (latest, first_error) {
        // Nothing on one drive is not the latest if another has something that cannot be read.
        (Some(latest), Some(error)) if latest.revision() == 0 => Err(error),
        (Some(latest), error) => {
            error.iter().for_each(|error| tracing::error!(%error, "another drive has the catalogue"));
            Ok((latest, error.is_none() && revisions.len() == 1))
        }
        (None, error) => error.map_or_else(|| Ok((Catalog::default(), true)), Err),
    }
}

/// Reads the catalogue of a data directory; an empty one if the directory is new.
pub async fn load<R: Runtime>(runtime: &R, data_dir: &Path) -> Result<Catalog, CatalogError> {
    let path = data_dir.join(FILE_NAME);
    let io = |error: std::io::Error| CatalogError::Io { path: path.clone(), reason: error.to_string() };
    let file = match runtime.open(&path, OpenMode::Existing).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let logs = runtime.list_dir(&data_dir.join("logs")).await.unwrap_or_default();
            return if logs.is_empty() { Ok(Catalog::default()) } else { Err(CatalogError::Missing { path }) };
        }
        Err(error) => return Err(io(error)),
    };
    // Synced before it is trusted: an earlier life may have been killed between the renaming and the sync of it.
    file.fdatasync().await.map_err(io)?;
    runtime.sync_dir(data_dir).await.map_err(io)?;
    let size = file.size().await.map_err(io)? as usize;
    let bytes = file.read_at(0, size.next_multiple_of(DEVICE_BLOCK_BYTES_MAX as usize)).await.map_err(io)?;
    decode(&path, &bytes)
}

/// Writes the catalogue: aside, synced, renamed, directory synced. Durable when this returns.
///
/// Errors: `Full` if nothing was changed; after any other it is not known which version is durable.
pub async fn save<R: Runtime>(runtime: &R, data_dir: &Path, catalog: &Catalog) -> Result<(), CatalogError> {
    let (path, aside) = (data_dir.join(FILE_NAME), data_dir.join("catalog.json.new"));
    let write_aside = async {
        let bytes = encode(catalog);
        let padded = bytes.len().next_multiple_of(DEVICE_BLOCK_BYTES_MAX as usize);
        let mut buffer = runtime.allocate(padded);
        buffer.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
        let file = runtime.open(&aside, OpenMode::CreateTruncate).await?;
        file.write_at(0, Rc::new(buffer)).await?;
        file.truncate(bytes.len() as u64).await?;
        if planted(PlantedBug::CatalogRenamedBeforeSync) {
            runtime.rename(&aside, &path).await?;
        }
        if !planted(PlantedBug::CatalogNotSynced) {
            file.fdatasync().await?;
        }
        Ok(())
    };
    let failed = |error: std::io::Error| CatalogError::Io { path: path.clone(), reason: error.to_string() };
    write_aside.await.map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull => CatalogError::Full { path: path.clone() },
        _ => failed(error),
    })?;
    if !planted(PlantedBug::CatalogRenamedBeforeSync) {
        runtime.rename(&aside, &path).await.map_err(failed)?;
    }
    runtime.sync_dir(data_dir).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{settings::LogSettings, shard::request::CreateLog, types::AckLevel};

    #[test]
    fn a_catalogue_comes_back_and_every_damaged_byte_is_noticed() {
        let request =
            CreateLog { name: "shop/orders".parse().unwrap(), partitions: 3, settings: LogSettings::default() };
        let (catalog, log) = Catalog::default().with_log(&request, (1, 1_790_000_000_000)).unwrap();
        let pinned = log.partition_ids().nth(1).unwrap();
        let catalog = catalog.with_pin(pinned, true);
        let bytes = encode(&catalog);
        let path = Path::new("catalog.json");
        assert_eq!(decode(path, &bytes).unwrap(), catalog);
        for at in 0..bytes.len() - 1 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(decode(path, &damaged).is_err(), "byte {at}");
            assert!(decode(path, &bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_catalogue_of_another_version_is_refused_as_such_whatever_else_its_first_line_says() {
        let older = "{\"pyralog_catalog\":0,\"bytes\":2,\"crc32c\":0}\n{}\n";
        let newer = "{\"pyralog_catalog\":2,\"length\":2}\n{}\n";
        for (text, found) in [(older, 0), (newer, 2)] {
            let path = PathBuf::from("c");
            let error = decode(&path, text.as_bytes()).unwrap_err();
            assert_eq!(error, CatalogError::Version { path, found });
            let says = format!("c has format version {found}, this version reads 1; nothing was changed");
            assert_eq!(error.to_string(), says);
        }
        let mut ours = encode(&Catalog::default());
        let digit = ours.iter().position(|byte| *byte == b'1').unwrap();
        ours[digit] = b'3';
        let damaged = decode(Path::new("c"), &ours).unwrap_err().to_string();
        assert!(damaged.contains("it says version 3, and has the checksum of version 1"), "{damaged}");
    }

    #[test]
    fn a_catalogue_of_the_first_version_opens_and_its_logs_have_the_servers_settings() {
        // And what a later server adds to a log is passed over.
        let log = r#"{"uid":0,"name":"a/b","partitions":1,"ack":"written","created_ms":5,"later":[1]}"#;
        let body = format!("{{\"next_uid\":1,\"logs\":[{log}]}}");
        let envelope = Envelope { pyralog_catalog: 1, bytes: body.len(), crc32c: crc32c::crc32c(body.as_bytes()) };
        let text = format!("{}\n{body}\n", serde_json::to_string(&envelope).unwrap());
        let catalog = decode(Path::new("c"), text.as_bytes()).unwrap();
        let found = catalog.logs().next().unwrap();
        assert_eq!((found.settings, found.created_ms), (LogSettings::from(Some(AckLevel::Written)), 5));
    }

    #[test]
    fn a_catalogue_whose_checksum_is_right_but_whose_logs_are_not_is_refused() {
        let log = r#"{"uid":0,"name":"a/b","partitions":1,"created_ms":0}"#;
        let other = r#"{"uid":1,"name":"a/b","partitions":1,"created_ms":0}"#;
        let huge = r#"{"uid":0,"name":"a/b","partitions":4294967295,"created_ms":0}"#;
        for logs in [format!("{log},{log}"), format!("{log},{other}"), huge.to_owned()] {
            let body = format!("{{\"next_uid\":2,\"logs\":[{logs}]}}");
            let envelope = Envelope { pyralog_catalog: 1, bytes: body.len(), crc32c: crc32c::crc32c(body.as_bytes()) };
            let text = format!("{}\n{body}\n", serde_json::to_string(&envelope).unwrap());
            assert!(matches!(decode(Path::new("c"), text.as_bytes()), Err(CatalogError::Damaged { .. })), "{logs}");
        }
    }
}
