"""The plain step: MUNIT as one would first write it. fp32, eager, one call per image and path, contiguous memory.

It is the yardstick of `train_step.py`: the same maths as `unpaired.methods.munit`, nothing shared with it, written once
and then left alone.
"""

import torch
from torch import nn
from torch.nn import functional as F


class LayerNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x):
        flat = x.view(x.size(0), -1)
        mean, std = flat.mean(1).view(-1, 1, 1, 1), flat.std(1).view(-1, 1, 1, 1)
        x = (x - mean) / (std + 1e-5)
        return x * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)


class AdaIN(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.shift, self.scale = c, None, None

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.contiguous().view(1, b * c, h, w)
        x = F.batch_norm(
            x, None, None, self.scale.reshape(-1), self.shift.reshape(-1), training=True
        )
        return x.view(b, c, h, w)


def conv(a, b, k, s, p, norm=None, act=None):
    layers = [nn.ReflectionPad2d(p), nn.Conv2d(a, b, k, s)]
    if norm:
        layers.append(norm(b))
    if act:
        layers.append(act)
    return nn.Sequential(*layers)


class Residual(nn.Module):
    def __init__(self, c, norm):
        super().__init__()
        self.body = nn.Sequential(
            conv(c, c, 3, 1, 1, norm, nn.ReLU(True)), conv(c, c, 3, 1, 1, norm)
        )

    def forward(self, x):
        return self.body(x) + x


class Generator(nn.Module):
    def __init__(self, dim=64, style=8, mlp=256, down=2, res=4, channels=3):
        super().__init__()
        widths = [dim, 2 * dim, 4 * dim, 4 * dim, 4 * dim]
        layers = [conv(channels, dim, 7, 1, 3, None, nn.ReLU(True))]
        layers += [
            conv(a, b, 4, 2, 1, None, nn.ReLU(True))
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.style = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], style, 1)
        )
        layers, c = [conv(channels, dim, 7, 1, 3, nn.InstanceNorm2d, nn.ReLU(True))], dim
        for _ in range(down):
            layers.append(conv(c, 2 * c, 4, 2, 1, nn.InstanceNorm2d, nn.ReLU(True)))
            c *= 2
        self.content = nn.Sequential(*layers, *(Residual(c, nn.InstanceNorm2d) for _ in range(res)))
        layers = [Residual(c, AdaIN) for _ in range(res)]
        for _ in range(down):
            layers += [
                nn.Upsample(scale_factor=2),
                conv(c, c // 2, 5, 1, 2, LayerNorm, nn.ReLU(True)),
            ]
            c //= 2
        self.decoder = nn.Sequential(*layers, conv(c, channels, 7, 1, 3, None, nn.Tanh()))
        self.norms = [m for m in self.decoder.modules() if isinstance(m, AdaIN)]
        numbers = sum(2 * m.c for m in self.norms)
        self.mlp = nn.Sequential(
            nn.Linear(style, mlp),
            nn.ReLU(True),
            nn.Linear(mlp, mlp),
            nn.ReLU(True),
            nn.Linear(mlp, numbers),
        )

    def encode(self, x):
        return self.content(x), self.style(x)

    def decode(self, content, style):
        numbers = self.mlp(style.flatten(1))
        for norm in self.norms:
            norm.shift, norm.scale = (
                numbers[:, : norm.c].contiguous(),
                numbers[:, norm.c : 2 * norm.c].contiguous(),
            )
            numbers = numbers[:, 2 * norm.c :]
        return self.decoder(content)


class Discriminator(nn.Module):
    def __init__(self, dim=64, layers=4, scales=3, channels=3):
        super().__init__()
        self.scales = nn.ModuleList()
        for _ in range(scales):
            net, c = [conv(channels, dim, 4, 2, 1, None, nn.LeakyReLU(0.2, True))], dim
            for _ in range(layers - 1):
                net.append(conv(c, 2 * c, 4, 2, 1, None, nn.LeakyReLU(0.2, True)))
                c *= 2
            self.scales.append(nn.Sequential(*net, nn.Conv2d(c, 1, 1)))
        self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)

    def forward(self, x):
        out = []
        for net in self.scales:
            out.append(net(x))
            x = self.pool(x)
        return out

    def d_loss(self, fake, real):
        pairs = zip(self(fake), self(real), strict=True)
        return sum(torch.mean(f**2) + torch.mean((r - 1) ** 2) for f, r in pairs)

    def g_loss(self, fake):
        return sum(torch.mean((f - 1) ** 2) for f in self(fake))


def l1(x, y):
    return torch.mean(torch.abs(x - y))


class PlainMUNIT:
    """Both generators on one Adam, both discriminators on another; `step(x_a, x_b)` plays one iteration."""

    def __init__(self, dim=64, d_dim=64, style=8, mlp=256, down=2, res=4, d_layers=4, scales=3):
        self.a, self.b = (Generator(dim, style, mlp, down, res) for _ in range(2))
        self.d_a, self.d_b = (Discriminator(d_dim, d_layers, scales) for _ in range(2))
        self.style = style
        settings = dict(lr=1e-4, betas=(0.5, 0.999), weight_decay=1e-4)
        self.g_opt = torch.optim.Adam([*self.a.parameters(), *self.b.parameters()], **settings)
        self.d_opt = torch.optim.Adam([*self.d_a.parameters(), *self.d_b.parameters()], **settings)

    def to(self, device):
        for net in (self.a, self.b, self.d_a, self.d_b):
            net.to(device)
        return self

    def step(self, x_a, x_b):
        self.d_step(x_a, x_b)
        self.g_step(x_a, x_b)

    def d_step(self, x_a, x_b):
        self.d_opt.zero_grad()
        s_a, s_b = (torch.randn(x_a.size(0), self.style, device=x_a.device) for _ in range(2))
        c_a, _ = self.a.encode(x_a)
        c_b, _ = self.b.encode(x_b)
        x_ba, x_ab = self.a.decode(c_b, s_a), self.b.decode(c_a, s_b)
        (self.d_a.d_loss(x_ba.detach(), x_a) + self.d_b.d_loss(x_ab.detach(), x_b)).backward()
        self.d_opt.step()

    def g_step(self, x_a, x_b):
        self.g_opt.zero_grad()
        s_a, s_b = (torch.randn(x_a.size(0), self.style, device=x_a.device) for _ in range(2))
        c_a, own_a = self.a.encode(x_a)
        c_b, own_b = self.b.encode(x_b)
        x_a_recon, x_b_recon = self.a.decode(c_a, own_a), self.b.decode(c_b, own_b)
        x_ba, x_ab = self.a.decode(c_b, s_a), self.b.decode(c_a, s_b)
        c_b_recon, s_a_recon = self.a.encode(x_ba)
        c_a_recon, s_b_recon = self.b.encode(x_ab)
        loss = 10 * (l1(x_a_recon, x_a) + l1(x_b_recon, x_b))
        loss = loss + l1(s_a_recon.flatten(1), s_a) + l1(s_b_recon.flatten(1), s_b)
        loss = loss + l1(c_a_recon, c_a) + l1(c_b_recon, c_b)
        (loss + self.d_a.g_loss(x_ba) + self.d_b.g_loss(x_ab)).backward()
        self.g_opt.step()
