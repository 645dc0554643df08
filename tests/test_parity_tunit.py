"""TUNIT agrees with the official implementation in all its modes (tests/golden/README.md).

Below: what holds beyond that file, for the game, its stages and its memory.
"""

import contextlib
import copy
import math

import golden_numbers as golden
import pytest
import torch
from test_parity import GivenStep, float64  # noqa: F401

from unpaired import losses, official
from unpaired.config import resolve
from unpaired.errors import ConfigProblem
from unpaired.method import Method, Shape, Step, Update
from unpaired.methods import tunit
from unpaired.networks.tunit import MEMORY, FilterResponseNorm, FRNResidual

BLOCK = {f"{a}_{i}": f"{a}{i}" for a in ("norm", "conv") for i in (1, 2)} | {"skip": "conv1x1"}


def names(downsamplings, stages):
    """Our modules -> the official ones, by network."""
    n = downsamplings
    C = {"features": "features", "style": "cont", "domain": "disc"}
    G = {f"encoder.{i}": f"cnt_encoder.model.{i}" for i in range(n + 1)}
    for j in range(2):
        for k in range(2):
            tail = f"model.{j}.model.{k}"
            G[f"encoder.{n + 1 + j}.body.{k}"] = f"cnt_encoder.model.{n + 1}.{tail}"
            G[f"decoder.residuals.{2 * j + k}"] = f"decoder.model.0.{tail}.conv"
    G |= {f"decoder.up.{i}": f"decoder.model.{2 + 2 * i}.conv" for i in range(n)}
    G["decoder.rgb"] = f"decoder.model.{1 + 2 * n}"
    G |= {f"decoder.mlp.{2 * i}": f"mlp.model.{i}.fc" for i in range(3)}
    D = {f"trunk.{i}": f"main.{i}" for i in (0, 2 * stages + 2)}
    for i in range(1, 2 * stages + 1):
        D |= {f"trunk.{i}.{ours}": f"main.{i}.{theirs}" for ours, theirs in BLOCK.items()}
    return {"C": C, "G": G, "D": D | {"heads": f"main.{2 * stages + 4}"}}


# How often the official code evaluates C where we do it once: on the batch twice in a row, or once
# more on its permutation. This shows in the running statistics and nowhere else.
PASSES = {
    "alone": [2, 1],
    "joint": [2, 1, 4, 1],
    "all": [1, 3, 1],
    "some": [2, 1, 3, 1],
}


SHARES = ("share_largest", "domains_empty")


class OfficialTUNIT(tunit.TUNIT):
    """Evaluates C as often as the official code; C_EMA keeps its own BatchNorm statistics."""

    def count_passes(self, passes):
        for C in (self.C, self.ema["C"]):
            C.passing = contextlib.nullcontext  # views and fakes count in the statistics
        self.passes = passes
        self.call = self.depth = 0
        self.C.register_forward_hook(self.repeat)

    def repeat(self, module, args, output):
        if self.depth:
            return
        self.depth = 1
        with torch.no_grad():
            for _ in range(self.passes[self.call % len(self.passes)] - 1):
                module(*args)
        self.depth = 0
        self.call += 1

    def settle(self, x):
        if self.passes is not PASSES["alone"]:  # else theirs does not look at images by C_EMA
            return super().settle(x)

    @torch.no_grad()
    def update_averages(self, decay):
        for net, average in self.ema.items():
            live = self.get_submodule(net)
            torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - decay)


class Parity:
    variants = {  # name: config, passes, whether cleared gradients are zeros instead of none
        "clustering_only": ({"first_stage": 1.0}, "alone", False),
        "joint": ({"first_stage": 0.0}, "joint", False),
        "joint, zeroed": ({"first_stage": 0.0}, "joint", True),
        "supervised": ({"labels": "all"}, "all", False),
        "semi_supervised": (
            {"labels": "some", "first_stage": 0.0, "labels_only": 0.0},
            "some",
            False,
        ),
    }
    losses = {  # ours: theirs, weight
        "style_C": ("c_moco", 1),
        "MI": ("iic", 5),
        "D_real": ("d_adv_real", 1),
        "D_fake": ("d_adv_fake", 1),
        "gp": ("d_gp_unweighted", 10),
        "adv_fake": ("g_adv_fake", 1),
        "adv_rec": ("g_adv_rec", 1),
        "rec": ("g_imgrec", 0.1),
        "style_G": ("g_sty_contrastive", 0.01),
    }

    def method(self, passes="joint", **changes):
        config = tunit.Config(clusters=4, **self.sizes | changes)
        m = OfficialTUNIT(config, (), Shape(self.side, self.side))
        for name in ("C", "G", "D"):
            net, given = m.get_submodule(name), golden.parameters(self.data["networks"][name])
            for n, p in net.named_parameters():
                p.data.copy_(given.pop(self.theirs(name, n)))
            assert not given
        m.start_averages()
        queue = self.given("queue")
        m.queue[: len(queue)] = queue
        m.queued.fill_(len(queue))
        m.count_passes(PASSES[passes])
        return m.train()

    def theirs(self, net, name):
        return official.translated(self.names[net], name)

    def given(self, label):
        return golden.given(self.data, f"{self.data['system']}.{label}")

    def image(self, label):
        """0.25 pixels + 0.75 colour, checked as the file says."""
        entry = self.data["inputs"][f"{self.data['system']}.{label}"]
        pixels, colour = (golden.given(self.data, entry[k]) for k in ("pixels", "colour"))
        x = 0.25 * pixels + 0.75 * colour
        assert x.flatten()[:4].tolist() == pytest.approx(entry["check"][0], abs=1e-12)
        assert x.sum().item() == pytest.approx(entry["check"][1], abs=1e-9)
        return x

    def batch(self, run, index):
        labels = run.get("labels_by_iteration", [])
        y = labels[index] if index < len(labels) else [-1] * 4
        x, x_tf = self.image(f"x_org.{index}"), self.image(f"x_tf.{index}")
        return {"x": x, "x_tf": x_tf, "y": torch.tensor(y)}

    def step(self, run, index):
        return GivenStep(index, lambda name, i: torch.tensor(run["permutations"][i]))

    def play(self, m, run, index, optimizers=None, zeroed=False):
        """One round; yields each update with its gradients in `.grad`, then its networks move."""
        for update in m.updates(self.batch(run, index), self.step(run, index)):
            nets = update.nets.split()
            for net in nets:
                m.get_submodule(net).zero_grad(set_to_none=not zeroed)
            params = [p for net in nets for p in m.get_submodule(net).parameters()]
            update.loss.backward(inputs=params)
            yield update, nets
            for net in nets if optimizers else ():
                optimizers[net].step()
        if optimizers:
            m.update_averages(0.999)

    def optimizers(self, m):
        made = {}
        for net in ("C", "D", "G"):
            o = self.data["config"][f"optimiser_{net}"]
            params = m.get_submodule(net).parameters()
            if o["kind"] == "Adam":
                made[net] = torch.optim.Adam(
                    params, o["lr"], tuple(o["betas"]), weight_decay=o["weight_decay"]
                )
            else:
                made[net] = torch.optim.RMSprop(
                    params, o["lr"], o["alpha"], weight_decay=o["weight_decay"]
                )
        return made

    def same_losses(self, logs, run):
        """All the losses of a run, and no others."""
        expected, pending = run["losses_by_iteration"], dict.fromkeys(run["losses_by_iteration"], 0)
        for index, log in enumerate(logs):
            labelled = index < len(run.get("labels_by_iteration", []))
            for name, value in log.items():
                if name in ("CE", *SHARES) or (name == "MI" and labelled):
                    continue  # the file does not list these
                theirs, weight = self.losses[name]
                want = weight * expected[theirs][pending[theirs]]
                assert value == pytest.approx(want, rel=1e-9), f"{name} of {index}"
                pending[theirs] += 1
        assert pending == {name: len(values) for name, values in expected.items()}

    def same_buffers(self, net, expected):
        statistics = dict(net.features.named_buffers(prefix="features"))
        assert statistics.keys() == expected.keys()
        for name, b in statistics.items():
            assert b.double().norm().item() == pytest.approx(expected[name], rel=1e-9), name

    def test_forward(self):
        m, x, s = self.method(), self.image("x_org.0"), self.given("sty")
        m.C._forward_hooks.clear()
        outputs = dict(zip(("C_train_mode.cont", "C_train_mode.disc"), m.C(x), strict=True))
        m = self.method().eval()
        m.C._forward_hooks.clear()
        outputs["C_eval_mode.cont"] = m.encode_style(x, 0)
        outputs["C_eval_mode.disc"] = m.C(x)[1]
        assert torch.equal(m.assign(x), outputs["C_eval_mode.disc"].softmax(1))

        taken = record(m)
        image = m.translate(x, 0, 0, s)
        n, up = len(m.G.decoder.up), "G.decoder.model.{}_of_content_and_sty"
        for i in range(n + 1):
            outputs[f"G.cnt_encoder.model.{i}"] = taken[f"G.encoder.{i}"][1]
        outputs[f"G.cnt_encoder.model.{n + 1}"] = taken["G.encoder"][1]
        outputs["G.mlp_of_sty"] = taken["G.decoder.mlp"][1]
        outputs[up.format(0)] = taken["G.decoder.up.0"][0]
        for i in range(n):
            small, outputs[up.format(2 + 2 * i)] = taken[f"G.decoder.up.{i}"]
            outputs[up.format(1 + 2 * i)] = torch.nn.functional.interpolate(small, scale_factor=2)
        outputs[up.format(1 + 2 * n)] = image

        scores = m.D(x, torch.tensor([0, 3, 1, 2]))
        for i in range(len(m.D.trunk)):
            outputs[f"D.main.{i}"] = taken[f"D.trunk.{i}"][1]
        outputs[f"D.main.{len(m.D.trunk)}"] = taken["D.heads"][1]
        outputs["D_selected_logits_y_0312"] = scores
        assert outputs.keys() == self.data["forward"].keys()
        for name, x in outputs.items():
            golden.same(x, self.data["forward"][name])

    def held_at_initial_weights(self, variant, name):
        config, passes, _ = self.variants[variant]
        m, run = self.method(passes, **config), self.data["training"][name]
        rows = list(run["gradients_at_each_optimiser_call"])
        log = {}
        for update, nets in self.play(m, run, 0):
            log |= {k: v.item() for k, v in update.log.items()}
            for net in nets:
                row = rows.pop(0)
                assert row["optimiser"] == net
                theirs = dict(row["gradients"])
                for n, p in m.get_submodule(net).named_parameters():
                    golden.same_gradient(p.grad, theirs.pop(self.theirs(net, n)), f"{net}.{n}")
                assert not theirs
        assert not rows
        self.same_losses([log], run)

    def held_after_training(self, variant, name):
        config, passes, zeroed = self.variants[variant]
        m, run = self.method(passes, **config), self.data["training"][name]
        start = {n: p.detach().clone() for n, p in m.named_parameters()}
        optimizers, logs, calls = self.optimizers(m), [], []
        for i in range(run["iterations"]):
            log = {}
            for update, nets in self.play(m, run, i, optimizers, zeroed):
                log |= {k: v.item() for k, v in update.log.items()}
                calls += nets
            logs.append(log)
        self.same_losses(logs, run)
        assert calls == run["order_of_optimiser_calls"]
        own = run["C_EMA_buffers_before_the_copy_at_the_end_of_an_epoch"]
        self.same_buffers(m.ema["C"], own)
        Method.update_averages(m, 1.0)  # theirs at the end of an epoch, ours at each step
        after = run["after"]
        self.same_buffers(m.C, after["C"]["buffers"])
        self.same_buffers(m.ema["C"], after["C_EMA"]["buffers"])
        for theirs, rows in after.items():
            net, ema, _ = theirs.partition("_EMA")
            ours = f"ema.{net}" if ema else net
            rows = dict(rows["parameters"])
            for n, p in m.get_submodule(ours).named_parameters():
                row = rows.pop(self.theirs(net, n))
                golden.same_change(p, start[f"{ours}.{n}"], row, f"{ours}.{n}")
            assert not rows
        assert m.queued == 10 + 4 * run["iterations"]


def record(m):
    """The input and the output of every module of `m`, as they come."""
    taken = {}
    for name, module in m.named_modules():
        module.register_forward_hook(
            lambda module, x, y, name=name: taken.__setitem__(name, (x[0], y))
        )
    return taken


class TestTiny(Parity):
    data = golden.load("tunit_tiny")
    side, sizes = 32, dict(style_dim=16, mlp_dim=16, dim=8, c_dim=8, d_dim=8, d_max_dim=64)
    names = names(downsamplings=1, stages=3)

    @pytest.mark.parametrize(
        "variant, name",
        [
            ("clustering_only", "clustering_only_at_initial_weights"),
            ("joint", "joint_at_initial_weights"),
        ],
    )
    def test_losses_and_gradients(self, variant, name):
        self.held_at_initial_weights(variant, name)

    @pytest.mark.parametrize(
        "variant, name",
        [
            ("clustering_only", "clustering_only_after_1"),
            ("clustering_only", "clustering_only_after_3"),
            ("joint", "joint_after_1"),
            ("joint", "joint_after_3"),
            ("joint, zeroed", "joint_after_1_with_gradients_zeroed_not_dropped"),
            ("joint, zeroed", "joint_after_3_with_gradients_zeroed_not_dropped"),
            ("supervised", "supervised_after_1"),
            ("semi_supervised", "semi_supervised_one_labelled_then_one_unlabelled"),
        ],
    )
    def test_training(self, variant, name):
        self.held_after_training(variant, name)

    def test_nothing_of_the_file_is_left_out(self):
        assert len(self.data["training"]) == 10


@pytest.mark.slow
class TestFull(Parity):
    data = golden.load("tunit")
    side, sizes = 64, {}
    names = names(downsamplings=2, stages=4)

    @pytest.mark.parametrize(
        "variant, name",
        [
            ("clustering_only", "clustering_only_at_initial_weights"),
            ("joint", "joint_at_initial_weights"),
        ],
    )
    def test_losses_and_gradients(self, variant, name):
        self.held_at_initial_weights(variant, name)

    @pytest.mark.parametrize(
        "variant, name",
        [
            ("clustering_only", "clustering_only_after_1"),
            ("clustering_only", "clustering_only_after_3"),
            ("joint", "joint_after_1"),
            ("joint", "joint_after_3"),
            ("joint, zeroed", "joint_after_1_with_gradients_zeroed_not_dropped"),
            ("supervised", "supervised_after_1"),
            ("semi_supervised", "semi_supervised_one_labelled_then_one_unlabelled"),
        ],
    )
    def test_training(self, variant, name):
        self.held_after_training(variant, name)

    def test_nothing_of_the_file_is_left_out(self):
        assert len(self.data["training"]) == 9


class TestUnits:
    data = golden.load("tunit")

    def given(self, label):
        return golden.given(self.data, label)

    def test_mutual_information(self):
        row = self.data["units"]["iic"]
        logits = [row["logit_factor"] * self.given(label) for label in row["logits"]]
        p, q = (x.softmax(1).requires_grad_() for x in logits)
        loss = -losses.mutual_information(p, q)
        assert loss.item() == pytest.approx(row["loss"], rel=1e-12)
        loss.backward()
        golden.same(p.grad, row["grad_first"])
        golden.same(q.grad, row["grad_second"])
        joint = p.T @ q
        golden.same((joint + joint.T) / (2 * joint.sum()), row["joint"])

    def test_mutual_information_with_an_unused_class(self):
        row = self.data["units"]["iic_with_an_unused_class"]
        p, q = (self.given(label).softmax(1) for label in row["logits"])
        for x in (p, q):
            x[:, 4] = 0
            x /= x.sum(1, keepdim=True)
        loss = -losses.mutual_information(p, q)
        assert loss.item() == pytest.approx(row["loss"], rel=1e-12)

    def test_contrast(self):
        row = self.data["units"]["contrastive"]
        query, key, queue = (self.given(row[k]) for k in ("query", "key", "queue"))
        query.requires_grad_()
        room = torch.cat([queue, torch.full_like(queue, 1e3)])  # the second half is not held
        held = torch.arange(len(room)) < len(queue)
        loss = losses.infonce(query, key, room, held, row["temperature"])
        assert loss.item() == pytest.approx(row["loss"], rel=1e-12)
        loss.backward()
        golden.same(query.grad, row["grad_query"])

    def test_contrast_without_negatives_is_zero(self):
        query = torch.randn(3, 4, requires_grad=True)
        loss = losses.infonce(query, query.detach(), torch.zeros(5, 4), torch.zeros(5).bool())
        loss.backward()
        assert loss == 0 and not query.grad.any()

    def test_hinge(self):
        row = self.data["units"]["hinge"]
        scores = self.given(row["logits"])
        assert losses.hinge(scores).item() == pytest.approx(row["d_real"], rel=1e-12)
        assert losses.hinge(-scores).item() == pytest.approx(row["d_fake"], rel=1e-12)
        assert -scores.mean().item() == pytest.approx(row["g"], rel=1e-12)

    def test_gradient_penalty(self):
        row = self.data["units"]["gradient_penalty"]
        x, w = self.given(row["x"]).requires_grad_(), self.given(row["w"])
        scores = (w * x**3).flatten(1).sum(1)
        assert 2 * losses.r1(scores, x).item() == pytest.approx(row["penalty"], rel=1e-12)

    def test_filter_response_norm(self):
        row = self.data["units"]["filter_response_norm"]
        x, norm = self.given(row["x"]).requires_grad_(), FilterResponseNorm(5)
        for name in ("tau", "gamma", "beta"):
            getattr(norm, name).data = self.given(row[name])
        out = norm(x)
        golden.same(out, row["out"])
        (out * self.given(row["weight_of_sum"])).sum().backward()
        golden.same(x.grad, row["grad_x"])
        for name in ("tau", "gamma", "beta"):
            golden.same(getattr(norm, name).grad, row[f"grad_{name}"])

    def test_discriminator_block(self):
        row = self.data["units"]["discriminator_block"]
        net, given = FRNResidual(4, 6, torch.nn.AvgPool2d(2)), golden.parameters(row["resblk"])
        net.load_state_dict(
            {n: given.pop(official.translated(BLOCK, n)) for n, _ in net.named_parameters()}
        )
        assert not given
        golden.same(net(self.given(row["x"])), row["out"])

    def test_queue(self):
        row = self.data["units"]["queue"]
        old, new = self.given(row["old"]), self.given(row["new"])
        m = small(style_dim=old.shape[1], queue=row["size"])
        m.enqueue(old[:1000])
        m.enqueue(old[1000:])
        m.enqueue(new)
        assert m.queued == len(old) + len(new) > row["size"]
        golden.same(m.queue.roll(-int(m.queued % row["size"]), 0), row["out"])  # oldest first

    def test_average(self):
        row = self.data["units"]["ema_update"]
        m = small()
        m.ema = torch.nn.ModuleDict({"G": torch.nn.Linear(3, 2)})
        m.G = torch.nn.Linear(3, 2)
        m.ema["G"].weight.data, m.G.weight.data = (
            self.given(row["target"]),
            self.given(row["source"]),
        )
        Method.update_averages(m, 0.999)
        golden.same(m.ema["G"].weight, row["out"])

    @pytest.mark.parametrize("side", [64, 128])
    def test_parameter_counts(self, side):
        full = self.data["full_size"]
        with torch.device("meta"):
            m = tunit.TUNIT(tunit.Config(), (), Shape(side, side))
        for net, count in full[f"{side}_px_10_clusters"].items():
            assert sum(p.numel() for p in m.get_submodule(net).parameters()) == count
        for net in ("G", "D") if side == 128 else ():
            shapes = {
                official.translated(names(3, 5)[net], n): list(p.shape)
                for n, p in m.get_submodule(net).named_parameters()
            }
            assert shapes == dict(full[f"names_{net}_128_px"])


# The game beyond the golden file -----------------------------------------------------------------


def small(domains=(), **changes):
    sizes = dict(clusters=4, style_dim=6, mlp_dim=8, dim=4, c_dim=4, d_dim=4, d_max_dim=8, queue=16)
    torch.manual_seed(0)
    m = tunit.TUNIT(tunit.Config(**sizes | changes), domains, Shape(32, 32))
    m.start_averages()
    return m


def images(n=6, seed=0):
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return {"x": x, "x_tf": x.flip(3), "y": torch.tensor([0, 1, 2, -1, -1, -1])[:n]}


def moves(m, step, batch=None):
    """The networks and the losses of each move of a step, whose gradients stay in `.grad`."""
    found = []
    for update in m.updates(batch or images(), step):
        update.loss.backward()
        found.append((update.nets, set(update.log), update.loss.item()))
    return found


C, D, CG, G = (
    ("C", {"style_C", "MI", *SHARES}),
    ("D", {"D_real", "D_fake", "gp"}),
    ("C G", {"adv_fake", "adv_rec", "rec", "style_G"}),
    ("G", {"adv_fake", "adv_rec", "rec", "style_G"}),
)


@pytest.mark.parametrize(
    "changes, epoch, expected",
    [  # of 200 epochs, as in the official code
        ({}, 0, [C]),
        ({}, 64, [C]),
        ({}, 65, [C, D, CG]),
        ({}, 199, [C, D, CG]),
        ({"training": "separate"}, 64, [C]),
        ({"training": "separate"}, 65, [D, G]),
        ({"first_stage": 0.5}, 99, [C]),
        ({"labels": "some"}, 19, [("C", {"style_C", "CE", *SHARES})]),
        ({"labels": "some"}, 20, [("C", {"style_C", "MI", "CE", *SHARES})]),
        ({"labels": "some"}, 34, [("C", {"style_C", "MI", "CE", *SHARES})]),
        ({"labels": "some"}, 35, [("C", {"style_C", "MI", "CE", *SHARES}), D, CG]),
        ({"labels": "all"}, 0, [("C", {"style_C"}), D, CG]),
        ({"labels": "all", "first_stage": 0.5}, 0, [("C", {"style_C"}), D, CG]),
    ],
)
@pytest.mark.parametrize("steps", [200, 2000])
def test_stages(changes, epoch, expected, steps):
    m = small(**changes)
    found = moves(m, Step(epoch * steps // 200, steps))
    late = epoch / 200 >= m.config.first_stage / 2  # until then domains may be empty
    early = [(nets, parts - ({"domains_empty"} if not late else set())) for nets, parts in expected]
    assert [(nets, parts) for nets, parts, _ in found] == early


def test_loss_of_C_is_a_tenth_once_all_play():
    step = Step(1, 2)
    (_, _, alone), *others = moves(small(first_stage=1.0), step)
    assert not others
    (_, _, joint), *_ = moves(small(first_stage=0.0), step)
    assert joint == pytest.approx(0.1 * alone)


@pytest.mark.parametrize("training", ["joint", "separate"])
def test_gradients_reach_the_networks_of_a_move(training):
    m = small(training=training, first_stage=0.0)
    for update in m.updates(images(), Step(0, 1)):
        nets = set(update.nets.split())
        m.zero_grad(set_to_none=True)
        update.loss.backward()
        moved = {n.split(".")[0] for n, p in m.named_parameters() if p.grad is not None}
        if nets == {"C", "G"} or nets == {"G"}:
            moved.discard("D")  # the trainer names who learns
        assert moved == nets
        headless = [n for n, p in m.C.named_parameters() if "C" in nets and p.grad is None]
        assert headless == (["domain.weight", "domain.bias"] if nets == {"C", "G"} else [])


@pytest.mark.parametrize("labels", ["none", "some", "all"])
def test_G_and_D_play_with_a_part_of_the_batch(labels):
    m = small(first_stage=0.0, gan_batch=2, labels=labels)
    batch, seen = images(), []
    judge, draw = m.discriminate, m.generate
    m.discriminate = lambda *args: seen.append([len(a) for a in args]) or judge(*args)
    m.generate = lambda x, fakes, y, ref, k, C: (
        seen.append([len(x), len(fakes), len(y), len(ref), len(k)]) or draw(x, fakes, y, ref, k, C)
    )
    assert len(moves(m, Step(0, 1), batch)) == 3
    assert seen == [[2, 2, 2], [2, 4, 2, 2, 2]]
    assert m.C.count.sum() == 6 and m.queued == 6  # C sees the whole batch
    whole = small(first_stage=0.0, labels=labels)
    assert (
        moves(whole, Step(0, 1), batch)[0]
        == moves(small(first_stage=0.0, gan_batch=2, labels=labels), Step(0, 1), batch)[0]
    )


def test_a_batch_of_one_is_refused():
    with pytest.raises(ConfigProblem, match="data.batch: .* at the least"):
        moves(small(), Step(0, 1), images(1))


@pytest.mark.parametrize("first_stage", [0.0, 1.0])
def test_statistics_are_of_images_alone(first_stage):
    """With unchanging weights, what C and C' do in use is what they do in training."""
    m = small(first_stage=first_stage)
    batch = images() | {"x_tf": 0.1 * images()["x"] - 0.8}
    for norm in (n for n in m.modules() if isinstance(n, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0  # the statistics are those of the latest batch
    list(m.updates(batch, Step(0, 1)))
    m.update_averages(0.9)
    for C in (m.C, m.ema["C"]):
        trained = C.train()(batch["x"])
        used = C.eval()(batch["x"])
        for a, b in zip(used, trained, strict=True):  # but for the factor n / (n - 1)
            assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99


def test_C_average_keeps_statistics_of_its_own():
    m = small()
    m.C(torch.randn(4, 3, 32, 32))
    before = [b.clone() for b in m.ema["C"].features.buffers()]
    m.C.remember(torch.ones(2, 6), torch.tensor([0, 0]))
    m.update_averages(0.9)
    assert all(map(torch.equal, m.ema["C"].features.buffers(), before))
    assert torch.equal(m.ema["C"].mean, m.C.mean)


def test_shares_of_domains_follow_the_latest_images():
    m = small()
    first = m.shares(torch.eye(4).repeat(3, 1), settled=True)  # three images in each domain
    assert first == {"share_largest": 0.25, "domains_empty": 0}
    for _ in range(200):
        log = m.shares(torch.eye(4)[[0, 0, 0, 1]], settled=True)
    assert log["share_largest"].item() == pytest.approx(0.75, abs=0.01)
    assert log["domains_empty"] == 2
    assert set(m.shares(torch.eye(4), settled=False)) == {"share_largest"}
    again = small()
    again.load_state_dict(m.state_dict())
    assert torch.equal(again.share, m.share)


def test_labels_are_taken_where_they_are():
    m = small(labels="some", first_stage=0.0)
    seen = []
    m.discriminate = lambda x_ref, x_fake, y_ref: seen.append(y_ref) or Update("D", x_ref.sum())
    batch, step = images(), Step(0, 1)
    list(m.updates(batch, step))
    ref = step.permutation("reference", 6, like=batch["x"])
    y = torch.empty(6, dtype=torch.long)
    y[ref] = seen[0]
    guess = m.C(batch["x"])[1].argmax(1)
    assert y.tolist() == [0, 1, 2, *guess[3:].tolist()]


def test_labels_mean_nothing_without_supervision():
    step = Step(0, 1)
    without = {k: x for k, x in images().items() if k != "y"}
    assert moves(small(first_stage=0.0), step) == moves(small(first_stage=0.0), step, without)


def test_labelled_images_leave_the_mutual_information():
    m = small(labels="some", labels_only=0.0, first_stage=1.0)
    batch = images()
    update = next(m.updates(batch, Step(0, 1)))
    p, q = (m.C(batch[k])[1].softmax(1) for k in ("x", "x_tf"))
    expected = -5 * losses.mutual_information(p[3:], q[3:])
    assert update.log["MI"].item() == pytest.approx(expected.item())
    ce = [
        torch.nn.functional.cross_entropy(m.C(batch[k])[1][:3], batch["y"][:3])
        for k in ("x", "x_tf")
    ]
    assert update.log["CE"].item() == pytest.approx(5 * sum(ce).item())


@pytest.mark.parametrize("y", [[0] * 6, [-1] * 6])
def test_a_batch_may_hold_labels_for_all_or_none(y):
    m = small(labels="some", labels_only=0.0, first_stage=0.0)
    for _, _, loss in moves(m, Step(0, 1), images() | {"y": torch.tensor(y)}):
        assert math.isfinite(loss)
    for p in m.parameters():
        assert p.grad is None or p.grad.isfinite().all()


def test_normalised_codes_have_no_length():
    m = small(normalise=True)
    m.enqueue(torch.randn(10, 6))
    s, k = torch.randn(4, 6), torch.randn(4, 6)
    loss = m.contrast(s, k)
    m.queue *= 3
    assert m.contrast(2 * s, 5 * k).item() == pytest.approx(loss.item())


def test_queue_lasts():
    m = small(first_stage=0.5)
    keys = []
    for i in range(4):
        with torch.no_grad():
            keys.append(copy.deepcopy(m.ema["C"])(images(seed=i)["x_tf"])[0])
        moves(m, Step(i, 4), images(seed=i))  # across the stages
        assert m.queued == 6 * (i + 1)
    latest = torch.cat(keys)[-16:]
    assert torch.allclose(m.queue.roll(-int(m.queued % 16), 0), latest)

    again = small(first_stage=0.5)
    again.load_state_dict(m.state_dict())
    assert torch.equal(again.queue, m.queue) and again.queued == 24
    assert moves(again, Step(3, 4), images(seed=9)) == moves(m, Step(3, 4), images(seed=9))


def test_keys_enter_after_the_last_move():
    m = small(first_stage=0.0)
    seen = [int(m.queued) for _ in m.updates(images(), Step(0, 1))]
    assert seen == [0, 0, 0] and m.queued == 6


def test_more_keys_than_the_queue_holds():
    m = small()
    m.enqueue(torch.arange(20.0)[:, None].expand(20, 6))
    assert sorted(m.queue[:, 0].tolist()) == list(range(4, 20)) and m.queued == 16


def test_mean_styles():
    m = small()
    s, y = torch.randn(50, 6), torch.randint(0, 3, (50,))
    for i in range(0, 50, 10):
        m.C.remember(s[i : i + 10], y[i : i + 10])
    m.update_averages(0.9)
    view = m.translator()
    for k in range(3):
        code = view.sample_style(2, k, torch.Generator())
        assert torch.allclose(code, s[y == k].mean(0).expand(2, -1))
    with pytest.raises(ConfigProblem, match="domain_4"):
        view.sample_style(1, 3, torch.Generator())
    for _ in range(2 * MEMORY // 32):
        m.C.remember(torch.ones(32, 6), torch.zeros(32, dtype=torch.long))
    assert torch.allclose(m.C.mean[0], torch.ones(6), atol=0.5) and m.C.count[0] == MEMORY


def test_mean_styles_are_those_of_the_references():
    m = small(first_stage=0.0)
    moves(m, Step(0, 1))
    assert m.C.count.sum() == 6
    m.update_averages(0.0)
    assert "mean" in m.ema["C"].state_dict() and torch.equal(m.ema["C"].mean, m.C.mean)


def test_names_of_domains():
    assert small().domains == ("domain_1", "domain_2", "domain_3", "domain_4")
    assert small(("photos",)).domains[0] == "domain_1"
    assert small(("a", "b", "c", "d")).domains == ("a", "b", "c", "d")
    assert small(("a", "b"), labels="some").domains == ("a", "b", "domain_3", "domain_4")
    with pytest.raises(ConfigProblem, match="method.clusters=5"):
        small(tuple("abcde"), labels="all")


def test_verbs():
    m = small()
    view = m.translator()
    x = images()["x"]
    assert view.styles(0, 1) == {"reference", "mean"}
    assert view.translate(x, 0, 1, view.encode_style(x, 1)).shape == x.shape
    assert torch.allclose(view.assign(x).sum(1), torch.ones(6))
    wide = torch.zeros(1, 3, 32, 64)
    assert view.translate(wide, 0, 1, view.encode_style(wide, 1)).shape == wide.shape
    assert m.stride == 2


@pytest.mark.parametrize("sides", [(16, 16), (28, 28), (64, 66)])
def test_sides_that_do_not_suit_are_refused(sides):
    with pytest.raises(ConfigProblem, match="data.size"):
        tunit.TUNIT(tunit.Config(), (), Shape(*sides))


@pytest.mark.parametrize("sides", [(32, 32), (48, 48), (64, 96)])
def test_sides_that_suit(sides):
    sizes = dict(clusters=2, style_dim=6, mlp_dim=8, dim=4, c_dim=4, d_dim=4, d_max_dim=8)
    m = tunit.TUNIT(tunit.Config(**sizes, first_stage=0.0), (), Shape(*sides))
    m.start_averages()
    x = torch.rand(4, 3, *sides) * 2 - 1
    assert len(moves(m, Step(0, 1), {"x": x, "x_tf": x})) == 3


def test_bf16_keeps_codes_and_penalty_in_full_precision():
    torch.set_default_dtype(torch.float32)
    m = small(first_stage=0.0)
    rounds = m.updates(images(), Step(0, 1))
    while True:
        with torch.autocast("cpu", torch.bfloat16):
            update = next(rounds, None)
        if update is None:
            break
        update.loss.backward()
        assert update.loss.isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        assert m.C(images()["x"])[0].dtype is torch.float32
    assert m.queue.dtype is torch.float32


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_presets(preset):
    run = resolve({"method": {"name": "tunit"}, "preset": preset})
    assert run.method.first_stage == 0.325
    assert run.method.gan_batch == {"paper": None, "small": 16}[preset]
    assert run.method.lambda_gp == {"paper": 10, "small": 0.6}[preset]
    assert run.optimizer("C").kind == "adam"
    assert run.optimizer("G").kind == {"paper": "rmsprop", "small": "adam"}[preset]
    assert run.optimizer("C").weight_decay == 1e-3
    assert run.optimizer("C").betas == (0.9, 0.999)
    semi = resolve({"method": {"name": "tunit", "labels": "some"}, "preset": preset})
    assert semi.method.first_stage == 0.175
