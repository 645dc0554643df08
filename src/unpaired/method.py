"""A method is a game between networks: which networks move, in what order, on which loss.

A method knows no trainer and no data; the trainer knows no method. `docs/design.md` says why it has this shape.
"""

from __future__ import annotations

import copy
import os
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator
from torch import Tensor, nn

from unpaired.errors import ConfigProblem

Batch = Mapping[str, Tensor]
Layout = Literal["two_domains", "domains", "unlabelled", "paired"]


class Update(NamedTuple):
    """One move of the game: the networks named in `nets` ("G F E") descend on `loss`.

    `log` holds the parts of the loss, detached scalars under the paper's names; the adversarial
    loss of a discriminator begins with D.
    """

    nets: str
    loss: Tensor
    log: Mapping[str, Tensor] = MappingProxyType({})


class Shape(NamedTuple):
    """Height, width and channels of the images that a method is built for."""

    height: int
    width: int
    channels: int = 3


@dataclass(frozen=True)
class Step:
    """Where a run stands, and the one source of a method's randomness.

    A draw is a function of (seed, index, rank, microbatch, name) alone: resuming is exact, no draw depends on another,
    and a test hands in its own by overriding `draw`. No step waits until a GPU has it.
    """

    index: int
    total: int
    seed: int = 0
    rank: int = 0
    microbatch: int = 0

    @property
    def fraction(self) -> float:
        """How much of the run is done, in [0, 1): what schedules depend on."""
        return self.index / self.total

    def draw(self, name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        """`kind` is "normal", "uniform" or "permutation"; on the CPU, so that every device sees the same numbers."""
        key = f"{self.seed}/{self.index}/{self.rank}/{self.microbatch}/{name}"
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        if kind == "permutation":
            return torch.randperm(shape[0], generator=generator)
        return {"normal": torch.randn, "uniform": torch.rand}[kind](shape, generator=generator)

    def normal(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Standard normal numbers, of the device and dtype of `like`."""
        return self.draw(name, "normal", shape).to(like, non_blocking=True)

    def uniform(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Numbers uniform in [0, 1), of the device and dtype of `like`."""
        return self.draw(name, "uniform", shape).to(like, non_blocking=True)

    def permutation(self, name: str, n: int, like: Tensor) -> Tensor:
        """A permutation of 0 .. n-1, on the device of `like`."""
        return self.draw(name, "permutation", (n,)).to(like.device, non_blocking=True)


def whole_path(path: str | os.PathLike[str]) -> str:
    """What is found from anywhere."""
    return os.path.abspath(os.path.expanduser(path))


File = Annotated[Path, AfterValidator(lambda path: Path(whole_path(path)))]


class Section(BaseModel):
    """A section of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def counted(cls, said: Any, info: ValidationInfo) -> Any:
        """1e3 is a count too: YAML reads it as text, of which the types mend fractions alone. `yes` is none."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(said, bool) and {kind, *get_args(kind)} & {int, float}:
            raise ValueError("a number is wanted")
        if kind in (int, int | None) and isinstance(said, str) and "e" in said.lower():
            with suppress(ValueError):
                return float(said)
        return said


class MethodConfig(Section):
    """Settings of a method; the defaults are the paper's."""

    name: str = ""  # "munit", or "my_lab.cut" for a file outside the repository


class Method(nn.Module, ABC):
    """Networks as attributes under the paper's letters, the training game, and the verbs of inference.

    Images are (B, C, H, W) in [-1, 1]. Domains are counted from 0 in the order of `domains`.
    """

    Config: ClassVar[type[MethodConfig]]
    config: Any  # an instance of `Config`
    layout: ClassVar[Layout]  # the data that it trains on
    averaged: str  # the networks that translate: averaged, and what model.safetensors holds
    accumulates: ClassVar[bool] = True  # False where the loss couples the batch
    card: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {}
    )  # title, authors, venue, year, url, outputs: a literal, read without running the file
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {}
    )  # "paper", "small": parts of a run's config

    def __init_subclass__(cls) -> None:
        """`Config` is the class of that name in the method's file."""
        super().__init_subclass__()
        if config := getattr(sys.modules[cls.__module__], "Config", None):
            cls.Config = config

    def __init__(self, config: Any, domains: tuple[str, ...], shape: Shape) -> None:
        super().__init__()
        self.config, self.domains, self.shape = config, domains, shape

    @classmethod
    def supervision(cls, config: Any) -> Literal["none", "some", "all"]:
        """How many images of the layout "unlabelled" come with a label."""
        return "none"

    # The training game -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first step of a process: loads what the game alone needs, refuses what cannot be trained."""

    @abstractmethod
    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        """The algorithm box of the paper: yields each move with its loss, after which its networks have moved."""

    # The verbs of inference ------------------------------------------------------------------------------------------

    @abstractmethod
    def styles(self, source: int, target: int) -> frozenset[str]:
        """The ways to say a style, of {"latent", "reference", "mean"}; empty: one output. Refuses what it cannot do.

        latent: `sample_style` draws any number; mean: it gives the domain's mean style; reference: `encode_style`.
        """

    @abstractmethod
    def encode_content(self, x: Tensor, source: int) -> Tensor:
        """What is kept of the images `x` of domain `source`: once per image ..."""

    @abstractmethod
    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        """... many times per content: images of domain `target`, (B, C, H, W) in about [-1, 1]."""

    def latent_dim(self, target: int) -> int:
        """How many normal numbers a random style of domain `target` is made of; 0 where there are no such."""
        return 0

    def map_latent(self, z: Tensor, target: int) -> Tensor:
        """The styles of domain `target` that the noise `z` (n, latent_dim) becomes; itself unless a network maps it."""
        return z

    def sample_style(self, n: int, target: int, generator: torch.Generator) -> Tensor:
        """`n` random styles of domain `target` (latent-guided), of noise drawn on the CPU."""
        if not (dim := self.latent_dim(target)):
            raise ConfigProblem(f"{self.name} has no random styles: give a reference image.")
        z = torch.randn(n, dim, generator=generator)
        return self.map_latent(z.to(next(self.parameters())), target)

    def encode_style(self, reference: Tensor, target: int) -> Tensor:
        """The styles of the images `reference` of domain `target` (reference-guided)."""
        raise ConfigProblem(
            f"{self.name} takes no reference image: leave the style out or sample it."
        )

    def translate(self, x: Tensor, source: int, target: int, style: Tensor | None) -> Tensor:
        """Images `x` of domain `source` in domain `target`, under `style` (B, ...)."""
        return self.decode(self.encode_content(x, source), style, target)

    @property
    def stride(self) -> int:
        """Sides of an image must be multiples of this; translating pads to it and crops back."""
        return 1

    @property
    def name(self) -> str:
        return type(self).__module__.rsplit(".", 1)[-1]

    # Moving averages -------------------------------------------------------------------------------------------------

    def start_averages(self) -> None:
        """Copies of the networks in `averaged`, made after their initialisation, named `ema.<net>`."""
        self.ema = nn.ModuleDict(
            {net: copy.deepcopy(getattr(self, net)) for net in self.averaged.split()}
        )
        self.ema.requires_grad_(False)

    @torch.no_grad()
    def update_averages(self, decay: float) -> None:
        """ema <- decay * ema + (1 - decay) * net for parameters; buffers (BatchNorm's statistics) are copied."""
        for net, average in self.ema.items():
            live = self.get_submodule(net)
            torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - decay)
            for mine, theirs in zip(average.buffers(), live.buffers(), strict=True):
                mine.copy_(theirs)

    def translator(self) -> Method:
        """This method with the averages in the place of the networks (shared, not copied): what translates."""
        view = copy.copy(self)
        view._modules = {**self._modules, **self.ema}
        return view.eval()


def frozen(net: nn.Module) -> Any:
    """`net` as a fixed function: gradients reach its input, not its weights. sg(.) of the papers."""
    weights = {name: p.detach() for name, p in net.named_parameters()}
    return lambda *args: torch.func.functional_call(net, weights, args)


@contextmanager
def fp32(x: Tensor) -> Iterator[None]:
    """Leaves autocast, for what bf16 would spoil: gradient penalties, splines."""
    with torch.autocast(x.device.type, enabled=False):
        yield
