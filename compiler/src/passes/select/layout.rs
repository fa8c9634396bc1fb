//! How weights lie in memory, and the recipes that lay them so.

use super::Selection;
use crate::program::{Weight, stored_shape};
use petgraph::stable_graph::NodeIndex;
use rvllm_ir::{
    DType, TensorType,
    graph::{Call, Op, Scales, ValueId},
    recipe::Recipe,
    tile::{FRAGMENT_COLUMNS, MemLayout},
};

/// Bits of a block's row.
const BLOCK_BITS: usize = 8 * 128;

/// How a weight is used: decides its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Multiplied with; in panels, so many adjacent columns of a row lie together.
    Matrix { adjacent: usize },
    /// Gates, then ups: each half is packed by itself.
    Gated { adjacent: usize },
    /// Scales, or zeros, of groups of a weight that a GPU's matrix units take: of as many matrices, and so many of a row of
    /// which lie next to each other.
    Groups { matrices: usize, adjacent: usize },
    /// Everything else.
    Dense,
}

impl Selection<'_> {
    /// Number of the weight that `value` is.
    pub(super) fn weight(&mut self, value: ValueId) -> Result<usize, String> {
        if let Some(known) = self.weights.get(&value.node) {
            return Ok(*known);
        }
        let weight = self.stored(value)?;
        self.program.weights.push(weight);
        let id = self.program.weights.len() - 1;
        self.weights.insert(value.node, id);
        Ok(id)
    }

    /// Layout of weight `value` as kernels declare it.
    pub(super) fn weight_layout(&self, value: ValueId) -> MemLayout {
        match self.role(value) {
            Role::Dense => MemLayout::DENSE,
            Role::Groups { adjacent, .. } => MemLayout::Fragments { k: adjacent },
            Role::Matrix { adjacent } | Role::Gated { adjacent } => {
                self.matrix_layout(self.graph.tensor(value).dtype, adjacent)
            }
        }
    }

    /// Panels for vector units, blocks for a GPU's matrix units, which take elements of 16 bits, and of 8 in floating point;
    /// pieces of values of 4 bits, which become such.
    fn matrix_layout(&self, dtype: DType, k: usize) -> MemLayout {
        match (self.target.panel, &self.target.gpu) {
            (Some(n), _) => MemLayout::Panel { n, k },
            (None, Some(_)) if dtype == DType::U4 => MemLayout::Fragments { k: FRAGMENT_COLUMNS },
            (None, Some(_)) if dtype.bits() == 16 || dtype == DType::F8e4m3 => {
                MemLayout::Blocks { k: BLOCK_BITS / dtype.bits() }
            }
            _ => MemLayout::DENSE,
        }
    }

    /// How an activation lies that a kernel computes: in panels where only products read it, by rows that their unit takes
    /// as they lie.
    pub(super) fn activation_layout(&self, value: ValueId) -> MemLayout {
        let ty = self.graph.tensor(value);
        let Some([n, k]) = self.target.activation_panel(ty.dtype.bits()) else { return MemLayout::DENSE };
        let known = matches!(ty.dtype, DType::Bf16 | DType::I8);
        let matrix = known && ty.rank() == 2 && ty.last().is_some_and(|cols| cols.is_multiple_of(k));
        let written = match &self.graph.node(value.node).op {
            Op::Call(Call::Gemm { .. } | Call::PagedAttention(_)) => true,
            Op::Call(Call::RmsNorm { .. } | Call::QuantizeRows(_)) => value.result == 0,
            _ => false,
        };
        // values in groups are multiplied on vectors, which want rows
        let multiplied = |(user, operand): &(NodeIndex, u32)| {
            let whole = |scales: &Scales| scales.group().is_none();
            *operand == 0 && matches!(&self.graph.node(*user).op, Op::Call(Call::Gemm { scales, .. }) if whole(scales))
        };
        let users = self.graph.users(value);
        let read = !users.is_empty() && users.iter().all(multiplied) && !self.graph.outputs.contains(&value);
        if matrix && written && read { MemLayout::Panel { n, k } } else { MemLayout::DENSE }
    }

    fn role(&self, value: ValueId) -> Role {
        let as_matrix = |(user, operand): &(NodeIndex, u32)| match &self.graph.node(*user).op {
            Op::Call(Call::Gemm { epilogue, .. }) if *operand == 1 => {
                Some(matrix(epilogue.silu_mul, pair(self.graph.tensor(value).dtype)))
            }
            Op::Call(Call::Gemm { epilogue, scales, .. }) => {
                let number = (*operand as usize).checked_sub(epilogue.operands())?;
                let role = match scales {
                    Scales::WeightOnly { group, .. } => Role::Groups {
                        matrices: 1 + usize::from(epilogue.silu_mul),
                        adjacent: (FRAGMENT_COLUMNS / group).max(1),
                    },
                    Scales::FloatGroups(_) => {
                        Role::Groups { matrices: 1 + usize::from(epilogue.silu_mul), adjacent: 1 }
                    }
                    _ => matrix(epilogue.silu_mul, 1),
                };
                scales.of_weight().contains(&number).then_some(role)
            }
            _ => None,
        };
        self.graph.users(value).iter().find_map(as_matrix).unwrap_or(Role::Dense)
    }

    fn stored(&self, value: ValueId) -> Result<Weight, String> {
        let info = self.graph.result(value);
        let Op::Weight(recipe) = &self.graph.node(value.node).op else {
            return Err(format!("`{}` is not a weight", info.name));
        };
        let ty = self.graph.tensor(value);
        let dims: Vec<usize> = ty.dims.iter().filter_map(|d| d.constant()).collect();
        let (role, layout) = (self.role(value), self.weight_layout(value));
        let (shape, recipe) = match (role, layout) {
            (Role::Matrix { .. }, MemLayout::Panel { n, k }) => {
                (stored_shape(&dims, layout), pack(n, k, recipe.clone()))
            }
            (Role::Gated { .. }, MemLayout::Panel { n, k }) => gated(&info.name, ty, n, k, recipe)?,
            (Role::Matrix { .. }, MemLayout::Blocks { k }) => (stored_shape(&dims, layout), blocks(k, 1, recipe)),
            (Role::Gated { .. }, MemLayout::Blocks { k }) => {
                let halves = [&[2, dims[0] / 2], &dims[1..]].concat();
                (stored_shape(&halves, layout), blocks(k, 2, recipe))
            }
            (Role::Matrix { .. }, MemLayout::Fragments { k }) => pieces(&dims, k, 1, recipe),
            (Role::Gated { .. }, MemLayout::Fragments { k }) => pieces(&dims, k, 2, recipe),
            (Role::Groups { matrices, .. }, MemLayout::Fragments { k }) => pieces(&dims, k, matrices, recipe),
            _ => (dims, recipe.clone()),
        };
        Ok(Weight { name: info.name.clone(), dtype: ty.dtype, shape, recipe })
    }
}

/// Adjacent elements that one 32-bit lane holds.
pub(super) fn pair(dtype: DType) -> usize {
    (32 / dtype.bits()).max(1)
}

fn matrix(gated: bool, adjacent: usize) -> Role {
    if gated { Role::Gated { adjacent } } else { Role::Matrix { adjacent } }
}

/// Shape and recipe of pieces that so many matrices share.
fn pieces(dims: &[usize], k: usize, matrices: usize, of: &Recipe) -> (Vec<usize>, Recipe) {
    let each = [&[matrices, dims[0] / matrices], &dims[1..]].concat();
    let recipe = Recipe::Fragments { k, matrices, of: Box::new(of.clone()) };
    (stored_shape(&each, MemLayout::Fragments { k }), recipe)
}

fn blocks(k: usize, matrices: usize, of: &Recipe) -> Recipe {
    Recipe::Blocks { k, matrices, of: Box::new(of.clone()) }
}

fn pack(n: usize, k: usize, of: Recipe) -> Recipe {
    Recipe::Pack { n, k, of: Box::new(of) }
}

/// Gates and ups packed one by one, so that ups start a panel whatever the number of gates is.
fn gated(name: &str, ty: &TensorType, n: usize, k: usize, recipe: &Recipe) -> Result<(Vec<usize>, Recipe), String> {
    let (Some(rows), Some(cols)) = (ty.dims[0].constant(), ty.last()) else {
        return Err(format!("`{name}` is {ty}, which is not static"));
    };
    let mut shape = stored_shape(&[rows / 2, cols], MemLayout::Panel { n, k });
    shape[0] *= 2;
    match recipe {
        Recipe::Concat(parts) if parts.len() == 2 => {
            Ok((shape, Recipe::Concat(parts.iter().map(|p| pack(n, k, p.clone())).collect())))
        }
        whole if (rows / 2).is_multiple_of(n) => Ok((shape, pack(n, k, whole.clone()))),
        _ => Err(format!("`{name}` holds {} gates in one tensor, which do not fill panels of {n}", rows / 2)),
    }
}
