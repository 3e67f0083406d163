//! Connections to the HTTP endpoint that cost something and ask nothing.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{prlimit, Pid, Resource, Rlimit};
use sweepstream::kafka::descriptors::raise;

use crate::descriptors::limited;
use crate::support::{command, eventually, get, settings, try_get, Process, PATIENCE};

fn start(name: &str) -> (Process, String) {
    let process = Process::start(&settings(name), &["run", "--stage=train", "-s", "http.address=127.0.0.1:0"]);
    let address = process.http_address();
    (process, address)
}

fn stop(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asks, and reads the whole answer of a connection that stays open.
fn ask(stream: &mut TcpStream) -> String {
    write!(stream, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"\r\n\r\nlive\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap()
}

/// Writes again and again, until the other side has closed.
fn write_until_closed(mut stream: TcpStream, text: &[u8], pause: Duration) {
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match stream.write(text) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
                return;
            }
        }
        assert!(Instant::now() < deadline, "it is kept for ever");
        std::thread::sleep(pause);
    }
}

#[test]
fn who_sends_nothing_or_too_slowly_or_never_reads_is_let_go() {
    let (process, address) = start("http-slow");
    std::thread::scope(|scope| {
        let silent = || {
            let mut answer = Vec::new();
            let _ = connect(&address).read_to_end(&mut answer).unwrap();
            assert_eq!(answer, b"");
        };
        let idle = || {
            let mut stream = connect(&address);
            let _ = ask(&mut stream);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        };
        let _ = scope.spawn(silent);
        let _ = scope.spawn(idle);
        let _ = scope.spawn(|| write_until_closed(connect(&address), b"G", Duration::from_millis(100)));
        // As many requests as fit, whose answers nobody reads.
        let requests = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
        write_until_closed(connect(&address), requests.as_bytes(), Duration::ZERO);
    });
    stop(process);
}

#[test]
fn a_thousand_connections_keep_nobody_from_health_nor_a_scraper_from_its_connection() {
    raise();
    let (process, address) = start("http-many");
    let mut scraper = connect(&address);
    assert!(ask(&mut scraper).starts_with("HTTP/1.1 200"));
    let connections: Vec<TcpStream> = (0..1_000)
        .map(|number| {
            let mut stream = connect(&address);
            if number % 2 == 0 {
                // May have been closed already.
                drop(stream.write(b"G"));
            }
            stream
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(get(&address, "/health/live").0, 200);
    }
    assert!(ask(&mut scraper).starts_with("HTTP/1.1 200"));
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", process.child.id())).unwrap().count();
    eventually("few are held", || descriptors() < 400);
    drop(connections);
    stop(process);
}

#[test]
fn health_is_served_when_connections_take_all_descriptors() {
    let settings = settings("http-few");
    let run = command(&settings, &["run", "--stage=train", "-s", "http.address=127.0.0.1:0"]);
    let process = Process::spawn(limited(&run, 100));
    let address = process.http_address();
    eventually("it is ready", || try_get(&address, "/health/ready").is_ok_and(|(code, _)| code == 200));
    let connections: Vec<TcpStream> = (0..200).map(|_| connect(&address)).collect();
    for _ in 0..10 {
        assert_eq!(get(&address, "/health/ready").0, 200);
    }
    drop(connections);
    stop(process);
}

#[test]
fn who_takes_the_last_descriptor_is_answered() {
    let (process, address) = start("http-last");
    eventually("it is ready", || get(&address, "/health/ready").0 == 200);
    let id = process.child.id();
    let taken = || -> BTreeSet<u64> {
        let entries = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    };
    let mut before = BTreeSet::new();
    eventually("descriptors neither come nor go", || {
        let now = taken();
        std::mem::replace(&mut before, now.clone()) == now
    });
    // A limit is one of numbers: below it, a single one is free.
    let mut free = (0..).filter(|number| !before.contains(number));
    let (last, limit) = (free.next().unwrap(), free.next());
    let limit = Rlimit { current: limit, maximum: limit };
    let _ = prlimit(Pid::from_raw(id.cast_signed()), Resource::Nofile, limit).unwrap();
    let mut stream = connect(&address);
    eventually("it is accepted", || taken().contains(&last));
    for _ in 0..10 {
        assert!(ask(&mut stream).starts_with("HTTP/1.1 200"));
    }
    stop(process);
}
