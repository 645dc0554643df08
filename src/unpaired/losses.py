"""Losses: pure functions, one formula and one citation each. Maps are (B, 1, h, w), images (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (x - y).abs().mean()


def lsgan_d(real: Iterable[Tensor], fake: Iterable[Tensor]) -> Tensor:
    """Least squares, real 1 and fake 0, summed over scales (Mao et al., ICCV 2017)."""
    return torch.stack([((r - 1) ** 2).mean() + (f**2).mean() for r, f in zip(real, fake, strict=True)]).sum()


def lsgan_g(fake: Iterable[Tensor]) -> Tensor:
    """The generator's side of `lsgan_d`."""
    return torch.stack([((f - 1) ** 2).mean() for f in fake]).sum()


def nsgan_d(real: Iterable[Tensor], fake: Iterable[Tensor]) -> Tensor:
    """Cross-entropy on logits, non-saturating, summed over scales (Goodfellow et al., NIPS 2014)."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([F.softplus(-r).mean() + F.softplus(f).mean() for r, f in pairs]).sum()


def nsgan_g(fake: Iterable[Tensor]) -> Tensor:
    """The generator's side of `nsgan_d`."""
    return torch.stack([F.softplus(-f).mean() for f in fake]).sum()


def perceptual(features: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """Domain-invariant perceptual distance (MUNIT, Sec. 5.1): features instance-normalised, mean squared difference.

    Over a constant map the normalisation has no direction; eps keeps value and gradient finite there.
    """
    return F.mse_loss(F.instance_norm(features, eps=eps), F.instance_norm(target, eps=eps))


def r1(scores: Tensor, x: Tensor) -> Tensor:
    """Half the squared norm of D's gradient at real images `x`, mean over them (Mescheder et al., ICML 2018)."""
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()
