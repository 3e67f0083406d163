//! Where the parts that are not crates lie: ONNX Runtime, models, Kafka's jars, corpora.

use std::path::{Path, PathBuf};

use crate::config::Settings;

/// Names the parts folder.
pub const PARTS_ENV: &str = "SWEEPSTREAM_PARTS";
/// Names the ONNX Runtime library.
pub const ORT_ENV: &str = "ORT_DYLIB_PATH";

/// A part that is not where it should be.
#[derive(Debug, thiserror::Error)]
#[error("{what} is missing: {path} does not exist; `make parts` fetches it, and {env} says where else it is")]
pub struct Missing {
    what: &'static str,
    path: PathBuf,
    env: &'static str,
}

/// The parts folder.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Its path.
    pub folder: PathBuf,
    /// How it was found.
    pub found_by: &'static str,
}

/// The files of an embedding model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The folder they are in.
    pub folder: PathBuf,
    /// The name that matrices carry.
    pub name: String,
}

impl Parts {
    /// `SWEEPSTREAM_PARTS`, else `./.local`, else `.local` or `parts.d` beside the executable or in a folder above it.
    pub fn locate() -> Self {
        if let Some(folder) = std::env::var_os(PARTS_ENV).filter(|value| !value.is_empty()) {
            return Self { folder: folder.into(), found_by: PARTS_ENV };
        }
        let here = PathBuf::from(".local");
        if here.is_dir() {
            return Self { folder: here, found_by: "the current folder" };
        }
        let executable = std::env::current_exe().ok();
        let beside = executable
            .iter()
            .flat_map(|path| path.ancestors().skip(1))
            .flat_map(|folder| [folder.join(".local"), folder.join("parts.d")])
            .find(|folder| folder.is_dir());
        match beside {
            Some(folder) => Self { folder, found_by: "the executable's folder" },
            None => Self { folder: here, found_by: "nothing (default)" },
        }
    }

    /// The ONNX Runtime library.
    ///
    /// # Errors
    /// When it is not there.
    pub fn onnxruntime(&self) -> Result<PathBuf, Missing> {
        let path = match std::env::var_os(ORT_ENV).filter(|value| !value.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => self.folder.join("onnxruntime").join("libonnxruntime.so"),
        };
        existing("the ONNX Runtime library", path, ORT_ENV)
    }

    /// The folder of the embedding model.
    ///
    /// # Errors
    /// When it, or its `model.onnx`, is not there.
    pub fn model(&self, settings: &Settings) -> Result<ModelFiles, Missing> {
        let (folder, name) = match &settings.embed.model_dir {
            Some(folder) => {
                let name = folder
                    .file_name()
                    .map_or_else(|| settings.embed.model.clone(), |name| name.to_string_lossy().into_owned());
                (folder.clone(), name)
            }
            None => (self.folder.join("models").join(&settings.embed.model), settings.embed.model.clone()),
        };
        let _ = existing("the embedding model", folder.join("model.onnx"), "SWEEPSTREAM_EMBED__MODEL_DIR")?;
        Ok(ModelFiles { folder, name })
    }

    /// The parts folder, if Kafka's jars are in it.
    ///
    /// # Errors
    /// When they are not.
    pub fn kafka(&self) -> Result<&Path, Missing> {
        let _ = existing("Apache Kafka", self.folder.join("kafka"), PARTS_ENV)?;
        Ok(&self.folder)
    }

    /// The folder with the Brown corpus.
    ///
    /// # Errors
    /// When it is not there.
    pub fn brown(&self) -> Result<PathBuf, Missing> {
        existing("the Brown corpus (`make demo` fetches it)", self.folder.join("corpora").join("brown"), PARTS_ENV)
    }
}

fn existing(what: &'static str, path: PathBuf, env: &'static str) -> Result<PathBuf, Missing> {
    if path.exists() {
        Ok(path)
    } else {
        Err(Missing { what, path, env })
    }
}
