//! Tables, JSON and progress, as the place they go to can show them.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use comfy_table::{presets, Cell, CellAlignment, Table};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde::Serialize;

use crate::metrics::LOG_LINES_DROPPED;

/// Bars on the terminal, if there are any: log lines must be written above them.
static BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// How often plain progress is written.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// Writes log lines to standard error, without fail: see [`to_stderr`].
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        to_stderr(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says a line on standard error, without fail: see [`to_stderr`].
pub fn say(line: impl Display) {
    to_stderr(format!("{line}\n").as_bytes());
}

/// Writes a line to standard error without tearing progress bars. What was asked for goes on without a line that
/// cannot be written: it is dropped and counted.
fn to_stderr(line: &[u8]) {
    /// The last line stands there in part.
    static TORN: AtomicBool = AtomicBool::new(false);
    let bars = BARS.lock().clone();
    let written = match bars.filter(|bars| !bars.is_hidden()) {
        // `suspend` would panic where the terminal is gone.
        Some(bars) => bars.println(String::from_utf8_lossy(line).trim_end_matches('\n')),
        None => write_line(&mut io::stderr().lock(), &TORN, line),
    };
    if written.is_err() {
        LOG_LINES_DROPPED.inc();
    }
}

/// Writes a line, after the end of one that was torn before: half a line must not cost a whole one.
fn write_line(to: &mut impl Write, torn: &AtomicBool, line: &[u8]) -> io::Result<()> {
    if torn.load(Ordering::Relaxed) {
        to.write_all(b"\n")?;
        torn.store(false, Ordering::Relaxed);
    }
    let mut rest = line;
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                torn.store(rest.len() < line.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// One line that grows: a bar on a terminal, plain lines now and then otherwise.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    unit: &'static str,
    total: u64,
    written: Instant,
    position: u64,
    started: Instant,
}

impl Progress {
    /// Starts at 0 of `total`.
    pub fn new(what: impl Into<String>, unit: &'static str, total: u64) -> Self {
        let what = what.into();
        let bar = io::stderr().is_terminal().then(|| {
            let mut bars = BARS.lock();
            let bar = bars.get_or_insert_with(MultiProgress::new).add(ProgressBar::new(total));
            let style = ProgressStyle::with_template("{prefix:28} {bar:30} {human_pos:>9}/{human_len} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(what.clone());
            bar
        });
        let now = Instant::now();
        Self { bar, what, unit, total, written: now, position: 0, started: now }
    }

    /// Shows how far it has come.
    pub fn set(&mut self, position: u64, message: &str) {
        self.position = position;
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(message.to_owned());
        } else if self.written.elapsed() > PLAIN_INTERVAL {
            self.written = Instant::now();
            let comma = if message.is_empty() { "" } else { ", " };
            say(format_args!("{}: {position} of {} {}{comma}{message}", self.what, self.total, self.unit));
        }
    }

    /// Ends the line.
    pub fn finish(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
            if let Some(bars) = BARS.lock().as_ref() {
                bars.remove(&bar);
            }
        }
        let rate = self.position as f64 / seconds.max(1e-3);
        say(format_args!("{}: {} {} in {seconds:.1} s ({rate:.0}/s)", self.what, self.position, self.unit));
    }
}

/// A table with these columns; numbers to the right.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    *table.style_mut() = presets::NOTHING;
    let _ = table.set_header(headings.iter().map(|heading| Cell::new(heading.to_uppercase())));
    for row in rows {
        let cells = row.iter().map(|text| {
            let number = text.parse::<f64>().is_ok();
            Cell::new(text).set_alignment(if number { CellAlignment::Right } else { CellAlignment::Left })
        });
        let _ = table.add_row(cells);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Prints a value as JSON, or what `text` makes of it.
pub fn show<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let shown = if json { serde_json::to_string_pretty(value)? } else { text() };
    write_out(&shown)
}

/// Prints a line to standard output; a reader that went away early is no failure.
pub fn write_out(text: &str) -> anyhow::Result<()> {
    forgiving(print(text))
}

/// What came of printing to standard output, for which a reader that went away early is no failure.
pub fn forgiving(printed: io::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("writing to standard output"),
    }
}

/// Prints a line to standard output.
pub fn print(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes.
    struct Disk(Vec<u8>, usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.1 - self.0.len());
            self.0.extend(&bytes[..taken]);
            if taken > 0 || bytes.is_empty() {
                Ok(taken)
            } else {
                Err(io::ErrorKind::StorageFull.into())
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_by_a_full_disk_costs_no_other() {
        let (mut disk, torn) = (Disk(Vec::new(), 10), AtomicBool::new(false));
        write_line(&mut disk, &torn, b"first\n").unwrap();
        assert!(write_line(&mut disk, &torn, b"second\n").is_err());
        assert!(write_line(&mut disk, &torn, b"third\n").is_err());
        disk.1 = 100;
        write_line(&mut disk, &torn, b"fourth\n").unwrap();
        write_line(&mut disk, &torn, b"fifth\n").unwrap();
        assert_eq!(String::from_utf8(disk.0).unwrap(), "first\nseco\nfourth\nfifth\n");
    }
}
