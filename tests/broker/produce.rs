//! `produce`: lines become records by the rule of the embed stage, and where it stops it says how to go on.

use std::io::Write;
use std::process::Stdio;

use sweepstream::config::{InputFormat, Settings};

use crate::away::Broker;
use crate::lab::Lab;
use crate::support::{command, embed, eventually, read, settings, sweepstream, Finished, In, Operator, Out, Process};

/// Produces these bytes as a file.
fn produce_file(lab: &Lab, bytes: &[u8], more: &[&str]) -> Finished {
    let file = lab.file("lines");
    std::fs::write(&file, bytes).unwrap();
    lab.command(&[&["produce", file.to_str().unwrap()], more].concat())
}

fn texts(settings: &Settings) -> Vec<In> {
    read(settings, &settings.topics.texts)
}

fn keys(settings: &Settings) -> Vec<String> {
    texts(settings).iter().map(In::key).collect()
}

fn values(settings: &Settings) -> Vec<String> {
    texts(settings).into_iter().map(|text| String::from_utf8(text.value.unwrap()).unwrap()).collect()
}

/// Ended with this code, and what it said last names all of this.
#[track_caller]
fn assert_stopped(finished: &Finished, code: i32, named: &[&str]) {
    assert_eq!(finished.code, code, "{}", finished.stderr);
    let last = finished.stderr.lines().last().unwrap_or_default();
    for name in named {
        assert!(last.contains(name), "{name:?} is not in: {last}");
    }
}

const NUMBERS: [&str; 7] = [
    "18446744073709551616",
    "18446744073709551617",
    "340282366920938463463374607431768211455",
    "1e400",
    "-0",
    "1.50",
    "0.10000000000000000000000000000001",
];

fn numbered() -> Vec<String> {
    NUMBERS.iter().map(|id| format!(r#"{{"id": {id}, "text": "the order shipped late", "label": {id}}}"#)).collect()
}

#[test]
fn numbers_as_ids_keep_their_digits_as_written() {
    let lab = Lab::new("digits", 1);
    let produced = produce_file(&lab, numbered().join("\n").as_bytes(), &["--json"]);
    assert_eq!(produced.code, 0, "{}", produced.stderr);
    assert_eq!(keys(&lab.settings), NUMBERS);
    let labels: Vec<_> = texts(&lab.settings).iter().map(|text| text.header("label").unwrap()).collect();
    assert_eq!(labels, NUMBERS);
}

#[test]
fn numbers_as_ids_keep_their_digits_in_the_embed_stage_too() {
    let mut settings = settings("digits-json");
    settings.input.format = InputFormat::Json;
    let record = |line: String| Out { value: Some(line.into_bytes()), partition: Some(0), ..Out::default() };
    embed(&settings, &numbered().into_iter().map(record).collect::<Vec<_>>());
    let features = read(&settings, &settings.topics.features);
    assert_eq!(features.iter().map(In::key).collect::<Vec<_>>(), NUMBERS);
    assert_eq!(features.iter().map(|record| record.header("label").unwrap()).collect::<Vec<_>>(), NUMBERS);
}

#[test]
fn lists_and_objects_are_no_ids_and_no_labels() {
    let lab = Lab::new("lists", 1);
    for (line, field) in [
        (r#"{"id": ["a"], "text": "the parcel came open"}"#, "`id` is an array"),
        (r#"{"id": {"n": 1}, "text": "the parcel came open"}"#, "`id` is an object"),
        (r#"{"id": 1, "text": "the parcel came open", "label": [1]}"#, "`label` is an array"),
    ] {
        for format in ["input.format=plain", "input.format=json"] {
            let stopped = produce_file(&lab, line.as_bytes(), &["--json", "-s", format]);
            assert_stopped(&stopped, 1, &["lines line 1: ", field, "0 records were delivered"]);
        }
    }
    assert!(texts(&lab.settings).is_empty());
}

#[test]
fn a_line_that_is_no_record_says_how_many_were_delivered_and_how_to_go_on() {
    let lab = Lab::new("midway", 1);
    let line = |i: usize| format!(r#"{{"id": "{i}", "text": "line {i} of a log"}}"#);
    let mut lines: Vec<String> = (0..8).map(line).collect();
    for (wrong, why) in [
        ("", "not a JSON object"),
        (r#"{"id": "x", "text": "a", "score": NaN}"#, "not a JSON object"),
        (r#"{"id": "x"}"#, "`text` is missing"),
    ] {
        let before = texts(&lab.settings).len();
        lines.insert(5, wrong.to_owned());
        let stopped = produce_file(&lab, lines.join("\n").as_bytes(), &["--json"]);
        assert_stopped(&stopped, 1, &["lines line 6: ", why, "5 records were delivered", "--skip 5", "--skip 6"]);
        assert_eq!(texts(&lab.settings).len(), before + 5);
        // Left out.
        let rest = produce_file(&lab, lines.join("\n").as_bytes(), &["--json", "--skip", "6"]);
        assert_eq!((rest.code, texts(&lab.settings).len()), (0, before + 8), "{}", rest.stderr);
        // Mended.
        let _ = lines.remove(5);
        let rest = produce_file(&lab, lines.join("\n").as_bytes(), &["--json", "--skip", "5"]);
        assert_eq!((rest.code, texts(&lab.settings).len()), (0, before + 11), "{}", rest.stderr);
        let all: Vec<String> = ["0", "1", "2", "3", "4", "5", "6", "7", "5", "6", "7"].map(str::to_owned).to_vec();
        assert_eq!(keys(&lab.settings)[before..], all);
    }
    // What only the stage can judge is left to it.
    let empty = produce_file(&lab, b"{\"text\": \"\"}\n", &["--json"]);
    assert_eq!(empty.code, 0, "{}", empty.stderr);
    let beyond = produce_file(&lab, b"one\ntwo\n", &["--skip", "3"]);
    assert_stopped(&beyond, 64, &["has 2 lines", "--skip 3"]);
    let nothing = produce_file(&lab, b"one\ntwo\n", &["--skip", "2"]);
    assert_eq!(nothing.code, 0, "{}", nothing.stderr);
}

#[test]
fn a_byte_order_mark_at_the_start_is_skipped_and_another_encoding_is_refused() {
    let lab = Lab::new("mark", 1);
    let json = "\u{feff}{\"id\": \"1\", \"text\": \"first\"}\r\n{\"id\": \"2\", \"text\": \"second\"}\n";
    assert_eq!(produce_file(&lab, json.as_bytes(), &["--json"]).code, 0);
    assert_eq!(values(&lab.settings), ["first", "second"]);
    assert_eq!(produce_file(&lab, "\u{feff}third\n\u{feff}fourth".as_bytes(), &[]).code, 0);
    assert_eq!(values(&lab.settings)[2..], ["third", "\u{feff}fourth"]);
    let stage = produce_file(&lab, json.as_bytes(), &["-s", "input.format=json"]);
    assert_eq!(stage.code, 0, "{}", stage.stderr);
    assert!(values(&lab.settings)[4].starts_with('{'));
    assert_eq!(produce_file(&lab, "\u{feff}".as_bytes(), &[]).code, 0);
    assert_eq!(values(&lab.settings).len(), 6, "a mark alone is no text");
    let utf16: Vec<u8> = "\u{feff}fifth\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_stopped(&produce_file(&lab, &utf16, &[]), 1, &["lines line 1: ", "UTF-16", "iconv -f UTF-16 -t UTF-8"]);
    assert_eq!(values(&lab.settings).len(), 6);
}

#[test]
fn what_is_nested_deep_is_no_reason_to_stop() {
    let lab = Lab::new("deep", 1);
    let (open, close) = ("[".repeat(1000), "]".repeat(1000));
    let line = format!(r#"{{"id": "1", "text": "nested far down", "meta": {open}{close}}}"#);
    let produced = produce_file(&lab, line.as_bytes(), &["--json"]);
    assert_eq!(produced.code, 0, "{}", produced.stderr);
    assert_eq!(values(&lab.settings), ["nested far down"]);
}

#[test]
fn a_line_over_the_limit_is_named_with_the_limit() {
    let lab = Lab::new("large", 1);
    let operator = Operator::new(&lab.settings);
    operator.alter(&lab.settings.topics.texts, "max.message.bytes", "2000");
    // Bytes that do not become fewer.
    let mut state = 1_u64;
    let noise: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'!' + (state >> 40) as u8 % 90)
    })
    .take(5000)
    .collect();
    let (small, mut lines) = ("x".repeat(900), Vec::new());
    lines.extend((0..40).map(|i| if i == 22 { noise.clone() } else { format!("{i} {small}") }));
    // Refused by the client, or by the broker where that alone can tell.
    for compression in ["none", "zstd"] {
        let before = values(&lab.settings).len();
        let set = format!("kafka.properties.compression.type={compression}");
        let more: &[&str] = if compression == "none" { &[] } else { &["-s", &set] };
        let stopped = produce_file(&lab, lines.join("\n").as_bytes(), more);
        assert_stopped(&stopped, 1, &["lines line 23 ", "`max.message.bytes`", "2000", "22 records were delivered"]);
        assert_stopped(&stopped, 1, &["--skip 22", "--skip 23"]);
        let delivered = values(&lab.settings).split_off(before);
        assert!(delivered.len() >= 22 && delivered[..22] == lines[..22], "{} delivered", delivered.len());
        let rest = produce_file(&lab, lines.join("\n").as_bytes(), &[more, &["--skip", "23"]].concat());
        assert_eq!(rest.code, 0, "{}", rest.stderr);
        let all = values(&lab.settings).split_off(before);
        assert!(lines.iter().enumerate().all(|(i, line)| i == 22 || all.contains(line)));
    }
    let set = ["-s", "kafka.properties.message.max.bytes=1500"];
    let stopped = produce_file(&lab, "x".repeat(1800).as_bytes(), &set);
    assert_stopped(&stopped, 1, &["lines line 1 ", "`message.max.bytes`", "1500"]);
}

/// `produce` that reads lines as they come.
fn produce_from_pipe(settings: &Settings, more: &[&str]) -> Process {
    let mut command = command(settings, &[&["produce", "-"], more].concat());
    let _ = command.stdin(Stdio::piped());
    Process::spawn(command)
}

fn feed(process: &mut Process, lines: &str) {
    process.child.stdin.as_mut().unwrap().write_all(lines.as_bytes()).unwrap();
}

fn ended(mut process: Process) -> Finished {
    let code = process.wait().code().unwrap_or(-1);
    Finished { code, stdout: String::new(), stderr: process.stderr() }
}

#[test]
fn an_interrupt_says_how_many_were_delivered_and_how_to_go_on() {
    let lab = Lab::new("interrupt", 1);
    for (signal, before) in [("INT", 0), ("TERM", 3)] {
        let mut process = produce_from_pipe(&lab.settings, &["--skip", "2"]);
        feed(&mut process, "left out\nleft out\none\ntwo\nthree\n");
        eventually("three have arrived", || values(&lab.settings).len() == before + 3);
        process.signal(signal);
        assert_stopped(&ended(process), 130, &["standard input", "line 5", "3 records were delivered", "--skip 5"]);
    }
}

#[test]
fn what_a_broker_that_is_away_has_not_confirmed_is_not_claimed() {
    let broker = Broker::start();
    let settings = broker.settings("unconfirmed");
    // Longer than a busy machine takes for the first two.
    let timeout = ["-s", "kafka.properties.message.timeout.ms=10000"];
    let mut process = produce_from_pipe(&settings, &timeout);
    feed(&mut process, "one\ntwo\n");
    eventually("two have arrived", || {
        sweepstream(&settings, &["topics", "verify"]).code == 0 && values(&settings).len() == 2
    });
    broker.signal("STOP");
    feed(&mut process, "three\nfour\n");
    let named = ["standard input line 3 was not delivered", "2 records were delivered before it", "--skip 2"];
    assert_stopped(&ended(process), 1, &named);
    broker.signal("CONT");
    // An interrupt does not wait for ever, and claims no more.
    let mut process = produce_from_pipe(&settings, &["-s", "run.drain_timeout=500ms"]);
    feed(&mut process, "five\nsix\n");
    eventually("two more have arrived", || {
        let values = values(&settings);
        values.iter().any(|value| value == "five") && values.iter().any(|value| value == "six")
    });
    broker.signal("STOP");
    feed(&mut process, "seven\neight\n");
    process.signal("INT");
    assert_stopped(&ended(process), 130, &["interrupted", "2 records were delivered", "--skip 2"]);
    broker.signal("CONT");
}
