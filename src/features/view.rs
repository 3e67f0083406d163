//! Pooled views of a process: the mean of each record of a range, read once for all trials that read nothing else.
//!
//! ```text
//!   features ──► view thread ──► blocks of 256 means [cache_bytes, all views] ──┬─► windows of a trial
//!                                                                               └─► windows of another, cut otherwise
//! ```
//!
//! A view is read from the beginning of its range to the end, without waiting for anybody: there is room for all of it.
//! It is there as long as somebody holds it. Its digests are compared once, when it has been read; after that only
//! whether the log still holds the range is looked after.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::pooled::{Block, Piece, Pooled, BLOCK};
use super::range::{Position, Range, Record};
use super::replay::{changed, Next, Replay};
use super::window::{Reading, Window};
use crate::config::Settings;
use crate::kafka::{Error, Result};
use crate::metrics::{self, Train};

/// How often a wait looks whether it has lost its purpose.
const LOOK_AROUND: Duration = Duration::from_millis(50);
/// How often the log of a range that is held is looked after.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The views of a process.
pub(super) struct Views {
    settings: Settings,
    metrics: Train,
    open: Mutex<Vec<Weak<View>>>,
    room: Arc<Room>,
}

/// Bytes that all views together may take.
struct Room {
    bytes_max: usize,
    taken: Mutex<usize>,
    metrics: Train,
}

impl Room {
    /// Takes so many if they are left; false if not.
    fn take(&self, bytes: usize) -> bool {
        let mut taken = self.taken.lock();
        let fits = bytes <= self.bytes_max - *taken;
        if fits {
            *taken += bytes;
            metrics::set(&self.metrics.view_bytes, *taken);
        }
        fits
    }

    fn give(&self, bytes: usize) {
        let mut taken = self.taken.lock();
        *taken -= bytes;
        metrics::set(&self.metrics.view_bytes, *taken);
    }
}

impl Views {
    /// None are open yet.
    pub fn new(settings: &Settings, metrics: &Train) -> Self {
        let (settings, metrics) = (settings.clone(), metrics.clone());
        let room = Room { bytes_max: settings.train.cache_bytes, taken: Mutex::default(), metrics: metrics.clone() };
        Self { settings, metrics, open: Mutex::default(), room: Arc::new(room) }
    }

    /// The view that serves a reading of a range; nothing if there is no room for one, or rows are to be read.
    pub fn open(&self, range: &Range, reading: &Reading) -> Option<Arc<View>> {
        if !reading.pooled {
            return None;
        }
        let mut open = self.open.lock();
        open.retain(|view| view.strong_count() > 0);
        if let Some(view) = open.iter().filter_map(Weak::upgrade).find(|view| view.serves(range, reading)) {
            return Some(view);
        }
        let bytes = Pooled::bytes(range, reading.dim)?;
        let view = self.room.take(bytes).then(|| Arc::new(View::new(range, reading, &self.room, bytes)))?;
        open.push(Arc::downgrade(&view));
        Some(view)
    }

    /// The window that begins at a position, waited for if need be; `stopped` is asked before each wait. The first who
    /// takes one lends the name of its group to the consumer that reads.
    ///
    /// # Errors
    /// As [`Replay::next_records`] and [`Replay::check`], for everybody who takes; a label that is none of the
    /// reading's.
    pub fn take(
        &self,
        view: &Arc<View>,
        group: &str,
        position: &Position,
        reading: &Reading,
        stopped: impl Fn() -> bool,
    ) -> Result<Taken> {
        self.begin(view, group)?;
        let mut state = view.state.lock();
        let uncut = loop {
            match &state.ended {
                Some(Err(error)) => return Err(error.clone()),
                Some(Ok(())) => return Ok(Taken::Elsewhere),
                None => {}
            }
            match state.pooled.piece(position, reading.window) {
                Piece::Whole(uncut) => break uncut,
                Piece::Elsewhere => return Ok(Taken::Elsewhere),
                Piece::NotYet if stopped() => return Ok(Taken::Stopped),
                Piece::NotYet => {}
            }
            let _ = view.read.wait_for(&mut state, LOOK_AROUND);
        };
        drop(state);
        let window = uncut.cut(reading).map_err(|(index, what)| changed(&view.range, index, &what))?;
        Ok(Taken::Window(Arc::new(window), uncut.after))
    }

    /// Starts the thread that reads, unless it was started before.
    fn begin(&self, view: &Arc<View>, group: &str) -> Result<()> {
        if std::mem::replace(&mut view.state.lock().begun, true) {
            return Ok(());
        }
        let (settings, metrics, group) = (self.settings.clone(), self.metrics.clone(), group.to_owned());
        // Holds nothing: the view goes with the last trial that reads it, and the thread after it.
        let weak = Arc::downgrade(view);
        let read = move || {
            let work = AssertUnwindSafe(|| read(&weak, &settings, &metrics, &group));
            let ended = std::panic::catch_unwind(work).unwrap_or(Err(Error::Thread(
                "the thread that reads means for trials panicked; the log says where".into(),
            )));
            if let (Err(error), Some(view)) = (ended, weak.upgrade()) {
                view.end(Err(error));
            }
        };
        let started = std::thread::Builder::new().name("train-view".into()).spawn(read);
        let started = started
            .map(drop)
            .map_err(|error| Error::Thread(format!("starting a thread that reads means for trials: {error}")));
        if let Err(error) = &started {
            view.end(Err(error.clone()));
        }
        started
    }
}

/// What a trial gets of a view.
pub(super) enum Taken {
    /// A window and the position after it.
    Window(Arc<Window>, Position),
    /// The view has nothing that begins there, and never will.
    Elsewhere,
    /// The trial was told to stop.
    Stopped,
}

/// The means of a range, or as many as have been read.
pub(super) struct View {
    range: Range,
    rows_max: usize,
    dim: usize,
    room: Arc<Room>,
    state: Mutex<State>,
    /// There is more to take, or nothing will be.
    read: Condvar,
}

struct State {
    pooled: Pooled,
    /// Of the room.
    bytes: usize,
    /// A thread reads.
    begun: bool,
    /// Nobody takes anything any more: it does not fit after all, or what is wrong with the range.
    ended: Option<Result<()>>,
}

impl View {
    fn new(range: &Range, reading: &Reading, room: &Arc<Room>, bytes: usize) -> Self {
        let state = State { pooled: Pooled::new(range, reading.dim), bytes, begun: false, ended: None };
        Self {
            range: range.clone(),
            rows_max: reading.rows_max,
            dim: reading.dim,
            room: Arc::clone(room),
            state: Mutex::new(state),
            read: Condvar::new(),
        }
    }

    /// Whether a reading's means are this view's. One that has failed serves those who have it already: whoever comes
    /// later reads again.
    fn serves(&self, range: &Range, reading: &Reading) -> bool {
        self.rows_max == reading.rows_max
            && self.dim == reading.dim
            && self.range == *range
            && !matches!(self.state.lock().ended, Some(Err(_)))
    }

    /// Keeps the next block; false if there is no room for its labels.
    fn keep(&self, block: Block) -> bool {
        let labels = block.label_bytes();
        let fits = self.room.take(labels);
        if fits {
            let mut state = self.state.lock();
            state.bytes += labels;
            state.pooled.push(block);
            let _ = self.read.notify_all();
        } else {
            tracing::info!(topic = %self.range.topic, "labels leave no room for the means of all records in \
                `train.cache_bytes`: each epoch is read anew");
            self.end(Ok(()));
        }
        fits
    }

    /// Lets go of what was read.
    fn end(&self, ended: Result<()>) {
        let mut state = self.state.lock();
        state.pooled = Pooled::new(&self.range, self.dim);
        self.room.give(std::mem::take(&mut state.bytes));
        state.ended = Some(ended);
        let _ = self.read.notify_all();
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.room.give(self.state.get_mut().bytes);
    }
}

/// Reads a view, and looks after its log as long as somebody holds it.
fn read(view: &Weak<View>, settings: &Settings, metrics: &Train, group: &str) -> Result<()> {
    let Some(held) = view.upgrade() else { return Ok(()) };
    let (range, dim, rows_max) = (held.range.clone(), held.dim, held.rows_max);
    drop(held);
    let is_held = {
        let view = view.clone();
        move || view.strong_count() > 0
    };
    let deserted = {
        let is_held = is_held.clone();
        move || !is_held()
    };
    let mut replay = Replay::open(settings, group, &range, dim, &Position::start(&range), deserted)?;
    let mut left = range.records();
    while left > 0 {
        let mut block = Block::new(dim, left);
        let take = |record: Record<'_>| {
            block.push(&record, rows_max);
            Ok(())
        };
        if replay.next_records(BLOCK, take)? != Next::Records {
            return Ok(());
        }
        let records = block.records() as u64;
        left -= records;
        metrics.records_read.inc_by(records);
        if !view.upgrade().is_some_and(|view| view.keep(block)) {
            return Ok(());
        }
    }
    replay.rest()?;
    let mut checked = Instant::now();
    while is_held() {
        std::thread::sleep(LOOK_AROUND);
        if checked.elapsed() > CHECK_INTERVAL {
            replay.check()?;
            checked = Instant::now();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::codec::{Dtype, MatrixView};
    use crate::features::range::{Digest, PartitionRange};
    use crate::features::window::Labels;
    use crate::metrics::Metrics;

    fn range(topic: &str) -> Range {
        let place = PartitionRange { partition: 0, start: 0, end: 9, records: 2, digest: String::new() };
        Range { topic: topic.into(), partitions: vec![place] }
    }

    fn reading(window: u32, validation: u32) -> Reading {
        let labels = Labels::Ignored;
        Reading { window, rows_max: 4, dim: 1, validation, labels, labelled_only: false, pooled: true }
    }

    /// Views with room for so many of two records, and so many bytes of labels.
    fn views(count: usize, label_bytes: usize) -> (Views, Metrics) {
        let metrics = Metrics::new().unwrap();
        let mut settings = Settings::default();
        settings.train.cache_bytes = count * Pooled::bytes(&range("f"), 1).unwrap() + label_bytes;
        (Views::new(&settings, &metrics.train), metrics)
    }

    /// A record whose label takes some bytes.
    fn block() -> Block {
        let mut block = Block::new(1, 2);
        let matrix = MatrixView { dtype: Dtype::F32, rows: 1, dim: 1, data: &[0; 4] };
        let digest = Digest::default();
        let record = Record { matrix, label: Some("label"), hash: 1, index: 0, next_offset: 1, digest };
        block.push(&record, 4);
        block
    }

    #[test]
    fn readings_of_the_same_means_have_the_same_view() {
        let (views, _) = views(9, 0);
        let view = views.open(&range("f"), &reading(1, 0)).unwrap();
        let other = views.open(&range("f"), &Reading { labels: Labels::Numbers, ..reading(7, 5) }).unwrap();
        assert!(Arc::ptr_eq(&view, &other));
        for (range, reading) in [
            (range("g"), reading(1, 0)),
            (range("f"), Reading { rows_max: 3, ..reading(1, 0) }),
            (range("f"), Reading { dim: 2, ..reading(1, 0) }),
        ] {
            assert!(!Arc::ptr_eq(&view, &views.open(&range, &reading).unwrap()));
        }
        assert!(views.open(&range("f"), &Reading { pooled: false, ..reading(1, 0) }).is_none());
    }

    #[test]
    fn room_is_taken_for_a_view_until_nobody_holds_it() {
        let (views, metrics) = views(1, 0);
        let bytes = Pooled::bytes(&range("f"), 1).unwrap();
        let held = || metrics.train.view_bytes.get() as usize;
        let view = views.open(&range("f"), &reading(1, 0)).unwrap();
        let other = views.open(&range("f"), &reading(1, 0)).unwrap();
        assert_eq!(held(), bytes);
        assert!(views.open(&range("g"), &reading(1, 0)).is_none());
        drop(view);
        assert_eq!(held(), bytes);
        drop(other);
        assert_eq!(held(), 0);
        assert!(views.open(&range("g"), &reading(1, 0)).is_some());
    }

    #[test]
    fn labels_that_leave_no_room_end_a_view_for_good() {
        let label = block().label_bytes();
        let (views, metrics) = views(1, label);
        let view = views.open(&range("f"), &reading(1, 0)).unwrap();
        view.state.lock().begun = true;
        assert!(view.keep(block()));
        let start = Position::start(&range("f"));
        let taken = |position| views.take(&view, "", position, &reading(1, 0), || true).unwrap();
        let Taken::Window(_, after) = taken(&start) else { panic!("it is there") };
        assert!(matches!(taken(&after), Taken::Stopped));
        assert!(!view.keep(block()));
        assert!(matches!(taken(&start), Taken::Elsewhere));
        assert_eq!(metrics.train.view_bytes.get(), 0);
        // So that it is not tried again and again.
        assert!(Arc::ptr_eq(&view, &views.open(&range("f"), &reading(1, 0)).unwrap()));
    }

    #[test]
    fn what_is_wrong_with_a_range_is_said_to_all_that_read_it_and_found_out_anew_by_others() {
        let (views, _) = views(2, 99);
        let view = views.open(&range("f"), &reading(1, 0)).unwrap();
        view.state.lock().begun = true;
        assert!(view.keep(block()));
        view.end(Err(Error::Topics("wrong".into())));
        for _ in 0..2 {
            let taken = views.take(&view, "", &Position::start(&range("f")), &reading(1, 0), || true);
            assert_eq!(taken.err().unwrap().to_string(), "wrong");
        }
        assert!(!Arc::ptr_eq(&view, &views.open(&range("f"), &reading(1, 0)).unwrap()));
    }
}
