//! A page about a run of the GPU bundle that can be read in a minute: correctness, speed, and the next steps.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use xact_dev::table::table;

use crate::devices::Goal;
use crate::measure::{Measured, Speed};
use crate::report::{self, PRESENT, Parts, PeerRow, verdict};

/// The maximum number of lines of a list.
const LINES: usize = 6;
/// The page reports a copy that is slower than the fastest by this factor, or a geometry that is faster than the present
/// one by it.
const WORTH: f64 = 0.02;

/// The text of the page.
pub fn of(parts: &Parts) -> String {
    let mut text = format!(
        "# A run of the GPU bundle\n\n```text\n{}\n```\n",
        parts.machine
    );
    steps(parts, &mut text);
    if let Some(comparison) = &parts.comparison {
        let _ = writeln!(
            text,
            "\nEmulator and device: {}. {}",
            if comparison.ok() {
                "they agree"
            } else {
                "they DIFFER"
            },
            comparison.counts()
        );
    }
    if let Some(speed) = &parts.speed {
        let _ = write!(
            text,
            "\n## Speed\n\n{}\n\n{}\n",
            report::yardsticks(speed),
            report::clocks_in_words(speed)
        );
        goals(speed, &mut text);
        representative(speed, &mut text);
    }
    fastest_peers(parts, &mut text);
    let next = next(parts);
    let _ = write!(text, "\n## Next\n\n");
    for line in next {
        let _ = writeln!(text, "- {line}");
    }
    text
}

/// The failures, the steps that were not run, and the notes of passed steps that are results.
fn steps(parts: &Parts, text: &mut String) {
    let of = |outcome: &str| -> Vec<_> {
        let steps = parts.steps.iter();
        steps.filter(|step| step.outcome == outcome).collect()
    };
    let (failed, not_run) = (of("FAILED"), of("not run"));
    let _ = writeln!(
        text,
        "\n## Steps: {} passed, {} FAILED, {} not run\n",
        of("passed").len(),
        failed.len(),
        not_run.len()
    );
    for step in failed.into_iter().chain(not_run) {
        let _ = writeln!(text, "- {} {}: {}", step.name, step.outcome, step.note);
    }
    for file in &parts.unreadable {
        let _ = writeln!(text, "- unreadable: {file}");
    }
    for step in of("passed") {
        // Their notes are times or sizes, which are not elsewhere on the page.
        if ["load", "ncu", "python"]
            .iter()
            .any(|part| step.name.starts_with(part))
        {
            let _ = writeln!(text, "- {}: {}", step.name, step.note);
        }
    }
}

fn goals(speed: &Speed, text: &mut String) {
    let goals = report::goals(speed);
    if goals.is_empty() {
        let _ = writeln!(text, "\nNo goals are set for this device or these rows.");
        return;
    }
    let (met, mut missed): (Vec<_>, Vec<_>) = goals
        .into_iter()
        .partition(|(found, goal)| goal.is_met(found));
    let _ = writeln!(
        text,
        "\nGoals: {} met, {} MISSED.\n",
        met.len(),
        missed.len()
    );
    missed.sort_by(farthest_first);
    let heads = ["row", "goal", "measured", "verdict"];
    let mut table = table(&heads, &heads[2..3]);
    // Goals of a single row are always shown.
    let own = met
        .iter()
        .filter(|(_, goal)| !matches!(goal, Goal::Share(_)));
    for (found, goal) in own.chain(missed.iter().take(LINES)) {
        let [asked, measured] = goal.in_words(found);
        let verdict = verdict(goal.is_met(found)).to_owned();
        table.add_row([found.name.clone(), asked, measured, verdict]);
    }
    let _ = writeln!(text, "{table}");
    if missed.len() > LINES {
        let _ = writeln!(text, "\nand {} more, less far off.", missed.len() - LINES);
    }
}

fn farthest_first(a: &(&Measured, Goal), b: &(&Measured, Goal)) -> Ordering {
    a.1.reached(a.0).total_cmp(&b.1.reached(b.0))
}

fn representative(speed: &Speed, text: &mut String) {
    let rows = speed.rows.iter();
    let rows: Vec<_> = rows.filter(|found| found.row.representative).collect();
    if rows.is_empty() {
        return;
    }
    let heads = ["row", "time", "GB/s", "share", "of the"];
    let mut table = table(&heads, &heads[1..4]);
    for found in rows {
        table.add_row([
            found.name.clone(),
            found.time(),
            format!("{:.0}", found.gb_per_s()),
            found.share_in_words(),
            found.yardstick.name().to_owned(),
        ]);
    }
    let _ = write!(text, "\n{table}\n");
}

/// For every row, the peer that is closest to ours or ahead of it.
fn nearest(parts: &Parts) -> Vec<(f64, PeerRow)> {
    let mut nearest: BTreeMap<String, (f64, PeerRow)> = BTreeMap::new();
    for row in parts.peer_rows() {
        let Some(ratio) = row.ratio() else {
            continue;
        };
        if nearest
            .get(&row.row)
            .is_none_or(|(least, _)| ratio < *least)
        {
            nearest.insert(row.row.clone(), (ratio, row));
        }
    }
    let mut nearest: Vec<_> = nearest.into_values().collect();
    nearest.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    nearest
}

fn fastest_peers(parts: &Parts, text: &mut String) {
    let nearest = nearest(parts);
    if nearest.is_empty() {
        return;
    }
    let _ = write!(
        text,
        "\n## Peers: where the fastest of them is nearest, of {} rows\n\n",
        nearest.len()
    );
    let heads = ["row", "peer", "times as fast as it"];
    let mut table = table(&heads, &heads[2..]);
    for (ratio, row) in nearest.into_iter().take(LINES) {
        table.add_row([row.row, row.peer, format!("{ratio:.2}")]);
    }
    let _ = writeln!(text, "{table}");
}

/// The next steps, the most urgent first.
fn next(parts: &Parts) -> Vec<String> {
    let mut next = Vec::new();
    if parts.steps.iter().any(|step| step.outcome == "FAILED") {
        next.push(
            "What failed comes first: failures.txt has the last lines of each step, docs/gpu-day.md what to do."
                .to_owned(),
        );
    }
    let loaded = parts.steps.iter().filter_map(|step| {
        let (count, rest) = step.note.strip_prefix("machine code: ")?.split_once(" of ")?;
        let (all, _) = rest.split_once(" files")?;
        (count != all).then(|| {
            format!(
                "Only {count} of {all} files were loaded as machine code, the others as PTX: the driver may be older \
                 than the machine code, or the device another ({}).",
                step.name
            )
        })
    });
    next.extend(loaded);
    if let Some(speed) = &parts.speed {
        let copies = speed.yardsticks.iter();
        let copies: Vec<_> = copies.filter(|(which, _)| which.passes() == 2).collect();
        let fastest = copies.iter().map(|(_, speed)| *speed).fold(0.0, f64::max);
        for (which, speed) in copies {
            if *speed < fastest * (1.0 - WORTH) {
                next.push(format!(
                    "The {} reaches {:.0} % of the fastest copy: shares of it would flatter.",
                    which.name(),
                    100.0 * speed / fastest
                ));
            }
        }
        let goals = report::goals(speed).into_iter();
        let missed = goals.filter(|(found, goal)| !goal.is_met(found));
        if let Some((found, _)) = missed.min_by(farthest_first) {
            next.push(format!(
                "Farthest from its goal: {}. `run.sh --only ncu` says what holds eight kernels back.",
                found.name
            ));
        }
    }
    let ahead = nearest(parts);
    let ahead: Vec<_> = ahead.iter().filter(|(ratio, _)| *ratio < 1.0).collect();
    if let Some((ratio, row)) = ahead.first() {
        next.push(format!(
            "Peers are ahead in {} rows, most in {}: {} at {ratio:.2}.",
            ahead.len(),
            row.row,
            row.peer
        ));
    }
    next.extend(better(&parts.choices, "The choice", "raw::cross_entropy"));
    next.extend(better(&parts.tuning, "Geometry", "xtask/src/bundle.rs"));
    if next.is_empty() {
        next.push("Nothing stands out: docs/gpu-day.md says where the figures go.".to_owned());
    }
    next
}

/// The rows that are faster with other choices.
fn better(tried: &BTreeMap<String, Speed>, kind: &str, home: &str) -> Vec<String> {
    let Some(present) = tried.get(PRESENT) else {
        return Vec::new();
    };
    let best = |found: &Measured| {
        let of = |speed: &Speed| {
            let row = speed.rows.iter().find(|row| row.name == found.name)?;
            row.row.is_changed_by_its_choice().then(|| row.share())?
        };
        let others = (tried.iter()).filter_map(|(name, speed)| Some((of(speed)?, name)));
        let (share, name) = others.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        let present = found.share()?;
        (share > present * (1.0 + WORTH)).then(|| {
            format!(
                "{kind} {name} ({home}) brings {} from {:.1} to {:.1} %.",
                found.name,
                100.0 * present,
                100.0 * share
            )
        })
    };
    present.rows.iter().filter_map(best).collect()
}
