//! Arbitrary text as a configuration file, and its lines as `--set` flags and as environment variables. A configuration
//! that is accepted must be accepted again from what it says of itself.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pyralog_tuning::{Inputs, Settings};

fuzz_target!(|text: &str| {
    let path = Path::new("dlog.json");
    match Settings::of_texts(&Inputs::default(), Some((path, text))) {
        Ok(settings) => {
            let shown = serde_json::to_string(settings.config()).expect("a configuration can be shown");
            let again = Settings::of_texts(&Inputs::default(), Some((path, &shown)));
            let again = again.unwrap_or_else(|error| panic!("{shown} is refused: {error}"));
            assert_eq!(settings.config(), again.config());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let mut inputs = Inputs::default();
    for line in text.lines().take(20) {
        let _ = inputs.set(line);
        if let Some((name, value)) = line.split_once('=') {
            inputs.environment.push((format!("DLOG_{name}"), value.to_owned()));
        }
    }
    if let Ok(settings) = Settings::of_texts(&inputs, None) {
        assert_eq!(settings.entries().len(), pyralog_tuning::keys::KEYS.len());
    }
});
