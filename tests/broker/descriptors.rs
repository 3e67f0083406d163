//! File descriptors that run out.

use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::support::{command, create_topics, eventually, finish, get, parts, settings, try_get, Process};

/// A command that may have only so many file descriptors, and cannot raise that.
pub fn limited(command: &Command, limit: u32) -> Command {
    ulimit(command, &format!("ulimit -n {limit}"))
}

fn ulimit(command: &Command, ulimit: &str) -> Command {
    let mut shell = Command::new("bash");
    let _ = shell.args(["-c", &format!("{ulimit} && exec \"$@\""), "bash"]);
    let _ = shell.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    let _ = shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let settings = settings("soft");
    let run = command(&settings, &["run", "--stage=train", "-s", "http.address=127.0.0.1:0"]);
    let process = Process::spawn(ulimit(&run, "ulimit -S -n 80"));
    let address = process.http_address();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.child.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let limits: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(limits[0], limits[1]);
    assert_ne!(limits[0], "80");
    eventually("it is ready", || get(&address, "/health/ready").0 == 200);
}

#[test]
fn a_run_with_few_warns_at_its_start_and_says_that_they_have_run_out() {
    let settings = settings("few");
    let run = command(&settings, &["run", "--stage=train", "-s", "http.address=127.0.0.1:0"]);
    let process = Process::spawn(limited(&run, 100));
    let warning = process.await_line("this process may have 100 file descriptors");
    assert!(warning.contains("ulimit -n"), "{warning}");
    let address = process.http_address();
    // A start among busy processes can take all of them for a while.
    eventually("it is ready", || try_get(&address, "/health/ready").is_ok_and(|(code, _)| code == 200));
    // As connections to more brokers, or more trials, would.
    let connections: Vec<TcpStream> = (0..80).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let _ = process.await_line("no file descriptor is left of 100");
    drop(connections);
}

#[test]
fn a_stage_that_gets_no_connection_says_why() {
    let settings = settings("fewer");
    create_topics(&settings);
    let run = command(&settings, &["run", "--stage=train", "-s", "http.address=127.0.0.1:0"]);
    let process = Process::spawn(limited(&run, 26));
    let said = process.await_line("no file descriptor is left of 26");
    assert!(said.contains("ulimit -n"), "{said}");
}

#[test]
fn commands_with_too_few_end_at_once_with_the_limit() {
    let settings = settings("fewest");
    create_topics(&settings);
    for arguments in [
        &["search", "list"] as &[&str],
        &["search", "show", "x"],
        &["search", "wait", "x"],
        &["trials", "list"],
        &["checkpoint", "export", "x-00", "x"],
        &["plot", "x", "x.svg"],
        &["topics", "verify"],
        &["produce", "/dev/null"],
    ] {
        let finished = finish(limited(&command(&settings, arguments), 16));
        assert_eq!((finished.code, finished.stdout.as_str()), (78, ""), "{arguments:?}: {}", finished.stderr);
        assert!(finished.stderr.contains("no file descriptor is left of 16; raise"), "{}", finished.stderr);
    }
}

#[test]
fn a_broker_with_too_few_says_so() {
    let mut broker = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    let _ = broker.arg("broker").env("SWEEPSTREAM_PARTS", parts().folder.canonicalize().unwrap());
    let _ = broker.current_dir(std::env::temp_dir());
    let finished = finish(limited(&broker, 60));
    assert_eq!((finished.code, finished.stdout.as_str()), (1, ""), "{}", finished.stderr);
    assert!(finished.stderr.contains("ulimit -n"), "{}", finished.stderr);
}
