//! sweepstream: texts on one topic become matrices on another, exactly once; trials replay those and train.

#![warn(clippy::print_stderr, clippy::print_stdout)]

use std::process::ExitCode;

use sweepstream::cli;

/// It alone makes a training step three times faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before any thread: a trial computes on one thread, and matmul asks this variable each time.
    std::env::set_var("RAYON_NUM_THREADS", "1");
    cli::main()
}
