//! Pyralog's wire protocol, QUIC front end and client.

pub mod client;
pub mod fingerprint;
pub mod quic_on_glommio;
pub mod server;
pub mod steering;
pub mod tls;
pub mod wire;
