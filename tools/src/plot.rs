//! Writes plots as SVG: panels of lines, one above the other. The same data give the same bytes.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A plot.
pub struct Plot {
    /// The title above all panels.
    pub title: String,
    /// Notes for the reader, one line each.
    pub notes: Vec<String>,
    /// The panels, from top to bottom.
    pub panels: Vec<Panel>,
}

/// A panel: axes, and the lines between them.
pub struct Panel {
    /// The title of the panel.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The lines. The first is the subject of the plot, and is drawn over the others.
    pub lines: Vec<Line>,
    /// A value of y for comparison, and its name.
    pub level: (f64, String),
}

/// A line with its name in the legend, which ` / ` breaks into rows. A line without a name is not in the legend. A line of one
/// point is a dot with its name beside it.
#[derive(Clone)]
pub struct Line {
    /// The name in the legend.
    pub name: String,
    /// The colour of the line and of its name.
    pub colour: RGBColor,
    /// The points. Points outside the axes are drawn at the ends of the axes.
    pub points: Vec<(f64, f64)>,
}

/// An axis from `min` to `max`.
#[derive(Clone)]
pub struct Axis {
    /// The label of the axis.
    pub label: String,
    /// The scale of the axis.
    pub scale: Scale,
    /// The first value.
    pub min: f64,
    /// The last value.
    pub max: f64,
}

/// The scale of an axis.
#[derive(Clone, Copy)]
pub enum Scale {
    /// A linear scale.
    Linear,
    /// A logarithmic scale; all values are positive.
    Log,
    /// The same with labels at powers of 2.
    Log2,
    /// A logarithmic scale of the magnitude on both sides of 0, and linear from `-linear` to `linear`, which takes as much
    /// room as a decade on either side.
    SymmetricLog {
        /// The largest magnitude on the linear part.
        linear: f64,
    },
}

/// The colours of lines, from the palette of Okabe and Ito, which can be distinguished with colour-vision deficiency.
pub mod colour {
    use plotters::style::RGBColor;

    /// For the subject of a plot.
    pub const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
    /// For its worst case, or a fourth line.
    pub const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
    /// For the first peer.
    pub const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
    /// For the second peer.
    pub const PURPLE: RGBColor = RGBColor(0xcc, 0x79, 0xa7);
}

const WIDTH: i32 = 960;
const PANEL: i32 = 350;
/// The width of the legend, right of a panel.
const LEGEND: i32 = 230;
/// The width of the labels of y, left of a panel.
const LABELS: i32 = 64;
/// The margin left of the labels of y.
const MARGIN: i32 = 8;
/// The number of pixel columns of a panel.
const COLUMNS: i32 = WIDTH - LEGEND - LABELS - MARGIN;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GREY: RGBColor = RGBColor(0x66, 0x66, 0x66);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
impl Line {
    /// The maximum of `points` in each pixel column of a panel with the axis `x`. The plot looks the same as with all
    /// points, in a file of a tenth of the size. Points outside the axis are left out.
    pub fn envelope(
        name: &str,
        colour: RGBColor,
        x: &Axis,
        points: impl IntoIterator<Item = (f64, f64)>,
    ) -> Line {
        let mut columns = vec![None; COLUMNS as usize + 1];
        for (at, value) in points {
            if !(x.min <= at && at <= x.max) {
                continue;
            }
            let column = &mut columns[x.map(&at, (0, COLUMNS)) as usize];
            if column.is_none_or(|(_, highest)| value > highest) {
                *column = Some((at, value));
            }
        }
        Line {
            name: name.to_owned(),
            colour,
            points: columns.into_iter().flatten().collect(),
        }
    }
}

impl Axis {
    /// The position of `value`, in units that are linear along the axis.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log => value.log10(),
            Scale::Log2 => value.log2(),
            Scale::SymmetricLog { linear } if value.abs() <= linear => value / linear,
            Scale::SymmetricLog { linear } => {
                (1.0 + (value.abs() / linear).log10()).copysign(value)
            }
        }
    }

    /// The values that get a label; the larger `sparsity`, the fewer.
    fn ticks(&self, sparsity: i32) -> Vec<f64> {
        let powers = (-330..=308)
            .filter(|n| n % (sparsity + 1) == 0)
            .map(|n| 10f64.powi(n));
        let values: Vec<f64> = match self.scale {
            Scale::Linear => {
                let (step, power) = ([1.0, 2.0, 5.0][sparsity as usize % 3], sparsity / 3 - 3);
                // The value is divided, so that a tenth is the float that prints as one.
                let value = |k: i32| {
                    let k = f64::from(k) * step;
                    if power < 0 {
                        k / 10f64.powi(-power)
                    } else {
                        k * 10f64.powi(power)
                    }
                };
                let unit = value(1);
                let ends = [self.min, self.max].map(|end| (end / unit).round() as i32);
                (ends[0]..=ends[1]).map(value).collect()
            }
            Scale::Log => powers.collect(),
            Scale::Log2 => (-1074..=1023)
                .filter(|n| n % (sparsity + 1) == 0)
                .map(|n| 2f64.powi(n))
                .collect(),
            Scale::SymmetricLog { linear } => {
                // Rounding may put the end of the linear part on either side.
                let positive: Vec<_> = powers.filter(|v| *v > 0.99 * linear).collect();
                let negative = positive.iter().rev().map(|v| -v);
                negative
                    .chain([0.0])
                    .chain(positive.iter().copied())
                    .collect()
            }
        };
        let on_axis = |v: &f64| self.min <= *v && *v <= self.max;
        values.into_iter().filter(on_axis).collect()
    }
}

impl Ranged for Axis {
    type ValueType = f64;
    type FormatOption = NoDefaultFormatting;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let (min, max) = (self.place(self.min), self.place(self.max));
        let part = (self.place(value.clamp(self.min, self.max)) - min) / (max - min);
        start + (part * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let mut choices = (0..300).map(|sparsity| self.ticks(sparsity));
        let fitting = choices.find(|ticks| ticks.len() <= hint.max_num_points());
        fitting.unwrap_or_default()
    }

    fn range(&self) -> Range<f64> {
        self.min..self.max
    }
}

/// Prints a number as digits, and powers of ten far from 1 with an exponent.
impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let sign = if *value < 0.0 { "−" } else { "" };
        let size = value.abs();
        if matches!(self.scale, Scale::Linear) || size == 0.0 || (1e-2..=1e3).contains(&size) {
            return format!("{sign}{size}");
        }
        let superscript = |c: char| match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            '0'..='9' => {
                char::from_u32(u32::from('⁰') + u32::from(c) - u32::from('0')).unwrap_or(c)
            }
            c => c,
        };
        let exponent = (size.log10().round() as i32).to_string();
        format!(
            "{sign}10{}",
            exponent.chars().map(superscript).collect::<String>()
        )
    }
}

/// The plot as an SVG file with a white background, which is readable on pages of any colour.
pub fn svg(plot: &Plot) -> String {
    let mut text = String::new();
    draw(plot, &mut text).expect("writing to a string");
    text
}

type Drawn<'a> = Result<(), Box<dyn std::error::Error + 'a>>;

/// The heights of the title and of a note.
const TITLE: i32 = 40;
const NOTE: i32 = 18;

fn draw<'a>(plot: &Plot, text: &'a mut String) -> Drawn<'a> {
    let head = TITLE + NOTE * plot.notes.len() as i32;
    let height = head + PANEL * plot.panels.len() as i32;
    let root = SVGBackend::with_string(text, (WIDTH as u32, height as u32)).into_drawing_area();
    draw_head(&root, &plot.title, &plot.notes)?;
    let (_, body) = root.split_vertically(head);
    for (area, panel) in body
        .split_evenly((plot.panels.len(), 1))
        .iter()
        .zip(&plot.panels)
    {
        draw_panel(area, panel)?;
    }
    root.present()?;
    Ok(())
}

/// Draws the background, the title and the notes.
fn draw_head<'a>(
    root: &Area<'a>,
    title: &str,
    notes: &[String],
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    root.fill(&WHITE)?;
    let bold = ("sans-serif", 20).into_font().style(FontStyle::Bold);
    root.draw(&Text::new(title, (16, 12), bold.color(&INK)))?;
    for (i, note) in (0..).zip(notes) {
        let style = ("sans-serif", 14).into_font().color(&GREY);
        root.draw(&Text::new(note.as_str(), (16, TITLE + NOTE * i), style))?;
    }
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel<'a>(
    area: &Area<'a>,
    panel: &Panel,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    /// The height of a dot's name, and the width of a letter.
    const NAME_HEIGHT: i32 = 14;
    const NAME_LETTER: i32 = 7;
    let (left, right) = area.split_horizontally(WIDTH - LEGEND);
    let mut chart = ChartBuilder::on(&left)
        .margin_top(12)
        .margin_left(MARGIN)
        .caption(
            panel.title.as_str(),
            ("sans-serif", 15).into_font().color(&INK),
        )
        .set_label_area_size(LabelAreaPosition::Left, LABELS)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(panel.x.clone(), panel.y.clone())?;
    chart
        .configure_mesh()
        .x_labels(19)
        .y_labels(8)
        .max_light_lines(0)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(GREY)
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
        .x_desc(panel.x.label.as_str())
        .y_desc(panel.y.label.as_str())
        .draw()?;
    let (level, _) = panel.level;
    let ends = [(panel.x.min, level), (panel.x.max, level)];
    chart.draw_series(LineSeries::new(ends, INK.stroke_width(1)))?;
    // The start, the end and the top of each dot's name, so that names do not overlap.
    let mut names: Vec<(i32, i32, i32)> = Vec::new();
    for (i, line) in panel.lines.iter().enumerate().rev() {
        let points = line.points.iter().copied();
        if let [point] = line.points[..] {
            let (x, y) = chart.backend_coord(&point);
            let end = x + NAME_LETTER * line.name.len() as i32;
            let is_free = |&shift: &i32| {
                let top = y - NAME_HEIGHT / 2 + shift;
                !names.iter().any(|&(from, to, other)| {
                    x < to && from < end && (other - top).abs() < NAME_HEIGHT
                })
            };
            let mut shifts = (0..).flat_map(|i| [i, -i]);
            let shift = shifts.find(is_free).unwrap_or_default();
            let top = y - NAME_HEIGHT / 2 + shift;
            names.push((x, end, top));
            let style = ("sans-serif", 13).into_font().color(&INK);
            let dot = EmptyElement::at(point)
                + Circle::new((0, 0), 5, line.colour.filled())
                + Text::new(line.name.clone(), (8, top - y), style);
            chart.draw_series([dot])?;
            continue;
        }
        let width = if i == 0 { 3 } else { 2 };
        chart.draw_series(LineSeries::new(points, line.colour.stroke_width(width)))?;
    }
    draw_legend(&right, panel)
}

fn draw_legend<'a>(
    area: &Area<'a>,
    panel: &Panel,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    /// The height of a row, and the space between two entries.
    const ROW: i32 = 18;
    const GAP: i32 = 8;
    let mut y = 56;
    let (_, level) = &panel.level;
    let has_entry = |line: &&Line| line.points.len() != 1 && !line.name.is_empty();
    let lines = panel.lines.iter().filter(has_entry);
    let lines = lines.map(|line| (&line.name, line.colour, 3));
    for (name, colour, width) in lines.chain([(level, INK, 1)]) {
        let stroke = colour.stroke_width(width);
        area.draw(&PathElement::new([(14, y), (38, y)], stroke))?;
        for row in name.split(" / ") {
            let style = ("sans-serif", 14).into_font().color(&INK);
            let style = style.pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(row, (46, y), style))?;
            y += ROW;
        }
        y += GAP;
    }
    Ok(())
}

/// A bar and its name.
pub struct Bar {
    /// The name beside the bar.
    pub name: String,
    /// The length of the bar.
    pub value: f64,
    /// The colour of the bar.
    pub colour: RGBColor,
}

/// Horizontal bars from 0, one below the other, with a line at `level`, as an SVG file like that of [`svg`].
pub fn bars(title: &str, notes: &[String], bars: &[Bar], level: f64) -> String {
    let mut text = String::new();
    draw_bars(title, notes, bars, level, &mut text).expect("writing to a string");
    text
}

fn draw_bars<'a>(
    title: &str,
    notes: &[String],
    bars: &[Bar],
    level: f64,
    text: &'a mut String,
) -> Drawn<'a> {
    /// The width for the names, and that for the figures after the bars.
    const NAMES: i32 = 400;
    const FIGURES: i32 = 60;
    const ROW: i32 = 20;
    let head = TITLE + NOTE * notes.len() as i32 + 12;
    let height = head + ROW * bars.len() as i32 + 12;
    let root = SVGBackend::with_string(text, (WIDTH as u32, height as u32)).into_drawing_area();
    draw_head(&root, title, notes)?;
    let highest = bars.iter().map(|bar| bar.value).fold(level, f64::max);
    let at = |value: f64| {
        NAMES + (value.max(0.0) / highest * f64::from(WIDTH - NAMES - FIGURES)).round() as i32
    };
    let line = [
        (at(level), head),
        (at(level), head + ROW * bars.len() as i32),
    ];
    root.draw(&PathElement::new(line, INK.stroke_width(1)))?;
    let style = ("sans-serif", 13).into_font().color(&INK);
    for (i, bar) in (0..).zip(bars) {
        let top = head + ROW * i;
        let corners = [(NAMES, top + 3), (at(bar.value), top + ROW - 3)];
        root.draw(&Rectangle::new(corners, bar.colour.filled()))?;
        let name = style.clone().pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(
            bar.name.as_str(),
            (NAMES - 8, top + ROW / 2),
            name,
        ))?;
        // The figures are right of the longest bar, where the line of the level does not cross them.
        let figure = style.clone().pos(Pos::new(HPos::Right, VPos::Center));
        let value = format!("{:.1}", bar.value);
        root.draw(&Text::new(value, (WIDTH - 8, top + ROW / 2), figure))?;
    }
    root.present()?;
    Ok(())
}
