"""Features of images by networks that are not trained on them here, gathered in memory that does not grow with their
number, and a cache of what was gathered from real images."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.checkpoint import load_model, save_model, write_atomic
from unpaired.data.cache import cache_folder
from unpaired.errors import ConfigProblem, DataProblem, NotWritable, Problem
from unpaired.metrics.distances import Moments, moments, moments_of
from unpaired.networks.blocks import fixed
from unpaired.networks.inception import load_inception
from unpaired.networks.lpips import LPIPS, load_lpips
from unpaired.networks.squeezenet import SqueezeFeatures
from unpaired.official import read_weights

KEPT = 5000  # vectors that are held of a set; mean and covariance count all
INCEPTION = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
RESIZE = "bicubic, antialiased"
FEW = 16  # images at once on a CPU: the maps of 64 cost a third more time, for pages of new memory


class Features(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> features (B, d). `name` stands in the name of every distance on them."""

    def __init__(self, name: str, net: nn.Module, side: int, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.name, self.net, self.side = name, net.eval(), side
        self.about = {"side": side, "resize": RESIZE, **about}

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(resized(p, self.side)).flatten(1) for p in portions(x)])

    def title(self, metric: str) -> str:
        """A metric on these features: "KID (squeezenet)"; the Frechet distance on Inception's is FID."""
        if metric == "Frechet" and self.name == "inception":
            return "FID"
        return f"{metric} ({self.name})"


def portions(x: Tensor) -> tuple[Tensor, ...]:
    """Images (B, ...) in as large parts as the device takes well."""
    return x.split(FEW if x.device.type == "cpu" else max(len(x), 1))


def resized(x: Tensor, side: int) -> Tensor:
    """Images at (side, side), antialiased bicubic, clamped to [-1, 1]."""
    if x.shape[2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


# Weights ------------------------------------------------------------------------------------------


def load_features(said: Path, say: Callable[[str], None]) -> Features:
    """From a file of SqueezeNet 1.1 or Inception-v3, which is told by its names, or "inception", which is fetched.

    Raises `ConfigProblem` or `DataProblem` for a file that is neither, and where nothing can be fetched.
    """
    path = fetched_inception(say) if str(said) == "inception" else said
    tensors = read_weights(path, "--features")
    about = {"file": path.name, "sha256": sha256(path)}
    if "Mixed_5b.branch1x1.conv.weight" in tensors:
        net: nn.Module = load_inception(tensors, str(path))
        return Features("inception", net, 299, about)
    squeeze = SqueezeFeatures()
    own = squeeze.state_dict()
    if any(n not in tensors or tensors[n].shape != p.shape for n, p in own.items()):
        raise DataProblem(
            f"--features: {path} holds neither SqueezeNet 1.1 (features.12.expand3x3.weight ...) nor Inception-v3 "
            "(Mixed_7c.branch1x1.conv.weight ...): name a file of one of them."
        )
    squeeze.load_state_dict({n: tensors[n] for n in own})
    about["length"] = "sqrt(512)"
    return Features("squeezenet", fixed(squeeze), SqueezeFeatures.side, about)


def load_distance(paths: Sequence[Path]) -> tuple[LPIPS, dict[str, Any]]:
    """LPIPS from its files, and what to say of it."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= read_weights(path, "--lpips")
    net = load_lpips(tensors)
    return net, {
        "files": {p.name: sha256(p) for p in paths},
        "least side": net.least,
        "resize": "bilinear, where smaller",
    }


def fetched_inception(say: Callable[[str], None]) -> Path:
    """The file of weights that FID is defined on, from the cache or the network."""
    folder = cache_folder()
    path = folder / Path(INCEPTION).name
    if not path.is_file():
        say(f"Fetching Inception-v3 (95 MB) into {folder} ...")
        try:
            with urllib.request.urlopen(INCEPTION, timeout=30) as answer:
                data = answer.read()
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigProblem(
                f"--features inception: its weights cannot be fetched ({reason}): bring {INCEPTION} here by other "
                "means and name the file, or leave FID out."
            ) from None
        if not hashlib.sha256(data).hexdigest().startswith("6726825d"):
            raise DataProblem(
                f"--features inception: what came from {INCEPTION} is not that file (its sha256 differs): try again."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotWritable(
                f"{folder} cannot be written ({error.strerror}): set UNPAIRED_CACHE to a folder that can."
            ) from None
        write_atomic(path, data)
    return path


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Sets ---------------------------------------------------------------------------------------------


class Vectors(NamedTuple):
    """A set of features: number, mean (d,), covariance (d, d), and at most `KEPT` of them, (n, d), all in float64."""

    n: int
    mean: Tensor
    covariance: Tensor
    kept: Tensor

    def moments(self) -> Moments:
        if self.n == len(self.kept):
            return moments(self.kept)
        return moments_of(self.n, self.mean, self.covariance)


def evenly(start: int, count: int, total: int, most: int) -> Tensor:
    """Which of the places from `start` on, (count,) bool, are among `most` of `total` that are evenly spread."""
    return torch.arange(start, start + count) * most % max(total, most) < most


class Gatherer:
    """Takes features of `total` images batch by batch; what it holds does not depend on how many."""

    def __init__(self, total: int) -> None:
        self.n, self.expected = 0, total
        self.kept: list[Tensor] = []
        self.total = self.products = torch.zeros(())

    def add(self, features: Tensor) -> None:
        f = features.double().cpu()
        if self.n == 0:
            self.shift = f.mean(0)  # sums of small numbers stay exact
        self.kept.append(f[evenly(self.n, len(f), self.expected, KEPT)])
        centred = f - self.shift
        self.total = self.total + centred.sum(0)
        self.products = self.products + centred.T @ centred
        self.n += len(f)

    def vectors(self) -> Vectors:
        mean = self.total / self.n
        covariance = (self.products - self.n * torch.outer(mean, mean)) / max(self.n - 1, 1)
        return Vectors(self.n, mean + self.shift, covariance, torch.cat(self.kept))


# Cache --------------------------------------------------------------------------------------------


def cached(
    key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]], say: Callable[[str], None]
) -> dict[str, Tensor]:
    """The tensors that `make` returns for `key`, which says all that decides them; made once on this machine."""
    text = json.dumps(key, sort_keys=True)
    path = cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            return load_model(path)[0]
        except DataProblem as problem:
            say(f"Made anew: {problem}.")
    tensors = {name: t.contiguous() for name, t in make().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, tensors, {"key": text})
    except (Problem, OSError) as error:
        say(f"Not kept for the next time: {error}.")
    return tensors


def cached_vectors(
    key: Mapping[str, Any], make: Callable[[], Vectors], say: Callable[[str], None]
) -> Vectors:
    """`cached` for a set of features."""

    def tensors() -> dict[str, Tensor]:
        v = make()
        return {"n": torch.tensor(v.n), "mean": v.mean, "covariance": v.covariance, "kept": v.kept}

    held = cached(key, tensors, say)
    return Vectors(int(held["n"]), held["mean"], held["covariance"], held["kept"])
