"""The plain steps of UNIT, CycleGAN, Augmented CycleGAN, pix2pix and BicycleGAN, as `plain.py` has MUNIT's.

fp32, eager, contiguous, one call per image set and path, in the order of moves of the papers; nothing is shared with
`unpaired`. Each is built from a method's settings, and `step(batch, draws)` plays one iteration; `draws` gives random
numbers (`steps.Draws`). Networks have the names and the order of parameters of ours, so that weights can be copied.
"""

import torch
from plain import Discriminator, LayerNorm, Residual, conv, l1
from torch import nn
from torch.nn import functional as F


def adam(nets, lr=2e-4, weight_decay=0.0):
    params = [p for net in nets for p in net.parameters()]
    return torch.optim.Adam(params, lr, betas=(0.5, 0.999), weight_decay=weight_decay)


def learn(nets, yes):
    for net in nets:
        net.requires_grad_(yes)


def noisy(mu, name, draws):
    return mu + draws.normal(name, *mu.shape, like=mu)


# UNIT: the networks and the discriminator of MUNIT's code base, a VAE in each domain


class VAE(nn.Module):
    def __init__(self, dim, down, res):
        super().__init__()
        layers, c = [conv(3, dim, 7, 1, 3, nn.InstanceNorm2d, nn.ReLU(True))], dim
        for _ in range(down):
            layers.append(conv(c, 2 * c, 4, 2, 1, nn.InstanceNorm2d, nn.ReLU(True)))
            c *= 2
        self.E = nn.Sequential(*layers, *(Residual(c, nn.InstanceNorm2d) for _ in range(res)))
        layers = [Residual(c, nn.InstanceNorm2d) for _ in range(res)]
        for _ in range(down):
            layers += [
                nn.Upsample(scale_factor=2),
                conv(c, c // 2, 5, 1, 2, LayerNorm, nn.ReLU(True)),
            ]
            c //= 2
        self.G = nn.Sequential(*layers, conv(c, 3, 7, 1, 3, None, nn.Tanh()))


class PlainUNIT(nn.Module):
    def __init__(self, w, side, domains):
        super().__init__()
        self.w = w
        self.G_1, self.G_2 = (VAE(w.dim, w.downsamplings, w.residuals) for _ in range(2))
        self.D_1, self.D_2 = (Discriminator(w.d_dim, w.d_layers, w.d_scales) for _ in range(2))
        self.g_opt = adam([self.G_1, self.G_2], 1e-4, 1e-4)
        self.d_opt = adam([self.D_1, self.D_2], 1e-4, 1e-4)

    def step(self, batch, draws):
        w, a, b, d_a, d_b = self.w, self.G_1, self.G_2, self.D_1, self.D_2
        x_a, x_b = batch["x_1"], batch["x_2"]

        self.d_opt.zero_grad()
        z_a, z_b = noisy(a.E(x_a), "D.n_1", draws), noisy(b.E(x_b), "D.n_2", draws)
        x_ba, x_ab = a.G(z_b), b.G(z_a)
        (d_a.d_loss(x_ba.detach(), x_a) + d_b.d_loss(x_ab.detach(), x_b)).backward()
        self.d_opt.step()

        self.g_opt.zero_grad()
        mu_a, mu_b = a.E(x_a), b.E(x_b)
        z_a, z_b = noisy(mu_a, "G.n_1", draws), noisy(mu_b, "G.n_2", draws)
        x_aa, x_bb = a.G(z_a), b.G(z_b)
        x_ba, x_ab = a.G(z_b), b.G(z_a)
        mu_ba, mu_ab = a.E(x_ba), b.E(x_ab)
        x_aba = a.G(noisy(mu_ab, "G.n_12", draws))
        x_bab = b.G(noisy(mu_ba, "G.n_21", draws))
        loss = w.lambda_x * (l1(x_aa, x_a) + l1(x_bb, x_b))
        loss = loss + w.lambda_kl * (torch.mean(mu_a**2) + torch.mean(mu_b**2))
        loss = loss + w.lambda_cyc * (l1(x_aba, x_a) + l1(x_bab, x_b))
        loss = loss + w.lambda_kl_cyc * (torch.mean(mu_ab**2) + torch.mean(mu_ba**2))
        (loss + d_a.g_loss(x_ba) + d_b.g_loss(x_ab)).backward()
        self.g_opt.step()


# CycleGAN: a residual generator each way, 70x70 discriminators, a history of images


def resnet(dim, down, res):
    layers, c = [conv(3, dim, 7, 1, 3, nn.InstanceNorm2d, nn.ReLU(True))], dim
    for _ in range(down):
        layers += [nn.Conv2d(c, 2 * c, 3, 2, 1), nn.InstanceNorm2d(2 * c), nn.ReLU(True)]
        c *= 2
    layers += [Residual(c, nn.InstanceNorm2d) for _ in range(res)]
    for _ in range(down):
        up = nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1)
        layers += [up, nn.InstanceNorm2d(c // 2), nn.ReLU(True)]
        c //= 2
    return nn.Sequential(*layers, conv(c, 3, 7, 1, 3, None, nn.Tanh()))


def patchgan(channels, dim, layers, norm=nn.InstanceNorm2d):
    net, c = [nn.Conv2d(channels, dim, 4, 2, 1), nn.LeakyReLU(0.2, True)], dim
    for i in range(layers):
        wide, stride = min(2 * c, 8 * dim), 2 if i < layers - 1 else 1
        net.append(nn.Conv2d(c, wide, 4, stride, 1, bias=norm is nn.InstanceNorm2d))
        net += [norm(wide), nn.LeakyReLU(0.2, True)]
        c = wide
    return nn.Sequential(*net, nn.Conv2d(c, 1, 4, 1, 1))


def lsgan(scores, target):
    return torch.mean((scores - target) ** 2)


class Pool:
    def __init__(self, size):
        self.size, self.images = size, []

    def __call__(self, fakes, name, draws):
        if not self.size:
            return fakes
        here = torch.zeros(())  # numbers that are read at once are made on the CPU
        swap, which = (
            draws.uniform(f"{name}.{what}", len(fakes), like=here) for what in ("swap", "which")
        )
        out = []
        for x, u, v in zip(fakes, swap.tolist(), which.tolist(), strict=True):
            if len(self.images) < self.size:
                self.images.append(x)
            elif u < 0.5:
                i = int(v * self.size)
                x, self.images[i] = self.images[i], x
            out.append(x)
        return torch.stack(out)


class PlainCycleGAN(nn.Module):
    def __init__(self, w, side, domains):
        super().__init__()
        self.w = w
        self.G, self.F = (resnet(w.dim, w.downsamplings, w.residuals) for _ in range(2))
        self.D_X, self.D_Y = (patchgan(3, w.d_dim, w.d_layers) for _ in range(2))
        self.pool_x, self.pool_y = Pool(w.pool), Pool(w.pool)
        self.g_opt, self.d_opt = adam([self.G, self.F]), adam([self.D_X, self.D_Y])

    def step(self, batch, draws):
        w, x, y = self.w, batch["x_1"], batch["x_2"]
        fake_y, fake_x = self.G(x), self.F(y)

        learn([self.D_X, self.D_Y], False)
        self.g_opt.zero_grad()
        loss = w.lambda_cyc * (l1(self.F(fake_y), x) + l1(self.G(fake_x), y))
        if w.lambda_idt:
            loss = loss + w.lambda_cyc * w.lambda_idt * (l1(self.F(x), x) + l1(self.G(y), y))
        (loss + lsgan(self.D_Y(fake_y), 1) + lsgan(self.D_X(fake_x), 1)).backward()
        self.g_opt.step()

        learn([self.D_X, self.D_Y], True)
        self.d_opt.zero_grad()
        old_x = self.pool_x(fake_x.detach(), "pool_X", draws)
        old_y = self.pool_y(fake_y.detach(), "pool_Y", draws)
        ((lsgan(self.D_X(x), 1) + lsgan(self.D_X(old_x), 0)) / 2).backward()
        ((lsgan(self.D_Y(y), 1) + lsgan(self.D_Y(old_y), 0)) / 2).backward()
        self.d_opt.step()


# Augmented CycleGAN: B has a code beside it, which conditions the norms of the generator from A


class ConditionalNorm(nn.Module):
    def __init__(self, c, z_dim):
        super().__init__()
        self.scale, self.shift = nn.Conv2d(z_dim, c, 1), nn.Conv2d(z_dim, c, 1)

    def forward(self, x, z):
        z = z[:, :, None, None]
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-5)
        return x * F.relu(self.scale(z)) + F.relu(self.shift(z))


class Norm(nn.InstanceNorm2d):
    def __init__(self, c, z_dim=0):
        super().__init__(c, affine=True)

    def forward(self, x, z=None):
        return super().forward(x)


class CodeResidual(nn.Module):
    def __init__(self, c, z_dim):
        super().__init__()
        self.pad = nn.ReflectionPad2d(1)
        self.conv_1, self.conv_2 = nn.Conv2d(c, c, 3), nn.Conv2d(c, c, 3)
        self.norm_1, self.norm_2 = ConditionalNorm(c, z_dim) if z_dim else None, Norm(c)

    def forward(self, x, z):
        h = self.conv_1(self.pad(x))
        h = F.relu(self.norm_1(h, z) if self.norm_1 else h)
        return F.relu(x + self.norm_2(self.conv_2(self.pad(h))))


class CodeGenerator(nn.Module):
    def __init__(self, c, res, z_dim=0):
        super().__init__()
        norm = ConditionalNorm if z_dim else Norm
        self.convs = nn.ModuleList(
            [
                nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, c, 7)),
                nn.Conv2d(c, 2 * c, 3, 1, 1),
                nn.Conv2d(2 * c, 4 * c, 3, 2, 1),
                nn.ConvTranspose2d(4 * c, 2 * c, 3, 2, 1, output_padding=1),
                nn.Conv2d(2 * c, c, 3, 1, 1),
            ]
        )
        self.norms = nn.ModuleList(norm(k * c, z_dim) for k in (1, 2, 4, 2, 1))
        self.residuals = nn.ModuleList(CodeResidual(4 * c, z_dim) for _ in range(res))
        self.rgb = nn.Conv2d(c, 3, 7, padding=3)

    def forward(self, x, z=None):
        for i in range(3):
            x = F.relu(self.norms[i](self.convs[i](x), z))
        for block in self.residuals:
            x = block(x, z)
        for i in range(3, 5):
            x = F.relu(self.norms[i](self.convs[i](x), z))
        return torch.tanh(self.rgb(x))


def code_encoder(dim, layers, z_dim):
    net, c = [nn.Conv2d(6, dim, 3, 2, 1), nn.ReLU(True)], dim
    for _ in range(layers - 1):
        net += [nn.Conv2d(c, 2 * c, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * c), nn.ReLU(True)]
        c *= 2
    net += [nn.Conv2d(c, c, 4, bias=False), nn.BatchNorm2d(c), nn.ReLU(True)]
    return nn.Sequential(*net, nn.Conv2d(c, z_dim, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def discriminator_a(dim, layers):
    net, c = [nn.Conv2d(3, dim, 3, 2, 1), nn.LeakyReLU(0.2, True)], dim
    for _ in range(layers - 1):
        wide = min(2 * c, 4 * dim)
        net += [nn.Conv2d(c, wide, 3, 2, 1), Norm(wide), nn.LeakyReLU(0.2, True)]
        c = wide
    return nn.Sequential(*net, nn.Conv2d(c, 1, 4))


def discriminator_b(dim):
    net = [nn.Conv2d(3, dim, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for a, b, stride in (1, 2, 2), (2, 4, 1), (4, 4, 1):
        net += [nn.Conv2d(a * dim, b * dim, 4, stride, 1), Norm(b * dim), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*net, nn.Conv2d(4 * dim, 1, 4, 1, 1))


def discriminator_z(z_dim, dim):
    net = []
    for c in (z_dim, dim, dim):
        net += [nn.Linear(c, dim), nn.BatchNorm1d(dim), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*net, nn.Linear(dim, 1))


class PlainAugmentedCycleGAN(nn.Module):
    def __init__(self, w, side, domains):
        super().__init__()
        self.w = w
        self.G_AB = CodeGenerator(w.dim, w.residuals, w.z_dim)
        self.G_BA = CodeGenerator(w.dim, w.residuals)
        self.E_B = code_encoder(w.e_dim, w.e_layers, w.z_dim)
        self.D_A, self.D_B = discriminator_a(w.d_A_dim, w.d_A_layers), discriminator_b(w.d_B_dim)
        self.D_z = discriminator_z(w.z_dim, w.d_z_dim)
        self.players, self.judges = (
            [self.G_AB, self.G_BA, self.E_B],
            [self.D_A, self.D_B, self.D_z],
        )
        self.g_opt, self.d_opt = adam(self.players), adam(self.judges, 4e-5)

    def step(self, batch, draws):
        w, a, b = self.w, batch["x_1"], batch["x_2"]
        z = draws.normal("z", len(a), w.z_dim, like=a)
        fake_b, fake_a = self.G_AB(a, z), self.G_BA(b)
        fake_z = self.E_B(torch.cat([fake_a, b], 1))

        self.d_opt.zero_grad()
        loss = 0
        for d, real, fake in zip(self.judges, (a, b, z), (fake_a, fake_b, fake_z), strict=True):
            loss = loss + (lsgan(d(fake.detach()), 0) + lsgan(d(real), 1)) / 2
        self.move(loss, self.d_opt, self.judges)

        self.g_opt.zero_grad()
        loss = w.lambda_A * l1(self.G_BA(fake_b), a) + w.lambda_B * l1(self.G_AB(fake_a, fake_z), b)
        loss = loss + w.lambda_z * l1(self.E_B(torch.cat([a, fake_b], 1)), z)
        for d, fake in zip(self.judges, (fake_a, fake_b, fake_z), strict=True):
            loss = loss + lsgan(d(fake), 1)
        self.move(loss, self.g_opt, self.players)

    def move(self, loss, opt, nets):
        loss.backward()
        for net in nets:
            nn.utils.clip_grad_norm_(net.parameters(), 500)
        opt.step()


# pix2pix and BicycleGAN: a U-Net, with a code at every level on the way down or with dropout


class UNet(nn.Module):
    def __init__(self, dim, levels, norm, z_dim=0):
        super().__init__()
        widths, bias = [dim * min(2**i, 8) for i in range(levels)], norm is nn.InstanceNorm2d
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(widths):
            outer, bottom = widths[i - 1] if i else 3, i == levels - 1
            layers = [nn.LeakyReLU(0.2)] if i else []
            layers.append(nn.Conv2d(outer + z_dim, c, 4, 2, 1, bias=bias))
            self.down.append(nn.Sequential(*layers, *([norm(c)] if i and not bottom else [])))
            up = nn.ConvTranspose2d(c if bottom else 2 * c, outer, 4, 2, 1, bias=bias or not i)
            self.up.append(nn.Sequential(nn.ReLU(), up, norm(outer) if i else nn.Tanh()))

    def forward(self, x, z=None, drop=None):
        skips = []
        for down in self.down:
            if z is not None:
                x = torch.cat([x, z[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
            x = down(x)
            skips.append(x)
        skips.pop()
        for i, up in enumerate(reversed(self.up)):
            x = up(x)
            if drop and i < 3 and skips:
                x = drop(x, f"z_{i}")
            if skips:
                skip = skips.pop()
                x = torch.cat([skip, x] if z is None else [x, skip], 1)
        return x


class PlainPix2Pix(nn.Module):
    def __init__(self, w, side, domains):
        super().__init__()
        self.w = w
        self.G = UNet(w.dim, w.levels, nn.BatchNorm2d)
        self.D = patchgan(6, w.d_dim, w.d_layers, nn.BatchNorm2d)
        self.g_opt, self.d_opt = adam([self.G]), adam([self.D])

    def step(self, batch, draws):
        def drop(h, name):
            p = self.w.dropout
            return h * (draws.uniform(name, *h.shape, like=h) >= p) / (1 - p)

        x, y = batch["x_1"], batch["x_2"]
        fake = self.G(x, drop=drop if self.w.dropout else None)

        self.d_opt.zero_grad()
        loss_fake = bce(self.D(torch.cat([x, fake.detach()], 1)), 0)
        ((loss_fake + bce(self.D(torch.cat([x, y], 1)), 1)) / 2).backward()
        self.d_opt.step()

        learn([self.D], False)
        self.g_opt.zero_grad()
        loss = bce(self.D(torch.cat([x, fake], 1)), 1) + self.w.lambda_L1 * l1(fake, y)
        loss.backward()
        self.g_opt.step()
        learn([self.D], True)


def bce(logits, target):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


class HalvingResidual(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        layers = [nn.InstanceNorm2d(a), nn.LeakyReLU(0.2), nn.Conv2d(a, a, 3, padding=1)]
        layers += [nn.InstanceNorm2d(a), nn.LeakyReLU(0.2), nn.Conv2d(a, b, 3, padding=1)]
        self.body = nn.Sequential(*layers, nn.AvgPool2d(2))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(a, b, 1))

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


class BicycleEncoder(nn.Module):
    def __init__(self, z_dim, dim, blocks):
        super().__init__()
        widths = [dim * min(i + 1, 4) for i in range(blocks + 1)]
        residuals = [HalvingResidual(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.convs = nn.Sequential(
            *(nn.Conv2d(3, dim, 4, 2, 1), *residuals, nn.LeakyReLU(0.2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.mu, self.logvar = nn.Linear(widths[-1], z_dim), nn.Linear(widths[-1], z_dim)

    def forward(self, x):
        h = self.convs(x)
        return self.mu(h), self.logvar(h)


class TwoScales(nn.Module):
    def __init__(self, dim, layers):
        super().__init__()
        self.fine, self.coarse = patchgan(3, dim, layers), patchgan(3, dim // 2, layers)
        self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)

    def loss(self, x, target):
        return lsgan(self.fine(x), target) + lsgan(self.coarse(self.pool(x)), target)


class PlainBicycleGAN(nn.Module):
    def __init__(self, w, side, domains):
        super().__init__()
        self.w = w
        self.G = UNet(w.dim, w.levels, nn.InstanceNorm2d, w.z_dim)
        self.E = BicycleEncoder(w.z_dim, w.e_dim, w.e_blocks)
        self.D_vae, self.D_lr = (TwoScales(w.d_dim, w.d_layers) for _ in range(2))
        self.g_opt, self.d_opt = adam([self.G, self.E]), adam([self.D_vae, self.D_lr])

    def step(self, batch, draws):
        w, half = self.w, len(batch["x_1"]) // 2
        a, b, b_2 = batch["x_1"][:half], batch["x_2"][:half], batch["x_2"][half : 2 * half]
        mu, logvar = self.E(b)
        z_vae = mu + torch.exp(logvar / 2) * draws.normal("eps", *mu.shape, like=mu)
        z_lr = draws.normal("z", *mu.shape, like=mu)
        fake_vae, fake_lr = self.G(a, z_vae), self.G(a, z_lr)

        learn([self.D_vae, self.D_lr], False)
        self.g_opt.zero_grad()
        loss = self.D_vae.loss(fake_vae, 1) + self.D_lr.loss(fake_lr, 1)
        loss = loss + w.lambda_1 * l1(fake_vae, b)
        loss = loss + w.lambda_kl * 0.5 * torch.sum(mu**2 + torch.exp(logvar) - 1 - logvar)
        loss.backward(retain_graph=True)
        learn([self.E], False)  # the code teaches G alone
        (w.lambda_latent * l1(self.E(fake_lr)[0], z_lr)).backward()
        learn([self.E], True)
        self.g_opt.step()

        learn([self.D_vae, self.D_lr], True)
        self.d_opt.zero_grad()
        (self.D_vae.loss(b, 1) + self.D_vae.loss(fake_vae.detach(), 0)).backward()
        (self.D_lr.loss(b_2, 1) + self.D_lr.loss(fake_lr.detach(), 0)).backward()
        self.d_opt.step()
