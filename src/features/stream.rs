//! Replays that trials share: each window of a range is read once, for all trials that follow it.
//!
//! ```text
//!                ┌─ stream ───────────────────────────────────┐
//!   features ────┼► replay thread ──► windows [shared_bytes] ─┼──► a trial, at window 8
//!                └────────────────────────────────────────────┘──► a trial, at window 7
//! ```
//!
//! A trial says where it stands, and gets the window that begins there: what it is given does not depend on who else
//! follows. A stream holds the windows that not all of its followers have taken yet, within a bound; as long as others
//! are expected, who are still being taken over from Kafka, it holds what it has. A follower that keeps the others
//! waiting at that bound is left behind, and reads on through another stream. Who reads means needs no stream if there
//! is room for a view (`view.rs`) of the whole range.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::range::{Position, Range};
use super::replay::{Next, Replay};
use super::sharing::{Offer, Sharing, Step};
use super::view::{self, View, Views};
use super::window::{Reading, Window};
use crate::config::Settings;
use crate::kafka::{Error, Result};
use crate::metrics::Train;

/// How long a follower may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a wait looks whether it has lost its purpose.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// All streams of a process.
pub struct Streams {
    settings: Settings,
    metrics: Train,
    views: Views,
    open: Mutex<Vec<Arc<Stream>>>,
    /// Followers that have not begun to read, and what they will.
    expected: Mutex<BTreeMap<u64, (Range, Reading)>>,
    numbers: AtomicU64,
}

impl Streams {
    /// None are open yet.
    pub fn new(settings: &Settings, metrics: &Train) -> Arc<Self> {
        let views = Views::new(settings, metrics);
        let (settings, metrics) = (settings.clone(), metrics.clone());
        Arc::new(Self {
            settings,
            metrics,
            views,
            open: Mutex::default(),
            expected: Mutex::default(),
            numbers: AtomicU64::new(0),
        })
    }

    /// A reader of a range from its beginning, or from where it seeks to. `group` only names a consumer; `stopped` ends
    /// waits.
    pub fn follow(
        self: &Arc<Self>,
        group: String,
        range: Range,
        reading: Reading,
        stopped: impl Fn() -> bool + Send + 'static,
    ) -> Follower {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let view = self.views.open(&range, &reading);
        if view.is_none() {
            let _ = self.expected.lock().insert(number, (range.clone(), reading.clone()));
        }
        Follower {
            streams: Arc::clone(self),
            number,
            group,
            position: Position::start(&range),
            range,
            reading,
            view,
            stream: None,
            left_behind_by: Vec::new(),
            last_pass: false,
            stopped: Box::new(stopped),
        }
    }

    fn is_expected(&self, stream: &Stream) -> bool {
        let expected = self.expected.lock();
        expected.values().any(|(range, reading)| *range == stream.range && *reading == stream.reading)
    }

    /// The stream that has, or will read next, what begins at the follower's position; a new one if there is none.
    fn attach(self: &Arc<Self>, follower: &Follower) -> Result<Arc<Stream>> {
        let mut open = self.open.lock();
        let bytes_max = self.settings.train.shared_bytes;
        if bytes_max > 0 {
            let fits = |stream: &&Arc<Stream>| {
                !follower.left_behind_by.contains(&stream.number)
                    && stream.reading == follower.reading
                    && stream.range == follower.range
            };
            if let Some(stream) = open.iter().filter(fits).find(|stream| stream.join(follower)) {
                return Ok(Arc::clone(stream));
            }
        }
        let stream = Arc::new(Stream {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            range: follower.range.clone(),
            reading: follower.reading.clone(),
            shares: bytes_max > 0,
            state: Mutex::new(State { sharing: Sharing::new(&follower.position, bytes_max), ended: None }),
            read: Condvar::new(),
            followed: Condvar::new(),
        });
        let _ = stream.join(follower);
        let (streams, read, group) = (Arc::clone(self), Arc::clone(&stream), follower.group.clone());
        let replay = move || {
            // A panic, too, must not leave followers waiting.
            let work = std::panic::AssertUnwindSafe(|| read.replay(&streams, &group));
            let ended = std::panic::catch_unwind(work).unwrap_or(Err(Error::Thread(
                "the thread that replays for trials panicked; the log says where".into(),
            )));
            streams.open.lock().retain(|stream| stream.number != read.number);
            crate::metrics::set(&streams.metrics.streams, streams.open.lock().len());
            read.state.lock().ended = Some(ended);
            let _ = read.read.notify_all();
        };
        // Owned by its followers: it ends when the last one goes.
        drop(
            std::thread::Builder::new()
                .name("train-replay".into())
                .spawn(replay)
                .map_err(|error| Error::Thread(format!("starting a thread that replays for trials: {error}")))?,
        );
        open.push(Arc::clone(&stream));
        crate::metrics::set(&self.metrics.streams, open.len());
        Ok(stream)
    }
}

/// A trial's reader of a range.
pub struct Follower {
    streams: Arc<Streams>,
    number: u64,
    group: String,
    range: Range,
    reading: Reading,
    position: Position,
    view: Option<Arc<View>>,
    stream: Option<Arc<Stream>>,
    left_behind_by: Vec<u64>,
    last_pass: bool,
    stopped: Box<dyn Fn() -> bool + Send>,
}

/// What [`Follower::next_window`] found.
#[derive(Clone, Debug)]
pub enum Read {
    /// The next window; the position is behind it now.
    Window(Arc<Window>),
    /// The pass is over; counts and digests were as captured.
    End,
    /// The reader was told to stop.
    Stopped,
}

impl Follower {
    /// What it reads.
    pub fn range(&self) -> &Range {
        &self.range
    }

    /// Where the next window begins.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Records taken in this pass.
    pub fn ordinal(&self) -> u64 {
        self.position.taken.iter().sum()
    }

    /// Goes to a position, backwards or forwards.
    pub fn seek(&mut self, position: Position) {
        self.position = position;
    }

    /// Nothing needs to be read ahead for this reader beyond the pass it is in.
    pub fn set_last_pass(&mut self, last_pass: bool) {
        self.last_pass = last_pass;
        if let Some(stream) = &self.stream {
            stream.state.lock().sharing.set_last_pass(self.number, last_pass);
        }
    }

    /// The next window, if nothing has to be waited for.
    ///
    /// # Errors
    /// As [`Follower::next_window`].
    pub fn next_at_hand(&mut self) -> Result<Option<Read>> {
        if self.position.taken == self.range.counts() {
            return Ok(Some(Read::End));
        }
        let read = self.of_view(false)?;
        Ok(read.filter(|read| !matches!(read, Read::Stopped)))
    }

    /// The next window, waited for if need be.
    ///
    /// # Errors
    /// As [`Replay::next_window`]; whoever follows the same stream, or has the same view, gets the same error.
    pub fn next_window(&mut self) -> Result<Read> {
        if self.position.taken == self.range.counts() {
            return Ok(Read::End);
        }
        if let Some(read) = self.of_view(true)? {
            return Ok(read);
        }
        loop {
            let stream = match &self.stream {
                Some(stream) => Arc::clone(stream),
                None => {
                    let stream = self.streams.attach(self)?;
                    let _ = self.streams.expected.lock().remove(&self.number);
                    Arc::clone(self.stream.insert(stream))
                }
            };
            match stream.take(self)? {
                Taken::Window(window, after) => {
                    self.position = after;
                    return Ok(Read::Window(window));
                }
                Taken::Stopped => return Ok(Read::Stopped),
                Taken::LeftBehind => self.left_behind_by.push(stream.number),
                Taken::Elsewhere => {}
            }
            self.leave();
        }
    }

    /// The next window of the view; nothing if it is to be had from a stream.
    fn of_view(&mut self, waits: bool) -> Result<Option<Read>> {
        // Others may have gone since, and left room.
        if self.view.is_none() && self.ordinal() == 0 {
            self.view = self.streams.views.open(&self.range, &self.reading);
        }
        let Some(view) = &self.view else { return Ok(None) };
        let stopped = || !waits || (self.stopped)();
        let taken = self.streams.views.take(view, &self.group, &self.position, &self.reading, stopped)?;
        Ok(match taken {
            view::Taken::Window(window, after) => {
                self.position = after;
                let _ = self.streams.expected.lock().remove(&self.number);
                self.leave();
                Some(Read::Window(window))
            }
            view::Taken::Stopped => Some(Read::Stopped),
            view::Taken::Elsewhere => None,
        })
    }

    fn leave(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.state.lock().sharing.leave(self.number);
            let _ = stream.followed.notify_one();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.streams.expected.lock().remove(&self.number);
        self.leave();
    }
}

/// One replay of a range, pass after pass.
struct Stream {
    number: u64,
    range: Range,
    reading: Reading,
    /// With others than the one it was opened for.
    shares: bool,
    state: Mutex<State>,
    /// For followers: there is something to take, or nothing will be.
    read: Condvar,
    /// For the replay thread: followers came, went, took or wait. Apart, so that a window that one follower takes does
    /// not wake all the others.
    followed: Condvar,
}

struct State {
    sharing: Sharing,
    /// The replay thread has gone, and why.
    ended: Option<Result<()>>,
}

/// What a follower gets.
enum Taken {
    /// A window and the position after it.
    Window(Arc<Window>, Position),
    /// The others could not wait.
    LeftBehind,
    /// The stream does not go on where the follower wants to.
    Elsewhere,
    /// The follower was told to stop.
    Stopped,
}

impl Stream {
    /// Takes a follower in if it can be served from here on; false if not.
    fn join(&self, follower: &Follower) -> bool {
        let mut state = self.state.lock();
        let joins =
            state.ended.is_none() && state.sharing.join(follower.number, &follower.position, follower.last_pass);
        if joins {
            let _ = self.followed.notify_one();
        }
        joins
    }

    /// The window that begins at the follower's position, if it is the stream's next one for it.
    fn take(&self, follower: &Follower) -> Result<Taken> {
        let mut state = self.state.lock();
        loop {
            match state.sharing.offer(follower.number, &follower.position) {
                Offer::Window(window, after) => {
                    let _ = self.followed.notify_one();
                    return Ok(Taken::Window(window, after));
                }
                Offer::LeftBehind => return Ok(Taken::LeftBehind),
                Offer::Elsewhere => return Ok(Taken::Elsewhere),
                Offer::NotYet => {}
            }
            match &state.ended {
                Some(Err(error)) => return Err(error.clone()),
                Some(Ok(())) => return Ok(Taken::Elsewhere),
                None => {}
            }
            if (follower.stopped)() {
                return Ok(Taken::Stopped);
            }
            if state.sharing.wait(follower.number) {
                let _ = self.followed.notify_one();
            }
            let _ = self.read.wait_for(&mut state, LOOK_AROUND);
        }
    }

    /// Reads window after window until nobody follows.
    fn replay(self: &Arc<Self>, streams: &Streams, group: &str) -> Result<()> {
        let position = self.state.lock().sharing.next().clone();
        let stream = Arc::clone(self);
        let deserted = move || stream.state.lock().sharing.is_deserted();
        let mut replay = Replay::open(&streams.settings, group, &self.range, self.reading.dim, &position, deserted)?;
        while let Some(mut window) = self.wait(streams) {
            let start = self.state.lock().sharing.next().clone();
            if replay.position() != start {
                replay.seek(&start)?;
            }
            match replay.next_window(&self.reading, &mut window)? {
                Next::Records => {}
                Next::End | Next::Stopped => continue,
            }
            streams.metrics.records_read.inc_by(window.records() as u64);
            let after = replay.position();
            let next = if replay.is_at_end() { Position::start(&self.range) } else { after.clone() };
            let mut state = self.state.lock();
            state.sharing.push(window, start, after, next);
            let _ = self.read.notify_all();
            let again = replay.is_at_end() && state.sharing.goes_round();
            drop(state);
            // The client fetches the next pass while the last window is worked on, instead of asking for new records.
            if again {
                replay.seek(&Position::start(&self.range))?;
            }
        }
        Ok(())
    }

    /// Waits until a window is to be read, and gives a buffer for it; nothing when nobody follows.
    fn wait(&self, streams: &Streams) -> Option<Window> {
        let mut held_up: Option<Instant> = None;
        loop {
            let expected = self.shares && streams.is_expected(self);
            let mut state = self.state.lock();
            match state.sharing.step(expected) {
                Step::Leave => {
                    // Whoever comes now opens another stream.
                    state.ended = Some(Ok(()));
                    return None;
                }
                Step::Read(buffer) => return Some(buffer),
                Step::HeldUp if held_up.get_or_insert_with(Instant::now).elapsed() > PATIENCE => {
                    let trials = state.sharing.leave_behind();
                    tracing::info!(topic = %self.range.topic, trials, "slower trials read on by themselves");
                    let _ = self.read.notify_all();
                    held_up = None;
                    continue;
                }
                Step::HeldUp => {}
                Step::Rest => held_up = None,
            }
            let _ = self.followed.wait_for(&mut state, LOOK_AROUND);
        }
    }
}
