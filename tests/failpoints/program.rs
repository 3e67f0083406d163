//! This binary as the program, and the plans it can be started with.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sweepstream::cli;
use sweepstream::config::Settings;

use crate::support::{self, eventually, Process};

/// Environment variable with the plan: `point=action` pairs, joined by `;`.
///
/// Actions are those of the crate `fail`, and
/// - `die@N`: end at the Nth passing, as SIGKILL does
/// - `freeze@N`: stop the whole process at the Nth passing, until SIGCONT
/// - `hold@FILE`: keep the thread until the file is there
/// - `numb@FILE`: the same, once the process has been frozen
/// - `tell`: write a line at each passing
pub const PLAN: &str = "SWEEPSTREAM_TEST_PLAN";

/// Arms the plan's points and is the program.
pub fn run(plan: &str) -> ExitCode {
    // Settings refuse what they do not know.
    std::env::remove_var(PLAN);
    plan.split(';').filter(|step| !step.is_empty()).for_each(arm);
    cli::main()
}

fn arm(step: &str) {
    let (point, action) = step.split_once('=').expect("point=action");
    let name = point.to_owned();
    match action.split_once('@') {
        Some(("die", pass)) => at(point, pass, move || {
            eprintln!("dies at {name}");
            std::process::abort();
        }),
        Some(("freeze", pass)) => at(point, pass, move || {
            eprintln!("freezes at {name}");
            FROZEN.store(true, Ordering::Release);
            let pid = std::process::id().to_string();
            assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
        }),
        Some(("hold", file)) => {
            let file = PathBuf::from(file);
            let callback = move || {
                eprintln!("holds at {name}");
                await_file(&file);
            };
            fail::cfg_callback(point, callback).unwrap();
        }
        Some(("numb", file)) => {
            let file = PathBuf::from(file);
            let callback = move || {
                if FROZEN.load(Ordering::Acquire) {
                    await_file(&file);
                }
            };
            fail::cfg_callback(point, callback).unwrap();
        }
        _ if action == "tell" => fail::cfg_callback(point, move || eprintln!("passes {name}")).unwrap(),
        _ => fail::cfg(point, action).unwrap(),
    }
}

static FROZEN: AtomicBool = AtomicBool::new(false);

fn await_file(file: &Path) {
    while !file.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Does something at the nth passing of a point.
fn at(point: &str, pass: &str, action: impl Fn() + Send + Sync + 'static) {
    let (pass, passed): (usize, _) = (pass.parse().unwrap(), AtomicUsize::new(0));
    let callback = move || {
        if passed.fetch_add(1, Ordering::AcqRel) + 1 == pass {
            action();
        }
    };
    fail::cfg_callback(point, callback).unwrap();
}

/// Starts this binary as the program.
pub fn start(settings: &Settings, plan: &str, arguments: &[&str]) -> Process {
    let template = support::command(settings, arguments);
    let mut command = Command::new(std::env::current_exe().unwrap());
    let (kafka, run, train) = (&settings.kafka, &settings.run, &settings.train);
    let millis = |duration: Duration| format!("{}ms", duration.as_millis());
    let _ = command
        .args(template.get_args())
        .envs(template.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .env(PLAN, plan)
        .env("SWEEPSTREAM_HTTP__ADDRESS", "127.0.0.1:0")
        .env("SWEEPSTREAM_KAFKA__GROUP_PROTOCOL", format!("{:?}", kafka.group_protocol).to_lowercase())
        .env("SWEEPSTREAM_KAFKA__SESSION_TIMEOUT", millis(kafka.session_timeout))
        .env("SWEEPSTREAM_KAFKA__TRANSACTION_TIMEOUT", millis(kafka.transaction_timeout))
        .env("SWEEPSTREAM_RUN__DRAIN_TIMEOUT", millis(run.drain_timeout))
        .env("SWEEPSTREAM_RUN__REBUILDS_MAX", run.rebuilds_max.to_string())
        .env("SWEEPSTREAM_EMBED__SESSIONS", "1")
        .env("SWEEPSTREAM_EMBED__CHUNK_TEXTS", settings.embed.chunk_texts.to_string())
        .env("SWEEPSTREAM_TRAIN__CHECKPOINT_INTERVAL", millis(train.checkpoint_interval))
        .envs(train.parallel.map(|trials| ("SWEEPSTREAM_TRAIN__PARALLEL", trials.to_string())));
    Process::spawn(command)
}

/// Sends SIGTERM and checks that the process ends in order.
#[track_caller]
pub fn stop(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
}

/// Waits until the process has died where its plan says.
#[track_caller]
pub fn await_death(process: &mut Process, point: &str) {
    let status = process.wait();
    let log = process.stderr();
    assert!(status.code().is_none() && log.contains(&format!("dies at {point}")), "{status}: {log}");
}

/// Waits until the process has frozen where its plan says.
#[track_caller]
pub fn await_freeze(process: &Process, point: &str) {
    let _ = process.await_line(&format!("freezes at {point}"));
    let pid = process.child.id().to_string();
    eventually("the process is stopped", || {
        let state = Command::new("ps").args(["-o", "stat=", "-p", &pid]).output().unwrap().stdout;
        state.first() == Some(&b'T')
    });
}
