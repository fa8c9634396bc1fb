//! tokenizer.json of GGUF metadata: byte-level BPE with its merges, or SentencePiece's BPE with its scores.
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer>.

use super::object;
use rvllm_artifact::gguf::{Gguf, metadata::Value as Given};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Kinds of tokens, as the file numbers them.
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

/// Words as Llama 3 splits them; `{digits}` is how many digits stay together.
const WORDS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{digits}| \
    ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// Where a vocabulary's blanks are written with this letter.
const BLANK: &str = "▁";

/// The tokenizer, or why it cannot be made.
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Value, String> {
    let tokens = texts(gguf, "tokens")?;
    let kinds = integers(gguf, "token_type").unwrap_or_default();
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, t)| (t.to_string(), json!(id))).collect();
    let parts = match gguf.metadata.text("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(gguf, vocab)?,
        Some("llama") => sentence_piece(gguf, &tokens, &kinds, vocab)?,
        other => return Err(no_tokenizer(&format!("tokenizer.ggml.model is `{}`", other.unwrap_or("missing")))),
    };
    let added: Vec<Value> = tokens.iter().zip(0..).zip(&kinds).filter_map(|((t, id), k)| added(t, id, *k)).collect();
    let mut all = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added});
    if let Value::Object(map) = &mut all {
        map.extend(parts);
        map.insert("post_processor".into(), post_processor(gguf, &tokens));
    }
    Ok(all)
}

/// tokenizer_config.json: named tokens and the chat template.
pub(super) fn config(gguf: &Gguf) -> Value {
    let tokens = texts(gguf, "tokens").unwrap_or_default();
    let token = |key: &str| id(gguf, key).and_then(|id| tokens.get(id).copied());
    json!({
        "bos_token": token("bos_token_id"), "eos_token": token("eos_token_id"), "unk_token": token("unknown_token_id"),
        "pad_token": token("padding_token_id"), "add_bos_token": gguf.metadata.flag("tokenizer.ggml.add_bos_token"),
        "chat_template": gguf.metadata.text("tokenizer.chat_template"),
    })
}

fn no_tokenizer(problem: &str) -> String {
    format!("{problem}, of which no tokenizer can be made · help: put the model's tokenizer.json beside the file")
}

fn id(gguf: &Gguf, key: &str) -> Option<usize> {
    gguf.metadata.u64(&format!("tokenizer.ggml.{key}")).and_then(|id| usize::try_from(id).ok())
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>, String> {
    let key = format!("tokenizer.ggml.{key}");
    let text = |value: &'a Given| match value {
        Given::Text(text) => Some(text.as_str()),
        _ => None,
    };
    let all = gguf.metadata.array(&key).map(|values| values.iter().map(text).collect::<Option<Vec<_>>>());
    all.flatten().ok_or_else(|| no_tokenizer(&format!("{key} is no list of texts or missing")))
}

fn integers(gguf: &Gguf, key: &str) -> Option<Vec<i128>> {
    let integer = |value: &Given| match value {
        Given::Integer(n) => Some(*n),
        _ => None,
    };
    gguf.metadata.array(&format!("tokenizer.ggml.{key}"))?.iter().map(integer).collect()
}

fn added(text: &str, id: usize, kind: i128) -> Option<Value> {
    matches!(kind, UNKNOWN | CONTROL | USER_DEFINED).then(|| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": kind != USER_DEFINED})
    })
}

/// Byte-level BPE: what the file calls `gpt2`, with the splitting that it names.
fn byte_level(gguf: &Gguf, vocab: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let pre = gguf.metadata.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let (digits, normalizer, ignore_merges) = match pre {
        "llama3" | "llama-v3" | "llama-bpe" => (Some("{1,3}"), Value::Null, true),
        "qwen2" | "deepseek-r1-qwen" => (Some(""), json!({"type": "NFC"}), false),
        "gpt-2" | "gpt2" => (None, Value::Null, false),
        other => return Err(no_tokenizer(&format!("tokenizer.ggml.pre is `{other}`"))),
    };
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let pre_tokenizer = match digits {
        None => byte_level(true),
        Some(digits) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS.replace("{digits}", digits)}, "behavior": "Isolated",
                "invert": false},
            byte_level(false),
        ]}),
    };
    let merges: Vec<Value> = texts(gguf, "merges")?.into_iter().map(Value::from).collect();
    Ok(object(json!({
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocab, "merges": merges},
    })))
}

/// SentencePiece's BPE: what the file calls `llama`. Pieces have scores; merges are made of them as transformers does.
fn sentence_piece(
    gguf: &Gguf,
    tokens: &[&str],
    kinds: &[i128],
    vocab: Map<String, Value>,
) -> Result<Map<String, Value>, String> {
    let scores = gguf.metadata.array("tokenizer.ggml.scores").unwrap_or_default();
    if scores.len() != tokens.len() {
        return Err(no_tokenizer(&format!("tokenizer.ggml.scores has {} of {} scores", scores.len(), tokens.len())));
    }
    let score = |value: &Given| match value {
        Given::Number(x) => *x,
        Given::Integer(n) => *n as f64,
        _ => f64::NEG_INFINITY,
    };
    let scores: Vec<f64> = scores.iter().map(score).collect();
    let prefix = gguf.metadata.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
    let normalizers = match prefix {
        true => vec![json!({"type": "Prepend", "prepend": BLANK}), replace],
        false => vec![replace],
    };
    let unknown = kinds.iter().position(|k| *k == UNKNOWN).and_then(|id| tokens.get(id));
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    decoders.extend(prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})));
    Ok(object(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges(tokens, &scores)},
    })))
}

/// Every way to make a piece of two others: pieces of a higher score first, then by their parts' ids.
fn merges(tokens: &[&str], scores: &[f64]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (*t, id)).collect();
    let mut all = vec![];
    for (piece, score) in tokens.iter().zip(scores) {
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut known: Vec<_> = splits.filter_map(|(l, r)| Some((*ids.get(l)?, *ids.get(r)?, l, r))).collect();
        known.sort_unstable_by_key(|(left, right, ..)| (*left, *right));
        all.extend(known.into_iter().map(|(_, _, l, r)| (*score, l, r)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().map(|(_, l, r)| json!(format!("{l} {r}"))).collect()
}

/// Puts the beginning and the end where the file says that texts have them.
fn post_processor(gguf: &Gguf, tokens: &[&str]) -> Value {
    let spm = gguf.metadata.text("tokenizer.ggml.model") == Some("llama");
    let wanted = |key: &str, default: bool| gguf.metadata.flag(&format!("tokenizer.ggml.{key}")).unwrap_or(default);
    let llama3 = matches!(gguf.metadata.text("tokenizer.ggml.pre"), Some("llama3" | "llama-v3" | "llama-bpe"));
    let begin = id(gguf, "bos_token_id").filter(|_| wanted("add_bos_token", spm || llama3));
    let end = id(gguf, "eos_token_id").filter(|_| wanted("add_eos_token", false));
    let named: Vec<(usize, &str)> =
        [begin, end].into_iter().flatten().filter_map(|i| Some((i, *tokens.get(i)?))).collect();
    if named.is_empty() {
        return Value::Null;
    }
    let special = |id: Option<usize>, kind: u32| {
        let text = id.and_then(|id| tokens.get(id))?;
        Some(json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let around = |name: &str, kind: u32| {
        let text = Some(json!({"Sequence": {"id": name, "type_id": kind}}));
        [special(begin, kind), text, special(end, kind)].into_iter().flatten().collect::<Vec<Value>>()
    };
    let table: Map<String, Value> =
        named.iter().map(|(id, t)| (t.to_string(), json!({"id": t, "ids": [id], "tokens": [t]}))).collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": table})
}
