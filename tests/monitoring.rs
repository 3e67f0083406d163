//! That the files for Prometheus and Grafana speak of metrics that there are, and the documents of the alerts that
//! there are. Whether the queries find data is tried by `make monitoring-check`, on a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use sweepstream::metrics::Metrics;

/// Labels that Prometheus adds to what it scrapes, and `le` of histograms.
const ADDED: [&str; 4] = ["instance", "job", "service", "le"];
const RUNBOOKS: &str = "docs/operations.md";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/dashboards/sweepstream.json")).unwrap()
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn alerts() -> Vec<Value> {
    list(&yaml("deploy/prometheus/alerts.yml"), "groups")
        .iter()
        .flat_map(|group| list(group, "rules").to_vec())
        .collect()
}

fn panels() -> Vec<Value> {
    list(&dashboard(), "panels").iter().filter(|panel| panel["type"] != "row").cloned().collect()
}

/// Name → its labels.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let mut known = BTreeMap::new();
    for metric in Metrics::described().unwrap().1 {
        let suffixes: &[&str] = if metric.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        for suffix in suffixes {
            let labels = metric.labels.iter().cloned().chain(ADDED.map(str::to_owned)).collect();
            assert!(known.insert(format!("{}{suffix}", metric.name), labels).is_none(), "{} twice", metric.name);
        }
    }
    known
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Metrics of this program in a query, each with the labels of its selector.
fn selectors(query: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in query.match_indices("sweepstream_").chain(query.match_indices("process_")) {
        if query[..at].ends_with(is_name) {
            continue;
        }
        let name: String = query[at..].chars().take_while(|c| is_name(*c)).collect();
        let braces = query[at + name.len()..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        found.push((name, braces.map_or_else(Vec::new, |(matchers, _)| labels_of(matchers))));
    }
    found
}

/// `a="x", b=~"y"` → a, b. No value has a comma.
fn labels_of(matchers: &str) -> Vec<String> {
    matchers.split(',').map(|matcher| matcher.trim().chars().take_while(|c| is_name(*c)).collect()).collect()
}

/// The labels in `by (…)`, `on (…)` and `group_left (…)`.
fn grouped(query: &str) -> Vec<&str> {
    let lists = ["by (", "on (", "group_left ("].into_iter().flat_map(|word| query.split(word).skip(1));
    lists.flat_map(|rest| rest.split(')').next().unwrap().split(',')).map(str::trim).collect()
}

/// What stands in `{{…}}` of a legend, or after `$labels.` in an annotation.
fn shown<'t>(text: &'t str, before: &'t str) -> impl Iterator<Item = String> + 't {
    text.split(before).skip(1).map(|rest| rest.trim_start().chars().take_while(|c| is_name(*c)).collect())
}

/// Panics when a query speaks of a metric or a label that there is not; the labels its result may have.
fn checked(place: &str, query: &str) -> BTreeSet<String> {
    let known = known();
    let mut labels: BTreeSet<String> = ADDED.map(str::to_owned).into();
    for (metric, matched) in selectors(query) {
        let has = known.get(&metric).unwrap_or_else(|| panic!("{place}: there is no metric {metric}"));
        for label in matched {
            assert!(has.contains(&label), "{place}: {metric} has no label {label}");
        }
        labels.extend(has.iter().cloned());
    }
    for label in grouped(query) {
        assert!(labels.contains(label), "{place}: no metric in {query} has a label {label}");
    }
    labels
}

#[test]
fn alerts_speak_of_metrics_and_labels_that_there_are() {
    let alerts = alerts();
    assert!(alerts.len() > 6);
    for alert in &alerts {
        let name = text(alert, "alert");
        let labels = checked(name, text(alert, "expr"));
        for annotation in ["summary", "description"] {
            for label in shown(text(&alert["annotations"], annotation), "$labels.") {
                assert!(labels.contains(&label), "{name}: {annotation} shows a label {label}");
            }
        }
    }
}

#[test]
fn alerts_have_a_severity_and_a_runbook_that_is_written() {
    let headings: BTreeSet<String> =
        read(RUNBOOKS).lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    let mut named = BTreeSet::new();
    for alert in alerts() {
        let name = text(&alert, "alert").to_owned();
        assert!(["critical", "warning"].contains(&text(&alert["labels"], "severity")), "{name}");
        assert_eq!(text(&alert["annotations"], "runbook"), format!("{RUNBOOKS}#{}", name.to_lowercase()));
        assert!(headings.contains(&name), "{RUNBOOKS} has no heading ### {name}");
        let _ = named.insert(name);
    }
    let gone: Vec<_> =
        headings.iter().filter(|name| name.starts_with("Sweepstream") && !named.contains(*name)).collect();
    assert!(gone.is_empty(), "{RUNBOOKS} has runbooks of no alert: {gone:?}");
}

#[test]
fn each_alert_is_tried_both_ways() {
    let mut tried: BTreeMap<String, [bool; 2]> = BTreeMap::new();
    for test in list(&yaml("deploy/prometheus/alerts.test.yml"), "tests") {
        for case in list(test, "alert_rule_test") {
            let fires = !list(case, "exp_alerts").is_empty();
            tried.entry(text(case, "alertname").to_owned()).or_default()[usize::from(fires)] = true;
        }
    }
    for alert in alerts() {
        let name = text(&alert, "alert");
        assert_eq!(tried.get(name), Some(&[true, true]), "alerts.test.yml: {name} must fire once, and once not");
    }
}

#[test]
fn operators_of_alerts_begin_lines() {
    // As deploy/check-monitoring needs it to ask for both sides.
    for alert in alerts() {
        for line in text(&alert, "expr").lines() {
            let inside = line.trim().split_once(' ').map_or("", |(_, rest)| rest);
            let words = [" == ", " > ", " < ", " >= ", " <= ", " and ", " unless "];
            assert!(!words.iter().any(|word| inside.contains(word)), "{}: {line}", text(&alert, "alert"));
        }
    }
}

#[test]
fn the_dashboard_speaks_of_metrics_and_labels_that_there_are() {
    for panel in panels() {
        let title = text(&panel, "title");
        for target in list(&panel, "targets") {
            let labels = checked(title, text(target, "expr"));
            for label in shown(target["legendFormat"].as_str().unwrap_or(""), "{{") {
                assert!(labels.contains(&label), "{title}: the legend shows a label {label}");
            }
        }
    }
    for variable in list(&dashboard()["templating"], "list").iter().filter(|variable| variable["type"] == "query") {
        let _ = checked(text(variable, "name"), text(&variable["query"], "query"));
    }
}

#[test]
fn the_dashboard_uses_variables_that_it_defines() {
    let dashboard = dashboard();
    let mut defined: BTreeSet<&str> =
        list(&dashboard["templating"], "list").iter().map(|variable| text(variable, "name")).collect();
    defined.extend(["__rate_interval", "__range"]);
    let written = dashboard.to_string();
    for used in shown(&written, "$").filter(|name| name != "__all") {
        // `${datasource}` is the only one with braces.
        let name = if used.is_empty() { "datasource" } else { &used };
        assert!(defined.contains(name), "${name}");
    }
}

#[test]
fn panels_are_described_and_do_not_overlap() {
    let mut ids = BTreeSet::new();
    let mut cells = BTreeMap::new();
    for panel in list(&dashboard(), "panels") {
        let title = text(panel, "title");
        assert!(ids.insert(panel["id"].as_u64()), "{title}: its id is another panel's");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title} is wider than the dashboard");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                let other = cells.insert((x, y), title.to_owned());
                assert_eq!(other, None, "{title} lies over another panel");
            }
        }
    }
    for panel in panels() {
        let title = text(&panel, "title");
        assert!(text(&panel, "description").ends_with('.'), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(panel["type"] == "table" || defaults["unit"].is_string(), "{title} has no unit");
    }
}

#[test]
fn prometheus_scrapes_the_default_port_and_loads_the_alerts() {
    let prometheus = yaml("deploy/prometheus/prometheus.yml");
    assert_eq!(list(&prometheus, "rule_files"), [Value::from("alerts.yml")]);
    let job = &list(&prometheus, "scrape_configs")[0];
    assert_eq!(text(job, "job_name"), "sweepstream"); // alerts.yml names it
    assert_eq!(list(job, "dns_sd_configs")[0]["port"], sweepstream::http::DEFAULT_ADDRESS.port());
}

#[test]
fn grafana_finds_its_source_and_its_dashboards() {
    let sources = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    let source = &list(&sources, "datasources")[0];
    assert_eq!((text(source, "type"), text(source, "url")), ("prometheus", "http://prometheus:9090"));
    let interval = yaml("deploy/prometheus/prometheus.yml")["global"]["scrape_interval"].clone();
    assert_eq!(source["jsonData"]["timeInterval"], interval, "rates are taken over four scrapes");
    let provider = yaml("deploy/grafana/provisioning/dashboards/sweepstream.yml");
    assert_eq!(text(&list(&provider, "providers")[0]["options"], "path"), "/etc/grafana/dashboards");
}
