//! What is embedded. Every input is a function of its number, so the judge knows all of them.

use crate::support::Out;

/// Partitions of `texts`.
pub const PARTITIONS: i32 = 4;

/// An input and what must become of it.
#[derive(Clone, Debug)]
pub struct Input {
    pub out: Out,
    pub valid: bool,
}

impl Input {
    pub fn key(&self) -> String {
        String::from_utf8_lossy(self.out.key.as_deref().unwrap_or_default()).into_owned()
    }
}

/// The input of this number.
///
/// Few rows, so that features stay small, but each of many word pieces, so that embedding takes a while and faults find
/// it at work.
pub fn input(number: usize) -> Input {
    let key = format!("k{number}");
    let label = if number.is_multiple_of(2) { "sea" } else { "field" };
    let words: Vec<String> =
        (0..2 + number % 3).map(|word| letters(number * 31 + word, 30 + number % 17 * 3)).collect();
    let text = format!("{label} {}", words.join(" "));
    let value: Option<Vec<u8>> = match number % 40 {
        7 => None,
        19 => Some(vec![b'a', 0xff, 0xfe]),
        33 => Some(b" \t\n ".to_vec()),
        _ => Some(text.into_bytes()),
    };
    let valid = !matches!(number % 40, 7 | 19 | 33);
    let labelled = Out::labelled(&key, "", label);
    Input { out: Out { value, ..labelled }.to((number as i32) % PARTITIONS), valid }
}

/// A word that no vocabulary has.
fn letters(seed: usize, count: usize) -> String {
    let mut state = seed as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + ((state >> 33) % 26) as u8)
    };
    (0..count).map(|_| next()).collect()
}
