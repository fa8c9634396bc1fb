//! Quantised checkpoints against the integers that they were made from; and ones that contradict themselves.

use rvllm_artifact::{
    Checkpoint, Source,
    plan::DType,
    quantized::{Part, Stored},
};
use safetensors::SafeTensors;
use std::{fs, path::Path, path::PathBuf};

const MATRIX: &str = "m.weight";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quantized").join(name)
}

fn all(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let bytes = checkpoint.tensor(name).unwrap().bytes().unwrap();
    checkpoint.bytes(name, 0..bytes).unwrap().into_owned()
}

/// Values, one to a byte.
fn values(checkpoint: &Checkpoint, stored: Stored) -> Vec<u8> {
    let bytes = all(checkpoint, &Part::Values.name(MATRIX));
    match stored.values {
        DType::U4 => bytes.iter().flat_map(|b| [b & 15, b >> 4]).collect(),
        _ => bytes,
    }
}

fn check(name: &str, expected: Option<Stored>) {
    let checkpoint = Checkpoint::open(&data(name)).unwrap();
    let wanted = |part: &str| all(&checkpoint, &format!("expected.{part}"));
    assert!(checkpoint.is_quantized(MATRIX) && !checkpoint.names().any(|n| n.contains("qzeros")), "{name}");
    assert_eq!(checkpoint.tensor(MATRIX).unwrap().to_string(), "[24, 128]f32");
    assert_eq!(all(&checkpoint, MATRIX), wanted("numbers"), "{name}: numbers");
    assert_eq!(checkpoint.stored(MATRIX), expected, "{name}");
    let Some(stored) = expected else { return };
    assert_eq!(values(&checkpoint, stored), wanted("values"), "{name}: values");
    assert_eq!(all(&checkpoint, &Part::Scales.name(MATRIX)), wanted("scales"), "{name}: scales");
    match stored.zeros {
        true => assert_eq!(all(&checkpoint, &Part::Zeros.name(MATRIX)), wanted("zeros"), "{name}: zeros"),
        false => assert!(checkpoint.tensor(&Part::Zeros.name(MATRIX)).is_err(), "{name}"),
    }
}

fn groups(values: DType, group: u32, zeros: bool) -> Option<Stored> {
    Some(Stored { values, group: Some(group), scales: DType::F16, zeros })
}

#[test]
fn every_layout_gives_the_integers_that_it_was_made_from() {
    check("gptq-4-32-symmetric", groups(DType::U4, 32, false));
    check("gptq-4-64", groups(DType::U4, 64, true));
    check("gptq-8-128", groups(DType::U8, 128, true));
    check("gptq-4-32-act-order", None);
    check("awq-4-64", groups(DType::U4, 64, true));
    check("packed-4-32", groups(DType::U4, 32, false));
    check("packed-4-64-zeros", groups(DType::U4, 64, true));
    check("packed-8-all", groups(DType::U8, 128, false));
    let rows = |values| Some(Stored { values, group: None, scales: DType::F32, zeros: false });
    check("int8", rows(DType::I8));
    check("float-rows", rows(DType::F8e4m3));
    check("fp8-one", rows(DType::F8e4m3));
    check("fp8-blocks", None);
}

#[test]
fn any_range_is_the_same_bytes() {
    for name in ["gptq-4-64", "awq-4-64", "packed-4-64-zeros", "int8", "fp8-one", "fp8-blocks"] {
        let checkpoint = Checkpoint::open(&data(name)).unwrap();
        for part in Part::ALL.map(|part| part.name(MATRIX)).iter().filter(|part| checkpoint.tensor(part).is_ok()) {
            let whole = all(&checkpoint, part);
            let end = whole.len() as u64;
            for (start, end) in [(0, 4), (4, 12), (end / 2 - 8, end / 2 + 20), (end - 4, end), (8, 8)] {
                let found = checkpoint.bytes(part, start..end).unwrap();
                assert_eq!(found.as_ref(), &whole[start as usize..end as usize], "{name} {part} {start}..{end}");
            }
            assert!(checkpoint.bytes(part, 0..end + 4).is_err(), "{name} {part}");
        }
    }
}

#[test]
fn a_bias_of_zeros_is_no_mismatch() {
    let checkpoint = Checkpoint::open(&data("gptq-4-64")).unwrap();
    let expected = [(MATRIX.to_string(), vec![24, 128])];
    assert_eq!(checkpoint.check(&expected, &|name| name.starts_with("expected.")), []);
}

/// A copy of a checkpoint in `dir`, without some of its tensors and with others in their place.
fn changed(name: &str, dir: &Path, skip: &str, with: Option<(&str, safetensors::tensor::TensorView<'_>)>) -> String {
    fs::copy(data(name).join("config.json"), dir.join("config.json")).unwrap();
    let file = fs::read(data(name).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let kept = tensors.tensors().into_iter().filter(|(name, _)| name != skip);
    let all: Vec<_> = kept.chain(with.map(|(name, view)| (name.to_string(), view))).collect();
    fs::write(dir.join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();
    Checkpoint::open(dir).map_or_else(|e| e.to_string(), |_| "opened".to_string())
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    use safetensors::{Dtype, tensor::TensorView};
    let dir = tempfile::tempdir().unwrap();
    let zeros = [0u8; 4096];
    let view = |dtype, shape: &[usize], bytes: usize| TensorView::new(dtype, shape.to_vec(), &zeros[..bytes]).unwrap();
    let told = |name, skip, with| changed(name, dir.path(), skip, with);
    assert_eq!(told("gptq-4-64", "", None), "opened");
    assert!(told("fp8-blocks", "m.weight_scale_inv", None).ends_with("missing tensor m.weight_scale"));
    assert!(told("gptq-4-64", "m.scales", None).ends_with("missing tensor m.scales"));
    let scales = Some(("m.scales", view(Dtype::F16, &[2, 23], 92)));
    assert!(told("gptq-4-64", "m.scales", scales).contains("m.scales has shape [2, 23], expected [2, 24]"));
    let floats = Some(("m.qweight", view(Dtype::F32, &[16, 24], 1536)));
    assert!(
        told("gptq-4-64", "m.qweight", floats).contains("m.qweight is [16, 24]f32, expected two dimensions of i32")
    );
    let nine: Vec<u8> = [9i32; 128].iter().flat_map(|g| g.to_le_bytes()).collect();
    let groups = Some(("m.g_idx", TensorView::new(Dtype::I32, vec![128], &nine).unwrap()));
    assert!(told("gptq-4-64", "m.g_idx", groups).contains("m.g_idx names group 9, but there are 2"));
    let shape = Some(("m.weight_shape", view(Dtype::I64, &[2], 16)));
    assert!(told("packed-4-32", "m.weight_shape", shape).contains("m.weight_shape of 16 bytes is no shape"));
    assert!(told("packed-4-32", "m.weight_shape", None).contains("m.weight_shape of 0 bytes is no shape"));
    assert!(told("packed-4-64-zeros", "m.weight_zero_point", None).contains("missing tensor m.weight_zero_point"));
    assert!(told("int8", "m.weight_scale", None).contains("missing tensor m.weight_scale"));
    let huge: Vec<u8> = [i64::MAX, 128].iter().flat_map(|g| g.to_le_bytes()).collect();
    let shape = Some(("m.weight_shape", TensorView::new(Dtype::I64, vec![2], &huge).unwrap()));
    assert!(told("packed-4-32", "m.weight_shape", shape).contains("m.weight_packed has shape"));
}
