//! Where the embed stage begins: at committed offsets, at what its own output says, or not at all.

use std::collections::BTreeMap;

use sweepstream::topology::{Stage, Topology};

use crate::support::{
    assert_one_verdict_each, committed, create_topics, embed, embed_more, eventually, get, parts, produce, read, run,
    sentences, settings, sweepstream, Operator, Out, Transactions,
};

const EMBED: [&str; 4] = ["run", "--stage=embed", "-s", "embed.sessions=1"];

/// Sentences, and bad records as the last ones of partition 0.
fn mixed(good: usize, bad: usize) -> Vec<Out> {
    let mut records = sentences(good);
    records.extend((0..bad).map(|_| Out::text("bad", " ").to(0)));
    records
}

#[test]
fn a_forgotten_group_goes_on_where_its_output_ends() {
    let settings = settings("forgotten");
    embed(&settings, &mixed(40, 3));
    Operator::new(&settings).delete_group(&settings.embed_group());
    produce(&settings, &settings.topics.texts, &mixed(10, 1));
    embed_more(&settings, 11);
    assert_one_verdict_each(&settings);
}

#[test]
fn a_forgotten_group_that_only_wrote_dead_letters_does_not_write_them_again() {
    let settings = settings("forgotten-dead");
    embed(&settings, &mixed(0, 3));
    Operator::new(&settings).delete_group(&settings.embed_group());
    produce(&settings, &settings.topics.texts, &mixed(1, 0));
    embed_more(&settings, 1);
    assert_one_verdict_each(&settings);
}

#[test]
fn a_source_header_that_came_with_the_input_does_not_mislead_a_forgotten_group() {
    let settings = settings("forgotten-replay");
    let stale = format!("{}/0/1", settings.topics.texts);
    // A dead letter that was sent in again, with the headers it had.
    let replayed = Out { headers: vec![("source".into(), Some(stale.into_bytes()))], ..Out::text("bad", " ") }.to(0);
    let waves = || Out::text("good", "waves").to(0);
    embed(&settings, &[waves(), waves(), waves(), replayed]);
    Operator::new(&settings).delete_group(&settings.embed_group());
    produce(&settings, &settings.topics.texts, &[waves()]);
    embed_more(&settings, 1);
    assert_one_verdict_each(&settings);
}

#[test]
fn from_start_does_not_embed_again_what_can_be_recovered() {
    let mut settings = settings("forgotten-start");
    embed(&settings, &mixed(8, 1));
    Operator::new(&settings).delete_group(&settings.embed_group());
    produce(&settings, &settings.topics.texts, &mixed(2, 0));
    settings.embed.from_start = true;
    embed_more(&settings, 2);
    assert_one_verdict_each(&settings);
}

#[test]
fn features_of_unknown_source_stop_the_stage_until_from_start_is_given() {
    let settings = settings("foreign");
    create_topics(&settings);
    produce(&settings, &settings.topics.features, &[Out::text("foreign", "matrix").to(0)]);
    produce(&settings, &settings.topics.texts, &[Out::text("k", "waves").to(0)]);
    let refused = sweepstream(&settings, &EMBED);
    assert_eq!(refused.code, 70, "{}", refused.stderr);
    assert!(refused.stderr.contains("--from-start") && refused.stderr.contains(&settings.topics.features));
    assert_eq!(read(&settings, &settings.topics.features).len(), 1);
    let mut wanted = settings.clone();
    wanted.embed.from_start = true;
    embed_more(&wanted, 1);
    assert_eq!(read(&settings, &settings.topics.features)[1].key(), "k");
}

#[test]
fn texts_deleted_before_they_were_embedded_stop_the_stage_with_nothing_skipped() {
    let settings = settings("deleted");
    let waves: Vec<Out> = (0..10).map(|_| Out::text("k", "waves").to(0)).collect();
    embed(&settings, &waves);
    produce(&settings, &settings.topics.texts, &waves);
    Operator::new(&settings).delete_records(&settings.topics.texts, 0, 15);
    let stopped = sweepstream(&settings, &EMBED);
    assert_eq!(stopped.code, 70, "{}", stopped.stderr);
    let expected = format!("{}/0: group `{}` committed offset 10", settings.topics.texts, settings.embed_group());
    assert!(stopped.stderr.contains(&expected) && stopped.stderr.contains("15..20"), "{}", stopped.stderr);
    assert_eq!(committed(&settings, &settings.embed_group(), &settings.topics.texts), BTreeMap::from([(0, 10)]));
    assert_eq!(read(&settings, &settings.topics.features).len(), 10);
}

#[test]
fn a_position_beyond_the_end_stops_the_stage() {
    let settings = settings("beyond");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &[Out::text("k", "waves").to(2)]);
    Operator::new(&settings).commit(&settings.embed_group(), &settings.topics.texts, 2, 100);
    let stopped = sweepstream(&settings, &EMBED);
    assert_eq!(stopped.code, 70, "{}", stopped.stderr);
    let expected = format!("{}/2: group `{}` committed offset 100", settings.topics.texts, settings.embed_group());
    assert!(stopped.stderr.contains(&expected) && stopped.stderr.contains("0..1"), "{}", stopped.stderr);
    assert!(read(&settings, &settings.topics.features).is_empty());
}

#[test]
fn a_forgotten_group_whose_next_text_was_deleted_stops() {
    let settings = settings("forgotten-deleted");
    let waves: Vec<Out> = (0..4).map(|_| Out::text("k", "waves").to(0)).collect();
    embed(&settings, &waves);
    produce(&settings, &settings.topics.texts, &waves);
    let operator = Operator::new(&settings);
    operator.delete_group(&settings.embed_group());
    operator.delete_records(&settings.topics.texts, 0, 6);
    let stopped = sweepstream(&settings, &EMBED);
    assert_eq!(stopped.code, 70, "{}", stopped.stderr);
    assert!(stopped.stderr.contains(&format!("{}/0", settings.topics.texts)), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("deleted before they were embedded"), "{}", stopped.stderr);
    assert_eq!(read(&settings, &settings.topics.features).len(), 4);
}

#[test]
fn an_open_transaction_of_a_predecessor_is_waited_for_and_the_stage_is_not_ready_meanwhile() {
    let settings = settings("pending");
    create_topics(&settings);
    let waves: Vec<Out> = (0..6).map(|i| Out::text(&format!("k{i}"), "waves").to(0)).collect();
    produce(&settings, &settings.topics.texts, &waves);
    // A predecessor has written verdicts up to offset 4 and not committed yet.
    let predecessor = Transactions::new(&settings);
    predecessor.send(&settings.topics.features, 0, &["by", "the", "other", "one"]);
    predecessor.send_offset(&settings, &settings.embed_group(), &settings.topics.texts, 0, 4);
    let topology = Topology::start(&settings, &parts(), &[Stage::Embed]).unwrap();
    let address = topology.http_address().unwrap().to_string();
    assert_eq!(get(&address, "/health/live").0, 200);
    assert_eq!(get(&address, "/health/ready").0, 503);
    predecessor.commit();
    eventually("the rest is embedded", || topology.status.verdicts().0 == 2);
    assert_eq!(get(&address, "/health/ready").0, 200);
    topology.stop().unwrap();
    let keys: Vec<String> = read(&settings, &settings.topics.features).iter().map(|feature| feature.key()).collect();
    assert_eq!(keys, ["", "", "", "", "k4", "k5"]);
}

#[test]
fn a_restart_with_nothing_new_writes_nothing() {
    let settings = settings("idle");
    embed(&settings, &sentences(5));
    run(&settings, &[Stage::Embed], |topology| topology.status.ready());
    assert_one_verdict_each(&settings);
}
