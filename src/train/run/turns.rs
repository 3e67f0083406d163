//! Who computes: at most so many threads at once, in the order in which they came.
//!
//! Trials that are ready together share what they read, so more of them are taken up than there are cores. They take
//! turns: an operating system that shared the cores out among all of them would leave embedding beside them less than
//! the cores it is set to.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

/// How long a turn lasts while others wait: long enough for what a change of caches costs to be lost in it.
const TURN: Duration = Duration::from_millis(100);

/// The turns of a process.
pub struct Turns {
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    free: usize,
    waiting: VecDeque<u64>,
    next: u64,
}

impl Turns {
    /// `threads` at once.
    pub fn new(threads: usize) -> Self {
        Self { queue: Mutex::new(Queue { free: threads, waiting: VecDeque::new(), next: 0 }), changed: Condvar::new() }
    }

    /// Waits for a turn.
    pub fn take(&self) -> Turn<'_> {
        self.wait();
        Turn { turns: self, began: Instant::now() }
    }

    fn wait(&self) {
        let mut queue = self.queue.lock();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(number);
        while queue.free == 0 || queue.waiting.front() != Some(&number) {
            self.changed.wait(&mut queue);
        }
        let _ = queue.waiting.pop_front();
        queue.free -= 1;
        if queue.free > 0 {
            let _ = self.changed.notify_all();
        }
    }

    fn give(&self) {
        self.queue.lock().free += 1;
        let _ = self.changed.notify_all();
    }

    fn is_awaited(&self) -> bool {
        !self.queue.lock().waiting.is_empty()
    }
}

/// The right to compute; given back when dropped.
pub struct Turn<'t> {
    turns: &'t Turns,
    began: Instant,
}

impl Turn<'_> {
    /// Waits for something, while somebody else computes.
    pub fn aside<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        self.turns.give();
        let back = Back(self);
        let result = wait();
        drop(back);
        result
    }

    /// Lets others go first, if this turn has lasted long enough and somebody waits.
    pub fn pass(&mut self) {
        if self.began.elapsed() > TURN && self.turns.is_awaited() {
            self.aside(|| {});
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.give();
    }
}

/// Takes the turn again, whatever became of the wait: a turn is given back once.
struct Back<'a, 't>(&'a mut Turn<'t>);

impl Drop for Back<'_, '_> {
    fn drop(&mut self) {
        self.0.turns.wait();
        self.0.began = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_more_compute_than_may_and_all_have_their_turn() {
        let (turns, computing, most) = (Turns::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            let mut turn = turns.take();
            for round in 0..200 {
                let now = computing.fetch_add(1, Ordering::SeqCst) + 1;
                let _ = most.fetch_max(now, Ordering::SeqCst);
                let _ = computing.fetch_sub(1, Ordering::SeqCst);
                if round % 3 == 0 {
                    turn.aside(std::thread::yield_now);
                }
                turn.pass();
            }
        };
        std::thread::scope(|scope| (0..7).for_each(|_| drop(scope.spawn(work))));
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(turns.queue.lock().free, 2);
    }

    #[test]
    fn a_panic_gives_its_turn_back() {
        let turns = Turns::new(1);
        let panicking = std::panic::AssertUnwindSafe(|| {
            let mut turn = turns.take();
            turn.aside(|| panic!("on purpose"));
        });
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(turns.queue.lock().free, 1);
    }
}
