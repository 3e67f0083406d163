//! Input record → document, or why not. Pure.

use crate::config::{Input, InputFormat};

/// Name of the header that carries a label, in `texts` and in `features`.
pub const LABEL_HEADER: &str = "label";

/// A text to embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// Its class, where it has one.
    pub label: Option<String>,
    /// A key for a record that came without one.
    pub id: Option<Vec<u8>>,
}

/// Why a record is a dead letter instead of a matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No value at all.
    #[error("the value is null")]
    NullValue,
    /// The value or the label is not text.
    #[error("{what} is not valid UTF-8 at byte {at}")]
    Utf8 {
        /// The value or the label.
        what: &'static str,
        /// The first wrong byte.
        at: usize,
    },
    /// The value is not a JSON object.
    #[error("the value is not a JSON object: {0}")]
    Json(String),
    /// A field is not there.
    #[error("the field `{0}` is missing")]
    MissingField(String),
    /// A field has another type.
    #[error("the field `{field}` is {found}, not {wanted}")]
    FieldType {
        /// Its name.
        field: String,
        /// What it is.
        found: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// Nothing that could be a row.
    #[error("the text has no words")]
    NoWords,
    /// The text is over `input.text_bytes_max`.
    #[error("the text has {bytes} bytes; `input.text_bytes_max` is {max}")]
    TextTooLong {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The matrix does not fit into a record of `features`.
    #[error("the record with its matrix has {bytes} bytes; `max.message.bytes` of the features topic is {max}")]
    MatrixTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

impl Invalid {
    /// All reasons, as metrics label them.
    pub const REASONS: [&'static str; 8] = [
        "null_value",
        "invalid_utf8",
        "invalid_json",
        "missing_field",
        "field_type",
        "no_words",
        "text_too_long",
        "matrix_too_large",
    ];

    /// The reason as a label of metrics and as the exception of a dead letter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NullValue => "null_value",
            Self::Utf8 { .. } => "invalid_utf8",
            Self::Json(_) => "invalid_json",
            Self::MissingField(_) => "missing_field",
            Self::FieldType { .. } => "field_type",
            Self::NoWords => "no_words",
            Self::TextTooLong { .. } => "text_too_long",
            Self::MatrixTooLarge { .. } => "matrix_too_large",
        }
    }
}

/// Reads a record's value and label header.
///
/// # Errors
/// Says why the record is a dead letter.
pub fn document(settings: &Input, value: Option<&[u8]>, label: Option<&[u8]>) -> Result<Document, Invalid> {
    let value = value.ok_or(Invalid::NullValue)?;
    let header_label = label.map(|bytes| utf8("the label", bytes)).transpose()?.map(str::to_owned);
    let document = match settings.format {
        InputFormat::Plain => Document { text: utf8("the value", value)?.to_owned(), label: header_label, id: None },
        InputFormat::Json => json_document(settings, value, header_label)?,
    };
    let (bytes, max) = (document.text.len(), settings.text_bytes_max.get());
    if bytes > max {
        return Err(Invalid::TextTooLong { bytes, max });
    }
    if document.text.trim().is_empty() {
        return Err(Invalid::NoWords);
    }
    Ok(document)
}

fn json_document(settings: &Input, value: &[u8], header_label: Option<String>) -> Result<Document, Invalid> {
    let _ = utf8("the value", value)?;
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(value).map_err(|error| Invalid::Json(error.to_string()))?;
    let text = match object.get(&settings.text_field) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => {
            return Err(Invalid::FieldType {
                field: settings.text_field.clone(),
                found: kind(other),
                wanted: "a string",
            })
        }
        None => return Err(Invalid::MissingField(settings.text_field.clone())),
    };
    let label = scalar(&object, &settings.label_field)?.or(header_label);
    let id = scalar(&object, &settings.id_field)?.map(String::into_bytes);
    Ok(Document { text, label, id })
}

/// A string, number or boolean as text; null is the same as absent.
fn scalar(object: &serde_json::Map<String, serde_json::Value>, field: &str) -> Result<Option<String>, Invalid> {
    use serde_json::Value;
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::Bool(flag)) => Ok(Some(flag.to_string())),
        Some(other) => Err(Invalid::FieldType {
            field: field.to_owned(),
            found: kind(other),
            wanted: "a string, number or boolean",
        }),
    }
}

fn kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a boolean",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "an array",
        serde_json::Value::Object(_) => "an object",
    }
}

fn utf8<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a str, Invalid> {
    std::str::from_utf8(bytes).map_err(|error| Invalid::Utf8 { what, at: error.valid_up_to() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json() -> Input {
        Input { format: InputFormat::Json, ..Input::default() }
    }

    #[test]
    fn plain_text_is_taken_as_it_is() {
        let document = document(&Input::default(), Some(b"{\"text\": 1} "), Some(b"spam")).unwrap();
        assert_eq!(document.text, "{\"text\": 1} ");
        assert_eq!(document.label.as_deref(), Some("spam"));
    }

    #[test]
    fn json_fields_win_over_the_label_header() {
        let value = br#"{"text": "good day", "label": 3, "id": "k1", "more": [1]}"#;
        let found = document(&json(), Some(value), Some(b"other")).unwrap();
        assert_eq!(found, Document { text: "good day".into(), label: Some("3".into()), id: Some(b"k1".to_vec()) });
        let header = document(&json(), Some(br#"{"text": "x", "label": null}"#), Some(b"h")).unwrap();
        assert_eq!(header.label.as_deref(), Some("h"));
    }

    #[test]
    fn every_kind_of_bad_input_has_its_reason() {
        let reason = |input: &Input, value: Option<&[u8]>| document(input, value, None).unwrap_err().reason();
        let plain = Input { text_bytes_max: std::num::NonZeroUsize::new(4).unwrap(), ..Input::default() };
        assert_eq!(reason(&plain, None), "null_value");
        assert_eq!(reason(&plain, Some(b"")), "no_words");
        assert_eq!(reason(&plain, Some(b" \n\t ")), "no_words");
        assert_eq!(reason(&plain, Some(b"abcde")), "text_too_long");
        assert_eq!(reason(&plain, Some(b"\xff\xfe")), "invalid_utf8");
        assert_eq!(reason(&json(), Some(b"\xff")), "invalid_utf8");
        assert_eq!(reason(&json(), Some(b"not json")), "invalid_json");
        assert_eq!(reason(&json(), Some(b"[1]")), "invalid_json");
        assert_eq!(reason(&json(), Some(b"{}")), "missing_field");
        assert_eq!(reason(&json(), Some(br#"{"text": 7}"#)), "field_type");
        assert_eq!(reason(&json(), Some(br#"{"text": "a", "label": {}}"#)), "field_type");
        assert_eq!(document(&plain, Some(b"ab"), Some(b"\xff")).unwrap_err().reason(), "invalid_utf8");
    }
}
