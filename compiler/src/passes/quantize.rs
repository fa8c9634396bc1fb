//! Quantises matrix products: weights to values and scales by recipe, activations row by row on their way.
//!
//! Why here, on kernel calls: whatever a product's epilogue and whichever linears were merged, it is quantised in one way;
//! and the norm before a product can hand out values at once.
//!
//! A weight that the checkpoint stores quantised, with as few bits or fewer, keeps its values, scales and zeros.
//!
//! Invariants:
//! - other weights are quantised from the checkpoint's own numbers, not from what they were rounded to;
//! - rows of activations are quantised once, however many products read them;
//! - a table of embeddings is quantised where it is also a product's weight, so that it is stored once; another stays as
//!   it is.

use super::{Diagnostics, add, forget_name};
use crate::{emit, options::QuantizeChoice};
use petgraph::stable_graph::NodeIndex;
use rvllm_artifact::quantized::{Part, Stored};
use rvllm_ir::{
    DType, Diagnostic, Dim, Sym, TensorType,
    graph::{Call, Dequantize, Graph, Op, Quantize, ResultInfo, Scales, ValueId, ValueType},
    recipe::{self, Recipe},
};

/// How values and scales are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scheme {
    /// Element type of activations.
    x: DType,
    /// Element type of weights.
    weight: DType,
    /// Columns of a weight that share a scale.
    group: Option<usize>,
    /// Whether the product that gives logits is quantised too.
    logits: bool,
    /// Element type of a weight's scales.
    scale: DType,
    /// Whether groups have zeros of their own.
    zeros: bool,
    /// Whether the checkpoint has them; else they are made of its numbers.
    stored: bool,
    /// Whether activations stay numbers.
    weight_only: bool,
}

/// Columns that share a scale of 4 bits: those of ggml's Q4_0.
const GROUP: usize = 32;

impl Scheme {
    fn of(choice: QuantizeChoice) -> Scheme {
        match choice {
            QuantizeChoice::Int8 => Scheme::new(DType::I8, None, DType::F32),
            QuantizeChoice::Int4 => Scheme::new(DType::U4, Some(GROUP), DType::F16),
            // three bits after the point are few where the order of logits is at stake: vLLM leaves them too
            QuantizeChoice::Fp8 => {
                Scheme { x: DType::F8e4m3, logits: false, ..Scheme::new(DType::F8e4m3, None, DType::F32) }
            }
        }
    }

    fn new(weight: DType, group: Option<usize>, scale: DType) -> Scheme {
        Scheme { x: DType::I8, weight, group, logits: true, scale, zeros: false, stored: false, weight_only: false }
    }

    fn stored(of: Stored, kept: bool) -> Scheme {
        let Stored { values, group, scales, zeros } = of;
        let [values, scales] = [values, scales].map(emit::ir_dtype);
        let made = match values {
            DType::F8e4m3 => {
                Scheme { group: group.map(|n| n as usize), scale: scales, ..Scheme::of(QuantizeChoice::Fp8) }
            }
            _ => Scheme { zeros, ..Scheme::new(values, group.map(|n| n as usize), scales) },
        };
        Scheme { stored: kept, ..made }
    }

    fn rows(self) -> Quantize {
        // sums are of weights that are unsigned
        Quantize { to: self.x, group: self.group.filter(|_| !self.weight.is_float()) }
    }

    fn scales(self) -> Scales {
        match self.group {
            Some(group) if self.weight_only => Scales::WeightOnly { group, zeros: self.zeros },
            _ => Scales::of(self.weight, self.group, self.zeros),
        }
    }
}

/// What products are quantised to.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// What those are quantised to that the checkpoint does not store so; nothing where absent.
    pub choice: Option<QuantizeChoice>,
    /// How the checkpoint stores a tensor that may be multiplied with as it is stored.
    pub stored: &'a dyn Fn(&str) -> Option<Stored>,
    /// Whether what is stored is at hand; else numbers are quantised as it would be.
    pub kept: bool,
    /// Whether weights in groups are multiplied with activations as they are.
    pub weight_only: bool,
}

impl Wanted<'_> {
    /// What a product with this weight is quantised to. One that is stored with no more bits than asked for stays.
    fn scheme(self, graph: &Graph, w: ValueId) -> Option<Scheme> {
        let stored = match &graph.node(w.node).op {
            Op::Weight(recipe) => stored_alike(recipe, self.stored),
            _ => None,
        };
        let scheme = match (self.choice.map(Scheme::of), stored.map(|of| Scheme::stored(of, self.kept))) {
            (Some(asked), Some(stored)) if stored.weight.bits() > asked.weight.bits() => Some(asked),
            (asked, stored) => stored.or(asked),
        };
        scheme.map(|s| Scheme { weight_only: self.weight_only && s.group.is_some() && !s.weight.is_float(), ..s })
    }
}

/// How all tensors of a weight are stored, where they are stored in one way.
pub(super) fn stored_alike(recipe: &Recipe, stored: &dyn Fn(&str) -> Option<Stored>) -> Option<Stored> {
    match recipe {
        Recipe::Tensor(name) => stored(name),
        Recipe::Cast(_, of) => stored_alike(of, stored),
        Recipe::Concat(parts) => {
            let (first, rest) = parts.split_first()?;
            let first = stored_alike(first, stored)?;
            rest.iter().all(|part| stored_alike(part, stored) == Some(first)).then_some(first)
        }
        _ => None,
    }
}

/// The graph of kernel calls with its products quantised; or every product that cannot be.
///
/// # Errors
/// A product whose sums do not divide into groups, or whose weight is not made from the checkpoint.
pub fn quantize(mut graph: Graph, wanted: Wanted<'_>) -> Result<Graph, Diagnostics> {
    let products: Vec<(NodeIndex, Scheme)> = products(&graph, wanted);
    let refused = |(n, scheme): &(NodeIndex, Scheme)| refused(&graph, *n, *scheme, wanted.choice?);
    let errors: Vec<Diagnostic> = products.iter().filter_map(refused).collect();
    if !errors.is_empty() {
        return Err(Diagnostics(errors));
    }
    for n in graph.order() {
        shared_table(&mut graph, n, wanted);
    }
    for (n, scheme) in products {
        product(&mut graph, n, scheme);
    }
    graph.remove_dead();
    for n in graph.order() {
        norm(&mut graph, n);
    }
    graph.remove_dead();
    Ok(graph)
}

/// The products that are to be quantised.
fn products(graph: &Graph, wanted: Wanted<'_>) -> Vec<(NodeIndex, Scheme)> {
    let product = |n: NodeIndex| {
        let scheme = wanted.scheme(graph, *graph.operands(n).get(1)?)?;
        // of what was not asked for, only what can be is multiplied as it is stored
        let can =
            !scheme.weight_only || wanted.choice.is_some() || graph.tensor(graph.operands(n)[0]).dtype.bits() == 16;
        (can && is_product(graph, n, scheme)).then_some((n, scheme))
    };
    graph.order().into_iter().filter_map(product).collect()
}

fn is_product(graph: &Graph, n: NodeIndex, scheme: Scheme) -> bool {
    let logits = || graph.tensor(ValueId { node: n, result: 0 }).dims.first() == Some(&Dim::Sym(Sym::L));
    let whole = matches!(graph.node(n).op, Op::Call(Call::Gemm { scales: Scales::None, .. }));
    whole && (scheme.logits || !logits()) && !(scheme.weight_only && is_looked_up(graph, n))
}

/// Whether a product's weight is a table of embeddings too, which is looked up as numbers where weights alone are quantised.
fn is_looked_up(graph: &Graph, n: NodeIndex) -> bool {
    let looks_up = |user: NodeIndex| matches!(graph.node(user).op, Op::Call(Call::Embed { .. }));
    graph.operands(n).get(1).is_some_and(|w| graph.users(*w).iter().any(|(user, _)| looks_up(*user)))
}

/// Why a product cannot be quantised.
fn refused(graph: &Graph, n: NodeIndex, scheme: Scheme, choice: QuantizeChoice) -> Option<Diagnostic> {
    let [x, w, ..] = graph.operands(n)[..] else { return None };
    let (node, name) = (graph.node(n), &graph.result(w).name);
    let k = graph.tensor(w).last()?;
    let message = match (scheme.group, &graph.node(w.node).op) {
        (_, op) if !matches!(op, Op::Weight(_)) => format!("`{name}` is no weight, so it cannot be quantised"),
        (Some(group), _) if !k.is_multiple_of(group) => format!(
            "--quantize {choice} cuts sums into groups of {group}, but those of `{name}` have {k} terms · help: \
             --quantize int8 takes any number"
        ),
        _ if scheme.weight_only && graph.tensor(x).dtype.bits() != 16 => format!(
            "--quantize {choice} multiplies activations of 16 bits here, but those that meet `{name}` are {} · help: --dtype bf16",
            graph.tensor(x).dtype
        ),
        _ => return None,
    };
    Some(Diagnostic::new(message, node.loc.clone()))
}

/// A table that is also a product's weight. Why: it is stored once.
fn shared_table(graph: &mut Graph, n: NodeIndex, wanted: Wanted<'_>) {
    let (Op::Call(Call::Embed { values: None }), [table, ids]) = (&graph.node(n).op, &graph.operands(n)[..]) else {
        return;
    };
    let (table, ids) = (*table, *ids);
    let lookup = |s: &Scheme| !s.zeros && (s.group.is_none() || (s.scale == DType::F16 && !s.weight.is_float()));
    let Some(scheme) = wanted.scheme(graph, table).filter(lookup).filter(|s| !s.weight_only) else { return };
    if !graph.users(table).iter().any(|(user, operand)| *operand == 1 && is_product(graph, *user, scheme)) {
        return;
    }
    let [values, scales] = [Part::Values, Part::Scales].map(|part| weight(graph, table, scheme, part));
    let (old, loc) = (ValueId { node: n, result: 0 }, graph.node(n).loc.clone());
    let how = Dequantize { group: scheme.group, out: graph.tensor(old).dtype };
    let name = forget_name(graph, old);
    let call = Call::Embed { values: Some(how) };
    let new = add(graph, Op::Call(call), &[values, ids, scales], &[name], loc);
    graph.replace(old, ValueId { node: new, result: 0 });
}

/// Gives a product quantised operands.
fn product(graph: &mut Graph, n: NodeIndex, scheme: Scheme) {
    let (Op::Call(Call::Gemm { epilogue, out, .. }), operands) = (graph.node(n).op.clone(), graph.operands(n)) else {
        return;
    };
    let x = (!scheme.weight_only).then(|| quantized_rows(graph, operands[0], scheme.rows()));
    let at = |result| x.map(|node| ValueId { node, result });
    let [values, scales] = [Part::Values, Part::Scales].map(|part| weight(graph, operands[1], scheme, part));
    let mut quantized = vec![at(0).unwrap_or(operands[0]), values];
    quantized.extend(&operands[2..]);
    quantized.extend(at(1));
    quantized.push(scales);
    quantized.extend(scheme.rows().group.and_then(|_| at(2)));
    quantized.extend(scheme.zeros.then(|| weight(graph, operands[1], scheme, Part::Zeros)));
    let (old, loc) = (ValueId { node: n, result: 0 }, graph.node(n).loc.clone());
    let name = forget_name(graph, old);
    let call = Call::Gemm { epilogue, scales: scheme.scales(), out };
    let new = add(graph, Op::Call(call), &quantized, &[name], loc);
    graph.replace(old, ValueId { node: new, result: 0 });
}

/// The call that quantises the rows of `x`, made once.
fn quantized_rows(graph: &mut Graph, x: ValueId, how: Quantize) -> NodeIndex {
    let op = Op::Call(Call::QuantizeRows(how));
    let known = graph.users(x).into_iter().map(|(n, _)| n).find(|n| graph.node(*n).op == op);
    known.unwrap_or_else(|| {
        let names = names(&graph.result(x).name);
        let loc = graph.node(x.node).loc.clone();
        add(graph, op, &[x], &names[..how.results()], loc)
    })
}

fn names(x: &str) -> [String; 3] {
    ["values", "scale", "sums"].map(|part| format!("{x}.{part}"))
}

/// One of the tensors of a quantised weight, made once.
fn weight(graph: &mut Graph, w: ValueId, scheme: Scheme, part: Part) -> ValueId {
    let Op::Weight(recipe) = graph.node(w.node).op.clone() else { return w };
    let recipe = quantized(&recipe, scheme, part);
    let known = graph.dag().node_indices().find(|n| matches!(&graph.node(*n).op, Op::Weight(r) if *r == recipe));
    if let Some(node) = known {
        return ValueId { node, result: 0 };
    }
    let (name, loc) = (graph.result(w).name.clone(), graph.node(w.node).loc.clone());
    let dims = graph.tensor(w).dims.clone();
    let groups = scheme.group.map(|group| dims[1].constant().unwrap_or(0) / group);
    let ty = match (part, groups) {
        (Part::Numbers | Part::Values, _) => TensorType { dims, dtype: scheme.weight },
        (Part::Scales | Part::Zeros, None) => TensorType::new([dims[0]], scheme.scale),
        (Part::Scales, Some(groups)) => TensorType::new([dims[0], groups.into()], scheme.scale),
        (Part::Zeros, Some(groups)) => TensorType::new([dims[0], groups.into()], DType::F16),
    };
    let info = ResultInfo { name: part.name(&name), ty: ValueType::Tensor(ty) };
    ValueId { node: graph.add(Op::Weight(recipe), &[], vec![info], loc), result: 0 }
}

/// Rows are quantised by themselves, so each tensor of the checkpoint is.
fn quantized(recipe: &Recipe, scheme: Scheme, part: Part) -> Recipe {
    match recipe {
        Recipe::Concat(parts) => Recipe::Concat(parts.iter().map(|of| quantized(of, scheme, part)).collect()),
        // rounded only for the sake of unquantised products
        Recipe::Cast(_, of) => quantized(of, scheme, part),
        Recipe::Tensor(name) if scheme.stored => Recipe::Tensor(part.name(name)),
        of => {
            let part = if part == Part::Values { recipe::Part::Values } else { recipe::Part::Scales };
            Recipe::Quantize { to: scheme.weight, group: scheme.group, part, of: Box::new(of.clone()) }
        }
    }
}

/// A norm that only values are made of. Why: the row is in cache, and its norm is never stored.
fn norm(graph: &mut Graph, n: NodeIndex) {
    let Op::Call(Call::QuantizeRows(how)) = graph.node(n).op else { return };
    let Some(x) = graph.operands(n).first().copied() else { return };
    let Op::Call(Call::RmsNorm { eps, residual, rows, quantize: None }) = graph.node(x.node).op else { return };
    if x.result != 0 || graph.sole_user(x) != Some(n) {
        return;
    }
    let (operands, loc) = (graph.operands(x.node), graph.node(x.node).loc.clone());
    let values = (0..how.results() as u32).map(|result| ValueId { node: n, result });
    let sum = residual.then_some(ValueId { node: x.node, result: 1 });
    let old: Vec<ValueId> = values.chain(sum).collect();
    let names: Vec<String> = old.iter().map(|v| forget_name(graph, *v)).collect();
    let call = Call::RmsNorm { eps, residual, rows, quantize: Some(how) };
    let new = add(graph, Op::Call(call), &operands, &names, loc);
    for (result, old) in old.into_iter().enumerate() {
        graph.replace(old, ValueId { node: new, result: result as u32 });
    }
}
