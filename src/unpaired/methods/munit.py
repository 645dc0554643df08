"""MUNIT: Multimodal Unsupervised Image-to-Image Translation.

Xun Huang, Ming-Yu Liu, Serge Belongie, Jan Kautz. ECCV 2018. https://arxiv.org/abs/1804.04732

Images of two domains share a content space and have each a style space. With c_i = E_i^c(x_i), s_i = E_i^s(x_i) and
random styles s_i ~ N(0, I), x_{1->2} = G_2(c_1, s_2), the objective is (eq. 5, both directions)

    min over E, G, max over D of   L_GAN + lambda_x L_recon^x + lambda_c L_recon^c + lambda_s L_recon^s
                                   [+ lambda_cyc L_cc + lambda_vgg L_perceptual]

    L_recon^x = E |G_1(c_1, s_1) - x_1|                    image reconstruction            (1)
    L_recon^c = E |E_2^c(x_{1->2}) - c_1|                  content reconstruction          (2)
    L_recon^s = E |E_2^s(x_{1->2}) - s_2|                  style reconstruction            (3)
    L_GAN     = least squares, multi-scale D                                              (4)
    L_cc      = E |G_1(E_2^c(x_{1->2}), s_1) - x_1|        style-augmented cycle, Sec. 4
    L_perc    = |VGG(x_{1->2}) - VGG(x_1)|^2, instance-normalised: against its own source

Differences from the official code: a moving average of the generators does the translating (theirs does not average;
`train.ema=0` for theirs); the learning rate is halved at fractions of the run (theirs: every 100,000 steps of
1,000,000, which is what `configs/munit_*.yaml` resolve to); discriminators narrower than 64 channels start from
Kaiming's initialisation. Nothing else: losses, gradients and updates agree with it to rounding
(`tests/test_parity.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from unpaired import losses
from unpaired.errors import ConfigProblem
from unpaired.losses import l1
from unpaired.method import Batch, File, Method, MethodConfig, Shape, Step, Update
from unpaired.networks.blocks import (
    AdaINResidual,
    Conv,
    Residual,
    UpConv,
    fixed,
    kaiming,
)
from unpaired.networks.norms import InstanceNorm, LayerNorm
from unpaired.networks.patch import MultiScale

SMALLEST = 16  # px


class Config(MethodConfig):
    """The paper's settings (official configs, all alike)."""

    lambda_x: float = Field(10.0, ge=0)  # weight of the reconstruction of images
    lambda_c: float = Field(1.0, ge=0)  # of the reconstruction of content
    lambda_s: float = Field(1.0, ge=0)  # of the reconstruction of styles
    # Of the cycle: 10 where pixels should stay aligned (summer to winter)
    lambda_cyc: float = Field(0.0, ge=0)
    lambda_vgg: float = Field(0.0, ge=0)  # 1 for 512 px street scenes; needs `vgg`
    gan: Literal["lsgan", "nsgan"] = "lsgan"  # least squares, or the non-saturating loss
    # Channels of G's first layer, twice as many after each halving
    dim: int = Field(64, ge=1, le=4096)
    style_dim: int = Field(8, ge=1, le=4096)  # numbers in a style
    # Width of the network that turns a style into AdaIN's parameters
    mlp_dim: int = Field(256, ge=1, le=4096)
    downsamplings: int = Field(2, ge=0, le=8)  # how often G halves an image
    residuals: int = Field(4, ge=1, le=64)  # residual blocks of G, on each side
    d_dim: int = Field(64, ge=1, le=4096)  # channels of D's first layer
    d_layers: int = Field(4, ge=1, le=16)  # layers of D, each halving
    d_scales: int = Field(3, ge=1, le=8)  # sizes of an image that D judges
    vgg: File | None = None  # VGG-16 weights, made by `unpaired weights convert`
    # D judges the images that G then learns from, not others: faster, and not quite the paper's game
    share_fakes: bool = False


class MUNIT(Method):
    layout = "two_domains"
    averaged = "G_1 G_2"
    card = {
        "title": "Multimodal Unsupervised Image-to-Image Translation",
        "authors": "Huang, Liu, Belongie, Kautz",
        "venue": "ECCV",
        "year": 2018,
        "url": "https://arxiv.org/abs/1804.04732",
        "outputs": "many",
    }
    presets = {
        "paper": {
            "data": {"size": 256, "batch": 1},
            "optim": {
                "default": {
                    "weight_decay": 1e-4,
                    "decay": {"kind": "steps", "every": 0.1, "factor": 0.5},
                }
            },
            "train": {"steps": 1_000_000, "save_every": 10_000, "sample_every": 5_000},
        },
        "small": {
            "method": {
                "dim": 16,
                "mlp_dim": 64,
                "downsamplings": 1,
                "residuals": 2,
                "d_dim": 16,
                "d_layers": 3,
                "d_scales": 2,
            },
            "data": {"size": 32, "batch": 8},
            "optim": {
                "default": {
                    "lr": 1e-3,
                    "weight_decay": 1e-4,
                    "decay": {"kind": "linear", "start": 0.5},
                }
            },
            "train": {"steps": 4000, "ema": 0.995, "save_every": 500, "sample_every": 500},
        },
    }

    def __init__(self, config: Config, domains: tuple[str, ...], shape: Shape) -> None:
        super().__init__(config, domains, shape)
        if shape.height % self.stride or shape.width % self.stride:
            raise ConfigProblem(
                f"data.size must be a multiple of {self.stride} with method.downsamplings={config.downsamplings}."
            )
        if min(shape.height, shape.width) < SMALLEST:
            raise ConfigProblem(
                f"data.size is below {SMALLEST} px, the least that E_s can halve four times."
            )
        smallest = MultiScale.smallest(config.d_layers, config.d_scales)
        if min(shape.height, shape.width) < smallest:
            raise ConfigProblem(
                f"data.size is below {smallest} px, the least that a discriminator of "
                f"method.d_scales={config.d_scales} and method.d_layers={config.d_layers} can judge: "
                "lower one of these or raise data.size."
            )
        self.G_1, self.G_2 = (AutoEncoder(config, shape.channels) for _ in range(2))
        self.D_1, self.D_2 = (
            MultiScale(shape.channels, config.d_dim, config.d_layers, config.d_scales)
            for _ in range(2)
        )
        self.vgg: nn.Module | None = None
        self.gan_d = losses.lsgan_d if config.gan == "lsgan" else losses.nsgan_d
        self.gan_g = losses.lsgan_g if config.gan == "lsgan" else losses.nsgan_g

    # The game --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        if self.config.lambda_vgg:
            self.vgg = load_vgg(self.config.vgg).to(next(self.parameters()).device)

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        x_1, x_2 = batch["x_1"], batch["x_2"]
        G_1, G_2 = self.G_1, self.G_2
        c_1, c_2 = G_1.E_c(x_1), G_2.E_c(x_2)  # for both moves: D's leaves them as they are
        if self.config.share_fakes:
            drawn = self.draw(x_1, x_2, c_1, c_2, step)
            yield self.discriminate(x_1, x_2, drawn.x_21.detach(), drawn.x_12.detach())
        else:
            s_1, s_2 = self.prior("D", x_1, step)
            with torch.no_grad():
                x_21, x_12 = G_1.decode(c_2, s_1), G_2.decode(c_1, s_2)
            yield self.discriminate(x_1, x_2, x_21, x_12)
            drawn = self.draw(x_1, x_2, c_1, c_2, step)
        yield self.generate(x_1, x_2, c_1, c_2, drawn)

    def discriminate(self, x_1: Tensor, x_2: Tensor, x_21: Tensor, x_12: Tensor) -> Update:
        L_D_1 = self.gan_d(*both(self.D_1, x_1, x_21))  # (4)
        L_D_2 = self.gan_d(*both(self.D_2, x_2, x_12))
        return Update("D_1 D_2", L_D_1 + L_D_2, {"D_1": L_D_1.detach(), "D_2": L_D_2.detach()})

    def draw(self, x_1: Tensor, x_2: Tensor, c_1: Tensor, c_2: Tensor, step: Step) -> Drawn:
        G_1, G_2 = self.G_1, self.G_2
        s_1, s_2 = self.prior("G", x_1, step)
        own_1, own_2 = G_1.E_s(x_1), G_2.E_s(x_2)
        x_11, x_21 = G_1.decode(torch.cat([c_1, c_2]), torch.cat([own_1, s_1])).chunk(2)  # one call
        x_22, x_12 = G_2.decode(torch.cat([c_2, c_1]), torch.cat([own_2, s_2])).chunk(2)
        return Drawn(s_1, s_2, own_1, own_2, x_11, x_22, x_12, x_21)

    def generate(self, x_1: Tensor, x_2: Tensor, c_1: Tensor, c_2: Tensor, drawn: Drawn) -> Update:
        G_1, G_2, D_1, D_2, w = self.G_1, self.G_2, self.D_1, self.D_2, self.config
        s_1, s_2, own_1, own_2, x_11, x_22, x_12, x_21 = drawn
        c_21, c_12 = G_1.E_c(x_21), G_2.E_c(x_12)

        L = {  # targets are not detached
            "x_1": w.lambda_x * l1(x_11, x_1),  # (1)
            "x_2": w.lambda_x * l1(x_22, x_2),
            "c_1": w.lambda_c * l1(c_12, c_1),  # (2)
            "c_2": w.lambda_c * l1(c_21, c_2),
            "s_1": w.lambda_s * l1(G_1.E_s(x_21), s_1),  # (3)
            "s_2": w.lambda_s * l1(G_2.E_s(x_12), s_2),
            "adv_1": self.gan_g(D_1(x_21)),  # (4)
            "adv_2": self.gan_g(D_2(x_12)),
        }
        if w.lambda_cyc:
            L["cyc_1"] = w.lambda_cyc * l1(G_1.decode(c_12, own_1), x_1)  # Sec. 4
            L["cyc_2"] = w.lambda_cyc * l1(G_2.decode(c_21, own_2), x_2)
        if w.lambda_vgg:
            assert self.vgg, "begin() comes first"
            L["vgg_1"] = w.lambda_vgg * losses.perceptual(self.vgg(x_21), self.vgg(x_2))
            L["vgg_2"] = w.lambda_vgg * losses.perceptual(self.vgg(x_12), self.vgg(x_1))
        loss = torch.stack(list(L.values())).sum()
        return Update("G_1 G_2", loss, {name: part.detach() for name, part in L.items()})

    def prior(self, move: str, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Styles of both domains from N(0, I), (B, style_dim), fresh for each move."""
        shape = (x.shape[0], self.config.style_dim)
        return step.normal(f"{move}.s_1", *shape, like=x), step.normal(
            f"{move}.s_2", *shape, like=x
        )

    # The verbs -------------------------------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        return frozenset({"latent", "reference"})

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        return self.autoencoder(source).E_c(x)

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        return self.autoencoder(target).decode(content, style)  # type: ignore[arg-type]

    def latent_dim(self, target: int) -> int:
        return self.config.style_dim

    def encode_style(self, reference: Tensor, target: int) -> Tensor:
        return self.autoencoder(target).E_s(reference)

    def autoencoder(self, domain: int) -> AutoEncoder:
        return (self.G_1, self.G_2)[domain]

    @property
    def stride(self) -> int:
        return 2**self.config.downsamplings


class Drawn(NamedTuple):
    """What G draws: random styles and those of the images, reconstructions and translations (x_12 of x_1)."""

    s_1: Tensor
    s_2: Tensor
    own_1: Tensor
    own_2: Tensor
    x_11: Tensor
    x_22: Tensor
    x_12: Tensor
    x_21: Tensor


class AutoEncoder(nn.Module):
    """The networks of one domain: E_c, E_s and the decoder G with its MLP (appendix B)."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.E_c = ContentEncoder(channels, config.dim, config.downsamplings, config.residuals)
        self.E_s = StyleEncoder(channels, config.dim, config.style_dim)
        self.G = Decoder(channels, config.dim, config.downsamplings, config.residuals)
        self.mlp = nn.Sequential(
            nn.Linear(config.style_dim, config.mlp_dim),
            nn.ReLU(),
            nn.Linear(config.mlp_dim, config.mlp_dim),
            nn.ReLU(),
            nn.Linear(config.mlp_dim, self.G.numbers),
        )
        kaiming(self)

    def decode(self, c: Tensor, s: Tensor) -> Tensor:
        return self.G(c, self.mlp(s))


class ContentEncoder(nn.Sequential):
    """Images -> content (B, dim * 2^n, H / 2^n, W / 2^n). Instance norm removes the style."""

    def __init__(self, channels: int, dim: int, downsamplings: int, residuals: int) -> None:
        layers: list[nn.Module] = [Conv(channels, dim, 7, 1, 3, InstanceNorm, nn.ReLU())]
        for _ in range(downsamplings):
            layers.append(Conv(dim, 2 * dim, 4, 2, 1, InstanceNorm, nn.ReLU()))
            dim *= 2
        super().__init__(*layers, *(Residual(dim) for _ in range(residuals)))


class StyleEncoder(nn.Module):
    """Images -> style (B, style_dim). No norm: it would remove the mean and variance that are the style."""

    def __init__(self, channels: int, dim: int, style_dim: int) -> None:
        super().__init__()
        widths = (dim, 2 * dim, 4 * dim, 4 * dim, 4 * dim)
        convs = [
            Conv(a, b, 4, 2, 1, activation=nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.convs = nn.Sequential(Conv(channels, dim, 7, 1, 3, activation=nn.ReLU()), *convs)
        self.fc = nn.Conv2d(widths[-1], style_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.convs(x).mean((2, 3), keepdim=True)).flatten(1)


class Decoder(nn.Module):
    """Content and AdaIN's numbers -> images. Layer norm in the up-sampling part: instance norm would undo AdaIN."""

    def __init__(self, channels: int, dim: int, downsamplings: int, residuals: int) -> None:
        super().__init__()
        c = dim * 2**downsamplings
        blocks = [AdaINResidual(c) for _ in range(residuals)]
        self.residuals = nn.ModuleList(blocks)
        self.numbers = sum(block.numbers for block in blocks)
        self.up = nn.ModuleList()
        for _ in range(downsamplings):
            self.up.append(UpConv(c, c // 2, LayerNorm, nn.ReLU()))
            c //= 2
        self.rgb = Conv(c, channels, 7, 1, 3, activation=nn.Tanh())

    def forward(self, c: Tensor, numbers: Tensor) -> Tensor:
        for block, part in zip(
            self.residuals, numbers.chunk(len(self.residuals), dim=1), strict=True
        ):
            c = block(c, part)
        for conv in self.up:
            c = conv(c)
        return self.rgb(c)


def both(D: MultiScale, real: Tensor, fake: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The scores of real and fake images in one call: no norm couples them."""
    maps = [scores.chunk(2) for scores in D(torch.cat([real, fake]))]
    return [real for real, _ in maps], [fake for _, fake in maps]


def load_vgg(path: Path | None) -> nn.Module:
    """VGG-16 from a safetensors file whose metadata names its preprocessing."""
    from unpaired.checkpoint import load_model
    from unpaired.networks.vgg import PREPROCESSING, VGG16

    if path is None:
        raise ConfigProblem(
            "method.lambda_vgg needs VGG-16 weights: set method.vgg to a file made by "
            "`unpaired weights convert vgg16.pth vgg16.safetensors --preprocessing imagenet`, or set "
            "method.lambda_vgg=0."
        )
    tensors, metadata = load_model(path)
    net = VGG16(metadata.get("preprocessing", ""))
    missing = net.state_dict().keys() ^ tensors.keys()
    if missing or net.preprocessing not in PREPROCESSING:
        raise ConfigProblem(
            f"method.vgg: {path} does not hold VGG-16 and the name of its preprocessing: "
            "make it by `unpaired weights convert`."
        )
    net.load_state_dict(tensors)
    return fixed(net)
