//! The program in docs/python.md, run as it stands against embedded texts and a finished search.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::lab::{client, is_validation, Lab, Transactions};
use crate::support::{self, embed_more, finish, produce, read, sentences, In, Out, PATIENCE};
use crate::wire::{self, Raw};

const PAGE: &str = include_str!("../../docs/python.md");
const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/python-requirements.txt");
const TEXTS: usize = 240;
/// A key whose CRC-32 can be divided by ten.
const HELD_OUT: &str = "k20";
const SEARCH: &str = r#"
    name = "p"
    rows_max = 6
    unlabelled = "skip"
    epochs = 3
    batch_size = 16
    learning_rate = 1e-2
    [[trial]]
    model = "mlp"
    hidden = [8, 12]
    checkpoint_every = 5
    [[trial]]
    model = "autoencoder"
    layers = [4]
"#;

/// Python with the page's packages, made once for each version of both.
///
/// # Errors
/// What is missing. That is no failure of the page: the project needs no Python when it runs, and packages come from a
/// network that a machine may not have.
fn python() -> Result<PathBuf, String> {
    let version = said_by(Command::new("python3").args(["-c", "import sys; print(sys.version, sys.base_prefix)"]))?;
    let pins = std::fs::read_to_string(REQUIREMENTS).unwrap();
    let digest = sweepstream::train::store::checkpoint::sha256_hex(format!("{version}{pins}").as_bytes());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{}", &digest[..12]));
    if !folder.exists() {
        // Whoever comes second, or is killed here, leaves no half of one under that name.
        let made = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let _ = said_by(Command::new("python3").args(["-m", "venv"]).arg(made.path()))?;
        let install = ["-m", "pip", "install", "--quiet", "--retries=1", "--only-binary=:all:", "-r", REQUIREMENTS];
        let _ = said_by(Command::new(made.path().join("bin/python")).args(install))?;
        let renamed = std::fs::rename(made.path(), &folder);
        assert!(renamed.is_ok() || folder.exists(), "{}: {renamed:?}", folder.display());
    }
    Ok(folder.join("bin/python"))
}

/// Standard output of a command that succeeds.
fn said_by(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The page's blocks, one after another; those for PyTorch only where it is.
fn program(python: &Path) -> String {
    let torch = said_by(Command::new(python).args(["-c", "import torch"])).is_ok();
    // A reader that never ends says where it waits.
    let mut program = "import faulthandler\nfaulthandler.dump_traceback_later(120, exit=True)\n".to_owned();
    for block in PAGE.split("\n```").skip(1).step_by(2) {
        let (kind, code) = block.split_once('\n').unwrap();
        match kind {
            "python" => program += code,
            "python torch" if torch => program += code,
            "python torch" | "sh" => continue,
            other => panic!("a block of `{other}`"),
        }
        program += "\n";
    }
    program
}

/// Texts whose labels no model finds all, and some without key or label.
fn texts() -> Vec<Out> {
    let mut texts = sentences(TEXTS);
    for (i, text) in texts.iter_mut().enumerate() {
        if i % 7 == 3 {
            text.headers[0].1 = Some(if i % 2 == 0 { "field" } else { "sea" }.into());
        }
        if i % 20 == 8 {
            text.headers.clear();
        }
        if i % 12 == 5 {
            text.key = None;
        }
        text.partition = Some(i as i32 % 2);
    }
    texts
}

/// What the whole page is about, and what makes reading it harder than it looks.
fn prepared() -> (Lab, String, Transactions) {
    let lab = Lab::new("python", 2);
    let topics = &lab.settings.topics;
    produce(&lab.settings, &topics.texts, &texts());
    // A dead letter that somebody has produced again, unmended.
    let error = ("__streams.errors.exception".to_owned(), Some(b"field_type".to_vec()));
    let again = Out { headers: vec![error], ..Out::text("blank", " ") };
    produce(&lab.settings, &topics.texts, &[again.to(0), Out::default().to(1)]);
    wire::produce(&lab.settings, &topics.texts, 1, &Raw { key: b"odd", value: b"waves", headers: &[(b"\xff", b"x")] });
    embed_more(&lab.settings, TEXTS + 3);
    let (search, deleted) = (lab.start(SEARCH), lab.start(SEARCH));
    lab.train(&[&search, &deleted]);
    assert_eq!(lab.command(&["search", "delete", &deleted.id]).code, 0);
    // After the frozen range: what was aborted, a held-out record that no trial has seen, and what is not committed
    // yet.
    let In { value, headers, .. } = read(&lab.settings, &topics.features).remove(0);
    let later = Out { partition: Some(0), key: Some(HELD_OUT.into()), value, headers };
    let writer = Transactions::new(&lab.settings);
    writer.send(&topics.features, &[later.clone(), later.clone()]);
    writer.abort();
    writer.send(&topics.features, std::slice::from_ref(&later));
    writer.commit();
    writer.send(&topics.features, &[later]);
    (lab, search.id, writer)
}

/// Share of held-out texts whose nearest neighbour by the cosine of their means has the same label.
fn nearest_neighbour(features: &[In]) -> (f64, usize) {
    let direction = |record: &In| {
        let rows = record.matrix().rows;
        let mean: Vec<f32> = (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i]).sum()).collect();
        let norm = mean.iter().map(|value| value * value).sum::<f32>().sqrt();
        mean.into_iter().map(|value| value / norm).collect::<Vec<f32>>()
    };
    let is_held_out = |record: &&In| {
        let source = record.header("source").unwrap().into_bytes();
        is_validation(record.key.as_deref().unwrap_or(&source), 10)
    };
    let labelled = features.iter().filter(|record| record.header("label").is_some());
    let (held_out, known): (Vec<&In>, Vec<&In>) = labelled.partition(is_held_out);
    let known: Vec<_> = known.into_iter().map(|record| (direction(record), record.header("label"))).collect();
    let is_hit = |record: &&&In| {
        let asked = direction(record);
        let cosine = |other: &[f32]| asked.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
        let nearest = known.iter().max_by(|a, b| cosine(&a.0).total_cmp(&cosine(&b.0))).unwrap();
        nearest.1 == record.header("label")
    };
    (held_out.iter().filter(is_hit).count() as f64 / held_out.len() as f64, held_out.len())
}

/// The numbers of a line, in order; words are left out.
fn numbers(line: &str) -> Vec<f64> {
    line.split(' ').filter_map(|word| word.parse().ok()).collect()
}

/// The one test that may be left out, and says so: [`python`] has the reason.
#[test]
fn the_page_about_python_is_a_program_whose_numbers_are_those_of_the_topics() {
    let python = match python() {
        Ok(python) => python,
        Err(missing) => {
            // Not `eprintln!`, which is only shown of tests that fail.
            writeln!(
                std::io::stderr(),
                "docs/python.md was NOT run: Python or its packages are not at hand: {missing}"
            )
            .unwrap();
            return;
        }
    };
    let (lab, search, _open) = prepared();
    std::fs::write(lab.file("page.py"), program(&python)).unwrap();
    let sweepstream = support::command(&lab.settings, &[]);
    let binaries = Path::new(sweepstream.get_program()).parent().unwrap().display();
    let mut command = Command::new(python);
    let _ = command
        .arg("page.py")
        .current_dir(lab.folder.path())
        .envs(sweepstream.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("SEARCH", &search)
        .env("PATH", format!("{binaries}:{}", std::env::var("PATH").unwrap()));
    let ran = finish(command);
    println!("{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, 0);
    assert_features(&lab, &ran.stdout);
    let trials: Vec<String> = (0..3).map(|number| format!("{search}-{number:02}")).collect();
    assert_output(&lab, &trials, &ran.stdout);
    assert_model(&lab, &trials[..2], &ran.stdout);
    assert_dead_letters(&lab, &ran.stdout);
    let consumer: BaseConsumer = client(&lab.settings).create().unwrap();
    let groups = consumer.fetch_group_list(None, PATIENCE).unwrap();
    assert!(!groups.groups().iter().any(|group| group.name() == "none"), "reading left a group behind");
}

fn assert_features(lab: &Lab, stdout: &str) {
    let features = read(&lab.settings, &lab.settings.topics.features);
    assert_eq!(features.len(), TEXTS + 1);
    let rows: usize = features.iter().map(|feature| feature.matrix().rows.len()).sum();
    let (share, held_out) = nearest_neighbour(&features);
    let wanted = format!(
        "{} texts, {rows} rows of 384 float16\nnearest neighbour: {share} of {held_out} texts held out\n",
        TEXTS + 1
    );
    assert!(stdout.starts_with(&wanted), "{wanted}");
}

/// Each measurement in its order, then how each trial ended; nothing of the search that was deleted.
fn assert_output(lab: &Lab, trials: &[String], stdout: &str) {
    let output = lab.output();
    for trial in trials {
        let shown: Vec<&str> = stdout.lines().filter(|line| line.starts_with(trial.as_str())).collect();
        let measured = output.measurements(trial);
        assert_eq!(shown.len(), measured.len() + 1, "{trial}");
        for (line, measurement) in shown.iter().zip(&measured) {
            let keys = ["epoch", "step", "loss", "validation_accuracy"];
            let wanted: Vec<f64> = keys.iter().filter_map(|key| measurement[key].as_f64()).collect();
            assert_eq!(numbers(line), wanted, "{line}");
        }
        assert_eq!(shown[measured.len()], format!("{trial} finished {}", output.weights(trial)));
    }
    let of_search = stdout.lines().filter(|line| line.starts_with("p-")).count();
    assert_eq!(of_search, stdout.lines().filter(|line| trials.iter().any(|trial| line.starts_with(trial))).count());
}

/// What the exported weights find is what their trial has measured at its best.
fn assert_model(lab: &Lab, classifiers: &[String], stdout: &str) {
    let line = |start: &str| stdout.lines().find(|line| line.starts_with(start));
    let output = lab.output();
    let measured = classifiers.iter().map(|trial| {
        let best = &output.outcome(trial)["best"];
        ["validation_accuracy", "validation_loss"].map(|key| best[key].as_f64().unwrap())
    });
    // The first of the best, as in Python.
    let [accuracy, loss] = measured.reduce(|best, other| if other[0] > best[0] { other } else { best }).unwrap();
    assert!((0.6..1.0).contains(&accuracy), "an accuracy of {accuracy} would be found by chance");
    let is_loss = |found: f64| (found / loss - 1.0).abs() < 1e-5;
    assert_eq!(line("digest"), Some("digest: True"));
    assert_eq!(numbers(line("accuracy").unwrap()), [accuracy; 2]);
    let losses = numbers(line("loss").unwrap());
    assert!(is_loss(losses[0]) && losses[1] == loss, "{losses:?}");
    if let Some(torch) = line("torch").map(numbers) {
        assert!(torch[0] == accuracy && is_loss(torch[1]), "{torch:?}");
    }
}

fn assert_dead_letters(lab: &Lab, stdout: &str) {
    let each = TEXTS / 2;
    let letters = [
        (0, each, "no_words, the text has no words; b'blank' b' '"),
        (1, each, "null_value, the value is null; None None"),
    ];
    for (partition, offset, rest) in letters {
        let wanted = format!("\n{}/{partition}/{offset}: {rest}", lab.settings.topics.texts);
        assert!(stdout.contains(&wanted), "{wanted}");
    }
    assert!(stdout.ends_with("\ndead letters: {'no_words': 1, 'null_value': 1, 'unreadable': 1}\n"));
}
