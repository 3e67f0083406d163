//! Loads a model: reads and checks its files, chooses the engine, opens its sessions.

use std::path::Path;

use fastembed::Pooling;
use ort::environment::Environment;
use parking_lot::Mutex;

use super::embedder::{Embedder, Error, Item};
use super::files::Folder;
use super::pooled::Pooled;
use super::session::Session;
use super::tokenize::{RowKind, TextTokenizer};
use crate::config::{Embed, Rows, Settings};
use crate::features::codec;
use crate::parts::Parts;

/// A loaded model: a session for each inference thread, and what the rest of the stage needs to know.
pub struct Model {
    /// One for each inference thread.
    pub sessions: Vec<Box<dyn Embedder>>,
    /// Makes the tokens that the sessions take.
    pub tokenizer: TextTokenizer,
    /// Names model and settings in the header of each matrix.
    pub embedder: String,
    /// Numbers in a row.
    pub dim: usize,
    /// Bytes of the largest matrix that can come out.
    pub matrix_bytes_max: usize,
}

impl Model {
    /// Reads and checks the model's files and starts the sessions.
    ///
    /// # Errors
    /// When a part is missing or unfit.
    pub fn load(parts: &Parts, settings: &Settings) -> Result<Self, Error> {
        let library = parts.onnxruntime()?;
        let files = parts.model(settings)?;
        let folder = Folder::open(&files);
        let max_length = settings.embed.max_length.get();
        let max = folder.positions()?;
        if max_length > max {
            return Err(Error::TooLong { wanted: max_length, max, folder: files.folder.display().to_string() });
        }
        let environment = environment(&library)?;
        let (count, threads) = settings.embed.sessions_and_threads();
        let (sessions, rest) = std::thread::scope(|scope| {
            // Side by side: sessions take most of a start.
            let open = || open(&environment, &folder, threads, &settings.embed);
            let spawn = |i| std::thread::Builder::new().name(format!("load-session-{i}")).spawn_scoped(scope, open);
            let opening: Vec<_> = (0..count).map(spawn).collect();
            let rest = tokenizer_and_name(&folder, &files.name, &settings.embed);
            let joined = opening.into_iter().map(|thread| match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(session)) => session,
                Ok(Err(_)) => Err(folder.unfit("a session panicked")),
                Err(error) => Err(folder.unfit(error)),
            });
            (joined.collect::<Result<Vec<_>, _>>(), rest)
        });
        let (tokenizer, embedder) = rest?;
        let mut sessions = sessions?;
        let dim = probe(sessions[0].as_mut(), &tokenizer, &folder)?;
        let rows_max = if settings.embed.rows == Rows::Text { 1 } else { max_length - 2 };
        let matrix_bytes_max = codec::encoded_bytes_max(rows_max, dim, settings.embed.dtype.into());
        Ok(Self { sessions, tokenizer, embedder, dim, matrix_bytes_max })
    }
}

/// The direct engine, or for texts of a graph that does not suit it, fastembed's.
fn open(
    environment: &Environment,
    folder: &Folder<'_>,
    threads: usize,
    settings: &Embed,
) -> Result<Box<dyn Embedder>, Error> {
    let dtype = settings.dtype.into();
    let is_text = settings.rows == Rows::Text;
    let pooled = || Pooled::open(environment, folder, threads, settings.max_length.get(), dtype);
    if is_text && folder.text_output().is_some() {
        return Ok(Box::new(pooled()?));
    }
    match Session::open(environment, folder, threads, dtype, is_text) {
        Ok(session) => Ok(Box::new(session)),
        Err(Error::Graph { .. }) if is_text => Ok(Box::new(pooled()?)),
        Err(error) => Err(error),
    }
}

/// Embeds one word, alone and beside a longer text: shows that the model works, how wide its rows are, and that a row
/// is that of its own text.
fn probe(session: &mut dyn Embedder, tokenizer: &TextTokenizer, folder: &Folder<'_>) -> Result<usize, Error> {
    let texts = ["a", "a longer text beside it"];
    let tokenized = texts.map(|text| tokenizer.tokenize(text).map_err(Error::Inference));
    let [short, long] = tokenized;
    let (short, long) = (short?, long?);
    let short = Item { text: texts[0], ids: &short.ids, rows: &short.rows };
    let long = Item { text: texts[1], ids: &long.ids, rows: &long.rows };
    let (alone, beside) = (session.embed(&[short])?, session.embed(&[short, long])?);
    let none = || Error::Inference("the model gave no output".into());
    let (alone, beside) = (alone.first().ok_or_else(none)?, beside.first().ok_or_else(none)?);
    let decode = |matrix| codec::decode(matrix).map_err(|error| Error::Inference(error.to_string()));
    let (one, other) = (decode(alone)?, decode(beside)?);
    if alone != beside {
        let (mut a, mut b) = (vec![0.0; one.dim], vec![0.0; one.dim]);
        one.mean(usize::MAX, &mut a);
        other.mean(usize::MAX, &mut b);
        let size = a.iter().fold(0.0_f32, |size, value| size.max(value.abs()));
        // What sums in another order differ by is far less than that.
        if a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 0.01 * size) {
            return Err(Error::Unmasked { folder: folder.path().display().to_string() });
        }
        tracing::warn!("on this processor the last bits of a matrix depend on what shares its batch");
    }
    Ok(one.dim)
}

/// What else is made of the model's files while the sessions open.
fn tokenizer_and_name(folder: &Folder<'_>, name: &str, settings: &Embed) -> Result<(TextTokenizer, String), Error> {
    let tokenizer = folder.read("tokenizer.json")?;
    let digest = folder.digest(&tokenizer)?;
    let rows = match settings.rows {
        Rows::Word => RowKind::Word,
        Rows::Token => RowKind::Token,
        // Words and tokens are not pooled, so it does not matter how their model would.
        Rows::Text => match folder.pooling()? {
            Pooling::Mean => RowKind::AllTokens,
            Pooling::Cls => RowKind::FirstToken,
        },
    };
    let name = format!("{name}@{digest};rows={};max_length={}", rows.name(), settings.max_length);
    let special_tokens = folder.read("special_tokens_map.json")?;
    let tokenizer = TextTokenizer::load(tokenizer, &special_tokens, settings.max_length.get(), rows)
        .map_err(|error| folder.unfit(error))?;
    Ok((tokenizer, name))
}

/// The environment of this process. ONNX Runtime allows one, so whoever opens sessions beside the stage's needs it,
/// too.
///
/// # Errors
/// When the library does not load.
pub fn environment(library: &Path) -> Result<Environment, Error> {
    static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);
    let mut known = ENVIRONMENT.lock();
    if let Some(environment) = known.as_ref() {
        return Ok(environment.clone());
    }
    let failed = |message: String| Error::Runtime { path: library.display().to_string(), message };
    let environment = ort::init_from(library)
        .map_err(|error| failed(error.to_string()))?
        .with_name("sweepstream")
        .with_telemetry(false)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    *known = Some(environment.clone());
    Ok(environment)
}
