//! What a member of a group owns, and the proof of it: one value, one lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::ConsumerGroupMetadata;

use crate::coordinates::Positions;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// What a member owns, shared with whoever commits in its name.
///
/// The group metadata is taken together with the assignment, at its beginning and at its end, and never refreshed in
/// between: freshly fetched metadata would let a process that lost a partition commit for it.
#[derive(Default)]
pub struct Lease {
    state: Mutex<LeaseState>,
    changed: Condvar,
}

/// The owned partitions and the proof of it.
#[derive(Default)]
pub struct LeaseState {
    /// Partition → number of the assignment that brought it; a record polled under another number is stale.
    pub partitions: BTreeMap<i32, u64>,
    /// Partition → next offset to commit: the embed stage keeps what it has committed here, the pool what it has read.
    pub committed: Positions,
    /// What the group knows this member by.
    pub metadata: Option<Arc<ConsumerGroupMetadata>>,
    /// Grows with every change.
    pub version: u64,
}

impl LeaseState {
    /// Whether a partition is still ours since the assignment of that number.
    pub fn owns(&self, partition: i32, assignment: u64) -> bool {
        self.partitions.get(&partition) == Some(&assignment)
    }
}

impl Lease {
    /// Holds the assignment still: nothing is released while the guard lives.
    pub fn hold(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock()
    }

    /// [`Lease::hold`], unless somebody else holds it.
    pub fn try_hold(&self) -> Option<MutexGuard<'_, LeaseState>> {
        self.state.try_lock()
    }

    /// Waits until the assignment has changed since `version`, at most for `bound`; false if it has not.
    pub fn await_change(&self, version: u64, bound: Duration) -> bool {
        let deadline = std::time::Instant::now() + bound;
        let mut state = self.state.lock();
        while state.version == version {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut LeaseState)) {
        let mut state = self.state.lock();
        change(&mut state);
        state.version += 1;
        let _ = self.changed.notify_all();
    }
}
