"""SmoothGAN: Smoothing the Disentangled Latent Style Space for Unsupervised Image-to-Image
Translation.

Yahui Liu, Enver Sangineto, Yajing Chen, Linchao Bao, Haoxian Zhang, Nicu Sebe, Bruno Lepri, Wei
Wang, Marco De Nadai. CVPR 2021. https://arxiv.org/abs/2106.09016

StarGAN v2's networks and game (see `stargan_v2.py`), with three more terms when G moves. They
draw the styles of all domains together, so that the way between two of them passes through images
that look real. For an image x of domain y, styles s, s' of the target domain y~ and a style s_y
of its own,

    min over G, F, E, max over D of   L_adv + lambda_sty L_sty - lambda_ds L_ds + lambda_cyc L_cyc
                                      + lambda_tri L_tri + lambda_kl L_kl [+ lambda_lpips L_lpips]

    L_tri   = E max(|s - s'| - |s - s_y| + margin, 0)    where y~ != y: domains keep apart
    L_kl    = E s^2 + E E(x, y)^2                        compactness: a Gaussian prior on all styles
    L_lpips = E LPIPS(x, G(x, s))                        content is kept

s_y = F(z, y), with the noise of s, when styles come from noise, E(x, y) when they come from
references. lambda_kl is 0 for the first 40% of the run, then rises to its full weight at the end.

Differences from the official code: those of `stargan_v2.py`; lambda_kl rises over fractions of
the run (theirs: from step 40,000 of 100,000); a batch where no sample changes its domain gives
L_tri = 0. The default leaves L_lpips out, as theirs does; LPIPS is that of the files given. Losses,
gradients and updates agree with it to rounding (`tests/test_parity_stargan.py`), L_lpips with a
stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import triplet_margin_loss

from unpaired import losses
from unpaired.convolution import Twice
from unpaired.errors import ConfigProblem
from unpaired.losses import l1
from unpaired.method import Batch, File, Method, MethodConfig, Shape, Step, Update, fp32
from unpaired.networks.lpips import load_lpips
from unpaired.networks.stargan import (
    SMALLEST,
    Discriminator,
    Generator,
    Mapping,
    StyleEncoder,
    check_sides,
    widths,
)
from unpaired.official import read_weights

RISE = 0.4  # the fraction of the run at which lambda_kl begins to rise


class Config(MethodConfig):
    """The paper's settings, for CelebA-HQ, but for the perceptual term, which needs weights."""

    lambda_sty: float = Field(2.0, ge=0)  # weight of the reconstruction of styles
    lambda_ds: float = Field(1.0, ge=0)  # of diversity, at the start
    lambda_cyc: float = Field(1.0, ge=0)  # of the cycle
    lambda_reg: float = Field(1.0, ge=0)  # of R1
    lambda_tri: float = Field(1.0, ge=0)  # of the triplet loss of styles
    lambda_kl: float = Field(1.0, ge=0)  # of the styles' norm, at the end
    lambda_lpips: float = Field(0.0, ge=0)  # 1 in the paper's runs; needs `lpips`
    margin: float = Field(0.1, ge=0)  # of the triplet loss
    latent_dim: int = Field(16, ge=1, le=4096)  # numbers that F makes a style of
    style_dim: int = Field(64, ge=1, le=4096)  # numbers in a style
    mlp_dim: int = Field(512, ge=1, le=4096)  # width of F
    # Channels at full size times its side: 64 at 256 px ...
    width: int = Field(2**14, ge=512, le=2**18)
    max_dim: int = Field(512, ge=1, le=4096)  # ... doubling with each halving, up to this
    lpips: tuple[File, ...] = ()  # files of weights: a trunk (`features.*`), LPIPS's heads (`lin*`)


class SmoothGAN(Method):
    layout = "domains"
    averaged = "G F E"
    accumulates = False  # L_tri is a mean over those samples of the batch that change their domain
    card = {
        "title": "Smoothing the Disentangled Latent Style Space for Unsupervised Image-to-Image "
        "Translation",
        "authors": "Liu, Sangineto, Chen, Bao, Zhang, Sebe, Lepri, Wang, De Nadai",
        "venue": "CVPR",
        "year": 2021,
        "url": "https://arxiv.org/abs/2106.09016",
        "outputs": "many",
    }
    presets = {
        "paper": {
            "data": {"size": 256, "batch": 4, "zoom": 1.1},
            "optim": {
                "default": {"lr": 1e-4, "betas": [0.0, 0.99], "weight_decay": 1e-4},
                "F": {"lr": 1e-6},
            },
            "train": {"steps": 100_000, "ema": 0.999, "save_every": 10_000, "sample_every": 5_000},
        },
        "small": {
            "method": {
                "latent_dim": 8,
                "style_dim": 16,
                "mlp_dim": 64,
                "width": 512,
                "max_dim": 64,
                "lambda_reg": 0.1,  # R1 weighs more at 32 px: docs/methods/stargan_v2.md
            },
            "data": {"size": 32, "batch": 8},
            "optim": {
                "default": {
                    "lr": 1e-3,
                    "betas": [0.0, 0.99],
                    "weight_decay": 1e-4,
                    "decay": {"kind": "linear", "start": 0.5},
                },
                "F": {"lr": 5e-5},
            },
            "train": {"steps": 6000, "ema": 0.995, "save_every": 1000, "sample_every": 500},
        },
    }

    def __init__(self, config: Config, domains: tuple[str, ...], shape: Shape) -> None:
        super().__init__(config, domains, shape)
        check_sides(shape.height, shape.width)
        side, channels, K = min(shape.height, shape.width), shape.channels, len(domains)
        outer = widths(side, SMALLEST, config.width, config.max_dim)
        whole = widths(side, 4, config.width, config.max_dim)
        self.G = Generator(channels, outer, config.style_dim)
        self.F = Mapping(config.latent_dim, config.mlp_dim, config.style_dim, K)
        self.E = StyleEncoder(channels, whole, config.style_dim, K)
        self.D = Discriminator(channels, whole, K)
        self.lpips: nn.Module | None = None

    # The game ------------------------------------------------------------------------------------

    def begin(self) -> None:
        if self.config.lambda_lpips:
            self.lpips = perceptual(self.config.lpips).to(next(self.parameters()).device)

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        G, F, E = self.G, self.F, self.E
        x, y, target = batch["x_src"], batch["y_src"], batch["y_ref"]
        x_ref, x_ref2 = batch["x_ref"], batch["x_ref2"]
        shape = (x.shape[0], self.config.latent_dim)
        z, z_2 = step.normal("z_trg", *shape, like=x), step.normal("z_trg2", *shape, like=x)

        # What G and F make stays as it is until they move: made once for all moves up to theirs.
        c, s, s_2, s_y = G.encoder(x), F(z, target), F(z_2, target), F(z, y)
        x_fake = G.decoder(c, s)
        yield self.discriminate("latent", batch, x_fake.detach())
        with torch.no_grad():
            x_fake_ref = G.decoder(c, E(x_ref, target))
        yield self.discriminate("reference", batch, x_fake_ref)
        yield self.generate("latent", "G F E", batch, c, x_fake, (s, s_2, s_y), step)

        with torch.no_grad():
            s, s_2, s_y = E(x_ref, target), E(x_ref2, target), E(x, y)
        c = G.encoder(x)
        x_fake = G.decoder(c, s)
        yield self.generate("reference", "G", batch, c, x_fake, (s, s_2, s_y), step)

    def discriminate(self, by: str, batch: Batch, x_fake: Tensor) -> Update:
        x = batch["x_src"].detach().requires_grad_()
        with fp32(x), Twice():
            real = self.D.forward(x, batch["y_src"])  # plain: double backward does not compile
            L_reg = self.config.lambda_reg * losses.r1(real, x)
        L_adv = losses.nsgan_d([real], [self.D(x_fake, batch["y_ref"])])
        return Update("D", L_adv + L_reg, {f"D_{by}": L_adv.detach(), f"reg_{by}": L_reg.detach()})

    def generate(
        self,
        by: str,
        nets: str,
        batch: Batch,
        c: Tensor,
        x_fake: Tensor,
        styles: tuple[Tensor, Tensor, Tensor],
        step: Step,
    ) -> Update:
        """The losses of x_fake = G(c, s) under `styles` s, s' and s_y."""
        G, E, D, w = self.G, self.E, self.D, self.config
        x, y, target = batch["x_src"], batch["y_src"], batch["y_ref"]
        lambda_ds = w.lambda_ds * (1 - step.fraction)
        (s, s_2, s_y), own = styles, E(x, y)
        with torch.no_grad():
            x_fake_2 = G.decoder(c, s_2)

        L = {
            "adv": losses.nsgan_g([D(x_fake, target)]),
            "sty": w.lambda_sty * l1(E(x_fake, target), s),
            "ds": -lambda_ds * l1(x_fake, x_fake_2),
            "cyc": w.lambda_cyc * l1(G(x_fake, own), x),
            "tri": w.lambda_tri * triplet(s, s_2, s_y, target != y, w.margin),
            "kl": self.lambda_kl(step) * (s.square().mean() + own.square().mean()),
        }
        if w.lambda_lpips:
            assert self.lpips, "begin() comes first"
            L["lpips"] = w.lambda_lpips * self.lpips(x, x_fake).mean()
        loss = torch.stack(list(L.values())).sum()
        return Update(nets, loss, {f"{name}_{by}": part.detach() for name, part in L.items()})

    def lambda_kl(self, step: Step) -> float:
        """0 until `RISE` of the run, then straight up to the full weight."""
        return self.config.lambda_kl * max(0.0, (step.fraction - RISE) / (1 - RISE))

    # The verbs -----------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        return frozenset({"latent", "reference"})

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        return self.G.encoder(x)

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        """Not bounded: there is no tanh, [-1, 1] is learned and slightly overshot."""
        return self.G.decoder(content, style)

    def latent_dim(self, target: int) -> int:
        return self.config.latent_dim

    def map_latent(self, z: Tensor, target: int) -> Tensor:
        return self.F(z, torch.full((z.shape[0],), target, device=z.device))

    def encode_style(self, reference: Tensor, target: int) -> Tensor:
        y = torch.full((reference.shape[0],), target, device=reference.device)
        return self.E(reference, y)

    @property
    def stride(self) -> int:
        return self.G.stride


def triplet(
    anchor: Tensor, positive: Tensor, negative: Tensor, chosen: Tensor, margin: float
) -> Tensor:
    """max(|a - p| - |a - n| + margin, 0), mean over the `chosen` samples; 0 where there is none."""
    each = triplet_margin_loss(anchor, positive, negative, margin, reduction="none")  # (B,)
    return (each * chosen).sum() / chosen.sum().clamp(min=1)


def perceptual(paths: tuple[Path, ...]) -> nn.Module:
    """LPIPS from the files that hold its trunk and its heads."""
    if not paths:
        raise ConfigProblem(
            "method.lambda_lpips needs weights: set method.lpips to the files of SqueezeNet 1.1, VGG-16 or AlexNet "
            "and of LPIPS's heads for it, or set method.lambda_lpips=0."
        )
    given: dict[str, Tensor] = {}
    for path in paths:
        given |= read_weights(path, "method.lpips")
    return load_lpips(given, "method.lpips")
