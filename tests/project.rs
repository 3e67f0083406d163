//! What has to be true of the project as a whole: which module may know which, what the files beside the code say,
//! settings, and the command line as far as it needs no Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sweepstream::config::{Error, Settings};
use sweepstream::search::file::Search;

// --- Files

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files below a folder, relative to the project's root, sorted.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

// --- Which module may know which

/// Module → the modules it may use. Everything else is refused, so dependencies point one way.
const LAYERS: [(&str, &[&str]); 20] = [
    ("text", &[]),
    ("config", &["text"]),
    ("metrics", &[]),
    ("status", &[]),
    ("parts", &["config"]),
    ("kafka", &["config", "metrics"]),
    ("stage", &["config", "kafka", "metrics", "parts", "status"]),
    ("input", &["config", "text"]),
    ("output", &[]),
    ("features", &["config", "input", "kafka", "metrics", "text"]),
    ("models", &["features", "text"]),
    ("learn", &["features", "models"]),
    ("search", &["config", "features", "learn", "models", "output", "text"]),
    ("plot", &["output", "search"]),
    ("embed", &["config", "features", "input", "kafka", "metrics", "parts", "stage", "status"]),
    (
        "train",
        &["config", "features", "kafka", "learn", "metrics", "models", "output", "search", "stage", "status", "text"],
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

/// Functions of their arguments alone: no runtime, no Kafka, no clock, no environment. Files, and rooms of nothing else.
const PURE: [&str; 16] = [
    "src/text.rs",
    "src/input.rs",
    "src/output.rs",
    "src/embed/batch.rs",
    "src/embed/beginning.rs",
    "src/features/codec.rs",
    "src/features/merge.rs",
    "src/features/range.rs",
    "src/features/sharing.rs",
    "src/features/vector.rs",
    "src/features/window.rs",
    "src/models/",
    "src/learn/",
    "src/search/",
    "src/plot/",
    "src/train/checkpoint.rs",
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

// --- Files beside the code

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
        ("src/train/schedule.rs", "pub fn next"),
        ("src/train/training.rs", "fn steps"),
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

// --- Settings

fn layered(file: Option<&Path>, environment: &[(&str, &str)]) -> Result<Settings, Error> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::layered(file, environment, &[])
}

/// Settings from the text of a file.
fn from_text(text: &str) -> Result<Settings, Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, text).unwrap();
    layered(Some(&file), &[])
}

fn message(result: Result<Settings, Error>) -> String {
    result.expect_err("these settings must be refused").to_string()
}

/// As TOML, which has everything that a difference could be in; secrets are not used where it is compared.
fn shown(settings: &Settings) -> toml::Table {
    settings.redacted_toml().parse().unwrap()
}

/// Full names of all keys of a table.
fn keys(table: &toml::Table, prefix: &str, into: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) if path != "kafka.properties" => keys(inner, &path, into),
            _ => assert!(into.insert(path)),
        }
    }
}

#[test]
fn every_file_in_config_loads() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    std::fs::write(&secret, "0123\n").unwrap();
    for path in files("config") {
        // The one file that a reader of the example has to bring.
        let text = read(&path).replace("secrets/kafka-password", secret.to_str().unwrap());
        let settings = from_text(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        if path.ends_with("production.toml") {
            assert_eq!(settings.kafka.properties["sasl.password"], "0123");
        }
    }
}

#[test]
fn the_full_settings_file_has_the_defaults_and_names_every_key() {
    let path = root().join("config/sweepstream.toml");
    assert_eq!(shown(&layered(Some(&path), &[]).unwrap()), shown(&Settings::default()));

    // Keys without a fixed default stand in comments; with these every key has a value.
    let mut complete = Settings::default();
    complete.kafka.group_instance_id = Some("embed-a".into());
    complete.topics.dir = Some("topics".into());
    complete.embed.model_dir = Some("models/my-model".into());
    complete.embed.sessions = std::num::NonZeroUsize::new(2);
    complete.embed.threads = std::num::NonZeroUsize::new(1);
    complete.train.threads = std::num::NonZeroUsize::new(2);
    complete.train.parallel = std::num::NonZeroUsize::new(16);
    complete.http.address = Some("0.0.0.0:9464".into());
    let mut wanted = BTreeSet::new();
    keys(&shown(&complete), "", &mut wanted);

    let text = read("config/sweepstream.toml");
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // A commented setting, not a sentence.
            Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => rest,
            _ => line,
        })
        .collect();
    let table: toml::Table = uncommented.join("\n").parse().unwrap();
    let mut named = BTreeSet::new();
    keys(&table, "", &mut named);
    assert_eq!(named, wanted);
    let complete_file = from_text(&uncommented.join("\n")).unwrap();
    complete.kafka.properties.clone_from(&complete_file.kafka.properties);
    assert_eq!(shown(&complete_file), shown(&complete));
}

#[test]
fn what_config_prints_can_be_read_again() {
    let settings = layered(None, &[("SWEEPSTREAM_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL")]).unwrap();
    assert_eq!(shown(&from_text(&settings.redacted_toml()).unwrap()), shown(&settings));
}

#[test]
fn unknown_settings_are_refused_with_the_nearest_key() {
    for (text, near) in [
        ("aplication_id = \"x\"", "application_id"),
        ("[kafka]\nbootstrap_server = \"x\"", "kafka.bootstrap_servers"),
        ("[embed]\nmax_lenght = 3", "embed.max_length"),
        ("[trian]\nparallel = 1", "train"),
        ("[run]\ndrain_timout = \"1s\"", "run.drain_timeout"),
    ] {
        let message = message(from_text(text));
        assert!(message.contains(&format!("did you mean `{near}`")), "{message}");
    }
    let far = message(from_text("[http]\nzzzzzz = 1"));
    assert!(far.contains("http.zzzzzz") && far.contains("known here: address"), "{far}");
    let variable = message(layered(None, &[("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVER", "x")]));
    assert!(variable.contains("environment") && variable.contains("`kafka.bootstrap_servers`"), "{variable}");
    let top = message(layered(None, &[("SWEEPSTREAM_APLICATION_ID", "x")]));
    assert!(top.contains("SWEEPSTREAM_APPLICATION_ID"), "{top}");
    // What container platforms inject is not ours.
    assert!(layered(None, &[("SWEEPSTREAM_SERVICE_HOST", "10.0.0.1"), ("SWEEPSTREAM_PARTS", "x")]).is_ok());
}

#[test]
fn a_variable_with_too_few_or_too_many_underscores_is_refused() {
    for (name, meant) in [
        ("SWEEPSTREAM_INPUT_FORMAT", "SWEEPSTREAM_INPUT__FORMAT"),
        ("SWEEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS"),
        ("SWEEPSTREAM_EMBED_MODEL_DIR", "SWEEPSTREAM_EMBED__MODEL_DIR"),
        ("SWEEPSTREAM_TRAIN_PARALLEL", "SWEEPSTREAM_TRAIN__PARALLEL"),
        ("SWEEPSTREAM__INPUT__FORMAT", "SWEEPSTREAM_INPUT__FORMAT"),
        ("SWEEPSTREAM_EMBED__MAX__LENGTH", "SWEEPSTREAM_EMBED__MAX_LENGTH"),
        ("SWEEPSTREAM_APPLICATION__ID", "SWEEPSTREAM_APPLICATION_ID"),
        ("SWEEPSTREAM_KAFKA_PROPERTIES_SASL_PASSWORD", "SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD"),
        ("SWEEPSTREAM_KAFKA__PROPERTIES_SASL_PASSWORD", "SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD"),
    ] {
        let message = message(layered(None, &[(name, "json")]));
        assert!(message.contains(name) && message.contains(&format!("did you mean `{meant}`?")), "{message}");
    }
    let refused = sweepstream(&["config"], &[("SWEEPSTREAM_INPUT_FORMAT", "json")]);
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert!(refused.stderr.contains("did you mean `SWEEPSTREAM_INPUT__FORMAT`?"), "{}", refused.stderr);
}

#[test]
fn variables_that_are_no_settings_are_named_in_a_warning() {
    let others = [("SWEEPSTREAM_SERVICE_HOST", "10.0.0.1"), ("SWEEPSTREAM_VERBOSE", "1"), ("SWEEPSTREAM_PARTS", "x")];
    let ended = sweepstream(&["config"], &others);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let warnings: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{}", ended.stderr);
    assert!(warnings[0].contains("SWEEPSTREAM_SERVICE_HOST") && warnings[0].contains("SWEEPSTREAM_VERBOSE"));
    assert!(!warnings[0].contains("SWEEPSTREAM_PARTS"), "{}", warnings[0]);
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, "application_id = \"f\"\n[topics]\ntexts = \"f\"\nfeatures = \"ff\"\noutput = \"fo\"")
        .unwrap();
    let environment = [("SWEEPSTREAM_TOPICS__TEXTS", "e"), ("SWEEPSTREAM_TOPICS__FEATURES", "ee")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let flags = [("topics.texts".to_owned(), "flag".to_owned())];
    let settings = Settings::layered(Some(&file), environment, &flags).unwrap();
    assert_eq!(settings.topics.texts, "flag");
    assert_eq!(settings.topics.features, "ee");
    assert_eq!(settings.topics.output, "fo");
    assert_eq!(settings.topics.trials, "trials");
    assert_eq!(settings.application_id, "f");
}

#[test]
fn secrets_are_taken_as_they_are_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    std::fs::write(&secret, "0x1F \n").unwrap();
    let settings = layered(
        None,
        &[
            ("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_USERNAME", "007"),
            ("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD_FILE", secret.to_str().unwrap()),
            ("SWEEPSTREAM_KAFKA__PROPERTIES__SSL_KEY_PASSWORD", "1e3"),
            ("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_OAUTHBEARER_CLIENT_SECRET", "true"),
        ],
    )
    .unwrap();
    let properties = &settings.kafka.properties;
    assert_eq!(properties["sasl.username"], "007");
    assert_eq!(properties["sasl.password"], "0x1F ");
    assert_eq!(properties["ssl.key.password"], "1e3");
    assert_eq!(properties["sasl.oauthbearer.client.secret"], "true");
    assert!(!properties.contains_key("sasl.password.file"));
    let shown = settings.redacted_toml();
    for secret in ["0x1F", "1e3", "\"true\""] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("007") && shown.contains("(redacted)"), "{shown}");
    let missing = message(layered(None, &[("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD_FILE", "no/such/file")]));
    assert!(missing.contains("kafka.properties.sasl.password.file") && missing.contains("no/such/file"), "{missing}");
}

#[test]
fn properties_may_be_nested_or_flat_and_of_any_scalar_type() {
    let settings = from_text(
        "[kafka.properties]\nsecurity.protocol = \"SSL\"\n\"socket.timeout.ms\" = 5000\n\"log.queue\" = true",
    )
    .unwrap();
    let properties = &settings.kafka.properties;
    assert_eq!(properties["security.protocol"], "SSL");
    assert_eq!(properties["socket.timeout.ms"], "5000");
    assert_eq!(properties["log.queue"], "true");
    let list = message(from_text("[kafka.properties]\n\"a.b\" = [1]"));
    assert!(list.contains("a.b"), "{list}");
}

#[test]
fn every_relation_that_does_not_hold_names_its_keys() {
    for (text, keys) in [
        ("application_id = \" \"", &["`application_id`"] as &[&str]),
        ("[kafka]\nbootstrap_servers = \"\"", &["`kafka.bootstrap_servers`"]),
        ("[topics]\ntexts = \"\"", &["`topics.texts`"]),
        ("[topics]\nfeatures = \"\"", &["`topics.features`"]),
        ("[topics]\ndead_letters = \"\"", &["`topics.dead_letters`"]),
        ("[topics]\ntrials = \"\"", &["`topics.trials`"]),
        ("[topics]\noutput = \"\"", &["`topics.output`"]),
        ("[embed]\nmodel = \"\"", &["`embed.model`"]),
        ("[topics]\nfeatures = \"texts\"", &["`topics.texts`", "`topics.features`"]),
        ("[topics]\noutput = \"trials\"", &["`topics.trials`", "`topics.output`"]),
        ("[kafka]\nsession_timeout = \"10ms\"", &["`kafka.session_timeout`"]),
        ("[kafka]\nsession_timeout = \"31m\"", &["`kafka.session_timeout`"]),
        ("[kafka]\ntransaction_timeout = \"1s\"", &["`kafka.transaction_timeout`"]),
        ("[kafka]\ntransaction_timeout = \"16m\"", &["`kafka.transaction_timeout`"]),
        ("[train]\ncheckpoint_interval = \"0s\"", &["`train.checkpoint_interval`"]),
        ("[embed]\nmax_length = 2", &["`embed.max_length`"]),
        ("[embed]\nmax_length = 600", &["`embed.max_length`", "`embed.max_batch_tokens`"]),
        ("[embed]\nchunk_tokens = 511", &["`embed.chunk_tokens`", "`embed.max_batch_tokens`"]),
    ] {
        let message = message(from_text(text));
        for key in keys {
            assert!(message.contains(key), "{text}: {message}");
        }
    }
}

#[test]
fn properties_that_promises_rest_on_are_refused_with_what_to_set_instead() {
    for (name, instead) in [
        ("bootstrap.servers", "`kafka.bootstrap_servers`"),
        ("metadata.broker.list", "`kafka.bootstrap_servers`"),
        ("group.id", "`application_id`"),
        ("transactional.id", "`application_id`"),
        ("client.id", "`application_id`"),
        ("group.protocol", "`kafka.group_protocol`"),
        ("partition.assignment.strategy", "`kafka.group_protocol`"),
        ("group.instance.id", "`kafka.group_instance_id`"),
        ("session.timeout.ms", "`kafka.session_timeout`"),
        ("transaction.timeout.ms", "`kafka.transaction_timeout`"),
        ("isolation.level", "remove"),
        ("auto.offset.reset", "remove"),
        ("enable.auto.commit", "remove"),
        ("enable.auto.offset.store", "remove"),
        ("enable.idempotence", "remove"),
        ("enable.partition.eof", "remove"),
        ("acks", "remove"),
        ("request.required.acks", "remove"),
        ("max.in.flight", "remove"),
        ("max.in.flight.requests.per.connection", "remove"),
    ] {
        let message = message(from_text(&format!("[kafka.properties]\n\"{name}\" = \"1\"")));
        assert!(message.contains(name) && message.contains(instead), "{message}");
    }
}

#[test]
fn values_of_the_wrong_type_are_named_with_their_place() {
    for (text, key) in [
        ("[kafka]\nsession_timeout = 6", "kafka.session_timeout"),
        ("[embed]\nmax_length = 0", "embed.max_length"),
        ("[embed]\nrows = \"sentence\"", "embed.rows"),
        ("[input]\nformat = \"xml\"", "input.format"),
        ("[run]\nrebuilds_max = 0", "run.rebuilds_max"),
    ] {
        let message = message(from_text(text));
        assert!(message.contains(key) && message.contains("settings.toml"), "{message}");
    }
    assert!(message(layered(Some(Path::new("no/such.toml")), &[])).contains("no/such.toml"));
    assert!(message(from_text("kafka = [")).contains("settings.toml"));
}

/// What serde and its like say of Rust's types.
const FOREIGN_WORDS: [&str; 9] =
    ["expected", "invalid type", "invalid value", "variant", "u32", "usize", "f64", "struct", "sequence"];

#[track_caller]
fn assert_in_the_users_words(message: &str, wanted: &str) {
    assert!(message.contains(wanted), "{wanted:?} is not in: {message}");
    // Our own `reconstruct` ends like one of them.
    let message = message.replace("`reconstruct`", "");
    let foreign = FOREIGN_WORDS.iter().find(|word| message.contains(**word));
    assert_eq!(foreign, None, "{message}");
}

#[test]
fn what_a_setting_should_be_is_said_in_the_users_words() {
    for (text, wanted) in [
        ("[kafka]\nsession_timeout = 6", "is 6, not a time such as `10s`"),
        ("[kafka]\nsession_timeout = \"soon\"", "is \"soon\", not a time such as `10s`"),
        ("[kafka]\ngroup_protocol = \"modern\"", "is \"modern\", not one of `classic`, `consumer`"),
        ("[embed]\nmax_length = 0", "is 0, not a whole number from 1 to 9223372036854775807"),
        ("[embed]\nmax_length = \"long\"", "is \"long\", not a whole number from 1"),
        ("[embed]\nmax_length = 1.5", "is 1.5, not a whole number from 1"),
        ("[embed]\nsessions = -1", "is -1, not a whole number from 1"),
        ("[run]\nrebuilds_max = 5000000000", "is 5000000000, not a whole number from 1 to 4294967295"),
        ("[train]\nshared_bytes = []", "is a list, not a whole number from 0"),
        ("[embed]\nrows = \"tokn\"", "is \"tokn\", not one of `word`, `token`; did you mean `token`?"),
        ("[embed]\nrows = 3", "is 3, not one of `word`, `token`"),
        ("[embed]\nrows = [\"word\"]", "is a list, not one of `word`, `token`"),
        ("[embed]\nfrom_start = \"yes\"", "is \"yes\", not true or false"),
        ("[topics]\ntexts = 3", "is 3, not text"),
        ("[topics]\ndir = 3", "is 3, not a path"),
        ("kafka = 3", "is 3, not a table"),
    ] {
        assert_in_the_users_words(&message(from_text(text)), wanted);
    }
    let variable = message(layered(None, &[("SWEEPSTREAM_RUN__REBUILDS_MAX", "many")]));
    assert_in_the_users_words(&variable, "is \"many\", not a whole number from 1 to 4294967295");
}

#[test]
fn what_a_key_of_a_search_should_be_is_said_in_the_users_words() {
    for (text, wanted) in [
        ("name = \"s\"\nmodel = \"mlp\"\nlearning_rate = \"fast\"", "`learning_rate` is \"fast\", not a number"),
        ("name = \"s\"\nmodel = \"mlp\"\nbatch_size = -1", "is -1, not a whole number from 0 to 4294967295"),
        ("name = \"s\"\nmodel = \"mlp\"\nbatch_size = [8, \"x\"]", "is \"x\", not a whole number"),
        ("name = \"s\"\nmodel = \"mlp\"\nshuffle = 1", "`shuffle` is 1, not true or false"),
        ("name = \"s\"\nmodel = \"mpl\"", "is \"mpl\", not one of `autoencoder`, `linear`, `mlp`; did you mean `mlp`?"),
        ("name = \"s\"\nmodel = 1", "is 1, not one of `autoencoder`, `linear`, `mlp`"),
        (
            "name = \"s\"\nmodel = \"mlp\"\nobjective = \"accuracy\"",
            "not one of `validation_accuracy`, `validation_macro_f1`, `validation_mse`, `validation_mae`, `validation_r2`, `validation_loss`, `loss`",
        ),
        ("name = \"s\"\nmodel = \"autoencoder\"\nlayers = [1, \"x\"]", "of which one is \"x\", not a whole number"),
        ("name = \"s\"\nmodel = \"mlp\"\nobjective = 1", "`objective` is 1, not one of `validation_accuracy`"),
        ("name = \"s\"\nmodel = \"mlp\"\ntask = \"clasify\"", "not one of `classify`, `regress`, `reconstruct`; did you mean `classify`?"),
        ("name = 3\nmodel = \"mlp\"", "`name` is 3, not text"),
        ("name = \"s\"\nmodel = \"mlp\"\nseed = \"x\"", "`seed` is \"x\", not a whole number"),
    ] {
        assert_in_the_users_words(&Search::parse(text).unwrap_err().to_string(), wanted);
    }
}

#[test]
fn what_a_declaration_of_a_topic_should_say_is_said_in_the_users_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.topics.dir = Some(folder.path().into());
    for (text, wanted) in [
        ("partitions = \"four\"\nreplication_factor = 1", "`partitions` is neither a whole number nor"),
        ("partitions = 4\nreplication_factor = \"all\"", "`replication_factor` is \"all\", not a whole number"),
        ("partitions = 4", "lacks the key `replication_factor`"),
        (
            "partitions = 4\nreplication_factor = 1\n[required]\n\"retention.ms\" = 7",
            "`required.retention.ms` is 7, not a table",
        ),
        ("partitions = 4\nreplication_factor = 1\nrequird = {}", "has no key `requird`; did you mean `required`?"),
    ] {
        std::fs::write(folder.path().join("texts.toml"), text).unwrap();
        let error = sweepstream::kafka::topics::Declarations::load(&settings).unwrap_err().to_string();
        assert!(error.contains("texts.toml"), "{error}");
        assert_in_the_users_words(&error, wanted);
    }
}

// --- The command line

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the program without any setting from outside.
fn sweepstream(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SWEEPSTREAM_")) {
        let _ = command.env_remove(name);
    }
    let output = command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Names of the subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_help_works_and_has_an_example() {
    let mut waiting: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(path) = waiting.pop() {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let ended = sweepstream(&arguments, &[]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        let example = ended.stdout.split("Example").nth(1);
        let name = path.first().map_or("", String::as_str);
        assert!(example.is_some_and(|text| text.contains("sweepstream") && text.contains(name)), "{arguments:?}");
        for line in ended.stdout.lines() {
            assert!(line.chars().count() <= 100, "{arguments:?}: {line}");
        }
        waiting.extend(subcommands(&ended.stdout).into_iter().map(|name| [path.clone(), vec![name]].concat()));
        seen += 1;
    }
    assert!(seen >= 25, "{seen} helps");
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = sweepstream(&["completions", shell], &[]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{shell}");
        assert!(ended.stdout.contains("checkpoint") && ended.stdout.contains("--set"), "{shell}");
    }
}

/// Nobody listens there, and no outgoing connection gets it.
fn free_port() -> u16 {
    let [port] = sweepstream::kafka::ports::free().unwrap();
    port
}

#[test]
fn nobody_at_the_address_is_not_healthy() {
    let port = free_port();
    let ended = sweepstream(&["health"], &[("SWEEPSTREAM_HTTP__ADDRESS", &format!("0.0.0.0:{port}"))]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(&format!("127.0.0.1:{port}/health/ready does not answer")), "{}", ended.stderr);
}

#[test]
fn what_goes_to_a_pipe_has_no_colours() {
    for arguments in [["--help"].as_slice(), &["parts"], &["nothing"], &["config"]] {
        let ended = sweepstream(arguments, &[]);
        assert!(!ended.stdout.contains('\x1b') && !ended.stderr.contains('\x1b'), "{arguments:?}");
    }
}

#[test]
fn parts_are_shown_as_json_too() {
    let folder = tempfile::tempdir().unwrap();
    let ended = sweepstream(&["parts", "--json"], &[("SWEEPSTREAM_PARTS", folder.path().to_str().unwrap())]);
    assert_eq!(ended.code, Some(78));
    let shown: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(shown["found_by"], "SWEEPSTREAM_PARTS");
    assert_eq!(shown["parts"]["model"], serde_json::Value::Null);
}

#[test]
fn examples_of_the_help_are_command_lines() {
    // clap judges them: what it would refuse ends with its usage message.
    let mut waiting: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = sweepstream(&arguments, &[]).stdout;
        waiting.extend(subcommands(&help).into_iter().map(|name| [path.clone(), vec![name]].concat()));
        let lines = help.lines().skip_while(|line| !line.starts_with("Example")).skip(1);
        for line in lines.take_while(|line| line.starts_with("  ")) {
            let Some((_, call)) = line.split_once("sweepstream ") else { continue };
            let words = call.split("   ").next().unwrap().split(['|', '&', '>', ')', ';']).next().unwrap();
            let mut words: Vec<&str> = words.split_whitespace().collect();
            // Parses everything and then shows the settings' error instead of doing anything.
            words.extend(["--set", "zzz.zzz=1"]);
            let ended = sweepstream(&words, &[]);
            assert_eq!(ended.code, Some(78), "{line}: {}", ended.stderr);
        }
    }
}

#[test]
fn wrong_flags_end_with_64_and_wrong_settings_with_78() {
    for arguments in [
        &["--no-such-flag"] as &[&str],
        &["no-such-command"],
        &[],
        &["run", "--stage", "sleep"],
        &["search", "start"],
        &["config", "--set", "no-equals-sign"],
        &["broker", "--port", "70000"],
        &["broker", "--property", "no-equals-sign"],
    ] {
        let ended = sweepstream(arguments, &[]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(64), ""), "{arguments:?}: {}", ended.stderr);
        assert!(!ended.stderr.is_empty(), "{arguments:?}");
    }
    for (arguments, environment) in [
        (&["config", "--set", "embed.max_lenght=3"] as &[&str], &[] as &[(&str, &str)]),
        (&["config", "--set", "embed.max_length=2"], &[]),
        (&["config", "--config", "no/such/file.toml"], &[]),
        (&["config"], &[("SWEEPSTREAM_CONFIG", "no/such/file.toml")]),
        (&["config"], &[("SWEEPSTREAM_EMBED__ROWS", "sentence")]),
        (&["parts"], &[("SWEEPSTREAM_PARTS", "no/such/folder")]),
    ] {
        let ended = sweepstream(arguments, environment);
        assert_eq!(ended.code, Some(78), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.starts_with("sweepstream: "), "{}", ended.stderr);
    }
}

#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    for name in ["SWEEPSTREAM_CONFIG", "SWEEPSTREAM_PARTS"] {
        let ended = sweepstream(&["config"], &[(name, "")]);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
    }
    let empty = sweepstream(&["config", "--config", ""], &[]);
    assert_eq!(empty.code, Some(64), "{}", empty.stderr);
}

#[test]
fn variables_that_are_no_text_are_named_if_they_are_ours() {
    use std::os::unix::ffi::OsStrExt;
    let not_text = std::ffi::OsStr::from_bytes(b"caf\xe9");
    let with = |name: &str| {
        Command::new(env!("CARGO_BIN_EXE_sweepstream")).arg("config").env(name, not_text).output().unwrap()
    };
    assert_eq!(with("SOMEBODY_ELSES").status.code(), Some(0));
    let ours = with("SWEEPSTREAM_TOPICS__TEXTS");
    let stderr = String::from_utf8(ours.stderr).unwrap();
    assert_eq!(ours.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("SWEEPSTREAM_TOPICS__TEXTS") && stderr.contains("UTF-8"), "{stderr}");
}

#[test]
fn a_missing_part_says_how_to_get_it() {
    let ended = sweepstream(&["parts"], &[("SWEEPSTREAM_PARTS", "no/such/folder")]);
    assert!(ended.stderr.contains("make parts") && ended.stderr.contains("ORT_DYLIB_PATH"), "{}", ended.stderr);
    assert!(ended.stdout.contains("missing"), "{}", ended.stdout);
}

#[test]
fn no_broker_ends_with_69_and_says_where_it_looked() {
    let port = free_port();
    let servers = format!("127.0.0.1:{port}");
    let environment = [("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS", servers.as_str())];
    let ended = sweepstream(&["search", "list", "--set", "kafka.start_timeout=1s"], &environment);
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains(&servers) && ended.stderr.contains("kafka.bootstrap_servers"), "{}", ended.stderr);
}

#[test]
fn errors_are_said_once() {
    let ended = sweepstream(&["config", "--config", "no/such/file.toml"], &[]);
    assert_eq!(ended.stderr.matches("No such file").count(), 1, "{}", ended.stderr);
}

#[test]
fn config_shows_what_flags_and_environment_come_to_without_secrets() {
    let ended = sweepstream(
        &["config", "--set", "topics.texts=mails", "--set", "kafka.properties.sasl.password=007"],
        &[("SWEEPSTREAM_TOPICS__TEXTS", "news"), ("SWEEPSTREAM_KAFKA__PROPERTIES__SSL_KEY_PASSWORD", "hush")],
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let table: toml::Table = ended.stdout.parse().unwrap();
    assert_eq!(table["topics"]["texts"].as_str(), Some("mails"));
    assert_eq!(table["kafka"]["properties"]["sasl.password"].as_str(), Some("(redacted)"));
    assert!(!ended.stdout.contains("hush") && !ended.stdout.contains("007"), "{}", ended.stdout);
    let named = sweepstream(&["config", "--set", "kafka.properties.sasl.username=007"], &[]);
    assert!(named.stdout.contains("\"sasl.username\" = \"007\""), "{}", named.stdout);
}

#[test]
fn topology_shows_the_settings_own_words() {
    let ended = sweepstream(&["topology", "--set", "application_id=mails", "--set", "embed.rows=token"], &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for wanted in ["mails.embed", "mails.train", "mails.trial.<trial>", "rows = token", "dead-letters"] {
        assert!(ended.stdout.contains(wanted), "{wanted}: {}", ended.stdout);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for arguments in [&["config"] as &[&str], &["topology"], &["--help"], &["search", "--help"]] {
        // The reading end is closed before the program writes its first byte.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = Command::new(env!("CARGO_BIN_EXE_sweepstream"))
            .args(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn the_program_says_its_version() {
    let ended = sweepstream(&["--version"], &[]);
    assert_eq!(ended.stdout.trim(), concat!("sweepstream ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn topics_are_declared_for_every_name_in_the_settings() {
    let declared: BTreeSet<PathBuf> = files("topics").into_iter().map(PathBuf::from).collect();
    for (key, _) in Settings::default().topics.names() {
        let file = PathBuf::from(format!("topics/{}.toml", key.replace('_', "-")));
        assert!(declared.contains(&file), "{}", file.display());
    }
}

#[test]
fn values_from_outside_are_what_they_would_be_in_a_file() {
    let value =
        |value: &str| layered(None, &[("SWEEPSTREAM_EMBED__MAX_LENGTH", value)]).map(|s| s.embed.max_length.get());
    for (text, wanted) in [("128", 128), (" 128 ", 128), ("1_00", 100), ("0x80", 128)] {
        assert_eq!(value(text).unwrap(), wanted, "{text}");
    }
    for text in ["", "many", "1.5", "-1", "[1]", "{a = 1}", "1979-05-27", "128\nb = 1", "\"x\u{fffd}\\u0000\"", "nan"] {
        let message = message(value(text).map(|_| Settings::default()));
        assert!(message.contains("embed.max_length"), "{text}: {message}");
    }
    let flag = |text: &str| Settings::layered(None, [], &[("embed.from_start".into(), text.into())]);
    assert!(flag("true").unwrap().embed.from_start && flag("yes").is_err());
}

#[test]
fn text_settings_stay_text_whatever_they_look_like() {
    let environment = [
        ("SWEEPSTREAM_TOPICS__TEXTS", "007"),
        ("SWEEPSTREAM_KAFKA__GROUP_INSTANCE_ID", "0"),
        ("SWEEPSTREAM_EMBED__MODEL_DIR", "1"),
        ("SWEEPSTREAM_EMBED__SESSIONS", "1"),
    ];
    let settings = layered(None, &environment).unwrap();
    assert_eq!(settings.topics.texts, "007");
    assert_eq!(settings.kafka.group_instance_id.as_deref(), Some("0"));
    assert_eq!(settings.embed.sessions.map(std::num::NonZeroUsize::get), Some(1));
    let flags = [("application_id".to_owned(), "12".to_owned())];
    assert_eq!(Settings::layered(None, [], &flags).unwrap().application_id, "12");
}
