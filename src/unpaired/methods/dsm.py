"""DSM: Disentangling the Style for Multi-domain Image Translation.

Written from a summary of the paper: its text, authors, venue and settings are not known to us, and
there is no official code.

Styles from noise and styles from references live in one space, and its components are independent.
For a domain u and noise z ~ N(0, I), a monotone spline f acts on each component alone,

    theta_u = MLP(u),   s = F(z, u) = f(z; theta_u),   so that dim(z) = dim(s) = n,

and the style encoder s = E(x, u) is drawn to the distribution of F(z, u) by a discriminator of
styles. With c = E_c(x), the content of an image x of domain u1, the objective is

    min over G, F, E, max over D, D_s of   L_adv + lambda_sty L_sty + lambda_cyc L_cyc
                           + lambda_ds L_ds + lambda_uni L_uni + lambda_smooth L_smooth

    L_adv    = E log D(x, u1) + E log(1 - D(G(c, s), u))             image discriminator
    L_sty    = E |E(G(c, s), u) - s|                                 style reconstruction
    L_cyc    = E |G(E_c(G(c, s)), E(x, u1)) - x|                     cycle
    L_ds     = -E |G(c, s) - G(c, s')|                               diversity
    L_uni    = E log D_s(F(z, u), u) + E log(1 - D_s(E(x, u), u))    one space
    L_smooth = E max(alpha + |E(x) - E(x_a)| - |E(x) - E(x_n)|, 0)   smooth encoder

x_a is an augmentation of x; x_n is the image of the batch whose style is nearest to that of x.

The networks and the game are StarGAN v2's (see `stargan_v2.py`), with a move for D_s after those of
D: what follows is what the summary of it that we have leaves open, what we chose, and why.

- f: rational-quadratic splines (Durkan et al., NeurIPS 2019), 8 `bins`, on which two public
  libraries of flows agree, the identity beyond `bound` = 5; then a scale and a shift. The domains
  start as noise shifted at random, two of them by `apart` in root mean square over the components:
  G learns of the domain through s alone, and where all began at the same place F tore them apart
  before anything else (docs/log.md).
  Farther than 1, they hardly overlap, and G may use the components differently in each.
  `flow=false` puts StarGAN v2's mapping network in its place.
- The scale of a component says nothing, as it is found up to an invertible function. It is fixed: a
  mean of 0 over the domains, a mean variance of 1 within them. Left free, F shrank to one style.
- Learning rate of F: a hundredth of that of G, as in StarGAN v2; faster, the domains drift apart
  until what varies within them no longer matters to G. No weight decay: it would pull the domains
  together.
- D_s: an MLP of three layers with a logit for each domain, non-saturating and penalised like D:
  without R1 (`lambda_reg_s`) it swung, and E with it, in the trial without images
  (docs/methods/dsm.md).
- L_uni moves E alone, over both references of a step: F is what E should come to, not the reverse.
  L_ds does not reach E, which could lower it by stretching its own distances: E has no part in the
  two fakes of the latent move, and does not move in the reference move.
- The s of L_sty is an aim that stands still: F gets no gradient by it, which would have it make
  what is easily reconstructed. (StarGAN v2's does.)
- x_n comes from the same domain u, which `|E^u(x) - E^u(y)|` suggests; the choice has no gradient.
  The candidates are the references of a step, two of each domain, so that every image has one; an
  image without any is left out of the mean.
- x_a: a resized crop of 80% to 100% of the area, as StarGAN v2 augments. No change of colour: colour
  is style. No mirror, as a mirrored digit, or a light from the other side, is another style; where
  it is not, as for faces, say `mirror`.
- Norms: in L_smooth the root mean square of the components, the Euclidean norm whatever n, with
  `alpha` = 1: two styles of a domain are about 1.4 apart. SmoothGAN's 0.1 left the loss at 0, from
  step 100 on. Mean absolute differences elsewhere, as in StarGAN v2.
- Weights: StarGAN v2's, lambda_ds falling to 0 over the run; lambda_uni = 1 and lambda_smooth = 0.1
  are ours. A weight of 0 leaves its term out, D_s with lambda_uni.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from zuko.transforms import MonotonicRQSTransform

from unpaired import losses
from unpaired.convolution import Twice
from unpaired.losses import l1
from unpaired.method import Batch, Method, MethodConfig, Shape, Step, Update, fp32
from unpaired.networks.blocks import kaiming
from unpaired.networks.norms import widened
from unpaired.networks.stargan import (
    SMALLEST,
    Discriminator,
    Generator,
    Mapping,
    StyleEncoder,
    check_sides,
    select,
    widths,
)

NODES = 32  # of Gauss-Hermite quadrature over noise


class Config(MethodConfig):
    """StarGAN v2's settings for CelebA-HQ, and ours for what it does not have."""

    lambda_sty: float = Field(1.0, ge=0)  # weight of the reconstruction of styles
    lambda_cyc: float = Field(1.0, ge=0)  # of the cycle
    lambda_ds: float = Field(1.0, ge=0)  # of diversity, at the start; 2 for AFHQ
    lambda_uni: float = Field(1.0, ge=0)  # of L_uni, which makes one space of both kinds of styles
    lambda_smooth: float = Field(0.1, ge=0)  # of L_smooth, the triplets of encoded styles
    lambda_reg: float = Field(1.0, ge=0)  # R1 of D
    lambda_reg_s: float = Field(1.0, ge=0)  # R1 of D_s
    alpha: float = Field(1.0, ge=0)  # the margin of L_smooth
    flow: bool = True  # splines; false: StarGAN v2's mapping network
    mirror: bool = False  # in x_a: for images that are as good mirrored
    bins: int = Field(8, ge=2, le=256)  # of a spline
    bound: float = Field(5.0, gt=0)  # a spline bends numbers within [-bound, bound]
    apart: float = Field(1.0, ge=0)  # how far from each other domains start, in deviations
    style_dim: int = Field(64, ge=1, le=4096)  # numbers in a style, components
    mlp_dim: int = Field(512, ge=1, le=4096)  # width of the network that makes the splines
    d_dim: int = Field(256, ge=1, le=4096)  # of D_s
    # Channels at full size times its side: 64 at 256 px ...
    width: int = Field(2**14, ge=512, le=2**18)
    max_dim: int = Field(512, ge=1, le=4096)  # ... doubling with each halving, up to this


class DSM(Method):
    layout = "domains"
    averaged = "G F E"
    accumulates = False  # L_smooth seeks its negative in the batch
    card = {
        "title": "Disentangling the Style for Multi-domain Image Translation",
        "authors": "not known to us",
        "venue": "not known to us",
        "year": None,
        "url": None,
        "outputs": "many",
    }
    presets = {
        "paper": {
            "data": {"size": 256, "batch": 8, "zoom": 1.1},
            "optim": {
                "default": {"lr": 1e-4, "betas": [0.0, 0.99], "weight_decay": 1e-4},
                "F": {"lr": 1e-6, "weight_decay": 0.0},
            },
            "train": {"steps": 100_000, "ema": 0.999, "save_every": 10_000, "sample_every": 5_000},
        },
        "small": {
            "method": {
                "style_dim": 4,  # few steps tell few components apart
                "mlp_dim": 64,
                "d_dim": 64,
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
                "F": {"lr": 1e-5, "weight_decay": 0.0},
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
        self.F = (
            Flow(K, config.style_dim, config.mlp_dim, config.bins, config.bound, config.apart)
            if config.flow
            else Mapping(config.style_dim, config.mlp_dim, config.style_dim, K)
        )
        self.E = StyleEncoder(channels, whole, config.style_dim, K)
        self.D = Discriminator(channels, whole, K)
        self.D_s = (
            StyleDiscriminator(config.style_dim, config.d_dim, K) if config.lambda_uni else None
        )

    # The game ------------------------------------------------------------------------------------

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        G, E = self.G, self.E
        x, target = batch["x_src"], batch["y_ref"]
        references = torch.cat([batch["x_ref"], batch["x_ref2"]])
        y, shape = target.repeat(2), (x.shape[0], self.config.style_dim)
        z, z_2 = step.normal("z_trg", *shape, like=x), step.normal("z_trg2", *shape, like=x)

        # What G, F and E make stays as it is until they move: made once for all moves up to theirs.
        c, s_z, s_x = G.encoder(x), self.F(torch.cat([z, z_2]), y), E(references, y)
        s, s_2 = s_z.chunk(2)
        x_fake = G.decoder(c, s)
        yield self.discriminate("latent", batch, x_fake.detach())
        with torch.no_grad():
            x_fake_ref = G.decoder(c, s_x.chunk(2)[0])
        yield self.discriminate("reference", batch, x_fake_ref)
        if self.D_s:
            yield self.discriminate_styles(self.D_s, s_z.detach(), s_x.detach(), y)
        L = self.generate("latent", batch, c, x_fake, s, s_2, step)
        yield move("G F E", L | self.encode(s_x, references, y, step))

        with torch.no_grad():
            s, s_2 = E(references, y).chunk(2)
        c = G.encoder(x)
        yield move("G", self.generate("reference", batch, c, G.decoder(c, s), s, s_2, step))

    def discriminate(self, by: str, batch: Batch, x_fake: Tensor) -> Update:
        x = batch["x_src"].detach().requires_grad_()
        with fp32(x), Twice():
            real = self.D.forward(x, batch["y_src"])  # plain: double backward does not compile
            L_reg = self.config.lambda_reg * losses.r1(real, x)
        L_adv = losses.nsgan_d([real], [self.D(x_fake, batch["y_ref"])])
        return Update("D", L_adv + L_reg, {f"D_{by}": L_adv.detach(), f"reg_{by}": L_reg.detach()})

    def discriminate_styles(self, D_s: nn.Module, s_z: Tensor, s_x: Tensor, y: Tensor) -> Update:
        """Styles (2 B, n) from noise against those of references, of the domains `y`."""
        s = widened(s_z).requires_grad_()
        with fp32(s):
            real = D_s.forward(s, y)
            L_reg = self.config.lambda_reg_s * losses.r1(real, s)
        L_uni = losses.nsgan_d([real], [D_s(s_x, y)])
        spread = s_x.float().std(dim=0).mean()  # near 0 where E has collapsed
        log = {"D_s": L_uni.detach(), "reg_s": L_reg.detach(), "spread": spread}
        return Update("D_s", L_uni + L_reg, log)

    def generate(
        self,
        by: str,
        batch: Batch,
        c: Tensor,
        x_fake: Tensor,
        s: Tensor,
        s_2: Tensor,
        step: Step,
    ) -> dict[str, Tensor]:
        """The losses of x_fake = G(c, s), beside which G(c, s_2) is to differ."""
        G, E, D, w = self.G, self.E, self.D, self.config
        x, y, target = batch["x_src"], batch["y_src"], batch["y_ref"]
        lambda_ds = w.lambda_ds * (1 - step.fraction)
        with torch.no_grad():
            x_fake_2 = G.decoder(c, s_2)
        return {
            f"adv_{by}": losses.nsgan_g([D(x_fake, target)]),
            f"sty_{by}": w.lambda_sty * l1(E(x_fake, target), s.detach()),
            f"ds_{by}": -lambda_ds * l1(x_fake, x_fake_2),
            f"cyc_{by}": w.lambda_cyc * l1(G(x_fake, E(x, y)), x),
        }

    def encode(self, s: Tensor, x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        """What E alone learns from: both references x of a step, (2 B, C, H, W), of styles s."""
        w, L = self.config, {}
        if self.D_s:
            L["uni"] = w.lambda_uni * losses.nsgan_g([self.D_s(s, y)])
        if w.lambda_smooth:
            x_a = augment(x, step.uniform("x_a", x.shape[0], 5, like=x), w.mirror)
            L["smooth"] = w.lambda_smooth * smoothness(s, self.E(x_a, y), y, w.alpha)
        return L

    # The verbs -----------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        return frozenset({"latent", "reference"})

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        return self.G.encoder(x)

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        """Not bounded: there is no tanh, [-1, 1] is learned and slightly overshot."""
        return self.G.decoder(content, style)

    def latent_dim(self, target: int) -> int:
        return self.config.style_dim

    def map_latent(self, z: Tensor, target: int) -> Tensor:
        return self.F(z, torch.full((z.shape[0],), target, device=z.device))

    def encode_style(self, reference: Tensor, target: int) -> Tensor:
        y = torch.full((reference.shape[0],), target, device=reference.device)
        return self.E(reference, y)

    @property
    def stride(self) -> int:
        return self.G.stride


def move(nets: str, L: dict[str, Tensor]) -> Update:
    loss = torch.stack(list(L.values())).sum()
    return Update(nets, loss, {name: part.detach() for name, part in L.items()})


class Flow(nn.Module):
    """Noise (B, n) and domains (B,) -> styles (B, n): each component by a spline of its own.

    theta_u = MLP(one-hot u): for each component widths, heights and inner slopes of `bins` bins on
    [-bound, bound], a log scale and a shift. Then one shift and one scale of each component for all
    domains, by which its mean over them is 0 and its mean variance within them 1. Monotone, so
    invertible; in fp32, as bf16 would tear the bins.
    """

    def __init__(
        self, domains: int, n: int, dim: int, bins: int, bound: float, apart: float
    ) -> None:
        super().__init__()
        self.nodes: Tensor
        self.weights: Tensor
        self.domains, self.n, self.bound = domains, n, bound
        self.parts = (bins, bins, bins - 1, 1, 1)
        self.mlp = nn.Sequential(
            nn.Embedding(domains, dim),  # a linear layer on one-hot u
            nn.ReLU(),
            nn.Linear(dim, dim),
            nn.ReLU(),
        )
        self.theta = nn.Linear(dim, n * sum(self.parts))
        kaiming(self)
        if not self.theta.weight.is_meta:  # of which the shapes alone are asked for
            self.spread(apart)
        nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(NODES))
        for name, x in {"nodes": nodes, "weights": weights / weights.sum()}.items():
            self.register_buffer(name, x.to(torch.get_default_dtype()), persistent=False)

    @torch.no_grad()
    def spread(self, apart: float) -> None:
        """Starts as the identity, near enough, then shifts: two domains are `apart`, as root mean square of components.

        About half of a shift is common to all domains, whose h are alike, and `thetas` takes it back.
        """
        nn.init.normal_(self.theta.weight, std=1e-3)
        shifts = self.theta.weight.unflatten(0, (self.n, -1))[:, -1]
        h = self.mlp(torch.arange(self.domains))
        nn.init.normal_(shifts, std=apart).mul_(h.square().sum(1).mean().clamp(min=1e-6).rsqrt())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        with fp32(z):
            theta, m, sigma = self.thetas()
            f, a, b = self.transform(theta[y])
            return (a.exp() * f(z) + b - m) / sigma

    def inverse(self, s: Tensor, y: Tensor) -> Tensor:
        """The noise (B, n) of styles (B, n) of domains (B,)."""
        with fp32(s):
            theta, m, sigma = self.thetas()
            f, a, b = self.transform(theta[y])
            return f.inv((s * sigma + m - b) * (-a).exp())

    def thetas(self) -> tuple[Tensor, Tensor, Tensor]:
        """theta_u of all domains (K, n, 3 bins + 1); mean and deviation of each component, (n,)."""
        h = self.mlp(torch.arange(self.domains, device=self.nodes.device))
        theta = self.theta(h).unflatten(1, (self.n, -1))
        f, a, b = self.transform(theta)
        s = a.exp() * f(self.nodes[:, None, None].expand(-1, *a.shape)) + b  # (NODES, K, n)
        weights = self.weights[:, None, None]
        means = (weights * s).sum(0)
        variances = (weights * (s - means) ** 2).sum(0)
        return theta, means.mean(0), variances.mean(0).sqrt()

    def transform(self, theta: Tensor) -> tuple[MonotonicRQSTransform, Tensor, Tensor]:
        """The splines of theta (..., n, 3 bins + 1), and the log scales and shifts after them (..., n)."""
        *spline, a, b = theta.split(self.parts, dim=-1)
        return MonotonicRQSTransform(*spline, bound=self.bound), a[..., 0], b[..., 0]


class StyleDiscriminator(nn.Module):
    """Styles (B, n) and domains (B,) -> logits (B,): from noise, for this domain?"""

    def __init__(self, n: int, dim: int, domains: int) -> None:
        super().__init__()
        layers = [f for i in range(3) for f in (nn.Linear(dim if i else n, dim), nn.LeakyReLU(0.2))]
        self.mlp = nn.Sequential(*layers, nn.Linear(dim, domains))
        kaiming(self)

    def forward(self, s: Tensor, y: Tensor) -> Tensor:
        return select(self.mlp(s), y)


def smoothness(s: Tensor, s_a: Tensor, y: Tensor, alpha: float) -> Tensor:
    """max(alpha + |s - s_a| - |s - s_n|, 0), mean over the styles (B, n) that have a negative.

    |s| is the root mean square of the n components. The negative s_n is the nearest other style of
    the same domain in the batch.
    """
    s, s_a = (x.float() if x.dtype is torch.bfloat16 else x for x in (s, s_a))
    s, s_a = s / s.shape[1] ** 0.5, s_a / s.shape[1] ** 0.5
    with torch.no_grad():
        distance = (s[:, None] - s).norm(dim=2)  # (B, B)
        other = y[:, None] != y
        distance = distance.masked_fill(other.fill_diagonal_(True), math.inf)
        nearest, s_n = distance.min(dim=1)
    each = F.relu(alpha + (s - s_a).norm(dim=1) - (s - s[s_n]).norm(dim=1))
    chosen = nearest.isfinite()
    return (each * chosen).sum() / chosen.sum().clamp(min=1)


def augment(x: Tensor, draws: Tensor, mirror: bool) -> Tensor:
    """Crops of 80% to 100% of the area, aspect 0.9 to 1.1, resized back; half of them mirrored.

    `draws` (B, 5) are uniform in [0, 1).
    """
    area, aspect, right, down, side = draws.unbind(1)
    area, aspect = 1 - 0.2 * area, 0.9 * (1.1 / 0.9) ** aspect
    w, h = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    flip = torch.where(side < 0.5, -1, 1) if mirror else 1
    none = torch.zeros_like(w)
    theta = torch.stack(
        [w * flip, none, (1 - w) * (2 * right - 1), none, h, (1 - h) * (2 * down - 1)], dim=1
    )
    with fp32(x):
        grid = F.affine_grid(theta.view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
