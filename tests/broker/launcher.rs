//! The local broker as its users start it: its port, its folders, its end.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sweepstream::kafka::ports;

use crate::away::Broker;
use crate::support::{self, create_topics, eventually, finish, parts, produce, read, Out, Process};

/// A folder that lets everyone in.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// A parts folder below another, with Kafka's jars linked.
fn linked_parts(folder: &Path) -> PathBuf {
    let made = folder.join("parts");
    std::fs::create_dir_all(&made).unwrap();
    symlink(parts().kafka().unwrap().canonicalize().unwrap().join("kafka"), made.join("kafka")).unwrap();
    made
}

/// `sweepstream broker` in a folder of its own, with that folder for temporary files.
fn broker(temporary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    let _ = command.arg("broker").args(arguments).stdin(Stdio::null()).current_dir(temporary).env("TMPDIR", temporary);
    let _ = command.env("SWEEPSTREAM_PARTS", parts().folder.canonicalize().unwrap());
    command
}

/// A command that may not write where permissions forbid it, whoever runs the tests.
fn without_privileges(command: &Command) -> Command {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut bare = Command::new(if root { "setpriv" } else { "env" });
    let _ =
        bare.args(root.then_some("--bounding-set=-dac_override")).arg(command.get_program()).args(command.get_args());
    let _ = bare.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    let _ = bare.current_dir(command.get_current_dir().unwrap());
    bare
}

/// The address that a broker prints, once it answers.
fn address(process: &Process) -> String {
    process.await_line("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS=").split_once('=').unwrap().1.to_owned()
}

fn works(address: &str, name: &str) {
    let mut settings = support::settings(name);
    settings.kafka.bootstrap_servers = address.to_owned();
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &[Out::text("k", "text")]);
    assert_eq!(read(&settings, &settings.topics.texts).len(), 1);
}

fn stop(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn a_broker_that_was_halted_does_not_hold_up_who_is_done_with_it() {
    let broker = Broker::start();
    broker.signal("STOP");
    let port = broker.port();
    drop(broker);
    // Only its shell has been waited for.
    eventually("it has ended", || ports::bind(port).is_ok());
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_its_holder_and_nothing_else() {
    let folder = open_folder();
    let [port] = ports::free().unwrap();
    let _listener = ports::bind(port).unwrap();
    let finished = finish(broker(folder.path(), &["--port", &port.to_string()]));
    assert_eq!((finished.code, finished.stdout.as_str()), (78, ""), "{}", finished.stderr);
    let us = format!("process {} (", std::process::id());
    assert!(finished.stderr.contains(&port.to_string()) && finished.stderr.contains(&us), "{}", finished.stderr);
    assert!(!finished.stderr.contains("Kafka answers"), "{}", finished.stderr);
}

#[test]
fn port_0_is_a_free_one_outside_of_those_for_outgoing_connections() {
    let folder = open_folder();
    let process = Process::spawn(broker(folder.path(), &["--port", "0"]));
    let address = address(&process);
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let range: Vec<u16> = range.split_whitespace().map(|bound| bound.parse().unwrap()).collect();
    assert!(port != 0 && !(range[0]..=range[1]).contains(&port), "{port} is in {range:?}");
    works(&address, "port-0");
    stop(process);
}

#[test]
fn folders_may_have_any_name() {
    let folder = open_folder();
    let temporary = folder.path().join("temporary");
    let odd = folder.path().join("a,b: c\\d%#é=$HOME");
    let jars = parts().kafka().unwrap().join("kafka");
    std::fs::create_dir_all(odd.join("kafka")).unwrap();
    std::fs::create_dir(&temporary).unwrap();
    for jar in std::fs::read_dir(jars).unwrap() {
        let jar = jar.unwrap();
        let _ = std::fs::copy(jar.path(), odd.join("kafka").join(jar.file_name())).unwrap();
    }
    // Not even text.
    let data = odd.join(OsStr::from_bytes(b"caf\xe9"));
    for name in ["odd-first", "odd-second"] {
        let mut command = broker(&temporary, &["--data"]);
        let _ = command.arg(&data).env("SWEEPSTREAM_PARTS", &odd).env("LC_ALL", "C");
        let process = Process::spawn(command);
        works(&address(&process), name);
        stop(process);
    }
    let kept = |name: &str| names(&data).iter().any(|kept| kept.to_string_lossy().starts_with(name));
    assert!(kept("odd-first") && kept("odd-second") && kept("meta.properties"), "{:?}", names(&data));
    assert_eq!(names(&temporary), [] as [&str; 0]);
}

#[test]
fn what_is_temporary_goes_with_a_broker_that_is_killed() {
    let folder = open_folder();
    let parts = linked_parts(folder.path());
    let temporary = folder.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = broker(&temporary, &[]);
    let _ = command.env("SWEEPSTREAM_PARTS", &parts);
    let mut process = Process::spawn(command);
    let _ = address(&process);
    assert!(!names(&temporary).is_empty() && names(&parts.join("brokers")).len() == 2);
    process.signal("KILL");
    let _ = process.wait();
    eventually("only the log is left", || names(&temporary).is_empty() && names(&parts.join("brokers")).len() == 1);
}

#[test]
fn parts_that_cannot_be_written_send_log_and_data_elsewhere() {
    let folder = open_folder();
    let parts = linked_parts(folder.path());
    std::fs::set_permissions(&parts, PermissionsExt::from_mode(0o555)).unwrap();
    let temporary = folder.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = broker(&temporary, &[]);
    let _ = command.env("SWEEPSTREAM_PARTS", &parts);
    let process = Process::spawn(without_privileges(&command));
    works(&address(&process), "read-only");
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    let elsewhere = temporary.join(format!("sweepstream-{user}"));
    let _ = process.await_line(&format!("go to {}", elsewhere.display()));
    let _ = process.await_line(&format!("its log is {}", elsewhere.display()));
    assert_eq!(std::fs::metadata(&elsewhere).unwrap().mode() & 0o777, 0o700);
    stop(process);
    assert_eq!(names(&elsewhere).len(), 1, "only the log is left");
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() {
    let folder = open_folder();
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o555)).unwrap();
    let data = closed.join("data");
    let command = broker(folder.path(), &["--data", data.to_str().unwrap()]);
    let finished = finish(without_privileges(&command));
    assert_eq!((finished.code, finished.stdout.as_str()), (1, ""), "{}", finished.stderr);
    assert!(finished.stderr.contains(data.to_str().unwrap()), "{}", finished.stderr);
}

#[test]
fn a_demo_whose_folder_cannot_be_written_ends_before_its_kafka_starts() {
    let folder = open_folder();
    let parts = linked_parts(folder.path());
    std::fs::create_dir_all(parts.join("corpora/brown")).unwrap();
    let here = folder.path().join("here");
    std::fs::create_dir(&here).unwrap();
    std::fs::set_permissions(&here, PermissionsExt::from_mode(0o555)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    let _ = command.arg("demo").current_dir(&here).env("SWEEPSTREAM_PARTS", &parts);
    let finished = finish(without_privileges(&command));
    assert_eq!((finished.code, finished.stdout.as_str()), (1, ""), "{}", finished.stderr);
    let named = here.join("sweepstream-demo");
    assert!(finished.stderr.contains(named.to_str().unwrap()), "{}", finished.stderr);
    assert!(!finished.stderr.contains("Kafka runs"), "{}", finished.stderr);
}

#[test]
fn two_signals_at_once_end_a_broker_in_order() {
    let folder = open_folder();
    let mut process = Process::spawn(broker(folder.path(), &[]));
    let _ = address(&process);
    process.signals(&["TERM", "INT"]);
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
}
