//! What every kind computes, once more, plainly and in `f64`: one record after another, no padding, no batches.

use std::collections::BTreeMap;

use crate::features::window::Target;
use crate::models::kind::{ModelSpec, Task};

type Rows = Vec<Vec<f64>>;

/// The mean loss of records whose rows and targets are given, with these parameters.
pub struct Reference<'r> {
    pub spec: &'r ModelSpec,
    pub parameters: &'r BTreeMap<String, Vec<f64>>,
}

impl Reference<'_> {
    pub fn loss(&self, records: &[(Rows, Target)]) -> f64 {
        let (mut sum, mut weight) = (0.0, 0.0);
        for (rows, target) in records {
            let outputs = self.outputs(rows);
            match (self.spec.task, target) {
                (Task::Classification, Target::Class(class)) => {
                    let total: f64 = outputs.iter().map(|output| output.exp()).sum();
                    sum += total.ln() - outputs[*class as usize];
                    weight += 1.0;
                }
                (Task::Regression, Target::Number(number)) => {
                    sum += (outputs[0] - f64::from(*number)).powi(2);
                    weight += 1.0;
                }
                (Task::Reconstruction, _) => {
                    let flat: Vec<f64> = rows.iter().flatten().copied().collect();
                    sum += flat.iter().zip(&outputs).map(|(value, output)| (output - value).powi(2)).sum::<f64>();
                    weight += flat.len() as f64;
                }
                other => panic!("{other:?}"),
            }
        }
        sum / weight
    }

    fn parameter(&self, name: &str) -> &[f64] {
        &self.parameters[name]
    }

    /// `W x + b`
    fn layer(&self, weight: &str, bias: &str, inputs: &[f64]) -> Vec<f64> {
        let rows = self.parameter(weight).chunks(inputs.len()).zip(self.parameter(bias));
        rows.map(|(row, bias)| bias + row.iter().zip(inputs).map(|(w, x)| w * x).sum::<f64>()).collect()
    }

    fn out(&self, features: &[f64]) -> Vec<f64> {
        self.layer("out.weight", "out.bias", features)
    }

    fn outputs(&self, rows: &Rows) -> Vec<f64> {
        let relu = |values: Vec<f64>| values.into_iter().map(|value| value.max(0.0)).collect::<Vec<f64>>();
        match self.spec.kind.name {
            "linear" => self.out(&mean(rows)),
            "mlp" => self.layer("l2.weight", "l2.bias", &relu(self.layer("l1.weight", "l1.bias", &mean(rows)))),
            "autoencoder" => {
                let mut values: Vec<f64> = rows.iter().flatten().copied().collect();
                values.resize(self.spec.shape.rows_max * self.spec.shape.dim, 0.0);
                let last = 2 * self.spec.widths("layers").len() - 1;
                for layer in 0..=last {
                    let name = |kind: &str| format!("layers.{layer}.{kind}");
                    values = self.layer(&name("weight"), &name("bias"), &values);
                    values = if layer < last { relu(values) } else { values };
                }
                values
            }
            "cnn" => self.cnn(rows),
            "gru" | "lstm" => {
                let mut features = self.recurrent(rows.iter(), "");
                if self.spec.flag("bidirectional") {
                    features.extend(self.recurrent(rows.iter().rev(), "_reverse"));
                }
                self.out(&features)
            }
            "attention" => self.attention(rows),
            other => panic!("the kind {other} has no reference"),
        }
    }

    fn cnn(&self, rows: &Rows) -> Vec<f64> {
        let (widths, dim) = (self.spec.widths("widths"), self.spec.shape.dim);
        let mut features = Vec::new();
        for width in widths {
            let name = if widths.len() == 1 { "conv".to_owned() } else { format!("conv.{width}") };
            let (weight, bias) = (self.parameter(&format!("{name}.weight")), self.parameter(&format!("{name}.bias")));
            for (channel, bias) in bias.iter().enumerate() {
                let at = |t: usize| {
                    let mut sum = *bias;
                    for k in 0..*width {
                        let Some(row) = (t + k).checked_sub((width - 1) / 2).and_then(|row| rows.get(row)) else {
                            continue;
                        };
                        for (d, value) in row.iter().enumerate() {
                            sum += weight[(channel * dim + d) * width + k] * value;
                        }
                    }
                    sum.max(0.0)
                };
                features.push((0..rows.len()).map(at).fold(0.0, f64::max));
            }
        }
        self.out(&features)
    }

    fn recurrent<'a>(&self, rows: impl Iterator<Item = &'a Vec<f64>>, end: &str) -> Vec<f64> {
        let hidden = self.spec.count("hidden");
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let (mut state, mut cell) = (vec![0.0; hidden], vec![0.0; hidden]);
        for row in rows {
            let name = |name: &str| format!("rnn.{name}_l0{end}");
            let own = self.layer(&name("weight_ih"), &name("bias_ih"), row);
            let recurrent = self.layer(&name("weight_hh"), &name("bias_hh"), &state);
            let gate = |block: usize, i: usize| own[block * hidden + i] + recurrent[block * hidden + i];
            for i in 0..hidden {
                if self.spec.kind.name == "gru" {
                    let (r, z) = (sigmoid(gate(0, i)), sigmoid(gate(1, i)));
                    let n = (own[2 * hidden + i] + r * recurrent[2 * hidden + i]).tanh();
                    state[i] = (1.0 - z) * n + z * state[i];
                } else {
                    cell[i] = sigmoid(gate(1, i)) * cell[i] + sigmoid(gate(0, i)) * gate(2, i).tanh();
                    state[i] = sigmoid(gate(3, i)) * cell[i].tanh();
                }
            }
        }
        state
    }

    fn attention(&self, rows: &Rows) -> Vec<f64> {
        let (hidden, heads) = (self.spec.count("hidden"), self.spec.count("heads"));
        let width = hidden / heads;
        let position = |t: usize, i: usize| match self.spec.choice("positions") {
            "learned" => self.parameter("positions")[t * hidden + i],
            "sinusoidal" => {
                let angle = t as f64 / 10_000_f64.powf((i - i % 2) as f64 / hidden as f64);
                if i.is_multiple_of(2) {
                    angle.sin()
                } else {
                    angle.cos()
                }
            }
            _ => 0.0,
        };
        let mut embedded: Rows = rows.iter().map(|row| self.layer("in.weight", "in.bias", row)).collect();
        for (t, row) in embedded.iter_mut().enumerate() {
            row.iter_mut().enumerate().for_each(|(i, value)| *value += position(t, i));
        }
        let projected: Rows =
            embedded.iter().map(|row| self.layer("attention.in_proj_weight", "attention.in_proj_bias", row)).collect();
        let mut features = vec![0.0; hidden];
        for (t, own) in embedded.iter().enumerate() {
            let mut context = vec![0.0; hidden];
            for head in 0..heads {
                let columns = head * width..(head + 1) * width;
                let score = |other: &Vec<f64>| {
                    let products = columns.clone().map(|i| projected[t][i] * other[hidden + i]);
                    (products.sum::<f64>() / (width as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = projected.iter().map(score).collect();
                let total: f64 = scores.iter().sum();
                for (other, score) in projected.iter().zip(&scores) {
                    columns.clone().for_each(|i| context[i] += score / total * other[2 * hidden + i]);
                }
            }
            let attended = self.layer("attention.out_proj.weight", "attention.out_proj.bias", &context);
            let sums: Vec<f64> = own.iter().zip(&attended).map(|(own, attended)| own + attended).collect();
            let mean = sums.iter().sum::<f64>() / hidden as f64;
            let variance = sums.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / hidden as f64;
            for (i, value) in sums.iter().enumerate() {
                let normed = (value - mean) / (variance + 1e-5).sqrt();
                let row = normed * self.parameter("norm.weight")[i] + self.parameter("norm.bias")[i];
                features[i] += row / rows.len() as f64;
            }
        }
        self.out(&features)
    }
}

fn mean(rows: &Rows) -> Vec<f64> {
    (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64).collect()
}
