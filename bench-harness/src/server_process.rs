//! A server of its own for suites that need one to be started, stopped, killed, or set up in a certain way.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    args::{CommonArgs, ServerArgs},
    target::HarnessError,
};

/// How long a server may take to be ready: a recovery of tens of gigabytes is done by then.
const READY: Duration = Duration::from_secs(120);
/// How long it may take to stop after SIGTERM: it drains for 30 s at most.
const STOPPED: Duration = Duration::from_secs(60);
/// How often to look.
const GLANCE: Duration = Duration::from_millis(2);

/// A running server. Killed when dropped, if it was not stopped before.
pub struct ServerProcess {
    child: Child,
    /// Where clients reach it.
    pub address: String,
    /// Where its pages are.
    pub http: String,
    /// From the start of the process until it said that it is ready.
    pub ready_after: Duration,
}

/// The folder of the servers of a suite; removed with all in it when dropped.
pub struct ServerFolder {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl ServerFolder {
    /// A new folder where the command line says, for servers of the program that it names, else of the `dlog` beside
    /// this program.
    ///
    /// Errors: there is no such program; the folder cannot be made.
    pub fn new(args: &ServerArgs) -> Result<Self, HarnessError> {
        let program = match &args.dlog {
            Some(program) => program.clone(),
            None => beside_this_program().map_err(HarnessError::system("finding this program"))?,
        };
        if !program.is_file() {
            let program = program.display();
            return Err(HarnessError::Usage(format!("there is no {program}; build it, or name it with --dlog")));
        }
        let folder = tempfile::Builder::new().prefix("bench-data-").tempdir_in(&args.data_dir);
        let folder = folder.map_err(HarnessError::system(format!("making a folder in {}", args.data_dir.display())))?;
        Ok(ServerFolder { folder, program })
    }

    /// Where the data of the server of this name are.
    pub fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a server with the data of this name and these flags, and waits until it is ready.
    ///
    /// Errors: it ends, or is not ready in time; the message has what it said.
    pub fn start(&self, name: &str, flags: &[&str]) -> Result<ServerProcess, HarnessError> {
        let doing = || format!("starting {}", self.program.display());
        let log = self.folder.path().join(format!("{name}.log"));
        let begin = Instant::now();
        let child = self.spawn(name, flags, &log).map_err(HarnessError::system(doing()))?;
        let (address, http) = (String::new(), String::new());
        let mut server = ServerProcess { child, address, http, ready_after: Duration::ZERO };
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if let Some((address, http)) = said.lines().find_map(addresses) {
                (server.address, server.http, server.ready_after) = (address, http, begin.elapsed());
                return Ok(server);
            }
            let ended = server.child.try_wait().map_err(HarnessError::system(doing()))?;
            if ended.is_some() || begin.elapsed() > READY {
                let error = io::Error::other(format!("it is not ready; it said:\n{said}"));
                return Err(HarnessError::system(doing())(error));
            }
            std::thread::sleep(GLANCE);
        }
    }

    fn spawn(&self, name: &str, flags: &[&str], log: &Path) -> io::Result<Child> {
        let out = File::create(log)?;
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--data-dir").arg(self.data(name));
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(flags);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()
    }
}

impl ServerProcess {
    /// These options, for this server.
    pub fn args(&self, common: &CommonArgs) -> CommonArgs {
        CommonArgs { server: self.address.clone(), http: Some(self.http.clone()), ..common.clone() }
    }

    /// Asks it to stop, and waits until it did.
    ///
    /// Errors: it did not, or not well.
    pub fn stop(mut self) -> Result<(), HarnessError> {
        let stopped = self.signal(Signal::TERM).and_then(|()| {
            let begin = Instant::now();
            loop {
                match self.child.try_wait()? {
                    Some(status) if status.success() => return Ok(()),
                    Some(status) => return Err(io::Error::other(format!("it ended with {status}"))),
                    None if begin.elapsed() > STOPPED => return Err(io::ErrorKind::TimedOut.into()),
                    None => std::thread::sleep(GLANCE),
                }
            }
        });
        stopped.map_err(HarnessError::system("stopping the server"))
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn kill(mut self) -> Result<(), HarnessError> {
        let killed = self.signal(Signal::KILL).and_then(|()| self.child.wait().map(drop));
        killed.map_err(HarnessError::system("killing the server"))
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Nothing more can be done for one that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `dlog` in the folder of this program, or in the one above, where cargo puts it when this is a benchmark.
fn beside_this_program() -> io::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folders = this.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("dlog")).find(|program| program.is_file());
    Ok(found.unwrap_or_else(|| this.with_file_name("dlog")))
}

/// The addresses in the line by which a server says that it is ready.
fn addresses(line: &str) -> Option<(String, String)> {
    let rest = line.strip_prefix("ready ")?;
    let mut words = rest.split_whitespace();
    let address = words.by_ref().skip_while(|word| *word != "udp").nth(1)?;
    let http = words.find(|word| word.starts_with("http://"))?;
    Some((address.to_owned(), http.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_in_the_line_that_says_ready() {
        let line = "ready  clients: udp 127.0.0.1:37565  status: http://127.0.0.1:29572  certificate: 7c8d";
        let expected = ("127.0.0.1:37565".to_owned(), "http://127.0.0.1:29572".to_owned());
        assert_eq!(addresses(line), Some(expected));
        assert_eq!(addresses("data  somewhere"), None);
    }

    #[test]
    fn a_program_that_is_not_there_or_ends_at_once_is_an_error_that_tells() {
        let args =
            |dlog: &str| ServerArgs { dlog: Some(dlog.into()), data_dir: std::env::temp_dir(), server_cpu: None };
        assert!(matches!(ServerFolder::new(&args("/no/such/dlog")), Err(HarnessError::Usage(_))));
        let folder = ServerFolder::new(&args("/bin/echo")).unwrap();
        let error = folder.start("x", &["hello"]).err().unwrap().to_string();
        assert!(error.contains("serve --data-dir") && error.contains("hello"), "{error}");
    }
}
