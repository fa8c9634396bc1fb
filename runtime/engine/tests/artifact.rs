//! The whole engine on the CPU device: an artifact with real object code, its KV cache read back through block tables.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with the error")]

use rvllm_artifact::{
    Artifact, DummySource, Writer,
    gpu::{Code, CodeFormat, GpuKernel},
    manifest::{KvCache, Manifest, Model, NVPTX, Target, Weights},
    plan::{Arg, Buffer, DRAWS, DType, Expr, Input, Kernel, Launch, Outputs, Plan, RANK, Sym, Variant, Weight},
    recipe::Recipe,
};
use rvllm_engine::{
    DeviceChoice, Engine, EngineOptions, FinishReason, MemoryTable, Numa, SamplingParams, device::cuda,
};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::Path,
    process::Command,
    sync::{Arc, OnceLock},
};

const VOCAB: u64 = 300;
const MAX_LOGITS: u64 = 8;
const BLOCK_BYTES: u64 = 16;
const WEIGHTS: &str = "weights/model.safetensors";

/// The toy kernels as a shared object, compiled once.
fn object_code() -> Vec<u8> {
    static CODE: OnceLock<Vec<u8>> = OnceLock::new();
    let compile = || {
        let dir = tempfile::tempdir().unwrap();
        let (source, object) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels.c"), dir.path().join("k.so"));
        let cc =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&object).arg(source).arg("-lm").status();
        assert!(cc.unwrap().success());
        std::fs::read(object).unwrap()
    };
    CODE.get_or_init(compile).clone()
}

fn plan(symbols: [&str; 3]) -> Plan {
    let buffer = |name: &str, offset, bytes, first| Buffer { name: name.into(), offset, bytes, live: [first, 2] };
    let kernel = |i: usize, tensors, syms: &[Sym]| Kernel {
        symbol: symbols[i].into(),
        tensors,
        symbols: syms.to_vec(),
        gpu: None,
    };
    let launch = |name: &str, args, kernel, grid| {
        let variant = |at_most, grid| Variant { at_most, kernel, grid };
        let short = variant(Some((Sym::T, 3)), vec![Expr::Sym(grid)]);
        let long = variant(None, vec![Expr::Const(1), Expr::CeilDiv(Box::new(Expr::Sym(grid)), 1)]);
        Launch { name: name.into(), args, variants: vec![short, long] }
    };
    let output = |id| Arg::Buffer { id, offset: 0 };
    let head = [Input::BlockTable, Input::LogitsIndices, Input::QueryStartLoc, Input::Positions].map(Arg::Input);
    let head = [&[Arg::KeyCache(1), Arg::ValueCache(1)][..], &head, &[Arg::Weight(0), output(0)]].concat();
    let store = vec![Arg::Input(Input::TokenIds), Arg::Input(Input::SlotMapping), Arg::KeyCache(1), Arg::ValueCache(1)];
    let inputs = [Input::Temperature, Input::Uniform].map(Arg::Input);
    let stats = [output(0)].into_iter().chain(inputs).chain((1..6).map(output)).collect();
    Plan {
        max_num_batched_tokens: 16,
        max_num_seqs: 6,
        max_logits: MAX_LOGITS as u32,
        query_tile: 4,
        arena_bytes: 16384,
        buffers: vec![
            buffer("logits", 0, MAX_LOGITS * VOCAB * 4, 1),
            buffer("max", 12288, MAX_LOGITS * 4, 2),
            buffer("logsumexp", 12352, MAX_LOGITS * 4, 2),
            buffer("block_max", 12416, MAX_LOGITS * 8, 2),
            buffer("block_sum", 12544, MAX_LOGITS * 8, 2),
            buffer("draws", 12608, MAX_LOGITS * 4 * DRAWS as u64, 2),
            buffer("ranks", 12864, MAX_LOGITS * 4 * (RANK * DRAWS) as u64, 2),
        ],
        weights: vec![Weight {
            name: "bias".into(),
            dtype: DType::F32,
            shape: vec![VOCAB],
            recipe: Recipe::Tensor("bias".into()),
        }],
        kernels: vec![kernel(0, 4, &[]), kernel(1, 8, &[Sym::M]), kernel(2, 8, &[])],
        launches: vec![
            launch("kv", store, 0, Sym::T),
            launch("logits", head, 1, Sym::L),
            launch("stats", stats, 2, Sym::L),
        ],
        outputs: Outputs {
            logits: 0,
            max: 1,
            logsumexp: 2,
            block_max: 3,
            block_sum: 4,
            draws: 5,
            ranks: 6,
            most_likely: None,
        },
        feeds: false,
    }
}

fn manifest() -> Manifest {
    Manifest {
        format: String::new(),
        compiler: "rvllm 0.1.0".into(),
        model: Model {
            name: "toy".into(),
            architecture: "Toy".into(),
            dtype: DType::F32,
            parameters: VOCAB,
            vocab_size: VOCAB as u32,
            hidden_size: 1,
            num_hidden_layers: 2,
            max_model_len: 40,
            bos_token_id: None,
            eos_token_ids: vec![2],
            parsers: None,
        },
        kv_cache: KvCache {
            block_size: 4,
            num_layers: 2,
            num_kv_heads: 1,
            head_dim: 1,
            dtype: DType::F32,
            k_bytes: BLOCK_BYTES,
            v_bytes: BLOCK_BYTES,
            scale_bytes: 0,
        },
        weights: Weights::Dummy { seed: 3 },
        tensors: BTreeMap::from([("bias".to_string(), vec![VOCAB])]),
        targets: vec![Target {
            name: "here".into(),
            arch: std::env::consts::ARCH.into(),
            features: vec![],
            plan: "plans/here.json".into(),
            kernels: "kernels/here.so".into(),
        }],
        entries: BTreeMap::new(),
    }
}

fn artifact(symbols: [&str; 3]) -> Artifact {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.here.rvllm");
    let plan = serde_json::to_vec(&plan(symbols)).unwrap();
    let entries = [("plans/here.json".to_string(), plan), ("kernels/here.so".to_string(), object_code())];
    Writer::create(&path, &manifest(), &entries).unwrap().finish().unwrap();
    Artifact::open(&path).unwrap()
}

fn toy() -> Arc<Artifact> {
    static TOY: OnceLock<Arc<Artifact>> = OnceLock::new();
    TOY.get_or_init(|| Arc::new(artifact(["store", "head", "stats"]))).clone()
}

fn load(options: EngineOptions) -> Result<Engine, String> {
    Engine::load(&toy(), options).map_err(|e| e.to_string())
}

fn params(n: u32) -> SamplingParams {
    SamplingParams {
        n,
        temperature: if n == 1 { 0.0 } else { 1.2 },
        seed: Some(8),
        max_tokens: Some(20),
        ignore_eos: true,
        detokenize: false,
        logprobs: Some(3),
        ..SamplingParams::default()
    }
}

/// Each answer's tokens with the bits of their log-probabilities, by request and index.
type Answers = BTreeMap<(u64, u32), Vec<(u32, u32)>>;

fn run(engine: &mut Engine, ids: &[u64]) -> Answers {
    for id in ids {
        let prompt: Vec<u32> = (0..3 + *id as u32 * 2).map(|i| i * 7 % 300).collect();
        engine.add_request(*id, prompt, params(1 + *id as u32 % 3)).unwrap();
    }
    let mut answers = Answers::new();
    while engine.has_unfinished() {
        for output in engine.step().unwrap() {
            for s in output.sequences {
                let tokens = s.token_ids.iter().zip(&s.logprobs).map(|(t, l)| (*t, l[0].logprob.to_bits()));
                answers.entry((output.request_id, s.index)).or_default().extend(tokens);
                assert!(s.finish.is_none_or(|f| f.reason == FinishReason::Length));
            }
        }
    }
    assert!(answers.values().all(|tokens| tokens.len() == 20));
    answers
}

#[test]
fn answers_are_the_same_bits_alone_together_chunked_preempted_and_on_more_threads() {
    let ids = [0, 1, 2, 3, 4, 5, 6];
    let option = |threads, tokens, blocks| EngineOptions {
        threads: Some(threads),
        max_num_batched_tokens: tokens,
        num_blocks: blocks,
        ..EngineOptions::default()
    };
    let mut alone = Answers::new();
    for id in ids {
        alone.extend(run(&mut load(option(1, None, None)).unwrap(), &[id]));
    }
    assert_eq!(alone.len(), 1 + 2 + 3 + 1 + 2 + 3 + 1);
    for (threads, tokens, blocks) in [(1, None, None), (2, Some(5), None), (3, Some(7), Some(11)), (2, None, Some(13))]
    {
        let together = run(&mut load(option(threads, tokens, blocks)).unwrap(), &ids);
        assert_eq!(together, alone, "{threads} threads, {tokens:?} tokens, {blocks:?} blocks");
    }
}

#[test]
fn the_memory_table_states_what_was_taken() {
    let engine =
        load(EngineOptions { kv_cache_memory_bytes: Some(64 * 50), threads: Some(2), ..EngineOptions::default() });
    let engine = engine.unwrap();
    let memory = engine.memory();
    assert_eq!((memory.weights_bytes, memory.arena_bytes), (VOCAB * 4, 16384));
    assert_eq!((memory.kv_bytes_per_token, memory.num_blocks, memory.block_size), (16, 50, 4));
    assert_eq!((engine.threads(), engine.max_model_len(), engine.tokenizer().is_none()), (2, 40, true));
    assert_eq!(load(EngineOptions::default()).unwrap().memory().num_blocks, 6 * 10);
}

/// The toy with its bias between weights of some pages, which are in the artifact where `embedded`.
fn large_toy(embedded: bool) -> Artifact {
    const FILLER: u64 = 10_000;
    let (mut plan, mut manifest) = (plan(["store", "head", "stats"]), manifest());
    for name in ["before", "behind"] {
        manifest.tensors.insert(name.into(), vec![FILLER]);
        let recipe = Recipe::Tensor(name.into());
        plan.weights.push(Weight { name: name.into(), dtype: DType::F32, shape: vec![FILLER], recipe });
    }
    plan.weights.swap(0, 1);
    for arg in plan.launches.iter_mut().flat_map(|launch| &mut launch.args) {
        if let Arg::Weight(i) = arg {
            *i = 1;
        }
    }
    if embedded {
        manifest.weights = Weights::Embed { files: vec![WEIGHTS.into()] };
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.here.rvllm");
    let entries = [
        ("plans/here.json".to_string(), serde_json::to_vec(&plan).unwrap()),
        ("kernels/here.so".to_string(), object_code()),
    ];
    let mut writer = Writer::create(&path, &manifest, &entries).unwrap();
    if embedded {
        let source = DummySource::new(3, DType::F32, manifest.tensors.clone()).unwrap();
        writer
            .weights(WEIGHTS, &plan.weights.iter().collect::<Vec<_>>(), &source, 1, &mut |_| ControlFlow::Continue(()))
            .unwrap();
    }
    writer.finish().unwrap();
    Artifact::open(&path).unwrap()
}

/// Of two nodes this machine has one at least; where it lets no one choose, weights stay where they are.
#[test]
fn weights_on_several_nodes_give_the_same_answers_and_are_counted() {
    let ids = [0, 1, 2];
    for embedded in [true, false] {
        let artifact = large_toy(embedded);
        let load = |numa, threads| {
            let options = EngineOptions { numa, threads: Some(threads), ..EngineOptions::default() };
            Engine::load(&artifact, options).unwrap()
        };
        let mut off = load(Numa::Off, 2);
        let (expected, memory) = (run(&mut off, &ids), off.memory().clone());
        assert_eq!(memory.weights_resident_bytes == 0, embedded);
        for nodes in [vec![0, 1], vec![1, 0], vec![0, 1, 1]] {
            let mut placed = load(Numa::Nodes(nodes.clone()), nodes.len());
            assert_eq!(run(&mut placed, &ids), expected, "{nodes:?}");
            let counted = placed.memory().clone();
            let there = counted.weights_resident_bytes;
            assert!(there >= memory.weights_bytes || there == memory.weights_resident_bytes, "{there}");
            assert_eq!(MemoryTable { weights_resident_bytes: memory.weights_resident_bytes, ..counted }, memory);
        }
        let one = load(Numa::Nodes(vec![0, 0]), 2);
        assert_eq!(one.memory(), &memory);
    }
}

#[test]
fn options_out_of_range_name_the_range() {
    let fails = |options| load(options).map(|_| ()).unwrap_err();
    let none = EngineOptions::default;
    assert_eq!(
        fails(EngineOptions { max_num_seqs: Some(7), ..none() }),
        "max_num_seqs is 7, but must be from 1 to 6 · help: compile the artifact for more"
    );
    assert_eq!(
        fails(EngineOptions { max_model_len: Some(0), ..none() }),
        "max_model_len is 0, but must be from 1 to 40"
    );
    assert_eq!(fails(EngineOptions { threads: Some(0), ..none() }), "threads is 0, but must be from 1 to 1024");
    assert_eq!(fails(EngineOptions { threads: Some(2000), ..none() }), "threads is 2000, but must be from 1 to 1024");
    let small = fails(EngineOptions { kv_cache_memory_bytes: Some(64 * 9), ..none() });
    assert!(small.starts_with("a sequence of 40 tokens needs 640 bytes of KV cache, but there are 576"), "{small}");
    assert!(fails(EngineOptions { target: Some("there".into()), ..none() }).contains("there"));
}

/// The toy for a GPU, whose code is none, and for this CPU too where `both`.
fn gpu_artifact(both: bool) -> Artifact {
    let gpu = GpuKernel {
        code: Code { format: CodeFormat::Ptx, offset: 0, bytes: 4 },
        threads: 32,
        shared_bytes: 0,
        cluster: 1,
        ctas_per_program: 1,
        max_ctas: None,
        registers: None,
        spill_bytes: None,
        occupancy: None,
        tensor_maps: vec![],
    };
    let mut on_gpu = plan(["store", "head", "stats"]);
    on_gpu.kernels.iter_mut().for_each(|k| k.gpu = Some(gpu.clone()));
    let mut manifest = manifest();
    let here = manifest.targets.pop().unwrap();
    manifest.targets.push(Target {
        name: "sm_90a".into(),
        arch: NVPTX.into(),
        features: vec!["sm_90a".into()],
        plan: "plans/sm_90a.json".into(),
        kernels: "kernels/sm_90a.bin".into(),
    });
    let json = |plan: &Plan| serde_json::to_vec(plan).unwrap();
    let mut entries =
        vec![("plans/sm_90a.json".to_string(), json(&on_gpu)), ("kernels/sm_90a.bin".to_string(), b"none".to_vec())];
    if both {
        entries.push((here.plan.clone(), json(&plan(["store", "head", "stats"]))));
        entries.push((here.kernels.clone(), object_code()));
        manifest.targets.push(here);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.rvllm");
    Writer::create(&path, &manifest, &entries).unwrap().finish().unwrap();
    Artifact::open(&path).unwrap()
}

#[test]
fn without_a_gpu_its_code_is_refused_and_that_of_this_cpu_runs() {
    if cuda::probe(0, "this test").is_ok() {
        return;
    }
    let refused = |artifact: &Artifact, options| Engine::load(artifact, options).map(|_| ()).unwrap_err().to_string();
    let device = |device| EngineOptions { device, ..EngineOptions::default() };
    let named = EngineOptions { target: Some("sm_90a".into()), ..EngineOptions::default() };
    for options in [EngineOptions::default(), device(DeviceChoice::Cuda(1)), named] {
        let message = refused(&gpu_artifact(false), options);
        assert!(message.contains("GPU") || message.contains("driver"), "{message}");
        assert!(message.contains(" · help: "), "{message}");
    }
    let message = refused(&gpu_artifact(false), device(DeviceChoice::Cpu));
    assert!(message.contains("compiled for sm_90a") && message.contains("this machine is"), "{message}");
    let mut engine = Engine::load(&gpu_artifact(true), EngineOptions::default()).unwrap();
    assert!(engine.memory().device.is_none());
    assert_eq!(run(&mut engine, &[1]), run(&mut load(EngineOptions::default()).unwrap(), &[1]));
    assert!(refused(&toy(), device(DeviceChoice::Cuda(0))).starts_with("device is cuda, but must be cpu or auto"));
}

#[test]
fn text_needs_a_tokenizer() {
    let mut engine = load(EngineOptions::default()).unwrap();
    let message = engine.add_request(0, vec![1], SamplingParams::default()).unwrap_err().to_string();
    assert!(message.starts_with("detokenize needs a tokenizer"), "{message}");
}

#[test]
fn object_code_without_a_kernel_names_it() {
    let broken = artifact(["store", "absent", "stats"]);
    let message = Engine::load(&broken, EngineOptions::default()).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "the object code has no kernel absent · help: compile the artifact again");
}
