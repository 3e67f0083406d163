//! Text → tokens, and which of them make a row.

use std::ops::Range;

use serde_json::Value;
use tokenizers::{AddedToken, Encoding, Tokenizer, TruncationParams};

/// Which tokens make a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    Word,
    /// Each piece of a word alone.
    Token,
    /// One row of all tokens, special ones included.
    AllTokens,
    /// One row of the first token, which stands for the text in models that were trained so.
    FirstToken,
}

impl RowKind {
    /// As matrices name it in their header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Word => "word",
            Self::Token => "token",
            Self::AllTokens => "text;pooling=mean",
            Self::FirstToken => "text;pooling=cls",
        }
    }
}

/// What is known of a text before it is embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// Its tokens after truncation, `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// Token positions that make up each row, in order.
    pub rows: Vec<Range<u32>>,
    /// Were tokens cut off?
    pub truncated: bool,
}

/// Makes the tokens that the model takes, without padding.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    rows: RowKind,
}

impl TextTokenizer {
    /// A model's tokenizer, from its files `tokenizer.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// What the files lack.
    pub fn load(
        tokenizer: impl AsRef<[u8]>,
        special_tokens: &[u8],
        max_length: usize,
        rows: RowKind,
    ) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_bytes(tokenizer).map_err(|error| format!("tokenizer.json: {error}"))?;
        let named: Value =
            serde_json::from_slice(special_tokens).map_err(|error| format!("special_tokens_map.json: {error}"))?;
        for token in named.as_object().into_iter().flat_map(|named| named.values()).filter_map(special_token) {
            let _ = tokenizer.add_special_tokens([token]).map_err(|error| error.to_string())?;
        }
        Self::new(tokenizer, max_length, rows)
    }

    fn new(mut tokenizer: Tokenizer, max_length: usize, rows: RowKind) -> Result<Self, String> {
        // The files may carry a padding and a truncation of their own.
        let _ = tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length, ..TruncationParams::default() };
        let _ = tokenizer.with_truncation(Some(truncation)).map_err(|error| error.to_string())?;
        let probe = tokenizer.encode("a", true).map_err(|error| error.to_string())?;
        if probe.get_type_ids().iter().any(|&segment| segment != 0) {
            return Err("its tokenizer puts a text into a segment other than 0".into());
        }
        Ok(Self { tokenizer, rows })
    }

    /// Tokenises one text.
    ///
    /// # Errors
    /// Passes on what the tokenizer says, which for byte-complete vocabularies is nothing.
    pub fn tokenize(&self, text: &str) -> Result<Tokenized, String> {
        let encoding = self.tokenizer.encode(text, true).map_err(|error| error.to_string())?;
        Ok(Tokenized {
            ids: encoding.get_ids().to_vec(),
            rows: rows(&encoding, self.rows),
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }
}

/// A special token by its text alone, or with all that makes it one.
fn special_token(value: &Value) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name)?.as_bool();
    Some(match value {
        Value::String(content) => AddedToken { content: content.clone(), special: true, ..AddedToken::default() },
        _ => AddedToken {
            content: value.get("content")?.as_str()?.to_owned(),
            special: true,
            single_word: flag("single_word")?,
            lstrip: flag("lstrip")?,
            rstrip: flag("rstrip")?,
            normalized: flag("normalized")?,
        },
    })
}

/// Special tokens belong to no word and make no row of their own; a word's pieces always lie side by side. A text
/// without words has no row.
fn rows(encoding: &Encoding, kind: RowKind) -> Vec<Range<u32>> {
    let whole = match kind {
        RowKind::AllTokens => Some(0..encoding.len() as u32),
        RowKind::FirstToken => Some(0..1),
        RowKind::Word | RowKind::Token => None,
    };
    if whole.is_some() {
        return whole.filter(|_| encoding.get_word_ids().iter().any(Option::is_some)).into_iter().collect();
    }
    let mut rows: Vec<Range<u32>> = Vec::with_capacity(encoding.len());
    let mut previous = None;
    for (position, word) in (0_u32..).zip(encoding.get_word_ids()) {
        match (word, rows.last_mut()) {
            (Some(_), Some(row)) if kind == RowKind::Word && previous == Some(*word) => row.end = position + 1,
            (Some(_), _) => rows.push(position..position + 1),
            (None, _) => {}
        }
        previous = Some(*word);
    }
    rows
}

#[cfg(test)]
pub(crate) mod tests {
    use tokenizers::models::wordpiece::WordPiece;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
    use tokenizers::processors::bert::BertProcessing;

    use super::*;

    /// Of a vocabulary of eight pieces.
    pub(crate) fn tokenizer(rows: RowKind, max_length: usize) -> TextTokenizer {
        let pieces = ["[UNK]", "[CLS]", "[SEP]", "sea", "light", "##house", "##s", "!"];
        let vocabulary: [(String, u32); 8] = std::array::from_fn(|id| (pieces[id].to_owned(), id as u32));
        let model = WordPiece::builder().vocab(vocabulary).unk_token("[UNK]".into()).build().unwrap();
        let mut tokenizer = Tokenizer::new(model);
        let _ = tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
        let _ = tokenizer.with_post_processor(Some(BertProcessing::new(("[SEP]".into(), 2), ("[CLS]".into(), 1))));
        TextTokenizer::new(tokenizer, max_length, rows).unwrap()
    }

    fn of(rows: RowKind, max_length: usize, text: &str) -> Tokenized {
        tokenizer(rows, max_length).tokenize(text).unwrap()
    }

    #[test]
    fn a_word_row_spans_its_pieces_and_special_tokens_have_none() {
        let found = of(RowKind::Word, 16, "lighthouses sea! ?");
        let ids = vec![1, 4, 5, 6, 3, 7, 0, 2];
        assert_eq!(found, Tokenized { ids, rows: vec![1..4, 4..5, 5..6, 6..7], truncated: false });
    }

    #[test]
    fn a_token_row_is_one_piece() {
        assert_eq!(of(RowKind::Token, 16, "lighthouses sea").rows, [1..2, 2..3, 3..4, 4..5]);
    }

    #[test]
    fn the_same_word_twice_is_two_rows() {
        assert_eq!(of(RowKind::Word, 16, "sea sea").rows, [1..2, 2..3]);
        assert_eq!(of(RowKind::Word, 16, "unknown unknown").rows, [1..2, 2..3]);
    }

    #[test]
    fn a_word_that_is_cut_keeps_the_pieces_left() {
        let found = of(RowKind::Word, 5, "sea lighthouses");
        assert_eq!(found, Tokenized { ids: vec![1, 3, 4, 5, 2], rows: vec![1..2, 2..4], truncated: true });
        assert!(!of(RowKind::Word, 5, "lighthouses").truncated);
    }

    #[test]
    fn a_text_of_one_row_takes_all_its_tokens_or_the_first() {
        let only = |kind, max_length| {
            let rows = of(kind, max_length, "lighthouses sea").rows;
            assert_eq!(rows.len(), 1);
            rows[0].clone()
        };
        assert_eq!(only(RowKind::AllTokens, 16), 0..6);
        assert_eq!(only(RowKind::AllTokens, 4), 0..4);
        assert_eq!(only(RowKind::FirstToken, 16), 0..1);
    }

    #[test]
    fn nothing_to_say_is_no_rows() {
        for kind in [RowKind::Token, RowKind::AllTokens, RowKind::FirstToken] {
            assert!(of(kind, 16, "").rows.is_empty());
        }
        assert_eq!(of(RowKind::Word, 16, ""), Tokenized { ids: vec![1, 2], rows: Vec::new(), truncated: false });
    }
}
