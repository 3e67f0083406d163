//! Dead at a named point, the program's successor ends with the same result as if nothing had happened.

use std::time::Duration;

use libtest_mimic::Trial;
use sweepstream::config::Settings;
use sweepstream::search::record::TrialRecord;
use sweepstream::train::store::checkpoint::sha256_hex;
use sweepstream::train::store::export::{export, Which};
use sweepstream::train::store::find;
use sweepstream::train::store::start::Started;

use crate::case;
use crate::lab::{assert_expected, contradicted, dealt, expected, points, Lab};
use crate::program::{await_death, start, stop};
use crate::support::{
    assert_one_verdict_each, committed, create_topics, eventually, produce, read_as, settings, Out, Process, Progress,
};

/// Every point at which the program dies in some test here.
pub const POINTS: [&str; 30] = [
    "embed.commit.new_producer",
    "embed.commit.before_begin",
    "embed.commit.after_begin",
    "embed.commit.between_sends",
    "embed.commit.after_sends",
    "embed.commit.after_offsets",
    "embed.commit.after_commit",
    "embed.commit.after_report",
    "embed.recover.positions",
    "embed.source.drain",
    "kafka.member.take",
    "kafka.member.renew",
    "kafka.member.release",
    "kafka.transaction.delivered",
    "train.pool.assigned",
    "train.pool.drain",
    "train.pool.serve_group",
    "train.publish.before_init",
    "train.publish.after_init",
    "train.publish.before_begin",
    "train.publish.before_record",
    "train.publish.after_records",
    "train.publish.after_group_offsets",
    "train.publish.after_owner_offsets",
    "train.publish.after_commit",
    "train.trial.restored",
    "train.trial.published",
    "train.trial.yield",
    "train.trial.before_outcome",
    "train.trial.after_outcome",
];

/// What makes the program come to the point.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// Its work.
    Working,
    /// SIGTERM in mid-stream.
    Stopping,
    /// A second process that wants its share.
    Sharing,
}

/// Points of the embed stage, at which passing it dies, and what leads there.
const EMBED: [(&str, usize, By); 16] = [
    ("embed.commit.new_producer", 1, By::Working),
    ("embed.recover.positions", 1, By::Working),
    ("kafka.member.take", 1, By::Working),
    ("embed.commit.before_begin", 3, By::Working),
    ("embed.commit.after_begin", 3, By::Working),
    ("embed.commit.between_sends", 20, By::Working),
    ("embed.commit.after_sends", 3, By::Working),
    ("embed.commit.after_offsets", 1, By::Working),
    ("embed.commit.after_offsets", 3, By::Working),
    ("kafka.transaction.delivered", 1, By::Working),
    ("kafka.transaction.delivered", 3, By::Working),
    ("embed.commit.after_commit", 1, By::Working),
    ("embed.commit.after_commit", 3, By::Working),
    ("embed.commit.after_report", 3, By::Working),
    ("embed.source.drain", 1, By::Stopping),
    ("kafka.member.release", 1, By::Sharing),
];

/// As above, of the train stage. A trial publishes six times: twice in each of three epochs. The first five are four
/// records each (a measurement, two chunks, a manifest), the last has the outcome and the trial's own record, too.
const TRAIN: [(&str, usize, By); 26] = [
    ("train.pool.serve_group", 1, By::Working),
    ("train.pool.assigned", 1, By::Working),
    ("kafka.member.take", 1, By::Working),
    ("train.publish.before_init", 1, By::Working),
    ("train.publish.after_init", 1, By::Working),
    ("train.trial.restored", 1, By::Working),
    ("train.publish.before_begin", 1, By::Working),
    ("train.publish.before_begin", 2, By::Working),
    ("train.publish.before_record", 6, By::Working),
    ("train.publish.before_record", 7, By::Working),
    ("train.publish.before_record", 8, By::Working),
    ("train.publish.before_record", 25, By::Working),
    ("train.publish.before_record", 26, By::Working),
    ("train.publish.after_records", 3, By::Working),
    ("train.publish.after_group_offsets", 2, By::Working),
    ("train.publish.after_owner_offsets", 1, By::Working),
    ("train.publish.after_owner_offsets", 6, By::Working),
    ("train.publish.after_commit", 2, By::Working),
    ("train.publish.after_commit", 6, By::Working),
    ("train.trial.published", 2, By::Working),
    ("train.trial.before_outcome", 1, By::Working),
    ("train.trial.after_outcome", 1, By::Working),
    ("train.trial.yield", 1, By::Stopping),
    ("train.pool.drain", 1, By::Stopping),
    ("kafka.member.renew", 1, By::Sharing),
    ("kafka.member.release", 1, By::Sharing),
];

pub fn tests() -> Vec<Trial> {
    let name = |stage: &str, point: &str, pass: usize| format!("{stage}_survives_death_at_{point}_{pass}");
    let embed = EMBED.map(|(point, pass, by)| case(name("embed", point, pass), move || embed_dies(point, pass, by)));
    let train = TRAIN.map(|(point, pass, by)| case(name("train", point, pass), move || train_dies(point, pass, by)));
    let tried = |point| EMBED.iter().chain(&TRAIN).any(|case| case.0 == point);
    let all = case("every_point_of_death_has_a_case", move || assert!(POINTS.into_iter().all(tried)));
    embed.into_iter().chain(train).chain([all]).collect()
}

// --- Embed

/// In each of four partitions.
pub const TEXTS: i64 = 15;

/// A group that takes a dead member for dead soon, and transactions that end soon after their process.
pub fn quick(mut settings: Settings) -> Settings {
    settings.kafka.session_timeout = Duration::from_secs(3);
    settings.kafka.transaction_timeout = Duration::from_secs(2);
    settings.embed.chunk_texts = std::num::NonZeroUsize::new(8).unwrap();
    settings
}

/// Topics with texts in them, some of which have no words.
pub fn with_texts(name: &str) -> Settings {
    let settings = quick(settings(name));
    create_topics(&settings);
    let text = |i: i64| if i % 10 == 7 { String::new() } else { "the sailor saw the sea ".repeat(1 + i as usize % 5) };
    let texts: Vec<Out> = (0..4 * TEXTS).map(|i| Out::text(&format!("k{i}"), &text(i)).to((i % 4) as i32)).collect();
    produce(&settings, &settings.topics.texts, &texts);
    settings
}

pub const EMBED_STAGE: [&str; 3] = ["run", "--stage", "embed"];

/// Lets a successor embed what is left, and checks that nothing is lost, there twice, or out of order.
#[track_caller]
pub fn assert_embedded_by(process: Process, settings: &Settings) {
    Progress::of(settings).await_done(4 * TEXTS);
    stop(process);
    assert_embedded(settings);
}

/// Each text has one verdict, in source order, and the group stands at the end of the texts.
#[track_caller]
pub fn assert_embedded(settings: &Settings) {
    assert_one_verdict_each(settings);
    let group = committed(settings, &settings.embed_group(), &settings.topics.texts);
    assert!(group.len() == 4 && group.into_values().all(|offset| offset == TEXTS));
}

fn embed_dies(point: &str, pass: usize, by: By) {
    let settings = with_texts("dies");
    let mut process = start(&settings, &format!("{point}=die@{pass}"), &EMBED_STAGE);
    let mut other = None;
    match by {
        By::Working => {}
        By::Stopping => {
            Progress::of(&settings).await_done(1);
            process.signal("TERM");
        }
        By::Sharing => {
            Progress::of(&settings).await_done(1);
            other = Some(start(&settings, "", &EMBED_STAGE));
        }
    }
    await_death(&mut process, point);
    if point == "kafka.transaction.delivered" {
        let features = |isolation| read_as(&settings, &settings.topics.features, isolation).len();
        assert!(features("read_uncommitted") > 0, "it had sent something");
        eventually("readers see whole chunks", || features("read_committed") < features("read_uncommitted"));
    }
    let successor = other.unwrap_or_else(|| start(&settings, "", &EMBED_STAGE));
    assert_embedded_by(successor, &settings);
}

// --- Train

/// Wide enough for a checkpoint of two chunks.
const SEARCH: &str = r#"
name = "d"
seed = 5
validation = 5
window = 9
batch_size = 8
model = "mlp"
hidden = 12000
epochs = 3
checkpoint_every = 3
"#;

/// What is learnt is wrong of the validation split: the first epoch is the best.
fn records() -> Vec<Out> {
    dealt(contradicted(points(50), 5, 1), 2)
}

pub fn lab(name: &str) -> Lab {
    let mut lab = Lab::new(name, 2);
    lab.fill(&records());
    lab.settings = quick(lab.settings);
    lab
}

pub const TRAIN_STAGE: [&str; 3] = ["run", "--stage", "train"];

pub fn search(lab: &Lab) -> Started {
    lab.start(SEARCH)
}

/// Lets a successor train what is left, and checks weights, the best ones, too, measurements, offsets and the trial's
/// record.
#[track_caller]
pub fn assert_trained_by(process: Process, lab: &Lab, trial: &TrialRecord) {
    let id = &trial.trial;
    lab.await_end(id);
    stop(process);
    assert_trained(lab, trial);
}

#[track_caller]
pub fn assert_trained(lab: &Lab, trial: &TrialRecord) {
    let id = &trial.trial;
    let output = lab.output();
    assert_expected(&output, trial, &records());
    let mut first = trial.clone();
    first.parameters.epochs = 1;
    let best = export(&lab.settings, &find::trial(&lab.settings, id).unwrap(), Which::Best).unwrap();
    assert_eq!((best.epoch, sha256_hex(&best.bytes)), (1, expected(&first, &records()).weights));
    let measured = output.measurements(id);
    let steps: Vec<(u64, u64)> =
        measured.iter().map(|m| (m["epoch"].as_u64().unwrap(), m["step"].as_u64().unwrap())).collect();
    let per_epoch = steps[1].1;
    let wanted: Vec<(u64, u64)> =
        (1..=3).flat_map(|epoch| [3, per_epoch].map(|step| (epoch, (epoch - 1) * per_epoch + step))).collect();
    assert_eq!(steps, wanted);
    let ends: Vec<i64> = trial.range().partitions.iter().map(|partition| partition.end).collect();
    let group = committed(&lab.settings, &lab.settings.trial_group(id), &lab.settings.topics.features);
    assert_eq!(group.into_values().collect::<Vec<_>>(), ends);
    assert_eq!(lab.trial(id).unwrap()["outcome"]["state"], "finished");
}

fn train_dies(point: &str, pass: usize, by: By) {
    let lab = lab("dies");
    let search = search(&lab);
    let trial = &search.trials[0];
    // One that is stopped or shares is held, lest it be done before.
    let go_on = lab.file("go-on");
    let held = format!("train.pool.drain=tell;train.trial.published=hold@{};", go_on.display());
    let held = if by == By::Working { "" } else { &held };
    let mut process = start(&lab.settings, &format!("{held}{point}=die@{pass}"), &TRAIN_STAGE);
    let mut other = None;
    if by != By::Working {
        let _ = process.await_line("holds at train.trial.published");
        if by == By::Sharing {
            other = Some(start(&lab.settings, "", &TRAIN_STAGE));
            let _ = process.await_line("revoked");
        } else {
            process.signal("TERM");
            let _ = process.await_line("train.pool.drain");
        }
        std::fs::write(&go_on, "").unwrap();
    }
    await_death(&mut process, point);
    let successor = other.unwrap_or_else(|| start(&lab.settings, "", &TRAIN_STAGE));
    assert_trained_by(successor, &lab, trial);
}
