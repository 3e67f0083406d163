//! Which model embeds: names, the hub, and the two engines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, Uri};
use fastembed::{InitOptionsUserDefined, OutputKey, Pooling, TextEmbedding, TokenizerFiles, UserDefinedEmbeddingModel};
use sha2::{Digest, Sha256};
use sweepstream::config::{MatrixDtype, Rows, Settings};
use sweepstream::embed::embedders::embedder::Item;
use sweepstream::embed::embedders::model::{environment, Model};
use sweepstream::features::codec;
use sweepstream::parts::Parts;

use crate::onnx::{graph, table, Gives, Table};
use crate::start::assert_refused;
use crate::support::{
    assert_one_verdict_each, command, embed, finish, parts, read, sentences, settings, sweepstream, Finished,
};

const MINILM: &str = "models/all-minilm-l6-v2";
/// Ids of MiniLM's tokenizer.
const IDS: usize = 30522;

#[test]
fn a_model_goes_by_the_catalogues_names() {
    let settings = settings("names");
    let run = |name: &str| sweepstream(&settings, &["run", "--stage=embed", "-s", &format!("embed.model={name}")]);
    assert_refused(&run("all-minilm-l6-v2-q"), 78, &["dynamically quantised", "use `all-minilm-l6-v2`"]);
    assert_refused(&run("AllMiniLML6V2Q"), 78, &["dynamically quantised", "use `all-minilm-l6-v2`"]);
    assert_refused(
        &run("bge-smal-en-v1.5"),
        78,
        &["bge-smal-en-v1.5", "did you mean `bge-small-en-v1.5`", "sweepstream models"],
    );
    assert_refused(&run("mxbai-embed-large-v1"), 78, &["models fetch mxbai-embed-large-v1 --revision"]);
    for name in ["all-MiniLM-L6-v2", "AllMiniLML6V2", "all-minilm-l6-v2"] {
        let found = sweepstream(&settings, &["parts", "--json", "-s", &format!("embed.model={name}")]);
        assert_eq!(found.code, 0, "{name}: {}", found.stderr);
        assert!(found.stdout.contains(MINILM), "{name}: {}", found.stdout);
    }
}

#[test]
fn the_list_says_which_models_are_here_and_which_are_refused() {
    let listed = sweepstream(&settings("list"), &["models", "--json"]);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    let state = |name: &str| listed.iter().find(|model| model["name"] == name).unwrap()["state"].clone();
    assert_eq!(listed.len(), 46);
    assert_eq!(state("all-minilm-l6-v2"), "here");
    assert_eq!(state("bge-m3"), "absent");
    assert_eq!(state("mxbai-embed-large-v1-q"), "refused");
}

// --- The hub

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
const REPOSITORY: &str = "Qdrant/clip-ViT-B-32-text";

/// What a hub answers: by path, and only to who brings the token, where there is one. What begins with [`MOVED`] is
/// elsewhere, as large files of real hubs are.
struct Hub {
    address: String,
    /// Somebody has brought a token.
    saw_token: Arc<AtomicBool>,
    _runtime: tokio::runtime::Runtime,
}

const MOVED: &str = "moved to ";

impl Hub {
    fn serve(files: BTreeMap<String, Vec<u8>>, token: Option<&'static str>) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (files, saw_token) = (Arc::new(files), Arc::new(AtomicBool::new(false)));
        let saw = Arc::clone(&saw_token);
        let answer = move |uri: Uri, headers: HeaderMap| {
            let brought = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
            let _ = saw.fetch_or(brought.is_some(), Ordering::SeqCst);
            let is_known = token.is_none_or(|token| brought.as_deref() == Some(&*format!("Bearer {token}")));
            let found = files.get(&uri.to_string()).cloned();
            async move {
                let nowhere = |status: StatusCode| (status, [("location", String::new())], Vec::new());
                let Some(bytes) = found.filter(|_| is_known) else {
                    return nowhere(if is_known { StatusCode::NOT_FOUND } else { StatusCode::UNAUTHORIZED });
                };
                match std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_prefix(MOVED)) {
                    Some(place) => (StatusCode::FOUND, [("location", place.to_owned())], Vec::new()),
                    None => (StatusCode::OK, [("location", String::new())], bytes),
                }
            }
        };
        let service = axum::Router::new().fallback(answer);
        let _serving = runtime.spawn(async move { axum::serve(listener, service).await });
        Self { address, saw_token, _runtime: runtime }
    }
}

/// The files of a model that pools by itself, with MiniLM's tokenizer.
fn model_files() -> BTreeMap<&'static str, Vec<u8>> {
    let of_minilm = |name: &str| std::fs::read(parts().folder.join(MINILM).join(name)).unwrap();
    let mut files: BTreeMap<_, _> =
        ["tokenizer.json", "config.json", "special_tokens_map.json", "tokenizer_config.json"]
            .map(|name| (name, of_minilm(name)))
            .into();
    let _ = files.insert("model.onnx", graph(IDS, 512, &Gives::Sums("text_embeds"), &Table::Inside));
    files
}

/// Their paths on a hub, and the list of the commit.
fn hosted(files: &BTreeMap<&'static str, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let sha256 = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let siblings: Vec<serde_json::Value> = files
        .iter()
        .map(|(name, bytes)| {
            serde_json::json!({ "rfilename": name, "size": bytes.len(), "lfs": { "sha256": sha256(bytes) } })
        })
        .collect();
    let list = serde_json::json!({ "id": REPOSITORY, "sha": REVISION, "siblings": siblings });
    let path = |name: &&str| format!("/{REPOSITORY}/resolve/{REVISION}/{name}");
    let mut hosted: BTreeMap<String, Vec<u8>> = files.iter().map(|(name, bytes)| (path(name), bytes.clone())).collect();
    let list_path = format!("/api/models/{REPOSITORY}/revision/{REVISION}?blobs=true");
    let _ = hosted.insert(list_path, serde_json::to_vec(&list).unwrap());
    hosted
}

/// `models fetch` into a parts folder from a hub.
fn fetch(folder: &Path, hub: &str, change: impl FnOnce(&mut Command)) -> Finished {
    let arguments = ["models", "fetch", "clip-vit-b-32-text", "--revision", REVISION];
    let mut fetch = command(&settings("fetch"), &arguments);
    let _ = fetch.env("SWEEPSTREAM_PARTS", folder).env("HF_ENDPOINT", hub).env_remove("HF_TOKEN");
    change(&mut fetch);
    finish(fetch)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder.join("models")).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn a_fetched_model_embeds_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = hosted(&model_files());
    let large = files.iter_mut().find(|(path, _)| path.ends_with("/model.onnx")).unwrap().1;
    let elsewhere = Hub::serve([("/large".to_owned(), large.clone())].into(), None);
    // Another name is another host, though both are this machine.
    *large = format!("{MOVED}{}/large", elsewhere.address.replace("127.0.0.1", "localhost")).into_bytes();
    // A small one is elsewhere on the same hub, which asks for the token there, too.
    let small = files.iter_mut().find(|(path, _)| path.ends_with("/config.json")).unwrap().1;
    let config = std::mem::replace(small, format!("{MOVED}/cache/config.json").into_bytes());
    let _ = files.insert("/cache/config.json".into(), config);
    let hub = Hub::serve(files, Some("a-token"));
    assert_refused(&fetch(folder.path(), &hub.address, |_| {}), 78, &["401", "HF_TOKEN"]);
    assert!(is_empty(folder.path()));
    let with_token = |fetch: &mut Command| {
        let _ = fetch.env("HF_TOKEN", "a-token");
    };
    let fetched = fetch(folder.path(), &hub.address, with_token);
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    assert!(hub.saw_token.load(Ordering::SeqCst) && !elsewhere.saw_token.load(Ordering::SeqCst));
    assert_eq!(Path::new(fetched.stdout.trim()), folder.path().join("models/clip-vit-b-32-text"));
    assert_refused(&fetch(folder.path(), &hub.address, with_token), 78, &["there already", REVISION, "delete it"]);

    std::os::unix::fs::symlink(
        parts().folder.join("onnxruntime").canonicalize().unwrap(),
        folder.path().join("onnxruntime"),
    )
    .unwrap();
    let mut settings = settings("fetched");
    settings.embed.model = "clip-vit-b-32-text".into();
    let own = Parts { folder: folder.path().to_owned(), found_by: "this test" };
    assert!(Model::load(&own, &settings).err().unwrap().to_string().contains("embed.rows = \"text\""));
    settings.embed.rows = Rows::Text;
    let model = Model::load(&own, &settings).unwrap();
    assert_eq!(model.dim, 512);
    assert!(model.embedder.starts_with("clip-vit-b-32-text@"), "{}", model.embedder);
}

#[test]
fn what_a_hub_sends_wrong_is_refused_and_leaves_nothing() {
    let right = hosted(&model_files());
    type Fault = fn(&mut BTreeMap<String, Vec<u8>>);
    fn of<'f>(files: &'f mut BTreeMap<String, Vec<u8>>, end: &str) -> &'f mut Vec<u8> {
        files.iter_mut().find(|(path, _)| path.ends_with(end)).unwrap().1
    }
    let faults: [(&str, Fault, &[&str]); 6] = [
        ("a bit", |files| of(files, "model.onnx")[99] ^= 1, &["model.onnx", "sha256"]),
        ("cut", |files| of(files, "tokenizer.json").truncate(9), &["tokenizer.json", "bytes came"]),
        ("gone", |files| files.retain(|path, _| !path.ends_with("/config.json")), &["no such commit or file"]),
        ("unknown", BTreeMap::clear, &["no such commit or file"]),
        (
            "another commit",
            |files| *of(files, "?blobs=true") = br#"{"sha": "main", "siblings": []}"#.to_vec(),
            &["commit main"],
        ),
        ("a page", |files| *of(files, "?blobs=true") = b"<html>".to_vec(), &["no list of files", "HF_ENDPOINT"]),
    ];
    for (name, fault, words) in faults {
        let folder = tempfile::tempdir().unwrap();
        let mut files = right.clone();
        fault(&mut files);
        let hub = Hub::serve(files, None);
        let fetched = fetch(folder.path(), &hub.address, |_| {});
        assert_refused(&fetched, 78, words);
        assert!(is_empty(folder.path()), "{name}");
    }
}

#[test]
fn a_hub_that_does_not_answer_or_a_branch_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody listens at port 1.
    assert_refused(
        &fetch(folder.path(), "http://127.0.0.1:1", |_| {}),
        78,
        &["http://127.0.0.1:1", "HF_ENDPOINT", "mirror"],
    );
    let settings = settings("branch");
    assert_refused(&sweepstream(&settings, &["models", "fetch", "bge-m3", "--revision=main"]), 64, &["main", "commit"]);
    assert_refused(&sweepstream(&settings, &["models", "fetch", "bgem", "--revision", REVISION]), 64, &["bgem"]);
    let quantised = ["models", "fetch", "mxbai-embed-large-v1-q", "--revision", REVISION];
    assert_refused(&sweepstream(&settings, &quantised), 78, &["dynamically quantised", "mxbai-embed-large-v1"]);
}

// --- The engines

/// fastembed with MiniLM's files, as anybody would use it.
fn fastembed(pooling: Pooling) -> TextEmbedding {
    let folder = parts().folder.join(MINILM);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let files = TokenizerFiles {
        tokenizer_file: read("tokenizer.json"),
        config_file: read("config.json"),
        special_tokens_map_file: read("special_tokens_map.json"),
        tokenizer_config_file: read("tokenizer_config.json"),
    };
    let options = InitOptionsUserDefined::new()
        .with_environment(environment(&parts().onnxruntime().unwrap()).unwrap())
        .with_max_length(256)
        .with_intra_threads(1);
    let model = UserDefinedEmbeddingModel::new(read("model.onnx"), files).with_pooling(pooling);
    TextEmbedding::try_new_from_user_defined(model, options).unwrap()
}

/// Each text's rows, embedded in batches of 16 by the stage's own engine.
fn embedded(settings: &Settings, parts: &Parts, texts: &[String]) -> Vec<Vec<Vec<f32>>> {
    let mut model = Model::load(parts, settings).unwrap();
    let tokenized: Vec<_> = texts.iter().map(|text| model.tokenizer.tokenize(text).unwrap()).collect();
    let items: Vec<Item<'_>> = texts
        .iter()
        .zip(&tokenized)
        .map(|(text, tokenized)| Item { text, ids: &tokenized.ids, rows: &tokenized.rows })
        .collect();
    let matrices = items.chunks(16).flat_map(|batch| model.sessions[0].embed(batch).unwrap());
    matrices
        .map(|bytes| {
            let matrix = codec::decode(&bytes).unwrap();
            matrix.rows(matrix.rows).map(numbers).collect()
        })
        .collect()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn f32_settings(rows: Rows) -> Settings {
    let mut settings = Settings::default();
    settings.embed.rows = rows;
    settings.embed.dtype = MatrixDtype::F32;
    settings
}

fn some_texts() -> Vec<String> {
    let long = "waves and sailors in the harbour ".repeat(60);
    let texts = sentences(40).into_iter().map(|out| String::from_utf8(out.value.unwrap()).unwrap());
    texts.chain([long, "🦀 naïveté, ꙮ".into(), "a".into()]).collect()
}

#[test]
fn the_direct_engine_gives_the_rows_that_fastembed_gives() {
    let texts = some_texts();
    let by_token = embedded(&f32_settings(Rows::Token), &parts(), &texts);
    let mut reference = fastembed(Pooling::Mean);
    for (text, rows) in texts.iter().zip(&by_token) {
        let outputs = reference.transform([text], Some(1)).unwrap().into_raw();
        let hidden = outputs[0].select_output(&[OutputKey::ByName("last_hidden_state")].as_slice()).unwrap();
        let hidden: Vec<&[f32]> = hidden.as_slice().unwrap().chunks(384).collect();
        // [CLS] and [SEP] have no rows.
        assert_eq!(rows.len() + 2, hidden.len(), "{text}");
        for (row, expected) in rows.iter().zip(&hidden[1..]) {
            assert!(cosine(row, expected) > 0.99999, "{text}");
        }
    }
    let by_text = embedded(&f32_settings(Rows::Text), &parts(), &texts);
    let expected = reference.embed(&texts, Some(16)).unwrap();
    for ((text, rows), expected) in texts.iter().zip(&by_text).zip(&expected) {
        assert_eq!(rows.len(), 1);
        assert!(cosine(&rows[0], expected) > 0.99999, "{text}");
        assert!((rows[0].iter().map(|number| number * number).sum::<f32>() - 1.0).abs() < 1e-5, "{text}");
    }
}

/// A folder of one's own with such a graph and MiniLM's tokenizer.
fn own_model(graph: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    // A name of the catalogue says nothing of what is in a folder of one's own.
    let model = folder.path().join("bge-small-en-v1.5");
    std::fs::create_dir(&model).unwrap();
    for (name, bytes) in model_files() {
        std::fs::write(model.join(name), bytes).unwrap();
    }
    std::fs::write(model.join("model.onnx"), graph).unwrap();
    (folder, model)
}

fn load(model: &Path, rows: Rows) -> Result<Model, sweepstream::embed::embedders::embedder::Error> {
    let mut settings = f32_settings(rows);
    settings.embed.model_dir = Some(model.to_owned());
    Model::load(&parts(), &settings)
}

#[test]
fn a_graph_that_takes_padding_into_its_rows_is_refused() {
    let (_folder, model) = own_model(&graph(IDS, 8, &Gives::Unmasked, &Table::Inside));
    for rows in [Rows::Word, Rows::Token, Rows::Text] {
        let refused = load(&model, rows).err().unwrap().to_string();
        assert!(refused.contains("attention mask"), "{refused}");
    }
}

#[test]
fn what_a_graph_projects_for_a_text_is_its_row() {
    let (_folder, model) = own_model(&graph(IDS, 8, &Gives::SumsAndTokens("text_embeds"), &Table::Inside));
    assert!(!load(&model, Rows::Word).unwrap().sessions[0].wants_text());
    let by_text = load(&model, Rows::Text).unwrap();
    assert!(by_text.sessions[0].wants_text(), "the mean of its tokens is another row");
    assert!(by_text.embedder.contains("pooling=mean"), "{}", by_text.embedder);
}

#[test]
fn how_a_model_pools_matters_to_texts_alone() {
    let (_folder, model) = own_model(&graph(IDS, 8, &Gives::SumsAndTokens("sums"), &Table::Inside));
    std::fs::create_dir(model.join("1_Pooling")).unwrap();
    std::fs::write(model.join("1_Pooling/config.json"), r#"{"pooling_mode_lasttoken": true}"#).unwrap();
    for rows in [Rows::Word, Rows::Token] {
        assert_eq!(load(&model, rows).unwrap().dim, 8);
    }
    assert!(load(&model, Rows::Text).err().unwrap().to_string().contains("lasttoken"));
}

#[test]
fn a_graph_that_pools_by_itself_embeds_texts_end_to_end() {
    let (_folder, model) = own_model(&[]);
    std::fs::write(model.join("model.onnx"), graph(IDS, 8, &Gives::Sums("sentence"), &Table::Beside("table.bin")))
        .unwrap();
    std::fs::write(model.join("table.bin"), table(IDS, 8)).unwrap();
    let mut settings = settings("pooling");
    settings.embed.model_dir = Some(model.clone());
    let set = format!("embed.model_dir={}", model.display());
    assert_refused(
        &sweepstream(&settings, &["run", "--stage=embed", "-s", &set]),
        78,
        &["gives no row for each token", "embed.rows = \"text\""],
    );

    settings.embed.rows = Rows::Text;
    settings.embed.dtype = MatrixDtype::F32;
    embed(&settings, &sentences(60));
    assert_one_verdict_each(&settings);
    let table = numbers(&table(IDS, 8));
    let tokenizer = Model::load(&parts(), &f32_settings(Rows::Text)).unwrap().tokenizer;
    let texts = read(&settings, &settings.topics.texts);
    for (text, feature) in texts.iter().zip(read(&settings, &settings.topics.features)) {
        let ids = tokenizer.tokenize(std::str::from_utf8(text.value.as_ref().unwrap()).unwrap()).unwrap().ids;
        let sum: Vec<f32> = (0..8).map(|i| ids.iter().map(|&id| table[id as usize * 8 + i]).sum()).collect();
        let rows = feature.matrix().rows;
        assert_eq!(rows.len(), 1);
        assert!(cosine(&rows[0], &sum) > 0.99999, "{:?}", text.key);
        assert!(feature.header("embedder").unwrap().contains("rows=text;pooling=mean"));
    }
}
