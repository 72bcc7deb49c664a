//! `dlog dump`: what a segment file holds, batch by batch, for whoever wants to see it with his own eyes. It only reads
//! and takes no lock, so it also shows what a running server has written so far, and files from elsewhere.

use std::{
    io::{self, BufWriter, Stdout, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use pyralog_engine::{
    limits::{REPLICAS_MAX, SEGMENT_HEADER_BYTES},
    log::{
        segment::{SegmentHeader, base_offset_of},
        verify::{Disk, Piece, Source, walk_segment},
    },
    name::{LogName, NameError},
    record::{BatchHeader, BatchView, Record},
    replication::assignment::ReplicaId,
    shard::{CopyId, copy_dir, copy_named},
    types::{LogUid, PartitionId, PartitionIndex},
};
use serde_json::{Value, json};

use super::{
    Fault, Outcome,
    files::RealDisk,
    format::{Output, Shown, print},
};
use crate::output;

/// The flags.
#[derive(Debug, clap::Args)]
pub struct DumpArgs {
    /// Segment files, folders of partitions, or data directories together with --partition.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The partition of a data directory: LOG/NUMBER, such as orders/0 or eu/orders/3; or LOG/NUMBER.COPY. Without a
    /// copy the first that is there.
    #[arg(long, short, value_name = "LOG/NUMBER", value_parser = partition)]
    partition: Option<Wanted>,
    /// Show every record too.
    #[arg(long)]
    records: bool,
}

/// A partition, or one of its copies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    log: LogName,
    index: PartitionIndex,
    copy: Option<ReplicaId>,
}

/// Reads `--partition`.
fn partition(text: &str) -> Result<Wanted, String> {
    let (log, number) = text.rsplit_once('/').ok_or_else(|| format!("`{text}` is no LOG/NUMBER, such as orders/0"))?;
    let (index, copy) = copy_named(number).ok_or_else(|| format!("`{number}` is no number of a partition"))?;
    let log = log.parse().map_err(|error: NameError| error.to_string())?;
    Ok(Wanted { log, index, copy: number.contains('.').then_some(copy) })
}

/// Prints the segments.
pub fn run(args: &DumpArgs, json: bool) -> Outcome {
    let disk = RealDisk::new(0);
    let mut dump = Dump { out: BufWriter::new(io::stdout()), records: args.records, json };
    for path in segments(&disk, args)? {
        match dump.segment(&disk, &path) {
            Ok(()) => {}
            // The reader of our pipe has seen enough.
            Err(Stop::Output(error)) if output::is_unread(&error) => return Ok(()),
            Err(Stop::Output(error)) => return Err(Fault::new(format!("stdout: {error}"))),
            Err(Stop::Input(reason)) => {
                let _ = dump.out.flush();
                return Err(Fault::new(format!("{}: {reason}", path.display())));
            }
        }
    }
    match dump.out.flush() {
        Err(error) if !output::is_unread(&error) => Err(Fault::new(format!("stdout: {error}"))),
        _ => Ok(()),
    }
}

/// The files to show, in order.
fn segments(disk: &RealDisk, args: &DumpArgs) -> Outcome<Vec<PathBuf>> {
    let paths = match &args.partition {
        Some(wanted) => vec![folder_of(wanted, &args.paths)?],
        None => args.paths.clone(),
    };
    let mut segments = Vec::new();
    for path in paths {
        if !path.is_dir() {
            segments.push(path);
            continue;
        }
        let listed = disk.list(&path).map_err(|error| Fault::usage(format!("{}: {error}", path.display())))?;
        let before = segments.len();
        segments.extend(listed.into_iter().map(|entry| entry.path).filter(|path| base_offset_of(path).is_some()));
        if segments.len() == before {
            let fault = Fault::usage(format!("there is no segment file in {}", path.display()));
            return Err(fault.with_help("name a segment file, or a data directory with --partition LOG/NUMBER"));
        }
    }
    Ok(segments)
}

/// The folder of a copy in one of these data directories.
fn folder_of(wanted: &Wanted, data_dirs: &[PathBuf]) -> Outcome<PathBuf> {
    let Wanted { log, index, copy } = wanted;
    let copies = copy.map_or(0..REPLICAS_MAX, |copy| copy.0..copy.0 + 1);
    let id = |copy| CopyId { partition: PartitionId { log: LogUid(0), index: *index }, copy: ReplicaId(copy) };
    let all = copies.flat_map(|copy| data_dirs.iter().map(move |dir| copy_dir(dir, log, id(copy))));
    let found = all.clone().find(|dir| dir.is_dir());
    found.or(all.clone().next()).ok_or_else(|| Fault::usage("there is no data directory"))
}

/// Why printing ends before the files do.
enum Stop {
    Output(io::Error),
    Input(String),
}

struct Dump {
    out: BufWriter<Stdout>,
    records: bool,
    json: bool,
}

impl Dump {
    fn segment(&mut self, disk: &RealDisk, path: &Path) -> Result<(), Stop> {
        let input = |error: io::Error| Stop::Input(error.to_string());
        let file = disk.open(path).map_err(input)?;
        let size = file.size().map_err(input)?;
        let block = file.read_at(0, SEGMENT_HEADER_BYTES as usize).map_err(input)?;
        // Without the header nobody can tell this life's batches from those of an earlier one.
        let header = SegmentHeader::decode(&block).map_err(|error| Stop::Input(error.to_string()))?;
        self.header(path, &header, size).map_err(Stop::Output)?;
        let mut printed = Ok(());
        let walked = walk_segment(&file, &header, &mut |piece| {
            printed = self.piece(header.partition.index.0, &piece);
            if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        printed.map_err(Stop::Output)?;
        walked.map_err(|(position, error)| Stop::Input(format!("byte {position}: {error}")))
    }

    fn header(&mut self, path: &Path, header: &SegmentHeader, size: u64) -> io::Result<()> {
        let SegmentHeader { partition, block_bytes, base_offset, created_ms, incarnation, leader_epoch } = header;
        if self.json {
            let object = json!({
                "type": "segment",
                "file": path.display().to_string(),
                "bytes": size,
                "log": partition.log.0,
                "partition": partition.index.0,
                "block_bytes": block_bytes,
                "base_offset": base_offset.0,
                "created_ms": created_ms,
                "incarnation": incarnation.0,
                "leader_epoch": leader_epoch.0,
            });
            return writeln!(self.out, "{object}");
        }
        writeln!(
            self.out,
            "{}: {size} bytes, log {}, partition {}, base offset {base_offset}, incarnation {incarnation}, \
             epoch {leader_epoch}, blocks of {block_bytes}, created {created_ms}",
            path.display(),
            partition.log,
            partition.index,
        )
    }

    fn piece(&mut self, partition: u32, piece: &Piece<'_>) -> io::Result<()> {
        match piece {
            Piece::Batch { position, header, bytes, damage } => {
                self.batch(*position, header, damage.as_deref())?;
                if self.records && damage.is_none() {
                    self.records(partition, bytes)?;
                }
                Ok(())
            }
            Piece::Gap { position, end, zeros, reason } => {
                let bytes = end - position;
                if self.json {
                    let object = json!({
                        "type": "gap", "position": position, "bytes": bytes, "zeros": zeros, "reason": reason,
                    });
                    writeln!(self.out, "{object}")
                } else if *zeros {
                    writeln!(self.out, "{position:>12}  {bytes} bytes of zeros")
                } else {
                    writeln!(self.out, "{position:>12}  {bytes} bytes without a batch: {reason}")
                }
            }
        }
    }

    fn batch(&mut self, position: u64, header: &BatchHeader, damage: Option<&str>) -> io::Result<()> {
        let codec = format!("{:?}", header.codec).to_lowercase();
        let BatchHeader { base_offset, durable_hint, leader_epoch, incarnation, record_count, .. } = header;
        let (id, epoch, sequence) = (header.producer_id, header.producer_epoch, header.base_sequence);
        if self.json {
            // The walk stands on the server's checksum: bytes that do not pass it are no batch, but a gap.
            let object = json!({
                "type": "batch",
                "position": position,
                "bytes": header.batch_len(),
                "base_offset": base_offset.0,
                "record_count": record_count,
                "codec": codec,
                "leader_epoch": leader_epoch.0,
                "incarnation": incarnation.0,
                "durable_hint": durable_hint.0,
                "first_timestamp_ms": header.first_timestamp_ms,
                "max_timestamp_ms": header.max_timestamp_ms,
                "producer_id": id.0,
                "producer_epoch": epoch,
                "base_sequence": sequence.0,
                "server_crc_ok": true,
                "crc_ok": damage.is_none(),
                "damage": damage,
            });
            return writeln!(self.out, "{object}");
        }
        write!(
            self.out,
            "{position:>12}  offset {base_offset}, count {record_count}, {} bytes, codec {codec}, \
             epoch {leader_epoch}, incarnation {incarnation}, durable {durable_hint}",
            header.batch_len(),
        )?;
        if id.0 != 0 {
            write!(self.out, ", producer {id} epoch {epoch} sequence {sequence}")?;
        }
        match damage {
            None => writeln!(self.out, ", server_crc ok, crc ok"),
            Some(reason) => writeln!(self.out, ", server_crc ok, crc BAD: {reason}"),
        }
    }

    fn records(&mut self, partition: u32, batch: &[u8]) -> io::Result<()> {
        let records = BatchView::parse(Bytes::copy_from_slice(batch)).and_then(|view| view.records());
        let refused = |error: &dyn std::fmt::Display| format!("its records cannot be read: {error}");
        match records {
            Ok(records) => {
                for record in records {
                    match record {
                        Ok(record) => self.record(partition, &record)?,
                        Err(error) => self.note(&refused(&error))?,
                    }
                }
                Ok(())
            }
            Err(error) => self.note(&refused(&error)),
        }
    }

    fn note(&mut self, reason: &str) -> io::Result<()> {
        if self.json {
            writeln!(self.out, "{}", json!({ "type": "unreadable", "reason": reason }))
        } else {
            writeln!(self.out, "{:>12}  {reason}", "")
        }
    }

    fn record(&mut self, partition: u32, record: &Record) -> io::Result<()> {
        let Record { offset, timestamp_ms, key, value, headers } = record;
        let shown =
            Shown { partition, offset: offset.0, timestamp_ms: *timestamp_ms, key: key.as_deref(), value, headers };
        let mut line = Vec::new();
        print(&Output::Json, &shown, &mut line)?;
        if self.json {
            let mut object: Value = serde_json::from_slice(&line)?;
            object["type"] = "record".into();
            return writeln!(self.out, "{object}");
        }
        write!(self.out, "{:>12}  ", "")?;
        self.out.write_all(&line)?;
        writeln!(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_by_its_log_and_its_number() {
        for (text, log, index, copy) in [
            ("orders/0", "default/orders", 0, None),
            ("eu/orders/12", "eu/orders", 12, None),
            ("orders/3.2", "default/orders", 3, Some(ReplicaId(2))),
        ] {
            let wanted = Wanted { log: log.parse().unwrap(), index: PartitionIndex(index), copy };
            assert_eq!(partition(text), Ok(wanted));
        }
        for wrong in ["orders", "orders/x", "../../0", "a/b/c/0", "orders/0.9"] {
            assert!(partition(wrong).is_err(), "{wrong}");
        }
    }
}
