"""UNIT: Unsupervised Image-to-Image Translation Networks.

Ming-Yu Liu, Thomas Breuel, Jan Kautz. NIPS 2017. https://arxiv.org/abs/1703.00848

Images of two domains share one latent space. Two VAEs, of which each encoder goes with both
generators: z_i = E_i(x_i) + n with n ~ N(0, I), and x_{i->j} = G_j(z_i). The objective is (both
domains)

    min over E, G, max over D of   L_VAE + L_GAN + L_CC

    L_VAE = lambda_kl KL(q(z_1|x_1) || N(0, I)) + lambda_x E |G_1(z_1) - x_1|
    L_GAN = least squares, multi-scale D, on x_{1->2} and x_{2->1}
    L_CC  = lambda_kl_cyc (KL(q(z_1|x_1) || N(0, I)) + KL(q(z_2|x_{1->2}) || N(0, I)))
            + lambda_cyc E |G_1(E_2(x_{1->2}) + n) - x_1|

The variance of q is 1, so that KL = E mean(E_i(x_i)^2) up to factor and constant. Of L_CC's two KL
terms the first is the one of L_VAE and is left to lambda_kl, as in the authors' code.

This is the version of the authors' second code base, which is MUNIT's: its networks, its
discriminator, and no weights shared. `shared=1` shares the last residual block of the encoders and
the first of the generators (Sec. 3) in a network of its own; with `gan=nsgan` besides, these are
the weights of the first version, which multiplied all of them by 10.

Differences from the official code: a moving average of the generators does the translating (theirs
does not average; `train.ema=0` for theirs); the learning rate is halved at fractions of the run
(theirs: every 100,000 steps of 1,000,000); no perceptual term (theirs: weight 1 for street scenes,
else 0); discriminators narrower than 64 channels start from Kaiming's initialisation. Nothing else:
losses, gradients and updates agree with it to rounding (`tests/test_parity_family.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from unpaired import losses
from unpaired.errors import ConfigProblem
from unpaired.losses import l1
from unpaired.method import Batch, Method, MethodConfig, Shape, Step, Update
from unpaired.networks.blocks import Conv, Residual, UpConv, kaiming
from unpaired.networks.norms import InstanceNorm, LayerNorm
from unpaired.networks.patch import MultiScale


class Config(MethodConfig):
    """The settings of the authors' configs in MUNIT's code base, all alike."""

    lambda_x: float = Field(10.0, ge=0)  # weight of the reconstruction of images
    lambda_kl: float = Field(0.01, ge=0)  # of the code's divergence from N(0, I)
    lambda_cyc: float = Field(10.0, ge=0)  # of the cycle
    lambda_kl_cyc: float = Field(0.01, ge=0)  # of that divergence after a translation
    gan: Literal["lsgan", "nsgan"] = "lsgan"  # least squares, or the non-saturating loss
    # Channels of G's first layer, twice as many after each halving
    dim: int = Field(64, ge=1, le=4096)
    downsamplings: int = Field(2, ge=0, le=8)  # how often G halves an image
    residuals: int = Field(4, ge=1, le=64)  # on each side of the code
    # How many of them both domains share; 1 in the first version
    shared: int = Field(0, ge=0, le=64)
    d_dim: int = Field(64, ge=1, le=4096)  # channels of D's first layer
    d_layers: int = Field(4, ge=1, le=16)  # layers of D, each halving
    d_scales: int = Field(3, ge=1, le=8)  # sizes of an image that D judges
    # D judges the images that G then learns from, not others: faster, and not quite the authors' game
    share_fakes: bool = False


class UNIT(Method):
    layout = "two_domains"
    averaged = "G_1 G_2"
    card = {
        "title": "Unsupervised Image-to-Image Translation Networks",
        "authors": "Liu, Breuel, Kautz",
        "venue": "NIPS",
        "year": 2017,
        "url": "https://arxiv.org/abs/1703.00848",
        "outputs": "one",
    }
    presets = {
        "paper": {
            "data": {"size": 256, "batch": 1},
            "optim": {
                "default": {
                    "lr": 1e-4,
                    "betas": [0.5, 0.999],
                    "weight_decay": 1e-4,
                    "decay": {"kind": "steps", "every": 0.1, "factor": 0.5},
                }
            },
            "train": {"steps": 1_000_000, "save_every": 10_000, "sample_every": 5_000},
        },
        "small": {
            "method": {
                "dim": 16,
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
                    "betas": [0.5, 0.999],
                    "weight_decay": 1e-4,
                    "decay": {"kind": "linear", "start": 0.5},
                }
            },
            "train": {"steps": 4000, "ema": 0.995, "save_every": 500, "sample_every": 500},
        },
    }

    def __init__(self, config: Config, domains: tuple[str, ...], shape: Shape) -> None:
        super().__init__(config, domains, shape)
        smallest = MultiScale.smallest(config.d_layers, config.d_scales)
        if min(shape.height, shape.width) < smallest:
            raise ConfigProblem(
                f"data.size is below {smallest} px, the least that a discriminator of "
                f"method.d_scales={config.d_scales} and method.d_layers={config.d_layers} can "
                "judge: lower one of these or raise data.size."
            )
        if shape.height % self.stride or shape.width % self.stride:
            raise ConfigProblem(
                f"data.size must be a multiple of {self.stride} "
                f"with method.downsamplings={config.downsamplings}."
            )
        if config.shared > config.residuals:
            raise ConfigProblem(
                f"method.shared={config.shared} is more than method.residuals={config.residuals}."
            )
        self.G_1, self.G_2 = (VAE(config, shape.channels) for _ in range(2))
        self.shared = Shared(config) if config.shared else None
        self.D_1, self.D_2 = (
            MultiScale(shape.channels, config.d_dim, config.d_layers, config.d_scales)
            for _ in range(2)
        )
        if config.shared:
            self.averaged = "G_1 G_2 shared"  # of this instance
        self.gan_d = losses.lsgan_d if config.gan == "lsgan" else losses.nsgan_d
        self.gan_g = losses.lsgan_g if config.gan == "lsgan" else losses.nsgan_g

    # The game ------------------------------------------------------------------------------------

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        x_1, x_2 = batch["x_1"], batch["x_2"]
        mu_1, mu_2 = self.encode(x_1, 0), self.encode(x_2, 1)  # for both moves: D's leaves E alone
        if self.config.share_fakes:
            drawn = self.draw(mu_1, mu_2, step)
            yield self.discriminate(x_1, x_2, drawn.x_12.detach(), drawn.x_21.detach())
        else:
            with torch.no_grad():
                x_12 = self.generated(noisy(mu_1, "D.n_1", step), 1)
                x_21 = self.generated(noisy(mu_2, "D.n_2", step), 0)
            yield self.discriminate(x_1, x_2, x_12, x_21)
            drawn = self.draw(mu_1, mu_2, step)
        yield self.generate(x_1, x_2, mu_1, mu_2, drawn, step)

    def discriminate(self, x_1: Tensor, x_2: Tensor, x_12: Tensor, x_21: Tensor) -> Update:
        D_1, D_2 = self.D_1, self.D_2
        L_D_1 = self.gan_d(D_1(x_1), D_1(x_21))  # L_GAN
        L_D_2 = self.gan_d(D_2(x_2), D_2(x_12))
        return Update("D_1 D_2", L_D_1 + L_D_2, {"D_1": L_D_1.detach(), "D_2": L_D_2.detach()})

    def draw(self, mu_1: Tensor, mu_2: Tensor, step: Step) -> Drawn:
        z = torch.cat([noisy(mu_1, "G.n_1", step), noisy(mu_2, "G.n_2", step)])
        x_11, x_21 = self.generated(z, 0).chunk(2)  # one call
        x_12, x_22 = self.generated(z, 1).chunk(2)
        return Drawn(x_11, x_22, x_12, x_21)

    def generate(
        self, x_1: Tensor, x_2: Tensor, mu_1: Tensor, mu_2: Tensor, drawn: Drawn, step: Step
    ) -> Update:
        D_1, D_2, w = self.D_1, self.D_2, self.config
        x_11, x_22, x_12, x_21 = drawn
        mu_21, mu_12 = self.encode(x_21, 0), self.encode(x_12, 1)
        x_121 = self.generated(noisy(mu_12, "G.n_12", step), 0)
        x_212 = self.generated(noisy(mu_21, "G.n_21", step), 1)

        L = {
            "x_1": w.lambda_x * l1(x_11, x_1),  # L_VAE
            "x_2": w.lambda_x * l1(x_22, x_2),
            "kl_1": w.lambda_kl * (mu_1**2).mean(),
            "kl_2": w.lambda_kl * (mu_2**2).mean(),
            "adv_1": self.gan_g(D_1(x_21)),  # L_GAN
            "adv_2": self.gan_g(D_2(x_12)),
            "cyc_1": w.lambda_cyc * l1(x_121, x_1),  # L_CC
            "cyc_2": w.lambda_cyc * l1(x_212, x_2),
            "kl_cyc_1": w.lambda_kl_cyc * (mu_12**2).mean(),
            "kl_cyc_2": w.lambda_kl_cyc * (mu_21**2).mean(),
        }
        loss = torch.stack(list(L.values())).sum()
        return Update(self.averaged, loss, {name: part.detach() for name, part in L.items()})

    def encode(self, x: Tensor, domain: int) -> Tensor:
        """The mean of q(z|x), (B, dim * 2^n, H / 2^n, W / 2^n)."""
        mu = (self.G_1, self.G_2)[domain].E(x)
        return self.shared.E(mu) if self.shared else mu

    def generated(self, z: Tensor, domain: int) -> Tensor:
        """Images of `domain` from codes."""
        return (self.G_1, self.G_2)[domain].G(self.shared.G(z) if self.shared else z)

    # The verbs -----------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        return frozenset()

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        """The code without noise: one image has one translation."""
        return self.encode(x, source)

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        return self.generated(content, target)

    @property
    def stride(self) -> int:
        return 2**self.config.downsamplings


def noisy(mu: Tensor, name: str, step: Step) -> Tensor:
    """A sample of N(mu, I)."""
    return mu + step.normal(name, *mu.shape, like=mu)


class Drawn(NamedTuple):
    """Reconstructions and translations (x_12 of x_1)."""

    x_11: Tensor
    x_22: Tensor
    x_12: Tensor
    x_21: Tensor


class VAE(nn.Module):
    """The networks of one domain: encoder E and generator G, without the blocks that are shared."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        own = config.residuals - config.shared
        self.E = Encoder(channels, config.dim, config.downsamplings, own)
        self.G = Generator(channels, config.dim, config.downsamplings, own)
        kaiming(self)


class Shared(nn.Module):
    """What both domains share: the last blocks of the encoders, the first of the generators."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config.dim * 2**config.downsamplings
        self.E = nn.Sequential(*(Residual(c) for _ in range(config.shared)))
        self.G = nn.Sequential(*(Residual(c) for _ in range(config.shared)))
        kaiming(self)


class Encoder(nn.Sequential):
    """Images -> codes (B, dim * 2^n, H / 2^n, W / 2^n): MUNIT's content encoder."""

    def __init__(self, channels: int, dim: int, downsamplings: int, residuals: int) -> None:
        layers: list[nn.Module] = [Conv(channels, dim, 7, 1, 3, InstanceNorm, nn.ReLU())]
        for _ in range(downsamplings):
            layers.append(Conv(dim, 2 * dim, 4, 2, 1, InstanceNorm, nn.ReLU()))
            dim *= 2
        super().__init__(*layers, *(Residual(dim) for _ in range(residuals)))


class Generator(nn.Module):
    """Codes -> images: MUNIT's decoder with instance norm in the place of AdaIN."""

    def __init__(self, channels: int, dim: int, downsamplings: int, residuals: int) -> None:
        super().__init__()
        c = dim * 2**downsamplings
        self.residuals = nn.Sequential(*(Residual(c) for _ in range(residuals)))
        self.up = nn.ModuleList()
        for _ in range(downsamplings):
            self.up.append(UpConv(c, c // 2, LayerNorm, nn.ReLU()))
            c //= 2
        self.rgb = Conv(c, channels, 7, 1, 3, activation=nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        z = self.residuals(z)
        for conv in self.up:
            z = conv(z)
        return self.rgb(z)
