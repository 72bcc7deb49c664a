//! Pyralog's wire protocol, QUIC front end and client.

pub mod client;
pub mod fingerprint;
pub mod steering;
pub mod tls;
pub mod wire;
