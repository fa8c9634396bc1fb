//! Metrics are an interface: names, labels and buckets as dashboards know them.

use crate::client::Server;
use rvllm_server::Config;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Every metric, its type and its buckets, as `/metrics` has them. Dashboards and gateways read these: a line is added,
/// none is changed.
const FROZEN: &str = include_str!("metrics.txt");
const DASHBOARD: &str = include_str!("../../grafana.json");
/// What vLLM's own tests expect of `/metrics`, as Prometheus's text has it.
const EXPECTED_METRICS_V1: [&str; 24] = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total",
    "vllm:cache_config_info",
    "vllm:request_success_total",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_params_n",
    "vllm:request_params_max_tokens",
    "vllm:request_time_per_output_token_seconds",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
];

/// `NAME TYPE` of each metric, and after a histogram's its buckets.
fn outline(text: &str) -> String {
    let mut buckets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some((name, rest)) = line.split_once("_bucket{") else { continue };
        let bound = rest.split("le=\"").nth(1).and_then(|r| r.split('"').next()).unwrap();
        let bounds = buckets.entry(name).or_default();
        if !bounds.contains(&bound) {
            bounds.push(bound);
        }
    }
    let types = text.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    let with_buckets = |line: &str| match buckets.get(line.split(' ').next().unwrap()) {
        Some(bounds) => format!("{line} {}\n", bounds.join(" ")),
        None => format!("{line}\n"),
    };
    types.map(with_buckets).collect()
}

async fn scrape(s: &Server) -> String {
    s.complete(json!({"prompt": "a"})).await.json();
    s.idle().await;
    s.get("/metrics").await.text
}

#[tokio::test]
async fn names_types_and_buckets_are_frozen() {
    let now = outline(&scrape(&Server::new(Config::default())).await);
    assert_eq!(now, FROZEN, "metrics are an interface; where one was added, add its line to tests/it/metrics.txt");
    let types: BTreeSet<&str> = now.lines().map(|l| l.split(' ').next().unwrap()).collect();
    for expected in EXPECTED_METRICS_V1 {
        assert!(types.contains(expected), "{expected}");
    }
}

/// Names of metrics in a query of Prometheus's language.
fn metrics_of(query: &str) -> Vec<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let ours = |w: &&str| w.contains(':') || w.starts_with("http_") || w.starts_with("process_");
    words.filter(ours).map(String::from).collect()
}

#[tokio::test]
async fn the_dashboard_draws_what_exists() {
    let text = scrape(&Server::new(Config::default())).await;
    let samples: BTreeSet<&str> =
        text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split(['{', ' ']).next().unwrap()).collect();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let (mut panels, mut drawn) = (0, BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|p| p["type"] != "row") {
        panels += 1;
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && panel["title"].is_string(), "{panel}");
        for target in targets {
            let metrics = metrics_of(target["expr"].as_str().unwrap());
            assert!(!metrics.is_empty(), "{target}");
            drawn.extend(metrics);
        }
    }
    assert!(panels >= 15, "{panels}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        drawn.extend(variable["query"].as_str().map(metrics_of).unwrap_or_default());
    }
    let missing: Vec<&String> = drawn.iter().filter(|m| !samples.contains(m.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} is drawn, but there is no such metric");
    for name in ["rvllm:engine_step_seconds_bucket", "rvllm:memory_bytes", "vllm:prefix_cache_hits_total"] {
        assert!(drawn.contains(name), "{name} is not drawn");
    }
}

#[tokio::test]
async fn names_labels_and_counts_are_vllms() {
    let s = Server::new(Config::default());
    for _ in 0..2 {
        s.complete(json!({"prompt": "a".repeat(40), "n": 2, "temperature": 1, "max_tokens": 9, "ignore_eos": true}))
            .await
            .json();
    }
    s.idle().await;
    let text = s.get("/metrics").await.text;
    let value = |line: &str| {
        let found = text.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("{line} in {text}"));
        found.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let labels = "engine=\"0\",model_name=\"mock\"";
    assert_eq!(value(&format!("vllm:prompt_tokens_total{{{labels}}}")), 80.0);
    assert_eq!(value(&format!("vllm:generation_tokens_total{{{labels}}}")), 36.0);
    assert_eq!(value(&format!("vllm:request_success_total{{{}", "engine=\"0\",finished_reason=\"length\"")), 2.0);
    assert_eq!(value(&format!("vllm:time_to_first_token_seconds_count{{{labels}}}")), 2.0);
    assert_eq!(value(&format!("vllm:inter_token_latency_seconds_count{{{labels}}}")), 32.0);
    assert_eq!(value(&format!("vllm:request_params_n_sum{{{labels}}}")), 4.0);
    assert_eq!(value(&format!("vllm:num_requests_running{{{labels}}}")), 0.0);
    assert_eq!(value(&format!("vllm:prefix_cache_hits_total{{{labels}}}")), 32.0);
    assert_eq!(value(&format!("vllm:request_prefill_kv_computed_tokens_sum{{{labels}}}")), 48.0);
    assert_eq!(value(&format!("rvllm:kv_blocks{{{labels},state=\"used\"}}")), 0.0);
    assert_eq!(value(&format!("rvllm:kv_cache_capacity_tokens{{{labels}}}")), 1024.0);
    assert!(value(&format!("rvllm:engine_steps_total{{{labels}}}")) >= 18.0);
    assert!(value(&format!("rvllm:engine_step_seconds_sum{{{labels}}}")) > 0.0);
    for bucket in [
        "time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"mock\",le=\"0.001\"}",
        "time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"mock\",le=\"2560\"}",
        "e2e_request_latency_seconds_bucket{engine=\"0\",model_name=\"mock\",le=\"7680\"}",
        "iteration_tokens_total_bucket{engine=\"0\",model_name=\"mock\",le=\"16384\"}",
        "request_prompt_tokens_bucket{engine=\"0\",model_name=\"mock\",le=\"200\"}",
    ] {
        assert!(text.contains(&format!("vllm:{bucket}")), "{bucket}");
    }
}
