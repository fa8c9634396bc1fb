//! Tensors as programs see them: the rules for bounds, alignment and independence of programs.

use crate::{
    expr::Sym,
    tile::{
        PAD_ROWS, Param,
        memory::{Elements, TensorData, index_of},
    },
    types::Dim,
};

/// A tile of a tensor: origins, one per tensor dimension, and the tile's shape, which covers the trailing ones.
pub(super) struct Place {
    pub(super) at: Vec<i64>,
    pub(super) shape: Vec<usize>,
}

/// Several programs.
const MANY: u32 = u32::MAX;

/// A tensor and who touched which element.
pub(super) struct Access<'a> {
    data: &'a mut TensorData,
    param: &'a Param,
    /// Number of the running program, from 1.
    pub(super) program: u32,
    /// Per element: the program that wrote it, or 0.
    writer: Vec<u32>,
    /// Per element: the program that read it, 0, or [`MANY`].
    reader: Vec<u32>,
}

/// Where one element of a tile lies.
enum At {
    /// In the tensor, at this row-major position.
    Inside(usize),
    /// Past a static dimension.
    Zero,
    /// Past a symbolic dimension.
    Padding,
}

impl<'a> Access<'a> {
    pub(super) fn new(data: &'a mut TensorData, param: &'a Param) -> Access<'a> {
        let n = data.dims.iter().product();
        Access { data, param, program: 0, writer: vec![0; n], reader: vec![0; n] }
    }

    pub(super) fn read(&mut self, at: &[i64]) -> Result<i64, String> {
        let place = Place { at: at.to_vec(), shape: vec![] };
        let At::Inside(i) = self.element(&place, &[]) else {
            return Err(format!("`{}` is read at {at:?}, outside {:?}", self.param.name, self.data.dims));
        };
        self.note_read(i)?;
        match &self.data.elements {
            Elements::I32(x) => Ok(i64::from(x[i])),
            Elements::F32(_) => unreachable!("a verified kernel reads integers"),
        }
    }

    /// The tile, zeros past static dimensions and NaN past symbolic ones.
    pub(super) fn load(&mut self, place: &Place) -> Result<Vec<f32>, String> {
        self.check(place)?;
        let n = place.shape.iter().product();
        (0..n).map(|i| self.load_element(place, &index_of(&place.shape, i))).collect()
    }

    fn load_element(&mut self, place: &Place, index: &[usize]) -> Result<f32, String> {
        match self.element(place, index) {
            At::Zero => Ok(0.0),
            At::Padding => Ok(f32::NAN),
            At::Inside(i) => {
                self.note_read(i)?;
                Ok(self.data.numbers()[i])
            }
        }
    }

    pub(super) fn store(&mut self, place: &Place, tile: &[f32], rows: i64) -> Result<(), String> {
        let targets = self.targets(place, rows)?;
        if let Elements::F32(x) = &mut self.data.elements {
            targets.into_iter().for_each(|(from, to)| x[to] = tile[from]);
        }
        Ok(())
    }

    pub(super) fn store_integers(&mut self, place: &Place, tile: &[i32], rows: i64) -> Result<(), String> {
        let targets = self.targets(place, rows)?;
        if let Elements::I32(x) = &mut self.data.elements {
            targets.into_iter().for_each(|(from, to)| x[to] = tile[from]);
        }
        Ok(())
    }

    /// Which element of the tile goes where: those in the first `rows` that lie inside.
    fn targets(&mut self, place: &Place, rows: i64) -> Result<Vec<(usize, usize)>, String> {
        self.check(place)?;
        let mut targets = vec![];
        for from in 0..place.shape.iter().product() {
            let index = index_of(&place.shape, from);
            let written = index.first().is_none_or(|row| (*row as i64) < rows);
            if let (true, At::Inside(to)) = (written, self.element(place, &index)) {
                self.note_write(to)?;
                targets.push((from, to));
            }
        }
        Ok(targets)
    }

    fn note_read(&mut self, i: usize) -> Result<(), String> {
        let (writer, me) = (self.writer[i], self.program);
        if writer != 0 && writer != me {
            return Err(self.conflict(i, "is read by one program and written by another"));
        }
        self.reader[i] = if matches!(self.reader[i], 0) || self.reader[i] == me { me } else { MANY };
        Ok(())
    }

    fn note_write(&mut self, i: usize) -> Result<(), String> {
        let (writer, reader, me) = (self.writer[i], self.reader[i], self.program);
        if writer != 0 && writer != me {
            return Err(self.conflict(i, "is written by two programs"));
        }
        if reader != 0 && reader != me {
            return Err(self.conflict(i, "is read by one program and written by another"));
        }
        self.writer[i] = me;
        Ok(())
    }

    fn conflict(&self, i: usize, what: &str) -> String {
        format!("`{}`{:?} {what}", self.param.name, index_of(&self.data.dims, i))
    }

    /// Size of the tile in each tensor dimension.
    fn sizes(&self, place: &Place) -> Vec<usize> {
        let leading = self.data.dims.len() - place.shape.len();
        std::iter::repeat_n(1, leading).chain(place.shape.iter().copied()).collect()
    }

    /// The rules for origins.
    fn check(&self, place: &Place) -> Result<(), String> {
        for (d, (at, size)) in place.at.iter().zip(self.sizes(place)).enumerate() {
            let (at, size, bound) = (*at, size as i64, self.data.dims[d] as i64);
            let legal = match self.param.ty.dims[d] {
                _ if at < 0 => false,
                Dim::Const(_) if bound % size != 0 => at % size == 0,
                Dim::Sym(Sym::T | Sym::L) => at < bound || at + size <= bound + PAD_ROWS as i64,
                _ => at + size <= bound,
            };
            if !legal {
                let (name, ty) = (&self.param.name, &self.param.ty);
                return Err(format!("a tile of {size} at {at} breaks the bounds of dimension {d} of `{name}` ({ty})"));
            }
        }
        Ok(())
    }

    fn element(&self, place: &Place, index: &[usize]) -> At {
        let leading = self.data.dims.len() - index.len();
        let (mut position, mut padding, mut zero) = (0, false, false);
        for (d, bound) in self.data.dims.iter().enumerate() {
            let at = place.at[d] + d.checked_sub(leading).map_or(0, |i| index[i] as i64);
            let outside = at < 0 || at >= *bound as i64;
            zero |= outside && self.param.ty.dims[d].constant().is_some();
            padding |= outside;
            position = position * bound + at.max(0) as usize;
        }
        match (zero, padding) {
            (true, _) => At::Zero,
            (_, true) => At::Padding,
            _ => At::Inside(position),
        }
    }
}
