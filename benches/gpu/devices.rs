//! The devices that the bench knows: their data sheets, and the goals of the kernels.

use xact::loss;

use crate::measure::Measured;
use crate::rows::Row;

/// A device, recognised by the words of its name.
struct Known {
    words: &'static [&'static str],
    /// The bandwidth in the data sheet.
    gb_per_s: f64,
    goals: Option<Goals>,
}

/// The goals on a device.
struct Goals {
    /// The shares of the yardstick for activations, forward and backward.
    activations: f64,
    /// Cross-entropy forward of 16384 × 131072 in bf16.
    forward_gb_per_s: f64,
    /// Cross-entropy with its gradient of 8192 × 128256 in bf16.
    gradient_ms: f64,
}

const KNOWN: [Known; 4] = [
    Known {
        words: &["H200"],
        gb_per_s: 4800.0,
        goals: Some(Goals {
            activations: 0.95,
            forward_gb_per_s: 4400.0,
            gradient_ms: 1.0,
        }),
    },
    // The H100 with HBM3, not the slower ones on PCIe.
    Known {
        words: &["H100", "HBM3"],
        gb_per_s: 3350.0,
        goals: Some(Goals {
            activations: 0.95,
            // The figures that QuACK publishes.
            forward_gb_per_s: 3163.0,
            gradient_ms: 1.4,
        }),
    },
    Known {
        words: &["B200"],
        gb_per_s: 8000.0,
        goals: None,
    },
    Known {
        words: &["A100", "SXM4", "80GB"],
        gb_per_s: 2039.0,
        goals: None,
    },
];

/// The device of this name; `None` for unknown devices and for parts of a device.
fn known(device: &str) -> Option<&'static Known> {
    let words: Vec<_> = device.split([' ', '-']).collect();
    let is_it = |known: &&Known| known.words.iter().all(|word| words.contains(word));
    KNOWN.iter().find(is_it).filter(|_| !words.contains(&"MIG"))
}

/// The bandwidth of the memory in the data sheet, in GB/s.
pub fn sheet_gb_per_s(device: &str) -> Option<f64> {
    known(device).map(|known| known.gb_per_s)
}

/// The goal of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At least this share of its yardstick's speed.
    Share(f64),
    /// At least this number of GB/s.
    GbPerS(f64),
    /// At most this number of milliseconds.
    Ms(f64),
}

impl Goal {
    /// The goal of the row on the device; `None` if there is none.
    pub fn of(device: &str, row: &Row) -> Option<Goal> {
        let goals = known(device)?.goals.as_ref()?;
        let is_loss = loss::NAMES.contains(&row.op.as_str());
        let anchor = (row.form.as_str(), row.dtype.as_str(), row.scale, row.masked)
            == ("plain", "bf16", 1.0, 0);
        match (row.direction.as_str(), row.rows, row.cols) {
            ("forward" | "backward", ..) if !is_loss => Some(Goal::Share(goals.activations)),
            ("forward", 16_384, 131_072) if anchor => Some(Goal::GbPerS(goals.forward_gb_per_s)),
            ("fused", 8192, 128_256) if anchor => Some(Goal::Ms(goals.gradient_ms)),
            _ => None,
        }
    }

    /// Whether a measured row reaches the goal.
    pub fn is_met(self, found: &Measured) -> bool {
        self.reached(found) >= 1.0
    }

    /// The measured speed as a share of the goal's speed.
    pub fn reached(self, found: &Measured) -> f64 {
        match self {
            Goal::Share(least) => found.share().unwrap_or(0.0) / least,
            Goal::GbPerS(least) => found.gb_per_s() / least,
            Goal::Ms(most) => most / found.ms,
        }
    }

    /// The goal, and the measured figure in the same unit.
    pub fn in_words(self, found: &Measured) -> [String; 2] {
        match self {
            Goal::Share(least) => [
                format!("≥ {:.0} % of the {}", 100.0 * least, found.yardstick.name()),
                found
                    .share()
                    .map_or(String::new(), |share| format!("{:.1} %", 100.0 * share)),
            ],
            Goal::GbPerS(least) => [
                format!("≥ {least:.0} GB/s"),
                format!("{:.0} GB/s", found.gb_per_s()),
            ],
            Goal::Ms(most) => [format!("≤ {most:.2} ms"), format!("{:.3} ms", found.ms)],
        }
    }
}
