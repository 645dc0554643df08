"""TUNIT: Rethinking the Truly Unsupervised Image-to-Image Translation.

Kyungjune Baek, Yunjey Choi, Youngjung Uh, Jaejun Yoo, Hyunjung Shim. ICCV 2021.
https://arxiv.org/abs/2006.06500

One folder of images without labels. A guiding network C (E in the paper) sorts them into K pseudo-
domains and gives each its style: p = C_class(x), y = argmax p, s = C_style(x). An image x takes the
style of a reference image x_ref of pseudo-domain y_ref: x~ = G(x, s_ref). With another view x+ of
x, the objective is

    min over G, C, max over D of   L_adv + lambda_style^G L_style^G + lambda_rec L_rec
                                   - lambda_MI L_MI + lambda_style^C L_style^C

    L_MI      = I(p, p+)                        clustering by mutual information (IIC)
    L_style^C = -log e^(s.k+/t) / (e^(s.k+/t) + sum over k of e^(s.k/t)),
                k+ = C'_style(x+), k a queue of such keys of earlier images (MoCo)
    L_adv     = hinge, on the heads of D of these domains, and R1 at x_ref;
                fakes are G(x, s_ref) for y_ref and G(x, s) for y
    L_style^G = L_style^C with C_style(x~) for s, C'_style(x_ref) for k+
    L_rec     = E |x - G(x, s)|

C' is the moving average of C. First C plays alone; then a step makes three moves: C, D, and C with
G. With labels for some images, their cross-entropy (of p and p+) takes the place of L_MI, and
labels that of y; with labels for all, C learns styles alone. `training: separate`, which the paper
compares with, leaves C as it is once G and D play.

Differences from the official code: the queue lasts for the whole run, is saved, and starts empty
(theirs: falls back to the same 32 keys every 1,000 iterations). BatchNorm's statistics of C' are
its own at all times (theirs: those of C every 1,000), and C sees a batch once where theirs
evaluates it twice or thrice, which shows in these statistics only. They are of images alone, not of
views and fakes too, whose colours and edges differ: else C sorts otherwise in use than in training.
The average of G starts with G (theirs: 1,000 iterations later), and averages follow faster at
first: the decay at step s is (1 + s) / (10 + s), until that reaches `train.ema` (0.999 at step
8,990), for C' too, whose keys are in a loss (theirs: 0.999 from the first step). A pseudo-label is that of the C
that has just moved (theirs, semi-supervised: before), and labels may be mixed in a batch (theirs:
for all images of it or for none). Without a reference, the mean style of the latest 1,024 images of
a domain serves (theirs: of all of its images), by an exponential average. The head that clusters
moves once a step of C (theirs, before PyTorch 2.0: in the second step too, by momentum and weight
decay of a gradient of zero). As theirs, codes are not normalised unless
`normalise` says so, as `small` does. Losses, gradients and updates agree with it to rounding
(`tests/test_parity_tunit.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from unpaired import losses
from unpaired.convolution import Twice
from unpaired.errors import ConfigProblem
from unpaired.losses import l1
from unpaired.method import Batch, Method, MethodConfig, Shape, Step, Update, fp32, frozen
from unpaired.networks.tunit import Discriminator, Generator, GuidingNetwork

FIRST_STAGE = {"none": 65 / 200, "some": 35 / 200}
CONTENT = 16  # px, the side that the generator halves an image to
SMALLEST = 32  # px, the least that C can halve five times


class Config(MethodConfig):
    """The paper's settings, for 128 px."""

    clusters: int = Field(10, ge=2, le=10_000)  # K, the number of pseudo-domains
    # Which images have labels to learn from: none, some, all
    labels: Literal["none", "some", "all"] = "none"
    # Once G and D play: joint: C goes on learning beside them; separate: it stays as it is
    training: Literal["joint", "separate"] = "joint"
    # Fractions of the run: C is alone until `first_stage` (0.325, or 0.175 where some images have
    # labels; never where all have), and with some labels L_MI comes in at `labels_only`.
    first_stage: float = Field(FIRST_STAGE["none"], ge=0, le=1)
    labels_only: float = Field(20 / 200, ge=0, le=1)  # see first_stage
    lambda_adv: float = Field(1.0, ge=0)  # weight of the adversarial loss
    lambda_gp: float = Field(10.0, ge=0)  # of D's gradient penalty
    lambda_rec: float = Field(0.1, ge=0)  # of the reconstruction of images
    lambda_style_g: float = Field(0.01, ge=0)  # of the style contrast, for G
    lambda_style_c: float = Field(1.0, ge=0)  # of the style contrast, for C
    lambda_mi: float = Field(5.0, ge=0)  # of the cross-entropy too
    joint: float = Field(0.1, ge=0)  # on both once G and D play: the paper's 0.1 and 0.5
    temperature: float = Field(0.07, gt=0)  # of the style contrasts
    # Features of a batch before the heads of C, and codes where they are compared: for short runs
    normalise: bool = False
    # How many images of a batch G and D play with; all where it is not said. C needs many at once, as
    # mutual information is of a batch, and with G and D an image costs eight times as much.
    gan_batch: int | None = Field(None, ge=2, le=2**16)
    # Styles of earlier images that a style is contrasted with
    queue: int = Field(1024, ge=1, le=2**16)
    style_dim: int = Field(128, ge=1, le=4096)  # numbers in a style
    # Width of the network that turns a style into AdaIN's parameters
    mlp_dim: int = Field(256, ge=1, le=4096)
    dim: int = Field(64, ge=1, le=4096)  # of G; 32 from 256 px on
    c_dim: int = Field(64, ge=1, le=4096)  # channels of C's first layer
    d_dim: int = Field(64, ge=1, le=4096)  # of D; 32 from 256 px on
    d_max_dim: int = Field(1024, ge=1, le=4096)  # the most channels of D

    @model_validator(mode="before")
    @classmethod
    def stages(cls, said: Any) -> Any:
        """The first stage of each kind of supervision, where nothing else is said."""
        labels = said.get("labels") if isinstance(said, Mapping) else None
        if isinstance(labels, str) and labels in FIRST_STAGE:
            return {"first_stage": FIRST_STAGE[labels], **said}
        return said

    @model_validator(mode="after")
    def learns(self) -> Config:
        if self.labels == "all" and self.training == "separate":
            raise ValueError(
                "with method.labels=all there is no first stage in which C could learn: say method.training=joint"
            )
        return self


class TUNIT(Method):
    layout = "unlabelled"
    averaged = "G C"
    accumulates = False  # mutual information and BatchNorm are of a batch, not of an image
    queue: Tensor
    queued: Tensor
    share: Tensor
    card = {
        "title": "Rethinking the Truly Unsupervised Image-to-Image Translation",
        "authors": "Baek, Choi, Uh, Yoo, Shim",
        "venue": "ICCV",
        "year": 2021,
        "url": "https://arxiv.org/abs/2006.06500",
        "outputs": "many, by reference",
    }
    presets = {
        "paper": {
            "data": {"size": 128, "batch": 32},
            "optim": {
                "default": {"kind": "rmsprop", "lr": 1e-4, "weight_decay": 1e-4},
                "C": {"kind": "adam", "lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 1e-3},
            },
            "train": {"steps": 200_000, "ema": 0.999, "save_every": 10_000, "sample_every": 5_000},
        },
        "small": {
            "method": {
                "normalise": True,
                "gan_batch": 16,
                "lambda_gp": 0.6,  # 10 at 128 px: at a quarter of the side R1 weighs 16 times as much
                "style_dim": 32,
                "mlp_dim": 64,
                "dim": 16,
                "c_dim": 16,
                "d_dim": 16,
                "d_max_dim": 64,
            },
            "data": {"size": 32, "batch": 64},
            "optim": {
                # RMSprop with its bias corrected, without which the first step is ten times too long
                "default": {"kind": "adam", "lr": 1e-3, "betas": [0.0, 0.99], "weight_decay": 1e-4},
                "C": {"kind": "adam", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 1e-3},
            },
            "train": {"steps": 6000, "ema": 0.99, "save_every": 1000, "sample_every": 1000},
        },
    }

    def __init__(self, config: Config, domains: tuple[str, ...], shape: Shape) -> None:
        super().__init__(config, name_domains(config, domains), shape)
        side, K = min(shape.height, shape.width), config.clusters
        stride = 2 ** max(int(math.log2(side / CONTENT)), 0)
        if side < SMALLEST or shape.height % stride or shape.width % stride:
            raise ConfigProblem(
                f"data.size: sides of {shape.height} x {shape.width} px do not suit this method, "
                f"which needs at least {SMALLEST} px and here multiples of {stride}: choose a "
                "power of two from 32 to 512."
            )
        self.C = GuidingNetwork(shape.channels, config.c_dim, config.style_dim, K, config.normalise)
        self.G = Generator(shape.channels, config.dim, stride, config.style_dim, config.mlp_dim)
        self.D = Discriminator(shape.channels, side, config.d_dim, config.d_max_dim, K)
        if config.labels == "all":
            self.assign = None  # type: ignore[assignment,method-assign]  # labels tell the domains; no head learns them
        self.register_buffer("queue", torch.zeros(config.queue, config.style_dim))
        self.register_buffer("queued", torch.tensor(0))  # how many keys ever entered
        self.register_buffer(
            "share", torch.full((K,), 1 / K)
        )  # of the latest images in each domain

    @classmethod
    def supervision(cls, config: Config) -> Literal["none", "some", "all"]:
        return config.labels

    # The game ------------------------------------------------------------------------------------

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        x, x_tf = batch["x"], batch["x_tf"]
        if len(x) < 2:
            raise ConfigProblem(
                "data.batch: clusters are found by comparing the images of a batch: set it to 2 at the "
                "least, better to 32 or 64."
            )
        unlabelled = x.new_full((len(x),), -1, dtype=torch.long)
        y = unlabelled if self.config.labels == "none" else batch["y"]
        alone = self.config.labels != "all" and step.fraction < self.config.first_stage
        C_: Any = self.ema["C"]
        with torch.no_grad(), C_.passing():
            k, _ = C_(x_tf)
        keys = self.settle(x)
        if alone or self.config.training == "joint":
            yield self.guide(x, x_tf, k, y, alone, step)

        if not alone:
            C = self.C if self.config.training == "joint" else frozen(self.C)
            s, logits = C(x)  # by the C that has moved
            y = torch.where(y < 0, logits.argmax(1), y)
            self.C.remember(keys, y)
            x, s, y, keys = (t[: self.config.gan_batch] for t in (x, s, y, keys))
            ref = step.permutation("reference", len(x), like=x)
            c = self.G.encoder(x)
            fakes = self.G.decoder(torch.cat([c, c]), torch.cat([s[ref], s]))  # for both moves
            yield self.discriminate(x[ref], fakes[: len(x)].detach(), y[ref])
            yield self.generate(x, fakes, y, ref, keys[ref], C)
        self.enqueue(k)

    @torch.no_grad()
    def settle(self, x: Tensor) -> Tensor:
        """The styles (B, style_dim) of images by C', whose statistics this brings up to date."""
        return self.ema["C"](x)[0]

    @torch.no_grad()
    def update_averages(self, decay: float) -> None:
        """C' keeps BatchNorm's statistics of its own: those of C do not fit its weights while these move."""
        C: Any = self.ema["C"]
        statistics = [*C.features.buffers(), *C.norm.buffers()]
        own = [b.clone() for b in statistics]
        super().update_averages(decay)
        for b, kept in zip(statistics, own, strict=True):
            b.copy_(kept)

    def guide(
        self, x: Tensor, x_tf: Tensor, k: Tensor, y: Tensor, alone: bool, step: Step
    ) -> Update:
        w = self.config
        s, logits = self.C(x)
        L = {"style_C": w.lambda_style_c * self.contrast(s, k)}
        if w.labels != "all":
            with self.C.passing():
                _, logits_tf = self.C(x_tf)
            with fp32(x):
                p, p_tf = logits.softmax(1), logits_tf.softmax(1)
                unlabelled = (y < 0)[:, None].to(p)  # (B, 1)
                if w.labels == "none" or step.fraction >= w.labels_only:
                    L["MI"] = -w.lambda_mi * losses.mutual_information(unlabelled * p, p_tf)
                if w.labels == "some":
                    L["CE"] = w.lambda_mi * (cross_entropy(logits, y) + cross_entropy(logits_tf, y))
        loss = (1.0 if alone else w.joint) * torch.stack(list(L.values())).sum()
        log = {name: part.detach() for name, part in L.items()}
        if w.labels != "all":
            log |= self.shares(logits, settled=step.fraction >= w.first_stage / 2)
        return Update("C", loss, log)

    @torch.no_grad()
    def shares(self, logits: Tensor, settled: bool) -> dict[str, Tensor]:
        """The largest domain's share of some 50 batches; once `settled`, how many have under 0.1 / K."""
        now = F.one_hot(logits.argmax(1), len(self.share)).to(self.share).mean(0)
        self.share.lerp_(now, 0.02)
        log = {"share_largest": self.share.max()}
        if settled:
            log["domains_empty"] = (self.share < 0.1 / len(self.share)).sum().to(self.share)
        return log

    def discriminate(self, x_ref: Tensor, x_fake: Tensor, y_ref: Tensor) -> Update:
        D, w = self.D, self.config
        x_ref = x_ref.detach().requires_grad_()
        with fp32(x_ref), Twice():
            real = D.forward(x_ref, y_ref)  # plain: what differentiates twice does not compile
            L_gp = w.lambda_gp * 2 * losses.r1(real, x_ref)  # without the half of R1
        L_real, L_fake = losses.hinge(real), losses.hinge(-D(x_fake, y_ref))
        loss = w.lambda_adv * (L_real + L_fake) + L_gp
        L = {"D_real": L_real, "D_fake": L_fake, "gp": L_gp}
        return Update("D", loss, {name: part.detach() for name, part in L.items()})

    def generate(
        self, x: Tensor, fakes: Tensor, y: Tensor, ref: Tensor, k: Tensor, C: Any
    ) -> Update:
        w = self.config
        x_fake, x_rec = fakes.chunk(2)
        with self.C.passing():
            s_fake, _ = C(x_fake)
        fake, rec = self.D(fakes, torch.cat([y[ref], y])).chunk(2)
        L = {
            "adv_fake": -w.lambda_adv * fake.mean(),
            "adv_rec": -w.lambda_adv * rec.mean(),
            "rec": w.lambda_rec * l1(x_rec, x),
            "style_G": w.lambda_style_g * self.contrast(s_fake, k),
        }
        loss = torch.stack(list(L.values())).sum()
        nets = "C G" if w.training == "joint" else "G"
        return Update(nets, loss, {name: part.detach() for name, part in L.items()})

    def contrast(self, s: Tensor, k: Tensor) -> Tensor:
        """Styles (B, style_dim) against their keys, the queue being the negatives."""
        held = torch.arange(len(self.queue), device=s.device) < self.queued
        codes = (s, k, self.queue)
        with fp32(s):
            if self.config.normalise:
                codes = (F.normalize(s), F.normalize(k), F.normalize(self.queue))
            return losses.infonce(*codes, held, self.config.temperature)

    @torch.no_grad()
    def enqueue(self, k: Tensor) -> None:
        """Keys (B, style_dim) take the places of the oldest."""
        k = k[-len(self.queue) :]
        places = (self.queued + torch.arange(len(k), device=k.device)) % len(self.queue)
        self.queue[places] = k.to(self.queue)
        self.queued += len(k)

    # The verbs -----------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        return frozenset({"reference", "mean"})

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        return self.G.encoder(x)

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        return self.G.decoder(content, style)

    def sample_style(self, n: int, target: int, generator: torch.Generator) -> Tensor:
        """The mean style of the domain, `n` times: there is no prior to sample from."""
        if not self.C.count[target]:
            raise ConfigProblem(
                f"Domain {self.domains[target]} has no mean style: no training image has fallen "
                "into it since G plays. Give a reference image, name another domain, or train on."
            )
        return self.C.mean[target].expand(n, -1)

    def encode_style(self, reference: Tensor, target: int) -> Tensor:
        """One style space serves all domains: `target` does not matter."""
        return self.C(reference)[0]

    def assign(self, x: Tensor) -> Tensor:
        """Probabilities (B, K) of the domains of images `x`."""
        return self.C(x)[1].softmax(1)

    @property
    def stride(self) -> int:
        return self.G.stride


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over the images that have a label; 0 where none has."""
    return F.cross_entropy(logits, y, ignore_index=-1, reduction="sum") / (y >= 0).sum().clamp(
        min=1
    )


def name_domains(config: Config, domains: tuple[str, ...]) -> tuple[str, ...]:
    """K names: those given, of all pseudo-domains or of the labels, and numbers for the rest."""
    K = config.clusters
    if config.labels == "none":
        return domains if len(domains) == K else tuple(f"domain_{i + 1}" for i in range(K))
    if len(domains) > K:
        raise ConfigProblem(
            f"method.clusters: {K} is less than the {len(domains)} labels of the data: "
            f"set method.clusters={len(domains)}."
        )
    return domains + tuple(f"domain_{i + 1}" for i in range(len(domains), K))
