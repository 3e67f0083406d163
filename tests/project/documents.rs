//! Files beside the code: what documents say is there.

use std::collections::BTreeSet;
use std::process::Command;

use sweepstream::search::file::Search;

use crate::{files, read, root};

#[test]
fn the_file_map_names_every_room_and_every_file_says_what_it_does() {
    let text = read("ARCHITECTURE.md");
    let map = text.split("\n## ").find(|section| section.starts_with("File map")).expect("a section `File map`");
    let named = map.split('`').skip(1).step_by(2).filter(|name| name.starts_with("src/") && !name.contains('*'));
    let named: BTreeSet<String> = named.map(str::to_owned).collect();
    let room = |path: &String| match path["src/".len()..].split_once('/') {
        Some((folder, _)) => format!("src/{folder}/"),
        None => path.clone(),
    };
    let there: BTreeSet<String> = files("src").iter().map(room).collect();
    let missing: Vec<_> = there.difference(&named).collect();
    let gone: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty() && gone.is_empty(), "missing in the map: {missing:?}; not in src/: {gone:?}");
    let silent: Vec<String> = files("src").into_iter().filter(|path| !read(path).starts_with("//! ")).collect();
    assert!(silent.is_empty(), "without a header: {silent:?}");
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let pages = files("docs").into_iter().filter(|path| path.ends_with(".md"));
    for document in
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"].into_iter().map(str::to_owned).chain(pages)
    {
        let document = document.as_str();
        let text = read(document);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
            let beside = root().join(document).parent().unwrap().join(file);
            assert!(file.is_empty() || beside.exists(), "{document}: {target}");
            if let Some(anchor) = anchor {
                let other = if file.is_empty() { text.clone() } else { std::fs::read_to_string(beside).unwrap() };
                let headings = other.lines().filter(|line| line.starts_with('#'));
                let anchors: Vec<String> =
                    headings.map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-")).collect();
                assert!(anchors.iter().any(|known| known == anchor), "{document}: no heading for {target}");
            }
        }
    }
}

#[test]
fn files_and_names_that_the_guides_name_are_there() {
    for document in ["CONTRIBUTING.md", "ARCHITECTURE.md"] {
        let text = read(document);
        let named = text.split('`').skip(1).step_by(2);
        let is_path = |name: &&str| {
            let rooms = ["src/", "tests/", "docs/", "config/", "benches/", "deploy/", "topics/", "examples/", "parts/"];
            rooms.iter().any(|room| name.starts_with(room)) && !name.contains(['*', ' '])
        };
        let gone: Vec<&str> = named.filter(is_path).filter(|name| !root().join(name).exists()).collect();
        assert!(gone.is_empty(), "{document}: {gone:?}");
    }
    let names = [
        ("src/models/registry.rs", "KINDS"),
        ("src/topology.rs", "STAGES"),
        ("src/kafka/exactly_once.rs", "pub trait Owner"),
        ("src/learn/learner.rs", "pub trait Learner"),
        ("src/stage.rs", "pub trait Stage"),
        ("src/cli/mod.rs", "enum Command"),
        ("src/search/space.rs", "pub fn grid"),
        ("src/train/run/schedule.rs", "pub fn next"),
        ("src/train/run/training.rs", "fn steps"),
    ];
    for (file, name) in names {
        assert!(read(file).contains(name), "{file} has no `{name}`");
    }
}

#[test]
fn the_changelog_names_this_version() {
    let wanted = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(read("CHANGELOG.md").lines().any(|line| line.starts_with(&wanted)), "no heading {wanted}");
}

#[test]
fn the_documents_list_every_reason_of_a_dead_letter() {
    let text = read("docs/input.md");
    for reason in sweepstream::input::Invalid::REASONS {
        assert!(text.contains(&format!("| `{reason}` |")), "{reason}");
    }
}

#[test]
fn the_readme_leads_to_every_page() {
    let text = read("README.md");
    for page in files("docs").into_iter().filter(|path| path.ends_with(".md")) {
        assert!(text.contains(&format!("({page})")), "{page}");
    }
}

#[test]
fn no_committed_file_names_a_machine() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
        return; // not a checkout
    };
    // Put together here, so that this file does not contain them.
    let folder = |name: &str| format!("/{name}/");
    let mut traces = vec![folder("home"), folder("root"), folder("Users"), folder("work"), folder("mnt")];
    traces.push(format!("{}wt-", folder("tmp")));
    for name in String::from_utf8(listed.stdout).unwrap().split('\0').filter(|name| !name.is_empty()) {
        let Ok(bytes) = std::fs::read(root().join(name)) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        for trace in &traces {
            // A folder of the file system, not of an address or of this project.
            let found = text.match_indices(trace.as_str()).find(|(at, _)| {
                let before = text[..*at].chars().next_back();
                !before.is_some_and(|c| c.is_ascii_alphanumeric() || "._-)}".contains(c))
            });
            assert!(found.is_none(), "{name} names {trace}");
        }
        if name == "Cargo.lock" {
            let foreign = text.lines().find(|line| {
                line.starts_with("source = ")
                    && line.trim() != "source = \"registry+https://github.com/rust-lang/crates.io-index\""
            });
            assert_eq!(foreign, None, "{name} names another registry");
        }
    }
}

#[test]
fn every_search_file_in_examples_parses() {
    let examples: Vec<String> = files("examples").into_iter().filter(|path| path.ends_with(".toml")).collect();
    assert!(!examples.is_empty());
    for path in examples {
        let search = Search::parse(&read(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(!search.trials.is_empty(), "{path}");
    }
}

#[test]
fn the_documents_search_file_parses_and_spans_what_it_says() {
    let text = read("docs/searches.md");
    let toml = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let search = Search::parse(toml).unwrap();
    assert_eq!(search.trials.len(), 2 * 3 + 2);
}
