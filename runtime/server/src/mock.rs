//! An engine without a model: the whole server under load, for tests and for tuning clients.
//!
//! Invariants: what it says is a function of positions alone, so any request's answer is known beforehand.

use crate::prompt::Encoder;
use rvllm_engine::{
    ChatTemplate, Engine, EngineError, EngineParts, Forward, Limits, MemoryTable, Tokenizer, block_pool::BlockId,
    device::DeviceError, forward::Logits, row::Blocks, step::Step,
};
use serde_json::{Map, Value, json};
use std::{sync::Arc, thread, time::Duration};

/// What it says, over and over: the token at position `p` is followed by byte `(p + 1) % len`.
pub const TEXT: &str = "The quick brown fox jumps over the lazy dog. ";
/// Ends an answer; never chosen by itself.
pub const EOS: u32 = 257;
/// Bytes and three special tokens.
const VOCAB: u32 = 259;
/// How much likelier the chosen token is than any other.
const PEAK: f32 = 20.0;
/// The form of its conversations.
const TEMPLATE: &str = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}\
    {% if add_generation_prompt %}<s>assistant: {% endif %}";

/// A model that computes nothing.
pub struct MockForward {
    limits: Limits,
    step_time: Duration,
    logits: Vec<f32>,
    max: Vec<f32>,
    logsumexp: Vec<f32>,
    blocks: Blocks,
}

impl MockForward {
    /// A model whose steps take this long.
    pub fn new(limits: Limits, step_time: Duration) -> MockForward {
        let (logits, max, logsumexp, blocks) = (vec![], vec![], vec![], Blocks::default());
        MockForward { limits, step_time, logits, max, logsumexp, blocks }
    }
}

/// Bounds that load tests fit into.
pub fn limits() -> Limits {
    Limits {
        vocab_size: VOCAB,
        max_model_len: 8192,
        max_num_seqs: 256,
        max_num_batched_tokens: 8192,
        max_logits: 8192,
        query_tile: 16,
        block_size: 16,
        num_blocks: 32768,
    }
}

/// The token that follows position `position`.
pub fn next_token(position: usize) -> u32 {
    u32::from(TEXT.as_bytes()[(position + 1) % TEXT.len()])
}

impl Forward for MockForward {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn forward(&mut self, step: &Step) -> Result<Logits<'_>, DeviceError> {
        if !self.step_time.is_zero() {
            thread::sleep(self.step_time);
        }
        let (rows, vocab) = (step.logits_indices.len(), VOCAB as usize);
        self.logits.clear();
        self.logits.resize(rows * vocab, 0.0);
        self.blocks.clear();
        for (row, index) in step.logits_indices.iter().enumerate() {
            let token = next_token(step.positions[*index as usize] as usize) as usize;
            self.logits[row * vocab + token] = PEAK;
            self.blocks.push(&self.logits[row * vocab..][..vocab], Some(step.temperature[row]));
        }
        let sum = f64::from(PEAK).exp() + f64::from(VOCAB - 1);
        self.max = vec![PEAK; rows];
        self.logsumexp = vec![sum.ln() as f32; rows];
        let MockForward { logits, max, logsumexp, blocks, .. } = self;
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

/// An engine of a model, over the mock's tokenizer.
///
/// # Errors
/// The tokenizer cannot be read.
pub fn engine(forward: Box<dyn Forward>) -> Result<Engine, EngineError> {
    let Limits { num_blocks, block_size, .. } = *forward.limits();
    Ok(Engine::new(EngineParts {
        tokenizer: Some(Arc::new(Tokenizer::from_bytes(tokenizer_json(&[]).to_string().as_bytes())?)),
        eos_token_ids: vec![EOS],
        seed: None,
        memory: MemoryTable { num_blocks, block_size, ..MemoryTable::default() },
        threads: 1,
        forward,
    }))
}

/// The mock's tokenizer and chat template.
///
/// # Errors
/// The engine has no tokenizer.
pub fn encoder(engine: &Engine) -> Encoder {
    Encoder::new(engine.tokenizer().cloned(), ChatTemplate::new(Some(TEMPLATE), None).ok(), None)
}

/// A tokenizer of bytes: token `b` is byte `b`; 256 to 258 are `<s>`, `</s>`, `<sep>`; then come special tokens that are
/// the `markup` of a model's answers.
pub fn tokenizer_json(markup: &[&str]) -> Value {
    let vocab: Map<String, Value> = (0..=255u8).map(|b| (letter(b).to_string(), json!(b))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let special = ["<s>", "</s>", "<sep>"].into_iter().chain(markup.iter().copied());
    let added = |(id, content): (u32, &str)| {
        json!({"id": id, "content": content, "special": true, "normalized": false, "lstrip": false, "rstrip": false,
            "single_word": false})
    };
    let added: Vec<Value> = (256..).zip(special).map(added).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    })
}

/// The printable character that stands for a byte in byte-level tokenizers (GPT-2's).
fn letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}
