//! The registers of one warp.
//!
//! A register is a *row* of 32 lanes, so that an arithmetic instruction is one vectorisable loop
//! over two or three rows, decoded once. Registers of up to 32 bits take one row of 128 bytes,
//! 64-bit ones two, predicates one bit per lane. Constants and special registers are rows as well:
//! an instruction reads all of its operands in the same way.

use crate::settings::Approx;

/// Lanes of a warp.
pub(crate) const WARP: usize = 32;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Row([u32; WARP]);

/// The register file of one warp.
pub(crate) struct Lanes {
    rows: Vec<Row>,
    /// Bit per lane, for every predicate.
    pub preds: Vec<u32>,
    /// Which lanes of a register hold a value: rows first, then predicates.
    pub written: Vec<u32>,
    /// The carry flag of `add.cc` and its kin.
    pub carry: u32,
    /// What the approximate instructions return.
    pub approx: Approx,
}

/// An arithmetic instruction, ready to run on the lanes of a mask.
pub(crate) type Exec = Box<dyn Fn(&mut Lanes, u32) + Send + Sync>;

/// A type that a row can hold.
pub(crate) trait Lane: Copy + Send + Sync + 'static {
    const ZERO: Self;
    fn load(lanes: &Lanes, row: u32) -> [Self; WARP];
    /// Stores the lanes of `mask`.
    fn store(lanes: &mut Lanes, row: u32, mask: u32, values: &[Self; WARP]);
}

macro_rules! whole_rows {
    ($($t:ty),*) => {$(
        impl Lane for $t {
            const ZERO: Self = 0 as $t;
            #[inline(always)]
            fn load(lanes: &Lanes, row: u32) -> [Self; WARP] {
                let rows = &lanes.rows[row as usize..row as usize + size_of::<$t>() / 4];
                // SAFETY: `rows` is that many rows of 128 bytes, aligned to 64, and any bits are a $t.
                unsafe { *rows.as_ptr().cast::<[$t; WARP]>() }
            }
            #[inline(always)]
            fn store(lanes: &mut Lanes, row: u32, mask: u32, values: &[Self; WARP]) {
                let rows = &mut lanes.rows[row as usize..row as usize + size_of::<$t>() / 4];
                // SAFETY: as in `load`.
                let to = unsafe { &mut *rows.as_mut_ptr().cast::<[$t; WARP]>() };
                if mask == u32::MAX {
                    *to = *values;
                } else {
                    for l in 0..WARP {
                        if mask & (1 << l) != 0 {
                            to[l] = values[l];
                        }
                    }
                }
            }
        }
    )*};
}
whole_rows!(u32, i32, f32, u64, i64, f64);

macro_rules! narrow {
    ($($t:ty => $u:ty),*) => {$(
        impl Lane for $t {
            const ZERO: Self = 0;
            #[inline(always)]
            fn load(lanes: &Lanes, row: u32) -> [Self; WARP] {
                let wide = u32::load(lanes, row);
                let mut out = [0; WARP];
                for l in 0..WARP {
                    out[l] = wide[l] as $t;
                }
                out
            }
            #[inline(always)]
            fn store(lanes: &mut Lanes, row: u32, mask: u32, values: &[Self; WARP]) {
                let mut wide = [0; WARP];
                for l in 0..WARP {
                    wide[l] = u32::from(values[l] as $u);
                }
                u32::store(lanes, row, mask, &wide);
            }
        }
    )*};
}
narrow!(u16 => u16, i16 => u16);

impl Lanes {
    pub fn new(rows: usize, preds: usize, approx: Approx) -> Self {
        Lanes {
            rows: vec![Row([0; WARP]); rows],
            preds: vec![0; preds],
            written: vec![0; rows + preds],
            carry: 0,
            approx,
        }
    }

    /// Any register of up to 64 bits, zero-extended.
    #[inline]
    pub fn load_raw(&self, row: u32, wide: bool) -> [u64; WARP] {
        if wide {
            return u64::load(self, row);
        }
        let narrow = u32::load(self, row);
        let mut out = [0; WARP];
        for l in 0..WARP {
            out[l] = u64::from(narrow[l]);
        }
        out
    }

    /// The counterpart of [`Self::load_raw`]: a narrow register takes the low 32 bits.
    #[inline]
    pub fn store_raw(&mut self, row: u32, wide: bool, mask: u32, values: &[u64; WARP]) {
        if wide {
            return u64::store(self, row, mask, values);
        }
        let mut narrow = [0; WARP];
        for l in 0..WARP {
            narrow[l] = values[l] as u32;
        }
        u32::store(self, row, mask, &narrow);
    }

    #[inline]
    pub fn set(&mut self, row: u32, wide: bool, lane: usize, value: u64) {
        let row = row as usize;
        if wide {
            let r = &mut self.rows[row + lane / 16].0;
            r[lane % 16 * 2] = value as u32;
            r[lane % 16 * 2 + 1] = (value >> 32) as u32;
        } else {
            self.rows[row].0[lane] = value as u32;
        }
    }

    #[inline]
    pub fn get(&self, row: u32, wide: bool, lane: usize) -> u64 {
        let row = row as usize;
        if wide {
            let r = &self.rows[row + lane / 16].0;
            u64::from(r[lane % 16 * 2]) | u64::from(r[lane % 16 * 2 + 1]) << 32
        } else {
            u64::from(self.rows[row].0[lane])
        }
    }
}

/// d = f(a).
pub(crate) fn map1<A: Lane, D: Lane>(
    d: u32,
    a: u32,
    f: impl Fn(A) -> D + Send + Sync + 'static,
) -> Exec {
    Box::new(move |l, mask| {
        let a = A::load(l, a);
        let mut out = [D::ZERO; WARP];
        for i in 0..WARP {
            out[i] = f(a[i]);
        }
        D::store(l, d, mask, &out);
    })
}

/// d = f(a, b).
pub(crate) fn map2<A: Lane, B: Lane, D: Lane>(
    d: u32,
    a: u32,
    b: u32,
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Exec {
    Box::new(move |l, mask| {
        let (a, b) = (A::load(l, a), B::load(l, b));
        let mut out = [D::ZERO; WARP];
        for i in 0..WARP {
            out[i] = f(a[i], b[i]);
        }
        D::store(l, d, mask, &out);
    })
}

/// d = f(a, b, c).
pub(crate) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
    d: u32,
    a: u32,
    b: u32,
    c: u32,
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Exec {
    Box::new(move |l, mask| {
        let (a, b, c) = (A::load(l, a), B::load(l, b), C::load(l, c));
        let mut out = [D::ZERO; WARP];
        for i in 0..WARP {
            out[i] = f(a[i], b[i], c[i]);
        }
        D::store(l, d, mask, &out);
    })
}

/// d = f(a) where f is costly or depends on [`Lanes::approx`]: only the lanes of the mask.
pub(crate) fn approx1(
    d: u32,
    a: u32,
    f: impl Fn(Approx, f32) -> f32 + Send + Sync + 'static,
) -> Exec {
    Box::new(move |l, mask| {
        let a = f32::load(l, a);
        let mode = l.approx;
        let mut out = [0.0; WARP];
        for i in 0..WARP {
            if mask & (1 << i) != 0 {
                out[i] = f(mode, a[i]);
            }
        }
        f32::store(l, d, mask, &out);
    })
}

/// The lanes where f(a, b) holds, as bits.
#[inline(always)]
pub(crate) fn compare<A: Lane>(l: &Lanes, a: u32, b: u32, f: impl Fn(A, A) -> bool) -> u32 {
    let (a, b) = (A::load(l, a), A::load(l, b));
    let mut bits = [0u32; WARP];
    for i in 0..WARP {
        bits[i] = if f(a[i], b[i]) { 1 << i } else { 0 };
    }
    bits.iter().fold(0, |m, b| m | b)
}
