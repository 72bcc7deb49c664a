//! What the machine itself can do, measured in the same run as the rows: its drive by plain O_DIRECT writes, its
//! network stack by plain QUIC. A row reads against it: 80 % of a floor leaves little to gain, whatever the absolute
//! number.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    measuring::{Latencies, rounded},
    report::Row,
};

pub mod device;
pub mod quic;

/// What the machine can do without Pyralog.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Floor {
    /// The drive; `None` if it could not be tried.
    pub device: Option<Device>,
    /// The network stack; `None` if it could not be tried.
    pub quic: Option<Quic>,
    /// Why something could not be tried.
    pub missing: Vec<String>,
}

/// The drive, one write after the other, on extents that were written before.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Device {
    /// The folder in which it was measured.
    pub folder: String,
    /// 4 KiB with O_DIRECT.
    pub write: Rate,
    /// 4 KiB with O_DIRECT, then fdatasync.
    pub write_fdatasync: Rate,
    /// 4 KiB with O_DIRECT and O_DSYNC.
    pub write_dsync: Rate,
    /// Bytes a second of 1 MiB with O_DIRECT.
    pub bulk_bytes_per_s: f64,
}

/// QUIC without anything on top: one connection, one stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Quic {
    /// 100 bytes there and back, one at a time.
    pub echo: Rate,
    /// 100 bytes there and back, 256 in flight: messages a second.
    pub pipelined_per_s: f64,
    /// Bytes a second in one direction.
    pub bulk_bytes_per_s: f64,
}

/// How often and how fast one thing was done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Rate {
    /// A second.
    pub per_s: f64,
    /// How long each took.
    pub times: Option<Latencies>,
}

/// How a row stands against the floor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The row's part of what the machine can do, in percent.
    pub percent: f64,
    /// Of what.
    pub of: String,
}

/// Where and how long the floor is measured.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The folder for the file that is written.
    pub folder: PathBuf,
    /// The CPU of the echoing side, as the server has it.
    pub server_cpu: Option<usize>,
    /// The CPU of the asking side, as the load has it.
    pub client_cpu: Option<usize>,
    /// For each thing.
    pub seconds: Duration,
}

impl Floor {
    /// Measures drive and network stack, each alone. `note` is told what comes next.
    pub fn measure(ground: &Ground, note: impl Fn(&str)) -> Self {
        let mut floor = Floor::default();
        note("the drive alone");
        match device::measure(&ground.folder, ground.seconds) {
            Ok(device) => floor.device = Some(device),
            Err(error) => floor.missing.push(format!("the drive under {}: {error}", ground.folder.display())),
        }
        note("QUIC alone");
        match quic::measure(ground) {
            Ok(quic) => floor.quic = Some(quic),
            Err(error) => floor.missing.push(format!("QUIC: {error}")),
        }
        floor
    }

    /// The row's part of what this machine can do. With one request in flight latency decides, otherwise whatever the
    /// row uses most of: messages or bytes of the network stack, bytes of the drive.
    pub fn share(&self, row: &Row) -> Option<Share> {
        let quic = self.quic.as_ref()?;
        let writes = row.ack != "none" && !row.is_read;
        if !row.open_loop && row.in_flight == 1 && row.connections == 1 {
            return self.latency_share(row, writes);
        }
        let mut shares = vec![
            (row.requests_per_s / quic.pipelined_per_s, "the messages of raw QUIC, 256 in flight"),
            (row.bytes_per_s / quic.bulk_bytes_per_s, "the bytes of raw QUIC"),
        ];
        if let Some(device) = self.device.as_ref().filter(|_| writes) {
            shares.push((row.bytes_per_s / device.bulk_bytes_per_s, "the bytes of raw O_DIRECT writes"));
        }
        let most = shares.into_iter().filter(|(share, _)| share.is_finite()).max_by(|a, b| a.0.total_cmp(&b.0));
        most.map(|(share, of)| Share { percent: rounded(share * 100.0), of: of.to_owned() })
    }

    fn latency_share(&self, row: &Row, writes: bool) -> Option<Share> {
        let p50 = |rate: &Rate| rate.times.as_ref().and_then(|times| times.p50_us);
        let echo = p50(&self.quic.as_ref()?.echo)?;
        let drive = match row.ack.as_str() {
            "durable" | "quorum" if writes => {
                let device = self.device.as_ref()?;
                p50(&device.write_fdatasync)?.min(p50(&device.write_dsync)?)
            }
            "written" if writes => p50(&self.device.as_ref()?.write)?,
            _ => 0.0,
        };
        let of = match drive > 0.0 {
            true => format!("the speed of raw QUIC echo + raw write, {:.0} µs + {:.0} µs at p50", echo, drive),
            false => format!("the speed of raw QUIC echo, {echo:.0} µs at p50"),
        };
        Some(Share { percent: rounded((echo + drive) / row.p50_us? * 100.0), of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(p50_us: f64) -> Rate {
        Rate { per_s: 1e6 / p50_us, times: Some(Latencies { p50_us: Some(p50_us), ..Latencies::default() }) }
    }

    fn floor() -> Floor {
        let device = Device {
            write: rate(20.0),
            write_fdatasync: rate(130.0),
            write_dsync: rate(120.0),
            bulk_bytes_per_s: 2e9,
            ..Device::default()
        };
        let quic = Quic { echo: rate(30.0), pipelined_per_s: 1e6, bulk_bytes_per_s: 1e9 };
        Floor { device: Some(device), quic: Some(quic), missing: vec![] }
    }

    fn row(ack: &str, in_flight: u32) -> Row {
        Row {
            ack: ack.to_owned(),
            in_flight,
            connections: 1,
            requests_per_s: 100e3,
            bytes_per_s: 800e6,
            p50_us: Some(300.0),
            ..Row::default()
        }
    }

    #[test]
    fn a_row_is_measured_against_what_it_uses_most_of() {
        let share = floor().share(&row("durable", 64)).unwrap();
        assert_eq!((share.percent, share.of.as_str()), (80.0, "the bytes of raw QUIC"));
        let small = Row { bytes_per_s: 10e6, ..row("durable", 64) };
        assert_eq!(floor().share(&small).unwrap().percent, 10.0);
    }

    #[test]
    fn one_request_in_flight_is_measured_by_the_latency_of_what_its_ack_waits_for() {
        for (ack, percent) in [("received", 10.0), ("written", 16.7), ("durable", 50.0)] {
            assert_eq!(floor().share(&row(ack, 1)).unwrap().percent, percent, "{ack}");
        }
        let read = Row { is_read: true, ..row("durable", 1) };
        assert_eq!(floor().share(&read).unwrap().percent, 10.0);
    }

    #[test]
    fn what_was_not_measured_has_no_share() {
        assert_eq!(Floor::default().share(&row("durable", 64)), None);
        let without_drive = Floor { device: None, ..floor() };
        assert_eq!(without_drive.share(&row("durable", 1)), None);
    }
}
