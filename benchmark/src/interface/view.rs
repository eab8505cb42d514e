//! One picture of a report.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, LineGauge, Paragraph, Row, Sparkline, Table, Wrap};
use serde_json::Value;

use crate::report::{Dot, Phase, Point, Report, Requests, Results, milliseconds};
use crate::statistics::{Distribution, Summary};

const ACCENT: Color = Color::Cyan;
const QUIET: Color = Color::DarkGray;
/// Columns that the table of figures needs.
const FIGURES_WIDTH: u16 = 78;

/// What a person has chosen to see.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The point that is shown; `None` follows the one that is measured.
    selected: Option<usize>,
    /// The point that was shown last.
    shown: usize,
    /// The latency whose histogram is shown.
    metric: usize,
}

impl View {
    pub(super) fn select_next(&mut self, points: usize) {
        self.select((self.shown + 1).min(points.saturating_sub(1)));
    }

    pub(super) fn select_previous(&mut self) {
        self.select(self.shown.saturating_sub(1));
    }

    fn select(&mut self, point: usize) {
        // Both, so that keys between two pictures add up.
        (self.selected, self.shown) = (Some(point), point);
    }

    pub(super) fn follow(&mut self) {
        self.selected = None;
    }

    pub(super) fn next_metric(&mut self) {
        self.metric += 1;
    }

    pub(super) fn previous_metric(&mut self) {
        self.metric = self.metric.saturating_sub(1);
    }

    /// Draws `report`.
    pub(super) fn draw(&mut self, report: &Report, frame: &mut Frame) {
        let running = report.points.iter().position(|point| point.phase != Phase::Done);
        self.shown = self.selected.or(running).unwrap_or(report.points.len() - 1).min(report.points.len() - 1);
        let point = &report.points[self.shown];
        let latencies = point.results.latencies();
        self.metric = self.metric.min(latencies.len() - 1);

        let [header, tabs, progress, figures, plots, footer] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Length(figure_rows(&point.results) + 2),
            Constraint::Min(6),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(title(report), header);
        frame.render_widget(tab_line(report, self.shown, tabs.width), tabs);
        draw_progress(report, self.shown, frame, progress);

        // Where both do not fit, the figures are worth more.
        let histogram_width =
            if figures.width < FIGURES_WIDTH + 20 { 0 } else { (figures.width - FIGURES_WIDTH).min(60) };
        let [table, histogram] =
            Layout::horizontal([Constraint::Min(0), Constraint::Length(histogram_width)]).areas(figures);
        draw_figures(point, frame, table);
        draw_histogram(latencies[self.metric].0.title, latencies[self.metric].1, frame, histogram);

        let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(plots);
        for (curve, area) in halves.into_iter().enumerate() {
            draw_plot(report, self.shown, curve, frame, area);
        }
        frame.render_widget(keys(report), footer);
    }
}

fn title(report: &Report) -> Paragraph<'static> {
    let given =
        report.parameters.iter().filter(|parameter| !matches!(parameter.value, Value::Null | Value::Bool(false)));
    let text = given.map(|parameter| match &parameter.value {
        Value::String(text) => format!("{} {text}", parameter.title),
        value => format!("{} {value}", parameter.title),
    });
    let name = Span::from(" text-generation-benchmark ").fg(ACCENT).add_modifier(Modifier::BOLD);
    Paragraph::new(vec![
        Line::from(vec![name, Span::from(report.target.clone())]),
        Line::from(format!(" {}", text.collect::<Vec<_>>().join(" · "))).fg(QUIET),
    ])
}

/// All loads with their states, cut so that the one shown is visible.
fn tab_line(report: &Report, shown: usize, width: u16) -> Line<'static> {
    let tab = |index: usize| {
        let point = &report.points[index];
        let text = match point.phase {
            Phase::Waiting => format!(" {} ", point.load),
            Phase::WarmingUp | Phase::Running(_) => format!(" {} … ", point.load),
            Phase::Done => format!(" {} ✓ ", point.load),
        };
        match (index == shown, point.phase) {
            (true, _) => Span::from(text).add_modifier(Modifier::REVERSED).fg(ACCENT),
            (false, Phase::Waiting) => Span::from(text).fg(QUIET),
            (false, _) => Span::from(text),
        }
    };
    let name = Span::from(format!(" {} ", report.points[0].load.metric().title)).bold();
    let room = usize::from(width).saturating_sub(name.width());
    let mut tabs: Vec<Span> = (0..=shown).map(tab).collect();
    while tabs.len() > 1 && tabs.iter().map(Span::width).sum::<usize>() > room {
        tabs.remove(0);
    }
    tabs.extend((shown + 1..report.points.len()).map(tab));
    Line::from_iter(std::iter::once(name).chain(tabs))
}

fn draw_progress(report: &Report, shown: usize, frame: &mut Frame, area: Rect) {
    let point = &report.points[shown];
    let all = report.points.iter().map(|point| point.phase.share()).sum::<f64>() / report.points.len() as f64;
    let phase = match point.phase {
        Phase::Waiting => "waiting".to_owned(),
        Phase::WarmingUp => "warm-up".to_owned(),
        Phase::Running(share) => format!("{:.0} %", share * 100.0),
        Phase::Done => "done".to_owned(),
    };
    let name = format!("{} {}", point.load.metric().title, point.load);
    let lines = Layout::vertical([Constraint::Length(1); 2]).areas::<2>(area);
    for (line, name, text, share) in [
        (lines[0], name, phase, point.phase.share()),
        (lines[1], "All".to_owned(), format!("{:.0} %", all * 100.0), all),
    ] {
        let gauge = LineGauge::default()
            .ratio(share)
            .label(format!(" {name:<18} {text:>8} "))
            .filled_symbol("━")
            .unfilled_symbol("─")
            .filled_style(Style::new().fg(ACCENT))
            .unfilled_style(Style::new().fg(QUIET));
        frame.render_widget(gauge, line);
    }
}

/// Rows of the figures, with their titles.
fn figure_rows(results: &Results) -> u16 {
    match results {
        Results::Batches(_) => 1 + 3 + 2,
        // One for the counts and two for the failures, of which there may be many kinds.
        Results::Requests(_) => 1 + 4 + 1 + 2,
    }
}

fn draw_figures(point: &Point, frame: &mut Frame, area: Rect) {
    let row = |title: &str, unit: &str, values: &Distribution, factor: f64| {
        let cells = values.summary().map_or_else(
            || vec!["-".to_owned(); 6],
            |Summary { average, lowest, highest, p50, p90, p99, .. }| {
                [average, lowest, highest, p50, p90, p99].map(|value| format!("{:.2}", value * factor)).to_vec()
            },
        );
        Row::new(std::iter::once(format!("{title}, {unit}")).chain(cells))
    };
    let latencies = point.results.latencies().into_iter();
    let mut rows: Vec<Row> = latencies.map(|(metric, values)| row(metric.title, "ms", values, 1e3)).collect();
    if let Results::Batches(batches) = &point.results {
        let throughputs = batches.throughputs().into_iter();
        rows.extend(throughputs.map(|(metric, values)| row(metric.title, "tokens/s", values, 1.0)));
    }
    let block = Block::bordered().title(" Figures ").border_style(QUIET);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [table, counts] =
        Layout::vertical([Constraint::Length(rows.len() as u16 + 1), Constraint::Min(0)]).areas(inner);
    let titles = Row::new(["", "Average", "Lowest", "Highest", "p50", "p90", "p99"]).fg(QUIET);
    let widths = [Constraint::Length(20)].into_iter().chain([Constraint::Fill(1); 6]);
    frame.render_widget(Table::new(rows, widths).header(titles).column_spacing(1), table);
    if let Results::Requests(requests) = &point.results {
        frame.render_widget(counts_of(requests), counts);
    }
}

/// How many requests, how fast, and what went wrong.
fn counts_of(requests: &Requests) -> Paragraph<'static> {
    let rate = |count| requests.per_second(count).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    let done = format!(
        "{} completed, {} requests/s, {} output tokens/s",
        requests.completed,
        rate(requests.completed),
        rate(requests.output_tokens)
    );
    let failures: Vec<_> = requests.failures.iter().map(|(kind, count)| format!("{kind}: {count}")).collect();
    let failed = match requests.failed() {
        0 => Line::default(),
        failed => Line::from(format!("{failed} failed ({})", failures.join(", "))).fg(Color::Red),
    };
    Paragraph::new(vec![Line::from(done), failed]).wrap(Wrap { trim: true })
}

fn draw_histogram(title: &str, values: &Distribution, frame: &mut Frame, area: Rect) {
    let block = Block::bordered().title(format!(" {title} ")).border_style(QUIET);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let Some(summary) = values.summary() else { return };
    let [bars, scale] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(inner);
    let width = usize::from(bars.width);
    // Twice the root of the number of values: with fewer bins a shape is lost, with more it falls apart into single values.
    let bins = (2.0 * (summary.count as f64).sqrt()).ceil().min(width as f64).max(1.0) as usize;
    let counts = values.histogram(bins);
    frame.render_widget(
        Sparkline::default().data((0..width).map(|column| counts[column * bins / width])).fg(ACCENT),
        bars,
    );
    let (left, right) = (milliseconds(summary.lowest), milliseconds(summary.highest));
    let gap = width.saturating_sub(left.len() + right.len());
    frame.render_widget(Line::from(format!("{left}{:gap$}{right}", "")).fg(QUIET), scale);
}

/// Throughput to the right, latency upwards: a point per load, joined in the order of loads.
fn draw_plot(report: &Report, shown: usize, curve: usize, frame: &mut Frame, area: Rect) {
    let name = report.points[0].results.dots()[curve].0;
    let block = Block::bordered().title(format!(" {name}: p50 in ms over tokens/s ")).border_style(QUIET);
    let place =
        |point: &Point| point.results.dots()[curve].1.map(|Dot { throughput, latency }| (throughput, latency * 1e3));
    let all: Vec<(f64, f64)> = report.points.iter().filter_map(|point| place(point)).collect();
    if all.is_empty() {
        return frame.render_widget(block, area);
    }
    let current: Vec<(f64, f64)> = place(&report.points[shown]).into_iter().collect();
    // From zero, so that distances mean something; a tenth above, so that no dot sits on the edge.
    let most = |value: fn(&(f64, f64)) -> f64| all.iter().map(value).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
    let (most_x, most_y) = (most(|dot| dot.0), most(|dot| dot.1));
    let labels = |most: f64| {
        let decimals = if most < 10.0 { 2 } else { 0 };
        [0.0, most / 2.0, most].map(|value| format!("{value:.decimals$}"))
    };
    let dots = |data| Dataset::default().marker(Marker::Dot).data(data);
    let datasets = vec![
        Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).fg(QUIET).data(&all),
        dots(&all),
        dots(&current).style(Style::new().fg(ACCENT).bold()),
    ];
    let axis = |most: f64| Axis::default().bounds([0.0, most]).labels(labels(most)).style(Style::new().fg(QUIET));
    frame.render_widget(
        Chart::new(datasets).block(block).x_axis(axis(most_x)).y_axis(axis(most_y)).legend_position(None),
        area,
    );
}

fn keys(report: &Report) -> Line<'static> {
    let load = report.points[0].load.metric().title.to_lowercase();
    let close = if report.is_complete { "close and print" } else { "stop" };
    let keys = [("q", close.to_owned()), ("← →", load), ("↑ ↓", "histogram".to_owned()), ("Esc", "follow".to_owned())];
    let done = report.is_complete.then(|| Span::from(" Done. ").fg(Color::Green).bold());
    Line::from_iter(done.into_iter().chain(keys.into_iter().flat_map(|(key, action)| {
        [Span::from(format!(" {key} ")).bold(), Span::from(format!("{action}  ")).fg(QUIET)]
    })))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::report::samples;

    fn picture(view: &mut View, report: &Report, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(report, frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(width.into());
        let text = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
        lines.map(|cells| text(cells).trim_end().to_owned() + "\n").collect()
    }

    #[track_caller]
    fn check(report: &Report, expected: Expect) {
        expected.assert_eq(&picture(&mut View::default(), report, 120, 26));
    }

    #[test]
    fn shards_under_way() {
        check(
            &samples::shards(),
            expect![[r#"
                 text-generation-benchmark llama, bfloat16, cpu (AVX-512, 2 threads)
                 Model gpt2 · Sequence Length 10
                 Batch Size  1 ✓  2 ✓  4 …  8
                 Batch Size 4           50 %  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━─────────────────────────────────────────────
                 All                    62 %  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━──────────────────────────────────
                ┌ Figures ───────────────────────────────────────────────────────────────────┐┌ Prefill ───────────────────────────────┐
                │                     Average  Lowest    Highest  p50      p90       p99     ││████████████████████          ██████████│
                │Prefill, ms          52.00    40.00     68.00    48.00    68.00     68.00   ││████████████████████          ██████████│
                │Decode (token), ms   5.30     5.00      6.00     5.20     6.00      6.00    ││████████████████████          ██████████│
                │Decode (total), ms   37.33    35.00     41.00    35.98    40.99     40.99   ││████████████████████          ██████████│
                │Prefill, tokens/s    806.67   590.00    1000.00  830.50   1000.00   1000.00 ││████████████████████          ██████████│
                │Decode, tokens/s     760.00   720.00    800.00   760.50   800.00    800.00  ││40.00 ms                        68.00 ms│
                └────────────────────────────────────────────────────────────────────────────┘└────────────────────────────────────────┘
                ┌ Prefill: p50 in ms over tokens/s ────────────────────────┐┌ Decode: p50 in ms over tokens/s ─────────────────────────┐
                │53│                                                 ⢀     ││5.72│            ⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀     │
                │  │                                                 •     ││    │            •           •                      •     │
                │  │                                                 ⢸     ││    │                                                     │
                │  │                                                 ⢸     ││    │                                                     │
                │26│                                                 •     ││2.86│                                                     │
                │  │                                                 •     ││    │                                                     │
                │  │                                                 ⠈     ││    │                                                     │
                │0 │                                                       ││0.00│                                                     │
                │  └───────────────────────────────────────────────────────││    └─────────────────────────────────────────────────────│
                │  0                          444                       887││    0                        418                       836│
                └──────────────────────────────────────────────────────────┘└──────────────────────────────────────────────────────────┘
                 q stop   ← → batch size   ↑ ↓ histogram   Esc follow
            "#]],
        );
    }

    #[test]
    fn http_with_failures() {
        check(
            &samples::http(),
            expect![[r#"
                 text-generation-benchmark http://127.0.0.1:3000/generate_stream
                 Route generate
                 Requests/s  2.5 ✓
                 Requests/s 2.5         done  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
                 All                   100 %  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
                ┌ Figures ───────────────────────────────────────────────────────────────────┐┌ First token ───────────────────────────┐
                │                     Average  Lowest    Highest  p50      p90       p99     ││██████████████             █████████████│
                │First token, ms      25.00    20.00     30.00    20.00    30.00     30.00   ││██████████████             █████████████│
                │Inter-token, ms      5.00     4.00      6.00     5.00     6.00      6.00    ││██████████████             █████████████│
                │Per output token, ms 5.00     5.00      5.00     5.00     5.00      5.00    ││██████████████             █████████████│
                │End to end, ms       65.00    60.00     70.00    60.03    70.00     70.00   ││██████████████             █████████████│
                │2 completed, 1.0 requests/s, 8.0 output tokens/s                            ││██████████████             █████████████│
                │4 failed (HTTP 429: 3, connection refused: 1)                               ││██████████████             █████████████│
                │                                                                            ││20.00 ms                        30.00 ms│
                └────────────────────────────────────────────────────────────────────────────┘└────────────────────────────────────────┘
                ┌ First token: p50 in ms over tokens/s ────────────────────┐┌ Inter-token: p50 in ms over tokens/s ────────────────────┐
                │22 │                                                •     ││5.50│                                               •     │
                │   │                                                      ││    │                                                     │
                │   │                                                      ││    │                                                     │
                │11 │                                                      ││2.75│                                                     │
                │   │                                                      ││    │                                                     │
                │0  │                                                      ││0.00│                                                     │
                │   └──────────────────────────────────────────────────────││    └─────────────────────────────────────────────────────│
                │0.00                         4.40                     8.80││ 0.00                        4.40                     8.80│
                └──────────────────────────────────────────────────────────┘└──────────────────────────────────────────────────────────┘
                 Done.  q close and print   ← → requests/s   ↑ ↓ histogram   Esc follow
            "#]],
        );
    }

    #[test]
    fn arrows_choose_and_escape_follows() {
        let report = samples::shards();
        let mut view = View::default();
        let mut shown = |keys: fn(&mut View)| {
            keys(&mut view);
            picture(&mut view, &report, 120, 26).lines().nth(3).unwrap()[..17].trim().to_owned()
        };
        assert_eq!(shown(|_| ()), "Batch Size 4", "it follows the one under way");
        assert_eq!(shown(View::select_previous), "Batch Size 2");
        assert_eq!(shown(|view| (0..9).for_each(|_| view.select_previous())), "Batch Size 1");
        assert_eq!(shown(|view| view.select_next(4)), "Batch Size 2");
        assert_eq!(shown(|view| (0..9).for_each(|_| view.select_next(4))), "Batch Size 8");
        assert_eq!(shown(View::follow), "Batch Size 4");
    }

    #[test]
    fn no_terminal_is_too_small() {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            picture(&mut View::default(), &samples::shards(), width, height);
            picture(&mut View::default(), &samples::http(), width, height);
        }
    }

    #[test]
    fn the_point_shown_is_always_among_the_tabs() {
        let mut report = samples::shards();
        report.points = (0..64).map(|index| report.points[index % 4].clone()).collect();
        let line = tab_line(&report, 63, 40);
        assert!(line.width() <= 40 && line.spans.last().unwrap().content.contains('8'), "{line:?}");
    }
}
