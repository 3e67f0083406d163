//! `completions`: a script that completes this command line in a shell.

use clap::{Args, CommandFactory};
use clap_complete::{generate, Shell};

use super::output::write_out;
use super::{Cli, Result};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream completions bash > ~/.local/share/bash-completion/completions/sweepstream
  sweepstream completions zsh > ~/.zfunc/_sweepstream
  sweepstream completions fish > ~/.config/fish/completions/sweepstream.fish")]
pub struct Arguments {
    /// Which shell
    shell: Shell,
}

pub fn run(arguments: &Arguments) -> Result {
    let mut script = Vec::new();
    generate(arguments.shell, &mut Cli::command(), "sweepstream", &mut script);
    Ok(write_out(String::from_utf8_lossy(&script).trim_end())?)
}
