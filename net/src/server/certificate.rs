//! Who the server is: its certificate, made on first start, and the secrets that all its cores share.
//!
//! `<data>/tls/` holds `cert.pem`, `key.pem` (0600) and `fingerprint`, the SHA-256 of the certificate, which clients
//! pin. An operator may put a certificate and key of their own there.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::{hkdf, hmac};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::NoServerSessionStorage,
};
use thiserror::Error;

use crate::{fingerprint::Fingerprint, tls::crypto_provider, wire::ALPN};

/// Why the certificate could not be had.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file could not be read or written.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        reason: io::Error,
    },
    /// One of the two files is missing. We never replace what an operator may have put there.
    #[error("{present} exists but {missing} does not: restore it, or remove both to have a new certificate made")]
    HalfMissing {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// A file holds something else.
    #[error("{path} is refused: {reason}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The server's certificate and secrets; made once in the main thread, shared by all cores.
#[derive(Clone)]
pub struct ServerIdentity {
    fingerprint: Fingerprint,
    pub(super) crypto: Arc<QuicServerConfig>,
    pub(super) secrets: Secrets,
}

/// Keys that every core must share, since any core may get any packet. They are derived from the private key, so that
/// they survive a restart: a client of the old process then gets a stateless reset that it believes, and reconnects at
/// once instead of waiting for its idle timeout.
#[derive(Clone)]
pub(super) struct Secrets {
    pub reset_key: Arc<hmac::Key>,
    pub token_key: Arc<hkdf::Prk>,
    pub cid_key: [u8; 16],
}

impl Secrets {
    fn derive(private_key: &[u8]) -> Self {
        let extract = |label: &[u8]| hkdf::Salt::new(hkdf::HKDF_SHA256, label).extract(private_key);
        let expand = |label: &[u8]| {
            let mut bytes = [0; 32];
            let key = extract(label);
            let expanded = key.expand(&[b"dlog/1"], hkdf::HKDF_SHA256);
            expanded.and_then(|okm| okm.fill(&mut bytes)).expect("32 bytes"); // why: HKDF-SHA256 gives up to 8160 bytes
            bytes
        };
        let mut cid_key = [0; 16];
        cid_key.copy_from_slice(&expand(b"connection ids")[..16]);
        Secrets {
            reset_key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &expand(b"stateless resets"))),
            token_key: Arc::new(extract(b"address tokens")),
            cid_key,
        }
    }
}

impl ServerIdentity {
    /// The certificate of a server with these data directories: that of the first which has one. The others are given
    /// copies, so that a drive that is replaced does not take away what clients know the server by.
    ///
    /// Errors: see [`CertificateError`]. A directory that cannot take its copy is none.
    pub fn load_or_create_in(data_dirs: &[PathBuf]) -> Result<Self, CertificateError> {
        let has_one = |dir: &&PathBuf| ["cert.pem", "key.pem"].iter().any(|file| dir.join("tls").join(file).exists());
        let Some(first) = data_dirs.iter().find(has_one).or(data_dirs.first()) else {
            let reason = io::Error::new(io::ErrorKind::NotFound, "there is no data directory");
            return Err(CertificateError::File { path: PathBuf::from("tls"), reason });
        };
        let identity = Self::load_or_create(first)?;
        for other in data_dirs.iter().filter(|dir| *dir != first) {
            if let Err(error) = copy(&first.join("tls"), &other.join("tls")) {
                tracing::warn!(%error, "a data directory has no copy of the certificate");
            }
        }
        Ok(identity)
    }

    /// Loads the certificate in `<data>/tls`, or makes a self-signed one there.
    ///
    /// Errors: see [`CertificateError`].
    pub fn load_or_create(data_dir: &Path) -> Result<Self, CertificateError> {
        let dir = data_dir.join("tls");
        let (cert_path, key_path) = (dir.join("cert.pem"), dir.join("key.pem"));
        let (cert, key) = match (read(&cert_path)?, read(&key_path)?) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) => create(&dir, &cert_path, &key_path)?,
            (Some(_), None) => return Err(CertificateError::HalfMissing { present: cert_path, missing: key_path }),
            (None, Some(_)) => return Err(CertificateError::HalfMissing { present: key_path, missing: cert_path }),
        };
        let identity = Self::from_pem(&cert, &key).map_err(|(file, reason)| {
            let path = if file == PemFile::Certificate { cert_path } else { key_path };
            CertificateError::Refused { path, reason }
        })?;
        // It is there from the last start, unless the certificate was exchanged; a full drive has no room to write it
        // anew.
        let (noted, text) = (dir.join("fingerprint"), format!("{}\n", identity.fingerprint));
        if fs::read_to_string(&noted).ok().as_ref() != Some(&text) {
            write(&noted, text.as_bytes(), 0o644)?;
        }
        Ok(identity)
    }

    /// The SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, (PemFile, String)> {
        let certificate = |reason: String| (PemFile::Certificate, reason);
        let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| certificate(e.to_string()))?;
        let first = chain.first().ok_or_else(|| certificate("it holds no certificate".to_owned()))?;
        let fingerprint = Fingerprint::of(first);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| (PemFile::Key, e.to_string()))?;
        let secrets = Secrets::derive(key.secret_der());
        let crypto = server_crypto(chain, key).map_err(|e| (PemFile::Key, e))?;
        Ok(ServerIdentity { fingerprint, crypto, secrets })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PemFile {
    Certificate,
    Key,
}

fn server_crypto(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<QuicServerConfig>, String> {
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).map_err(|e| e.to_string())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Our order of ciphers, not the client's.
    config.ignore_client_order = true;
    // No 0-RTT: a replayed request would be a second write. And no resumption: connections live long, and the sessions
    // would be shared state between cores.
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(|e| e.to_string())?))
}

fn create(dir: &Path, cert_path: &Path, key_path: &Path) -> Result<(Vec<u8>, Vec<u8>), CertificateError> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names)
        .map_err(|e| CertificateError::Refused { path: cert_path.to_owned(), reason: e.to_string() })?;
    let (cert, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
    let mut builder = fs::DirBuilder::new();
    let made_dir = builder.recursive(true).mode(0o755).create(dir);
    made_dir.map_err(|reason| CertificateError::File { path: dir.to_owned(), reason })?;
    // The key first: a crash in between leaves a key alone, which the next start reports rather than overwrites.
    write(key_path, &key, 0o600)?;
    write(cert_path, &cert, 0o644)?;
    Ok((cert, key))
}

/// Makes the certificate and the key in `to` those in `from`.
fn copy(from: &Path, to: &Path) -> Result<(), CertificateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(to);
    made.map_err(|reason| CertificateError::File { path: to.to_owned(), reason })?;
    for (file, mode) in [("key.pem", 0o600), ("cert.pem", 0o644), ("fingerprint", 0o644)] {
        let (bytes, there) = (read(&from.join(file))?, read(&to.join(file))?);
        if let Some(bytes) = bytes.filter(|bytes| there.as_ref() != Some(bytes)) {
            write(&to.join(file), &bytes, mode)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CertificateError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(reason) if reason.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(CertificateError::File { path: path.to_owned(), reason }),
    }
}

/// Writes a file aside and renames it, so that it is there whole or not at all.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CertificateError> {
    let aside = path.with_extension("new");
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    })();
    written.map_err(|reason| CertificateError::File { path: path.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_certificate_is_made_once_and_found_again() {
        let data = tempfile::tempdir().unwrap();
        let made = ServerIdentity::load_or_create(data.path()).unwrap();
        let found = ServerIdentity::load_or_create(data.path()).unwrap();
        assert_eq!(made.fingerprint(), found.fingerprint());
        assert_eq!(made.secrets.cid_key, found.secrets.cid_key, "resets would not outlive a restart");
        let key = fs::metadata(data.path().join("tls/key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let noted = fs::read_to_string(data.path().join("tls/fingerprint")).unwrap();
        assert_eq!(noted.trim(), made.fingerprint().to_string());
    }

    #[test]
    fn the_certificate_outlives_the_loss_of_any_data_directory() {
        let data = tempfile::tempdir().unwrap();
        let dirs = ["a", "b", "c"].map(|name| data.path().join(name));
        let made = ServerIdentity::load_or_create_in(&dirs).unwrap().fingerprint();
        for dir in &dirs {
            fs::remove_dir_all(dir).unwrap();
            assert_eq!(ServerIdentity::load_or_create_in(&dirs).unwrap().fingerprint(), made);
            let key = fs::metadata(dir.join("tls/key.pem")).unwrap();
            assert_eq!(key.permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn half_an_identity_or_a_broken_one_is_an_error_that_names_the_file() {
        let data = tempfile::tempdir().unwrap();
        ServerIdentity::load_or_create(data.path()).unwrap();
        let key = data.path().join("tls/key.pem");
        fs::write(&key, "nonsense").unwrap();
        let error = ServerIdentity::load_or_create(data.path()).err().unwrap();
        assert!(error.to_string().contains("key.pem"), "{error}");
        fs::remove_file(&key).unwrap();
        let error = ServerIdentity::load_or_create(data.path()).err().unwrap();
        assert!(matches!(error, CertificateError::HalfMissing { .. }), "{error}");
    }
}
