//! The rows that are measured. Shapes are only defined here; peers read them with `--list`.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use xact::activation::{self, Registered, Visitor};
use xact::loss::goldfish::Tokens;
use xact::raw::Blocks;
use xact::{Dtype, Gated, Goldfish, Strategy, loss};
use xact_dev::inputs::Random;
use xact_dev::strategy;

/// A row of the table: an op on tensors of a shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub op: String,
    /// For activations `plain`, `gated1`, `gated2`, or `compat`, the clamped formula of xIELU. For a mask, the strategy.
    /// For cross-entropy `plain`, or `goldfish` if the loss itself decides which rows are dropped.
    pub form: String,
    /// `forward`, `backward`, `backward+y` (which also writes the output again), `fused` (cross-entropy with its gradient
    /// in place) or `mask`.
    pub direction: String,
    /// The type of the tensors; for a mask, of the ids.
    pub dtype: String,
    pub rows: u64,
    pub cols: u64,
    /// The standard deviation of the inputs.
    pub scale: f64,
    /// The percentage of rows that are masked.
    pub masked: u64,
    /// The bytes to move: each input once and each output once, without tensors of at most one number per row.
    pub bytes: u64,
    /// Whether the row only completes the grid of row counts and vocabularies.
    pub grid: bool,
    /// Whether the row is among the few rows of `--quick`.
    pub quick: bool,
    /// Whether peers run the row too.
    pub peers: bool,
    /// Whether the row is one of the six representatives: with one, two and three inputs, and with logits, in both
    /// directions. For peers with a compiler and for each geometry, a row takes seconds, so they run only these.
    pub representative: bool,
    /// Whether choices of a launch are tried on the row: rows that a cluster of four or of eight blocks shares, and a
    /// backward.
    pub choices: bool,
    /// The choices of its launches; not part of its name.
    pub chosen: Chosen,
}

/// The choices of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// As many blocks as can be resident on the device, which take the work in turns.
    pub resident: bool,
    /// The minimum number of blocks of a cluster; `None` for as few as a row of logits fits into.
    pub cluster: Option<NonZeroU32>,
}

impl Chosen {
    pub fn blocks(self) -> Blocks {
        if self.resident {
            Blocks::Resident
        } else {
            Blocks::All
        }
    }
}

impl Row {
    /// The name, which is unique in every list.
    pub fn name(&self) -> String {
        let Row {
            op,
            form,
            direction,
            dtype,
            rows,
            cols,
            scale,
            masked,
            ..
        } = self;
        format!("{op} {form} {direction} {dtype} {rows}x{cols} scale {scale} masked {masked}%")
    }

    /// The number of rows whose logits are masked: a fixed share, spread evenly.
    pub fn is_masked(&self, row: u64) -> bool {
        (row + 1) * self.masked / 100 > row * self.masked / 100
    }

    /// Whether the choices of its launches can matter: the size of a cluster matters only for rows of logits. Rows in the
    /// present state, and rows of another geometry, have no choices.
    pub fn is_changed_by_its_choice(&self) -> bool {
        let Chosen { resident, cluster } = self.chosen;
        resident || cluster.is_none() || self.op == loss::NAMES[0]
    }

    /// Whether the row is only in the grid.
    pub fn completes_the_grid(&self) -> bool {
        self.grid && !self.quick && !self.peers
    }

    /// The number of bytes of a type.
    fn size(&self) -> u64 {
        match self.dtype.as_str() {
            "i32" | "f32" => 4,
            "i64" => 8,
            _ => 2,
        }
    }

    /// The row with another shape, and its bytes.
    fn of_shape(mut self, rows: u64, cols: u64) -> Row {
        (self.rows, self.cols) = (rows, cols);
        let all = rows * cols * self.size();
        self.bytes = match (self.direction.as_str(), self.form.as_str()) {
            _ if self.op == loss::NAMES[0] => {
                let read = (rows - self.not_kept()) * cols * self.size();
                match self.direction.as_str() {
                    "forward" => read,
                    // The gradients of masked rows are written, but their logits are not read.
                    _ => read + all,
                }
            }
            // One f32 for each id; some strategies depend only on the positions of the labels, others also read the ids.
            ("mask", "static" | "random") => rows * cols * 4,
            ("mask", _) => all + rows * cols * 4,
            ("forward", "plain" | COMPAT) => 2 * all,
            ("forward", _) | ("backward", "plain" | COMPAT) => 3 * all,
            ("backward+y", "plain" | COMPAT) => 4 * all,
            ("backward", _) => 5 * all,
            _ => 6 * all,
        };
        self
    }

    /// The rows of a cross-entropy that are masked or dropped.
    fn not_kept(&self) -> u64 {
        if self.form == "goldfish" {
            let op = Goldfish::new(FUSED_GOLDFISH).expect("numbers that a strategy takes");
            let ids = self.ids();
            let keep = op
                .keep(&Tokens::row(&ids))
                .expect("ids that a strategy takes");
            keep.iter().filter(|&&keep| !keep).count() as u64
        } else {
            self.rows * self.masked / 100
        }
    }

    /// The ids from which Goldfish decides: one for each row of logits, or for each label of a mask.
    pub fn ids(&self) -> Vec<i64> {
        let count = match self.direction.as_str() {
            "mask" => self.rows * self.cols,
            _ => self.rows,
        };
        random_ids(count, VOCABULARY)
    }

    /// The row with a tiny shape that has heads and tails, and for which a fused cross-entropy reads the logits once. For
    /// running, not for timing.
    pub fn tiny(self) -> Row {
        let (rows, cols) = match self.direction.as_str() {
            "mask" => (3, 1000),
            // There are enough ids that some windows are whole, and some labels dropped.
            _ if self.form == "goldfish" => (120, 1021),
            _ if self.op == loss::NAMES[0] => (5, 1021),
            _ => (5, 4099),
        };
        self.of_shape(rows, cols)
    }
}

/// Random ids below `end`.
pub fn random_ids(count: u64, end: u64) -> Vec<i64> {
    let mut random = Random(end);
    (0..count).map(|_| (random.bits() % end) as i64).collect()
}

/// The rows and columns of published figures: 5 × 4096 tokens of Apertus-8B's hidden size, 64 × 1024 tokens of Apertus-8B's
/// MLP, and 2²⁹ elements.
const ACTIVATION_SHAPES: [[u64; 2]; 3] = [[5 * 4096, 8192], [64 * 1024, 21504], [1 << 16, 1 << 13]];
/// Liger's SwiGLU figures are for the first; 16,384 tokens of Llama 3 8B's MLP.
const GATED_SHAPES: [[u64; 2]; 2] = [[8192, 32768], [16_384, 14_336]];
/// The vocabularies of GPT-2 (unpadded and padded), Llama 2 and 3, Apertus, Qwen and Gemma, and powers of two.
const VOCABULARIES: [u64; 8] = [
    32_000, 50_257, 50_304, 65_536, 128_256, 131_072, 151_936, 262_144,
];
/// The row counts for every vocabulary.
const ROW_COUNTS: [u64; 8] = [1, 16, 128, 1024, 4096, ROWS, 16_384, 32_768];
const ROWS: u64 = 8192;
/// Apertus's vocabulary.
const VOCABULARY: u64 = 131_072;
/// The number of tokens of a mask, in rows of a context.
const TOKENS: [u64; 2] = [1 << 14, 4096];

/// The strategies of masks, with the numbers of the paper.
pub const MASKS: [Strategy; 6] = strategy::all(4, 13, 0, 0);
/// The strategy of a cross-entropy: the default, with Apertus's numbers.
pub const FUSED_GOLDFISH: Strategy = Strategy::Hash64 {
    k: 50,
    h: 50,
    seed: 0,
};

/// The form with the clamp of Hugging Face and Megatron, with which Apertus was trained, and its sample.
pub const COMPAT: &str = "compat";
pub const COMPAT_SAMPLE: &str = "autograd";

/// All rows, the most important first, in case the time runs out.
pub fn all() -> Vec<Row> {
    let mut list = List(Vec::new());
    list.cross_entropy();
    activation::for_each(&mut list);
    list.masks();
    let in_training = |row: &Row| !["f32", "f16"].contains(&row.dtype.as_str());
    list.0.sort_by_key(|row| {
        (
            !row.quick,
            !row.peers,
            row.completes_the_grid(),
            !in_training(row),
        )
    });
    list.0
}

struct List(Vec<Row>);

impl List {
    fn add(&mut self, [op, form, direction, dtype]: [&str; 4], [rows, cols]: [u64; 2]) -> &mut Row {
        let row = Row {
            op: op.to_owned(),
            form: form.to_owned(),
            direction: direction.to_owned(),
            dtype: dtype.to_owned(),
            rows: 0,
            cols: 0,
            scale: 1.0,
            masked: 0,
            bytes: 0,
            grid: false,
            quick: false,
            peers: false,
            representative: false,
            choices: false,
            chosen: Chosen::default(),
        };
        self.0.push(row.of_shape(rows, cols));
        self.0.last_mut().expect("just added")
    }

    fn activation(&mut self, op: &str, form: &str, shapes: &[[u64; 2]]) {
        for dtype in Dtype::ALL {
            for direction in ["forward", "backward", "backward+y"] {
                for (i, &shape) in shapes.iter().enumerate() {
                    let bf16 = dtype == Dtype::Bf16;
                    let row = self.add([op, form, direction, dtype.name()], shape);
                    row.quick = i == 0 && bf16;
                    let peer = ["plain", "gated1"].contains(&form) && direction != "backward+y";
                    row.peers = row.quick && peer;
                    row.representative = row.peers
                        && [("xielu", "plain"), ("xsilu", "gated1")].contains(&(op, form));
                    row.choices = row.representative && (form, direction) == ("plain", "backward");
                }
            }
        }
    }

    fn cross_entropy(&mut self) {
        let op = loss::NAMES[0];
        let directions = ["forward", "fused", "backward"];
        for dtype in Dtype::ALL {
            let bf16 = dtype == Dtype::Bf16;
            for direction in directions {
                let names = |form| [op, form, direction, dtype.name()];
                for rows in ROW_COUNTS {
                    for cols in VOCABULARIES {
                        let row = self.add(names("plain"), [rows, cols]);
                        row.grid = true;
                        // The shapes in Liger's and QuACK's figures; one vocabulary that is not a multiple of 8; and so few
                        // rows that launches dominate.
                        let anchor = rows == ROWS && [128_256, VOCABULARY].contains(&cols)
                            || (rows, cols, direction) == (16_384, VOCABULARY, "forward");
                        let small = (rows, cols) == (16, VOCABULARY) && direction != "backward";
                        row.quick = bf16 && (anchor || small);
                        row.peers = bf16 && (anchor || (rows, cols) == (ROWS, 50_257));
                        row.representative =
                            row.peers && (rows, cols) == (ROWS, 128_256) && direction != "backward";
                        row.choices = bf16
                            && direction == "fused"
                            && rows == ROWS
                            && [128_256, 262_144].contains(&cols);
                    }
                }
                self.add(names("goldfish"), [ROWS, VOCABULARY]).quick =
                    bf16 && direction == "fused";
            }
        }
        // Another deviation of logits, and masked rows.
        for direction in directions {
            let names = [op, "plain", direction, "bf16"];
            for scale in [0.1, 5.0] {
                self.add(names, [ROWS, VOCABULARY]).scale = scale;
            }
            for masked in [2, 30, 100] {
                let row = self.add(names, [ROWS, VOCABULARY]);
                row.masked = masked;
                *row = row.clone().of_shape(ROWS, VOCABULARY);
            }
        }
    }

    fn masks(&mut self) {
        for strategy in MASKS {
            for ids in ["i32", "i64"] {
                self.add([loss::NAMES[1], strategy.name(), "mask", ids], TOKENS)
                    .quick = ids == "i64" && strategy.name() == "hash64";
            }
        }
    }
}

impl Visitor for List {
    fn visit<A: Registered>(&mut self) {
        self.activation(A::NAME, "plain", &ACTIVATION_SHAPES);
        if A::samples().iter().any(|s| s.name == COMPAT_SAMPLE) {
            self.activation(A::NAME, COMPAT, &ACTIVATION_SHAPES[..1]);
        }
    }

    fn visit_gated<A: Gated + Registered>(&mut self) {
        for form in ["gated1", "gated2"] {
            self.activation(A::NAME, form, &GATED_SHAPES);
        }
    }
}
