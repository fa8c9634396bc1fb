//! Every kernel, interpreted over small odd shapes, against a plain computation of what it is for.

mod attention;
mod gemm;
mod quantized;
mod rope;
mod rows;
mod weight_only;

use rvllm_ir::{
    DType, Sym,
    tile::{
        Access, Kernel, interp,
        memory::{Elements, TensorData, dims},
        parse,
        verify::verify,
    },
};

/// Values of the step's symbols.
#[derive(Clone, Copy, Debug, Default)]
struct Symbols {
    t: usize,
    r: usize,
    l: usize,
    q: usize,
    m: usize,
    p: usize,
}

impl Symbols {
    fn value(&self, s: Sym) -> i64 {
        let value = match s {
            Sym::T => self.t,
            Sym::R => self.r,
            Sym::L => self.l,
            Sym::Q => self.q,
            Sym::M => self.m,
            Sym::P => self.p,
        };
        value as i64
    }
}

/// One run of one kernel: arguments by parameter name, outputs NaN until they are written.
struct Run {
    kernel: Kernel,
    symbols: Symbols,
    args: Vec<TensorData>,
}

impl Run {
    /// Also checks that the kernel is legal and that its text form reads back.
    fn new(kernel: Kernel, symbols: Symbols) -> Run {
        assert_eq!(verify(&kernel), [], "{kernel}");
        let text = kernel.to_string();
        let read = parse::parse(&text, "kernel").unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        assert_eq!(read.to_string(), text);
        assert_eq!((&read.params, &read.grid, &read.vals), (&kernel.params, &kernel.grid, &kernel.vals));
        assert_eq!(verify(&read), []);
        let args = kernel.params.iter().map(|p| match p.access {
            Access::Out => {
                let dims = dims(&p.ty, &|s| symbols.value(s));
                TensorData::f32(&dims, vec![f32::NAN; dims.iter().product()])
            }
            Access::In | Access::Weight | Access::Step | Access::InOut => {
                TensorData::zeros(&p.ty, &|s| symbols.value(s))
            }
        });
        Run { args: args.collect(), kernel, symbols }
    }

    fn position(&self, name: &str) -> usize {
        self.kernel.params.iter().position(|p| p.name == name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    fn set(&mut self, name: &str, x: &[f32]) -> &mut Run {
        let i = self.position(name);
        assert_eq!(self.args[i].numbers().len(), x.len(), "{name}");
        self.args[i].elements = Elements::F32(x.to_vec());
        self
    }

    fn set_i32(&mut self, name: &str, x: &[i32]) -> &mut Run {
        let i = self.position(name);
        self.args[i] = TensorData::i32(&self.args[i].dims.clone(), x.to_vec());
        self
    }

    fn go(&mut self) -> &mut Run {
        let symbols = self.symbols;
        interp::run(&self.kernel, &mut self.args, &|s| symbols.value(s)).unwrap_or_else(|e| panic!("{e}"));
        self
    }

    fn get(&self, name: &str) -> &[f32] {
        self.args[self.position(name)].numbers()
    }
}

/// A fixed sequence of numbers in -1..1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `n` of them, as `dtype` holds them.
    fn take(&mut self, n: usize, dtype: DType) -> Vec<f32> {
        (0..n).map(|_| dtype.round(self.next())).collect()
    }
}

/// One unit in the last place of `dtype` for numbers near 1, and some f32 noise.
fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::Bf16 => 8e-3,
        _ => 3e-6,
    }
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * (1.0 + e.abs()), "element {i}: {f}, not {e}");
    }
}
