//! Is the harness itself sound? A judge that sees nothing would let everything pass.

use std::collections::BTreeSet;

use crate::inputs::{input, Input, PARTITIONS};
use crate::judge::{same_bytes, same_result, verdicts, Complaints, Output};
use crate::schedule::{long, short};
use crate::support::In;

/// What an application leaves that makes no mistakes: texts, features, dead letters.
fn flawless(inputs: &[Input]) -> [Vec<In>; 3] {
    let mut topics = [Vec::new(), Vec::new(), Vec::new()];
    let mut ends = [[0; PARTITIONS as usize]; 3];
    for input in inputs {
        let partition = input.out.partition.unwrap();
        let text_offset = ends[0][partition as usize];
        let verdict = if input.valid { 1 } else { 2 };
        for topic in [0, verdict] {
            let end = &mut ends[topic][partition as usize];
            let record = In {
                partition,
                offset: *end,
                key: input.out.key.clone(),
                value: input.out.value.clone(),
                headers: vec![("source".into(), Some(format!("texts/{partition}/{text_offset}").into()))],
            };
            topics[topic].push(record);
            *end += 1;
        }
    }
    topics.each_mut().iter_mut().for_each(|topic| topic.sort_by_key(|record| (record.partition, record.offset)));
    topics
}

/// Complaints after something was done to features and dead letters.
fn complaints(spoil: impl FnOnce(&mut Vec<In>, &mut Vec<In>)) -> Complaints {
    let inputs: Vec<Input> = (0..120).map(input).collect();
    let [texts, mut features, mut dead] = flawless(&inputs);
    let undisturbed = features.clone();
    spoil(&mut features, &mut dead);
    let mut complaints = verdicts(&inputs, &texts, &features, &dead);
    complaints.extend(same_bytes("features", &features, &undisturbed));
    complaints
}

pub fn the_judge_sees_every_wrong_verdict() {
    assert!(complaints(|_, _| {}).is_empty());
    let seen = |spoil: fn(&mut Vec<In>, &mut Vec<In>), word: &str| {
        let complaints = complaints(spoil);
        assert!(complaints.iter().any(|complaint| complaint.contains(word)), "{word}: {complaints:?}");
    };
    seen(|features, _| drop(features.remove(7)), "missing");
    seen(|_, dead| drop(dead.pop()), "missing");
    seen(|features, _| features.push(features[3].clone()), "too often");
    seen(|_, dead| dead.push(dead[0].clone()), "too often");
    seen(|features, _| features.swap(4, 5), "order");
    seen(|features, _| features[9].partition += 1, "missing");
    seen(|features, dead| dead.push(features[2].clone()), "too often");
    seen(|features, _| features[1].value = Some(b"other".to_vec()), "is another");
    seen(|features, _| features[1].headers[0].1 = Some(b"texts/0/77".to_vec()), "source");
}

/// Output of a trial that measured twice, was better the first time and finished.
fn output() -> Vec<In> {
    let sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"; // of `x`
    let manifest = |checkpoint: u64, epoch: u64, step: u64| {
        let progress = format!(r#"{{"epoch":{epoch},"step":{step},"best":{{"step":4}}}}"#);
        format!(r#"{{"checkpoint":{checkpoint},"chunks":1,"sha256":"{sha256}","progress":{progress}}}"#)
    };
    let records = [
        ("t/measurement/1/4", r#"{"epoch":1,"step":4,"loss":0.5,"time_ms":1}"#.to_owned()),
        ("t/measurement/2/8", r#"{"epoch":2,"step":8,"loss":0.4,"time_ms":2}"#.to_owned()),
        ("t/checkpoint/0/0", "x".to_owned()),
        ("t/checkpoint/0/manifest", manifest(4, 2, 8)),
        ("t/outcome", r#"{"state":"finished","weights_sha256":"w"}"#.to_owned()),
        ("t/checkpoint/2/0", "x".to_owned()),
        ("t/checkpoint/2/manifest", manifest(2, 1, 4)),
    ];
    let record = |(offset, (key, value)): (i64, (&str, String))| In {
        partition: 0,
        offset,
        key: Some(key.into()),
        value: Some(value.into_bytes()),
        headers: Vec::new(),
    };
    (0..).zip(records).map(record).collect()
}

pub fn the_judge_sees_every_wrong_result() {
    let flawless = output();
    let wanted = Output::new(&flawless).result("t").unwrap();
    let seen = |spoil: fn(&mut Vec<In>), word: &str| {
        let mut records = output();
        spoil(&mut records);
        let complaints = match Output::new(&records).result("t") {
            Ok(found) => same_result("t", &found, &wanted, "another"),
            Err(complaint) => vec![complaint],
        };
        assert!(complaints.iter().any(|complaint| complaint.contains(word)), "{word}: {complaints:?}");
    };
    let later = |records: &mut Vec<In>, place: usize, from: &str, to: &str| {
        let value = String::from_utf8(records[place].value.clone().unwrap()).unwrap();
        records[place].value = Some(value.replace(from, to).into_bytes());
    };
    assert!(same_result("t", &Output::new(&output()).result("t").unwrap(), &wanted, "another").is_empty());
    seen(|records| drop(records.remove(0)), "missing [(1, 4)]");
    seen(|records| records.push(records[0].clone()), "2 measurements");
    seen(|records| records.push(records[4].clone()), "2 outcomes");
    seen(|records| drop(records.remove(4)), "0 outcomes");
    seen(|records| drop(records.pop()), "lacks the weights of step 4");
    seen(|records| records[5].value = Some(b"y".to_vec()), "chunks");
    seen(|records| records[2].value = Some(b"y".to_vec()), "chunks");
    seen(|records| drop(records.remove(2)), "lacks chunk");
    let spoiled = |place, from, to| {
        let mut records = output();
        later(&mut records, place, from, to);
        Output::new(&records).result("t").map(|found| same_result("t", &found, &wanted, "another"))
    };
    assert_eq!(spoiled(0, "0.5", "0.25").unwrap().len(), 1, "another loss");
    assert_eq!(spoiled(4, "\"w\"", "\"v\"").unwrap().len(), 1, "other weights");
    assert_eq!(spoiled(3, "\"step\":8", "\"step\":7").unwrap().len(), 1, "another step");
    assert!(spoiled(4, "finished", "failed").is_err());
    assert!(spoiled(0, ":1}", ":9}").unwrap().is_empty(), "time does not count");
}

pub fn a_seed_gives_one_schedule_with_every_fault() {
    assert_eq!(long(3, 100), long(3, 100));
    assert_ne!(long(3, 100), long(4, 100));
    assert_eq!(short(3), short(3));
    let steps = long(5, 50);
    let faults = || steps.iter().flat_map(|step| &step.events).map(|event| event.fault);
    assert!(faults().map(|fault| fault.kills()).sum::<u32>() >= 50);
    assert_eq!(faults().collect::<BTreeSet<_>>().len(), 17, "each kind");
    assert!(steps.iter().any(|step| step.events.len() > 1), "some mixed");
    assert!(steps.iter().any(|step| step.events.len() == 1), "some single");
}
