//! One step of a recurrent model and the way back, row by row; formulas in [`super::recurrent`]. \[pure\]

use super::activation::{sigmoid, tanh};

/// A row as it changes, each `[H]`.
pub struct Row<'r> {
    /// Forward: the new state. Backward: the gradient of the state, which becomes what goes straight to the one before.
    pub state: &'r mut [f32],
    /// What the cell keeps besides.
    pub extra: &'r mut [f32],
}

/// Arithmetic of a cell. Gates are `[G·H]`, the rest is `[H]`.
pub trait Cell: Send + std::fmt::Debug + 'static {
    /// G.
    const GATES: usize;
    /// Does `extra` go on to the next row?
    const CARRIES: bool;
    /// Do gates have another gradient with regard to states than with regard to rows?
    const SPLITS: bool;

    /// `gates` hold what the row gives to them, `recurrent` what the state before does; they become the gates.
    fn forward(gates: &mut [f32], recurrent: &[f32], before: &[f32], extra_before: &[f32], row: Row<'_>);

    /// `gates` become their gradients with regard to what the row gives to them, and `recurrent`, of a cell that
    /// splits, with regard to what states do. `carried` is the gradient of `extra`, and becomes that of the one before.
    fn backward(
        gates: &mut [f32],
        recurrent: &mut [f32],
        before: &[f32],
        extra_before: &[f32],
        row: Row<'_>,
        carried: &mut [f32],
    );
}

/// Gated recurrent units. Keeps W_hn h + b_hn.
#[derive(Debug)]
pub struct Gru;

impl Cell for Gru {
    const GATES: usize = 3;
    const CARRIES: bool = false;
    const SPLITS: bool = true;

    #[inline(always)]
    fn forward(gates: &mut [f32], recurrent: &[f32], before: &[f32], _: &[f32], row: Row<'_>) {
        let width = before.len();
        let (state, extra) = (&mut row.state[..width], &mut row.extra[..width]);
        let [r, z, n] = thirds(gates, width);
        let (recurrent_r, rest) = recurrent.split_at(width);
        let (recurrent_z, recurrent_n) = rest.split_at(width);
        let recurrent_n = &recurrent_n[..width];
        for i in 0..width {
            let reset = sigmoid(r[i] + recurrent_r[i]);
            let update = sigmoid(z[i] + recurrent_z[i]);
            let new = tanh(n[i] + reset * recurrent_n[i]);
            (r[i], z[i], n[i], extra[i]) = (reset, update, new, recurrent_n[i]);
            state[i] = (1.0 - update) * new + update * before[i];
        }
    }

    #[inline(always)]
    fn backward(gates: &mut [f32], recurrent: &mut [f32], before: &[f32], _: &[f32], row: Row<'_>, _: &mut [f32]) {
        let width = before.len();
        let (state, extra) = (&mut row.state[..width], &row.extra[..width]);
        let [r, z, n] = thirds(gates, width);
        let [recurrent_r, recurrent_z, recurrent_n] = thirds(recurrent, width);
        for i in 0..width {
            let (reset, update, new, gradient) = (r[i], z[i], n[i], state[i]);
            let to_new = gradient * (1.0 - update) * (1.0 - new * new);
            let to_reset = to_new * extra[i] * reset * (1.0 - reset);
            let to_update = gradient * (before[i] - new) * update * (1.0 - update);
            (r[i], z[i], n[i]) = (to_reset, to_update, to_new);
            (recurrent_r[i], recurrent_z[i], recurrent_n[i]) = (to_reset, to_update, to_new * reset);
            state[i] = gradient * update;
        }
    }
}

/// Long short-term memory. Keeps c.
#[derive(Debug)]
pub struct Lstm;

impl Cell for Lstm {
    const GATES: usize = 4;
    const CARRIES: bool = true;
    const SPLITS: bool = false;

    #[inline(always)]
    fn forward(gates: &mut [f32], recurrent: &[f32], before: &[f32], extra_before: &[f32], row: Row<'_>) {
        let width = before.len();
        let (state, extra, extra_before) = (&mut row.state[..width], &mut row.extra[..width], &extra_before[..width]);
        let [i, f, g, o] = quarters(gates, width);
        let (recurrent_i, rest) = recurrent.split_at(width);
        let (recurrent_f, rest) = rest.split_at(width);
        let (recurrent_g, recurrent_o) = rest.split_at(width);
        let recurrent_o = &recurrent_o[..width];
        for at in 0..width {
            let (input, forget) = (sigmoid(i[at] + recurrent_i[at]), sigmoid(f[at] + recurrent_f[at]));
            let (new, output) = (tanh(g[at] + recurrent_g[at]), sigmoid(o[at] + recurrent_o[at]));
            let cell = forget * extra_before[at] + input * new;
            (i[at], f[at], g[at], o[at], extra[at]) = (input, forget, new, output, cell);
            state[at] = output * tanh(cell);
        }
    }

    #[inline(always)]
    fn backward(
        gates: &mut [f32],
        _: &mut [f32],
        before: &[f32],
        extra_before: &[f32],
        row: Row<'_>,
        carried: &mut [f32],
    ) {
        let width = before.len();
        let (state, extra, extra_before) = (&mut row.state[..width], &row.extra[..width], &extra_before[..width]);
        let carried = &mut carried[..width];
        let [i, f, g, o] = quarters(gates, width);
        for at in 0..width {
            let (input, forget, new, output, gradient) = (i[at], f[at], g[at], o[at], state[at]);
            let cell = tanh(extra[at]);
            let to_cell = carried[at] + gradient * output * (1.0 - cell * cell);
            i[at] = to_cell * new * input * (1.0 - input);
            f[at] = to_cell * extra_before[at] * forget * (1.0 - forget);
            g[at] = to_cell * input * (1.0 - new * new);
            o[at] = gradient * cell * output * (1.0 - output);
            carried[at] = to_cell * forget;
            // The state before is read by the gates alone.
            state[at] = 0.0;
        }
    }
}

#[inline(always)]
fn thirds(values: &mut [f32], width: usize) -> [&mut [f32]; 3] {
    let (a, rest) = values.split_at_mut(width);
    let (b, c) = rest.split_at_mut(width);
    [a, b, &mut c[..width]]
}

#[inline(always)]
fn quarters(values: &mut [f32], width: usize) -> [&mut [f32]; 4] {
    let (a, rest) = values.split_at_mut(width);
    let [b, c, d] = thirds(rest, width);
    [a, b, c, d]
}
