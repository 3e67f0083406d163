//! A Kafka and the program's processes, started again when they end, as an orchestrator would.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use sweepstream::config::{GroupProtocol, Settings};
use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::kafka::ports;

use crate::schedule::Target;
use crate::support::{self, Process};

/// Anything that takes longer than this hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(3);
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(4);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);
/// How long a process may take from SIGTERM to its end: it drains, gives up what waits for a broker, and leaves.
const STOP_TIMEOUT: Duration = Duration::from_secs(6 + 15);

/// The broker takes dead processes for dead as soon as it may.
const PROPERTIES: [(&str, &str); 6] = [
    ("group.min.session.timeout.ms", "1000"),
    ("group.consumer.min.session.timeout.ms", "1000"),
    ("group.consumer.session.timeout.ms", "3000"),
    ("group.consumer.min.heartbeat.interval.ms", "300"),
    ("group.consumer.heartbeat.interval.ms", "500"),
    ("broker.heartbeat.interval.ms", "500"),
];

/// The one that the local broker is formatted with.
const CLUSTER_ID: &str = "sweepstream-local-AAAA";

/// A broker that can be killed and comes back with its data, and the controller that it has registered with.
///
/// The controller is a process of its own and is left alone. A broker that is its own controller finds itself leading
/// as before when it starts after SIGKILL, loads the transactions that were being committed, is registered anew, has no
/// leaderships for a moment, and takes the partitions that lack a marker for deleted ones: such a transaction, which it
/// had promised to commit, stays open for ever.
pub struct Broker {
    running: Option<LocalBroker>,
    options: LocalBrokerOptions,
    parts: PathBuf,
    /// How long it sleeps when it is paused.
    pub pause: Duration,
    // Dropped last: the broker cannot stop in order without it.
    controller: Controller,
}

impl Broker {
    pub fn start(folder: &Path, pause: Duration) -> Result<Self> {
        let parts = support::parts().kafka().context("Kafka's jars")?.to_path_buf();
        // A pause must not cost it its leaderships.
        let session_timeout = pause + Duration::from_secs(3);
        let [port, controller_port] = ports::free().context("free ports")?;
        let controller = Controller::start(folder, &parts, controller_port, session_timeout)?;
        let mut properties = PROPERTIES.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        properties.extend([
            ("process.roles".into(), "broker".into()),
            ("listeners".into(), format!("PLAINTEXT://127.0.0.1:{port}")),
            ("controller.quorum.voters".into(), controller.voter.clone()),
        ]);
        let options = LocalBrokerOptions { data: Some(folder.join("kafka")), port: Some(port), properties };
        let mut broker = Self { running: None, options, parts, pause, controller };
        broker.restart()?;
        Ok(broker)
    }

    pub fn settings(&self) -> Settings {
        self.running.as_ref().map(LocalBroker::settings).unwrap_or_default()
    }

    /// Starts it on the port and data that it had.
    pub fn restart(&mut self) -> Result<()> {
        self.running = Some(LocalBroker::start(&self.parts, &self.options)?);
        Ok(())
    }

    /// SIGKILL, and the controller has noticed.
    pub fn kill(&mut self) -> Result<()> {
        let fenced = self.controller.fenced();
        self.signal("KILL")?;
        let Some(mut broker) = self.running.take() else { return Ok(()) };
        let started = Instant::now();
        while !broker.ended()? {
            ensure!(started.elapsed() < PATIENCE, "the broker does not die");
            std::thread::sleep(Duration::from_millis(10));
        }
        let started = Instant::now();
        while self.controller.fenced() == fenced {
            ensure!(started.elapsed() < PATIENCE, "the controller does not notice that the broker is dead");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends it as an operator would.
    pub fn stop(&mut self) {
        if let Some(broker) = self.running.take() {
            broker.stop();
        }
    }

    /// Sends a signal to the JVM, the child of the shell that guards it.
    pub fn signal(&self, name: &str) -> Result<()> {
        let shell = self.running.as_ref().context("no broker is running")?.id();
        let jvm = child_of(shell, "java").context("the broker has no JVM")?;
        signal(jvm, name)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.running.is_some() {
            // A JVM that sleeps is killed all the same, but not by its guard in order.
            drop(self.signal("CONT"));
        }
    }
}

/// A controller, which ends with this process.
struct Controller {
    shell: Child,
    log: PathBuf,
    /// As brokers are told where it is.
    voter: String,
}

impl Controller {
    fn start(folder: &Path, parts: &Path, port: u16, session_timeout: Duration) -> Result<Self> {
        let voter = format!("2@127.0.0.1:{port}");
        let properties = folder.join("controller.properties");
        let settings = [
            "process.roles=controller".into(),
            "node.id=2".into(),
            "controller.listener.names=CONTROLLER".into(),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".into(),
            format!("listeners=CONTROLLER://127.0.0.1:{port}"),
            format!("controller.quorum.voters={voter}"),
            format!("log.dirs={}", folder.join("controller").display()),
            format!("broker.session.timeout.ms={}", session_timeout.as_millis()),
        ];
        std::fs::write(&properties, settings.join("\n"))?;
        let path = folder.join("controller.log");
        let log = File::create(&path)?;
        let java =
            "java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -Xmx256m -Dorg.apache.logging.log4j.level=INFO";
        let script = format!(
            "{java} kafka.tools.StorageTool format -t {CLUSTER_ID} -c $0 || exit 1\n\
             {java} kafka.Kafka $0 </dev/null &\n\
             read -r _\n\
             kill -KILL $!"
        );
        let mut command = Command::new("sh");
        let _ = command
            .args(["-c", &script])
            .arg(&properties)
            .env("CLASSPATH", parts.join("kafka").join("*"))
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        Ok(Self { shell: command.spawn()?, log: path, voter })
    }

    /// How often it has taken the broker's leaderships away.
    fn fenced(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().matches("fenced=1,").count()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        drop(self.shell.wait());
    }
}

/// The child of a process that runs this command.
fn child_of(parent: u32, command: &str) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.into_iter().find(|process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // pid (command) state parent …
        let Some((name, rest)) = stat.rsplit_once(") ") else { return false };
        name.ends_with(&format!("({command}")) && rest.split(' ').nth(1) == Some(&parent.to_string())
    })
}

fn signal(process: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status()?;
    ensure!(status.success(), "SIG{name} to process {process} failed");
    Ok(())
}

/// A process and its log.
pub struct Life {
    process: Process,
    pub log: PathBuf,
}

impl Life {
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.process.child.id(), name)
    }

    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.process.child.try_wait()?)
    }

    /// SIGKILL, and what it left as its status if it had ended already.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.child.kill()?;
        Ok(self.process.child.wait()?)
    }

    /// Waits for the end that SIGTERM asked for.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            // A machine that has too much else to do makes anything late.
            let bound = if support::is_busy() { PATIENCE } else { STOP_TIMEOUT };
            ensure!(
                started.elapsed() < bound,
                "a process hangs: not ended {bound:?} after SIGTERM; log {}",
                self.log.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Bytes of log so far.
    pub fn logged(&self) -> usize {
        std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len() as usize)
    }

    /// Has its group given it partitions, after so many bytes of log?
    pub fn has_joined(&self, since: usize) -> bool {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(log.get(since..).unwrap_or_default()).into_owned();
        log.lines().any(|line| line.contains(" assigned ") && !line.ends_with("owned=0"))
    }
}

/// The processes of one stage: one that is always there, and sometimes a second.
pub struct Workers {
    pub target: Target,
    pub settings: Settings,
    pub first: Option<Life>,
    pub second: Option<Life>,
    /// Processes started from now on have a name in their group.
    pub named: bool,
    /// Exit code → processes that ended by themselves.
    pub gave_up: BTreeMap<i32, u32>,
    folder: PathBuf,
    lives: usize,
}

impl Workers {
    pub fn new(target: Target, settings: &Settings, folder: &Path) -> Self {
        Self {
            target,
            settings: settings.clone(),
            first: None,
            second: None,
            named: false,
            gave_up: BTreeMap::new(),
            folder: folder.to_path_buf(),
            lives: 0,
        }
    }

    fn spawn(&mut self, name: &str) -> Result<Life> {
        self.lives += 1;
        let log =
            self.folder.join(format!("{}-{}-{:03}.log", self.settings.application_id, self.target.name(), self.lives));
        let mut command = support::command(&self.settings, &["run", "--stage", self.target.name()]);
        let _ = command.args(flags(&self.settings));
        if self.named && self.settings.kafka.group_protocol == GroupProtocol::Classic {
            let _ = command.arg("-s").arg(format!("kafka.group_instance_id={name}"));
        }
        Ok(Life { process: Process::logged(command, &log), log })
    }

    pub fn start(&mut self) -> Result<()> {
        let life = self.spawn("first")?;
        self.first = Some(life);
        Ok(())
    }

    pub fn start_second(&mut self) -> Result<()> {
        let life = self.spawn("second")?;
        self.second = Some(life);
        Ok(())
    }

    pub fn first(&mut self) -> Result<&mut Life> {
        self.first.as_mut().context("no process")
    }

    /// Sends SIGTERM to the first process and waits for it.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut life) = self.first.take() else { return Ok(()) };
        self.end(&mut life)
    }

    /// Sends SIGTERM to the second process and waits for it.
    pub fn stop_second(&mut self) -> Result<()> {
        let Some(mut life) = self.second.take() else { return Ok(()) };
        self.end(&mut life)
    }

    fn end(&mut self, life: &mut Life) -> Result<()> {
        if life.ended()?.is_none() {
            life.signal("TERM")?;
        }
        let status = life.wait()?;
        self.account(status, &life.log)
    }

    /// Starts anew what has ended by itself because it could not reach Kafka.
    pub fn tend(&mut self) -> Result<()> {
        if let Some((status, log)) = ended(&mut self.first)? {
            self.account(status, &log)?;
            self.start()?;
        }
        if let Some((status, log)) = ended(&mut self.second)? {
            self.account(status, &log)?;
            self.start_second()?;
        }
        Ok(())
    }

    /// 69 and 70 say that Kafka was away for too long; any other end but an orderly one is a failure.
    pub fn account(&mut self, status: ExitStatus, log: &Path) -> Result<()> {
        match status.code() {
            Some(0) => {}
            Some(code @ (69 | 70)) => *self.gave_up.entry(code).or_default() += 1,
            _ => bail!("a process ended with {status}; log {}:\n{}", log.display(), tail(log)),
        }
        Ok(())
    }

    /// Waits for a condition, and meanwhile keeps the processes running.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) -> Result<()> {
        let started = Instant::now();
        while !condition(self) {
            self.tend()?;
            ensure!(started.elapsed() < PATIENCE, "{}: {what}: not within {PATIENCE:?}", self.target.name());
            std::thread::sleep(Duration::from_millis(15));
        }
        Ok(())
    }
}

fn ended(life: &mut Option<Life>) -> Result<Option<(ExitStatus, PathBuf)>> {
    let Some(running) = life else { return Ok(None) };
    let Some(status) = running.ended()? else { return Ok(None) };
    let log = running.log.clone();
    *life = None;
    Ok(Some((status, log)))
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Settings that are not in the environment of every test process.
fn flags(settings: &Settings) -> Vec<String> {
    let Settings { kafka, embed, train, run, .. } = settings;
    let millis = |duration: Duration| format!("{}ms", duration.as_millis());
    let mut flags = vec![
        ("http.address", "127.0.0.1:0".into()),
        ("kafka.group_protocol", kafka.group_protocol.to_string()),
        ("kafka.session_timeout", millis(kafka.session_timeout)),
        ("kafka.transaction_timeout", millis(kafka.transaction_timeout)),
        ("run.drain_timeout", millis(run.drain_timeout)),
        ("embed.chunk_texts", embed.chunk_texts.to_string()),
        ("train.checkpoint_interval", millis(train.checkpoint_interval)),
    ];
    flags.extend(train.parallel.map(|trials| ("train.parallel", trials.to_string())));
    flags.extend(embed.sessions.map(|sessions| ("embed.sessions", sessions.to_string())));
    flags.extend(embed.threads.map(|threads| ("embed.threads", threads.to_string())));
    flags.into_iter().flat_map(|(key, value)| ["-s".to_owned(), format!("{key}={value}")]).collect()
}

/// Settings of an application on this broker: names of its own, and everything quick.
pub fn settings(broker: &Broker, name: &str, protocol: GroupProtocol, declarations: &Path) -> Settings {
    let mut settings = broker.settings();
    settings.application_id = name.to_owned();
    settings.topics.dir = Some(declarations.to_path_buf());
    settings.topics.texts = format!("{name}-texts");
    settings.topics.features = format!("{name}-features");
    settings.topics.dead_letters = format!("{name}-dead-letters");
    settings.topics.trials = format!("{name}-trials");
    settings.topics.output = format!("{name}-output");
    settings.kafka.group_protocol = protocol;
    settings.kafka.session_timeout = SESSION_TIMEOUT;
    settings.kafka.transaction_timeout = TRANSACTION_TIMEOUT;
    settings.run.drain_timeout = DRAIN_TIMEOUT;
    settings.train.parallel = std::num::NonZeroUsize::new(2);
    settings.train.checkpoint_interval = Duration::from_millis(50);
    settings
}
