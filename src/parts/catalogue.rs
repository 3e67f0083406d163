//! The embedding models that have names: fastembed's catalogue under names of our own. Pure.
//!
//! A name is the last part of the model's repository in lower case, without the `-onnx` of a conversion; a quantised
//! variant has `-q` or `-q4` behind it. Names are found in any case, and by what fastembed calls the model, too.

use std::sync::OnceLock;

use fastembed::{EmbeddingModel, OutputKey, Pooling, QuantizationMode, TextEmbedding};

/// A model of the catalogue.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As `embed.model` and the folder in the parts folder have it.
    pub name: String,
    /// What fastembed calls the model.
    pub alias: String,
    /// In a word or two.
    pub about: String,
    /// Where it comes from: `owner/name` on a hub.
    pub repository: String,
    /// The graph in that repository.
    pub file: String,
    /// Files that hold weights of the graph, beside it.
    pub weight_files: Vec<String>,
    /// Numbers in a row.
    pub dim: usize,
    /// How a row for a whole text is made of its tokens' rows.
    pub pooling: Pooling,
    /// Are its numbers rounded while it runs, by what shares the call? Such a model breaks promise 2.
    pub is_dynamically_quantised: bool,
    /// The output that holds a row for each text, where the graph pools by itself.
    pub text_output: Option<OutputKey>,
}

/// All models, by name.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let mut entries: Vec<Entry> = TextEmbedding::list_supported_models()
            .into_iter()
            .map(|info| Entry {
                name: name(&info.model_code, &info.model),
                alias: info.model.to_string(),
                about: info.description,
                repository: info.model_code,
                file: info.model_file,
                weight_files: info.additional_files,
                dim: info.dim,
                // Where fastembed names none, it takes the first token.
                pooling: TextEmbedding::get_default_pooling_method(&info.model).unwrap_or(Pooling::Cls),
                is_dynamically_quantised: TextEmbedding::get_quantization_mode(&info.model)
                    == QuantizationMode::Dynamic,
                text_output: info.output_key,
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    })
}

/// The model of that name, or that fastembed calls so.
pub fn find(name: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.name.eq_ignore_ascii_case(name) || entry.alias.eq_ignore_ascii_case(name))
}

/// The name that a typing mistake most likely meant.
pub fn nearest(name: &str) -> Option<&'static str> {
    let names: Vec<&str> = entries().iter().map(|entry| entry.name.as_str()).collect();
    crate::text::nearest(&name.to_lowercase(), &names)
}

impl Entry {
    /// The same model in full precision, if this one is quantised.
    pub fn unquantised(&self) -> Option<&'static Entry> {
        let (whole, _) = self.name.rsplit_once("-q")?;
        find(whole)
    }
}

/// How a text's tokens become one row, as settings and tables call it.
pub fn pooling_name(pooling: &Pooling) -> &'static str {
    match pooling {
        Pooling::Cls => "first token",
        Pooling::Mean => "mean",
    }
}

fn name(repository: &str, model: &EmbeddingModel) -> String {
    let last = repository.rsplit('/').next().unwrap_or(repository).to_lowercase();
    let plain = last.strip_suffix("-q").unwrap_or(&last);
    let plain = plain.strip_suffix("-onnx").unwrap_or(plain);
    let alias = model.to_string();
    let variant = ["Q4", "Q"].into_iter().find(|variant| alias.ends_with(variant));
    variant.map_or_else(|| plain.to_owned(), |variant| format!("{plain}-{}", variant.to_lowercase()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_model_has_a_name_of_its_own_that_a_folder_can_have() {
        let names: BTreeSet<&str> = entries().iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names.len(), entries().len());
        let plain =
            |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b));
        assert_eq!(names.iter().filter(|name| !plain(name)).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn names_come_from_repositories_and_fastembeds_are_known() {
        let repositories = [
            ("bge-small-en-v1.5", "BGESmallENV15", "Xenova/bge-small-en-v1.5"),
            ("bge-small-en-v1.5-q", "BGESmallENV15Q", "Qdrant/bge-small-en-v1.5-onnx-Q"),
            ("all-minilm-l6-v2", "AllMiniLML6V2", "Qdrant/all-MiniLM-L6-v2-onnx"),
            ("embeddinggemma-300m-q4", "EmbeddingGemma300MQ4", "onnx-community/embeddinggemma-300m-ONNX"),
        ];
        for (name, alias, repository) in repositories {
            let entry = find(name).unwrap();
            assert_eq!((entry.alias.as_str(), entry.repository.as_str()), (alias, repository));
            assert_eq!(find(&alias.to_lowercase()).unwrap().name, name);
        }
        assert_eq!(find("all-MiniLM-L6-v2").unwrap().name, "all-minilm-l6-v2");
        assert!(find("").is_none());
    }

    #[test]
    fn a_quantised_model_has_one_in_full_precision() {
        for entry in entries().iter().filter(|entry| entry.alias.ends_with(['Q', '4'])) {
            assert!(entry.unquantised().is_some_and(|whole| whole.dim == entry.dim), "{}", entry.name);
        }
        assert_eq!(entries().iter().filter(|entry| entry.is_dynamically_quantised).count(), 12);
        assert!(find("bge-small-en-v1.5").unwrap().unquantised().is_none());
    }
}
