"""A few numbers a second, to steer training by: no weights, no classifier, nothing to download."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unpaired.errors import Problem
from unpaired.method import Method
from unpaired.metrics.distances import energy
from unpaired.metrics.scores import sliced_wasserstein

CHUNK = 64  # images that are translated at once
FEW, STYLES = 8, 4  # inputs and styles of the two measures of variety
ALL_PAIRS = 4  # domains at most of which every ordered pair is measured


def directions(method: Method, domains: int) -> Iterator[tuple[int, int, str]]:
    """(source, target, way) that the method serves; way is "latent", "reference" or "output" where it has no style.

    Of more than ALL_PAIRS domains each is a target once: a hundred have 9,900 pairs.
    """
    pairs = list(itertools.permutations(range(domains), 2))
    if domains > ALL_PAIRS:
        pairs = [((target - 1) % domains, target) for target in range(domains)]
    for source, target in pairs:
        try:
            ways = method.styles(source, target)
        except Problem:
            continue  # a one-way method
        for way in sorted(ways - {"mean"}) or ["output"]:
            yield source, target, way


@torch.inference_mode()
def quick_validation(method: Method, images: Sequence[Tensor], seed: int = 0) -> dict[str, float]:
    """Figures of a method in eval mode on held-out images of each domain, (N, C, H, W) in [-1, 1], on its device.

    "SWD" (realism), "cycle error" and "content diversity" (content), "change", "pixel diversity" (variety; 0: the style
    is ignored), "style gap" (sampled against encoded styles): means over `directions`, in the units of
    `metrics/table.py`. Those of one way to a style are also there by its name: "SWD latent". A method for paired images
    is given them in order and has "paired error"; one that finds its domains has "clusters used". What a method cannot
    do is missing. About 100 images a domain are enough; equal seeds give equal figures.
    """
    found: dict[str, list[float]] = defaultdict(list)
    unlabelled = len(images) == 1
    sides = [images[0], images[0]] if unlabelled else images
    for source, target, way in directions(method, len(sides)):
        if unlabelled and source > target:
            continue
        x, truth = sides[source], sides[target]
        references, real = halves(truth)
        if unlabelled:
            x = references
        styles = some_styles(method, way, len(x), target, references, seed)
        each = None if styles is None else styles[others(method, way, len(x)) % len(styles)]
        y = translated(method, x, source, target, each)

        def note(name: str, value: float, way: str = way) -> None:
            found[name].append(value)
            if way != "output":
                found[f"{name} {way}"].append(value)

        note("SWD", sliced_wasserstein(real, y, seed))
        note("change", absolute(x, y))
        if method.layout == "paired":
            note("paired error", absolute(y, truth[: len(y)]))
        if (back := returned(method, x, y, source, target, seed)) is not None:
            note("cycle error", absolute(x, back))
        few = min(FEW, len(x))
        one = None if styles is None else styles[:1].expand(few, *styles.shape[1:])
        same_style = translated(method, x[:few], source, target, one)
        if few > 1:
            note("content diversity", pairwise(same_style[None]))
        if styles is not None:
            n = min(STYLES, len(styles))
            many = translated(
                method,
                x[:few].repeat_interleave(n, 0),
                source,
                target,
                styles[:n].repeat(few, *[1] * (styles.dim() - 1)),
            )
            if n > 1:
                note("pixel diversity", pairwise(many.unflatten(0, (few, n))))
    for target, real in enumerate(images):
        if (gap := style_gap(method, target, real, seed)) is not None:
            found["style gap"].append(gap[0])
    if (used := clusters_used(method, images[0])) is not None:
        found["clusters used"].append(used)
    return {name: sum(values) / len(values) for name, values in found.items()}


def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """Those that styles are taken from, and those that outputs are compared with: a copy of a reference gains nothing.

    Each the only one where there is one.
    """
    return (images[::2], images[1::2]) if len(images) > 1 else (images, images)


def some_styles(
    method: Method, way: str, n: int, target: int, references: Tensor, seed: int
) -> Tensor | None:
    """`n` sampled styles of `target`, or those of `n` references at most; None for a method without."""
    if way == "output":
        return None
    if way == "latent":
        generator = torch.Generator().manual_seed(seed)
        return method.sample_style(n, target, generator).to(references.device)
    return encoded(method, references[:n], target)


def others(method: Method, way: str, n: int) -> Tensor:
    """Which style each of `n` inputs takes: not that of itself, nor that of its partner, which would be the answer.

    The references are every second image of a domain, so of pairs input 2 i is the partner of reference i.
    """
    step = 2 if method.layout == "paired" and way == "reference" else 1
    return torch.arange(n) // step + 1


def encoded(method: Method, references: Tensor, target: int) -> Tensor:
    """The styles of references (N, C, H, W), (N, ...)."""
    parts = [method.encode_style(part, target) for part in references.split(CHUNK)]
    return torch.cat([s for s in parts if s is not None])


def translated(
    method: Method, x: Tensor, source: int, target: int, styles: Tensor | None
) -> Tensor:
    """Images (N, C, H, W) each under its own style, clamped to [-1, 1] as a picture is."""
    styled = [None] * len(x.split(CHUNK)) if styles is None else styles.split(CHUNK)
    parts = [
        method.translate(part, source, target, s)
        for part, s in zip(x.split(CHUNK), styled, strict=True)
    ]
    return torch.cat(parts).clamp(-1, 1)


def returned(
    method: Method, x: Tensor, y: Tensor, source: int, target: int, seed: int
) -> Tensor | None:
    """Translations `y` taken back to their source, each in the style of its own input where a method can read it."""
    try:
        ways = method.styles(target, source)
    except Problem:
        return None
    styles = None
    if "reference" in ways:
        styles = encoded(method, x, source)
    elif "latent" in ways:
        styles = some_styles(method, "latent", len(x), source, x, seed)
    return translated(method, y, target, source, styles)


def style_gap(method: Method, target: int, real: Tensor, seed: int) -> tuple[float, float] | None:
    """Energy coefficient between sampled styles of `target` and those of its images, and between two samples of equal
    number, its floor; None where a method has not both."""
    source = 1 - target if target < 2 else 0
    try:
        if not method.styles(source, target) >= {"latent", "reference"} or len(real) < 2:
            return None
    except Problem:
        return None
    n = len(real)
    generator = torch.Generator().manual_seed(seed)
    draws = method.sample_style(2 * n, target, generator)
    one, other = draws.to(real.device).flatten(1).split(n)
    return energy(one, encoded(method, real, target).flatten(1)), energy(one, other)


def clusters_used(method: Method, x: Tensor) -> float | None:
    """exp of the entropy of the sizes of the clusters that images fall into; None where a method finds no domains."""
    assign = getattr(method, "assign", None)
    if assign is None:
        return None
    return effective_number(torch.cat([assign(part).argmax(1) for part in x.split(CHUNK)]))


def effective_number(found: Tensor) -> float:
    """exp of the entropy of how often each number occurs among `found` (N,)."""
    share = found.bincount().double() / len(found)
    share = share[share > 0]
    return float((-(share * share.log()).sum()).exp())


def absolute(x: Tensor, y: Tensor) -> float:
    """Mean absolute difference of images in [-1, 1], on the scale from 0 to 1."""
    return float((x - y).abs().mean() / 2)


def pairwise(x: Tensor) -> float:
    """The mean absolute difference of the pairs within each group (groups, n, C, H, W), on the scale from 0 to 1."""
    pairs = itertools.combinations(range(x.shape[1]), 2)
    return float(torch.stack([(x[:, i] - x[:, j]).abs().mean() / 2 for i, j in pairs]).mean())
