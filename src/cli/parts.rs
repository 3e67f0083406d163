//! `parts`: where each part was found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::output::{show, table};
use super::{Environment, Failure, Result};
use crate::parts::Error;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream parts
  SWEEPSTREAM_PARTS=/opt/parts sweepstream parts
  sweepstream parts --json | jq -r .parts.onnxruntime

Ends with code 78 when something that `run` needs is missing; `make parts` fetches it.")]
pub struct Arguments {
    /// As JSON; what is missing is null
    #[arg(long)]
    json: bool,
}

/// Where everything is.
#[derive(Debug, Serialize)]
struct Located<'p> {
    folder: &'p Path,
    found_by: &'static str,
    parts: BTreeMap<&'static str, Option<PathBuf>>,
}

pub fn run(environment: &Environment, arguments: &Arguments) -> Result {
    let parts = &environment.parts;
    let found: [(&str, &str, Result<PathBuf, Error>); 4] = [
        ("onnxruntime", "", parts.onnxruntime()),
        ("model", "", parts.model(&environment.settings).map(|files| files.folder)),
        ("kafka", " (local broker)", parts.kafka().map(|folder| folder.join("kafka"))),
        ("corpus", " (demo)", parts.brown()),
    ];
    let paths = found.iter().map(|(name, _, path)| (*name, path.as_ref().ok().cloned())).collect();
    let located = Located { folder: &parts.folder, found_by: parts.found_by, parts: paths };
    show(arguments.json, &located, || {
        let rows: Vec<Vec<String>> = found
            .iter()
            .map(|(name, of, path)| {
                let path = path.as_ref().map_or_else(|_| "missing".into(), |path| path.display().to_string());
                vec![format!("{name}{of}"), path]
            })
            .collect();
        let folder = format!("parts folder: {} (by {})", parts.folder.display(), parts.found_by);
        format!("{folder}\n{}", table(&["part", "path"], &rows))
    })?;
    let [runtime, model, ..] = found;
    runtime.2.and(model.2).map(drop).map_err(Failure::from)
}
