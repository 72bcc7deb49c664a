//! How the client makes sure that the server is the right one: by a pinned fingerprint, or by certificate authorities.

use std::sync::{Arc, Mutex, PoisonError};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use super::error::{Error, Result};
use crate::{fingerprint::Fingerprint, tls::crypto_provider, wire::ALPN};

/// Whom to trust.
#[derive(Clone, Debug)]
pub(super) enum Trust {
    /// The fingerprints given; if none is, those that servers of this user published for a loopback address.
    Pinned(Vec<Fingerprint>),
    /// Certificates of these authorities for this name.
    Authorities(Arc<RootCertStore>, String),
}

/// What the server showed, for the error message.
pub(super) type Seen = Arc<Mutex<Option<Fingerprint>>>;

/// Certificates in PEM as authorities.
///
/// Errors: `Setting`.
pub(super) fn authorities(pem: &[u8]) -> Result<Arc<RootCertStore>> {
    let refuse =
        |reason: String| Error::Setting { reason: format!("the certificate authorities are refused: {reason}") };
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        store.add(certificate.map_err(|e| refuse(e.to_string()))?).map_err(|e| refuse(e.to_string()))?;
    }
    if store.is_empty() {
        return Err(refuse("there is no certificate in them".to_owned()));
    }
    Ok(Arc::new(store))
}

/// The TLS side of a connection, and where to find what the server showed.
pub(super) fn client_crypto(pins: &[Fingerprint], trust: &Trust) -> Result<(QuicClientConfig, Seen)> {
    let refuse = |e: &dyn std::fmt::Display| Error::Setting { reason: format!("TLS cannot be set up: {e}") };
    let provider = Arc::new(crypto_provider());
    let seen = Seen::default();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| refuse(&e))?;
    let mut config = match trust {
        Trust::Authorities(store, _) => builder.with_root_certificates(Arc::clone(store)).with_no_client_auth(),
        Trust::Pinned(_) => {
            let verifier = PinnedServer { pins: pins.to_vec(), provider, seen: Arc::clone(&seen) };
            // "Dangerous" because it replaces the check by authorities; this one is as strict: one certificate, by its
            // hash.
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    Ok((QuicClientConfig::try_from(config).map_err(|e| refuse(&e))?, seen))
}

/// Accepts a server whose certificate has one of these fingerprints and that holds the certificate's key.
#[derive(Debug)]
struct PinnedServer {
    pins: Vec<Fingerprint>,
    provider: Arc<CryptoProvider>,
    seen: Seen,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let fingerprint = Fingerprint::of(end_entity);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(fingerprint);
        if self.pins.contains(&fingerprint) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
