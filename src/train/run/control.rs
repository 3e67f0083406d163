//! What the pool orders of a trial's thread, and how its work ends.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use crate::output::Outcome;

/// What the pool wants of a running trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Go on.
    Run = 0,
    /// Checkpoint and end: the process stops or the partition goes to somebody else.
    Yield = 1,
    /// Checkpoint and end for good: somebody asked for it.
    Stop = 2,
    /// End at once: the partition belongs to somebody else already, or the trial was deleted or restarted.
    Abandon = 3,
}

/// Carries orders to a trial's thread.
#[derive(Clone, Default)]
pub struct Control(Arc<AtomicU8>);

impl Control {
    /// Gives an order; a stronger one stands.
    pub fn order(&self, order: Order) {
        let _ = self.0.fetch_max(order as u8, Ordering::AcqRel);
    }

    /// The order that stands.
    pub fn get(&self) -> Order {
        match self.0.load(Ordering::Acquire) {
            0 => Order::Run,
            1 => Order::Yield,
            2 => Order::Stop,
            _ => Order::Abandon,
        }
    }
}

/// How a thread's work on a trial ended.
#[derive(Debug)]
pub enum End {
    /// The outcome is published.
    Outcome(Box<Outcome>),
    /// Given up in order, to be taken over from its last checkpoint.
    Yielded,
    /// Not to be gone on with before ownership is confirmed.
    Interrupted(String),
}

#[cfg(test)]
mod tests {
    use super::{Control, Order};

    #[test]
    fn a_stronger_order_stands() {
        let control = Control::default();
        assert_eq!(control.get(), Order::Run);
        for (order, stands) in
            [(Order::Yield, Order::Yield), (Order::Abandon, Order::Abandon), (Order::Stop, Order::Abandon)]
        {
            control.order(order);
            assert_eq!(control.get(), stands);
        }
    }
}
