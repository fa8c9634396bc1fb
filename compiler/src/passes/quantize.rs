//! Quantises matrix products: weights to values and scales by recipe, activations row by row on their way.
//!
//! Why here, on kernel calls: whatever a product's epilogue and whichever linears were merged, it is quantised in one way;
//! and the norm before a product can hand out values at once.
//!
//! Invariants:
//! - weights are quantised from the checkpoint's own numbers, not from what they were rounded to;
//! - rows of activations are quantised once, however many products read them;
//! - a table of embeddings is quantised where it is also a product's weight, so that it is stored once; another stays as
//!   it is.

use super::{Diagnostics, add, forget_name};
use crate::options::QuantizeChoice;
use petgraph::stable_graph::NodeIndex;
use rvllm_ir::{
    DType, Diagnostic, Dim, Sym, TensorType,
    graph::{Call, Dequantize, Graph, Op, Quantize, ResultInfo, Scales, ValueId, ValueType},
    recipe::{Part, Recipe},
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
}

/// Columns that share a scale of 4 bits: those of ggml's Q4_0.
const GROUP: usize = 32;

impl Scheme {
    fn of(choice: QuantizeChoice) -> Scheme {
        match choice {
            QuantizeChoice::Int8 => Scheme { x: DType::I8, weight: DType::I8, group: None, logits: true },
            QuantizeChoice::Int4 => Scheme { x: DType::I8, weight: DType::U4, group: Some(GROUP), logits: true },
            // three bits after the point are few where the order of logits is at stake: vLLM leaves them too
            QuantizeChoice::Fp8 => Scheme { x: DType::F8e4m3, weight: DType::F8e4m3, group: None, logits: false },
        }
    }

    fn rows(self) -> Quantize {
        Quantize { to: self.x, group: self.group }
    }

    fn scales(self) -> Scales {
        self.group.map_or(Scales::Rows, Scales::Groups)
    }
}

/// The graph of kernel calls with its products quantised; or every product that cannot be.
///
/// # Errors
/// A product whose sums do not divide into groups, or whose weight is not made from the checkpoint.
pub fn quantize(mut graph: Graph, choice: QuantizeChoice) -> Result<Graph, Diagnostics> {
    let scheme = Scheme::of(choice);
    let products: Vec<NodeIndex> = graph.order().into_iter().filter(|n| is_product(&graph, *n, scheme)).collect();
    let errors: Vec<Diagnostic> = products.iter().filter_map(|n| refused(&graph, *n, scheme, choice)).collect();
    if !errors.is_empty() {
        return Err(Diagnostics(errors));
    }
    for n in graph.order() {
        shared_table(&mut graph, n, scheme);
    }
    for n in products {
        product(&mut graph, n, scheme);
    }
    graph.remove_dead();
    for n in graph.order() {
        norm(&mut graph, n);
    }
    graph.remove_dead();
    Ok(graph)
}

fn is_product(graph: &Graph, n: NodeIndex, scheme: Scheme) -> bool {
    let logits = || graph.tensor(ValueId { node: n, result: 0 }).dims.first() == Some(&Dim::Sym(Sym::L));
    matches!(graph.node(n).op, Op::Call(Call::Gemm { scales: Scales::None, .. })) && (scheme.logits || !logits())
}

/// Why a product cannot be quantised.
fn refused(graph: &Graph, n: NodeIndex, scheme: Scheme, choice: QuantizeChoice) -> Option<Diagnostic> {
    let [_, w, ..] = graph.operands(n)[..] else { return None };
    let (node, name) = (graph.node(n), &graph.result(w).name);
    let k = graph.tensor(w).last()?;
    let message = match (scheme.group, &graph.node(w.node).op) {
        (_, op) if !matches!(op, Op::Weight(_)) => format!("`{name}` is no weight, so it cannot be quantised"),
        (Some(group), _) if !k.is_multiple_of(group) => format!(
            "--quantize {choice} cuts sums into groups of {group}, but those of `{name}` have {k} terms · help: \
             --quantize int8 takes any number"
        ),
        _ => return None,
    };
    Some(Diagnostic::new(message, node.loc.clone()))
}

/// A table that is also a product's weight. Why: it is stored once.
fn shared_table(graph: &mut Graph, n: NodeIndex, scheme: Scheme) {
    let (Op::Call(Call::Embed { values: None }), [table, ids]) = (&graph.node(n).op, &graph.operands(n)[..]) else {
        return;
    };
    let (table, ids) = (*table, *ids);
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
    let x = quantized_rows(graph, operands[0], scheme.rows());
    let [values, scales] = [Part::Values, Part::Scales].map(|part| weight(graph, operands[1], scheme, part));
    let at = |result| ValueId { node: x, result };
    let mut quantized = vec![at(0), values];
    quantized.extend(&operands[2..]);
    quantized.extend([at(1), scales]);
    quantized.extend(scheme.group.map(|_| at(2)));
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

/// One of the two tensors of a quantised weight, made once.
fn weight(graph: &mut Graph, w: ValueId, scheme: Scheme, part: Part) -> ValueId {
    let Op::Weight(recipe) = graph.node(w.node).op.clone() else { return w };
    let recipe = quantized(&recipe, scheme, part);
    let known = graph.dag().node_indices().find(|n| matches!(&graph.node(*n).op, Op::Weight(r) if *r == recipe));
    if let Some(node) = known {
        return ValueId { node, result: 0 };
    }
    let (name, loc) = (graph.result(w).name.clone(), graph.node(w.node).loc.clone());
    let dims = graph.tensor(w).dims.clone();
    let (name, ty) = match (part, scheme.group) {
        (Part::Values, _) => (format!("{name}.values"), TensorType { dims, dtype: scheme.weight }),
        (Part::Scales, None) => (format!("{name}.scales"), TensorType::new([dims[0]], DType::F32)),
        (Part::Scales, Some(group)) => {
            let groups = dims[1].constant().unwrap_or(0) / group;
            (format!("{name}.scales"), TensorType::new([dims[0], groups.into()], DType::F16))
        }
    };
    let info = ResultInfo { name, ty: ValueType::Tensor(ty) };
    ValueId { node: graph.add(Op::Weight(recipe), &[], vec![info], loc), result: 0 }
}

/// Rows are quantised by themselves, so each tensor of the checkpoint is.
fn quantized(recipe: &Recipe, scheme: Scheme, part: Part) -> Recipe {
    match recipe {
        Recipe::Concat(parts) => Recipe::Concat(parts.iter().map(|of| quantized(of, scheme, part)).collect()),
        // rounded only for the sake of unquantised products
        Recipe::Cast(_, of) => quantized(of, scheme, part),
        of => Recipe::Quantize { to: scheme.weight, group: scheme.group, part, of: Box::new(of.clone()) },
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
