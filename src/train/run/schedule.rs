//! Which trials this process runs, and in which order: what is known of them, without threads and without Kafka.
//!
//! A trial may run when its partition is ours and has been read to its end, when it has no outcome, and when it is not
//! running already. The oldest search goes first, and in it the lowest number.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::control::{End, Order};
use crate::output::EndState;
use crate::train::store::trials::Stored;

/// Longest pause before an interrupted trial is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A partition of `trials` that is ours.
struct Owned {
    assignment: u64,
    /// Read to its end: nothing newer is known about its trials.
    caught_up: bool,
}

/// A trial at work, and whatever works on it.
pub struct Running<W> {
    /// Of `trials`.
    pub partition: i32,
    /// Run of the trial.
    pub attempt: u32,
    pub worker: W,
}

/// How often an interrupted trial has been tried in vain, and when it may be tried again.
struct Interrupted {
    times: u32,
    until: Instant,
}

/// See the module.
pub struct Schedule<W> {
    owned: BTreeMap<i32, Owned>,
    /// All trials in partitions of ours, as their newest records have them.
    pub trials: BTreeMap<String, Stored>,
    /// Those at work. A trial may be here that is not in `trials` any more, until its thread has ended.
    pub running: BTreeMap<String, Running<W>>,
    interrupted: BTreeMap<String, Interrupted>,
}

impl<W> Default for Schedule<W> {
    fn default() -> Self {
        Self { owned: BTreeMap::new(), trials: BTreeMap::new(), running: BTreeMap::new(), interrupted: BTreeMap::new() }
    }
}

impl<W> Schedule<W> {
    /// Partitions came under this assignment; those that were ours before keep theirs.
    pub fn own(&mut self, partition: i32, assignment: u64) {
        let _ = self.owned.entry(partition).or_insert(Owned { assignment, caught_up: false });
    }

    /// What is ours.
    pub fn partitions(&self) -> Vec<i32> {
        self.owned.keys().copied().collect()
    }

    /// Everything in a partition has been read.
    pub fn caught_up(&mut self, partition: i32) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.caught_up = true;
        }
    }

    /// Partitions went; returns their trials, which are forgotten.
    pub fn give_up(&mut self, partitions: &[i32]) -> Vec<String> {
        self.owned.retain(|partition, _| !partitions.contains(partition));
        let gone = self.trials.iter().filter(|(_, stored)| partitions.contains(&stored.partition));
        let gone: Vec<String> = gone.map(|(id, _)| id.clone()).collect();
        for id in &gone {
            self.forget(id);
        }
        gone
    }

    /// Nothing is known of a trial any more.
    pub fn forget(&mut self, id: &str) {
        let _ = self.trials.remove(id);
        let _ = self.interrupted.remove(id);
    }

    /// What the newest record of a trial asks of its thread, if one is at work.
    pub fn asked(&self, id: &str) -> Option<Order> {
        let running = self.running.get(id)?;
        match self.trials.get(id).map(|stored| &stored.record) {
            // Deleted, or restarted.
            None => Some(Order::Abandon),
            Some(record) if record.attempt != running.attempt => Some(Order::Abandon),
            Some(record) => record.stop.then_some(Order::Stop),
        }
    }

    /// The oldest trial that may run now, and the assignment under which it would. `has_place` is asked with the trials
    /// that run and with the bytes that the state of all would take, that trial's with them.
    pub fn next(&self, now: Instant, has_place: impl Fn(usize, u64) -> bool) -> Option<(String, u64)> {
        let waits = |id: &str, stored: &Stored| {
            stored.record.outcome.is_none()
                && !stored.record.is_absent()
                && !self.running.contains_key(id)
                && self.interrupted.get(id).is_none_or(|interrupted| interrupted.until <= now)
        };
        let candidates = self.trials.iter().filter(|(id, stored)| waits(id, stored)).filter_map(|(id, stored)| {
            let owned = self.owned.get(&stored.partition).filter(|owned| owned.caught_up)?;
            Some(((stored.record.created_ms, stored.record.number), id, owned.assignment))
        });
        let (_, id, assignment) = candidates.min()?;
        let bytes = |id: &String| self.trials.get(id).map_or(0, |stored| stored.record.state_bytes());
        let state_bytes = self.running.keys().chain([id]).map(bytes).sum();
        has_place(self.running.len(), state_bytes).then(|| (id.clone(), assignment))
    }

    /// A thread has ended; returns it. An interrupted trial pauses the longer the more often that was in vain: the
    /// group needs its time to tell whether the trial is somebody else's by now.
    pub fn ended(&mut self, id: &str, end: &End, now: Instant, session: Duration) -> Option<Running<W>> {
        match end {
            End::Outcome(outcome) => {
                let _ = self.interrupted.remove(id);
                // The record with the outcome is on its way back to us; until then it must not be started again.
                if let Some(stored) = self.trials.get_mut(id) {
                    if stored.record.attempt == outcome.attempt {
                        stored.record.outcome = Some(outcome.as_ref().clone());
                    }
                }
            }
            End::Yielded => drop(self.interrupted.remove(id)),
            End::Interrupted(_) => {
                let times = self.interrupted.get(id).map_or(1, |interrupted| interrupted.times + 1);
                let until = now + (session * times).min(PAUSE_MAX);
                let _ = self.interrupted.insert(id.to_owned(), Interrupted { times, until });
            }
        }
        self.running.remove(id)
    }

    /// How often in a row a trial was interrupted, and how long it still pauses.
    pub fn interrupted(&self, id: &str, now: Instant) -> Option<(u32, Duration)> {
        let Interrupted { times, until } = self.interrupted.get(id)?;
        Some((*times, until.saturating_duration_since(now)))
    }

    /// The state of a trial, as it is shown.
    pub fn state(&self, id: &str) -> &'static str {
        match self.trials.get(id).and_then(|stored| stored.record.outcome.as_ref()) {
            Some(outcome) => outcome.state.name(),
            None if self.running.contains_key(id) => "running",
            None => "waiting",
        }
    }

    /// Trials by state; states without any are there, too. Each thread counts as running, whatever it works on.
    pub fn states(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<&str, usize> = EndState::ALL.iter().map(|state| (state.name(), 0)).collect();
        counts.extend([("waiting", 0), ("running", self.running.len())]);
        for id in self.trials.keys().filter(|id| !self.running.contains_key(*id)) {
            *counts.entry(self.state(id)).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::record::samples;

    const SESSION: Duration = Duration::from_secs(6);

    fn stored(id: &str, partition: i32, created_ms: u64, number: u32) -> Stored {
        let mut record = samples::record(id);
        (record.created_ms, record.number) = (created_ms, number);
        Stored { record, partition }
    }

    /// Trials `b-0` and `b-1` of a younger search and `z-0` of an older one, in partition 0; `y-0` in partition 1.
    fn schedule() -> Schedule<()> {
        let mut schedule = Schedule::default();
        schedule.own(0, 4);
        for (id, partition, created_ms, number) in
            [("b-0", 0, 9, 0), ("b-1", 0, 9, 1), ("z-0", 0, 5, 0), ("y-0", 1, 1, 0)]
        {
            let _ = schedule.trials.insert(id.into(), stored(id, partition, created_ms, number));
        }
        schedule.caught_up(0);
        schedule
    }

    fn start(schedule: &mut Schedule<()>, id: &str) {
        let Stored { record, partition } = &schedule.trials[id];
        let running = Running { partition: *partition, attempt: record.attempt, worker: () };
        let _ = schedule.running.insert(id.into(), running);
    }

    fn next(schedule: &Schedule<()>, now: Instant) -> Option<String> {
        schedule.next(now, |_, _| true).map(|(id, _)| id)
    }

    fn outcome(id: &str, attempt: u32) -> End {
        End::Outcome(Box::new(samples::outcome(id, attempt)))
    }

    #[test]
    fn the_oldest_search_goes_first_and_in_it_the_lowest_number() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let mut order = Vec::new();
        while let Some((id, assignment)) = schedule.next(now, |_, _| true) {
            assert_eq!(assignment, 4);
            start(&mut schedule, &id);
            order.push(id);
        }
        assert_eq!(order, ["z-0", "b-0", "b-1"], "y-0 is older, but in nobody's partition");
    }

    #[test]
    fn nothing_runs_before_its_partition_has_been_read_to_the_end() {
        let (mut schedule, now) = (schedule(), Instant::now());
        schedule.own(1, 5);
        assert_eq!(next(&schedule, now).as_deref(), Some("z-0"));
        schedule.caught_up(1);
        assert_eq!(schedule.next(now, |_, _| true), Some(("y-0".into(), 5)));
        schedule.own(1, 6);
        assert_eq!(schedule.next(now, |_, _| true), Some(("y-0".into(), 5)), "it was ours all the while");
        assert_eq!(schedule.give_up(&[0]), ["b-0", "b-1", "z-0"]);
        assert_eq!(schedule.partitions(), [1]);
    }

    #[test]
    fn a_place_is_asked_for_with_what_all_of_them_take() {
        let (mut schedule, now) = (schedule(), Instant::now());
        start(&mut schedule, "b-1");
        let each = schedule.trials["z-0"].record.state_bytes();
        assert_eq!(schedule.next(now, |running, bytes| (running, bytes) == (1, 2 * each)), Some(("z-0".into(), 4)));
        assert_eq!(schedule.next(now, |_, _| false), None);
    }

    #[test]
    fn a_trial_that_was_deleted_or_restarted_is_abandoned_and_one_is_stopped_on_request() {
        let mut schedule = schedule();
        assert_eq!(schedule.asked("z-0"), None, "nobody is at work on it");
        start(&mut schedule, "z-0");
        assert_eq!(schedule.asked("z-0"), None);
        schedule.trials.get_mut("z-0").unwrap().record.stop = true;
        assert_eq!(schedule.asked("z-0"), Some(Order::Stop));
        schedule.trials.get_mut("z-0").unwrap().record.attempt += 1;
        assert_eq!(schedule.asked("z-0"), Some(Order::Abandon));
        schedule.forget("z-0");
        assert_eq!(schedule.asked("z-0"), Some(Order::Abandon));
    }

    #[test]
    fn an_interrupted_trial_lets_the_others_go_first_and_pauses_longer_each_time() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let interrupt = |schedule: &mut Schedule<()>, now| {
            start(schedule, "z-0");
            assert!(schedule.ended("z-0", &End::Interrupted("fenced".into()), now, SESSION).is_some());
        };
        interrupt(&mut schedule, now);
        assert_eq!(next(&schedule, now).as_deref(), Some("b-0"));
        assert_eq!(next(&schedule, now + SESSION).as_deref(), Some("z-0"));
        interrupt(&mut schedule, now);
        assert_eq!(schedule.interrupted("z-0", now), Some((2, SESSION * 2)));
        for _ in 0..9 {
            interrupt(&mut schedule, now);
        }
        assert_eq!(schedule.interrupted("z-0", now), Some((11, PAUSE_MAX)));
        start(&mut schedule, "z-0");
        assert!(schedule.ended("z-0", &End::Yielded, now, SESSION).is_some());
        assert_eq!(next(&schedule, now).as_deref(), Some("z-0"));
    }

    #[test]
    fn a_trial_with_an_outcome_is_not_started_again_before_its_record_is_back() {
        let (mut schedule, now) = (schedule(), Instant::now());
        start(&mut schedule, "z-0");
        assert_eq!(schedule.states()["running"], 1);
        assert!(schedule.ended("z-0", &outcome("z-0", 0), now, SESSION).is_some());
        assert_eq!((schedule.state("z-0"), next(&schedule, now).as_deref()), ("finished", Some("b-0")));
        let states: Vec<_> = schedule.states().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(states, [("finished", 1), ("waiting", 3)]);
        assert_eq!(schedule.states().len(), EndState::ALL.len() + 2);
        // Restarted meanwhile: the outcome is another run's.
        schedule.trials.get_mut("b-0").unwrap().record.attempt = 3;
        assert!(schedule.ended("b-0", &outcome("b-0", 2), now, SESSION).is_none());
        assert_eq!(next(&schedule, now).as_deref(), Some("b-0"));
    }
}
