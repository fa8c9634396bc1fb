//! Chooses kernels: every call becomes a launch of one or more variants with the target's numbers, every value gets
//! a buffer or becomes a view, every weight a layout.
//!
//! Invariants:
//! - equal kernels are one kernel: layers of one shape share object code;
//! - a weight is stored once; a table that is also a projection's weight keeps the projection's layout;
//! - symbols follow from a kernel's numbers, so that two compiles name it alike.

mod layout;
mod parts;
mod spec;

use super::Diagnostics;
use crate::program::{Arg, Buffer, KvCache, Launch, Limits, Program, Variant};
use petgraph::stable_graph::NodeIndex;
use rvllm_ir::{
    DType, Diagnostic, Sym,
    graph::{Call, Graph, Input, Op, ValueId, ValueType},
    tile::MemLayout,
};
use rvllm_kernels::{Feed, Spec};
use rvllm_targets::Target;
pub(crate) use spec::has_schedule;
use std::collections::HashMap;

/// The program of `graph` (kernel calls only: the result of `fuse`) on `target`; or what it has no kernel for. The KV cache
/// has elements of `stored`, of what attention computes with where absent.
pub fn select(graph: &Graph, target: &Target, limits: &Limits, stored: Option<DType>) -> Result<Program, Diagnostics> {
    let mut selection = Selection {
        graph,
        target,
        limits,
        stored,
        program: Program::default(),
        places: HashMap::new(),
        specs: vec![],
        weights: HashMap::new(),
    };
    let errors: Vec<Diagnostic> = graph.order().into_iter().filter_map(|n| selection.node(n).err()).collect();
    if !errors.is_empty() {
        return Err(Diagnostics(errors));
    }
    selection.finish().map_err(|e| Diagnostics(vec![e]))
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a buffer, `row` elements apart where it is a view of some columns.
    Buffer {
        id: usize,
        offset: usize,
        row: Option<usize>,
    },
    Input(Input),
    Kv(usize),
    /// A weight gets its number when a launch first reads it.
    Weight,
}

struct Selection<'a> {
    graph: &'a Graph,
    target: &'a Target,
    limits: &'a Limits,
    /// Element type of the KV cache, where it is not that of what attention computes with.
    stored: Option<DType>,
    program: Program,
    places: HashMap<ValueId, Place>,
    /// What each kernel of the program was made from.
    specs: Vec<Spec>,
    weights: HashMap<NodeIndex, usize>,
}

/// What a call launches: under which bound, and from which numbers.
type Choice = (Option<(Sym, usize)>, Spec);

impl Selection<'_> {
    fn node(&mut self, n: NodeIndex) -> Result<(), Diagnostic> {
        let node = self.graph.node(n);
        let value = ValueId { node: n, result: 0 };
        let placed = match &node.op {
            Op::Input(Input::Kv(layer)) => Ok(Place::Kv(*layer)),
            Op::Input(input) => Ok(Place::Input(*input)),
            Op::Weight(_) => Ok(Place::Weight),
            Op::Slice { start, .. } => self.view(n, *start),
            Op::Call(call) => return self.launch(n, call).map_err(|m| self.give_up(n, m)),
            other => Err(format!("`{}` is not a kernel call", other.name())),
        };
        self.places.insert(value, placed.map_err(|m| self.error(n, m))?);
        Ok(())
    }

    /// The error of a call whose results are placed all the same, so that their readers add no errors of their own.
    fn give_up(&mut self, n: NodeIndex, message: String) -> Diagnostic {
        self.results(n);
        self.error(n, message)
    }

    fn error(&self, n: NodeIndex, message: String) -> Diagnostic {
        Diagnostic::new(message, self.graph.node(n).loc.clone())
    }

    /// Columns of a buffer from `start` on.
    fn view(&self, n: NodeIndex, start: usize) -> Result<Place, String> {
        let of = self.operand(n, 0)?;
        let ty = self.graph.tensor(of);
        match (self.places.get(&of), ty.rank(), ty.last()) {
            (Some(Place::Buffer { id, offset, row }), 2, Some(width)) => {
                Ok(Place::Buffer { id: *id, offset: offset + ty.dtype.bytes(start), row: row.or(Some(width)) })
            }
            _ => Err(format!("`{}` is a view of {ty}, which is not a matrix in a buffer", self.name(n))),
        }
    }

    fn name(&self, n: NodeIndex) -> &str {
        self.graph.node(n).results.first().map_or("", |r| &r.name)
    }

    fn operand(&self, n: NodeIndex, i: usize) -> Result<ValueId, String> {
        self.graph.operands(n).get(i).copied().ok_or_else(|| format!("`{}` lacks operand {i}", self.name(n)))
    }

    fn launch(&mut self, n: NodeIndex, call: &Call) -> Result<(), String> {
        let choices = self.choices(n, call)?;
        let mut args = vec![];
        for (i, operand) in self.graph.operands(n).into_iter().enumerate() {
            self.dense_where_needed(call, i, operand)?;
            args.extend(self.args(operand)?);
        }
        let results = self.results(n);
        args.extend(&results);
        let name = self.name(n).to_string();
        let apart = self.apart(&name, &choices);
        args.extend(apart.iter().flat_map(|apart| apart.states()));
        let variants =
            choices.into_iter().map(|(at_most, spec)| Variant { at_most, kernel: Some(self.kernel(spec)) }).collect();
        self.program.launches.push(Launch { name: name.clone(), args, variants });
        if let Some(apart) = apart {
            self.join(&name, apart, &results);
        }
        Ok(())
    }

    /// Kernels read views only where they take a distance between rows.
    fn dense_where_needed(&self, call: &Call, i: usize, operand: ValueId) -> Result<(), String> {
        let strided = match call {
            Call::Gemm { .. } | Call::RmsNorm { .. } | Call::QuantizeRows(_) => 1,
            Call::RopeKvWrite { .. } => 3,
            Call::Embed { .. } | Call::PagedAttention(_) | Call::LogitStats | Call::Draw | Call::Rank | Call::TopK => 0,
        };
        if i >= strided && self.row(operand).is_some() {
            let name = &self.graph.result(operand).name;
            return Err(format!("`{}` needs operand {i} dense, but `{name}` is a view of columns", call.name()));
        }
        Ok(())
    }

    /// Elements between rows of a view.
    fn row(&self, value: ValueId) -> Option<usize> {
        match self.places.get(&value) {
            Some(Place::Buffer { row, .. }) => *row,
            _ => None,
        }
    }

    /// Layout of what a product multiplies.
    fn matrix(&self, value: ValueId) -> MemLayout {
        match self.activation_layout(value) {
            panel @ MemLayout::Panel { .. } => panel,
            MemLayout::Strided { .. } | MemLayout::Blocks { .. } | MemLayout::Fragments { .. } => self.strided(value),
        }
    }

    /// Layout of a matrix operand.
    fn strided(&self, value: ValueId) -> MemLayout {
        MemLayout::Strided { row: self.row(value) }
    }

    /// A value as kernels take it: a KV cache is two tensors, and two more of their scales where it has some.
    fn args(&mut self, value: ValueId) -> Result<Vec<Arg>, String> {
        Ok(match self.places.get(&value).copied() {
            Some(Place::Buffer { id, offset, .. }) => vec![Arg::Buffer { id, offset }],
            Some(Place::Input(input)) => vec![Arg::Input(input)],
            Some(Place::Kv(layer)) => {
                let scales = self.program.kv_cache.filter(|cache| cache.scale_bytes() > 0);
                let scales = scales.map(|_| [Arg::KeyScales(layer), Arg::ValueScales(layer)]);
                [Arg::KeyCache(layer), Arg::ValueCache(layer)].into_iter().chain(scales.into_iter().flatten()).collect()
            }
            Some(Place::Weight) => vec![Arg::Weight(self.weight(value)?)],
            None => return Err(format!("`{}` is not placed", self.graph.result(value).name)),
        })
    }

    /// A buffer for every tensor that the call yields; a KV result is its operand, written in place.
    fn results(&mut self, n: NodeIndex) -> Vec<Arg> {
        let mut args = vec![];
        for (i, info) in self.graph.node(n).results.iter().enumerate() {
            let place = match &info.ty {
                ValueType::Kv(layer) => Place::Kv(*layer),
                ValueType::Tensor(ty) => {
                    let id = self.program.buffers.len();
                    self.program.buffers.push(Buffer { name: info.name.clone(), ty: ty.clone() });
                    args.push(Arg::Buffer { id, offset: 0 });
                    Place::Buffer { id, offset: 0, row: None }
                }
            };
            self.places.insert(ValueId { node: n, result: i as u32 }, place);
        }
        args
    }

    /// The kernel made from `spec`, made once.
    fn kernel(&mut self, spec: Spec) -> usize {
        if let Some(known) = self.specs.iter().position(|s| *s == spec) {
            return known;
        }
        let base = spec::symbol(&spec);
        let taken = |name: &str| self.program.kernels.iter().any(|k| k.name == name);
        let name = match taken(&base) {
            false => base,
            true => (1..).map(|i| format!("{base}_{i}")).find(|n| !taken(n)).unwrap_or(base),
        };
        self.program.kernels.push(spec.kernel(&name));
        self.specs.push(spec);
        self.specs.len() - 1
    }

    /// Notes the cache of one more layer: all layers have one shape.
    fn kv_cache(&mut self, layer: rvllm_kernels::KvCache) -> Result<(), String> {
        match &mut self.program.kv_cache {
            Some(known) if known.layer != layer => {
                Err(format!("the KV cache of a layer is {layer:?}, but an earlier one is {:?}", known.layer))
            }
            Some(known) => {
                known.layers += 1;
                Ok(())
            }
            None => {
                self.program.kv_cache = Some(KvCache { layers: 1, layer });
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Result<Program, Diagnostic> {
        let outputs: Vec<usize> = self.graph.outputs.iter().filter_map(|v| self.output(*v)).collect();
        self.program.outputs = <[usize; 8]>::try_from(outputs).map_err(|found| {
            let message = format!(
                "graph @{} yields {} of logits, their 4 statistics, draws, ranks and the most likely",
                self.graph.name,
                found.len()
            );
            Diagnostic::new(message, None)
        })?;
        if self.target.gpu.is_some() {
            self.feed();
        }
        Ok(self.program)
    }

    /// Has the program begin with the tokens that the step before chose: a host that computes elsewhere need not have them to begin
    /// a step. The launch reads before any other writes, what draws it finds are those of the step before.
    fn feed(&mut self) {
        let [logits, .., draws, _, _] = self.program.outputs;
        let vocab = self.program.buffers.get(logits).and_then(|b| b.ty.last()).unwrap_or_default();
        let kernel = self.kernel(Spec::Feed(Feed { vocab, rows: self.limits.max_logits }));
        let args = vec![Arg::Buffer { id: draws, offset: 0 }, Arg::Input(Input::TokenIds)];
        let variants = vec![Variant { at_most: None, kernel: Some(kernel) }];
        self.program.launches.insert(0, Launch { name: "token_ids".to_string(), args, variants });
        self.program.feeds = true;
    }

    fn output(&self, value: ValueId) -> Option<usize> {
        match self.places.get(&value) {
            Some(Place::Buffer { id, offset: 0, row: None }) => Some(*id),
            _ => None,
        }
    }
}
