//! What was measured: a table for people, JSON for programs.

use std::fmt::Write;

use serde_json::{Value, json};

/// All rows of one run.
pub(crate) struct Report {
    tokenizer: String,
    rounds: usize,
    rows: Vec<Row>,
}

struct Row {
    group: String,
    what: String,
    unit: Unit,
    /// At most this.
    goal: Option<f64>,
    /// One value per round, ascending.
    values: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Microseconds,
    Milliseconds,
    Mebibytes,
    PerSecond,
    PercentOfCore,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Microseconds => "µs",
            Unit::Milliseconds => "ms",
            Unit::Mebibytes => "MiB",
            Unit::PerSecond => "1/s",
            Unit::PercentOfCore => "% core",
        }
    }

    fn decimals(self) -> usize {
        if self == Unit::PerSecond { 0 } else { 2 }
    }
}

impl Row {
    fn median(&self) -> f64 {
        self.values[self.values.len() / 2]
    }

    fn is_met(&self) -> Option<bool> {
        self.goal.map(|goal| self.median() <= goal)
    }
}

impl Report {
    pub(crate) fn new(tokenizer: String, rounds: usize) -> Report {
        Report { tokenizer, rounds, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, group: &str, what: &str, unit: Unit, goal: Option<f64>, mut values: Vec<f64>) {
        values.sort_by(f64::total_cmp);
        self.rows.push(Row { group: group.to_owned(), what: what.to_owned(), unit, goal, values });
    }

    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "the router in front of a fake shard; tokenizer: {}; medians of {} rounds\n\n{:<16} {:<38} {:>8} {:>21}  {:<6} goal\n",
            self.tokenizer, self.rounds, "", "", "median", "range", "unit"
        );
        for row in &self.rows {
            let digits = row.unit.decimals();
            let range = format!("{:.digits$} .. {:.digits$}", row.values[0], row.values[row.values.len() - 1]);
            let goal = row.goal.map(|goal| format!("<= {goal:.0}")).unwrap_or_default();
            let verdict = row.is_met().map_or("", |is_met| if is_met { "  met" } else { "  MISSED" });
            writeln!(
                table,
                "{:<16} {:<38} {:>8.digits$} {range:>21}  {:<6} {goal}{verdict}",
                row.group,
                row.what,
                row.median(),
                row.unit.name()
            )
            .expect("a string takes everything");
        }
        table
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "group": row.group, "what": row.what, "unit": row.unit.name(), "median": row.median(),
                "values": row.values, "goal_at_most": row.goal, "is_met": row.is_met(),
            })
        });
        json!({
            "schema_version": 1, "tokenizer": self.tokenizer, "rounds": self.rounds,
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}
