//! The rules, one module each. To add one: write it, list it in [`all`], and give it a snippet that it must refuse.

pub mod door;
pub mod links;
pub mod orphans;
pub mod panics;
pub mod places;
pub mod sizes;
pub mod ways;

use crate::{Violation, tree::Tree};

/// What the whole tree breaks, by file and line.
pub fn all(tree: &Tree) -> Vec<Violation> {
    let rules = [sizes::check, door::check, panics::check, orphans::check, links::check, ways::check, places::check];
    let mut broken: Vec<_> = tree.unreadable.clone();
    broken.extend(rules.iter().flat_map(|rule| rule(tree)));
    broken.sort();
    broken.dedup();
    broken
}
