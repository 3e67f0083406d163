//! texts → features, exactly once.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use sweepstream::config::{InputFormat, MatrixDtype, Rows, Settings};
use sweepstream::embed::stage::EMBED;
use tokenizers::{Tokenizer, TruncationParams};

use crate::support::{
    assert_one_verdict_each, committed, create_topics, embed, embed_more, get, parts, produce, read, run, sentences,
    settings, In, Out, Transactions,
};

#[test]
fn every_text_becomes_one_matrix_with_its_key_label_partition_and_order() {
    let settings = settings("embed");
    let texts = sentences(200);
    embed(&settings, &texts);
    let (inputs, features) = (read(&settings, &settings.topics.texts), read(&settings, &settings.topics.features));
    assert_eq!(features.len(), texts.len());
    for (input, feature) in inputs.iter().zip(&features) {
        assert_eq!((input.partition, &input.key), (feature.partition, &feature.key));
        assert_eq!(input.header("label"), feature.header("label"));
        let source = format!("{}/{}/{}", settings.topics.texts, input.partition, input.offset);
        assert_eq!(feature.header("source"), Some(source));
        assert!(feature.header("embedder").unwrap().starts_with("all-minilm-l6-v2@"));
        assert_eq!(feature.header("truncated"), None);
        assert_eq!(feature.matrix().rows[0].len(), 384);
    }
    let ends = committed(&settings, &settings.embed_group(), &settings.topics.texts);
    let consumed: i64 = ends.values().sum();
    assert_eq!(consumed, 200);
    assert!(read(&settings, &settings.topics.dead_letters).is_empty());
}

fn count(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

/// The same texts, embedded into a features topic of its own by a group of its own.
fn again(texts: &Settings, name: &str, change: impl FnOnce(&mut Settings)) -> Vec<In> {
    let mut settings = settings(name);
    settings.topics.texts.clone_from(&texts.topics.texts);
    settings.topics.trials.clone_from(&texts.topics.trials);
    settings.topics.output.clone_from(&texts.topics.output);
    change(&mut settings);
    create_topics(&settings);
    embed_more(&settings, read(&settings, &settings.topics.texts).len());
    assert_one_verdict_each(&settings);
    read(&settings, &settings.topics.features)
}

/// Texts that nobody would call clean and that must be embedded all the same.
fn unusual() -> Vec<(&'static str, String)> {
    vec![
        ("emoji", "🦀🌊 ships 🚢 at sea".into()),
        ("right-to-left", "שלום עולם مرحبا بالعالم".into()),
        ("cjk", "海の灯台は船を導く".into()),
        ("accents", "Crème brûlée naïveté".into()),
        ("unknown", "ꙮ ᚠ ꙮ".into()),
        ("one letter", "a".into()),
        ("pieces", "lighthousekeepership".into()),
        ("overlong word", "z".repeat(300)),
        ("punctuation", "... !? -- ;".into()),
        ("inner controls", "wave\u{0}s and\ttides\r\n\u{200b}end".into()),
        ("half a megabyte", "harbour waves and sailors. ".repeat(500_000 / 27)),
        ("exactly full", "sea ".repeat(254)),
        ("one too many", "sea ".repeat(255)),
    ]
}

/// Unusual texts and plain ones, embedded once by default settings: tests compare with it.
struct Reference {
    settings: Settings,
    texts: Vec<In>,
    features: Vec<In>,
    metrics: String,
}

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let mut settings = settings("reference");
        settings.embed.sessions = None; // as many as there are by default
        create_topics(&settings);
        let odd = unusual();
        let mut records: Vec<Out> = odd.iter().map(|(key, text)| Out::text(key, text).to(0)).collect();
        records.extend(sentences(40));
        // The same texts at other places, among other texts.
        records.extend(sentences(40).into_iter().rev().map(|record| Out { key: None, ..record }.to(3)));
        records.push(Out::text("golden", golden()["text"].as_str().unwrap()));
        produce(&settings, &settings.topics.texts, &records);
        let mut metrics = String::new();
        run(&settings, &[&EMBED], |topology| {
            let done = topology.status.verdicts().0 as usize == records.len();
            if done {
                metrics = get(&topology.http_address().unwrap().to_string(), "/metrics").1;
            }
            done
        });
        assert_one_verdict_each(&settings);
        let (texts, features) = (read(&settings, &settings.topics.texts), read(&settings, &settings.topics.features));
        Reference { settings, texts, features, metrics }
    })
}

fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("../golden/minilm.json")).unwrap()
}

fn keyed<'r>(records: &'r [In], key: &str) -> &'r In {
    records.iter().find(|record| record.key() == key).unwrap()
}

/// Token positions of each word of a text, special tokens left out.
fn words(text: &str, max_length: usize) -> Vec<Vec<usize>> {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| {
        let file = parts().folder.join("models/all-minilm-l6-v2/tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(file).unwrap();
        let _ = tokenizer.with_padding(None);
        let _ = tokenizer.with_truncation(Some(TruncationParams { max_length: 512, ..Default::default() })).unwrap();
        tokenizer
    });
    let encoding = tokenizer.encode(text, true).unwrap();
    let mut words: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (position, word) in encoding.get_word_ids().iter().enumerate() {
        // [SEP] takes the last place of a text that was cut.
        if let Some(word) = word.filter(|_| position < max_length - 1) {
            words.entry(word).or_default().push(position);
        }
    }
    words.into_values().collect()
}

fn text(record: &In) -> &str {
    std::str::from_utf8(record.value.as_deref().unwrap()).unwrap()
}

#[test]
fn unusual_texts_have_a_row_for_each_word_and_none_for_special_tokens() {
    let reference = reference();
    for (input, feature) in reference.texts.iter().zip(&reference.features) {
        let matrix = feature.matrix();
        assert_eq!(matrix.rows.len(), words(text(input), 256).len(), "{:?}", input.key);
        assert_eq!(matrix.dtype, safetensors::Dtype::F16);
        assert!(matrix.rows.iter().flatten().all(|number| number.is_finite()));
        assert!(matrix.rows.iter().all(|row| row.iter().any(|&number| number != 0.0)), "{:?}", input.key);
    }
    let rows = |key: &str| keyed(&reference.features, key).matrix().rows.len();
    // Words the vocabulary does not know are rows, too.
    assert_eq!(rows("unknown"), 3);
    assert_eq!(rows("overlong word"), 1);
    assert_eq!(rows("one letter"), 1);
    assert_eq!(rows("pieces"), 1);
}

#[test]
fn only_a_text_that_was_cut_says_so_and_is_counted() {
    let reference = reference();
    let cut: Vec<String> = reference
        .features
        .iter()
        .filter(|feature| feature.header("truncated").is_some())
        .map(|feature| format!("{}={}", feature.key(), feature.header("truncated").unwrap()))
        .collect();
    assert_eq!(cut, ["half a megabyte=true", "one too many=true"]);
    assert!(reference.metrics.contains("sweepstream_embed_truncated_total 2"), "{}", reference.metrics);
    assert_eq!(keyed(&reference.features, "half a megabyte").matrix().rows.len(), 254);
}

#[test]
fn the_same_text_has_the_same_bytes_whatever_shares_its_batch() {
    let reference = reference();
    let mut seen: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    let mut repeated = 0;
    for (input, feature) in reference.texts.iter().zip(&reference.features) {
        let (text, matrix) = (input.value.as_deref().unwrap(), feature.value.as_deref().unwrap());
        if let Some(earlier) = seen.insert(text, matrix) {
            assert!(earlier == matrix, "{:?}", input.key);
            repeated += 1;
        }
    }
    assert_eq!(repeated, 40);
}

#[test]
fn the_same_texts_have_the_same_bytes_under_other_sessions_threads_chunks_and_batches() {
    let reference = reference();
    let few_at_a_time = |settings: &mut Settings| {
        settings.embed.threads = Some(count(2));
        settings.embed.chunk_texts = count(3);
        settings.embed.max_batch_tokens = count(256);
    };
    let many_at_once = |settings: &mut Settings| {
        settings.embed.sessions = Some(count(3));
        settings.embed.threads = Some(count(1));
        settings.embed.max_batch_tokens = count(8192);
    };
    for other in [again(&reference.settings, "few", few_at_a_time), again(&reference.settings, "many", many_at_once)] {
        for (a, b) in reference.features.iter().zip(&other) {
            assert!(a.value == b.value, "{:?}", a.key);
            assert_eq!((a.partition, &a.key, &a.headers), (b.partition, &b.key, &b.headers));
        }
    }
}

#[test]
fn a_word_row_is_the_mean_of_its_token_rows_and_f16_rounds_f32() {
    let reference = reference();
    let f32_rows = |rows: Rows| {
        again(&reference.settings, "f32", |settings| {
            settings.embed.rows = rows;
            settings.embed.dtype = MatrixDtype::F32;
        })
    };
    let (by_word, by_token) = (f32_rows(Rows::Word), f32_rows(Rows::Token));
    for (i, input) in reference.texts.iter().enumerate() {
        let words = words(text(input), 256);
        let (rows, tokens) = (by_word[i].matrix(), by_token[i].matrix());
        assert_eq!(rows.dtype, safetensors::Dtype::F32);
        assert_eq!(tokens.rows.len(), words.iter().map(Vec::len).sum::<usize>(), "{:?}", input.key);
        for (row, pieces) in rows.rows.iter().zip(&words) {
            for (column, &number) in row.iter().enumerate() {
                // [CLS] is at position 0 and has no row.
                let sum: f64 = pieces.iter().map(|&piece| f64::from(tokens.rows[piece - 1][column])).sum();
                assert!((f64::from(number) - sum / pieces.len() as f64).abs() < 1e-6, "{:?}", input.key);
            }
        }
        let rounded = rows.rows.iter().map(|row| row.iter().map(|&number| half::f16::from_f32(number).to_f32()));
        assert!(rounded.flatten().eq(reference.features[i].matrix().rows.into_iter().flatten()), "{:?}", input.key);
    }
}

#[test]
fn max_length_keeps_the_pieces_that_fit_even_of_a_single_word() {
    let reference = reference();
    let rows_at = |max_length: usize| {
        let features = again(&reference.settings, "length", |settings| {
            settings.embed.max_length = count(max_length);
            settings.embed.rows = Rows::Token;
        });
        for (input, feature) in reference.texts.iter().zip(&features) {
            let expected: usize = words(text(input), max_length).iter().map(Vec::len).sum();
            assert_eq!(feature.matrix().rows.len(), expected, "{:?} at {max_length}", input.key);
        }
        let of = |key: &str| (keyed(&features, key).matrix().rows.len(), keyed(&features, key).header("truncated"));
        (of("pieces"), of("one letter"), of("half a megabyte"))
    };
    let cut = || Some("true".to_owned());
    assert_eq!(rows_at(3), ((1, cut()), (1, None), (1, cut())));
    assert_eq!(rows_at(512), ((words("lighthousekeepership", 512)[0].len(), None), (1, None), (510, cut())));
}

#[test]
fn a_matrix_agrees_with_the_golden_embedding() {
    let golden = golden();
    let numbers = |key: &str| -> Vec<f64> {
        golden[key].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let rows = keyed(&reference().features, "golden").matrix().rows;
    assert_eq!(rows.len() as u64, golden["words"].as_u64().unwrap());
    for (row, norm) in rows.iter().zip(numbers("row_norms")) {
        let found = row.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>().sqrt();
        assert!((found / norm - 1.0).abs() < 1e-3, "{found} {norm}");
    }
    let mean: Vec<f64> = (0..384).map(|i| rows.iter().map(|row| f64::from(row[i])).sum::<f64>()).collect();
    let golden_mean = numbers("mean_of_rows");
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = dot(&mean, &golden_mean) / (dot(&mean, &mean) * dot(&golden_mean, &golden_mean)).sqrt();
    assert!(cosine > 0.9999, "{cosine}");
}

#[test]
fn metrics_tell_what_the_stage_did() {
    let reference = reference();
    let value = |series: &str| -> f64 {
        let line = reference.metrics.lines().find(|line| line.starts_with(&format!("{series} ")));
        let line = line.unwrap_or_else(|| panic!("no {series} in\n{}", reference.metrics));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let texts = reference.texts.len() as f64;
    assert_eq!(value("sweepstream_embed_records_total"), texts);
    assert_eq!(value("sweepstream_features_records_total"), texts);
    assert_eq!(value("sweepstream_embed_latency_seconds_count"), texts);
    assert_eq!(value("sweepstream_dead_letters_total{reason=\"no_words\"}"), 0.0);
    assert!(value("sweepstream_embed_batch_tokens_count") > 0.0);
    assert!(value("sweepstream_embed_inference_duration_seconds_sum") > 0.0);
    assert!((0.0..1.0).contains(&value("sweepstream_embed_padding_ratio")));
    assert!(value("sweepstream_features_transaction_duration_seconds_count") >= 1.0);
    assert!(value("sweepstream_features_transactions_total{outcome=\"committed\"}") >= 1.0);
    assert_eq!(value("sweepstream_features_transactions_total{outcome=\"failed\"}"), 0.0);
    assert!(value("sweepstream_embed_rebalances_total") >= 1.0);
}

#[test]
fn lag_is_reported_for_each_partition_and_ends_at_zero() {
    let settings = settings("lag");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &sentences(20));
    // Markers and aborted records are no texts, wherever they stand.
    let producer = Transactions::new(&settings);
    producer.send(&settings.topics.texts, 0, &["one", "two"]);
    producer.send(&settings.topics.texts, 1, &["three"]);
    producer.commit();
    producer.send(&settings.topics.texts, 0, &["phantom", "phantom"]);
    producer.send(&settings.topics.texts, 3, &["phantom"]);
    producer.abort();
    run(&settings, &[&EMBED], |topology| {
        let metrics = topology.metrics.text().unwrap();
        (0..4).all(|partition| {
            let labels = format!("{{partition=\"{partition}\",topic=\"{}\"}}", settings.topics.texts);
            metrics.contains(&format!("sweepstream_consumer_lag_records{labels} 0\n"))
        }) && topology.status.verdicts().0 == 23
    });
}

#[test]
fn json_gives_text_label_and_a_key_for_records_without_one() {
    let mut settings = settings("json");
    settings.input.format = InputFormat::Json;
    let json = |value: &str| Out { value: Some(value.into()), ..Out::default() }.to(0);
    let with_header = |mut out: Out| {
        out.headers.push(("label".into(), Some(b"header".to_vec())));
        out
    };
    let records = [
        json(r#"{"text": "waves", "label": "sea", "id": "i1"}"#),
        Out { key: Some(b"own".to_vec()), ..json(r#"{"text": "waves", "id": "i2", "more": {"x": [1]}}"#) },
        with_header(json(r#"{"text": "waves", "label": "field"}"#)),
        with_header(json(r#"{"text": "waves", "label": null, "id": null}"#)),
        json(r#"{"text": "wa\u0076es", "label": 7, "id": 12}"#),
        Out { key: Some(Vec::new()), ..json(r#"{"text": "waves", "id": "i6"}"#) },
    ];
    embed(&settings, &records);
    let features = read(&settings, &settings.topics.features);
    let key = |i: usize| features[i].key.clone().map(|key| String::from_utf8(key).unwrap());
    let keys: Vec<Option<String>> = (0..6).map(key).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(keys, [some("i1"), some("own"), None, None, some("12"), some("")]);
    let labels: Vec<Option<String>> = features.iter().map(|feature| feature.header("label")).collect();
    assert_eq!(labels, [some("sea"), None, some("field"), some("header"), some("7"), None]);
    assert!(features.iter().all(|feature| feature.value == features[0].value));
}

#[test]
fn of_several_labels_the_last_one_counts_and_a_null_label_is_none() {
    let settings = settings("labels");
    let labelled = |labels: &[Option<&str>]| Out {
        headers: labels.iter().map(|label| ("label".into(), label.map(|label| label.as_bytes().to_vec()))).collect(),
        ..Out::text("k", "waves").to(0)
    };
    embed(&settings, &[labelled(&[Some("a"), Some("b")]), labelled(&[None]), labelled(&[Some("")]), labelled(&[])]);
    let features = read(&settings, &settings.topics.features);
    let labels: Vec<Option<String>> = features.iter().map(|feature| feature.header("label")).collect();
    assert_eq!(labels, [Some("b".into()), None, Some(String::new()), None]);
    let count = |feature: &In| feature.headers.iter().filter(|(name, _)| name == "label").count();
    assert_eq!(features.iter().map(count).collect::<Vec<_>>(), [1, 0, 1, 0]);
}

#[test]
fn texts_of_aborted_transactions_leave_no_trace() {
    let settings = settings("aborted");
    create_topics(&settings);
    let texts = settings.topics.texts.clone();
    let producer = Transactions::new(&settings);
    producer.send(&texts, 0, &["one", "two"]);
    producer.commit();
    producer.send(&texts, 0, &["phantom", "\u{1}"]);
    producer.abort();
    embed_more(&settings, 2);
    // The group's position may now lie before markers and aborted records.
    producer.send(&texts, 0, &["phantom"]);
    producer.abort();
    producer.send(&texts, 0, &["three"]);
    producer.send(&texts, 1, &["phantom"]);
    producer.commit();
    producer.send(&texts, 0, &["phantom"]);
    producer.abort();
    embed_more(&settings, 2);
    assert_one_verdict_each(&settings);
    let texts = read(&settings, &settings.topics.texts);
    assert_eq!(texts.iter().map(|text| text.offset).collect::<Vec<_>>(), [0, 1, 8, 0]);
    assert_eq!(read(&settings, &settings.topics.features).len(), 4);
    let positions = committed(&settings, &settings.embed_group(), &settings.topics.texts);
    assert_eq!(positions, BTreeMap::from([(0, 9), (1, 1), (2, 0), (3, 0)]));
}

#[test]
fn source_order_holds_under_load_with_mixed_lengths() {
    let mut settings = settings("order");
    settings.embed.chunk_texts = count(37);
    let texts: Vec<Out> =
        (0..300).map(|i| Out::text(&format!("k{}", i % 9), &"waves and anchors ".repeat(1 + i * 31 % 17))).collect();
    embed(&settings, &texts);
    assert_one_verdict_each(&settings);
    assert_eq!(read(&settings, &settings.topics.features).len(), 300);
}
