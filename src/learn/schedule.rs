//! How the learning rate goes over a trial: a function of the step alone, so that no state has to be kept. \[pure\]
//!
//! With s updates done of S that the trial makes, and the first W of them to warm up:
//! ```text
//! s < W:     (s + 1) / W                                 from then on, with p = (s − W) / (S − W):
//! constant:  1                  linear:  1 − p           cosine:  (1 + cos πp) / 2
//! step:      1, from p = 1/2 on 1/10, from p = 3/4 on 1/100
//! ```
//! Cosine: Loshchilov and Hutter, "SGDR" (2017), without restarts. Steps: as He et al., "Deep Residual Learning"
//! (2016), section 4.2. Goyal et al. (2017) warm up so.

use serde::{Deserialize, Serialize};

/// What becomes of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    #[default]
    Constant,
    Linear,
    Cosine,
    Step,
}

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    pub shape: Shape,
    /// Updates that warm up.
    pub warm_up: u64,
    /// Updates of the whole trial.
    pub steps: u64,
}

impl Schedule {
    /// What the learning rate is multiplied with, after so many updates.
    #[must_use]
    pub fn factor(&self, done: u64) -> f64 {
        if done < self.warm_up {
            return (done + 1) as f64 / self.warm_up as f64;
        }
        let progress = (done - self.warm_up) as f64 / self.steps.saturating_sub(self.warm_up).max(1) as f64;
        let progress = progress.min(1.0);
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - progress,
            Shape::Cosine => (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0,
            Shape::Step if progress < 0.5 => 1.0,
            Shape::Step if progress < 0.75 => 0.1,
            Shape::Step => 0.01,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_begins_at_one_and_ends_where_it_should() {
        let at = |shape, warm_up, done| Schedule { shape, warm_up, steps: 104 }.factor(done);
        for shape in [Shape::Constant, Shape::Linear, Shape::Cosine, Shape::Step] {
            assert_eq!((at(shape, 4, 0), at(shape, 4, 1), at(shape, 4, 3)), (0.25, 0.5, 1.0));
            assert_eq!((at(shape, 4, 4), at(shape, 0, 0)), (1.0, 1.0));
        }
        let all = |done| [Shape::Constant, Shape::Linear, Shape::Cosine, Shape::Step].map(|shape| at(shape, 4, done));
        let near = |found: [f64; 4], expected: [f64; 4]| {
            assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
        };
        near(all(54), [1.0, 0.5, 0.5, 0.1]);
        near(all(79), [1.0, 0.25, (1.0 - 0.5_f64.sqrt()) / 2.0, 0.01]);
        near(all(104), [1.0, 0.0, 0.0, 0.01]);
        near(all(1_000), [1.0, 0.0, 0.0, 0.01]);
        assert_eq!(Schedule::default().factor(7), 1.0);
    }
}
