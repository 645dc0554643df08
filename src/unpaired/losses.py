"""Losses: pure functions, one formula and one citation each. Maps are (B, 1, h, w), images (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from unpaired.convolution import of_inputs


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference. Divided last: the gradient of `mean` is contiguous where maps are channels last."""
    gap = (x - y).abs()
    return gap.sum() / gap.numel()


def lsgan_d(real: Iterable[Tensor], fake: Iterable[Tensor]) -> Tensor:
    """Least squares, real 1 and fake 0, summed over scales (Mao et al., ICCV 2017)."""
    return torch.stack(
        [((r - 1) ** 2).mean() + (f**2).mean() for r, f in zip(real, fake, strict=True)]
    ).sum()


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
    """Half the squared norm of D's gradient at real images `x`, mean over them (Mescheder et al., ICML 2018).

    Cheaper where the scores were made under `Twice`.
    """
    with of_inputs():
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def hinge(scores: Tensor) -> Tensor:
    """Mean of max(0, 1 - score): D's loss is hinge(real) + hinge(-fake) (Lim and Ye, 2017)."""
    return F.relu(1 - scores).mean()


def mutual_information(p: Tensor, q: Tensor, eps: float = 1e-10) -> Tensor:
    """I(p, q), in nats, of two soft assignments (B, K) of samples (IIC, Ji et al., ICCV 2019).

    The joint distribution is the mean of p q^T, symmetrised. A row of zeros leaves its sample out.
    """
    joint = p.T @ q  # (K, K)
    joint = joint + joint.T
    joint = joint / joint.sum().clamp(min=eps)
    log_p, log_q = (joint.sum(i, keepdim=True).clamp(min=eps).log() for i in (0, 1))
    joint = joint.clamp(min=eps)
    return (joint * (joint.log() - log_p - log_q)).sum()


def infonce(
    query: Tensor, key: Tensor, queue: Tensor, held: Tensor, temperature: float = 0.07
) -> Tensor:
    """-log softmax of query . key among it and query . queue (MoCo, He et al., CVPR 2020, eq. 1).

    query and key (B, d), queue (N, d); `held` (N,) says which rows of the queue count. Codes are
    taken as they are, not normalised.
    """
    positive = (query * key).sum(1, keepdim=True)  # (B, 1)
    negative = (query @ queue.T).masked_fill(~held, -torch.inf)  # (B, N)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).mean()


def kl_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)), summed over all numbers (Kingma and Welling, ICLR 2014)."""
    mu, logvar = (x.float() if x.dtype is torch.bfloat16 else x for x in (mu, logvar))
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum()
