//! Headers of records, whose names may be any bytes.
//!
//! Kafka asks nothing of a header's name, the client library takes it for text and panics where it is none. A record
//! with such a name is somebody's mistake and no reason to die of, so that panic is caught where it arises.

use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

use rdkafka::message::{Header, Headers, Message};

/// A header whose name is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name of header {number} is not valid UTF-8")]
pub struct NotText {
    /// From 1.
    pub number: usize,
}

/// Headers of a record, in order.
pub fn of<M: Message>(message: &M) -> impl DoubleEndedIterator<Item = Result<Header<'_, &[u8]>, NotText>> {
    message.headers().into_iter().flat_map(iter)
}

/// Headers in order.
pub fn iter<H: Headers>(headers: &H) -> impl DoubleEndedIterator<Item = Result<Header<'_, &[u8]>, NotText>> {
    (0..headers.count()).map(|index| get(headers, index))
}

thread_local! {
    static IS_READING: Cell<bool> = const { Cell::new(false) };
}

fn get<H: Headers>(headers: &H, index: usize) -> Result<Header<'_, &[u8]>, NotText> {
    static QUIET: Once = Once::new();
    // What is handled here is not reported as a crash.
    QUIET.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_READING.get() {
                report(panic);
            }
        }));
    });
    IS_READING.set(true);
    let header = catch_unwind(AssertUnwindSafe(|| headers.get(index)));
    IS_READING.set(false);
    header.map_err(|_| NotText { number: index + 1 })
}
