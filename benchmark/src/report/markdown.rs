//! A report as Markdown tables: those of TGI's tool, and their siblings for requests over HTTP.

use std::fmt::Write;

use serde_json::Value;

use super::{Report, Requests, Results};
use crate::statistics::{Distribution, Summary};

/// The report as tables.
pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    let mut parameters = Table::new(["Parameter", "Value"]);
    parameters.row(["Target".to_owned(), report.target.clone()]);
    for parameter in &report.parameters {
        let value = match &parameter.value {
            Value::Null => "None".to_owned(),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        parameters.row([parameter.title.to_owned(), value]);
    }
    parameters.write(&mut out);
    let Some(first) = report.points.first() else { return out };
    let load = first.load.metric().title;

    let mut latencies = Table::new(["Step", load, "Average", "Lowest", "Highest", "p50", "p90", "p99"]);
    for (index, (metric, _)) in first.results.latencies().into_iter().enumerate() {
        let points = report.points.iter().map(|point| (point.load, point.results.latencies()[index].1));
        summaries(&mut latencies, metric.title, points, milliseconds);
    }
    latencies.write(&mut out);

    match &first.results {
        Results::Batches(batches) => {
            let mut table = Table::new(["Tokens/s", load, "Average", "Lowest", "Highest", "p50", "p90", "p99"]);
            for (index, (metric, _)) in batches.throughputs().into_iter().enumerate() {
                let points = report.points.iter().filter_map(|point| match &point.results {
                    Results::Batches(batches) => Some((point.load, batches.throughputs()[index].1)),
                    Results::Requests(_) => None,
                });
                summaries(&mut table, metric.title, points, |value| format!("{value:.2}"));
            }
            table.write(&mut out);
        }
        Results::Requests(_) => write_requests(report, load, &mut out),
    }
    if !report.is_complete {
        out.push_str("\nThe run was stopped before its end.\n");
    }
    out
}

/// Seconds, as tables show them.
pub(crate) fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

/// One row per point, with the name of the step in the first one only, as TGI has it.
fn summaries<'a>(
    table: &mut Table<8>,
    step: &str,
    points: impl Iterator<Item = (super::Load, &'a Distribution)>,
    unit: impl Fn(f64) -> String,
) {
    let measured = points.filter_map(|(load, values)| Some((load, values.summary()?)));
    for (index, (load, summary)) in measured.enumerate() {
        let Summary { average, lowest, highest, p50, p90, p99, .. } = summary;
        let step = if index == 0 { step.to_owned() } else { String::new() };
        let [average, lowest, highest, p50, p90, p99] = [average, lowest, highest, p50, p90, p99].map(&unit);
        table.row([step, load.to_string(), average, lowest, highest, p50, p90, p99]);
    }
}

fn write_requests(report: &Report, load: &str, out: &mut String) {
    let points = || {
        report.points.iter().filter_map(|point| match &point.results {
            Results::Requests(requests) if !point.results.is_empty() => Some((point.load, requests)),
            _ => None,
        })
    };
    let rate = |requests: &Requests, count| {
        requests.per_second(count).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}/s"))
    };
    let mut table = Table::new([load, "Requests", "Output tokens", "Completed", "Failed", "Prompt tokens", "Elapsed"]);
    for (load, requests) in points() {
        table.row([
            load.to_string(),
            rate(requests, requests.completed),
            rate(requests, requests.output_tokens),
            requests.completed.to_string(),
            requests.failed().to_string(),
            requests.prompt_tokens.to_string(),
            format!("{:.2} s", requests.elapsed.as_secs_f64()),
        ]);
    }
    table.write(out);
    let mut failures = Table::new([load, "Failure", "Requests"]);
    for (load, requests) in points() {
        for (kind, count) in &requests.failures {
            failures.row([load.to_string(), kind.clone(), count.to_string()]);
        }
    }
    failures.write(out);
}

/// Columns as wide as their widest cell.
struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(titles: [&str; N]) -> Self {
        Table { rows: vec![titles.map(str::to_owned)] }
    }

    fn row(&mut self, cells: [String; N]) {
        // A bar would end the cell.
        self.rows.push(cells.map(|cell| cell.replace('|', "\\|").replace('\n', " ")));
    }

    /// Appends the table with an empty line before it, if it has rows.
    fn write(&self, out: &mut String) {
        let [titles, rows @ ..] = &self.rows[..] else { return };
        if rows.is_empty() {
            return;
        }
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        let line = |cells: &[String; N]| {
            cells.iter().zip(widths).fold("|".to_owned(), |mut line, (cell, width)| {
                write!(line, " {cell:<width$} |").expect("a string takes everything");
                line
            })
        };
        if !out.is_empty() {
            out.push('\n');
        }
        let rule = widths.iter().fold("|".to_owned(), |rule, width| rule + &"-".repeat(width + 2) + "|");
        for text in [line(titles), rule].into_iter().chain(rows.iter().map(line)) {
            out.push_str(&text);
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::report::samples;

    #[test]
    fn a_run_on_shards() {
        expect![[r#"
            | Parameter       | Value                                     |
            |-----------------|-------------------------------------------|
            | Target          | llama, bfloat16, cpu (AVX-512, 2 threads) |
            | Model           | gpt2                                      |
            | Sequence Length | 10                                        |
            | Top K           | None                                      |
            | Do Sample       | false                                     |

            | Step           | Batch Size | Average  | Lowest   | Highest  | p50      | p90      | p99      |
            |----------------|------------|----------|----------|----------|----------|----------|----------|
            | Prefill        | 1          | 13.00 ms | 10.00 ms | 17.00 ms | 12.00 ms | 17.00 ms | 17.00 ms |
            |                | 2          | 26.00 ms | 20.00 ms | 34.00 ms | 24.00 ms | 34.00 ms | 34.00 ms |
            |                | 4          | 52.00 ms | 40.00 ms | 68.00 ms | 48.00 ms | 68.00 ms | 68.00 ms |
            | Decode (token) | 1          | 5.30 ms  | 5.00 ms  | 6.00 ms  | 5.20 ms  | 6.00 ms  | 6.00 ms  |
            |                | 2          | 5.30 ms  | 5.00 ms  | 6.00 ms  | 5.20 ms  | 6.00 ms  | 6.00 ms  |
            |                | 4          | 5.30 ms  | 5.00 ms  | 6.00 ms  | 5.20 ms  | 6.00 ms  | 6.00 ms  |
            | Decode (total) | 1          | 37.33 ms | 35.00 ms | 41.00 ms | 35.98 ms | 40.99 ms | 40.99 ms |
            |                | 2          | 37.33 ms | 35.00 ms | 41.00 ms | 35.98 ms | 40.99 ms | 40.99 ms |
            |                | 4          | 37.33 ms | 35.00 ms | 41.00 ms | 35.98 ms | 40.99 ms | 40.99 ms |

            | Tokens/s | Batch Size | Average | Lowest | Highest | p50    | p90     | p99     |
            |----------|------------|---------|--------|---------|--------|---------|---------|
            | Prefill  | 1          | 806.67  | 590.00 | 1000.00 | 830.50 | 1000.00 | 1000.00 |
            |          | 2          | 806.67  | 590.00 | 1000.00 | 830.50 | 1000.00 | 1000.00 |
            |          | 4          | 806.67  | 590.00 | 1000.00 | 830.50 | 1000.00 | 1000.00 |
            | Decode   | 1          | 190.00  | 180.00 | 200.00  | 190.12 | 200.00  | 200.00  |
            |          | 2          | 380.00  | 360.00 | 400.00  | 380.25 | 400.00  | 400.00  |
            |          | 4          | 760.00  | 720.00 | 800.00  | 760.50 | 800.00  | 800.00  |

            The run was stopped before its end.
        "#]]
        .assert_eq(&markdown(&samples::shards()));
    }

    #[test]
    fn a_run_over_http() {
        expect![[r#"
            | Parameter | Value                                 |
            |-----------|---------------------------------------|
            | Target    | http://127.0.0.1:3000/generate_stream |
            | Route     | generate                              |

            | Step             | Requests/s | Average  | Lowest   | Highest  | p50      | p90      | p99      |
            |------------------|------------|----------|----------|----------|----------|----------|----------|
            | First token      | 2.5        | 25.00 ms | 20.00 ms | 30.00 ms | 20.00 ms | 30.00 ms | 30.00 ms |
            | Inter-token      | 2.5        | 5.00 ms  | 4.00 ms  | 6.00 ms  | 5.00 ms  | 6.00 ms  | 6.00 ms  |
            | Per output token | 2.5        | 5.00 ms  | 5.00 ms  | 5.00 ms  | 5.00 ms  | 5.00 ms  | 5.00 ms  |
            | End to end       | 2.5        | 65.00 ms | 60.00 ms | 70.00 ms | 60.03 ms | 70.00 ms | 70.00 ms |

            | Requests/s | Requests | Output tokens | Completed | Failed | Prompt tokens | Elapsed |
            |------------|----------|---------------|-----------|--------|---------------|---------|
            | 2.5        | 1.00/s   | 8.00/s        | 2         | 4      | 20            | 2.00 s  |

            | Requests/s | Failure            | Requests |
            |------------|--------------------|----------|
            | 2.5        | HTTP 429           | 3        |
            | 2.5        | connection refused | 1        |
        "#]]
        .assert_eq(&markdown(&samples::http()));
    }

    #[test]
    fn a_cell_cannot_end_its_row() {
        let mut report = samples::http();
        report.target = "a|b\nc".to_owned();
        assert!(markdown(&report).contains("| a\\|b c "));
    }
}
