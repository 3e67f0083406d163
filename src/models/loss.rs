//! What a pass over records cost. \[pure\]

/// A loss before its division: `sum / weight`, so that losses of batches add up to that of the
/// whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Squared error, or cross-entropy.
    pub sum: f64,
    /// Number of compared values, or of records.
    pub weight: f64,
}

impl Loss {
    /// The loss itself; NaN where nothing was compared.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / self.weight
    }
}
