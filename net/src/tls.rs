//! The cryptography that client and server share.

use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};

/// aws-lc, AES-128-GCM first: with AES instructions it is the fastest; ChaCha20 takes three times as long.
pub fn crypto_provider() -> CryptoProvider {
    let cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    CryptoProvider { cipher_suites, ..provider::default_provider() }
}
