"""A trained model at work: load it by naming its folder, then translate, sample and interpolate styles."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unpaired.checkpoint import RunFolder, load_model
from unpaired.config import Run, nearest, portable, resolve
from unpaired.data.batches import check_layout, covering, luminance, spread
from unpaired.data.datasets import Dataset
from unpaired.data.intake import TRAIN, escape, read_image, upright_rgb
from unpaired.errors import ConfigProblem, DataProblem, Problem
from unpaired.heap import freed_is_kept
from unpaired.method import Method
from unpaired.pictures import enlarged, from_array, sheet, to_images

FORMAT = "unpaired model 1"
# Pixels decoded at once on a CPU: of larger maps the system gives and takes back the memory each time
CHUNK_PIXELS = 1 << 16
KEPT_CHUNKS = 4  # as many of these where freed memory stays with the process
GPU_CHUNKS = 64  # and on a GPU
MOST_STYLES = 10_000  # in one call
SPREAD = 1000  # random styles that tell how far a component goes
SHEET_DOMAINS = 8  # target domains that get sample sheets

Picture = Image.Image | np.ndarray | str | PathLike[str]
Style = int | Picture | Tensor  # a seed, a reference image, or a style itself

MOST_DOMAINS = 4096  # of a model file
MOST_BESIDE = 2**30  # numbers of networks that are not in a model file, such as D


class NotFinite(DataProblem):
    """A model whose result is NaN or infinite."""


class TooLarge(ConfigProblem):
    """A size at which an image would have more pixels than are allowed."""


class Translator:
    """Translates images between the domains of a model.

        t = Translator.load("runs/x")
        t.translate("cat.jpg", to="dog", styles=8, seed=0)    # list of 8 PIL images

    Images are worked with their shorter side at the model's training size unless `size` says another; aspect is kept.
    The statistics that a style acts on change with size: far from the training size, styles fade or exaggerate.
    """

    def __init__(
        self, method: Method, run: Run, step: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        self.method, self.run, self.step = method.eval().to(device), run, step
        self.device = torch.device(device)
        self.bf16 = run.precision(self.device) == "bf16-mixed"
        self.domains = method.domains

    @classmethod
    def load(
        cls, path: str | PathLike[str], device: str | torch.device | None = None
    ) -> Translator:
        """From a run folder or a model.safetensors, which may come from anyone: no code of it is run. That of a method
        outside this package is imported by the name in the file, if it can be found from here.

        Raises `DataProblem` for a file that is not one of ours.
        """
        path = Path(path)
        file = path / "model.safetensors" if path.is_dir() else path
        if not file.exists():
            if status := RunFolder(path).read_status():
                reason = escape(str(status.get("reason") or "it has not saved yet"))
                raise ConfigProblem(f"The run in {escape(path)} holds no model so far: {reason}")
            raise ConfigProblem(
                f"{escape(path)} is not a run: there is no {escape(file)}; name a folder made by `unpaired train`."
            )
        tensors, about = load_model(file)
        if about.get("format") != FORMAT:
            raise DataProblem(
                f"{escape(file)} is no model of this tool: name a run, or import it by `unpaired weights import`."
            )
        try:
            config, domains = json.loads(about["config"]), tuple(json.loads(about["domains"]))
            step = int(about["step"])
            if not isinstance(config, dict) or not all(isinstance(d, str) for d in domains):
                raise ValueError
        except (KeyError, ValueError, TypeError, RecursionError):
            raise DataProblem(
                f"{escape(file)} says nothing usable of itself: train or download it again."
            ) from None
        run = resolve(config)
        if odd := misfits(run, domains, tensors):
            raise DataProblem(
                f"{escape(file)} does not hold the networks that its config describes "
                f"({', '.join(odd[:3])}): train or download it again."
            )
        method = run.build(domains, initialise=False)
        method.load_state_dict(tensors, strict=False)
        method.ema = torch.nn.ModuleDict()  # the file holds the averages already
        held = {name.split(".")[0] for name in tensors}
        for net, child in list(method.named_children()):
            if net not in held and any(True for _ in child.parameters()):
                delattr(method, net)  # such as discriminators: they were not initialised
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(method, run, step, device)

    # The verbs -----------------------------------------------------------------------------------

    def translate(
        self,
        image: Picture,
        to: str,
        styles: int = 8,
        seed: int = 0,
        style_from: Style | None = None,
        source: str | None = None,
        size: int | None = None,
    ) -> list[Image.Image]:
        """`image` in domain `to`: once for each of `styles` random styles, or once in the style of `style_from`.

        The first n styles of a seed are the same whatever `styles` says. A method without styles gives one image, as
        does one that knows each domain's mean style and has no random ones.
        """
        if styles < 1:
            raise ConfigProblem(f"styles={styles}: at least one is needed.")
        source_index, target = self.direction(to, source)
        codes = self.codes(target, source_index, styles, seed, style_from)
        return self.render(self.prepare(image, size), source_index, target, codes)

    def interpolate(
        self,
        image: Picture,
        a: Style,
        b: Style,
        to: str,
        steps: int = 9,
        source: str | None = None,
        size: int | None = None,
    ) -> list[Image.Image]:
        """`image` in domain `to` along the straight line from style `a` to style `b`, ends included.

        A style is the seed of a random one, a reference image, or what `encode_style` gave.
        """
        source_index, target = self.direction(to, source)
        codes = self.between(a, b, steps, target, source_index)
        return self.render(self.prepare(image, size), source_index, target, codes)

    def sweep(
        self,
        image: Picture,
        to: str,
        component: int,
        low: float = -2.0,
        high: float = 2.0,
        steps: int = 9,
        seed: int = 0,
        style_from: Picture | None = None,
        source: str | None = None,
        size: int | None = None,
    ) -> list[Image.Image]:
        """`image` in domain `to` while one component of its style goes from `low` to `high` and the others stay.

        Components are counted from 0. Values are standard deviations from the component's mean over random styles
        of `to`; the style is that of `seed`, or of the image `style_from`.
        """
        source_index, target = self.direction(to, source)
        self.components(target, source_index)
        style = self.style(seed if style_from is None else style_from, target, source_index)
        codes = self.swept(style, component, linspace(low, high, steps), target)
        return self.render(self.prepare(image, size), source_index, target, codes)

    @torch.inference_mode()
    def between(self, a: Style, b: Style, steps: int, target: int, source: int) -> Tensor:
        """The styles (steps, ...) on the straight line from `a` to `b`."""
        if steps < 2:
            raise ConfigProblem(f"steps={steps}: a line needs 2 at the least.")
        check_number(steps)
        ends = [self.style(s, target, source) for s in (a, b)]
        points = torch.linspace(0, 1, steps).to(self.device)
        return torch.cat([torch.lerp(ends[0], ends[1], t) for t in points])

    @torch.inference_mode()
    def components(self, target: int, source: int) -> int:
        """How many components a style has. Refuses a method without random styles."""
        if "latent" not in self.method.styles(source, target):
            raise ConfigProblem(
                f"{self.run.method.name} has no random styles, by which a component is measured: sweep a model of "
                "dsm, munit or another method that has."
            )
        return random_styles(self.method, 1, target, 0).shape[1]

    @torch.inference_mode()
    def swept(self, style: Tensor, component: int, values: Sequence[float], target: int) -> Tensor:
        """A style (1, n) with its component at each of `values`: (len(values), n)."""
        n = style.shape[1]
        if len(values) < 2 or not all(map(math.isfinite, values)) or values[0] == values[-1]:
            raise ConfigProblem(
                "--sweep LOW HIGH: give two different, finite numbers, and at least 2 --steps."
            )
        if not 0 <= component < n:
            raise ConfigProblem(
                f"--component {component}: a style of this model has {n} components, 0 to {n - 1}."
            )
        drawn = self.method.sample_style(SPREAD, target, torch.Generator().manual_seed(0))
        std, mean = torch.std_mean(drawn[:, component])
        codes = style.repeat(len(values), 1)
        codes[:, component] = (mean + std * torch.tensor(values).to(drawn)).to(codes)
        return codes

    @torch.inference_mode()
    def encode_style(self, reference: Picture, domain: str) -> Tensor:
        """The style (1, ...) of a reference image of `domain`, taken at the training size."""
        return self.method.encode_style(self.reference(reference), self.index(domain))

    # Pieces --------------------------------------------------------------------------------------

    def index(self, domain: str) -> int:
        if domain not in self.domains:
            raise ConfigProblem(
                f"There is no domain '{domain}' in this model: {nearest(domain, self.domains)}"
            )
        return self.domains.index(domain)

    def direction(self, to: str, source: str | None) -> tuple[int, int]:
        """Indices of source and target; with two domains the source is the other one unless it is said."""
        target = self.index(to)
        if source is not None:
            return self.index(source), target
        return (1 - target if len(self.domains) == 2 else 0), target

    def targets(self, source: str | None = None) -> list[str]:
        """The domains that images of `source` can be translated to; at least one."""
        if source is not None:
            self.index(source)
        found = []
        for to in self.domains:
            try:
                self.method.styles(*self.direction(to, source))
            except ConfigProblem:
                continue  # a way that the method does not have
            if to != source:
                found.append(to)
        if not found:
            raise ConfigProblem(
                f"{self.run.method.name} translates images of {source} to no domain: name another --source."
            )
        return found

    @torch.inference_mode()
    def codes(
        self, target: int, source: int, styles: int, seed: int, style_from: Style | None
    ) -> Tensor | None:
        """The styles (n, ...) that a request names; None for a method that has none."""
        ways = self.method.styles(source, target)
        if style_from is not None:
            return self.style(style_from, target, source)
        if "latent" in ways:
            return random_styles(self.method, styles, target, seed).to(self.device)
        if "mean" in ways:
            return random_styles(self.method, 1, target, seed).to(self.device)
        if "reference" in ways:
            raise ConfigProblem(
                f"{self.run.method.name} takes its style from an image: say --style-from REF."
            )
        return None

    @torch.inference_mode()
    def style(self, style: Style, target: int, source: int) -> Tensor:
        """The style (1, ...) of a seed or of a reference image; one that is given, as it is."""
        ways = self.method.styles(source, target)
        if isinstance(style, Tensor):
            n = self.components(target, source) if "latent" in ways else style.shape[-1]
            if style.shape != (1, n):
                raise ConfigProblem(
                    f"A style of this model is a tensor (1, {n}), not {tuple(style.shape)}: give one at a time."
                )
            return style.to(self.device, torch.float32)
        if not ways & {"latent", "reference"}:
            raise ConfigProblem(
                f"{self.run.method.name} makes one result of an image: leave --style-from and --interpolate out."
            )
        if isinstance(style, Integral):
            if "latent" not in ways:
                raise ConfigProblem(
                    f"{self.run.method.name} has no random styles: give reference images."
                )
            return random_styles(self.method, 1, target, int(style)).to(self.device)
        if "reference" not in ways:
            raise ConfigProblem(
                f"{self.run.method.name} takes no reference image: leave --style-from out."
            )
        assert not isinstance(style, int)  # which is Integral
        return self.encode_style(style, self.domains[target])

    def pixels(self, image: Picture) -> np.ndarray:
        """(H, W, C) uint8, upright, of the model's channels."""
        if isinstance(image, Image.Image):
            array = upright_rgb(image)
        elif isinstance(image, str | PathLike):
            array = read_image(image)
        elif not isinstance(image, np.ndarray):
            raise ConfigProblem(
                f"An image is a path, a PIL image or an array (H, W, 3) uint8, not a {type(image).__name__}."
            )
        elif image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            array = image
        else:
            raise ConfigProblem(
                f"An array must be (H, W, 3) uint8, RGB, not {image.shape} {image.dtype}: make a PIL image of it."
            )
        return luminance(array) if self.run.data.channels == 1 else array

    def prepare(self, image: Picture, size: int | None = None) -> Tensor:
        """(1, C, H, W) in [-1, 1], the shorter side at `size` pixels."""
        least = min(self.run.data.hw) if size is None else size
        smallest = min(4 * self.method.stride, *self.run.data.hw)
        if least < smallest:
            raise ConfigProblem(
                f"--size {least} is too small for this model: {smallest} is the least."
            )
        array = self.pixels(image)
        h, w = array.shape[:2]
        ratio = least / min(h, w)
        h, w = round(h * ratio), round(w * ratio)
        if h * w > TRAIN.max_pixels:
            raise TooLarge(
                f"--size {least} would make this image {w} x {h} pixels: at most "
                f"{TRAIN.max_pixels / 1e6:.3g} megapixels, so choose a smaller one."
            )
        return self.tensor(covering(array, (h, w)))

    def shown(self, image: Picture, size: int | None = None) -> Image.Image:
        """`image` as the model sees it, for sheets."""
        return to_images(self.prepare(image, size))[0]

    def reference(self, image: Picture) -> Tensor:
        """The middle of a reference at the training size, (1, C, H, W)."""
        h, w = self.run.data.hw
        array = covering(self.pixels(image), (h, w))
        y, x = (array.shape[0] - h) // 2, (array.shape[1] - w) // 2
        return self.tensor(array[y : y + h, x : x + w])

    def tensor(self, array: np.ndarray) -> Tensor:
        """(H, W, C) uint8 -> (1, C, H, W) in [-1, 1], on the device."""
        return from_array(array).to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def contents(self, x: Tensor, source: int) -> Tensor:
        """What is kept of the images (B, C, H, W) under any style; their sides are padded to the stride."""
        h, w = x.shape[2:]
        down, right = -h % self.method.stride, -w % self.method.stride
        if down or right:
            mode = "reflect" if down < h and right < w else "replicate"
            x = F.pad(x, (0, right, 0, down), mode=mode)
        with self.autocast():
            parts = [self.method.encode_content(part, source) for part in x.split(room(x))]
        return torch.cat(parts)

    @torch.inference_mode()
    def pictures(
        self, contents: Tensor, like: Tensor, target: int, codes: Tensor | None
    ) -> list[Image.Image]:
        """Each content under every style, content by content, of the size of `like`. Raises `NotFinite`."""
        n, (h, w) = 1 if codes is None else len(codes), like.shape[2:]
        found: list[Image.Image] = []
        with self.autocast():
            for pair in torch.arange(n * len(contents), device=self.device).split(room(like)):
                style = None if codes is None else codes[pair % n]
                y = self.method.decode(contents[pair // n], style, target)
                if not y.isfinite().all():
                    raise NotFinite(
                        "The model gives numbers that are not finite for this image and style: try another, or train "
                        "it anew."
                    )
                found += to_images(y[:, :, :h, :w])
        return found

    def render(
        self, x: Tensor, source: int, target: int, codes: Tensor | None
    ) -> list[Image.Image]:
        """Images (B, C, H, W), each under every style, image by image."""
        return self.pictures(self.contents(x, source), x, target, codes)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def misfits(run: Run, domains: tuple[str, ...], tensors: Mapping[str, Tensor]) -> list[str]:
    """What is lacking, left over or of another shape in a file, found before memory is taken for what it claims."""
    n = len(domains)
    try:
        check_layout(run.method_class().layout, domains, run.method.name)
        fits = n <= MOST_DOMAINS
    except ConfigProblem:
        fits = False
    if not fits:
        return [f"{n} domain{'s' * (n != 1)}"]
    if len(set(domains)) < n:
        return ["domains of equal names"]
    with torch.device("meta"):
        method = run.build(domains, initialise=False)
    known = method.state_dict()  # an imported model may hold its discriminators besides
    averaged = set(method.averaged.split())
    own = {k for k in known if k.split(".")[0] in averaged}
    if odd := sorted((own - tensors.keys()) | (tensors.keys() - known.keys())):
        return odd
    odd = sorted(k for k in tensors if known[k].shape != tensors[k].shape)
    beside = sum(p.numel() for k, p in method.named_parameters() if k not in tensors)
    return odd or ([f"{beside} further numbers"] if beside > MOST_BESIDE else [])


def room(x: Tensor) -> int:
    """How many images of the size and on the device of `x` are worth working together."""
    chunks = GPU_CHUNKS if x.device.type == "cuda" else KEPT_CHUNKS if freed_is_kept() else 1
    return max(1, chunks * CHUNK_PIXELS // (x.shape[2] * x.shape[3]))


def linspace(low: float, high: float, steps: int) -> list[float]:
    """`steps` evenly spaced numbers, ends included; the middle of symmetric ones is 0."""
    check_number(steps)
    parts = [i / max(steps - 1, 1) for i in range(steps)]
    return [low * (1 - t) + high * t for t in parts]


def check_number(styles: int) -> None:
    if styles > MOST_STYLES:
        raise ConfigProblem(f"{styles:,} styles are too many: ask for {MOST_STYLES:,} at most.")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**62:  # room for what is added to it
        raise ConfigProblem(f"A seed is a whole number from 0 to 2^62 - 1, not {seed}.")


def random_styles(method: Method, n: int, target: int, seed: int) -> Tensor:
    """`n` styles of a seed; the first ones are the same for every `n`."""
    check_seed(seed)
    check_number(n)
    generator = torch.Generator().manual_seed(int(seed))
    return torch.cat([method.sample_style(1, target, generator) for _ in range(n)])


def metadata(run: Run, domains: Sequence[str], step: int) -> dict[str, str]:
    """What a model file says of itself."""
    import unpaired

    config = run.model_dump(mode="json") | {"method": portable(run.method)}
    root = config["data"]["root"]  # the folders' names, not where they lie on this machine
    config["data"]["root"] = (
        Path(root).name if isinstance(root, str) else [Path(r).name for r in root or ()]
    )
    if run.data.labels:
        config["data"]["labels"] = Path(run.data.labels).name
    return {
        "format": FORMAT,
        "unpaired": unpaired.__version__,
        "config": json.dumps(config),
        "domains": json.dumps(list(domains)),
        "step": str(step),
        "card": json.dumps(dict(run.method_class().card)),
    }


@torch.inference_mode()
def sample_sheets(
    method: Method, dataset: Dataset, run: Run, rows: int = 5, styles: int = 8
) -> dict[str, Image.Image]:
    """A sheet for each way to each target domain: the same inputs, the same styles, at every step.

    With styles by reference it is a matrix: rows are sources, columns references. Of more than `SHEET_DOMAINS`
    domains, as many are drawn, evenly spread.
    """
    t = Translator(method, run, device=next(method.parameters()).device)
    splits = zip(dataset.splits["val"], dataset.splits["train"], strict=True)
    pictures = [val if len(val) else train for val, train in splits]
    sheets: dict[str, Image.Image] = {}
    files = file_names(dataset.domains)
    K = len(dataset.domains)
    for target in sorted({i * K // SHEET_DOMAINS for i in range(SHEET_DOMAINS)}):
        to = dataset.domains[target]
        others = [d for d in range(len(dataset.domains)) if d != target] or [target]
        inputs = [
            (s, spread(rows, len(pictures[s]))[i])
            for i, s in enumerate(itertools.islice(itertools.cycle(others), rows))
        ]
        references = [pictures[target].read(i) for i in spread(styles, len(pictures[target]))]
        try:
            ways = method.styles(inputs[0][0], target)
        except Problem:
            continue  # a one-way method
        source = dataset.domains[others[0]]
        title = f"to {to}" if len(others) > 1 else f"{source} to {to}"
        file = f"to-{files[to]}" if len(others) > 1 else f"{files[source]}-to-{files[to]}"
        for way in sorted(ways) or ["output"]:
            lines: list[list[Image.Image | None]] = []
            codes: Tensor | None = None
            columns: tuple[str, ...] = ()
            if way == "latent":
                codes = random_styles(method, styles, target, 0).to(t.device)
            elif way == "reference":
                codes = torch.cat([t.style(r, target, inputs[0][0]) for r in references])
                lines.append([None, *(enlarged(t.shown(r)) for r in references)])
            elif way == "mean":
                means = mean_styles(method)
                if not means:
                    continue
                codes, columns = torch.cat(list(means.values())).to(t.device), ("", *means)
            for place, index in inputs:
                array = pictures[place].read(index)
                x = t.prepare(array)
                outputs = t.render(x, place, target, codes)
                lines.append([enlarged(t.shown(array)), *(enlarged(o) for o in outputs)])
            sheets[f"{file}-{way}"] = sheet(lines, columns, f"{title}   {WAYS[way]}")
    return sheets


WAYS = {
    "latent": "random styles",
    "reference": "styles of the top row",
    "mean": "mean styles of the domains",
    "output": "",
}


def mean_styles(method: Method) -> dict[str, Tensor]:
    """The mean style (1, ...) of each domain that has one."""
    means = {}
    for target, domain in enumerate(method.domains):
        try:
            means[domain] = random_styles(method, 1, target, 0)
        except ConfigProblem:
            continue
    return means


def safe(name: str) -> str:
    """A file name from a domain's name: letters with their marks, digits, - and _; others become _."""
    fits = (c.isalnum() or c in "-_" or unicodedata.category(c)[0] == "M" for c in name)
    return "".join(c if fit else "_" for c, fit in zip(name, fits, strict=True))


def short(name: str, most: int) -> str:
    """`name`, or its beginning and a digest where it has more than `most` bytes."""
    data = os.fsencode(name)
    if len(data) <= most:
        return name
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[: most - 13].decode(errors='ignore')}-{digest}"


def file_names(domains: Sequence[str]) -> dict[str, str]:
    """A file name for each of a model's domains, of some 60 bytes at most; one that an earlier domain has, whatever the
    case, gets its number."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for number, domain in enumerate(domains, 1):
        name = short(safe(domain), 60)
        while name.casefold() in taken:
            name += f"_{number}"
        taken.add(name.casefold())
        names[domain] = name
    return names
