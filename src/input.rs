//! Input record → document, or why not. Pure.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::config::{shortened, Input, InputFormat};

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
    /// Readers of headers would stumble over it, and it may be the label's.
    #[error("the name of header {number} is not valid UTF-8")]
    HeaderName {
        /// From 1.
        number: usize,
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
    /// The model gave what no trial could learn from.
    #[error("row {row} (from 0) of the matrix holds a NaN or an infinity, or a number too large for `embed.dtype`")]
    NotFinite {
        /// The first such row.
        row: usize,
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
    let [text, label, id] = json_fields([&settings.text_field, &settings.label_field, &settings.id_field], value)
        // It quotes what it does not like, however long that is.
        .map_err(|error| Invalid::Json(shortened(&error.to_string())))?;
    let text = match text {
        Some(Field::Text(text)) => text,
        Some(other) => {
            return Err(Invalid::FieldType {
                field: settings.text_field.clone(),
                found: other.kind(),
                wanted: "a string",
            })
        }
        None => return Err(Invalid::MissingField(settings.text_field.clone())),
    };
    let label = scalar(label, &settings.label_field)?.or(header_label);
    let id = scalar(id, &settings.id_field)?.map(String::into_bytes);
    Ok(Document { text, label, id })
}

/// A string, number or boolean as text; null is the same as absent.
fn scalar(value: Option<Field>, field: &str) -> Result<Option<String>, Invalid> {
    match value {
        None | Some(Field::Null) => Ok(None),
        Some(Field::Text(text)) => Ok(Some(text)),
        Some(Field::Number(number)) => Ok(Some(number.to_string())),
        Some(Field::Flag(flag)) => Ok(Some(flag.to_string())),
        Some(other @ (Field::Array | Field::Object)) => Err(Invalid::FieldType {
            field: field.to_owned(),
            found: other.kind(),
            wanted: "a string, number or boolean",
        }),
    }
}

/// Fields of an object by name, the last of each. What nobody asked for is skipped and takes no memory.
fn json_fields(names: [&String; 3], object: &[u8]) -> serde_json::Result<[Option<Field>; 3]> {
    struct Object<'n>([&'n String; 3]);

    impl<'de> Visitor<'de> for Object<'_> {
        type Value = [Option<Field>; 3];

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = [None, None, None];
            while let Some(key) = map.next_key::<String>()? {
                if !self.0.contains(&&key) {
                    let _ = map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let value: Field = map.next_value()?;
                // Two settings may name the same field.
                for (found, _) in found.iter_mut().zip(self.0).filter(|(_, name)| **name == key) {
                    *found = Some(value.clone());
                }
            }
            Ok(found)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_slice(object);
    let found = deserializer.deserialize_map(Object(names))?;
    deserializer.end()?;
    Ok(found)
}

/// A JSON value; of arrays and objects only what they are.
#[derive(Clone, Debug)]
enum Field {
    Null,
    Flag(bool),
    Number(serde_json::Number),
    Text(String),
    Array,
    Object,
}

impl Field {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Flag(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Field;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Field, E> {
                Ok(Field::Null)
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Field, E> {
                Ok(Field::Flag(flag))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Field, E> {
                Ok(Field::Number(number.into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Field, E> {
                Ok(Field::Number(number.into()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Field, E> {
                Ok(serde_json::Number::from_f64(number).map_or(Field::Null, Field::Number))
            }

            fn visit_str<E>(self, text: &str) -> Result<Field, E> {
                Ok(Field::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Field, A::Error> {
                IgnoredAny.visit_seq(seq).map(|_| Field::Array)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Field, A::Error> {
                IgnoredAny.visit_map(map).map(|_| Field::Object)
            }
        }

        deserializer.deserialize_any(Any)
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
        let twice =
            document(&json(), Some(br#"{"text": "a", "id": 1.50, "text": "b", "x": {"text": 1}}"#), None).unwrap();
        assert_eq!((twice.text.as_str(), twice.id.as_deref()), ("b", Some(b"1.5".as_slice())));
        let one = Input { id_field: "text".into(), ..json() };
        assert_eq!(document(&one, Some(br#"{"text": "a"}"#), None).unwrap().id.as_deref(), Some(b"a".as_slice()));
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
        assert_eq!(document(&plain, Some(b"ab"), Some(b"\xff")).unwrap_err().reason(), "invalid_utf8");
    }
}
