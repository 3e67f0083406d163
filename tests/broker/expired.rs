//! Offsets that Kafka itself has forgotten, because nobody committed for as long as it keeps them.

use std::time::Duration;

use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::train::run::pool::TRAIN;

use crate::lab::{assert_expected, Lab};
use crate::support::{
    assert_one_verdict_each, committed, embed, embed_more, eventually, parts, produce, read, run, sentences, settings,
    In, Out,
};

#[test]
fn after_its_offsets_have_expired_embed_goes_on_after_its_output_and_a_trial_after_its_checkpoint() {
    let properties = [("offsets.retention.minutes", "1"), ("offsets.retention.check.interval.ms", "500")];
    let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = LocalBrokerOptions { properties, ..LocalBrokerOptions::default() };
    let broker = LocalBroker::start(parts().kafka().unwrap(), &options).expect("the local Kafka starts");
    let mut elsewhere = settings("expired");
    elsewhere.kafka.bootstrap_servers = broker.bootstrap_servers().to_owned();
    let mut lab = Lab::at(elsewhere, 2);
    lab.settings.train.checkpoint_interval = Duration::from_millis(5);
    let settings = &lab.settings;

    let mut texts = sentences(30);
    texts.push(Out::text("bad", " ").to(1));
    embed(settings, &texts);
    let features = read(settings, &settings.topics.features);
    let search = lab.start(
        "name = \"x\"\nseed = 5\nvalidation = 5\nwindow = 8\nbatch_size = 8\nmodel = \"mlp\"\nhidden = 4\nepochs = \
         200\ncheckpoint_every = 3",
    );
    let id = &search.trials[0].trial;
    run(settings, &[&TRAIN], |topology| topology.status.trials().get(id).is_some_and(|trial| trial.step >= 20));
    assert!(lab.trial(id).unwrap().get("outcome").is_none(), "the trial is not over");
    let measured = lab.output().measurements(id).len();

    let groups = [
        (settings.embed_group(), &settings.topics.texts),
        (settings.trial_group(id), &settings.topics.features),
        (settings.train_group(), &settings.topics.trials),
    ];
    for (group, topic) in &groups {
        assert!(!committed(settings, group, topic).is_empty(), "{group}");
    }
    eventually("offsets are forgotten", || {
        groups.iter().all(|(group, topic)| committed(settings, group, topic).is_empty())
    });

    produce(settings, &settings.topics.texts, &sentences(7));
    embed_more(settings, 7);
    assert_one_verdict_each(settings);
    lab.train(&[&search]);
    let output = lab.output();
    let out = |feature: In| Out {
        partition: Some(feature.partition),
        key: feature.key,
        value: feature.value,
        headers: feature.headers,
    };
    let records: Vec<Out> = features.into_iter().map(out).collect();
    assert_expected(&output, &search.trials[0], &records);
    assert!(output.measurements(id).len() > measured);
    let ends: i64 = committed(settings, &groups[1].0, groups[1].1).into_values().sum();
    assert!(ends >= 30, "the group shows where the trial stands again: {ends}");
}
