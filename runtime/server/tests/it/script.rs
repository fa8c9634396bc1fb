//! A model that says what a test tells it to, so that answers of any family can be served.

use crate::client::{Answer, Server, limits};
use rvllm_artifact::parsers::Parsers;
use rvllm_engine::{
    ChatTemplate, Engine, EngineParts, Forward, Limits, MemoryTable, SamplingParams, Tokenizer, block_pool::BlockId,
    device::DeviceError, forward::Logits, row::Blocks, step::Step,
};
use rvllm_server::{App, Config, Served, mock, model::ArtifactCard, prompt::Encoder};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// How much likelier the chosen token is than any other.
const PEAK: f32 = 30.0;

/// Shows tools, calls and results.
pub(crate) const TEMPLATE: &str = "{% if tools %}[{{ tools | tojson }}]{% endif %}{% for m in messages %}<s>{{ m.role }}: \
    {{ m.content }}{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}</s>\
    {% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}";

/// What follows which position.
#[derive(Default)]
struct Script {
    prompt: usize,
    tokens: Vec<u32>,
}

struct ScriptForward {
    limits: Limits,
    script: Arc<Mutex<Script>>,
    logits: Vec<f32>,
    max: Vec<f32>,
    logsumexp: Vec<f32>,
    blocks: Blocks,
}

impl Forward for ScriptForward {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn forward(&mut self, step: &Step) -> Result<Logits<'_>, DeviceError> {
        let (rows, vocab) = (step.logits_indices.len(), self.limits.vocab_size as usize);
        self.logits = vec![0.0; rows * vocab];
        self.blocks.clear();
        let script = self.script.lock().unwrap();
        for (row, index) in step.logits_indices.iter().enumerate() {
            let next = step.positions[*index as usize] as usize + 1;
            let said = next.checked_sub(script.prompt).and_then(|at| script.tokens.get(at));
            let token = said.copied().unwrap_or(mock::EOS) as usize;
            self.logits[row * vocab + token] = PEAK;
            self.blocks.push(&self.logits[row * vocab..][..vocab], Some(step.temperature[row]));
        }
        self.max = vec![PEAK; rows];
        self.logsumexp = vec![(f64::from(PEAK).exp() + vocab as f64 - 1.0).ln() as f32; rows];
        let ScriptForward { logits, max, logsumexp, blocks, .. } = self;
        let Blocks { max: block_max, sum: block_sum } = blocks;
        Ok(Logits {
            vocab_size: vocab,
            logits,
            max,
            logsumexp,
            block_max,
            block_sum,
            draws: &[],
            ranks: &[],
            most_likely: &[],
        })
    }

    fn copy_block(&mut self, _: BlockId, _: BlockId) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A server whose model says what it is told to.
pub(crate) struct Scripted {
    pub(crate) server: Server,
    script: Arc<Mutex<Script>>,
    tokenizer: Arc<Tokenizer>,
}

impl Scripted {
    /// A model with these parsers, whose tokenizer has this markup as special tokens.
    pub(crate) fn new(parsers: Parsers, markup: &[&str]) -> Scripted {
        Scripted::with(parsers, markup, TEMPLATE, Config::default())
    }

    pub(crate) fn with(parsers: Parsers, markup: &[&str], template: &str, config: Config) -> Scripted {
        let json = mock::tokenizer_json(markup);
        let tokenizer = Arc::new(Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap());
        let vocab_size = tokenizer.vocab_size() as u32;
        let limits = Limits { vocab_size, max_model_len: 4096, num_blocks: 1024, ..limits() };
        let script = Arc::new(Mutex::new(Script::default()));
        let (logits, max, logsumexp, blocks) = (vec![], vec![], vec![], Blocks::default());
        let forward = ScriptForward { limits, script: script.clone(), logits, max, logsumexp, blocks };
        let engine = Engine::new(EngineParts {
            tokenizer: Some(tokenizer.clone()),
            eos_token_ids: vec![mock::EOS],
            seed: None,
            memory: MemoryTable::default(),
            threads: 1,
            forward: Box::new(forward),
        });
        let template = ChatTemplate::new(Some(template), None).unwrap();
        let encoder = Encoder::new(Some(tokenizer.clone()), Some(template), None);
        let defaults = SamplingParams { max_tokens: None, temperature: 0.0, ..SamplingParams::default() };
        let names = vec!["mock".to_string()];
        let served = Served::new(&engine, names, "root".into(), encoder, defaults, ArtifactCard::default());
        let app = App::start(engine, served.with_parsers(parsers), config).unwrap().0;
        Scripted { server: Server(app), script, tokenizer }
    }

    /// The answer to a chat in which the model says `text`.
    pub(crate) async fn chat(&self, request: &Value, text: &str) -> Answer {
        let mut conversation = request.clone();
        conversation.as_object_mut().unwrap().retain(|name, _| {
            ["messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"]
                .contains(&name.as_str())
        });
        if let Some(functions) = request.get("functions") {
            let tools = functions.as_array().unwrap().iter().map(|f| json!({"type": "function", "function": f}));
            conversation["tools"] = tools.collect();
        }
        let count = self.server.post("/tokenize", conversation).await.json()["count"].as_u64().unwrap();
        let tokens = self.tokenizer.encode(text, false).unwrap();
        *self.script.lock().unwrap() = Script { prompt: count as usize, tokens };
        self.server.chat(request.clone()).await
    }

    /// The same in pieces, which are put together again; and the finish reason.
    pub(crate) async fn stream(&self, request: &Value, text: &str) -> (Value, Value) {
        let mut request = request.clone();
        request["stream"] = json!(true);
        let events = self.chat(&request, text).await.events();
        join(&events, 0)
    }
}

/// The message of which `events` are the pieces, as OpenAI's clients put it together, and its finish reason.
pub(crate) fn join(events: &[Value], index: u64) -> (Value, Value) {
    let mut message = json!({"content": ""});
    let mut finish = Value::Null;
    let choices = events.iter().flat_map(|e| e["choices"].as_array().unwrap()).filter(|c| c["index"] == index);
    for choice in choices {
        assert!(finish.is_null(), "nothing comes after the end: {choice}");
        finish = choice["finish_reason"].clone();
        for (name, value) in choice["delta"].as_object().unwrap() {
            match name.as_str() {
                "tool_calls" => value.as_array().unwrap().iter().for_each(|call| add_call(&mut message, call)),
                "function_call" => add_function(&mut message["function_call"], value),
                _ => append(&mut message[name], value),
            }
        }
    }
    let bare = message["content"] == "" && message.as_object().unwrap().len() > 2;
    if bare {
        message["content"] = Value::Null;
    }
    (message, finish)
}

fn append(to: &mut Value, text: &Value) {
    *to = json!(to.as_str().unwrap_or_default().to_string() + text.as_str().unwrap());
}

fn add_function(to: &mut Value, more: &Value) {
    if let Some(name) = more.get("name") {
        assert!(to.is_null(), "a name comes once");
        *to = json!({"name": name, "arguments": ""});
    }
    append(&mut to["arguments"], &more["arguments"]);
}

fn add_call(message: &mut Value, more: &Value) {
    if !message["tool_calls"].is_array() {
        message["tool_calls"] = json!([]);
    }
    let calls = message["tool_calls"].as_array_mut().unwrap();
    let index = more["index"].as_u64().unwrap() as usize;
    if let Some(id) = more.get("id") {
        assert_eq!(index, calls.len(), "calls come in order");
        calls.push(json!({"id": id, "type": more["type"], "function": Value::Null}));
    }
    add_function(&mut calls[index]["function"], &more["function"]);
}
