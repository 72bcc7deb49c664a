//! The tracked files, read once. Tests make small trees from snippets.

use std::{collections::BTreeMap, io, path::Path, process::Command};

use crate::{
    Violation,
    rules::orphans,
    source::{Source, SourceKind},
};

/// The text files of a repository by their path from its top; Rust files also parsed.
#[derive(Default)]
pub struct Tree {
    /// All text files.
    pub texts: BTreeMap<String, String>,
    /// The Rust files among them.
    pub sources: BTreeMap<String, Source>,
    /// Files that could not be judged.
    pub unreadable: Vec<Violation>,
}

impl Tree {
    /// The files that git tracks, or would track, below `top`.
    ///
    /// Errors: git is missing or `top` is no repository.
    pub fn of_repository(top: &Path) -> io::Result<Tree> {
        let git = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let listed = Command::new("git").arg("-C").arg(top).args(git).output()?;
        if !listed.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&listed.stderr).into_owned()));
        }
        let names = String::from_utf8_lossy(&listed.stdout).into_owned();
        let mut files = Vec::new();
        for name in names.split('\0').filter(|name| !name.is_empty()) {
            // A file that was deleted but not yet committed so is still listed; one that is no UTF-8 is no text.
            if let Ok(text) = std::fs::read_to_string(top.join(name)) {
                files.push((name.to_owned(), text));
            }
        }
        Ok(Tree::of_files(files))
    }

    /// A tree of these paths and texts.
    pub fn of_files<P: Into<String>, T: Into<String>>(files: impl IntoIterator<Item = (P, T)>) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in files {
            let (path, text) = (path.into(), text.into());
            if path.ends_with(".rs") {
                match Source::parse(&path, &text) {
                    Ok(source) => drop(tree.sources.insert(path.clone(), source)),
                    Err(e) => {
                        let message = format!("is not Rust: {e}");
                        tree.unreadable.push(Violation::new(&path, e.span().start().line, "syntax", message));
                    }
                }
            }
            tree.texts.insert(path, text);
        }
        for path in orphans::reached_only_for_tests(&tree) {
            if let Some(source) = tree.sources.get_mut(&path) {
                source.kind = SourceKind::Test;
            }
        }
        tree
    }

    /// Whether a tracked file or a folder with tracked files has this path.
    pub fn has(&self, path: &str) -> bool {
        if path.is_empty() || self.texts.contains_key(path) {
            return true;
        }
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.texts.range(folder.clone()..).next().is_some_and(|(next, _)| next.starts_with(&folder))
    }

    /// The Rust files in one of these folders.
    pub fn sources_in<'a>(&'a self, folders: &'a [&'a str]) -> impl Iterator<Item = &'a Source> {
        self.sources.values().filter(move |source| folders.iter().any(|folder| source.path.starts_with(folder)))
    }
}
