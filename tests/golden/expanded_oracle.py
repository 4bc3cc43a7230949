# /// script
# requires-python = ">=3.11"
# dependencies = ["mpmath==1.3.0"]
# ///
"""Writes expanded_oracle.json: the expanded gates in 400 digits, rounded to f64. README.md explains it."""

import json
from pathlib import Path

from mpmath import atan, erf, exp, mp, mpf, pi, sqrt

# The formulas of the paper as they stand, so that no rearrangement of ours is in the oracle: 1 - g and
# 1/2 + arctan(x)/pi cancel by up to 10^-324 before the result leaves the range of f64.
mp.dps = 400

ALPHAS = [0.0, -1.0, -0.5, 0.3, 5.0, -1e-6]
MAGNITUDES = [10.0 ** (k / 8) for k in range(-160, 25)]
MAGNITUDES += [0.5, 0.75, 1.25, 2.0, 3.0, 16.0, 17.0, 37.0, 88.0, 104.0, 400.0, 700.0, 1e4, 1e10, 1e30]


def logistic(x):
    # exp(1e30) has no use, and g is 0 or 1 in f64 long before.
    return 1 / (1 + exp(-max(min(x, mpf(2000)), mpf(-2000))))


# Each gate and its derivative.
GATES = {
    "xatlu": lambda x: ((atan(x) + pi / 2) / pi, 1 / (pi * (1 + x * x))),
    "xgelu": lambda x: ((1 + erf(x / sqrt(2))) / 2, exp(-x * x / 2) / sqrt(2 * pi)),
    "xsilu": lambda x: (logistic(x), logistic(x) * (1 - logistic(x))),
}


def main():
    xs = sorted(MAGNITUDES + [-m for m in MAGNITUDES])
    gates = {}
    for name, gate in GATES.items():
        points = [(mpf(x), *gate(mpf(x))) for x in xs]
        out = {
            "dalpha": [float(x * (2 * g - 1)) for x, g, _ in points],
            "gate_dalpha": [float(2 * g - 1) for _, g, _ in points],
            "density": [float(d) for _, _, d in points],
            "y": [],
            "slope": [],
            "gate": [],
        }
        for alpha in map(mpf, ALPHAS):
            expanded = [g * (1 + 2 * alpha) - alpha for _, g, _ in points]
            out["gate"].append([float(e) for e in expanded])
            out["y"].append([float(x * e) for (x, _, _), e in zip(points, expanded)])
            out["slope"].append([float(e + x * (1 + 2 * alpha) * d) for (x, _, d), e in zip(points, expanded)])
        gates[name] = out
    text = json.dumps({"x": xs, "alpha": ALPHAS, "gates": gates}, separators=(",", ":"))
    Path(__file__).with_suffix(".json").write_text(text + "\n")


main()
