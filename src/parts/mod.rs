//! Where the parts that are not crates lie: ONNX Runtime, models, Kafka's jars, corpora.

pub mod catalogue;
pub mod fetch;

use std::path::{Path, PathBuf};

use crate::config::{Embed, Settings};
use catalogue::Entry;
use fetch::Receipt;

/// Names the parts folder.
pub const PARTS_ENV: &str = "SWEEPSTREAM_PARTS";
/// Names the ONNX Runtime library.
pub const ORT_ENV: &str = "ORT_DYLIB_PATH";

/// The folder in the parts folder that models lie in.
pub const MODELS: &str = "models";

/// Why there is no such part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not where it should be.
    #[error("{what} is missing: {path} does not exist; {fetch} fetches it, and {env} says where else it is")]
    Missing {
        what: &'static str,
        path: PathBuf,
        fetch: String,
        /// The variable that names another place.
        env: &'static str,
    },
    /// No model has that name.
    #[error(
        "`embed.model` names `{name}`, which is neither a model of the catalogue nor a folder in {folder}{nearest}; \
         `sweepstream models` lists what there is"
    )]
    UnknownModel {
        name: String,
        /// Where a folder of that name would do.
        folder: PathBuf,
        /// A name that was meant perhaps.
        nearest: String,
    },
    /// The model breaks promise 2, by what the catalogue knows of it.
    #[error(
        "the model `{name}` is dynamically quantised: its output depends on what shares the batch, so the same \
        text would not always give the same bytes; use `{instead}`"
    )]
    Quantised { name: String, instead: String },
}

/// The parts folder.
#[derive(Clone, Debug)]
pub struct Parts {
    pub folder: PathBuf,
    pub found_by: &'static str,
}

/// The files of an embedding model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    pub folder: PathBuf,
    /// The name that matrices carry.
    pub name: String,
    /// What the catalogue knows of the model.
    pub entry: Option<&'static Entry>,
    /// It was found in the parts folder by its name.
    pub is_named: bool,
}

impl ModelFiles {
    /// How one gets the model.
    fn fetch(&self) -> String {
        match self.entry.filter(|_| self.is_named) {
            Some(entry) if entry.name != Embed::default().model => {
                format!("`sweepstream models fetch {} --revision COMMIT`", entry.name)
            }
            _ => MAKE_PARTS.to_owned(),
        }
    }

    /// What to do about files that are damaged.
    pub fn remedy(&self) -> String {
        match self.is_named && self.entry.is_some() {
            true => format!("if it was damaged, delete the folder and get it anew: {}", self.fetch()),
            false => "the folder is your own: export the model into it again".to_owned(),
        }
    }
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
    pub fn onnxruntime(&self) -> Result<PathBuf, Error> {
        let path = match std::env::var_os(ORT_ENV).filter(|value| !value.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => self.folder.join("onnxruntime").join("libonnxruntime.so"),
        };
        existing("the ONNX Runtime library", path, ORT_ENV)
    }

    /// The folder of the embedding model.
    ///
    /// # Errors
    /// When it, or its `model.onnx`, is not there, or the model is not fit for a features topic.
    pub fn model(&self, settings: &Settings) -> Result<ModelFiles, Error> {
        let files = match &settings.embed.model_dir {
            Some(folder) => {
                let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
                let name = name.unwrap_or_else(|| settings.embed.model.clone());
                // A folder's name says nothing of what somebody has put into it.
                let entry = Receipt::of(folder).and_then(|receipt| catalogue::find(&receipt.name));
                ModelFiles { folder: folder.clone(), name, entry, is_named: false }
            }
            None => self.named_model(&settings.embed.model)?,
        };
        let graph = files.folder.join("model.onnx");
        let fetch = files.fetch();
        let _ = existing_or("the embedding model", graph, "SWEEPSTREAM_EMBED__MODEL_DIR", fetch)?;
        Ok(files)
    }

    fn named_model(&self, name: &str) -> Result<ModelFiles, Error> {
        let models = self.folder.join(MODELS);
        let entry = catalogue::find(name);
        entry.map_or(Ok(()), refuse_quantised)?;
        let (own, is_named) = (models.join(name), true);
        if own.is_dir() {
            return Ok(ModelFiles { folder: own, name: name.to_owned(), entry, is_named });
        }
        let Some(entry) = entry else {
            let nearest = catalogue::nearest(name).map(|near| format!(" (did you mean `{near}`?)"));
            let nearest = nearest.unwrap_or_default();
            return Err(Error::UnknownModel { name: name.to_owned(), folder: models, nearest });
        };
        Ok(ModelFiles { folder: models.join(&entry.name), name: entry.name.clone(), entry: Some(entry), is_named })
    }

    /// The parts folder, if Kafka's jars are in it.
    ///
    /// # Errors
    /// When they are not.
    pub fn kafka(&self) -> Result<&Path, Error> {
        let _ = existing("Apache Kafka", self.folder.join("kafka"), PARTS_ENV)?;
        Ok(&self.folder)
    }

    /// The folder with the Brown corpus.
    ///
    /// # Errors
    /// When it is not there.
    pub fn brown(&self) -> Result<PathBuf, Error> {
        existing("the Brown corpus (`make demo` fetches it)", self.folder.join("corpora").join("brown"), PARTS_ENV)
    }
}

/// # Errors
/// When the model is dynamically quantised, which breaks promise 2.
pub fn refuse_quantised(entry: &Entry) -> Result<(), Error> {
    if !entry.is_dynamically_quantised {
        return Ok(());
    }
    let instead = entry.unquantised().map_or_else(|| Embed::default().model, |whole| whole.name.clone());
    Err(Error::Quantised { name: entry.name.clone(), instead })
}

const MAKE_PARTS: &str = "`make parts`";

fn existing(what: &'static str, path: PathBuf, env: &'static str) -> Result<PathBuf, Error> {
    existing_or(what, path, env, MAKE_PARTS.to_owned())
}

fn existing_or(what: &'static str, path: PathBuf, env: &'static str, fetch: String) -> Result<PathBuf, Error> {
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::Missing { what, path, fetch, env })
    }
}
