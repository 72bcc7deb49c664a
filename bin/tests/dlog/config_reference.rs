//! `docs/CONFIG.md` is what the code says.

use std::{fs, path::Path};

#[test]
fn the_configuration_reference_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFIG.md");
    let output = crate::support::dlog().args(["config", "reference"]).output().unwrap();
    let generated = String::from_utf8(output.stdout).unwrap();
    if std::env::var_os("PYRALOG_UPDATE_DOCS").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == generated, "docs/CONFIG.md is out of date; its first lines say how to write it anew");
}
