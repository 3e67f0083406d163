//! The program as a process, and what it answers over HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use sweepstream::config::Settings;

use super::{eventually_after, PATIENCE};

/// The program as a process of its own, ended when dropped.
pub struct Process {
    pub child: Child,
    /// Lines of standard error so far, and a condition for the next one.
    log: Arc<(Mutex<Log>, Condvar)>,
    /// Where it logs instead.
    file: Option<PathBuf>,
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    /// Starts `sweepstream` with the settings as environment.
    pub fn start(settings: &Settings, arguments: &[&str]) -> Self {
        Self::spawn(command(settings, arguments))
    }

    /// Starts a prepared command.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<(Mutex<Log>, Condvar)> = Arc::default();
        let (stderr, written) = (child.stderr.take().unwrap(), Arc::clone(&log));
        // A pipe that nobody reads would stop the process.
        let _ = std::thread::Builder::new()
            .name("stderr".into())
            .spawn(move || {
                for line in BufReader::new(stderr).lines() {
                    written.0.lock().lines.push(line.unwrap());
                    let _ = written.1.notify_all();
                }
                written.0.lock().ended = true;
                let _ = written.1.notify_all();
            })
            .unwrap();
        Self { child, log, file: None }
    }

    /// Starts a prepared command that logs to the end of a file.
    pub fn logged(mut command: Command, file: &Path) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, log: Arc::default(), file: Some(file.to_owned()) }
    }

    /// Sends a signal by its name, e.g. `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Sends several signals with as little time between them as can be.
    pub fn signals(&self, names: &[&str]) {
        let id = self.child.id();
        let kills: Vec<String> = names.iter().map(|name| format!("kill -{name} {id}")).collect();
        assert!(Command::new("sh").arg("-c").arg(kills.join(" && ")).status().unwrap().success());
    }

    /// Waits for the end: as long as the process computes, it does not hang.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let times = format!("/proc/{}/stat", self.child.id());
        // User and system time in hundredths, counted in steps that nothing but work takes within the patience.
        let worked = || {
            let times = std::fs::read_to_string(&times).unwrap_or_default();
            let after_name = times.rsplit(')').next().unwrap_or_default();
            after_name.split_whitespace().skip(11).take(2).filter_map(|time| time.parse::<u64>().ok()).sum::<u64>()
                / 300
        };
        let mut status = None;
        eventually_after("the process ends", worked, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits until a line of standard error contains this text.
    #[track_caller]
    pub fn await_line(&self, text: &str) -> String {
        let mut log = self.log.0.lock();
        let (mut deadline, mut seen) = (Instant::now() + PATIENCE, log.lines.len());
        loop {
            // Whoever says something goes on.
            if log.lines.len() > seen {
                (deadline, seen) = (Instant::now() + PATIENCE, log.lines.len());
            }
            if let Some(line) = log.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let in_time = Instant::now() < deadline;
            assert!(!log.ended && in_time, "the process never wrote `{text}`:\n{}", log.lines.join("\n"));
            let _ = self.log.1.wait_until(&mut log, deadline);
        }
    }

    /// All of standard error, once the process has ended.
    pub fn stderr(&self) -> String {
        let mut log = self.log.0.lock();
        self.log.1.wait_while(&mut log, |log| !log.ended);
        log.lines.join("\n")
    }

    /// Where its HTTP endpoint is.
    #[track_caller]
    pub fn http_address(&self) -> String {
        let line = self.await_line("metrics, health and API are served");
        line.split("address=").nth(1).unwrap().trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logged = self.file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
            println!("what it has logged:\n{}", logged.unwrap_or_else(|| self.log.0.lock().lines.join("\n")));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a finished command wrote.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `sweepstream` to its end.
pub fn sweepstream(settings: &Settings, arguments: &[&str]) -> Finished {
    finish(command(settings, arguments))
}

/// Runs a prepared command to its end.
pub fn finish(command: Command) -> Finished {
    let mut process = Process::spawn(command);
    let mut stdout = String::new();
    let _ = process.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let status = process.wait();
    Finished { code: status.code().unwrap_or(-1), stdout, stderr: process.stderr() }
}

/// `sweepstream` with the settings as environment.
pub fn command(settings: &Settings, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    let _ = command
        .args(arguments)
        .stdin(Stdio::null())
        .env("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS", &settings.kafka.bootstrap_servers)
        .env("SWEEPSTREAM_APPLICATION_ID", &settings.application_id)
        .env("SWEEPSTREAM_TOPICS__TEXTS", &settings.topics.texts)
        .env("SWEEPSTREAM_TOPICS__FEATURES", &settings.topics.features)
        .env("SWEEPSTREAM_TOPICS__DEAD_LETTERS", &settings.topics.dead_letters)
        .env("SWEEPSTREAM_TOPICS__TRIALS", &settings.topics.trials)
        .env("SWEEPSTREAM_TOPICS__OUTPUT", &settings.topics.output);
    if let Some(folder) = &settings.topics.dir {
        let _ = command.env("SWEEPSTREAM_TOPICS__DIR", folder);
    }
    command
}

/// Status code and body of a GET request.
pub fn get(address: &str, path: &str) -> (u16, String) {
    try_get(address, path).unwrap()
}

/// [`get`] from who may have no file descriptor left to answer with, and then ends a connection unanswered.
pub fn try_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}
