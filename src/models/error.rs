//! What keeps a model from being built or from computing. \[pure\]

use std::borrow::Cow;

use thiserror::Error;

/// Most elements that all parameters of a model may have together: 4 GiB of `f32`.
pub const ELEMENTS_MAX: usize = 1 << 30;

/// What kept a model from being built or from computing.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A setting out of range.
    #[error("{setting} must be {expected}, not {found}")]
    Setting {
        /// Its name in the search file.
        setting: &'static str,
        expected: Cow<'static, str>,
        found: String,
    },
    /// More parameters than [`ELEMENTS_MAX`].
    #[error("the model would have more than {ELEMENTS_MAX} parameters: lower rows_max, layers or hidden")]
    Size,
    /// A record without a class for a model that learns classes.
    #[error("record {record} of the batch has no label")]
    NoLabel { record: usize },
    /// A class where a number belongs, or a number where a class belongs.
    #[error("record {record} of the batch is labelled with something else than {expected}")]
    Target { record: usize, expected: &'static str },
    /// A class that the model does not have.
    #[error("record {record} of the batch has label {label}, the model has {classes} classes")]
    Label { record: usize, label: u32, classes: usize },
    /// A kind that another program has.
    #[error("model `{model}` is not in this program; one that has it trains its trials")]
    Absent { model: &'static str },
    /// A graph that does not lead from the outputs to a variable.
    #[error(
        "the outputs do not depend on variable `{variable}`, so it would not learn: it is not used, or an operation \
         after it has no way back. Of candle's, these have none: `softmax_last_dim` (use `candle_nn::ops::softmax(&x, \
         D::Minus1)`), `rms_norm` (`rms_norm_slow`), `layer_norm` and `LayerNorm` (`layer_norm_slow`), `rope` \
         (`rope_slow`), `sdpa` (products and `softmax`)"
    )]
    Unreached { variable: String },
    /// The tensor library refused.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
