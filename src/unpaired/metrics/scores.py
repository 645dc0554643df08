"""Scores of sets of outputs: inception scores from class logits, smoothness of a path from distances along it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Score(NamedTuple):
    """A mean divergence in nats, and its exponential. MUNIT's table holds the first, other papers the second."""

    nats: float
    exponential: float


def inception_score(logits: Tensor) -> Score:
    """IS = E KL(p(y|x) || p(y)) of class logits (N, K), p(y) the mean over all N (Salimans et al., NIPS 2016)."""
    nats = divergence(logits.double(), 0)
    return Score(float(nats), float(nats.exp()))


def conditional_inception_score(logits: Tensor) -> Score:
    """CIS = E_x1 E_x12 KL(p(y|x12) || p(y|x1)) of logits (inputs, outputs, K) (MUNIT, ECCV 2018, Sec. 5.2).

    p(y|x1) is the mean over the outputs of one input, so a model whose outputs do not differ scores 0.
    """
    nats = divergence(logits.double(), 1)
    return Score(float(nats), float(nats.exp()))


def divergence(logits: Tensor, dim: int) -> Tensor:
    """The mean KL of each p(y|x) to the mean of them over `dim`."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    log_prior = p.mean(dim, keepdim=True).clamp(min=1e-300).log()
    return (p * (log_p - log_prior)).sum(-1).mean()


def path_smoothness(steps: Tensor, ends: Tensor) -> Tensor:
    """PS (B,) of paths between two styles (SmoothGAN, CVPR 2021): steps (B, n) between neighbours, ends (B,).

    The harmonic mean of efficiency min(1, ends / sum of steps) and equality 1 - Gini(steps); 1 is a straight and even
    path. As in the official code the steps are shifted by 1e-6, which keeps a path that stands still defined.
    """
    steps = steps.double() + 1e-6
    efficiency = (ends.double() / steps.sum(1)).clamp(max=1)
    equality = 1 - gini(steps)
    return 2 * efficiency * equality / (efficiency + equality)


def gini(x: Tensor) -> Tensor:
    """Of each row of positive numbers (B, n): 0 where all are equal."""
    n = x.shape[1]
    rank = torch.arange(1, n + 1, dtype=x.dtype, device=x.device)
    ordered = x.sort(1).values
    return ((2 * rank - n - 1) * ordered).sum(1) / (n * ordered.sum(1))


LEVEL = 2 / 255  # the least difference that a picture holds


def sliced_wasserstein(
    x: Tensor, y: Tensor, seed: int = 0, patches: int = 32, directions: int = 128
) -> float:
    """SWD of images y from real ones x (N, C, H, W) in [-1, 1], no network needed (Karras et al., ICLR 2018).

    Images are halved down to 16 px; at each level of their Laplacian pyramid 7 x 7 patches are normalised per channel,
    projected on random directions and sorted; the mean difference is averaged over the levels, times 1,000. Equally
    many images of both sets are used, evenly taken from the larger one. Fewer patches and directions than in the paper:
    it is meant to be cheap. In the paper each set is normalised by its own mean and deviation, which hides a cast of
    colour and a loss of contrast; here both by those of the real images.
    """
    g = torch.Generator().manual_seed(seed)
    n = min(len(x), len(y))
    pyramids = [pyramid(s[torch.linspace(0, len(s) - 1, n).round().long()]) for s in (x, y)]
    values = []
    for level_x, level_y in zip(*pyramids, strict=True):
        (_, c, h, w), side = level_x.shape, min(7, *level_x.shape[2:])
        tops, lefts = (torch.randint(m - side + 1, (n, patches), generator=g) for m in (h, w))
        projection = torch.randn(c * side * side, directions, generator=g).to(x)
        projection = projection / projection.std(0, keepdim=True)
        tops, lefts = tops.to(x.device), lefts.to(x.device)
        cuts = [windows(level, tops, lefts, side).flatten(0, 1) for level in (level_x, level_y)]
        std, mean = torch.std_mean(cuts[0], (0, 2, 3), keepdim=True)
        cuts = [(cut - mean) / std.clamp(min=LEVEL) for cut in cuts]  # (n patches, c, s, s)
        one, other = (
            (cut.flatten(1) @ projection / (c * side * side) ** 0.5).sort(0).values for cut in cuts
        )
        values.append((one - other).abs().mean())
    return 1000 * float(torch.stack(values).mean())


def pyramid(x: Tensor) -> list[Tensor]:
    """The Laplacian levels of images, the fine ones first, the coarsest plain; from 16 px on."""
    levels = []
    while min(x.shape[2:]) >= 32:
        small = F.avg_pool2d(x, 2)
        levels.append(x - F.interpolate(small, size=x.shape[2:], mode="bilinear"))
        x = small
    return [*levels, x]


def windows(x: Tensor, tops: Tensor, lefts: Tensor, side: int) -> Tensor:
    """Patches (N, P, C, side, side) of images (N, C, H, W) at tops and lefts (N, P)."""
    reach = torch.arange(side, device=x.device)
    rows = (tops[..., None] + reach)[..., :, None]  # (N, P, side, 1)
    columns = (lefts[..., None] + reach)[..., None, :]  # (N, P, 1, side)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    return x.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 1, 4, 2, 3)
