//! `test interp` of a kernel: what its whole grid stores.
//!
//! `run: T = 3, ids = 2 0 1` gives symbols and i32 tensors their values; what is not named is 0. A tensor of numbers
//! holds what its name says up to the first dot, as weights of graphs do. Below each run stands every tensor that
//! the kernel may write, `name: type`, one row a line; or the interpreter's error.

use super::{fill, number};
use anyhow::{Context, bail};
use rvllm_ir::{
    DType, Sym,
    tile::{
        Kernel, Param, interp,
        memory::{TensorData, dims},
    },
};
use std::{collections::HashMap, fmt::Write};

/// Numbers by name: one for a symbol, a list for a tensor.
type Given<'a> = HashMap<&'a str, Vec<i32>>;

pub(super) fn run(kernel: &Kernel, expected: &str) -> anyhow::Result<String> {
    let mut output = String::new();
    for directive in expected.lines().filter_map(|l| l.strip_prefix("run:")) {
        writeln!(output, "run:{directive}")?;
        let given = given(directive)?;
        let symbols = |s: Sym| given.get(s.name()).and_then(|v| v.first()).map_or(0, |n| i64::from(*n));
        let args = kernel.params.iter().map(|p| argument(p, &given, &symbols));
        let mut args = args.collect::<anyhow::Result<Vec<TensorData>>>()?;
        match interp::run(kernel, &mut args, &symbols) {
            Ok(()) => write_stored(&mut output, kernel, &args)?,
            Err(e) => writeln!(output, "error: {}", e.message)?,
        }
    }
    if output.is_empty() {
        bail!("the item has no line `; run: T = <tokens>` right after it");
    }
    Ok(output)
}

fn given(directive: &str) -> anyhow::Result<Given<'_>> {
    directive
        .split(',')
        .map(|part| {
            let (name, numbers) = part.split_once('=').with_context(|| format!("`{part}` is not `name = numbers`"))?;
            let numbers = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>();
            Ok((name.trim(), numbers.with_context(|| format!("`{part}` has something that is no number"))?))
        })
        .collect()
}

fn argument(p: &Param, given: &Given<'_>, symbols: &dyn Fn(Sym) -> i64) -> anyhow::Result<TensorData> {
    let dims = dims(&p.ty, symbols);
    let n = dims.iter().product::<usize>();
    Ok(match (p.ty.dtype, given.get(p.name.as_str())) {
        (DType::I32, Some(numbers)) if numbers.len() == n => TensorData::i32(&dims, numbers.clone()),
        (DType::I32, Some(numbers)) => bail!("`{}` of shape {dims:?} is given {} numbers", p.name, numbers.len()),
        (DType::I32, None) => TensorData::i32(&dims, vec![0; n]),
        (dtype, _) => TensorData::f32(&dims, fill(&p.name, &dims).into_iter().map(|x| dtype.round(x)).collect()),
    })
}

fn write_stored(output: &mut String, kernel: &Kernel, args: &[TensorData]) -> anyhow::Result<()> {
    let params = kernel.params.iter().zip(args);
    for (p, arg) in params.filter(|(p, _)| !p.access.is_read_only() && p.ty.dtype != DType::I32) {
        writeln!(output, "{}: {:?}{}", p.name, arg.dims, p.ty.dtype)?;
        for row in arg.numbers().chunks(arg.dims.last().copied().unwrap_or(1).max(1)) {
            let numbers: Vec<String> = row.iter().map(|x| number(*x)).collect();
            writeln!(output, "  {}", numbers.join(" "))?;
        }
    }
    Ok(())
}
