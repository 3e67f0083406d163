//! The command line, as far as it needs no broker.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sweepstream::config::Settings;

use crate::files;

pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program without any setting from outside.
pub fn sweepstream(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
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
