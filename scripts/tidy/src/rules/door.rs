//! What may be named where: the runtime is the only door to the world, and decisions know neither the world nor each
//! other.

use crate::{
    Violation,
    source::{NamedPath, Source},
    tree::Tree,
};

/// They take events and the time and return effects; that is what makes them easy to test.
const PURE_FOLDERS: [&str; 3] = ["engine/src/record/", "engine/src/partition/", "engine/src/replication/"];
/// The rooms that name glommio: files, and the folder of one.
const GLOMMIO_ROOMS: [&str; 4] = [
    "engine/src/runtime/glommio.rs",
    "engine/src/runtime/glommio/",
    "engine/src/runtime/vigil.rs",
    "net/src/quic_on_glommio.rs",
];
const RUNTIME: &str = "engine/src/runtime/";

/// Refuses names that have no business where they stand.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    for source in tree.sources_in(&PURE_FOLDERS) {
        no_async(source, &mut broken);
    }
    let is_glommio_room = |path: &str| GLOMMIO_ROOMS.iter().any(|room| path.starts_with(room));
    for source in tree.sources.values().filter(|source| !is_glommio_room(&source.path)) {
        let message = "`glommio` is named outside its three rooms; go through `runtime::Runtime` or `quic_on_glommio`";
        refuse(source, "glommio", message, &mut broken, |path| path.segments[0] == "glommio");
    }
    for source in tree.sources_in(&["engine/src/"]).filter(|source| !source.path.starts_with(RUNTIME)) {
        let message = "a clock outside `runtime/`; take the time as a parameter or ask the `Runtime`, else the \
                       simulation can neither steer nor repeat this";
        refuse(source, "clock", message, &mut broken, is_clock);
        let message = "chance outside `runtime/`; ask the `Runtime` for a random number, else a seed repeats nothing";
        refuse(source, "chance", message, &mut broken, is_chance);
    }
    for source in tree.sources_in(&["engine/src/"]) {
        let message = "a hash map of `std` walks its entries in an order that no seed repeats; use a `BTreeMap`, or a \
                       `Vec` where the keys are small numbers";
        refuse(source, "hash-order", message, &mut broken, is_std_hash);
    }
    for source in tree.sources_in(&["engine/src/partition/", "engine/src/log/"]) {
        let stranger = if source.path.starts_with("engine/src/log/") { "partition" } else { "log" };
        let message =
            format!("`log` and `partition` do not know each other; bring them together in `shard` ({stranger})");
        refuse(source, "layers", &message, &mut broken, |path| {
            path.segments[0] == "crate" && path.segments.get(1).is_some_and(|module| module == stranger)
        });
    }
    broken
}

fn refuse(
    source: &Source,
    rule: &'static str,
    message: &str,
    broken: &mut Vec<Violation>,
    wrong: impl Fn(&NamedPath) -> bool,
) {
    for path in source.paths.iter().filter(|path| wrong(path)) {
        let message = format!("`{}`: {message}", path.segments.join("::"));
        broken.push(Violation::new(&source.path, path.line, rule, message));
    }
}

fn no_async(source: &Source, broken: &mut Vec<Violation>) {
    for (at, token) in source.tokens.iter().enumerate() {
        let awaits = token.text == "await" && at > 0 && source.tokens[at - 1].text == ".";
        if (token.text == "async" || awaits) && !source.is_test(token.line) {
            let message = "`record`, `partition` and `replication` decide and never wait; return an effect that the \
                           shard carries out";
            broken.push(Violation::new(&source.path, token.line, "pure", message));
        }
    }
}

fn is_clock(path: &NamedPath) -> bool {
    let names: Vec<_> = path.segments.iter().map(String::as_str).collect();
    names.contains(&"SystemTime") || names.contains(&"UNIX_EPOCH") || names.ends_with(&["Instant", "now"])
}

fn is_chance(path: &NamedPath) -> bool {
    const CRATES: [&str; 5] = ["rand", "fastrand", "getrandom", "oorandom", "rand_core"];
    const NAMES: [&str; 4] = ["RandomState", "thread_rng", "OsRng", "getrandom"];
    CRATES.contains(&path.segments[0].as_str()) || path.segments.iter().any(|name| NAMES.contains(&name.as_str()))
}

fn is_std_hash(path: &NamedPath) -> bool {
    path.segments.iter().any(|name| name == "HashMap" || name == "HashSet")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        check(&Tree::of_files([(path, text)])).into_iter().map(|violation| violation.rule).collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn the_pure_folders_never_wait() {
        assert_eq!(rules("engine/src/record/a.rs", "async fn f() {}"), ["pure"]);
        assert_eq!(rules("engine/src/partition/a.rs", "fn f() { m!(async { g.await }) }"), ["pure", "pure"]);
        assert_eq!(rules("engine/src/log/a.rs", "async fn f() { g.await }"), NONE);
    }

    #[test]
    fn glommio_has_its_rooms() {
        for text in
            ["use glommio;", "use {a, glommio::x};", "fn f() { m!(glommio::spawn_local(x)) }", "use glommio as g;"]
        {
            assert_eq!(rules("engine/src/shard/a.rs", text), ["glommio"], "{text}");
            assert_eq!(rules("net/src/quic_on_glommio.rs", text), NONE, "{text}");
            assert_eq!(rules("engine/src/runtime/glommio/file.rs", text), NONE, "{text}");
        }
        assert_eq!(rules("bin/src/main.rs", "use pyralog_engine::runtime::{glommio::X, self};"), NONE);
    }

    #[test]
    fn the_engine_asks_its_runtime_for_time_and_chance() {
        for text in ["fn f() { Instant::now(); }", "use std::time::SystemTime;", "fn f() { time::Instant::now() }"] {
            assert_eq!(rules("engine/src/shard/a.rs", text), ["clock"], "{text}");
            assert_eq!(rules("engine/src/runtime/sim/a.rs", text), NONE, "{text}");
            assert_eq!(rules("bench-harness/src/a.rs", text), NONE, "{text}");
        }
        assert_eq!(rules("engine/src/log/a.rs", "fn f() { rand::random() }"), ["chance"]);
        assert_eq!(rules("engine/src/log/a.rs", "use std::hash::RandomState;"), ["chance"]);
    }

    #[test]
    fn the_engine_has_no_order_that_changes_from_run_to_run() {
        assert_eq!(rules("engine/src/log/a.rs", "use std::collections::{BTreeMap, HashMap};"), ["hash-order"]);
        assert_eq!(rules("engine/src/runtime/a.rs", "fn f() { HashSet::new() }"), ["hash-order"]);
        assert_eq!(rules("net/src/a.rs", "use std::collections::HashMap;"), NONE);
    }

    #[test]
    fn partition_and_log_do_not_know_each_other() {
        assert_eq!(rules("engine/src/partition/a.rs", "use crate::{error, log::Tail};"), ["layers"]);
        assert_eq!(rules("engine/src/log/a.rs", "fn f() { crate::partition::g() }"), ["layers"]);
        assert_eq!(rules("engine/src/shard/a.rs", "use crate::{log, partition};"), NONE);
    }
}
