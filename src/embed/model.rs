//! The embedding model: fastembed over ONNX Runtime, one session per inference thread.

use std::ops::Range;
use std::path::Path;

use fastembed::{InitOptionsUserDefined, OutputKey, TextEmbedding, TokenizerFiles, UserDefinedEmbeddingModel};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::tokenize::TextTokenizer;
use crate::config::{Embed, Settings};
use crate::features::codec::{self, Dtype};
use crate::parts::{Missing, ModelFiles, Parts};

/// Positions that BERT-like models have; nothing longer can be embedded.
const POSITIONS_MAX: usize = 512;
/// Output of the model that holds one vector per token, `[batch, tokens, dim]`.
const OUTPUT: &str = "last_hidden_state";

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A file is unreadable.
    #[error("cannot read {path}: {source}; `make parts` fetches the default model")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// ONNX Runtime does not load.
    #[error("ONNX Runtime at {path} does not load: {message}")]
    Runtime {
        /// Which library.
        path: String,
        /// Why.
        message: String,
    },
    /// The model or tokenizer does not load.
    #[error(
        "the model in {folder} does not load: {message}; if it was damaged, delete the folder and run `make parts`"
    )]
    Load {
        /// Where it is.
        folder: String,
        /// Why.
        message: String,
    },
    /// The model breaks promise 2.
    #[error("the model in {folder} is dynamically quantised: its output depends on what shares the batch, so the same text would not always give the same bytes; use the fp32 model")]
    Quantised {
        /// Where it is.
        folder: String,
    },
    /// `max_length` is beyond the model.
    #[error("setting `embed.max_length` is {wanted}, but the model in {folder} has {max} positions")]
    TooLong {
        /// The setting.
        wanted: usize,
        /// The model's limit.
        max: usize,
        /// Where it is.
        folder: String,
    },
    /// An inference call failed.
    #[error("inference failed: {0}")]
    Inference(String),
}

/// One text of an inference call.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    /// The text.
    pub text: &'a str,
    /// Tokens it has, special ones included.
    pub tokens: usize,
    /// Token positions of each row.
    pub rows: &'a [Range<u32>],
}

/// Turns texts into encoded matrices. The seam for tests that count or fail calls.
pub trait Embedder: Send {
    /// One matrix for each text, in order.
    ///
    /// # Errors
    /// When inference fails.
    fn embed(&mut self, batch: &[Item<'_>]) -> Result<Vec<Vec<u8>>, Error>;
}

/// A loaded model: a session for each inference thread, and what the rest of the stage needs to know.
pub struct Model {
    /// One for each inference thread.
    pub sessions: Vec<FastEmbedder>,
    /// Cuts texts as the sessions do.
    pub tokenizer: TextTokenizer,
    /// Names model and settings in the header of each matrix.
    pub embedder: String,
    /// Numbers in a row.
    pub dim: usize,
    /// Bytes of the largest matrix that can come out.
    pub matrix_bytes_max: usize,
}

impl Model {
    /// Reads and checks the model's files and starts the sessions.
    ///
    /// # Errors
    /// When a part is missing or unfit.
    pub fn load(parts: &Parts, settings: &Settings) -> Result<Self, Error> {
        let library = parts.onnxruntime()?;
        let files = parts.model(settings)?;
        let folder = files.folder.display().to_string();
        let onnx = read(&files.folder, "model.onnx")?;
        if memchr::memmem::find(&onnx, b"DynamicQuantizeLinear").is_some() {
            return Err(Error::Quantised { folder });
        }
        let tokenizer_files = tokenizer_files(&files)?;
        let max = positions(&tokenizer_files);
        let max_length = settings.embed.max_length.get();
        if max_length > max {
            return Err(Error::TooLong { wanted: max_length, max, folder });
        }
        let embedder = describe(&files.name, &onnx, &tokenizer_files.tokenizer_file, &settings.embed);
        let definition = UserDefinedEmbeddingModel::new(onnx, tokenizer_files);
        let dtype = settings.embed.dtype.into();
        let environment = environment(&library)?;
        let (sessions, threads) = settings.embed.sessions_and_threads();
        let mut sessions = (0..sessions)
            .map(|_| {
                let options = InitOptionsUserDefined::new()
                    .with_environment(environment.clone())
                    .with_max_length(max_length)
                    .with_intra_threads(threads);
                TextEmbedding::try_new_from_user_defined(definition.clone(), options)
                    .map(|model| FastEmbedder { model, dtype, pooled: Vec::new() })
                    .map_err(|error| Error::Load { folder: folder.clone(), message: error.to_string() })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let tokenizer = TextTokenizer::new(sessions[0].model.tokenizer.clone(), settings.embed.rows);
        let dim = probe(&mut sessions[0], &tokenizer)?;
        let matrix_bytes_max = codec::encoded_bytes_max(max_length - 2, dim, dtype);
        Ok(Self { sessions, tokenizer, embedder, dim, matrix_bytes_max })
    }
}

/// Embeds one word: shows that the model works, and how wide its rows are.
fn probe(session: &mut FastEmbedder, tokenizer: &TextTokenizer) -> Result<usize, Error> {
    let text = "a";
    let tokenized = tokenizer.tokenize(text).map_err(Error::Inference)?;
    let items = [Item { text, tokens: tokenized.tokens, rows: &tokenized.rows }];
    let matrices = session.embed(&items)?;
    let matrix = matrices.first().ok_or_else(|| Error::Inference("the model gave no output".into()))?;
    Ok(codec::decode(matrix).map_err(|error| Error::Inference(error.to_string()))?.dim)
}

/// fastembed behind [`Embedder`].
pub struct FastEmbedder {
    model: TextEmbedding,
    dtype: Dtype,
    pooled: Vec<f32>,
}

impl Embedder for FastEmbedder {
    fn embed(&mut self, batch: &[Item<'_>]) -> Result<Vec<Vec<u8>>, Error> {
        let texts: Vec<&str> = batch.iter().map(|item| item.text).collect();
        let output = self
            .model
            .transform(&texts, Some(texts.len()))
            .map_err(|error| Error::Inference(error.to_string()))?
            .into_raw();
        let output = output.first().ok_or_else(|| Error::Inference("the model gave no output".into()))?;
        let hidden = output
            .select_output(&[OutputKey::ByName(OUTPUT)].as_slice())
            .map_err(|error| Error::Inference(error.to_string()))?;
        let (shape, hidden) = match (hidden.shape(), hidden.as_slice()) {
            (&[b, t, d], Some(slice)) if b == batch.len() => ([t, d], slice),
            (shape, _) => return Err(Error::Inference(format!("output `{OUTPUT}` has shape {shape:?}"))),
        };
        let [tokens, dim] = shape;
        let longest = batch.iter().map(|item| item.tokens).max().unwrap_or(0);
        if tokens != longest {
            return Err(Error::Inference(format!("the model saw {tokens} tokens where {longest} were counted")));
        }
        let texts = batch.iter().zip(hidden.chunks_exact(tokens * dim));
        Ok(texts
            .map(|(item, hidden)| {
                pool(hidden, dim, item.rows, &mut self.pooled);
                codec::encode(item.rows.len(), dim, &self.pooled, self.dtype)
            })
            .collect())
    }
}

/// Each row is the mean of its tokens, summed in order, so that its bits depend on nothing else.
fn pool(hidden: &[f32], dim: usize, rows: &[Range<u32>], pooled: &mut Vec<f32>) {
    pooled.clear();
    for row in rows {
        let (start, end) = (row.start as usize * dim, row.end as usize * dim);
        let first = pooled.len();
        pooled.extend_from_slice(&hidden[start..start + dim]);
        for token in hidden[start + dim..end].chunks_exact(dim) {
            for (sum, value) in pooled[first..].iter_mut().zip(token) {
                *sum += value;
            }
        }
        let pieces = row.end - row.start;
        if pieces > 1 {
            for value in &mut pooled[first..] {
                *value /= pieces as f32;
            }
        }
    }
}

/// ONNX Runtime allows one environment per process.
fn environment(library: &Path) -> Result<ort::environment::Environment, Error> {
    static ENVIRONMENT: Mutex<Option<ort::environment::Environment>> = Mutex::new(None);
    let mut known = ENVIRONMENT.lock();
    if let Some(environment) = known.as_ref() {
        return Ok(environment.clone());
    }
    let failed = |message: String| Error::Runtime { path: library.display().to_string(), message };
    let environment = ort::init_from(library)
        .map_err(|error| failed(error.to_string()))?
        .with_name("sweepstream")
        .with_telemetry(false)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    *known = Some(environment.clone());
    Ok(environment)
}

fn tokenizer_files(files: &ModelFiles) -> Result<TokenizerFiles, Error> {
    Ok(TokenizerFiles {
        tokenizer_file: read(&files.folder, "tokenizer.json")?,
        config_file: read(&files.folder, "config.json")?,
        special_tokens_map_file: read(&files.folder, "special_tokens_map.json")?,
        tokenizer_config_file: read(&files.folder, "tokenizer_config.json")?,
    })
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = folder.join(name);
    std::fs::read(&path).map_err(|source| Error::File { path: path.display().to_string(), source })
}

fn positions(files: &TokenizerFiles) -> usize {
    let config: serde_json::Value = serde_json::from_slice(&files.tokenizer_config_file).unwrap_or_default();
    let declared = config.get("model_max_length").and_then(serde_json::Value::as_f64).unwrap_or(POSITIONS_MAX as f64);
    (declared as usize).min(POSITIONS_MAX)
}

fn describe(name: &str, onnx: &[u8], tokenizer: &[u8], settings: &Embed) -> String {
    let digest = Sha256::new().chain_update(onnx).chain_update(tokenizer).finalize();
    let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}@{digest};rows={};max_length={}", settings.rows.name(), settings.max_length)
}
