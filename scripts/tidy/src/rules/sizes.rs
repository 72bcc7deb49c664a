//! How large a function, a file and a line may be.

use syn::{FnArg, Signature, spanned::Spanned, visit::Visit};

use crate::{
    Violation,
    source::{Source, SourceKind},
    tree::Tree,
};

/// A function is read in one view of a screen.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a file that are neither blank nor comment nor test.
const FILE_CODE_LINES_MAX: usize = 600;
/// Lines of a file with its comments, but without its tests; of a file of tests, all its lines.
const FILE_LINES_MAX: usize = 800;
/// As rustfmt.toml says; rustfmt leaves strings and comments alone, this rule does not.
const COLUMNS_MAX: usize = 120;
/// Not counting `self`.
const PARAMETERS_MAX: usize = 5;

/// Refuses what is too large.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    for (path, text) in tree.texts.iter().filter(|(path, text)| is_code(path, text)) {
        for (index, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                let message = format!("{columns} columns; break the line at {COLUMNS_MAX}");
                broken.push(Violation::new(path, index + 1, "columns", message));
            }
        }
    }
    for source in tree.sources.values() {
        let mut functions = Functions { source, broken: &mut broken };
        functions.visit_file(&source.syntax);
        check_file(source, &mut broken);
    }
    broken
}

fn is_code(path: &str, text: &str) -> bool {
    path.ends_with(".rs") || path.ends_with(".sh") || text.starts_with("#!")
}

fn check_file(source: &Source, broken: &mut Vec<Violation>) {
    let all_tests = source.kind == SourceKind::Test;
    let counted: Vec<_> = (1..=source.lines.len()).filter(|line| all_tests || !source.is_test(*line)).collect();
    let code = counted.iter().map(|line| source.line(*line).trim()).filter(|line| is_code_line(line)).count();
    let end = source.lines.len();
    let way_out = "split it where it has two subjects";
    if code > FILE_CODE_LINES_MAX && !all_tests {
        let message = format!("{code} lines of code without tests, {FILE_CODE_LINES_MAX} are allowed; {way_out}");
        broken.push(Violation::new(&source.path, end, "file-size", message));
    } else if counted.len() > FILE_LINES_MAX {
        let message = format!("{} lines, {FILE_LINES_MAX} are allowed; {way_out}", counted.len());
        broken.push(Violation::new(&source.path, end, "file-size", message));
    }
}

fn is_code_line(line: &str) -> bool {
    !line.is_empty() && !line.starts_with("//")
}

struct Functions<'a> {
    source: &'a Source,
    broken: &'a mut Vec<Violation>,
}

impl Functions<'_> {
    fn check(&mut self, signature: &Signature, whole: &impl Spanned) {
        let first = signature.span().start().line;
        let lines = whole.span().end().line + 1 - first;
        let name = &signature.ident;
        if lines > FUNCTION_LINES_MAX {
            let message = format!(
                "`{name}` has {lines} lines, {FUNCTION_LINES_MAX} are allowed; move straight work into functions of \
                 their own and keep the branching here"
            );
            self.broken.push(Violation::new(&self.source.path, first, "function-size", message));
        }
        let parameters = signature.inputs.iter().filter(|input| matches!(input, FnArg::Typed(_))).count();
        if parameters > PARAMETERS_MAX {
            let message = format!(
                "`{name}` has {parameters} parameters, {PARAMETERS_MAX} are allowed; those that belong together \
                 are a struct"
            );
            self.broken.push(Violation::new(&self.source.path, first, "parameters", message));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.sig, item);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check(&item.sig, item);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.check(&item.sig, item);
        syn::visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: String) -> Vec<&'static str> {
        check(&Tree::of_files([(path, text)])).into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn a_function_may_have_seventy_lines_and_not_one_more() {
        let function = |lines: usize| format!("impl X {{\n/// Doc.\nfn f() {{\n{}}}\n}}\n", "a();\n".repeat(lines - 2));
        assert_eq!(rules("a.rs", function(70)), [] as [&str; 0]);
        assert_eq!(rules("a.rs", function(71)), ["function-size"]);
    }

    #[test]
    fn a_function_may_have_five_parameters_beside_self() {
        assert_eq!(rules("a.rs", "trait X { fn f(&self, a: A, b: A, c: A, d: A, e: A); }".into()), [] as [&str; 0]);
        assert_eq!(rules("a.rs", "fn f(a: A, b: A, c: A, d: A, e: A, f: A) {}".into()), ["parameters"]);
    }

    #[test]
    fn a_line_may_have_a_hundred_and_twenty_columns_in_code_but_not_in_prose() {
        assert_eq!(rules("a.rs", format!("//{}", "é".repeat(118))), [] as [&str; 0]);
        assert_eq!(rules("a.rs", format!("//{}", "é".repeat(119))), ["columns"]);
        assert_eq!(rules("scripts/a", format!("#!/bin/sh\n{}", "e".repeat(121))), ["columns"]);
        assert_eq!(rules("a.md", "e".repeat(121)), [] as [&str; 0]);
    }

    #[test]
    fn a_file_may_have_six_hundred_lines_of_code_and_eight_hundred_in_all_not_counting_tests() {
        let file = |code: usize, comments: usize, tests: usize| {
            let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "use b;\n".repeat(tests));
            format!("{}{}{tests}", "use a;\n".repeat(code), "// a\n".repeat(comments))
        };
        assert_eq!(rules("engine/src/a.rs", file(600, 200, 900)), [] as [&str; 0]);
        assert_eq!(rules("engine/src/a.rs", file(601, 0, 0)), ["file-size"]);
        assert_eq!(rules("engine/src/a.rs", file(600, 201, 0)), ["file-size"]);
        assert_eq!(rules("engine/tests/a.rs", file(797, 0, 0)), [] as [&str; 0]);
        assert_eq!(rules("engine/tests/a.rs", file(798, 0, 0)), ["file-size"]);
    }
}
