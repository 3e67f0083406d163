//! What the followers of a stream have taken, what is held for them, and what is read next. Pure.
//!
//! Windows are numbered over all passes. A follower takes them one after another; what all have taken is let go, unless
//! there is room to keep it for others.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::range::Position;
use super::window::Window;

/// Buffers of windows that nobody reads any more, kept for the next ones.
const SPARES: usize = 2;

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

/// What there is for a follower.
#[derive(Debug)]
pub(super) enum Offer {
    /// A window, which is taken now, and the position after it.
    Window(Arc<Window>, Position),
    /// The others could not wait.
    LeftBehind,
    /// The stream does not go on where the follower wants to.
    Elsewhere,
    /// The window has still to be read.
    NotYet,
}

/// What whoever reads does next.
#[derive(Debug)]
pub(super) enum Step {
    Leave,
    /// Read a window into this buffer.
    Read(Window),
    /// Wait: somebody waits for a window that does not fit beside those that others have still to take.
    HeldUp,
    /// Wait: nobody needs anything.
    Rest,
}

/// See the module.
pub(super) struct Sharing {
    /// Consecutive; the last one is number `read - 1`.
    windows: VecDeque<Held>,
    /// Windows read so far, over all passes.
    read: u64,
    /// Where the next one begins.
    next: Position,
    followers: BTreeMap<u64, Following>,
    spares: Vec<Arc<Window>>,
    bytes_max: usize,
}

impl Sharing {
    /// Nothing read yet, of what begins at `position`. Windows that are held may take so many bytes; with none, at most
    /// two windows are held, and followers do not share.
    pub fn new(position: &Position, bytes_max: usize) -> Self {
        Self {
            windows: VecDeque::new(),
            read: 0,
            next: position.clone(),
            followers: BTreeMap::new(),
            spares: Vec::new(),
            bytes_max,
        }
    }

    /// Where the next window begins.
    pub fn next(&self) -> &Position {
        &self.next
    }

    /// Takes a follower in if it can be served from `position` on.
    pub fn join(&mut self, number: u64, position: &Position, last_pass: bool) -> bool {
        // From the oldest, nothing has to be read again; from the newest, a newcomer does not hold the others back.
        let begins = |held: &Held| held.start == *position;
        let held = match self.is_roomy() {
            true => self.windows.iter().position(begins),
            false => self.windows.iter().rposition(begins),
        };
        let next = match held {
            Some(place) => self.first() + place as u64,
            None if self.next == *position => self.read,
            None => return false,
        };
        let _ = self.followers.insert(number, Following { next, waits: false, last_pass });
        true
    }

    /// A follower went.
    pub fn leave(&mut self, number: u64) {
        let _ = self.followers.remove(&number);
    }

    /// Has everybody gone?
    pub fn is_deserted(&self) -> bool {
        self.followers.is_empty()
    }

    /// Nothing needs to be read ahead for a follower beyond the pass it is in.
    pub fn set_last_pass(&mut self, number: u64, last_pass: bool) {
        if let Some(follower) = self.followers.get_mut(&number) {
            follower.last_pass = last_pass;
        }
    }

    /// Will somebody read another pass after this one?
    pub fn goes_round(&self) -> bool {
        self.followers.values().any(|follower| !follower.last_pass)
    }

    /// The window that begins at the follower's position, if it is the next one for it.
    pub fn offer(&mut self, number: u64, position: &Position) -> Offer {
        let first = self.first();
        let Some(follower) = self.followers.get_mut(&number) else { return Offer::LeftBehind };
        if follower.next == self.read {
            return if self.next == *position { Offer::NotYet } else { Offer::Elsewhere };
        }
        let held = &self.windows[(follower.next - first) as usize];
        if held.start != *position {
            return Offer::Elsewhere;
        }
        (follower.next, follower.waits) = (follower.next + 1, false);
        Offer::Window(Arc::clone(&held.window), held.after.clone())
    }

    /// A follower waits for the next window; true if it has not waited before.
    pub fn wait(&mut self, number: u64) -> bool {
        self.followers.get_mut(&number).is_some_and(|follower| !std::mem::replace(&mut follower.waits, true))
    }

    /// Decides what is done next. `expected` when others will come who read the same.
    pub fn step(&mut self, expected: bool) -> Step {
        let shares = self.bytes_max > 0;
        if self.followers.is_empty() && !(shares && expected) {
            return Step::Leave;
        }
        self.trim(shares && expected);
        let roomy = self.is_roomy();
        let at_end = || self.followers.values().filter(|follower| follower.next == self.read);
        let awaited = at_end().any(|follower| follower.waits);
        // One window ahead of the quickest, if there is room or all of several have taken what there is; and not into a
        // pass that nobody needs.
        let shared = shares && self.followers.len() > 1 && self.read == self.slowest();
        let ahead = at_end().any(|follower| !(follower.last_pass && self.next.window == 0));
        if awaited && (roomy || self.read - self.slowest() <= 1) || (roomy || shared) && ahead {
            return Step::Read(self.buffer());
        }
        if awaited {
            Step::HeldUp
        } else {
            Step::Rest
        }
    }

    /// A window was read; `next` is where the one after it begins.
    pub fn push(&mut self, window: Window, start: Position, after: Position, next: Position) {
        self.windows.push_back(Held { window: Arc::new(window), start, after });
        self.next = next;
        self.read += 1;
    }

    /// The slowest followers go on by themselves, so that the others can; returns how many.
    pub fn leave_behind(&mut self) -> usize {
        let (slowest, before) = (self.slowest(), self.followers.len());
        self.followers.retain(|_, follower| follower.next > slowest);
        before - self.followers.len()
    }

    /// Number of the oldest window held.
    fn first(&self) -> u64 {
        self.read - self.windows.len() as u64
    }

    /// Number of the oldest window that some follower has still to take.
    fn slowest(&self) -> u64 {
        self.followers.values().map(|follower| follower.next).min().unwrap_or(self.read)
    }

    /// Whether another window like the last one fits beside those that are held.
    fn is_roomy(&self) -> bool {
        let held: usize = self.windows.iter().map(|held| held.window.bytes_held()).sum();
        let expected = self.windows.back().map_or(0, |held| held.window.bytes_held());
        self.bytes_max > 0 && held + expected <= self.bytes_max
    }

    /// Lets go of windows that all have taken, unless there is room to keep them for others. One that a trial still
    /// works with costs nothing to be held.
    fn trim(&mut self, expected: bool) {
        while let Some(oldest) = self.windows.front() {
            let taken = self.first() < self.slowest();
            let idle = Arc::strong_count(&oldest.window) == 1;
            let wanted = expected && self.is_roomy();
            if !taken || wanted || !(idle || self.bytes_max == 0) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::range::{PartitionRange, Range};

    /// Four windows make a pass.
    const PASS: u64 = 4;

    fn at(window: u64) -> Position {
        let place = PartitionRange { partition: 0, start: 0, end: 9, records: 9, digest: String::new() };
        Position { window, ..Position::start(&Range { topic: "f".into(), partitions: vec![place] }) }
    }

    /// Room for so many windows of a hundred bytes.
    fn sharing(windows: usize) -> Sharing {
        Sharing::new(&at(0), windows * 100)
    }

    fn read(sharing: &mut Sharing) {
        let Step::Read(_) = sharing.step(false) else { panic!("nothing is to be read") };
        let start = sharing.next().clone();
        let (after, next) = (at(start.window + 1), at((start.window + 1) % PASS));
        sharing.push(Window::of_bytes(100), start, after, next);
    }

    fn take(sharing: &mut Sharing, number: u64, window: u64) {
        let Offer::Window(_, after) = sharing.offer(number, &at(window)) else { panic!("it is not offered") };
        assert_eq!(after.window, window + 1);
    }

    fn reads(sharing: &mut Sharing) -> bool {
        matches!(sharing.step(false), Step::Read(_))
    }

    #[test]
    fn who_follows_alone_has_one_window_read_ahead() {
        let mut sharing = sharing(3);
        assert!(sharing.join(1, &at(0), false));
        read(&mut sharing);
        assert!(!reads(&mut sharing), "it has not taken the one before");
        take(&mut sharing, 1, 0);
        read(&mut sharing);
        assert!(matches!(sharing.step(false), Step::Rest));
        sharing.leave(1);
        assert!(matches!(sharing.step(false), Step::Leave));
    }

    #[test]
    fn a_follower_gets_what_begins_where_it_stands_and_nothing_else() {
        let mut sharing = sharing(9);
        assert!(sharing.join(1, &at(0), false) && sharing.join(2, &at(0), false));
        assert!(matches!(sharing.offer(1, &at(0)), Offer::NotYet));
        read(&mut sharing);
        take(&mut sharing, 1, 0);
        assert!(matches!(sharing.offer(2, &at(3)), Offer::Elsewhere), "it has gone elsewhere meanwhile");
        take(&mut sharing, 2, 0);
        assert!(matches!(sharing.offer(2, &at(3)), Offer::Elsewhere));
        assert!(matches!(sharing.offer(3, &at(0)), Offer::LeftBehind), "it does not follow");
        assert!(sharing.join(3, &at(1), false) && !sharing.join(4, &at(2), false));
    }

    #[test]
    fn a_newcomer_begins_with_the_oldest_that_fits_or_with_the_newest_when_room_is_short() {
        let begins_at = |room: usize| {
            let mut sharing = sharing(room);
            assert!(sharing.join(1, &at(0), false) && sharing.join(9, &at(0), false));
            // Two passes of what begins at 0.
            for window in 0..=PASS {
                read(&mut sharing);
                take(&mut sharing, 1, window % PASS);
            }
            assert!(sharing.join(2, &at(0), false));
            sharing.followers[&2].next
        };
        assert_eq!((begins_at(9), begins_at(5)), (0, PASS));
    }

    #[test]
    fn the_quickest_wait_at_the_bound_until_the_slowest_are_left_behind() {
        let mut sharing = sharing(3);
        for number in [1, 2, 3] {
            assert!(sharing.join(number, &at(0), false));
        }
        for window in 0..3 {
            read(&mut sharing);
            take(&mut sharing, 1, window);
            take(&mut sharing, 2, window);
        }
        assert!(matches!(sharing.step(false), Step::Rest), "nobody waits yet");
        assert!(sharing.wait(1) && !sharing.wait(1));
        assert!(matches!(sharing.step(false), Step::HeldUp));
        assert_eq!(sharing.leave_behind(), 1);
        assert!(matches!(sharing.offer(3, &at(0)), Offer::LeftBehind));
        read(&mut sharing);
        take(&mut sharing, 1, 3);
    }

    #[test]
    fn who_is_expected_finds_what_there_is_room_for() {
        let mut sharing = sharing(3);
        assert!(sharing.join(1, &at(0), false));
        read(&mut sharing);
        take(&mut sharing, 1, 0);
        sharing.leave(1);
        assert!(!matches!(sharing.step(true), Step::Leave), "others will come");
        assert!(sharing.join(2, &at(0), false), "its first window is still held");
        take(&mut sharing, 2, 0);
        drop(sharing.step(false));
        assert!(!sharing.join(3, &at(0), false), "nobody was expected any more");
    }

    #[test]
    fn no_pass_is_begun_that_nobody_needs() {
        let mut sharing = sharing(9);
        assert!(sharing.join(1, &at(0), true));
        assert!(!reads(&mut sharing) && sharing.wait(1), "the first one is asked for");
        for window in 0..PASS {
            read(&mut sharing);
            take(&mut sharing, 1, window);
        }
        assert!(!reads(&mut sharing) && !sharing.goes_round());
        sharing.set_last_pass(1, false);
        assert!(sharing.goes_round() && reads(&mut sharing));
    }

    #[test]
    fn without_room_each_window_is_read_for_one_and_let_go() {
        let mut sharing = sharing(0);
        assert!(sharing.join(1, &at(0), false));
        assert!(matches!(sharing.step(true), Step::Rest), "nothing is read ahead");
        for window in 0..3 {
            assert!(sharing.wait(1));
            read(&mut sharing);
            take(&mut sharing, 1, window);
        }
        drop(sharing.step(true));
        assert!(sharing.windows.is_empty());
        sharing.leave(1);
        assert!(matches!(sharing.step(true), Step::Leave), "who is expected does not share");
    }
}
