//! config.json of GGUF metadata.
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm>.

use super::object;
use rvllm_artifact::{
    Checkpoint, Source,
    gguf::{Gguf, metadata::Value as Given, names::ROPE_FACTORS},
};
use serde_json::{Map, Value, json};

/// Architectures, and Hugging Face's names for them.
const ARCHITECTURES: [(&str, &str); 3] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];

/// Keys that the config takes over, each with its name there.
const SIZES: [(&str, &str); 5] = [
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("context_length", "max_position_embeddings"),
];

/// Keys that are read elsewhere here.
const READ: [&str; 9] = [
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
];

/// Keys that change nothing that is computed.
const INERT: [&str; 4] = ["vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "pooling_type"];

/// Parameters of `llama3` rope scaling that models were published with: factor, original length.
const LLAMA3: [(f64, f64); 2] = [(8.0, 8192.0), (32.0, 8192.0)];

/// The config, or what is wrong with the metadata.
pub(super) fn config(gguf: &Gguf, checkpoint: &Checkpoint) -> Result<Value, String> {
    let name = gguf.metadata.architecture();
    let known = ARCHITECTURES.iter().find(|a| a.0 == name).map(|a| a.1);
    let architecture = known.ok_or_else(|| {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|a| a.0).collect();
        format!("general.architecture is `{name}`, but the supported ones are {}", names.join(", "))
    })?;
    check_keys(gguf)?;
    let own = |key: &str| gguf.metadata.own(key);
    let size = |key: &str| gguf.metadata.u64(&own(key)).ok_or_else(|| format!("{} is no integer or missing", own(key)));
    let mut config = Map::new();
    config.insert("architectures".into(), json!([architecture]));
    for (key, name) in SIZES {
        config.insert(name.into(), json!(size(key)?));
    }
    let heads = size("attention.head_count")?.max(1);
    let head_dim = head_dim(gguf, size("embedding_length")? / heads)?;
    let epsilon = own("attention.layer_norm_rms_epsilon");
    let epsilon = gguf.metadata.number(&epsilon).ok_or_else(|| format!("{epsilon} is missing"))?;
    config.extend(object(json!({
        "num_key_value_heads": gguf.metadata.u64(&own("attention.head_count_kv")).unwrap_or(heads),
        "head_dim": head_dim,
        "rms_norm_eps": shortest(epsilon),
        "rope_theta": gguf.metadata.number(&own("rope.freq_base")).map_or(10_000.0, shortest),
        "vocab_size": vocab_size(checkpoint)?,
        "tie_word_embeddings": checkpoint.tensor("lm_head.weight").is_err(),
        "hidden_act": "silu",
        "bos_token_id": gguf.metadata.u64("tokenizer.ggml.bos_token_id"),
        "eos_token_id": super::ends(gguf),
    })));
    if architecture == "LlamaForCausalLM" {
        config
            .insert("attention_bias".into(), json!(checkpoint.tensor("model.layers.0.self_attn.q_proj.bias").is_ok()));
    }
    if let Some(scaling) = rope_scaling(gguf, checkpoint, head_dim)? {
        config.insert("rope_scaling".into(), scaling);
    }
    Ok(Value::Object(config))
}

/// generation_config.json: which tokens end an answer.
pub(super) fn generation(gguf: &Gguf) -> Value {
    let sampling = ["temperature", "top_p", "top_k", "min_p"].into_iter();
    let numbers = sampling.filter_map(|name| {
        let number = gguf.metadata.number(&format!("general.sampling.{name}"))?;
        Some((name.to_string(), json!(shortest(number))))
    });
    let mut config: Map<String, Value> = numbers.collect();
    config.insert("eos_token_id".into(), json!(super::ends(gguf)));
    Value::Object(config)
}

/// Refuses keys of the architecture that may change what is computed.
fn check_keys(gguf: &Gguf) -> Result<(), String> {
    let prefix = gguf.metadata.own("");
    let known = |key: &str| SIZES.iter().any(|s| s.0 == key) || READ.contains(&key) || INERT.contains(&key);
    let unknown: Vec<&str> = gguf
        .metadata
        .keys()
        .filter(|key| key.strip_prefix(&prefix).is_some_and(|k| !known(k)))
        .filter(|key| !says_nothing(gguf.metadata.get(key)))
        .collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(format!("keys that are not understood: {}", unknown.join(", "))),
    }
}

fn says_nothing(value: Option<&Given>) -> bool {
    match value {
        Some(Given::Integer(n)) => *n == 0,
        Some(Given::Number(x)) => *x == 0.0,
        Some(Given::Bool(b)) => !b,
        Some(Given::Text(t)) => t.is_empty(),
        Some(Given::Array(a)) => a.is_empty(),
        None => true,
    }
}

fn head_dim(gguf: &Gguf, width_by_heads: u64) -> Result<u64, String> {
    let of = |key: &str| gguf.metadata.u64(&gguf.metadata.own(key));
    let key = of("attention.key_length").or(of("rope.dimension_count")).unwrap_or(width_by_heads);
    for other in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = of(other).filter(|n| *n != key) {
            return Err(format!("{} is {found}, but heads have {key}", gguf.metadata.own(other)));
        }
    }
    Ok(key)
}

fn vocab_size(checkpoint: &Checkpoint) -> Result<u64, String> {
    let embedding = checkpoint.tensor("model.embed_tokens.weight").map_err(|e| e.to_string())?;
    embedding.shape.first().copied().ok_or_else(|| "token_embd.weight is a scalar".to_string())
}

fn rope_scaling(gguf: &Gguf, checkpoint: &Checkpoint, head_dim: u64) -> Result<Option<Value>, String> {
    let own = |key: &str| gguf.metadata.own(key);
    if let Ok(ty) = checkpoint.tensor(ROPE_FACTORS) {
        let bytes = checkpoint.bytes(ROPE_FACTORS, 0..ty.bytes().unwrap_or(0)).map_err(|e| e.to_string())?;
        let factors: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let theta = gguf.metadata.number(&own("rope.freq_base")).unwrap_or(10_000.0);
        return llama3(&factors, theta, head_dim).map(Some);
    }
    let kind = gguf.metadata.text(&own("rope.scaling.type")).unwrap_or("none");
    let factor = gguf.metadata.number(&own("rope.scaling.factor"));
    let original = gguf.metadata.u64(&own("rope.scaling.original_context_length"));
    match (kind, factor) {
        ("none", _) => Ok(None),
        ("linear", Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": shortest(factor)}))),
        ("yarn", Some(factor)) => Ok(Some(json!({
            "rope_type": "yarn", "factor": shortest(factor), "original_max_position_embeddings": original,
        }))),
        (other, _) => Err(format!("{} is `{other}`, which is not understood", own("rope.scaling.type"))),
    }
}

/// The parameters whose divisors of inverse frequencies these are: the file holds the divisors alone.
fn llama3(factors: &[f32], theta: f64, head_dim: u64) -> Result<Value, String> {
    let made = |(factor, original): &&(f64, f64)| {
        let divisors = (0..head_dim / 2).map(|i| divisor(i, theta, head_dim, *factor, *original));
        factors.len() as u64 == head_dim / 2
            && divisors.zip(factors).all(|(want, got)| (want - f64::from(*got)).abs() <= want * 1e-3)
    };
    let (factor, original) = LLAMA3
        .iter()
        .find(made)
        .ok_or_else(|| format!("{ROPE_FACTORS} holds {} divisors that no known llama3 scaling makes", factors.len()))?;
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": *original as u64,
    }))
}

/// What Llama 3.1 divides the `i`-th inverse frequency by.
fn divisor(i: u64, theta: f64, head_dim: u64, factor: f64, original: f64) -> f64 {
    let (low, high) = (1.0, 4.0);
    let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
    if wavelength < original / high {
        return 1.0;
    }
    if wavelength > original / low {
        return factor;
    }
    let smooth = (original / wavelength - low) / (high - low);
    1.0 / ((1.0 - smooth) / factor + smooth)
}

/// The number that an f32 was written from: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f64) -> f64 {
    let single = x as f32;
    if f64::from(single) == x { single.to_string().parse().unwrap_or(x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_is_told_from_its_divisors() {
        for (factor, original) in LLAMA3 {
            let factors: Vec<f32> = (0..32).map(|i| divisor(i, 5e5, 64, factor, original) as f32).collect();
            assert_eq!(llama3(&factors, 5e5, 64).unwrap()["factor"], factor);
            assert!(llama3(&factors, 1e4, 64).is_err() && llama3(&factors[1..], 5e5, 64).is_err());
        }
    }

    #[test]
    fn numbers_are_written_as_they_were_meant() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(500_000.0), 500_000.0);
        assert_eq!(shortest(0.1), 0.1);
    }
}
