//! Links in documents lead somewhere: relative ones to a tracked file, and their anchors to a heading.

use crate::{Violation, rules::orphans::join, tree::Tree};

/// Refuses links that lead nowhere.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    for (path, text) in tree.texts.iter().filter(|(path, _)| path.ends_with(".md")) {
        for (line, target) in links(text) {
            if let Some(why) = dead(tree, path, &target) {
                let message = format!("the link to `{target}` leads nowhere: {why}");
                broken.push(Violation::new(path, line, "link", message));
            }
        }
    }
    broken
}

fn dead(tree: &Tree, from: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let file = if file.is_empty() { from.to_owned() } else { join(folder, file) };
    if !tree.has(&file) {
        return Some(format!("`{file}` is not tracked"));
    }
    let text = tree.texts.get(&file).map_or("", String::as_str);
    if anchor.is_empty() || !file.ends_with(".md") || anchors(text).iter().any(|known| known == anchor) {
        return None;
    }
    Some(format!("`{file}` has no heading `#{anchor}`"))
}

/// The lines of a document that are not inside a code block.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((index + 1, line))
    })
}

fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        let mut rest = line.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, behind)) = after.split_once(')') else { break };
            let target = target.split_whitespace().next().unwrap_or_default();
            found.push((number, target.trim_matches(['<', '>']).to_owned()));
            rest = behind;
        }
        if let Some((label, target)) = line.trim_start().split_once("]: ")
            && label.starts_with('[')
            && !label.starts_with("[^")
        {
            found.push((number, target.split_whitespace().next().unwrap_or_default().to_owned()));
        }
    }
    found
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in prose(text).filter(|(_, line)| line.starts_with('#')) {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let twins =
            anchors.iter().filter(|anchor| anchor.trim_end_matches(|c: char| c.is_numeric()) == format!("{slug}-"));
        let twins = twins.count() + usize::from(anchors.contains(&slug));
        anchors.push(if twins == 0 { slug } else { format!("{slug}-{twins}") });
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead_links(text: &str) -> Vec<usize> {
        let tree = Tree::of_files([
            ("README.md", "# A\n"),
            ("docs/B.md", "# One, two: `three`\n## Same\n## Same\n"),
            ("docs/X.md", text),
        ]);
        check(&tree).into_iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn a_link_leads_to_a_tracked_file_or_a_heading() {
        let fine =
            "[a](../README.md) [b](B.md#one-two-three) [c](B.md#same-1)\n[d](https://x.org) [e](../docs) [f](#x)\n# X";
        assert_eq!(dead_links(fine), [] as [usize; 0]);
        assert_eq!(dead_links("[a](README.md)\n\n[b](B.md#three)\n[c]: NO.md\n[d](#y)\n"), [1, 3, 4, 5]);
    }

    #[test]
    fn code_is_no_link() {
        assert_eq!(dead_links("`[a](NO.md)`\n```\n[a](NO.md)\n```\n"), [] as [usize; 0]);
    }
}
