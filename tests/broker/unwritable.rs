//! Standard error or standard output that cannot be written to. What is asked for is done all the same; only results
//! that reach nobody are an error.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::process::{Command, Output, Stdio};

use sweepstream::train::run::pool::TRAIN;

use crate::lab::Lab;
use crate::support::{
    assert_one_verdict_each, command, eventually, eventually_after, get, produce, read, run, sentences, sweepstream,
    Out,
};

const SEARCH: &str = "name = \"u\"\nmodel = \"mlp\"\nhidden = 4\nepochs = 2\nbatch_size = 8\nvalidation = 5\n";

/// How a stream cannot be written to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bad {
    FullDisk,
    Closed,
    ReaderGone,
}

impl Bad {
    const ALL: [Self; 3] = [Self::FullDisk, Self::Closed, Self::ReaderGone];

    /// The same command with such a standard error, standard output piped.
    fn stderr(self, plain: &Command) -> Command {
        let redirected = match self {
            Self::FullDisk => "exec \"$0\" \"$@\" 2>/dev/full",
            Self::Closed => "exec \"$0\" \"$@\" 2>&-",
            Self::ReaderGone => "exec \"$0\" \"$@\"",
        };
        let mut shell = Command::new("sh");
        let _ = shell.args(["-c", redirected]).arg(plain.get_program()).args(plain.get_args());
        let _ = shell.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let _ = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(gone());
        shell
    }
}

/// A pipe whose reader has ended.
fn gone() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_disk() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// A loopback address that nobody else listens at.
fn own_address() -> String {
    let [a, b, c, ..] = *uuid::Uuid::new_v4().as_bytes();
    format!("127.{}.{}.{}:9464", 1 + a % 250, b, 1 + c % 250)
}

/// A process with both stages embeds and trains as one with a good standard error does.
fn embeds_and_trains(bad: Bad) {
    let lab = Lab::new("unwritable", 2);
    let address = own_address();
    let arguments = ["run", "-s", &format!("http.address={address}"), "-s", "log.level=debug"];
    let mut child = bad.stderr(&command(&lab.settings, &arguments)).spawn().unwrap();
    let mut texts = sentences(30);
    texts.push(Out { key: Some(b"null".to_vec()), ..Out::default() });
    produce(&lab.settings, &lab.settings.topics.texts, &texts);
    eventually("texts are embedded", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        read(&lab.settings, &lab.settings.topics.features).len() == 30
    });
    eventually("the other one is a dead letter", || read(&lab.settings, &lab.settings.topics.dead_letters).len() == 1);
    let search = lab.start(SEARCH);
    let trial = &search.trials[0].trial;
    eventually_after(
        "the trial has ended",
        || lab.written(),
        || {
            assert!(child.try_wait().unwrap().is_none(), "it ended early");
            lab.has_ended(trial)
        },
    );
    let metrics = get(&address, "/metrics").1;
    let dropped = metrics.lines().find_map(|line| line.strip_prefix("sweepstream_log_lines_dropped_total "));
    let dropped: u64 = dropped.unwrap().parse().unwrap();
    // What is closed is opened anew at start, by Rust's own runtime, as what takes everything.
    assert_eq!(dropped > 0, bad != Bad::Closed, "{dropped} lines dropped");
    let stopped = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let same = lab.start(SEARCH);
    lab.train(&[&same]);
    let output = lab.output();
    assert_eq!(output.weights(trial), output.weights(&same.trials[0].trial));
    assert_one_verdict_each(&lab.settings);
}

#[test]
fn stages_do_the_same_when_the_disk_of_their_log_is_full() {
    embeds_and_trains(Bad::FullDisk);
}

#[test]
fn stages_do_the_same_when_their_log_is_closed() {
    embeds_and_trains(Bad::Closed);
}

#[test]
fn stages_do_the_same_when_the_reader_of_their_log_is_gone() {
    embeds_and_trains(Bad::ReaderGone);
}

/// What a command printed that must have ended well.
#[track_caller]
fn printed(output: &Output, what: &str) -> String {
    assert_eq!(output.status.code(), Some(0), "{what}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

#[test]
fn commands_do_the_same_whatever_becomes_of_standard_error() {
    let lab = Lab::with_points("quiet", 1, 20);
    let (file, texts) = (lab.file("search.toml"), lab.file("texts.txt"));
    std::fs::write(&file, SEARCH).unwrap();
    std::fs::write(&texts, "one text\nanother text\n").unwrap();
    for (bad, round) in Bad::ALL.into_iter().zip(1..) {
        let run = |arguments: &[&str]| bad.stderr(&command(&lab.settings, arguments)).output().unwrap();
        let _ = printed(&run(&["produce", texts.to_str().unwrap()]), "produce");
        assert_eq!(read(&lab.settings, &lab.settings.topics.texts).len(), 2 * round, "{bad:?}");
        let id = printed(&run(&["search", "start", file.to_str().unwrap()]), "search start");
        let trial = format!("{id}-00");
        assert!(lab.trial(&trial).is_some(), "{bad:?}: {id}");
        let _ = printed(&run(&["trials", "stop", &trial]), "trials stop");
        assert_eq!(lab.trial(&trial).unwrap()["stop"], true);
        let _ = printed(&run(&["trials", "restart", &trial]), "trials restart");
        assert_eq!(lab.trial(&trial).unwrap()["attempt"], 1);
        let _ = printed(&run(&["search", "delete", &id]), "search delete");
        assert_eq!(lab.trial(&trial), None);
        // Errors keep their codes.
        assert_eq!(run(&["search", "show", &id]).status.code(), Some(64), "{bad:?}");
        assert_eq!(run(&["search", "sow"]).status.code(), Some(64), "{bad:?}");
    }
}

#[test]
fn a_terminal_that_goes_away_is_no_failure_either() {
    let lab = Lab::with_points("terminal", 1, 20);
    let search = lab.start(SEARCH);
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let controller = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&controller).unwrap();
    rustix::pty::unlockpt(&controller).unwrap();
    let name = rustix::pty::ptsname(&controller, Vec::new()).unwrap();
    let terminal = OpenOptions::new().write(true).open(name.to_str().unwrap()).unwrap();
    let mut waiting = command(&lab.settings, &["search", "wait", &search.id]);
    let mut waiting = waiting.stdout(Stdio::null()).stderr(terminal).spawn().unwrap();
    // It has drawn its bar.
    let (mut controller, mut shown) = (File::from(controller), String::new());
    while !shown.contains("0/1") {
        let mut bytes = [0; 256];
        let read = controller.read(&mut bytes).unwrap();
        shown.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    drop(controller);
    run(&lab.settings, &[&TRAIN], |_| lab.has_ended(&search.trials[0].trial));
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
}

#[test]
fn results_that_cannot_be_written_are_an_error_that_says_what_was_done() {
    let lab = Lab::with_points("results", 1, 20);
    let file = lab.file("search.toml");
    std::fs::write(&file, SEARCH).unwrap();
    let with = |arguments: &[&str], stdout: Stdio| {
        let output = command(&lab.settings, arguments).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for stdout in [full_disk().into(), gone()] {
        let (code, stderr) = with(&["search", "start", file.to_str().unwrap()], stdout);
        let last = stderr.lines().last().unwrap();
        assert_eq!(code, Some(1), "{stderr}");
        let id = last.split('`').nth(1).unwrap_or_else(|| panic!("no id in: {last}"));
        assert!(last.contains("is started") && last.contains("standard output"), "{last}");
        assert_eq!(sweepstream(&lab.settings, &["search", "show", id]).code, 0, "{last}");
    }
    for arguments in [&["search", "list"] as &[&str], &["config"], &["--help"], &["run", "--help"], &["--version"]] {
        let (code, stderr) = with(arguments, full_disk().into());
        assert_eq!(code, Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("standard output") && stderr.contains("No space left"), "{arguments:?}: {stderr}");
    }
}
