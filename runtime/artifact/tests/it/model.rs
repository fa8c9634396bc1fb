//! A small model to write and open: every kind of recipe, two targets, a tied embedding.

use rvllm_artifact::{
    Artifact, Checkpoint, DummySource, Source, Writer,
    manifest::{KvCache, Manifest, Model, Target, Weights},
    parsers::{Parsers, ToolParser},
    plan::{Arg, Buffer, DType, Expr, Input, Kernel, Launch, Outputs, Plan, Sym, Variant, Weight},
    recipe::Recipe,
};
use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

pub(crate) const VOCAB: u64 = 50;
pub(crate) const HIDDEN: u64 = 24;

/// Shapes of the checkpoint's tensors.
pub(crate) fn tensors() -> BTreeMap<String, Vec<u64>> {
    let shapes = [
        ("model.embed_tokens.weight", vec![VOCAB, HIDDEN]),
        ("q.weight", vec![40, HIDDEN]),
        ("k.weight", vec![8, HIDDEN]),
        ("model.norm.weight", vec![HIDDEN]),
    ];
    shapes.map(|(name, shape)| (name.to_string(), shape)).into()
}

pub(crate) fn source(seed: u64) -> DummySource {
    DummySource::new(seed, DType::Bf16, tensors()).unwrap()
}

fn tensor(name: &str) -> Recipe {
    Recipe::Tensor(name.into())
}

fn pack(of: Recipe) -> Recipe {
    Recipe::Pack { n: 16, k: 2, of: Box::new(of) }
}

pub(crate) fn weights() -> Vec<Weight> {
    let weight =
        |name: &str, dtype, shape: &[u64], recipe| Weight { name: name.into(), dtype, shape: shape.to_vec(), recipe };
    let qk = Recipe::Concat(vec![tensor("q.weight"), tensor("k.weight")]);
    vec![
        weight("embed", DType::Bf16, &[VOCAB, HIDDEN], tensor("model.embed_tokens.weight")),
        weight("norm", DType::F32, &[HIDDEN], Recipe::Cast(DType::F32, Box::new(tensor("model.norm.weight")))),
        weight("qk", DType::Bf16, &[3, 12, 16, 2], pack(qk)),
        weight("head", DType::Bf16, &[4, 12, 16, 2], pack(tensor("model.embed_tokens.weight"))),
        weight(
            "rope",
            DType::F32,
            &[64, 2, 3],
            Recipe::RopeTable { inv_freq: vec![1.0, 0.1, 0.01], factor: 1.0, positions: 64 },
        ),
    ]
}

pub(crate) fn plan() -> Plan {
    let buffer = |name: &str, offset, bytes, live| Buffer { name: name.into(), offset, bytes, live };
    let grid = Expr::CeilDiv(Box::new(Expr::Mul(Box::new(Expr::Sym(Sym::T)), Box::new(Expr::Const(3)))), 4);
    let launch = |name: &str, args, variants| Launch { name: name.into(), args, variants };
    let variant = |at_most, kernel, grid: &Expr| Variant { at_most, kernel, grid: vec![grid.clone(), Expr::Const(2)] };
    Plan {
        max_num_batched_tokens: 32,
        max_num_seqs: 8,
        max_logits: 8,
        query_tile: 4,
        arena_bytes: 8192,
        buffers: vec![
            buffer("x", 0, 32 * HIDDEN * 2, [0, 1]),
            buffer("logits", 2048, 8 * VOCAB * 4, [1, 1]),
            buffer("max", 4096, 32, [1, 1]),
            buffer("logsumexp", 4160, 32, [1, 1]),
            buffer("block_max", 4224, 32, [1, 1]),
            buffer("block_sum", 4288, 32, [1, 1]),
            buffer("draws", 4352, 256, [1, 1]),
            buffer("ranks", 4608, 1024, [1, 1]),
        ],
        weights: weights(),
        kernels: vec![
            Kernel { symbol: "gather".into(), tensors: 3, symbols: vec![Sym::T], gpu: None },
            Kernel { symbol: "head_1".into(), tensors: 4, symbols: vec![Sym::T, Sym::L], gpu: None },
        ],
        launches: vec![
            launch(
                "embed",
                vec![Arg::Input(Input::TokenIds), Arg::Weight(0), Arg::Buffer { id: 0, offset: 0 }],
                vec![variant(Some((Sym::T, 4)), 0, &grid), variant(None, 0, &grid)],
            ),
            launch(
                "head",
                vec![
                    Arg::Buffer { id: 0, offset: 0 },
                    Arg::Weight(3),
                    Arg::KeyCache(1),
                    Arg::Buffer { id: 1, offset: 0 },
                ],
                vec![variant(None, 1, &grid)],
            ),
        ],
        outputs: Outputs {
            logits: 1,
            max: 2,
            logsumexp: 3,
            block_max: 4,
            block_sum: 5,
            draws: 6,
            ranks: 7,
            most_likely: None,
        },
        feeds: false,
    }
}

fn target(name: &str, features: &[&str]) -> Target {
    Target {
        name: name.into(),
        arch: std::env::consts::ARCH.into(),
        features: features.iter().map(|f| f.to_string()).collect(),
        plan: format!("plans/{name}.json"),
        kernels: format!("kernels/{name}.so"),
    }
}

pub(crate) fn manifest(weights: Weights) -> Manifest {
    Manifest {
        format: String::new(),
        compiler: "rvllm 0.1.0".into(),
        model: Model {
            name: "tiny".into(),
            architecture: "LlamaForCausalLM".into(),
            dtype: DType::Bf16,
            parameters: 2376,
            vocab_size: VOCAB as u32,
            hidden_size: HIDDEN as u32,
            num_hidden_layers: 2,
            max_model_len: 64,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            parsers: Some(Parsers { tool_call: Some(ToolParser::Hermes), reasoning: None }),
        },
        kv_cache: KvCache {
            block_size: 16,
            num_layers: 2,
            num_kv_heads: 1,
            head_dim: 8,
            dtype: DType::Bf16,
            k_bytes: 256,
            v_bytes: 256,
            scale_bytes: 0,
        },
        weights,
        tensors: tensors(),
        targets: vec![target("plain", &[]), target("wide", &["avx2", "fma"])],
        entries: BTreeMap::new(),
    }
}

pub(crate) const WEIGHTS: &str = "weights/model.safetensors";

pub(crate) fn embedded() -> Weights {
    Weights::Embed { files: vec![WEIGHTS.into()] }
}

/// Small entries: plans, object code of more than a page, a tokenizer.
pub(crate) fn entries(plan: &Plan) -> Vec<(String, Vec<u8>)> {
    let json = serde_json::to_vec(plan).unwrap();
    let entry = |name: &str, bytes: &[u8]| (name.to_string(), bytes.to_vec());
    vec![
        entry("plans/plain.json", &json),
        entry("plans/wide.json", &json),
        entry("kernels/plain.so", &[0x90; 5000]),
        entry("kernels/wide.so", &[0x91; 5000]),
        entry("tokenizer.json", b"{}"),
    ]
}

/// Writes the model, with `weights` as the manifest says.
pub(crate) fn write(path: &Path, manifest: &Manifest, plan: &Plan, source: &dyn Source) -> rvllm_artifact::Result<u64> {
    let mut writer = Writer::create(path, manifest, &entries(plan))?;
    for entry in manifest.weights.embedded() {
        let weights: Vec<&Weight> = plan.weights.iter().chain(&plan.weights).collect();
        writer.weights(entry, &weights, source, 2, &mut |_| ControlFlow::Continue(()))?;
    }
    writer.finish()
}

/// Bytes of a valid artifact.
pub(crate) fn artifact(weights: Weights) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.rvllm");
    write(&path, &manifest(weights), &plan(), &source(1)).unwrap();
    std::fs::read(&path).unwrap()
}

pub(crate) fn open(bytes: &[u8]) -> rvllm_artifact::Result<Artifact> {
    Artifact::from_bytes("tiny.rvllm", bytes)
}

/// A safetensors file of these tensors.
pub(crate) fn safetensors(source: &dyn Source, names: &[&str]) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView};
    let data: Vec<_> = names
        .iter()
        .map(|name| {
            let ty = source.tensor(name).unwrap();
            (ty.shape.iter().map(|d| *d as usize).collect(), source.bytes(name, 0..ty.bytes().unwrap()).unwrap())
        })
        .collect();
    let views = names.iter().zip(&data).map(|(name, (shape, bytes))| {
        let shape: &Vec<usize> = shape;
        (*name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

pub(crate) const NAMES: [&str; 4] = ["model.embed_tokens.weight", "q.weight", "k.weight", "model.norm.weight"];

/// Writes a single-file checkpoint and opens it.
pub(crate) fn checkpoint(dir: &Path, seed: u64) -> Checkpoint {
    std::fs::write(dir.join("model.safetensors"), safetensors(&source(seed), &NAMES)).unwrap();
    Checkpoint::open(dir).unwrap()
}
