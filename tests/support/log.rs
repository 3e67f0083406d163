//! The last lines that stages in this process have logged, for tests that fail.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Once;

use parking_lot::Mutex;

static LAST: Last = Last(Mutex::new(VecDeque::new()));

struct Last(Mutex<VecDeque<String>>);

/// Keeps them from now on. All tests log here: names of their own, which topics and groups carry, tell them apart.
pub fn keep() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let log = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::DEBUG);
        drop(log.with_writer(|| &LAST).try_init());
    });
}

/// The last hundred that name this.
pub fn about(name: &str) -> String {
    let lines = LAST.0.lock();
    let of: Vec<&str> = lines.iter().filter(|line| line.contains(name)).map(String::as_str).collect();
    of[of.len().saturating_sub(100)..].concat()
}

impl Write for &Last {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        const LINES_MAX: usize = 20_000;
        let mut lines = self.0.lock();
        if lines.len() == LINES_MAX {
            drop(lines.pop_front());
        }
        lines.push_back(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
