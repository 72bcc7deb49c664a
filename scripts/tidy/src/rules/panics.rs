//! What may end the process or leave work undone: every such place has a reason beside it, or is refused.

use crate::{
    Violation,
    source::{Source, SourceKind},
    tree::Tree,
};

/// The only files that may hold unsafe code, each with a reason. Every use in them has a `SAFETY:` comment.
const UNSAFE_FILES: [(&str, &str); 2] = [
    ("engine/src/runtime/slice.rs", "no library has the system call that sets the time slice of a thread"),
    ("engine/src/runtime/glommio/mapping.rs", "only the kernel knows what memory a mapping of a file is"),
];

/// How many lines above an `unsafe` its comment may begin.
const SAFETY_COMMENT_LINES: usize = 12;

/// Refuses unexplained panics, unfinished work and unsafe code.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    for source in tree.sources.values() {
        for at in 0..source.tokens.len() {
            unexplained_panic(source, at, &mut broken);
            unfinished(source, at, &mut broken);
            unsafe_code(source, at, &mut broken);
        }
    }
    let marker = concat!("FIX", "ME");
    for (path, text) in &tree.texts {
        for (index, _) in text.lines().enumerate().filter(|(_, line)| line.contains(marker)) {
            let message = format!("{marker}: fix it now, or write an issue");
            broken.push(Violation::new(path, index + 1, "unfinished", message));
        }
    }
    broken
}

fn text(source: &Source, at: usize) -> &str {
    source.tokens.get(at).map_or("", |token| token.text.as_str())
}

fn unexplained_panic(source: &Source, at: usize, broken: &mut Vec<Violation>) {
    let token = &source.tokens[at];
    let called = ["unwrap", "expect", "unwrap_err", "expect_err"].contains(&token.text.as_str())
        && at > 0
        && text(source, at - 1) == "."
        && text(source, at + 1) == "(";
    // Examples show users how to call us, in the user's own words.
    if !called || source.is_test(token.line) || source.kind == SourceKind::Demo {
        return;
    }
    let end = close_of(source, at + 1);
    if (token.line..=end).any(|line| source.line(line).contains("// why: ")) {
        return;
    }
    let message = format!(
        "`{}` without a reason; return an error, or say on the same line why it cannot fail: `// why: …`",
        token.text
    );
    broken.push(Violation::new(&source.path, token.line, "unwrap", message));
}

/// The line on which the bracket that opens at token `open` closes.
fn close_of(source: &Source, open: usize) -> usize {
    let mut depth = 0;
    for token in &source.tokens[open..] {
        match token.text.as_str() {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return token.line;
        }
    }
    source.lines.len()
}

fn unfinished(source: &Source, at: usize, broken: &mut Vec<Violation>) {
    let token = &source.tokens[at];
    let macros = ["todo", "dbg", "unimplemented"];
    if macros.contains(&token.text.as_str()) && text(source, at + 1) == "!" {
        let message = format!("`{}!` is no code that we ship; finish it or take it out", token.text);
        broken.push(Violation::new(&source.path, token.line, "unfinished", message));
    }
}

fn unsafe_code(source: &Source, at: usize, broken: &mut Vec<Violation>) {
    let line = source.tokens[at].line;
    if text(source, at) != "unsafe" {
        return;
    }
    if !UNSAFE_FILES.iter().any(|(path, _)| *path == source.path) {
        let message = "unsafe code outside the files listed in scripts/tidy/src/rules/panics.rs; find a safe way, or \
                       list the file there with its reason";
        broken.push(Violation::new(&source.path, line, "unsafe", message));
    } else if !(line.saturating_sub(SAFETY_COMMENT_LINES)..=line).any(|l| source.line(l).contains("SAFETY:")) {
        let message = "unsafe code without a `// SAFETY: …` comment above it that says why it is sound";
        broken.push(Violation::new(&source.path, line, "unsafe", message));
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
    fn an_unwrap_gives_its_reason_on_the_same_line() {
        assert_eq!(rules("net/src/a.rs", "fn f() {\n a.unwrap();\n}"), ["unwrap"]);
        assert_eq!(rules("net/src/a.rs", "fn f() {\n m!(a.expect(\"x\"));\n}"), ["unwrap"]);
        assert_eq!(rules("net/src/a.rs", "fn f() {\n // why: no\n a.unwrap();\n}"), ["unwrap"]);
        assert_eq!(rules("net/src/a.rs", "fn f() {\n a.unwrap(); // why: a is there\n}"), NONE);
        assert_eq!(rules("net/src/a.rs", "fn f() {\n a.expect(\n\"x\",\n); // why: a is there\n}"), NONE);
        assert_eq!(rules("net/src/a.rs", "#[expect(x)]\nfn unwrap() { a.unwrap_or(b) }"), NONE);
    }

    #[test]
    fn tests_and_examples_may_unwrap() {
        assert_eq!(rules("net/src/a.rs", "#[cfg(test)]\nmod tests { fn f() { a.unwrap(); } }"), NONE);
        assert_eq!(rules("net/tests/a.rs", "fn f() { a.unwrap(); }"), NONE);
        assert_eq!(rules("bin/examples/a.rs", "fn f() { a.unwrap(); }"), NONE);
    }

    #[test]
    fn unfinished_work_is_refused_everywhere() {
        assert_eq!(rules("net/tests/a.rs", "fn f() { todo!() }"), ["unfinished"]);
        assert_eq!(rules("net/src/a.rs", "fn f() { dbg!(x) }"), ["unfinished"]);
        assert_eq!(rules("docs/a.md", concat!("FIX", "ME: say more")), ["unfinished"]);
        assert_eq!(rules("net/src/a.rs", "fn f() { let todo = 1; }"), NONE);
    }

    #[test]
    fn unsafe_code_has_its_files() {
        assert_eq!(rules("net/src/a.rs", "fn f() { unsafe { g() } }"), ["unsafe"]);
        assert_eq!(rules("net/src/a.rs", "//! Nothing unsafe.\n#![deny(unsafe_code)]"), NONE);
    }
}
