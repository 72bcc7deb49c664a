//! What must not be in the repository at all: the paths of one person's machine, package mirrors, forced toolchains.

use crate::{Violation, tree::Tree};

/// The one registry that manifests and lock file may name.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// This file must name what it refuses.
const THIS: &str = "scripts/tidy/src/rules/places.rs";

/// Refuses what holds only on one machine.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    for (path, text) in tree.texts.iter().filter(|(path, _)| path.as_str() != THIS) {
        forbidden_file(path, &mut broken);
        for (index, line) in text.lines().enumerate() {
            machine_path(path, index + 1, line, &mut broken);
            if path.ends_with("Cargo.lock") || path.ends_with(".toml") {
                foreign_registry(path, index + 1, line, &mut broken);
            }
        }
    }
    broken
}

fn forbidden_file(path: &str, broken: &mut Vec<Violation>) {
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.starts_with("rust-toolchain") {
        let message = "forces the download of a toolchain; `rust-version` in Cargo.toml says what is needed";
        broken.push(Violation::new(path, 1, "toolchain", message));
    }
    if path.contains(".cargo/config") {
        let message = "holds one machine's settings for everybody; put build settings into Cargo.toml";
        broken.push(Violation::new(path, 1, "registry", message));
    }
}

fn machine_path(path: &str, number: usize, line: &str, broken: &mut Vec<Violation>) {
    // `/home/you` and the like in documents are invitations to fill in a name.
    const HOMES: [&str; 4] = ["/work/", "/root/", "/home/", "/Users/"];
    for home in HOMES {
        for (at, _) in line.match_indices(home) {
            let within = line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-*}$".contains(c));
            if !within {
                let message = format!("`{home}…` exists on one machine only; make the path relative or a parameter");
                broken.push(Violation::new(path, number, "machine-path", message));
            }
        }
    }
}

fn foreign_registry(path: &str, number: usize, line: &str, broken: &mut Vec<Violation>) {
    let line = line.trim();
    let foreign_source = line.starts_with("source = ") && !line.contains(CRATES_IO);
    let settings = ["[source.", "[registries", "[registry", "replace-with", "registry = ", "index = "];
    if foreign_source || settings.iter().any(|setting| line.starts_with(setting)) {
        let message = "names a registry other than crates.io; mirrors belong into a user's own settings";
        broken.push(Violation::new(path, number, "registry", message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        check(&Tree::of_files([(path, text)])).into_iter().map(|violation| violation.rule).collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn paths_of_one_machine_are_refused() {
        assert_eq!(rules("docs/a.md", "see /home/anna/x"), ["machine-path"]);
        assert_eq!(rules("scripts/a", "cd \"/root/x\""), ["machine-path"]);
        assert_eq!(rules("scripts/a", "cd \"$top/work/x\" $HOME/home/ https://x.org/home/"), NONE);
    }

    #[test]
    fn one_registry_is_named() {
        assert_eq!(rules("Cargo.lock", "source = \"registry+https://mirror.example/index\""), ["registry"]);
        assert_eq!(rules("Cargo.lock", &format!("source = \"{CRATES_IO}\"")), NONE);
        assert_eq!(rules(".cargo/config.toml", "[build]"), ["registry"]);
        assert_eq!(rules("Cargo.toml", "[source.crates-io]"), ["registry"]);
    }

    #[test]
    fn nobody_is_made_to_download_a_toolchain() {
        assert_eq!(rules("rust-toolchain.toml", ""), ["toolchain"]);
    }
}
