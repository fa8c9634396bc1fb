//! Kernels for GPUs in plans: what is written is read, what a driver must not be asked for is refused.

use crate::model::{manifest, plan};
use rvllm_artifact::{
    gpu::{Code, CodeFormat, GpuKernel, Swizzle, TensorMap},
    manifest::{Target, Weights},
    plan::{DType, Expr, Plan, Sym},
};

fn map() -> TensorMap {
    TensorMap {
        tensor: 1,
        dtype: DType::Bf16,
        extents: vec![Expr::Const(64), Expr::Sym(Sym::T)],
        strides: vec![Expr::Const(128)],
        tile: vec![64, 128],
        swizzle: Swizzle::B128,
    }
}

fn kernel() -> GpuKernel {
    GpuKernel {
        code: Code { format: CodeFormat::Cubin, offset: 64, bytes: 36 },
        threads: 384,
        shared_bytes: 232_448,
        cluster: 2,
        ctas_per_program: 2,
        max_ctas: Some(132),
        registers: Some(168),
        spill_bytes: Some(0),
        occupancy: Some(1),
        tensor_maps: vec![map()],
    }
}

fn gpu_plan(change: impl FnOnce(&mut GpuKernel)) -> Plan {
    let mut plan = plan();
    let mut first = kernel();
    change(&mut first);
    plan.kernels.iter_mut().for_each(|k| k.gpu = Some(kernel()));
    plan.kernels[0].gpu = Some(first);
    plan
}

fn target(arch: &str) -> Target {
    let name = |s: &str| s.to_string();
    Target { name: name("g"), arch: arch.into(), features: vec![name("sm_90a")], plan: name("p"), kernels: name("k") }
}

fn problem(change: impl FnOnce(&mut GpuKernel)) -> String {
    let plan = gpu_plan(change);
    let checked = plan.check(&manifest(Weights::None)).and_then(|()| plan.check_code(&target("nvptx64"), 100));
    checked.expect_err("a problem")
}

#[test]
fn plans_with_kernels_for_a_gpu_are_read_as_written() {
    let plan = gpu_plan(|k| k.max_ctas = None);
    let json = serde_json::to_string(&plan).unwrap();
    assert!(json.contains(r#""format":"cubin","offset":64,"bytes":36"#), "{json}");
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    plan.check(&manifest(Weights::None)).unwrap();
    plan.check_code(&target("nvptx64"), 100).unwrap();
}

#[test]
fn what_a_driver_must_not_be_asked_for_is_refused() {
    assert_eq!(problem(|k| k.threads = 1025), "kernel gather: threads is 1025, expected 1 to 1024");
    assert_eq!(problem(|k| k.code.bytes = 37), "kernel gather: code of 37 bytes at 64 of 100");
    assert_eq!(
        problem(|k| k.code.offset = u64::MAX),
        format!("kernel gather: code of 36 bytes at {} of 100", u64::MAX)
    );
    assert_eq!(problem(|k| k.cluster = 0), "kernel gather: cluster is 0, expected 1 to 16");
    assert_eq!(problem(|k| k.max_ctas = Some(0)), "kernel gather: max_ctas is 0, expected 1 to 2147483647");
    assert_eq!(
        problem(|k| k.shared_bytes = u32::MAX),
        "kernel gather: shared_bytes is 4294967295, expected 0 to 1048576"
    );
    let map = |change: fn(&mut TensorMap)| problem(|k| change(&mut k.tensor_maps[0]));
    assert_eq!(map(|m| m.tensor = 3), "kernel gather: tensor map 0: tensor is 3, expected 0 to 2");
    assert_eq!(map(|m| m.tile[0] = 257), "kernel gather: tensor map 0: an extent of the box is 257, expected 1 to 256");
    assert_eq!(
        map(|m| m.tile.truncate(1)),
        "kernel gather: tensor map 0: 2 extents with 1 strides and a box of 1 dimensions"
    );
    assert_eq!(
        map(|m| m.strides[0] = Expr::Const(24)),
        "kernel gather: a stride of 24 bytes, expected a multiple of 16"
    );
    assert_eq!(map(|m| m.extents[0] = Expr::Const(0)), "kernel gather: an extent is 0, expected 1 to 4294967296");
}

#[test]
fn kernels_are_those_of_the_targets_architecture() {
    let plan = gpu_plan(|_| {});
    assert_eq!(
        plan.check_code(&target("x86_64"), 100).unwrap_err(),
        "kernel gather: a launch on a GPU, but the target is x86_64"
    );
    let message = crate::model::plan().check_code(&target("nvptx64"), 100).unwrap_err();
    assert_eq!(message, "kernel gather: no launch on a GPU, which is the target");
}
