//! The Goldfish kernels against the reference, and against what the official code and its ports compute.

mod support;

use support::choose::{Choice, Gpu, open};
use support::goldfish::{How, keep};
use support::goldfish_golden::{Golden, dropped};
use xact::Goldfish;
use xact::loss::goldfish::Tokens;

fn gpu() -> Gpu {
    open(Choice::from_env().unwrap()).unwrap()
}

#[test]
fn the_kernel_makes_the_official_masks() {
    let (gpu, golden) = (gpu(), Golden::read());
    let mut labels = 0;
    for case in golden.cases() {
        let goldfish = Goldfish::new(case.strategy).unwrap();
        let mask = keep(&gpu, &goldfish, &Tokens::row(&case.ids), How::default()).unwrap();
        assert_eq!(dropped(&mask), case.dropped, "{:?}", case.raw);
        labels += mask.len();
    }
    assert_eq!(labels, 31 * (4 * 96 + 150));
}
