//! File descriptors: each connection takes some, and a client that gets none waits without saying why.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, RecvTimeoutError, Sender};
use rustix::io::Errno;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

/// What a command takes that asks Kafka something and ends: 24, of which some are open already.
const COMMAND: usize = 32;

/// How more are to be had.
const WAY_OUT: &str = "raise the limit (`ulimit -n`, LimitNOFILE= of systemd, `--ulimit nofile=` of containers)";

/// How often a watch looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it repeats itself.
const REPEAT: Duration = Duration::from_secs(60);

/// Lets this process have as many as it may.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
            tracing::debug!(%error, "the limit of file descriptors stays as it is");
        }
    }
}

/// Says so when this process may have less than what somebody takes.
pub fn few(somebody_takes: &str, needed: u64) -> Option<String> {
    let limit = getrlimit(Resource::Nofile).current.filter(|limit| *limit < needed)?;
    Some(format!("this process may have {limit} file descriptors, and {somebody_takes} up to {needed}; {WAY_OUT}"))
}

/// Makes sure that a command can have as many as it takes: with fewer it would wait for what nobody sends.
///
/// # Errors
/// Names the limit and the way out.
pub fn ensure() -> Result<(), String> {
    let pipes = (0..COMMAND / 2).map(|_| std::io::pipe());
    match pipes.collect::<std::io::Result<Vec<_>>>().map_err(|error| said(&error)) {
        Err(Some(message)) => Err(message),
        Ok(_) | Err(None) => Ok(()),
    }
}

/// Why none can be had, when that is so. A client takes them in pairs.
pub fn shortage() -> Option<String> {
    said(&std::io::pipe().err()?)
}

fn said(error: &std::io::Error) -> Option<String> {
    match Errno::from_io_error(error)? {
        Errno::MFILE => {
            let limit = getrlimit(Resource::Nofile).current.map_or_else(String::new, |limit| format!(" of {limit}"));
            Some(format!("no file descriptor is left{limit}; {WAY_OUT}"))
        }
        Errno::NFILE => Some("no file descriptor is left on this machine; raise the sysctl `fs.file-max`".into()),
        _ => None,
    }
}

/// The words of an error; and where descriptors have run out, so much.
pub fn explained(error: impl Display) -> String {
    let text = error.to_string();
    match shortage() {
        _ if text.contains(WAY_OUT) => text,
        Some(shortage) => format!("{text} ({shortage})"),
        // Of another process, such as the broker's, or of a moment ago.
        None if text.contains("Too many open files") => format!("{text} ({WAY_OUT})"),
        None => text,
    }
}

/// Says in the log that none is left, whoever waits for one; until it is dropped.
pub struct Watch {
    _alive: Sender<()>,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start() -> std::io::Result<Self> {
        let (alive, dropped) = bounded::<()>(0);
        let watch = move || {
            let mut said: Option<Instant> = None;
            while dropped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Some(shortage) = shortage() else { continue };
                if said.is_none_or(|said| said.elapsed() > REPEAT) {
                    tracing::error!("{shortage}; what needs one waits or fails until then");
                    said = Some(Instant::now());
                }
            }
        };
        drop(std::thread::Builder::new().name("descriptors".into()).spawn(watch)?);
        Ok(Self { _alive: alive })
    }
}
