//! What keeps the program from starting, and its HTTP endpoint.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use sweepstream::config::Settings;

use crate::support::{command, eventually, finish, get, parts, settings, sweepstream, Finished, Process};

#[track_caller]
pub fn assert_refused(finished: &Finished, code: i32, named: &[&str]) {
    assert_eq!(finished.code, code, "{}", finished.stderr);
    let last = finished.stderr.lines().last().unwrap_or_default();
    for name in named {
        assert!(last.contains(name), "{name} is not in: {last}");
    }
    assert_eq!(finished.stdout, "");
}

#[test]
fn a_broker_that_does_not_answer_ends_the_start_in_time_with_its_address_and_the_cause() {
    let mut settings = settings("unreachable");
    settings.kafka.bootstrap_servers = "127.0.0.1:1".into();
    for arguments in [["topics", "verify"], ["run", "--stage=train"]] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-s", "kafka.start_timeout=1s"]);
        let finished = sweepstream(&settings, &arguments);
        assert_refused(&finished, 69, &["127.0.0.1:1", "refused"]);
    }
    settings.kafka.bootstrap_servers = "no-such-host.invalid:9092".into();
    let finished = sweepstream(&settings, &["topics", "verify", "-s", "kafka.start_timeout=1s"]);
    assert_refused(&finished, 69, &["no-such-host.invalid:9092", "resolve"]);
}

#[test]
fn every_command_gives_up_after_the_start_timeout_where_nobody_listens_and_where_nobody_answers() {
    // Connections are taken by the system, and stay as they are.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings("given-up");
    for address in ["127.0.0.1:1".into(), mute.local_addr().unwrap().to_string()] {
        settings.kafka.bootstrap_servers = address;
        for arguments in [
            &["search", "list"] as &[&str],
            &["search", "show", "x"],
            &["search", "wait", "x"],
            &["search", "delete", "x"],
            &["trials", "list"],
            &["trials", "stop", "x-00"],
            &["checkpoint", "export", "x-00", "x"],
            &["plot", "x", "x.svg"],
            &["topics", "create"],
            &["topics", "verify"],
            &["produce", "/dev/null"],
            &["run", "--stage=train"],
        ] {
            let finished = sweepstream(&settings, &[arguments, &["-s", "kafka.start_timeout=300ms"]].concat());
            assert_refused(&finished, 69, &[&settings.kafka.bootstrap_servers, "within 300ms"]);
        }
    }
}

#[test]
fn a_signal_ends_a_start_that_waits_for_the_broker() {
    let mut settings = settings("impatient");
    settings.kafka.bootstrap_servers = "127.0.0.1:1".into();
    let mut process = Process::start(&settings, &["run", "--stage=train", "-s", "kafka.start_timeout=1h"]);
    let _ = process.await_line("kafka does not answer, waiting");
    process.signal("TERM");
    let _ = process.wait();
}

#[test]
fn nothing_is_ready_before_a_stage_has_its_assignment() {
    let settings = settings("early");
    let mut process = Process::start(&settings, &["run", "--stage=train", "-s", "http.address=127.0.0.1:0"]);
    let address = process.http_address();
    // Asked as soon as anybody can ask.
    eventually("it is ready", || get(&address, "/health/ready").0 == 200);
    process.signal("KILL");
    let _ = process.wait();
    assert!(process.stderr().contains("assigned group="), "{}", process.stderr());
}

#[test]
fn settings_that_cannot_be_are_named() {
    let settings = settings("settings");
    let run = |set: &str| sweepstream(&settings, &["run", "-s", set]);
    assert_refused(&run("embed.max_lenght=5"), 78, &["embed.max_lenght", "embed.max_length"]);
    assert_refused(&run("embed.max_length=2"), 78, &["embed.max_length"]);
    assert_refused(&run("embed.max_length=many"), 78, &["embed.max_length"]);
    assert_refused(&run("embed.rows=sentence"), 78, &["embed.rows"]);
    assert_refused(&run("embed.max_batch_tokens=100"), 78, &["embed.max_batch_tokens", "embed.max_length"]);
    assert_refused(&run("kafka.transaction_timeout=1s"), 78, &["kafka.transaction_timeout"]);
    assert_refused(&run("kafka.properties.enable.auto.commit=true"), 78, &["enable.auto.commit"]);
    let mut environment = command(&settings, &["run"]);
    let _ = environment.env("SWEEPSTREAM_EMBED__SESSIONS", "0");
    assert_refused(&finish(environment), 78, &["embed.sessions", "environment"]);
    assert_eq!(sweepstream(&settings, &["run", "--stage", "bake"]).code, 64);
}

/// A copy of the default model with one file changed.
fn damaged(file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("damaged");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(parts().folder.join("models/all-minilm-l6-v2")).unwrap() {
        let path = entry.unwrap().path();
        let copy = model.join(path.file_name().unwrap());
        if path.ends_with(file) {
            continue;
        }
        std::os::unix::fs::symlink(path.canonicalize().unwrap(), copy).unwrap();
    }
    let original = std::fs::read(parts().folder.join("models/all-minilm-l6-v2").join(file)).unwrap();
    std::fs::write(model.join(file), change(original)).unwrap();
    (folder, model)
}

fn run_with_model(settings: &Settings, model: &Path) -> Finished {
    let dir = format!("embed.model_dir={}", model.display());
    sweepstream(settings, &["run", "--stage=embed", "-s", &dir])
}

#[test]
fn missing_parts_are_named_with_the_way_to_get_them() {
    let settings = settings("missing");
    let model = run_with_model(&settings, Path::new("/nowhere/model"));
    assert_refused(&model, 78, &["/nowhere/model", "make parts"]);
    let mut library = command(&settings, &["run", "--stage=embed"]);
    let _ = library.env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so");
    assert_refused(&finish(library), 78, &["/nowhere/libonnxruntime.so", "make parts"]);
    let mut folder = command(&settings, &["run", "--stage=embed"]);
    let _ = folder.env("SWEEPSTREAM_PARTS", "/nowhere");
    assert_refused(&finish(folder), 78, &["/nowhere", "make parts"]);
}

#[test]
fn a_library_that_is_not_onnx_runtime_is_named() {
    let settings = settings("library");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"no library").unwrap();
    let mut library = command(&settings, &["run", "--stage=embed"]);
    let _ = library.env("ORT_DYLIB_PATH", file.path());
    assert_refused(&finish(library), 78, &[&file.path().display().to_string()]);
}

#[test]
fn a_quantised_model_is_refused() {
    let settings = settings("quantised");
    let (_folder, model) = damaged("model.onnx", |mut bytes| {
        bytes.extend_from_slice(b"\x22\x15DynamicQuantizeLinear");
        bytes
    });
    assert_refused(&run_with_model(&settings, &model), 78, &["damaged", "quantised", "fp32"]);
}

#[test]
fn a_truncated_model_or_tokenizer_is_named() {
    let settings = settings("truncated");
    for file in ["model.onnx", "tokenizer.json"] {
        let (folder, model) = damaged(file, |bytes| bytes[..bytes.len() / 2].to_vec());
        assert_refused(&run_with_model(&settings, &model), 78, &["damaged", "export the model"]);
        // The default model, in a parts folder of its own.
        let link = |from: &Path, to: &str| std::os::unix::fs::symlink(from, folder.path().join(to)).unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        link(&model, "models/all-minilm-l6-v2");
        link(&parts().folder.join("onnxruntime").canonicalize().unwrap(), "onnxruntime");
        let mut named = command(&settings, &["run", "--stage=embed"]);
        let _ = named.env("SWEEPSTREAM_PARTS", folder.path());
        assert_refused(&finish(named), 78, &["all-minilm-l6-v2", "damaged", "make parts"]);
    }
}

#[test]
fn more_positions_than_the_model_has_are_refused() {
    let settings = settings("positions");
    let long = ["run", "--stage=embed", "-s", "embed.max_length=513", "-s", "embed.max_batch_tokens=1024"];
    assert_refused(&sweepstream(&settings, &long), 78, &["embed.max_length", "512"]);
}

#[test]
fn the_default_port_falls_forward_when_it_is_taken() {
    // Taken by this test or by somebody else: either way, it is taken.
    let _taken = TcpListener::bind("127.0.0.1:9464");
    let process = Process::start(&settings("port"), &["run", "--stage=train"]);
    let address = process.http_address();
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    assert!((9465..9565).contains(&port), "{address}");
    assert_eq!(get(&address, "/health/live"), (200, "live\n".into()));
    assert_eq!(get(&address, "/nothing").0, 404);
    eventually("it is ready", || get(&address, "/health/ready").0 == 200);
}

#[test]
fn an_address_that_was_set_and_is_taken_ends_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let set = format!("http.address={address}");
    let finished = sweepstream(&settings("address"), &["run", "--stage=train", "-s", &set]);
    assert_refused(&finished, 78, &[&address, "http.address"]);
}
