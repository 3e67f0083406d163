//! Bytes from outside, whatever they are: no decoder panics, and none takes more memory than its bound, which is
//! stated here as a function of the input's length.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::sample::Index;
use safetensors::tensor::{Dtype, TensorView};
use sweepstream::config::{Input, InputFormat, Settings};
use sweepstream::features::{codec, range::Position};
use sweepstream::input;
use sweepstream::kafka::topics::Declarations;
use sweepstream::learn::fit::Fit;
use sweepstream::learn::optimizer::{OptimizerSpec, Rule};
use sweepstream::models::error::ELEMENTS_MAX;
use sweepstream::models::kind::{ModelSpec, Shape, Value};
use sweepstream::models::registry;
use sweepstream::output::{Key, Measurement, Outcome, Slot};
use sweepstream::search::file::{Search, TRIALS_MAX};
use sweepstream::search::record::TrialRecord;
use sweepstream::train::store::checkpoint::{Manifest, Progress, CHUNK_BYTES};
use sweepstream::train::store::publish::Pointer;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// What a decoder may take at its peak: this much whatever it is given, and so many bytes for each byte of input.
/// Growing a list holds the old and the new one for a moment, which is half of each factor.
struct Bound {
    fixed_bytes: usize,
    factor: usize,
}

const SLACK_BYTES: usize = 64 * 1024;
/// A text is copied; fields of JSON that nobody asked for are not kept.
const TEXT: Bound = Bound { fixed_bytes: SLACK_BYTES, factor: 2 };
const JSON_TEXT: Bound = Bound { fixed_bytes: SLACK_BYTES, factor: 16 };
/// The matrix is not copied; a header can name many tensors.
const MATRIX: Bound = Bound { fixed_bytes: SLACK_BYTES, factor: 48 };
/// `[0,0,…]`: two bytes become a value of 32.
const RECORD: Bound = Bound { fixed_bytes: SLACK_BYTES, factor: 48 };
/// The file a person writes: numbers carry where they stand, and layers are merged.
const SETTINGS: Bound = Bound { fixed_bytes: 1024 * 1024, factor: 256 };
/// Besides, each trial keeps its parameters and the path of its weights.
const SEARCH: Bound = Bound { fixed_bytes: SLACK_BYTES + TRIALS_MAX * 6 * 1024, factor: 320 };

/// One at a time: the heap is everybody's.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Decodes `bytes` of input within a bound.
#[track_caller]
fn within<T>(bound: &Bound, bytes: usize, decode: impl FnOnce() -> T) -> T {
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let result = decode();
    let taken = HEAP.peak_usage().saturating_sub(before);
    let bound = bound.fixed_bytes + bound.factor * bytes;
    assert!(taken <= bound, "{taken} bytes were taken for {bytes}; {bound} are allowed");
    result
}

/// What mistakes and attacks are made of.
const TOKENS: [&str; 32] = [
    "0",
    "-1",
    "1e308",
    "1e999",
    "-0.0",
    "NaN",
    "inf",
    "4294967296",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "null",
    "true",
    "{}",
    "[]",
    "[[],[]]",
    "{\"a\":{\"b\":[1]}}",
    "[0,0,0,0,0,0,0,0]",
    ",",
    ":",
    "=",
    "\n",
    "\u{0}",
    "\u{ffff}",
    "/",
    ".",
    "__",
];

#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, &'static str),
    /// A value of JSON or TOML, up to the next mark.
    Replace(Index, &'static str),
    Repeat(Index, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let (place, token) = (any::<Index>(), prop::sample::select(&TOKENS[..]));
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        place.clone().prop_map(Change::Cut),
        (place.clone(), 1_usize..40).prop_map(|(at, count)| Change::Remove(at, count)),
        (place.clone(), token.clone()).prop_map(|(at, token)| Change::Insert(at, token)),
        (place.clone(), token).prop_map(|(at, token)| Change::Replace(at, token)),
        (place, 1_usize..60, 1_usize..200).prop_map(|(at, count, times)| Change::Repeat(at, count, times)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let length = bytes.len();
    if length == 0 {
        return;
    }
    match change {
        Change::Set(at, byte) => bytes[at.index(length)] = *byte,
        Change::Cut(at) => bytes.truncate(at.index(length)),
        Change::Remove(at, count) => {
            let at = at.index(length);
            drop(bytes.drain(at..length.min(at + count)));
        }
        Change::Insert(at, token) => {
            let at = at.index(length);
            drop(bytes.splice(at..at, token.bytes()));
        }
        Change::Replace(at, token) => {
            let from = |at: usize, marks: &[u8]| bytes[at..].iter().position(|b| marks.contains(b)).map(|n| at + n);
            let Some(start) = from(at.index(length), b":=[").map(|mark| mark + 1) else { return };
            let end = from(start, b",]}\n").unwrap_or(length);
            drop(bytes.splice(start..end, token.bytes()));
        }
        Change::Repeat(at, count, times) => {
            let at = at.index(length);
            let part = bytes[at..length.min(at + count)].repeat(*times);
            drop(bytes.splice(at..at, part));
        }
    }
}

/// Samples with changes, and noise.
fn poison(samples: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changed =
        (prop::sample::select(samples), prop::collection::vec(change(), 0..5)).prop_map(|(sample, changes)| {
            let mut bytes = sample;
            changes.iter().for_each(|change| apply(&mut bytes, change));
            bytes
        });
    prop_oneof![9 => changed, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

fn text(strategy: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = String> {
    strategy.prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() }
}

/// Bytes that open a level each, and never close one.
fn nested(beginning: &str, level: &str) -> Vec<u8> {
    [beginning.as_bytes(), &level.as_bytes().repeat(50_000)].concat()
}

/// What takes the most memory for its length.
fn heavy(beginning: &str, element: &str, end: &str) -> Vec<u8> {
    [beginning.as_bytes(), &element.as_bytes().repeat(40_000), end.as_bytes()].concat()
}

// --- Records of `texts`

fn decode_text(value: &[u8], label: Option<&[u8]>) {
    let plain = Input::default();
    drop(within(&TEXT, value.len() + label.map_or(0, <[u8]>::len), || input::document(&plain, Some(value), label)));
    let json = Input { format: InputFormat::Json, ..Input::default() };
    drop(within(&JSON_TEXT, value.len(), || input::document(&json, Some(value), None)));
}

#[test]
fn any_text_is_a_document_or_a_dead_letter() {
    let _alone = alone();
    for heavy in [
        nested("", "["),
        nested("{\"text\":", "["),
        nested("{\"x\":", "{\"x\":"),
        heavy("{\"text\":\"a\",\"x\":[", "0,", "0]}"),
        heavy("{\"text\":[", "[],", "0]}"),
        heavy("{\"text\":{", "\"\":0,", "\"\":0}}"),
        heavy("\"", "\u{ffff}", "\""),
        heavy("{\"text\":\"", "\\u0000", "\"}"),
        heavy("{\"", "\\uffff", "\":0}"),
        heavy("", "1", ""),
    ] {
        decode_text(&heavy, None);
    }
    let samples = vec![
        b"waves and wind".to_vec(),
        br#"{"text": "good day", "label": 3, "id": "k1", "more": [1, {"a": null}]}"#.to_vec(),
        "{\"text\": \"caf\u{e9} \\ud83e\\udd80\", \"label\": true}".as_bytes().to_vec(),
    ];
    proptest!(cases(4000), |(value in poison(samples), label in prop::option::of(prop::collection::vec(any::<u8>(), 0..9)))| {
        decode_text(&value, label.as_deref());
    });
}

// --- Records of `features`

fn safetensors(header: &str) -> Vec<u8> {
    let length = header.len() as u64;
    [length.to_le_bytes().as_slice(), header.as_bytes()].concat()
}

#[test]
fn any_bytes_are_a_matrix_or_an_error() {
    let _alone = alone();
    let decode = |bytes: &[u8]| {
        let decoded = within(&MATRIX, bytes.len(), || codec::decode(bytes));
        match decoded {
            Ok(view) => assert_eq!(view.data.len(), view.rows * view.dim * view.dtype.bytes()),
            Err(error) => assert!(error.to_string().len() < 1000, "{error}"),
        }
    };
    let tensors: String =
        (0..2_000).map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},")).collect();
    let metadata: String = (0..9_000).map(|i| format!("\"{i}\":\"\",")).collect();
    let shape = "0,".repeat(40_000);
    for header in [
        format!("{{{}}}", tensors.trim_end_matches(',')),
        format!("{{\"__metadata__\":{{{}}}}}", metadata.trim_end_matches(',')),
        format!("{{\"rows\":{{\"dtype\":\"F16\",\"shape\":[{shape}0],\"data_offsets\":[0,0]}}}}"),
        "{\"rows\":{\"dtype\":\"F16\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}".into(),
        "{\"rows\":{\"dtype\":\"F16\",\"shape\":[9223372036854775808,4],\"data_offsets\":[0,0]}}".into(),
        "{\"rows\":{\"dtype\":\"F16\",\"shape\":[1,1],\"data_offsets\":[0,18446744073709551615]}}".into(),
        "{\"rows\":{\"dtype\":\"F16\",\"shape\":[1,1],\"data_offsets\":[5,3]}}".into(),
        String::from_utf8(nested("{\"rows\":", "[")).unwrap(),
        String::from_utf8(heavy("{\"", "\u{ffff}", "\":0}")).unwrap(),
    ] {
        decode(&safetensors(&header));
    }
    for claimed in [u64::MAX, 1 << 40, 99_999_999, 0] {
        decode(&claimed.to_le_bytes());
    }
    let view = TensorView::new(Dtype::I64, vec![1], &[0; 8]).unwrap();
    let samples = vec![
        codec::encode(2, 3, &[0.5; 6], codec::Dtype::F16),
        codec::encode(1, 4, &[0.5; 4], codec::Dtype::F32),
        safetensors::serialize([("other", view)], None).unwrap(),
    ];
    proptest!(cases(6000), |(bytes in poison(samples))| decode(&bytes));
}

// --- Records of `trials`

fn trial() -> serde_json::Value {
    serde_json::json!({
        "search": "s", "trial": "s-00", "number": 1, "trials": 2, "model": "mlp", "objective": "loss", "seed": 3,
        "parameters": {
            "epochs": 2, "batch_size": 4, "optimizer": "adamw", "learning_rate": 0.001, "shuffle": true,
            "hidden": 5, "dropout": 0.5, "validation": 10, "window": 7,
        },
        "topic": "f", "range": {"0": [0, 6], "2": [3, 9]}, "records": {"0": 5, "2": 6},
        "digests": {"0": "00000000000000aa", "2": "00000000000000bb"}, "labels": ["a", "b"], "rows_max": 3,
        "dim": 4, "training_format": 1, "created_ms": 1,
    })
}

/// Reads a record, and asks all that the pool and a trial ask of it before they see the data.
fn decode_trial(bytes: &[u8]) {
    let parsed = within(&RECORD, bytes.len(), || TrialRecord::parse(bytes));
    let record = match parsed {
        Ok(record) => record,
        Err(why) => return assert!(why.len() < 1000, "{why}"),
    };
    within(&RECORD, bytes.len(), || {
        let range = record.range();
        let _ = (range.records(), range.counts(), record.reading(), record.identity());
        let _ = Position::start(&range);
        let spec = record.model_spec();
        // Those that can be built take what they take.
        if spec.check().is_err() || record.optimizer_spec().check().is_err() {
            assert!(Fit::new(spec, record.optimizer_spec(), record.seed, record.number).is_err());
        }
    });
    let again = within(&RECORD, bytes.len() + 1024, || TrialRecord::parse(&record.to_json()));
    assert_eq!(again.unwrap(), record);
}

#[test]
fn any_bytes_are_a_trial_or_an_error() {
    let _alone = alone();
    let json = trial().to_string();
    let with = |from: &str, to: &str| json.replace(from, to).into_bytes();
    let zeros = format!("[{}1]", "1,".repeat(40_000));
    for heavy in [
        with("[3,2]", &zeros),
        with("[3,2]", "[18446744073709551615]"),
        with("\"hidden\":5", "\"hidden\":18446744073709551615"),
        with("\"dropout\":0.5", "\"dropout\":1e308"),
        with("\"dim\":4", "\"dim\":18446744073709551615"),
        with("\"rows_max\":3", "\"rows_max\":18446744073709551615"),
        with("\"epochs\":2", "\"epochs\":18446744073709551615"),
        with("[\"a\",\"b\"]", &format!("[{}\"\"]", "\"\",".repeat(40_000))),
        with("[0,6]", "[0,9223372036854775807]"),
        with("\"model\":\"mlp\"", &format!("\"model\":\"{}\"", "\u{ffff}".repeat(40_000))),
        nested("{\"labels\":", "["),
        nested("{\"unknown\":", "{\"a\":"),
    ] {
        decode_trial(&heavy);
    }
    let samples = vec![json.into_bytes()];
    proptest!(cases(6000), |(bytes in poison(samples))| decode_trial(&bytes));
}

#[test]
fn models_beyond_the_limit_are_refused_before_anything_is_allocated() {
    let _alone = alone();
    let optimizer = OptimizerSpec { rule: Rule::ADAMW, learning_rate: 0.1, weight_decay: 0.0 };
    let size = || prop_oneof![1_usize..5, 20_000_usize..200_000, (usize::MAX - 3)..=usize::MAX, Just(1 << 32)];
    let spec = |kind: &str, key: &str, value: Value, shape: Shape| {
        let kind = registry::find(kind).unwrap();
        let values = kind.settle([(key.to_owned(), value)].into()).unwrap();
        ModelSpec { kind, task: kind.tasks[0], values, shape }
    };
    let autoencoder = (size(), size(), prop::collection::vec(size(), 0..4)).prop_map(move |(rows_max, dim, layers)| {
        spec("autoencoder", "layers", Value::Widths(layers), Shape { rows_max, dim, classes: 0 })
    });
    let mlp = (size(), size(), size()).prop_map(move |(dim, hidden, classes)| {
        spec("mlp", "hidden", Value::Count(hidden), Shape { rows_max: 1, dim, classes })
    });
    let elements = |widths: &[usize]| {
        let layer = |ends: &[usize]| (ends[0] as u128 + 1).saturating_mul(ends[1] as u128);
        widths.windows(2).map(layer).fold(0_u128, u128::saturating_add)
    };
    proptest!(cases(4000), |(spec in prop_oneof![autoencoder, mlp])| {
        let Shape { rows_max, dim, classes } = spec.shape;
        let too_large = match spec.kind.name {
            "mlp" => elements(&[dim, spec.count("hidden"), classes]) > ELEMENTS_MAX as u128,
            _ => match rows_max.checked_mul(dim) {
                Some(flat) => elements(&[&[flat], spec.widths("layers")].concat()) > ELEMENTS_MAX as u128,
                None => true,
            },
        };
        if too_large {
            let refused = within(&RECORD, 0, || Fit::new(spec, optimizer, 0, 0).is_err());
            prop_assert!(refused);
        }
    });
}

// --- Records of `output`, and what groups remember

fn sealed() -> (TrialRecord, Manifest, Vec<u8>) {
    let record = TrialRecord::parse(trial().to_string().as_bytes()).unwrap();
    let blob = vec![7; CHUNK_BYTES + 10];
    let manifest = Manifest::seal(&record, 4, Progress::beginning(&record.range()), &blob);
    (record, manifest, blob)
}

#[test]
fn any_bytes_are_a_manifest_or_an_error_and_chunks_are_taken_for_what_they_are() {
    let _alone = alone();
    let (record, manifest, blob) = sealed();
    let chunks: BTreeMap<u32, Vec<u8>> = (0..).zip(blob.chunks(CHUNK_BYTES).map(<[u8]>::to_vec)).collect();
    let chunk_bytes: usize = chunks.values().map(Vec::len).sum();
    // Once for the blob; a manifest that claims more chunks than there are gets none of it.
    let opening = Bound { fixed_bytes: 2 * SLACK_BYTES + chunk_bytes, factor: 48 };
    let decode = |bytes: &[u8]| match within(&RECORD, bytes.len(), || Manifest::parse(bytes)) {
        Err(error) => assert!(error.to_string().len() < 1000, "{error}"),
        Ok(parsed) => {
            let opened = within(&opening, bytes.len(), || parsed.open(Slot::Zero, &chunks));
            assert!(opened.is_err() || parsed.sha256 == manifest.sha256);
            drop(within(&RECORD, bytes.len() + 1024, || parsed.check_fits(&record).map_err(|error| error.to_string())));
        }
    };
    let json = manifest.to_json();
    let text = String::from_utf8(json.clone()).unwrap();
    for heavy in [
        text.replace("\"identity\":{", &format!("\"identity\":{{\"x\":[{}0],", "0,".repeat(40_000))),
        text.replace("\"identity\":{", &format!("\"identity\":{{\"x\":[{}0],", "[],".repeat(40_000))),
        text.replace("\"chunks\":2", "\"chunks\":20000").replace("\"bytes\":900010", "\"bytes\":18000000000"),
        text.replace("\"offsets\":[", &format!("\"offsets\":[{}", "1,".repeat(40_000))),
    ] {
        assert_ne!(heavy, text);
        decode(heavy.as_bytes());
    }
    decode(&nested("{\"identity\":", "{\"a\":"));
    // Hashing two chunks takes its time.
    proptest!(cases(1500), |(bytes in poison(vec![json]))| decode(&bytes));
}

#[test]
fn any_bytes_are_output_or_nothing() {
    let _alone = alone();
    let keys = ["t-1/measurement/2/130", "t-1/outcome", "t-1/checkpoint/0/12", "t-1/checkpoint/initial/manifest"];
    proptest!(cases(3000), |(bytes in poison(keys.map(|key| key.as_bytes().to_vec()).to_vec()))| {
        if let Some(key) = within(&TEXT, bytes.len(), || Key::parse(&bytes)) {
            let written = key.to_string();
            prop_assert_eq!(Key::parse(written.as_bytes()), Some(key));
        }
    });
    let measurement = serde_json::json!({
        "search": "s", "trial": "t", "epoch": 1, "step": 2, "records": 3, "loss": 0.5, "learning_rate": 0.1, "time_ms": 4,
    });
    let outcome = serde_json::json!({
        "search": "s", "trial": "t", "number": 0, "state": "finished", "epochs": 2, "records": 3, "best": measurement,
        "weights_sha256": "aa", "attempt": 0, "time_ms": 4,
    });
    let pointer = serde_json::json!({"attempt": 0, "checkpoint": 3, "epoch": 1, "step": 9});
    let samples = [measurement, outcome, pointer].map(|json| json.to_string().into_bytes()).to_vec();
    let decode = |bytes: &[u8]| {
        drop(within(&RECORD, bytes.len(), || serde_json::from_slice::<Measurement>(bytes).ok()));
        drop(within(&RECORD, bytes.len(), || serde_json::from_slice::<Outcome>(bytes).ok()));
        let _ = within(&RECORD, bytes.len(), || serde_json::from_slice::<Pointer>(bytes).ok());
    };
    decode(&nested("{\"best\":", "{\"best\":"));
    decode(&heavy("{\"x\":[", "0,", "0]}"));
    proptest!(cases(4000), |(bytes in poison(samples))| decode(&bytes));
}

// --- What people write

fn file(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn decode_settings(folder: &Path, text: &str, environment: &[(String, String)], flags: &[(String, String)]) {
    let bytes =
        text.len() + environment.iter().chain(flags).map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let file = file(folder, "settings.toml", text);
    let loaded = within(&SETTINGS, bytes, || {
        Settings::layered(Some(&file), environment.to_vec(), flags).map_err(|error| error.to_string())
    });
    if let Ok(settings) = loaded {
        drop(within(&SETTINGS, bytes, || settings.redacted_toml()));
    }
}

#[test]
fn any_settings_are_settings_or_an_error() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for heavy in [
        nested("a = ", "["),
        nested("a = ", "{a="),
        nested("[a", ".a"),
        nested("a", ".a"),
        nested("", "[a]\n"),
        heavy("a = [", "0,", "]"),
    ] {
        let text = String::from_utf8(heavy).unwrap();
        decode_settings(folder.path(), &text, &[], &[]);
        let value = ("SWEEPSTREAM_EMBED__SESSIONS".to_owned(), text.clone());
        decode_settings(folder.path(), "", &[value], &[]);
        decode_settings(folder.path(), "", &[], &[("embed.sessions".to_owned(), text)]);
    }
    let deep = format!("SWEEPSTREAM_{}", "A__".repeat(5_000));
    decode_settings(folder.path(), "", &[(deep, "1".into())], &[]);
    let all = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sweepstream.toml")).unwrap();
    let samples = vec![
        all,
        b"application_id = \"x\"\n[kafka]\nsession_timeout = \"6s\"\n[kafka.properties]\n\"sasl.password\" = \"x\"\n"
            .to_vec(),
        b"[embed]\nrows = \"token\"\nmax_length = 128\n[run]\nrebuilds_max = 3\n[log]\nlevel = \"info\"\n".to_vec(),
    ];
    let names = ["KAFKA__SESSION_TIMEOUT", "EMBED__ROWS", "KAFKA__PROPERTIES__SASL_PASSWORD", "APPLICATION_ID", "RUN"];
    let names = names.map(|name| format!("SWEEPSTREAM_{name}").into_bytes()).to_vec();
    let flags = [b"embed.rows".to_vec(), b"kafka.properties.a.b".to_vec(), b"run".to_vec()].to_vec();
    let values = || text(poison(vec![b"6s".to_vec(), b"[1, {a=2}]".to_vec(), b"\"x\"".to_vec()]));
    let environment = prop::collection::vec((text(poison(names)), values()), 0..3);
    let flags = prop::collection::vec((text(poison(flags)), values()), 0..3);
    proptest!(cases(2500), |(file in text(poison(samples)), environment in environment, flags in flags)| {
        decode_settings(folder.path(), &file, &environment, &flags);
    });
}

#[test]
fn any_search_file_is_a_search_or_an_error() {
    let _alone = alone();
    let decode = |text: &str| {
        if let Err(error) = within(&SEARCH, text.len(), || Search::parse(text)) {
            assert!(!error.to_string().is_empty());
        }
    };
    let grid = format!("[{}0.1]", "0.1,".repeat(20_000));
    let head = "name = \"a\"\nmodel = \"autoencoder\"\n";
    for heavy in [
        nested("a = ", "["),
        nested("a = ", "{a="),
        nested("[a", ".a"),
        nested("a", ".a"),
        heavy("a = [", "0,", "]"),
        format!("{head}learning_rate = {grid}\n").into_bytes(),
        format!("{head}learning_rate = {grid}\ninitial_weights = \"{}\"\n", "w".repeat(100_000)).into_bytes(),
        format!(
            "{head}batch_size = [1,2,3,4,5,6,7,8,9,10]\nseed = 1\nlearning_rate = [{}]\nlayers = [{}1]",
            "0.1,".repeat(999),
            "1,".repeat(90_000)
        )
        .into_bytes(),
        format!(
            "{head}batch_size = [1,2,3,4,5,6,7,8,9,10]\nlearning_rate = [{}]\nlayers = [{}1]",
            "0.1,".repeat(999),
            "1,".repeat(60)
        )
        .into_bytes(),
    ] {
        decode(&String::from_utf8(heavy).unwrap());
    }
    let samples = ["genres.toml"]
        .map(|name| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)).unwrap());
    proptest!(cases(3000), |(file in text(poison(samples.to_vec())))| decode(&file));
}

#[test]
fn any_topic_declaration_is_one_or_an_error() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.topics.dir = Some(folder.path().to_path_buf());
    let decode = |text: &str| {
        let _ = file(folder.path(), "features.toml", text);
        drop(within(&SETTINGS, text.len(), || Declarations::load(&settings).map_err(|error| error.to_string())));
    };
    for heavy in
        [nested("a = ", "["), nested("[required", ".a"), nested("required", ".a"), heavy("partitions = [", "0,", "]")]
    {
        decode(&String::from_utf8(heavy).unwrap());
    }
    let names = ["features.toml", "dead-letters.toml", "trials.toml"];
    let samples =
        names.map(|name| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("topics").join(name)).unwrap());
    proptest!(cases(3000), |(file in text(poison(samples.to_vec())))| decode(&file));
}
