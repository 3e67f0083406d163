//! References that are made of the code: docs/settings.md, docs/metrics.md, docs/commands.md, config/sweepstream.toml,
//! the models in docs/searches.md and those in docs/embedders.md.
//!
//! `make docs` writes them; without it these tests say which of them is behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use sweepstream::config::Settings;
use sweepstream::metrics::Metrics;
use sweepstream::models::registry::KINDS;
use sweepstream::parts::catalogue;
use syn::{Attribute, Expr, Fields, Item, Lit, Meta, Type};

/// Set by `make docs`.
const UPDATE: &str = "UPDATE_DOCS";
const GENERATED: &str = "<!-- Made of the code by `make docs`. -->\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The file is as it was made, or becomes so.
fn expect(path: &str, text: &str) {
    let file = root().join(path);
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = there.lines().zip(text.lines()).find(|(there, made)| there != made);
    assert!(there == text, "{path} is not what the code says; run `make docs`. First difference: {differs:?}");
}

// --- Settings, as src/config.rs has them

struct Field {
    name: String,
    doc: String,
    of: String,
    optional: bool,
}

struct Source {
    structs: BTreeMap<String, Vec<Field>>,
    /// Values with what they mean.
    enums: BTreeMap<String, Vec<(String, String)>>,
}

fn doc(attributes: &[Attribute]) -> String {
    let line = |attribute: &Attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    attributes.iter().filter_map(line).collect::<Vec<_>>().join(" ")
}

/// The type's name, and that of what an `Option` holds.
fn type_name(of: &Type) -> (String, bool) {
    let Type::Path(path) = of else { panic!("a setting of a type without a name") };
    let last = path.path.segments.last().unwrap();
    if let (true, syn::PathArguments::AngleBracketed(inner)) = (last.ident == "Option", &last.arguments) {
        let Some(syn::GenericArgument::Type(inner)) = inner.args.first() else { panic!("an Option of nothing") };
        return (type_name(inner).0, true);
    }
    (last.ident.to_string(), false)
}

fn source() -> Source {
    let text = std::fs::read_to_string(root().join("src/config.rs")).unwrap();
    let mut source = Source { structs: BTreeMap::new(), enums: BTreeMap::new() };
    for item in syn::parse_file(&text).unwrap().items {
        match item {
            Item::Struct(item) => {
                let Fields::Named(fields) = item.fields else { continue };
                let field = |field: syn::Field| {
                    let (of, optional) = type_name(&field.ty);
                    Field { name: field.ident.unwrap().to_string(), doc: doc(&field.attrs), of, optional }
                };
                // Others have references in them and are no settings.
                if item.attrs.iter().any(|attribute| attribute.path().is_ident("serde")) {
                    let fields = fields.named.into_iter().map(field).collect();
                    assert!(source.structs.insert(item.ident.to_string(), fields).is_none());
                }
            }
            Item::Enum(item) => {
                let value = |variant: syn::Variant| (variant.ident.to_string().to_lowercase(), doc(&variant.attrs));
                drop(source.enums.insert(item.ident.to_string(), item.variants.into_iter().map(value).collect()));
            }
            _ => {}
        }
    }
    source
}

impl Source {
    /// What a setting is, with the values it may have.
    fn meaning(&self, field: &Field) -> String {
        assert!(!field.doc.is_empty(), "{} has no description", field.name);
        match self.enums.get(&field.of) {
            None => field.doc.clone(),
            Some(values) => {
                let values: Vec<String> = values.iter().map(|(value, doc)| format!("`{value}`: {doc}")).collect();
                format!("{} {}.", field.doc, values.join("; "))
            }
        }
    }
}

/// What an example has for settings without a fixed default.
const EXAMPLES: [(&str, &str); 8] = [
    ("kafka.group_instance_id", "\"embed-a\""),
    ("topics.dir", "\"topics\""),
    ("embed.model_dir", "\"models/my-model\""),
    ("embed.sessions", "2"),
    ("embed.threads", "1"),
    ("train.threads", "2"),
    ("train.parallel", "16"),
    ("http.address", "\"0.0.0.0:9464\""),
];

/// The default as TOML has it; for what has none, an example.
fn default(section: &str, field: &Field) -> String {
    let defaults: toml::Table = Settings::default().redacted_toml().parse().unwrap();
    let table = if section.is_empty() { &defaults } else { defaults[section].as_table().unwrap() };
    match table.get(&field.name) {
        Some(value) => value.to_string(),
        None => {
            assert!(field.optional, "{section}.{} has no default", field.name);
            let key = format!("{section}.{}", field.name);
            EXAMPLES.iter().find(|(name, _)| *name == key).unwrap_or_else(|| panic!("no example of {key}")).1.into()
        }
    }
}

fn wrapped(text: &str, prefix: &str) -> String {
    const WIDTH: usize = 120;
    let mut lines = vec![prefix.trim_end().to_owned()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().unwrap();
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(format!("{}{word}", prefix));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_settings_file_is_what_the_code_says() {
    let source = source();
    let mut text = String::from(
        "# Every setting with its default. `sweepstream --config config/sweepstream.toml run` behaves as `sweepstream run` does.\n\
         #\n\
         # Precedence: defaults < this file < SWEEPSTREAM_<SECTION>__<KEY> in the environment < --set section.key=value.\n\
         # A key that is no setting is refused, with the nearest one that is. `sweepstream config` shows what it comes to.\n\
         # Keys that are commented out have no fixed default. Made of the code by `make docs`, as docs/settings.md is.\n\n",
    );
    for field in &source.structs["Settings"] {
        let Some(fields) = source.structs.get(&field.of) else {
            text.push_str(&wrapped(&source.meaning(field), "# "));
            text.push_str(&format!("{} = {}\n", field.name, default("", field)));
            continue;
        };
        text.push_str(&format!("\n# --- {}\n\n[{}]\n", field.doc.trim_end_matches('.'), field.name));
        for inner in fields {
            let properties = inner.name == "properties";
            if properties {
                text.push('\n');
            }
            text.push_str(&wrapped(&source.meaning(inner).replace('`', ""), "# "));
            if properties {
                text.push_str("[kafka.properties]\n# \"security.protocol\" = \"SSL\"\n");
            } else {
                let comment = if inner.optional { "# " } else { "" };
                text.push_str(&format!("{comment}{} = {}\n", inner.name, default(&field.name, inner)));
            }
        }
    }
    expect("config/sweepstream.toml", &text);
}

#[test]
fn the_settings_reference_is_what_the_code_says() {
    let source = source();
    let mut text = format!(
        "{GENERATED}# Settings\n\n\
         No file is needed: `SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS=host:9092 sweepstream run` is enough. What is set wins in this\n\
         order: defaults < file (`--config FILE` or `SWEEPSTREAM_CONFIG`) < environment < `--set section.key=value`.\n\n\
         In the environment a setting is `SWEEPSTREAM_<SECTION>__<KEY>`, for example `SWEEPSTREAM_EMBED__MAX_LENGTH=128`;\n\
         `application_id`, which has no section, is `SWEEPSTREAM_APPLICATION_ID`. Of a librdkafka property the dots become\n\
         underscores: `SWEEPSTREAM_KAFKA__PROPERTIES__SASL_USERNAME`, and `SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD_FILE` for\n\
         a file that holds the value. Durations are like `10s`, `2m`.\n\n\
         A key that is no setting is refused with the nearest one that is, a value of the wrong kind with its place, and values\n\
         that do not go together with both keys: exit code 78. `sweepstream config` shows what it all comes to, secrets redacted.\n\
         [config/sweepstream.toml](../config/sweepstream.toml) is a file with all of them,\n\
         [config/production.toml](../config/production.toml) shows TLS, SASL and a secret from a file, and\n\
         [config/small.toml](../config/small.toml) is for one core and little memory.\n\n\
         | variables that are no settings | |\n|---|---|\n\
         | `SWEEPSTREAM_CONFIG` | the settings file |\n\
         | `SWEEPSTREAM_PARTS` | the folder with ONNX Runtime, models and Kafka's jars |\n\
         | `ORT_DYLIB_PATH` | another ONNX Runtime library |\n\
         | `NO_COLOR` | no colours on a terminal either |\n"
    );
    let row = |section: &str, field: &Field| {
        let value = if field.optional {
            "unset".into()
        } else if field.name == "properties" {
            "none".into()
        } else {
            format!("`{}`", default(section, field).trim_matches('"'))
        };
        format!("| `{}` | {value} | {} |\n", field.name, source.meaning(field))
    };
    let settings = &source.structs["Settings"];
    text.push_str("\n## At the top\n\n| setting | default | |\n|---|---|---|\n");
    for field in settings.iter().filter(|field| !source.structs.contains_key(&field.of)) {
        text.push_str(&row("", field));
    }
    for field in settings {
        let Some(fields) = source.structs.get(&field.of) else { continue };
        text.push_str(&format!("\n## {}\n\n{}\n\n| setting | default | |\n|---|---|---|\n", field.name, field.doc));
        for inner in fields {
            text.push_str(&row(&field.name, inner));
        }
    }
    expect("docs/settings.md", &text);
}

// --- Metrics

/// Where a metric stands.
fn section(name: &str) -> &'static str {
    let of = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if !name.starts_with("sweepstream_") || of(&["_build_", "_stage_"]) {
        "The process"
    } else if of(&["_embed_", "_features_", "_dead_letters_", "_consumer_lag_"]) {
        "The embed stage"
    } else {
        "The train stage"
    }
}

#[test]
fn the_metrics_reference_is_what_the_code_says() {
    let (_, mut described) = Metrics::described().unwrap();
    described.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = format!(
        "{GENERATED}# Metrics\n\n\
         `/metrics` of each process, at `http.address`, in Prometheus' text format. Counters start at 0 with the process. A\n\
         histogram has the suffixes `_bucket`, `_sum` and `_count`. A series with a label appears with its first value; those of\n\
         a trial go when it ends, those of a partition when another process takes it.\n\
         [Watching it](operations.md#watching-it) says which of them matter, and which alerts rest on them.\n"
    );
    for heading in ["The embed stage", "The train stage", "The process"] {
        text.push_str(&format!("\n## {heading}\n\n| metric | kind | labels | |\n|---|---|---|---|\n"));
        for metric in described.iter().filter(|metric| section(&metric.name) == heading) {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, kind, labels) = (&metric.name, metric.kind, labels.join(", "));
            text.push_str(&format!("| `{name}` | {kind} | {labels} | {} |\n", metric.help));
        }
    }
    expect("docs/metrics.md", &text);
}

// --- Commands

fn help(command: &[String]) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    // The width is the program's own, not a terminal's.
    let output = program.args(command).arg("--help").env_remove("COLUMNS").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Names of the subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn the_command_reference_is_what_the_program_says() {
    let mut text = format!("{GENERATED}# Commands\n\nWhat `sweepstream help` says of each.\n");
    let mut waiting: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(command) = waiting.pop() {
        let help = help(&command);
        let below = subcommands(&help).into_iter().rev();
        waiting.extend(below.map(|name| [command.clone(), vec![name]].concat()));
        let title = ["sweepstream".to_owned()].into_iter().chain(command).collect::<Vec<_>>().join(" ");
        text.push_str(&format!("\n## {title}\n\n```text\n{}\n```\n", help.trim_end()));
    }
    expect("docs/commands.md", &text);
}

// --- Models, as their kinds have them

/// The part of a document that is made of the code is this.
fn expect_part(path: &str, part: &str) {
    const UNTIL: &str = "<!-- Until here. -->\n";
    let there = std::fs::read_to_string(root().join(path)).unwrap();
    let (before, rest) = there.split_once(GENERATED).expect("where the part begins");
    let (_, after) = rest.split_once(UNTIL).expect("where it ends");
    expect(path, &format!("{before}{GENERATED}{part}{UNTIL}{after}"));
}

#[test]
fn the_models_in_searches_are_those_of_the_registry() {
    let mut table = String::from("| model | what it does | keys |\n|---|---|---|\n");
    for kind in KINDS {
        let key = |key: &sweepstream::models::kind::Key| {
            format!("`{}` ({}): {}", key.name, key.default.value().toml(), key.help)
        };
        let keys: Vec<String> = kind.keys.iter().map(key).collect();
        table += &format!("| `{}` | {} | {} |\n", kind.name, kind.about, keys.join("; "));
    }
    expect_part("docs/searches.md", &table);
}

#[test]
fn the_embedding_models_are_those_of_the_catalogue() {
    let mut table = String::from("| name | dim | a text's row | repository | |\n|---|---|---|---|---|\n");
    for entry in catalogue::entries() {
        let pooling = catalogue::pooling_name(&entry.pooling);
        let refused = if entry.is_dynamically_quantised { "refused: dynamically quantised" } else { "" };
        let cells = [&format!("`{}`", entry.name), &entry.dim.to_string(), pooling, &entry.repository, refused];
        table += &format!("| {} |\n", cells.join(" | "));
    }
    expect_part("docs/embedders.md", &table);
}
