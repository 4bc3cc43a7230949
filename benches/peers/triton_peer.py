"""Hand-written Triton kernels for comparison with ours: xIELU, and cross-entropy with its gradient in place.

    python triton_peer.py        checks them against the formulas in f64; without a GPU, in Triton's interpreter

xIELU is elementwise; its parameter gradients are partial sums, which torch adds up. In cross-entropy, a program reads a
row once for an online softmax and, if there is a gradient, once more for the gradient, as in Liger-Kernel. The arithmetic
is f32, as in torch. The exponential is `tl.exp`, which is faster than `expm1` and less accurate near 0.
"""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton
import triton.language as tl

BETA, EPS = 0.5, -1e-6
IGNORE = -100
# The elements of a program: 8 or 16 per thread.
ELEMENTS, WARPS = 4096, 8
# The columns that a program processes at a time, and its warps, as in Liger for long rows.
COLUMNS, ROW_WARPS = 32_768, 32


@triton.jit
def softplus(z):
    return tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))


@triton.jit
def xielu_forward_kernel(x_ptr, y_ptr, raw_p_ptr, raw_n_ptr, count, BETA: tl.constexpr, EPS: tl.constexpr, SIZE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    alpha_p = softplus(tl.load(raw_p_ptr).to(tl.float32))
    alpha_n = BETA + softplus(tl.load(raw_n_ptr).to(tl.float32))
    x = tl.load(x_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    negative = (tl.exp(tl.minimum(x, EPS)) - 1.0 - x) * alpha_n
    y = tl.where(x > 0, alpha_p * x * x, negative) + BETA * x
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=at < count)


@triton.jit
def xielu_backward_kernel(
    x_ptr, dy_ptr, dx_ptr, sums_ptr, raw_p_ptr, raw_n_ptr, count, BETA: tl.constexpr, EPS: tl.constexpr, SIZE: tl.constexpr
):
    program = tl.program_id(0)
    at = program.to(tl.int64) * SIZE + tl.arange(0, SIZE)
    alpha_p = softplus(tl.load(raw_p_ptr).to(tl.float32))
    alpha_n = BETA + softplus(tl.load(raw_n_ptr).to(tl.float32))
    # Beyond the end, dy is 0 and adds nothing.
    x = tl.load(x_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    expm1 = tl.exp(tl.minimum(x, EPS)) - 1.0
    positive = x > 0
    dx = dy * (tl.where(positive, 2.0 * alpha_p * x, alpha_n * expm1) + BETA)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=at < count)
    tl.store(sums_ptr + 2 * program, tl.sum(tl.where(positive, dy * x * x, 0.0), 0))
    tl.store(sums_ptr + 2 * program + 1, tl.sum(tl.where(positive, 0.0, dy * (expm1 - x)), 0))


def xielu_forward(x, raw_p, raw_n):
    y = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), ELEMENTS),)
    xielu_forward_kernel[grid](x, y, raw_p, raw_n, x.numel(), BETA=BETA, EPS=EPS, SIZE=ELEMENTS, num_warps=WARPS)
    return y


def xielu_backward(x, dy, raw_p, raw_n):
    """The gradients of x and of both raw parameters."""
    dx = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), ELEMENTS),)
    sums = torch.empty(*grid, 2, dtype=torch.float32, device=x.device)
    arguments = (x, dy, dx, sums, raw_p, raw_n, x.numel())
    xielu_backward_kernel[grid](*arguments, BETA=BETA, EPS=EPS, SIZE=ELEMENTS, num_warps=WARPS)
    # softplus'(raw) = sigmoid(raw).
    return dx, sums.sum(0) * torch.sigmoid(torch.stack([raw_p, raw_n]).float())


@triton.jit
def cross_entropy_kernel(
    logits_ptr,
    labels_ptr,
    losses_ptr,
    lse_ptr,
    kept_ptr,
    columns,
    IGNORE: tl.constexpr,
    GRADIENT: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * columns
    label = tl.load(labels_ptr + row)
    lanes = tl.arange(0, SIZE)
    if label == IGNORE:
        if GRADIENT:
            for first in range(0, columns, SIZE):
                at = first + lanes
                tl.store(logits_ptr + at, tl.zeros([SIZE], logits_ptr.dtype.element_ty), mask=at < columns)
        tl.store(losses_ptr + row, 0.0)
        tl.store(lse_ptr + row, 0.0)
        return
    top = float("-inf")
    total = 0.0
    for first in range(0, columns, SIZE):
        at = first + lanes
        z = tl.load(logits_ptr + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
        top = new_top
    lse = top + tl.log(total)
    loss = lse - tl.load(logits_ptr + label).to(tl.float32)
    tl.store(losses_ptr + row, loss)
    tl.store(lse_ptr + row, lse)
    if GRADIENT:
        # The target's logit is read by all warps before one of them overwrites it.
        tl.debug_barrier()
        scale = 1.0 / tl.load(kept_ptr).to(tl.float32)
        for first in range(0, columns, SIZE):
            at = first + lanes
            z = tl.load(logits_ptr + at, mask=at < columns, other=float("-inf")).to(tl.float32)
            dz = (tl.exp(z - lse) - tl.where(at == label, 1.0, 0.0)) * scale
            tl.store(logits_ptr + at, dz.to(logits_ptr.dtype.element_ty), mask=at < columns)


@triton.jit
def cross_entropy_backward_kernel(
    logits_ptr, labels_ptr, lse_ptr, kept_ptr, dlogits_ptr, columns, IGNORE: tl.constexpr, SIZE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * columns
    dlogits_ptr += row * columns
    label = tl.load(labels_ptr + row)
    lse = tl.load(lse_ptr + row)
    scale = tl.where(label == IGNORE, 0.0, 1.0 / tl.load(kept_ptr).to(tl.float32))
    for first in range(0, columns, SIZE):
        at = first + tl.arange(0, SIZE)
        z = tl.load(logits_ptr + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        dz = (tl.exp(z - lse) - tl.where(at == label, 1.0, 0.0)) * scale
        tl.store(dlogits_ptr + at, dz.to(dlogits_ptr.dtype.element_ty), mask=at < columns)


def block_of(columns):
    size = min(triton.next_power_of_2(columns), COLUMNS)
    return {"SIZE": size, "num_warps": ROW_WARPS if size >= 4096 else 4}


def cross_entropy(logits, labels, gradient):
    """The mean loss over the labels that count, and the lse of each row. Optionally overwrites the logits with the gradient."""
    rows, columns = logits.shape
    losses, lse = torch.empty(2, rows, dtype=torch.float32, device=logits.device)
    kept = (labels != IGNORE).sum()
    arguments = (logits, labels, losses, lse, kept, columns)
    cross_entropy_kernel[(rows,)](*arguments, IGNORE=IGNORE, GRADIENT=gradient, **block_of(columns))
    return losses.sum() / kept, lse


def cross_entropy_backward(logits, labels, lse):
    rows, columns = logits.shape
    dlogits = torch.empty_like(logits)
    kept = (labels != IGNORE).sum()
    arguments = (logits, labels, lse, kept, dlogits, columns)
    cross_entropy_backward_kernel[(rows,)](*arguments, IGNORE=IGNORE, **block_of(columns))
    return dlogits


def check(what, got, expected, dtype, terms):
    """Within one rounding to the type, plus 8 f32 roundings of the largest term, for two exponentials and some sums."""
    bound = torch.finfo(dtype).eps * expected.abs() + 8 * torch.finfo(torch.float32).eps * terms
    # Below its smallest normal number, a type has no relative accuracy.
    bound += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    share = ((got.double() - expected).abs() / bound).max().item()
    print(f"{what} {dtype}: {share:.2f} of the bound")
    return share <= 1


def check_xielu(dtype, device):
    # The size is not a whole number of programs.
    x = (torch.randn(3 * ELEMENTS + 77, device=device) * 3).to(dtype)
    dy = torch.randn_like(x)
    raw_p, raw_n = torch.tensor([0.2, -1.05], device=device, dtype=dtype)
    exact = [t.double().requires_grad_() for t in (x, raw_p, raw_n)]
    alpha_p, alpha_n = torch.nn.functional.softplus(exact[1]), BETA + torch.nn.functional.softplus(exact[2])
    x64 = exact[0]
    negative = (torch.expm1(torch.clamp(x64, max=EPS)) - x64) * alpha_n
    y = torch.where(x64 > 0, alpha_p * x64 * x64, negative) + BETA * x64
    dx, dp, dn = torch.autograd.grad(y, exact, dy.double())
    terms = 1 + x64.detach().abs() + x64.detach() ** 2
    ok = check("xielu y", xielu_forward(x, raw_p, raw_n), y.detach(), dtype, terms)
    got, sums = xielu_backward(x, dy, raw_p, raw_n)
    # Between eps and 0, autograd's gradient through the clamp is 0, and the formula has exp(eps).
    inside = (x64 > EPS) & (x64 <= 0)
    ok &= check("xielu dx", torch.where(inside, dx, got.double()), dx, dtype, terms * dy.double().abs())
    whole = (dy.double() * terms).abs().sum()
    return ok & check("xielu parameters", sums, torch.stack([dp, dn]), torch.float32, whole)


def check_cross_entropy(dtype, device, columns):
    rows = 5
    logits = (torch.randn(rows, columns, device=device) * 4).to(dtype)
    labels = torch.randint(0, columns, (rows,), device=device)
    labels[1] = IGNORE
    exact = logits.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(exact, labels)
    (dz,) = torch.autograd.grad(loss, exact)
    z = logits.double()
    terms = 1 + z.abs().max()
    # The relative error of p is that of its exponent; the target's 1 is exact.
    exponent = z - torch.logsumexp(z, 1, keepdim=True)
    dz_terms = torch.exp(exponent) * (1 + exponent.abs() + z.abs().max()) / (rows - 1) + dz.abs()
    got, lse = cross_entropy(logits.clone(), labels, False)
    ok = check(f"cross-entropy of {columns}", got, loss.detach(), torch.float32, terms)
    ok &= check("  gradient from lse", cross_entropy_backward(logits, labels, lse), dz, dtype, dz_terms)
    over = logits.clone()
    got, _ = cross_entropy(over, labels, True)
    ok &= check("  loss, fused", got, loss.detach(), torch.float32, terms)
    return ok & check("  gradient in place", over, dz, dtype, dz_terms)


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    ok = True
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        ok &= check_xielu(dtype, device)
        # In one block of columns, and in two.
        for columns in (1000, COLUMNS + 1001):
            ok &= check_cross_entropy(dtype, device, columns)
    print("all within their bounds" if ok else "NOT within the bounds")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
