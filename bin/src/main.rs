//! dlog
fn main() {}
