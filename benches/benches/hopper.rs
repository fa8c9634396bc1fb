//! Matrix products for Hopper, compiled here for a machine that has one: `cargo bench -p rvllm-benches --bench hopper -- DIR`
//! writes a cubin per variant and `table.json`.

use anyhow::{Context, Result};
use rvllm_ir::{DType, Sym, graph::Epilogue, tile::MemLayout};
use rvllm_kernels::{Gemm, gemm};
use rvllm_mlir::{GpuLaunch, compile};
use std::{fs, path::Path};

/// Name, rows of the weight, K, whether gated, whether it adds a residual.
type Shape = (&'static str, usize, usize, bool, bool);

const SHAPES: [Shape; 7] = [
    ("qkv", 6144, 4096, false, false),
    ("o", 4096, 4096, false, true),
    ("gate_up", 14336, 4096, true, false),
    ("down", 4096, 14336, false, true),
    ("lm_head", 128256, 4096, false, false),
    ("square", 8192, 8192, false, false),
    ("up", 28672, 4096, false, false),
];

fn spec((_, n, k, silu_mul, residual): Shape, [block_m, block_n, block_k, stages]: [usize; 4], out: DType) -> Gemm {
    Gemm {
        m: Sym::T,
        n,
        k,
        dtype: DType::Bf16,
        quantized: None,
        a: MemLayout::DENSE,
        weight: MemLayout::Blocks { k: 64 },
        out,
        result: MemLayout::DENSE,
        epilogue: Epilogue { bias: false, silu_mul, residual },
        block_m,
        block_n,
        block_k,
        stages,
    }
}

fn row(name: &str, s: &Gemm, l: &GpuLaunch) -> String {
    let maps: Vec<String> =
        l.tensor_maps.iter().map(|m| format!("{{\"tensor\": {}, \"box\": {:?}}}", m.tensor, m.block)).collect();
    format!(
        "{{\"name\": {name:?}, \"n\": {}, \"k\": {}, \"gated\": {}, \"residual\": {}, \"bias\": {}, \"out\": \"{}\", \"bm\": {}, \"bn\": {}, \
         \"bk\": {}, \"stages\": {}, \"threads\": {}, \"shared\": {}, \"max_ctas\": {}, \"registers\": {}, \"maps\": [{}]}}",
        s.n,
        s.k,
        s.epilogue.silu_mul,
        s.epilogue.residual,
        s.epilogue.bias,
        s.out,
        s.block_m,
        s.block_n,
        s.block_k,
        s.stages,
        l.threads,
        l.shared_bytes,
        l.max_ctas.unwrap_or(0),
        l.registers.unwrap_or(0),
        maps.join(", ")
    )
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let dir = Path::new(args.first().context("the directory to write to")?);
    let wanted = fs::read_to_string(args.get(1).context("a list of variants: shape block_m block_n block_k stages")?)?;
    fs::create_dir_all(dir)?;
    let target = rvllm_targets::find("sm_90a", &|_| false)?;
    let mut rows = vec![];
    for line in wanted.lines().filter(|l| !l.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers: Vec<usize> = words[1..5].iter().map(|w| w.parse()).collect::<Result<_, _>>()?;
        let numbers: [usize; 4] = numbers.try_into().ok().context("four numbers")?;
        let shape = SHAPES.iter().find(|s| s.0 == words[0]).copied();
        let custom = || -> Option<Shape> {
            let mut parts = words[0].split('x');
            let (n, k) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            Some(("x", n, k, words[5..].contains(&"gated"), words[5..].contains(&"residual")))
        };
        let shape = shape.or_else(custom).context("a shape")?;
        let out = if words.contains(&"f32") { DType::F32 } else { DType::Bf16 };
        let mut s = spec(shape, numbers, out);
        s.epilogue.bias = words.contains(&"bias");
        let name = words.join("_");
        let kernel = gemm("gemm", &s);
        let object = compile(&[kernel], &target)?;
        let part = &object.parts[0];
        let launch = part.launch.as_ref().context("a launch")?;
        println!(
            "{name}: {} threads, {} B, {:?} registers, {:?} spilled, {} maps",
            launch.threads,
            launch.shared_bytes,
            launch.registers,
            launch.spill_bytes,
            launch.tensor_maps.len()
        );
        fs::write(dir.join(format!("{name}.cubin")), &part.bytes)?;
        rows.push(row(&name, &s, launch));
    }
    fs::write(dir.join("table.json"), format!("[{}]\n", rows.join(",\n")))?;
    Ok(())
}
