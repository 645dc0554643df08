"""The plain steps of StarGAN v2, SmoothGAN and DSM: see `plain_family.py` for what plain means."""

import copy
import math

import numpy as np
import torch
from plain import l1
from torch import nn
from torch.nn import functional as F
from zuko.transforms import MonotonicRQSTransform


def bce(logits, target):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def r1(scores, x):
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return 0.5 * torch.mean(torch.sum(gradient.reshape(len(x), -1) ** 2, 1))


class Down(nn.Module):
    def __init__(self, a, b, norm=False, pool=True):
        super().__init__()
        self.norm_1, self.norm_2 = (
            nn.InstanceNorm2d(a, affine=True) if norm else nn.Identity() for _ in range(2)
        )
        self.conv_1, self.conv_2 = nn.Conv2d(a, a, 3, 1, 1), nn.Conv2d(a, b, 3, 1, 1)
        self.skip = nn.Conv2d(a, b, 1, bias=False) if a != b else nn.Identity()
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()

    def forward(self, x):
        h = self.pool(self.conv_1(F.leaky_relu(self.norm_1(x), 0.2)))
        h = self.conv_2(F.leaky_relu(self.norm_2(h), 0.2))
        return (self.pool(self.skip(x)) + h) / math.sqrt(2)


class AdaIN(nn.Module):
    def __init__(self, style_dim, c):
        super().__init__()
        self.fc, self.norm = nn.Linear(style_dim, 2 * c), nn.InstanceNorm2d(c)

    def forward(self, x, s):
        scale, shift = self.fc(s)[:, :, None, None].chunk(2, 1)
        return (1 + scale) * self.norm(x) + shift


class Up(nn.Module):
    def __init__(self, a, b, style_dim, grow=True):
        super().__init__()
        self.norm_1, self.norm_2 = AdaIN(style_dim, a), AdaIN(style_dim, b)
        self.conv_1, self.conv_2 = nn.Conv2d(a, b, 3, 1, 1), nn.Conv2d(b, b, 3, 1, 1)
        self.skip = nn.Conv2d(a, b, 1, bias=False) if a != b else nn.Identity()
        self.grow = nn.Upsample(scale_factor=2) if grow else nn.Identity()

    def forward(self, x, s):
        h = self.conv_1(self.grow(F.leaky_relu(self.norm_1(x, s), 0.2)))
        h = self.conv_2(F.leaky_relu(self.norm_2(h, s), 0.2))
        return (self.skip(self.grow(x)) + h) / math.sqrt(2)


class Generator(nn.Module):
    def __init__(self, widths, style_dim):
        super().__init__()
        pairs, c = list(zip(widths, widths[1:], strict=False)), widths[-1]
        self.rgb_in = nn.Conv2d(3, widths[0], 3, 1, 1)
        self.encode = nn.Sequential(
            *(Down(a, b, True) for a, b in pairs),
            *(Down(c, c, True, False) for _ in range(2)),
        )
        self.decode = nn.ModuleList([Up(c, c, style_dim, False) for _ in range(2)])
        self.decode.extend(Up(b, a, style_dim) for a, b in reversed(pairs))
        norm = nn.InstanceNorm2d(widths[0], affine=True)
        self.rgb_out = nn.Sequential(norm, nn.LeakyReLU(0.2), nn.Conv2d(widths[0], 3, 1))

    def forward(self, x, s):
        x = self.encode(self.rgb_in(x))
        for block in self.decode:
            x = block(x, s)
        return self.rgb_out(x)


def mlp(a, c, layers):
    return [f for i in range(layers) for f in (nn.Linear(c if i else a, c), nn.ReLU())]


def head(outs, y):
    return torch.stack(outs, 1)[torch.arange(len(y), device=y.device), y]


class Mapping(nn.Module):
    def __init__(self, latent_dim, dim, style_dim, domains):
        super().__init__()
        self.shared = nn.Sequential(*mlp(latent_dim, dim, 4))
        self.heads = nn.ModuleList(
            nn.Sequential(*mlp(dim, dim, 3), nn.Linear(dim, style_dim)) for _ in range(domains)
        )

    def forward(self, z, y):
        h = self.shared(z)
        return head([f(h) for f in self.heads], y)


class Judge(nn.Module):
    """Style encoder and discriminator: a trunk down to one position, and a head for each domain."""

    def __init__(self, widths, heads):
        super().__init__()
        pairs, c = zip(widths, widths[1:], strict=False), widths[-1]
        self.trunk = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1),
            *(Down(a, b) for a, b in pairs),
            *(nn.LeakyReLU(0.2), nn.Conv2d(c, c, 4), nn.LeakyReLU(0.2)),
        )
        self.heads = heads


class StyleEncoder(Judge):
    def __init__(self, widths, style_dim, domains):
        heads = nn.ModuleList(nn.Linear(widths[-1], style_dim) for _ in range(domains))
        super().__init__(widths, heads)

    def forward(self, x, y):
        h = self.trunk(x).flatten(1)
        return head([f(h) for f in self.heads], y)


class Discriminator(Judge):
    def __init__(self, widths, domains):
        super().__init__(widths, nn.Conv2d(widths[-1], domains, 1))

    def forward(self, x, y):
        return self.heads(self.trunk(x)).flatten(1)[torch.arange(len(y), device=y.device), y]


class PlainStarGANv2(nn.Module):
    def __init__(self, w, side, domains):
        super().__init__()
        self.w, self.domains = w, domains
        self.latent_dim = getattr(w, "latent_dim", w.style_dim)
        widths = [
            min(w.width // side * 2**i, w.max_dim) for i in range((side // 4).bit_length())
        ]  # to 4 px; the generator's content has 16
        self.G = Generator(widths[:-2], w.style_dim)
        self.F, f_settings = self.mapping()
        self.E = StyleEncoder(widths, w.style_dim, domains)
        self.D = Discriminator(widths, domains)
        self.opt = {n: self.adam(getattr(self, n)) for n in "GED"}
        self.opt["F"] = self.adam(self.F, **f_settings)
        self.ema = nn.ModuleDict({n: copy.deepcopy(getattr(self, n)) for n in "GFE"})
        self.ema.requires_grad_(False)

    def adam(self, net, lr=1e-4, weight_decay=1e-4):
        return torch.optim.Adam(net.parameters(), lr, (0.0, 0.99), weight_decay=weight_decay)

    def mapping(self):
        w = self.w
        return Mapping(self.latent_dim, w.mlp_dim, w.style_dim, self.domains), {"lr": 1e-6}

    def step(self, batch, draws):
        x, y, target = batch["x_src"], batch["y_src"], batch["y_ref"]
        x_ref, x_ref2 = batch["x_ref"], batch["x_ref2"]
        z, z_2 = (
            draws.normal(name, len(x), self.latent_dim, like=x) for name in ("z_trg", "z_trg2")
        )

        with torch.no_grad():
            x_fake = self.G(x, self.F(z, target))
        self.move("D", self.d_loss(x, y, x_fake, target))
        with torch.no_grad():
            x_fake = self.G(x, self.E(x_ref, target))
        self.move("D", self.d_loss(x, y, x_fake, target))
        self.more_moves(batch, z, z_2)

        s, s_2 = self.F(z, target), self.F(z_2, target)
        loss = self.g_loss(batch, s, s_2, draws, lambda: self.F(z, y))
        self.move("GFE", loss + self.latent_loss(batch, draws))
        s, s_2 = self.E(x_ref, target), self.E(x_ref2, target)
        self.move("G", self.g_loss(batch, s, s_2, draws, lambda: self.E(x, y)))

        with torch.no_grad():
            for n, average in self.ema.items():
                live = getattr(self, n).parameters()
                for p, q in zip(average.parameters(), live, strict=True):
                    p.lerp_(q, 0.001)

    def move(self, nets, loss):
        for opt in self.opt.values():
            opt.zero_grad()
        loss.backward()
        for n in nets:
            self.opt[n].step()

    def d_loss(self, x, y, x_fake, target):
        x = x.detach().requires_grad_()
        real = self.D(x, y)
        loss = bce(real, 1) + self.w.lambda_reg * r1(real, x)
        return loss + bce(self.D(x_fake, target), 0)

    def g_loss(self, batch, s, s_2, draws, own_target):
        w, x, y, target = self.w, batch["x_src"], batch["y_src"], batch["y_ref"]
        x_fake = self.G(x, s)
        loss = bce(self.D(x_fake, target), 1)
        loss = loss + w.lambda_sty * l1(self.E(x_fake, target), self.aim(s))
        x_fake_2 = self.G(x, s_2).detach()
        loss = loss - w.lambda_ds * (1 - draws.fraction) * l1(x_fake, x_fake_2)
        own = self.E(x, y)
        loss = loss + w.lambda_cyc * l1(self.G(x_fake, own), x)
        return loss + self.style_loss(batch, s, s_2, own, draws, own_target)

    def more_moves(self, batch, z, z_2):
        pass

    def aim(self, s):
        return s

    def latent_loss(self, batch, draws):
        return 0.0

    def style_loss(self, batch, s, s_2, own, draws, own_target):
        return 0.0


class PlainSmoothGAN(PlainStarGANv2):
    def style_loss(self, batch, s, s_2, own, draws, own_target):
        w, changed = self.w, batch["y_src"] != batch["y_ref"]
        s_y = own_target()
        rise = max(0.0, (draws.fraction - 0.4) / 0.6)
        loss = w.lambda_kl * rise * (torch.mean(s**2) + torch.mean(own**2))
        if changed.any():
            tri = F.triplet_margin_loss(s[changed], s_2[changed], s_y[changed], w.margin)
            loss = loss + w.lambda_tri * tri
        return loss


class Flow(nn.Module):
    def __init__(self, domains, n, dim, bins, bound):
        super().__init__()
        self.domains, self.n, self.bins, self.bound = domains, n, bins, bound
        self.mlp = nn.Sequential(
            *(nn.Embedding(domains, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()),
            nn.Linear(dim, n * (3 * bins + 1)),
        )

    def forward(self, z, y):
        theta = self.mlp(torch.arange(self.domains, device=z.device)).view(self.domains, self.n, -1)
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)  # over noise: mean and variance
        weights = z.new_tensor(weights / weights.sum())[:, None, None]
        s = self.spline(theta, z.new_tensor(nodes)[:, None, None].expand(-1, *theta.shape[:2]))
        m = torch.sum(weights * s, 0)
        sigma = torch.sqrt(torch.mean(torch.sum(weights * (s - m) ** 2, 0), 0))
        return (self.spline(theta[y], z) - torch.mean(m, 0)) / sigma

    def spline(self, theta, z):
        parts = [self.bins, self.bins, self.bins - 1, 1, 1]
        widths, heights, slopes, a, b = theta.split(parts, -1)
        f = MonotonicRQSTransform(widths, heights, slopes, self.bound)
        return torch.exp(a[..., 0]) * f(z) + b[..., 0]


class StyleDiscriminator(nn.Module):
    def __init__(self, n, dim, domains):
        super().__init__()
        layers = [f for a in (n, dim, dim) for f in (nn.Linear(a, dim), nn.LeakyReLU(0.2))]
        self.mlp = nn.Sequential(*layers, nn.Linear(dim, domains))

    def forward(self, s, y):
        return self.mlp(s)[torch.arange(len(y), device=y.device), y]


class PlainDSM(PlainStarGANv2):
    def __init__(self, w, side, domains):
        super().__init__(w, side, domains)
        self.D_s = StyleDiscriminator(w.style_dim, w.d_dim, domains)
        self.opt["D_s"] = self.adam(self.D_s)

    def mapping(self):
        w = self.w
        flow = Flow(self.domains, w.style_dim, w.mlp_dim, w.bins, w.bound)
        return flow, {"lr": 1e-6, "weight_decay": 0.0}

    def aim(self, s):
        return s.detach()

    def more_moves(self, batch, z, z_2):
        y = batch["y_ref"]
        with torch.no_grad():
            real = torch.cat([self.F(z, y), self.F(z_2, y)])
            fake = torch.cat([self.E(batch["x_ref"], y), self.E(batch["x_ref2"], y)])
        y, real = y.repeat(2), real.requires_grad_()
        scores = self.D_s(real, y)
        loss = bce(scores, 1) + bce(self.D_s(fake, y), 0)
        self.move(["D_s"], loss + self.w.lambda_reg_s * r1(scores, real))

    def latent_loss(self, batch, draws):
        w, y = self.w, batch["y_ref"].repeat(2)
        s = torch.cat([self.E(batch[x], batch["y_ref"]) for x in ("x_ref", "x_ref2")])
        x = torch.cat([batch["x_ref"], batch["x_ref2"]])
        s_a = self.E(augmented(x, draws.uniform("x_a", len(x), 5, like=x), w.mirror), y)
        with torch.no_grad():  # the nearest other style of the domain is the negative
            distance = torch.norm(s[:, None] - s[None], dim=2).fill_diagonal_(math.inf)
            distance[y[:, None] != y[None]] = math.inf
            nearest, j = distance.min(1)
        gap = (torch.norm(s - s_a, dim=1) - torch.norm(s - s[j], dim=1)) / math.sqrt(s.shape[1])
        has = nearest < math.inf
        smooth = torch.mean(F.relu(w.alpha + gap[has])) if has.any() else 0.0
        return w.lambda_uni * bce(self.D_s(s, y), 1) + w.lambda_smooth * smooth


def augmented(x, u, mirror):
    """Crops of 80% to 100% of the area, aspect 0.9 to 1.1, resized back; some mirrored."""
    area, aspect = 1 - 0.2 * u[:, 0], 0.9 * (1.1 / 0.9) ** u[:, 1]
    w, h = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    theta = torch.zeros(len(x), 2, 3, device=x.device, dtype=x.dtype)
    theta[:, 0, 0] = torch.where(u[:, 4] < 0.5, -w, w) if mirror else w
    theta[:, 0, 2] = (1 - w) * (2 * u[:, 2] - 1)
    theta[:, 1, 1] = h
    theta[:, 1, 2] = (1 - h) * (2 * u[:, 3] - 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
