//! The output of a long search does not grow without bound, and compaction never makes a checkpoint out of two.

use crate::lab::{assert_expected, dealt, points, Lab, Transactions};
use crate::support::{eventually, read, read_as, Operator, Out};

/// Checkpoints of 900 kB, one after each epoch.
const SEARCH: &str = r#"
name = "long"
seed = 5
validation = 5
batch_size = 64
model = "mlp"
hidden = 8000
epochs = 150
"#;

/// Kafka's least.
const SEGMENT_BYTES: usize = 1024 * 1024;

fn lab() -> Lab {
    let mut lab = Lab::with_points("retention", 1, 20);
    lab.settings.kafka.group_instance_id = Some("only".into());
    let operator = Operator::new(&lab.settings);
    for (key, value) in [
        ("segment.bytes", SEGMENT_BYTES.to_string().as_str()),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("max.compaction.lag.ms", "100"),
        ("delete.retention.ms", "100"),
    ] {
        operator.alter(&lab.settings.topics.output, key, value);
    }
    lab
}

fn bytes(records: &[Out]) -> usize {
    records.iter().filter_map(|record| record.value.as_ref()).map(Vec::len).sum()
}

#[test]
fn superseded_checkpoints_are_compacted_away_and_no_reader_takes_a_mix() {
    let lab = lab();
    let search = lab.start(SEARCH);
    let (trial, output) = (&search.trials[0], &lab.settings.topics.output);
    let committed = |key: &str| read(&lab.settings, output).iter().filter(|record| record.key().ends_with(key)).count();
    let checkpoints = || {
        let newest = lab.output().manifests(&trial.trial).pop();
        newest.map_or(0, |(_, manifest)| manifest["checkpoint"].as_u64().unwrap())
    };
    let mut aborted = 0;
    for _ in 0..3 {
        let mut process = lab.trainer("log");
        let before = checkpoints();
        let (mut seen, mut interleaved) = (before, 0);
        eventually("it has come further", || {
            let number = checkpoints();
            // Somebody else's checkpoint in the same slots, never committed.
            if number > seen {
                seen = number;
                let other = Transactions::new(&lab.settings);
                let partition = lab.output().0[0].partition;
                let record = |key: &str, value: &[u8]| {
                    Out {
                        key: Some(format!("{}/checkpoint/{key}", trial.trial).into()),
                        value: Some(value.into()),
                        ..Out::default()
                    }
                    .to(partition)
                };
                let records = [record("0/0", &[7; 800_000]), record("1/0", &[7; 800_000]), record("0/manifest", b"{}")];
                other.send(output, &records);
                other.abort();
                aborted += bytes(&records);
                interleaved += 1;
            }
            // However many checkpoints one look takes.
            number >= before + 4 && interleaved >= 2
        });
        process.signal("KILL");
        let _ = process.wait();
    }
    lab.train(&[&search]);
    assert!(!lab.log("log").contains("damaged"), "{}", lab.log("log"));
    assert_eq!(lab.log("log").matches("goes on from its checkpoint").count(), 2, "{}", lab.log("log"));
    assert_expected(&lab.output(), trial, &dealt(points(20), 1));
    assert!(aborted > 5_000_000, "{aborted}");
    // Live are the newest checkpoint, the one before it and the best, and what is in the open segment.
    let everything = || -> usize {
        read_as(&lab.settings, output, "read_uncommitted").iter().filter_map(|r| r.value.as_ref()).map(Vec::len).sum()
    };
    let checkpoint: usize = 900_000;
    eventually("what is superseded is gone", || everything() <= 2 * checkpoint * 3 + 2 * SEGMENT_BYTES);
    assert_eq!(committed("/outcome"), 1);
}
