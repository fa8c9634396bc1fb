//! A checkpoint in bf16, written again with quantised matrices, in the layouts of GPTQ, AWQ and compressed-tensors.

use anyhow::{Context, Result, ensure};
use half::f16;
use rvllm_artifact::{
    Checkpoint, Source,
    execute::execute,
    plan::DType,
    recipe::{Part, Recipe},
};
use rvllm_ir as ir;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// A layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// GPTQ of 4 bits, version 1.
    Gptq,
    /// AWQ's gemm of 4 bits.
    Awq,
    /// compressed-tensors' pack-quantized of 4 bits.
    Packed,
    /// compressed-tensors' int-quantized.
    Int8,
    /// compressed-tensors' float-quantized.
    E4m3,
    /// The same with a scale for each block of 128 rows and columns.
    FloatBlocks,
    /// Transformers' fp8, whose blocks are those.
    Fp8Blocks,
}

impl Layout {
    fn has_blocks(self) -> bool {
        matches!(self, Layout::FloatBlocks | Layout::Fp8Blocks)
    }
}

/// What a matrix is quantised to.
struct Matrix {
    rows: usize,
    columns: usize,
    /// `[rows, columns]`.
    values: Vec<u8>,
    /// `[rows, groups]f16`, or `[rows]f32`; of blocks in f32.
    scales: Vec<u8>,
    /// `[rows, groups]`; the middle where they are symmetric.
    zeros: Vec<u8>,
}

/// Rows and columns of a block.
const BLOCK: usize = 128;
/// Columns that share a scale of symmetric values, and of others.
const GROUPS: [usize; 2] = [32, 64];

/// Writes the checkpoint `dir` to the directory `to` with the matrices of its layers quantised: to what `--quantize` makes of
/// them where values are `symmetric`, else to 4 bits between the least and the largest number of a group.
///
/// # Errors
/// A file of the checkpoint is missing or not as expected.
pub fn write(dir: &Path, layout: Layout, symmetric: bool, to: &Path) -> Result<()> {
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
        fs::copy(dir.join(file), to.join(file)).with_context(|| file.to_string())?;
    }
    let mut config: Value = serde_json::from_slice(&fs::read(dir.join("config.json"))?)?;
    config["quantization_config"] = quantization_config(layout, symmetric);
    fs::write(to.join("config.json"), config.to_string())?;
    let checkpoint = Checkpoint::open(dir)?;
    let mut tensors: Vec<Tensor> = vec![];
    for name in checkpoint.names() {
        let ty = checkpoint.tensor(name)?;
        let shape: Vec<usize> = ty.shape.iter().map(|d| *d as usize).collect();
        match name.strip_suffix(".weight").filter(|_| name.contains("_proj.")) {
            Some(stem) => tensors.extend(packed(&checkpoint, stem, layout, symmetric)?),
            None => {
                let bytes = checkpoint.bytes(name, 0..ty.bytes().context("its bytes")?)?.into_owned();
                tensors.push((name.to_string(), Dtype::BF16, shape, bytes));
            }
        }
    }
    let views =
        tensors.iter().map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)));
    let file = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?;
    Ok(fs::write(to.join("model.safetensors"), file)?)
}

fn quantization_config(layout: Layout, symmetric: bool) -> Value {
    let group = GROUPS[usize::from(!symmetric)];
    let compressed = |form: &str, weights: Value, activations: Value| {
        let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": activations});
        json!({"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}})
    };
    match layout {
        Layout::Gptq => json!({"quant_method": "gptq", "bits": 4, "group_size": group, "sym": symmetric}),
        Layout::Awq => {
            json!({"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": true})
        }
        Layout::Packed => {
            let weights = json!({"num_bits": 4, "strategy": "group", "group_size": group, "symmetric": symmetric});
            compressed("pack-quantized", weights, Value::Null)
        }
        Layout::Int8 => {
            let activations = json!({"num_bits": 8, "symmetric": true, "dynamic": true, "strategy": "token"});
            compressed("int-quantized", json!({"num_bits": 8, "strategy": "channel"}), activations)
        }
        Layout::E4m3 | Layout::FloatBlocks => {
            let activations = json!({"num_bits": 8, "type": "float", "dynamic": true, "strategy": "token"});
            let strategy = if layout.has_blocks() { "block" } else { "channel" };
            let block = layout.has_blocks().then_some([BLOCK, BLOCK]);
            let weights = json!({"num_bits": 8, "type": "float", "strategy": strategy, "block_structure": block});
            compressed("float-quantized", weights, activations)
        }
        Layout::Fp8Blocks => {
            json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]})
        }
    }
}

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn packed(checkpoint: &Checkpoint, stem: &str, layout: Layout, symmetric: bool) -> Result<Vec<Tensor>> {
    let m = match (symmetric, layout) {
        (true, Layout::Int8) => as_quantize(checkpoint, stem, DType::I8, None)?,
        (true, Layout::E4m3) => as_quantize(checkpoint, stem, DType::F8e4m3, None)?,
        (true, Layout::FloatBlocks | Layout::Fp8Blocks) => in_blocks(checkpoint, stem)?,
        (true, _) => as_quantize(checkpoint, stem, DType::U4, Some(GROUPS[0]))?,
        (false, _) => between(checkpoint, stem)?,
    };
    let (n, k) = (m.rows, m.columns);
    if layout.has_blocks() {
        let kind = if layout == Layout::Fp8Blocks { "weight_scale_inv" } else { "weight_scale" };
        let [across, down] = [n.div_ceil(BLOCK), k.div_ceil(BLOCK)];
        return Ok(vec![
            (format!("{stem}.weight"), Dtype::F8_E4M3, vec![n, k], m.values),
            (format!("{stem}.{kind}"), Dtype::F32, vec![across, down], m.scales),
        ]);
    }
    let groups = m.zeros.len() / n;
    let tensor =
        |kind: &str, dtype, shape: [usize; 2], bytes: Vec<u8>| (format!("{stem}.{kind}"), dtype, shape.to_vec(), bytes);
    let (values, zeros) = (transposed(&m.values, n, 1), transposed(&m.zeros, n, 1));
    let scales = transposed(&m.scales, n, 2);
    Ok(match layout {
        Layout::Gptq => {
            let less_one: Vec<u8> = zeros.iter().map(|z| z.wrapping_sub(1) & 15).collect();
            vec![
                // along k: the words of the transpose, transposed
                tensor(
                    "qweight",
                    Dtype::I32,
                    [k / 8, n],
                    transposed(&words(&m.values, [0, 1, 2, 3, 4, 5, 6, 7]), n, 4),
                ),
                tensor("qzeros", Dtype::I32, [groups, n / 8], words(&less_one, [0, 1, 2, 3, 4, 5, 6, 7])),
                tensor("scales", Dtype::F16, [groups, n], scales),
            ]
        }
        Layout::Awq => vec![
            tensor("qweight", Dtype::I32, [k, n / 8], words(&values, [0, 2, 4, 6, 1, 3, 5, 7])),
            tensor("qzeros", Dtype::I32, [groups, n / 8], words(&zeros, [0, 2, 4, 6, 1, 3, 5, 7])),
            tensor("scales", Dtype::F16, [groups, n], scales),
        ],
        Layout::Packed => {
            let shape = [n as i64, k as i64].iter().flat_map(|d| d.to_le_bytes()).collect();
            let mut all = vec![
                tensor("weight_packed", Dtype::I32, [n, k / 8], words(&m.values, [0, 1, 2, 3, 4, 5, 6, 7])),
                tensor("weight_scale", Dtype::F16, [n, groups], m.scales),
                (format!("{stem}.weight_shape"), Dtype::I64, vec![2], shape),
            ];
            let along_n = transposed(&words(&zeros, [0, 1, 2, 3, 4, 5, 6, 7]), groups, 4);
            all.extend((!symmetric).then(|| tensor("weight_zero_point", Dtype::I32, [n / 8, groups], along_n)));
            all
        }
        Layout::Int8 | Layout::E4m3 | Layout::FloatBlocks | Layout::Fp8Blocks => {
            let dtype = if layout == Layout::Int8 { Dtype::I8 } else { Dtype::F8_E4M3 };
            vec![tensor("weight", dtype, [n, k], m.values), tensor("weight_scale", Dtype::F32, [n, 1], m.scales)]
        }
    })
}

/// Values and scales of the recipe that `--quantize` uses.
fn as_quantize(checkpoint: &Checkpoint, stem: &str, to: DType, group: Option<usize>) -> Result<Matrix> {
    let name = format!("{stem}.weight");
    let [rows, columns] = shape(checkpoint, &name)?;
    let run = |part, bytes: usize| -> Result<Vec<u8>> {
        let of = Box::new(Recipe::Tensor(name.clone()));
        let mut made = vec![0; bytes];
        execute(&Recipe::Quantize { to, group: group.map(|n| n as u32), part, of }, checkpoint, 1, &mut made)?;
        Ok(made)
    };
    let Some(group) = group else {
        let (values, scales) = (run(Part::Values, rows * columns)?, run(Part::Scales, rows * 4)?);
        return Ok(Matrix { rows, columns, values, scales, zeros: vec![0; rows] });
    };
    let groups = rows * columns / group;
    let values = run(Part::Values, rows * columns / 2)?.iter().flat_map(|b| [b & 15, b >> 4]).collect();
    Ok(Matrix { rows, columns, values, scales: run(Part::Scales, groups * 2)?, zeros: vec![8; groups] })
}

/// Values in e4m3 of blocks whose largest magnitude becomes the largest value.
fn in_blocks(checkpoint: &Checkpoint, stem: &str) -> Result<Matrix> {
    let name = format!("{stem}.weight");
    let [rows, columns] = shape(checkpoint, &name)?;
    let numbers = numbers(checkpoint, name, rows * columns)?;
    let across = columns.div_ceil(BLOCK);
    let mut largest = vec![1e-30f32; rows.div_ceil(BLOCK) * across];
    let block = |i: usize| i / columns / BLOCK * across + i % columns / BLOCK;
    for (i, x) in numbers.iter().enumerate() {
        largest[block(i)] = largest[block(i)].max(x.abs());
    }
    let scales: Vec<f32> = largest.iter().map(|x| x / ir::DType::F8e4m3.largest()).collect();
    let value = |(i, x): (usize, &f32)| ir::e4m3_bits(x / scales[block(i)]);
    let values = numbers.iter().enumerate().map(value).collect();
    let scales = scales.into_iter().flat_map(f32::to_le_bytes).collect();
    Ok(Matrix { rows, columns, values, scales, zeros: vec![] })
}

fn numbers(checkpoint: &Checkpoint, name: String, count: usize) -> Result<Vec<f32>> {
    let mut bytes = vec![0; count * 4];
    execute(&Recipe::Cast(DType::F32, Box::new(Recipe::Tensor(name))), checkpoint, 1, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Values between the least and the largest number of a group.
fn between(checkpoint: &Checkpoint, stem: &str) -> Result<Matrix> {
    let name = format!("{stem}.weight");
    let [rows, columns] = shape(checkpoint, &name)?;
    let numbers = numbers(checkpoint, name, rows * columns)?;
    let mut m = Matrix { rows, columns, values: vec![], scales: vec![], zeros: vec![] };
    for group in numbers.chunks_exact(GROUPS[1]) {
        let (least, largest) = group.iter().fold((0f32, 0f32), |(a, b), x| (a.min(*x), b.max(*x)));
        let scale = f16::from_f32(((largest - least) / 15.0).max(1e-4));
        let zero = (-least / scale.to_f32()).round().clamp(0.0, 15.0);
        m.values.extend(group.iter().map(|x| (x / scale.to_f32() + zero).round().clamp(0.0, 15.0) as u8));
        m.scales.extend(scale.to_le_bytes());
        m.zeros.push(zero as u8);
    }
    Ok(m)
}

fn shape(checkpoint: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    let shape = checkpoint.tensor(name)?.shape;
    ensure!(shape.len() == 2, "{name} is no matrix");
    Ok([shape[0] as usize, shape[1] as usize])
}

/// A matrix of so many rows, of elements of so many bytes, transposed.
fn transposed(bytes: &[u8], rows: usize, size: usize) -> Vec<u8> {
    let columns = bytes.len() / rows / size;
    let at = |i: usize| (i % rows * columns + i / rows) * size;
    (0..rows * columns).flat_map(|i| bytes[at(i)..at(i) + size].to_vec()).collect()
}

/// Eight adjacent fields to a word, field `order[i]` in place `i`.
fn words(fields: &[u8], order: [usize; 8]) -> Vec<u8> {
    let word = |eight: &[u8; 8]| (0..8).fold(0u32, |word, i| word | u32::from(eight[order[i]]) << (4 * i));
    fields.as_chunks().0.iter().flat_map(|eight| word(eight).to_le_bytes()).collect()
}
