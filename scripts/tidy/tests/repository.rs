//! The house rules, held over this repository.

use std::path::Path;

use tidy::{rules, tree::Tree};

#[test]
fn the_repository_keeps_the_house_rules() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tree = Tree::of_repository(&top).unwrap();
    assert!(tree.sources.len() > 10, "only {} Rust files found: is this the repository?", tree.sources.len());
    let broken = rules::all(&tree);
    let list: Vec<_> = broken.iter().map(ToString::to_string).collect();
    assert!(list.is_empty(), "{} house rules are broken:\n{}", list.len(), list.join("\n"));
}
