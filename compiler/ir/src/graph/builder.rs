//! The builder that models are written with: `Copy` values, plain `+` and `*`, the caller's line in every node.
//!
//! Parameter paths are checkpoint keys, so that no model needs a loader. Shape errors do not panic here:
//! the node is recorded with the type the operation would have, and [`super::verify`] reports it with the
//! model's line.

use super::{Attention, Graph, Input, Op, Parallel, ResultInfo, ValueId, ValueType, op::DRAWS, verify};
use crate::{
    diag::Loc,
    expr::Sym,
    recipe::Recipe,
    rope::Rope,
    types::{DType, Dim, TensorType},
};
use std::cell::RefCell;

/// Owns the graph while a model builds it.
#[derive(Debug)]
pub struct Builder {
    graph: RefCell<Graph>,
    dtype: DType,
}

/// A value of the graph being built.
#[derive(Clone, Copy, Debug)]
pub struct Value<'g> {
    builder: &'g Builder,
    id: ValueId,
}

/// A place in the checkpoint's key space: `w.at("model.layers")`.
#[derive(Clone, Debug)]
pub struct Weights<'g> {
    builder: &'g Builder,
    path: String,
    index: usize,
    bias: bool,
    parallel: Parallel,
}

/// The inputs of a step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'g> {
    builder: &'g Builder,
    /// `[T]i32`.
    pub token_ids: Value<'g>,
    /// `[T]i32`.
    pub positions: Value<'g>,
    /// `[L]i32`.
    pub logits_indices: Value<'g>,
}

impl Builder {
    /// A builder whose activations and weights have element type `dtype`.
    pub fn new(name: &str, dtype: DType) -> Builder {
        Builder { graph: RefCell::new(Graph::new(name)), dtype }
    }

    /// The root of the checkpoint's key space.
    pub fn weights(&self) -> Weights<'_> {
        Weights { builder: self, path: String::new(), index: 0, bias: false, parallel: Parallel::Replicated }
    }

    /// The step's inputs.
    #[track_caller]
    pub fn step(&self) -> Step<'_> {
        Step {
            builder: self,
            token_ids: self.input(Input::TokenIds),
            positions: self.input(Input::Positions),
            logits_indices: self.input(Input::LogitsIndices),
        }
    }

    /// The finished graph, which returns `outputs`.
    pub fn finish(&self, outputs: &[Value<'_>]) -> Graph {
        let mut graph = self.graph.take();
        graph.outputs = outputs.iter().map(|v| v.id).collect();
        graph
    }

    /// The input, entered once however often it is asked for.
    #[track_caller]
    fn input(&self, input: Input) -> Value<'_> {
        match self.find(|op| *op == Op::Input(input)) {
            Some(value) => value,
            None => self.push(Op::Input(input), &[], &input.name()),
        }
    }

    /// The first result of the first node whose operation satisfies `is`.
    fn find(&self, is: impl Fn(&Op) -> bool) -> Option<Value<'_>> {
        let graph = self.graph.borrow();
        let node = graph.dag().node_indices().find(|n| is(&graph.node(*n).op))?;
        Some(Value { builder: self, id: ValueId { node, result: 0 } })
    }

    /// The parameter at `key`, entered once: tied embeddings share it.
    #[track_caller]
    fn weight(&self, key: String, dims: &[usize]) -> Value<'_> {
        let recipe = Recipe::Cast(self.dtype, Box::new(Recipe::tensor(key.clone())));
        match self.find(|op| matches!(op, Op::Weight(r) if *r == recipe)) {
            Some(value) => value,
            None => {
                let ty = ValueType::Tensor(TensorType::new(dims.iter().copied(), self.dtype));
                self.record(Op::Weight(recipe), &[], &key, Loc::caller(), vec![ty])
            }
        }
    }

    #[track_caller]
    fn push(&self, op: Op, operands: &[ValueId], name: &str) -> Value<'_> {
        let types = {
            let graph = self.graph.borrow();
            let operands: Vec<&ValueType> = operands.iter().map(|v| graph.ty(*v)).collect();
            verify::infer(&op, &operands).unwrap_or_else(|_| vec![verify::fallback(&operands)])
        };
        self.record(op, operands, name, Loc::caller(), types)
    }

    fn record(&self, op: Op, operands: &[ValueId], name: &str, loc: Loc, types: Vec<ValueType>) -> Value<'_> {
        let results = types.into_iter().map(|ty| ResultInfo { name: name.to_string(), ty }).collect();
        let node = self.graph.borrow_mut().add(op, operands, results, Some(loc));
        Value { builder: self, id: ValueId { node, result: 0 } }
    }
}

impl<'g> Weights<'g> {
    /// The place below this one.
    pub fn at(&self, name: &str) -> Weights<'g> {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Weights { path, bias: false, parallel: Parallel::Replicated, ..self.clone() }
    }

    /// The places `0..n` below this one.
    pub fn indexed(&self, n: usize) -> impl Iterator<Item = Weights<'g>> {
        (0..n).map(|i| Weights { index: i, ..self.at(&i.to_string()) })
    }

    /// Index of this place among its siblings (the layer).
    pub fn index(&self) -> usize {
        self.index
    }

    /// With a bias or not.
    pub fn bias(self, bias: bool) -> Weights<'g> {
        Weights { bias, ..self }
    }

    /// Split over output features under tensor parallelism.
    pub fn cols(self) -> Weights<'g> {
        Weights { parallel: Parallel::Cols, ..self }
    }

    /// Split over input features under tensor parallelism.
    pub fn rows(self) -> Weights<'g> {
        Weights { parallel: Parallel::Rows, ..self }
    }

    /// `[vocab, hidden]` table looked up by `ids`.
    #[track_caller]
    pub fn gather(&self, ids: Value<'g>, vocab: usize, hidden: usize) -> Value<'g> {
        let table = self.builder.weight(format!("{}.weight", self.path), &[vocab, hidden]);
        self.builder.push(Op::Gather, &[table.id, ids.id], &self.path)
    }
}

impl<'g> Step<'g> {
    /// The KV cache of a layer.
    #[track_caller]
    pub fn kv_cache(&self, layer: usize) -> Value<'g> {
        self.builder.input(Input::Kv(layer))
    }
}

impl<'g> Value<'g> {
    #[track_caller]
    fn unary(self, op: Op, name: &str) -> Value<'g> {
        self.builder.push(op, &[self.id], name)
    }

    #[track_caller]
    fn binary(self, op: Op, other: Value<'g>, name: &str) -> Value<'g> {
        self.builder.push(op, &[self.id, other.id], name)
    }

    fn last(self) -> usize {
        let graph = self.builder.graph.borrow();
        graph.ty(self.id).tensor().and_then(TensorType::last).unwrap_or(0)
    }

    #[track_caller]
    fn project(self, w: &Weights<'g>, out: usize, dtype: Option<DType>) -> Value<'g> {
        let weight = self.builder.weight(format!("{}.weight", w.path), &[out, self.last()]);
        let mut operands = vec![self.id, weight.id];
        if w.bias {
            operands.push(self.builder.weight(format!("{}.bias", w.path), &[out]).id);
        }
        self.builder.push(Op::Linear { parallel: w.parallel, out: dtype }, &operands, &w.path)
    }

    /// `x·Wᵀ (+ bias)` with `out` features: `[.., K] -> [.., out]`.
    #[track_caller]
    pub fn linear(self, w: Weights<'g>, out: usize) -> Value<'g> {
        self.project(&w, out, None)
    }

    /// The last projection of a language model: like [`Value::linear`], with f32 results.
    #[track_caller]
    pub fn logits(self, w: Weights<'g>, vocab: usize) -> Value<'g> {
        self.project(&w, vocab, Some(DType::F32))
    }

    /// RMS norm over the last dimension with weight `[D]`.
    #[track_caller]
    pub fn rms_norm(self, w: Weights<'g>, eps: f32) -> Value<'g> {
        let weight = self.builder.weight(format!("{}.weight", w.path), &[self.last()]);
        self.builder.push(Op::RmsNorm { eps }, &[self.id, weight.id], &w.path)
    }

    /// `x * sigmoid(x)`.
    #[track_caller]
    pub fn silu(self) -> Value<'g> {
        self.unary(Op::Silu, "silu")
    }

    /// `[T, H*D] -> [T, H, D]`.
    #[track_caller]
    pub fn split_heads(self, heads: usize) -> Value<'g> {
        self.unary(Op::SplitHeads { heads }, "heads")
    }

    /// `[T, H, D] -> [T, H*D]`.
    #[track_caller]
    pub fn merge_heads(self) -> Value<'g> {
        self.unary(Op::MergeHeads, "merged")
    }

    /// Rotary position embedding of each head.
    #[track_caller]
    pub fn rope(self, positions: Value<'g>, rope: &Rope) -> Value<'g> {
        self.binary(Op::Rope(rope.clone()), positions, "rope")
    }

    /// Rows of `[T, ..]` by indices `[L]`.
    #[track_caller]
    pub fn rows(self, indices: Value<'g>) -> Value<'g> {
        self.binary(Op::Rows, indices, "rows")
    }

    /// On a KV cache: writes `k` and `v` of the step's tokens, then `q` attends causally. `[T, H, D]`.
    #[track_caller]
    pub fn attend(self, q: Value<'g>, k: Value<'g>, v: Value<'g>, attention: Attention) -> Value<'g> {
        self.builder.push(Op::Attend(attention), &[q.id, k.id, v.id, self.id], "attention")
    }
}

impl<'g> std::ops::Add for Value<'g> {
    type Output = Value<'g>;
    #[track_caller]
    fn add(self, other: Value<'g>) -> Value<'g> {
        self.binary(Op::Add, other, "sum")
    }
}

impl<'g> std::ops::Mul for Value<'g> {
    type Output = Value<'g>;
    #[track_caller]
    fn mul(self, other: Value<'g>) -> Value<'g> {
        self.binary(Op::Mul, other, "product")
    }
}

/// Type of a step input.
pub fn input_type(input: Input) -> ValueType {
    let dims: Vec<Dim> = match input {
        Input::TokenIds | Input::Positions | Input::SlotMapping => vec![Sym::T.into()],
        Input::QueryStartLoc => vec![Dim::SymPlusOne(Sym::R)],
        Input::SeqLens => vec![Sym::R.into()],
        Input::BlockTable => vec![Sym::R.into(), Sym::M.into()],
        Input::LogitsIndices | Input::Temperature | Input::Ranked | Input::TopK => vec![Sym::L.into()],
        Input::Uniform => vec![Sym::L.into(), Dim::Const(2 * DRAWS)],
        Input::TileSeq | Input::TileStart => vec![Sym::Q.into()],
        Input::Kv(layer) => return ValueType::Kv(layer),
    };
    let dtype = if matches!(input, Input::Temperature | Input::Uniform) { DType::F32 } else { DType::I32 };
    ValueType::Tensor(TensorType::new(dims, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::RopeScaling;

    const ATTENTION: Attention =
        Attention { layer: 0, heads: 4, kv_heads: 2, head_dim: 8, scale: 0.25, window: None, softcap: None };

    fn decoder(builder: &Builder) -> Graph {
        let (w, step) = (builder.weights(), builder.step());
        let rope = Rope { dim: 8, theta: 1e4, scaling: RopeScaling::Default };
        let embed = w.at("embed");
        let x = embed.gather(step.token_ids, 10, 32);
        let h = x.rms_norm(w.at("norm"), 1e-6);
        let [q, k, v] = [("q", 4), ("k", 2), ("v", 2)]
            .map(|(name, heads)| h.linear(w.at(name).cols().bias(name == "q"), heads * 8).split_heads(heads));
        let (q, k) = (q.rope(step.positions, &rope), k.rope(step.positions, &rope));
        let a = step.kv_cache(0).attend(q, k, v, ATTENTION).merge_heads().linear(w.at("o").rows(), 32);
        let x = x + a * a.silu();
        let logits = x.rows(step.logits_indices).logits(embed, 10);
        builder.finish(&[logits])
    }

    #[test]
    fn a_decoder_is_legal_and_reads_back() {
        let graph = decoder(&Builder::new("decoder", DType::Bf16));
        assert_eq!(verify::verify(&graph), []);
        let text = graph.to_string();
        let read = super::super::parse::parse(&text, "t").unwrap();
        assert_eq!(read.to_string(), text);
        assert_eq!(verify::verify(&read), []);
    }

    #[test]
    fn inputs_and_tied_weights_enter_once() {
        let graph = decoder(&Builder::new("decoder", DType::F32));
        let names: Vec<String> =
            graph.order().into_iter().flat_map(|n| graph.node(n).results.clone()).map(|r| r.name).collect();
        assert_eq!(names.iter().filter(|n| n.starts_with("embed.weight")).count(), 1);
        assert_eq!(names.iter().filter(|n| n.starts_with("positions")).count(), 1);
    }

    #[test]
    fn errors_point_at_the_model_and_name_the_place() {
        let builder = Builder::new("bad", DType::F32);
        let (w, step) = (builder.weights(), builder.step());
        let x = w.at("embed").gather(step.token_ids, 10, 32);
        let line = line!() + 1;
        let y = x + x.linear(w.at("layers.3.o_proj"), 31);
        let errors = verify::verify(&builder.finish(&[y]));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].message, "`add` needs operands of one type, not [T, 32]f32 and [T, 31]f32 (in `sum`)");
        assert_eq!(errors[0].loc, Some(Loc { file: file!().to_string(), line }));
    }
}
