//! The embedding model: ONNX Runtime, one session per inference thread.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::SessionInputValue;
use ort::value::TensorRef;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::tokenize::TextTokenizer;
use crate::config::{Embed, Settings};
use crate::features::codec::{self, Dtype, Encoder};
use crate::parts::{Missing, ModelFiles, Parts};

/// Positions that BERT-like models have; nothing longer can be embedded.
const POSITIONS_MAX: usize = 512;
/// What a model may ask for.
const INPUTS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];
/// Output of the model that holds one vector per token, `[batch, tokens, dim]`.
const OUTPUT: &str = "last_hidden_state";
/// An operator that no model may have, or promise 2 would be broken.
const QUANTISING: &[u8] = b"DynamicQuantizeLinear";

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
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Its tokens, special ones included.
    pub ids: &'a [u32],
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
    pub sessions: Vec<Session>,
    /// Makes the tokens that the sessions take.
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
        let max_length = settings.embed.max_length.get();
        let max = positions(&read(&files.folder, "tokenizer_config.json")?);
        if max_length > max {
            return Err(Error::TooLong { wanted: max_length, max, folder: files.folder.display().to_string() });
        }
        let environment = environment(&library)?;
        let dtype = settings.embed.dtype.into();
        let (count, threads) = settings.embed.sessions_and_threads();
        let (sessions, rest) = std::thread::scope(|scope| {
            // Side by side: sessions take most of a start.
            let open = || Session::open(&environment, &files.folder, threads, dtype);
            let spawn = |i| std::thread::Builder::new().name(format!("load-session-{i}")).spawn_scoped(scope, open);
            let opening: Vec<_> = (0..count).map(spawn).collect();
            let rest = tokenizer_and_name(&files, &settings.embed);
            let joined = opening.into_iter().map(|thread| match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(session)) => session,
                Ok(Err(_)) => Err(unfit(&files.folder, "a session panicked")),
                Err(error) => Err(unfit(&files.folder, error)),
            });
            (joined.collect::<Result<Vec<_>, _>>(), rest)
        });
        let (tokenizer, embedder) = rest?;
        let mut sessions = sessions?;
        let dim = probe(&mut sessions[0], &tokenizer)?;
        let matrix_bytes_max = codec::encoded_bytes_max(max_length - 2, dim, dtype);
        Ok(Self { sessions, tokenizer, embedder, dim, matrix_bytes_max })
    }
}

/// Embeds one word: shows that the model works, and how wide its rows are.
fn probe(session: &mut Session, tokenizer: &TextTokenizer) -> Result<usize, Error> {
    let tokenized = tokenizer.tokenize("a").map_err(Error::Inference)?;
    let matrices = session.embed(&[Item { ids: &tokenized.ids, rows: &tokenized.rows }])?;
    let matrix = matrices.first().ok_or_else(|| Error::Inference("the model gave no output".into()))?;
    Ok(codec::decode(matrix).map_err(|error| Error::Inference(error.to_string()))?.dim)
}

/// A session of ONNX Runtime and the tensors of its calls, which are used again.
pub struct Session {
    session: ort::session::Session,
    dtype: Dtype,
    /// Those of [`INPUTS`] that the model has.
    inputs: Vec<usize>,
    tensors: [Vec<i64>; INPUTS.len()],
    mean: Vec<f32>,
}

impl Session {
    fn open(environment: &Environment, folder: &Path, threads: usize, dtype: Dtype) -> Result<Self, Error> {
        let unfit = |error: &dyn std::fmt::Display| unfit(folder, error);
        // From the file, so that no copy of it stays in memory.
        let session = ort::session::Session::builder(environment)
            .map_err(|error| unfit(&error))?
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|error| unfit(&error))?
            .with_intra_threads(threads)
            .map_err(|error| unfit(&error))?
            .commit_from_file(folder.join("model.onnx"))
            .map_err(|error| unfit(&error))?;
        let input = |name: &str| {
            let known = INPUTS.iter().position(|known| *known == name);
            known.ok_or_else(|| unfit(&format!("it asks for an input `{name}`, and only {INPUTS:?} are given")))
        };
        let inputs = session.inputs().iter().map(|outlet| input(outlet.name())).collect::<Result<_, _>>()?;
        Ok(Self { session, dtype, inputs, tensors: Default::default(), mean: Vec::new() })
    }
}

impl Embedder for Session {
    fn embed(&mut self, batch: &[Item<'_>]) -> Result<Vec<Vec<u8>>, Error> {
        let failed = |error: ort::Error| Error::Inference(error.to_string());
        let tokens = batch.iter().map(|item| item.ids.len()).max().unwrap_or(0);
        fill(&mut self.tensors, batch, tokens);
        let tensors = &self.tensors;
        let input = |&input: &usize| {
            let tensor = TensorRef::from_array_view(([batch.len(), tokens], tensors[input].as_slice()))?;
            Ok((Cow::Borrowed(INPUTS[input]), SessionInputValue::from(tensor)))
        };
        let inputs: Vec<_> = self.inputs.iter().map(input).collect::<Result<_, _>>().map_err(failed)?;
        let outputs = self.session.run(inputs).map_err(failed)?;
        let output = outputs.get(OUTPUT).ok_or_else(|| Error::Inference(format!("the model has no `{OUTPUT}`")))?;
        let (shape, hidden) = output.try_extract_tensor::<f32>().map_err(failed)?;
        let dim = match shape[..] {
            [texts, seen, dim] if (texts, seen) == (batch.len() as i64, tokens as i64) => dim as usize,
            _ => return Err(Error::Inference(format!("output `{OUTPUT}` has shape {shape:?}"))),
        };
        let texts = batch.iter().zip(hidden.chunks_exact(tokens * dim));
        Ok(texts.map(|(item, hidden)| matrix(hidden, dim, item.rows, self.dtype, &mut self.mean)).collect())
    }
}

/// Shorter texts are padded with id 0; which one does not matter, since the mask hides it. There are no second texts.
fn fill([ids, mask, types]: &mut [Vec<i64>; INPUTS.len()], batch: &[Item<'_>], tokens: usize) {
    ids.clear();
    mask.clear();
    types.clear();
    for (i, item) in (1..).zip(batch) {
        ids.extend(item.ids.iter().map(|&id| i64::from(id)));
        mask.resize(ids.len(), 1);
        ids.resize(i * tokens, 0);
        mask.resize(i * tokens, 0);
    }
    types.resize(ids.len(), 0);
}

/// Each row is the mean of its tokens, summed in order, so that its bits depend on nothing else.
fn matrix(hidden: &[f32], dim: usize, rows: &[Range<u32>], dtype: Dtype, mean: &mut Vec<f32>) -> Vec<u8> {
    let mut encoder = Encoder::new(rows.len(), dim, dtype);
    for row in rows {
        let (first, others) = hidden[row.start as usize * dim..row.end as usize * dim].split_at(dim);
        if others.is_empty() {
            encoder.push(first);
            continue;
        }
        mean.clear();
        mean.extend_from_slice(first);
        for token in others.chunks_exact(dim) {
            for (sum, value) in mean.iter_mut().zip(token) {
                *sum += value;
            }
        }
        let pieces = (row.end - row.start) as f32;
        mean.iter_mut().for_each(|value| *value /= pieces);
        encoder.push(mean);
    }
    encoder.finish()
}

/// ONNX Runtime allows one environment per process.
fn environment(library: &Path) -> Result<Environment, Error> {
    static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);
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

/// What else is made of the model's files while the sessions open.
fn tokenizer_and_name(files: &ModelFiles, settings: &Embed) -> Result<(TextTokenizer, String), Error> {
    let tokenizer = read(&files.folder, "tokenizer.json")?;
    let mut digest = Sha256::new();
    if digest_and_search(&files.folder.join("model.onnx"), &mut digest)? {
        return Err(Error::Quantised { folder: files.folder.display().to_string() });
    }
    let digest = digest.chain_update(&tokenizer).finalize();
    let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{}@{digest};rows={};max_length={}", files.name, settings.rows.name(), settings.max_length);
    let special_tokens = read(&files.folder, "special_tokens_map.json")?;
    let tokenizer = TextTokenizer::load(tokenizer, &special_tokens, settings.max_length.get(), settings.rows)
        .map_err(|error| unfit(&files.folder, error))?;
    Ok((tokenizer, name))
}

/// Digests the model block by block, and says whether it quantises while it runs.
fn digest_and_search(path: &Path, digest: &mut Sha256) -> Result<bool, Error> {
    const BLOCK: usize = 1024 * 1024;
    let failed = |source| Error::File { path: path.display().to_string(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = vec![0; QUANTISING.len() + BLOCK];
    // The name may lie across two blocks, so the end of one is kept before the next.
    let (mut kept, mut found) = (0, false);
    loop {
        let read = file.read(&mut bytes[kept..]).map_err(failed)?;
        if read == 0 {
            return Ok(found);
        }
        digest.update(&bytes[kept..kept + read]);
        let end = kept + read;
        found |= memchr::memmem::find(&bytes[..end], QUANTISING).is_some();
        kept = end.min(QUANTISING.len());
        bytes.copy_within(end - kept..end, 0);
    }
}

fn unfit(folder: &Path, message: impl std::fmt::Display) -> Error {
    Error::Load { folder: folder.display().to_string(), message: message.to_string() }
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = folder.join(name);
    std::fs::read(&path).map_err(|source| Error::File { path: path.display().to_string(), source })
}

fn positions(tokenizer_config: &[u8]) -> usize {
    let config: serde_json::Value = serde_json::from_slice(tokenizer_config).unwrap_or_default();
    let declared = config.get("model_max_length").and_then(serde_json::Value::as_f64).unwrap_or(POSITIONS_MAX as f64);
    (declared as usize).min(POSITIONS_MAX)
}
