//! Text → how many tokens, and which of them make a row.

use std::ops::Range;

use tokenizers::{Encoding, Tokenizer};

use crate::config::Rows;

/// What is known of a text before it is embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// Tokens after truncation, `[CLS]` and `[SEP]` included.
    pub tokens: usize,
    /// Token positions that make up each row, in order.
    pub rows: Vec<Range<u32>>,
    /// Were tokens cut off?
    pub truncated: bool,
}

/// Tokenises as the model will, without padding.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    rows: Rows,
}

impl TextTokenizer {
    /// Takes over the model's own tokenizer, truncation included.
    pub fn new(mut tokenizer: Tokenizer, rows: Rows) -> Self {
        let _ = tokenizer.with_padding(None);
        Self { tokenizer, rows }
    }

    /// Tokenises one text.
    ///
    /// # Errors
    /// Passes on what the tokenizer says, which for byte-complete vocabularies is nothing.
    pub fn tokenize(&self, text: &str) -> Result<Tokenized, String> {
        let encoding = self.tokenizer.encode(text, true).map_err(|error| error.to_string())?;
        Ok(Tokenized {
            tokens: encoding.len(),
            rows: rows(&encoding, self.rows),
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }
}

/// Special tokens belong to no word and make no row; a word's pieces always lie side by side.
fn rows(encoding: &Encoding, kind: Rows) -> Vec<Range<u32>> {
    let mut rows: Vec<Range<u32>> = Vec::with_capacity(encoding.len());
    let mut previous = None;
    for (position, word) in (0_u32..).zip(encoding.get_word_ids()) {
        match (word, rows.last_mut()) {
            (Some(_), Some(row)) if kind == Rows::Word && previous == Some(*word) => row.end = position + 1,
            (Some(_), _) => rows.push(position..position + 1),
            (None, _) => {}
        }
        previous = Some(*word);
    }
    rows
}
