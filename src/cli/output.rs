//! Tables, JSON and progress, as the place they go to can show them.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use comfy_table::{presets, Cell, CellAlignment, Table};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde::Serialize;

/// Bars on the terminal, if there are any: log lines must be written above them.
static BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// How often plain progress is written.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// Writes log lines to standard error without tearing progress bars.
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bars = BARS.lock().clone();
        match bars {
            Some(bars) => bars.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
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
            eprintln!(
                "{}: {position} of {} {}{}{message}",
                self.what,
                self.total,
                self.unit,
                if message.is_empty() { "" } else { ", " }
            );
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
        eprintln!("{}: {} {} in {seconds:.1} s ({rate:.0}/s)", self.what, self.position, self.unit);
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
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
