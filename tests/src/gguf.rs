//! A GGUF file of a Llama checkpoint, written from the specification: names, order of rows, tokenizer.

use anyhow::{Context, Result};
use rvllm_artifact::{Checkpoint, Source, gguf::blocks::Encoding, plan::DType};
use serde_json::Value;
use std::{fs, path::Path};

/// A value of the metadata.
enum Given {
    Text(String),
    Bool(bool),
    U32(u32),
    F32(f32),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

impl Given {
    fn bytes(&self) -> Vec<u8> {
        let list = |kind: u32, n: usize, items: Vec<u8>| {
            [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(n as u64).to_le_bytes(), &items].concat()
        };
        match self {
            Given::Bool(b) => [&7u32.to_le_bytes()[..], &[u8::from(*b)]].concat(),
            Given::U32(n) => [4u32.to_le_bytes(), n.to_le_bytes()].concat(),
            Given::F32(x) => [6u32.to_le_bytes(), x.to_le_bytes()].concat(),
            Given::Text(t) => [8u32.to_le_bytes().to_vec(), text(t)].concat(),
            Given::Texts(all) => list(8, all.len(), all.iter().flat_map(|t| text(t)).collect()),
            Given::I32s(all) => list(5, all.len(), all.iter().flat_map(|n| n.to_le_bytes()).collect()),
        }
    }
}

fn text(t: &str) -> Vec<u8> {
    [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat()
}

fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs::read(path)?).with_context(|| path.display().to_string())
}

/// Writes the checkpoint of a directory, whose weights are bf16, as one file with the matrix of each name in its `encoding`:
/// BF16, Q4_0, Q8_0, Q4_K, Q5_K or Q6_K.
///
/// # Errors
/// The directory lacks a file or a key.
pub fn write(dir: &Path, encoding: impl Fn(&str) -> Encoding, to: &Path) -> Result<()> {
    let (config, tokenizer) = (json(&dir.join("config.json"))?, json(&dir.join("tokenizer.json"))?);
    let checkpoint = Checkpoint::open(dir)?;
    let mut keys = of_config(&config)?;
    let [names, generation] = ["tokenizer_config.json", "generation_config.json"].map(|file| json(&dir.join(file)));
    keys.extend(of_tokenizer(&tokenizer, &names?, &config, &generation?)?);
    let names: Vec<&str> = checkpoint.names().collect();
    let mut header = [&b"GGUF"[..], &3u32.to_le_bytes(), &(names.len() as u64).to_le_bytes()].concat();
    header.extend((keys.len() as u64).to_le_bytes());
    keys.iter().for_each(|(key, value)| header.extend([text(key), value.bytes()].concat()));
    let mut data: Vec<u8> = vec![];
    for name in names {
        let (shape, bytes) = tensor(&checkpoint, name, &config)?;
        header.extend([text(&of_hugging_face(name)), (shape.len() as u32).to_le_bytes().to_vec()].concat());
        shape.iter().rev().for_each(|d| header.extend(d.to_le_bytes()));
        let encoding = if shape.len() == 2 { encoding(name) } else { Encoding::Bf16 };
        let (number, bytes) = encoded(encoding, bytes);
        header.extend([&number.to_le_bytes()[..], &(data.len() as u64).to_le_bytes()].concat());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    Ok(fs::write(to, [header, data].concat())?)
}

/// What llama-quantize's `Q4_K_M` makes of a matrix: more bits where they matter most.
pub fn q4_k_m(name: &str) -> Encoding {
    let first = ["layers.0.", "layers.3.", "layers.6."].iter().any(|layer| name.contains(layer));
    match () {
        () if name.contains("embed_tokens") => Encoding::Q6K,
        () if first && (name.contains("v_proj") || name.contains("down_proj")) => Encoding::Q6K,
        () => Encoding::Q4K,
    }
}

/// ggml's number of an encoding, and bf16 numbers in it: as ggml's reference quantises them, but without its search for the
/// scales of blocks of 256.
fn encoded(encoding: Encoding, bytes: Vec<u8>) -> (u32, Vec<u8>) {
    let numbers = bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect::<Vec<f32>>();
    let (blocks, supers) = (numbers.as_chunks::<32>().0, numbers.as_chunks::<256>().0);
    match encoding {
        Encoding::Q4_0 => (2, blocks.iter().flat_map(q4_0).collect()),
        Encoding::Q8_0 => (8, blocks.iter().flat_map(q8_0).collect()),
        Encoding::Q4K => (12, supers.iter().flat_map(|block| with_mins(block, false)).collect()),
        Encoding::Q5K => (13, supers.iter().flat_map(|block| with_mins(block, true)).collect()),
        Encoding::Q6K => (14, supers.iter().flat_map(q6_k).collect()),
        _ => (30, bytes),
    }
}

fn q4_0(block: &[f32; 32]) -> Vec<u8> {
    let extreme = block.iter().fold(0f32, |a, x| if x.abs() > a.abs() { *x } else { a });
    let scale = extreme / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let q = block.map(|x| (x * inverse + 8.5).clamp(0.0, 15.0) as u8);
    let pairs = (0..16).map(|i| q[i] | q[i + 16] << 4);
    half::f16::from_f32(scale).to_le_bytes().into_iter().chain(pairs).collect()
}

fn q8_0(block: &[f32; 32]) -> Vec<u8> {
    let scale = block.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let q = block.map(|x| (x * inverse).round() as i8 as u8);
    half::f16::from_f32(scale).to_le_bytes().into_iter().chain(q).collect()
}

/// A number as f16, and what that is.
fn rounded(x: f32) -> ([u8; 2], f32) {
    let x = half::f16::from_f32(x);
    (x.to_le_bytes(), x.to_f32())
}

fn quotient(x: f32, by: f32, most: f32) -> u8 {
    if by > 0.0 { (x / by).round().clamp(0.0, most) as u8 } else { 0 }
}

/// Q5_K, or Q4_K: 8 runs of 32, each from its least number, or 0, to its largest.
fn with_mins(block: &[f32; 256], fifths: bool) -> Vec<u8> {
    let most = if fifths { 31.0 } else { 15.0 };
    let runs = block.as_chunks::<32>().0;
    let mins: Vec<f32> = runs.iter().map(|run| -run.iter().fold(0f32, |a, x| a.min(*x))).collect();
    let largest = |(run, min): (&[f32; 32], &f32)| (run.iter().fold(0f32, |a, x| a.max(*x)) + min) / most;
    let scales: Vec<f32> = runs.iter().zip(&mins).map(largest).collect();
    let of = |all: &[f32]| rounded(all.iter().fold(0f32, |a, x| a.max(*x)) / 63.0);
    let ((d, of_scales), (least, of_mins)) = (of(&scales), of(&mins));
    let scales: Vec<u8> = scales.iter().map(|x| quotient(*x, of_scales, 63.0)).collect();
    let mins: Vec<u8> = mins.iter().map(|x| quotient(*x, of_mins, 63.0)).collect();
    let value = |i: usize| {
        let (scale, min) = (of_scales * f32::from(scales[i / 32]), of_mins * f32::from(mins[i / 32]));
        quotient(block[i] + min, scale, most)
    };
    let low = |j: usize| scales[j] | scales[j + 4] >> 4 << 6;
    let middle = |j: usize| mins[j] | mins[j + 4] >> 4 << 6;
    let high = |j: usize| scales[j + 4] & 15 | mins[j + 4] << 4;
    let packed = (0..4).map(low).chain((0..4).map(middle)).chain((0..4).map(high));
    let bits = (0..32 * usize::from(fifths)).map(|l| (0..8).fold(0, |bits, j| bits | (value(32 * j + l) >> 4) << j));
    let pairs = (0..128).map(|i| {
        let first = i / 32 * 64 + i % 32;
        value(first) & 15 | value(first + 32) << 4
    });
    d.into_iter().chain(least).chain(packed).chain(bits).chain(pairs).collect()
}

fn q6_k(block: &[f32; 256]) -> Vec<u8> {
    let extreme = |run: &[f32; 16]| run.iter().fold(0f32, |a, x| if x.abs() > a.abs() { *x } else { a }) / -32.0;
    let scales: Vec<f32> = block.as_chunks::<16>().0.iter().map(extreme).collect();
    let (d, scale) = rounded(scales.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0);
    let signed = |x: &f32| if scale > 0.0 { (x / scale).round().clamp(-128.0, 127.0) as i8 } else { 0 };
    let scales: Vec<i8> = scales.iter().map(signed).collect();
    let value = |i: usize| {
        let of_run = scale * f32::from(scales[i / 16]);
        if of_run == 0.0 { 32 } else { ((block[i] / of_run).round() + 32.0).clamp(0.0, 63.0) as u8 }
    };
    let low = (0..128).map(|i| {
        let first = i / 64 * 128 + i % 64;
        value(first) & 15 | value(first + 64) << 4
    });
    let high = (0..64).map(|i| {
        let first = i / 32 * 128 + i % 32;
        (0..4).fold(0, |bits, quarter| bits | value(first + 32 * quarter) >> 4 << (2 * quarter))
    });
    low.chain(high).chain(scales.iter().map(|x| *x as u8)).chain(d).collect()
}

type Keys = Vec<(String, Given)>;

fn of_config(config: &Value) -> Result<Keys> {
    let u32 = |key: &str| config[key].as_u64().map(|n| Given::U32(n as u32)).context("a size is missing");
    let f32 = |key: &str| config[key].as_f64().map(|x| Given::F32(x as f32)).context("a number is missing");
    Ok(vec![
        ("general.architecture".into(), Given::Text("llama".into())),
        ("llama.embedding_length".into(), u32("hidden_size")?),
        ("llama.feed_forward_length".into(), u32("intermediate_size")?),
        ("llama.block_count".into(), u32("num_hidden_layers")?),
        ("llama.attention.head_count".into(), u32("num_attention_heads")?),
        ("llama.attention.head_count_kv".into(), u32("num_key_value_heads")?),
        ("llama.attention.key_length".into(), u32("head_dim")?),
        ("llama.rope.dimension_count".into(), u32("head_dim")?),
        ("llama.context_length".into(), u32("max_position_embeddings")?),
        ("llama.attention.layer_norm_rms_epsilon".into(), f32("rms_norm_eps")?),
        ("llama.rope.freq_base".into(), f32("rope_theta")?),
    ])
}

fn of_tokenizer(tokenizer: &Value, names: &Value, config: &Value, generation: &Value) -> Result<Keys> {
    let vocab = tokenizer["model"]["vocab"].as_object().context("the tokenizer has no vocabulary")?;
    let added = tokenizer["added_tokens"].as_array().context("the tokenizer has no added tokens")?;
    let size = config["vocab_size"].as_u64().context("vocab_size")? as usize;
    let mut tokens: Vec<String> = (0..size).map(|i| format!("[PAD{i}]")).collect();
    // Unused where nothing else is said.
    let mut kinds = vec![5; size];
    let plain = vocab.iter().filter_map(|(t, id)| Some((t.clone(), id.as_u64()? as usize, 1)));
    let special =
        added.iter().filter_map(|t| Some((t["content"].as_str()?.to_string(), t["id"].as_u64()? as usize, 3)));
    for (token, id, kind) in plain.chain(special) {
        (tokens[id], kinds[id]) = (token, kind);
    }
    let merge = |m: &Value| match m {
        Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        other => other.as_str().unwrap_or_default().to_string(),
    };
    let merges = tokenizer["model"]["merges"].as_array().context("the tokenizer has no merges")?;
    let template = fs::read_to_string(crate::model::root().join("models/demo/chat_template.jinja")).ok();
    let template = names["chat_template"].as_str().map(str::to_string).or(template).context("no chat template")?;
    let id = |key: &str| config[key].as_u64().map(|n| Given::U32(n as u32)).context("a token is missing");
    let ends = |i: usize| {
        let id = generation["eos_token_id"][i].as_u64();
        id.map(|n| Given::U32(n as u32)).context("an end token is missing")
    };
    Ok(vec![
        ("tokenizer.ggml.model".into(), Given::Text("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Given::Text("qwen2".into())),
        ("tokenizer.ggml.tokens".into(), Given::Texts(tokens)),
        ("tokenizer.ggml.token_type".into(), Given::I32s(kinds)),
        ("tokenizer.ggml.merges".into(), Given::Texts(merges.iter().map(merge).collect())),
        ("tokenizer.ggml.bos_token_id".into(), id("bos_token_id")?),
        ("tokenizer.ggml.eos_token_id".into(), ends(0)?),
        ("tokenizer.ggml.eot_token_id".into(), ends(1)?),
        ("tokenizer.ggml.add_bos_token".into(), Given::Bool(true)),
        ("tokenizer.chat_template".into(), Given::Text(template)),
    ])
}

fn of_hugging_face(name: &str) -> String {
    let parts = [
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("model.layers.", "blk."),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name.to_string(), |name, (theirs, ours)| name.replace(theirs, ours))
}

/// A tensor's shape and bytes; rows of q and k as the format has them: numbers that are rotated together lie together.
fn tensor(checkpoint: &Checkpoint, name: &str, config: &Value) -> Result<(Vec<u64>, Vec<u8>)> {
    let ty = checkpoint.tensor(name)?;
    anyhow::ensure!(ty.dtype == DType::Bf16, "{name} is {}", ty.dtype);
    let bytes = checkpoint.bytes(name, 0..ty.bytes().context("a size")?)?.into_owned();
    if !name.contains("q_proj") && !name.contains("k_proj") {
        return Ok((ty.shape, bytes));
    }
    let half = config["head_dim"].as_u64().context("head_dim")? as usize / 2;
    let rows: Vec<&[u8]> = bytes.chunks_exact(bytes.len() / ty.shape[0] as usize).collect();
    let heads = rows.chunks_exact(2 * half);
    let order = heads.flat_map(|head| (0..half).flat_map(move |i| [head[i], head[half + i]]));
    Ok((ty.shape, order.flatten().copied().collect()))
}
