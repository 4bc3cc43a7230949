//! Finds the main loop of an elementwise kernel, and the hot path through the loop.
//!
//! 1. From the control-flow graph of the machine code, find the natural loops. The candidates are the innermost loops
//!    with enough 128-bit global loads and stores: a kernel has one for each variant of its op.
//! 2. In a candidate, find the shortest path from the header back to it that executes exactly as many of these loads and
//!    stores as one iteration over whole packs needs: `packs` for each input and output. Narrow accesses, partial packs and
//!    optional outputs are therefore not on the path.
//! 3. Counting alone would accept a path that no thread takes, such as one with two outputs of the first pack and none of
//!    the second. Therefore follow the values along the path. For one pack after the other, the stores must depend only on
//!    loads that no earlier pack's stores depend on, and together on exactly one new load for each input. If a path fails,
//!    try the next longer one. A loop without outputs computes a sum: then some value must depend on all loads.
//! 4. If the path branches on loaded data, the lanes of a warp may take both sides. Therefore also count the instructions
//!    beside the path, up to where it is reached again, except those that access global memory. This is an upper bound.
//! 5. Of several candidates, the one with the fewest instructions counts, which is the fast variant of the op. Only the
//!    loads in flight are the minimum over all candidates. A candidate without such a path is an error.
//! 6. Where the kernel marks its loops (mark.rs), every marked loop is counted, and no other.
//!
//! All instructions on the path count, including predicated ones and those that control the loop.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use anyhow::{Context, bail};

use super::flow::{Flow, Loads};
use super::listing::{Function, Instruction};

/// The work of one iteration of the main loop.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The number of vectors per buffer.
    pub packs: usize,
    /// The number of buffers that are read.
    pub inputs: usize,
    /// The number of buffers that are written.
    pub outputs: usize,
}

/// The numbers of instructions that one thread issues in one iteration.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Counts {
    /// All instructions.
    pub instructions: usize,
    /// Those of the special-function unit: `MUFU`.
    pub mufu: usize,
    /// Conversions between integers and floats, or between widths of floats: `F2F`, `F2I`, `I2F`. `F2FP` and `I2FP` are
    /// ordinary arithmetic.
    pub conversions: usize,
    /// Those beside the path, behind branches on data; `all` includes them.
    pub beside: usize,
    /// The 128-bit loads that are issued before the first instruction that needs the result of one; the minimum over all
    /// candidates.
    pub in_flight: usize,
}

/// The hot path of a main loop.
#[derive(Debug)]
pub struct HotPath {
    /// The numbers of instructions on and beside the path.
    pub counts: Counts,
    /// The indices of the instructions on the path, in the order of execution.
    pub way: Vec<usize>,
    /// The indices of the instructions beside the path, behind branches on data.
    pub beside: BTreeSet<usize>,
}

impl HotPath {
    /// The path as text, with one line per instruction.
    pub fn text(&self, function: &Function) -> String {
        let line = |mark: char, node: &usize| format!("{mark} {}\n", function.code[*node]);
        let way = self.way.iter().map(|node| line(' ', node));
        way.chain(self.beside.iter().map(|node| line('+', node)))
            .collect()
    }
}

/// Finds the hot path of the function's main loop.
///
/// # Errors
/// No path satisfies the rules above.
pub fn main_loop(function: &Function, work: Work) -> anyhow::Result<HotPath> {
    let code = &function.code;
    let mut loops = loops(code);
    loops.retain(|body| {
        let count =
            |is: fn(&Instruction) -> bool| body.nodes.iter().filter(|n| is(&code[**n])).count();
        count(is_load) >= work.packs * work.inputs && count(is_store) >= work.packs * work.outputs
    });
    let is_innermost = |this: &&Loop| {
        !loops
            .iter()
            .any(|other| other.nodes.len() < this.nodes.len() && other.nodes.is_subset(&this.nodes))
    };
    let candidates: Vec<_> = loops.iter().filter(is_innermost).collect();
    if candidates.is_empty() {
        bail!(
            "no loop has {} 128-bit loads and {} 128-bit stores",
            work.packs * work.inputs,
            work.packs * work.outputs
        );
    }
    // A kernel that computes a sum may also have a loop that writes the values it reads, so only its loads count.
    let writes = Work { outputs: 1, ..work };
    let (mut main, mut in_flight) = (None, usize::MAX);
    for body in candidates.iter().copied() {
        let path = hot_path(code, body, work);
        let other = match &path {
            None if work.outputs == 0 => hot_path(code, body, writes),
            _ => None,
        };
        let Some(found) = path.as_ref().or(other.as_ref()) else {
            bail!(
                "{} loops have {} 128-bit loads and {} 128-bit stores, but no way round that at {:#06x} executes them as \
                 {} packs of their own",
                candidates.len(),
                work.packs * work.inputs,
                work.packs * work.outputs,
                code[body.header].address,
                work.packs
            );
        };
        in_flight = in_flight.min(found.counts.in_flight);
        let best = main.as_ref().map(|path: &HotPath| path.counts.instructions);
        if let Some(path) = path
            && best.is_none_or(|best| path.counts.instructions < best)
        {
            main = Some(path);
        }
    }
    let mut main = main.context("no loop adds up what it loads")?;
    main.counts.in_flight = in_flight;
    Ok(main)
}

/// Finds the hot paths of the loops that are marked by the lines of their first loads, each with its work. ptxas may copy the
/// loads before the loop, which is the innermost one around any of them. If it has copied the whole loop, the copy with the
/// most instructions counts.
///
/// # Errors
/// A marked loop is not in the code, or no path in it satisfies the rules above.
pub fn marked_loops(function: &Function, marks: &[(u32, Work)]) -> anyhow::Result<Vec<HotPath>> {
    let code = &function.code;
    let loops = loops(code);
    let of_mark = |&(line, work): &(u32, Work)| {
        let loads = (0..code.len()).filter(|&node| code[node].line == line && is_load(&code[node]));
        let around = |node: usize| {
            let around = loops.iter().filter(move |body| body.nodes.contains(&node));
            around.min_by_key(|body| body.nodes.len())
        };
        let found: Vec<&Loop> = loads.filter_map(around).collect();
        let is_innermost = |body: &&Loop| {
            let inner = |other: &&Loop| other.nodes.len() < body.nodes.len();
            !found
                .iter()
                .any(|other| inner(other) && other.nodes.is_subset(&body.nodes))
        };
        let paths = found.iter().copied().filter(is_innermost).map(|body| {
            hot_path(code, body, work).with_context(|| {
                format!(
                    "no way round the loop at {:#06x} executes {work:?}, one pack after the other",
                    code[body.header].address
                )
            })
        });
        let paths = paths.collect::<anyhow::Result<Vec<_>>>()?;
        let worst = paths
            .into_iter()
            .max_by_key(|path| path.counts.instructions);
        worst.with_context(|| format!("no loop has the load of line {line} of the PTX"))
    };
    marks.iter().map(of_mark).collect()
}

fn is_load(instruction: &Instruction) -> bool {
    instruction.base() == "LDG" && instruction.is("128")
}

fn is_global(instruction: &Instruction) -> bool {
    matches!(instruction.base(), "LDG" | "STG")
}

fn is_store(instruction: &Instruction) -> bool {
    instruction.base() == "STG" && instruction.is("128")
}

/// A natural loop.
#[derive(Debug)]
struct Loop {
    header: usize,
    nodes: BTreeSet<usize>,
}

/// The natural loops of the control-flow graph. Back edges to the same header make one loop.
fn loops(code: &[Instruction]) -> Vec<Loop> {
    let mut before = vec![Vec::new(); code.len()];
    let (mut reached, mut stack) = (vec![false; code.len()], vec![0]);
    while let Some(node) = stack.pop() {
        if !std::mem::replace(&mut reached[node], true) {
            for &next in &code[node].next {
                before[next].push(node);
                stack.push(next);
            }
        }
    }
    // The instructions that lead to `end` without the header. If the entry is one of them, the edge from `end` is no back
    // edge.
    let body = |header: usize, end: usize| {
        let (mut leads, mut stack) = (vec![false; code.len()], vec![end]);
        leads[header] = true;
        while let Some(node) = stack.pop() {
            if node == 0 && header != 0 {
                return None;
            }
            if !std::mem::replace(&mut leads[node], true) {
                stack.extend(&before[node]);
            }
        }
        Some((0..code.len()).filter(move |&node| leads[node]))
    };
    // Another edge than the back edge leads into the loop.
    let headers = (0..code.len()).filter(|&node| node == 0 || before[node].len() > 1);
    let loops = headers.map(|header| {
        let bodies = before[header].iter().filter_map(|&end| body(header, end));
        let nodes = bodies.flatten().collect();
        Loop { header, nodes }
    });
    loops.filter(|body| !body.nodes.is_empty()).collect()
}

/// A position on a path, with one bit for each 128-bit load and store that was executed up to and including it.
type State = (usize, u32, u32);

fn hot_path(code: &[Instruction], body: &Loop, work: Work) -> Option<HotPath> {
    let wide = |is: fn(&Instruction) -> bool| -> Vec<usize> {
        body.nodes
            .iter()
            .copied()
            .filter(|n| is(&code[*n]))
            .collect()
    };
    let (loads, stores) = (wide(is_load), wide(is_store));
    if loads.len() > 32 || stores.len() > 32 {
        return None;
    }
    let need = (
        u32::try_from(work.packs * work.inputs).ok()?,
        u32::try_from(work.packs * work.outputs).ok()?,
    );
    let bit = |list: &[usize], node| list.iter().position(|n| *n == node).map_or(0, |at| 1 << at);
    let enter = |node: usize, (_, done_loads, done_stores): State| -> Option<State> {
        let state = (
            node,
            done_loads | bit(&loads, node),
            done_stores | bit(&stores, node),
        );
        let fits = state.1.count_ones() <= need.0 && state.2.count_ones() <= need.1;
        (body.nodes.contains(&node) && fits && !code[node].is_call()).then_some(state)
    };
    // The shortest paths to all states, in the order of their lengths.
    let start = enter(body.header, (body.header, 0, 0))?;
    let mut from: HashMap<State, State> = HashMap::from([(start, start)]);
    let mut queue = VecDeque::from([start]);
    let mut ends = Vec::new();
    while let Some(state) = queue.pop_front() {
        for &next in &code[state.0].next {
            if next == body.header {
                if (state.1.count_ones(), state.2.count_ones()) == need {
                    ends.push(state);
                }
            } else if let Some(reached) = enter(next, state)
                && !from.contains_key(&reached)
            {
                from.insert(reached, state);
                queue.push_back(reached);
            }
        }
    }
    for end in ends {
        let mut way = vec![end.0];
        let mut state = end;
        while from[&state] != state {
            state = from[&state];
            way.push(state.0);
        }
        way.reverse();
        // ptxas may put the loads of the next tile at the end.
        let first_load = way.iter().position(|&node| is_load(&code[node]));
        let mut turned = way.clone();
        turned.rotate_left(first_load.unwrap_or(0));
        for way in [way, turned] {
            if let Some((branches, in_flight)) = follow(code, &way, work) {
                return Some(count(code, body, way, &branches, in_flight));
            }
        }
    }
    None
}

/// Follows the values along a path. `None` if its loads and stores are not those of one pack after the other. Returns the
/// positions of the branches on data, and the loads in flight.
fn follow(code: &[Instruction], way: &[usize], work: Work) -> Option<(Vec<usize>, usize)> {
    let mut flow = Flow::default();
    let mut stored: Vec<Loads> = Vec::new();
    let mut loads = 0;
    let mut in_flight = None;
    let mut branches = Vec::new();
    for (place, &node) in way.iter().enumerate() {
        let instruction = &code[node];
        if in_flight.is_none() && flow.needed(instruction) != 0 {
            in_flight = Some(loads);
        }
        if instruction.next.len() > 1 && flow.condition(instruction) != 0 {
            branches.push(place);
        }
        if is_store(instruction) {
            stored.push(flow.stored(instruction));
        }
        let load = if is_load(instruction) {
            loads += 1;
            1 << (loads - 1)
        } else {
            0
        };
        flow.step(instruction, load);
    }
    let complete = if work.outputs == 0 {
        // A loop without stores computes a sum, so some value must depend on every load.
        flow.gathers((1 << loads) - 1)
    } else {
        are_packs(&stored, work)
    };
    complete.then_some((branches, in_flight.unwrap_or(loads)))
}

/// Whether stores, each given by the loads that it depends on, belong to one pack after the other. A later store may also
/// seem to depend on an earlier pack, through a register that had another value before.
fn are_packs(stored: &[Loads], work: Work) -> bool {
    let mut earlier = 0;
    let mut packs = stored.chunks(work.outputs);
    stored.len() == work.packs * work.outputs
        && packs.all(|stores| {
            let is_new = stores.iter().all(|loads| loads & !earlier != 0);
            let new = stores.iter().fold(0, |all, loads| all | loads) & !earlier;
            earlier |= new;
            is_new && new.count_ones() as usize == work.inputs
        })
}

/// Counts the instructions of the path, and those beside it behind branches on data.
fn count(
    code: &[Instruction],
    body: &Loop,
    way: Vec<usize>,
    branches: &[usize],
    in_flight: usize,
) -> HotPath {
    let on_way: HashSet<usize> = way.iter().copied().collect();
    let mut beside = BTreeSet::new();
    for &place in branches {
        let ahead: HashSet<usize> = way[place + 1..].iter().copied().collect();
        let mut stack = code[way[place]].next.clone();
        let mut side = BTreeSet::new();
        while let Some(node) = stack.pop() {
            let leaves = node == body.header || !body.nodes.contains(&node);
            if !leaves && !ahead.contains(&node) && !on_way.contains(&node) && side.insert(node) {
                stack.extend(&code[node].next);
            }
        }
        // Code that accesses memory is another path of the loop, for a partial pack. Its predicate only seems to depend on
        // data, through a register's earlier value.
        if !side.iter().any(|node| is_global(&code[*node])) {
            beside.extend(side);
        }
    }
    let all = || way.iter().chain(&beside).map(|node| code[*node].base());
    let counts = Counts {
        instructions: way.len() + beside.len(),
        mufu: all().filter(|base| *base == "MUFU").count(),
        conversions: all()
            .filter(|base| matches!(*base, "F2F" | "F2I" | "I2F" | "FRND"))
            .count(),
        beside: beside.len(),
        in_flight,
    };
    HotPath {
        counts,
        way,
        beside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sass::listing;

    /// A loop over two packs of one input and one output in ptxas's style, with narrow stores, a partial pack, an optional
    /// second output of the first pack, and a branch on data.
    const FIXTURE: &str = include_str!("fixture.sass");

    const WORK: Work = Work {
        packs: 2,
        inputs: 1,
        outputs: 1,
    };

    fn fixture(change: impl Fn(&str) -> String) -> Function {
        listing::parse(&change(FIXTURE))
            .expect("readable")
            .remove(0)
    }

    /// The shortest path with two wide stores is 0190–01f0 and the second output of the first pack. The path that stores
    /// both packs must be found instead.
    #[test]
    fn the_hot_path_of_the_fixture() {
        let function = fixture(str::to_owned);
        let path = main_loop(&function, WORK).expect("found");
        let addresses: Vec<u64> = path.way.iter().map(|n| function.code[*n].address).collect();
        let run = |first: u64, last: u64| (first..=last).step_by(0x10);
        let expected = run(0x100, 0x160)
            .chain(run(0x190, 0x1c0))
            .chain(run(0x1e0, 0x270));
        let expected: Vec<u64> = expected.chain(run(0x2a0, 0x2d0)).collect();
        assert_eq!(addresses, expected);
        // 0170 and 0180 are the other side of the branch on data; 0150 to 0160 are on the path.
        let beside: Vec<u64> = path
            .beside
            .iter()
            .map(|n| function.code[*n].address)
            .collect();
        assert_eq!(beside, [0x170, 0x180]);
        let counts = Counts {
            instructions: expected.len() + 2,
            mufu: 1,
            conversions: 1,
            beside: 2,
            in_flight: 2,
        };
        assert_eq!(path.counts, counts);
    }

    #[test]
    fn packs_come_one_after_the_other() {
        let work = Work {
            packs: 2,
            inputs: 3,
            outputs: 2,
        };
        // The stores are dx of x, dy and v; dv of x and dy; y of x and v.
        let (dx, dv, y) = (0b111, 0b011, 0b101);
        assert!(are_packs(&[dx, dv, dx << 3, dv << 3], work));
        assert!(
            are_packs(&[dx, dv, dx << 3 | 1, dv << 3 | 1], work),
            "a trace of the first"
        );
        assert!(
            !are_packs(&[dx, y, dv, dx << 3], work),
            "three of the first"
        );
        assert!(
            !are_packs(&[dx, dx << 3, dv << 3, y << 3], work),
            "three of the second"
        );
        assert!(
            !are_packs(&[dv, dv, dv << 3, dv << 3], work),
            "v is not used"
        );
        assert!(!are_packs(&[dx, dv, dx << 3], work));
        assert!(
            !are_packs(&[dx | 8, dv, dx << 3, dv << 3], work),
            "the second in the first"
        );
    }

    #[test]
    fn a_load_behind_a_wait_is_not_in_flight() {
        // The first pack's value is moved to another register before the second pack is loaded.
        let function = fixture(|text| {
            text.replace(
                "               @P1 LDG.E.128 R8,",
                "                   MOV R30, R4 ;\n        /*0118*/               @P1 LDG.E.128 R8,",
            )
        });
        let path = main_loop(&function, WORK).expect("found");
        assert_eq!(path.counts.in_flight, 1);
    }

    #[test]
    fn a_marked_loop_is_found_by_the_line_of_its_load() {
        let note = "\t//## File \".nv_debug_ptx_txt\", line 7\n        /*0110*/";
        let function = fixture(|text| text.replace("        /*0110*/", note));
        let expected = main_loop(&function, WORK).expect("found").counts;
        let found = marked_loops(&function, &[(7, WORK)]).expect("found");
        assert_eq!(found[0].counts, expected);
        let fails = |line, work| {
            let error = marked_loops(&function, &[(line, work)]).expect_err("no loop");
            error.to_string()
        };
        assert!(fails(8, WORK).contains("no loop has the load of line 8"));
        assert!(fails(7, Work { inputs: 2, ..WORK }).contains("no way round"));
    }

    /// ptxas loads the first tile before the loop, and the next one at its end.
    #[test]
    fn a_turned_loop_is_found_behind_the_loads_before_it() {
        let load = |at: u32| {
            format!(
                "\t//## File \".nv_debug_ptx_txt\", line 7\n \
                 /*{at:04x}*/ LDG.E.128 R4, [R2.64] ;\n \
                 /*{:04x}*/ LDG.E.128 R8, [R2.64+0x1000] ;\n\
                 \t//## File \".nv_debug_ptx_txt\", line 9\n",
                at + 0x10
            )
        };
        let text = format!(
            ".text.f:\n.L_x_0:\n{}.L_x_1:\n \
             /*0020*/ FADD R4, R4, R4 ;\n \
             /*0030*/ STG.E.128 [R40.64], R4 ;\n \
             /*0040*/ STG.E.128 [R40.64+0x1000], R8 ;\n \
             /*0050*/ @!P6 BRA `(.L_x_2) ;\n{} \
             /*0080*/ BRA `(.L_x_1) ;\n.L_x_2:\n \
             /*0090*/ @P5 BRA `(.L_x_0) ;\n \
             /*00a0*/ EXIT ;\n",
            load(0),
            load(0x60)
        );
        let function = listing::parse(&text).expect("readable").remove(0);
        let paths = marked_loops(&function, &[(7, WORK)]).expect("found");
        let addresses: Vec<u64> = paths[0]
            .way
            .iter()
            .map(|n| function.code[*n].address)
            .collect();
        assert_eq!(addresses, [0x60, 0x70, 0x80, 0x20, 0x30, 0x40, 0x50]);
        assert_eq!(paths[0].counts.in_flight, 2);
    }

    #[test]
    fn a_branch_on_no_data_costs_one_side() {
        let function = fixture(|text| text.replace("P2, PT, R4, RZ", "P2, PT, R50, RZ"));
        let path = main_loop(&function, WORK).expect("found");
        assert_eq!((path.counts.mufu, path.counts.beside), (0, 0));
    }

    #[test]
    fn of_two_loops_the_cheaper_counts() {
        let second = FIXTURE
            .lines()
            .skip_while(|line| !line.starts_with(".L_x_1:"))
            .take_while(|line| !line.starts_with(".L_x_50:"))
            .map(|line| line.replace(".L_x_", ".L_y_").replace("/*0", "/*1"))
            .filter(|line| !line.contains("I2F"))
            .map(|line| line + "\n")
            .collect::<String>();
        let function = fixture(|text| text.replace(".L_x_50:\n", &format!("{second}.L_x_50:\n")));
        let path = main_loop(&function, WORK).expect("found");
        assert_eq!(function.code[path.way[0]].address, 0x1100);
        assert_eq!(path.counts.conversions, 0);
    }

    #[test]
    fn no_path_is_made_up() {
        let fails = |change: &dyn Fn(&str) -> String, work: Work| {
            let error = main_loop(&fixture(change), work).expect_err("no path");
            error.to_string()
        };
        // The loop does not do this work.
        let work = Work { inputs: 2, ..WORK };
        assert!(fails(&str::to_owned, work).starts_with("no loop has 4 128-bit loads"));
        // No store depends on the second pack's load.
        let wrong = |text: &str| text.replace("LDG.E.128 R8,", "LDG.E.128 R20,");
        assert!(fails(&wrong, WORK).contains("no way round"));
        // The only path calls a subroutine.
        let call = |text: &str| text.replace("MOV R14, R12", "CALL.REL.NOINC `($sub)");
        assert!(fails(&call, WORK).contains("no way round"));
        // There is no loop.
        let once = |text: &str| text.replace("@P6 BRA `(.L_x_1)", "NOP");
        assert!(fails(&once, WORK).starts_with("no loop has"));
    }
}
