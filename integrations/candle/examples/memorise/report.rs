//! The page, its plot, and the table in the terminal.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use xact_dev::plot::{self, Axis, Line, Panel, Plot, Scale, colour};

use crate::config::{Config, Objective};
use crate::measure::mean_and_deviation;
use crate::result::{Canary, Losses, Mask, Outcome};

/// A figure of the canaries that were repeated equally often.
type Figure = fn(&[&Canary]) -> Option<f64>;

/// The share that is recited without a mistake.
fn exact(canaries: &[&Canary]) -> Option<f64> {
    mean(canaries, |c| f64::from(u8::from(c.verbatim == c.len)))
}

fn rouge_l(canaries: &[&Canary]) -> Option<f64> {
    mean(canaries, |c| c.rouge_l)
}

fn verbatim(canaries: &[&Canary]) -> Option<f64> {
    mean(canaries, |c| c.verbatim as f64)
}

fn mean(canaries: &[&Canary], of: impl Fn(&Canary) -> f64) -> Option<f64> {
    let sum: f64 = canaries.iter().map(|canary| of(canary)).sum();
    (!canaries.is_empty()).then(|| sum / canaries.len() as f64)
}

fn kept_loss(canaries: &[&Canary]) -> Option<f64> {
    mean_loss(canaries, |c| c.kept)
}

fn dropped_loss(canaries: &[&Canary]) -> Option<f64> {
    mean_loss(canaries, |c| c.dropped)
}

fn mean_loss(canaries: &[&Canary], of: fn(&Canary) -> Losses) -> Option<f64> {
    let losses = || canaries.iter().map(|canary| of(canary));
    let count: usize = losses().map(|losses| losses.count).sum();
    let sum: f64 = losses().map(|losses| losses.sum).sum();
    (count > 0).then(|| sum / count as f64)
}

/// The results of one objective, one for each seed.
struct Group<'a> {
    objective: Objective,
    outcomes: Vec<&'a Outcome>,
}

impl Group<'_> {
    /// The groups that have results.
    fn all(outcomes: &[Outcome]) -> Vec<Group<'_>> {
        let group = |&objective: &Objective| {
            let of_objective = |outcome: &&Outcome| outcome.part.objective == objective;
            let outcomes: Vec<_> = outcomes.iter().filter(of_objective).collect();
            (!outcomes.is_empty()).then_some(Group {
                objective,
                outcomes,
            })
        };
        let all = Objective::value_variants().iter();
        all.filter_map(group).collect()
    }

    /// The figure for each seed, of the canaries with this number of repetitions.
    fn seeds(&self, repetitions: usize, figure: Figure) -> Vec<f64> {
        let of_seed = |outcome: &&Outcome| {
            let canaries = outcome.canaries.iter();
            let canaries: Vec<_> = canaries.filter(|c| c.repetitions == repetitions).collect();
            figure(&canaries)
        };
        self.outcomes.iter().filter_map(of_seed).collect()
    }

    /// The figure of all seeds.
    fn over_seeds(&self, of: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        self.outcomes.iter().map(|outcome| of(outcome)).collect()
    }

    /// The canaries of all seeds with this number of repetitions.
    fn canaries(&self, repetitions: usize) -> Vec<&Canary> {
        let all = self.outcomes.iter().flat_map(|outcome| &outcome.canaries);
        all.filter(|c| c.repetitions == repetitions).collect()
    }

    fn mask(&self) -> Option<Mask> {
        self.outcomes.first().and_then(|outcome| outcome.mask)
    }
}

/// The mean over the seeds, and their standard deviation if there are several.
fn cell(values: &[f64], decimals: usize) -> String {
    if values.is_empty() {
        return "–".to_owned();
    }
    let (mean, deviation) = mean_and_deviation(values);
    if values.len() == 1 {
        return format!("{mean:.decimals$}");
    }
    format!("{mean:.decimals$} ± {deviation:.decimals$}")
}

/// What the terminal shows: for each objective and number of repetitions, the share of the canaries that are recited
/// without a mistake, the ids before the first mistake, and Rouge-L.
pub fn table(config: &Config, outcomes: &[Outcome]) -> String {
    let groups = Group::all(outcomes);
    if groups.is_empty() {
        return "No part has a result yet.".to_owned();
    }
    let heads = [
        "objective",
        "repetitions",
        "exact",
        "verbatim",
        "Rouge-L",
        "validation loss",
    ];
    let mut table = xact_dev::table::table(&heads, &heads[1..]);
    for group in &groups {
        for &repetitions in &config.repetitions {
            let figure = |figure, decimals| cell(&group.seeds(repetitions, figure), decimals);
            table.add_row([
                group.objective.title().to_owned(),
                repetitions.to_string(),
                figure(exact, 2),
                figure(verbatim, 1),
                figure(rouge_l, 2),
                cell(&group.over_seeds(|outcome| outcome.validation), 3),
            ]);
        }
    }
    table.to_string()
}

/// Writes memorisation.md and memorisation.svg.
pub fn write(config: &Config, outcomes: &[Outcome], folder: &Path) -> Result<()> {
    let groups = Group::all(outcomes);
    for (name, text) in [
        ("memorisation.md", page(config, &groups)?),
        ("memorisation.svg", plot::svg(&plot(config, &groups))),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A table with a column for each number of repetitions.
fn by_repetitions(config: &Config, groups: &[Group], figure: Figure, decimals: usize) -> String {
    let repetitions: Vec<String> = config.repetitions.iter().map(usize::to_string).collect();
    let heads: Vec<&str> = ["objective"]
        .into_iter()
        .chain(repetitions.iter().map(|text| &text[..]))
        .collect();
    let mut table = xact_dev::table::table(&heads, &heads[1..]);
    for group in groups {
        let cells = config.repetitions.iter();
        let cells = cells.map(|&level| cell(&group.seeds(level, figure), decimals));
        table.add_row(
            [group.objective.title().to_owned()]
                .into_iter()
                .chain(cells),
        );
    }
    table.to_string()
}

/// The losses, with the canaries of the two ends and of the middle.
fn losses(groups: &[Group], levels: &[usize]) -> String {
    let names: Vec<String> = levels
        .iter()
        .flat_map(|level| [format!("kept, {level} ×"), format!("dropped, {level} ×")])
        .collect();
    let mut heads = vec!["objective", "validation"];
    heads.extend(names.iter().map(|name| &name[..]));
    let mut table = xact_dev::table::table(&heads, &heads[1..]);
    for group in groups {
        let mut row = vec![
            group.objective.title().to_owned(),
            cell(&group.over_seeds(|outcome| outcome.validation), 3),
        ];
        for &level in levels {
            row.push(cell(&group.seeds(level, kept_loss), 2));
            row.push(cell(&group.seeds(level, dropped_loss), 2));
        }
        table.add_row(row);
    }
    table.to_string()
}

/// What the strategies decide in the text as one row, and in the canaries.
fn masks(config: &Config, groups: &[Group]) -> String {
    let heads = [
        "strategy",
        "dropped, of the text",
        "one in k",
        "longest run without a dropped label",
        "windows with the commonest key",
        "passages without a dropped label after the prompt",
    ];
    let mut table = xact_dev::table::table(&heads, &heads[1..]);
    for group in groups {
        let (Some(strategy), Some(mask)) = (group.objective.strategy(), group.mask()) else {
            continue;
        };
        let percent = |part: f64| format!("{:.2} %", part * 100.0);
        let of_text = |count: usize| percent(count as f64 / mask.labels as f64);
        let all = config.repetitions.iter();
        let all: Vec<_> = all.flat_map(|&level| group.canaries(level)).collect();
        let whole = all
            .iter()
            .filter(|canary| canary.dropped.count == 0)
            .count();
        table.add_row([
            strategy_title(group.objective),
            of_text(mask.dropped),
            percent(1.0 / f64::from(strategy.k())),
            mask.longest_kept.to_string(),
            of_text(mask.commonest_key),
            format!("{:.0} %", 100.0 * whole as f64 / all.len() as f64),
        ]);
    }
    table.to_string()
}

fn strategy_title(objective: Objective) -> String {
    objective.title().replace("Goldfish ", "")
}

/// What the trainings cost.
fn trainings(groups: &[Group]) -> String {
    let heads = [
        "objective",
        "steps",
        "labels in the loss",
        "kept share",
        "CPU minutes of a training",
    ];
    let mut table = xact_dev::table::table(&heads, &heads[1..]);
    for group in groups {
        let share = |outcome: &Outcome| {
            100.0 * outcome.supervised as f64 / (outcome.supervised + outcome.dropped) as f64
        };
        table.add_row([
            group.objective.title().to_owned(),
            cell(&group.over_seeds(|outcome| outcome.steps as f64), 0),
            cell(&group.over_seeds(|outcome| outcome.supervised as f64), 0),
            format!("{} %", cell(&group.over_seeds(share), 2)),
            cell(&group.over_seeds(|outcome| outcome.cpu_seconds / 60.0), 1),
        ]);
    }
    table.to_string()
}

fn plot(config: &Config, groups: &[Group]) -> Plot {
    let levels: Vec<usize> = config
        .repetitions
        .iter()
        .copied()
        .filter(|&n| n > 0)
        .collect();
    let range = (
        levels.first().copied().unwrap_or(1),
        levels.last().copied().unwrap_or(1),
    );
    let continuation = (config.context - config.prompt) as f64;
    let panel = |title: &str, label: &str, max: f64, figure: Figure| {
        let mut lines: Vec<Line> = Vec::new();
        let mut spreads = Vec::new();
        for (i, group) in groups.iter().enumerate() {
            let colour = match group.objective {
                Objective::Plain => colour::VERMILION,
                Objective::Paper => colour::BLUE,
                Objective::Product => colour::PURPLE,
                Objective::Hash64 => colour::SKY,
            };
            // Beside each other, because lines of equal values would hide each other.
            let shift = 2f64.powf(0.08 * (i as f64 - 1.5));
            let mut points = Vec::new();
            for &level in &levels {
                let seeds = group.seeds(level, figure);
                let at = level as f64 * shift;
                points.push((at, mean_and_deviation(&seeds).0));
                let low = seeds.iter().copied().fold(f64::INFINITY, f64::min);
                let high = seeds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                spreads.push(Line {
                    name: String::new(),
                    colour,
                    points: vec![(at, low), (at, high)],
                });
            }
            lines.push(Line {
                name: legend(group.objective).to_owned(),
                colour,
                points,
            });
        }
        lines.extend(spreads);
        let never: Vec<f64> = groups
            .iter()
            .flat_map(|group| group.seeds(0, figure))
            .collect();
        Panel {
            title: title.to_owned(),
            x: Axis {
                label: "repetitions of the passage in training".to_owned(),
                scale: Scale::Log2,
                min: range.0 as f64 / 1.2,
                max: range.1 as f64 * 1.2,
            },
            y: Axis {
                label: label.to_owned(),
                scale: Scale::Linear,
                min: 0.0,
                max,
            },
            lines,
            level: (
                mean_and_deviation(&never).0,
                "passages that no / training saw".to_owned(),
            ),
        }
    };
    Plot {
        title: "Memorisation of repeated passages".to_owned(),
        notes: vec![
            format!(
                "Greedy continuations of {} tokens after a prompt of {}. Lines are means of {} seeds, bars reach from the lowest seed to the highest.",
                config.context - config.prompt,
                config.prompt,
                config.seeds
            ),
            "Lines and bars are shifted a little, beside each other.".to_owned(),
        ],
        panels: vec![
            panel(
                "Recited without a mistake",
                "share of the passages",
                1.0,
                exact,
            ),
            panel("Rouge-L", "Rouge-L", 1.0, rouge_l),
            panel(
                "Recited before the first mistake",
                "tokens",
                continuation,
                verbatim,
            ),
        ],
    }
}

/// The title with a break for the legend.
fn legend(objective: Objective) -> &'static str {
    match objective {
        Objective::Plain => "cross-entropy",
        Objective::Paper => "Goldfish k = 4, h = 13, / ProductTable",
        Objective::Product => "Goldfish k = 50, h = 50, / ProductTable",
        Objective::Hash64 => "Goldfish k = 50, h = 50, / Hash64",
    }
}

/// A number with its thousands apart.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The page, whose prose is in page.md with names in braces for the figures.
fn page(config: &Config, groups: &[Group]) -> Result<String> {
    let group = |objective| {
        let mut groups = groups.iter();
        let found = groups.find(|group| group.objective == objective);
        found.context("an objective has no result")
    };
    let [plain, paper, product, hash64] = [
        group(Objective::Plain)?,
        group(Objective::Paper)?,
        group(Objective::Product)?,
        group(Objective::Hash64)?,
    ];
    let first = plain.outcomes.first().context("no seed has a result")?;
    let most = config.repetitions.iter().copied().max().unwrap_or_default();
    // The least number of repetitions from which cross-entropy recites everything.
    let levels = config.repetitions.iter().copied();
    let falls_short = levels.filter(|&level| exact(&plain.canaries(level)) != Some(1.0));
    let short = falls_short.max().unwrap_or_default();
    let often = config
        .repetitions
        .iter()
        .copied()
        .filter(|&n| n > short)
        .min();
    let often = often.unwrap_or(most);
    let of = |group: &Group, figure: Figure, decimals| cell(&group.seeds(most, figure), decimals);
    let validation = |group: &Group| cell(&group.over_seeds(|outcome| outcome.validation), 3);
    let validation_of =
        |group: &Group| mean_and_deviation(&group.over_seeds(|outcome| outcome.validation)).0;
    let minutes = |group: &Group| group.over_seeds(|outcome| outcome.cpu_seconds / 60.0);
    let cpu_minutes: Vec<f64> = groups.iter().flat_map(minutes).collect();
    let mask = |group: &Group| group.mask().context("a strategy has no mask");
    let percent =
        |part: usize, whole: usize| format!("{:.1} %", 100.0 * part as f64 / whole as f64);
    let count = |canaries: &[Canary]| {
        let recited = canaries.iter().filter(|c| c.verbatim == c.len).count();
        format!("{recited} of {}", canaries.len())
    };
    // The canaries that cross-entropy would recite.
    let repeated = |group: &Group| -> Vec<Canary> {
        let canaries = group.outcomes.iter().flat_map(|outcome| &outcome.canaries);
        canaries
            .filter(|c| c.repetitions >= often)
            .cloned()
            .collect()
    };
    let (whole, rest): (Vec<Canary>, Vec<Canary>) = [repeated(product), repeated(hash64)]
        .concat()
        .into_iter()
        .partition(|canary| canary.dropped.count == 0);
    let without_drops = |group: &Group| {
        let all = group.outcomes.iter().flat_map(|outcome| &outcome.canaries);
        let all: Vec<&Canary> = all.collect();
        let whole = all.iter().filter(|c| c.dropped.count == 0).count();
        percent(whole, all.len())
    };
    let never: Vec<f64> = groups
        .iter()
        .flat_map(|group| group.seeds(0, rouge_l))
        .collect();
    let paper_canaries: Vec<Canary> = paper.canaries(most).into_iter().cloned().collect();
    let (product_mask, hash_mask) = (mask(product)?, mask(hash64)?);
    // If one label in k was dropped independently of the others.
    let k = hash64
        .objective
        .strategy()
        .map_or(1, |strategy| strategy.k());
    let continuation = config.context - config.prompt;
    let expected_whole = (1.0 - 1.0 / f64::from(k)).powi(continuation as i32);
    let losses_at = [often, most];
    let mut page = include_str!("page.md").to_owned();
    for (name, text) in [
        ("parameters", thousands(first.parameters)),
        ("layers", config.layers.to_string()),
        ("width", config.width.to_string()),
        ("heads", config.heads.to_string()),
        ("ids", thousands(product_mask.labels)),
        ("vocabulary", thousands(config.vocabulary)),
        ("context", config.context.to_string()),
        ("prompt", config.prompt.to_string()),
        ("continuation", continuation.to_string()),
        ("canaries", first.canaries.len().to_string()),
        ("per_level", config.canaries.to_string()),
        ("validation", config.validation.to_string()),
        ("seeds", config.seeds.to_string()),
        ("exact", by_repetitions(config, groups, exact, 2)),
        ("verbatim", by_repetitions(config, groups, verbatim, 1)),
        ("rouge", by_repetitions(config, groups, rouge_l, 2)),
        ("losses", losses(groups, &losses_at)),
        ("masks", masks(config, groups)),
        (
            "commonest",
            percent(product_mask.commonest_key, product_mask.labels),
        ),
        ("trainings", trainings(groups)),
        ("most", most.to_string()),
        ("recited_from", often.to_string()),
        ("chance", cell(&never, 2)),
        ("plain_validation", validation(plain)),
        ("paper_validation", validation(paper)),
        (
            "validation_rise",
            format!(
                "{:.1} %",
                100.0 * (validation_of(paper) / validation_of(plain) - 1.0)
            ),
        ),
        (
            "cpu_minutes",
            format!("{:.0}", cpu_minutes.iter().sum::<f64>()),
        ),
        ("paper_dropped", of(paper, dropped_loss, 2)),
        ("paper_exact", count(&paper_canaries)),
        ("paper_verbatim", of(paper, verbatim, 1)),
        ("paper_rouge", of(paper, rouge_l, 2)),
        (
            "mean_dropped",
            format!("{:.2}", continuation as f64 / f64::from(k)),
        ),
        ("hash_verbatim", of(hash64, verbatim, 1)),
        ("hash_rouge", of(hash64, rouge_l, 2)),
        ("hash_recited", count(&repeated(hash64))),
        ("product_recited", count(&repeated(product))),
        ("whole_recited", count(&whole)),
        ("rest_recited", count(&rest)),
        (
            "product_dropped",
            percent(product_mask.dropped, product_mask.labels),
        ),
        ("product_longest", product_mask.longest_kept.to_string()),
        ("hash_longest", hash_mask.longest_kept.to_string()),
        ("product_whole", without_drops(product)),
        ("hash_whole", without_drops(hash64)),
        ("expected_whole", format!("{:.1} %", 100.0 * expected_whole)),
    ] {
        page = page.replace(&format!("{{{name}}}"), &text);
    }
    match page.split_once('{') {
        Some((_, rest)) => bail!("page.md asks for {:?}", rest.split('}').next()),
        None => Ok(page),
    }
}
