"""The rows of an evaluation: a model, its floors and real images, measured batch by batch in one direction."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unpaired.data.intake import escape
from unpaired.errors import DataProblem, Problem
from unpaired.method import Method
from unpaired.metrics.classifier import Trained
from unpaired.metrics.distances import frechet, kid, manifold
from unpaired.metrics.features import (
    Features,
    Gatherer,
    Vectors,
    cached_vectors,
    evenly,
    portions,
    resized,
)
from unpaired.metrics.images import Images
from unpaired.metrics.matching import mean_correlation
from unpaired.metrics.scores import (
    conditional_inception_score,
    inception_score,
    path_smoothness,
    sliced_wasserstein,
)
from unpaired.metrics.validation import (
    CHUNK,
    FEW,
    encoded,
    pairwise,
    returned,
    style_gap,
    translated,
)
from unpaired.networks.lpips import LPIPS

LEAST = 10  # images of each side, under which a distance is left out
NEIGHBOURS = 5  # k of precision, recall, density and coverage
WASSERSTEIN_IMAGES, WASSERSTEIN_SIDE = 256, 64
PATHS, POINTS = 20, 20  # of path smoothness
STYLED = 500  # images whose styles are encoded
RANDOM_PAIRS = 100  # of real images, whose difference stands beside diversity

Say = Callable[[str], None]
Row = dict[str, float]


@dataclass(frozen=True)
class Protocol:
    """How many of what. None: all there are."""

    name: str
    says: str
    inputs: int | None  # held-out images of each source
    outputs: int  # of each input, for everything but diversity
    real: int | None  # training images of the target that outputs are compared with
    varied: tuple[int | None, int]  # diversity: how many inputs, and outputs of each
    pairs: str  # diversity: "all" pairs of the outputs of an input, or "disjoint" ones
    to: str = "pairs"  # directions: ordered "pairs" of domains, or each "target" from all others
    least: float = (
        1.0  # the share of the inputs that each direction has at least, where there are many
    )

    def share(self, directions: int) -> float:
        """What of the inputs each direction has: many directions share the inputs of six."""
        return max(self.least, min(1.0, 6 / max(directions, 1)))

    def scaled(self, share: float) -> Protocol:
        """With a share of the inputs."""
        inputs, varied = (
            None if n is None else math.ceil(n * share) for n in (self.inputs, self.varied[0])
        )
        return replace(self, inputs=inputs, varied=(varied, self.varied[1]))


@dataclass
class Tools:
    """What measures, and the sentences of what could not be measured."""

    protocol: Protocol
    seed: int
    device: torch.device
    say: Say
    features: list[Features] = field(default_factory=list)
    lpips: LPIPS | None = None
    domains: Trained | None = None  # a classifier of the domains
    labels: dict[int, tuple[Trained, list[str]]] = field(default_factory=dict)  # by target
    left_out: list[str] = field(default_factory=list)
    made: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What several directions have in common, made for the first."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def leave_out(self, sentence: str) -> None:
        if sentence not in self.left_out:
            self.left_out.append(sentence)
            self.say(f"Left out: {sentence}")


class Direction(NamedTuple):
    """Held-out inputs by their source, the target's training and held-out images; names of both, None: of several."""

    source: str | None
    to: str
    inputs: Mapping[int, Images]
    target: int
    real: Images
    held: Images

    @property
    def name(self) -> str:
        return f"{self.source or 'others'} to {self.to}"


class Side(NamedTuple):
    """The images of one domain."""

    name: str
    train: Images
    held: Images


# Rows ---------------------------------------------------------------------------------------------


class Meter:
    """What a row is computed from, taken batch by batch, `total` images in all; holds no more for more."""

    def __init__(self, d: Direction, tools: Tools, total: int) -> None:
        self.d, self.tools = d, tools
        self.seen, self.total = 0, total
        self.gathered = {f.name: Gatherer(total) for f in tools.features}
        self.thin: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def note(self, name: str, values: Tensor) -> None:
        """One value for each image, of which the mean is the metric."""
        self.sums[name] += float(values.double().sum())
        self.counts[name] += len(values)

    def add(self, y: Tensor, labels: Sequence[str] = ()) -> None:
        """Outputs (B, C, H, W), and the labels of their inputs."""
        tools = self.tools
        for f in tools.features:
            self.gathered[f.name].add(f(y))
        taken = evenly(self.seen, len(y), self.total, WASSERSTEIN_IMAGES)
        thin = y[taken.to(y.device)]  # of all inputs, not of the first
        self.seen += len(y)
        if len(thin):
            self.thin.append(at_most(thin, WASSERSTEIN_SIDE))
        if tools.domains is not None and len(tools.domains.net.head.bias) > self.d.target:
            self.note("target share (classifier)", tools.domains(y).argmax(1) == self.d.target)
        if self.d.target in tools.labels:
            classifier, names = tools.labels[self.d.target]
            logits = classifier(y)
            self.logits.append(logits)
            known = [i for i, label in enumerate(labels) if label in names]
            if known:
                true = torch.tensor([names.index(labels[i]) for i in known], device=y.device)
                self.note("label kept", logits[known].argmax(1) == true)

    def row(self, real: Mapping[str, Vectors]) -> Row:
        """All metrics of what came in but SWD, against the features of the target's training images."""
        tools = self.tools
        row = {name: total / self.counts[name] for name, total in self.sums.items()}
        for f in tools.features:
            row |= compared(f, real[f.name], self.gathered[f.name].vectors(), self.d, tools)
        if self.logits:
            score = inception_score(torch.cat(self.logits))
            row |= {"IS": score.nats, "exp IS": score.exponential}
        return row

    def small(self) -> Tensor:
        """Some of what came in, no larger than SWD looks at it."""
        return torch.cat(self.thin)


def compared(f: Features, real: Vectors, made: Vectors, d: Direction, tools: Tools) -> Row:
    """The distances of two sets of features."""
    least = min(real.n, made.n)
    if least < LEAST:
        tools.leave_out(
            f"distances ({f.name}) {d.name}: {least} images are too few, {LEAST} is the least."
        )
        return {}
    if least <= len(real.mean):
        tools.leave_out(
            f"nothing, but {f.title('Frechet')} is of {least} images in {len(real.mean)} dimensions, so a covariance "
            "lacks rank: trust KID."
        )
    near = manifold(real.kept, made.kept, NEIGHBOURS)._asdict()
    row = {f.title("KID"): kid(real.kept, made.kept)}
    row[f.title("Frechet")] = frechet(real.moments(), made.moments())
    return row | {f.title(name): v for name, v in near.items()}


def at_most(x: Tensor, side: int) -> Tensor:
    return resized(x, side) if min(x.shape[2:]) > side else x


def vectors(f: Features, images: Images, tools: Tools) -> Vectors:
    """The features of real images, from the cache where they are known."""

    def make() -> Vectors:
        gatherer = Gatherer(len(images))
        for x, _ in images.batches(CHUNK, tools.device):
            gatherer.add(f(x))
        return gatherer.vectors()

    key = {"features": 3, "name": f.name, "about": f.about, "images": images.digest()}
    if f.name == "classifier":  # its weights follow from the images it was trained on
        key["weights"] = float(sum(p.double().abs().sum() for p in f.net.parameters()))
    return cached_vectors(key, make, tools.say)


@torch.inference_mode()
def measured(
    method: Method,
    untrained: Method,
    d: Direction,
    ways: Iterable[str],
    paired: bool,
    tools: Tools,
    of: str = "",
) -> list[dict[str, Any]]:
    """One direction: for each way the model beside its floors and what real images score. `of` goes with its name."""
    real = {f.name: vectors(f, d.real, tools) for f in tools.features}
    truth = partners(d, paired or method.layout == "paired")
    held = {d.target: d.held.some(tools.protocol.inputs)}

    def genuine() -> tuple[Row, Tensor]:
        meter = of_images(held, d, tools)
        return meter.row(real) | unlike(d.held, tools), meter.small()

    floor, reached = tools.once(("real images", d.target), genuine)
    inputs = of_images(d.inputs, d, tools, truth)
    undone = inputs.small()
    n = min(len(reached), len(undone))  # SWD depends on the count: one for all rows
    reals = at_most(d.real.some(n).tensor(tools.device), WASSERSTEIN_SIDE)

    def whole(row: Row, small: Tensor) -> Row:
        return row | {"SWD": sliced_wasserstein(reals, small, tools.seed)}

    floors = {
        "real images": whole(floor, reached),
        "untranslated": whole(inputs.row(real), undone),
    }
    about = {"name": d.name, "source": d.source, "target": d.to}
    records = []
    for way in ways:
        begun = time.monotonic()
        rows = {"model": {}, **floors}
        for name, network in (("model", method), ("untrained", untrained)):
            meter = of_network(network, d, way, truth, tools)
            rows[name] = whole(meter.row(real), meter.small()) | variety(network, d, way, tools)
        counts = {
            "inputs": sum(map(len, d.inputs.values())),
            "outputs": tools.protocol.outputs if way != "output" else 1,
            "real": len(d.real),
            "held out": len(d.held),
            "SWD": len(reals),
        }
        seconds = round(time.monotonic() - begun, 1)
        tools.say(f"Measured {escape(d.name)}, {way + of}: {seconds} s")
        rows = {name: round_row(row) for name, row in rows.items()}
        records.append(
            {**about, "way": way + of, "counts": counts, "rows": rows, "seconds": seconds}
        )
    return records


def of_images(
    images: Mapping[int, Images],
    d: Direction,
    tools: Tools,
    truth: Mapping[str, Images] | None = None,
) -> Meter:
    """Images as if they were outputs: the untranslated inputs, or real ones of the target."""
    meter = Meter(d, tools, sum(map(len, images.values())))
    for part in images.values():
        for x, of in part.batches(CHUNK, tools.device):
            meter.add(x, of.labels())
            if truth is not None:
                against(meter, [x], of, truth, tools)
    return meter


def of_network(
    method: Method, d: Direction, way: str, truth: Mapping[str, Images] | None, tools: Tools
) -> Meter:
    """All outputs of the protocol, batch by batch."""
    copies = tools.protocol.outputs if way != "output" else 1
    meter = Meter(d, tools, copies * sum(map(len, d.inputs.values())))
    draw = Styles(method, d, way, tools)
    for source, images in d.inputs.items():
        for x, of in images.batches(CHUNK, tools.device):
            content = method.encode_content(x, source)
            outputs, partnered = [], () if truth is None else of.names()
            for _ in range(copies):
                y = method.decode(content, draw(len(x), partnered), d.target).clamp(-1, 1)
                meter.add(y, of.labels())
                meter.note("change", per_image(x, y))
                outputs.append(y)
            back = returned(method, x, outputs[0], source, d.target, tools.seed)
            if back is not None:
                meter.note("cycle error", per_image(x, back))
            if truth is not None:
                against(meter, outputs, of, truth, tools)
    return meter


class Styles:
    """Random styles, or those of random held-out references, different ones where there are as many; None for a method
    without. Seeded."""

    def __init__(self, method: Method, d: Direction, way: str, tools: Tools) -> None:
        self.method, self.d, self.way, self.tools = method, d, way, tools
        self.generator = torch.Generator().manual_seed(tools.seed)
        self.codes: Tensor | None = None
        if way == "reference":
            self.codes, self.names = tools.once(("codes", method, d.target), self.encode)

    def encode(self) -> tuple[Tensor, list[str]]:
        """The styles of held-out images, and their names."""
        codes, names = [], []
        for x, of in self.d.held.some(STYLED).batches(CHUNK, self.tools.device):
            codes.append(encoded(self.method, x, self.d.target))
            names += of.names()
        return torch.cat(codes), names

    def __call__(self, n: int, partnered: Sequence[str] = ()) -> Tensor | None:
        """`n` styles, each of another image than that of the name in `partnered`, which would be the answer."""
        if self.way == "output":
            return None
        if self.codes is not None:
            order = torch.randperm(len(self.codes), generator=self.generator)
            i = order[torch.arange(n) % len(order)]
            if partnered:
                own = [self.names[k] == name for k, name in zip(i, partnered, strict=True)]
                i = (i + torch.tensor(own)) % len(order)
            return self.codes[i.to(self.codes.device)]
        return self.method.sample_style(n, self.d.target, self.generator).to(self.tools.device)


def partners(d: Direction, paired: bool) -> dict[str, Images] | None:
    """The true partner of each input by its name, where images come in pairs."""
    if not paired:
        return None
    held = {name: d.held.at([i]) for i, name in enumerate(d.held.names())}
    found = [n for part in d.inputs.values() for n in part.names() if n in held]
    if not found:
        raise DataProblem(
            f"--paired: no held-out image {d.name} has one of equal name on the other side: leave --paired out."
        )
    return held


def against(
    meter: Meter, outputs: Sequence[Tensor], of: Images, truth: Mapping[str, Images], tools: Tools
) -> None:
    """The best of an input's outputs by its distance to the true partner."""
    names = of.names()
    known = [i for i, name in enumerate(names) if name in truth]
    if not known:
        return
    real = torch.cat([truth[names[i]].tensor(tools.device) for i in known])
    errors = torch.stack([per_image(y[known], real) for y in outputs])
    meter.note("paired error", errors.amin(0))
    if tools.lpips is not None:
        maps = perceived(tools.lpips, real)
        each = [tools.lpips.distance(perceived(tools.lpips, y[known]), maps) for y in outputs]
        meter.note(f"paired LPIPS ({tools.lpips.name})", torch.stack(each).amin(0))


def per_image(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of each image (B,), on the scale from 0 to 1."""
    return (x - y).abs().mean((1, 2, 3)) / 2


# Variety ------------------------------------------------------------------------------------------


def variety(method: Method, d: Direction, way: str, tools: Tools) -> Row:
    """How the outputs of one input differ, and whether those of several inputs in one style do."""
    inputs, n = tools.protocol.varied
    draw = Styles(method, d, way, tools)
    found: dict[str, list[float]] = defaultdict(list)
    logits = []
    share = None if inputs is None else max(1, inputs // len(d.inputs))
    for source, images in d.inputs.items():
        first = images.some(FEW).tensor(tools.device)
        style = draw(1)
        if len(first) > 1:
            style = None if style is None else style.expand(len(first), *style.shape[1:])
            alike = translated(method, first, source, d.target, style)
            found["content diversity"].append(pairwise(alike[None]))
        if way == "output":
            continue
        for x, _ in images.some(share).batches(1, tools.device):
            y = decoded(method, x, source, d.target, draw(n))
            a, b = pairs_of(n, tools.protocol.pairs)
            found["pixel diversity"] += per_image(y[a], y[b]).tolist()
            if tools.lpips is not None:
                maps = perceived(tools.lpips, y)
                distance = tools.lpips.distance([m[a] for m in maps], [m[b] for m in maps])
                found[f"LPIPS diversity ({tools.lpips.name})"] += distance.tolist()
            if d.target in tools.labels:
                logits.append(tools.labels[d.target][0](y))
    row = {name: sum(values) / len(values) for name, values in found.items()}
    if logits:
        score = conditional_inception_score(torch.stack(logits))
        row |= {"CIS": score.nats, "exp CIS": score.exponential}
    return row


def unlike(images: Images, tools: Tools) -> Row:
    """How random real images differ, each compared once."""
    x = images.some(2 * RANDOM_PAIRS).tensor(tools.device)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(tools.seed)).to(x.device)]
    a, b = (x[i : len(x) // 2 * 2 : 2] for i in (0, 1))
    if not len(b):
        return {}
    row = {"pixel diversity": float(per_image(a, b).mean())}
    if tools.lpips is not None:
        distance = tools.lpips.distance(perceived(tools.lpips, a), perceived(tools.lpips, b))
        row[f"LPIPS diversity ({tools.lpips.name})"] = float(distance.mean())
    return row


def decoded(method: Method, x: Tensor, source: int, target: int, styles: Tensor | None) -> Tensor:
    """One image (1, C, H, W) under each style, (n, C, H, W)."""
    assert styles is not None
    content = method.encode_content(x, source)
    parts = [
        method.decode(content.expand(len(s), *content.shape[1:]), s, target)
        for s in styles.split(CHUNK)
    ]
    return torch.cat(parts).clamp(-1, 1)


def pairs_of(n: int, kind: str) -> tuple[list[int], list[int]]:
    """Which of n outputs are compared: all pairs, or each output once."""
    if kind == "disjoint":
        return list(range(0, n - 1, 2)), list(range(1, n, 2))
    a, b = zip(*itertools.combinations(range(n), 2), strict=True)
    return list(a), list(b)


def perceived(lpips: LPIPS, x: Tensor) -> list[Tensor]:
    """LPIPS's maps of many images."""
    parts = [lpips.maps(part) for whole in x.split(CHUNK) for part in portions(whole)]
    return [torch.cat(maps) for maps in zip(*parts, strict=True)]


# Styles -------------------------------------------------------------------------------------------


@torch.inference_mode()
def styles(method: Method, sides: Sequence[Side], tools: Tools) -> dict[str, Row]:
    """What is known of each domain's styles: the gap of sampled to encoded ones beside its floor, smoothness, MCC."""
    found: dict[str, Row] = {}
    for target, side in enumerate(sides):
        source = next((s for s in range(len(sides)) if s != target and len(sides[s].held)), target)
        try:
            ways = method.styles(source, target)
        except Problem:
            continue
        if not ways or not len(side.held):
            continue
        row: Row = {}
        held = side.held.some(STYLED)
        x = held.tensor(tools.device)
        if (gap := style_gap(method, target, x, tools.seed)) is not None:
            row["style gap"], row["style gap (floor)"] = gap
        if "reference" in ways and (factors := held.factors()) is not None:
            codes = encoded(method, x, target).flatten(1).cpu().numpy()
            row["MCC"] = mean_correlation(factors, codes).mean
            row["MCC ranks"] = mean_correlation(factors, codes, ranks=True).mean
        if "latent" in ways and tools.lpips is not None:
            paths = {"PS": target}
            if method.layout == "domains":  # one decoder for the styles of all
                paths["PS between domains"] = source
            for name, begin in paths.items():
                row[f"{name} ({tools.lpips.name})"] = smoothness(
                    method, sides[source], source, begin, target, tools
                )
        if row:
            found[side.name] = round_row(row)
            said = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
            tools.say(f"styles of {escape(side.name)}: {said}")
    return found


def smoothness(
    method: Method, side: Side, source: int, begin: int, target: int, tools: Tools
) -> float:
    """PS, mean over inputs, each on a straight path of its own from a random style of `begin` to one of `target`."""
    assert tools.lpips is not None
    generator = torch.Generator().manual_seed(tools.seed)
    values = []
    for x, _ in side.held.some(PATHS).batches(1, tools.device):
        ends = torch.cat([method.sample_style(1, of, generator) for of in (begin, target)])
        t = torch.linspace(0, 1, POINTS).view(-1, *[1] * (ends.dim() - 1))
        path = torch.lerp(ends[:1].cpu(), ends[1:].cpu(), t).to(tools.device)
        maps = perceived(tools.lpips, decoded(method, x, source, target, path))
        steps = tools.lpips.distance([m[:-1] for m in maps], [m[1:] for m in maps])
        whole = tools.lpips.distance([m[:1] for m in maps], [m[-1:] for m in maps])
        values.append(float(path_smoothness(steps[None], whole)))
    return sum(values) / len(values)


def round_row(row: Row) -> Row:
    """Six significant digits: more than any of them holds."""
    return {name: float(f"{value:.6g}") for name, value in row.items()}
