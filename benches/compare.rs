//! Two results of `make bench` side by side: `make bench-compare A B`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::Value;

type Figures = BTreeMap<(String, String), f64>;

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [a, b] = files.as_slice() else {
        eprintln!("two files are needed, as `make bench` has written them: make bench-compare A B");
        return ExitCode::from(64);
    };
    match (figures(a), figures(b)) {
        (Ok(a), Ok(b)) => {
            print(&a, &b);
            ExitCode::SUCCESS
        }
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("{error}");
            ExitCode::from(66)
        }
    }
}

fn figures(path: &str) -> Result<Figures, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let all: BTreeMap<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| format!("{path} is no result of `make bench`: {error}"))?;
    println!("{path}: {}", all.get("machine").and_then(Value::as_str).unwrap_or("a machine that is not named"));
    let benches = all.iter().filter_map(|(bench, figures)| Some((bench, figures.as_object()?)));
    let each = |(bench, figures): (&String, &serde_json::Map<String, Value>)| {
        let bench = bench.clone();
        let of = move |(name, value): (&String, &Value)| Some(((bench.clone(), name.clone()), value.as_f64()?));
        figures.iter().filter_map(of).collect::<Vec<_>>()
    };
    Ok(benches.flat_map(each).collect())
}

fn print(a: &Figures, b: &Figures) {
    println!("{:10} {:62} {:>12} {:>12} {:>8}", "bench", "figure", "A", "B", "B / A");
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    for name in names {
        let shown = |value: Option<&f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.3}"));
        let ratio = a.get(name).zip(b.get(name)).map(|(a, b)| b / a);
        let (bench, figure) = name;
        println!(
            "{bench:10} {figure:62} {:>12} {:>12} {:>8}",
            shown(a.get(name)),
            shown(b.get(name)),
            shown(ratio.as_ref())
        );
    }
}
