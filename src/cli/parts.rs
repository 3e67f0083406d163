//! `parts`: where each part was found.

use std::path::PathBuf;

use clap::Args;

use super::output::{table, write_out};
use super::{Environment, Failure, Result};
use crate::parts::Missing;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream parts
  SWEEPSTREAM_PARTS=/opt/parts sweepstream parts

Ends with code 78 when something that `run` needs is missing; `make parts` fetches it.")]
pub struct Arguments {}

pub fn run(environment: &Environment, _: &Arguments) -> Result {
    let parts = &environment.parts;
    let found: [(&str, Result<PathBuf, Missing>); 4] = [
        ("onnxruntime", parts.onnxruntime()),
        ("model", parts.model(&environment.settings).map(|files| files.folder)),
        ("kafka (local broker)", parts.kafka().map(|folder| folder.join("kafka"))),
        ("corpus (demo)", parts.brown()),
    ];
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(name, path)| {
            vec![(*name).to_owned(), path.as_ref().map_or_else(|_| "missing".into(), |path| path.display().to_string())]
        })
        .collect();
    write_out(&format!("parts folder: {} (by {})", parts.folder.display(), parts.found_by))?;
    write_out(&table(&["part", "path"], &rows))?;
    let [runtime, model, ..] = found;
    runtime.1.and(model.1).map(drop).map_err(Failure::from)
}
