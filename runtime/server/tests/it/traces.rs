//! Traces as a collector receives them, and that serving does not care how the collector fares.

use crate::wire::{Wire, exchange, post};
use rvllm_server::{Config, traces::TraceConfig};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector: hands over what it is sent, and answers `status`.
fn collector(status: u16) -> (String, Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (tell, told)) = (listener.local_addr().unwrap(), mpsc::channel());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {
                let last = head.lines().last().unwrap().to_lowercase();
                length = last.strip_prefix("content-length: ").map_or(length, |n| n.parse().unwrap());
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\n{{}}");
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            // The test may have seen enough.
            let _ = tell.send((head, serde_json::from_slice(&body).unwrap()));
        }
    });
    (format!("http://{address}/v1/traces"), told)
}

fn config(endpoint: &str, detailed: bool) -> Config {
    let variable = |name: &str| match name {
        "OTEL_SERVICE_NAME" => Some("tested".to_string()),
        "OTEL_EXPORTER_OTLP_HEADERS" => Some("api-key=secret".to_string()),
        _ => None,
    };
    let traces = TraceConfig::new(endpoint.parse().unwrap(), detailed, variable).unwrap();
    Config { traces: Some(traces), ..Config::default() }
}

async fn ask(wire: &Wire, body: &str, parent: Option<&str>) -> String {
    let mut stream = TcpStream::connect(wire.tcp()).await.unwrap();
    let header = parent.map_or(String::new(), |p| format!("host: x\r\ntraceparent: {p}\r\ntracestate: a=b\r\n"));
    exchange(&mut stream, post(body).replacen("host: x\r\n", &header, 1)).await
}

/// Spans by name, of what a collector was sent until it has `count`.
fn spans(told: &Receiver<(String, Value)>, count: usize) -> Vec<Value> {
    let mut all: Vec<Value> = vec![];
    while all.len() < count {
        let (head, sent) = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("api-key: secret"), "{head}");
        let resource = &sent["resourceSpans"][0]["resource"]["attributes"];
        assert_eq!(resource[0], json!({"key": "service.name", "value": {"stringValue": "tested"}}));
        all.extend(sent["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    all
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|a| a["key"] == key).unwrap_or_else(|| panic!("{key} in {span}"));
    found["value"].as_object().unwrap().values().next().unwrap()
}

#[tokio::test]
async fn a_request_is_a_span_under_vllms_names() {
    let (endpoint, told) = collector(200);
    let wire = Wire::start(config(&endpoint, true));
    let body = "{\"prompt\": \"abc\", \"n\": 2, \"max_tokens\": 5, \"temperature\": 0.5, \"top_p\": 0.9, \
        \"ignore_eos\": true, \"stream\": true}";
    assert!(ask(&wire, body, Some(PARENT)).await.contains("[DONE]"));
    let all = spans(&told, 4);
    let named = |name: &str| all.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("{name} in {all:?}"));
    let request = named("llm_request");
    assert_eq!(request["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!((&request["parentSpanId"], &request["traceState"]), (&json!("b7ad6b7169203331"), &json!("a=b")));
    assert_eq!((&request["kind"], request.get("status")), (&json!(2), None));
    for (key, value) in [
        ("gen_ai.usage.prompt_tokens", json!("3")),
        ("gen_ai.usage.completion_tokens", json!("10")),
        ("gen_ai.usage.num_sequences", json!("2")),
        ("gen_ai.request.n", json!("2")),
        ("gen_ai.request.max_tokens", json!("5")),
        ("gen_ai.request.temperature", json!(0.5)),
        ("gen_ai.response.model", json!("mock")),
        ("gen_ai.operation.name", json!("text_completion")),
        ("http.response.status_code", json!("200")),
    ] {
        assert_eq!(attribute(request, key), &value, "{key}");
    }
    assert!((attribute(request, "gen_ai.request.top_p").as_f64().unwrap() - 0.9).abs() < 1e-6);
    let latency = |what: &str| attribute(request, &format!("gen_ai.latency.{what}")).as_f64().unwrap();
    let stages = ["time_in_queue", "time_in_model_prefill", "time_in_model_decode"].map(latency);
    assert!((stages.iter().sum::<f64>() - latency("e2e")).abs() < 1e-6);
    assert!(latency("time_to_first_token") <= latency("e2e") && latency("time_in_model_inference") <= latency("e2e"));
    let nanos = |span: &Value, at: &str| span[at].as_str().unwrap().parse::<u128>().unwrap();
    for stage in ["queue", "prefill", "decode"].map(named) {
        assert_eq!((&stage["parentSpanId"], &stage["kind"]), (&request["spanId"], &json!(1)));
        assert!(nanos(stage, "startTimeUnixNano") >= nanos(request, "startTimeUnixNano"));
        assert!(nanos(stage, "endTimeUnixNano") <= nanos(request, "endTimeUnixNano"));
    }
}

#[tokio::test]
async fn requests_begin_traces_unless_their_callers_keep_none() {
    let (endpoint, told) = collector(200);
    let wire = Wire::start(config(&endpoint, false));
    ask(&wire, "{\"prompt\": \"not kept\"}", Some(&PARENT.replace("-01", "-00"))).await;
    ask(&wire, "{\"prompt\": 3}", None).await;
    ask(&wire, "{\"prompt\": \"abc\"}", Some("nonsense")).await;
    let all = spans(&told, 2);
    assert_eq!(all.len(), 2);
    let statuses: Vec<&Value> = all.iter().map(|s| attribute(s, "http.response.status_code")).collect();
    assert_eq!(statuses, [&json!("400"), &json!("200")]);
    assert!(all.iter().all(|s| s.get("parentSpanId").is_none()) && all[0]["traceId"] != all[1]["traceId"]);
}

#[tokio::test]
async fn serving_does_not_care_how_the_collector_fares() {
    let (refusing, _told) = collector(503);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    for endpoint in [refusing, format!("http://{}/", silent.local_addr().unwrap()), format!("http://{gone}/")] {
        let wire = Wire::start(config(&endpoint, true));
        let start = Instant::now();
        let mut asked = vec![];
        for _ in 0..50 {
            let body = json!({"prompt": "a", "max_tokens": 2});
            asked.push(wire.server.complete(body));
        }
        for answer in futures_util::future::join_all(asked).await {
            assert!([200, 429].contains(&answer.status.as_u16()));
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        for _ in 0..400 {
            let text = wire.server.get("/metrics").await.text;
            let of = |outcome: &str| format!("rvllm:trace_spans_total{{outcome=\"{outcome}\"}} ");
            if !text.contains(&format!("{}0\n", of("failed"))) {
                assert!(text.contains(&format!("{}0\n", of("exported"))), "{text}");
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let metrics = wire.server.get("/metrics").await.text;
        assert!(!metrics.contains("outcome=\"failed\"} 0\n"), "{metrics}");
    }
}
