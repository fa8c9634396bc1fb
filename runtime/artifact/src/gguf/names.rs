//! Names of tensors: the file's, and Hugging Face's, under which models ask for them.
//! Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#standardized-tensor-names>.

use super::metadata::Metadata;

/// Names outside layers.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Names within a layer.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Inverse frequencies' divisors, which Hugging Face computes from the config.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The name under which a model asks for a tensor; the file's own where it has no other.
pub fn of_hugging_face(name: &str) -> String {
    translated(name).unwrap_or_else(|| name.to_string())
}

fn translated(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let find = |table: &[(&str, &'static str)], stem: &str| table.iter().find(|t| t.0 == stem).map(|t| t.1);
    match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, stem)) => Some(format!("model.layers.{layer}.{}.{kind}", find(&LAYER, stem)?)),
        None => Some(format!("{}.{kind}", find(&OUTSIDE, stem)?)),
    }
}

/// Rows of a head whose halves the file interleaves, 0 where it does not: files of the `llama` architecture hold the
/// projections of q and k in the order of rotations of adjacent numbers.
pub fn interleaved(metadata: &Metadata, name: &str) -> u64 {
    let projection = |what: &str| name.starts_with("blk.") && name.contains(what);
    if metadata.architecture() != "llama" || !(projection(".attn_q.") || projection(".attn_k.")) {
        return 0;
    }
    let heads = metadata.u64("llama.attention.head_count").filter(|n| *n > 0);
    let width = metadata.u64("llama.embedding_length");
    let head = metadata.u64("llama.rope.dimension_count").or_else(|| Some(width? / heads?));
    head.filter(|d| *d >= 2 && d.is_multiple_of(2)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated_and_others_stay() {
        for (gguf, hugging_face) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.11.attn_q.bias", "model.layers.11.self_attn.q_proj.bias"),
            ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
            ("output.weight", "lm_head.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
            ("blk.0.ssm_a", "blk.0.ssm_a"),
        ] {
            assert_eq!(of_hugging_face(gguf), hugging_face);
        }
    }
}
