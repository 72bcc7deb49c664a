//! One Rust file: its syntax tree, which of its lines are tests, and every path and word it uses, macros included.
//!
//! `syn` does not look into the arguments of macros, where a good part of the code of an async program stands. Rules
//! about words and paths therefore read tokens, and only rules about functions read the syntax tree.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{Attribute, Meta, spanned::Spanned, visit::Visit};

/// What a file is for, as its place tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Part of a library or a program.
    Product,
    /// A test, or a module that only tests use.
    Test,
    /// A benchmark, an example or a fuzz target: shown to people, held to most rules.
    Demo,
}

/// A Rust file.
pub struct Source {
    /// From the top of the repository.
    pub path: String,
    /// What it is for.
    pub kind: SourceKind,
    /// Its lines; line 1 is the first.
    pub lines: Vec<String>,
    /// Its syntax tree.
    pub syntax: syn::File,
    /// Its words and marks in order, flat, groups opened.
    pub tokens: Vec<Token>,
    /// The paths it names: `a::b::c` in code, and each leaf of a `use`.
    pub paths: Vec<NamedPath>,
    test_lines: Vec<(usize, usize)>,
}

/// A word or mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// An identifier, a punctuation character, a bracket, or `"…"` for any literal.
    pub text: String,
    /// Its line.
    pub line: usize,
}

/// A path of more than one segment, or a leaf of a `use`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPath {
    /// Its segments.
    pub segments: Vec<String>,
    /// The line of its last segment.
    pub line: usize,
}

impl Source {
    /// Parses `text`.
    ///
    /// Errors: it is not Rust.
    pub fn parse(path: &str, text: &str) -> syn::Result<Source> {
        let syntax = syn::parse_file(text)?;
        let stream: TokenStream = text.parse().map_err(syn::Error::from)?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let mut tests = TestFinder::default();
        tests.visit_file(&syntax);
        Ok(Source {
            path: path.to_owned(),
            kind: kind_of(path),
            lines: text.lines().map(str::to_owned).collect(),
            paths: named_paths(&tokens),
            syntax,
            tokens,
            test_lines: tests.lines,
        })
    }

    /// Whether this line belongs to a test.
    pub fn is_test(&self, line: usize) -> bool {
        self.kind == SourceKind::Test || self.test_lines.iter().any(|(first, last)| (*first..=*last).contains(&line))
    }

    /// The text of a line counted from 1; empty beyond the end.
    pub fn line(&self, line: usize) -> &str {
        self.lines.get(line.wrapping_sub(1)).map_or("", String::as_str)
    }
}

fn kind_of(path: &str) -> SourceKind {
    let mut folders = path.split('/').rev().skip(1);
    match folders.find(|folder| ["src", "tests", "benches", "examples", "fuzz_targets"].contains(folder)) {
        Some("tests") => SourceKind::Test,
        Some("benches" | "examples" | "fuzz_targets") => SourceKind::Demo,
        _ => SourceKind::Product,
    }
}

fn flatten(stream: TokenStream, into: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Ident(word) => into.push(Token { text: word.to_string(), line }),
            TokenTree::Punct(mark) => into.push(Token { text: mark.as_char().to_string(), line }),
            TokenTree::Literal(_) => into.push(Token { text: "\"…\"".to_owned(), line }),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                into.push(Token { text: open.to_owned(), line });
                flatten(group.stream(), into);
                into.push(Token { text: close.to_owned(), line: group.span_close().end().line });
            }
        }
    }
}

fn is_word(text: &str) -> bool {
    text.chars().next().is_some_and(|first| first.is_alphabetic() || first == '_')
}

fn named_paths(tokens: &[Token]) -> Vec<NamedPath> {
    let mut paths = Vec::new();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut at = 0;
    while at < tokens.len() {
        // `+ use<>` is a bound of a type, not a `use`.
        if text(at) == "use" && text(at + 1) != "<" {
            let end = (at..tokens.len()).find(|end| text(*end) == ";").unwrap_or(tokens.len());
            use_leaves(&tokens[at + 1..end], &[], &mut paths);
            at = end;
        } else if is_word(text(at)) {
            let mut segments = vec![tokens[at].text.clone()];
            while text(at + 1) == ":" && text(at + 2) == ":" && is_word(text(at + 3)) {
                segments.push(text(at + 3).to_owned());
                at += 3;
            }
            if segments.len() > 1 {
                paths.push(NamedPath { segments, line: tokens[at].line });
            }
            at += 1;
        } else {
            at += 1;
        }
    }
    paths
}

/// The leaves of a use tree, given without its `use` and `;`.
fn use_leaves(tokens: &[Token], prefix: &[String], into: &mut Vec<NamedPath>) {
    let mut depth = 0;
    let mut start = 0;
    for at in 0..=tokens.len() {
        match tokens.get(at).map(|token| token.text.as_str()) {
            Some("{") => depth += 1,
            Some("}") => depth -= 1,
            Some(",") if depth == 0 => {
                use_leaf(&tokens[start..at], prefix, into);
                start = at + 1;
            }
            None => use_leaf(&tokens[start..at], prefix, into),
            _ => {}
        }
    }
}

fn use_leaf(tokens: &[Token], prefix: &[String], into: &mut Vec<NamedPath>) {
    let mut segments = prefix.to_vec();
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => return use_leaves(&tokens[at + 1..tokens.len() - 1], &segments, into),
            "as" => break,
            ":" => {}
            word => segments.push(word.to_owned()),
        }
    }
    if let Some(last) = tokens.last() {
        into.push(NamedPath { segments, line: last.line });
    }
}

#[derive(Default)]
struct TestFinder {
    lines: Vec<(usize, usize)>,
}

impl TestFinder {
    fn note(&mut self, attributes: &[Attribute], item: &impl Spanned) -> bool {
        let test = attributes.iter().any(is_test_attribute);
        if test {
            let first = attributes.iter().map(|a| a.span().start().line).min().unwrap_or(usize::MAX);
            self.lines.push((first.min(item.span().start().line), item.span().end().line));
        }
        test
    }
}

/// Whether an attribute makes its item a test: `#[test]`, `#[tokio::test]`, `#[cfg(test)]`, `#[cfg(all(test, …))]`.
pub fn is_test_attribute(attribute: &Attribute) -> bool {
    match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string();
            let mut words = condition.split(|c: char| !c.is_alphanumeric() && c != '_');
            !condition.contains("not") && words.any(|word| word == "test")
        }
        meta => meta.path().segments.last().is_some_and(|last| last.ident == "test"),
    }
}

impl<'ast> Visit<'ast> for TestFinder {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !self.note(&item.attrs, item) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.note(&item.attrs, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !self.note(&item.attrs, item) {
            syn::visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note(&item.attrs, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note(&item.attrs, item);
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        self.note(&item.attrs, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let source = Source::parse("engine/src/x.rs", text).unwrap();
        source.paths.iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn paths_are_found_in_code_in_uses_and_in_the_arguments_of_macros() {
        let text = "use a::{self, b::{c, d as e}, f::*}; fn x() -> impl Sized + use<> { g::h(); m!(i::j::<k>()) }";
        assert_eq!(paths(text), ["a::self", "a::b::c", "a::b::d", "a::f::*", "g::h", "i::j"]);
    }

    #[test]
    fn lines_of_tests_are_told_from_those_of_the_product() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\n#[cfg(not(test))]\nfn c() {}\n";
        let source = Source::parse("engine/src/x.rs", text).unwrap();
        let tests: Vec<_> = (1..=7).filter(|line| source.is_test(*line)).collect();
        assert_eq!(tests, [2, 3, 4, 5]);
    }

    #[test]
    fn the_place_of_a_file_tells_what_it_is_for() {
        assert_eq!(kind_of("engine/src/tests/x.rs"), SourceKind::Test);
        assert_eq!(kind_of("engine/src/runtime/mod.rs"), SourceKind::Product);
        assert_eq!(kind_of("bin/examples/x.rs"), SourceKind::Demo);
        assert_eq!(kind_of("engine/tests/common/mod.rs"), SourceKind::Test);
    }
}
