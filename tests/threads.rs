//! What threads share beside channels, in many of the orders in which they may run (crate shuttle). A wait here has no
//! end in time, so that a wake-up that is lost hangs, and is found.

// Modules bring what else they have, and their tests.
#![allow(dead_code, unused_imports, unused_results)]

#[path = "../src/coordinates.rs"]
mod coordinates;
#[path = "../src/kafka/lease.rs"]
mod lease;
#[path = "support/sync.rs"]
mod sync;
#[path = "../src/train/run/turns.rs"]
mod turns;
#[path = "../src/kafka/wake.rs"]
mod wake;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use shuttle::sync::atomic::{AtomicBool, AtomicUsize};
use shuttle::thread;

/// Orders that each test tries.
const ORDERS: usize = 2_000;

fn main() -> ExitCode {
    let case = |name: &str, test: fn()| {
        Trial::test(name, move || {
            shuttle::check_random(test, ORDERS);
            shuttle::check_pct(test, ORDERS, 3);
            Ok(())
        })
    };
    let tests = vec![
        case("a_sleeper_never_misses_what_was_done_before_it_was_woken", wake_is_never_lost),
        case("no_more_threads_compute_than_may_and_all_get_their_turn", turns_are_kept),
        case("nothing_is_released_while_somebody_holds_the_lease", a_lease_holds_still),
        case("a_change_of_the_lease_is_seen_by_who_awaits_it", a_change_is_seen),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn wake_is_never_lost() {
    let (wake, done) = (wake::Wake::default(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..2 {
        let (wake, done) = (wake.clone(), Arc::clone(&done));
        thread::spawn(move || {
            done.fetch_add(1, Ordering::SeqCst);
            wake.notify();
        });
    }
    while done.load(Ordering::SeqCst) < 2 {
        wake.wait(Duration::from_millis(100));
    }
}

fn turns_are_kept() {
    const THREADS: usize = 2;
    let (turns, computing) = (Arc::new(turns::Turns::new(THREADS)), Arc::new(AtomicUsize::new(0)));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (turns, computing) = (Arc::clone(&turns), Arc::clone(&computing));
            thread::spawn(move || {
                let compute = || {
                    assert!(computing.fetch_add(1, Ordering::SeqCst) < THREADS);
                    thread::yield_now();
                    computing.fetch_sub(1, Ordering::SeqCst);
                };
                let mut turn = turns.take();
                compute();
                turn.aside(thread::yield_now);
                compute();
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

/// Partition 0 under assignment 1.
fn owned() -> Arc<lease::Lease> {
    let lease = Arc::new(lease::Lease::default());
    lease.change(|state| state.partitions.extend([(0, 1)]));
    lease
}

fn a_lease_holds_still() {
    let (lease, given_up) = (owned(), Arc::new(AtomicBool::new(false)));
    let committing = {
        let (lease, given_up) = (Arc::clone(&lease), Arc::clone(&given_up));
        thread::spawn(move || {
            let state = lease.hold();
            if state.owns(0, 1) {
                thread::yield_now();
                assert!(state.owns(0, 1) && !given_up.load(Ordering::SeqCst), "it went in the midst of a commit");
            }
        })
    };
    lease.change(|state| state.partitions.clear());
    given_up.store(true, Ordering::SeqCst);
    committing.join().unwrap();
}

fn a_change_is_seen() {
    let lease = owned();
    let version = lease.hold().version;
    let waiting = {
        let lease = Arc::clone(&lease);
        thread::spawn(move || {
            assert!(lease.await_change(version, Duration::from_secs(1)));
            assert!(!lease.hold().owns(0, 1));
        })
    };
    lease.change(|state| state.partitions.clear());
    waiting.join().unwrap();
}
