//! llama.cpp as a peer: a GGUF file of a Llama shape with random weights, and what its benches measure on it.

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
/// GGUF's numbers of types.
const F32: u32 = 0;
const BF16: u32 = 30;
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

/// A tensor to write: its name and dimensions, the adjacent one first.
struct Tensor {
    name: String,
    dims: Vec<u64>,
}

impl Tensor {
    fn ty(&self) -> u32 {
        if self.dims.len() == 1 { F32 } else { BF16 }
    }

    fn bytes(&self) -> u64 {
        self.dims.iter().product::<u64>() * if self.ty() == F32 { 4 } else { 2 }
    }
}

impl Llama {
    /// The peer at `bench`, a path of `llama-bench`, with a model of `config`'s shape, which is written to `model` unless it is
    /// there.
    ///
    /// # Errors
    /// The configuration is not of a Llama, or the file cannot be written.
    pub fn new(bench: &Path, config: &Path, model: PathBuf, threads: usize) -> Result<Llama> {
        let config: Value = serde_json::from_slice(&std::fs::read(config)?)?;
        ensure!(config["model_type"] == "llama", "the peer's model is written for Llama shapes only");
        if !model.exists() {
            let partial = model.with_extension("partial");
            write(&config, &partial).with_context(|| partial.display().to_string())?;
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
    }
    all.push(tensor("output_norm.weight".into(), &[hidden]));
    Ok(all)
}

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// Everything before the tensors' data.
fn header(config: &Value, tensors: &[Tensor]) -> Result<Vec<u8>> {
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
    for (key, value) in [("general.architecture", "llama"), ("tokenizer.ggml.model", "no_vocab")] {
        string(&mut out, key);
        out.extend(STRING_VALUE.to_le_bytes());
        string(&mut out, value);
    }
    for (name, key) in numbers {
        string(&mut out, &format!("llama.{name}"));
        out.extend(U32_VALUE.to_le_bytes());
        out.extend((number(config, key)? as u32).to_le_bytes());
    }
    for (name, key) in reals {
        string(&mut out, &format!("llama.{name}"));
        out.extend(F32_VALUE.to_le_bytes());
        out.extend((config[key].as_f64().unwrap_or(1e-5) as f32).to_le_bytes());
    }
    let mut offset = 0u64;
    for t in tensors {
        string(&mut out, &t.name);
        out.extend((t.dims.len() as u32).to_le_bytes());
        out.extend(t.dims.iter().flat_map(|d| d.to_le_bytes()));
        out.extend(t.ty().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + t.bytes()).next_multiple_of(ALIGN);
    }
    out.resize(out.len().next_multiple_of(ALIGN as usize), 0);
    Ok(out)
}

fn write(config: &Value, to: &Path) -> Result<()> {
    let tensors = tensors(config)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(to)?);
    file.write_all(&header(config, &tensors)?)?;
    let mut state = 88_172_645_463_325_252u64;
    for t in &tensors {
        if t.ty() == F32 {
            t.dims.iter().try_for_each(|n| file.write_all(&1f32.to_le_bytes().repeat(*n as usize)))?;
        } else {
            for _ in 0..t.bytes() / 8 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // signs and mantissas at random, of magnitudes from 1/64 to 1/16
                file.write_all(&(state & 0x80ff_80ff_80ff_80ff | 0x3c00_3c00_3c00_3c00).to_le_bytes())?;
            }
        }
        let padding = t.bytes().next_multiple_of(ALIGN) - t.bytes();
        file.write_all(&[0; ALIGN as usize][..padding as usize])?;
    }
    Ok(file.into_inner().map_err(|e| e.into_error())?.sync_all()?)
}
