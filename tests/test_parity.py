"""Networks, losses, gradients and updates agree with the official implementations (tests/golden/README.md)."""

import golden_numbers as golden
import official_names
import pytest
import torch

from unpaired import losses, official
from unpaired.method import Shape, Step
from unpaired.methods import munit
from unpaired.networks.norms import LayerNorm, adain
from unpaired.networks.vgg import VGG16


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class GivenStep(Step):
    """Hands in the draws of a golden file instead of random ones."""

    def __init__(self, index, given):
        super().__init__(index, 3)
        object.__setattr__(self, "given", given)

    def draw(self, name, kind, shape):
        return self.given(name, self.index).reshape(shape)


def play(method, batch, step, optimizers=None):
    """One round; yields each update after its gradients stand in `.grad`, then lets its networks move."""
    for update in method.updates(batch, step):
        nets = {net: method.get_submodule(net) for net in update.nets.split()}
        method.zero_grad(set_to_none=True)
        update.loss.backward(inputs=[p for net in nets.values() for p in net.parameters()])
        yield update, nets
        for net in nets if optimizers else ():
            optimizers[net].step()


class TestMUNIT:
    data = golden.load("munit")
    official_name = {"G_1": "gen_a", "G_2": "gen_b", "D_1": "dis_a", "D_2": "dis_b"}
    names = {
        "G": official.munit_generator(downsamplings=2, residuals=2),
        "D": official_names.munit_discriminator(layers=3, scales=2),
    }
    moves = {"D_1 D_2": "dis", "G_1 G_2": "gen"}
    losses = {
        "D_1": ("loss_dis_a", 1),
        "D_2": ("loss_dis_b", 1),
        "x_1": ("loss_gen_recon_x_a", 10),
        "x_2": ("loss_gen_recon_x_b", 10),
        "c_1": ("loss_gen_recon_c_a", 1),
        "c_2": ("loss_gen_recon_c_b", 1),
        "s_1": ("loss_gen_recon_s_a", 1),
        "s_2": ("loss_gen_recon_s_b", 1),
        "adv_1": ("loss_gen_adv_a", 1),
        "adv_2": ("loss_gen_adv_b", 1),
        "cyc_1": ("loss_gen_cycrecon_x_a", 10),
        "cyc_2": ("loss_gen_cycrecon_x_b", 10),
    }

    def method(self, **changes):
        sizes = dict(dim=8, mlp_dim=16, residuals=2, d_dim=8, d_layers=3, d_scales=2)
        method = munit.MUNIT(munit.Config(**sizes | changes), ("a", "b"), Shape(64, 64))
        for ours, theirs in self.official_name.items():
            net = method.get_submodule(ours)
            given = golden.parameters(self.data["networks"][theirs])
            net.load_state_dict(
                {n: given.pop(self.theirs(ours, n)) for n, _ in net.named_parameters()}
            )
            assert not given
        return method

    def theirs(self, net, name):
        return official.translated(self.names[net[0]], name)

    def given(self, label):
        return golden.given(self.data, f"munit.{label}")

    def step(self, index):
        letters = {"D.s_1": "dis.s_a", "D.s_2": "dis.s_b", "G.s_1": "gen.s_a", "G.s_2": "gen.s_b"}
        return GivenStep(index, lambda name, i: self.given(f"{letters[name]}.{i}"))

    def batch(self, index):
        return {"x_1": self.given(f"x_a.{index}"), "x_2": self.given(f"x_b.{index}")}

    def same_losses(self, update, expected):
        for name, part in update.log.items():
            theirs, weight = self.losses[name]
            assert part.item() == pytest.approx(weight * expected[theirs], rel=1e-9), name

    def test_forward(self):
        m, x = self.method(), self.batch(0)
        s_a = self.given("gen.s_a.0").flatten(1)
        s_b = self.given("gen.s_b.0").flatten(1)
        c_1, c_2 = m.encode_content(x["x_1"], 0), m.encode_content(x["x_2"], 1)
        own_1, own_2 = m.encode_style(x["x_1"], 0), m.encode_style(x["x_2"], 1)
        outputs = {
            "c_a": c_1,
            "c_b": c_2,
            "s_a_prime": own_1,
            "s_b_prime": own_2,
            "mlp_a_of_s_a": m.G_1.mlp(s_a),
            "mlp_a_of_s_a_prime": m.G_1.mlp(own_1),
            "x_a_recon": m.translate(x["x_1"], 0, 0, own_1),
            "x_a_recon_batch_of_one": m.translate(x["x_1"][:1], 0, 0, own_1[:1]),
            "x_ba": m.translate(x["x_2"], 1, 0, s_a),
            "x_ab": m.translate(x["x_1"], 0, 1, s_b),
            "dis_a_of_x_a.scale_0": m.D_1(x["x_1"])[0],
            "dis_a_of_x_a.scale_1": m.D_1(x["x_1"])[1],
            "gen_a.enc_content.model.2": torch.nn.Sequential(*[*m.G_1.E_c][:3])(x["x_1"]),
            "gen_a.enc_content.model.3": m.G_1.E_c(x["x_1"]),
            "gen_a.enc_style.model.4": m.G_1.E_s.convs(x["x_1"]),
        }
        for name, x in outputs.items():
            golden.same(x, self.data["forward"][name])

    @pytest.mark.parametrize(
        "variant, changes",
        [("base", {}), ("cycle_10", {"lambda_cyc": 10}), ("nsgan", {"gan": "nsgan"})],
    )
    def test_losses_and_gradients(self, variant, changes):
        m, expected = self.method(**changes), self.data["variants"][variant]["at_initial_weights"]
        for update, nets in play(m, self.batch(0), self.step(0)):
            move = self.moves[update.nets]
            assert update.loss.item() == pytest.approx(
                expected[f"{move}_losses"][f"loss_{move}_total"]
            )
            self.same_losses(update, expected[f"{move}_losses"])
            for ours, net in nets.items():
                rows = expected[f"{move}_grads"][self.official_name[ours]]
                for name, p in net.named_parameters():
                    golden.same_gradient(p.grad, rows[self.theirs(ours, name)], name)

    @pytest.mark.parametrize(
        "variant, changes",
        [("base", {}), ("cycle_10", {"lambda_cyc": 10}), ("nsgan", {"gan": "nsgan"})],
    )
    def test_training(self, variant, changes):
        m, expected = self.method(**changes), self.data["variants"][variant]["training"]
        start = {name: p.detach().clone() for name, p in m.named_parameters()}
        optimizers = {
            net: torch.optim.Adam(
                m.get_submodule(net).parameters(), 1e-4, betas=(0.5, 0.999), weight_decay=1e-4
            )
            for net in self.official_name
        }
        for i in range(3):
            row = expected[f"step_{i + 1}"]
            for update, _ in play(m, self.batch(i), self.step(i), optimizers):
                self.same_losses(update, row["losses"])
            for ours, theirs in self.official_name.items() if "after" in row else ():
                for name, p in m.get_submodule(ours).named_parameters():
                    after = row["after"][theirs]["parameters"][self.theirs(ours, name)]
                    golden.same_change(p, start[f"{ours}.{name}"], after, f"{ours}.{name}")

    def test_parameter_counts(self):
        m = munit.MUNIT(munit.Config(), ("a", "b"), Shape(256, 256))
        assert sum(p.numel() for p in m.G_1.parameters()) == 15_026_187
        assert sum(p.numel() for p in m.D_1.parameters()) == 8_271_171
        full = self.data["full_size"]
        names = official.munit_generator(downsamplings=2, residuals=4)
        shapes = {official.translated(names, n): list(p.shape) for n, p in m.G_1.named_parameters()}
        assert shapes == dict(full["generator_of_one_domain"]["parameters"])

    @pytest.mark.parametrize("unit", ["layernorm_batch_1", "layernorm_batch_3", "adain"])
    def test_norms(self, unit):
        row = self.data["units"][unit]
        x = golden.given(self.data, row["x"]).requires_grad_()
        if unit == "adain":
            numbers = golden.given(self.data, row["parameters"])
            out = adain(x, numbers[:, :6], numbers[:, 6:])
        else:
            norm = LayerNorm(6)
            norm.gamma.data = golden.given(self.data, row["gamma"])
            norm.beta.data = golden.given(self.data, row["beta"])
            out = norm(x)
        golden.same(out, row["out"])
        (out * golden.given(self.data, row["weight_of_sum"])).sum().backward()
        golden.same(x.grad, row["grad_x"])

    @pytest.mark.parametrize("gan", ["lsgan", "nsgan"])
    def test_adversarial(self, gan):
        row = self.data["units"][f"adversarial_{gan}"]
        real, fake = (
            [golden.given(self.data, label) for label in row[k]] for k in ("real", "fake")
        )
        d, g = getattr(losses, f"{gan}_d"), getattr(losses, f"{gan}_g")
        assert d(real, fake).item() == pytest.approx(row["dis"], rel=1e-12)
        assert g(fake).item() == pytest.approx(row["gen"], rel=1e-12)

    def test_perceptual(self):
        units = self.data["units"]
        f_1, f_2 = (golden.given(self.data, label) for label in units["perceptual_on_maps"]["maps"])
        loss = losses.perceptual(f_1.requires_grad_(), f_2)
        assert loss.item() == pytest.approx(units["perceptual_on_maps"]["loss"], rel=1e-9)
        loss.backward()
        golden.same(f_1.grad, units["perceptual_on_maps"]["grad_first"])

        vgg = VGG16("caffe")
        vgg.load_state_dict(golden.parameters(self.data["networks"]["vgg16"]))
        x, y = self.given("vgg.img").requires_grad_(), self.given("vgg.target")
        golden.same(vgg.preprocess(x), units["vgg_preprocess"]["out"])
        golden.same(vgg(x), units["vgg_features"]["out"])
        loss = losses.perceptual(vgg(x), vgg(y))
        assert loss.item() == pytest.approx(units["perceptual_with_filled_vgg"]["loss"], rel=1e-9)
        loss.backward()
        golden.same(x.grad, units["perceptual_with_filled_vgg"]["grad_image"])
