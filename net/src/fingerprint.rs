//! How a client knows the server without a certificate authority: by the SHA-256 of its certificate.
//!
//! A fingerprint comes from the operator (`DLOG_FINGERPRINT`, an option, the builder) or, for a server of the same user
//! on the same machine, from a file that the server writes at start ([`publish`]) and a client of a loopback address
//! reads ([`published`]). The file lies in a folder that only this user can write, so it proves what trust on first use
//! only hopes: the server is one that this user started. A server in another data directory replaces the file; a
//! stranger's server on the port is refused.

use std::{
    env, fmt, fs, io,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use aws_lc_rs::digest;

/// The SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// Why a text is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no fingerprint: a fingerprint is 64 hexadecimal digits, with or without colons", .0.escape_debug())]
pub struct FingerprintError(String);

impl Fingerprint {
    /// The fingerprint of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Fingerprint(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let refuse = || FingerprintError(text.chars().take(80).collect());
        let digits: Vec<char> = text.trim().chars().filter(|c| *c != ':').collect();
        if digits.len() != 64 {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let digit = |c: char| c.to_digit(16).ok_or_else(refuse);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Fingerprint(bytes))
    }
}

/// Tells clients of this user on this machine the fingerprint of the server that listens at `listen`. Gives the files
/// written.
///
/// Errors: of the operating system, if no folder could be used; the server runs without, and its clients need the
/// fingerprint from the operator.
pub fn publish(listen: SocketAddr, fingerprint: Fingerprint) -> io::Result<Vec<PathBuf>> {
    publish_in(&folders(), listen, fingerprint)
}

/// The fingerprints that servers of this user published for `server`: at most one for its own address and one for the
/// wildcard address of its family on the same port. Empty if `server` is not on this machine's loopback.
pub fn published(server: SocketAddr) -> Vec<Fingerprint> {
    published_in(&folders(), server)
}

/// Where the files may lie: the user's runtime folder, and one in /tmp for those who have none. Both are written and
/// read, since the server may have been started with another environment than the client.
fn folders() -> Vec<PathBuf> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let shared = PathBuf::from(format!("/tmp/dlog-{}", user()));
    runtime.map(|folder| folder.join("dlog")).into_iter().chain([shared]).collect()
}

fn publish_in(folders: &[PathBuf], listen: SocketAddr, fingerprint: Fingerprint) -> io::Result<Vec<PathBuf>> {
    let (mut written, mut error) = (Vec::new(), None);
    for folder in folders {
        match write(folder, &file_name(listen), fingerprint) {
            Ok(file) => written.push(file),
            Err(reason) => error = Some(reason),
        }
    }
    match error {
        Some(error) if written.is_empty() => Err(error),
        _ => Ok(written),
    }
}

fn published_in(folders: &[PathBuf], server: SocketAddr) -> Vec<Fingerprint> {
    if !server.ip().to_canonical().is_loopback() {
        return Vec::new();
    }
    let wildcards = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let addresses = [server.ip().to_canonical()].into_iter().chain(wildcards);
    let names: Vec<String> = addresses.map(|ip| file_name(SocketAddr::new(ip, server.port()))).collect();
    let mut found = Vec::new();
    for folder in folders.iter().filter(|folder| is_ours_alone(folder).is_ok()) {
        for fingerprint in names.iter().filter_map(|name| read(&folder.join(name))) {
            if !found.contains(&fingerprint) {
                found.push(fingerprint);
            }
        }
    }
    found
}

fn file_name(listen: SocketAddr) -> String {
    // Colons of IPv6 addresses are fine in a Linux file name; `/` does not occur.
    format!("{}-{}.fingerprint", listen.ip().to_canonical(), listen.port())
}

fn write(folder: &Path, name: &str, fingerprint: Fingerprint) -> io::Result<PathBuf> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => is_ours_alone(folder)?,
    }
    let file = folder.join(name);
    // Written aside and renamed, so that a client never reads half of it.
    let aside = folder.join(format!(".{name}.{}", std::process::id()));
    let mut new = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    new.write_all(format!("{fingerprint}\n").as_bytes())?;
    fs::rename(&aside, &file)?;
    Ok(file)
}

/// Whether nobody but this user can have put anything into `folder`: it is a real folder, his, and closed to others'
/// writing. Somebody else may have made `/tmp/dlog-<uid>` first, or put a link there.
fn is_ours_alone(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    if found.is_dir() && found.uid() == user() && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let reason = format!("{} is not a folder that only this user can write", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// The fingerprint in a file of a folder that [`is_ours_alone`]. Anything unreadable counts as absent: verification
/// then fails with a message that says how to pin.
fn read(file: &Path) -> Option<Fingerprint> {
    let mut text = String::new();
    fs::File::open(file).ok()?.take(200).read_to_string(&mut text).ok()?;
    text.parse().ok()
}

fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ONE: Fingerprint = Fingerprint([1; 32]);
    const TWO: Fingerprint = Fingerprint([0xab; 32]);

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_fingerprint_is_read_as_it_is_printed_and_as_openssl_prints_it() {
        assert_eq!(TWO.to_string().parse(), Ok(TWO));
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(format!(" {colons}\n").parse(), Ok(TWO));
        for bad in ["", "ab", &"g".repeat(64), &"ä".repeat(64), &"a".repeat(65)] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_fingerprint_is_the_sha256_of_the_certificate() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Fingerprint::of(b"").to_string(), empty);
    }

    #[test]
    fn a_client_finds_the_server_of_its_port_also_behind_a_wildcard_address() {
        let root = tempfile::tempdir().unwrap();
        let folders = [root.path().join("a"), root.path().join("b")];
        assert!(published_in(&folders, addr("127.0.0.1:9092")).is_empty());
        publish_in(&folders, addr("127.0.0.1:9092"), ONE).unwrap();
        publish_in(&folders, addr("0.0.0.0:9092"), TWO).unwrap();
        assert_eq!(published_in(&folders, addr("127.0.0.1:9092")), [ONE, TWO]);
        assert_eq!(published_in(&folders, addr("[::1]:9092")), [TWO]);
        assert!(published_in(&folders, addr("127.0.0.1:9093")).is_empty());
        assert!(published_in(&folders, addr("192.0.2.1:9092")).is_empty(), "only loopback is the same machine");
    }

    #[test]
    fn the_next_server_on_the_port_replaces_what_the_last_one_published() {
        let root = tempfile::tempdir().unwrap();
        let folders = [root.path().join("a")];
        publish_in(&folders, addr("127.0.0.1:1"), ONE).unwrap();
        let files = publish_in(&folders, addr("127.0.0.1:1"), TWO).unwrap();
        assert_eq!(published_in(&folders, addr("127.0.0.1:1")), [TWO]);
        assert_eq!(fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_folder_that_others_can_write_is_neither_written_nor_believed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("open");
        publish_in(std::slice::from_ref(&folder), addr("127.0.0.1:1"), ONE).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(published_in(std::slice::from_ref(&folder), addr("127.0.0.1:1")).is_empty());
        assert!(publish_in(std::slice::from_ref(&folder), addr("127.0.0.1:1"), TWO).is_err());
        let link = root.path().join("link");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(published_in(&[link], addr("127.0.0.1:1")).is_empty(), "a link may lead anywhere");
    }
}
