//! `gemm`: all schedule rows over shapes with edges.

use super::{Case, activations, panel, sum_tolerance, tolerance};
use crate::launch::{Launch, Symbols};
use rvllm_ir::{
    DType, Sym,
    graph::Epilogue,
    tile::{Kernel, MemLayout, Param},
};
use rvllm_kernels::{Gemm, Quantized, gemm};
use rvllm_targets::{GemmRow, Target};

/// Columns, k, and what follows the product.
pub type Shape = (usize, usize, Epilogue);

const PLAIN: Epilogue = Epilogue { bias: false, silu_mul: false, residual: false };
const BIAS: Epilogue = Epilogue { bias: true, ..PLAIN };
const RESIDUAL: Epilogue = Epilogue { residual: true, ..PLAIN };
const GATED: Epilogue = Epilogue { silu_mul: true, ..PLAIN };
const ALL: Epilogue = Epilogue { bias: true, silu_mul: true, residual: true };

/// Shapes with edges of every kind.
pub const SHAPES: [Shape; 9] = [
    (96, 128, PLAIN),
    (70, 50, PLAIN),
    (40, 33, BIAS),
    (64, 1, RESIDUAL),
    (7, 70, ALL),
    (64, 96, GATED),
    (32, 31, PLAIN),
    (300, 352, BIAS),
    (160, 288, ALL),
];

/// Shapes of products whose sums have halves on a GPU: K of an even number of lines, columns of whole and half tiles.
const DEEP: [Shape; 2] = [(200, 8448, RESIDUAL), (64, 8320, PLAIN)];
/// Numbers of tokens for them: of every tile, and more than one.
const DEEP_ROWS: [usize; 4] = [1, 33, 130, 270];

/// Numbers of tokens.
pub const ROWS: [usize; 6] = [1, 2, 7, 13, 33, 75];

fn rows<'t>(target: &'t Target, dtype: DType, (n, k, epilogue): &Shape) -> Vec<&'t GemmRow> {
    target.gemm_rows(dtype.name(), epilogue.silu_mul, *n, *k)
}

/// The kernel of a schedule row.
pub fn kernel(target: &Target, name: &str, dtype: DType, (n, k, epilogue): Shape, row: &GemmRow) -> Kernel {
    // a GPU's copy engine takes rows that are whole units of 16 bytes
    let row_len = if target.gpu.is_some() { k.next_multiple_of(8) + 8 } else { k + 3 };
    let a = match activations(target, dtype, k) {
        MemLayout::Strided { .. } => MemLayout::Strided { row: Some(row_len) },
        panels => panels,
    };
    let (block_m, block_n, block_k, stages) = (row.block_m, row.block_n, row.block_k, row.stages);
    let s = Gemm {
        m: Sym::T,
        n,
        k,
        dtype,
        quantized: None,
        a,
        weight: panel(target, dtype),
        out: dtype,
        result: activations(target, dtype, n),
        epilogue,
        block_m,
        block_n,
        block_k,
        stages,
    };
    gemm(name, &s)
}

/// The kernels of every schedule row, shape by shape.
pub fn variants(target: &Target, dtype: DType) -> Vec<Vec<Kernel>> {
    let variants = |(i, shape): (usize, &Shape)| {
        let rows = rows(target, dtype, shape);
        let named = |(j, row): (usize, &&GemmRow)| {
            kernel(target, &format!("gemm_{}_{i}_{j}", dtype.name()), dtype, *shape, row)
        };
        rows.iter().enumerate().map(named).collect()
    };
    SHAPES.iter().enumerate().map(variants).collect()
}

fn deep_cases(target: &Target) -> Vec<Case> {
    let mut cases = vec![];
    for (i, shape) in DEEP.iter().enumerate() {
        let rows = rows(target, DType::Bf16, shape);
        let named =
            |(j, row): (usize, &&GemmRow)| kernel(target, &format!("gemm_bf16_deep_{i}_{j}"), DType::Bf16, *shape, row);
        let kernels: Vec<Kernel> = rows.iter().enumerate().map(named).collect();
        cases.extend(DEEP_ROWS.iter().flat_map(|t| same_bits(&kernels, *t, DType::Bf16)));
    }
    cases
}

/// A launch of each kernel, which must all write the same bits.
fn same_bits(kernels: &[Kernel], t: usize, dtype: DType) -> Vec<Case> {
    let first = launch(&kernels[0], t);
    let case = |kernel: &Kernel| Case {
        launch: first.with(kernel),
        tolerance: sum_tolerance(dtype, first.args[0].dims[1]),
        group: Some(format!("{} T={t}", kernels[0].name)),
    };
    kernels.iter().map(case).collect()
}

/// Shapes of products whose k divides into groups of [`GROUP`].
pub const GROUPED: [Shape; 4] = [(96, 128, PLAIN), (70, 32, BIAS), (40, 96, GATED), (33, 160, ALL)];
/// Columns that share a scale.
pub const GROUP: usize = 32;

/// Shapes of products of e4m3 values, whose rows and results' rows are whole units of 16 bytes: for every kind of schedule row.
pub const E4M3: [Shape; 9] = [
    (96, 128, PLAIN),
    (72, 48, BIAS),
    (64, 16, RESIDUAL),
    (8, 80, ALL),
    (64, 96, GATED),
    (136, 400, GATED),
    (256, 528, RESIDUAL),
    (4232, 48, PLAIN),
    (8456, 48, BIAS),
];

/// The kernels of every schedule row for weights of values of `dtype`, shape by shape.
pub fn quantized(target: &Target, dtype: DType) -> Vec<Vec<Kernel>> {
    let (group, shapes) = match dtype {
        DType::I8 => (None, &SHAPES[..]),
        DType::F8e4m3 => (None, &E4M3[..]),
        _ => (Some(GROUP), &GROUPED[..]),
    };
    let variants = |(i, shape): (usize, &Shape)| {
        let named = |(j, row): (usize, &&GemmRow)| {
            let how = Quantized {
                weight: dtype,
                group,
                scales: scales(target),
                scale: DType::F16,
                zeros: false,
                weight_only: false,
            };
            gemm(&format!("gemm_{}_{i}_{j}", dtype.name()), &quantized_spec(target, how, *shape, row))
        };
        rows(target, dtype, shape).iter().enumerate().map(named).collect()
    };
    shapes.iter().enumerate().map(variants).collect()
}

/// Shapes of products with weights of 4 bits alone: K of whole and half lines, columns of whole and half tiles, tails of both;
/// sums with halves on a GPU, of an odd number of lines.
const PACKED: [Shape; 7] = [
    (96, 128, PLAIN),
    (70, 96, BIAS),
    (33, 160, GATED),
    (256, 768, RESIDUAL),
    (136, 416, GATED),
    (8456, 64, PLAIN),
    (200, 4224, RESIDUAL),
];
/// How such weights come: columns that share a scale, the scale's element type, whether there are zeros.
const PACKED_GROUPS: [(usize, DType, bool); 4] =
    [(32, DType::F16, false), (32, DType::F16, true), (64, DType::Bf16, false), (128, DType::F16, true)];

/// The kernels of every schedule row for weights of 4 bits alone, problem by problem.
pub fn packed(target: &Target) -> Vec<Vec<Kernel>> {
    let mut all = vec![];
    for (group, scale, zeros) in PACKED_GROUPS {
        for (i, shape) in PACKED.iter().enumerate().filter(|(_, (_, k, _))| k.is_multiple_of(group)) {
            let scales = MemLayout::Fragments { k: (64 / group).max(1) };
            let how = Quantized { weight: DType::U4, group: Some(group), scales, scale, zeros, weight_only: true };
            let name = |j| format!("gemm_u4g{group}{}_{i}_{j}", if zeros { "z" } else { "" });
            let named = |(j, row): (usize, &&GemmRow)| gemm(&name(j), &quantized_spec(target, how, *shape, row));
            all.push(rows(target, DType::U4, shape).iter().enumerate().map(named).collect());
        }
    }
    all
}

/// The launch of `t` tokens with values in all of their range, zeros between them, and scales that keep results small.
pub fn packed_launch(kernel: &Kernel, t: usize) -> Launch {
    let launch = launch(kernel, t);
    let set = |launch: Launch, name: &str, of: &dyn Fn(f32, DType) -> f32| match kernel
        .params
        .iter()
        .position(|p| p.name == name)
    {
        None => launch,
        Some(i) => {
            let values = launch.args[i].numbers().iter().map(|x| of(*x, kernel.params[i].ty.dtype)).collect();
            launch.set(name, values)
        }
    };
    let any = |x: f32, _| (x * 7.5 + 7.5).round();
    let launch = set(set(launch, "weight", &any), "weight_zero", &|x, dtype| dtype.round(x * 7.5 + 7.5));
    set(launch, "weight_scale", &|x, dtype| dtype.round(x / 16.0))
}

/// Shapes of products of e4m3 values with a scale for each 128 columns of a row of the weight: columns that fill tiles and pieces
/// and that do not, an odd number of lines, and columns for every kind of schedule row.
const FLOAT_GROUPED: [Shape; 6] =
    [(96, 128, PLAIN), (72, 384, BIAS), (136, 640, GATED), (576, 1024, RESIDUAL), (4232, 256, PLAIN), (8456, 128, ALL)];
/// Columns that share such a scale.
const FLOAT_GROUP: usize = 128;

/// The kernels of every schedule row for e4m3 values with scales of groups, problem by problem.
pub fn float_groups(target: &Target) -> Vec<Vec<Kernel>> {
    let mut all = vec![];
    for (scale, shapes) in [(DType::F32, &FLOAT_GROUPED[..]), (DType::Bf16, &FLOAT_GROUPED[..3])] {
        for (i, shape) in shapes.iter().enumerate() {
            let how = Quantized {
                weight: DType::F8e4m3,
                group: Some(FLOAT_GROUP),
                scales: MemLayout::Fragments { k: 1 },
                scale,
                zeros: false,
                weight_only: false,
            };
            let name = |j| format!("gemm_f8e4m3g{FLOAT_GROUP}_{scale}_{i}_{j}");
            let named = |(j, row): (usize, &&GemmRow)| gemm(&name(j), &quantized_spec(target, how, *shape, row));
            all.push(rows(target, DType::F8e4m3, shape).iter().enumerate().map(named).collect());
        }
    }
    all
}

/// How checkpoints store weights beside the ways in which they are quantised here: values, columns that share a scale, the
/// scale's element type, whether there are zeros.
const STORED: [(DType, usize, DType, bool); 5] = [
    (DType::U8, 32, DType::F16, false),
    (DType::U8, 16, DType::F16, false),
    (DType::U4, 128, DType::Bf16, false),
    (DType::U4, 64, DType::F16, true),
    (DType::U8, 128, DType::F32, true),
];
/// Shapes of such products.
const STORED_SHAPES: [Shape; 2] = [(70, 128, BIAS), (33, 256, ALL)];

/// The kernels of the first and the last schedule row for weights as checkpoints store them.
pub fn stored(target: &Target) -> Vec<Vec<Kernel>> {
    let mut all = vec![];
    for (weight, group, scale, zeros) in STORED {
        for shape in STORED_SHAPES {
            let how =
                Quantized { weight, group: Some(group), scales: scales(target), scale, zeros, weight_only: false };
            let rows = rows(target, DType::U4, &shape);
            let ends = [0, rows.len() - 1].map(|i| (i, rows[i]));
            let name = |i| format!("gemm_{weight}g{group}_{scale}_{zeros}_{}_{i}", shape.1);
            all.push(ends.map(|(i, row)| gemm(&name(i), &quantized_spec(target, how, shape, row))).to_vec());
        }
    }
    all
}

fn scales(target: &Target) -> MemLayout {
    target.panel.map_or(MemLayout::DENSE, |n| MemLayout::Panel { n, k: 1 })
}

fn quantized_spec(target: &Target, how: Quantized, shape: Shape, row: &GemmRow) -> Gemm {
    let ((n, k, epilogue), weight) = (shape, how.weight);
    let (layout, row_len) = match target.panel {
        Some(n) => (MemLayout::Panel { n, k: 32 / weight.bits() }, k + 3),
        None => (panel(target, weight), k + 16),
    };
    let rounded = how.weight_only || weight == DType::F8e4m3;
    Gemm {
        m: Sym::T,
        n,
        k,
        dtype: DType::Bf16,
        quantized: Some(how),
        a: match activations(target, DType::I8, k) {
            MemLayout::Panel { n, k } if weight == DType::I8 => MemLayout::Panel { n, k },
            _ => MemLayout::Strided { row: Some(row_len) },
        },
        weight: layout,
        out: if rounded && epilogue.residual { DType::Bf16 } else { DType::F32 },
        result: MemLayout::DENSE,
        epilogue,
        block_m: row.block_m,
        block_n: row.block_n,
        block_k: row.block_k,
        stages: row.stages,
    }
}

/// The launch of `t` tokens with values in all of their range, and scales that keep results small.
pub fn quantized_launch(kernel: &Kernel, t: usize) -> Launch {
    let launch = launch(kernel, t);
    let values = |name: &str, launch: &Launch, range: [f32; 2]| -> Vec<f32> {
        let i = launch.kernel.params.iter().position(|p| p.name == name);
        let x = i.map_or(&[][..], |i| launch.args[i].numbers());
        let dtype = i.map_or(DType::F32, |i| launch.kernel.params[i].ty.dtype);
        x.iter().map(|x| dtype.saturate((x + 1.0) / 2.0 * (range[1] - range[0]) + range[0])).collect()
    };
    let [of_a, weight] = [0, 1].map(|i| kernel.params[i].ty.dtype);
    let least = if weight == of_a { -weight.largest() } else { 0.0 };
    let a = values("a", &launch, [-of_a.largest(), of_a.largest()]);
    let weights = values("weight", &launch, [least, weight.largest()]);
    let launch = launch.set("a", a).set("weight", weights);
    let divisor = if weight == DType::F8e4m3 { 1024.0 } else { 64.0 };
    let small = |name: &str, launch: &Launch| -> Vec<f32> {
        let i = launch.kernel.params.iter().position(|p| p.name == name);
        let dtype = i.map_or(DType::F32, |i| kernel.params[i].ty.dtype);
        let round = |x: &f32| dtype.round(DType::F16.round(x.abs() / divisor));
        i.map_or(&[][..], |i| launch.args[i].numbers()).iter().map(round).collect()
    };
    let (a_scale, weight_scale) = (small("a_scale", &launch), small("weight_scale", &launch));
    let launch = launch.set("a_scale", a_scale).set("weight_scale", weight_scale);
    let zeros = values("weight_zero", &launch, [0.0, weight.largest()]);
    let launch = if zeros.is_empty() { launch } else { launch.set("weight_zero", zeros) };
    match weight {
        DType::I8 | DType::F8e4m3 => launch,
        _ => {
            let sums = launch.args[0].numbers().chunks(group(kernel)).map(|values| values.iter().sum()).collect();
            launch.set("a_sums", sums)
        }
    }
}

/// Columns that share a scale.
fn group(kernel: &Kernel) -> usize {
    let columns = |name: &str| kernel.params.iter().find(|p| p.name == name).and_then(|p| p.ty.last()).unwrap_or(1);
    columns("a") / columns("a_sums")
}

/// The launch of `t` tokens.
pub fn launch(kernel: &Kernel, t: usize) -> Launch {
    Launch::new(kernel.clone(), Symbols { t, ..Symbols::default() }, t as u64)
}

/// Every variant of every shape with every number of tokens; variants of one problem write the same bits.
pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = vec![];
    for dtype in [DType::F32, DType::Bf16] {
        for kernels in variants(target, dtype) {
            cases.extend(ROWS.iter().flat_map(|t| same_bits(&kernels, *t, dtype)));
        }
    }
    let quantized: &[(DType, f32)] = match target.panel {
        Some(_) => &[(DType::I8, 1e-5), (DType::U4, 1e-5)],
        // the tensor cores add up products of a line of k with 14 bits or so
        None => &[(DType::F8e4m3, 8e-3)],
    };
    cases.extend(quantized.iter().flat_map(|(dtype, tolerance)| quantized_cases(target, *dtype, *tolerance)));
    if target.gpu.is_some() {
        cases.extend(value_cases(float_groups(target), DType::F8e4m3, 8e-3));
        cases.extend(packed_cases(target));
        cases.extend(deep_cases(target));
    }
    cases
}

/// Numbers of tokens for products with weights of 4 bits alone: of every tile, and more than one.
const PACKED_ROWS: [usize; 5] = [1, 7, 33, 130, 270];

fn packed_cases(target: &Target) -> Vec<Case> {
    let mut cases = vec![];
    for kernels in packed(target) {
        let columns = |p: Option<&Param>| p.and_then(|p| p.ty.last()).unwrap_or(0);
        let [k, n] = [kernels[0].params.first(), kernels[0].params.last()].map(columns);
        for t in PACKED_ROWS.into_iter().filter(|t| n.max(k) < 1000 || *t == 7 || (n < 1000 && *t == 130)) {
            let first = packed_launch(&kernels[0], t);
            cases.extend(kernels.iter().map(|kernel| Case {
                launch: first.with(kernel),
                // sums of the tensor cores in f32, and the result's rounding
                tolerance: tolerance(kernel.params.last().map_or(DType::F32, |c| c.ty.dtype)).max(5e-5),
                group: Some(format!("{} T={t}", kernels[0].name)),
            }));
        }
    }
    cases
}

/// Numbers of tokens for products of values of `dtype` with so many columns: on a GPU more than a tile of 256.
fn value_rows(dtype: DType, columns: usize) -> &'static [usize] {
    match dtype {
        DType::F8e4m3 if columns > 1000 => &[7],
        DType::F8e4m3 => &[1, 33, 270],
        _ => &ROWS,
    }
}

/// Every variant of every product of values with every number of tokens.
fn quantized_cases(target: &Target, dtype: DType, tolerance: f32) -> Vec<Case> {
    value_cases(quantized(target, dtype), dtype, tolerance)
}

/// Cases of the kernels of problems.
fn value_cases(problems: Vec<Vec<Kernel>>, dtype: DType, tolerance: f32) -> Vec<Case> {
    let mut cases = vec![];
    for kernels in problems {
        let columns = kernels[0].params.last().and_then(|c| c.ty.last()).unwrap_or(0);
        for t in value_rows(dtype, columns) {
            let first = quantized_launch(&kernels[0], *t);
            cases.extend(kernels.iter().map(|kernel| Case {
                launch: first.with(kernel),
                tolerance,
                group: Some(format!("{} T={t}", kernels[0].name)),
            }));
        }
    }
    cases
}
