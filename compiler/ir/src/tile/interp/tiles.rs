//! Arithmetic on tiles. NaN propagates through every operation, maxima included.

use super::{Accumulate, Machine, Value};
use crate::{
    tile::{Cmp, MapOp, ReduceOp, Val},
    types::DType,
};

impl Machine<'_> {
    pub(super) fn iota(&self, start: Val, div: usize, n: usize) -> Result<Value, String> {
        let start = self.index(start);
        let element = |i: usize| i32::try_from(start.saturating_add((i / div) as i64));
        let tile: Result<Vec<i32>, _> = (0..n).map(element).collect();
        tile.map(|t| Value::I32(t.into())).map_err(|_| format!("iota from {start} leaves the range of i32"))
    }

    pub(super) fn mma(&self, a: Val, b: Val, acc: Val) -> Result<Value, String> {
        let (depth, cols) = (self.shape(a)[1], self.shape(b)[0]);
        let (a, b) = (self.numbers(a), self.numbers(b));
        if let Value::I32(acc) = self.get(acc) {
            return exact(a, b, acc, [depth, cols]);
        }
        let acc = self.numbers(acc);
        let element = |(i, start): (usize, &f32)| {
            let row = &a[i / cols * depth..][..depth];
            let col = &b[i % cols * depth..][..depth];
            match self.accumulate {
                Accumulate::F32 => row.iter().zip(col).fold(*start, |sum, (x, y)| sum + x * y),
                Accumulate::F64 => {
                    let product = |(x, y): (&f32, &f32)| f64::from(*x) * f64::from(*y);
                    row.iter().zip(col).map(product).fold(f64::from(*start), |sum, p| sum + p) as f32
                }
            }
        };
        Ok(Value::F32(acc.iter().enumerate().map(element).collect()))
    }

    pub(super) fn map(&self, op: MapOp, args: &[Val]) -> Value {
        let a = self.numbers(args[0]);
        match args.get(1) {
            None => Value::F32(a.iter().map(|a| unary(op, *a)).collect()),
            Some(b) => Value::F32(a.iter().zip(self.numbers(*b).iter()).map(|(a, b)| binary(op, *a, *b)).collect()),
        }
    }

    pub(super) fn select(&self, cmp: Cmp, compared: [Val; 2], [x, y]: [Val; 2]) -> Value {
        let holds = match (self.get(compared[0]), self.get(compared[1])) {
            (Value::F32(a), Value::F32(b)) => a.iter().zip(b.iter()).map(|(a, b)| compare(cmp, a, b)).collect(),
            (Value::I32(a), Value::I32(b)) => a.iter().zip(b.iter()).map(|(a, b)| compare(cmp, a, b)).collect(),
            _ => Vec::new(),
        };
        let chosen = self.numbers(x).iter().zip(self.numbers(y).iter()).zip(holds);
        Value::F32(chosen.map(|((x, y), holds)| if holds { *x } else { *y }).collect())
    }

    pub(super) fn cast(&self, v: Val, to: DType) -> Value {
        match self.get(v) {
            Value::I32(x) => Value::F32(x.iter().map(|x| *x as f32).collect()),
            Value::F32(x) => {
                Value::F32(x.iter().map(|x| if to.bits() == 8 { to.saturate(*x) } else { to.round(*x) }).collect())
            }
            Value::Index(i) => Value::Index(*i),
        }
    }

    pub(super) fn reduce(&self, op: ReduceOp, v: Val, axis: usize) -> Value {
        let (x, shape) = (self.numbers(v), self.shape(v));
        let (n, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        let outer = shape[..axis].iter().product::<usize>();
        let element = |i: usize| {
            let first = i / inner * n * inner + i % inner;
            let elements = (0..n).map(|j| x[first + j * inner]);
            match op {
                ReduceOp::Sum => elements.map(f64::from).sum::<f64>() as f32,
                ReduceOp::Max => elements.fold(f32::NEG_INFINITY, |a, b| binary(MapOp::Max, a, b)),
            }
        };
        Value::F32((0..outer * inner).map(element).collect())
    }

    pub(super) fn concat(&self, parts: &[Val], axis: usize) -> Value {
        let run = |v: &Val| self.shape(*v)[axis..].iter().product::<usize>();
        let outer = self.shape(parts[0])[..axis].iter().product::<usize>();
        let rows = (0..outer).flat_map(|i| parts.iter().flat_map(move |v| &self.numbers(*v)[i * run(v)..][..run(v)]));
        Value::F32(rows.copied().collect())
    }

    pub(super) fn broadcast(&self, v: Val, axis: usize, n: usize) -> Value {
        let inner = self.shape(v)[axis..].iter().product::<usize>();
        match self.get(v) {
            Value::F32(x) => Value::F32(repeat(x, n, inner).into()),
            Value::I32(x) => Value::I32(repeat(x, n, inner).into()),
            Value::Index(i) => Value::Index(*i),
        }
    }
}

/// Products of integers; an error where i32 does not hold a sum.
fn exact(a: &[f32], b: &[f32], acc: &[i32], [depth, cols]: [usize; 2]) -> Result<Value, String> {
    let element = |(i, start): (usize, &i32)| {
        let (row, col) = (&a[i / cols * depth..][..depth], &b[i % cols * depth..][..depth]);
        let products = row.iter().zip(col).map(|(x, y)| *x as i64 * *y as i64);
        i32::try_from(i64::from(*start) + products.sum::<i64>())
    };
    let sums: Result<Vec<i32>, _> = acc.iter().enumerate().map(element).collect();
    sums.map(|sums| Value::I32(sums.into())).map_err(|_| "`mma` overflows i32".to_string())
}

/// Each run of `inner` elements `n` times.
fn repeat<T: Copy>(x: &[T], n: usize, inner: usize) -> Vec<T> {
    x.chunks(inner).flat_map(|run| run.repeat(n)).collect()
}

fn compare<T: PartialOrd>(cmp: Cmp, a: &T, b: &T) -> bool {
    match cmp {
        Cmp::Lt => a < b,
        Cmp::Le => a <= b,
        Cmp::Eq => a == b,
    }
}

fn unary(op: MapOp, a: f32) -> f32 {
    match op {
        MapOp::Neg => -a,
        MapOp::Exp => a.exp(),
        MapOp::Log => a.ln(),
        MapOp::Rsqrt => 1.0 / a.sqrt(),
        MapOp::Tanh => a.tanh(),
        _ => unreachable!("a verified kernel gives two operands to `{}`", op.name()),
    }
}

fn binary(op: MapOp, a: f32, b: f32) -> f32 {
    match op {
        MapOp::Add => a + b,
        MapOp::Sub => a - b,
        MapOp::Mul => a * b,
        MapOp::Div => a / b,
        MapOp::Max | MapOp::Min if a.is_nan() || b.is_nan() => f32::NAN,
        MapOp::Max => a.max(b),
        MapOp::Min => a.min(b),
        _ => unreachable!("a verified kernel gives one operand to `{}`", op.name()),
    }
}
