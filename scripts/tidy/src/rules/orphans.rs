//! Every Rust file is named by a `mod`, else it is compiled by nobody, and begins with a `//!` that says what it owns
//! and why.

use std::collections::{BTreeMap, BTreeSet};

use syn::{AttrStyle, Expr, Item, Lit, Meta};

use crate::{
    Violation,
    source::{Source, SourceKind, is_test_attribute},
    tree::Tree,
};

/// Refuses files without a parent and files without an introduction.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let reached = reach(tree);
    let mut broken = Vec::new();
    for source in tree.sources.values() {
        if !reached.contains_key(&source.path) {
            let message = "no `mod` names this file, so nobody compiles it; name it or delete it";
            broken.push(Violation::new(&source.path, 1, "orphan", message));
        }
        let introduced = source
            .syntax
            .attrs
            .iter()
            .any(|attribute| matches!(attribute.style, AttrStyle::Inner(_)) && attribute.path().is_ident("doc"));
        if !introduced {
            let message = "no `//!` at the top; say what this file owns and why it exists";
            broken.push(Violation::new(&source.path, 1, "introduction", message));
        }
    }
    broken
}

/// The files that are compiled only for tests because a `#[cfg(test)] mod` names them, or one that does is named so.
pub fn reached_only_for_tests(tree: &Tree) -> Vec<String> {
    reach(tree).into_iter().filter(|(_, test)| *test).map(|(path, _)| path).collect()
}

/// Every file reached from a crate's root, and whether only tests reach it.
fn reach(tree: &Tree) -> BTreeMap<String, bool> {
    let mut reached = BTreeMap::new();
    let mut open: Vec<_> = tree
        .sources
        .values()
        .filter(|source| is_root(tree, &source.path))
        .map(|source| (source.path.clone(), source.kind == SourceKind::Test))
        .collect();
    while let Some((path, test)) = open.pop() {
        if reached.get(&path).is_some_and(|before| !before || test) {
            continue;
        }
        reached.insert(path.clone(), test);
        let source = &tree.sources[&path];
        let mut children = BTreeSet::new();
        let folder = children_folder(tree, source);
        named_modules(&source.syntax.items, &folder, test, &mut children);
        for (candidate, test) in children {
            if tree.sources.contains_key(&candidate) {
                open.push((candidate, test));
            }
        }
    }
    reached
}

/// Whether cargo compiles this file by itself: by its place, or because a manifest gives its path.
fn is_root(tree: &Tree, path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = folder.rsplit('/').next().unwrap_or_default();
    let grandparent = folder.rsplit('/').nth(1).unwrap_or_default();
    let by_place = match (grandparent, parent, name) {
        (_, _, "build.rs") => tree.has(&format!("{folder}/Cargo.toml")),
        (_, "src", "lib.rs" | "main.rs") | ("src", "bin", _) => true,
        (_, "tests" | "benches" | "examples", _) => tree.has(&format!("{}/Cargo.toml", parent_of(folder))),
        ("tests" | "benches" | "examples" | "bin", _, "main.rs") => true,
        _ => false,
    };
    let by_manifest = || {
        let manifests = tree.texts.iter().filter(|(path, _)| path.ends_with("Cargo.toml"));
        manifests.into_iter().any(|(manifest, text)| {
            let within = path.strip_prefix(parent_of(manifest)).map(|rest| rest.trim_start_matches('/'));
            within.is_some_and(|within| text.contains(&format!("\"{within}\"")))
        })
    };
    by_place || by_manifest()
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Where the modules that a file names lie: beside a root or a `mod.rs`, else in the folder of the file's own name.
fn children_folder(tree: &Tree, source: &Source) -> String {
    let (folder, name) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    match name.trim_end_matches(".rs") {
        "mod" => folder.to_owned(),
        _ if is_root(tree, &source.path) => folder.to_owned(),
        stem => format!("{folder}/{stem}"),
    }
}

fn named_modules(items: &[Item], folder: &str, test: bool, into: &mut BTreeSet<(String, bool)>) {
    for item in items {
        let Item::Mod(module) = item else { continue };
        let test = test || module.attrs.iter().any(is_test_attribute);
        let name = module.ident.to_string();
        match &module.content {
            Some((_, items)) => named_modules(items, &format!("{folder}/{name}"), test, into),
            None => {
                let path = module.attrs.iter().find_map(path_attribute);
                let names =
                    path.map_or_else(|| vec![format!("{name}.rs"), format!("{name}/mod.rs")], |path| vec![path]);
                into.extend(names.into_iter().map(|name| (join(folder, &name), test)));
            }
        }
    }
}

fn path_attribute(attribute: &syn::Attribute) -> Option<String> {
    let Meta::NameValue(pair) = &attribute.meta else { return None };
    let Expr::Lit(literal) = &pair.value else { return None };
    match &literal.lit {
        Lit::Str(path) if pair.path.is_ident("path") => Some(path.value()),
        _ => None,
    }
}

/// `folder/name` with its `..` resolved.
pub fn join(folder: &str, name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(files: &[(&str, &str)]) -> Vec<String> {
        let violations = check(&Tree::of_files(files.iter().copied()));
        violations.iter().map(|violation| format!("{} {}", violation.rule, violation.file)).collect()
    }

    #[test]
    fn a_file_that_no_mod_names_is_found() {
        let tree = [
            ("a/Cargo.toml", "[[bin]]\npath = \"fuzz_targets/x.rs\""),
            ("a/src/lib.rs", "//! A.\nmod b;\n#[path = \"odd.rs\"] mod other;"),
            ("a/src/b/mod.rs", "//! B.\nmod c;"),
            ("a/src/b/c.rs", "//! C.\nmod d;"),
            ("a/src/b/c/d.rs", "//! D."),
            ("a/src/odd.rs", "//! Odd."),
            ("a/src/lost.rs", "//! Lost."),
            ("a/src/b/lost.rs", "//! Lost."),
            ("a/fuzz_targets/x.rs", "//! X."),
            ("a/tests/t.rs", "//! T.\nmod common;"),
            ("a/tests/common/mod.rs", "//! Common."),
            ("a/tests/common/lost.rs", "//! Lost."),
        ];
        let lost = ["orphan a/src/b/lost.rs", "orphan a/src/lost.rs", "orphan a/tests/common/lost.rs"];
        assert_eq!(rules(&tree), lost);
    }

    #[test]
    fn a_file_introduces_itself() {
        assert_eq!(rules(&[("a/src/lib.rs", "// A.\n/// B.\npub fn b() {}")]), ["introduction a/src/lib.rs"]);
    }

    #[test]
    fn a_file_that_only_tests_name_is_a_test() {
        let tree = Tree::of_files([
            ("a/src/lib.rs", "//! A.\n#[cfg(test)]\nmod b;\nmod c;"),
            ("a/src/b.rs", "//! B.\nmod d;"),
            ("a/src/b/d.rs", "//! D."),
            ("a/src/c.rs", "//! C."),
        ]);
        let tests = tree.sources.values().filter(|source| source.kind == SourceKind::Test);
        assert_eq!(tests.map(|source| source.path.as_str()).collect::<Vec<_>>(), ["a/src/b.rs", "a/src/b/d.rs"]);
    }
}
