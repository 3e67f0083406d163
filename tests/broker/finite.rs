//! A model whose numbers are none, or too large for half precision.

use std::path::Path;

use crate::support::{create_topics, parts, produce, read_verdicts, settings, In, Out, Process, Progress};

/// A field of a protocol buffer that holds bytes.
fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    assert!(value.len() < 1 << 14);
    let length = [value.len() as u8 & 0x7f | 0x80, (value.len() >> 7) as u8];
    [[field << 3 | 2].as_slice(), &length, value].concat()
}

/// A field of a protocol buffer that holds a small number.
fn number(field: u8, value: u8) -> Vec<u8> {
    assert!(value < 128);
    vec![field << 3, value]
}

fn node(operator: &str, inputs: [&str; 2], output: &str, attribute: &[u8]) -> Vec<u8> {
    let inputs: Vec<u8> =
        inputs.iter().filter(|name| !name.is_empty()).flat_map(|name| bytes(1, name.as_bytes())).collect();
    bytes(1, &[inputs, bytes(2, output.as_bytes()), bytes(4, operator.as_bytes()), attribute.to_vec()].concat())
}

fn tensor(name: &str, dims: &[u8], data_type: u8, raw: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|&dim| number(1, dim)).collect();
    bytes(5, &[dims, number(2, data_type), bytes(8, name.as_bytes()), bytes(9, raw)].concat())
}

fn value(field: u8, name: &str, data_type: u8, dims: &[&str]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|dim| bytes(1, &bytes(2, dim.as_bytes()))).collect();
    let kind = bytes(1, &[number(1, data_type), bytes(2, &dims)].concat());
    bytes(field, &[bytes(1, name.as_bytes()), bytes(2, &kind)].concat())
}

/// `last_hidden_state[b, t, :] = input_ids[b, t] * [1, 2, 20]`: token 3,276 is the first beyond what a half can hold.
fn onnx() -> Vec<u8> {
    const FLOAT: u8 = 1;
    const INT64: u8 = 7;
    let to_float = bytes(5, &[bytes(1, b"to"), number(3, FLOAT), vec![20 << 3 & 0x7f | 0x80, 1, 2]].concat());
    let scale: Vec<u8> = [1.0_f32, 2.0, 20.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let graph = [
        node("Cast", ["input_ids", ""], "ids", &to_float),
        node("Unsqueeze", ["ids", "axes"], "column", &[]),
        node("Mul", ["column", "scale"], "last_hidden_state", &[]),
        bytes(2, b"scaled"),
        tensor("axes", &[1], INT64, &2_i64.to_le_bytes()),
        tensor("scale", &[1, 1, 3], FLOAT, &scale),
        value(11, "input_ids", INT64, &["batch", "tokens"]),
        value(12, "last_hidden_state", FLOAT, &["batch", "tokens", "three"]),
    ]
    .concat();
    [number(1, 8), bytes(7, &graph), bytes(8, &number(2, 13))].concat()
}

fn model(folder: &Path) {
    let default = parts().folder.join("models/all-minilm-l6-v2").canonicalize().unwrap();
    for entry in std::fs::read_dir(default).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("model.onnx") {
            std::os::unix::fs::symlink(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(folder.join("model.onnx"), onnx()).unwrap();
}

#[test]
fn a_matrix_that_is_not_finite_is_a_dead_letter_with_its_row() {
    let settings = settings("finite");
    create_topics(&settings);
    // Tokens 1996 and 10171.
    let texts = [Out::text("good", "the the"), Out::text("bad", "the lighthouse"), Out::text("after", "the")];
    produce(&settings, &settings.topics.texts, &texts.map(|text| text.to(0)));
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let set = format!("embed.model_dir={}", folder.path().display());
    let mut process = Process::start(&settings, &["run", "--stage=embed", "-s", "embed.sessions=1", "-s", &set]);
    Progress::of(&settings).await_done(3);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
    let [_, features, dead] = read_verdicts(&settings);
    assert_eq!(features.iter().map(In::key).collect::<Vec<_>>(), ["good", "after"]);
    assert_eq!(features[1].matrix().rows, [[1996.0, 3992.0, 39936.0]]);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].header("__streams.errors.exception").as_deref(), Some("not_finite"));
    assert!(dead[0].header("__streams.errors.message").unwrap().starts_with("row 1 "));
    assert_eq!(dead[0].value.as_deref(), Some(b"the lighthouse".as_slice()));
}
