//! Words for people: what was probably meant, and as much of what came from outside as fits. Pure.

/// The candidate that a typing mistake most likely meant.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 3.min(candidate.len() / 2).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// The beginning of a message that may quote what came from outside: short enough for a log line or a header.
pub fn shortened(message: &str) -> String {
    const CHARS_MAX: usize = 200;
    match message.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &message[..end], message.len()),
        None => message.to_owned(),
    }
}
