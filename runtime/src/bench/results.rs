//! What a run against a server came to: figures once, in text and in vLLM's JSON keys.

use super::{
    client::Outcome,
    stats::{Summary, percentile_name},
};
use crate::error::Failure;
use serde_json::{Map, Value, json};

/// Times that statistics are about: key, title, words.
const METRICS: [(&str, &str, &str); 4] = [
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
];

/// Refuses names of times that nothing measures.
///
/// # Errors
/// One is unknown.
pub fn check_metrics(list: &str) -> Result<(), Failure> {
    let known = |name: &&str| METRICS.iter().any(|m| m.0 == *name);
    match list.split(',').map(str::trim).find(|m| !known(m)) {
        None => Ok(()),
        Some(name) => Err(Failure::usage(format!("--percentile-metrics: `{name}` is not measured"))
            .help("choose among ttft,tpot,itl,e2el")),
    }
}

/// Times that a good request keeps to, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Goals {
    ttft: Option<f64>,
    tpot: Option<f64>,
    e2el: Option<f64>,
}

impl Goals {
    /// `ttft:500 tpot:50 e2el:10000`, in milliseconds.
    ///
    /// # Errors
    /// A name is unknown or a time is none.
    pub fn parse(goals: &[String]) -> Result<Goals, Failure> {
        let mut read = Goals::default();
        for goal in goals {
            let wrong =
                || Failure::usage(format!("--goodput: `{goal}` is no goal")).help("write ttft:500 tpot:50 e2el:10000");
            let (name, ms) = goal.split_once(':').ok_or_else(wrong)?;
            let seconds = ms.parse().ok().filter(|ms: &f64| *ms >= 0.0).map(|ms| ms / 1e3).ok_or_else(wrong)?;
            let place = match name {
                "ttft" => &mut read.ttft,
                "tpot" => &mut read.tpot,
                "e2el" => &mut read.e2el,
                _ => return Err(wrong()),
            };
            *place = Some(seconds);
        }
        Ok(read)
    }

    fn is_empty(&self) -> bool {
        *self == Goals::default()
    }

    fn met(&self, o: &Outcome) -> bool {
        let within = |goal: Option<f64>, time: f64| goal.is_none_or(|g| time <= g);
        within(self.ttft, o.ttft) && within(self.tpot, o.tpot().unwrap_or(0.0)) && within(self.e2el, o.latency)
    }
}

/// Under which conditions a run was made.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Day and time.
    pub date: String,
    /// Which API.
    pub backend: String,
    /// Which model.
    pub model: String,
    /// Whose tokens.
    pub tokenizer: String,
    /// What the run is called.
    pub label: Option<String>,
    /// Facts to keep.
    pub metadata: Vec<(String, String)>,
    /// Requests a second, where it was one rate.
    pub request_rate: Option<f64>,
    /// Shape of the intervals.
    pub burstiness: f64,
    /// Most requests at a time.
    pub max_concurrency: Option<usize>,
    /// What a good request is.
    pub goals: Goals,
    /// Times that statistics are printed of.
    pub metrics: Vec<String>,
    /// Percentiles.
    pub percentiles: Vec<f64>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Results {
    /// How it was made.
    pub conditions: Conditions,
    /// Seconds.
    pub duration: f64,
    /// In the samples' order.
    pub outcomes: Vec<Outcome>,
}

/// A series over the seconds of a run.
pub type Series = Vec<f64>;

impl Results {
    /// Requests that succeeded.
    pub fn good(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|o| o.error.is_none())
    }

    /// Their number.
    pub fn completed(&self) -> usize {
        self.good().count()
    }

    /// What the first failed request was told.
    pub fn first_error(&self) -> &str {
        self.outcomes.iter().find_map(|o| o.error.as_deref()).unwrap_or("none was sent")
    }

    /// A time of every request that has it, in milliseconds; of `itl`, every gap.
    pub fn times(&self, metric: &str) -> Vec<f64> {
        let seconds: Vec<f64> = match metric {
            "ttft" => self.good().map(|o| o.ttft).collect(),
            "tpot" => self.good().filter_map(Outcome::tpot).collect(),
            "itl" => self.good().flat_map(|o| o.itls.iter().copied()).collect(),
            _ => self.good().map(|o| o.latency).collect(),
        };
        seconds.into_iter().map(|s| s * 1e3).collect()
    }

    fn summary(&self, metric: &str) -> Summary {
        Summary::of(&self.times(metric), &self.conditions.percentiles)
    }

    /// Pieces of text that arrived in each second.
    pub fn tokens_per_second(&self) -> Series {
        let mut seconds = vec![0.0; self.duration.ceil() as usize + 1];
        for at in self.good().flat_map(Outcome::arrivals) {
            if let Some(second) = seconds.get_mut(at as usize) {
                *second += 1.0;
            }
        }
        seconds
    }

    /// Requests that were under way in each second, on average.
    pub fn concurrency(&self) -> Series {
        let mut seconds = vec![0.0; self.duration.ceil() as usize + 1];
        for o in self.good() {
            let end = o.start + o.latency;
            let last = (end as usize).min(seconds.len() - 1);
            let first = (o.start as usize).min(last);
            for (from, n) in (first..).map(|s| s as f64).zip(&mut seconds[first..=last]) {
                *n += (end.min(from + 1.0) - o.start.max(from)).max(0.0);
            }
        }
        seconds
    }

    /// Most requests that were under way at one moment.
    fn most_at_once(&self) -> usize {
        let changes = self.good().flat_map(|o| [(o.start, 1), (o.start + o.latency, -1)]);
        let mut changes: Vec<(f64, i64)> = changes.collect();
        // One that ends when another begins was not beside it.
        changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let running = changes.iter().scan(0, |n, (_, change)| {
            *n += change;
            Some(*n)
        });
        running.max().unwrap_or(0) as usize
    }

    fn totals(&self) -> (u64, u64) {
        self.good().fold((0, 0), |(i, o), x| (i + x.prompt_tokens, o + x.output_tokens))
    }

    fn goodput(&self) -> Option<f64> {
        let goals = &self.conditions.goals;
        (!goals.is_empty()).then(|| self.good().filter(|o| goals.met(o)).count() as f64 / self.duration)
    }

    /// The table that is printed.
    pub fn text(&self) -> String {
        let (input, output) = self.totals();
        let per_second = |n: f64| format!("{:.2}", n / self.duration);
        let peak = |series: Series| series.into_iter().fold(0.0, f64::max);
        let mut rows = vec![
            ("Successful requests:", self.completed().to_string()),
            ("Failed requests:", (self.outcomes.len() - self.completed()).to_string()),
        ];
        let limits = [
            ("Maximum request concurrency:", self.conditions.max_concurrency.map(|n| n.to_string())),
            ("Request rate configured (RPS):", self.conditions.request_rate.map(|r| format!("{r:.2}"))),
        ];
        rows.extend(limits.into_iter().filter_map(|(name, value)| Some((name, value?))));
        rows.extend([
            ("Benchmark duration (s):", format!("{:.2}", self.duration)),
            ("Total input tokens:", input.to_string()),
            ("Total generated tokens:", output.to_string()),
            ("Request throughput (req/s):", per_second(self.completed() as f64)),
        ]);
        rows.extend(self.goodput().map(|g| ("Request goodput (req/s):", format!("{g:.2}"))));
        rows.extend([
            ("Output token throughput (tok/s):", per_second(output as f64)),
            ("Peak output token throughput (tok/s):", format!("{:.2}", peak(self.tokens_per_second()))),
            ("Peak concurrent requests:", self.most_at_once().to_string()),
            ("Total token throughput (tok/s):", per_second((input + output) as f64)),
        ]);
        let mut text = heading("Serving Benchmark Result", '=');
        rows.iter().for_each(|(name, value)| text += &line(name, value));
        for (key, title, words) in METRICS.iter().filter(|m| self.conditions.metrics.iter().any(|k| k == m.0)) {
            text += &heading(words, '-');
            text += &self.times_text(key, title);
        }
        text + &"=".repeat(WIDTH) + "\n"
    }

    fn times_text(&self, key: &str, title: &str) -> String {
        let s = self.summary(key);
        let ms = |x: f64| format!("{x:.2}");
        let percentiles = s.percentiles.iter().map(|(p, x)| line(&format!("P{p} {title} (ms):"), &ms(*x)));
        let first =
            [line(&format!("Mean {title} (ms):"), &ms(s.mean)), line(&format!("Median {title} (ms):"), &ms(s.median))];
        first.into_iter().chain(percentiles).collect()
    }

    /// vLLM's keys. `detailed` adds each request's times and text.
    pub fn json(&self, detailed: bool) -> Value {
        let c = &self.conditions;
        let (input, output) = self.totals();
        let per_second = |n: f64| n / self.duration;
        let peak = |series: Series| series.into_iter().fold(0.0, f64::max);
        let mut all = Map::new();
        let mut put = |key: &str, value: Value| all.insert(key.to_string(), value);
        put("date", json!(c.date));
        put("backend", json!(c.backend));
        put("label", json!(c.label));
        put("model_id", json!(c.model));
        put("tokenizer_id", json!(c.tokenizer));
        put("num_prompts", json!(self.outcomes.len()));
        c.metadata.iter().for_each(|(key, value)| drop(put(key, json!(value))));
        put("request_rate", c.request_rate.map_or(json!("inf"), Value::from));
        put("burstiness", json!(c.burstiness));
        put("max_concurrency", json!(c.max_concurrency));
        put("duration", json!(self.duration));
        put("completed", json!(self.completed()));
        put("failed", json!(self.outcomes.len() - self.completed()));
        put("total_input_tokens", json!(input));
        put("total_output_tokens", json!(output));
        put("request_throughput", json!(per_second(self.completed() as f64)));
        put("request_goodput", json!(self.goodput()));
        put("output_throughput", json!(per_second(output as f64)));
        put("total_token_throughput", json!(per_second((input + output) as f64)));
        put("max_output_tokens_per_s", json!(peak(self.tokens_per_second())));
        put("max_concurrent_requests", json!(self.most_at_once()));
        for (key, ..) in METRICS {
            all.extend(self.times_json(key));
        }
        if detailed {
            all.extend(self.details());
        }
        Value::Object(all)
    }

    fn times_json(&self, key: &str) -> Map<String, Value> {
        let s = self.summary(key);
        let named = [("mean".to_string(), s.mean), ("median".into(), s.median), ("std".into(), s.std)];
        let percentiles = s.percentiles.iter().map(|(p, x)| (percentile_name(*p), *x));
        named.into_iter().chain(percentiles).map(|(name, x)| (format!("{name}_{key}_ms"), json!(x))).collect()
    }

    fn details(&self) -> Map<String, Value> {
        let columns: [(&str, Column); 7] = [
            ("input_lens", |o| json!(o.prompt_tokens)),
            ("output_lens", |o| json!(o.output_tokens)),
            ("start_times", |o| json!(o.start)),
            ("ttfts", |o| json!(o.ttft)),
            ("itls", |o| json!(o.itls)),
            ("generated_texts", |o| json!(o.text)),
            ("errors", |o| json!(o.error.as_deref().unwrap_or_default())),
        ];
        let each = |f: Column| Value::Array(self.outcomes.iter().map(f).collect());
        columns.into_iter().map(|(name, f)| (name.to_string(), each(f))).collect()
    }
}

/// A fact of each request.
type Column = fn(&Outcome) -> Value;

/// Characters of the table.
const WIDTH: usize = 50;

fn heading(text: &str, fill: char) -> String {
    let side = WIDTH.saturating_sub(text.len() + 2);
    let bar = |n: usize| fill.to_string().repeat(n);
    format!("{} {text} {}\n", bar(side / 2), bar(side - side / 2))
}

fn line(name: &str, value: &str) -> String {
    format!("{name:<40} {value:<9}").trim_end().to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(start: f64, ttft: f64, itls: &[f64]) -> Outcome {
        let latency = ttft + itls.iter().sum::<f64>();
        Outcome {
            start,
            ttft,
            itls: itls.to_vec(),
            latency,
            prompt_tokens: 10,
            output_tokens: itls.len() as u64 + 1,
            ..Outcome::default()
        }
    }

    fn results(goals: &[&str]) -> Results {
        let goals: Vec<String> = goals.iter().map(|g| g.to_string()).collect();
        let conditions = Conditions {
            date: "20260102-030405".into(),
            backend: "openai".into(),
            model: "m".into(),
            tokenizer: "m".into(),
            label: None,
            metadata: vec![("gpu".into(), "none".into())],
            request_rate: None,
            burstiness: 1.0,
            max_concurrency: Some(2),
            goals: Goals::parse(&goals).unwrap(),
            metrics: vec!["ttft".into(), "tpot".into()],
            percentiles: vec![50.0, 99.9],
        };
        let failed = Outcome { error: Some("429".into()), ttft: 99.0, ..Outcome::default() };
        let outcomes = vec![outcome(0.0, 0.1, &[0.2, 0.2]), outcome(1.5, 0.3, &[0.4]), failed];
        Results { conditions, duration: 2.5, outcomes }
    }

    #[test]
    fn figures_leave_failed_requests_out() {
        let json = results(&[]).json(false);
        let near = |key: &str, want: f64| {
            let got = json[key].as_f64().unwrap_or_else(|| panic!("{key}: {}", json[key]));
            assert!((got - want).abs() < 1e-9, "{key}: {got} {want}");
        };
        near("completed", 2.0);
        near("failed", 1.0);
        near("total_input_tokens", 20.0);
        near("total_output_tokens", 5.0);
        near("output_throughput", 2.0);
        near("mean_ttft_ms", 200.0);
        near("p99.9_ttft_ms", 299.8);
        near("mean_tpot_ms", 300.0);
        near("median_itl_ms", 200.0);
        near("mean_e2el_ms", 600.0);
        near("max_concurrent_requests", 1.0);
        near("max_output_tokens_per_s", 3.0);
        assert_eq!((&json["gpu"], &json["request_goodput"]), (&json!("none"), &Value::Null));
    }

    #[test]
    fn requests_count_for_the_part_of_a_second_that_they_are_under_way() {
        let series = results(&[]).concurrency();
        let expected = [0.5, 0.5, 0.2, 0.0];
        let near = |(got, want): (&f64, &f64)| (got - want).abs() < 1e-9;
        assert!(series.len() == 4 && series.iter().zip(&expected).all(near), "{series:?}");
    }

    #[test]
    fn goodput_counts_requests_that_keep_every_goal() {
        let goodput = |goals: &[&str]| results(goals).goodput().unwrap();
        assert_eq!(goodput(&["ttft:1000"]), 0.8);
        assert_eq!(goodput(&["ttft:200"]), 0.4);
        assert_eq!(goodput(&["ttft:1000", "e2el:650"]), 0.4);
        assert_eq!(goodput(&["tpot:100"]), 0.0);
        for wrong in ["ttft", "ttft:x", "itl:3", "ttft:-1"] {
            assert!(Goals::parse(&[wrong.to_string()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_has_vllms_lines() {
        let text = results(&["ttft:1000"]).text();
        for line in [
            "Successful requests:                     2",
            "Failed requests:                         1",
            "Request goodput (req/s):                 0.80",
            "P99.9 TTFT (ms):                         299.80",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("ITL"), "{text}");
        assert!(check_metrics("ttft,e2el").is_ok() && check_metrics("ttft,x").is_err());
    }

    #[test]
    fn details_have_a_place_for_every_request() {
        let json = results(&[]).json(true);
        for key in ["input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors"] {
            assert_eq!(json[key].as_array().map(Vec::len), Some(3), "{key}");
        }
        assert_eq!(json["errors"][2], "429");
    }
}
