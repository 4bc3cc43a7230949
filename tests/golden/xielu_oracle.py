# /// script
# requires-python = ">=3.11"
# dependencies = ["mpmath==1.3.0"]
# ///
"""Writes xielu_oracle.json: xIELU in 60 digits, rounded to f64. README.md explains it."""

import json
from pathlib import Path

from mpmath import expm1, log1p, exp, mp, mpf

mp.dps = 60

CASES = {
    # name: (raw?, a_p, a_n, beta)
    "initial": (True, 0.203_381_5, -1.050_225_7, 0.5),
    "apertus": (True, 166.0, 40.75, 0.5),
    "faint": (True, -20.0, -30.0, 0.5),
    "falling": (False, 3.0, 0.125, 0.5),
    "negative": (False, 1e-3, 1000.0, -1.5),
}
MAGNITUDES = [10.0 ** (k / 8) for k in range(-160, 25)] + [0.5, 0.75, 1.0, 1.25, 2.0, 16.0, 17.0, 40.0, 88.0, 104.0, 400.0]


def softplus(z):
    return log1p(exp(z)) if z < 0 else z + log1p(exp(-z))


def evaluate(raw, a_p, a_n, beta, x):
    """f, f', and the derivatives with respect to the stored parameters."""
    a_p, a_n, beta, x = mpf(a_p), mpf(a_n), mpf(beta), mpf(x)
    alpha_p = softplus(a_p) if raw else a_p
    alpha_n = beta + softplus(a_n) if raw else a_n
    chain_p = 1 / (1 + exp(-a_p)) if raw else mpf(1)
    chain_n = 1 / (1 + exp(-a_n)) if raw else mpf(1)
    if x > 0:
        return alpha_p * x * x + beta * x, 2 * alpha_p * x + beta, chain_p * x * x, mpf(0)
    q = expm1(x) - x
    return alpha_n * q + beta * x, alpha_n * expm1(x) + beta, mpf(0), chain_n * q


def main():
    xs = sorted(MAGNITUDES + [-m for m in MAGNITUDES])
    out = {}
    for name, (raw, a_p, a_n, beta) in CASES.items():
        rows = [[float(v) for v in evaluate(raw, a_p, a_n, beta, x)] for x in xs]
        keys = ("y", "slope", "dalpha_p", "dalpha_n")
        out[name] = {"raw": raw, "params": [a_p, a_n], "beta": beta} | {
            key: [row[i] for row in rows] for i, key in enumerate(keys)
        }
    text = json.dumps({"x": xs, "cases": out}, indent=None, separators=(",", ":"))
    Path(__file__).with_suffix(".json").write_text(text + "\n")


main()
