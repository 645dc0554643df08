"""How good a translation of the built-in scenes is, where every factor is known: two figures that cannot be gamed.

Content kept: the IoU of the source's true mask with the mask read from the output by a segmenter that was trained on
real scenes of the target domain, divided by that segmenter's IoU on real held-out scenes. Range [0, about 1], higher
is better. An output without the object, or with it elsewhere, scores near 0.

Styles covered: for each of a number of inputs, the outputs under many random styles; the factors of each are read by
a regressor trained on real scenes. 1 - TV between the 8-bin histogram of what was read and that of the truth (uniform),
mean over factors and inputs, divided by the same figure on equally large groups of real held-out scenes. Range
[about 0.14, about 1], higher is better. It is taken per input: a model that lets the input choose the style scores as
one that has one style.

Floors that stand beside them: the untranslated input, an untrained network, one style repeated. Where a method has
random styles, those of references have a row of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.data.scenes import STYLES, Scenes
from unpaired.errors import ConfigProblem, Problem
from unpaired.method import Method
from unpaired.metrics import validation
from unpaired.metrics.features import cached
from unpaired.metrics.validation import encoded
from unpaired.progress import say
from unpaired.translator import Translator, random_styles

BINS, READER_SCENES, HELD_OUT = 8, 1000, 500
INPUTS, STYLES_EACH = 25, 64
FLOORS = 0.4  # the share of the inputs by which floors are measured
LEAST_IOU = 0.6  # on real scenes, below which a reader is not believed


class Reader(nn.Module):
    """Reads the object's mask and the style factors from an image of one domain."""

    def __init__(self, factors: int, width: int = 16) -> None:
        super().__init__()
        w = width
        self.fine = block(3, w)
        self.middle = nn.Sequential(block(w, 2 * w, stride=2), block(2 * w, 2 * w))
        self.coarse = nn.Sequential(block(2 * w, 4 * w, stride=2), block(4 * w, 4 * w))
        self.from_coarse, self.from_middle = nn.Conv2d(4 * w, 2 * w, 1), nn.Conv2d(2 * w, w, 1)
        self.join_middle, self.join_fine = block(2 * w, 2 * w), block(w, w)
        self.mask = nn.Conv2d(w, 1, 1)
        self.factors = nn.Sequential(nn.Linear(14 * w, 4 * w), nn.ReLU(), nn.Linear(4 * w, factors))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> mask logits (B, 1, H, W), factors (B, n) about in [0, 1]."""
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        means = [m.mean((2, 3)) for m in (fine, middle, coarse)]
        spreads = [m.amax((2, 3)) for m in (fine, middle, coarse)]
        h = F.interpolate(self.from_coarse(coarse), size=middle.shape[2:]) + middle
        h = F.interpolate(self.from_middle(self.join_middle(h)), size=fine.shape[2:]) + fine
        h = self.join_fine(h)
        return self.mask(h), self.factors(torch.cat(means + spreads, 1))


def block(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


def real(
    domain: str, size: tuple[int, int], split: str, count: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Images in [-1, 1], masks (N, 1, H, W), factors (N, n) of real scenes."""
    scenes = [s for s in Scenes(domain, size, split, seed, count)]
    images = (
        torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).float() / 127.5
        - 1
    )
    masks = torch.from_numpy(np.stack([s.mask for s in scenes]))[:, None].float()
    factors = torch.tensor([[s.style[name] for name in STYLES[domain]] for s in scenes])
    return images.contiguous(memory_format=torch.channels_last), masks, factors


@torch.random.fork_rng(devices=[])
def train_reader(domain: str, size: tuple[int, int], epochs: int = 8, batch: int = 30) -> Reader:
    """A reader of `domain`, trained on scenes that no run of seed below 1,000 sees."""
    x, masks, factors = real(domain, size, "train", READER_SCENES, seed=1000)
    torch.manual_seed(0)
    reader = Reader(factors.shape[1])
    steps = epochs * READER_SCENES // batch
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        at = step * batch % READER_SCENES
        if at == 0:
            order = torch.randperm(READER_SCENES)
        i = order[at : at + batch]
        logits, read = reader(x[i])
        loss = F.binary_cross_entropy_with_logits(logits, masks[i]) + 10 * F.mse_loss(
            read, factors[i]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval()


@torch.inference_mode()
def read(reader: Reader, x: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (N, 1, H, W) bool and factors (N, n) of images."""
    parts = [reader(part) for part in x.split(200)]
    return torch.cat([m for m, _ in parts]) > 0, torch.cat([f for _, f in parts])


def iou(a: Tensor, b: Tensor) -> float:
    """Mean intersection over union of boolean masks (N, 1, H, W)."""
    both, either = (a & b).sum((1, 2, 3)), (a | b).sum((1, 2, 3))
    return float((both / either.clamp(min=1)).mean())


def coverage(factors: Tensor) -> float:
    """1 - TV of the 8-bin histograms of factors (groups, n in a group, factors) to the uniform, mean over all."""
    bins = (factors.clamp(0, 1 - 1e-6) * BINS).long()
    shares = F.one_hot(bins, BINS).float().mean(1)  # (groups, factors, BINS)
    return float((1 - 0.5 * (shares - 1 / BINS).abs().sum(-1)).mean())


class Target:
    """The figures of directions to one domain; its reader is judged once, on real scenes."""

    def __init__(self, domain: str, size: tuple[int, int], reader: Reader, seed: int) -> None:
        self.size, self.reader, self.seed = size, reader, seed
        x, masks, factors = real(domain, size, "test", INPUTS * STYLES_EACH, seed)
        read_masks, read_factors = read(reader, x)
        self.own_iou = iou(read_masks[:HELD_OUT], masks[:HELD_OUT] > 0.5)
        if self.own_iou < LEAST_IOU:
            raise ConfigProblem(
                f"The segmenter of {domain} reaches only an IoU of {self.own_iou:.2f} on real scenes of "
                f"{size[0]} x {size[1]} px, so figures would mean nothing: train with a larger data.size."
            )
        self.own_coverage = coverage(read_factors.view(INPUTS, STYLES_EACH, -1))
        self.error = float((read_factors - factors).abs().mean())
        self.references = x

    def rows(
        self,
        method: Method,
        untrained: Method,
        domain: str,
        source: int,
        target: int,
        ways: frozenset[str],
        seed: int,
        share: float = 1.0,
    ) -> dict[str, dict[str, float]]:
        """The model from `domain` beside its floors: the input, an untrained network, one style for all.

        share: of the inputs; floors have FLOORS of that.
        """
        x, masks, _ = real(domain, self.size, "test", HELD_OUT, self.seed)
        masks = masks > 0.5

        def figures(
            network: Method, share: float, one_style: bool = False, way: str = ""
        ) -> dict[str, float]:
            inputs = x[: max(1, int(share * INPUTS))]
            styles, n = None, len(inputs) * STYLES_EACH
            if "latent" in (way or ways):
                styles = random_styles(network, 1 if one_style else n, target, seed + 1)
            elif ways:
                references = self.references[: 1 if one_style else n]
                styles = encoded(network, references.to(device_of(network)), target)
            if styles is not None and one_style:
                styles = styles[:1].expand(n, *styles.shape[1:])
            each = x[: min(n, max(1, int(share * HELD_OUT)))]
            one_each = translated(network, each, source, target, styles)
            if styles is None or one_style:
                return self.figures(masks, one_each, one_each[: len(inputs)], STYLES_EACH)
            return self.figures(masks, one_each, restyled(network, inputs, source, target, styles))

        both, floors = ways >= {"latent", "reference"}, share * FLOORS
        return {
            "model": figures(method, share),
            **({"by references": figures(method, floors, way="reference")} if both else {}),
            "untranslated": self.figures(masks, x, x[:INPUTS], STYLES_EACH),
            "untrained": figures(untrained, floors),
            "one style": figures(method, floors, one_style=True),
            "reader": {
                "IoU": round(self.own_iou, 4),
                "coverage": round(self.own_coverage, 4),
                "mean error": round(self.error, 4),
            },
        }

    def figures(
        self, masks: Tensor, one_each: Tensor, many: Tensor, copies: int = 1
    ) -> dict[str, float]:
        """`one_each`: translations of the inputs that have the first of the true `masks`; `many`: of fewer, each under
        STYLES_EACH styles, where `copies` are alike and come once."""
        found, _ = read(self.reader, one_each)
        factors = read(self.reader, many)[1].repeat_interleave(copies, 0)
        return {
            "content kept": round(iou(found, masks[: len(found)]) / self.own_iou, 4),
            "styles covered": round(
                coverage(factors.view(-1, STYLES_EACH, factors.shape[1])) / self.own_coverage, 4
            ),
        }


def device_of(network: Method) -> torch.device:
    return next(network.parameters()).device


def translated(
    method: Method, x: Tensor, source: int, target: int, styles: Tensor | None
) -> Tensor:
    """Translations of images (N, ...) under the first N of the styles, on the CPU, where the readers are."""
    device = device_of(method)
    given = None if styles is None else styles[: len(x)].to(device)
    return validation.translated(method, x.to(device), source, target, given).cpu()


@torch.inference_mode()
def restyled(method: Method, x: Tensor, source: int, target: int, styles: Tensor) -> Tensor:
    """Each image (N, ...) under STYLES_EACH styles of its own, its content encoded once, on the CPU."""
    device = device_of(method)
    outputs = []
    for i, image in enumerate(x):
        content = method.encode_content(image[None].to(device), source)
        content = content.expand(STYLES_EACH, *content.shape[1:])
        style = styles[i * STYLES_EACH : (i + 1) * STYLES_EACH].to(device)
        outputs.append(method.decode(content, style, target).clamp(-1, 1).cpu())
    return torch.cat(outputs)


def evaluate(
    translator: Translator,
    seed: int = 0,
    say: Callable[[str], None] = say,
    share: float = 1.0,
) -> dict[str, Any]:
    """Both figures in every direction beside their floors, for a model of domains of the built-in scenes.

    By random styles where a method has them; by those of references besides, or else. share: of the inputs of each
    direction. Raises `ConfigProblem` for images too small.
    """
    run, method = translator.run, translator.method
    untrained = run.build(tuple(translator.domains)).eval().to(translator.device)
    rows: dict[str, Any] = {}
    for target, to in enumerate(translator.domains):
        figures = None
        for source, of in enumerate(translator.domains):
            try:
                ways = method.styles(source, target) - {"mean"} if source != target else None
            except Problem:
                ways = None  # a one-way method
            if ways is None:
                continue
            figures = figures or Target(
                to, run.data.hw, trained_reader(to, run.data.hw, say), run.train.seed
            )
            rows[f"{of} to {to}"] = figures.rows(
                method, untrained, of, source, target, ways, seed, share
            )
            for row, values in rows[f"{of} to {to}"].items():
                said = "  ".join(f"{k} {v:.3f}" for k, v in values.items())
                say(f"{of + ' to ' + to:>22}  {row:>10}  {said}")
    return rows


def trained_reader(domain: str, size: tuple[int, int], say: Callable[[str], None]) -> Reader:
    """`train_reader`, kept in the cache: it depends on the domain, the size and how scenes are drawn."""
    first = Scenes(domain, size, "train", 1000, READER_SCENES)
    pixels = b"".join(first[i].image.tobytes() for i in range(8))
    settings = {"reader": 2, "domain": domain, "size": list(size), "scenes": READER_SCENES}
    key = {**settings, "pixels": hashlib.sha256(pixels).hexdigest()}
    tensors = cached(key, lambda: dict(train_reader(domain, size).state_dict()), say)
    reader = Reader(len(STYLES[domain]))
    reader.load_state_dict(tensors)
    return reader.eval()
