"""The family of MUNIT agrees with the official implementations (tests/golden/README.md)."""

import golden_numbers as golden
import official_names
import pytest
import torch
from test_parity import GivenStep, float64, play  # noqa: F401

from unpaired import losses, official
from unpaired.method import Shape
from unpaired.methods import augmented_cyclegan, bicyclegan, cyclegan, pix2pix, unit
from unpaired.networks.unet import UNet


class Parity:
    """What the golden files have in common; a subclass names its file, networks and losses."""

    unlisted: frozenset = frozenset()  # losses that the file does not hold
    unused: frozenset = frozenset()  # parameters of theirs that never learn: we have none

    def network(self, ours):
        """The golden file's network, our names and theirs."""
        return self.data["networks"][self.official_name[ours]]

    def theirs(self, ours, name):
        return official.translated(self.names[ours], name)

    def fill(self, method):
        for ours in self.official_name:
            net, given = method.get_submodule(ours), golden.parameters(self.network(ours))
            for name, p in net.named_parameters():
                p.data.copy_(given.pop(self.theirs(ours, name)))
            assert given.keys() <= self.unused
        return method

    def given(self, label):
        return golden.given(self.data, f"{self.data['system']}.{label}")

    def step(self, index):
        return GivenStep(index, lambda name, i: self.given(f"{self.letters[name]}.{i}"))

    def same_losses(self, update, expected):
        for name in update.log.keys() - self.unlisted:
            part, (theirs, weight) = update.log[name], self.losses[name]
            assert part.item() == pytest.approx(weight * expected[theirs], rel=1e-9), name

    def same_gradients(self, nets, gradients):
        for ours, net in nets.items():
            rows = dict(gradients[self.official_name[ours]])
            for name, p in net.named_parameters():
                golden.same_gradient(p.grad, rows.pop(self.theirs(ours, name)), f"{ours}.{name}")
            assert rows.keys() <= self.unused

    def train(self, method, expected, optimizers):
        """Three rounds; after the first and third, parameters and buffers are held to the file."""
        start = {name: p.detach().clone() for name, p in method.named_parameters()}
        for i in range(3):
            if f"step_{i + 1}" not in expected:
                return
            row = expected[f"step_{i + 1}"]
            for update, _ in play(method, self.batch(i), self.step(i), optimizers):
                self.same_losses(update, row["losses"])
            for ours, theirs in self.official_name.items() if "after" in row else ():
                net, after = method.get_submodule(ours), row["after"][theirs]
                for name, p in net.named_parameters():
                    change = after["parameters"][self.theirs(ours, name)]
                    golden.same_change(p, start[f"{ours}.{name}"], change, f"{ours}.{name}")
                buffers = dict(net.named_buffers())
                assert len(buffers) == len(after.get("buffers", {}))
                for name, b in buffers.items():
                    l2 = after["buffers"][self.theirs(ours, name)]
                    assert b.to(torch.float64).norm().item() == pytest.approx(l2, rel=1e-9), name

    def same_shapes(self, net, names, rows):
        shapes = {official.translated(names, n): list(p.shape) for n, p in net.named_parameters()}
        assert shapes == dict(rows)


def clip(optimizer, largest):
    """Clips the norm of a network's gradient, and returns what it was."""
    return torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], largest)


def slow_but_first(variants):
    return variants[:1] + [pytest.param(*v, marks=pytest.mark.slow) for v in variants[1:]]


def first(net, n):
    """The first `n` blocks of a sequential network."""
    return torch.nn.Sequential(*[*net][:n])


def adam(method, nets, lr=2e-4, weight_decay=0, **own):
    """One optimizer a network; `own` learning rates by name."""
    return {
        net: torch.optim.Adam(
            method.get_submodule(net).parameters(),
            own.get(net, lr),
            betas=(0.5, 0.999),
            weight_decay=weight_decay,
        )
        for net in nets
    }


class TestCycleGAN(Parity):
    data = golden.load("cyclegan")
    official_name = {"G": "G_A", "F": "G_B", "D_Y": "D_A", "D_X": "D_B"}
    names = {
        "G": official.resnet(residuals=9),
        "F": official.resnet(residuals=9),
        "D_X": official.patchgan(layers=3),
        "D_Y": official.patchgan(layers=3),
    }
    losses = {
        "adv_G": ("G_A", 1),
        "adv_F": ("G_B", 1),
        "cyc_x": ("cycle_A", 1),
        "cyc_y": ("cycle_B", 1),
        "idt_x": ("idt_B", 1),
        "idt_y": ("idt_A", 1),
        "D_X": ("D_B", 1),
        "D_Y": ("D_A", 1),
    }
    variants = [("identity_half", {}), ("no_identity", {"lambda_idt": 0})]

    def method(self, **changes):
        config = cyclegan.Config(dim=8, d_dim=8, **changes)
        return self.fill(cyclegan.CycleGAN(config, ("a", "b"), Shape(64, 64)))

    def batch(self, index):
        return {"x_1": self.given(f"A.{index}"), "x_2": self.given(f"B.{index}")}

    def step(self, index):
        return GivenStep(index, lambda name, i: torch.zeros(2))  # the history has room: unused

    def test_forward(self):
        m, x = self.method(), self.batch(0)
        y, x = x["x_2"], x["x_1"]
        G, D = m.G, m.D_Y
        outputs = {
            "G_A.model.1": G.down[0].conv(torch.nn.functional.pad(x, (3, 3, 3, 3), "reflect")),
            "G_A.model.3": G.down[0](x),
            "G_A.model.6": G.down[:2](x),
            "G_A.model.9": G.down(x),
            "G_A.model.10": G.residuals[0](G.down(x)),
            "G_A.model.18": G.residuals(G.down(x)),
            "G_A.model.21": G.up[0](G.residuals(G.down(x))),
            "G_A.model.24": G.up(G.residuals(G.down(x))),
            "G_A.model.27": m.translate(x, 0, 1, None),
            "D_A_of_B.model.1": D[0](y),
            "D_A_of_B.model.4": first(D, 2)(y),
            "D_A_of_B.model.7": first(D, 3)(y),
            "D_A_of_B.model.10": first(D, 4)(y),
            "D_A_of_B.model.11": D(y),
        }
        for name, out in outputs.items():
            golden.same(out, self.data["forward"][name])

    @pytest.mark.parametrize("variant, changes", variants)
    def test_losses_and_gradients(self, variant, changes):
        m, expected = self.method(**changes), self.data["variants"][variant]["at_initial_weights"]
        images = expected["images"]
        x, y = self.batch(0).values()
        golden.same(m.translate(x, 0, 1, None), images["fake_B"])
        golden.same(m.translate(y, 1, 0, None), images["fake_A"])
        golden.same(m.F(m.G(x)), images["rec_A"])
        gradients = expected["generator_gradients"] | expected["discriminator_gradients"]
        total = 0
        for update, nets in play(m, self.batch(0), self.step(0)):
            self.same_losses(update, expected["losses"])
            self.same_gradients(nets, gradients)
            total += update.loss.item()
        parts = expected["losses"]
        assert total == pytest.approx(parts["G"] + parts["D_A"] + parts["D_B"], rel=1e-9)

    @pytest.mark.parametrize("variant, changes", slow_but_first(variants))
    def test_training(self, variant, changes):
        m = self.method(**changes)
        self.train(m, self.data["variants"][variant]["training"], adam(m, self.official_name))

    def test_parameter_counts(self):
        full = self.data["full_size"]
        with torch.device("meta"):
            m = cyclegan.CycleGAN(cyclegan.Config(), ("a", "b"), Shape(256, 256))
            six = cyclegan.ResNet(3, 3, residuals=6)
        self.same_shapes(m.G, self.names["G"], full["resnet_9blocks_64"]["parameters"])
        self.same_shapes(m.D_X, self.names["D_X"], full["basic_discriminator_64"]["parameters"])
        count = sum(p.numel() for p in six.parameters())
        assert count == full["resnet_6blocks_64"]["parameter_count"]

    @pytest.mark.parametrize("gan, unit", [("lsgan", "lsgan"), ("nsgan", "vanilla")])
    def test_adversarial(self, gan, unit):
        row = self.data["units"][f"adversarial_{unit}"]
        scores = golden.given(self.data, row["prediction"])
        d, g = getattr(losses, f"{gan}_d"), getattr(losses, f"{gan}_g")
        assert g([scores]).item() == pytest.approx(row["target_real"], rel=1e-12)
        both = row["target_real"] + row["target_fake"]
        assert d([scores], [scores]).item() == pytest.approx(both, rel=1e-12)


class TestUNIT(Parity):
    data = golden.load("unit")
    official_name = {"G_1": "gen_a", "G_2": "gen_b", "D_1": "dis_a", "D_2": "dis_b"}
    names = {
        "G_1": official_names.unit_generator(downsamplings=2, residuals=2),
        "G_2": official_names.unit_generator(downsamplings=2, residuals=2),
        "D_1": official_names.munit_discriminator(layers=3, scales=2),
        "D_2": official_names.munit_discriminator(layers=3, scales=2),
    }
    letters = {
        "D.n_1": "dis.n_a",
        "D.n_2": "dis.n_b",
        "G.n_1": "gen.n_a",
        "G.n_2": "gen.n_b",
        "G.n_12": "gen.n_a_recon",
        "G.n_21": "gen.n_b_recon",
    }
    losses = {
        "D_1": ("loss_dis_a", 1),
        "D_2": ("loss_dis_b", 1),
        "x_1": ("loss_gen_recon_x_a", 10),
        "x_2": ("loss_gen_recon_x_b", 10),
        "kl_1": ("loss_gen_recon_kl_a", 0.01),
        "kl_2": ("loss_gen_recon_kl_b", 0.01),
        "adv_1": ("loss_gen_adv_a", 1),
        "adv_2": ("loss_gen_adv_b", 1),
        "cyc_1": ("loss_gen_cyc_x_a", 10),
        "cyc_2": ("loss_gen_cyc_x_b", 10),
        "kl_cyc_1": ("loss_gen_recon_kl_cyc_aba", 0.01),
        "kl_cyc_2": ("loss_gen_recon_kl_cyc_bab", 0.01),
    }
    variants = [("base", {}), ("nsgan", {"gan": "nsgan"})]

    def method(self, **changes):
        sizes = dict(dim=8, residuals=2, d_dim=8, d_layers=3, d_scales=2)
        return self.fill(unit.UNIT(unit.Config(**sizes | changes), ("a", "b"), Shape(64, 64)))

    def batch(self, index):
        return {"x_1": self.given(f"x_a.{index}"), "x_2": self.given(f"x_b.{index}")}

    def test_forward(self):
        m = self.method()
        x_1, x_2 = self.batch(0).values()
        n_1, n_2 = self.given("dis.n_a.0"), self.given("dis.n_b.0")
        h_1, h_2 = m.encode_content(x_1, 0), m.encode_content(x_2, 1)
        outputs = {
            "h_a": h_1,
            "h_b": h_2,
            "x_a_recon_without_noise": m.translate(x_1, 0, 0, None),
            "x_a_recon_with_n_a": m.decode(h_1 + n_1, None, 0),
            "x_ba_with_n_b": m.decode(h_2 + n_2, None, 0),
            "x_ab_with_n_a": m.decode(h_1 + n_1, None, 1),
            "gen_a.enc.model.2": first(m.G_1.E, 3)(x_1),
            "gen_a.dec.model.0_of_h_b": m.G_1.G.residuals(h_2),
            "gen_a.dec.model.5_of_h_b": m.translate(x_2, 1, 0, None),
            "dis_a_of_x_a.scale_0": m.D_1(x_1)[0],
            "dis_a_of_x_a.scale_1": m.D_1(x_1)[1],
        }
        for name, out in outputs.items():
            golden.same(out, self.data["forward"][name])

    @pytest.mark.parametrize("variant, changes", variants)
    def test_losses_and_gradients(self, variant, changes):
        m, expected = self.method(**changes), self.data["variants"][variant]["at_initial_weights"]
        for (update, nets), move in zip(
            play(m, self.batch(0), self.step(0)), ("dis", "gen"), strict=True
        ):
            parts = expected[f"{move}_losses"]
            assert update.loss.item() == pytest.approx(parts[f"loss_{move}_total"], rel=1e-9)
            self.same_losses(update, parts)
            self.same_gradients(nets, expected[f"{move}_grads"])

    @pytest.mark.parametrize("variant, changes", slow_but_first(variants))
    def test_training(self, variant, changes):
        m = self.method(**changes)
        optimizers = adam(m, self.official_name, 1e-4, weight_decay=1e-4)
        self.train(m, self.data["variants"][variant]["training"], optimizers)

    def test_shared_blocks_say_what_unshared_ones_say_with_equal_weights(self):
        m = self.method()
        x_1, _ = self.batch(0).values()
        sizes = dict(dim=8, residuals=2, d_dim=8, d_layers=3, d_scales=2, shared=1)
        s = unit.UNIT(unit.Config(**sizes), ("a", "b"), Shape(64, 64))
        given = m.G_1.state_dict()
        s.shared.E[0].load_state_dict(m.G_1.E[4].state_dict())
        s.shared.G[0].load_state_dict(m.G_1.G.residuals[0].state_dict())
        s.G_1.E.load_state_dict({n: given[f"E.{n}"] for n in s.G_1.E.state_dict()})
        s.G_1.G.residuals[0].load_state_dict(m.G_1.G.residuals[1].state_dict())
        s.G_1.G.up.load_state_dict(m.G_1.G.up.state_dict())
        s.G_1.G.rgb.load_state_dict(m.G_1.G.rgb.state_dict())
        torch.testing.assert_close(s.translate(x_1, 0, 0, None), m.translate(x_1, 0, 0, None))

    def test_parameter_counts(self):
        full = self.data["full_size"]
        with torch.device("meta"):
            m = unit.UNIT(unit.Config(), ("a", "b"), Shape(256, 256))
        names = official_names.unit_generator(downsamplings=2, residuals=4)
        self.same_shapes(m.G_1, names, full["generator_of_one_domain"]["parameters"])
        names = official_names.munit_discriminator(layers=4, scales=3)
        self.same_shapes(m.D_1, names, full["discriminator_of_one_domain"]["parameters"])


class TestPix2Pix(Parity):
    data = golden.load("pix2pix")
    official_name = {"G": "G", "D": "D"}
    names = {"G": official.unet(levels=7), "D": official.patchgan(layers=3)}
    losses = {"D": ("D", 1), "adv": ("G_GAN", 1), "L1": ("G_L1", 1)}

    def method(self):
        config = pix2pix.Config(dim=8, d_dim=8, levels=7, dropout=0, norm="batch")
        return self.fill(pix2pix.Pix2Pix(config, ("a", "b"), Shape(128, 128)))

    def step(self, index):
        return GivenStep(index, None)  # no dropout, no draw

    def batch(self, index):
        return {"x_1": self.given(f"A.{index}"), "x_2": self.given(f"B.{index}")}

    def test_forward(self):
        m, forward = self.method(), self.data["forward"]
        x, y = self.batch(0).values()
        m.eval()
        golden.same(m.translate(x, 0, 1, None), forward["G_of_A.0_eval_mode"])
        m.train()
        golden.same(m.G(x), forward["G_of_A.0_training_mode"])
        label, pair = "D_of_A.0_and_B.0_training_mode.model", torch.cat([x, y], 1)
        for blocks, index in (1, 1), (2, 4), (3, 7), (4, 10), (5, 11):
            golden.same(first(m.D, blocks)(pair), forward[f"{label}.{index}"])

    def test_forward_at_256(self):
        G, given = UNet(3, 3, 4, levels=8), golden.parameters(self.data["networks"]["G_256"])
        names = official.unet(levels=8)
        for name, p in G.named_parameters():
            p.data.copy_(given.pop(official.translated(names, name)))
        assert not given
        golden.same(G(self.given("A256")), self.data["forward"]["G_256_of_A256_training_mode"])

    def test_losses_and_gradients(self):
        m, expected = self.method(), self.data["at_initial_weights"]
        gradients = expected["discriminator_gradients"] | expected["generator_gradients"]
        for update, nets in play(m, self.batch(0), self.step(0)):
            total = expected["losses"][update.nets]
            assert update.loss.item() == pytest.approx(total, rel=1e-9)
            self.same_losses(update, expected["losses"])
            self.same_gradients(nets, gradients)
        golden.same(m.G(self.batch(0)["x_1"]), expected["fake_B"])

    def test_training_and_test_mode(self):
        m = self.method()
        self.train(m, self.data["training"], adam(m, self.official_name))
        out = m.eval().translate(self.batch(0)["x_1"], 0, 1, None)
        golden.same(out, self.data["training"]["eval_mode_output_for_A.0_after_last_step"], 1e-8)

    def test_parameter_counts(self):
        full = self.data["full_size"]
        with torch.device("meta"):
            m = pix2pix.Pix2Pix(pix2pix.Config(), ("a", "b"), Shape(256, 256))
            seven = UNet(3, 3, levels=7)
        self.same_shapes(m.G, official.unet(levels=8), full["unet_256_64"]["parameters"])
        rows = full["basic_discriminator_64_six_channels"]["parameters"]
        self.same_shapes(m.D, self.names["D"], rows)
        count = sum(p.numel() for p in seven.parameters())
        assert count == full["unet_128_64"]["parameter_count"]


class TestBicycleGAN(Parity):
    data = golden.load("bicyclegan")
    official_name = {"G": "G", "E": "E", "D_vae": "D", "D_lr": "D2"}
    names = {
        "G": official.bicyclegan_unet(levels=7),
        "E": official.bicyclegan_encoder(blocks=3),
        "D_vae": official.bicyclegan_discriminator(layers=2),
        "D_lr": official.bicyclegan_discriminator(layers=2),
    }
    letters = {"eps": "eps_of_encoder", "z": "z_random"}
    losses = {
        "adv_vae": ("G_GAN", 1),
        "adv_lr": ("G_GAN2", 1),
        "L1": ("G_L1", 1),
        "kl": ("kl", 1),
        "latent": ("z_L1", 1),
        "D_vae": ("D", 1),
        "D_lr": ("D2", 1),
    }
    variants = [("", {}), ("conditional_discriminators", {"conditional": True})]
    sizes = dict(dim=8, levels=7, e_dim=8, e_blocks=3, d_dim=8, d_layers=2)

    def network(self, ours):
        conditional = self.conditional and ours.startswith("D_")
        networks = self.data["networks_conditional" if conditional else "networks"]
        return networks[self.official_name[ours]]

    def method(self, conditional=False):
        self.conditional = conditional
        config = bicyclegan.Config(**self.sizes, conditional=conditional)
        return self.fill(bicyclegan.BicycleGAN(config, ("a", "b"), Shape(128, 128)))

    def batch(self, index):
        return {"x_1": self.given(f"A.{index}"), "x_2": self.given(f"B.{index}")}

    def test_forward(self):
        m, forward = self.method(), self.data["forward"]
        A, B = (x[:2] for x in self.batch(0).values())
        E, z = m.E, self.given("z_random.0")
        h = E.blocks(E.conv(B))
        outputs = {
            "G_of_A.0_first_half_and_z_random.0": m.translate(A, 0, 1, z),
            "E_mu_of_B.0_first_half": m.encode_style(B, 1),
            "E_logvar_of_B.0_first_half": E(B)[1],
            "E.conv.0_of_B.0_first_half": E.conv(B),
            "E.conv.1_of_B.0_first_half": E.blocks[0](E.conv(B)),
            "E.conv.3_of_B.0_first_half": h,
            "D_of_B.0.scale_0": m.D_vae(self.batch(0)["x_2"])[0],
            "D_of_B.0.scale_1": m.D_vae(self.batch(0)["x_2"])[1],
        }
        for name, out in outputs.items():
            golden.same(out, forward[name])

    @pytest.mark.parametrize("variant, changes", variants)
    def test_losses_and_gradients(self, variant, changes):
        m, data = self.method(**changes), self.data[variant] if variant else self.data
        expected = data["at_initial_weights"]
        total = 0
        for update, nets in play(m, self.batch(0), self.step(0)):
            self.same_losses(update, expected["losses"])
            self.same_gradients(nets, expected["gradients"])
            total += update.loss.item()
        parts = ("G_total_without_z_L1", "z_L1", "D", "D2")
        assert total == pytest.approx(sum(expected["losses"][p] for p in parts), rel=1e-9)

    @pytest.mark.parametrize("variant, changes", variants)
    def test_training(self, variant, changes):
        m, data = self.method(**changes), self.data[variant] if variant else self.data
        self.train(m, data["training"], adam(m, self.official_name))

    def test_parameter_counts(self):
        full = self.data["full_size"]
        with torch.device("meta"):
            m = bicyclegan.BicycleGAN(bicyclegan.Config(), ("a", "b"), Shape(256, 256))
        names = official.bicyclegan_unet(levels=8)
        self.same_shapes(m.G, names, full["G_unet_256_64_nz_8"]["parameters"])
        names = official.bicyclegan_encoder(blocks=4)
        self.same_shapes(m.E, names, full["E_resnet_256_64_nz_8"]["parameters"])
        names = official.bicyclegan_discriminator(layers=3)
        rows = full["D_basic_256_multi_64_two_scales"]["parameters"]
        self.same_shapes(m.D_lr, names, rows)

    def test_adversarial(self):
        row = self.data["units"]["adversarial_two_scales"]
        scores = [golden.given(self.data, label) for label in row["predictions"]]
        assert losses.lsgan_g(scores).item() == pytest.approx(row["target_real"], rel=1e-12)
        both = row["target_real"] + row["target_fake"]
        assert losses.lsgan_d(scores, scores).item() == pytest.approx(both, rel=1e-12)


class TestAugmentedCycleGAN(Parity):
    data = golden.load("augmented_cyclegan")
    official_name = {
        "G_AB": "G_A_B",
        "G_BA": "G_B_A",
        "E_B": "E_B",
        "D_A": "D_A",
        "D_B": "D_B",
        "D_z": "D_z_B",
    }
    names = {
        "G_AB": official_names.augmented_generator(residuals=3, conditional=True),
        "G_BA": official_names.augmented_generator(residuals=3, conditional=False),
        "E_B": official_names.augmented_encoder(layers=4),
        "D_A": official_names.augmented_discriminator(blocks=4),
        "D_B": official_names.augmented_discriminator(blocks=4),
        "D_z": {f"{i}": f"model.{i}" for i in range(10)},
    }
    letters = {"z": "z_B"}
    unlisted = frozenset({"adv_z"})  # gradients say what it is
    unused = frozenset({"enc_logvar.weight", "enc_logvar.bias"})  # of the stochastic E_B
    losses = {
        "D_A": ("D_A", 1),
        "D_B": ("D_B", 1),
        "D_z": ("D_z_B", 1),
        "adv_a": ("G_A", 1),
        "adv_b": ("G_B", 1),
        "cyc_a": ("Cyc_A", 1),
        "cyc_b": ("Cyc_B", 1),
        "cyc_z": ("Cyc_z_B", 0.025),
    }

    def method(self):
        config = augmented_cyclegan.Config(z_dim=4, dim=4, e_dim=4, d_B_dim=8, d_z_dim=8)
        method = augmented_cyclegan.AugmentedCycleGAN(config, ("a", "b"), Shape(64, 64))
        return self.fill(method)

    def batch(self, index):
        return {"x_1": self.given(f"A.{index}"), "x_2": self.given(f"B.{index}")}

    def test_forward(self):
        m, forward = self.method(), self.data["forward"]
        a, b = self.batch(0).values()
        z = self.given("z_B.0").flatten(1)
        golden.same(m.translate(a, 0, 1, z), forward["G_A_B_of_A.0_z_B.0"])
        golden.same(m.translate(b, 1, 0, None), forward["G_B_A_of_B.0"])
        golden.same(m.E_B(torch.cat([a, b], 1)), forward["E_B_mu_of_A.0_B.0_training_mode"])
        golden.same(m.D_A(a), forward["D_A_of_A.0"])
        golden.same(m.D_B(b), forward["D_B_of_B.0"])
        golden.same(m.D_z(z), forward["D_z_B_of_z_B.0_training_mode"])

    def test_losses_and_gradients(self):
        m, expected = self.method(), self.data["at_initial_weights"]
        for update, nets in play(m, self.batch(0), self.step(0)):
            self.same_losses(update, expected["losses"])
            self.same_gradients(nets, expected["gradients"])

    def test_training(self):
        m = self.method()
        slow = dict.fromkeys(("D_A", "D_B", "D_z"), 4e-5)
        optimizers, norms = adam(m, self.official_name, **slow), []
        for optimizer in optimizers.values():
            optimizer.register_step_pre_hook(lambda o, *_: norms.append(clip(o, 500.0)))
        self.train(m, self.data["training"], optimizers)
        assert max(norms) > 500  # in the second step: the file shows whether we clip

    def test_conditional_norm(self):
        row = self.data["units"]["conditional_instance_norm"]
        norm = augmented_cyclegan.ConditionalNorm(6, 4)
        for part, label in zip(("shift", "scale"), (0, 2), strict=True):
            getattr(norm, part).weight.data = golden.given(self.data, row["parameters"][label])
            getattr(norm, part).bias.data = golden.given(self.data, row["parameters"][label + 1])
        x, z = (golden.given(self.data, row[k]).requires_grad_() for k in "xz")
        out = norm(x, z.flatten(1))
        golden.same(out, row["out"])
        (out * golden.given(self.data, row["weight_of_sum"])).sum().backward()
        golden.same(x.grad, row["grad_x"])
        golden.same(z.grad, row["grad_z"])

    def test_parameter_counts(self):
        with torch.device("meta"):
            config = augmented_cyclegan.Config()
            m = augmented_cyclegan.AugmentedCycleGAN(config, ("a", "b"), Shape(64, 64))
        for ours, theirs in self.official_name.items():
            rows = dict(self.data["full_size"][theirs]["parameters"])
            rows = {n: s for n, s in rows.items() if not n.startswith("enc_logvar")}
            self.same_shapes(m.get_submodule(ours), self.names[ours], rows)
