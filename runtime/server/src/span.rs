//! Spans: what OpenTelemetry keeps of a request, under vLLM's and the GenAI conventions' names, as OTLP's JSON.
//!
//! Invariants: identifiers are never zero, as W3C asks; what a client sends as its context is taken whole or not at all.
//! Sources: W3C Trace Context, level 1; OTLP 1.x (JSON protobuf encoding: identifiers in hex, 64-bit integers as text).

use axum::http::HeaderMap;
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Most characters of a trace's state that is handed on.
const MOST_STATE: usize = 512;

/// Which trace a span belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace_id: u128,
    /// The span of the caller; `None` where the trace begins here.
    pub parent: Option<u64>,
    /// What vendors say about the trace.
    pub state: Option<String>,
}

/// What a request's headers say about its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// It belongs to one that is kept.
    Sampled(Context),
    /// It belongs to one that is not kept.
    Unsampled,
    /// It belongs to none.
    None,
}

impl Caller {
    /// Reads `traceparent` and `tracestate`. What is malformed counts as absent.
    pub fn of(headers: &HeaderMap) -> Caller {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
        let Some((trace_id, parent, sampled)) = text("traceparent").and_then(parent) else { return Caller::None };
        if !sampled {
            return Caller::Unsampled;
        }
        let state = text("tracestate").filter(|s| s.len() <= MOST_STATE).map(String::from);
        Caller::Sampled(Context { trace_id, parent: Some(parent), state })
    }
}

/// `VERSION-TRACE-SPAN-FLAGS`, all in lower-case hex. Later versions may say more behind it.
fn parent(text: &str) -> Option<(u128, u64, bool)> {
    let mut parts = text.trim().split('-');
    let mut next = |len: usize| parts.next().filter(|p| p.len() == len && p.bytes().all(is_hex));
    let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    if version == "ff" || version == "00" && parts.next().is_some() {
        return None;
    }
    let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
    let span_id = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
    Some((trace_id, span_id, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// One thing that took time.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its trace and caller.
    pub context: Context,
    /// Its own identifier.
    pub id: u64,
    /// What it is.
    pub name: &'static str,
    /// Whether it answers a caller outside of this process, rather than being a part of such an answer.
    pub server: bool,
    /// When it began.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Why it failed, where it did.
    pub error: Option<String>,
}

/// A value that an attribute has.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// A count.
    Int(i64),
    /// A measure.
    Float(f64),
}

impl From<u32> for Attribute {
    fn from(value: u32) -> Attribute {
        Attribute::Int(value.into())
    }
}

impl From<u64> for Attribute {
    fn from(value: u64) -> Attribute {
        Attribute::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Attribute {
    fn from(value: f64) -> Attribute {
        Attribute::Float(value)
    }
}

impl From<&str> for Attribute {
    fn from(value: &str) -> Attribute {
        Attribute::Text(value.to_string())
    }
}

impl Attribute {
    fn to_json(&self) -> Value {
        match self {
            Attribute::Text(text) => json!({ "stringValue": text }),
            Attribute::Int(value) => json!({ "intValue": value.to_string() }),
            Attribute::Float(value) => json!({ "doubleValue": value }),
            Attribute::Texts(all) => {
                let values: Vec<Value> = all.iter().map(|text| json!({ "stringValue": text })).collect();
                json!({ "arrayValue": { "values": values } })
            }
        }
    }
}

/// One point of both of the process's clocks: spans are measured by one and told by the other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    instant: Instant,
    since_1970: Duration,
}

impl Clock {
    /// Reads both.
    pub fn now() -> Clock {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { instant: Instant::now(), since_1970 }
    }

    /// Nanoseconds since 1970.
    fn nanos(&self, at: Instant) -> u128 {
        let later = at.saturating_duration_since(self.instant);
        let earlier = self.instant.saturating_duration_since(at);
        (self.since_1970 + later).saturating_sub(earlier).as_nanos()
    }
}

/// A request to a collector with these spans.
pub fn export(resource: &[(String, String)], spans: &[Span], clock: Clock) -> Value {
    let attribute = |(key, value): &(String, String)| json!({"key": key, "value": {"stringValue": value}});
    let resource: Vec<Value> = resource.iter().map(attribute).collect();
    let spans: Vec<Value> = spans.iter().map(|span| span.to_json(clock)).collect();
    let scope = json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")});
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": scope, "spans": spans}],
    }]})
}

impl Span {
    fn to_json(&self, clock: Clock) -> Value {
        let attribute = |(key, value): &(&str, Attribute)| json!({"key": key, "value": value.to_json()});
        let mut span = json!({
            "traceId": format!("{:032x}", self.context.trace_id),
            "spanId": format!("{:016x}", self.id),
            "flags": 1,
            "name": self.name,
            "kind": if self.server { 2 } else { 1 },
            "startTimeUnixNano": clock.nanos(self.start).to_string(),
            "endTimeUnixNano": clock.nanos(self.end.max(self.start)).to_string(),
            "attributes": self.attributes.iter().map(attribute).collect::<Vec<_>>(),
        });
        if let Some(parent) = self.context.parent {
            span["parentSpanId"] = format!("{parent:016x}").into();
        }
        if let Some(state) = &self.context.state {
            span["traceState"] = state.as_str().into();
        }
        if let Some(message) = &self.error {
            span["status"] = json!({"code": 2, "message": message});
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(parent: &str, state: Option<&str>) -> Caller {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", parent.parse().unwrap());
        state.map(|s| headers.insert("tracestate", s.parse().unwrap()));
        Caller::of(&headers)
    }

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn callers_are_taken_whole_or_not_at_all() {
        let context = Context {
            trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            parent: Some(0xb7ad_6b71_6920_3331),
            state: Some("a=b".into()),
        };
        let given = |rest: &str| caller(&format!("00-{TRACE}-{rest}"), Some("a=b"));
        assert_eq!(given("b7ad6b7169203331-01"), Caller::Sampled(context));
        assert_eq!(given("b7ad6b7169203331-00"), Caller::Unsampled);
        for wrong in [
            "b7ad6b7169203331",
            "b7ad6b7169203331-1",
            "0000000000000000-01",
            "B7ad6b7169203331-01",
            "b7ad6b7169203331-01-x",
        ] {
            assert_eq!(given(wrong), Caller::None, "{wrong}");
        }
        for wrong in [
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            String::new(),
            "é".to_string(),
        ] {
            assert_eq!(caller(&wrong, None), Caller::None, "{wrong}");
        }
        assert!(matches!(caller(&format!("01-{TRACE}-b7ad6b7169203331-01-more"), None), Caller::Sampled(_)));
    }

    #[test]
    fn a_span_is_told_as_collectors_read_it() {
        let clock = Clock { instant: Instant::now(), since_1970: Duration::from_secs(1000) };
        let span = Span {
            context: Context { trace_id: 1, parent: Some(2), state: None },
            id: 3,
            name: "llm_request",
            server: true,
            start: clock.instant,
            end: clock.instant + Duration::from_nanos(5),
            attributes: vec![("a", 7u32.into()), ("b", Attribute::Texts(vec!["stop".into()])), ("c", 0.5.into())],
            error: Some("why".into()),
        };
        let told = export(&[("service.name".into(), "rvllm".into())], &[span], clock);
        let span = &told["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!((&span["traceId"], &span["spanId"]), (&json!(format!("{:032x}", 1)), &json!("0000000000000003")));
        assert_eq!((&span["parentSpanId"], &span["kind"]), (&json!("0000000000000002"), &json!(2)));
        assert_eq!(
            (&span["startTimeUnixNano"], &span["endTimeUnixNano"]),
            (&json!("1000000000000"), &json!("1000000000005"))
        );
        assert_eq!(span["attributes"][0], json!({"key": "a", "value": {"intValue": "7"}}));
        assert_eq!(span["attributes"][1]["value"]["arrayValue"]["values"][0], json!({"stringValue": "stop"}));
        assert_eq!(span["status"], json!({"code": 2, "message": "why"}));
        assert_eq!(told["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"], "rvllm");
    }
}
