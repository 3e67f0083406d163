//! Small graphs in ONNX's format (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), made by hand.

/// A protocol buffer in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    fn message(self, field: u64, message: Self) -> Self {
        self.bytes(field, &message.0)
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

const FLOAT: u64 = 1;
const INT64: u64 = 7;

fn value(name: &str, kind: u64, dims: &[&str]) -> Message {
    let dim = |shape: Message, dim: &&str| {
        let known = dim.parse().ok().map(|size| Message::default().number(1, size));
        shape.message(1, known.unwrap_or_else(|| Message::default().text(2, dim)))
    };
    let shape = dims.iter().fold(Message::default(), dim);
    let tensor = Message::default().number(1, kind).message(2, shape);
    Message::default().text(1, name).message(2, Message::default().message(1, tensor))
}

fn tensor(name: &str, kind: u64, dims: &[u64]) -> Message {
    let tensor = dims.iter().fold(Message::default(), |tensor, &dim| tensor.number(1, dim));
    tensor.number(2, kind).text(8, name)
}

fn node(operator: &str, inputs: &[&str], output: &str, attribute: Option<(&str, u64)>) -> Message {
    let node = inputs.iter().fold(Message::default(), |node, input| node.text(1, input));
    let node = node.text(2, output).text(4, operator);
    match attribute {
        // 2 says that it is an integer.
        Some((name, value)) => node.message(5, Message::default().text(1, name).number(3, value).number(20, 2)),
        None => node,
    }
}

/// Where the graph's one table lies.
pub enum Table {
    /// In the graph.
    Inside,
    /// In a file of that name beside the graph.
    Beside(&'static str),
}

/// Numbers of a table with `ids` rows of `dim`, little-endian.
pub fn table(ids: usize, dim: usize) -> Vec<u8> {
    (0..ids * dim).flat_map(|i| ((i % 97) as f32 / 97.0 - 0.4).to_le_bytes()).collect()
}

/// What a graph gives for the rows of [`table`] that it looks up for the tokens.
pub enum Gives<'o> {
    /// Their sum over the tokens of a text, `[batch, dim]`.
    Sums(&'o str),
    /// That, and the rows themselves as `last_hidden_state`.
    SumsAndTokens(&'o str),
    /// Each row and the sum over all, padding included, `[batch, tokens, dim]`: as a model without a mask does.
    Unmasked,
}

/// A graph that looks up each token's row of [`table`].
pub fn graph(ids: usize, dim: usize, gives: &Gives<'_>, place: &Table) -> Vec<u8> {
    let rows = tensor("table", FLOAT, &[ids as u64, dim as u64]);
    let rows = match place {
        Table::Inside => rows.bytes(9, &table(ids, dim)),
        Table::Beside(file) => rows.message(13, Message::default().text(1, "location").text(2, file)).number(14, 1),
    };
    let axis = |name: &str, axis: i64| tensor(name, INT64, &[1]).bytes(9, &axis.to_le_bytes());
    let dim = dim.to_string();
    let per_token = value("last_hidden_state", FLOAT, &["batch", "tokens", &dim]);
    let sums = |graph: Message, output: &str| {
        graph
            .message(1, node("Cast", &["attention_mask"], "mask", Some(("to", FLOAT))))
            .message(1, node("Unsqueeze", &["mask", "two"], "wide_mask", None))
            .message(1, node("Mul", &["tokens", "wide_mask"], "masked", None))
            .message(1, node("ReduceSum", &["masked", "one"], output, Some(("keepdims", 0))))
            .message(12, value(output, FLOAT, &["batch", &dim]))
    };
    let graph = Message::default().message(1, node("Gather", &["table", "input_ids"], "tokens", None));
    let graph = match gives {
        Gives::Sums(output) => sums(graph, output),
        Gives::SumsAndTokens(output) => sums(graph, output)
            .message(1, node("Identity", &["tokens"], "last_hidden_state", None))
            .message(12, per_token),
        Gives::Unmasked => graph
            .message(1, node("ReduceSum", &["tokens", "one"], "all", Some(("keepdims", 1))))
            .message(1, node("Add", &["tokens", "all"], "last_hidden_state", None))
            .message(12, per_token),
    };
    let graph = graph
        .text(2, "graph")
        .message(5, rows)
        .message(5, axis("one", 1))
        .message(5, axis("two", 2))
        .message(11, value("input_ids", INT64, &["batch", "tokens"]))
        .message(11, value("attention_mask", INT64, &["batch", "tokens"]));
    let opset = Message::default().text(1, "").number(2, 13);
    Message::default().number(1, 8).message(7, graph).message(8, opset).0
}
