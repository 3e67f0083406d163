//! Where the embed stage begins: at committed offsets, at what its own output says, or not at all.

use std::collections::BTreeMap;

use sweepstream::config::Settings;
use sweepstream::embed::stage::EMBED;
use sweepstream::topology::Topology;

use crate::support::{
    assert_one_verdict_each, committed, create_topics, embed, embed_more, eventually, get, parts, produce, read, run,
    sentences, settings, sweepstream, In, Operator, Out, Process, Progress, Transactions,
};

const RUN: [&str; 4] = ["run", "--stage=embed", "-s", "embed.sessions=1"];

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
    let refused = sweepstream(&settings, &RUN);
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
    let stopped = sweepstream(&settings, &RUN);
    assert_eq!(stopped.code, 70, "{}", stopped.stderr);
    let expected = format!("{}/0: group `{}` committed offset 10", settings.topics.texts, settings.embed_group());
    assert!(stopped.stderr.contains(&expected) && stopped.stderr.contains("15..20"), "{}", stopped.stderr);
    let positions = committed(&settings, &settings.embed_group(), &settings.topics.texts);
    assert_eq!(positions, BTreeMap::from([(0, 10), (1, 0), (2, 0), (3, 0)]));
    assert_eq!(read(&settings, &settings.topics.features).len(), 10);
}

#[test]
fn a_position_beyond_the_end_stops_the_stage() {
    let settings = settings("beyond");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &[Out::text("k", "waves").to(2)]);
    Operator::new(&settings).commit(&settings.embed_group(), &settings.topics.texts, 2, 100);
    let stopped = sweepstream(&settings, &RUN);
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
    let stopped = sweepstream(&settings, &RUN);
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
    let topology = Topology::start(&settings, &parts(), &[&EMBED]).unwrap();
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
fn an_open_transaction_of_an_owner_that_died_is_ended_by_its_successor() {
    let settings = settings("died");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &verses("waves", 6));
    // It has written its name, and stays in the midst of its first transaction for longer than any test waits.
    let operator = Operator::new(&settings);
    let (group, texts) = (settings.embed_group(), &settings.topics.texts);
    let owner = Transactions::lasting(&settings, &format!("{group}.dead"));
    operator.commit_with(&group, texts, 0, 0, &format!("sweepstream {group}.dead"));
    owner.send(&settings.topics.features, 0, &["never", "seen"]);
    owner.send_offset(&settings, &group, texts, 0, 2);
    embed_more(&settings, 6);
    assert_one_verdict_each(&settings);
    // Also when it had not come to its offsets yet.
    let owner = Transactions::lasting(&settings, &format!("{group}.dead"));
    operator.commit_with(&group, texts, 0, 6, &format!("sweepstream {group}.dead"));
    owner.send(&settings.topics.features, 0, &["never", "seen"]);
    produce(&settings, texts, &verses("tide", 3));
    embed_more(&settings, 3);
    assert_one_verdict_each(&settings);
}

#[test]
fn a_restart_with_nothing_new_writes_nothing() {
    let settings = settings("idle");
    embed(&settings, &sentences(5));
    run(&settings, &[&EMBED], |topology| topology.status.ready());
    assert_one_verdict_each(&settings);
}

/// Texts in partition 0 that start with this word.
fn verses(word: &str, count: usize) -> Vec<Out> {
    (0..count).map(|i| Out::text(&format!("k{i}"), &format!("{word} {i}")).to(0)).collect()
}

/// The stage ends by itself, writes nothing, and names the first partition of texts.
#[track_caller]
fn assert_refused(settings: &Settings, why: &[&str]) {
    let topics = [&settings.topics.features, &settings.topics.dead_letters];
    let before = topics.map(|topic| read(settings, topic).len());
    let refused = sweepstream(settings, &RUN);
    assert_eq!(refused.code, 70, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("{}/0", settings.topics.texts)), "{}", refused.stderr);
    for part in why {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    assert_eq!(topics.map(|topic| read(settings, topic).len()), before);
}

#[test]
fn a_group_that_was_reset_by_hand_is_refused_and_goes_on_when_it_is_deleted() {
    let settings = settings("reset");
    embed(&settings, &verses("waves", 10));
    produce(&settings, &settings.topics.texts, &verses("tide", 10));
    let operator = Operator::new(&settings);
    let group = settings.embed_group();
    operator.commit(&group, &settings.topics.texts, 0, 4);
    assert_refused(&settings, &["set to offset 4", "at offset 9", "4..10 would be embedded twice"]);
    operator.commit(&group, &settings.topics.texts, 0, 15);
    assert_refused(&settings, &["set to offset 15", "10..15 would be left out"]);
    operator.delete_group(&group);
    embed_more(&settings, 10);
    assert_one_verdict_each(&settings);
}

#[test]
fn a_group_that_was_set_to_where_it_was_or_where_deleted_texts_end_goes_on() {
    let settings = settings("reset-right");
    embed(&settings, &verses("waves", 6));
    produce(&settings, &settings.topics.texts, &verses("tide", 6));
    let operator = Operator::new(&settings);
    operator.commit(&settings.embed_group(), &settings.topics.texts, 0, 6);
    embed_more(&settings, 6);
    assert_one_verdict_each(&settings);
    produce(&settings, &settings.topics.texts, &verses("surf", 6));
    operator.delete_records(&settings.topics.texts, 0, 15);
    operator.commit(&settings.embed_group(), &settings.topics.texts, 0, 15);
    embed_more(&settings, 3);
    let values: Vec<String> = read(&settings, &settings.topics.features).iter().map(In::key).collect();
    assert_eq!(values[12..], ["k3", "k4", "k5"]);
}

#[test]
fn a_group_that_was_set_before_the_first_start_begins_there() {
    let settings = settings("set");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &verses("waves", 6));
    Operator::new(&settings).commit(&settings.embed_group(), &settings.topics.texts, 0, 4);
    embed_more(&settings, 2);
    assert_eq!(read(&settings, &settings.topics.features)[0].key(), "k4");
}

#[test]
fn a_topic_that_was_recreated_while_nobody_looked_is_refused() {
    for (name, words, count, why) in
        [("new-more", "tide", 20, "another one is there now"), ("new-fewer", "waves", 5, "but the log holds 0..5")]
    {
        let settings = settings(name);
        embed(&settings, &verses("waves", 10));
        Operator::new(&settings).recreate_topic(&settings.topics.texts);
        produce(&settings, &settings.topics.texts, &verses(words, count));
        assert_refused(&settings, &["the topic was recreated", why]);
    }
}

#[test]
fn a_topic_that_was_recreated_with_the_same_texts_goes_on() {
    let settings = settings("new-same");
    embed(&settings, &verses("waves", 10));
    Operator::new(&settings).recreate_topic(&settings.topics.texts);
    produce(&settings, &settings.topics.texts, &verses("waves", 12));
    embed_more(&settings, 2);
    assert_one_verdict_each(&settings);
}

#[test]
fn a_topic_that_is_recreated_and_refilled_under_a_running_stage_stops_it() {
    let settings = settings("new-running");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &verses("waves", 10));
    let mut process = Process::start(&settings, &RUN);
    Progress::of(&settings).await_done(10);
    // Asleep, so that it does not happen to see the new topic while it is empty.
    process.signal("STOP");
    Operator::new(&settings).recreate_topic(&settings.topics.texts);
    produce(&settings, &settings.topics.texts, &verses("tide", 200));
    process.signal("CONT");
    assert_eq!(process.wait().code(), Some(70), "{}", process.stderr());
    let log = process.stderr();
    assert!(log.contains(&format!("{}/0", settings.topics.texts)) && log.contains("created"), "{log}");
    assert_eq!(read(&settings, &settings.topics.features).len(), 10);
    assert_refused(&settings, &["the topic was recreated"]);
}

#[test]
fn output_that_was_removed_is_noticed() {
    let settings = settings("removed");
    embed(&settings, &verses("waves", 3));
    Operator::new(&settings).recreate_topic(&settings.topics.features);
    assert_refused(&settings, &["below offset 3", "has never held a record", "delete the group"]);
    Operator::new(&settings).delete_group(&settings.embed_group());
    embed_more(&settings, 3);
    assert_one_verdict_each(&settings);
}

#[test]
fn a_partition_that_begins_late_and_has_no_output_yet_begins_there_again() {
    let settings = settings("late");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &verses("waves", 6));
    Operator::new(&settings).commit(&settings.embed_group(), &settings.topics.texts, 0, 6);
    // Starts that find nothing to do.
    for _ in 0..2 {
        run(&settings, &[&EMBED], |topology| topology.status.ready());
    }
    produce(&settings, &settings.topics.texts, &[Out::text("new", "tide").to(0)]);
    embed_more(&settings, 1);
    let keys: Vec<String> = read(&settings, &settings.topics.features).iter().map(In::key).collect();
    assert_eq!(keys, ["new"]);
}
