//! A report of a run in one HTML file: the table, and plots drawn as SVG; nothing is loaded from elsewhere.
//!
//! Invariants: whatever a server or a flag says is escaped.

use super::{client::Outcome, results::Results, stats::percentile};
use std::fmt::Write;

/// Size of a plot, with room for its axes.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 24.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 12.0;
/// Requests in the timeline, evenly chosen among all.
const MOST_ROWS: usize = 300;
/// Bars of a histogram.
const BARS: usize = 48;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2rem auto;padding:0 1rem;\
color:#1c2330;background:#fff}h1{font-size:1.4rem}h2{font-size:1rem;margin:0 0 .3rem}\
pre{background:#f4f5f7;padding:1rem;border-radius:6px;overflow:auto}\
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(520px,1fr));gap:1.5rem}svg{width:100%;height:auto}\
.axis{stroke:#9aa3b2}.grid{stroke:#e4e7ec}text{fill:#566074;font-size:11px}.a{fill:#3465d0}.b{fill:#d07a34}\
.la{stroke:#3465d0;fill:none;stroke-width:2}.lb{stroke:#d07a34;fill:none;stroke-width:2}\
@media(prefers-color-scheme:dark){body{color:#dde2ea;background:#14171c}pre{background:#1d2229}\
.grid{stroke:#2a303a}text{fill:#9aa3b2}}";

/// The report.
pub fn page(results: &Results) -> String {
    let c = &results.conditions;
    let title = escape(&format!("{} · {}", c.label.as_deref().unwrap_or("rvllm bench serve"), c.model));
    let plots = [
        distribution("Time to first token: share of requests within", &results.times("ttft"), "la"),
        histogram("Time between tokens", &results.times("itl")),
        distribution("End-to-end latency: share of requests within", &results.times("e2el"), "lb"),
        over_time("Tokens per second", &results.tokens_per_second(), "la"),
        over_time("Requests under way, mean of each second", &results.concurrency(), "lb"),
        timeline(results),
    ];
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style><h1>{title}</h1><p>{}</p>\
         <pre>{}</pre><main>{}</main></html>\n",
        escape(&facts(results)),
        escape(&results.text()),
        plots.concat(),
    )
}

fn facts(results: &Results) -> String {
    let c = &results.conditions;
    let metadata = c.metadata.iter().map(|(k, v)| format!(" · {k}: {v}"));
    format!("{} · {}{}", c.date, c.backend, metadata.collect::<String>())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What lies between 0 and an upper bound on both axes.
struct Axes {
    most_x: f64,
    most_y: f64,
    x_unit: &'static str,
}

impl Axes {
    fn x(&self, x: f64) -> f64 {
        LEFT + (x / self.most_x).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - (y / self.most_y).clamp(0.0, 1.0) * (HEIGHT - BOTTOM - TOP)
    }

    /// A figure with its axes; `marks` are the data.
    fn figure(&self, title: &str, marks: &str) -> String {
        let mut svg = String::new();
        for i in 0..=4 {
            let (x, y) = (self.most_x * f64::from(i) / 4.0, self.most_y * f64::from(i) / 4.0);
            let (px, py) = (self.x(x), self.y(y));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{py:.1}\" y2=\"{py:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <text x=\"{px:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                py + 4.0,
                short(y),
                HEIGHT - BOTTOM + 16.0,
                short(x),
            );
        }
        let (base, end) = (HEIGHT - BOTTOM, HEIGHT - 4.0);
        format!(
            "<section><h2>{title}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">{svg}\
             <line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{base}\" y2=\"{base}\"/>{marks}\
             <text x=\"{}\" y=\"{end}\" text-anchor=\"end\">{}</text></svg></section>",
            WIDTH - RIGHT,
            WIDTH - RIGHT,
            self.x_unit,
        )
    }
}

fn short(x: f64) -> String {
    match x {
        0.0 => "0".to_string(),
        x if x >= 10_000.0 => format!("{:.0}k", x / 1e3),
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 1.0 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
}

/// Where an axis ends that shows up to `most`: its quarters are 1, 2, 2.5 or 5 times a power of ten. Never 0, so that there is
/// something to divide by.
fn bound(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let quarter = most / 4.0;
    let unit = 10f64.powf(quarter.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0].into_iter().find(|n| n * unit >= quarter * (1.0 - 1e-9)).unwrap_or(10.0);
    4.0 * step * unit
}

/// The share of a sample below each value.
fn distribution(title: &str, ms: &[f64], class: &str) -> String {
    let mut sorted = ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let axes = Axes { most_x: bound(percentile(&sorted, 100.0)), most_y: 1.0, x_unit: "ms" };
    let points = (0..=200).map(|i| {
        let share = f64::from(i) / 200.0;
        (percentile(&sorted, share * 100.0), share)
    });
    axes.figure(title, &line(&axes, points, class))
}

fn line(axes: &Axes, points: impl Iterator<Item = (f64, f64)>, class: &str) -> String {
    let points: Vec<String> = points.map(|(x, y)| format!("{:.1},{:.1}", axes.x(x), axes.y(y))).collect();
    format!("<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "))
}

/// How many gaps have which length, up to the 99.5th percentile: the last bar has the longer ones, too.
fn histogram(title: &str, ms: &[f64]) -> String {
    let mut sorted = ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let most = bound(percentile(&sorted, 99.5));
    let mut counts = [0.0; BARS];
    for x in ms {
        counts[((x / most * BARS as f64) as usize).min(BARS - 1)] += 1.0;
    }
    let axes = Axes { most_x: most, most_y: bound(counts.iter().copied().fold(0.0, f64::max)), x_unit: "ms" };
    let bar = |(i, n): (usize, &f64)| {
        let (left, right) = (axes.x(i as f64 * most / BARS as f64), axes.x((i + 1) as f64 * most / BARS as f64));
        let (y, base) = (axes.y(*n), axes.y(0.0));
        format!(
            "<rect class=\"a\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            (right - left - 1.0).max(0.5),
            base - y
        )
    };
    axes.figure(title, &counts.iter().enumerate().map(bar).collect::<String>())
}

fn over_time(title: &str, series: &[f64], class: &str) -> String {
    let most_y = bound(series.iter().copied().fold(0.0, f64::max));
    let axes = Axes { most_x: bound(series.len().saturating_sub(1) as f64), most_y, x_unit: "s" };
    axes.figure(title, &line(&axes, series.iter().enumerate().map(|(i, y)| (i as f64, *y)), class))
}

/// Each request from its start over its first token to its end.
fn timeline(results: &Results) -> String {
    let all: Vec<&Outcome> = results.good().collect();
    let stride = all.len().div_ceil(MOST_ROWS).max(1);
    let rows: Vec<&Outcome> = all.into_iter().step_by(stride).collect();
    let axes = Axes { most_x: bound(results.duration), most_y: bound(rows.len() as f64), x_unit: "s" };
    let height = (HEIGHT - BOTTOM - TOP) / bound(rows.len() as f64);
    let row = |(i, o): (usize, &&Outcome)| {
        let (start, first, end) = (axes.x(o.start), axes.x(o.start + o.ttft), axes.x(o.start + o.latency));
        let rect = |class: &str, from: f64, to: f64| {
            let y = TOP + i as f64 * height;
            format!(
                "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{y:.2}\" width=\"{:.1}\" height=\"{:.2}\"/>",
                (to - from).max(0.3),
                height * 0.85
            )
        };
        rect("b", start, first) + &rect("a", first, end)
    };
    let marks: String = rows.iter().enumerate().map(row).collect();
    axes.figure("Requests: waiting for the first token, then generating", &marks)
}

#[cfg(test)]
mod tests {
    use super::bound;

    #[test]
    fn axes_end_where_their_quarters_are_short_numbers() {
        let near = |most: f64, end: f64| assert!((bound(most) - end).abs() < 1e-9 * end, "{most}: {}", bound(most));
        [(0.0, 1.0), (1.0, 1.0), (32.0, 40.0), (60.0, 80.0), (742.0, 800.0), (0.03, 0.04), (40.0, 40.0)]
            .into_iter()
            .for_each(|(most, end)| near(most, end));
    }
}
