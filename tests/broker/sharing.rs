//! Trials of one process read a range once for all of them, and none waits for another for ever.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use sweepstream::features::range::{Position, Range};
use sweepstream::features::stream::{Follower, Read, Streams};
use sweepstream::features::window::{Reading, Window};
use sweepstream::metrics::Metrics;
use sweepstream::train::run::pool::TRAIN;

use crate::lab::{assert_expected, dealt, is_end, points, Lab};
use crate::support::{self, committed, eventually, PATIENCE};

const PARTITIONS: i32 = 3;
const RECORDS: usize = 90;

/// Sixteen trials, each another one.
const SEARCH: &str = r#"
name = "s"
seed = 3
validation = 5
epochs = 4
window = 7
batch_size = 8
model = "mlp"
hidden = [3, 4, 5, 6]
learning_rate = [1e-2, 1e-3]
dropout = [0, 0.3]
"#;

#[test]
fn sixteen_trials_read_the_topic_about_once() {
    let mut lab = Lab::with_points("sixteen", PARTITIONS, RECORDS);
    lab.settings.train.parallel = NonZeroUsize::new(16);
    // As trials do that read rows, or a range whose means do not fit.
    lab.settings.train.cache_bytes = 0;
    let search = lab.start(SEARCH);
    assert_eq!(search.trials.len(), 16);
    let (mut read, mut replayed) = (0, 0);
    support::run(&lab.settings, &[&TRAIN], |topology| {
        let train = &topology.metrics.train;
        (read, replayed) = (train.records_read.get(), train.records.get());
        let states = topology.status.trials();
        search.trials.iter().all(|trial| states.get(&trial.trial).is_some_and(|found| is_end(&found.state)))
    });
    let once = (RECORDS * 4) as u64;
    assert_eq!(replayed, 16 * once);
    assert!(read * 10 <= once * 12, "{read} records were read for trials of {once} each");
    let output = lab.output();
    for trial in &search.trials {
        assert_expected(&output, trial, &dealt(points(RECORDS), PARTITIONS));
        let group = lab.settings.trial_group(&trial.trial);
        let ends = trial.range().partitions.iter().map(|place| (place.partition, place.end)).collect();
        assert_eq!(committed(&lab.settings, &group, &lab.settings.topics.features), ends);
    }
}

#[test]
fn means_are_read_once_whatever_windows_splits_and_batches_are_made_of_them() {
    let mut lab = Lab::with_points("means", PARTITIONS, RECORDS);
    lab.settings.train.parallel = NonZeroUsize::new(20);
    let means = |window: u32, validation: u32| {
        lab.start(&format!(
            "name = \"m\"\nseed = {window}\nepochs = 3\nwindow = {window}\nvalidation = {validation}\nbatch_size = \
             [1, 8, 500]\n[[trial]]\nmodel = \"mlp\"\nhidden = 5\ndropout = 0.2\n[[trial]]\nmodel = \"linear\"\n"
        ))
    };
    let searches = [means(1, 5), means(7, 3), means(1000, 4)];
    // Rows of the same range are nothing to them.
    let rows = lab.start(
        "name = \"r\"\nepochs = 2\nwindow = 7\nvalidation = 5\nbatch_size = 8\nmodel = \"autoencoder\"\nlayers = [4]",
    );
    let trials: Vec<_> = searches.iter().chain([&rows]).flat_map(|search| &search.trials).collect();
    let (mut read, mut replayed) = (0, 0);
    support::run(&lab.settings, &[&TRAIN], |topology| {
        let train = &topology.metrics.train;
        (read, replayed) = (train.records_read.get(), train.records.get());
        let states = topology.status.trials();
        let ended = |id: &String| states.get(id).is_some_and(|found| is_end(&found.state));
        // What they held goes with the last of them.
        trials.iter().all(|trial| ended(&trial.trial)) && train.view_bytes.get() == 0
    });
    assert_eq!(replayed, (RECORDS * (18 * 3 + 2)) as u64);
    assert_eq!(read, (RECORDS * (1 + 2)) as u64, "once for all means, in each epoch for rows");
    let output = lab.output();
    for trial in trials {
        assert_expected(&output, trial, &dealt(points(RECORDS), PARTITIONS));
        let group = lab.settings.trial_group(&trial.trial);
        let ends = trial.range().partitions.iter().map(|place| (place.partition, place.end)).collect();
        assert_eq!(committed(&lab.settings, &group, &lab.settings.topics.features), ends);
    }
}

#[test]
fn means_that_find_no_room_are_read_in_each_epoch_until_there_is_some() {
    let mut lab = Lab::with_points("room", PARTITIONS, RECORDS);
    // A mean of six numbers and what stands beside it take 52 bytes; 40 are for labels.
    lab.settings.train.cache_bytes = RECORDS * 60;
    let start = |rows_max| lab.start(&format!("name = \"r\"\nwindow = 7\nmodel = \"mlp\"\nrows_max = {rows_max}"));
    let searches = [start(2), start(3)];
    let metrics = Metrics::new().unwrap();
    let streams = Streams::new(&lab.settings, &metrics.train);
    let follow = |place: usize| {
        let trial = &searches[place].trials[0];
        streams.follow("readers".into(), trial.range(), trial.reading(), || false)
    };
    let read = || metrics.train.records_read.get() as usize;
    let pass = |follower: &mut Follower| {
        let found = values(&windows(follower));
        let start = Position::start(follower.range());
        follower.seek(start);
        found
    };
    let (mut first, mut second) = (follow(0), follow(1));
    let all = [pass(&mut first), pass(&mut second)];
    assert_ne!(all[0], all[1], "means of two rows and of three");
    assert_eq!([pass(&mut first), pass(&mut second)], all);
    assert!(read() >= 3 * RECORDS, "{}", read());
    drop(first);
    assert_eq!(pass(&mut second), all[1]);
    eventually("nobody reads any more", || metrics.train.streams.get() == 0);
    let before = read();
    assert_eq!([pass(&mut second), pass(&mut second), pass(&mut follow(1))], [(); 3].map(|()| all[1].clone()));
    assert_eq!(read(), before);
}

/// A range, and streams over it with room for so many bytes.
struct Readers {
    streams: Arc<Streams>,
    metrics: Metrics,
    range: Range,
    reading: Reading,
}

impl Readers {
    fn new(lab: &mut Lab, shared_bytes: usize) -> Self {
        lab.settings.train.shared_bytes = shared_bytes;
        let search = lab.start("name = \"r\"\nwindow = 7\nmodel = \"autoencoder\"\nlayers = [4]");
        let (range, reading) = (search.trials[0].range(), search.trials[0].reading());
        let metrics = Metrics::new().unwrap();
        Self { streams: Streams::new(&lab.settings, &metrics.train), metrics, range, reading }
    }

    fn follow(&self) -> Follower {
        self.streams.follow("readers".into(), self.range.clone(), self.reading.clone(), || false)
    }

    fn read(&self) -> u64 {
        self.metrics.train.records_read.get()
    }
}

fn windows(follower: &mut Follower) -> Vec<Arc<Window>> {
    let mut windows = Vec::new();
    while let Read::Window(window) = follower.next_window().unwrap() {
        windows.push(window);
    }
    windows
}

/// Values of all records, in order.
fn values(windows: &[Arc<Window>]) -> Vec<Vec<u8>> {
    let places = |window: &Window| 0..u32::try_from(window.records()).unwrap();
    windows
        .iter()
        .flat_map(|window| places(window).map(|place| window.record(place).0.data.to_vec()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_slow_trial_is_left_behind_and_still_gets_everything() {
    let mut lab = Lab::with_points("slow", PARTITIONS, RECORDS);
    let readers = Readers::new(&mut lab, 1);
    let (mut slow, mut quick) = (readers.follow(), readers.follow());
    let Read::Window(first) = slow.next_window().unwrap() else { panic!("there is a window") };
    let started = Instant::now();
    let all = windows(&mut quick);
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(all.iter().map(|window| window.records()).sum::<usize>(), RECORDS);
    // The slow one goes on where it was.
    let mut found = vec![first];
    found.extend(windows(&mut slow));
    assert_eq!(values(&found), values(&all));
}

#[test]
fn what_was_read_is_held_for_those_who_are_expected_and_for_nobody_else() {
    let mut lab = Lab::with_points("later", PARTITIONS, RECORDS);
    let readers = Readers::new(&mut lab, 1 << 20);
    let (mut early, mut late) = (readers.follow(), readers.follow());
    early.set_last_pass(true);
    let all = windows(&mut early);
    drop(early);
    assert_eq!(values(&windows(&mut late)), values(&all));
    // The next pass may have begun.
    let read = readers.read();
    assert!(read <= (RECORDS + 7) as u64, "{read}");
    drop(late);
    eventually("the stream ends with its last follower", || readers.metrics.train.streams.get() == 0);
}
