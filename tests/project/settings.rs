//! Settings: where they come from, and what is said of those that are wrong.

use std::collections::BTreeSet;
use std::path::Path;

use sweepstream::config::{Error, Settings};
use sweepstream::search::file::Search;

use crate::command_line::sweepstream;
use crate::{files, read, root};

fn layered(file: Option<&Path>, environment: &[(&str, &str)]) -> Result<Settings, Error> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::layered(file, environment, &[])
}

/// Settings from the text of a file.
fn from_text(text: &str) -> Result<Settings, Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, text).unwrap();
    layered(Some(&file), &[])
}

fn message(result: Result<Settings, Error>) -> String {
    result.expect_err("these settings must be refused").to_string()
}

/// As TOML, which has everything that a difference could be in; secrets are not used where it is compared.
fn shown(settings: &Settings) -> toml::Table {
    settings.redacted_toml().parse().unwrap()
}

/// Full names of all keys of a table.
fn keys(table: &toml::Table, prefix: &str, into: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) if path != "kafka.properties" => keys(inner, &path, into),
            _ => assert!(into.insert(path)),
        }
    }
}

#[test]
fn every_file_in_config_loads() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    std::fs::write(&secret, "0123\n").unwrap();
    for path in files("config") {
        // The one file that a reader of the example has to bring.
        let text = read(&path).replace("secrets/kafka-password", secret.to_str().unwrap());
        let settings = from_text(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        if path.ends_with("production.toml") {
            assert_eq!(settings.kafka.properties["sasl.password"], "0123");
        }
    }
}

#[test]
fn the_full_settings_file_has_the_defaults_and_names_every_key() {
    let path = root().join("config/sweepstream.toml");
    assert_eq!(shown(&layered(Some(&path), &[]).unwrap()), shown(&Settings::default()));

    // Keys without a fixed default stand in comments; with these every key has a value.
    let mut complete = Settings::default();
    complete.kafka.group_instance_id = Some("embed-a".into());
    complete.topics.dir = Some("topics".into());
    complete.embed.model_dir = Some("models/my-model".into());
    complete.embed.sessions = std::num::NonZeroUsize::new(2);
    complete.embed.threads = std::num::NonZeroUsize::new(1);
    complete.train.threads = std::num::NonZeroUsize::new(2);
    complete.train.parallel = std::num::NonZeroUsize::new(16);
    complete.http.address = Some("0.0.0.0:9464".into());
    let mut wanted = BTreeSet::new();
    keys(&shown(&complete), "", &mut wanted);

    let text = read("config/sweepstream.toml");
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // A commented setting, not a sentence.
            Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => rest,
            _ => line,
        })
        .collect();
    let table: toml::Table = uncommented.join("\n").parse().unwrap();
    let mut named = BTreeSet::new();
    keys(&table, "", &mut named);
    assert_eq!(named, wanted);
    let complete_file = from_text(&uncommented.join("\n")).unwrap();
    complete.kafka.properties.clone_from(&complete_file.kafka.properties);
    assert_eq!(shown(&complete_file), shown(&complete));
}

#[test]
fn what_config_prints_can_be_read_again() {
    let settings = layered(None, &[("SWEEPSTREAM_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL")]).unwrap();
    assert_eq!(shown(&from_text(&settings.redacted_toml()).unwrap()), shown(&settings));
}

#[test]
fn unknown_settings_are_refused_with_the_nearest_key() {
    for (text, near) in [
        ("aplication_id = \"x\"", "application_id"),
        ("[kafka]\nbootstrap_server = \"x\"", "kafka.bootstrap_servers"),
        ("[embed]\nmax_lenght = 3", "embed.max_length"),
        ("[trian]\nparallel = 1", "train"),
        ("[run]\ndrain_timout = \"1s\"", "run.drain_timeout"),
    ] {
        let message = message(from_text(text));
        assert!(message.contains(&format!("did you mean `{near}`")), "{message}");
    }
    let far = message(from_text("[http]\nzzzzzz = 1"));
    assert!(far.contains("http.zzzzzz") && far.contains("known here: address"), "{far}");
    let variable = message(layered(None, &[("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVER", "x")]));
    assert!(variable.contains("environment") && variable.contains("`kafka.bootstrap_servers`"), "{variable}");
    let top = message(layered(None, &[("SWEEPSTREAM_APLICATION_ID", "x")]));
    assert!(top.contains("SWEEPSTREAM_APPLICATION_ID"), "{top}");
    // What container platforms inject is not ours.
    assert!(layered(None, &[("SWEEPSTREAM_SERVICE_HOST", "10.0.0.1"), ("SWEEPSTREAM_PARTS", "x")]).is_ok());
}

#[test]
fn a_variable_with_too_few_or_too_many_underscores_is_refused() {
    for (name, meant) in [
        ("SWEEPSTREAM_INPUT_FORMAT", "SWEEPSTREAM_INPUT__FORMAT"),
        ("SWEEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS"),
        ("SWEEPSTREAM_EMBED_MODEL_DIR", "SWEEPSTREAM_EMBED__MODEL_DIR"),
        ("SWEEPSTREAM_TRAIN_PARALLEL", "SWEEPSTREAM_TRAIN__PARALLEL"),
        ("SWEEPSTREAM__INPUT__FORMAT", "SWEEPSTREAM_INPUT__FORMAT"),
        ("SWEEPSTREAM_EMBED__MAX__LENGTH", "SWEEPSTREAM_EMBED__MAX_LENGTH"),
        ("SWEEPSTREAM_APPLICATION__ID", "SWEEPSTREAM_APPLICATION_ID"),
        ("SWEEPSTREAM_KAFKA_PROPERTIES_SASL_PASSWORD", "SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD"),
        ("SWEEPSTREAM_KAFKA__PROPERTIES_SASL_PASSWORD", "SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD"),
    ] {
        let message = message(layered(None, &[(name, "json")]));
        assert!(message.contains(name) && message.contains(&format!("did you mean `{meant}`?")), "{message}");
    }
    let refused = sweepstream(&["config"], &[("SWEEPSTREAM_INPUT_FORMAT", "json")]);
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert!(refused.stderr.contains("did you mean `SWEEPSTREAM_INPUT__FORMAT`?"), "{}", refused.stderr);
}

#[test]
fn variables_that_are_no_settings_are_named_in_a_warning() {
    let others = [("SWEEPSTREAM_SERVICE_HOST", "10.0.0.1"), ("SWEEPSTREAM_VERBOSE", "1"), ("SWEEPSTREAM_PARTS", "x")];
    let ended = sweepstream(&["config"], &others);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let warnings: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{}", ended.stderr);
    assert!(warnings[0].contains("SWEEPSTREAM_SERVICE_HOST") && warnings[0].contains("SWEEPSTREAM_VERBOSE"));
    assert!(!warnings[0].contains("SWEEPSTREAM_PARTS"), "{}", warnings[0]);
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, "application_id = \"f\"\n[topics]\ntexts = \"f\"\nfeatures = \"ff\"\noutput = \"fo\"")
        .unwrap();
    let environment = [("SWEEPSTREAM_TOPICS__TEXTS", "e"), ("SWEEPSTREAM_TOPICS__FEATURES", "ee")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let flags = [("topics.texts".to_owned(), "flag".to_owned())];
    let settings = Settings::layered(Some(&file), environment, &flags).unwrap();
    assert_eq!(settings.topics.texts, "flag");
    assert_eq!(settings.topics.features, "ee");
    assert_eq!(settings.topics.output, "fo");
    assert_eq!(settings.topics.trials, "trials");
    assert_eq!(settings.application_id, "f");
}

#[test]
fn secrets_are_taken_as_they_are_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    std::fs::write(&secret, "0x1F \n").unwrap();
    let settings = layered(
        None,
        &[
            ("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_USERNAME", "007"),
            ("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD_FILE", secret.to_str().unwrap()),
            ("SWEEPSTREAM_KAFKA__PROPERTIES__SSL_KEY_PASSWORD", "1e3"),
            ("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_OAUTHBEARER_CLIENT_SECRET", "true"),
        ],
    )
    .unwrap();
    let properties = &settings.kafka.properties;
    assert_eq!(properties["sasl.username"], "007");
    assert_eq!(properties["sasl.password"], "0x1F ");
    assert_eq!(properties["ssl.key.password"], "1e3");
    assert_eq!(properties["sasl.oauthbearer.client.secret"], "true");
    assert!(!properties.contains_key("sasl.password.file"));
    let shown = settings.redacted_toml();
    for secret in ["0x1F", "1e3", "\"true\""] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("007") && shown.contains("(redacted)"), "{shown}");
    let missing = message(layered(None, &[("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD_FILE", "no/such/file")]));
    assert!(missing.contains("kafka.properties.sasl.password.file") && missing.contains("no/such/file"), "{missing}");
}

#[test]
fn properties_may_be_nested_or_flat_and_of_any_scalar_type() {
    let settings = from_text(
        "[kafka.properties]\nsecurity.protocol = \"SSL\"\n\"socket.timeout.ms\" = 5000\n\"log.queue\" = true",
    )
    .unwrap();
    let properties = &settings.kafka.properties;
    assert_eq!(properties["security.protocol"], "SSL");
    assert_eq!(properties["socket.timeout.ms"], "5000");
    assert_eq!(properties["log.queue"], "true");
    let list = message(from_text("[kafka.properties]\n\"a.b\" = [1]"));
    assert!(list.contains("a.b"), "{list}");
}

#[test]
fn every_relation_that_does_not_hold_names_its_keys() {
    for (text, keys) in [
        ("application_id = \" \"", &["`application_id`"] as &[&str]),
        ("[kafka]\nbootstrap_servers = \"\"", &["`kafka.bootstrap_servers`"]),
        ("[topics]\ntexts = \"\"", &["`topics.texts`"]),
        ("[topics]\nfeatures = \"\"", &["`topics.features`"]),
        ("[topics]\ndead_letters = \"\"", &["`topics.dead_letters`"]),
        ("[topics]\ntrials = \"\"", &["`topics.trials`"]),
        ("[topics]\noutput = \"\"", &["`topics.output`"]),
        ("[embed]\nmodel = \"\"", &["`embed.model`"]),
        ("[topics]\nfeatures = \"texts\"", &["`topics.texts`", "`topics.features`"]),
        ("[topics]\noutput = \"trials\"", &["`topics.trials`", "`topics.output`"]),
        ("[kafka]\nsession_timeout = \"10ms\"", &["`kafka.session_timeout`"]),
        ("[kafka]\nsession_timeout = \"31m\"", &["`kafka.session_timeout`"]),
        ("[kafka]\ntransaction_timeout = \"1s\"", &["`kafka.transaction_timeout`"]),
        ("[kafka]\ntransaction_timeout = \"16m\"", &["`kafka.transaction_timeout`"]),
        ("[train]\ncheckpoint_interval = \"0s\"", &["`train.checkpoint_interval`"]),
        ("[embed]\nmax_length = 2", &["`embed.max_length`"]),
        ("[embed]\nmax_length = 600", &["`embed.max_length`", "`embed.max_batch_tokens`"]),
        ("[embed]\nchunk_tokens = 511", &["`embed.chunk_tokens`", "`embed.max_batch_tokens`"]),
    ] {
        let message = message(from_text(text));
        for key in keys {
            assert!(message.contains(key), "{text}: {message}");
        }
    }
}

#[test]
fn properties_that_promises_rest_on_are_refused_with_what_to_set_instead() {
    for (name, instead) in [
        ("bootstrap.servers", "`kafka.bootstrap_servers`"),
        ("metadata.broker.list", "`kafka.bootstrap_servers`"),
        ("group.id", "`application_id`"),
        ("transactional.id", "`application_id`"),
        ("client.id", "`application_id`"),
        ("group.protocol", "`kafka.group_protocol`"),
        ("partition.assignment.strategy", "`kafka.group_protocol`"),
        ("group.instance.id", "`kafka.group_instance_id`"),
        ("session.timeout.ms", "`kafka.session_timeout`"),
        ("transaction.timeout.ms", "`kafka.transaction_timeout`"),
        ("isolation.level", "remove"),
        ("auto.offset.reset", "remove"),
        ("enable.auto.commit", "remove"),
        ("enable.auto.offset.store", "remove"),
        ("enable.idempotence", "remove"),
        ("enable.partition.eof", "remove"),
        ("acks", "remove"),
        ("request.required.acks", "remove"),
        ("max.in.flight", "remove"),
        ("max.in.flight.requests.per.connection", "remove"),
    ] {
        let message = message(from_text(&format!("[kafka.properties]\n\"{name}\" = \"1\"")));
        assert!(message.contains(name) && message.contains(instead), "{message}");
    }
}

#[test]
fn values_of_the_wrong_type_are_named_with_their_place() {
    for (text, key) in [
        ("[kafka]\nsession_timeout = 6", "kafka.session_timeout"),
        ("[embed]\nmax_length = 0", "embed.max_length"),
        ("[embed]\nrows = \"sentence\"", "embed.rows"),
        ("[input]\nformat = \"xml\"", "input.format"),
        ("[run]\nrebuilds_max = 0", "run.rebuilds_max"),
    ] {
        let message = message(from_text(text));
        assert!(message.contains(key) && message.contains("settings.toml"), "{message}");
    }
    assert!(message(layered(Some(Path::new("no/such.toml")), &[])).contains("no/such.toml"));
    assert!(message(from_text("kafka = [")).contains("settings.toml"));
}

/// What serde and its like say of Rust's types.
const FOREIGN_WORDS: [&str; 9] =
    ["expected", "invalid type", "invalid value", "variant", "u32", "usize", "f64", "struct", "sequence"];

#[track_caller]
fn assert_in_the_users_words(message: &str, wanted: &str) {
    assert!(message.contains(wanted), "{wanted:?} is not in: {message}");
    // Our own `reconstruct` ends like one of them.
    let message = message.replace("`reconstruct`", "");
    let foreign = FOREIGN_WORDS.iter().find(|word| message.contains(**word));
    assert_eq!(foreign, None, "{message}");
}

#[test]
fn what_a_setting_should_be_is_said_in_the_users_words() {
    for (text, wanted) in [
        ("[kafka]\nsession_timeout = 6", "is 6, not a time such as `10s`"),
        ("[kafka]\nsession_timeout = \"soon\"", "is \"soon\", not a time such as `10s`"),
        ("[kafka]\ngroup_protocol = \"modern\"", "is \"modern\", not one of `classic`, `consumer`"),
        ("[embed]\nmax_length = 0", "is 0, not a whole number from 1 to 9223372036854775807"),
        ("[embed]\nmax_length = \"long\"", "is \"long\", not a whole number from 1"),
        ("[embed]\nmax_length = 1.5", "is 1.5, not a whole number from 1"),
        ("[embed]\nsessions = -1", "is -1, not a whole number from 1"),
        ("[run]\nrebuilds_max = 5000000000", "is 5000000000, not a whole number from 1 to 4294967295"),
        ("[train]\nshared_bytes = []", "is a list, not a whole number from 0"),
        ("[embed]\nrows = \"tokn\"", "is \"tokn\", not one of `word`, `token`, `text`; did you mean `token`?"),
        ("[embed]\nrows = 3", "is 3, not one of `word`, `token`"),
        ("[embed]\nrows = [\"word\"]", "is a list, not one of `word`, `token`, `text`"),
        ("[embed]\nfrom_start = \"yes\"", "is \"yes\", not true or false"),
        ("[topics]\ntexts = 3", "is 3, not text"),
        ("[topics]\ndir = 3", "is 3, not a path"),
        ("kafka = 3", "is 3, not a table"),
    ] {
        assert_in_the_users_words(&message(from_text(text)), wanted);
    }
    let variable = message(layered(None, &[("SWEEPSTREAM_RUN__REBUILDS_MAX", "many")]));
    assert_in_the_users_words(&variable, "is \"many\", not a whole number from 1 to 4294967295");
}

#[test]
fn what_a_key_of_a_search_should_be_is_said_in_the_users_words() {
    for (text, wanted) in [
        ("name = \"s\"\nmodel = \"mlp\"\nlearning_rate = \"fast\"", "`learning_rate` is \"fast\", not a number"),
        ("name = \"s\"\nmodel = \"mlp\"\nbatch_size = -1", "is -1, not a whole number from 0 to 4294967295"),
        ("name = \"s\"\nmodel = \"mlp\"\nbatch_size = [8, \"x\"]", "is \"x\", not a whole number"),
        ("name = \"s\"\nmodel = \"mlp\"\nshuffle = 1", "`shuffle` is 1, not true or false"),
        (
            "name = \"s\"\nmodel = \"mpl\"",
            "is \"mpl\", not one of `attention`, `autoencoder`, `cnn`, `gru`, `linear`, `lstm`, `mlp`; did \
            you mean `mlp`?",
        ),
        ("name = \"s\"\nmodel = 1", "is 1, not one of `attention`, `autoencoder`, `cnn`"),
        (
            "name = \"s\"\nmodel = \"mlp\"\nobjective = \"accuracy\"",
            "not one of `validation_accuracy`, `validation_macro_f1`, `validation_mse`, `validation_mae`, \
             `validation_r2`, `validation_loss`, `loss`",
        ),
        ("name = \"s\"\nmodel = \"autoencoder\"\nlayers = [1, \"x\"]", "of which one is \"x\", not a whole number"),
        ("name = \"s\"\nmodel = \"mlp\"\nobjective = 1", "`objective` is 1, not one of `validation_accuracy`"),
        (
            "name = \"s\"\nmodel = \"mlp\"\ntask = \"clasify\"",
            "not one of `classify`, `regress`, `reconstruct`; did \
            you mean `classify`?",
        ),
        ("name = 3\nmodel = \"mlp\"", "`name` is 3, not text"),
        ("name = \"s\"\nmodel = \"mlp\"\nseed = \"x\"", "`seed` is \"x\", not a whole number"),
    ] {
        assert_in_the_users_words(&Search::parse(text).unwrap_err().to_string(), wanted);
    }
}

#[test]
fn what_a_declaration_of_a_topic_should_say_is_said_in_the_users_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.topics.dir = Some(folder.path().into());
    for (text, wanted) in [
        ("partitions = \"four\"\nreplication_factor = 1", "`partitions` is neither a whole number nor"),
        ("partitions = 4\nreplication_factor = \"all\"", "`replication_factor` is \"all\", not a whole number"),
        ("partitions = 4", "lacks the key `replication_factor`"),
        (
            "partitions = 4\nreplication_factor = 1\n[required]\n\"retention.ms\" = 7",
            "`required.retention.ms` is 7, not a table",
        ),
        ("partitions = 4\nreplication_factor = 1\nrequird = {}", "has no key `requird`; did you mean `required`?"),
    ] {
        std::fs::write(folder.path().join("texts.toml"), text).unwrap();
        let error = sweepstream::kafka::topics::Declarations::load(&settings).unwrap_err().to_string();
        assert!(error.contains("texts.toml"), "{error}");
        assert_in_the_users_words(&error, wanted);
    }
}

#[test]
fn values_from_outside_are_what_they_would_be_in_a_file() {
    let value =
        |value: &str| layered(None, &[("SWEEPSTREAM_EMBED__MAX_LENGTH", value)]).map(|s| s.embed.max_length.get());
    for (text, wanted) in [("128", 128), (" 128 ", 128), ("1_00", 100), ("0x80", 128)] {
        assert_eq!(value(text).unwrap(), wanted, "{text}");
    }
    for text in ["", "many", "1.5", "-1", "[1]", "{a = 1}", "1979-05-27", "128\nb = 1", "\"x\u{fffd}\\u0000\"", "nan"] {
        let message = message(value(text).map(|_| Settings::default()));
        assert!(message.contains("embed.max_length"), "{text}: {message}");
    }
    let flag = |text: &str| Settings::layered(None, [], &[("embed.from_start".into(), text.into())]);
    assert!(flag("true").unwrap().embed.from_start && flag("yes").is_err());
}

#[test]
fn text_settings_stay_text_whatever_they_look_like() {
    let environment = [
        ("SWEEPSTREAM_TOPICS__TEXTS", "007"),
        ("SWEEPSTREAM_KAFKA__GROUP_INSTANCE_ID", "0"),
        ("SWEEPSTREAM_EMBED__MODEL_DIR", "1"),
        ("SWEEPSTREAM_EMBED__SESSIONS", "1"),
    ];
    let settings = layered(None, &environment).unwrap();
    assert_eq!(settings.topics.texts, "007");
    assert_eq!(settings.kafka.group_instance_id.as_deref(), Some("0"));
    assert_eq!(settings.embed.sessions.map(std::num::NonZeroUsize::get), Some(1));
    let flags = [("application_id".to_owned(), "12".to_owned())];
    assert_eq!(Settings::layered(None, [], &flags).unwrap().application_id, "12");
}
