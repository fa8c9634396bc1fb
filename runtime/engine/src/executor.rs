//! Interprets a plan for a step: sets the inputs, resolves each launch's variant, grid and arguments, and runs them.
//!
//! Invariants:
//! - a tensor's address is found once, when the plan is bound to the device; a step only fills in symbols;
//! - which variant runs depends on the step's symbols as the plan says, and on nothing else.

use crate::{
    block_pool::BlockId,
    device::{Device, DeviceError, Launch, LaunchList},
    forward::{Forward, LOGITS_BLOCK, Limits, Logits},
    step::Step,
};
use rvllm_artifact::plan::{self, Expr, Input, Plan, Sym, Variant};
use std::sync::Arc;

/// The values of the symbols in a step.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    step: &'a Step,
    num_blocks: u32,
}

impl Symbols<'_> {
    /// A symbol's value.
    pub fn get(&self, sym: Sym) -> u64 {
        let value = match sym {
            Sym::T => self.step.num_tokens(),
            Sym::R => self.step.num_seqs(),
            Sym::L => self.step.logits_indices.len(),
            Sym::Q => self.step.tile_seq.len(),
            Sym::M => self.step.max_blocks,
            Sym::P => self.num_blocks as usize,
        };
        value as u64
    }

    /// An expression's value; `None` where it is negative or too large.
    pub fn eval(&self, expr: &Expr) -> Option<u64> {
        match expr {
            Expr::Const(c) => u64::try_from(*c).ok(),
            Expr::Sym(sym) => Some(self.get(*sym)),
            Expr::Add(a, b) => self.eval(a)?.checked_add(self.eval(b)?),
            Expr::Mul(a, b) => self.eval(a)?.checked_mul(self.eval(b)?),
            Expr::CeilDiv(a, d) => {
                let divisor = u64::try_from(*d).ok().filter(|d| *d > 0)?;
                Some(self.eval(a)?.div_ceil(divisor))
            }
        }
    }

    fn chooses(&self, variant: &Variant) -> bool {
        variant.at_most.is_none_or(|(sym, most)| self.get(sym) <= u64::from(most))
    }

    fn programs(&self, variant: &Variant) -> Option<u64> {
        variant.grid.iter().try_fold(1u64, |n, extent| n.checked_mul(self.eval(extent)?))
    }
}

/// A plan bound to a device.
pub struct Executor<D> {
    plan: Arc<Plan>,
    device: D,
    limits: Limits,
    /// Addresses of each launch's tensors.
    tensors: Vec<Vec<u64>>,
}

impl<D: Device> Executor<D> {
    /// Binds a plan to the device that was made for it.
    ///
    /// # Errors
    /// The plan contradicts itself, or names what the device does not have.
    pub fn new(plan: Arc<Plan>, device: D, limits: Limits) -> Result<Executor<D>, DeviceError> {
        let bind = |launch: &plan::Launch| {
            check_launch(&plan, launch)?;
            launch.args.iter().map(|arg| device.address(arg)).collect()
        };
        let tensors = plan.launches.iter().map(bind).collect::<Result<_, _>>()?;
        Ok(Executor { plan, device, limits, tensors })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn write_inputs(&mut self, step: &Step) -> Result<(), DeviceError> {
        let Step { token_ids, positions, slot_mapping, query_start_loc, seq_lens, .. } = step;
        let Step { block_table, logits_indices, tile_seq, tile_start, .. } = step;
        for (input, values) in [
            (Input::TokenIds, token_ids),
            (Input::Positions, positions),
            (Input::SlotMapping, slot_mapping),
            (Input::QueryStartLoc, query_start_loc),
            (Input::SeqLens, seq_lens),
            (Input::BlockTable, block_table),
            (Input::LogitsIndices, logits_indices),
            (Input::TileSeq, tile_seq),
            (Input::TileStart, tile_start),
        ] {
            self.device.write(input, values)?;
        }
        Ok(())
    }

    fn resolve(&self, step: &Step) -> Result<LaunchList, DeviceError> {
        let symbols = Symbols { step, num_blocks: self.limits.num_blocks };
        let mut list = LaunchList::default();
        for (launch, tensors) in self.plan.launches.iter().zip(&self.tensors) {
            let wrong = || DeviceError::Plan(format!("launch {} has no grid for this step", launch.name));
            let variant = launch.variants.iter().find(|v| symbols.chooses(v)).ok_or_else(wrong)?;
            let programs = symbols.programs(variant).ok_or_else(wrong)?;
            let (kernel, start) = (variant.kernel as usize, list.args.len());
            list.args.extend(tensors);
            list.args.extend(self.plan.kernels[kernel].symbols.iter().map(|s| symbols.get(*s)));
            if programs > 0 {
                list.launches.push(Launch { kernel, args: start..list.args.len(), programs });
            }
        }
        Ok(list)
    }
}

/// Every variant's kernel exists and takes the launch's tensors.
fn check_launch(plan: &Plan, launch: &plan::Launch) -> Result<(), DeviceError> {
    for variant in &launch.variants {
        let tensors = plan.kernels.get(variant.kernel as usize).map(|k| k.tensors as usize);
        if tensors != Some(launch.args.len()) {
            let (name, args, kernel) = (&launch.name, launch.args.len(), variant.kernel);
            let takes = tensors.map_or("does not exist".to_string(), |n| format!("takes {n}"));
            let problem = format!("launch {name} gives {args} tensors, but kernel {kernel} {takes}");
            return Err(DeviceError::Plan(problem));
        }
    }
    Ok(())
}

impl<D: Device> Forward for Executor<D> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn forward(&mut self, step: &Step) -> Result<Logits<'_>, DeviceError> {
        self.write_inputs(step)?;
        let list = self.resolve(step)?;
        self.device.run(Arc::new(list))?;
        let (rows, vocab_size) = (step.logits_indices.len(), self.limits.vocab_size as usize);
        let outputs = &self.plan.outputs;
        Ok(Logits {
            vocab_size,
            logits: self.device.read(outputs.logits, rows * vocab_size)?,
            max: self.device.read(outputs.max, rows)?,
            logsumexp: self.device.read(outputs.logsumexp, rows)?,
            block_max: self.device.read(outputs.block_max, rows * vocab_size.div_ceil(LOGITS_BLOCK))?,
        })
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), DeviceError> {
        self.device.copy_block(from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvllm_artifact::plan::{Arg, Buffer, Kernel, Outputs};

    /// Notes what it is asked to do. Tensors lie at addresses that name them.
    #[derive(Default)]
    struct FakeDevice {
        inputs: Vec<(Input, Vec<i32>)>,
        lists: Vec<LaunchList>,
        zeros: Vec<f32>,
    }

    impl Device for FakeDevice {
        fn address(&self, arg: &Arg) -> Result<u64, DeviceError> {
            match arg {
                Arg::Buffer { id, offset } => Ok(1000 * u64::from(*id) + offset),
                Arg::KeyCache(layer) => Ok(5000 + u64::from(*layer)),
                other => Err(DeviceError::Plan(format!("there is no {other:?}"))),
            }
        }

        fn write(&mut self, input: Input, values: &[i32]) -> Result<(), DeviceError> {
            self.inputs.push((input, values.to_vec()));
            Ok(())
        }

        fn run(&mut self, list: Arc<LaunchList>) -> Result<(), DeviceError> {
            self.lists.push((*list).clone());
            self.zeros = vec![0.0; 4096];
            Ok(())
        }

        fn read(&self, _: u32, len: usize) -> Result<&[f32], DeviceError> {
            Ok(&self.zeros[..len])
        }

        fn copy_block(&mut self, _: BlockId, _: BlockId) -> Result<(), DeviceError> {
            Ok(())
        }
    }

    const LIMITS: Limits = Limits {
        vocab_size: 300,
        max_model_len: 16,
        max_num_seqs: 2,
        max_num_batched_tokens: 8,
        max_logits: 2,
        query_tile: 4,
        block_size: 4,
        num_blocks: 9,
    };

    fn step() -> Step {
        Step {
            token_ids: vec![1, 2, 3, 4, 5],
            seq_lens: vec![5],
            query_start_loc: vec![0, 5],
            logits_indices: vec![4],
            tile_seq: vec![0, 0],
            max_blocks: 2,
            ..Step::default()
        }
    }

    fn plan(args: Vec<Arg>) -> Plan {
        let product = Expr::Mul(Box::new(Expr::Sym(Sym::R)), Box::new(Expr::CeilDiv(Box::new(Expr::Sym(Sym::T)), 2)));
        let variant = |at_most, kernel, grid| Variant { at_most, kernel, grid };
        let kernel =
            |symbols: &[Sym]| Kernel { symbol: String::new(), tensors: 2, symbols: symbols.to_vec(), gpu: None };
        Plan {
            max_num_batched_tokens: 8,
            max_num_seqs: 2,
            max_logits: 2,
            query_tile: 4,
            arena_bytes: 0,
            buffers: Vec::<Buffer>::new(),
            weights: vec![],
            kernels: vec![kernel(&[Sym::P, Sym::T]), kernel(&[])],
            launches: vec![plan::Launch {
                name: "x".into(),
                args,
                variants: vec![
                    variant(Some((Sym::T, 4)), 1, vec![Expr::Const(1)]),
                    variant(None, 0, vec![Expr::Const(3), product]),
                ],
            }],
            outputs: Outputs { logits: 0, max: 0, logsumexp: 0, block_max: 0 },
        }
    }

    fn executor(plan: Plan) -> Result<Executor<FakeDevice>, DeviceError> {
        Executor::new(Arc::new(plan), FakeDevice::default(), LIMITS)
    }

    #[test]
    fn variants_grids_and_arguments_follow_the_steps_symbols() {
        let mut e = executor(plan(vec![Arg::Buffer { id: 2, offset: 8 }, Arg::KeyCache(1)])).unwrap();
        let logits = e.forward(&step()).unwrap();
        assert_eq!((logits.logits.len(), logits.block_max.len()), (300, 2));
        let short = Step { token_ids: vec![1; 4], ..step() };
        e.forward(&short).unwrap();
        let launch = |kernel, args, programs| vec![Launch { kernel, args, programs }];
        let long = LaunchList { args: vec![2008, 5001, 9, 5], launches: launch(0, 0..4, 9) };
        let short = LaunchList { args: vec![2008, 5001], launches: launch(1, 0..2, 1) };
        assert_eq!(e.device().lists, [long, short]);
        assert!(e.device().inputs.contains(&(Input::QueryStartLoc, vec![0, 5])));
        assert_eq!(e.device().inputs.len(), 18);
    }

    #[test]
    fn a_plan_that_contradicts_itself_is_refused() {
        let message = |plan| executor(plan).map(|_| ()).unwrap_err().to_string();
        let few = message(plan(vec![Arg::KeyCache(0)]));
        assert!(few.contains("launch x gives 1 tensors, but kernel 1 takes 2"), "{few}");
        assert!(message(plan(vec![Arg::KeyCache(0), Arg::Weight(3)])).contains("there is no Weight(3)"));
        let mut negative = plan(vec![Arg::KeyCache(0), Arg::KeyCache(1)]);
        negative.launches[0].variants[1].grid = vec![Expr::Const(-1)];
        assert!(executor(negative).unwrap().forward(&step()).is_err());
    }
}
