//! Handles of Goldfish strategies.

#![allow(unsafe_code)]

use std::ptr;

use xact::{Error, Goldfish, Strategy};

use crate::memory;
use crate::options::unknown;
use crate::status::{Failure, Result};
use crate::types::*;

/// A prepared strategy.
pub struct xact_goldfish(Goldfish);

impl xact_goldfish {
    pub fn strategy(&self) -> &Goldfish {
        &self.0
    }
}

pub unsafe fn create(
    strategy: *const xact_goldfish_strategy,
    out: *mut *mut xact_goldfish,
) -> Result<()> {
    // SAFETY: the caller vouches for the struct.
    let given = unsafe { memory::read(strategy) }?;
    let (k, seed) = (given.k, given.seed);
    let h = u32::try_from(given.h);
    let window = || {
        h.map_err(|_| Error::OutOfRange {
            what: "h",
            got: given.h as f64,
            range: "[1, 2^32)",
        })
    };
    let strategy = match given.kind {
        XACT_STRATEGY_STATIC => Strategy::Static {
            k,
            start: given.start,
        },
        XACT_STRATEGY_RANDOM => Strategy::Random { k, seed },
        XACT_STRATEGY_PRODUCT_TABLE => Strategy::ProductTable { k, h: window()? },
        XACT_STRATEGY_PRODUCT_AVALANCHE => Strategy::ProductAvalanche { k, h: window()? },
        XACT_STRATEGY_DOT_TABLE => Strategy::DotTable { k, h: window()? },
        XACT_STRATEGY_HASH64 => Strategy::Hash64 {
            k,
            h: window()?,
            seed,
        },
        other => return Err(unknown("kind", other.into(), "XACT_STRATEGY")),
    };
    // SAFETY: the caller vouches for the arrays.
    let (table, bitmap) = unsafe {
        (
            memory::array("table", given.table, given.table_len)?,
            memory::array("bitmap", given.bitmap, given.bitmap_bytes)?,
        )
    };
    memory::check_place("goldfish", out)?;
    let goldfish = match (given.table.is_null(), given.bitmap.is_null()) {
        (true, true) => Goldfish::new(strategy)?,
        (false, true) => Goldfish::with_table(strategy, table)?,
        (true, false) => Goldfish::with_bitmap(strategy, bitmap)?,
        (false, false) => {
            let text = "table and bitmap are both given; one of them must be null";
            return Err(Failure::new(XACT_ERROR_OUT_OF_RANGE, text));
        }
    };
    let handle = Box::into_raw(Box::new(xact_goldfish(goldfish)));
    // SAFETY: the caller vouches for the place.
    unsafe { memory::put("goldfish", out, handle) }
}

pub unsafe fn free(goldfish: *mut xact_goldfish) -> Result<()> {
    if !goldfish.is_null() {
        memory::check_place("goldfish", goldfish)?;
        // SAFETY: `create` made it, and the caller frees it once.
        drop(unsafe { Box::from_raw(goldfish) });
    }
    Ok(())
}

pub unsafe fn bitmap(
    goldfish: *const xact_goldfish,
    words: *mut *const u32,
    count: *mut u64,
) -> Result<()> {
    // SAFETY: the caller vouches for the handle and the places.
    unsafe {
        let all = memory::handle("goldfish", goldfish)?.0.bitmap_words();
        put_array(all, words, count)
    }
}

pub unsafe fn coefficients(
    goldfish: *const xact_goldfish,
    values: *mut *const i64,
    count: *mut u64,
) -> Result<()> {
    // SAFETY: the caller vouches for the handle and the places.
    unsafe {
        let all = memory::handle("goldfish", goldfish)?.0.coefficients();
        put_array(all, values, count)
    }
}

unsafe fn put_array<T>(values: Option<&[T]>, first: *mut *const T, count: *mut u64) -> Result<()> {
    memory::check_place("count", count)?;
    // SAFETY: the caller vouches for the places.
    unsafe {
        memory::put(
            "the array",
            first,
            values.map_or(ptr::null(), <[T]>::as_ptr),
        )?;
        memory::put("count", count, values.map_or(0, <[T]>::len) as u64)
    }
}

pub unsafe fn window(goldfish: *const xact_goldfish, h: *mut u64) -> Result<()> {
    // SAFETY: the caller vouches for the handle and the place.
    unsafe {
        let strategy = memory::handle("goldfish", goldfish)?.0.strategy();
        memory::put("h", h, strategy.h().map_or(0, u64::from))
    }
}

pub unsafe fn dropped_share(goldfish: *const xact_goldfish, share: *mut f64) -> Result<()> {
    // SAFETY: the caller vouches for the handle and the place.
    unsafe {
        let (dropped, of) = memory::handle("goldfish", goldfish)?.0.dropped_share();
        memory::put("share", share, dropped as f64 / of as f64)
    }
}
