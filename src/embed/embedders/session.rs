//! The direct engine: one session of ONNX Runtime, whose rows are means of the graph's tokens.

use std::borrow::Cow;
use std::ops::Range;

use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::SessionInputValue;
use ort::value::{Outlet, TensorRef};

use super::embedder::{Embedder, Error, Item};
use super::files::Folder;
use crate::features::codec::{Dtype, Encoder};

/// What a graph may ask for.
const INPUTS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];
/// Outputs that hold one vector per token, `[batch, tokens, dim]`, by preference.
const OUTPUTS: [&str; 2] = ["last_hidden_state", "token_embeddings"];
/// The output that holds one vector per text, `[batch, dim]`, in graphs that project what they pool.
const TEXT_OUTPUT: &str = "text_embeds";

/// A session of ONNX Runtime and the tensors of its calls, which are used again.
pub(super) struct Session {
    session: ort::session::Session,
    dtype: Dtype,
    /// Rows get length 1, as those of whole texts do.
    is_normalised: bool,
    /// Those of [`INPUTS`] that the model has.
    inputs: Vec<usize>,
    /// Name of the output with the tokens.
    output: String,
    /// The id that fills shorter texts.
    padding: i64,
    tensors: [Vec<i64>; INPUTS.len()],
    mean: Vec<f32>,
}

impl Session {
    /// Loads the graph.
    ///
    /// # Errors
    /// When it does not load, or gives no row for each token.
    pub fn open(
        environment: &Environment,
        folder: &Folder<'_>,
        threads: usize,
        dtype: Dtype,
        is_normalised: bool,
    ) -> Result<Self, Error> {
        let unfit = |error: &dyn std::fmt::Display| folder.unfit(error);
        // From the file, so that no copy of it stays in memory.
        let session = ort::session::Session::builder(environment)
            .map_err(|error| unfit(&error))?
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|error| unfit(&error))?
            .with_intra_threads(threads)
            .map_err(|error| unfit(&error))?
            .commit_from_file(folder.graph())
            .map_err(|error| unfit(&error))?;
        let graph = |message| Error::Graph { folder: folder.path().display().to_string(), message };
        let input = |name: &str| {
            let known = INPUTS.iter().position(|known| *known == name);
            known.ok_or_else(|| unfit(&format!("it asks for an input `{name}`, and only {INPUTS:?} are given")))
        };
        let inputs = session.inputs().iter().map(|outlet| input(outlet.name())).collect::<Result<_, _>>()?;
        // What such a graph was trained to give for a text is no mean of its tokens.
        if is_normalised && session.outputs().iter().any(|outlet| outlet.name() == TEXT_OUTPUT) {
            return Err(graph(format!("its output `{TEXT_OUTPUT}` is one for each text")));
        }
        let names: Vec<&str> =
            session.outputs().iter().filter(|outlet| is_per_token(outlet)).map(Outlet::name).collect();
        let named = OUTPUTS.into_iter().find(|output| names.contains(output));
        let output = named.or_else(|| (session.outputs().len() == 1).then(|| names.first().copied()).flatten());
        let output =
            output.ok_or_else(|| graph(format!("it has no output `[batch, tokens, dim]` named {}", OUTPUTS[0])))?;
        let (output, padding) = (output.to_owned(), folder.padding());
        let (tensors, mean) = Default::default();
        Ok(Self { session, dtype, is_normalised, inputs, output, padding, tensors, mean })
    }
}

fn is_per_token(outlet: &Outlet) -> bool {
    outlet.dtype().tensor_shape().is_some_and(|shape| shape.len() == 3)
}

impl Embedder for Session {
    fn embed(&mut self, batch: &[Item<'_>]) -> Result<Vec<Vec<u8>>, Error> {
        let failed = |error: ort::Error| Error::Inference(error.to_string());
        let tokens = batch.iter().map(|item| item.ids.len()).max().unwrap_or(0);
        fill(&mut self.tensors, batch, tokens, self.padding);
        let tensors = &self.tensors;
        let input = |&input: &usize| {
            let tensor = TensorRef::from_array_view(([batch.len(), tokens], tensors[input].as_slice()))?;
            Ok((Cow::Borrowed(INPUTS[input]), SessionInputValue::from(tensor)))
        };
        let inputs: Vec<_> = self.inputs.iter().map(input).collect::<Result<_, _>>().map_err(failed)?;
        let outputs = self.session.run(inputs).map_err(failed)?;
        let name = &self.output;
        let output = outputs.get(name).ok_or_else(|| Error::Inference(format!("the model gave no `{name}`")))?;
        let (shape, hidden) = output.try_extract_tensor::<f32>().map_err(failed)?;
        let dim = match shape[..] {
            [texts, seen, dim] if (texts, seen) == (batch.len() as i64, tokens as i64) => dim as usize,
            _ => return Err(Error::Inference(format!("output `{name}` has shape {shape:?}"))),
        };
        let (dtype, is_normalised, mean) = (self.dtype, self.is_normalised, &mut self.mean);
        let texts = batch.iter().zip(hidden.chunks_exact(tokens * dim));
        Ok(texts.map(|(item, hidden)| matrix(hidden, dim, item.rows, dtype, is_normalised, mean)).collect())
    }
}

/// Shorter texts are padded; the mask hides with what. There are no second texts.
fn fill([ids, mask, types]: &mut [Vec<i64>; INPUTS.len()], batch: &[Item<'_>], tokens: usize, padding: i64) {
    ids.clear();
    mask.clear();
    types.clear();
    for (i, item) in (1..).zip(batch) {
        ids.extend(item.ids.iter().map(|&id| i64::from(id)));
        mask.resize(ids.len(), 1);
        ids.resize(i * tokens, padding);
        mask.resize(i * tokens, 0);
    }
    types.resize(ids.len(), 0);
}

/// Each row is the mean of its tokens, summed in order, so that its bits depend on nothing else.
fn matrix(
    hidden: &[f32],
    dim: usize,
    rows: &[Range<u32>],
    dtype: Dtype,
    is_normalised: bool,
    mean: &mut Vec<f32>,
) -> Vec<u8> {
    let mut encoder = Encoder::new(rows.len(), dim, dtype);
    for row in rows {
        let (first, others) = hidden[row.start as usize * dim..row.end as usize * dim].split_at(dim);
        if others.is_empty() && !is_normalised {
            encoder.push(first);
            continue;
        }
        mean.clear();
        mean.extend_from_slice(first);
        for token in others.chunks_exact(dim) {
            for (sum, value) in mean.iter_mut().zip(token) {
                *sum += value;
            }
        }
        let pieces = (row.end - row.start) as f32;
        mean.iter_mut().for_each(|value| *value /= pieces);
        if is_normalised {
            normalise(mean);
        }
        encoder.push(mean);
    }
    encoder.finish()
}

/// To length 1, summed in order; the zero vector stays.
fn normalise(row: &mut [f32]) {
    let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        row.iter_mut().for_each(|value| *value /= length);
    }
}
