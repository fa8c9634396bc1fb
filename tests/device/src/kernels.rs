//! Every case of a bundle: launched on memory whose outputs are poisoned, compared with the interpreter, repeated.
//!
//! Invariants: a case that fails does not keep the others from running, but for one that makes the GPU's context
//! unusable (a wrong address), after which all fail.

use crate::{Args, Tally};
use anyhow::{Result, bail, ensure};
use rvllm_device_tests::{
    bundle::{Bundle, Case, Expected, SKIPPED},
    compare::{Difference, compare, numbers},
};
use rvllm_engine::device::cuda::{DeviceMemory, Event, Gpu, LoadedKernel, Stream};
use std::{collections::HashMap, path::Path};

/// Runs the cases of a file.
pub(crate) fn run(path: &Path, args: &Args, tally: &mut Tally) -> Result<()> {
    let bundle = Bundle::read(path)?;
    let chosen: Vec<&Case> = bundle.index.cases.iter().filter(|c| c.name.contains(&args.filter)).collect();
    let needs = format!("{} was compiled for {}", path.display(), bundle.index.architecture);
    let gpu = match Gpu::open(args.device, &needs) {
        Ok(gpu) if gpu.facts().runs(&bundle.index.architecture) => gpu,
        Ok(gpu) => {
            let reason = format!("{needs}, but the GPU is {}", gpu.facts().architecture());
            tally.skipped.push(format!("{} kernel cases: {reason}", chosen.len()));
            return Ok(());
        }
        Err(error) => {
            tally.skipped.push(format!("{} kernel cases: {error}", chosen.len()));
            return Ok(());
        }
    };
    println!("{}: {} cases on {}", path.display(), chosen.len(), gpu.facts().name);
    let mut bench = Bench { stream: Stream::new(&gpu)?, gpu, bundle: &bundle, groups: HashMap::new() };
    for case in chosen {
        let result = bench.case(case, args);
        tally.add(&case.name, result);
    }
    Ok(())
}

/// What the cases share.
struct Bench<'a> {
    gpu: Gpu,
    stream: Stream,
    bundle: &'a Bundle,
    /// What the first case of each group wrote, and its name.
    groups: HashMap<String, (String, Vec<Vec<u8>>)>,
}

impl Bench<'_> {
    fn case(&mut self, case: &Case, args: &Args) -> Result<()> {
        let kernel = LoadedKernel::new(&self.gpu, &case.kernel, &self.bundle.bytes)?;
        let (first, milliseconds) = self.launch(case, &kernel)?;
        for (output, bytes) in case.outputs.iter().zip(&first) {
            self.check(output, bytes, case.tolerance)?;
        }
        for repeat in 1..args.repeat {
            let (again, _) = self.launch(case, &kernel)?;
            ensure!(again == first, "launch {} wrote other bits than the first", repeat + 1);
        }
        let (registers, local) = kernel.resources()?;
        if args.verbose {
            println!("ok   {} ({registers} registers, {local} B local, {:.1} µs)", case.name, milliseconds * 1e3);
        }
        self.group(case, first)
    }

    /// Outputs of one launch, and its time in milliseconds.
    fn launch(&self, case: &Case, kernel: &LoadedKernel) -> Result<(Vec<Vec<u8>>, f32)> {
        let mut tensors = vec![];
        for range in &case.tensors {
            let bytes = &self.bundle.bytes[range.clone()];
            let mut memory = DeviceMemory::new(&self.gpu, bytes.len() as u64, "a tensor")?;
            memory.write(0, bytes)?;
            tensors.push(memory);
        }
        let mut symbols = DeviceMemory::new(&self.gpu, 24, "symbols")?;
        symbols.write(0, &case.symbols.map(u32::to_le_bytes).concat())?;
        let addresses: Vec<u64> = tensors.iter().map(DeviceMemory::address).collect();
        let value = |sym| u64::from(case.symbols[sym as usize]);
        let ready = kernel.ready(&addresses, symbols.address(), case.programs, &value)?;
        let (start, end) = (Event::new(&self.gpu)?, Event::new(&self.gpu)?);
        self.stream.mark(&start)?;
        ready.launch(&self.stream)?;
        self.stream.mark(&end)?;
        self.stream.synchronize()?;
        let mut outputs = vec![];
        for output in &case.outputs {
            let memory = &tensors[output.tensor];
            let mut bytes = vec![0; memory.bytes() as usize];
            memory.read(0, &mut bytes)?;
            outputs.push(bytes);
        }
        Ok((outputs, end.milliseconds_since(&start)?))
    }

    fn check(&self, output: &Expected, bytes: &[u8], tolerance: f32) -> Result<()> {
        let expected = self.bundle.floats(&output.values);
        let Difference { compared, wrong, first, largest } =
            compare(&numbers(bytes, output.dtype), &expected, tolerance);
        match first {
            None => Ok(()),
            Some((i, found, expected)) => bail!(
                "tensor {}: {wrong} of {compared} elements off by up to {largest:e}; element {i} is {found:e}, not \
                 {expected:e}",
                output.tensor
            ),
        }
    }

    fn group(&mut self, case: &Case, written: Vec<Vec<u8>>) -> Result<()> {
        let Some(group) = &case.group else { return Ok(()) };
        let (name, bits) = self.groups.entry(group.clone()).or_insert_with(|| (case.name.clone(), written.clone()));
        let same = case.outputs.iter().zip(bits.iter().zip(&written)).all(|(output, (a, b))| {
            let (a, b) = (numbers(a, output.dtype), numbers(b, output.dtype));
            let expected = self.bundle.floats(&output.values);
            let compared = expected.iter().enumerate().filter(|(_, e)| e.to_bits() != SKIPPED);
            compared.into_iter().all(|(i, _)| a.get(i).map(|x| x.to_bits()) == b.get(i).map(|x| x.to_bits()))
        });
        ensure!(same, "other bits than {name}");
        Ok(())
    }
}
