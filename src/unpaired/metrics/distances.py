"""Distances between two sets of vectors: features of images, or styles. Pure functions on (N, d) tensors.

Everything is computed in float64. The first set is the real one where that matters. What each number means, its range
and its direction are in `metrics/table.py` and docs/metrics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # rows of a distance matrix that are held at once


class Moments(NamedTuple):
    """Number, mean (d,) and root of the covariance of a set: R (r, d) with R^T R = cov, n - 1 below the line."""

    n: int
    mean: Tensor
    root: Tensor


def moments(x: Tensor) -> Moments:
    """Of vectors (N, d), N at least 2."""
    x = x.double()
    mean = x.mean(0)
    centred = (x - mean) / (len(x) - 1) ** 0.5
    return Moments(len(x), mean, torch.linalg.qr(centred, mode="r").R)  # (min(N, d), d)


def moments_of(n: int, mean: Tensor, covariance: Tensor) -> Moments:
    """The same from sums that were gathered batch by batch: mean (d,), covariance (d, d)."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return Moments(n, mean.double(), values.clamp(min=0).sqrt()[:, None] * vectors.T)


def frechet(x: Tensor | Moments, y: Tensor | Moments) -> float:
    """|m_x - m_y|^2 + Tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of two sets (N, d) (Heusel et al., NIPS 2017; Dowson and
    Landau, 1982).

    The eigenvalues of C_x C_y are the squared singular values of R_x R_y^T, so the trace of the root is their sum: no
    matrix root is taken, and covariances that lack rank (fewer vectors than dimensions) need no special case.
    """
    a, b = (s if isinstance(s, Moments) else moments(s) for s in (x, y))
    root = torch.linalg.svdvals(a.root @ b.root.T).sum()
    traces = a.root.square().sum() + b.root.square().sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + traces - 2 * root))


def kid(x: Tensor, y: Tensor, unbiased: bool = True) -> float:
    """KID: squared MMD of two sets (N, d), kernel (x.y / d + 1)^3 (Binkowski et al., ICLR 2018).

    unbiased: the sums within each set leave out their diagonals. May be slightly negative for equal distributions. Of
    all pairs, where the paper takes the mean over random subsets: the same in expectation, with less variance.
    """
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    between = kernel_sum(x, y) / (n * m)
    if not unbiased:
        return kernel_sum(x, x) / n**2 + kernel_sum(y, y) / m**2 - 2 * between
    within = [(kernel_sum(s, s) - own(s)) / (len(s) * (len(s) - 1)) for s in (x, y)]
    return sum(within) - 2 * between


def kernel_sum(x: Tensor, y: Tensor) -> float:
    """Over all pairs of (N, d) and (M, d), in blocks of rows."""
    return sum(float(polynomial(rows @ y.T / x.shape[1]).sum()) for rows in x.split(BLOCK))


def own(x: Tensor) -> float:
    """The sum of the kernels of each vector with itself."""
    return float(polynomial(x.square().mean(1)).sum())


def polynomial(products: Tensor) -> Tensor:
    return (products + 1) ** 3


class Manifold(NamedTuple):
    """Fidelity and variety by neighbours."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Tensor, fake: Tensor, k: int = 5) -> Manifold:
    """Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019); density, coverage (Naeem et al., ICML 2020).

    real (N, d), fake (M, d), both more than k. The ball of a vector reaches to its k-th neighbour of the same set.
    precision: share of fakes in a ball of a real one. recall: of real ones in a ball of a fake. density: in how many
    of the k balls that one expects a fake lies. coverage: share of real balls that hold a fake.
    """
    middle = real.double().mean(0)  # small numbers keep the products of `near` exact
    real, fake = real.double() - middle, fake.double() - middle
    radius_real, radius_fake = radii(real, k), radii(fake, k)
    held, covered, recalled = torch.zeros(len(fake)), [], []
    for rows, radius in zip(real.split(BLOCK), radius_real.split(BLOCK), strict=True):
        d = near(rows, fake)  # (rows, M)
        inside = d < radius[:, None]
        held += inside.sum(0).cpu()
        covered.append(inside.any(1))
        recalled.append((d < radius_fake).any(1))
    return Manifold(
        precision=float((held > 0).float().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(held.double().mean() / k),
        coverage=float(torch.cat(covered).double().mean()),
    )


def radii(x: Tensor, k: int) -> Tensor:
    """The distance of each vector to its k-th neighbour, itself not counted, (N,)."""
    nearest = [near(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(BLOCK)]
    return torch.cat(nearest)


def near(x: Tensor, y: Tensor) -> Tensor:
    """`distances` by products, ten times as fast for long vectors; equal ones come out at about 1e-7, not 0."""
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean, (N, d), (M, d) -> (N, M); exactly 0 for equal vectors."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def energy(x: Tensor, y: Tensor) -> float:
    """The energy coefficient of two sets (N, d) (Szekely and Rizzo, J. Stat. Plan. Inference 2013).

    (2 E|X - Y| - E|X - X'| - E|Y - Y'|) / (2 E|X - Y|), 0 for equal distributions only, at most 1, without a unit. The
    expectations within a set leave out equal indices, so that it is 0 on average for two samples of one distribution
    and may come out slightly negative.
    """
    x, y = x.double(), y.double()
    between = mean_distance(x, y)
    within = sum(mean_distance(s, s) * len(s) / (len(s) - 1) for s in (x, y))
    return float((2 * between - within) / (2 * between)) if between > 0 else 0.0


def mean_distance(x: Tensor, y: Tensor) -> float:
    return float(torch.stack([distances(rows, y).sum() for rows in x.split(BLOCK)]).sum()) / (
        len(x) * len(y)
    )
