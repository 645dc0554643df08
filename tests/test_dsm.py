"""DSM's own pieces: splines, one style space, a smooth encoder. It has no official code."""

import golden_numbers as golden
import pytest
import tiny
import torch
from test_parity import play
from zuko.transforms import MonotonicRQSTransform

from unpaired.methods import dsm
from unpaired.networks.stargan import Mapping

METRICS = golden.load("metrics")


def flow(n=3, domains=2, std=1.0):
    """A flow far from the identity."""
    torch.manual_seed(0)
    net = dsm.Flow(domains, n, 16, bins=8, bound=5.0, apart=1.0).double()
    torch.nn.init.normal_(net.theta.weight, std=std)
    return net


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestFlow:
    def test_each_component_stands_alone_and_rises(self):
        net, z, y = flow(), noise(5, 3), torch.tensor([0, 1, 0, 1, 1])
        for i in range(5):
            jacobian = torch.autograd.functional.jacobian(
                lambda z_i, i=i: net(z_i[None], y[i : i + 1])[0], z[i]
            )
            assert (jacobian.diagonal() > 0).all()
            assert (jacobian - jacobian.diagonal().diag() == 0).all()

    def test_inverse(self):
        net, z, y = flow(), 4 * noise(40, 3), torch.arange(40) % 2
        torch.testing.assert_close(net.inverse(net(z, y), y), z)
        assert (net(z, y) - z).abs().max() > 0.5

    def test_affine_beyond_the_bound(self):
        """There f is the identity: what is left are scales and shifts."""
        net, y = flow(), torch.tensor([1, 1, 1])
        z = torch.tensor([[5.0], [6], [9]], dtype=torch.float64).expand(3, 3)
        s = net(z, y)
        torch.testing.assert_close(s[2] - s[1], 3 * (s[1] - s[0]))

    @pytest.mark.parametrize("apart", [1.0, 0.3])
    def test_starts_as_noise_shifted_in_every_domain(self, apart):
        z, distances = noise(60, 40).float(), []
        for seed in range(20):
            torch.manual_seed(seed)
            net = dsm.Flow(6, 40, 64, bins=8, bound=5.0, apart=apart)
            shifts = []
            for u in range(6):
                shift = net(z, torch.full((60,), u)) - z
                assert (shift - shift.mean(0)).abs().max() < 0.1
                shifts.append(shift.mean(0))
            distances.append(torch.pdist(torch.stack(shifts)).square().mean() / 40)
        assert torch.stack(distances).mean().sqrt().item() == pytest.approx(apart, rel=0.1)

    def test_no_domain_can_be_told_from_scale_or_place_of_all(self):
        """The mean of each component over the domains is 0, its mean variance in them 1."""
        net = flow(domains=4, std=0.2)
        with torch.no_grad():
            net.theta.bias.copy_(0.5 + 0.5 * noise(len(net.theta.bias)))
        z = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
        z = z[:, None].expand(-1, 3)
        s = torch.stack([net(z, torch.full((len(z),), u)) for u in range(4)])
        assert s.mean((0, 1)).abs().max() < 0.02
        assert (s.var(1).mean(0) - 1).abs().max() < 0.05
        assert s.var(1).std(0).min() > 0.05  # domains differ

    def test_each_domain_has_its_own(self):
        net, z = flow(), noise(4, 3)
        s = net(z, torch.tensor([0, 1, 0, 1]))
        assert (net(z, torch.zeros(4, dtype=torch.long)) - s)[1].abs().max() > 0.1
        s.square().sum().backward()
        assert net.mlp[0].weight.grad.norm(dim=1).min() > 0

    def test_splines_run_in_fp32_under_autocast(self):
        net, z, y = flow().float(), noise(4, 3).float(), torch.tensor([0, 1, 0, 1])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(net(z, y), net(z, y).float())

    def logits(self, row):
        draws = (golden.given(METRICS, row[name]) for name in ("widths", "heights", "slopes"))
        return [x.requires_grad_() for x in draws]

    def test_spline_of_bounded_logits(self):
        row = METRICS["spline_bounded_logits"]
        logits = self.logits(row)
        f = MonotonicRQSTransform(*(x[:, None] for x in logits), bound=row["bound"])
        x = torch.tensor(row["points"], dtype=torch.float64).expand(3, -1)
        y, slope = f.call_and_ladj(x)
        close(y, row["forward"])
        close(slope, row["log_slope"])
        close(f.inv(x), row["inverse"])
        points = torch.tensor(row["gradients"]["points"], dtype=torch.float64).expand(3, -1)
        y, slope = f.call_and_ladj(points)
        (y.sum() + 0.5 * slope.sum()).backward()
        for x, name in zip(logits, ("widths", "heights", "slopes"), strict=True):
            close(x.grad, row["gradients"][name])

    @pytest.mark.parametrize("entry", ["spline_bounded_logits", "spline_minimum_bins_and_softplus"])
    def test_spline_of_knots(self, entry):
        row = METRICS[entry]
        f = MonotonicRQSTransform(*(x[:, None] for x in self.logits(row)), bound=row["bound"])
        names = {"horizontal": "x", "vertical": "y", "derivatives": "slope"}
        for ours, theirs in names.items():
            knots = [spline[theirs] for spline in row["knots"]]
            setattr(f, ours, torch.tensor(knots, dtype=torch.float64)[:, None])
        x = torch.tensor(row["points"], dtype=torch.float64).expand(3, -1)
        close(f(x), row["forward"])
        close(f.inv(x), row["inverse"])


def close(x, expected):
    torch.testing.assert_close(x, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


class TestGame:
    def build(self, *overrides):
        return tiny.build("dsm", *overrides)[0]

    def test_gradients_reach_exactly_the_networks_that_move(self):
        method, seen = self.build(), []
        for update, nets in play(method, tiny.batch("dsm"), tiny.step()):
            seen.append(update.nets)
            for name, p in method.named_parameters():
                if name.split(".")[0] != "ema":
                    assert (p.grad is not None) == (name.split(".")[0] in nets), name
        assert seen == ["D", "D", "D_s", "G F E", "G"]

    def generate(self, method, batch, s, s_2, step):
        c = method.G.encoder(batch["x_src"])
        return method.generate("latent", batch, c, method.G.decoder(c, s), s, s_2, step)

    def reached(self, method, loss):
        """The networks that get a gradient from `loss`."""
        return {
            name
            for name, net in method.named_children()
            if name != "ema"
            and any(
                g is not None and g.abs().sum() > 0
                for g in torch.autograd.grad(
                    loss, list(net.parameters()), retain_graph=True, allow_unused=True
                )
            )
        }

    def test_one_space_and_smoothness_reach_the_encoder_alone(self):
        method, batch = self.build(), tiny.batch("dsm")
        L = method.encode(
            method.E(batch["x_ref"], y := batch["y_ref"]), batch["x_ref"], y, tiny.step()
        )
        assert self.reached(method, L["uni"]) == {"E", "D_s"}  # D_s does not move there
        assert self.reached(method, L["smooth"]) == {"E"}

    def test_the_style_discriminator_learns_alone(self):
        method = self.build()
        for update in method.updates(tiny.batch("dsm"), tiny.step()):
            if update.nets == "D_s":
                assert self.reached(method, update.loss) == {"D_s"}

    def test_the_style_discriminator_is_penalised_at_styles_from_noise(self):
        logs = []
        for weight in (0, 2):
            method = self.build(f"method.lambda_reg_s={weight}")
            with torch.no_grad():
                for p in method.D_s.parameters():  # steep enough for the penalty to be seen
                    p.mul_(3)
            for update, _ in play(method, tiny.batch("dsm"), tiny.step()):
                if update.nets == "D_s":
                    logs.append((update.loss.item(), update.log))
        (bare, none), (total, log) = logs
        assert none["reg_s"] == 0 and bare == pytest.approx(none["D_s"].item())
        batch, step, n = tiny.batch("dsm"), tiny.step(), method.config.style_dim
        y = batch["y_ref"].repeat(2)
        z = [step.normal(name, 4, n, like=batch["x_src"]) for name in ("z_trg", "z_trg2")]
        s = method.F(torch.cat(z), y).detach().requires_grad_()
        (slope,) = torch.autograd.grad(method.D_s(s, y).sum(), s)
        assert log["reg_s"].item() == pytest.approx(slope.square().sum(1).mean().item(), rel=1e-4)
        assert total == pytest.approx(log["D_s"].item() + log["reg_s"].item(), rel=1e-5)

    def test_diversity_does_not_reach_the_encoder(self):
        method, batch = self.build(), tiny.batch("dsm")
        z = noise(2, 4, method.config.style_dim).float()
        s, s_2 = (method.F(z_i, batch["y_ref"]) for z_i in z)
        L = self.generate(method, batch, s, s_2, tiny.step())
        assert self.reached(method, L["ds_latent"]) == {"G", "F"}
        assert self.reached(method, L["sty_latent"]) == {"G", "F", "E"}

    def test_the_aim_of_style_reconstruction_stands_still(self):
        """Else F could lower L_sty by shrinking what there is to reconstruct."""
        method, batch = self.build(), tiny.batch("dsm")
        s, s_2 = noise(2, 4, method.config.style_dim).float().requires_grad_()
        x_fake = method.G(batch["x_src"], s).detach()
        c = method.G.encoder(batch["x_src"])
        L = method.generate("latent", batch, c, x_fake, s, s_2, tiny.step())
        assert torch.autograd.grad(L["sty_latent"], s, allow_unused=True) == (None,)

    @pytest.mark.parametrize(
        "change, missing",
        [("lambda_uni=0", "uni"), ("lambda_smooth=0", "smooth"), ("flow=false", None)],
    )
    def test_ablations(self, change, missing):
        method, log = self.build(f"method.{change}"), {}
        for update, _ in play(method, tiny.batch("dsm"), tiny.step()):
            log |= update.log
        assert {"uni", "smooth"} - log.keys() == ({missing} if missing else set())
        assert (method.D_s is None) == (missing == "uni")
        assert isinstance(method.F, dsm.Flow if change != "flow=false" else Mapping)

    def test_diversity_fades(self):
        method, batch = self.build(), tiny.batch("dsm")
        s, s_2 = noise(2, 4, method.config.style_dim).float()
        start, late, end = (
            self.generate(method, batch, s, s_2, tiny.step(i, 100))["ds_latent"].item()
            for i in (0, 75, 100)
        )
        assert start < 0 and late == pytest.approx(start / 4) and end == 0


@pytest.mark.parametrize("name", ["dsm", "smoothgan"])
def test_what_is_made_once_is_what_the_networks_make_when_they_move(name):
    """Contents, styles and images are shared between moves; each move must find them fresh."""
    method, batch, step = tiny.build(name)[0], tiny.batch(name), tiny.step()
    optimizers = {
        net: torch.optim.Adam(child.parameters(), 0.01)
        for net, child in method.named_children()
        if net != "ema" and list(child.parameters())
    }
    x, y, target = batch["x_src"], batch["y_src"], batch["y_ref"]
    z = step.normal("z_trg", 4, getattr(method.config, "latent_dim", 4), like=x)
    moved = 0
    for update, nets in play(method, batch, step, optimizers):
        if "G" not in nets:
            continue
        by, moved = ("reference", "latent")["F" in nets], moved + 1
        with torch.no_grad():
            s = method.F(z, target) if by == "latent" else method.E(batch["x_ref"], target)
            x_fake = method.G(x, s)
            sty = method.config.lambda_sty * (method.E(x_fake, target) - s).abs().mean()
            cyc = (method.G(x_fake, method.E(x, y)) - x).abs().mean()
            adv = torch.nn.functional.softplus(-method.D(x_fake, target)).mean()
        for part, value in (("sty", sty), ("cyc", cyc), ("adv", adv)):
            assert update.log[f"{part}_{by}"].item() == pytest.approx(value.item(), rel=1e-5)
    assert moved == 2


class TestSmoothness:
    s = torch.tensor([[0.0, 0], [3, 4], [0, 1], [0, 2], [9, 9]], dtype=torch.float64)
    s_a = s + torch.tensor([0.0, 0.5], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 0, 2])

    def test_value(self):
        """In domain 0 the nearest are 0 -> 3 at 2, 1 -> 3 at sqrt(13), 3 -> 0 at 2; 2, though
        nearer to 0 and 3, is of another domain, and has no partner itself; nor has 4."""
        by_hand = ((2 + 0.5 - 2) + 0 + (2 + 0.5 - 2)) / 3
        rms = 2**0.5  # a norm over that of ones
        loss = dsm.smoothness(self.s, self.s_a, self.y, 2 / rms)
        assert loss.item() == pytest.approx(by_hand / rms)
        by_hand = ((4 + 0.5 - 2) + (4 + 0.5 - 13**0.5) + (4 + 0.5 - 2)) / 3
        loss = dsm.smoothness(self.s, self.s_a, self.y, 4 / rms)
        assert loss.item() == pytest.approx(by_hand / rms)

    def test_no_partner_at_all(self):
        s = self.s.clone().requires_grad_()
        loss = dsm.smoothness(s, s + 1, torch.arange(5), 1.0)
        loss.backward()
        assert loss == 0 and s.grad.abs().sum() == 0

    def test_equal_styles_have_a_finite_gradient(self):
        s = torch.zeros(4, 3, requires_grad=True)
        loss = dsm.smoothness(s, s * 1, torch.zeros(4), 0.1)
        loss.backward()
        assert loss.item() == pytest.approx(0.1) and s.grad.isfinite().all()


class TestAugment:
    def test_nothing_is_mirrored_unless_asked_for(self):
        assert not dsm.Config().mirror

    def test_whole_image_and_its_mirror(self):
        x = noise(2, 3, 8, 8)
        one = torch.tensor(1 / 0.9, dtype=torch.float64).log() / torch.tensor(11 / 9).double().log()
        draws = torch.stack([0 * one, one, 0 * one, 0 * one, 0.4 + 0 * one]).repeat(2, 1)
        draws[1, 4] = 0.6
        torch.testing.assert_close(dsm.augment(x, draws, True), torch.stack([x[0].flip(2), x[1]]))
        torch.testing.assert_close(dsm.augment(x, draws, False), x)

    def test_keeps_colours_and_range(self):
        draws = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
        x = noise(64, 3, 1, 1).float().expand(-1, -1, 16, 16)
        torch.testing.assert_close(dsm.augment(x, draws, True), x)
        x = noise(64, 3, 16, 16).float().clamp(-1, 1)
        assert dsm.augment(x, draws, True).abs().max() <= 1
