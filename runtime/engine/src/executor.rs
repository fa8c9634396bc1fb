//! Interprets a plan for a step: resolves each launch's variant, grid and arguments, and has the device run them; those
//! of the device's buckets once, when the plan is bound to it.
//!
//! Invariants:
//! - a tensor's address is found once, when the plan is bound to the device; a step only fills in symbols;
//! - which variant runs depends on the step's symbols as the plan says, and on nothing else.

use crate::{
    block_pool::BlockId,
    device::{Device, DeviceError, Launch, LaunchList, Launches},
    forward::{Forward, LOGITS_BLOCK, Limits, Logits},
    step::Step,
    team::Team,
};
use rvllm_artifact::plan::{self, DRAWS, Plan, RANK, Sym, TOP_K, Variant};
use std::sync::Arc;

/// The values of the symbols in a step: T, R, L, Q, M, P.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Symbols(pub [u32; 6]);

impl Symbols {
    /// Those of a step.
    pub fn of(step: &Step, num_blocks: u32) -> Symbols {
        let [tokens, seqs] = [step.num_tokens(), step.num_seqs()];
        let values = [tokens, seqs, step.logits_indices.len(), step.tile_seq.len(), step.max_blocks];
        let [t, r, l, q, m] = values.map(|n| n as u32);
        Symbols([t, r, l, q, m, num_blocks])
    }

    /// The largest of steps of at most `tokens` tokens.
    pub fn most(limits: &Limits, tokens: u32) -> Symbols {
        let seqs = tokens.min(limits.max_num_seqs);
        let tiles = tokens.min(seqs + tokens.div_ceil(limits.query_tile));
        let blocks = limits.max_model_len.div_ceil(limits.block_size);
        Symbols([tokens, seqs, tokens.min(limits.max_logits), tiles, blocks, limits.num_blocks])
    }

    /// A symbol's value.
    pub fn get(&self, sym: Sym) -> u64 {
        let [t, r, l, q, m, p] = self.0;
        let value = match sym {
            Sym::T => t,
            Sym::R => r,
            Sym::L => l,
            Sym::Q => q,
            Sym::M => m,
            Sym::P => p,
        };
        value.into()
    }

    fn chooses(&self, variant: &Variant) -> bool {
        variant.at_most.is_none_or(|(sym, most)| self.get(sym) <= u64::from(most))
    }

    fn programs(&self, variant: &Variant) -> Option<u64> {
        variant.grid.iter().try_fold(1u64, |n, extent| n.checked_mul(extent.eval(&|s| self.get(s))?))
    }
}

/// A plan bound to a device.
pub struct Executor<D> {
    plan: Arc<Plan>,
    device: D,
    limits: Limits,
    /// Addresses of each launch's tensors, in steps of no bucket.
    tensors: Vec<Vec<u64>>,
    /// Steps that have begun and were not had.
    begun: usize,
}

impl<D: Device> Executor<D> {
    /// Binds a plan to the device that was made for it.
    ///
    /// # Errors
    /// The plan contradicts itself, or names what the device does not have.
    pub fn new(plan: Arc<Plan>, device: D, limits: Limits) -> Result<Executor<D>, DeviceError> {
        plan.launches.iter().try_for_each(|launch| check_launch(&plan, launch))?;
        let tensors = bind(&plan, &device, None)?;
        let mut executor = Executor { plan, device, limits, tensors, begun: 0 };
        executor.record()?;
        Ok(executor)
    }

    /// Gives the device the launches of each of its buckets.
    fn record(&mut self) -> Result<(), DeviceError> {
        for (bucket, tokens) in self.device.buckets().to_vec().into_iter().enumerate() {
            let tensors = bind(&self.plan, &self.device, Some(bucket))?;
            let list = resolve(&self.plan, &tensors, &Symbols::most(&self.limits, tokens))?;
            self.device.record(&list)?;
        }
        Ok(())
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, to do more with than run steps.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A step's launches, as they run where none are recorded for it.
    ///
    /// # Errors
    /// The plan has no grid for it.
    pub fn list(&self, step: &Step) -> Result<LaunchList, DeviceError> {
        resolve(&self.plan, &self.tensors, &Symbols::of(step, self.limits.num_blocks))
    }

    fn launches(&self, step: &Step) -> Result<Launches, DeviceError> {
        let buckets = self.device.buckets();
        let bucket = buckets.partition_point(|most| (*most as usize) < step.num_tokens());
        if bucket < buckets.len() {
            return Ok(Launches::Recorded(bucket));
        }
        Ok(Launches::List(Arc::new(self.list(step)?)))
    }
}

/// Addresses of each launch's tensors.
fn bind<D: Device>(plan: &Plan, device: &D, bucket: Option<usize>) -> Result<Vec<Vec<u64>>, DeviceError> {
    let bind = |launch: &plan::Launch| launch.args.iter().map(|arg| device.address(arg, bucket)).collect();
    plan.launches.iter().map(bind).collect()
}

/// Each launch's variant, grid and arguments.
fn resolve(plan: &Plan, tensors: &[Vec<u64>], symbols: &Symbols) -> Result<LaunchList, DeviceError> {
    let mut list = LaunchList::default();
    for (launch, tensors) in plan.launches.iter().zip(tensors) {
        let wrong = || DeviceError::Plan(format!("launch {} has no grid for this step", launch.name));
        let variant = launch.variants.iter().find(|v| symbols.chooses(v)).ok_or_else(wrong)?;
        let programs = symbols.programs(variant).ok_or_else(wrong)?;
        let (kernel, start) = (variant.kernel as usize, list.args.len());
        list.args.extend(tensors);
        list.args.extend(plan.kernels[kernel].symbols.iter().map(|s| symbols.get(*s)));
        if programs > 0 {
            list.launches.push(Launch { kernel, args: start..list.args.len(), programs });
        }
    }
    Ok(list)
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

    fn team(&mut self) -> Option<&mut Team> {
        self.device.team()
    }

    fn runs_ahead(&self) -> bool {
        self.device.runs_ahead()
    }

    fn feeds(&self) -> bool {
        self.plan.feeds && self.device.feeds()
    }

    fn begin(&mut self, step: &Step) -> Result<(), DeviceError> {
        let launches = self.launches(step)?;
        self.device.run(step, launches)?;
        self.begun += 1;
        Ok(())
    }

    fn forward(&mut self, step: &Step) -> Result<Logits<'_>, DeviceError> {
        if self.begun == 0 {
            self.begin(step)?;
        }
        self.begun -= 1;
        self.device.wait()?;
        self.logits(step)
    }

    fn leaves_out(&self) -> bool {
        self.device.leaves_out()
    }

    fn bring(&mut self, step: &Step, rows: &[usize]) -> Result<Logits<'_>, DeviceError> {
        self.device.bring(rows)?;
        self.logits(step)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), DeviceError> {
        self.device.copy_block(from, to)
    }
}

impl<D: Device> Executor<D> {
    /// What the last step left.
    fn logits(&self, step: &Step) -> Result<Logits<'_>, DeviceError> {
        let (rows, vocab_size) = (step.logits_indices.len(), self.limits.vocab_size as usize);
        let (outputs, blocks) = (&self.plan.outputs, rows * vocab_size.div_ceil(LOGITS_BLOCK));
        Ok(Logits {
            vocab_size,
            logits: self.device.read(outputs.logits, rows * vocab_size)?,
            max: self.device.read(outputs.max, rows)?,
            logsumexp: self.device.read(outputs.logsumexp, rows)?,
            block_max: self.device.read(outputs.block_max, blocks)?,
            block_sum: self.device.read(outputs.block_sum, blocks)?,
            draws: self.device.read(outputs.draws, rows * DRAWS)?,
            ranks: self.device.read(outputs.ranks, rows * RANK * DRAWS)?,
            most_likely: outputs.most_likely.map_or(Ok(&[][..]), |id| self.device.read(id, rows * 2 * TOP_K))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvllm_artifact::plan::{Arg, Buffer, Expr, Kernel, Outputs};

    /// Notes what it is asked to do. Tensors lie at addresses that name them.
    #[derive(Default)]
    struct FakeDevice {
        buckets: Vec<u32>,
        recorded: Vec<LaunchList>,
        lists: Vec<LaunchList>,
        replayed: Vec<usize>,
        zeros: Vec<f32>,
    }

    impl Device for FakeDevice {
        fn buckets(&self) -> &[u32] {
            &self.buckets
        }

        fn address(&self, arg: &Arg, bucket: Option<usize>) -> Result<u64, DeviceError> {
            match arg {
                Arg::Buffer { id, offset } => Ok(1000 * u64::from(*id) + offset),
                Arg::KeyCache(layer) => Ok(5000 + u64::from(*layer)),
                Arg::Input(_) => Ok(bucket.map_or(9000, |b| 9001 + b as u64)),
                other => Err(DeviceError::Plan(format!("there is no {other:?}"))),
            }
        }

        fn record(&mut self, list: &LaunchList) -> Result<(), DeviceError> {
            self.recorded.push(list.clone());
            Ok(())
        }

        fn run(&mut self, _: &Step, launches: Launches) -> Result<(), DeviceError> {
            match launches {
                Launches::List(list) => self.lists.push((*list).clone()),
                Launches::Recorded(bucket) => self.replayed.push(bucket),
            }
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
            temperature: vec![1.0],
            uniform: vec![0.0; 2 * DRAWS],
            ranked: vec![0],
            top_k: vec![0],
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
            outputs: Outputs {
                logits: 0,
                max: 0,
                logsumexp: 0,
                block_max: 0,
                block_sum: 0,
                draws: 0,
                ranks: 0,
                most_likely: None,
            },
            feeds: false,
        }
    }

    fn executor(plan: Plan) -> Result<Executor<FakeDevice>, DeviceError> {
        Executor::new(Arc::new(plan), FakeDevice::default(), LIMITS)
    }

    #[test]
    fn variants_grids_and_arguments_follow_the_steps_symbols() {
        let mut e = executor(plan(vec![Arg::Buffer { id: 2, offset: 8 }, Arg::KeyCache(1)])).unwrap();
        let logits = e.forward(&step()).unwrap();
        assert_eq!((logits.logits.len(), logits.block_max.len(), logits.block_sum.len()), (300, 2, 2));
        let short = Step { token_ids: vec![1; 4], ..step() };
        e.forward(&short).unwrap();
        let launch = |kernel, args, programs| vec![Launch { kernel, args, programs }];
        let long = LaunchList { args: vec![2008, 5001, 9, 5], launches: launch(0, 0..4, 9) };
        let short = LaunchList { args: vec![2008, 5001], launches: launch(1, 0..2, 1) };
        assert_eq!(e.device().lists, [long, short]);
    }

    #[test]
    fn steps_of_a_bucket_run_what_was_recorded_for_its_largest() {
        let plan = plan(vec![Arg::Input(rvllm_artifact::plan::Input::TokenIds), Arg::KeyCache(1)]);
        let device = FakeDevice { buckets: vec![2, 4], ..FakeDevice::default() };
        let mut e = Executor::new(Arc::new(plan), device, LIMITS).unwrap();
        let lists: Vec<_> = e.device().recorded.iter().map(|l| l.args.clone()).collect();
        assert_eq!(lists, [[9001, 5001], [9002, 5001]]);
        for tokens in [1, 2, 3, 4, 5] {
            e.forward(&Step { token_ids: vec![0; tokens], ..step() }).unwrap();
        }
        assert_eq!(e.device().replayed, [0, 0, 1, 1]);
        assert_eq!(e.device().lists.len(), 1);
        assert_eq!(e.device().lists[0].args, [9000, 5001, 9, 5]);
    }

    #[test]
    fn the_largest_symbols_bound_every_step() {
        assert_eq!(Symbols::most(&LIMITS, 1), Symbols([1, 1, 1, 1, 4, 9]));
        assert_eq!(Symbols::most(&LIMITS, 8), Symbols([8, 2, 2, 4, 4, 9]));
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
