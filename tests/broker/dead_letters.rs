//! Input that cannot be embedded: one dead letter each, untouched, and nothing else harmed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use sweepstream::config::{InputFormat, Settings};
use sweepstream::topology::Stage;

use crate::support::{
    assert_one_verdict_each, committed, create_topics, embed, get, produce, read, read_verdicts, run, settings, In,
    Operator, Out,
};

/// Room for the largest matrix at 256 tokens, and little more.
const FEATURES_BYTES_MAX: usize = 200_000;
const LONGEST_TEXT: &str = "waves and ";

/// Bad records by name: why they are refused, and the record.
fn bad() -> Vec<(&'static str, &'static str, Out)> {
    let value = |bytes: &[u8]| Out { value: Some(bytes.to_vec()), ..Out::default() };
    let header = |name: &str, bytes: Option<&[u8]>| (name.to_owned(), bytes.map(<[u8]>::to_vec));
    vec![
        ("null", "null_value", Out::default()),
        ("null with key and label", "null_value", Out { value: None, ..Out::labelled("k", "", "sea") }),
        ("empty", "no_words", value(b"")),
        ("spaces", "no_words", value(b" \t\r\n ")),
        ("no-break spaces", "no_words", value("\u{a0}\u{2003}\u{3000}".as_bytes())),
        ("controls", "no_words", value(b"\x00\x01\x02\x1b\x7f")),
        ("zero width", "no_words", value("\u{200b}\u{feff}\u{200d}".as_bytes())),
        ("latin-1", "invalid_utf8", value(b"caf\xe9 at sea")),
        ("half a character", "invalid_utf8", value(b"waves \xf0\x9f\xa6")),
        ("pickle", "invalid_utf8", value(b"\x80\x04\x95\x10\x00\x00\x00")),
        ("too long", "text_too_long", value("x".repeat(20_001).as_bytes())),
        (
            "label is no text",
            "invalid_utf8",
            Out { headers: vec![header("label", Some(b"\xff\xfe"))], ..Out::text("k", "waves") },
        ),
        (
            "headers of all kinds",
            "no_words",
            Out {
                headers: vec![
                    header("trace", Some(b"\x00\xff")),
                    header("none", None),
                    header("label", Some(b"a")),
                    header("label", Some(b"b")),
                    header("", Some(b"no name")),
                    header("source", Some(b"elsewhere/0/5")),
                ],
                ..Out::text("k", " ")
            },
        ),
        (
            "matrix and key too large",
            "matrix_too_large",
            Out { key: Some(vec![b'k'; 50_000]), ..value(LONGEST_TEXT.repeat(300).as_bytes()) },
        ),
        ("key too large", "matrix_too_large", Out { key: Some(vec![b'k'; 250_000]), ..value(b"waves") }),
    ]
}

struct Run {
    texts: Vec<In>,
    features: Vec<In>,
    dead: Vec<In>,
    metrics: String,
    committed: BTreeMap<i32, i64>,
}

/// Embeds bad records with a good one after each of them, all in partition 0.
fn embed_among_good(settings: &Settings, bad: &[Out], good: &str) -> Run {
    let mut records = Vec::new();
    for (i, record) in bad.iter().enumerate() {
        records.push(record.clone().to(0));
        records.push(Out::text(&format!("good {i}"), good).to(0));
    }
    create_topics(settings);
    produce(settings, &settings.topics.texts, &records);
    let mut metrics = String::new();
    run(settings, &[Stage::Embed], |topology| {
        let (embedded, dead) = topology.status.verdicts();
        metrics = topology.metrics.text().unwrap();
        (embedded + dead) as usize >= records.len()
    });
    assert_one_verdict_each(settings);
    let [texts, features, dead] = read_verdicts(settings);
    let committed = committed(settings, &settings.embed_group(), &settings.topics.texts);
    Run { texts, features, dead, metrics, committed }
}

fn plain() -> &'static (Settings, Run) {
    static RUN: OnceLock<(Settings, Run)> = OnceLock::new();
    RUN.get_or_init(|| {
        let mut settings = settings("dead");
        let folder = tempfile::tempdir().unwrap();
        let features = include_str!("../../topics/features.toml").replace("1048588", &FEATURES_BYTES_MAX.to_string());
        std::fs::write(folder.path().join("features.toml"), features).unwrap();
        settings.topics.dir = Some(folder.path().to_path_buf());
        settings.input.text_bytes_max = NonZeroUsize::new(20_000).unwrap();
        let records: Vec<Out> = bad().into_iter().map(|(_, _, record)| record).collect();
        let run = embed_among_good(&settings, &records, "waves");
        (settings, run)
    })
}

#[test]
fn every_bad_record_is_one_dead_letter_with_its_bytes_untouched() {
    let (settings, run) = plain();
    let bad = bad();
    assert_eq!(run.dead.len(), bad.len());
    for (i, ((name, reason, record), letter)) in bad.iter().zip(&run.dead).enumerate() {
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value), "{name}");
        let (original, added) = letter.headers.split_at(record.headers.len());
        assert_eq!(original, record.headers, "{name}");
        let input = &run.texts[2 * i];
        let text = |name: &str| {
            let (_, value) = added.iter().find(|(key, _)| key == name).unwrap();
            String::from_utf8(value.clone().unwrap()).unwrap()
        };
        assert_eq!(text("__streams.errors.exception"), *reason, "{name}");
        assert!(!text("__streams.errors.message").is_empty(), "{name}");
        assert_eq!(text("__streams.errors.stacktrace"), "");
        assert_eq!(text("__streams.errors.topic"), settings.topics.texts);
        assert_eq!(text("__streams.errors.partition"), "0");
        assert_eq!(text("__streams.errors.offset"), input.offset.to_string(), "{name}");
        assert_eq!(text("source"), format!("{}/0/{}", settings.topics.texts, input.offset));
    }
}

#[test]
fn the_neighbours_of_bad_records_are_embedded_in_order() {
    let (_, run) = plain();
    let keys: Vec<String> = run.features.iter().map(In::key).collect();
    let expected: Vec<String> = (0..bad().len()).map(|i| format!("good {i}")).collect();
    assert_eq!(keys, expected);
    assert!(run.features.iter().all(|feature| feature.value == run.features[0].value));
}

#[test]
fn offsets_pass_over_bad_records() {
    let (_, run) = plain();
    assert_eq!(run.committed, BTreeMap::from([(0, run.texts.len() as i64)]));
}

#[test]
fn dead_letters_are_counted_by_reason() {
    let (_, run) = plain();
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, reason, _) in bad() {
        *expected.entry(reason).or_default() += 1;
    }
    for (reason, count) in expected {
        let line = format!("sweepstream_dead_letters_total{{reason=\"{reason}\"}} {count}\n");
        assert!(run.metrics.contains(&line), "{line} in {}", run.metrics);
    }
}

#[test]
fn json_that_is_not_as_declared_is_a_dead_letter() {
    let mut settings = settings("dead-json");
    settings.input.format = InputFormat::Json;
    settings.input.text_bytes_max = NonZeroUsize::new(100).unwrap();
    let long = format!(r#"{{"text": "{}"}}"#, "x".repeat(101));
    let nested = "[".repeat(100_000);
    let cases: [(&str, &[u8]); 15] = [
        ("no_words", b"{\"text\": \" \"}"),
        ("no_words", b"{\"text\": \"\"}"),
        ("invalid_json", b""),
        ("invalid_json", b"waves"),
        ("invalid_json", b"{\"text\": \"waves\""),
        ("invalid_json", b"{\"text\": \"waves\"} {}"),
        ("invalid_json", b"[\"waves\"]"),
        ("invalid_json", b"\"waves\""),
        ("invalid_json", nested.as_bytes()),
        ("invalid_utf8", b"{\"text\": \"\xff\"}"),
        ("missing_field", b"{\"Text\": \"waves\"}"),
        ("field_type", b"{\"text\": null}"),
        ("field_type", b"{\"text\": [\"waves\"]}"),
        ("field_type", b"{\"text\": \"waves\", \"label\": [1]}"),
        ("text_too_long", long.as_bytes()),
    ];
    let records: Vec<Out> =
        cases.iter().map(|(_, value)| Out { value: Some(value.to_vec()), ..Out::default() }).collect();
    let run = embed_among_good(&settings, &records, r#"{"text": "waves"}"#);
    let reasons: Vec<String> =
        run.dead.iter().map(|letter| letter.header("__streams.errors.exception").unwrap()).collect();
    assert_eq!(reasons, cases.map(|(reason, _)| reason));
    assert!(run.dead.iter().zip(cases).all(|(letter, (_, value))| letter.value.as_deref() == Some(value)));
}

#[test]
fn a_dead_letter_that_does_not_fit_goes_without_its_value_and_says_where_it_came_from() {
    let settings = settings("dead-large");
    let long = vec![b'x'; 3_000_000];
    let value = Out { value: Some(long.clone()), ..Out::labelled("k", "", "sea") }.to(0);
    let key = Out { key: Some(long.clone()), ..Out::text("", " ") }.to(0);
    let headers = Out { headers: vec![("h".into(), Some(long))], ..Out::text("k", " ") }.to(0);
    embed(&settings, &[value, key, headers, Out::text("good", "waves").to(0)]);
    assert_one_verdict_each(&settings);
    let [_, features, dead] = read_verdicts(&settings);
    assert_eq!(features.len(), 1);
    let of = |letter: &In| {
        (letter.key.clone(), letter.value.clone().unwrap(), letter.header("__streams.errors.exception").unwrap())
    };
    let k = || Some(b"k".to_vec());
    assert_eq!(of(&dead[0]), (k(), Vec::new(), "text_too_long".into()));
    assert_eq!(of(&dead[1]), (None, Vec::new(), "no_words".into()));
    assert_eq!(of(&dead[2]), (k(), Vec::new(), "no_words".into()));
    for (offset, letter) in dead.iter().enumerate() {
        assert_eq!(letter.header("source").unwrap(), format!("{}/0/{offset}", settings.topics.texts));
        assert_eq!(letter.header("__streams.errors.offset").unwrap(), offset.to_string());
    }
}

#[test]
fn limits_lowered_while_the_stage_runs_are_kept_to() {
    let settings = settings("dead-limit");
    create_topics(&settings);
    let operator = Operator::new(&settings);
    let records = [
        Out::text("long", &"waves ".repeat(12)).to(0),
        Out::text("short", "waves").to(0),
        Out { value: Some(vec![0xff; 5_000]), ..Out::text("dead", "") }.to(0),
    ];
    let mut lowered = false;
    run(&settings, &[Stage::Embed], |topology| {
        let ready = get(&topology.http_address().unwrap().to_string(), "/health/ready").0 == 200;
        if ready && !lowered {
            operator.alter(&settings.topics.features, "max.message.bytes", "3000");
            operator.alter(&settings.topics.dead_letters, "max.message.bytes", "3000");
            produce(&settings, &settings.topics.texts, &records);
            lowered = true;
        }
        topology.status.verdicts() == (1, 2)
    });
    assert_one_verdict_each(&settings);
    let dead = read(&settings, &settings.topics.dead_letters);
    let of =
        |letter: &In| (letter.key(), letter.value.clone().unwrap().len(), letter.header("__streams.errors.exception"));
    assert_eq!(of(&dead[0]), ("long".into(), 72, Some("matrix_too_large".into())));
    assert_eq!(of(&dead[1]), ("dead".into(), 0, Some("invalid_utf8".into())));
}
