//! llama.cpp as a peer: a GGUF file of a Llama or Qwen2 shape with random weights, and what its benches measure on it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

/// Alignment of tensors in the file.
const ALIGN: u64 = 32;
/// Numbers that share a scale in GGUF's blocks.
const BLOCK: u64 = 32;
/// GGUF's number of f32.
const F32: u32 = 0;
/// The same of metadata.
const U32_VALUE: u32 = 4;
const F32_VALUE: u32 = 6;
const STRING_VALUE: u32 = 8;

/// llama.cpp's benches and a model for them.
#[derive(Clone, Debug)]
pub struct Llama {
    bench: PathBuf,
    model: PathBuf,
    threads: usize,
}

/// How matrices of the peer's model are stored, the table of embeddings too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// bf16.
    Bf16,
    /// 32 values of 8 bits and an f16 scale.
    Q8_0,
    /// 32 values of 4 bits and an f16 scale.
    Q4_0,
}

impl Format {
    /// GGUF's number of the type.
    fn ty(self) -> u32 {
        match self {
            Format::Bf16 => 30,
            Format::Q8_0 => 8,
            Format::Q4_0 => 2,
        }
    }

    /// Bytes of 32 numbers.
    fn block_bytes(self) -> u64 {
        match self {
            Format::Bf16 => 64,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
        }
    }

    /// Random numbers of small magnitude, so many blocks.
    fn blocks(self, random: &mut impl FnMut() -> u64, n: u64) -> Vec<u8> {
        let bytes = (n * self.block_bytes()) as usize;
        let mut out: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| random().to_le_bytes()).collect();
        out.truncate(bytes);
        match self {
            // signs and mantissas at random, of magnitudes from 1/64 to 1/16
            Format::Bf16 => out.as_chunks_mut().0.iter_mut().for_each(|[_, high]| *high = *high & 0x80 | 0x3c),
            // scales from 2^-12 to 2^-11, and from 2^-8 to 2^-7
            Format::Q8_0 => out.as_chunks_mut::<34>().0.iter_mut().for_each(|block| block[1] = block[1] & 0x03 | 0x0c),
            Format::Q4_0 => out.as_chunks_mut::<18>().0.iter_mut().for_each(|block| block[1] = block[1] & 0x03 | 0x1c),
        }
        out
    }
}

/// A tensor to write: its name and dimensions, the adjacent one first.
struct Tensor {
    name: String,
    dims: Vec<u64>,
}

impl Tensor {
    fn is_vector(&self) -> bool {
        self.dims.len() == 1
    }

    fn ty(&self, format: Format) -> u32 {
        if self.is_vector() { F32 } else { format.ty() }
    }

    fn numbers(&self) -> u64 {
        self.dims.iter().product()
    }

    fn bytes(&self, format: Format) -> u64 {
        if self.is_vector() { 4 * self.numbers() } else { self.numbers() / BLOCK * format.block_bytes() }
    }
}

impl Llama {
    /// The peer at `bench`, a path of `llama-bench`, with a model of `config`'s shape, which is written to `model` in this
    /// format unless it is there.
    ///
    /// # Errors
    /// The configuration is not of a Llama or Qwen2, or the file cannot be written.
    pub fn new(bench: &Path, config: &Path, format: Format, model: PathBuf, threads: usize) -> Result<Llama> {
        let config: Value = serde_json::from_slice(&std::fs::read(config)?)?;
        architecture(&config)?;
        if !model.exists() {
            let partial = model.with_extension("partial");
            write(&config, format, &partial).with_context(|| partial.display().to_string())?;
            std::fs::rename(&partial, &model)?;
        }
        Ok(Llama { bench: bench.to_path_buf(), model, threads })
    }

    /// Tokens per second of one prompt.
    ///
    /// # Errors
    /// The peer fails, or says something else.
    pub fn prefill(&self, tokens: usize) -> Result<f64> {
        let tokens = tokens.to_string();
        let args = ["-o", "json", "-r", "1", "-n", "0", "-p", &tokens];
        let output: Value = serde_json::from_slice(&self.run(&self.bench, &args)?)?;
        output[0]["avg_ts"].as_f64().context("llama-bench printed no avg_ts")
    }

    /// Tokens per second of `batch` sequences that decode `steps` tokens after a prompt; by `llama-batched-bench`, which is
    /// looked for beside the other.
    ///
    /// # Errors
    /// As [`Llama::prefill`].
    pub fn decode(&self, batch: u64, prompt: usize, steps: u32) -> Result<f64> {
        let bench = self.bench.with_file_name("llama-batched-bench");
        let [batch, prompt, steps] = [batch, prompt as u64, u64::from(steps)].map(|n| n.to_string());
        let args =
            ["--output-format", "jsonl", "-c", "16384", "-npp", &prompt, "-ntg", &steps, "-npl", &batch, "-ub", "512"];
        let output = String::from_utf8_lossy(&self.run(&bench, &args)?).into_owned();
        let line = output.lines().find(|l| l.starts_with('{')).context("llama-batched-bench printed no result")?;
        serde_json::from_str::<Value>(line)?["speed_tg"].as_f64().context("llama-batched-bench printed no speed_tg")
    }

    fn run(&self, program: &Path, args: &[&str]) -> Result<Vec<u8>> {
        let mut command = Command::new(program);
        command.arg("-m").arg(&self.model).args(["-t", &self.threads.to_string()]).args(args);
        let output = command.output().with_context(|| program.display().to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} failed: {said}", program.display());
        Ok(output.stdout)
    }
}

/// What GGUF calls the architecture.
fn architecture(config: &Value) -> Result<&str> {
    let known = config["model_type"].as_str().filter(|ty| ["llama", "qwen2"].contains(ty));
    known.context("the peer's model is written for shapes of Llama and Qwen2 only")
}

fn number(config: &Value, key: &str) -> Result<u64> {
    config[key].as_u64().with_context(|| format!("the configuration has no {key}"))
}

fn tensors(config: &Value) -> Result<Vec<Tensor>> {
    let [hidden, inner, vocab, layers, heads, kv_heads] = [
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ]
    .map(|key| number(config, key));
    let (hidden, inner, heads) = (hidden?, inner?, heads?);
    let head = config["head_dim"].as_u64().unwrap_or(hidden / heads);
    let (q, kv) = (heads * head, kv_heads? * head);
    let tensor = |name: String, dims: &[u64]| Tensor { name, dims: dims.to_vec() };
    let biases: &[(&str, u64)] = match architecture(config)? {
        "qwen2" => &[("attn_q", q), ("attn_k", kv), ("attn_v", kv)],
        _ => &[],
    };
    let mut all = vec![tensor("token_embd.weight".into(), &[hidden, vocab?])];
    for i in 0..layers? {
        let layer: [(&str, &[u64]); 9] = [
            ("attn_norm", &[hidden]),
            ("attn_q", &[hidden, q]),
            ("attn_k", &[hidden, kv]),
            ("attn_v", &[hidden, kv]),
            ("attn_output", &[q, hidden]),
            ("ffn_norm", &[hidden]),
            ("ffn_gate", &[hidden, inner]),
            ("ffn_up", &[hidden, inner]),
            ("ffn_down", &[inner, hidden]),
        ];
        all.extend(layer.map(|(name, dims)| tensor(format!("blk.{i}.{name}.weight"), dims)));
        all.extend(biases.iter().map(|(name, n)| tensor(format!("blk.{i}.{name}.bias"), &[*n])));
    }
    all.push(tensor("output_norm.weight".into(), &[hidden]));
    Ok(all)
}

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// Everything before the tensors' data.
fn header(config: &Value, format: Format, tensors: &[Tensor]) -> Result<Vec<u8>> {
    let architecture = architecture(config)?;
    let numbers = [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("vocab_size", "vocab_size"),
    ];
    let reals = [("attention.layer_norm_rms_epsilon", "rms_norm_eps"), ("rope.freq_base", "rope_theta")];
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((2 + numbers.len() as u64 + reals.len() as u64).to_le_bytes());
    for (key, value) in [("general.architecture", architecture), ("tokenizer.ggml.model", "no_vocab")] {
        string(&mut out, key);
        out.extend(STRING_VALUE.to_le_bytes());
        string(&mut out, value);
    }
    for (name, key) in numbers {
        string(&mut out, &format!("{architecture}.{name}"));
        out.extend(U32_VALUE.to_le_bytes());
        out.extend((number(config, key)? as u32).to_le_bytes());
    }
    for (name, key) in reals {
        string(&mut out, &format!("{architecture}.{name}"));
        out.extend(F32_VALUE.to_le_bytes());
        out.extend((config[key].as_f64().unwrap_or(1e-5) as f32).to_le_bytes());
    }
    let mut offset = 0u64;
    for t in tensors {
        string(&mut out, &t.name);
        out.extend((t.dims.len() as u32).to_le_bytes());
        out.extend(t.dims.iter().flat_map(|d| d.to_le_bytes()));
        out.extend(t.ty(format).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + t.bytes(format)).next_multiple_of(ALIGN);
    }
    out.resize(out.len().next_multiple_of(ALIGN as usize), 0);
    Ok(out)
}

/// Blocks that are written at a time.
const AT_ONCE: u64 = 1 << 15;

fn write(config: &Value, format: Format, to: &Path) -> Result<()> {
    let tensors = tensors(config)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(to)?);
    file.write_all(&header(config, format, &tensors)?)?;
    let mut state = 88_172_645_463_325_252u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for t in &tensors {
        if t.is_vector() {
            file.write_all(&1f32.to_le_bytes().repeat(t.numbers() as usize))?;
        } else {
            let blocks = t.numbers() / BLOCK;
            for at in (0..blocks).step_by(AT_ONCE as usize) {
                file.write_all(&format.blocks(&mut random, AT_ONCE.min(blocks - at)))?;
            }
        }
        let padding = t.bytes(format).next_multiple_of(ALIGN) - t.bytes(format);
        file.write_all(&[0; ALIGN as usize][..padding as usize])?;
    }
    Ok(file.into_inner().map_err(|e| e.into_error())?.sync_all()?)
}
