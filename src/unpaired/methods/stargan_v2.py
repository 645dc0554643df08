"""StarGAN v2: Diverse Image Synthesis for Multiple Domains.

Yunjey Choi, Youngjung Uh, Jaejun Yoo, Jung-Woo Ha. CVPR 2020. https://arxiv.org/abs/1912.01865

One generator for all ordered pairs of domains. A style s of domain y~ comes from noise,
s = F(z, y~), or from a reference image, s = E(x_ref, y~). For an image x of domain y the objective
is (eq. 5), for both kinds of style in turn,

    min over G, F, E, max over D of   L_adv + lambda_sty L_sty - lambda_ds L_ds + lambda_cyc L_cyc

    L_adv = E log D(x, y) + E log(1 - D(G(x, s), y~))    non-saturating for G, R1 at x for D  (1)
    L_sty = E |s - E(G(x, s), y~)|                       style reconstruction                 (2)
    L_ds  = E |G(x, s) - G(x, s')|                       diversity, lambda_ds falls to 0      (3)
    L_cyc = E |G(G(x, s), E(x, y)) - x|                  cycle, with the style of x itself    (4)

A step makes four moves: D against styles from noise, D against styles of references; G, F and E
with styles from noise; G alone with styles of references. That E does not move in the last is
deliberate: the authors report worse results where it does. G(x, s') is held fixed.

Differences from the official code: the high-pass skip for faces (w_hpf = 1) is left out, as it
needs the weights of a foreign landmark network: w_hpf = 0 for all data. The averages start from
the initialised networks (theirs: from another initialisation) and follow them faster at first: the
decay at step s is (1 + s) / (10 + s), until that reaches `train.ema`. lambda_ds falls to 0 over the run,
whatever its length (theirs: over 100,000 steps, the length of the run). Every crop is of
`data.zoom` (theirs: half of the images whole, half cropped to 80% to 100% of the area). Losses,
gradients and updates agree with it to rounding (`tests/test_parity_stargan.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from unpaired import losses
from unpaired.convolution import Twice
from unpaired.losses import l1
from unpaired.method import Batch, Method, MethodConfig, Shape, Step, Update, fp32
from unpaired.networks.stargan import (
    SMALLEST,
    Discriminator,
    Generator,
    Mapping,
    StyleEncoder,
    check_sides,
    widths,
)


class Config(MethodConfig):
    """The paper's settings, for CelebA-HQ."""

    lambda_sty: float = Field(1.0, ge=0)  # weight of the reconstruction of styles
    lambda_ds: float = Field(1.0, ge=0)  # of diversity, at the start; 2 for AFHQ
    lambda_cyc: float = Field(1.0, ge=0)  # of the cycle
    lambda_reg: float = Field(1.0, ge=0)  # of R1
    latent_dim: int = Field(16, ge=1, le=4096)  # numbers that F makes a style of
    style_dim: int = Field(64, ge=1, le=4096)  # numbers in a style
    mlp_dim: int = Field(512, ge=1, le=4096)  # width of F
    # Channels at full size times its side: 64 at 256 px ...
    width: int = Field(2**14, ge=512, le=2**18)
    max_dim: int = Field(512, ge=1, le=4096)  # ... doubling with each halving, up to this


class StarGANv2(Method):
    layout = "domains"
    averaged = "G F E"
    card = {
        "title": "StarGAN v2: Diverse Image Synthesis for Multiple Domains",
        "authors": "Choi, Uh, Yoo, Ha",
        "venue": "CVPR",
        "year": 2020,
        "url": "https://arxiv.org/abs/1912.01865",
        "outputs": "many",
    }
    presets = {
        "paper": {
            "data": {"size": 256, "batch": 8, "zoom": 1.1},
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

    # The game ------------------------------------------------------------------------------------

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        G, F, E = self.G, self.F, self.E
        x, target = batch["x_src"], batch["y_ref"]
        x_ref, x_ref2 = batch["x_ref"], batch["x_ref2"]
        shape = (x.shape[0], self.config.latent_dim)
        z, z_2 = step.normal("z_trg", *shape, like=x), step.normal("z_trg2", *shape, like=x)

        # What G and F make stays as it is until they move: made once for all moves up to theirs.
        c, s, s_2 = G.encoder(x), F(z, target), F(z_2, target)
        x_fake = G.decoder(c, s)
        yield self.discriminate("latent", batch, x_fake.detach())
        with torch.no_grad():
            x_fake_ref = G.decoder(c, E(x_ref, target))
        yield self.discriminate("reference", batch, x_fake_ref)
        yield self.generate("latent", "G F E", batch, c, x_fake, s, s_2, step)

        with torch.no_grad():
            s, s_2 = E(x_ref, target), E(x_ref2, target)
        c = G.encoder(x)
        yield self.generate("reference", "G", batch, c, G.decoder(c, s), s, s_2, step)

    def discriminate(self, by: str, batch: Batch, x_fake: Tensor) -> Update:
        x = batch["x_src"].detach().requires_grad_()
        with fp32(x), Twice():
            real = self.D.forward(x, batch["y_src"])  # plain: double backward does not compile
            L_reg = self.config.lambda_reg * losses.r1(real, x)
        L_adv = losses.nsgan_d([real], [self.D(x_fake, batch["y_ref"])])  # (1)
        return Update("D", L_adv + L_reg, {f"D_{by}": L_adv.detach(), f"reg_{by}": L_reg.detach()})

    def generate(
        self,
        by: str,
        nets: str,
        batch: Batch,
        c: Tensor,
        x_fake: Tensor,
        s: Tensor,
        s_2: Tensor,
        step: Step,
    ) -> Update:
        """The losses of x_fake = G(c, s), beside which G(c, s_2) is to differ."""
        G, E, D, w = self.G, self.E, self.D, self.config
        x, y, target = batch["x_src"], batch["y_src"], batch["y_ref"]
        lambda_ds = w.lambda_ds * (1 - step.fraction)
        with torch.no_grad():
            x_fake_2 = G.decoder(c, s_2)

        L = {
            "adv": losses.nsgan_g([D(x_fake, target)]),  # (1)
            "sty": w.lambda_sty * l1(E(x_fake, target), s),  # (2)
            "ds": -lambda_ds * l1(x_fake, x_fake_2),  # (3)
            "cyc": w.lambda_cyc * l1(G(x_fake, E(x, y)), x),  # (4)
        }
        loss = torch.stack(list(L.values())).sum()
        return Update(nets, loss, {f"{name}_{by}": part.detach() for name, part in L.items()})

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
