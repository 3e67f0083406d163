//! What a model's own files say: its weights' digest, its positions, its padding, how it pools.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fastembed::{OutputKey, Pooling};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::embedder::Error;
use crate::parts::ModelFiles;

/// Positions of a model that says nothing of them, as BERT has.
const POSITIONS_DEFAULT: usize = 512;
/// Operators that no model may have, or promise 2 would be broken: `DynamicQuantizeLinear`, `…MatMul`, `…LSTM`.
const QUANTISING: &[u8] = b"DynamicQuantize";
/// Files that hold no weights, whatever a graph names.
const KNOWN_FILES: [&str; 7] = [
    "model.onnx",
    "tokenizer.json",
    "config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.txt",
    crate::parts::fetch::RECEIPT,
];
/// Kinds of model whose positions count from behind the padding's id.
const OFFSET_KINDS: [&str; 4] = ["roberta", "xlm-roberta", "mpnet", "camembert"];

/// A model's graph, and the files beside it.
pub(super) struct Folder<'f> {
    files: &'f ModelFiles,
    /// `config.json`; `null` where there is none.
    config: Value,
}

impl<'f> Folder<'f> {
    pub fn open(files: &'f ModelFiles) -> Self {
        let config = std::fs::read(files.folder.join("config.json")).ok();
        let config = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { files, config: config.unwrap_or_default() }
    }

    pub fn path(&self) -> &'f Path {
        &self.files.folder
    }

    pub fn graph(&self) -> PathBuf {
        self.files.folder.join("model.onnx")
    }

    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.files.folder.join(name);
        std::fs::read(&path).map_err(|source| self.unreadable(&path, source))
    }

    /// The model does not load.
    pub fn unfit(&self, message: impl std::fmt::Display) -> Error {
        let (folder, message) = (self.files.folder.display().to_string(), message.to_string());
        Error::Load { folder, message, remedy: self.files.remedy() }
    }

    fn unreadable(&self, path: &Path, source: std::io::Error) -> Error {
        Error::File { path: path.display().to_string(), source, remedy: self.files.remedy() }
    }

    /// Tokens that a text may have.
    pub fn positions(&self) -> Result<usize, Error> {
        let tokenizer: Value = serde_json::from_slice(&self.read("tokenizer_config.json")?).unwrap_or_default();
        Ok(positions(&self.config, &tokenizer))
    }

    /// The id that fills shorter texts of a batch.
    pub fn padding(&self) -> i64 {
        self.config.get("pad_token_id").and_then(Value::as_i64).unwrap_or(0)
    }

    /// By what the model's authors say in `1_Pooling/config.json`, else by the catalogue, else the mean.
    ///
    /// # Errors
    /// When the authors name another kind.
    pub fn pooling(&self) -> Result<Pooling, Error> {
        let known = self.files.entry.map_or(Pooling::Mean, |entry| entry.pooling.clone());
        let Ok(bytes) = std::fs::read(self.files.folder.join("1_Pooling").join("config.json")) else {
            return Ok(known);
        };
        let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let modes = said.as_object().into_iter().flatten().filter(|(_, on)| **on == Value::Bool(true));
        let modes: Vec<&str> = modes.filter_map(|(mode, _)| mode.strip_prefix("pooling_mode_")).collect();
        match modes[..] {
            [] => Ok(known),
            ["cls_token"] => Ok(Pooling::Cls),
            ["mean_tokens"] => Ok(Pooling::Mean),
            _ => Err(self.unfit(format_args!(
                "1_Pooling/config.json asks for {}, and rows of texts are means of tokens or first tokens",
                modes.join(" and ")
            ))),
        }
    }

    /// The output with a row for each text, of models that the catalogue knows to pool by themselves.
    pub fn text_output(&self) -> Option<OutputKey> {
        self.files.entry.and_then(|entry| entry.text_output.clone())
    }

    /// Files in the folder that the graph names: they hold its weights, where they do not fit into one file.
    pub fn weight_files(&self) -> Result<Vec<String>, Error> {
        let mut beside = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(within) = folders.pop() {
            let folder = self.files.folder.join(&within);
            let failed = |source| self.unreadable(&folder, source);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let name = within.join(entry.map_err(failed)?.file_name());
                if self.files.folder.join(&name).is_dir() {
                    folders.push(name);
                } else if let Some(name) = name.to_str().filter(|name| !KNOWN_FILES.contains(name)) {
                    beside.push(name.to_owned());
                }
            }
        }
        if beside.is_empty() {
            return Ok(beside);
        }
        beside.sort();
        let names: Vec<&[u8]> = beside.iter().map(String::as_bytes).collect();
        let found = self.scan(&self.graph(), &names, |_| {})?;
        Ok(beside.into_iter().zip(found).filter_map(|(name, found)| found.then_some(name)).collect())
    }

    /// The first 12 hexadecimal digits of the digest of weights and tokenizer.
    ///
    /// # Errors
    /// When a file cannot be read, or the graph quantises while it runs.
    pub fn digest(&self, tokenizer: &[u8]) -> Result<String, Error> {
        let mut digest = Sha256::new();
        let found = self.scan(&self.graph(), &[QUANTISING], |block| digest.update(block))?;
        if found == [true] {
            return Err(Error::Quantised { folder: self.files.folder.display().to_string() });
        }
        for name in self.weight_files()? {
            let _ = self.scan(&self.files.folder.join(name), &[], |block| digest.update(block))?;
        }
        let digest = digest.chain_update(tokenizer).finalize();
        Ok(digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect())
    }

    fn scan(&self, path: &Path, needles: &[&[u8]], block: impl FnMut(&[u8])) -> Result<Vec<bool>, Error> {
        scan(path, needles, block).map_err(|source| self.unreadable(path, source))
    }
}

/// The limit of `tokenizer_config.json` or of the positions in `config.json`, whichever is lower.
fn positions(config: &Value, tokenizer: &Value) -> usize {
    let number = |config: &Value, name: &str| config.get(name).and_then(Value::as_f64).map(|number| number as usize);
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let offset = match OFFSET_KINDS.contains(&kind) {
        true => number(config, "pad_token_id").unwrap_or(0).saturating_add(1),
        false => 0,
    };
    let all = number(config, "max_position_embeddings").or_else(|| number(config, "n_positions"));
    let trained = all.map_or(POSITIONS_DEFAULT, |all| all.saturating_sub(offset));
    number(tokenizer, "model_max_length").map_or(trained, |declared| declared.min(trained))
}

/// Reads a file block by block, and says which of the needles are in it.
fn scan(path: &Path, needles: &[&[u8]], mut block: impl FnMut(&[u8])) -> std::io::Result<Vec<bool>> {
    const BLOCK: usize = 1024 * 1024;
    let mut file = File::open(path)?;
    // A needle may lie across two blocks, so the end of one is kept before the next.
    let keep = needles.iter().map(|needle| needle.len()).max().unwrap_or(0);
    let mut bytes = vec![0; keep + BLOCK];
    let mut found = vec![false; needles.len()];
    let mut kept = 0;
    loop {
        let read = file.read(&mut bytes[kept..])?;
        if read == 0 {
            return Ok(found);
        }
        block(&bytes[kept..kept + read]);
        let end = kept + read;
        for (found, needle) in found.iter_mut().zip(needles) {
            *found |= memchr::memmem::find(&bytes[..end], needle).is_some();
        }
        kept = end.min(keep);
        bytes.copy_within(end - kept..end, 0);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn positions_are_what_config_and_tokenizer_allow() {
        let none = Value::Null;
        assert_eq!(positions(&none, &none), 512);
        assert_eq!(positions(&json!({"pad_token_id": 0}), &json!({"model_max_length": 128})), 128);
        // As BGE's tokenizer says it, which is no limit.
        assert_eq!(positions(&none, &json!({"model_max_length": 1e30})), 512);
        assert_eq!(positions(&json!({"max_position_embeddings": 8192}), &json!({"model_max_length": 8192})), 8192);
        assert_eq!(positions(&json!({"n_positions": 2048}), &none), 2048);
        let offset = json!({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1});
        assert_eq!(positions(&offset, &none), 512);
    }

    #[test]
    fn a_needle_across_two_blocks_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        for before in [0, 1024 * 1024 - 3, 1024 * 1024 + 20] {
            let bytes = [&vec![b'.'; before][..], b"needle", &[b'.'; 9]].concat();
            std::fs::write(&path, &bytes).unwrap();
            let mut seen = Vec::new();
            let found = scan(&path, &[b"needle", b"thread"], |block| seen.extend_from_slice(block)).unwrap();
            assert_eq!(found, [true, false], "{before}");
            assert_eq!(seen, bytes);
        }
    }

    fn own(folder: &Path) -> ModelFiles {
        ModelFiles { folder: folder.to_owned(), name: "own".into(), entry: None, is_named: false }
    }

    #[test]
    fn pooling_is_what_the_authors_say() {
        let folder = tempfile::tempdir().unwrap();
        let entry = crate::parts::catalogue::find("bge-small-en-v1.5");
        let files = ModelFiles { entry, ..own(folder.path()) };
        assert_eq!(Folder::open(&own(folder.path())).pooling().unwrap(), Pooling::Mean);
        assert_eq!(Folder::open(&files).pooling().unwrap(), Pooling::Cls);
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        let say = |text: &str| std::fs::write(folder.path().join("1_Pooling/config.json"), text).unwrap();
        say(r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}"#);
        assert_eq!(Folder::open(&files).pooling().unwrap(), Pooling::Mean);
        say(r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#);
        assert_eq!(Folder::open(&own(folder.path())).pooling().unwrap(), Pooling::Cls);
        say(r#"{"pooling_mode_lasttoken": true}"#);
        assert!(Folder::open(&files).pooling().unwrap_err().to_string().contains("lasttoken"));
    }

    #[test]
    fn weights_beside_the_graph_are_part_of_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let files = own(folder.path());
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let digest = || Folder::open(&files).digest(b"tokenizer").unwrap();
        write("model.onnx", b"a graph whose weights lie in data/weights.bin");
        let before = digest();
        write("notes.md", b"not named");
        assert_eq!(digest(), before);
        write("data/weights.bin", b"1");
        let with = digest();
        write("data/weights.bin", b"2");
        assert!(before != with && with != digest());
        write("model.onnx", b"a graph with DynamicQuantizeMatMul");
        assert!(matches!(Folder::open(&files).digest(b""), Err(Error::Quantised { .. })));
    }
}
