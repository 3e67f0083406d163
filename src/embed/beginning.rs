//! Where reading of an assigned partition begins: the cases, and which of them holds. Pure.
//!
//! A committed offset of ours was committed together with the output it counts, so it is believed. One that somebody
//! else has set must agree with the output, and where Kafka has forgotten the offset, the output alone says where to go
//! on. A group that has never written anything starts at the log's start.

use std::ops::Range;

/// What a group has committed for a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The next text to read.
    pub offset: i64,
    pub by: By,
}

/// Who committed an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The stage, with the output of the text before.
    Stage,
    /// The stage, before it had any output.
    Beginner,
    /// Somebody else: a tool that resets groups.
    Somebody,
}

/// Where a partition is gone on with, and why there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// At an offset of ours, unless its output has been removed.
    Committed(i64),
    /// At an offset that was committed before there was any output.
    Begun(i64),
    /// At an offset of somebody's, which neither repeats a text nor leaves one out.
    Set(i64),
    /// After the output, from which an offset of ours has parted, or may have.
    Parted(i64),
    /// After the output, since the offset was forgotten; unless other texts are there by now.
    Forgotten(i64),
    /// At the log's start, unless there has been output that says nothing of its source.
    New(i64),
}

impl Beginning {
    /// The first offset to read.
    pub fn position(self) -> i64 {
        match self {
            Self::Committed(at)
            | Self::Begun(at)
            | Self::Set(at)
            | Self::Parted(at)
            | Self::Forgotten(at)
            | Self::New(at) => at,
        }
    }

    /// Whether there is output that it goes on from.
    pub fn goes_on(self) -> bool {
        match self {
            Self::Committed(_) | Self::Set(_) | Self::Parted(_) | Self::Forgotten(_) => true,
            Self::Begun(_) | Self::New(_) => false,
        }
    }
}

/// Why nobody can know where to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The log does not hold the committed offset.
    OutsideLog(i64),
    /// The output goes beyond the end of the log.
    OutputBeyondLog,
    /// The log begins after the text that would come next.
    NextDeleted,
    /// An offset that somebody set would repeat these texts.
    Repeats(Range<i64>),
    /// An offset that somebody set would leave these texts out.
    LeavesOut(Range<i64>),
}

/// Chooses. `last` is the text that the newest output came from; `parted` says that offset and output may tell
/// different stories, since a transaction was ended from outside; `log` is what the partition holds.
///
/// # Errors
/// Where each way on would repeat a text, or leave one out.
pub(super) fn choose(
    found: Option<Found>,
    last: Option<i64>,
    parted: bool,
    log: &Range<i64>,
) -> Result<Beginning, Refusal> {
    let Some(Found { offset, by }) = found else {
        return match last {
            None => Ok(Beginning::New(log.start)),
            Some(last) if last >= log.end => Err(Refusal::OutputBeyondLog),
            Some(last) if last + 1 < log.start => Err(Refusal::NextDeleted),
            Some(last) => Ok(Beginning::Forgotten(last + 1)),
        };
    };
    if !(log.start..=log.end).contains(&offset) {
        return Err(Refusal::OutsideLog(offset));
    }
    match (by, last) {
        (By::Somebody, None) => Ok(Beginning::Begun(offset)),
        (By::Somebody, Some(last)) => {
            let next = log.start.max(last + 1);
            match offset {
                _ if offset < next => Err(Refusal::Repeats(offset..next)),
                _ if offset > next => Err(Refusal::LeavesOut(next..offset)),
                _ => Ok(Beginning::Set(offset)),
            }
        }
        (By::Stage | By::Beginner, Some(last)) if parted || last >= offset => Ok(Beginning::Parted(last + 1)),
        (By::Stage | By::Beginner, None) if parted => Ok(Beginning::Begun(offset)),
        (By::Beginner, _) => Ok(Beginning::Begun(offset)),
        (By::Stage, _) => Ok(Beginning::Committed(offset)),
    }
}

#[cfg(test)]
mod tests {
    use super::{choose, Beginning, By, Found, Refusal};

    const LOG: std::ops::Range<i64> = 10..50;

    fn at(offset: i64, by: By) -> Option<Found> {
        Some(Found { offset, by })
    }

    #[test]
    fn an_offset_of_ours_is_believed_unless_the_output_goes_beyond_it() {
        assert_eq!(choose(at(20, By::Stage), None, false, &LOG), Ok(Beginning::Committed(20)));
        assert_eq!(choose(at(20, By::Stage), Some(19), false, &LOG), Ok(Beginning::Committed(20)));
        assert_eq!(
            choose(at(20, By::Stage), Some(12), false, &LOG),
            Ok(Beginning::Committed(20)),
            "dead letters expire"
        );
        assert_eq!(choose(at(20, By::Stage), Some(20), false, &LOG), Ok(Beginning::Parted(21)));
        assert_eq!(choose(at(20, By::Beginner), None, false, &LOG), Ok(Beginning::Begun(20)));
        assert_eq!(choose(at(20, By::Beginner), Some(24), false, &LOG), Ok(Beginning::Parted(25)));
    }

    #[test]
    fn where_a_transaction_was_ended_from_outside_the_output_counts() {
        assert_eq!(choose(at(20, By::Stage), Some(15), true, &LOG), Ok(Beginning::Parted(16)));
        assert_eq!(choose(at(20, By::Stage), None, true, &LOG), Ok(Beginning::Begun(20)));
        // What somebody has set was not part of a transaction.
        assert_eq!(choose(at(16, By::Somebody), Some(15), true, &LOG), Ok(Beginning::Set(16)));
    }

    #[test]
    fn an_offset_that_somebody_set_must_agree_with_the_output() {
        assert_eq!(choose(at(20, By::Somebody), Some(19), false, &LOG), Ok(Beginning::Set(20)));
        assert_eq!(choose(at(18, By::Somebody), Some(19), false, &LOG), Err(Refusal::Repeats(18..20)));
        assert_eq!(choose(at(23, By::Somebody), Some(19), false, &LOG), Err(Refusal::LeavesOut(20..23)));
        assert_eq!(
            choose(at(10, By::Somebody), Some(5), false, &LOG),
            Ok(Beginning::Set(10)),
            "texts 6..10 are deleted"
        );
        assert_eq!(choose(at(33, By::Somebody), None, false, &LOG), Ok(Beginning::Begun(33)));
    }

    #[test]
    fn a_forgotten_offset_is_found_in_the_output() {
        assert_eq!(choose(None, Some(19), false, &LOG), Ok(Beginning::Forgotten(20)));
        assert_eq!(choose(None, Some(9), false, &LOG), Ok(Beginning::Forgotten(10)));
        assert_eq!(choose(None, Some(49), false, &LOG), Ok(Beginning::Forgotten(50)));
        assert_eq!(choose(None, Some(50), false, &LOG), Err(Refusal::OutputBeyondLog));
        assert_eq!(choose(None, Some(8), false, &LOG), Err(Refusal::NextDeleted));
        assert_eq!(choose(None, None, true, &LOG), Ok(Beginning::New(10)));
    }

    #[test]
    fn an_offset_that_the_log_does_not_hold_is_refused_whoever_set_it() {
        for by in [By::Stage, By::Beginner, By::Somebody] {
            for offset in [9, 51] {
                assert_eq!(choose(at(offset, by), Some(20), true, &LOG), Err(Refusal::OutsideLog(offset)));
            }
            for offset in [10, 50] {
                assert!(choose(at(offset, by), None, false, &LOG).is_ok());
            }
        }
    }
}
