//! Attention whose parts are worked on apart: the memory for their states, and the launch that joins them.
//!
//! Invariant: a step joins parts if and only if its attention left them, as both launches choose by the same bounds.

use super::{Choice, Selection};
use crate::program::{Arg, Buffer, Launch, Variant};
use rvllm_ir::{Sym, graph::Input};
use rvllm_kernels::{PagedAttention, Spec, Spread, part_states};

/// Attention with parts apart.
pub(super) struct Apart {
    /// The bound under which it is chosen, before all others.
    bound: Option<(Sym, usize)>,
    spec: PagedAttention,
    states: [Arg; 2],
}

impl Selection<'_> {
    /// The choice with parts apart, where there is one, with buffers for their states.
    pub(super) fn apart(&mut self, name: &str, choices: &[Choice]) -> Option<Apart> {
        let (bound, Spec::PagedAttention(spec)) = choices.first()? else { return None };
        spec.split.filter(|split| split.spread == Spread::Apart)?;
        let names = ["part_sums", "part_weights"].map(|what| format!("{name}.{what}"));
        let mut types = part_states(spec)?.into_iter();
        let states = names.map(|name| {
            let id = self.program.buffers.len();
            self.program.buffers.extend(types.next().map(|ty| Buffer { name, ty }));
            Arg::Buffer { id, offset: 0 }
        });
        Some(Apart { bound: *bound, spec: spec.clone(), states })
    }

    /// Joins what the launch before left; nothing where its sequences have one part.
    pub(super) fn join(&mut self, name: &str, apart: Apart, out: &[Arg]) {
        let Apart { bound, spec, states } = apart;
        let inputs = [Input::TileSeq, Input::TileStart, Input::QueryStartLoc, Input::SeqLens].map(Arg::Input);
        let args = inputs.iter().chain(&states).chain(out).copied().collect();
        let one = spec.split.map_or(0, |split| split.iterations * spec.blocks);
        let kernel = Some(self.kernel(Spec::JoinParts(spec)));
        let variants = vec![
            Variant { at_most: Some((Sym::M, one)), kernel: None },
            Variant { at_most: bound, kernel },
            Variant { at_most: None, kernel: None },
        ];
        self.program.launches.push(Launch { name: format!("{name}.join"), args, variants });
    }
}

impl Apart {
    pub(super) fn states(&self) -> [Arg; 2] {
        self.states
    }
}
