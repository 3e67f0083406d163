//! A process that was frozen for longer than its group waits, and wakes at the worst place: what it took for its own
//! belongs to somebody else, and it publishes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sweepstream::config::{GroupProtocol, Settings};
use sweepstream::coordinates::Positions;
use sweepstream::kafka::client;
use sweepstream::kafka::consumer::{Member, Rebalance};
use sweepstream::kafka::lease::Lease;
use sweepstream::kafka::transaction::TransactionalProducer;
use sweepstream::kafka::wake::Wake;
use sweepstream::kafka::Class;

use crate::case;
use crate::deaths::{
    assert_embedded, assert_trained_by, lab, quick, search, with_texts, EMBED_STAGE, TEXTS, TRAIN_STAGE,
};
use crate::program::{await_freeze, start, stop};
use crate::support::{create_topics, eventually, settings, Process, Progress, PATIENCE};

pub fn tests() -> Vec<Trial> {
    let protocols = [("classic", GroupProtocol::Classic), ("kip_848", GroupProtocol::Consumer)];
    let of = |(name, protocol): (&str, GroupProtocol)| {
        [
            case(format!("frozen_before_it_takes_partitions_it_embeds_nothing_under_{name}"), move || {
                embed_frozen_before_taking(protocol);
            }),
            case(format!("frozen_before_its_records_it_embeds_nothing_under_{name}"), move || {
                embed_frozen_in_a_transaction(protocol, "embed.commit.after_begin");
            }),
            case(format!("frozen_after_its_records_it_embeds_nothing_under_{name}"), move || {
                embed_frozen_in_a_transaction(protocol, "embed.commit.after_sends");
            }),
            case(format!("frozen_before_a_commit_it_may_still_commit_under_{name}"), move || {
                embed_frozen_before_its_commit(protocol);
            }),
            case(format!("frozen_before_it_fences_the_owner_it_publishes_nothing_under_{name}"), move || {
                train_frozen_before_fencing(protocol);
            }),
            case(format!("proof_taken_after_the_group_moved_on_is_refused_under_{name}"), move || {
                late_proof(protocol, false);
            }),
            case(format!("proof_renewed_after_the_group_moved_on_is_refused_under_{name}"), move || {
                late_proof(protocol, true);
            }),
        ]
    };
    protocols.into_iter().flat_map(of).collect()
}

fn with(mut settings: Settings, protocol: GroupProtocol) -> Settings {
    settings.kafka.group_protocol = protocol;
    settings
}

/// Ends both processes and checks what they have embedded together.
#[track_caller]
fn assert_embedded_by_both(settings: &Settings, both: [Process; 2]) {
    both.into_iter().for_each(stop);
    assert_embedded(settings);
}

fn embed_frozen_before_taking(protocol: GroupProtocol) {
    let settings = with(with_texts("frozen"), protocol);
    let zombie = start(&settings, "kafka.member.take=freeze@1", &EMBED_STAGE);
    await_freeze(&zombie, "kafka.member.take");
    let owner = start(&settings, "", &EMBED_STAGE);
    Progress::of(&settings).await_done(4 * TEXTS);
    zombie.signal("CONT");
    // It learns what has happened, and shares the partitions like anybody else.
    let _ = zombie.await_line("owned=2");
    assert_embedded_by_both(&settings, [zombie, owner]);
}

/// What Kafka does not know of yet, the group refuses; what is open when somebody else comes, that one ends. Whether
/// records have left the process when it freezes, or the transaction before has quite ended, nobody can tell.
fn embed_frozen_in_a_transaction(protocol: GroupProtocol, point: &str) {
    let mut settings = with(with_texts("frozen"), protocol);
    // The transaction outlives the sleep.
    settings.kafka.transaction_timeout = Duration::from_secs(60);
    let zombie = start(&settings, &format!("{point}=freeze@2"), &EMBED_STAGE);
    await_freeze(&zombie, point);
    let owner = start(&settings, "", &EMBED_STAGE);
    Progress::of(&settings).await_done(4 * TEXTS);
    zombie.signal("CONT");
    let refused = zombie.await_line("a transaction of the embed stage failed");
    assert!(refused.contains("class=Stale") || refused.contains("class=Fenced"), "{refused}");
    let _ = zombie.await_line("owned=2");
    assert_embedded_by_both(&settings, [zombie, owner]);
}

fn embed_frozen_before_its_commit(protocol: GroupProtocol) {
    let mut settings = with(with_texts("frozen"), protocol);
    settings.kafka.transaction_timeout = Duration::from_secs(60);
    let zombie = start(&settings, "embed.commit.after_offsets=freeze@2", &EMBED_STAGE);
    await_freeze(&zombie, "embed.commit.after_offsets");
    let owner = start(&settings, "embed.recover.positions=tell", &EMBED_STAGE);
    let _ = owner.await_line("passes embed.recover.positions");
    // Kafka took its offsets while it was a member: who comes after it waits for what becomes of them.
    zombie.signal("CONT");
    Progress::of(&settings).await_done(4 * TEXTS);
    assert_embedded_by_both(&settings, [zombie, owner]);
}

fn train_frozen_before_fencing(protocol: GroupProtocol) {
    let mut lab = lab("frozen");
    lab.settings = with(lab.settings, protocol);
    let search = search(&lab);
    let (go_on, wake) = (lab.file("go-on"), lab.file("wake"));
    // Its pool never learns that anything has happened before the trial's thread has done its worst.
    let plan = format!(
        "train.publish.before_init=freeze@1;train.publish.after_init=tell;train.pool.serve_group=numb@{}",
        wake.display()
    );
    let zombie = start(&lab.settings, &plan, &TRAIN_STAGE);
    await_freeze(&zombie, "train.publish.before_init");
    let owner = start(&lab.settings, &format!("train.trial.published=hold@{}", go_on.display()), &TRAIN_STAGE);
    let _ = owner.await_line("holds at train.trial.published");
    zombie.signal("CONT");
    let _ = zombie.await_line("passes train.publish.after_init");
    let refused = zombie.await_line("a trial could not be claimed");
    assert!(refused.contains("class=Stale"), "{refused}");
    std::fs::write(&go_on, "").unwrap();
    let fenced = owner.await_line("a transaction of a trial failed");
    assert!(fenced.contains("class=Fenced"), "{fenced}");
    let _ = owner.await_line("trial interrupted");
    std::fs::write(&wake, "").unwrap();
    let id = &search.trials[0].trial;
    lab.await_end(id);
    stop(zombie);
    assert_trained_by(owner, &lab, &search.trials[0]);
}

/// The same at the level of one member: it takes its partitions, or renews its proof in order to give some back, when
/// the group has given it up already.
fn late_proof(protocol: GroupProtocol, renewing: bool) {
    let settings = with(quick(settings("proof")), protocol);
    create_topics(&settings);
    let mut config = client::group_member(&settings, &settings.embed_group());
    // For so long the group waits for the answer to a rebalance, and the client for a poll.
    let silence = Duration::from_secs(3);
    let _ = config.set("max.poll.interval.ms", silence.as_millis().to_string());
    let mut member = Member::join(&config, &settings.topics.texts, Wake::default()).unwrap();
    let assigned = await_rebalance(&mut member);
    assert_eq!(assigned, Rebalance::Assigned(vec![0, 1, 2, 3]));
    let all = [(0, 0), (1, 0), (2, 0), (3, 0)];
    if renewing {
        member.take(&all.into()).unwrap();
    }
    let mut other = Member::join(&config, &settings.topics.texts, Wake::default()).unwrap();
    if renewing {
        while !matches!(await_rebalance(&mut member), Rebalance::Revoked(_)) {
            member.take(&Positions::default()).unwrap();
        }
    }
    // It stays away until somebody else has all of it.
    let away = Instant::now();
    let mut owned = Vec::new();
    while owned.len() < 4 {
        if let Rebalance::Assigned(partitions) = await_rebalance(&mut other) {
            other.take(&partitions.iter().map(|&partition| (partition, 0)).collect()).unwrap();
            owned.extend(partitions);
        }
    }
    if renewing {
        member.renew();
    } else {
        member.take(&all.into()).unwrap();
    }
    // Whoever is slow now must not look silent, too.
    let (theirs, ours) = (Arc::clone(other.lease()), Arc::clone(member.lease()));
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let poll_other = move || {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            drop(other.poll_group());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let polling = std::thread::Builder::new().spawn(poll_other).unwrap();
    let metadata = |lease: &Lease| lease.hold().metadata.clone().unwrap();
    let class = |metadata: &ConsumerGroupMetadata| {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&settings.topics.texts, 0, Offset::Offset(1)).unwrap();
        let mut producer = TransactionalProducer::new(&settings, &settings.embed_group(), &[]).unwrap();
        let mut transaction = producer.begin().unwrap();
        let result = transaction.send_offsets(&offsets, metadata).and_then(|()| transaction.commit());
        result.map_err(|error| error.class())
    };
    assert_eq!(class(&metadata(&ours)), Err(Class::Stale));
    assert_eq!(class(&metadata(&theirs)), Ok(()));
    // Its client looks twice a second whether it was silent for too long: a poll just before would hide that.
    std::thread::sleep((silence + Duration::from_secs(2)).saturating_sub(away.elapsed()));
    // Where it is told that everything is lost, or stayed silent too long, it owes an answer; closing waits for that.
    eventually("the member is told", || !matches!(member.poll_group(), Ok(None)));
    let (dropped, wait) = std::sync::mpsc::channel();
    let leave = move || {
        drop(member);
        dropped.send(()).unwrap();
    };
    drop(std::thread::Builder::new().spawn(leave).unwrap());
    wait.recv_timeout(PATIENCE).expect("the member leaves");
    drop(stop);
    polling.join().unwrap();
}

fn await_rebalance(member: &mut Member) -> Rebalance {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "no rebalance");
        match member.poll_group() {
            Ok(Some(rebalance)) => return rebalance,
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => assert!(error.passes_by_itself(), "{error}"),
        }
    }
}
