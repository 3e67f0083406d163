//! What the doctor finds, and that what is built in is well.

use candle_core::{Result, Tensor, D};
use candle_nn::{linear, Linear, Module, VarBuilder};

use super::*;
use crate::models::kind::Key;
use crate::models::own::{kind, Mode, OwnModel, Padded};
use crate::models::registry::KINDS;

/// A model that is right but for what one function does.
#[derive(Debug)]
struct Patient<const CASE: usize> {
    hidden: Linear,
    out: Linear,
    kernel: Tensor,
}

const WELL: usize = 0;
const FUSED: usize = 1;
const UNUSED: usize = 2;
const CONVOLVED: usize = 3;
const CHANCE: usize = 4;
const NARROW: usize = 5;
const COPIED: usize = 6;
const OWN_LOSS: usize = 7;

impl<const CASE: usize> OwnModel for Patient<CASE> {
    const NAME: &'static str = "patient";
    const KEYS: &'static [Key] = &[];

    fn new(spec: &ModelSpec, variables: VarBuilder<'_>) -> Result<Self> {
        let dim = spec.shape.dim;
        let hidden = linear(dim, 4, variables.pp("hidden"))?;
        let hidden = match CASE {
            COPIED => Linear::new(hidden.weight().copy()?, hidden.bias().cloned()),
            _ => hidden,
        };
        let outputs = if CASE == NARROW { spec.outputs() + 1 } else { spec.outputs() };
        let kernel = match CASE {
            CONVOLVED | UNUSED => variables.pp("kernel").get((4, dim, 3), "weight")?,
            _ => Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu)?,
        };
        Ok(Self { hidden, out: linear(4, outputs, variables.pp("out"))?, kernel })
    }

    fn forward(&self, batch: &Padded, mode: &Mode) -> Result<Tensor> {
        let mean = batch.mean()?;
        let hidden = match CASE {
            CONVOLVED => {
                (batch.rows.transpose(1, 2)?.conv1d(&self.kernel, 1, 1, 1, 1)?.mean(2)?
                    + self.hidden.forward(&mean)?)?
            }
            _ => self.hidden.forward(&mean)?,
        };
        let hidden = match CASE {
            FUSED => candle_nn::ops::softmax_last_dim(&hidden)?,
            _ => candle_nn::ops::softmax(&hidden, D::Minus1)?,
        };
        let hidden = match CASE {
            CHANCE => (&hidden + Tensor::rand(0_f32, 0.5, hidden.shape(), hidden.device())?)?,
            _ => mode.dropout(&hidden, 0.3)?,
        };
        self.out.forward(&hidden)
    }

    fn loss(&self, outputs: &Tensor, batch: &Padded) -> Option<Result<Tensor>> {
        (CASE == OWN_LOSS).then(|| (outputs - 0.5)?.sqr()?.sum_all()? / batch.targets.len() as f64)
    }
}

/// What the doctor says of it.
fn said<const CASE: usize>() -> String {
    examine(kind::<Patient<CASE>>()).map_or_else(|diagnosis| diagnosis.to_string(), |()| "well".to_owned())
}

#[test]
fn what_is_built_in_is_well() {
    for kind in KINDS {
        examine(kind).unwrap();
    }
}

#[test]
fn each_trap_is_named_with_the_way_out() {
    assert_eq!((said::<WELL>(), said::<OWN_LOSS>()), ("well".into(), "well".into()));
    let finds = |said: String, parts: &[&str]| {
        assert!(said.starts_with("model `patient`, task `classify`: "), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    };
    finds(
        said::<FUSED>(),
        &["do not depend on variable `hidden.bias`", "use `candle_nn::ops::softmax(&x, D::Minus1)`"],
    );
    finds(said::<UNUSED>(), &["do not depend on variable `kernel.weight`"]);
    finds(said::<CONVOLVED>(), &["variable `kernel.weight`", "conv2d with height 1"]);
    finds(said::<CHANCE>(), &["`mode`"]);
    finds(said::<NARROW>(), &["[4, 3]"]);
    finds(said::<COPIED>(), &["variable `hidden.weight`", "copied in `new`"]);
}
