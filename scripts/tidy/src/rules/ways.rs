//! The two ways at the top of `engine/src/lib.rs`, from request to disk and back, name only what exists.
//!
//! They are the map by which a newcomer reads the code. A renamed function must be renamed there too.

use std::collections::BTreeSet;

use syn::{Expr, ImplItem, Item, Lit, Meta, TraitItem, Type};

use crate::{Violation, source::Source, tree::Tree};

const MAP: &str = "engine/src/lib.rs";
const WAYS: [&str; 2] = ["The way of a produced record", "The way of a fetched record"];

/// Refuses a missing way and names that do not exist.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let Some(map) = tree.sources.get(MAP) else { return Vec::new() };
    let documentation = documentation(map);
    let known: Vec<_> = tree.sources.values().map(Names::of).collect();
    let mut broken = Vec::new();
    for way in WAYS {
        let Some(names) = names_of_way(&documentation, way) else {
            let message =
                format!("the section `{way}` is missing: the functions a record passes, in order, in backticks");
            broken.push(Violation::new(MAP, 1, "ways", message));
            continue;
        };
        if names.len() < 3 {
            let message = format!("`{way}` names {} things; it names the functions on the way", names.len());
            broken.push(Violation::new(MAP, 1, "ways", message));
        }
        for (line, name) in names {
            if !known.iter().any(|file| file.explains(&name)) {
                let message = format!("`{name}`, in `{way}`, does not exist; say what it is called now");
                broken.push(Violation::new(MAP, line, "ways", message));
            }
        }
    }
    broken
}

/// The crate's documentation by line.
fn documentation(source: &Source) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    for attribute in source.syntax.attrs.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        if let Meta::NameValue(pair) = &attribute.meta
            && let Expr::Lit(literal) = &pair.value
            && let Lit::Str(text) = &literal.lit
        {
            lines.push((text.span().start().line, text.value()));
        }
    }
    lines
}

/// The backticked names between the heading of `way` and the next heading. `None` without such a heading.
fn names_of_way(documentation: &[(usize, String)], way: &str) -> Option<Vec<(usize, String)>> {
    let is_heading = |text: &str| text.trim_start().starts_with('#');
    let start = documentation.iter().position(|(_, text)| is_heading(text) && text.contains(way))?;
    let body = documentation[start + 1..].iter().take_while(|(_, text)| !is_heading(text));
    let mut names = Vec::new();
    for (line, text) in body {
        let quoted = text.split('`').skip(1).step_by(2).filter(|quoted| !quoted.is_empty());
        names.extend(quoted.map(|name| (*line, name.to_owned())));
    }
    Some(names)
}

/// What one file defines.
struct Names {
    /// The folders and the stem of its path.
    place: Vec<String>,
    items: BTreeSet<String>,
    /// `(type or trait, method)`.
    members: BTreeSet<(String, String)>,
}

impl Names {
    fn of(source: &Source) -> Names {
        let path = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let place = path.split('/').map(str::to_owned).collect();
        let mut names = Names { place, items: BTreeSet::new(), members: BTreeSet::new() };
        names.collect(&source.syntax.items);
        names
    }

    fn collect(&mut self, items: &[Item]) {
        for item in items {
            match item {
                Item::Fn(item) => drop(self.items.insert(item.sig.ident.to_string())),
                Item::Const(item) => drop(self.items.insert(item.ident.to_string())),
                Item::Struct(item) => drop(self.items.insert(item.ident.to_string())),
                Item::Type(item) => drop(self.items.insert(item.ident.to_string())),
                Item::Enum(item) => {
                    let owner = item.ident.to_string();
                    self.members.extend(item.variants.iter().map(|v| (owner.clone(), v.ident.to_string())));
                    self.items.insert(owner);
                }
                Item::Trait(item) => {
                    let owner = item.ident.to_string();
                    for member in &item.items {
                        if let TraitItem::Fn(member) = member {
                            self.members.insert((owner.clone(), member.sig.ident.to_string()));
                        }
                    }
                    self.items.insert(owner);
                }
                Item::Impl(item) => self.collect_impl(item),
                Item::Mod(item) => self.collect(item.content.as_ref().map_or(&[], |(_, items)| items)),
                _ => {}
            }
        }
    }

    fn collect_impl(&mut self, item: &syn::ItemImpl) {
        let Type::Path(owner) = &*item.self_ty else { return };
        let Some(owner) = owner.path.segments.last() else { return };
        for member in &item.items {
            if let ImplItem::Fn(member) = member {
                self.members.insert((owner.ident.to_string(), member.sig.ident.to_string()));
            }
        }
    }

    /// Whether `name` is this file (`log/tail`), or something in it (`log::tail::Tail::push`, `Tail::push`,
    /// `tail::open()`).
    fn explains(&self, name: &str) -> bool {
        let name = name.trim_end_matches("()").trim_end_matches(".rs").trim_end_matches('/');
        let parts: Vec<_> = name.split(['/', ':', '.']).filter(|part| !part.is_empty()).collect();
        let Some((last, before)) = parts.split_last() else { return false };
        if self.is_at(&parts) {
            return true;
        }
        if self.items.contains(*last) && self.is_at(before) {
            return true;
        }
        if before.is_empty() {
            return self.members.iter().any(|(_, member)| member == last);
        }
        let (owner, place) = (before[before.len() - 1], &before[..before.len() - 1]);
        let own = self.members.contains(&(owner.to_owned(), (*last).to_owned())) && self.is_at(place);
        own || (self.is_at(before) && self.members.iter().any(|(_, member)| member == last))
    }

    /// Whether these modules lead to this file: they appear in its path, in this order, at the end.
    fn is_at(&self, modules: &[&str]) -> bool {
        let modules: Vec<_> = modules.iter().filter(|module| **module != "crate").collect();
        let ends = |place: &[String]| {
            place.len() >= modules.len()
                && place[place.len() - modules.len()..].iter().zip(&modules).all(|(a, b)| a.as_str() == **b)
        };
        // A folder is a place too: its `mod.rs` may only gather what the files in it define.
        modules.is_empty() || ends(&self.place) || ends(&self.place[..self.place.len() - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(map: &str) -> Vec<String> {
        let tree = Tree::of_files([
            (MAP, map),
            ("engine/src/log/tail.rs", "pub struct Tail; impl<R> Tail<R> { fn push() {} } fn open() {}"),
            ("net/src/client/mod.rs", "enum E { A } trait T { fn t(); }"),
        ]);
        check(&tree).into_iter().map(|violation| violation.message).collect()
    }

    #[test]
    fn the_ways_name_what_exists_in_any_of_the_usual_forms() {
        let names =
            "`log/tail` → `log::tail::Tail::push` → `Tail::push` → `tail::open()` → `open` → `client::E::A` → `T::t`";
        let map =
            format!("//! # The way of a produced record\n//! {names}\n//! # The way of a fetched record\n//! {names}");
        assert_eq!(broken(&map), [] as [String; 0]);
    }

    #[test]
    fn a_name_that_does_not_exist_and_a_way_that_is_missing_are_found() {
        for name in ["Tail::pop", "log/head", "client::Tail::push", "shut"] {
            let map = format!("//! # The way of a produced record\n//! `open` `open` `open` `{name}`");
            let messages = broken(&map);
            assert_eq!(messages.len(), 2, "{name}: {messages:?}");
            assert!(messages.iter().any(|message| message.contains("`The way of a fetched record` is missing")));
            assert!(messages.iter().any(|message| message.contains(&format!("`{name}`"))));
        }
    }
}
