//! A real Kafka on this machine: one KRaft process with a data folder of its own, for the demo and for tests.
//!
//! The JVM runs under a small shell that reads a pipe held by this process. When the pipe closes, by [`LocalBroker`]
//! being dropped or by this process being killed, the shell kills the JVM and removes what is temporary.

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::{kill_process_group, Pid, Signal};
use tempfile::TempDir;

use super::error::{Error, Result};
use super::{client, descriptors, ports};
use crate::config::Settings;

/// How long a broker that has not ended may take to answer: two starts of a JVM, 3 s on an idle machine and more than a
/// minute beside thirty busy processes on two cores.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// How long a port that was asked for is waited for: a broker that was ended just now may hold it a moment longer.
const PORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Kafka wants 16 bytes as URL-safe base64; nothing here ever tells two clusters apart by it.
const CLUSTER_ID: &str = "sweepstream-local-AAAA";

/// The JVM resolves links to jars by itself, and opens names beyond ASCII only where the locale has them.
const LOCALE: &str = "C.UTF-8";

/// File descriptors that a broker takes with a few topics, most of them for jars and segments.
const DESCRIPTORS: u64 = 512;

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
rm -rf "$SWEEPSTREAM_BROKER_LINKS"
[ -n "$SWEEPSTREAM_BROKER_DATA" ] && rm -rf "$SWEEPSTREAM_BROKER_DATA"
kill -KILL $guard 2>/dev/null
exit $code
"#;

/// Where a broker's files go and how it listens.
#[derive(Clone, Debug, Default)]
pub struct LocalBrokerOptions {
    /// Data folder; a temporary one, removed at the end, when absent.
    pub data: Option<PathBuf>,
    /// Client port; a free one when absent or 0.
    pub port: Option<u16>,
    /// Broker properties that override the defaults here.
    pub properties: Vec<(String, String)>,
}

/// A running broker; dropping it ends it.
pub struct LocalBroker {
    shell: Child,
    bootstrap_servers: String,
    places: Places,
}

impl LocalBroker {
    /// Formats the data folder if it is new, starts the JVM, and waits until it answers.
    ///
    /// `parts` is the parts folder: `kafka/*.jar` are taken from it, and logs are kept in `brokers/` there, or in a
    /// temporary folder of this user where that cannot be written. The controller's port is chosen anew at each start.
    ///
    /// # Errors
    /// When Java is missing, a port that was asked for is taken, the broker ends early, or it does not answer in time;
    /// the log is named.
    pub fn start(parts: &Path, options: &LocalBrokerOptions) -> Result<Self> {
        let asked = options.port.filter(|port| *port != 0);
        if let Some(port) = asked {
            await_port(port)?;
        }
        let mut attempts = 3;
        loop {
            attempts -= 1;
            match Self::try_start(parts, options, asked) {
                // Another process can take a free port before the broker does.
                Err(Error::Port { port, .. }) if attempts > 0 && Some(port) != asked => {}
                result => return result,
            }
        }
    }

    fn try_start(parts: &Path, options: &LocalBrokerOptions, asked: Option<u16>) -> Result<Self> {
        let places = Places::prepare(parts, options.data.as_deref())?;
        let [free, controller] = ports::free().map_err(failed("finding a free port"))?;
        let port = asked.unwrap_or(free);
        let properties = places.links.path().join("server.properties");
        let new = !places.data().join("meta.properties").exists();
        let mut overrides = options.properties.clone();
        if new {
            // Not after a restart: a broker that ends timed-out transactions before it knows its topics again takes
            // them for deleted, and leaves those transactions open for ever (Kafka 4.3).
            overrides.insert(0, ("transaction.abort.timed.out.transaction.cleanup.interval.ms".into(), "1000".into()));
        }
        std::fs::write(&properties, server_properties(&places.data(), port, controller, &overrides))
            .map_err(failed("writing the broker's settings"))?;
        if new {
            format(&places, &properties)?;
        }
        let log_file = append_to(&places.log)?;
        let mut command = Command::new("sh");
        let _ = command.arg("-c").arg(GUARD).arg("sh").arg("java").args(places.jvm_arguments()).args(["kafka.Kafka"]);
        let _ = command
            .arg(&properties)
            .stdin(Stdio::piped())
            .stdout(log_file.try_clone().map_err(failed("opening the broker's log"))?)
            .stderr(log_file)
            .env("LC_ALL", LOCALE)
            .env("SWEEPSTREAM_BROKER_LINKS", places.links.path())
            .env("SWEEPSTREAM_BROKER_DATA", places.temporary.as_ref().map_or("".as_ref(), TempDir::path));
        // A Ctrl-C at the terminal is for us; we end the broker when we are done with it.
        detach_from_terminal(&mut command);
        let shell = command.spawn().map_err(failed("starting `sh`"))?;
        let broker = Self { shell, bootstrap_servers: format!("127.0.0.1:{port}"), places };
        broker.await_ready(port, controller)
    }

    fn await_ready(mut self, port: u16, controller: u16) -> Result<Self> {
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
                    return self.confirmed(port);
                }
            }
            let ended = self.shell.try_wait().ok().flatten();
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                let what = if ended.is_some() { "it ended early" } else { "it does not answer" };
                if ended.is_some() && tail(&self.places.log).contains("Address already in use") {
                    let taken = [port, controller].into_iter().find(|port| ports::bind(*port).is_err());
                    return Err(taken_port(taken.unwrap_or(controller)));
                }
                return Err(broken(what, &self.places.log));
            }
        }
    }

    /// Somebody else can have been quicker at the port, and answer there.
    fn confirmed(self, port: u16) -> Result<Self> {
        match ports::holder(port) {
            Some(holder) if u32::try_from(holder.group) != Ok(self.shell.id()) => Err(taken_port(port)),
            _ => Ok(self),
        }
    }

    /// `host:port` for clients.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The broker's log, kept after its end.
    pub fn log(&self) -> &Path {
        &self.places.log
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
        // The guard ends a JVM that hangs, but not if somebody has halted the guard as well.
        let group = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = group.map(|group| kill_process_group(group, Signal::CONT)) {
            tracing::debug!(%error, "waking the local broker to end it");
        }
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

/// What a broker reads and writes.
struct Places {
    /// Kept after the broker's end.
    log: PathBuf,
    /// Data that go when the broker ends.
    temporary: Option<TempDir>,
    /// Settings, and links with plain names to data and jars: Kafka cuts lists of paths at commas and the JVM cuts them
    /// at colons, and settings are read as ISO-8859-1.
    links: TempDir,
}

impl Places {
    fn prepare(parts: &Path, data: Option<&Path>) -> Result<Self> {
        let folder = log_folder(parts)?;
        remove_old_logs(&folder);
        let prefix = format!("{}-", std::process::id());
        let log = folder.join(format!("{prefix}{}.log", uuid::Uuid::new_v4().simple()));
        let temporary = match data {
            Some(_) => None,
            None => {
                let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(&folder);
                Some(made.map_err(failed(format!("creating a data folder in {}", folder.display())))?)
            }
        };
        let data = data.or(temporary.as_ref().map(TempDir::path)).unwrap_or(&folder);
        std::fs::create_dir_all(data).map_err(failed(format!("creating the data folder {}", data.display())))?;
        let links = plain_folder()?;
        for (name, folder) in [("data", data), ("kafka", &parts.join("kafka"))] {
            let linked = folder.canonicalize().and_then(|folder| {
                let link = links.path().join(name);
                std::os::unix::fs::symlink(folder, link)
            });
            linked.map_err(failed(format!("linking to {}", folder.display())))?;
        }
        Ok(Self { log, temporary, links })
    }

    /// The data folder, by a plain name.
    fn data(&self) -> PathBuf {
        self.links.path().join("data")
    }

    fn jvm_arguments(&self) -> Vec<std::ffi::OsString> {
        let classpath = self.links.path().join("kafka/*").into_os_string();
        // A quick start matters more here than peak speed: the first compiler tier only, and a small heap.
        let flags = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xms128m", "-Xmx512m", "-cp"];
        flags.iter().map(Into::into).chain([classpath]).collect()
    }
}

/// `brokers` in the parts folder, or in a temporary folder of this user where that cannot be written.
fn log_folder(parts: &Path) -> Result<PathBuf> {
    let beside = parts.join("brokers");
    let writable = std::fs::create_dir_all(&beside).and_then(|()| tempfile::tempfile_in(&beside));
    match writable {
        Ok(_) => Ok(beside),
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            let own = own_folder()?;
            tracing::warn!(%error, "{} cannot be written; the broker's log, and its data where no folder is given for \
                them, go to {}", beside.display(), own.display());
            Ok(own)
        }
        Err(error) => Err(failed(format!("writing to {}", beside.display()))(error)),
    }
}

/// A folder for temporary files that no other user can read or has made.
fn own_folder() -> Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let folder = std::env::temp_dir().join(format!("sweepstream-{user}"));
    let made = match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => std::fs::symlink_metadata(&folder),
    };
    let metadata = made.map_err(failed(format!("creating {}", folder.display())))?;
    if !metadata.is_dir() || metadata.uid() != user {
        let message = format!("{} is not this user's; set TMPDIR to a folder that is", folder.display());
        return Err(Error::Local { message });
    }
    Ok(folder)
}

/// A temporary folder whose path no program misreads.
fn plain_folder() -> Result<TempDir> {
    let plain = |folder: &PathBuf| {
        folder.is_absolute()
            && folder
                .as_os_str()
                .as_encoded_bytes()
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(byte))
    };
    let folders = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into(), "/dev/shm".into()];
    let mut refusal = None;
    for folder in folders.into_iter().filter(plain) {
        match tempfile::Builder::new().prefix("sweepstream-broker-").tempdir_in(&folder) {
            Ok(made) => return Ok(made),
            Err(error) => refusal = Some(error),
        }
    }
    let refusal = refusal.unwrap_or_else(|| ErrorKind::NotFound.into());
    Err(failed("creating a temporary folder; set TMPDIR to one with a plain name that can be written")(refusal))
}

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |error| Error::Local { message: format!("{what}: {error}") }
}

/// Waits a moment for a port that was asked for.
fn await_port(port: u16) -> Result<()> {
    let started = Instant::now();
    loop {
        match ports::bind(port) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() != ErrorKind::AddrInUse => {
                return Err(Error::Port { port, cause: format!("cannot be had: {error}") });
            }
            Err(_) if started.elapsed() > PORT_TIMEOUT => return Err(taken_port(port)),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn taken_port(port: u16) -> Error {
    let cause = match ports::holder(port) {
        Some(holder) => format!("is taken by {holder}"),
        None => "is taken, by a process that cannot be seen from here".into(),
    };
    Error::Port { port, cause }
}

fn format(places: &Places, properties: &Path) -> Result<()> {
    let log_file = append_to(&places.log)?;
    let stderr = log_file.try_clone().map_err(failed("opening the broker's log"))?;
    let status = Command::new("java")
        .args(places.jvm_arguments())
        .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
        .arg(properties)
        .env("LC_ALL", LOCALE)
        .stdin(Stdio::null())
        .stdout(log_file)
        .stderr(stderr)
        .status()
        .map_err(|error| Error::Local {
            message: format!(
                "running `java`: {error}; Java 17 or newer is needed (Debian: `apt-get install \
                openjdk-17-jre-headless`)"
            ),
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(broken("formatting the data folder failed", &places.log))
    }
}

/// A JVM that has failed, with its last words; without descriptors these may be anything.
fn broken(what: &str, log: &Path) -> Error {
    let few = descriptors::few("a broker takes", DESCRIPTORS).map_or_else(String::new, |few| format!("{few}; "));
    Error::Local { message: format!("{what}; {few}log {}:\n{}", log.display(), tail(log)) }
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

fn append_to(path: &Path) -> Result<std::fs::File> {
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(failed(format!("opening {}", path.display())))
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
