//! Topics: created as declared, and verified.

use std::path::Path;

use sweepstream::cli::Failure;
use sweepstream::config::Settings;
use sweepstream::kafka::topics::Declarations;

use crate::support::{create_topics, settings, sweepstream, Operator};

fn partitions(settings: &Settings, topic: &str) -> i32 {
    let verified = Declarations::load(settings).unwrap().verify(settings, None).unwrap();
    let all = [verified.texts, verified.features, verified.dead_letters, verified.trials, verified.output];
    all.into_iter().find(|candidate| candidate.name == topic).unwrap().partitions
}

#[test]
fn missing_topics_are_created_as_declared() {
    let settings = settings("create");
    let created = sweepstream(&settings, &["topics", "create"]);
    assert_eq!(created.code, 0, "{}", created.stderr);
    let operator = Operator::new(&settings);
    let topics = &settings.topics;
    for (topic, key, value) in [
        (&topics.texts, "cleanup.policy", "delete"),
        (&topics.features, "cleanup.policy", "delete"),
        (&topics.features, "retention.ms", "-1"),
        (&topics.features, "retention.bytes", "-1"),
        (&topics.dead_letters, "retention.ms", "-1"),
        (&topics.dead_letters, "max.message.bytes", "1114124"),
        (&topics.trials, "cleanup.policy", "compact"),
        (&topics.output, "cleanup.policy", "compact"),
        (&topics.output, "segment.ms", "3600000"),
    ] {
        assert_eq!(operator.config(topic)[key], value, "{topic} {key}");
    }
    let again = sweepstream(&settings, &["topics", "verify"]);
    assert_eq!((again.code, again.stderr.as_str()), (0, ""));
}

#[test]
fn features_get_the_partition_count_and_dead_letters_the_room_that_texts_have() {
    let settings = settings("follow");
    let operator = Operator::new(&settings);
    operator.create_topic(&settings.topics.texts, 7, &[("max.message.bytes", "5000000")]);
    create_topics(&settings);
    assert_eq!(partitions(&settings, &settings.topics.features), 7);
    let limit = (5_000_000 + 64 * 1024).to_string();
    assert_eq!(operator.config(&settings.topics.dead_letters)["max.message.bytes"], limit);
}

#[test]
fn verify_does_not_create_what_is_missing() {
    let settings = settings("verify");
    let verified = sweepstream(&settings, &["topics", "verify"]);
    assert_eq!(verified.code, 78, "{}", verified.stderr);
    assert!(verified.stderr.contains(&format!("`{}`", settings.topics.texts)), "{}", verified.stderr);
    assert!(verified.stderr.contains("topics create"), "{}", verified.stderr);
}

/// Exit code and message of a start with topics as they are.
fn refusal(settings: &Settings, matrix_bytes_max: Option<usize>) -> (u8, String) {
    let error = Declarations::load(settings).unwrap().ensure(settings, matrix_bytes_max).unwrap_err();
    let message = error.to_string();
    (Failure::from(error).code, message)
}

#[test]
fn each_difference_that_breaks_a_promise_stops_the_start_naming_topic_and_key() {
    let settings = settings("broken");
    create_topics(&settings);
    let operator = Operator::new(&settings);
    let topics = &settings.topics;
    for (topic, key, value) in [
        (&topics.texts, "cleanup.policy", "compact"),
        (&topics.features, "cleanup.policy", "compact"),
        (&topics.features, "cleanup.policy", "compact,delete"),
        (&topics.features, "retention.ms", "604800000"),
        (&topics.features, "retention.bytes", "1000000"),
        (&topics.features, "max.message.bytes", "100000"),
        (&topics.dead_letters, "cleanup.policy", "compact"),
        (&topics.dead_letters, "max.message.bytes", "1048588"),
        (&topics.trials, "cleanup.policy", "delete"),
        (&topics.output, "cleanup.policy", "delete"),
        (&topics.output, "max.message.bytes", "1000"),
    ] {
        let good = operator.config(topic)[key].clone();
        operator.alter(topic, key, value);
        let (code, message) = refusal(&settings, None);
        assert_eq!(code, 78, "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        let expected = format!("topic `{topic}`: `{key}` is {value}");
        assert!(message.starts_with(&expected), "{expected}: {message}");
        operator.alter(topic, key, &good);
    }
    create_topics(&settings);
}

#[test]
fn all_differences_are_named_at_once() {
    let settings = settings("all");
    let operator = Operator::new(&settings);
    operator.create_topic(&settings.topics.texts, 4, &[]);
    operator.create_topic(&settings.topics.features, 3, &[("retention.bytes", "5000")]);
    let stopped = sweepstream(&settings, &["run", "--stage", "train"]);
    assert_eq!(stopped.code, 78, "{}", stopped.stderr);
    let features = &settings.topics.features;
    for expected in [
        format!("topic `{features}` has 3 partitions and `{}` has 4", settings.topics.texts),
        format!("topic `{features}`: `retention.ms` is 604800000"),
        format!("topic `{features}`: `retention.bytes` is 5000"),
    ] {
        assert!(stopped.stderr.contains(&expected), "{expected}: {}", stopped.stderr);
    }
}

#[test]
fn a_features_limit_below_the_largest_matrix_stops_the_start() {
    let settings = settings("matrix");
    create_topics(&settings);
    Operator::new(&settings).alter(&settings.topics.features, "max.message.bytes", "1500000");
    let fits = Declarations::load(&settings).unwrap().ensure(&settings, Some(1_500_000));
    assert_eq!(fits.unwrap().features.message_bytes_max, 1_500_000);
    let (code, message) = refusal(&settings, Some(1_500_001));
    assert_eq!(code, 78);
    assert!(message.contains(&format!("`{}`: `max.message.bytes`", settings.topics.features)), "{message}");
    assert!(message.contains("embed.max_length"), "{message}");
}

#[test]
fn an_advised_difference_is_only_warned_of() {
    let settings = settings("advised");
    create_topics(&settings);
    Operator::new(&settings).alter(&settings.topics.dead_letters, "retention.ms", "60000");
    let verified = sweepstream(&settings, &["topics", "verify"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    assert!(verified.stderr.contains("WARN"), "{}", verified.stderr);
    let expected = format!("topic `{}`: `retention.ms` is 60000", settings.topics.dead_letters);
    assert!(verified.stderr.contains(&expected), "{}", verified.stderr);
}

fn with_folder(name: &str, files: &[(&str, &str)]) -> (Settings, tempfile::TempDir) {
    let mut settings = settings(name);
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in files {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    settings.topics.dir = Some(folder.path().to_path_buf());
    (settings, folder)
}

#[test]
fn a_folder_of_declarations_replaces_those_of_the_same_name() {
    let texts =
        "partitions = 2\nreplication_factor = 1\n[advised]\n\"retention.ms\" = { value = \"5000\", why = \"x\" }";
    let letters = "partitions = 1\nreplication_factor = -1\n[required]\n\"max.message.bytes\" = \
        { value = \"3000000\", why = \"x\", at_least = true }";
    let (settings, _folder) = with_folder("dir", &[("texts.toml", texts), ("dead-letters.toml", letters)]);
    create_topics(&settings);
    let operator = Operator::new(&settings);
    assert_eq!(partitions(&settings, &settings.topics.texts), 2);
    assert_eq!(partitions(&settings, &settings.topics.features), 2);
    assert_eq!(partitions(&settings, &settings.topics.dead_letters), 1);
    assert_eq!(operator.config(&settings.topics.texts)["retention.ms"], "5000");
    assert_eq!(operator.config(&settings.topics.dead_letters)["max.message.bytes"], "3000000");
}

#[test]
fn a_declaration_that_cannot_be_used_is_named() {
    for (file, text, expected) in [
        ("texts.toml", "partitions = 0\nreplication_factor = 1", "at least 1"),
        ("features.toml", "partitions = { same_as = \"output\" }\nreplication_factor = 1", "partitions"),
        ("output.toml", "partitions = 1\nreplication_factor = 1\nretention = 5", "retention"),
        ("trials.toml", "partitions = ", "trials.toml"),
        ("feature.toml", "partitions = 1\nreplication_factor = 1", "features.toml"),
    ] {
        let (settings, _folder) = with_folder("bad-dir", &[(file, text)]);
        let error = Declarations::load(&settings).err().unwrap_or_else(|| panic!("{file} is taken"));
        assert!(error.to_string().contains(file) && error.to_string().contains(expected), "{error}");
        assert_eq!(Failure::from(error).code, 78);
    }
}

#[test]
fn a_folder_of_declarations_that_is_not_there_is_named() {
    let mut settings = settings("no-dir");
    settings.topics.dir = Some(Path::new("/nowhere/topics").into());
    let error = Declarations::load(&settings).unwrap_err();
    assert!(error.to_string().contains("/nowhere/topics"), "{error}");
    assert_eq!(Failure::from(error).code, 78);
}
