//! Every way to refuse a config, with the exact message: one row a change to a config that is fine.

use rvllm_models::from_config;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 131, "hidden_size": 36,
        "intermediate_size": 84, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu"
    })
}

fn change(mut config: Value, changes: Value) -> Value {
    let (Some(config_keys), Value::Object(changes)) = (config.as_object_mut(), changes) else {
        panic!("both are objects");
    };
    config_keys.extend(changes);
    config
}

fn message(config: &Value) -> String {
    from_config(&config.to_string()).map(|_| "accepted".to_string()).unwrap_or_else(|error| error.to_string())
}

fn check(rows: &[(Value, &str)]) {
    for (changes, expected) in rows {
        assert_eq!(message(&change(llama(), changes.clone())), *expected, "with {changes}");
    }
}

/// A row that changes `rope_scaling`.
fn rope(scaling: Value) -> Value {
    json!({ "rope_scaling": scaling })
}

#[test]
fn the_config_that_rows_change_is_fine() {
    assert_eq!(message(&llama()), "accepted");
}

#[test]
fn what_is_not_a_config_is_refused() {
    let error = |text: &str| from_config(text).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error("{\"architectures\""), "not valid JSON: EOF while parsing an object at line 1 column 16");
    assert_eq!(error("[1, 2]"), "expected an object, found [1,2]");
    assert!(error(&"[".repeat(1 << 20)).starts_with("not valid JSON: recursion limit exceeded"));
    assert!(error("\u{feff}{}").starts_with("not valid JSON: expected value"));
}

#[test]
fn an_unknown_architecture_lists_what_is_supported() {
    let all = "supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM";
    for (architectures, name) in [
        (json!(["GPT2LMHeadModel"]), "\"GPT2LMHeadModel\""),
        (json!([7]), "7"),
        (json!([]), "(none named)"),
        (Value::Null, "(none named)"),
    ] {
        let config = change(llama(), json!({ "architectures": architectures }));
        assert_eq!(message(&config), format!("architecture {name} is not supported; {all}"));
    }
}

#[test]
fn keys_that_are_not_understood_are_named_with_their_values() {
    let end = "; remove what does not change the computation";
    check(&[
        (json!({"logit_scale": 0.5}), &format!("LlamaForCausalLM does not understand logit_scale = 0.5{end}")),
        (
            json!({"num_experts": 8, "router": {"top_k": 2}}),
            &format!("LlamaForCausalLM does not understand num_experts = 8, router = {{\"top_k\":2}}{end}"),
        ),
        (json!({"sliding_window": 4096}), &format!("LlamaForCausalLM does not understand sliding_window = 4096{end}")),
        (
            json!({"notes": "x".repeat(100)}),
            &format!("LlamaForCausalLM does not understand notes = \"{}…{end}", "x".repeat(79)),
        ),
        (
            rope(json!({"type": "linear", "factor": 2.0, "mrope_section": [1, 2]})),
            &format!("rope_scaling of type linear does not understand rope_scaling.mrope_section = [1,2]{end}"),
        ),
    ]);
}

#[test]
fn keys_that_change_nothing_are_accepted() {
    check(&[
        (json!({"torch_dtype": "bfloat16", "transformers_version": "5.17.0", "use_cache": false}), "accepted"),
        (json!({"attention_dropout": 0.1, "initializer_range": 0.02, "_name_or_path": "x"}), "accepted"),
        (json!({"pretraining_tp": 1, "pad_token_id": -1, "temperature": 0.7}), "accepted"),
        (json!({"sliding_window": null, "logit_scale": null, "quantization_config": {"bits": 4}}), "accepted"),
        (json!({"rope_scaling": {}, "rope_parameters": null, "partial_rotary_factor": 1}), "accepted"),
    ]);
}

#[test]
fn values_that_nothing_computes_are_refused_with_what_would_do() {
    check(&[
        (json!({"model_type": "gemma"}), "model_type = \"gemma\" is not supported; supported: \"llama\""),
        (json!({"hidden_act": "gelu"}), "hidden_act = \"gelu\" is not supported; supported: \"silu\""),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5 is not supported; supported: 1.0"),
        (json!({"rope_interleaved": true}), "rope_interleaved = true is not supported; supported: false"),
        (
            json!({"dtype": "float8_e4m3fn"}),
            "dtype = \"float8_e4m3fn\" is not supported; supported: float32, float16, bfloat16, auto",
        ),
    ]);
}

#[test]
fn sizes_are_checked() {
    check(&[
        (json!({"hidden_size": null}), "hidden_size is missing"),
        (json!({"hidden_size": 0}), "hidden_size = 0 is not between 1 and 16777216"),
        (json!({"vocab_size": -5}), "vocab_size = -5 is not between 1 and 67108864"),
        (
            json!({"intermediate_size": 18446744073709551615u64}),
            "intermediate_size = 18446744073709551615 is not between 1 and 16777216",
        ),
        (
            json!({"max_position_embeddings": 2147483648u64}),
            "max_position_embeddings = 2147483648 is not between 1 and 2147483647",
        ),
        (json!({"num_hidden_layers": 1025}), "num_hidden_layers = 1025 is not between 1 and 1024"),
        (json!({"hidden_size": 64.5}), "hidden_size = 64.5 is not an integer"),
        (json!({"num_attention_heads": "6"}), "num_attention_heads = \"6\" is not an integer"),
        (json!({"num_key_value_heads": 4}), "num_attention_heads = 6 is not a multiple of num_key_value_heads = 4"),
        (
            json!({"num_attention_heads": 5, "num_key_value_heads": 5}),
            "hidden_size = 36 is not a multiple of num_attention_heads = 5",
        ),
        (json!({"head_dim": 7}), "head_dim = 7 is not a multiple of the halves that RoPE rotates = 2"),
        (json!({"num_attention_heads": 4097}), "num_attention_heads = 4097 is not between 1 and 4096"),
        (json!({"head_dim": 8192}), "head_dim = 8192 is not between 1 and 4096"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps = -1.0 is not between 0 and 1"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings = 1 is not true or false"),
        (json!({"eos_token_id": [1, 131]}), "eos_token_id = 131 is not between 0 and 130"),
        (json!({"bos_token_id": -1}), "bos_token_id = -1 is not between 0 and 130"),
    ]);
}

#[test]
fn rope_is_checked() {
    check(&[
        (json!({"rope_theta": 0.0}), "rope_theta = 0.0 is not between 1.5 and 1000000000000000"),
        (json!({"rope_scaling": "linear"}), "rope_scaling = \"linear\" is not an object"),
        (
            rope(json!({"rope_type": "longrope", "factor": 2.0})),
            "rope_scaling.rope_type = \"longrope\" is not supported; supported: default, linear, dynamic, llama3, yarn",
        ),
        (
            rope(json!({"rope_type": "linear", "type": "dynamic", "factor": 2.0})),
            "rope_scaling.type = \"dynamic\" is not supported; supported: the same as rope_type = \"linear\"",
        ),
        (rope(json!({"type": "linear"})), "rope_scaling.factor is missing"),
        (rope(json!({"type": "dynamic", "factor": 0.5})), "rope_scaling.factor = 0.5 is not between 1 and 65536"),
        (
            rope(json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0})),
            "rope_scaling.high_freq_factor = 4.0 is not supported; supported: more than low_freq_factor = 4",
        ),
        (
            rope(json!({"type": "yarn", "original_max_position_embeddings": 256})),
            "rope_scaling.factor = 0.5 is not between 1 and 65536",
        ),
        (
            json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            "rope_parameters = {\"rope_type\":\"default\"} is not supported; supported: none beside rope_scaling",
        ),
    ]);
}

#[test]
fn members_of_the_family_have_their_own_keys() {
    let member = |architecture: &str, model_type: &str, changes: Value| {
        message(&change(change(llama(), json!({"architectures": [architecture], "model_type": model_type})), changes))
    };
    assert_eq!(
        member("MistralForCausalLM", "mistral", json!({"attention_bias": true})),
        "attention_bias = true is not supported; supported: false"
    );
    assert_eq!(
        member("Qwen2ForCausalLM", "qwen2", json!({"attention_bias": false})),
        "attention_bias = false is not supported; supported: true"
    );
    assert_eq!(
        member("Qwen3ForCausalLM", "qwen3", json!({"mlp_bias": true})),
        "mlp_bias = true is not supported; supported: false"
    );
    assert_eq!(
        member("Qwen2ForCausalLM", "qwen2", json!({"num_key_value_heads": null})),
        "num_key_value_heads is missing"
    );
    assert_eq!(
        member("Qwen2ForCausalLM", "qwen2", json!({"layer_types": ["full_attention"]})),
        "layer_types = [\"full_attention\"] is not supported; supported: one for each of num_hidden_layers = 2"
    );
    assert_eq!(
        member("Qwen3ForCausalLM", "qwen3", json!({"layer_types": ["full_attention", "linear_attention"]})),
        "layer_types = \"linear_attention\" is not supported; supported: full_attention, sliding_attention"
    );
    assert_eq!(
        member("Qwen3ForCausalLM", "qwen3", json!({"layer_types": ["full_attention", "sliding_attention"]})),
        "layer_types = \"sliding_attention\" is not supported; supported: full_attention, as use_sliding_window gives \
         no window"
    );
}
