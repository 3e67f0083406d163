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
//! waiting at that bound is left behind, and reads on through another stream.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::range::{Position, Range};
use super::replay::{Next, Replay};
use super::window::{Reading, Window};
use crate::config::Settings;
use crate::kafka::{Error, Result};
use crate::metrics::Train;

/// How long a follower may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a wait looks whether it has lost its purpose.
const LOOK_AROUND: Duration = Duration::from_millis(50);
/// Buffers of windows that nobody reads any more, kept for the next ones.
const SPARES: usize = 2;

/// All streams of a process.
pub struct Streams {
    settings: Settings,
    metrics: Train,
    open: Mutex<Vec<Arc<Stream>>>,
    /// Followers that have not begun to read, and what they will.
    expected: Mutex<BTreeMap<u64, (Range, Reading)>>,
    numbers: AtomicU64,
}

impl Streams {
    /// None are open yet.
    pub fn new(settings: &Settings, metrics: &Train) -> Arc<Self> {
        let (settings, metrics) = (settings.clone(), metrics.clone());
        Arc::new(Self {
            settings,
            metrics,
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
        let _ = self.expected.lock().insert(number, (range.clone(), reading.clone()));
        Follower {
            streams: Arc::clone(self),
            number,
            group,
            position: Position::start(&range),
            range,
            reading,
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
        if self.settings.train.shared_bytes > 0 {
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
            bytes_max: self.settings.train.shared_bytes,
            state: Mutex::new(State::new(&follower.position)),
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
            stream.follower(self.number, |follower| follower.last_pass = last_pass);
        }
    }

    /// The next window, waited for if need be.
    ///
    /// # Errors
    /// As [`Replay::next_window`]; whoever follows the same stream gets the same error.
    pub fn next_window(&mut self) -> Result<Read> {
        loop {
            if self.position.taken == self.range.counts() {
                return Ok(Read::End);
            }
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

    fn leave(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = stream.state.lock().followers.remove(&self.number);
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
    bytes_max: usize,
    state: Mutex<State>,
    /// For followers: there is something to take, or nothing will be.
    read: Condvar,
    /// For the replay thread: followers came, went, took or wait. Apart, so that a window that one follower takes does
    /// not wake all the others.
    followed: Condvar,
}

struct State {
    /// Consecutive; the last one is number `read - 1`.
    windows: VecDeque<Held>,
    /// Windows read so far, over all passes.
    read: u64,
    /// Where the next one begins.
    next: Position,
    followers: BTreeMap<u64, Following>,
    spares: Vec<Arc<Window>>,
    /// The replay thread has gone, and why.
    ended: Option<Result<()>>,
}

struct Held {
    window: Arc<Window>,
    start: Position,
    after: Position,
}

struct Following {
    /// Number of the window it takes next.
    next: u64,
    waits: bool,
    last_pass: bool,
}

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

/// What the replay thread does next.
enum Todo {
    Read(Window),
    Leave,
}

impl State {
    fn new(position: &Position) -> Self {
        Self {
            windows: VecDeque::new(),
            read: 0,
            next: position.clone(),
            followers: BTreeMap::new(),
            spares: Vec::new(),
            ended: None,
        }
    }

    /// Number of the oldest window held.
    fn first(&self) -> u64 {
        self.read - self.windows.len() as u64
    }

    /// Number of the oldest window that some follower has still to take.
    fn slowest(&self) -> u64 {
        self.followers.values().map(|follower| follower.next).min().unwrap_or(self.read)
    }

    fn bytes(&self) -> usize {
        self.windows.iter().map(|held| held.window.bytes_held()).sum()
    }

    /// Whether another window like the last one fits beside those that are held.
    fn is_roomy(&self, bytes_max: usize) -> bool {
        let expected = self.windows.back().map_or(0, |held| held.window.bytes_held());
        bytes_max > 0 && self.bytes() + expected <= bytes_max
    }

    /// Lets go of windows that all have taken, unless there is room to keep them for others. One that a trial still
    /// works with costs nothing to be held.
    fn trim(&mut self, bytes_max: usize, expected: bool) {
        while let Some(oldest) = self.windows.front() {
            let taken = self.first() < self.slowest();
            let idle = Arc::strong_count(&oldest.window) == 1;
            let wanted = expected && self.is_roomy(bytes_max);
            if !taken || wanted || !(idle || bytes_max == 0) {
                break;
            }
            self.spares.extend(self.windows.pop_front().map(|held| held.window));
        }
        self.spares.truncate(SPARES);
    }

    /// A buffer that nobody reads any more, or a new one.
    fn buffer(&mut self) -> Window {
        let free = self.spares.iter().position(|window| Arc::strong_count(window) == 1);
        let spare = free.map(|place| self.spares.swap_remove(place));
        spare.and_then(|window| Arc::try_unwrap(window).ok()).unwrap_or_default()
    }
}

impl Stream {
    /// Takes a follower in if it can be served from here on; false if not.
    fn join(&self, follower: &Follower) -> bool {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return false;
        }
        // From the oldest, nothing has to be read again; from the newest, a newcomer does not hold the others back.
        let begins = |held: &Held| held.start == follower.position;
        let held = match state.is_roomy(self.bytes_max) {
            true => state.windows.iter().position(begins),
            false => state.windows.iter().rposition(begins),
        };
        let next = match held {
            Some(place) => state.first() + place as u64,
            None if state.next == follower.position => state.read,
            None => return false,
        };
        let following = Following { next, waits: false, last_pass: follower.last_pass };
        let _ = state.followers.insert(follower.number, following);
        let _ = self.followed.notify_one();
        true
    }

    fn follower(&self, number: u64, change: impl FnOnce(&mut Following)) {
        if let Some(follower) = self.state.lock().followers.get_mut(&number) {
            change(follower);
        }
    }

    /// The window that begins at the follower's position, if it is the stream's next one for it.
    fn take(&self, follower: &Follower) -> Result<Taken> {
        let mut state = self.state.lock();
        loop {
            let Some(next) = state.followers.get(&follower.number).map(|following| following.next) else {
                return Ok(Taken::LeftBehind);
            };
            if next < state.read {
                let held = &state.windows[(next - state.first()) as usize];
                if held.start != follower.position {
                    return Ok(Taken::Elsewhere);
                }
                let taken = Taken::Window(Arc::clone(&held.window), held.after.clone());
                if let Some(following) = state.followers.get_mut(&follower.number) {
                    (following.next, following.waits) = (next + 1, false);
                }
                let _ = self.followed.notify_one();
                return Ok(taken);
            }
            if state.next != follower.position {
                return Ok(Taken::Elsewhere);
            }
            match &state.ended {
                Some(Err(error)) => return Err(error.clone()),
                Some(Ok(())) => return Ok(Taken::Elsewhere),
                None => {}
            }
            if (follower.stopped)() {
                return Ok(Taken::Stopped);
            }
            if let Some(following) = state.followers.get_mut(&follower.number) {
                if !std::mem::replace(&mut following.waits, true) {
                    let _ = self.followed.notify_one();
                }
            }
            let _ = self.read.wait_for(&mut state, LOOK_AROUND);
        }
    }

    /// Reads window after window until nobody follows.
    fn replay(self: &Arc<Self>, streams: &Streams, group: &str) -> Result<()> {
        let position = self.state.lock().next.clone();
        let stream = Arc::clone(self);
        let deserted = move || stream.state.lock().followers.is_empty();
        let mut replay =
            Replay::open(&streams.settings, group, &self.range, self.reading.clone(), &position, deserted)?;
        loop {
            let mut window = match self.wait(streams) {
                Todo::Read(window) => window,
                Todo::Leave => return Ok(()),
            };
            let start = self.state.lock().next.clone();
            if replay.position() != start {
                replay.seek(&start)?;
            }
            match replay.next_window(&mut window)? {
                Next::Window => {}
                Next::End | Next::Stopped => continue,
            }
            streams.metrics.records_read.inc_by(window.records() as u64);
            let after = replay.position();
            let mut state = self.state.lock();
            state.next = if replay.is_at_end() { Position::start(&self.range) } else { after.clone() };
            state.windows.push_back(Held { window: Arc::new(window), start, after });
            state.read += 1;
            let _ = self.read.notify_all();
            let again = replay.is_at_end() && state.followers.values().any(|following| !following.last_pass);
            drop(state);
            // The client fetches the next pass while the last window is worked on, instead of asking for new records.
            if again {
                replay.seek(&Position::start(&self.range))?;
            }
        }
    }

    /// Waits until a window is to be read.
    fn wait(&self, streams: &Streams) -> Todo {
        let mut held_up: Option<Instant> = None;
        loop {
            let expected = self.bytes_max > 0 && streams.is_expected(self);
            let mut state = self.state.lock();
            if state.followers.is_empty() && !expected {
                // Whoever comes now opens another stream.
                state.ended = Some(Ok(()));
                return Todo::Leave;
            }
            state.trim(self.bytes_max, expected);
            let roomy = state.is_roomy(self.bytes_max);
            let awaited = state.followers.values().any(|following| following.waits && following.next == state.read);
            if awaited && (roomy || state.read - state.slowest() <= 1) {
                return Todo::Read(state.buffer());
            }
            // One window ahead of the quickest, if there is room or all of several have taken what there is; and not into
            // a pass that nobody needs.
            let shared = self.bytes_max > 0 && state.followers.len() > 1 && state.read == state.slowest();
            let ahead = state
                .followers
                .values()
                .any(|following| following.next == state.read && !(following.last_pass && state.next.window == 0));
            if (roomy || shared) && ahead {
                return Todo::Read(state.buffer());
            }
            if awaited {
                if held_up.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    self.leave_behind(&mut state);
                    held_up = None;
                    continue;
                }
            } else {
                held_up = None;
            }
            let _ = self.followed.wait_for(&mut state, LOOK_AROUND);
        }
    }

    /// The slowest followers go on by themselves, so that the others can.
    fn leave_behind(&self, state: &mut MutexGuard<'_, State>) {
        let slowest = state.slowest();
        let before = state.followers.len();
        state.followers.retain(|_, following| following.next > slowest);
        let left = before - state.followers.len();
        tracing::info!(topic = %self.range.topic, trials = left, "slower trials read on by themselves");
        let _ = self.read.notify_all();
    }
}
