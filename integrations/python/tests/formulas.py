"""The operators in PyTorch's own operations, differentiable and in any type. The tests take their f64 results as exact."""

import math

import torch
import torch.nn.functional as F


def xielu(x, alpha_p, alpha_n, beta=0.5, eps=None, effective=False):
    if not effective:
        alpha_p, alpha_n = F.softplus(alpha_p), beta + F.softplus(alpha_n)
    # The branch that is not taken must not overflow, or its gradient is NaN.
    positive, negative = x.clamp(min=0), x.clamp(max=0)
    inner = negative if eps is None else x.clamp(max=eps)
    return torch.where(
        x > 0,
        alpha_p * positive * positive + beta * positive,
        alpha_n * (torch.expm1(inner) - negative) + beta * negative,
    )


def _atan(x):
    return torch.atan(x) / math.pi + 0.5


def _normal(x):
    return torch.special.ndtr(x)


BASES = {"xatlu": _atan, "xgelu": _normal, "xsilu": torch.sigmoid}


def gate(name, x, alpha):
    return (1 + 2 * alpha) * BASES[name](x) - alpha


def expanded(name, x, alpha):
    return x * gate(name, x, alpha)


def gated(name, x, v, alpha, order=1):
    return (gate(name, x, alpha) if order == 1 else expanded(name, x, alpha)) * v


def cross_entropy(
    logits,
    labels,
    keep=None,
    weights=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    softcap=None,
    vocab=None,
):
    """The weighted loss of each row, 0 for masked rows, and which rows are kept."""
    logits = logits.reshape(-1, logits.shape[-1])[:, :vocab]
    labels = labels.reshape(-1).long()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    weights = torch.ones(len(labels), dtype=logits.dtype) if weights is None else weights.reshape(-1).to(logits.dtype)
    counts = (labels != ignore_index) & (weights != 0)
    if keep is not None:
        counts &= keep.reshape(-1)
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none")
    loss = loss + z_loss * torch.logsumexp(logits, -1) ** 2
    return torch.where(counts, weights * loss, torch.zeros_like(loss)), counts
