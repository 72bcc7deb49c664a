//! Pyralog's wire protocol, QUIC front end and client.

pub mod wire;
