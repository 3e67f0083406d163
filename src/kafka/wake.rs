//! How threads wake each other.

use std::sync::Arc;
use std::time::Duration;

use crate::sync::{Condvar, Mutex};

/// Lets one thread sleep until another has something for it.
#[derive(Clone, Default)]
pub struct Wake(Arc<(Mutex<bool>, Condvar)>);

impl Wake {
    /// Wakes the sleeper, or its next sleep.
    pub fn notify(&self) {
        *self.0 .0.lock() = true;
        let _ = self.0 .1.notify_one();
    }

    /// Sleeps until notified, at most for `bound`.
    pub fn wait(&self, bound: Duration) {
        let mut notified = self.0 .0.lock();
        if !*notified {
            let _ = self.0 .1.wait_for(&mut notified, bound);
        }
        *notified = false;
    }
}
