//! Pre-norm decoders with grouped-query attention and a gated MLP: Llama 1 to 3, Mistral, Qwen2, Qwen3.
//! The members differ in config fields, never in code.

use crate::{
    Architecture, ConfigError, Facts, MAX_SIZE,
    config::{Config, check_multiple},
    rope::{context_length, read_rope},
};
use rvllm_ir::{
    graph::{
        Attention,
        builder::{Step, Value, Weights},
    },
    rope::Rope,
};
use serde_json::Value as Json;

/// Layers that a config may name: a graph has a few dozen nodes for each.
const MAX_LAYERS: usize = 1024;
/// With the other sizes, keeps the bytes of all weights together below 2^63.
const MAX_VOCAB: usize = 1 << 26;
const MAX_WIDTH: usize = 1 << 24;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;

/// A decoder of this family.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    facts: Facts,
    intermediate_size: usize,
    num_attention_heads: usize,
    rms_norm_eps: f32,
    rope: Rope,
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool,
    /// An RMS norm over each head of q and k.
    qk_norm: bool,
}

impl Architecture for Decoder {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn forward<'g>(&self, w: Weights<'g>, step: Step<'g>) -> Value<'g> {
        let f = &self.facts;
        let embed = w.at("model.embed_tokens");
        let mut x = embed.gather(step.token_ids, f.vocab_size, f.hidden_size); // [T, hidden]
        for layer in w.at("model.layers").indexed(f.num_hidden_layers) {
            x = x + self.attention(&layer, x.rms_norm(layer.at("input_layernorm"), self.rms_norm_eps), step);
            x = x + self.mlp(&layer, x.rms_norm(layer.at("post_attention_layernorm"), self.rms_norm_eps));
        }
        let x = x.rows(step.logits_indices).rms_norm(w.at("model.norm"), self.rms_norm_eps);
        x.logits(if f.tie_word_embeddings { embed } else { w.at("lm_head") }, f.vocab_size) // [L, vocab]
    }

    fn ignored(&self, key: &str) -> bool {
        key.ends_with("rotary_emb.inv_freq") || (self.facts.tie_word_embeddings && key == "lm_head.weight")
    }
}

impl Decoder {
    fn attention<'g>(&self, layer: &Weights<'g>, x: Value<'g>, step: Step<'g>) -> Value<'g> {
        let (w, attention) = (layer.at("self_attn"), self.attention_of(layer.index()));
        let project = |name: &str, heads: usize| {
            x.linear(w.at(name).cols().bias(self.qkv_bias), heads * attention.head_dim).split_heads(heads)
        };
        let (mut q, mut k) = (project("q_proj", attention.heads), project("k_proj", attention.kv_heads));
        let v = project("v_proj", attention.kv_heads);
        if self.qk_norm {
            q = q.rms_norm(w.at("q_norm"), self.rms_norm_eps);
            k = k.rms_norm(w.at("k_norm"), self.rms_norm_eps);
        }
        let (q, k) = (q.rope(step.positions, &self.rope), k.rope(step.positions, &self.rope));
        let y = step.kv_cache(layer.index()).attend(q, k, v, attention);
        y.merge_heads().linear(w.at("o_proj").rows().bias(self.o_bias), self.facts.hidden_size)
    }

    fn mlp<'g>(&self, layer: &Weights<'g>, x: Value<'g>) -> Value<'g> {
        let (w, bias) = (layer.at("mlp"), self.mlp_bias);
        let gate = x.linear(w.at("gate_proj").cols().bias(bias), self.intermediate_size);
        let up = x.linear(w.at("up_proj").cols().bias(bias), self.intermediate_size);
        (gate.silu() * up).linear(w.at("down_proj").rows().bias(bias), self.facts.hidden_size)
    }

    fn attention_of(&self, layer: usize) -> Attention {
        let head_dim = self.facts.head_dim;
        Attention {
            layer,
            heads: self.num_attention_heads,
            kv_heads: self.facts.num_key_value_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: self.facts.windows[layer],
            softcap: None,
        }
    }
}

/// A member of the family: where configs of different model types differ in meaning.
#[derive(Clone, Copy, PartialEq)]
enum Member {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Decoder {
    /// Names in `architectures`.
    pub const ARCHITECTURES: &[&str] =
        &["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"];

    /// [`Decoder::read`] as a trait object.
    pub(crate) fn boxed(name: &'static str, config: &mut Config) -> Result<Box<dyn Architecture>, ConfigError> {
        Ok(Box::new(Decoder::read(name, config)?))
    }

    fn read(name: &'static str, config: &mut Config) -> Result<Decoder, ConfigError> {
        let member = Member::of(name);
        config.only("model_type", member.model_type())?;
        refuse_unsupported(config)?;
        let heads = Heads::read(member, config)?;
        let facts = read_facts(name, member, heads, config)?;
        let rope = read_rope(config, heads.head_dim, facts.max_position_embeddings)?;
        let (qkv_bias, o_bias) = member.attention_bias(config)?;
        Ok(Decoder {
            facts: Facts { context_length: context_length(&rope, facts.max_position_embeddings), ..facts },
            intermediate_size: config.size("intermediate_size", MAX_WIDTH)?,
            num_attention_heads: heads.heads,
            rms_norm_eps: config.number("rms_norm_eps", 0.0..=1.0)?.unwrap_or(1e-6) as f32,
            rope,
            qkv_bias,
            o_bias,
            mlp_bias: member.mlp_bias(config)?,
            qk_norm: member == Member::Qwen3,
        })
    }
}

impl Member {
    fn of(architecture: &str) -> Member {
        match architecture {
            "MistralForCausalLM" => Member::Mistral,
            "Qwen2ForCausalLM" => Member::Qwen2,
            "Qwen3ForCausalLM" => Member::Qwen3,
            _ => Member::Llama,
        }
    }

    fn model_type(self) -> &'static str {
        match self {
            Member::Llama => "llama",
            Member::Mistral => "mistral",
            Member::Qwen2 => "qwen2",
            Member::Qwen3 => "qwen3",
        }
    }

    /// Whether q, k and v have biases, and whether o has.
    fn attention_bias(self, config: &mut Config) -> Result<(bool, bool), ConfigError> {
        match self {
            Member::Llama | Member::Qwen3 => config.flag("attention_bias").map(|b| (b == Some(true), b == Some(true))),
            Member::Mistral => config.only("attention_bias", false).map(|()| (false, false)),
            Member::Qwen2 => config.only("attention_bias", true).map(|()| (true, false)),
        }
    }

    fn mlp_bias(self, config: &mut Config) -> Result<bool, ConfigError> {
        match self {
            Member::Llama => config.flag("mlp_bias").map(|b| b == Some(true)),
            Member::Mistral | Member::Qwen2 | Member::Qwen3 => config.only("mlp_bias", false).map(|()| false),
        }
    }

    /// The window of each layer.
    fn windows(self, config: &mut Config, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
        match self {
            Member::Llama => Ok(vec![None; layers]),
            Member::Mistral => Ok(vec![sliding_window(config)?; layers]),
            Member::Qwen2 | Member::Qwen3 => qwen_windows(config, layers),
        }
    }
}

/// Attention's sizes.
#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden_size: usize,
}

impl Heads {
    fn read(member: Member, config: &mut Config) -> Result<Heads, ConfigError> {
        let hidden_size = config.size("hidden_size", MAX_WIDTH)?;
        let heads = config.size("num_attention_heads", MAX_HEADS)?;
        let kv_heads = match member {
            // Llama's first checkpoints came before the key
            Member::Llama => config.optional_size("num_key_value_heads", MAX_HEADS)?.unwrap_or(heads),
            _ => config.size("num_key_value_heads", MAX_HEADS)?,
        };
        check_multiple("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        let head_dim = match (config.optional_size("head_dim", MAX_HEAD_DIM)?, member) {
            (Some(head_dim), _) => head_dim,
            (None, Member::Qwen3) => 128,
            (None, _) => {
                check_multiple("hidden_size", hidden_size, "num_attention_heads", heads)?;
                hidden_size / heads
            }
        };
        check_multiple("head_dim", head_dim, "the halves that RoPE rotates", 2)?;
        Ok(Heads { heads, kv_heads, head_dim, hidden_size })
    }
}

/// Reads the facts but for `context_length`, which depends on the rotary embedding.
fn read_facts(name: &'static str, member: Member, heads: Heads, config: &mut Config) -> Result<Facts, ConfigError> {
    let vocab_size = config.size("vocab_size", MAX_VOCAB)?;
    let layers = config.size("num_hidden_layers", MAX_LAYERS)?;
    let max_position_embeddings = config.size("max_position_embeddings", MAX_SIZE)?;
    Ok(Facts {
        architecture: name,
        model_type: member.model_type(),
        vocab_size,
        hidden_size: heads.hidden_size,
        num_hidden_layers: layers,
        num_key_value_heads: heads.kv_heads,
        head_dim: heads.head_dim,
        max_position_embeddings,
        context_length: max_position_embeddings,
        bos_token_id: config.token_ids("bos_token_id", vocab_size)?.first().copied(),
        eos_token_ids: config.token_ids("eos_token_id", vocab_size)?,
        tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
        dtype: config.dtype()?,
        windows: member.windows(config, layers)?,
    })
}

/// Keys of this family whose other values would compute something else.
fn refuse_unsupported(config: &mut Config) -> Result<(), ConfigError> {
    config.only("hidden_act", "silu")?;
    for key in ["rope_interleaved", "use_mrope", "is_encoder_decoder", "add_cross_attention", "use_parallel_residual"] {
        config.only(key, false)?;
    }
    for key in ["quantization_config", "compression_config"] {
        // how the checkpoint stores weights is for its reader to know
        config.take(key);
    }
    for key in ["pruned_heads", "per_layer_config"] {
        config.none(key)?;
    }
    Ok(())
}

/// `sliding_window`: null is none, and a config without the key has the default of its class in transformers.
fn sliding_window(config: &mut Config) -> Result<Option<usize>, ConfigError> {
    let unnamed = (!config.contains("sliding_window")).then_some(4096);
    Ok(config.optional_size("sliding_window", MAX_SIZE)?.or(unnamed))
}

/// `layer_types`, else a window in layers from `max_window_layers` on; none unless `use_sliding_window`.
fn qwen_windows(config: &mut Config, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    let window = sliding_window(config)?.filter(|_| used);
    let first = config.optional_integer("max_window_layers", 0..=MAX_SIZE)?.unwrap_or(28);
    match config.list("layer_types")? {
        None => Ok((0..layers).map(|i| window.filter(|_| i >= first)).collect()),
        Some(types) if types.len() != layers => {
            let expected = format!("one for each of num_hidden_layers = {layers}");
            Err(config.unsupported("layer_types", &Json::Array(types), expected))
        }
        Some(types) => types.iter().map(|layer_type| layer_window(config, layer_type, window)).collect(),
    }
}

fn layer_window(config: &Config, layer_type: &Json, window: Option<usize>) -> Result<Option<usize>, ConfigError> {
    match (layer_type.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("sliding_attention"), None) => {
            Err(config.unsupported("layer_types", layer_type, "full_attention, as use_sliding_window gives no window"))
        }
        _ => Err(config.unsupported("layer_types", layer_type, "full_attention, sliding_attention")),
    }
}
