//! What was done to the program, and what became of it.

use std::collections::BTreeMap;

use crate::schedule::Fault;

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    injected: u32,
    survived: u32,
    /// Recoveries from this fault and others together are counted with the broker's.
    longest_ms: Option<i64>,
}

/// Fault → how it went.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<Fault, Row>,
    /// Exit code → processes that ended by themselves.
    pub gave_up: BTreeMap<i32, u32>,
}

impl Table {
    pub fn injected(&mut self, fault: Fault) {
        self.rows.entry(fault).or_default().injected += 1;
    }

    pub fn survived(&mut self, fault: Fault, took_ms: Option<i64>) {
        let row = self.rows.entry(fault).or_default();
        row.survived += 1;
        row.longest_ms = row.longest_ms.max(took_ms);
    }

    pub fn kills(&self) -> u32 {
        self.rows.iter().map(|(fault, row)| fault.kills() * row.injected).sum()
    }

    pub fn print(&self) {
        let mut table = comfy_table::Table::new();
        let _ = table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header([
            "fault",
            "injected",
            "survived",
            "longest recovery, s",
        ]);
        for (fault, row) in &self.rows {
            let seconds = row.longest_ms.map_or("-".into(), |ms| format!("{:.1}", ms as f64 / 1e3));
            let _ = table.add_row([fault.name(), row.injected.to_string(), row.survived.to_string(), seconds]);
        }
        println!("{table}");
        for (code, count) in &self.gave_up {
            println!("ended by themselves with {code} and were started again: {count}");
        }
    }
}
