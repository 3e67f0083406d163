//! Input record → document, or why not. Pure.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::config::{Input, InputFormat};
use crate::text::shortened;

/// Name of the header that carries a label, in `texts` and in `features`.
pub const LABEL_HEADER: &str = "label";

/// A text to embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
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
    Utf8 { what: &'static str, at: usize },
    /// Readers of headers would stumble over it, and it may be the label's.
    #[error("the name of header {number} is not valid UTF-8")]
    HeaderName { number: usize },
    /// The value is not a JSON object.
    #[error("the value is not a JSON object: {0}")]
    Json(String),
    /// A field is not there.
    #[error("the field `{0}` is missing")]
    MissingField(String),
    /// A field has another type.
    #[error("the field `{field}` is {found}, not {wanted}")]
    FieldType { field: String, found: &'static str, wanted: &'static str },
    /// Nothing that could be a row.
    #[error("the text has no words")]
    NoWords,
    /// The text is over `input.text_bytes_max`.
    #[error("the text has {bytes} bytes; `input.text_bytes_max` is {max}")]
    TextTooLong { bytes: usize, max: usize },
    /// The model gave what no trial could learn from.
    #[error("row {row} (from 0) of the matrix holds a NaN or an infinity, or a number too large for `embed.dtype`")]
    NotFinite { row: usize },
    /// The matrix does not fit into a record of `features`.
    #[error("the record with its matrix has {bytes} bytes; `max.message.bytes` of the features topic is {max}")]
    MatrixTooLarge { bytes: usize, max: usize },
}

impl Invalid {
    /// All reasons, as metrics label them.
    pub const REASONS: [&'static str; 10] = [
        "null_value",
        "invalid_utf8",
        "invalid_header",
        "invalid_json",
        "missing_field",
        "field_type",
        "no_words",
        "text_too_long",
        "not_finite",
        "matrix_too_large",
    ];

    /// The reason as a label of metrics and as the exception of a dead letter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NullValue => "null_value",
            Self::Utf8 { .. } => "invalid_utf8",
            Self::HeaderName { .. } => "invalid_header",
            Self::Json(_) => "invalid_json",
            Self::MissingField(_) => "missing_field",
            Self::FieldType { .. } => "field_type",
            Self::NoWords => "no_words",
            Self::TextTooLong { .. } => "text_too_long",
            Self::NotFinite { .. } => "not_finite",
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
        InputFormat::Json => {
            let found = json_document(settings, value)?;
            Document { label: found.label.or(header_label), ..found }
        }
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

/// Reads a JSON object. Its text is left to be judged by [`document`].
///
/// # Errors
/// Says why the record is a dead letter.
pub fn json_document(settings: &Input, value: &[u8]) -> Result<Document, Invalid> {
    let object = utf8("the value", value)?;
    let [text, label, id] = json_fields([&settings.text_field, &settings.label_field, &settings.id_field], object)
        // It quotes what it does not like, however long that is.
        .map_err(|error| Invalid::Json(shortened(&error.to_string())))?;
    let field = &settings.text_field;
    let text = match text.map(|text| (text, kind(text))) {
        Some((text, "a string")) => string(text, field)?,
        Some((_, found)) => return Err(Invalid::FieldType { field: field.clone(), found, wanted: "a string" }),
        None => return Err(Invalid::MissingField(field.clone())),
    };
    let label = scalar(label, &settings.label_field)?;
    let id = scalar(id, &settings.id_field)?.map(String::into_bytes);
    Ok(Document { text, label, id })
}

/// A string, number or boolean as text, a number with its digits as they are written: as a float, ids of many digits
/// would become one. Null is the same as absent.
fn scalar(value: Option<&RawValue>, field: &str) -> Result<Option<String>, Invalid> {
    match value {
        Some(value) => match kind(value) {
            "null" => Ok(None),
            "a string" => Ok(Some(string(value, field)?)),
            "a number" | "a boolean" => Ok(Some(value.get().to_owned())),
            found => Err(Invalid::FieldType { field: field.to_owned(), found, wanted: "a string, number or boolean" }),
        },
        None => Ok(None),
    }
}

fn string(value: &RawValue, field: &str) -> Result<String, Invalid> {
    serde_json::from_str(value.get()).map_err(|error| Invalid::Json(format!("field `{field}`: {error}")))
}

/// What a JSON value is, by its first character: it has been read to its end.
fn kind(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a string",
        Some(b'[') => "an array",
        Some(b'{') => "an object",
        _ => "a number",
    }
}

/// Fields of an object by name, the last of each, as they are written. What nobody asked for is skipped, however deep
/// it is, and takes no memory.
fn json_fields<'v>(names: [&String; 3], object: &'v str) -> serde_json::Result<[Option<&'v RawValue>; 3]> {
    struct Object<'n>([&'n String; 3]);

    impl<'de> Visitor<'de> for Object<'_> {
        type Value = [Option<&'de RawValue>; 3];

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = [None, None, None];
            while let Some(key) = map.next_key::<String>()? {
                let value: &RawValue = map.next_value()?;
                // Two settings may name the same field.
                for (found, _) in found.iter_mut().zip(self.0).filter(|(_, name)| **name == key) {
                    *found = Some(value);
                }
            }
            Ok(found)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(object);
    let found = deserializer.deserialize_map(Object(names))?;
    deserializer.end()?;
    Ok(found)
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
        let twice =
            document(&json(), Some(br#"{"text": "a", "id": 1.50, "text": "b", "x": {"text": 1}}"#), None).unwrap();
        assert_eq!((twice.text.as_str(), twice.id.as_deref()), ("b", Some(b"1.50".as_slice())));
        let one = Input { id_field: "text".into(), ..json() };
        assert_eq!(document(&one, Some(br#"{"text": "a"}"#), None).unwrap().id.as_deref(), Some(b"a".as_slice()));
    }

    #[test]
    fn numbers_keep_their_digits_as_written() {
        let numbers = ["18446744073709551616", "18446744073709551617", "1e400", "1E+2", "-0", "0.10", "1.0", "-7"];
        for number in numbers {
            let value = format!(r#"{{"text": "x", "id": {number} , "label":{number}}}"#);
            let found = document(&json(), Some(value.as_bytes()), None).unwrap();
            assert_eq!(found.id.as_deref(), Some(number.as_bytes()));
            assert_eq!(found.label.as_deref(), Some(number));
        }
        for wrong in ["01", "1.", "+1", "NaN", "Infinity", "0x1"] {
            let value = format!(r#"{{"text": "x", "id": {wrong}}}"#);
            assert_eq!(
                document(&json(), Some(value.as_bytes()), None).unwrap_err().reason(),
                "invalid_json",
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_nobody_asked_for_may_be_as_deep_as_it_likes() {
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        let value = format!(r#"{{"text": "x", "meta": {open}{close}}}"#);
        assert_eq!(document(&json(), Some(value.as_bytes()), None).unwrap().text, "x");
        let value = format!(r#"{{"text": "x", "id": {open}{close}}}"#);
        assert_eq!(document(&json(), Some(value.as_bytes()), None).unwrap_err().reason(), "field_type");
    }

    #[test]
    fn the_reason_does_not_grow_with_the_value() {
        let long = format!("\"{}\"", "\u{ffff}".repeat(100_000));
        let reason = document(&json(), Some(long.as_bytes()), None).unwrap_err().to_string();
        assert!(reason.contains("invalid type: string") && reason.len() < 500, "{} bytes", reason.len());
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
        assert_eq!(reason(&json(), Some(br#"{"text": "\ud800"}"#)), "invalid_json");
        assert_eq!(reason(&json(), Some(br#"{"text": "a", "id": "\ud800"}"#)), "invalid_json");
        assert_eq!(document(&plain, Some(b"ab"), Some(b"\xff")).unwrap_err().reason(), "invalid_utf8");
    }
}
