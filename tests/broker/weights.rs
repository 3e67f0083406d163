//! A trial is a function of its parameters, its seed and the records of its range, and of nothing else.

use sweepstream::train::store::start::Started;

use crate::lab::{assert_expected, dealt, is_validation, points, Lab, Transactions};
use crate::support::{embed, sentences, settings, Out};

const SEARCH: &str = r#"
name = "w"
objective = "validation_loss"
seed = 5
validation = 5
epochs = 3
batch_size = 8
rows_max = 3
window = 7
dropout = 0.3
[[trial]]
model = "mlp"
hidden = 5
learning_rate = 1e-2
[[trial]]
model = "autoencoder"
layers = [5, 3]
"#;

/// 31 records in the first partition, none in the second, 20 in the third, 9 in the last.
fn uneven() -> Vec<Out> {
    let partition = |number| match number {
        0..31 => 0,
        31..51 => 2,
        _ => 3,
    };
    points(60).into_iter().enumerate().map(|(number, record)| record.to(partition(number))).collect()
}

#[track_caller]
fn assert_same(lab: &Lab, searches: &[&Started], records: &[Out]) {
    let output = lab.output();
    for trial in searches.iter().flat_map(|search| &search.trials) {
        assert_expected(&output, trial, records);
    }
}

#[test]
fn windows_batches_optimizers_and_dropout_do_what_they_say() {
    let mut lab = Lab::new("oracle", 4);
    lab.settings.train.parallel = std::num::NonZeroUsize::new(6);
    let records = uneven();
    lab.fill(&records);
    let search = |window: u32| {
        lab.start(&format!(
            r#"
            name = "w{window}"
            seed = {window}
            validation = 5
            epochs = 2
            rows_max = 3
            window = {window}
            batch_size = [8, 500]
            [[trial]]
            model = "mlp"
            hidden = 5
            learning_rate = 1e-2
            shuffle = [true, false]
            dropout = [0, 0.4]
            [[trial]]
            model = "autoencoder"
            layers = [5, 3]
            optimizer = ["adamw", "sgd", "rmsprop"]
            batch_size = 16
            [[trial]]
            model = "mlp"
            optimizer = "sgd"
            momentum = 0.9
            batch_size = 1
            "#
        ))
    };
    let searches = [search(1), search(7), search(1000)];
    let searches: Vec<&Started> = searches.iter().collect();
    lab.train(&searches);
    assert_same(&lab, &searches, &records);
}

#[test]
fn every_kind_trains_by_its_recipe_and_says_which_classes_it_took_for_which() {
    let lab = Lab::new("kinds", 4);
    let records = uneven();
    lab.fill(&records);
    let search = lab.start(
        r#"
        name = "k"
        seed = 5
        validation = 5
        epochs = 3
        batch_size = 8
        rows_max = 3
        window = 7
        dropout = 0.3
        hidden = 4
        learning_rate = 1e-2
        schedule = ["constant", "linear", "cosine", "step"]
        warm_up = 2
        clip_norm = 0.5
        label_smoothing = 0.1
        class_weights = "balanced"
        baseline = true
        [[trial]]
        model = "cnn"
        channels = 4
        widths = [2, 3]
        [[trial]]
        model = "gru"
        bidirectional = true
        [[trial]]
        model = "lstm"
        [[trial]]
        model = "attention"
        heads = 2
        [[trial]]
        model = "autoencoder"
        layers = [4]
        "#,
    );
    assert_eq!(search.trials.len(), 21);
    let last = &search.trials[20];
    assert_eq!((last.model.name, last.number), ("linear", 20));
    lab.train(&[&search]);
    assert_same(&lab, &[&search], &records);
    let output = lab.output();
    for trial in &search.trials {
        let confusion = &output.outcome(&trial.trial)["confusion"];
        let told: u64 = confusion
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|row| row.as_array().unwrap())
            .map(|n| n.as_u64().unwrap())
            .sum();
        let held_out = records.iter().filter(|record| is_validation(record.key.as_deref().unwrap(), 5)).count() as u64;
        assert_eq!(told, if trial.model.name == "autoencoder" { 0 } else { held_out }, "{}", trial.trial);
    }
    let board = lab.command(&["search", "show", &search.id]).stdout;
    assert!(board.contains("always saying the most frequent class would reach: validation_accuracy 0."), "{board}");
    let shown = lab.command(&["search", "show", &last.trial]).stdout;
    assert!(shown.contains("PRECISION") && shown.contains("records of each label"), "{shown}");
}

#[test]
fn the_same_features_in_another_topic_give_the_same_weights() {
    let records = uneven();
    let (plain, transactional) = (Lab::new("plain", 4), Lab::new("transactional", 4));
    plain.fill(&records);
    let writer = Transactions::new(&transactional.settings);
    let topic = &transactional.settings.topics.features;
    let mut rest = records.as_slice();
    for size in (1..12).cycle() {
        if rest.is_empty() {
            break;
        }
        let (batch, later) = rest.split_at(size.min(rest.len()));
        // What is aborted takes offsets, too, and is never seen.
        writer.send(topic, &dealt(points(size % 3 + 1), 4));
        writer.abort();
        writer.send(topic, batch);
        writer.commit();
        rest = later;
    }
    for lab in [&plain, &transactional] {
        let search = lab.start(SEARCH);
        lab.train(&[&search]);
        assert_same(lab, &[&search], &records);
        let trial = &search.trials[0];
        assert_eq!(trial.records.values().copied().collect::<Vec<u64>>(), [31, 0, 20, 9]);
    }
}

#[test]
fn other_trials_parallelism_sharing_and_caches_change_no_weight() {
    let mut lab = Lab::new("beside", 3);
    let records = dealt(points(50), 3);
    lab.fill(&records);
    let mut searches = Vec::new();
    const ALL: usize = usize::MAX;
    const SHARED: usize = 128 * 1024 * 1024;
    for (parallel, threads, validation_cache, cache, shared, together) in [
        (1, 1, ALL, 0, SHARED, 1),
        (4, 2, ALL, ALL, SHARED, 2),
        (6, 1, ALL, 0, SHARED, 3),
        (4, 4, 0, 0, 0, 2),
        // Room for two windows: whoever is slower is left behind or waited for all the time.
        (6, 6, 0, 0, 1, 3),
        (2, 2, 0, ALL, 0, 1),
        (2, 1, 1000, 1000, SHARED, 1),
    ] {
        lab.settings.train.parallel = std::num::NonZeroUsize::new(parallel);
        lab.settings.train.threads = std::num::NonZeroUsize::new(threads);
        lab.settings.train.shared_bytes = shared;
        lab.settings.train.validation_cache_bytes = validation_cache;
        lab.settings.train.cache_bytes = cache;
        let started: Vec<Started> = (0..together).map(|_| lab.start(SEARCH)).collect();
        lab.train(&started.iter().collect::<Vec<_>>());
        searches.extend(started);
    }
    let searches: Vec<&Started> = searches.iter().collect();
    assert_same(&lab, &searches, &records);
    let output = lab.output();
    let values: Vec<_> = searches.iter().map(|search| output.values(&search.trials[0].trial)).collect();
    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{values:#?}");
}

#[test]
fn texts_embedded_again_in_other_batches_give_the_same_weights() {
    let texts = sentences(60);
    let weights = [(1024, 1, 512), (7, 2, 64)].map(|(chunk, sessions, tokens)| {
        let mut settings = settings("again");
        settings.embed.chunk_texts = chunk.try_into().unwrap();
        settings.embed.sessions = std::num::NonZeroUsize::new(sessions);
        settings.embed.max_batch_tokens = tokens.try_into().unwrap();
        embed(&settings, &texts);
        let lab = Lab { settings, folder: tempfile::tempdir().unwrap() };
        let search = lab.start(SEARCH);
        lab.train(&[&search]);
        let output = lab.output();
        [0, 1].map(|number| output.weights(&search.trials[number].trial))
    });
    assert_eq!(weights[0], weights[1]);
}
