//! Features that others have written, as trials and the leaderboard meet them.

use half::f16;

use crate::lab::{dealt, matrix, points, Lab, DIM};
use crate::support::{Out, Process};

const MLP: &str = "name = \"s\"\nmodel = \"mlp\"\nhidden = 4\nepochs = 2\nbatch_size = 8\nvalidation = 5\n";

fn relabelled(count: usize, label: impl Fn(usize) -> Vec<u8>) -> Vec<Out> {
    let mut records = points(count);
    for (i, record) in records.iter_mut().enumerate() {
        record.headers[0].1 = Some(label(i));
    }
    records
}

#[test]
fn a_label_that_is_not_utf8_is_refused_and_never_made_another() {
    let lab = Lab::new("latin1", 2);
    lab.fill(&dealt(relabelled(40, |i| [b"caf\xe9".to_vec(), b"caf\xe8".to_vec()][i % 2].clone()), 2));
    // A classifier needs the labels, and an autoencoder's records name them all the same.
    for search in [MLP, "name = \"s\"\nmodel = \"autoencoder\"\nlayers = [2]\n"] {
        let refused = lab.start_by_command(search);
        assert_ne!(refused.code, 0);
        let topic = &lab.settings.topics.features;
        let place = |partition: u8| refused.stderr.contains(&format!("{topic}/{partition}: offset 0: "));
        assert!(place(0) || place(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("is not valid UTF-8 at byte 3"), "{}", refused.stderr);
        assert!(refused.stderr.contains(r"caf\xe8") || refused.stderr.contains(r"caf\xe9"), "{}", refused.stderr);
    }
}

#[test]
fn a_number_that_is_none_is_found_when_a_search_starts() {
    for (name, bad, half) in [
        ("nan", f32::NAN, true),
        ("inf", f32::INFINITY, true),
        ("minus-inf", f32::NEG_INFINITY, false),
        ("nan-f32", f32::NAN, false),
    ] {
        let lab = Lab::new(name, 1);
        let mut records = points(201);
        let mut values = vec![0.5; 4 * DIM];
        values[2 * DIM + 5] = bad;
        assert!(!half || !f16::from_f32(bad).is_finite());
        records[117].value = Some(matrix(4, &values, half));
        lab.fill(&dealt(records, 1));
        let refused = lab.start_by_command(MLP);
        assert_ne!(refused.code, 0);
        assert!(refused.stdout.is_empty());
        let place = format!("{}/0: offset 117: row 2 ", lab.settings.topics.features);
        assert!(refused.stderr.contains(&place), "{place} is not in {}", refused.stderr);
    }
}

#[test]
fn a_search_with_one_class_says_so_at_its_start_and_on_its_leaderboard() {
    let lab = Lab::new("one-class", 1);
    lab.fill(&dealt(relabelled(40, |_| b"only".to_vec()), 1));
    let started = lab.start_by_command(MLP);
    assert_eq!(started.code, 0, "{}", started.stderr);
    assert!(started.stderr.contains("WARN") && started.stderr.contains("all labels are `only`"), "{}", started.stderr);
    let id = started.stdout.trim();
    let shown = lab.command(&["search", "show", id]);
    assert!(shown.stdout.contains("warning: all labels are `only`"), "{}", shown.stdout);
    let json: serde_json::Value = serde_json::from_str(&lab.command(&["search", "show", id, "--json"]).stdout).unwrap();
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
    // Without a classifier there is nothing to be deceived by.
    let other = lab.start_by_command("name = \"s\"\nmodel = \"autoencoder\"\nlayers = [2]\n");
    assert!(!other.stderr.contains("WARN"), "{}", other.stderr);
}

#[test]
fn a_topic_that_no_search_can_be_over_is_named_with_the_one_that_was_meant() {
    let lab = Lab::with_points("no-topic", 1, 10);
    let topic = &lab.settings.topics.features;
    let refused = lab.start_by_command(&format!("{MLP}topic = \"{}\"\n", topic.replace("features", "featurse")));
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("did you mean `{topic}`?")), "{}", refused.stderr);
    assert!(!refused.stderr.contains("topics create"), "{}", refused.stderr);
}

#[test]
fn a_wait_that_nobody_serves_says_so_and_goes_on() {
    let lab = Lab::with_points("unserved", 1, 40);
    let search = lab.start(MLP);
    let late = lab.command(&["search", "wait", "--timeout", "6s", &search.id]);
    assert_eq!(late.code, 1, "{}", late.stderr);
    let group = lab.settings.train_group();
    assert!(late.stderr.contains("no member") && late.stderr.contains(&group), "{}", late.stderr);
    assert!(late.stderr.contains("after 6s 0 of 1 trials"), "{}", late.stderr);
    let mut waiting = Process::start(&lab.settings, &["search", "wait", &search.id]);
    let _ = waiting.await_line("no member");
    let _trainer = lab.trainer("log");
    assert_eq!(waiting.wait().code(), Some(0), "{}", waiting.stderr());
}
