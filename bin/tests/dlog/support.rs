//! A real server in a directory of its own on the real disk, and the real command line to drive it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long anything may take before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, without variables of the environment that would change what it does.
pub fn dlog() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlog"));
    std::env::vars().filter(|(name, _)| name.starts_with("DLOG_")).for_each(|(name, _)| _ = command.env_remove(name));
    command
}

/// A directory that goes with the test; not in memory, where direct I/O reaches no drive.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A running server. Dropped, it is killed.
pub struct Server {
    child: Child,
    /// Where its clients reach it.
    pub address: String,
    /// Where its pages are.
    pub http: String,
    /// What it printed until it was ready.
    pub lines: Vec<String>,
    rest: mpsc::Receiver<String>,
}

impl Server {
    /// Starts one on `data` with free ports.
    pub fn start(data: &Path, flags: &[&str]) -> Server {
        Server::start_at("127.0.0.1:0", data, flags)
    }

    /// Starts one that is reached at `address`.
    pub fn start_at(address: &str, data: &Path, flags: &[&str]) -> Server {
        let mut child = serve_at(address, data, flags).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, rest) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| _ = sender.send(line))
        });
        // From here on dropping it kills the process, also when it never becomes ready.
        let mut server = Server { child, address: String::new(), http: String::new(), lines: Vec::new(), rest };
        loop {
            let line = server.rest.recv_timeout(PATIENCE);
            server.lines.push(line.unwrap_or_else(|_| panic!("not ready: {:#?}", server.lines)));
            let Some(ready) = server.lines.last().filter(|line| line.starts_with("ready")) else { continue };
            let word = |before: &str| ready.split(before).nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
            (server.address, server.http) = (word("udp "), word("http://"));
            return server;
        }
    }

    /// A client's command for this server.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = dlog();
        command.args(["--server", &self.address]).args(args);
        command
    }

    /// Runs a client's command that must succeed; its stdout.
    pub fn run(&self, args: &[&str]) -> Vec<u8> {
        succeeded(self.command(args).output().unwrap(), args)
    }

    /// The same as text.
    pub fn text(&self, args: &[&str]) -> String {
        String::from_utf8(self.run(args)).unwrap()
    }

    /// The same with `input` on stdin.
    pub fn feed(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        succeeded(self.fed(args, input), args)
    }

    /// [`Server::refused`] with `input` on stdin.
    pub fn feed_refused(&self, args: &[&str], input: &[u8]) -> (i32, String) {
        failed(self.fed(args, input))
    }

    fn fed(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        // A command that fails may end before it has read everything.
        let _ = writer.join().unwrap();
        output
    }

    /// Runs a client's command that must fail; its exit code and stderr.
    pub fn refused(&self, args: &[&str]) -> (i32, String) {
        failed(self.command(args).output().unwrap())
    }

    /// A page of the server.
    pub fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// A page that is JSON.
    pub fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.page(path).1).unwrap()
    }

    /// What `/status` has at `pointer`, once it is as `wanted`; not for ever.
    pub fn status_once(&self, pointer: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.json("/status");
            if let Some(value) = status.pointer(pointer).filter(|value| wanted(value)) {
                return value.clone();
            }
            assert!(Instant::now() < until, "{pointer} never became what it should: {status:#}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it as a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end; the exit code and what it printed since it was ready.
    pub fn ended(mut self) -> (i32, Vec<String>) {
        let code = wait(&mut self.child).code().unwrap();
        (code, self.rest.iter().collect())
    }

    /// Stops it in good order.
    pub fn stop(self) {
        self.signal(Signal::SIGTERM);
        let (code, lines) = self.ended();
        assert_eq!(code, 0, "{lines:#?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that starts a server on `data` with free ports.
pub fn serve(data: &Path, flags: &[&str]) -> Command {
    serve_at("127.0.0.1:0", data, flags)
}

fn serve_at(address: &str, data: &Path, flags: &[&str]) -> Command {
    let mut command = dlog();
    command.args(["serve", "--listen", address, "--http", "127.0.0.1:0", "--data-dir"]).arg(data);
    // Small segments: they are filled ahead of use, and tests write little.
    command.args(["--set", "storage.segment_config.max_size=16MiB"]).args(flags);
    command
}

/// Runs a server that must not start; its exit code and stderr.
pub fn start_refused(mut command: Command) -> (i32, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait(&mut child);
    failed(child.wait_with_output().unwrap())
}

/// Waits for `child`, but not for ever.
pub fn wait(child: &mut Child) -> std::process::ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("process {} does not end", child.id());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn succeeded(output: Output, args: &[&str]) -> Vec<u8> {
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The exit code and stderr of what failed.
pub fn failed(output: Output) -> (i32, String) {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "it should have failed: {stderr}");
    (output.status.code().unwrap(), stderr)
}

/// A file of `lines` lines of different lengths, some of them empty, not all of them text.
pub fn sample_file(directory: &Path, lines: usize) -> (PathBuf, Vec<u8>) {
    let mut bytes = Vec::new();
    for line in 0..lines {
        bytes.extend((0..line * 7919 % 97).map(|i| b' ' + ((line + i) % 180) as u8));
        bytes.push(b'\n');
    }
    let path = directory.join("sample.txt");
    fs::write(&path, &bytes).unwrap();
    (path, bytes)
}
