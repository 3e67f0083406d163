//! The seam between the stage and what embeds its texts.

use std::ops::Range;
use std::path::Path;

use crate::parts;

/// Why there is no model, or no matrix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part is not there, or not fit.
    #[error(transparent)]
    Part(#[from] parts::Error),
    /// A file is unreadable.
    #[error("cannot read {path}: {source}; `make parts` fetches the default model")]
    File { path: String, source: std::io::Error },
    /// ONNX Runtime does not load.
    #[error("ONNX Runtime at {path} does not load: {message}")]
    Runtime { path: String, message: String },
    /// The model or tokenizer does not load.
    #[error(
        "the model in {folder} does not load: {message}; if it was damaged, delete the folder and run `make parts`"
    )]
    Load { folder: String, message: String },
    /// The graph gives no rows for words and tokens.
    #[error(
        "the model in {folder} gives no row for each token: {message}; `embed.rows = \"text\"` takes one for each \
        text from such a model"
    )]
    Graph { folder: String, message: String },
    /// The model breaks promise 2.
    #[error(
        "the model in {folder} is dynamically quantised: its output depends on what shares the batch, so the same \
        text would not always give the same bytes; use the fp32 model"
    )]
    Quantised { folder: String },
    /// `max_length` is beyond the model.
    #[error("setting `embed.max_length` is {wanted}, but the model in {folder} has {max} positions")]
    TooLong { wanted: usize, max: usize, folder: String },
    /// An inference call failed.
    #[error("inference failed: {0}")]
    Inference(String),
}

/// The model does not load.
pub(super) fn unfit(folder: &Path, message: impl std::fmt::Display) -> Error {
    Error::Load { folder: folder.display().to_string(), message: message.to_string() }
}

/// One text of an inference call.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    pub text: &'a str,
    /// Its tokens, special ones included.
    pub ids: &'a [u32],
    /// Token positions of each row.
    pub rows: &'a [Range<u32>],
}

/// Turns texts into encoded matrices. The seam for tests that count or fail calls.
pub trait Embedder: Send {
    /// One matrix for each text, in order. Its bits depend on the text alone (promise 2).
    ///
    /// # Errors
    /// When inference fails.
    fn embed(&mut self, batch: &[Item<'_>]) -> Result<Vec<Vec<u8>>, Error>;
}
