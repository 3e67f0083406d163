//! Which module may know which, and which know nothing of the world.

use std::collections::{BTreeMap, BTreeSet};

use crate::{files, read};

/// Module → the modules it may use. Everything else is refused, so dependencies point one way.
const LAYERS: [(&str, &[&str]); 23] = [
    ("text", &[]),
    ("sync", &[]),
    ("coordinates", &[]),
    ("config", &["text"]),
    ("metrics", &[]),
    ("status", &[]),
    ("parts", &["config", "text"]),
    ("kafka", &["config", "coordinates", "metrics", "sync"]),
    ("stage", &["config", "kafka", "metrics", "parts", "status"]),
    ("input", &["config", "text"]),
    ("output", &[]),
    ("features", &["config", "coordinates", "input", "kafka", "metrics", "text"]),
    ("models", &["features", "text"]),
    ("learn", &["features", "models"]),
    ("search", &["config", "coordinates", "features", "learn", "models", "output", "text"]),
    ("testing", &["coordinates", "features", "learn", "models", "search"]),
    ("plot", &["output", "search"]),
    ("embed", &["config", "coordinates", "features", "input", "kafka", "metrics", "parts", "stage", "status"]),
    (
        "train",
        &[
            "config", "features", "kafka", "learn", "metrics", "models", "output", "search", "stage", "status", "sync",
            "text",
        ],
    ),
    ("http", &["config", "metrics", "status"]),
    ("topology", &["config", "embed", "http", "kafka", "metrics", "parts", "stage", "status", "train"]),
    (
        "cli",
        &[
            "config", "embed", "features", "http", "input", "kafka", "learn", "metrics", "models", "output", "parts",
            "plot", "search", "stage", "text", "topology", "train",
        ],
    ),
    ("main", &["cli"]),
];

/// Functions of their arguments alone: no runtime, no Kafka, no clock, no environment. Files, and rooms of nothing
/// else.
const PURE: [&str; 19] = [
    "src/text.rs",
    "src/coordinates.rs",
    "src/input.rs",
    "src/output.rs",
    "src/embed/batch.rs",
    "src/embed/beginning.rs",
    "src/features/codec.rs",
    "src/features/merge.rs",
    "src/features/pooled.rs",
    "src/features/range.rs",
    "src/features/sharing.rs",
    "src/features/vector.rs",
    "src/features/window.rs",
    "src/parts/catalogue.rs",
    "src/models/",
    "src/learn/",
    "src/search/",
    "src/plot/",
    "src/train/store/checkpoint.rs",
];

/// The code of a file, without its comments and its tests.
fn code(path: &str) -> String {
    if path.contains("/tests/") || path.ends_with("/tests.rs") {
        return String::new();
    }
    let text = read(path);
    // At the margin: what only tests use inside of a type is code like any other.
    let tests = text.find("\n#[cfg(test)]\n").unwrap_or(text.len());
    text[..tests].lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn identifier(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or("")
}

/// Paths that stand after `prefix` anywhere in the code, `{…}` spanned out one level deep.
fn paths_after(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let preceding = code[..at].chars().next_back();
        if preceding.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => found.push(rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "_:".contains(*c)).collect()),
            Some(list) => {
                let mut depth = 1;
                let inner: String = list
                    .chars()
                    .take_while(|c| {
                        depth += i32::from(*c == '{') - i32::from(*c == '}');
                        depth > 0
                    })
                    .collect();
                let mut depth = 0;
                let top = inner.split(|c: char| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    c == ',' && depth == 0
                });
                found.extend(top.map(|path| path.trim().to_owned()).filter(|path| !path.is_empty()));
            }
        }
    }
    found
}

/// `src/train/fit.rs` → `train`, and its path as a module: `["train", "fit"]`.
fn module(path: &str) -> Vec<String> {
    let parts = path.trim_start_matches("src/").trim_end_matches(".rs").split('/');
    parts.filter(|part| *part != "mod").map(str::to_owned).collect()
}

#[test]
fn modules_depend_on_each_other_in_one_direction() {
    let layers: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    let mut wrong = Vec::new();
    for path in files("src") {
        let own = module(&path);
        if own == ["lib"] {
            continue;
        }
        let allowed = layers.get(own[0].as_str()).unwrap_or_else(|| panic!("{path} is in no layer of this test"));
        let code = code(&path);
        let prefix = if own == ["main"] { "sweepstream::" } else { "crate::" };
        for used in paths_after(&code, prefix) {
            let used = identifier(&used).to_owned();
            if used != own[0] && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{path} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn layers_have_no_cycle() {
    // Each module stands after all that it may use.
    for (place, (module, allowed)) in LAYERS.iter().enumerate() {
        for used in *allowed {
            let used_place = LAYERS.iter().position(|(other, _)| other == used).unwrap();
            assert!(used_place < place, "{module} may use {used}");
        }
    }
}

#[test]
fn files_of_a_folder_depend_on_each_other_in_one_direction() {
    let mut wrong = Vec::new();
    let modules: BTreeMap<Vec<String>, String> = files("src").into_iter().map(|path| (module(&path), path)).collect();
    let siblings = |own: &[String]| -> BTreeSet<String> {
        let code = code(&modules[own]);
        let folder = own[..own.len() - 1].join("::");
        let beside = paths_after(&code, "super::").into_iter();
        let named = paths_after(&code, &format!("crate::{folder}::")).into_iter();
        let all = beside.chain(named).map(|used| identifier(&used).to_owned());
        all.filter(|name| modules.contains_key(&[&own[..own.len() - 1], std::slice::from_ref(name)].concat())).collect()
    };
    for own in modules.keys().filter(|own| own.len() > 1) {
        // Everything that can be reached from a file must not lead back to the file.
        let (mut reached, mut open) = (BTreeSet::new(), siblings(own));
        while let Some(next) = open.pop_first() {
            if reached.insert(next.clone()) {
                open.extend(siblings(&[&own[..own.len() - 1], &[next]].concat()));
            }
        }
        if reached.contains(own.last().unwrap()) {
            wrong.push(format!("{} is used by what it uses", modules[own]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_files_know_no_runtime_no_kafka_and_no_clock() {
    const FOREIGN: [&str; 9] = [
        "tokio",
        "rdkafka",
        "crossbeam_channel",
        "std::time",
        "std::thread",
        "std::env",
        "std::fs",
        "std::net",
        "uuid",
    ];
    let is_pure =
        |path: &&String| PURE.iter().any(|pure| *path == pure || (pure.ends_with('/') && path.starts_with(pure)));
    let paths = files("src");
    let pure: BTreeSet<Vec<String>> = paths.iter().filter(is_pure).map(|path| module(path)).collect();
    for path in paths.iter().filter(is_pure) {
        let code = code(path);
        for foreign in FOREIGN {
            let used = format!("{foreign}::");
            assert!(!code.contains(&used), "{path} uses {foreign}");
        }
        assert!(!code.contains("SystemTime") && !code.contains("Instant::now"), "{path} has a clock");
        let own = module(path);
        let of_crate = paths_after(&code, "crate::").into_iter();
        let beside = paths_after(&code, "super::").into_iter().map(|used| match own.as_slice() {
            [folder, _] => format!("{folder}::{used}"),
            _ => used,
        });
        for used in of_crate.chain(beside) {
            let names: Vec<String> = used.split("::").map(|name| identifier(name).to_owned()).take(2).collect();
            let known = names[0] == "config" || (1..=names.len()).any(|n| pure.contains(&names[..n]));
            assert!(known, "{path} is pure and uses {used}, which is not");
        }
    }
}

#[test]
fn outside_the_kafka_room_only_messages_are_the_client_librarys() {
    for path in files("src").into_iter().filter(|path| !path.starts_with("src/kafka/")) {
        for used in paths_after(&code(&path), "rdkafka::") {
            let module = used.split("::").next().unwrap_or("");
            assert_eq!(module, "message", "{path} uses rdkafka::{used}");
        }
    }
}

#[test]
fn no_line_of_code_is_wider_than_a_page() {
    let mut wide = Vec::new();
    for path in files("src") {
        let text = read(&path);
        let lines = (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > 120);
        wide.extend(lines.map(|(number, _)| format!("{path}:{number}")));
    }
    assert_eq!(wide, Vec::<String>::new());
}
