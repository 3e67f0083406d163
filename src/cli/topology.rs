//! `topology`: what reads what, and under which group.

use clap::Args;

use super::output::write_out;
use super::{Environment, Result};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream topology
  sweepstream --set application_id=mails topology")]
pub struct Arguments {}

pub fn run(environment: &Environment, _: &Arguments) -> Result {
    let settings = &environment.settings;
    let topics = &settings.topics;
    let trial = settings.trial_group("<trial>");
    let text = format!(
        "\
stage embed
  source     {texts}  (group {embed})
  processor  {model}, rows = {rows}, at most {max_length} tokens
  sink       {features}  (same key, partition and order)
  sink       {dead}  (what could not be embedded)
             matrices, dead letters and offsets in one transaction

stage train
  source     {trials}  (group {train}: shares trials out)
  source     {features}  (group {trial}: one for each trial, a frozen range, epoch after epoch)
  processor  the trial's model, one thread for each trial, {threads} at once
  sink       {output}  (measurements, checkpoints, outcomes)
  sink       {trials}  (outcomes)
             measurements, checkpoint and both groups' offsets in one transaction",
        texts = topics.texts,
        embed = settings.embed_group(),
        model = settings.embed.model,
        rows = settings.embed.rows.name(),
        max_length = settings.embed.max_length,
        features = topics.features,
        dead = topics.dead_letters,
        trials = topics.trials,
        train = settings.train_group(),
        threads = settings.train.threads(),
        output = topics.output,
    );
    Ok(write_out(&text)?)
}
