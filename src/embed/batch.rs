//! Which texts share an inference call. Pure.

use std::ops::Range;

/// Sorts texts by length and cuts them into batches of at most `max_batch_tokens` tokens, padding included.
///
/// Returns indices into `lengths`. Texts of equal length keep their order, longest batches come first so that the
/// last ones to finish are short.
pub fn by_length(lengths: &[usize], max_batch_tokens: usize) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..u32::try_from(lengths.len()).unwrap_or(u32::MAX)).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i as usize]));
    cuts(&order, lengths, max_batch_tokens).into_iter().map(|cut| order[cut].to_vec()).collect()
}

fn cuts(order: &[u32], lengths: &[usize], max_batch_tokens: usize) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let mut start = 0;
    while start < order.len() {
        // Sorted descending: the first text is the longest, and all are padded to it.
        let longest = lengths[order[start] as usize].max(1);
        let end = (start + (max_batch_tokens / longest).max(1)).min(order.len());
        cuts.push(start..end);
        start = end;
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_the_budget_and_hold_every_text_once() {
        let lengths: Vec<usize> = (0..257).map(|i| 3 + (i * 37) % 90).collect();
        let batches = by_length(&lengths, 256);
        let mut seen: Vec<u32> = batches.concat();
        for batch in &batches {
            let longest = batch.iter().map(|&i| lengths[i as usize]).max().unwrap();
            assert!(longest * batch.len() <= 256);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..257).collect::<Vec<u32>>());
    }

    #[test]
    fn a_text_over_the_budget_travels_alone() {
        assert_eq!(by_length(&[5, 500, 6], 100), vec![vec![1], vec![2, 0]]);
        assert!(by_length(&[], 100).is_empty());
    }
}
