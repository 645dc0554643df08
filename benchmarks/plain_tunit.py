"""The plain step of TUNIT once G and D play, without labels: see `plain_family.py` for what plain means."""

import copy
import math

import torch
from plain import AdaIN, Residual, conv, l1
from torch import nn
from torch.nn import functional as F


class GuidingNetwork(nn.Module):
    def __init__(self, dim, style_dim, clusters):
        super().__init__()
        layers, c = [], 3
        for width, repeats in zip((1, 2, 4, 8, 8), (1, 1, 2, 2, 2), strict=True):
            for _ in range(repeats):
                layers.append(nn.Conv2d(c, width * dim, 3, 1, 1))
                layers += [nn.BatchNorm2d(width * dim), nn.ReLU(True)]
                c = width * dim
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.style, self.domain = nn.Linear(c, style_dim), nn.Linear(c, clusters)

    def forward(self, x):
        h = self.features(x)
        return self.style(h), self.domain(h)


class TenthResidual(Residual):
    def forward(self, x):
        return 0.1 * self.body(x) + x


class Generator(nn.Module):
    def __init__(self, dim, down, style_dim, mlp_dim):
        super().__init__()
        layers, c = [conv(3, dim, 7, 1, 3, nn.InstanceNorm2d, nn.ReLU(True))], dim
        for _ in range(down):
            layers.append(conv(c, 2 * c, 4, 2, 1, nn.InstanceNorm2d, nn.ReLU(True)))
            c *= 2
        self.encoder = nn.Sequential(
            *layers, *(TenthResidual(c, nn.InstanceNorm2d) for _ in range(2))
        )
        layers = [TenthResidual(c, AdaIN) for _ in range(2)]
        for _ in range(down):
            layers += [nn.Upsample(scale_factor=2), conv(c, c // 2, 5, 1, 2, AdaIN, nn.ReLU(True))]
            c //= 2
        self.decoder = nn.Sequential(*layers, conv(c, 3, 7, 1, 3, None, nn.Tanh()))
        self.norms = [m for m in self.decoder.modules() if isinstance(m, AdaIN)]
        self.mlp = nn.Sequential(
            *(nn.Linear(style_dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, mlp_dim), nn.ReLU()),
            nn.Linear(mlp_dim, sum(2 * m.c for m in self.norms)),
        )

    def forward(self, x, s):
        numbers = self.mlp(s).split([2 * norm.c for norm in self.norms], 1)
        for norm, part in zip(self.norms, numbers, strict=True):
            norm.shift, norm.scale = part[:, : norm.c], part[:, norm.c :]
        return self.decoder(self.encoder(x))


class FilterResponseNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, c, 1, 1))
        self.beta, self.tau = (nn.Parameter(torch.zeros(1, c, 1, 1)) for _ in range(2))

    def forward(self, x):
        x = x * torch.rsqrt(torch.mean(x**2, (2, 3), keepdim=True) + 1e-6)
        return torch.max(self.gamma * x + self.beta, self.tau)


class FRNResidual(nn.Module):
    def __init__(self, a, b, pool):
        super().__init__()
        self.norm_1, self.norm_2 = FilterResponseNorm(a), FilterResponseNorm(a)
        self.conv_1, self.conv_2 = nn.Conv2d(a, a, 3, 1, 1), nn.Conv2d(a, b, 3, 1, 1)
        self.skip = nn.Conv2d(a, b, 1, bias=False) if a != b else nn.Identity()
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()

    def forward(self, x):
        h = self.conv_2(self.norm_2(self.pool(self.conv_1(self.norm_1(x)))))
        return (self.pool(self.skip(x)) + h) / math.sqrt(2)


class Discriminator(nn.Module):
    def __init__(self, side, dim, max_dim, clusters):
        super().__init__()
        layers, c = [nn.Conv2d(3, dim, 3, 1, 1)], dim
        for _ in range(side.bit_length() - 3):
            wide = min(2 * c, max_dim)
            layers += [FRNResidual(c, c, False), FRNResidual(c, wide, True)]
            c = wide
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(c, c, 4), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(c, clusters, 1), nn.Flatten())

    def forward(self, x, y):
        return self.net(x)[torch.arange(len(y), device=y.device), y]


class PlainTUNIT(nn.Module):
    def __init__(self, w, side, domains):
        super().__init__()
        if w.normalise or w.gan_batch:
            raise SystemExit("The plain TUNIT is the paper's: normalise=false, gan_batch=null.")
        self.w = w
        self.C = GuidingNetwork(w.c_dim, w.style_dim, w.clusters)
        self.G = Generator(w.dim, (side // 16).bit_length() - 1, w.style_dim, w.mlp_dim)
        self.D = Discriminator(side, w.d_dim, w.d_max_dim, w.clusters)
        self.ema = nn.ModuleDict({n: copy.deepcopy(getattr(self, n)) for n in "GC"})
        self.ema.requires_grad_(False)
        self.c_opt = torch.optim.Adam(self.C.parameters(), 1e-4, weight_decay=1e-3)
        self.g_opt, self.d_opt = (
            torch.optim.RMSprop(net.parameters(), 1e-4, weight_decay=1e-4)
            for net in (self.G, self.D)
        )
        self.queue = None

    def step(self, batch, draws):
        w, x, x_tf = self.w, batch["x"], batch["x_tf"]
        if self.queue is None:
            self.queue = x.new_zeros(0, w.style_dim)

        # C
        s = self.C(x)[0]
        with torch.no_grad():
            key = self.ema["C"](x_tf)[0]
        p, p_tf = self.C(x)[1].softmax(1), self.C(x_tf)[1].softmax(1)
        loss = w.lambda_style_c * self.contrast(s, key) - w.lambda_mi * information(p, p_tf)
        self.c_opt.zero_grad()
        (w.joint * loss).backward()
        self.c_opt.step()

        # D
        x_ref = x[draws.permutation("reference", len(x), like=x)]
        with torch.no_grad():
            y = self.C(x)[1].argmax(1)
            s_ref, logits = self.C(x_ref)
            y_ref = logits.argmax(1)
            x_fake = self.G(x, s_ref)
        x_real = x_ref.detach().requires_grad_()
        real = self.D(x_real, y_ref)
        (gradient,) = torch.autograd.grad(real.sum(), x_real, create_graph=True)
        penalty = torch.sum(gradient**2) / len(x)
        loss = torch.mean(F.relu(1 - real)) + torch.mean(F.relu(1 + self.D(x_fake, y_ref)))
        self.d_opt.zero_grad()
        (w.lambda_adv * loss + w.lambda_gp * penalty).backward()
        self.d_opt.step()

        # G and C
        s, s_ref = self.C(x)[0], self.C(x_ref)[0]
        x_fake, x_rec = self.G(x, s_ref), self.G(x, s)
        loss = -w.lambda_adv * (self.D(x_fake, y_ref).mean() + self.D(x_rec, y).mean())
        loss = loss + w.lambda_rec * l1(x_rec, x)
        with torch.no_grad():
            key_ref = self.ema["C"](x_ref)[0]
        loss = loss + w.lambda_style_g * self.contrast(self.C(x_fake)[0], key_ref)
        self.c_opt.zero_grad()
        self.g_opt.zero_grad()
        loss.backward()
        self.c_opt.step()
        self.g_opt.step()

        with torch.no_grad():
            self.queue = torch.cat([self.queue, key])[-w.queue :]
            for n, average in self.ema.items():
                live = getattr(self, n).parameters()
                for p, q in zip(average.parameters(), live, strict=True):
                    p.lerp_(q, 0.001)

    def contrast(self, s, key):
        logits = torch.cat([torch.sum(s * key, 1, keepdim=True), s @ self.queue.T], 1)
        first = torch.zeros(len(s), dtype=torch.long, device=s.device)
        return F.cross_entropy(logits / self.w.temperature, first)


def information(p, q):
    joint = torch.sum(p[:, :, None] * q[:, None, :], 0)
    joint = (joint + joint.T) / 2
    joint = joint / joint.sum()
    row, column = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    row, column, joint = (t.clamp(min=1e-10) for t in (row, column, joint))
    return torch.sum(joint * (joint.log() - row.log() - column.log()))
