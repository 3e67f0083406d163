//! What the values of a table span. Knows nothing of models. \[pure\]

/// Every combination of the values that are lists, one after another; for keys whose value is a list itself, of lists
/// of lists.
pub fn grid(table: &toml::Table, is_list: impl Fn(&str) -> bool) -> impl Iterator<Item = toml::Table> + '_ {
    let axes: Vec<(&String, &[toml::Value])> = table
        .iter()
        .map(|(key, value)| match value {
            toml::Value::Array(values) if !is_list(key) || values.iter().all(toml::Value::is_array) => {
                (key, values.as_slice())
            }
            value => (key, std::slice::from_ref(value)),
        })
        .collect();
    let points = axes.iter().fold(1_usize, |points, (_, values)| points.saturating_mul(values.len()));
    (0..points).map(move |mut point| {
        // The last key varies fastest.
        let chosen = axes.iter().rev().map(|(key, values)| {
            let value = &values[point % values.len()];
            point /= values.len();
            ((*key).clone(), value.clone())
        });
        chosen.collect()
    })
}
