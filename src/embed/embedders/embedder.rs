//! The seam between the stage and what embeds its texts.

use std::ops::Range;

use crate::parts;

/// Why there is no model, or no matrix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part is not there, or not fit.
    #[error(transparent)]
    Part(#[from] parts::Error),
    /// A file is unreadable.
    #[error("cannot read {path}: {source}; {remedy}")]
    File { path: String, source: std::io::Error, remedy: String },
    /// ONNX Runtime does not load.
    #[error("ONNX Runtime at {path} does not load: {message}")]
    Runtime { path: String, message: String },
    /// The model or tokenizer does not load.
    #[error("the model in {folder} does not load: {message}; {remedy}")]
    Load { folder: String, message: String, remedy: String },
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
    /// The model breaks promise 2, as trying it shows.
    #[error(
        "the model in {folder} gives a text other rows when a longer one shares its batch: it does not take heed of \
        its attention mask, or has none; export it with one"
    )]
    Unmasked { folder: String },
    /// `max_length` is beyond the model.
    #[error("setting `embed.max_length` is {wanted}, but the model in {folder} has {max} positions")]
    TooLong { wanted: usize, max: usize, folder: String },
    /// An inference call failed.
    #[error("inference failed: {0}")]
    Inference(String),
}

/// One text of an inference call.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Empty unless the embedder wants it.
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

    /// Does it tokenise by itself? Then items carry their text.
    fn wants_text(&self) -> bool {
        false
    }
}
