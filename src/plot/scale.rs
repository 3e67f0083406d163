//! Scales: where values lie on an axis, where the axis has ticks, and how those read.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// How values become places.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    Linear,
    /// By the logarithm; values that have none are left out.
    Log,
    /// 0, 1, … are these.
    Categories(Vec<String>),
}

impl Scale {
    /// [`Scale::Log`] where all values are positive and the largest is more than so many times the smallest.
    pub fn fitting(values: impl Iterator<Item = f64>, ratio: f64) -> Self {
        let (low, high) = bounds(values);
        if low > 0.0 && high / low > ratio {
            Self::Log
        } else {
            Self::Linear
        }
    }

    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let place = match self {
            Self::Linear | Self::Categories(_) => value,
            Self::Log => value.log10(),
        };
        place.is_finite().then_some(place)
    }
}

/// Smallest and largest finite value.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// An axis with ticks of its own.
pub(super) struct Axis {
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<(f64, String)>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let place = (value - self.low) / (self.high - self.low);
        from + (place.clamp(0.0, 1.0) * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Bold ones; there are no lighter ones between them.
        if hint.weight().allow_light_points() {
            Vec::new()
        } else {
            self.ticks.iter().map(|(place, _)| *place).collect()
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, place: &f64) -> String {
        self.ticks.iter().find(|(tick, _)| tick == place).map(|(_, name)| name.clone()).unwrap_or_default()
    }
}

impl Scale {
    pub(super) fn axis(&self, places: impl Iterator<Item = f64>, about: usize) -> Axis {
        let (low, high) = self.extent(places);
        Axis { low, high, ticks: self.ticks(low, high, about) }
    }

    /// From where to where an axis goes that shows these places.
    fn extent(&self, places: impl Iterator<Item = f64>) -> (f64, f64) {
        if let Self::Categories(names) = self {
            return (-0.6, names.len() as f64 - 0.4);
        }
        let (low, high) = bounds(places);
        if low > high {
            return (0.0, 1.0);
        }
        let least = match self {
            Self::Log => 0.1,
            _ => low.abs().max(high.abs()).max(1e-3) * 0.02,
        };
        let padding = ((high - low) * 0.06).max(least);
        (low - padding, high + padding)
    }

    /// Places of ticks and their names, about so many.
    fn ticks(&self, low: f64, high: f64, about: usize) -> Vec<(f64, String)> {
        match self {
            Self::Categories(names) => {
                // Names that would run into each other are left out.
                let step = names.len().div_ceil(about.max(1));
                names.iter().enumerate().step_by(step).map(|(i, name)| (i as f64, name.clone())).collect()
            }
            Self::Linear => {
                let step = nice((high - low) / about as f64);
                let first = (low / step).ceil() as i64;
                let digits = (-step.log10().floor()).max(0.0) as usize;
                (first..)
                    .map(|i| i as f64 * step)
                    .take_while(|tick| *tick <= high)
                    .map(|tick| (tick, with_thousands(tick, digits)))
                    .collect()
            }
            Self::Log => {
                let decades = high - low;
                let within: &[f64] = match decades {
                    d if d > 3.0 => &[1.0],
                    d if d > 1.2 => &[1.0, 3.0],
                    _ => &[1.0, 2.0, 3.0, 5.0, 7.0],
                };
                let step = (decades / about as f64).ceil().max(1.0) as usize;
                let exponents = (low.floor() as i32..=high.ceil() as i32).step_by(step);
                let values = exponents.flat_map(|exponent| within.iter().map(move |m| m * 10_f64.powi(exponent)));
                let ticks = values.map(|value| (value.log10(), short(value)));
                ticks.filter(|(tick, _)| (low..=high).contains(tick)).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least as large.
fn nice(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|m| m * power >= step * 0.999).unwrap_or(10.0) * power;
    if step.is_finite() && step > 0.0 {
        step
    } else {
        1.0
    }
}

/// Four digits that count, at most; powers of ten where zeros would be many.
pub fn short(value: f64) -> String {
    // Shortest digits that give the value to four places.
    let rounded: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    if (1e-3..1e5).contains(&value.abs()) || value == 0.0 {
        rounded.to_string()
    } else {
        format!("{rounded:e}")
    }
}

/// So many digits after the point, and commas before it.
pub fn with_thousands(value: f64, digits: usize) -> String {
    if value.abs() >= 1e7 {
        return short(value);
    }
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let groups: Vec<&str> = whole.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    let rest = rest.map_or_else(String::new, |rest| format!(".{rest}"));
    format!("{sign}{}{rest}", groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(scale: &Scale, low: f64, high: f64) -> Vec<String> {
        scale.ticks(low, high, 5).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(names(&Scale::Linear, 0.62, 0.81), ["0.65", "0.70", "0.75", "0.80"]);
        assert_eq!(names(&Scale::Linear, -1.0, 9.0), ["0", "2", "4", "6", "8"]);
        assert_eq!(names(&Scale::Linear, 0.0, 40_000.0), ["0", "10,000", "20,000", "30,000", "40,000"]);
        assert_eq!(names(&Scale::Log, -3.05, -1.9), ["0.001", "0.002", "0.003", "0.005", "0.007", "0.01"]);
        assert_eq!(names(&Scale::Log, -8.0, 8.0), ["1e-8", "1e-4", "1", "10000", "1e8"]);
        assert_eq!(names(&Scale::Log, 0.0, 0.0), ["1"]);
        assert_eq!([0.000_123_456, -12.344_9, 1e9, 0.0].map(short), ["1.235e-4", "-12.34", "1e9", "0"]);
    }
}
