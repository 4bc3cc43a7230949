//! Memory.

use cuda_emulator::Schedule;

use crate::words;

/// Loads and stores of each type in each space: the low bits go out, and come back extended.
#[test]
fn loads_and_stores() {
    let value = 0x8123_4567_89ab_cdefu64;
    for (place, spaces) in [
        (
            "%rd1",
            [
                "",
                ".global",
                ".volatile.global",
                ".relaxed.gpu.global",
                ".weak.global",
            ],
        ),
        (
            "%r3",
            [
                ".shared",
                ".volatile.shared",
                ".shared::cta",
                ".relaxed.cta.shared",
                ".shared",
            ],
        ),
        (
            "l",
            [
                ".local",
                ".volatile.local",
                ".local",
                ".local.L1::evict_last",
                ".local",
            ],
        ),
    ] {
        for space in spaces {
            for (ty, bits) in [
                ("b8", 8),
                ("u8", 8),
                ("s8", 8),
                ("b16", 16),
                ("u16", 16),
                ("s16", 16),
                ("b32", 32),
                ("u32", 32),
                ("s32", 32),
                ("b64", 64),
                ("u64", 64),
                ("s64", 64),
            ] {
                let body = format!(
                    "mov.u64 %rd2, {value}; st{space}.{ty} [{place}], %rd2; ld{space}.{ty} %rd3, [{place}]; st.u64 [%rd1], %rd3;"
                );
                let low = value & u64::MAX >> (64 - bits);
                let s = 64 - bits;
                let want = if ty.starts_with('s') {
                    (((low << s) as i64) >> s) as u64
                } else {
                    low
                };
                assert!(words(&body, 1, Schedule::InOrder)[0] == want, "{body}");
                // Into a 32-bit register.
                if bits < 64 {
                    let body = body
                        .replace("%rd3, [", "%r5, [")
                        .replace(
                            "st.u64 [%rd1], %rd3",
                            "mov.b64 %rd3, {%r5, %r4}; st.u64 [%rd1], %rd3",
                        )
                        .replace("mov.u64 %rd2", "mov.u32 %r4, 0; mov.u64 %rd2");
                    assert_eq!(
                        words(&body, 1, Schedule::InOrder)[0],
                        want & 0xffff_ffff,
                        "{body}"
                    );
                }
            }
            let body = format!(
                "mov.f32 %f1, 0f3FC00000; mov.f64 %fd1, 0d3FF8000000000000; st{space}.f64 [{place}], %fd1; ld{space}.f64 %fd2, [{place}];
                st{space}.f32 [{place}], %f1; ld{space}.f32 %f2, [{place}]; cvt.f64.f32 %fd3, %f2; add.f64 %fd2, %fd2, %fd3; st.f64 [%rd1], %fd2;"
            );
            assert_eq!(
                words(&body, 1, Schedule::InOrder)[0],
                3f64.to_bits(),
                "{body}"
            );
        }
    }
    // Vectors: the first element at the lowest address.
    for (ty, r, n) in [
        ("b16", "h", 2),
        ("b16", "h", 4),
        ("b32", "r", 2),
        ("b32", "r", 4),
        ("b64", "rd", 2),
        ("b8", "h", 4),
    ] {
        let base = if r == "h" { 3 } else { 5 };
        let list: Vec<String> = (0..n).map(|i| format!("%{r}{}", base + i)).collect();
        let moves: String = list
            .iter()
            .enumerate()
            .map(|(i, r)| {
                format!(
                    "mov.b{} {r}, {};",
                    if ty == "b8" { "16" } else { &ty[1..] },
                    i + 17
                )
            })
            .collect();
        let list = list.join(", ");
        let body = format!(
            "{moves} st.shared.v{n}.{ty} [%r3], {{{list}}}; ld.shared.v{n}.{ty} {{{list}}}, [%r3]; st.v{n}.{ty} [%rd1], {{{list}}};"
        );
        let got = words(&body, 1, Schedule::InOrder);
        let width: u64 = ty[1..].parse().unwrap();
        for i in 0..n as u64 {
            let bit = i * width;
            assert_eq!(
                got[bit as usize / 64] >> (bit % 64) & (u64::MAX >> (64 - width)),
                i + 17,
                "{body}"
            );
        }
    }
}

/// Each atomic gives the old value and leaves the new one, in both spaces; `red` only leaves it.
#[test]
fn atomics() {
    let f = |x: f32| u64::from(x.to_bits());
    let half = |lo: f32, hi: f32| {
        u64::from(half::f16::from_f32(hi).to_bits()) << 16
            | u64::from(half::f16::from_f32(lo).to_bits())
    };
    let brain = |lo: f32, hi: f32| {
        u64::from(half::bf16::from_f32(hi).to_bits()) << 16
            | u64::from(half::bf16::from_f32(lo).to_bits())
    };
    let big = 1 << 63 | 5u64;
    // Name, bits, old value, operands, new value.
    let cases: [(&str, u32, u64, &[u64], u64); 42] = [
        ("and.b32", 32, 0b1100, &[0b1010], 0b1000),
        ("and.b64", 64, big, &[1 << 63], 1 << 63),
        ("or.b32", 32, 0b1100, &[0b1010], 0b1110),
        ("or.b64", 64, big, &[2], big | 2),
        ("xor.b32", 32, 0b1100, &[0b1010], 0b0110),
        ("xor.b64", 64, big, &[big], 0),
        ("exch.b32", 32, 7, &[9], 9),
        ("exch.b64", 64, big, &[9], 9),
        ("cas.b16", 16, 7, &[7, 9], 9),
        ("cas.b32", 32, 7, &[7, 9], 9),
        ("cas.b32", 32, 7, &[8, 9], 7),
        ("cas.b64", 64, big, &[big, 9], 9),
        ("add.u32", 32, u64::from(u32::MAX), &[2], 1),
        ("add.s32", 32, 5, &[u64::from(u32::MAX)], 4),
        ("add.u64", 64, big, &[1 << 63], 5),
        ("add.f32", 32, f(1.5), &[f(2.25)], f(3.75)),
        (
            "add.f64",
            64,
            1.5f64.to_bits(),
            &[2.25f64.to_bits()],
            3.75f64.to_bits(),
        ),
        (
            "add.noftz.f16",
            16,
            half(1.5, 0.0),
            &[half(2.25, 0.0)],
            half(3.75, 0.0),
        ),
        (
            "add.noftz.f16x2",
            32,
            half(1.5, 4.0),
            &[half(2.25, -1.0)],
            half(3.75, 3.0),
        ),
        (
            "add.noftz.bf16",
            16,
            brain(1.5, 0.0),
            &[brain(2.25, 0.0)],
            brain(3.75, 0.0),
        ),
        (
            "add.noftz.bf16x2",
            32,
            brain(1.5, 4.0),
            &[brain(2.25, -1.0)],
            brain(3.75, 3.0),
        ),
        ("inc.u32", 32, 4, &[5], 5),
        ("inc.u32", 32, 5, &[5], 0),
        ("inc.u32", 32, 6, &[5], 0),
        ("dec.u32", 32, 4, &[5], 3),
        ("dec.u32", 32, 0, &[5], 5),
        ("dec.u32", 32, 6, &[5], 5),
        ("min.u32", 32, 5, &[u64::from(u32::MAX)], 5),
        (
            "max.u32",
            32,
            5,
            &[u64::from(u32::MAX)],
            u64::from(u32::MAX),
        ),
        (
            "min.s32",
            32,
            5,
            &[u64::from(u32::MAX)],
            u64::from(u32::MAX),
        ),
        ("max.s32", 32, 5, &[u64::from(u32::MAX)], 5),
        ("min.u64", 64, big, &[5], 5),
        ("max.u64", 64, big, &[5], big),
        ("min.s64", 64, big, &[5], big),
        ("max.s64", 64, big, &[5], 5),
        // Words of order and scope change no value.
        ("relaxed.gpu.add.u32", 32, 1, &[2], 3),
        ("acq_rel.sys.max.u32", 32, 1, &[2], 2),
        ("release.gpu.exch.b32", 32, 1, &[2], 2),
        ("acquire.cta.cas.b32", 32, 1, &[1, 2], 2),
        ("relaxed.cta.or.b32", 32, 1, &[2], 3),
        ("cta.add.u32", 32, 1, &[2], 3),
        ("relaxed.cluster.inc.u32", 32, 1, &[2], 2),
    ];
    for (name, bits, old, operands, new) in cases {
        let words_of = |w: &str| {
            [
                "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "cluster",
            ]
            .contains(&w)
        };
        let at = name
            .split('.')
            .take_while(|w| words_of(w))
            .map(|w| w.len() + 1)
            .sum::<usize>();
        let (order, op) = name.split_at(at);
        let order = order.trim_end_matches('.');
        let order = if order.is_empty() {
            String::new()
        } else {
            format!(".{order}")
        };
        for (space, place) in [("global", "%rd1"), ("shared", "%r3")] {
            for opcode in ["atom", "red"] {
                let returns = opcode == "atom";
                if !returns
                    && (op.starts_with("exch") || op.starts_with("cas") || order.contains("acq"))
                {
                    continue;
                }
                let list: String = operands
                    .iter()
                    .enumerate()
                    .map(|(i, v)| {
                        format!(
                            "mov.b{bits} %{}{}, {v};",
                            ["h", "r", "rd"][bits as usize / 32],
                            5 + i
                        )
                    })
                    .collect();
                let r = |i: usize| format!("%{}{i}", ["h", "r", "rd"][bits as usize / 32]);
                let sources: String = (0..operands.len())
                    .map(|i| format!(", {}", r(5 + i)))
                    .collect();
                let d = if returns {
                    format!("{}, ", r(7))
                } else {
                    String::new()
                };
                let [first, back, kept] = [r(4), r(8), r(7)];
                let body = format!(
                    "{list} mov.b{bits} {first}, {old}; mov.b{bits} {kept}, {old}; st.{space}.b{bits} [{place}], {first};
                    {opcode}{order}.{space}.{op} {d}[{place}]{sources}; ld.{space}.b{bits} {back}, [{place}]; mov.u64 %rd9, 0;
                    st.u64 [%rd1], %rd9; st.b{bits} [%rd1], {back}; st.u64 [%rd1+8], %rd9; st.b{bits} [%rd1+8], {kept};"
                );
                let got = words(&body, 1, Schedule::InOrder);
                assert_eq!((got[0], got[1]), (new, old), "{opcode} {name} {space}");
            }
        }
    }
    // Subnormals: flushed in global memory, kept in shared memory.
    for (space, place, want) in [("global", "%rd1", 0), ("shared", "%r3", 2)] {
        let body = format!(
            "mov.b32 %r5, 1; st.{space}.b32 [{place}], %r5; mov.b32 %f1, %r5; red.{space}.add.f32 [{place}], %f1;
            ld.{space}.b32 %r6, [{place}]; mov.u32 %r7, 0; st.v2.u32 [%rd1], {{%r6, %r7}};"
        );
        assert_eq!(words(&body, 1, Schedule::InOrder)[0], want, "{space}");
    }
}
