//! The table: vLLM's flags that are not read, in vLLM's groups.

use super::{
    Fate::{self, Compiled, NoEffect, Only, Refused},
    Form, Rule, Table,
};

macro_rules! switch {
    ($name:literal, $fate:expr, $why:expr) => {
        Rule { name: $name, form: Form::Switch(concat!("no-", $name)), fate: $fate, why: $why }
    };
}

const fn value(name: &'static str, fate: Fate, why: &'static str) -> Rule {
    Rule { name, form: Form::Value, fate, why }
}

const fn values(name: &'static str, fate: Fate, why: &'static str) -> Rule {
    Rule { name, form: Form::Values, fate, why }
}

/// Of switches: on is what happens anyway, or off is.
const ON: Fate = Only(&["true"]);
const OFF: Fate = Only(&["false"]);

const ADAPTERS: &str = "LoRA adapters are not served";
const ARTIFACT: &str = "the artifact holds all of the model; models are named by path or hub id";
const BUILT_IN: &str = "what is served is built in, and no code is loaded";
const FORMS: &str = "grammars are followed in one way, by llguidance";
const KERNELS: &str = "kernels are compiled ahead, `rvllm compile` chooses them";
const MEDIA: &str = "texts only are served";
const ONE_DEVICE: &str = "a server runs on one device; run one for each behind a balancer";
const ONE_PROCESS: &str = "one process serves, with threads";
const POOLING: &str = "embeddings, scores and classes are not served";
const PREFILL: &str = "prefills are chunked within --max-num-batched-tokens, and mixed with decodes";
const PROMPTS: &str = "the log has a line a request, without prompts or answers";
const SPECULATION: &str = "there is no speculative decoding";
const TRANSFER: &str = "KV is not transferred between servers or tiers";

/// Flags of vLLM's front end.
#[derive(Clone, Debug)]
pub struct Frontend;

impl Table for Frontend {
    const RULES: &'static [Rule] = &[
        value("api-server-count", NoEffect, ONE_PROCESS),
        value(
            "chat-template-content-format",
            Only(&["auto", "string"]),
            "contents reach the template as texts, which every template reads",
        ),
        switch!("disable-frontend-multiprocessing", NoEffect, ONE_PROCESS),
        switch!("enable-log-deltas", NoEffect, PROMPTS),
        switch!("enable-log-outputs", OFF, PROMPTS),
        switch!("enable-offline-docs", NoEffect, "/docs needs nothing from elsewhere"),
        switch!("enable-per-request-metrics", OFF, "/metrics and traces tell of times"),
        switch!("enable-prompt-tokens-details", ON, "usage always has them"),
        switch!("enable-request-id-headers", ON, "X-Request-Id is always answered"),
        switch!("enable-server-load-tracking", ON, "/load always tells"),
        value("fingerprint-mode", Only(&["full"]), "the fingerprint names version and target"),
        value("fingerprint-value", Refused, "the fingerprint names version and target"),
        switch!("grpc", OFF, "HTTP only is served"),
        value("h11-max-header-count", NoEffect, "a request has at most 100 headers"),
        value(
            "h11-max-incomplete-event-size",
            NoEffect,
            "a request's head has a bound of its own, its body has --max-body-size",
        ),
        switch!("headless", OFF, ONE_PROCESS),
        switch!("log-error-stack", NoEffect, "errors say where they come from"),
        value("log-config-file", Refused, "--log-format and --uvicorn-log-level say what is logged"),
        values("lora-modules", Refused, ADAPTERS),
        value("max-log-len", NoEffect, PROMPTS),
        value("max-num-queued-reqs", Refused, "--max-queue bounds what waits"),
        value("max-num-queued-tokens", Refused, "--max-queue bounds what waits"),
        value("middleware", Refused, BUILT_IN),
        values("prompt-adapters", Refused, ADAPTERS),
        value("ssl-ciphers", Refused, "TLS 1.2 and 1.3 are spoken with the suites of rustls"),
        value("tokenizer", Compiled(&[]), ARTIFACT),
        value("tool-server", Refused, "tools are called by clients"),
        switch!("tokens-only", OFF, "prompts may be tokens, and return_token_ids answers in tokens"),
        switch!(
            "trust-request-chat-template",
            ON,
            "templates of requests run without access to anything, within bounds"
        ),
    ];
}

/// Flags of vLLM's engine.
#[derive(Clone, Debug)]
pub struct Engine;

impl Table for Engine {
    const RULES: &'static [Rule] = &[
        // The model.
        value("additional-config", Only(&["{}"]), "there is no further platform"),
        switch!("allow-deprecated-quantization", NoEffect, "the checkpoint says how it is quantised"),
        value("allowed-local-media-path", NoEffect, MEDIA),
        values("allowed-media-domains", NoEffect, MEDIA),
        value("code-revision", NoEffect, "no code of a checkpoint is run"),
        value("config-format", Compiled(&["auto", "hf"]), "config.json is read"),
        value("convert", Only(&["auto", "none"]), POOLING),
        switch!("disable-cascade-attn", NoEffect, KERNELS),
        switch!("disable-sliding-window", Compiled(&["false"]), "windows are the model's own"),
        switch!("enable-prompt-embeds", OFF, "prompts are texts or tokens"),
        switch!("enable-return-routed-experts", OFF, "experts are not reported"),
        switch!(
            "enable-sleep-mode",
            OFF,
            "a model loads in the time in which others wake up: end the server, and start it again"
        ),
        value("hf-config-path", Compiled(&[]), ARTIFACT),
        value("hf-overrides", Compiled(&["{}"]), ARTIFACT),
        value("hf-token", NoEffect, "HF_TOKEN is read where a model is downloaded"),
        value("io-processor-plugin", Refused, BUILT_IN),
        values("logits-processors", Refused, BUILT_IN),
        value("logits-processor-pattern", Refused, BUILT_IN),
        value(
            "logprobs-mode",
            Only(&["raw_logprobs"]),
            "log-probabilities are the model's, before penalties and masks",
        ),
        value("max-seq-len-to-capture", NoEffect, KERNELS),
        value("model-impl", Only(&["auto", "vllm"]), "models are compiled from this project's definitions"),
        value("override-attention-dtype", Compiled(&[]), KERNELS),
        value("override-pooler-config", Refused, POOLING),
        value("pooler-config", Refused, POOLING),
        value(
            "quantization",
            Compiled(&["awq", "awq_marlin", "compressed-tensors", "gguf", "gptq", "gptq_marlin", "none"]),
            "the checkpoint says how it is quantised; rvllm compile --quantize int8|int4|fp8 quantises",
        ),
        value("revision", Compiled(&["main"]), "name a directory, or compile the revision"),
        value("rope-scaling", Compiled(&[]), ARTIFACT),
        value("rope-theta", Compiled(&[]), ARTIFACT),
        value("runner", Only(&["auto", "generate"]), POOLING),
        switch!("skip-tokenizer-init", OFF, "the tokenizer is in the artifact"),
        value("task", Only(&["auto", "generate"]), POOLING),
        value("tokenizer-mode", Compiled(&["auto", "hf", "slow"]), "tokenizer.json is read"),
        value("tokenizer-revision", Compiled(&["main"]), ARTIFACT),
        switch!("trust-remote-code", NoEffect, "no code of a checkpoint is run"),
        // Loading.
        value("download-dir", Compiled(&[]), "HF_HOME says where checkpoints are kept"),
        value("ignore-patterns", NoEffect, "what is not read is not downloaded"),
        value(
            "load-format",
            Compiled(&["auto", "safetensors", "gguf"]),
            "weights are in the artifact; --dummy-weights makes random ones",
        ),
        value("max-parallel-loading-workers", NoEffect, "--threads load"),
        value("model-loader-extra-config", Only(&["{}"]), "weights are mapped from the artifact"),
        value("pt-load-map-location", NoEffect, "weights are mapped from the artifact"),
        value("qlora-adapter-name-or-path", Refused, ADAPTERS),
        value("safetensors-load-strategy", NoEffect, "weights are mapped from the artifact"),
        switch!("use-tqdm-on-load", NoEffect, "weights are mapped from the artifact"),
        // Attention and compilation.
        value("attention-backend", NoEffect, KERNELS),
        value("attention-config", NoEffect, KERNELS),
        value("compilation-config", NoEffect, KERNELS),
        values("cuda-graph-sizes", NoEffect, "graphs are captured for the buckets of the artifact"),
        values("cudagraph-capture-sizes", NoEffect, "graphs are captured for the buckets of the artifact"),
        value("kernel-config", NoEffect, KERNELS),
        value("max-cudagraph-capture-size", NoEffect, "graphs are captured for the buckets of the artifact"),
        value("optimization-level", NoEffect, KERNELS),
        value("performance-mode", NoEffect, KERNELS),
        // Structured output and reasoning.
        value("guided-decoding-backend", NoEffect, FORMS),
        switch!(
            "guided-decoding-disable-additional-properties",
            OFF,
            "requests say so: structured_outputs.disable_additional_properties"
        ),
        switch!(
            "guided-decoding-disable-any-whitespace",
            OFF,
            "requests say so: structured_outputs.disable_any_whitespace"
        ),
        switch!("guided-decoding-disable-fallback", NoEffect, FORMS),
        value("reasoning-config", Refused, "--reasoning-parser says how reasoning is marked"),
        value("reasoning-parser-plugin", Refused, BUILT_IN),
        value(
            "structured-outputs-config",
            Only(&[
                "{}",
                r#"{"backend":"auto"}"#,
                r#"{"backend": "auto"}"#,
                r#"{"backend":"guidance"}"#,
                r#"{"backend": "guidance"}"#,
            ]),
            FORMS,
        ),
        // Several devices.
        value("all2all-backend", Refused, ONE_DEVICE),
        value("data-parallel-address", Refused, ONE_DEVICE),
        value("data-parallel-backend", Only(&["mp"]), ONE_DEVICE),
        switch!("data-parallel-external-lb", OFF, ONE_DEVICE),
        switch!("data-parallel-hybrid-lb", OFF, ONE_DEVICE),
        value("data-parallel-rank", Only(&["0"]), ONE_DEVICE),
        value("data-parallel-rpc-port", Refused, ONE_DEVICE),
        value("data-parallel-size", Only(&["1"]), ONE_DEVICE),
        value("data-parallel-size-local", Only(&["1"]), ONE_DEVICE),
        value("data-parallel-start-rank", Only(&["0"]), ONE_DEVICE),
        value("decode-context-parallel-size", Only(&["1"]), ONE_DEVICE),
        switch!("disable-custom-all-reduce", NoEffect, ONE_DEVICE),
        value("distributed-executor-backend", Only(&["mp", "uni"]), ONE_DEVICE),
        switch!("enable-dbo", OFF, ONE_DEVICE),
        switch!("enable-eplb", OFF, ONE_DEVICE),
        switch!("enable-expert-parallel", OFF, ONE_DEVICE),
        value("eplb-config", Refused, ONE_DEVICE),
        value("expert-placement-strategy", Refused, ONE_DEVICE),
        value("master-addr", NoEffect, ONE_DEVICE),
        value("master-port", NoEffect, ONE_DEVICE),
        value("nnodes", Only(&["1"]), ONE_DEVICE),
        value("node-rank", Only(&["0"]), ONE_DEVICE),
        value("pipeline-parallel-size", Only(&["1"]), ONE_DEVICE),
        value("prefill-context-parallel-size", Only(&["1"]), ONE_DEVICE),
        switch!("ray-workers-use-nsight", OFF, ONE_DEVICE),
        value("tensor-parallel-size", Only(&["1"]), ONE_DEVICE),
        value("worker-cls", Only(&["auto"]), BUILT_IN),
        value("worker-extension-cls", Refused, BUILT_IN),
        // The KV cache.
        value("block-size", NoEffect, "the artifact says how many tokens a block has, and rvllm inspect tells"),
        switch!("calculate-kv-scales", NoEffect, "scales are found as tokens are cached"),
        value("cpu-offload-gb", Only(&["0", "0.0"]), TRANSFER),
        value("kv-cache-dtype", Compiled(&["auto"]), "rvllm compile --kv-cache-dtype chooses it"),
        switch!("kv-cache-metrics", OFF, "lives of single blocks are not sampled"),
        value("kv-cache-metrics-sample", NoEffect, "lives of single blocks are not sampled"),
        value("kv-offloading-backend", Refused, TRANSFER),
        value("kv-offloading-size", Only(&["0", "0.0"]), TRANSFER),
        switch!("kv-sharing-fast-prefill", NoEffect, "no layers share their KV"),
        value("mamba-block-size", NoEffect, "there are no state-space layers"),
        value("mamba-cache-dtype", NoEffect, "there are no state-space layers"),
        value("mamba-ssm-cache-dtype", NoEffect, "there are no state-space layers"),
        value("num-gpu-blocks-override", Refused, "--kv-cache-memory-bytes says how much memory the KV cache takes"),
        value(
            "prefix-caching-hash-algo",
            Only(&["xxhash"]),
            "prefixes are told apart by 128 bits of XXH3 and by cache_salt",
        ),
        value("swap-space", NoEffect, "what is preempted is computed again, not swapped"),
        // Media.
        switch!("disable-chunked-mm-input", NoEffect, MEDIA),
        switch!("disable-mm-preprocessor-cache", NoEffect, MEDIA),
        switch!("enable-mm-embeds", OFF, MEDIA),
        switch!("interleave-mm-strings", OFF, MEDIA),
        switch!("language-model-only", NoEffect, MEDIA),
        value("limit-mm-per-prompt", NoEffect, MEDIA),
        value("media-io-kwargs", NoEffect, MEDIA),
        value("mm-encoder-tp-mode", NoEffect, MEDIA),
        value("mm-processor-cache-gb", NoEffect, MEDIA),
        value("mm-processor-cache-type", NoEffect, MEDIA),
        value("mm-processor-kwargs", NoEffect, MEDIA),
        switch!("skip-mm-profiling", NoEffect, MEDIA),
        // Adapters.
        value("default-mm-loras", Refused, ADAPTERS),
        switch!("enable-lora", OFF, ADAPTERS),
        switch!("fully-sharded-loras", NoEffect, ADAPTERS),
        value("lora-dtype", NoEffect, ADAPTERS),
        value("max-cpu-loras", NoEffect, ADAPTERS),
        value("max-lora-rank", NoEffect, ADAPTERS),
        value("max-loras", NoEffect, ADAPTERS),
        // Scheduling.
        switch!("async-scheduling", NoEffect, "the engine's loop never waits for HTTP"),
        switch!("disable-async-output-proc", NoEffect, "texts are made beside the engine's loop"),
        switch!("disable-hybrid-kv-cache-manager", NoEffect, "all layers share one pool of blocks"),
        switch!("enable-chunked-prefill", ON, PREFILL),
        value("long-prefill-token-threshold", Only(&["0"]), PREFILL),
        value("max-long-partial-prefills", Only(&["1"]), PREFILL),
        value("max-num-partial-prefills", Only(&["1"]), PREFILL),
        switch!("multi-step-stream-outputs", NoEffect, "a step computes one token a sequence"),
        value("num-lookahead-slots", Only(&["0"]), SPECULATION),
        value("num-scheduler-steps", Only(&["1"]), "a step computes one token a sequence"),
        value("preemption-mode", Only(&["recompute"]), "what is preempted is computed again, not swapped"),
        value("scheduler-cls", Refused, BUILT_IN),
        value("scheduler-delay-factor", Only(&["0", "0.0"]), PREFILL),
        switch!("use-v2-block-manager", NoEffect, "there is one pool of blocks"),
        // Speculation and transfer.
        value("ec-transfer-config", Refused, TRANSFER),
        value("kv-events-config", Refused, TRANSFER),
        value("kv-transfer-config", Refused, TRANSFER),
        value("num-speculative-tokens", Only(&["0"]), SPECULATION),
        value("speculative-config", Refused, SPECULATION),
        value("speculative-model", Refused, SPECULATION),
        value("weight-transfer-config", Refused, TRANSFER),
        // What is told.
        switch!("aggregate-engine-logging", NoEffect, "there is one engine"),
        switch!("cudagraph-metrics", OFF, "graphs are not counted"),
        switch!("disable-log-requests", ON, PROMPTS),
        switch!("disable-log-stats", NoEffect, "/metrics has the statistics, and the log has none"),
        switch!("enable-layerwise-nvtx-tracing", OFF, "device-tests --profile tells of kernels"),
        switch!("enable-log-requests", NoEffect, PROMPTS),
        switch!("enable-logging-iteration-details", OFF, "/metrics has the steps"),
        switch!("enable-mfu-metrics", OFF, "/metrics has steps and tokens"),
        value("profiler-config", Refused, "device-tests --profile tells of kernels"),
        value("show-hidden-metrics-for-version", NoEffect, "no metric is hidden"),
    ];
}

/// Further flags of `vllm run-batch`.
#[derive(Clone, Debug)]
pub struct Batch;

impl Table for Batch {
    const RULES: &'static [Rule] = &[
        switch!("enable-force-include-usage", NoEffect, "answers of batches have their usage"),
        switch!("enable-metrics", OFF, "no metrics are served while a batch is answered"),
        value("host", NoEffect, "no metrics are served while a batch is answered"),
        value("output-tmp-dir", NoEffect, "answers are kept beside the output, and survive an interruption there"),
        value("port", NoEffect, "no metrics are served while a batch is answered"),
        value("url", NoEffect, "no metrics are served while a batch is answered"),
    ];
}

/// Flags of `vllm bench latency` and `vllm bench throughput`.
#[derive(Clone, Debug)]
pub struct Offline;

const ALONE: &str = "the engine alone is measured";

impl Table for Offline {
    const RULES: &'static [Rule] = &[
        switch!("async-engine", NoEffect, ALONE),
        value("backend", Only(&["vllm"]), ALONE),
        value("dataset", Refused, "--dataset-name and --dataset-path say what is asked"),
        switch!("disable-detokenize", NoEffect, "no text is made of the tokens"),
        switch!("disable-frontend-multiprocessing", NoEffect, ONE_PROCESS),
        value("hf-max-batch-size", Refused, ALONE),
        value("lora-path", Refused, ADAPTERS),
        value("prefix-len", Refused, "--random-prefix-len says what random prompts begin with"),
        switch!("profile", OFF, "device-tests --profile tells of kernels"),
        switch!("use-beam-search", OFF, "bench serve measures it: --extra-body '{\"use_beam_search\": true}'"),
    ];
}

/// Flags of `vllm bench serve`.
#[derive(Clone, Debug)]
pub struct Client;

const DATA_SETS: &str = "the data sets are random, sharegpt, prefix_repetition and custom";
const WHOLE_STREAMS: &str = "every answer is streamed, which is how its times are told";

impl Table for Client {
    const RULES: &'static [Rule] = &[
        value("asr-max-audio-len-sec", NoEffect, MEDIA),
        value("asr-min-audio-len-sec", NoEffect, MEDIA),
        values("bfcl-categories", Refused, DATA_SETS),
        value("blazedit-max-distance", Refused, DATA_SETS),
        value("blazedit-min-distance", Refused, DATA_SETS),
        value("chat-template-kwargs", Refused, "--extra-body has fields of requests, this one too"),
        switch!("custom-ensure-client-side-data", NoEffect, "data sets are read here"),
        switch!("enable-multimodal-chat", OFF, MEDIA),
        value("hf-name", Refused, DATA_SETS),
        value("hf-split", Refused, DATA_SETS),
        value("hf-subset", Refused, DATA_SETS),
        value("lora-assignment", Refused, ADAPTERS),
        values("lora-modules", Refused, ADAPTERS),
        switch!("reranker", OFF, POOLING),
        switch!("stream", ON, WHOLE_STREAMS),
        switch!("plot-dataset-stats", OFF, "--html draws the run"),
        switch!("plot-timeline", OFF, "--html draws the run"),
        value("probe-request-rate", Refused, "/load tells how full a server is"),
        switch!("profile", OFF, "there is no profiler to start"),
        value("random-batch-size", Only(&["1"]), POOLING),
        value("random-mm-base-items-per-request", Only(&["0"]), MEDIA),
        value("random-mm-bucket-config", NoEffect, MEDIA),
        value("random-mm-limit-mm-per-prompt", NoEffect, MEDIA),
        value("random-mm-num-mm-items-range-ratio", NoEffect, MEDIA),
        switch!("self-timed", OFF, DATA_SETS),
        switch!("skip-chat-template", NoEffect, "prompts are sent as they are"),
        switch!("skip-tokenizer-init", OFF, "prompts are made of tokens of --tokenizer"),
        value("sonnet-input-len", Refused, DATA_SETS),
        value("sonnet-output-len", Refused, DATA_SETS),
        value("sonnet-prefix-len", Refused, DATA_SETS),
        value("spec-bench-category", Refused, DATA_SETS),
        value("speed-bench-category", Refused, DATA_SETS),
        value("speed-bench-dataset-subset", Refused, DATA_SETS),
        value("timed-trace-chunk-hash-size", Refused, DATA_SETS),
        value("timed-trace-label-hash-ids", Refused, DATA_SETS),
        value("timed-trace-label-input-length", Refused, DATA_SETS),
        value("timed-trace-label-output-length", Refused, DATA_SETS),
        value("timed-trace-label-timestamp", Refused, DATA_SETS),
        value("timed-trace-sec-multiplier", Refused, DATA_SETS),
        value("timeline-itl-thresholds", NoEffect, "--html draws the run"),
        value("tokenizer-mode", Only(&["auto", "hf", "slow"]), "tokenizer.json is read"),
        switch!("trust-remote-code", NoEffect, "no code of a checkpoint is run"),
        switch!("use-beam-search", OFF, "--extra-body '{\"use_beam_search\": true}' asks for it"),
    ];
}

/// vLLM's flags that `serve` reads, by their fields.
pub(super) const READ: &[&str] = &[
    "allow_credentials",
    "allowed_headers",
    "allowed_methods",
    "allowed_origins",
    "api_key",
    "chat_template",
    "collect_detailed_traces",
    "config",
    "default_chat_template_kwargs",
    "disable_access_log_for_endpoints",
    "disable_fastapi_docs",
    "disable_uvicorn_access_log",
    "dtype",
    "enable_auto_tool_choice",
    "enable_force_include_usage",
    "enable_prefix_caching",
    "enable_ssl_refresh",
    "enable_tokenizer_info_endpoint",
    "enforce_eager",
    "exclude_tools_when_tool_choice_none",
    "generation_config",
    "gpu_memory_utilization",
    "host",
    "kv_cache_memory_bytes",
    "max_logprobs",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "model",
    "no_enable_prefix_caching",
    "otlp_traces_endpoint",
    "override_generation_config",
    "port",
    "reasoning_parser",
    "response_role",
    "return_tokens_as_token_ids",
    "root_path",
    "scheduling_policy",
    "seed",
    "served_model_name",
    "shutdown_timeout",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_keyfile",
    "stream_interval",
    "tool_call_parser",
    "uds",
    "uvicorn_log_level",
];
