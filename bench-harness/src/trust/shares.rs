//! What the server's CPU time went into: `perf` looks 499 times a second at what it is doing while a row is measured.
//! Nobody can time encryption or the network stack from within without slowing down what is measured.

use std::{
    io,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

/// Samples a second; no multiple of the kernel's tick, so that nothing runs in step with it.
const FREQUENCY: &str = "499";

/// Fewer say nothing of shares.
const SAMPLES_MIN: u64 = 100;

/// What a sample was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Crypto,
    Quic,
    Udp,
    Engine,
    Drive,
    Runtime,
    Other,
}

/// Shares of the server's CPU time, in percent; together they are 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuShares {
    /// Encrypting and decrypting packets.
    pub crypto: f64,
    /// The QUIC protocol.
    pub quic: f64,
    /// Sending and receiving datagrams, in the kernel.
    pub udp: f64,
    /// The server's own code: requests, partitions, logs, checksums.
    pub engine: f64,
    /// Reading and writing files, in the kernel.
    pub drive: f64,
    /// The runtime: tasks, timers, and asking the kernel whether there is work; for a server that looks for work before
    /// it sleeps, that too.
    pub runtime: f64,
    /// What cannot be told, as copying memory.
    pub other: f64,
}

/// A recording that is under way.
pub struct Recording {
    perf: Child,
    file: NamedTempFile,
}

impl Recording {
    /// Records what process `pid` of this machine does, for this long.
    ///
    /// Errors: there is no `perf`, or no place for its file.
    pub fn start(pid: u32, length: Duration) -> io::Result<Self> {
        let file = NamedTempFile::new()?;
        let (pid, seconds) = (pid.to_string(), format!("{:.3}", length.as_secs_f64()));
        let mut command = Command::new("perf");
        command.args(["record", "--quiet", "-F", FREQUENCY, "-g", "-p", &pid, "-o"]).arg(file.path());
        let perf = command.args(["--", "sleep", &seconds]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Recording { perf, file })
    }

    /// Waits for the end of it and adds up what was seen. Blocks.
    ///
    /// Errors: `perf` may not look into that process, or saw too little.
    pub fn finish(mut self) -> io::Result<CpuShares> {
        let status = self.perf.wait()?;
        if !status.success() {
            return Err(io::Error::other("perf may not look into the server: see kernel.perf_event_paranoid"));
        }
        let mut command = Command::new("perf");
        command.args(["script", "-F", "ip,sym,dso", "-i"]).arg(self.file.path()).stderr(Stdio::null());
        let text = command.output()?.stdout;
        CpuShares::of(&String::from_utf8_lossy(&text)).ok_or_else(|| io::Error::other("perf saw too little"))
    }
}

impl CpuShares {
    /// The shares of the samples that `perf script` printed: a line for each frame of a sample, the innermost first,
    /// and an empty one between samples.
    fn of(script: &str) -> Option<Self> {
        let mut counts = [0_u64; Part::Other as usize + 1];
        for sample in script.split("\n\n").filter(|sample| !sample.trim().is_empty()) {
            counts[Part::of_sample(sample) as usize] += 1;
        }
        let all: u64 = counts.iter().sum();
        let percent = |part: Part| (1000.0 * counts[part as usize] as f64 / all as f64).round() / 10.0;
        (all >= SAMPLES_MIN).then(|| CpuShares {
            crypto: percent(Part::Crypto),
            quic: percent(Part::Quic),
            udp: percent(Part::Udp),
            engine: percent(Part::Engine),
            drive: percent(Part::Drive),
            runtime: percent(Part::Runtime),
            other: percent(Part::Other),
        })
    }

    /// With their names.
    pub fn named(&self) -> [(&'static str, f64); 7] {
        [
            ("crypto", self.crypto),
            ("QUIC", self.quic),
            ("UDP", self.udp),
            ("engine", self.engine),
            ("drive", self.drive),
            ("runtime", self.runtime),
            ("other", self.other),
        ]
    }
}

impl Part {
    /// The innermost frame that tells decides.
    fn of_sample(sample: &str) -> Part {
        sample.lines().find_map(Part::of_frame).unwrap_or(Part::Other)
    }

    /// What a frame tells: `    7f3a symbol (where it is from)`.
    fn of_frame(frame: &str) -> Option<Part> {
        let (_, rest) = frame.trim_start().split_once(' ')?;
        let (symbol, from) = rest.rsplit_once(" (").unwrap_or((rest, ""));
        let names: &[(&[&str], Part)] = match from.starts_with('[') {
            true => &IN_KERNEL,
            false => &IN_SERVER,
        };
        names.iter().find(|(names, _)| names.iter().any(|name| symbol.contains(name))).map(|(_, part)| *part)
    }
}

/// Parts of the names of kernel functions. What stands first is looked for first.
const IN_KERNEL: [(&[&str], Part); 3] = [
    (
        &["udp", "sendm", "recvm", "sendto", "sock_", "skb", "inet_", "ip_", "net_rx", "netif", "loopback", "fib_"],
        Part::Udp,
    ),
    (&["ext4", "jbd2", "blk_", "bio", "iomap", "virtblk", "nvme", "fsync", "io_write", "io_read", "dio"], Part::Drive),
    (&["io_uring", "io_sq", "io_cq", "epoll", "futex", "schedule", "poll", "timer", "eventfd"], Part::Runtime),
];

/// Parts of the names of functions of the server and of its libraries.
const IN_SERVER: [(&[&str], Part); 4] = [
    (&["aws_lc", "aes_", "_gcm", "gcm_", "ghash"], Part::Crypto),
    (&["quinn", "rustls", "quic"], Part::Quic),
    (&["pyralog", "dlog::", "crc32c"], Part::Engine),
    (&["glommio", "io_uring", "iou", "async_task", "futures_lite", "clock_gettime"], Part::Runtime),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_frame_that_tells_decides() {
        let copying = "\tffff81 _copy_from_user ([kernel.kallsyms])\n\tffff82 udp_sendmsg ([kernel.kallsyms])\n\
                       \tffff83 __x64_sys_sendmsg ([kernel.kallsyms])\n\t55d1 quinn_udp::imp::send (/usr/bin/dlog)";
        let writing = "  ffff81 ext4_map_blocks ([kernel.kallsyms])\n  ffff82 io_write ([kernel.kallsyms])\n  \
                       ffff83 __do_sys_io_uring_enter ([kernel.kallsyms])";
        let cases = [
            (copying, Part::Udp),
            (writing, Part::Drive),
            (" 55 aws_lc_0_47_0_aes_gcm_enc_update_vaes_avx512 (/usr/bin/dlog)", Part::Crypto),
            (" 55 quinn_proto::connection::Connection::poll_transmit (/usr/bin/dlog)", Part::Quic),
            (" 55 <pyralog_engine::shard::Shard as core::clone::Clone>::clone (/usr/bin/dlog)", Part::Engine),
            (" 55 glommio::executor::LocalExecutor::run (/usr/bin/dlog)", Part::Runtime),
            (" 55 __memmove_avx512_unaligned_erms (/usr/lib/libc.so.6)", Part::Other),
            (" 55 [unknown] ([unknown])", Part::Other),
        ];
        for (sample, part) in cases {
            assert_eq!(Part::of_sample(sample), part, "{sample}");
        }
    }

    #[test]
    fn shares_add_up_and_few_samples_say_nothing() {
        let script = " 1 udp_sendmsg ([k])\n\n".repeat(75) + &" 1 crc32c::sum (dlog)\n\n".repeat(25);
        let expected = CpuShares { udp: 75.0, engine: 25.0, ..CpuShares::default() };
        assert_eq!(CpuShares::of(&script), Some(expected));
        assert_eq!(CpuShares::of(&" 1 udp_sendmsg ([k])\n\n".repeat(99)), None);
        assert_eq!(CpuShares::of(""), None);
    }
}
