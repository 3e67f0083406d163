//! Loops in the vector instructions of the processor at hand. Pure.

/// Calls `f` as compiled for the widest vector instructions that the processor has. The results are those of any other
/// processor: the compiler neither fuses nor reorders arithmetic, it only does more of it at once.
///
/// `f` and what it calls have to be `#[inline(always)]`, or they stay as they are.
#[inline(always)]
pub fn vectorized<R>(f: impl FnMut() -> R) -> R {
    pulp::Arch::new().dispatch(Vectorized(f))
}

/// Beside the library's own form for closures, which calls them through a function that is not inlined.
struct Vectorized<F>(F);

impl<R, F: FnMut() -> R> pulp::WithSimd for Vectorized<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
        self.0()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum of products, which could be fused and be taken in another order, and products plus a number.
    #[inline(always)]
    fn results(values: &[f32]) -> (f32, Vec<f32>) {
        let sum = values.iter().fold(0.0, |sum, value| sum + value * 0.1);
        (sum, values.iter().map(|value| value * 0.1 + 0.3).collect())
    }

    #[test]
    fn arithmetic_is_neither_fused_nor_reordered() {
        let values: Vec<f32> = (0..1_000).map(|i| (i as f32).sin()).collect();
        let found = vectorized(
            #[inline(always)]
            || results(&values),
        );
        assert_eq!(found, results(&values));
    }
}
