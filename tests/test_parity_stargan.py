"""StarGAN v2 and SmoothGAN agree with the official implementations (tests/golden/README.md).

Not covered: `generator_hpf` of the tiny file, the generator with the high-pass branch, which we
leave out.
"""

import golden_numbers as golden
import pytest
import torch
from test_parity import float64, play  # noqa: F401

from unpaired import losses, official
from unpaired.method import Shape, Step
from unpaired.methods import smoothgan, stargan_v2
from unpaired.networks.stargan import modulate

MOVES = ("d_latent", "d_reference", "g_latent", "g_reference")


def official_names(halvings):
    """Our modules by network -> the official ones; `halvings` are those of the generator."""
    return {
        "G": official.stargan_v2_generator(halvings),
        "F": official.stargan_v2_mapping(),
        "E": official.stargan_v2_style_encoder(halvings),
        "D": official.stargan_v2_discriminator(halvings),
    }


NETS = {"G": "generator", "F": "mapping_network", "E": "style_encoder", "D": "discriminator"}


class GivenStep(Step):
    """Hands in the styles of a golden file; the official schedules count to 100,000."""

    def __init__(self, index, given):
        super().__init__(index, 100_000)
        object.__setattr__(self, "given", given)

    def draw(self, name, kind, shape):
        return self.given(f"{name}.{self.index}").reshape(shape)


class Golden:
    """One file: the method at its weights, its batches, and what must come out."""

    def __init__(self, name, method, **sizes):
        self.name, self.data, self.sizes = name, golden.load(name), sizes
        self.Method, self.names = method, official_names(2)

    def method(self, module, **changes):
        method = self.Method(module.Config(**self.sizes | changes), ("a", "b", "c"), Shape(64, 64))
        for ours, theirs in NETS.items():
            net = method.get_submodule(ours)
            given = golden.parameters(self.data["networks"][theirs])
            net.load_state_dict(
                {n: given.pop(self.theirs(ours, n)) for n, _ in net.named_parameters()}
            )
            assert not given
        return method

    def theirs(self, net, name):
        return official.translated(self.names[net], name)

    def given(self, label):
        return golden.given(self.data, f"{self.name}.{label}")

    def step(self, index):
        return GivenStep(index, self.given)

    def batch(self, index, labels):
        images = {name: self.given(f"{name}.{index}") for name in ("x_src", "x_ref", "x_ref2")}
        return images | {name: torch.tensor(y) for name, y in labels.items()}


TINY = dict(latent_dim=8, style_dim=16, mlp_dim=32, width=1024, max_dim=64)


def same_losses(update, move, expected, weights):
    """Holds `update` to a row of `losses_by_iteration`; `weights`: of its parts in the loss."""
    row, by = expected[move], move[2:]
    assert update.loss.item() == pytest.approx(row["total"], rel=1e-9)
    if move[0] == "d":
        parts = {f"D_{by}": row["real"] + row["fake"], f"reg_{by}": row["reg"]}
    else:
        parts = {f"{name}_{by}": weight and weight * row[name] for name, weight in weights.items()}
    assert parts.keys() == update.log.keys()
    for name, part in update.log.items():
        assert part.item() == pytest.approx(parts[name], rel=1e-9), name


def same_training(g, m, runs, weights):
    """Plays the longest of `runs`; holds losses, parameters and averages to all of them."""
    m.start_averages()
    start = {name: p.detach().clone() for name, p in m.named_parameters()}
    optim = type(m).presets["paper"]["optim"]
    optimizers = {
        net: torch.optim.Adam(
            m.get_submodule(net).parameters(), **optim["default"] | optim.get(net, {})
        )
        for net in NETS
    }
    longest = max(runs, key=lambda run: run["iterations"])
    for i, labels in enumerate(longest["labels"]):
        rounds = play(m, g.batch(i, labels), g.step(i), optimizers)
        for (update, _), move in zip(rounds, MOVES, strict=True):
            same_losses(update, move, longest["losses_by_iteration"][i], weights(g.step(i)))
        m.update_averages(0.999)
        for run in runs:
            if run["iterations"] == i + 1:
                same_parameters(g, m, run, start)


def same_parameters(g, m, expected, start):
    """Holds the changes since `start` to `after`; with weight decay no parameter stands still."""
    for ours, theirs in NETS.items():
        for name, p in m.get_submodule(ours).named_parameters():
            row = expected["after"][theirs]["parameters"][g.theirs(ours, name)]
            golden.same_change(p, start[f"{ours}.{name}"], row, f"{ours}.{name}", still=1e-12)
    for ours in m.averaged.split():
        for name, p in m.ema[ours].named_parameters():
            row = expected["after"][f"{NETS[ours]}_ema"]["parameters"][g.theirs(ours, name)]
            golden.same_change(p, start[f"{ours}.{name}"], row, f"ema.{ours}.{name}", still=1e-12)


def same_gradients(g, m, expected, weights):
    """Plays one round without moving and holds losses and gradients to it."""
    labels, calls = expected["labels"][0], expected["gradients_at_each_optimiser_call"]
    seen = []
    for (update, nets), move in zip(play(m, g.batch(0, labels), g.step(0)), MOVES, strict=True):
        same_losses(update, move, expected["losses_by_iteration"][0], weights(g.step(0)))
        rows = {c["optimiser"]: c["gradients"] for c in calls if c["move"] == move}
        seen += [[move, NETS[ours]] for ours in nets]
        for ours, net in nets.items():
            for name, p in net.named_parameters():
                golden.same_gradient(
                    p.grad, rows[NETS[ours]][g.theirs(ours, name)], f"{move} {ours}.{name}"
                )
    assert seen == expected["order_of_optimiser_calls"]


class TestStarGANv2:
    tiny = Golden("stargan_v2_tiny", stargan_v2.StarGANv2, lambda_ds=2, **TINY)

    @staticmethod
    def weights(step):
        return {"adv": 1, "sty": 1, "ds": -2 * (1 - step.index / 100_000), "cyc": 1}

    def forward(self, g):
        m = g.method(stargan_v2)
        labels = g.data["training"]["at_initial_weights"]["labels"][0]
        batch = g.batch(0, labels)
        x, y, x_ref, target = (batch[name] for name in ("x_src", "y_src", "x_ref", "y_ref"))
        s = m.E(x_ref, target)
        outputs = {
            "mapping_network_of_z_trg_y_ref": m.F(g.given("z_trg.0"), target),
            "style_encoder_of_x_ref_y_ref": s,
            "style_encoder_of_x_src_y_src": m.E(x, y),
            "discriminator_of_x_src_y_src": m.D(x, y),
        }
        h = x
        for i, layer in enumerate(m.G.encoder):
            h = layer(h)
            outputs[f"generator.encode.{i - 1}" if i else "generator.from_rgb"] = h
        for i, block in enumerate(m.G.decoder.blocks):
            h = block(h, s)
            outputs[f"generator.decode.{i}_with_style_of_x_ref"] = h
        outputs["generator.to_rgb"] = m.G(x, s)
        h, h_ref = x, x_ref
        for i, (layer, layer_ref) in enumerate(zip(m.D.trunk, m.E.trunk, strict=True)):
            h, h_ref = layer(h), layer_ref(h_ref)
            outputs[f"discriminator.main.{i}"] = h
            outputs[f"style_encoder.shared.{i}_of_x_ref"] = h_ref
        outputs[f"discriminator.main.{i + 1}"] = m.D.heads(h)
        theirs = {
            name: row
            for name, row in g.data["forward"].items()
            if "hpf" not in name and "high" not in name
        }
        assert outputs.keys() == theirs.keys()
        for name, out in outputs.items():
            golden.same(out, theirs[name])

    def test_forward(self):
        self.forward(self.tiny)

    def test_losses_and_gradients(self):
        m, expected = self.tiny.method(stargan_v2), self.tiny.data["training"]["at_initial_weights"]
        same_gradients(self.tiny, m, expected, self.weights)

    def test_training(self):
        runs = [self.tiny.data["training"][run] for run in ("after_1", "after_3")]
        same_training(self.tiny, self.tiny.method(stargan_v2), runs, self.weights)
        for run in runs:
            lambda_ds = -self.weights(self.tiny.step(run["iterations"]))["ds"]
            assert lambda_ds == pytest.approx(run["lambda_ds_afterwards"])

    @pytest.mark.slow
    def test_published_widths(self):
        g = Golden("stargan_v2", stargan_v2.StarGANv2, lambda_ds=2)
        self.forward(g)
        training = g.data["training"]
        same_gradients(g, g.method(stargan_v2), training["at_initial_weights"], self.weights)
        same_training(
            g, g.method(stargan_v2), [training["after_1"], training["after_3"]], self.weights
        )

    @pytest.mark.parametrize("domains, size", [(3, 64), (3, 128), (3, 256), (2, 256)])
    def test_parameter_counts(self, domains, size):
        full = golden.load("stargan_v2")["full_size"][f"{size}_px_{domains}_domains_w_hpf_0"]
        with torch.device("meta"):
            m = stargan_v2.StarGANv2(stargan_v2.Config(), ("d",) * domains, Shape(size, size))
        for ours, theirs in NETS.items():
            net = m.get_submodule(ours)
            assert sum(p.numel() for p in net.parameters()) == full[theirs]
            if f"{theirs}_names" in full:
                names = official_names(size.bit_length() - 5)[ours]
                shapes = {
                    official.translated(names, n): list(p.shape) for n, p in net.named_parameters()
                }
                assert shapes == dict(full[f"{theirs}_names"])

    def test_adversarial(self):
        row = self.tiny.data["units"]["adversarial"]
        logits = golden.given(self.tiny.data, row["logits"])
        none = torch.full_like(logits, 1e4)  # judged real with certainty: no loss
        assert losses.nsgan_g([logits]).item() == pytest.approx(row["target_1"], rel=1e-12)
        assert losses.nsgan_d([none], [logits]).item() == pytest.approx(row["target_0"], rel=1e-12)

    def test_r1(self):
        row = self.tiny.data["units"]["r1"]
        x, w = (golden.given(self.tiny.data, row[name]) for name in "xw")
        x.requires_grad_()
        scores = (w * x**3).flatten(1).sum(1)
        assert losses.r1(scores, x).item() == pytest.approx(row["penalty"], rel=1e-12)

    def test_adain(self):
        row = self.tiny.data["units"]["adain"]
        names = ("x", "s", "weight", "bias", "weight_of_sum")
        x, s, weight, bias, w = (
            golden.given(self.tiny.data, row[name]).requires_grad_() for name in names
        )
        out = modulate(x, torch.nn.functional.linear(s, weight, bias))
        golden.same(out, row["out"])
        (out * w).sum().backward()
        for gradient, name in ((x.grad, "x"), (s.grad, "s"), (weight.grad, "weight")):
            golden.same(gradient, row[f"grad_{name}"])


class TestSmoothGAN:
    tiny = Golden("smoothgan", smoothgan.SmoothGAN, **TINY)
    all_terms = dict(lambda_tri=0.7, margin=10.0, lambda_lpips=1)

    @staticmethod
    def weights(step):
        return {"adv": 1, "sty": 2, "ds": -(1 - step.index / 100_000), "cyc": 1, "tri": 1, "kl": 0}

    def weights_of_all_terms(self, step):
        return self.weights(step) | {"tri": 0.7, "kl": 0.5, "lpips": 1}

    @pytest.fixture
    def method_of_all_terms(self, monkeypatch):
        """The file puts the mean squared difference for LPIPS, and the compactness at 0.5."""
        monkeypatch.setattr(smoothgan, "perceptual", lambda paths: torch.nn.MSELoss())
        monkeypatch.setattr(smoothgan.SmoothGAN, "lambda_kl", lambda self, step: 0.5)
        method = self.tiny.method(smoothgan, **self.all_terms)
        method.begin()
        return method

    @pytest.mark.slow  # what all terms hold to already
    def test_losses_and_gradients(self):
        expected = self.tiny.data["training"]["at_initial_weights"]
        same_gradients(self.tiny, self.tiny.method(smoothgan), expected, self.weights)

    def test_losses_and_gradients_of_all_terms(self, method_of_all_terms):
        expected = self.tiny.data["training"]["all_terms_at_initial_weights"]
        same_gradients(self.tiny, method_of_all_terms, expected, self.weights_of_all_terms)

    @pytest.mark.slow
    def test_training(self):
        runs = [self.tiny.data["training"]["after_1"]]
        same_training(self.tiny, self.tiny.method(smoothgan), runs, self.weights)

    def test_training_of_all_terms(self, method_of_all_terms):
        runs = [self.tiny.data["training"]["all_terms_after_3"]]
        same_training(self.tiny, method_of_all_terms, runs, self.weights_of_all_terms)

    def test_compactness(self):
        with torch.device("meta"):
            m = smoothgan.SmoothGAN(smoothgan.Config(), ("a", "b"), Shape(32, 32))
        for index, weight in self.tiny.data["compactness_weight_after_iteration"].items():
            assert m.lambda_kl(Step(int(index), 100_000)) == pytest.approx(weight, rel=1e-8)

    def test_triplet(self):
        row = self.tiny.data["units"]["triplet"]
        names = ("anchor", "positive", "negative")
        a, p, n = (golden.given(self.tiny.data, row[name]).requires_grad_() for name in names)
        loss = smoothgan.triplet(a, p, n, torch.ones(len(a), dtype=torch.bool), row["margin"])
        assert loss.item() == pytest.approx(row["loss"], rel=1e-9)
        loss.backward()
        golden.same(a.grad, row["grad_anchor"])
        golden.same(n.grad, row["grad_negative"])
        assert smoothgan.triplet(a, p, n, torch.zeros(len(a), dtype=torch.bool), 0.1) == 0
