//! Builds kernels: one method per instruction, the caller's line in every statement.
//!
//! Types are inferred as the verifier infers them; a wrong use is recorded and reported by
//! [`super::verify`] with the kernel's line.

use super::{
    Access, Block, Cmp, IndexOp, Inst, Kernel, Layout, MapOp, MemLayout, Param, ReduceOp, Stmt, TileType, Type, Val,
    ValInfo,
};
use crate::{
    diag::Loc,
    expr::{Expr, Sym},
    types::{DType, TensorType},
};

/// A tensor parameter of the kernel being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRef(pub usize);

/// A kernel being built.
#[derive(Debug)]
pub struct KernelBuilder {
    kernel: Kernel,
    /// Open blocks, innermost last.
    blocks: Vec<Block>,
}

impl KernelBuilder {
    /// A kernel without parameters.
    pub fn new(name: impl Into<String>) -> KernelBuilder {
        let kernel = Kernel { name: name.into(), ..Kernel::default() };
        KernelBuilder { kernel, blocks: vec![Block::default()] }
    }

    /// Adds a tensor parameter.
    pub fn tensor(&mut self, name: &str, ty: TensorType, layout: MemLayout, access: Access) -> TensorRef {
        self.kernel.params.push(Param { name: name.to_string(), ty, layout, access });
        TensorRef(self.kernel.params.len() - 1)
    }

    /// A dense read-only tensor.
    pub fn input(&mut self, name: &str, ty: TensorType) -> TensorRef {
        self.tensor(name, ty, MemLayout::DENSE, Access::In)
    }

    /// A dense tensor that no launch writes.
    pub fn weight(&mut self, name: &str, ty: TensorType) -> TensorRef {
        self.tensor(name, ty, MemLayout::DENSE, Access::Weight)
    }

    /// A dense tensor that the step brings.
    pub fn step_input(&mut self, name: &str, ty: TensorType) -> TensorRef {
        self.tensor(name, ty, MemLayout::DENSE, Access::Step)
    }

    /// A dense written tensor.
    pub fn output(&mut self, name: &str, ty: TensorType) -> TensorRef {
        self.tensor(name, ty, MemLayout::DENSE, Access::Out)
    }

    /// Shape and element type of a parameter.
    pub fn ty(&self, t: TensorRef) -> &TensorType {
        &self.kernel.params[t.0].ty
    }

    /// Tile type of a value. Panics on an index value.
    #[track_caller]
    pub fn tile(&self, v: Val) -> TileType {
        self.kernel.tile(v).clone()
    }

    /// Adds a grid dimension and returns this program's index along it.
    #[track_caller]
    pub fn grid(&mut self, name: &str, extent: impl Into<Expr>) -> Val {
        self.kernel.grid.push((name.to_string(), extent.into()));
        let dim = self.kernel.grid.len() - 1;
        self.push(Inst::ProgramId(dim), Type::Index, name)
    }

    /// The finished kernel.
    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self.blocks.pop().unwrap_or_default();
        self.kernel
    }

    fn val(&mut self, name: &str, ty: Type) -> Val {
        let v = Val(self.kernel.vals.len() as u32);
        self.kernel.vals.push(ValInfo { name: format!("{name}{}", v.0), ty });
        v
    }

    fn stmt(&mut self, inst: Inst, results: Vec<Val>, loc: Loc) {
        if let Some(block) = self.blocks.last_mut() {
            block.stmts.push(Stmt { results, inst, loc: Some(loc) });
        }
    }

    #[track_caller]
    fn push(&mut self, inst: Inst, ty: Type, name: &str) -> Val {
        let v = self.val(name, ty);
        self.stmt(inst, vec![v], Loc::caller());
        v
    }

    #[track_caller]
    fn push_tile(&mut self, inst: Inst, layout: Layout, shape: &[usize], dtype: DType, name: &str) -> Val {
        self.push(inst, Type::Tile(TileType { layout, shape: shape.to_vec(), dtype }), name)
    }

    /// An index constant.
    #[track_caller]
    pub fn index(&mut self, c: i64) -> Val {
        self.push(Inst::Const(c), Type::Index, "c")
    }

    /// A symbol of the step.
    #[track_caller]
    pub fn sym(&mut self, s: Sym) -> Val {
        self.push(Inst::Sym(s), Type::Index, &s.name().to_lowercase())
    }

    #[track_caller]
    fn int(&mut self, op: IndexOp, a: Val, b: Val) -> Val {
        self.push(Inst::Index(op, a, b), Type::Index, "i")
    }

    /// `a + b`.
    #[track_caller]
    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.int(IndexOp::Add, a, b)
    }

    /// `a - b`.
    #[track_caller]
    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.int(IndexOp::Sub, a, b)
    }

    /// `a * c`.
    #[track_caller]
    pub fn scale(&mut self, a: Val, c: usize) -> Val {
        let c = self.index(c as i64);
        self.int(IndexOp::Mul, a, c)
    }

    /// `a + c`.
    #[track_caller]
    pub fn offset(&mut self, a: Val, c: i64) -> Val {
        let c = self.index(c);
        self.int(IndexOp::Add, a, c)
    }

    /// `a / c`.
    #[track_caller]
    pub fn div(&mut self, a: Val, c: usize) -> Val {
        let c = self.index(c as i64);
        self.int(IndexOp::Div, a, c)
    }

    /// `a % c`.
    #[track_caller]
    pub fn rem(&mut self, a: Val, c: usize) -> Val {
        let c = self.index(c as i64);
        self.int(IndexOp::Rem, a, c)
    }

    /// Smaller of two indices.
    #[track_caller]
    pub fn min(&mut self, a: Val, b: Val) -> Val {
        self.int(IndexOp::Min, a, b)
    }

    /// Larger of two indices.
    #[track_caller]
    pub fn max(&mut self, a: Val, b: Val) -> Val {
        self.int(IndexOp::Max, a, b)
    }

    /// One element of an i32 tensor.
    #[track_caller]
    pub fn read(&mut self, t: TensorRef, at: &[Val]) -> Val {
        self.push(Inst::Read { tensor: t.0, at: at.to_vec() }, Type::Index, "r")
    }

    /// The element of a tile of rank 0, a whole number.
    #[track_caller]
    pub fn to_index(&mut self, v: Val) -> Val {
        self.push(Inst::ToIndex(v), Type::Index, "i")
    }

    /// A tile in registers, widened to f32.
    #[track_caller]
    pub fn load(&mut self, t: TensorRef, at: &[Val], shape: &[usize]) -> Val {
        self.push_tile(Inst::Load { tensor: t.0, at: at.to_vec() }, Layout::Reg, shape, DType::F32, "x")
    }

    /// A tile in the accumulator's layout, widened to f32: what an epilogue adds to one.
    #[track_caller]
    pub fn load_acc(&mut self, t: TensorRef, at: &[Val], shape: &[usize]) -> Val {
        self.push_tile(Inst::Load { tensor: t.0, at: at.to_vec() }, Layout::Acc, shape, DType::F32, "x")
    }

    /// A tile that `mma` reads, in the tensor's element type.
    #[track_caller]
    pub fn load_operand(&mut self, t: TensorRef, at: &[Val], shape: &[usize]) -> Val {
        let dtype = self.ty(t).dtype;
        self.push_tile(Inst::Load { tensor: t.0, at: at.to_vec() }, Layout::Operand, shape, dtype, "o")
    }

    /// Writes a tile, cast to the tensor's element type.
    #[track_caller]
    pub fn store(&mut self, t: TensorRef, at: &[Val], value: Val) {
        self.store_rows(t, at, value, None);
    }

    /// Writes the first `rows` indices of the tile's dimension 0, cast to the tensor's element type.
    #[track_caller]
    pub fn store_rows(&mut self, t: TensorRef, at: &[Val], value: Val, rows: Option<Val>) {
        let dtype = self.ty(t).dtype;
        let value = self.cast(value, dtype);
        self.stmt(Inst::Store { tensor: t.0, at: at.to_vec(), value, rows }, vec![], Loc::caller());
    }

    /// A `reg` tile of one value.
    #[track_caller]
    pub fn full(&mut self, value: f32, shape: &[usize]) -> Val {
        self.push_tile(Inst::Full(value), Layout::Reg, shape, DType::F32, "f")
    }

    /// An `acc` tile of one value.
    #[track_caller]
    pub fn full_acc(&mut self, value: f32, shape: &[usize]) -> Val {
        self.push_tile(Inst::Full(value), Layout::Acc, shape, DType::F32, "acc")
    }

    /// An `acc` tile of zeros.
    #[track_caller]
    pub fn zeros(&mut self, shape: &[usize]) -> Val {
        self.full_acc(0.0, shape)
    }

    /// An `acc` tile of zeros that products of integers are added to.
    #[track_caller]
    pub fn integer_zeros(&mut self, shape: &[usize]) -> Val {
        self.push_tile(Inst::Full(0.0), Layout::Acc, shape, DType::I32, "acc")
    }

    /// i32 `[n]`: `start + i / div`.
    #[track_caller]
    pub fn iota(&mut self, start: Val, div: usize, n: usize) -> Val {
        self.push_tile(Inst::Iota { start, div }, Layout::Reg, &[n], DType::I32, "iota")
    }

    /// `acc + a · bᵀ`.
    #[track_caller]
    pub fn mma(&mut self, a: Val, b: Val, acc: Val) -> Val {
        let ty = self.kernel.ty(acc).clone();
        self.push(Inst::Mma { a, b, acc }, ty, "acc")
    }

    /// Elementwise.
    #[track_caller]
    pub fn map(&mut self, op: MapOp, args: &[Val]) -> Val {
        let ty = self.kernel.ty(args[0]).clone();
        self.push(Inst::Map(op, args.to_vec()), ty, "m")
    }

    /// Elementwise with a constant on the right.
    #[track_caller]
    pub fn map_const(&mut self, op: MapOp, a: Val, c: f32) -> Val {
        let ty = self.kernel.ty(a).clone();
        let c = self.push(Inst::Full(c), ty, "f");
        self.map(op, &[a, c])
    }

    /// Elementwise `a cmp b ? x : y`.
    #[track_caller]
    pub fn select(&mut self, cmp: Cmp, a: Val, b: Val, x: Val, y: Val) -> Val {
        let ty = self.kernel.ty(x).clone();
        self.push(Inst::Select { cmp, a, b, x, y }, ty, "s")
    }

    /// To another element type; itself where it has that already.
    #[track_caller]
    pub fn cast(&mut self, v: Val, dtype: DType) -> Val {
        let mut ty = self.tile(v);
        if ty.dtype == dtype {
            return v;
        }
        ty.dtype = dtype;
        self.push(Inst::Cast(v), Type::Tile(ty), "t")
    }

    /// Reduction of `axis`; the result is `reg`.
    #[track_caller]
    pub fn reduce(&mut self, op: ReduceOp, v: Val, axis: usize) -> Val {
        let mut ty = self.tile(v);
        ty.shape.remove(axis);
        self.push_tile(Inst::Reduce(op, v, axis), Layout::Reg, &ty.shape, ty.dtype, "red")
    }

    /// Inserts `axis` of size `n` and repeats along it; the result is in `layout`.
    #[track_caller]
    pub fn broadcast(&mut self, v: Val, axis: usize, n: usize, layout: Layout) -> Val {
        let mut ty = self.tile(v);
        ty.shape.insert(axis, n);
        self.push_tile(Inst::Broadcast(v, axis), layout, &ty.shape, ty.dtype, "b")
    }

    /// Same elements, another shape.
    #[track_caller]
    pub fn reshape(&mut self, v: Val, shape: &[usize]) -> Val {
        let ty = self.tile(v);
        self.push_tile(Inst::Reshape(v), ty.layout, shape, ty.dtype, "v")
    }

    /// As an operand of `mma`, in `dtype`.
    #[track_caller]
    pub fn stage(&mut self, v: Val, dtype: DType) -> Val {
        let v = self.cast(v, dtype);
        let ty = self.tile(v);
        self.push_tile(Inst::Stage(v), Layout::Operand, &ty.shape, dtype, "o")
    }

    /// Operands, or tiles of rank 1, side by side along `axis`; itself where there is one.
    #[track_caller]
    pub fn concat(&mut self, parts: &[Val], axis: usize) -> Val {
        let mut ty = self.tile(parts[0]);
        if let [part] = parts {
            return *part;
        }
        ty.shape[axis] *= parts.len();
        self.push_tile(Inst::Concat(parts.to_vec(), axis), ty.layout, &ty.shape, ty.dtype, "o")
    }

    /// `for i in lo..hi`, carrying `init`: `body(self, i, carried)` returns the next carried values.
    #[track_caller]
    pub fn pipeline(
        &mut self,
        lo: Val,
        hi: Val,
        stages: usize,
        init: &[Val],
        body: impl FnOnce(&mut KernelBuilder, Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let loc = Loc::caller();
        let types: Vec<Type> = init.iter().map(|v| self.kernel.ty(*v).clone()).collect();
        let i = self.val("i", Type::Index);
        let carried: Vec<Val> = types.iter().map(|t| self.val("p", t.clone())).collect();
        let params = std::iter::once(i).chain(carried.iter().copied()).collect();
        self.blocks.push(Block { params, ..Block::default() });
        let yields = body(self, i, &carried);
        let mut block = self.blocks.pop().unwrap_or_default();
        block.yields = yields;
        let results: Vec<Val> = types.into_iter().map(|t| self.val("q", t)).collect();
        self.stmt(Inst::Pipeline { lo, hi, stages, init: init.to_vec(), body: block }, results.clone(), loc);
        results
    }

    /// [`KernelBuilder::pipeline`] over `0..n`.
    #[track_caller]
    pub fn fold(
        &mut self,
        n: usize,
        stages: usize,
        init: &[Val],
        body: impl FnOnce(&mut KernelBuilder, Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let (lo, hi) = (self.index(0), self.index(n as i64));
        self.pipeline(lo, hi, stages, init, body)
    }

    /// `for i in 0..n`, carrying nothing.
    #[track_caller]
    pub fn for_each(&mut self, n: usize, body: impl FnOnce(&mut KernelBuilder, Val)) {
        self.fold(n, 1, &[], |k, i, _| {
            body(k, i);
            vec![]
        });
    }
}
