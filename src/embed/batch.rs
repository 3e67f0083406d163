//! Which texts share an inference call. Pure.

/// What a call costs beside its tokens, in tokens.
const CALL_TOKENS: usize = 25;
/// Tokens of a call, padding included, that stay in a core's cache.
const CACHED_TOKENS: usize = 256;

/// What a call costs, in tokens: each beyond those in the cache costs a quarter more. Measured with MiniLM on one core
/// with AVX-512 in 100 shapes from 6 to 512 tokens, it is within a tenth of the truth at 0.09 ms a token.
const fn cost(tokens: usize) -> usize {
    CALL_TOKENS + tokens + tokens.saturating_sub(CACHED_TOKENS) / 4
}

/// Sorts texts by length and cuts them into batches of at most `max_batch_tokens` tokens, padding included, where
/// calls and padding together cost least.
///
/// Returns indices into `lengths`. Texts of equal length keep their order, longest batches come first so that the
/// last ones to finish are short.
pub fn by_length(lengths: &[usize], max_batch_tokens: usize) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..u32::try_from(lengths.len()).unwrap_or(u32::MAX)).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i as usize]));
    let sorted: Vec<usize> = order.iter().map(|&i| lengths[i as usize].max(1)).collect();
    let mut batches: Vec<Vec<u32>> = Vec::new();
    let begins = begins_of_last(&sorted, max_batch_tokens);
    let mut end = order.len();
    while end > 0 {
        let begin = begins[end];
        batches.push(order[begin..end].to_vec());
        end = begin;
    }
    batches.reverse();
    batches
}

/// For each number of the longest texts: where the last batch begins in the cheapest way to cut them.
fn begins_of_last(sorted: &[usize], max_batch_tokens: usize) -> Vec<usize> {
    let mut begins = vec![0; sorted.len() + 1];
    let mut costs = vec![0; sorted.len() + 1];
    for end in 1..=sorted.len() {
        costs[end] = usize::MAX;
        for begin in (0..end).rev() {
            // Sorted descending: all are padded to the first.
            let tokens = (end - begin) * sorted[begin];
            if tokens > max_batch_tokens && end - begin > 1 {
                break;
            }
            let cost = costs[begin] + cost(tokens);
            if cost <= costs[end] {
                (costs[end], begins[end]) = (cost, begin);
            }
        }
    }
    begins
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost_of(lengths: &[usize], batches: &[Vec<u32>]) -> usize {
        let longest = |batch: &Vec<u32>| batch.iter().map(|&i| lengths[i as usize]).max().unwrap();
        batches.iter().map(|batch| cost(longest(batch) * batch.len())).sum()
    }

    #[test]
    fn batches_keep_the_budget_and_hold_every_text_once() {
        let lengths: Vec<usize> = (0..257).map(|i| 3 + (i * 37) % 90).collect();
        let batches = by_length(&lengths, 256);
        let mut seen: Vec<u32> = batches.concat();
        for batch in &batches {
            let longest = batch.iter().map(|&i| lengths[i as usize]).max().unwrap();
            assert!(longest * batch.len() <= 256);
        }
        let firsts: Vec<usize> = batches.iter().map(|batch| lengths[batch[0] as usize]).collect();
        assert!(firsts.is_sorted_by(|a, b| a >= b));
        seen.sort_unstable();
        assert_eq!(seen, (0..257).collect::<Vec<u32>>());
    }

    #[test]
    fn a_text_over_the_budget_travels_alone() {
        assert_eq!(by_length(&[5, 500, 6], 100), vec![vec![1], vec![2, 0]]);
        assert!(by_length(&[], 100).is_empty());
    }

    #[test]
    fn a_call_of_its_own_is_worth_as_much_padding() {
        let short = 10;
        let long = |more| short + CALL_TOKENS + more;
        assert_eq!(by_length(&[short, long(0)], 256).len(), 1);
        assert_eq!(by_length(&[short, long(1)], 256).len(), 2);
    }

    #[test]
    fn batches_beyond_the_cache_are_not_worth_their_calls() {
        assert_eq!(by_length(&[256; 3], 1024).len(), 3);
        assert_eq!(by_length(&[25; 60], 4096).iter().map(Vec::len).max(), Some(10));
    }

    #[test]
    fn no_other_cut_of_the_sorted_texts_costs_less() {
        let lengths: Vec<usize> = (0..12).map(|i| 3 + (i * 29) % 60).collect();
        let best = cost_of(&lengths, &by_length(&lengths, 128));
        let mut order: Vec<u32> = (0..12).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(lengths[i as usize]));
        for cuts in 0..1_u32 << 11 {
            let mut batches = vec![vec![order[0]]];
            for (i, &text) in order.iter().enumerate().skip(1) {
                if cuts >> (i - 1) & 1 == 1 {
                    batches.push(Vec::new());
                }
                batches.last_mut().unwrap().push(text);
            }
            let fits = |batch: &Vec<u32>| batch.len() * lengths[batch[0] as usize] <= 128;
            assert!(!batches.iter().all(fits) || cost_of(&lengths, &batches) >= best);
        }
    }
}
