//! Locks, and waits under them. `tests/threads.rs` puts others in their place, which try the orders in which threads
//! may come.

pub use parking_lot::{Condvar, Mutex, MutexGuard};
