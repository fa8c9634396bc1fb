//! `device-cases TARGET FILE [TEXT]`: compiles every kernel case of a GPU target whose name contains TEXT, has the tile
//! interpreter compute what is expected, and writes the file that `device-tests --cases` runs.

use anyhow::{Context, Result, ensure};
use rvllm_artifact::plan;
use rvllm_device_tests::bundle::{self, Bundle, Expected, SKIPPED};
use rvllm_ir::{
    DType, Sym,
    tile::{
        Kernel,
        memory::{TensorData, pack},
    },
};
use rvllm_tests::{
    cases::{self, Case},
    launch::Launch,
};
use std::{
    collections::{BTreeMap, HashMap},
    env,
    ops::Range,
    path::Path,
};

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [target, file, filter @ ..] = &args[..] else {
        anyhow::bail!("usage: device-cases TARGET FILE [TEXT]");
    };
    let target = rvllm_targets::find(target, &|_| false)?;
    ensure!(target.gpu.is_some(), "{} is no GPU's", target.name);
    let filter = filter.first().map_or("", String::as_str);
    let mut cases = cases::all(&target);
    cases.retain(|case| case.launch.kernel.name.contains(filter));
    let kernels: BTreeMap<&str, &Kernel> =
        cases.iter().map(|c| (c.launch.kernel.name.as_str(), &c.launch.kernel)).collect();
    let kernels: Vec<Kernel> = kernels.into_values().cloned().collect();
    let (plan, code) = rvllm_compiler::gpu_kernels(&kernels, &target)?;
    let mut bundle = Bundle::default();
    bundle.index.architecture = target.cpu.clone();
    // First, so that offsets into the code are offsets into the bundle.
    bundle.push(&code);
    let (mut known, mut pushed) = (HashMap::new(), HashMap::new());
    for case in &cases {
        let kernel = plan.iter().find(|k| k.symbol == case.launch.kernel.name).context("a kernel for each case")?;
        let name = case.group.clone().unwrap_or_else(|| case.launch.kernel.name.clone());
        // A group is one problem: what its first kernel, of the smallest tiles, computes is expected of all.
        let expected = known.entry(name).or_insert_with(|| case.launch.interpreted());
        let case = describe(case, kernel, expected, &mut bundle, &mut pushed)?;
        bundle.index.cases.push(case);
    }
    bundle.write(Path::new(file))?;
    println!("{} cases of {} kernels, {} bytes in {file}", bundle.index.cases.len(), kernels.len(), bundle.bytes.len());
    Ok(())
}

/// Tensors that are in the bundle, and where: cases of a group share most.
type Pushed = HashMap<Vec<u8>, Range<usize>>;

fn describe(
    case: &Case,
    kernel: &plan::Kernel,
    expected: &[Vec<f32>],
    bundle: &mut Bundle,
    pushed: &mut Pushed,
) -> Result<bundle::Case> {
    let Case { launch, tolerance, group } = case;
    let mut tensor = |i| {
        let bytes = launch.bytes(i);
        pushed.entry(bytes).or_insert_with_key(|bytes| bundle.push(bytes)).clone()
    };
    let tensors = (0..launch.args.len()).map(&mut tensor).collect();
    let outputs = launch.written().zip(expected).map(|(i, values)| output(launch, i, values, bundle));
    Ok(bundle::Case {
        name: format!("{} {:?}", launch.kernel.name, launch.symbols),
        kernel: kernel.clone(),
        programs: launch.programs(),
        symbols: Sym::ALL.map(|s| launch.symbols.value(s) as u32),
        tensors,
        outputs: outputs.collect::<Result<_>>()?,
        tolerance: *tolerance,
        group: group.clone(),
    })
}

/// What is expected of a tensor, element by element as memory holds them.
fn output(launch: &Launch, tensor: usize, values: &[f32], bundle: &mut Bundle) -> Result<Expected> {
    let (param, dims) = (&launch.kernel.params[tensor], &launch.args[tensor].dims);
    let in_memory = |values: Vec<f32>| pack(&TensorData::f32(dims, values), DType::F32, param.layout);
    let (placed, used) = (in_memory(values.to_vec())?, in_memory(vec![1.0; values.len()])?);
    let skipped = f32::from_bits(SKIPPED).to_le_bytes();
    let elements = placed.chunks_exact(4).zip(used.chunks_exact(4));
    let expected: Vec<u8> = elements
        .flat_map(|(value, used)| if used == [0; 4] { skipped } else { [value[0], value[1], value[2], value[3]] })
        .collect();
    let dtype = match param.ty.dtype {
        DType::F32 => plan::DType::F32,
        DType::F16 => plan::DType::F16,
        DType::Bf16 => plan::DType::Bf16,
        DType::F8e4m3 => plan::DType::F8e4m3,
        DType::I8 => plan::DType::I8,
        DType::I32 => plan::DType::I32,
        other => anyhow::bail!("{}: a result of type {other}", launch.kernel.name),
    };
    Ok(Expected { tensor, dtype, values: bundle.push(&expected) })
}
