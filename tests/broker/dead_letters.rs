//! Input that cannot be embedded: one dead letter each, untouched, and nothing else harmed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use sweepstream::config::{InputFormat, Settings};
use sweepstream::embed::stage::EMBED;

use crate::support::{
    assert_one_verdict_each, assert_when_idle, committed, create_topics, embed, embed_more, get, produce, read,
    read_verdicts, run, settings, sweepstream, In, Operator, Out, Process, Progress,
};
use crate::wire::{self, Raw};

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
    run(settings, &[&EMBED], |topology| {
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
    assert_eq!(run.committed, BTreeMap::from([(0, run.texts.len() as i64), (1, 0), (2, 0), (3, 0)]));
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
fn a_reason_never_grows_so_large_that_the_dead_letter_does_not_fit() {
    let mut settings = settings("dead-reason");
    settings.input.format = InputFormat::Json;
    // The JSON reader quotes the whole string that it did not expect.
    let value = Out { value: Some(format!("\"{}\"", "x".repeat(3_000_000)).into_bytes()), ..Out::default() };
    embed(&settings, &[value.to(0), Out::text("good", r#"{"text": "waves"}"#).to(0)]);
    assert_one_verdict_each(&settings);
    let [_, features, dead] = read_verdicts(&settings);
    assert_eq!((features.len(), dead.len()), (1, 1));
    assert_eq!(dead[0].header("__streams.errors.exception").as_deref(), Some("invalid_json"));
    let message = dead[0].header("__streams.errors.message").unwrap();
    assert!(message.contains("invalid type: string") && message.len() < 1000, "{} bytes", message.len());
}

/// Settings under which a stage gives up soon.
fn impatient() -> [&'static str; 8] {
    let set = ["embed.sessions=1", "run.rebuilds_max=1", "kafka.transaction_timeout=2s"];
    ["run", "--stage=embed", "-s", set[0], "-s", set[1], "-s", set[2]]
}

/// Runs the embed stage until a bad text has stopped it, mends, and sees that nothing was lost.
fn stops_until_mended(settings: &Settings, breaks: impl FnOnce(&Operator), named: &str, mends: impl FnOnce(&Operator)) {
    create_topics(settings);
    let operator = Operator::new(settings);
    let texts = &settings.topics.texts;
    produce(settings, texts, &[Out::text("before", "waves").to(0)]);
    let mut process = Process::start(settings, &impatient());
    Progress::of(settings).await_done(1);
    breaks(&operator);
    produce(settings, texts, &[Out::text("bad", " ").to(0), Out::text("after", "waves").to(0)]);
    let code = process.wait().code();
    let log = process.stderr();
    assert_eq!(code, Some(70), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains(&settings.topics.dead_letters) && last.contains(named), "{last}");
    assert_eq!(committed(settings, &settings.embed_group(), texts)[&0], 1);
    assert_eq!(read(settings, &settings.topics.features).len(), 1);
    mends(&operator);
    embed_more(settings, 2);
    assert_one_verdict_each(settings);
}

#[test]
fn a_dead_letter_topic_that_was_deleted_stops_the_stage_until_it_is_there_again() {
    let settings = settings("dead-deleted");
    let topic = settings.topics.dead_letters.clone();
    stops_until_mended(&settings, |operator| operator.delete_topic(&topic), "", |_| create_topics(&settings));
}

#[test]
fn a_dead_letter_topic_where_nothing_fits_stops_the_stage_and_its_start_until_the_limit_is_raised() {
    let settings = settings("dead-narrow");
    let topic = settings.topics.dead_letters.clone();
    let limit = |operator: &Operator, bytes: &str| operator.alter(&topic, "max.message.bytes", bytes);
    stops_until_mended(
        &settings,
        |operator| limit(operator, "200"),
        "too large",
        |operator| {
            let refused = sweepstream(&settings, &impatient());
            assert_eq!(refused.code, 78, "{}", refused.stderr);
            let expected = format!("topic `{topic}`: `max.message.bytes` is 200");
            assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
            limit(operator, "1114124");
        },
    );
}

#[test]
fn a_features_limit_lowered_under_load_costs_aborted_transactions_and_nothing_else() {
    let settings = settings("dead-load");
    create_topics(&settings);
    let operator = Operator::new(&settings);
    // Matrices of about 8 kB: dozens of them make a batch as long as the limit is wide.
    let texts: Vec<Out> =
        (0..1_500).map(|i| Out::text(&format!("k{i}"), "waves and wind at sea, far out").to(i % 2)).collect();
    produce(&settings, &settings.topics.texts, &texts);
    let mut lowered = false;
    let mut transactions = String::new();
    run(&settings, &[&EMBED], |topology| {
        let (embedded, dead) = topology.status.verdicts();
        if embedded > 0 && !lowered {
            operator.alter(&settings.topics.features, "max.message.bytes", "12000");
            lowered = true;
        }
        transactions = topology.metrics.text().unwrap();
        embedded + dead >= texts.len() as u64
    });
    assert_one_verdict_each(&settings);
    assert_eq!(read(&settings, &settings.topics.features).len(), texts.len());
    let count = |outcome: &str| {
        let series = format!("sweepstream_features_transactions_total{{outcome=\"{outcome}\"}} ");
        let line = transactions.lines().find_map(|line| line.strip_prefix(&series)).unwrap();
        line.parse::<u64>().unwrap()
    };
    assert!(count("aborted") > 0, "the limit was not met");
    assert_eq!(count("failed"), 0);
    // Where a heartbeat comes late, the group takes the member for dead, and its transactions are refused.
    assert_when_idle(count("fenced") == 0, &format!("{} are fenced", count("fenced")), &transactions);
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
    run(&settings, &[&EMBED], |topology| {
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

/// Bytes that are in others.
fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|part| part == wanted)
}

#[test]
fn a_header_whose_name_is_no_text_makes_a_dead_letter_with_its_bytes_untouched() {
    let settings = settings("dead-header");
    create_topics(&settings);
    let texts = &settings.topics.texts;
    let names: [&[u8]; 4] = [b"trace", b"\xff\xfename", b"with\0null", b"caf\xe9"];
    let headers = names.map(|name| (name, b"value \xff".as_slice()));
    wire::produce(&settings, texts, 0, &Raw { key: b"k", value: b"storm at sea", headers: &headers });
    // Its names are read as far as their null bytes, so it is embedded or refused for what it is.
    let null = [(b"with\0null".as_slice(), b"kept".as_slice())];
    wire::produce(&settings, texts, 0, &Raw { key: b"null", value: b" ", headers: &null });
    produce(&settings, texts, &[Out::text("good", "waves").to(0)]);

    let mut process = Process::start(&settings, &["run", "--stage=embed", "-s", "embed.sessions=1"]);
    Progress::of(&settings).await_done(3);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    assert!(!process.stderr().contains("panicked"), "{}", process.stderr());

    // Its dead letter tells a forgotten group, too, where it came from.
    wire::produce(&settings, texts, 0, &Raw { key: b"last", value: b"waves", headers: &headers });
    embed_more(&settings, 1);
    Operator::new(&settings).delete_group(&settings.embed_group());
    produce(&settings, texts, &[Out::text("next", "waves").to(0)]);
    embed_more(&settings, 1);

    let features = read(&settings, &settings.topics.features);
    assert_eq!(features.iter().map(In::key).collect::<Vec<_>>(), ["good", "next"]);
    let dead = wire::fetch(&settings, &settings.topics.dead_letters, 0);
    for name in names {
        assert!(contains(&dead, &wire::header(name, b"value \xff")), "{name:?}");
    }
    assert!(contains(&dead, &wire::header(b"with\0null", b"kept")));
    let cause = b"the name of header 2 is not valid UTF-8";
    for (name, value) in [
        (b"__streams.errors.exception".as_slice(), b"invalid_header".as_slice()),
        (b"__streams.errors.message", cause),
        (b"__streams.errors.offset", b"0"),
        (b"source", format!("{texts}/0/0").as_bytes()),
    ] {
        assert!(contains(&dead, &wire::header(name, value)), "{name:?}");
    }
    let [key, value] = [b"k".as_slice(), b"storm at sea"].map(|bytes| wire::header(bytes, b""));
    assert!(contains(&dead, &[&key[..2], &value[..value.len() - 1]].concat()), "key and value");
}

#[test]
fn headers_that_cannot_be_measured_are_left_out_when_the_record_is_too_large() {
    let settings = settings("dead-header-large");
    create_topics(&settings);
    let operator = Operator::new(&settings);
    let large = [(b"\xff".as_slice(), [b'x'; 5_000].as_slice())];
    let mut lowered = false;
    run(&settings, &[&EMBED], |topology| {
        if topology.status.ready() && !lowered {
            operator.alter(&settings.topics.dead_letters, "max.message.bytes", "3000");
            wire::produce(&settings, &settings.topics.texts, 0, &Raw { key: b"k", value: b"waves", headers: &large });
            lowered = true;
        }
        topology.status.verdicts() == (0, 1)
    });
    let dead = read(&settings, &settings.topics.dead_letters);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].header("source"), Some(format!("{}/0/0", settings.topics.texts)));
    assert_eq!((dead[0].key(), dead[0].value.as_deref()), ("k".into(), Some(b"".as_slice())));
    assert_eq!(dead[0].header("__streams.errors.exception").as_deref(), Some("invalid_header"));
}

#[test]
fn a_search_over_features_with_such_a_header_is_refused_naming_the_record() {
    let settings = settings("features-header");
    create_topics(&settings);
    let features = &settings.topics.features;
    produce(
        &settings,
        features,
        &[Out { value: Some(crate::lab::matrix(1, &[1.0], true)), ..Out::text("a", "") }.to(0)],
    );
    let value = crate::lab::matrix(1, &[2.0], true);
    wire::produce(&settings, features, 0, &Raw { key: b"b", value: &value, headers: &[(b"\xff", b"")] });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "name = \"h\"\nmodel = \"autoencoder\"\n").unwrap();
    let refused = sweepstream(&settings, &["search", "start", file.path().to_str().unwrap()]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    let expected = format!("{features}/0: offset 1: the name of header 1 is not valid UTF-8");
    assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
    assert!(!refused.stderr.contains("panicked"), "{}", refused.stderr);
}
