//! `dlog dump`: what a segment file holds, batch by batch, for whoever wants to see it with his own eyes. It only reads
//! and takes no lock, so it also shows what a running server has written so far, and files from elsewhere.

use std::{
    io::{self, BufWriter, Stdout, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use pyralog_engine::{
    limits::SEGMENT_HEADER_BYTES,
    log::{
        segment::{SegmentHeader, base_offset_of},
        verify::{Disk, Piece, Source, walk_segment},
    },
    name::{LogName, NameError},
    record::{BatchHeader, BatchView, Record},
    shard::log_dir,
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
    /// A segment file, a partition's folder, or a data directory together with --partition.
    path: PathBuf,
    /// The partition of a data directory: LOG/NUMBER, such as orders/0 or eu/orders/3.
    #[arg(long, short, value_name = "LOG/NUMBER", value_parser = partition)]
    partition: Option<(LogName, u32)>,
    /// Show every record too.
    #[arg(long)]
    records: bool,
}

/// Reads `--partition`.
fn partition(text: &str) -> Result<(LogName, u32), String> {
    let (log, index) = text.rsplit_once('/').ok_or_else(|| format!("`{text}` is no LOG/NUMBER, such as orders/0"))?;
    let index = index.parse().map_err(|_| format!("`{index}` is no number of a partition"))?;
    Ok((log.parse().map_err(|error: NameError| error.to_string())?, index))
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
    let dir = match &args.partition {
        Some((log, index)) => log_dir(&args.path, log).join(index.to_string()),
        None if args.path.is_dir() => args.path.clone(),
        None => return Ok(vec![args.path.clone()]),
    };
    let listed = disk.list(&dir).map_err(|error| Fault::usage(format!("{}: {error}", dir.display())))?;
    let segments: Vec<_> =
        listed.into_iter().map(|entry| entry.path).filter(|path| base_offset_of(path).is_some()).collect();
    if segments.is_empty() {
        let fault = Fault::usage(format!("there is no segment file in {}", dir.display()));
        return Err(fault.with_help("name a segment file, or a data directory with --partition LOG/NUMBER"));
    }
    Ok(segments)
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
        let (log, index) = partition("orders/0").unwrap();
        assert_eq!((log.to_string(), index), ("default/orders".to_owned(), 0));
        let (log, index) = partition("eu/orders/12").unwrap();
        assert_eq!((log.to_string(), index), ("eu/orders".to_owned(), 12));
        for wrong in ["orders", "orders/x", "../../0", "a/b/c/0"] {
            assert!(partition(wrong).is_err(), "{wrong}");
        }
    }
}
