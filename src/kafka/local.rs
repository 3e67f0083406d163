//! A real Kafka on this machine: one KRaft process with a data folder of its own, for the demo and for tests.
//!
//! The JVM runs under a small shell that reads a pipe held by this process. When the pipe closes, by [`LocalBroker`]
//! being dropped or by this process being killed, the shell kills the JVM and removes the data folder.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client;
use super::error::{Error, Result};
use crate::config::Settings;

/// How long the broker may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Kafka wants 16 bytes as URL-safe base64; nothing here ever tells two clusters apart by it.
const CLUSTER_ID: &str = "sweepstream-local-AAAA";

/// Settings of the broker beyond addresses and folders: one node, nothing replicated, quick rebalances and
/// transactions that end soon after their timeout.
const PROPERTIES: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("controller.listener.names", "CONTROLLER"),
    ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("offsets.topic.replication.factor", "1"),
    ("offsets.topic.num.partitions", "8"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.num.partitions", "8"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("group.consumer.min.session.timeout.ms", "3000"),
    ("group.consumer.session.timeout.ms", "6000"),
    ("group.consumer.min.heartbeat.interval.ms", "500"),
    ("group.consumer.heartbeat.interval.ms", "1000"),
    ("auto.create.topics.enable", "false"),
    ("log.cleaner.backoff.ms", "1000"),
];

/// Reads one line from the parent; end of file means that the parent is gone.
const GUARD: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
jvm=$!
{
  if read -r _ <&3; then kill -TERM $jvm 2>/dev/null; read -r _ <&3; fi
  kill -KILL $jvm 2>/dev/null
} &
guard=$!
wait $jvm
code=$?
[ -n "$SWEEPSTREAM_BROKER_DATA" ] && rm -rf "$SWEEPSTREAM_BROKER_DATA"
kill -KILL $guard 2>/dev/null
exit $code
"#;

/// Where a broker's files go and how it listens.
#[derive(Clone, Debug, Default)]
pub struct LocalBrokerOptions {
    /// Data folder; a temporary one, removed at the end, when absent.
    pub data: Option<PathBuf>,
    /// Client port; a free one when absent.
    pub port: Option<u16>,
    /// Broker properties that override the defaults here.
    pub properties: Vec<(String, String)>,
}

/// A running broker; dropping it ends it.
pub struct LocalBroker {
    shell: Child,
    bootstrap_servers: String,
    log: PathBuf,
}

impl LocalBroker {
    /// Formats the data folder if it is new, starts the JVM, and waits until it answers.
    ///
    /// `parts` is the parts folder: `kafka/*.jar` are taken from it, and logs are kept in `brokers/`.
    ///
    /// # Errors
    /// When Java is missing, the broker ends early, or it does not answer in time; the log is named.
    pub fn start(parts: &Path, options: &LocalBrokerOptions) -> Result<Self> {
        // Another process can take a free port before the broker does.
        let mut attempts = if options.port.is_some() { 1 } else { 3 };
        loop {
            attempts -= 1;
            match Self::try_start(parts, options) {
                Err(Error::Local { message }) if attempts > 0 && message.contains("Address already in use") => {}
                result => return result,
            }
        }
    }

    fn try_start(parts: &Path, options: &LocalBrokerOptions) -> Result<Self> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| Error::Local { message: format!("{what}: {error}") }
        };
        let folder = parts.join("brokers");
        std::fs::create_dir_all(&folder).map_err(failed("creating the log folder"))?;
        remove_old_logs(&folder);
        let name = format!("{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
        let data = options.data.clone().unwrap_or_else(|| folder.join(&name));
        std::fs::create_dir_all(&data).map_err(failed("creating the data folder"))?;
        let data = data.canonicalize().map_err(failed("finding the data folder"))?;
        let log = folder.join(format!("{name}.log"));

        let port = match options.port {
            Some(port) => port,
            None => free_port().map_err(failed("finding a free port"))?,
        };
        let controller = free_port().map_err(failed("finding a free port"))?;
        let properties = data.join("server.properties");
        let new = !data.join("meta.properties").exists();
        let mut overrides = options.properties.clone();
        if new {
            // Not after a restart: a broker that ends timed-out transactions before it knows its topics again takes
            // them for deleted, and leaves those transactions open for ever (Kafka 4.3).
            overrides.insert(0, ("transaction.abort.timed.out.transaction.cleanup.interval.ms".into(), "1000".into()));
        }
        std::fs::write(&properties, server_properties(&data, port, controller, &overrides))
            .map_err(failed("writing the broker's settings"))?;
        if new {
            format(parts, &properties, &log)?;
        }
        let log_file = append_to(&log).map_err(failed("opening the broker's log"))?;
        let mut command = Command::new("sh");
        let _ = command.arg("-c").arg(GUARD).arg("sh").arg("java").args(jvm_arguments(parts)).args(["kafka.Kafka"]);
        let _ = command
            .arg(&properties)
            .stdin(Stdio::piped())
            .stdout(log_file.try_clone().map_err(failed("opening the broker's log"))?)
            .stderr(log_file)
            // A Ctrl-C at the terminal is for us; we end the broker when we are done with it.
            .env("SWEEPSTREAM_BROKER_DATA", if options.data.is_none() { data.as_os_str() } else { "".as_ref() });
        detach_from_terminal(&mut command);
        let shell = command.spawn().map_err(failed("starting `sh`"))?;
        let broker = Self { shell, bootstrap_servers: format!("127.0.0.1:{port}"), log };
        broker.await_ready()
    }

    fn await_ready(mut self) -> Result<Self> {
        let started = Instant::now();
        let settings = self.settings();
        let consumer: BaseConsumer = client::probe(&settings, false)
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "50")
            .create()
            .map_err(Error::call("creating a Kafka client"))?;
        loop {
            if let Ok(metadata) = consumer.fetch_metadata(None, Duration::from_millis(200)) {
                if !metadata.brokers().is_empty() {
                    return Ok(self);
                }
            }
            let ended = self.shell.try_wait().ok().flatten();
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                let what = if ended.is_some() { "it ended early" } else { "it does not answer" };
                return Err(Error::Local {
                    message: format!("{what}; log {}:\n{}", self.log.display(), tail(&self.log)),
                });
            }
        }
    }

    /// `host:port` for clients.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The broker's log, kept after its end.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Process id of the shell that guards the JVM.
    pub fn id(&self) -> u32 {
        self.shell.id()
    }

    /// Default settings that lead to this broker.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.kafka.bootstrap_servers.clone_from(&self.bootstrap_servers);
        settings
    }

    /// Waits until the broker ends by itself.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn ended(&mut self) -> std::io::Result<bool> {
        Ok(self.shell.try_wait()?.is_some())
    }

    /// Ends the broker in order, as an operator would.
    pub fn stop(mut self) {
        if let Some(pipe) = &mut self.shell.stdin {
            if pipe.write_all(b"stop\n").is_ok() {
                let deadline = Instant::now() + Duration::from_secs(20);
                while Instant::now() < deadline && matches!(self.shell.try_wait(), Ok(None)) {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

impl Drop for LocalBroker {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        if let Err(error) = self.shell.wait() {
            tracing::debug!(%error, "waiting for the local broker to end");
        }
    }
}

fn server_properties(data: &Path, port: u16, controller: u16, overrides: &[(String, String)]) -> String {
    let mut lines: Vec<String> = PROPERTIES
        .iter()
        .filter(|(name, _)| !overrides.iter().any(|(other, _)| other == name))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    lines.push(format!("log.dirs={}", data.display()));
    lines.push(format!("listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"));
    lines.push(format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}"));
    lines.push(format!("controller.quorum.voters=1@127.0.0.1:{controller}"));
    lines.extend(overrides.iter().map(|(name, value)| format!("{name}={value}")));
    lines.join("\n") + "\n"
}

fn jvm_arguments(parts: &Path) -> Vec<std::ffi::OsString> {
    let mut classpath = parts.join("kafka").into_os_string();
    classpath.push("/*");
    // A quick start matters more here than peak speed: the first compiler tier only, and a small heap.
    let flags = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xms128m", "-Xmx512m", "-cp"];
    flags.iter().map(Into::into).chain([classpath]).collect()
}

fn format(parts: &Path, properties: &Path, log: &Path) -> Result<()> {
    let log_file =
        append_to(log).map_err(|error| Error::Local { message: format!("opening {}: {error}", log.display()) })?;
    let stderr = log_file
        .try_clone()
        .map_err(|error| Error::Local { message: format!("opening {}: {error}", log.display()) })?;
    let status = Command::new("java")
        .args(jvm_arguments(parts))
        .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
        .arg(properties)
        .stdin(Stdio::null())
        .stdout(log_file)
        .stderr(stderr)
        .status()
        .map_err(|error| Error::Local {
            message: format!("running `java`: {error}; Java 17 or newer is needed (Debian: `apt-get install openjdk-17-jre-headless`)"),
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Local {
            message: format!("formatting the data folder failed; log {}:\n{}", log.display(), tail(log)),
        })
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Logs are kept for a week.
fn remove_old_logs(folder: &Path) {
    const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
    for path in std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
        let modified = path.metadata().and_then(|metadata| metadata.modified());
        let old = modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > KEPT));
        if old && path.extension().is_some_and(|extension| extension == "log") {
            // Another process may have been quicker.
            drop(std::fs::remove_file(path));
        }
    }
}

fn append_to(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}

/// The last lines of a file, for an error message.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
        let mut bytes = Vec::new();
        let _ = file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("({error})"))
}

/// Puts the shell and the JVM into a process group of their own, out of the reach of the terminal's Ctrl-C.
fn detach_from_terminal(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let _ = command.process_group(0);
}
