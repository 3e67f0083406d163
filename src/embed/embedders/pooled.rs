//! The second engine: fastembed, for one row for each text, whatever the graph takes and gives.

use fastembed::{InitOptionsUserDefined, TextEmbedding, TokenizerFiles, UserDefinedEmbeddingModel};
use ort::environment::Environment;

use super::embedder::{Embedder, Error, Item};
use super::files::Folder;
use crate::features::codec::{Dtype, Encoder};

/// fastembed's engine with a model's files.
pub(super) struct Pooled {
    engine: TextEmbedding,
    dtype: Dtype,
}

impl Pooled {
    /// Loads graph and tokenizer; fastembed reads both from memory.
    ///
    /// # Errors
    /// When a file cannot be read, or fastembed does not take it.
    pub fn open(
        environment: &Environment,
        folder: &Folder<'_>,
        threads: usize,
        max_length: usize,
        dtype: Dtype,
    ) -> Result<Self, Error> {
        let tokenizer_files = TokenizerFiles {
            tokenizer_file: folder.read("tokenizer.json")?,
            config_file: folder.read("config.json")?,
            special_tokens_map_file: folder.read("special_tokens_map.json")?,
            tokenizer_config_file: folder.read("tokenizer_config.json")?,
        };
        let mut model =
            UserDefinedEmbeddingModel::new(folder.read("model.onnx")?, tokenizer_files).with_pooling(folder.pooling()?);
        for name in folder.weight_files()? {
            let bytes = folder.read(&name)?;
            model = model.with_external_initializer(name, bytes);
        }
        model.output_key = folder.text_output();
        // Without an environment fastembed makes one of its own, and ONNX Runtime allows only one in a process.
        let options = InitOptionsUserDefined::new()
            .with_environment(environment.clone())
            .with_intra_threads(threads)
            .with_max_length(max_length);
        let engine = TextEmbedding::try_new_from_user_defined(model, options).map_err(|error| folder.unfit(error))?;
        Ok(Self { engine, dtype })
    }
}

impl Embedder for Pooled {
    fn embed(&mut self, batch: &[Item<'_>]) -> Result<Vec<Vec<u8>>, Error> {
        let failed = |message: String| Error::Inference(message);
        let matrix = |item: &Item<'_>| {
            // Alone: nothing is known of such a graph that would keep its bits from depending on padding.
            let rows = self.engine.embed([item.text], Some(1)).map_err(|error| failed(error.to_string()))?;
            let [row] = &rows[..] else {
                return Err(failed(format!("the model gave {} rows for one text", rows.len())));
            };
            let mut encoder = Encoder::new(1, row.len(), self.dtype);
            encoder.push(row);
            Ok(encoder.finish())
        };
        batch.iter().map(matrix).collect()
    }

    fn wants_text(&self) -> bool {
        true
    }
}
