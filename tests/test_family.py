"""What is particular to UNIT, CycleGAN, pix2pix, BicycleGAN and Augmented CycleGAN."""

import os
import signal

import numpy as np
import pytest
import tiny
import torch

from unpaired import Translator
from unpaired.checkpoint import RunFolder
from unpaired.config import load
from unpaired.data.scenes import Scenes
from unpaired.errors import ConfigProblem
from unpaired.losses import kl_normal
from unpaired.method import Shape, Step
from unpaired.methods import augmented_cyclegan, bicyclegan, cyclegan, pix2pix, unit
from unpaired.train import Trainer, fit

FAMILY = {
    "augmented_cyclegan": (augmented_cyclegan, augmented_cyclegan.AugmentedCycleGAN),
    "bicyclegan": (bicyclegan, bicyclegan.BicycleGAN),
    "cyclegan": (cyclegan, cyclegan.CycleGAN),
    "pix2pix": (pix2pix, pix2pix.Pix2Pix),
    "unit": (unit, unit.UNIT),
}
TINY = {
    "augmented_cyclegan": dict(
        z_dim=4, dim=4, residuals=1, e_dim=4, e_layers=3, d_A_dim=4, d_A_layers=3, d_B_dim=4
    ),
    "bicyclegan": dict(dim=4, levels=5, e_dim=4, e_blocks=2, d_dim=4, d_layers=2),
    "cyclegan": dict(dim=4, residuals=1, d_dim=4, d_layers=2, pool=6),
    "pix2pix": dict(dim=4, levels=5, d_dim=4, d_layers=2),
    "unit": dict(dim=4, residuals=1, d_dim=4, d_layers=2, d_scales=2),
}
VARIANTS = [
    ("augmented_cyclegan", {}),
    ("bicyclegan", {}),
    ("bicyclegan", {"conditional": True}),
    ("cyclegan", {}),
    ("cyclegan", {"noise": True, "lambda_idt": 0, "downsamplings": 1}),
    ("pix2pix", {}),
    ("unit", {}),
    ("unit", {"shared": 1, "residuals": 2, "gan": "nsgan"}),
]


def build(name, size=32, **changes):
    module, cls = FAMILY[name]
    torch.manual_seed(0)
    return cls(module.Config(**TINY[name] | changes), ("edges", "shoes"), Shape(size, size))


def batch(n=4, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_1, x_2 = 2 * torch.rand(2, n, 3, size, size, generator=generator) - 1
    return {"x_1": x_1, "x_2": x_2}


@pytest.mark.parametrize("name, changes", VARIANTS)
def test_every_parameter_moves_once_and_only_when_named(name, changes):
    m, moved = build(name, **changes), []
    for update in m.updates(batch(), Step(0, 10)):
        params = {
            f"{net}.{n}": p
            for net in update.nets.split()
            for n, p in m.get_submodule(net).named_parameters()
        }
        m.zero_grad(set_to_none=True)
        update.loss.backward(inputs=list(params.values()))
        assert {n for n, p in m.named_parameters() if p.grad is not None} == params.keys()
        moved += params
    assert sorted(moved) == sorted(n for n, _ in m.named_parameters())


@pytest.mark.parametrize("name, changes", VARIANTS)
def test_a_step_is_a_function_of_its_index(name, changes):
    def play(index):
        m = build(name, **changes)
        return torch.stack([u.loss.detach() for u in m.updates(batch(), Step(index, 10))])

    assert torch.equal(play(3), play(3))
    draws = name != "cyclegan" or changes  # CycleGAN draws nothing but from its history
    assert torch.equal(play(3), play(4)) is not bool(draws)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("preset", ["paper", "small"])
def test_presets_resolve_and_fit_their_size(name, preset):
    run = load(method={"name": name}, preset=preset)
    with torch.device("meta"):
        m = run.build(("edges", "shoes"))
    nets = dict(m.named_children())
    assert set(m.averaged.split()) <= nets.keys()
    assert set(run.optim) - {"default"} <= nets.keys()
    assert run.optimizer(m.averaged.split()[0]).lr >= 1e-4
    assert m.card["year"] and m.card["url"].startswith("https://arxiv.org/abs/")


def test_augmented_cyclegan_trains_its_discriminators_at_a_fifth():
    run = load(method={"name": "augmented_cyclegan"})
    d, g = run.optimizer("D_A"), run.optimizer("G_AB")
    assert d.lr == pytest.approx(g.lr / 5)
    assert d.clip == g.clip == 500 and d.decay.kind == "linear" and d.betas == (0.5, 0.999)


@pytest.mark.parametrize(
    "name, size, changes",
    [
        ("augmented_cyclegan", 28, {}),
        ("augmented_cyclegan", 33, {}),
        ("bicyclegan", 48, {}),
        ("bicyclegan", 32, {"d_layers": 3}),
        ("bicyclegan", 32, {"e_blocks": 5}),
        ("cyclegan", 20, {"d_layers": 3}),
        ("cyclegan", 30, {}),
        ("pix2pix", 48, {}),
        ("pix2pix", 32, {"d_layers": 4}),
        ("unit", 16, {"d_layers": 4}),
        ("unit", 30, {}),
        ("unit", 32, {"shared": 2}),
    ],
)
def test_sizes_that_the_networks_cannot_take_are_refused(name, size, changes):
    with pytest.raises(ConfigProblem, match=r"data\.size|method\.shared"):
        build(name, size, **changes)


@pytest.mark.parametrize(
    "size, changes", [(33, {}), (30, {"downsamplings": 2}), (8, {"d_layers": 1, "d_scales": 1})]
)
def test_sizes_that_munit_cannot_take_are_refused(size, changes):
    with pytest.raises(ConfigProblem, match=r"data\.size"):
        tiny.build("munit", *(f"method.{k}={v}" for k, v in changes.items()), size=size)


@pytest.mark.parametrize(
    "name, size, changes",
    [
        ("augmented_cyclegan", 16, {"e_layers": 2, "d_A_layers": 2}),
        ("bicyclegan", 24, {"levels": 3, "d_layers": 2}),
        ("bicyclegan", 8, {"levels": 2, "d_layers": 1, "e_blocks": 2}),
        ("cyclegan", 24, {"d_layers": 3}),
        ("cyclegan", 8, {"d_layers": 1}),
        ("cyclegan", 6, {"d_layers": 1, "downsamplings": 1}),
        ("pix2pix", 12, {"levels": 2, "d_layers": 2}),
        ("unit", 8, {}),
    ],
)
def test_the_smallest_sizes_train(name, size, changes):
    if name == "bicyclegan" and size == 8:
        with pytest.raises(ConfigProblem):  # 12 is a multiple of 4: the least that is judged
            build(name, size, **changes)
        size = 12
    m = build(name, size, **changes)
    losses = [u.loss for u in m.updates(batch(size=size), Step(0, 1))]
    assert all(torch.isfinite(loss) for loss in losses)


# Ways and styles -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pix2pix", "bicyclegan"])
def test_one_way_methods_refuse_the_other_way(name):
    m, x = build(name).eval(), batch()["x_1"]
    style = torch.zeros(4, 8)
    m.translate(x, 0, 1, style)
    for source, target in (1, 0), (0, 0), (1, 1):
        with pytest.raises(ConfigProblem, match="from edges to shoes only"):
            m.styles(source, target)
        with pytest.raises(ConfigProblem, match="from edges to shoes only"):
            m.translate(x, source, target, style)


@pytest.mark.parametrize("name", ["cyclegan", "augmented_cyclegan"])
def test_no_way_from_a_domain_to_itself(name):
    with pytest.raises(ConfigProblem, match="itself"):
        build(name).styles(0, 0)


@pytest.mark.parametrize(
    "name, changes, there, back",
    [
        ("unit", {}, set(), set()),
        ("unit", {"shared": 1, "residuals": 2}, set(), set()),
        ("cyclegan", {}, set(), set()),
        ("cyclegan", {"noise": True}, {"latent"}, {"latent"}),
        ("augmented_cyclegan", {}, {"latent", "reference"}, set()),
        ("bicyclegan", {}, {"latent", "reference"}, None),
        ("pix2pix", {}, set(), None),
    ],
)
def test_styles_are_what_they_say(name, changes, there, back):
    m, x = build(name, **changes).eval(), batch()
    m.start_averages()
    view = m.translator()
    for target, ways, content in (1, there, x["x_1"]), (0, back, x["x_2"]):
        if ways is None:
            continue
        assert m.styles(1 - target, target) == ways
        generator = torch.Generator().manual_seed(1)
        if "latent" in ways:
            s = view.sample_style(8, target, generator)
            first, again, other = (
                view.translate(content, 1 - target, target, part) for part in (s[:4], s[:4], s[4:])
            )
            assert torch.equal(first, again) and (first - other).abs().max() > 1e-4
            assert first.shape == content.shape and first.abs().max() <= 1
        else:
            with pytest.raises(ConfigProblem, match="no random styles"):
                m.sample_style(1, target, generator)
        if "reference" in ways:
            s = view.encode_style(x["x_2"], target)
            assert s.shape == (4, m.config.z_dim) and s.std() > 0
        else:
            with pytest.raises(ConfigProblem, match="no reference"):
                m.encode_style(x["x_2"], target)
        if not ways:
            assert view.translate(content, 1 - target, target, None).shape == content.shape


def test_unit_shares_blocks_in_a_network_of_their_own():
    m = build("unit", shared=1, residuals=2)
    assert m.averaged == "G_1 G_2 shared"
    assert [u.nets for u in m.updates(batch(), Step(0, 1))] == ["D_1 D_2", "G_1 G_2 shared"]
    assert build("unit").averaged == "G_1 G_2"
    m.start_averages()
    m.eval()
    x = batch()["x_1"]
    before = m.translator().translate(x, 0, 1, None)
    assert torch.equal(before, m.translate(x, 0, 1, None))
    m.shared.G[0].body[0].conv.weight.data += 1
    assert torch.equal(before, m.translator().translate(x, 0, 1, None))
    assert not torch.equal(before, m.translate(x, 0, 1, None))


@pytest.mark.parametrize(
    "name, changes",
    [("unit", ["shared=1"]), ("unit", ["shared=1", "gan=nsgan"]), ("cyclegan", ["noise=true"])],
)
def test_variants_resume_exactly_and_translate(name, changes, tmp_path):
    words = [f"method.{change}" for change in changes]
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    fit(tiny.run(name, *words, steps=2), whole, say=lambda line: None)
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        play = Trainer.play

        def terminated(self, *args):
            os.kill(os.getpid(), signal.SIGTERM)
            return play(self, *args)

        patch.setattr(Trainer, "play", terminated)
        fit(tiny.run(name, *words, steps=2), parts, say=lambda line: None)
    fit(tiny.run(name, *words, steps=2), parts, resume=True, say=lambda line: None)
    (_, a, _), (_, b, _) = whole.newest(), parts.newest()
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    t = Translator.load(parts.path)
    image = Scenes("outline", tiny.side(name), "test")[0].image
    styles = 3 if name == "cyclegan" else 1
    outputs = [np.asarray(o) for o in t.translate(image, to="painted", styles=3)]
    assert len(outputs) == styles and len({o.tobytes() for o in outputs}) == styles


# BicycleGAN ------------------------------------------------------------------------------------


def test_the_latent_term_teaches_the_generator_alone():
    def gradients(weight):
        m = build("bicyclegan", lambda_latent=weight)
        update = next(m.updates(batch(), Step(0, 1)))
        update.loss.backward()
        return [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (m.G, m.E)]

    (G_without, E_without), (G_with, E_with) = gradients(0.0), gradients(100.0)
    assert not torch.allclose(G_without, G_with)
    torch.testing.assert_close(E_without, E_with)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_divergence_from_the_prior(dtype):
    torch.manual_seed(0)
    mu, logvar = (0.01 * torch.randn(2, 8).to(dtype) for _ in range(2))
    q = torch.distributions.Normal(mu.double(), (logvar.double() / 2).exp())
    p = torch.distributions.Normal(torch.zeros(2, 8).double(), torch.ones(2, 8).double())
    expected = torch.distributions.kl_divergence(q, p).sum().item()
    assert kl_normal(mu, logvar).item() == pytest.approx(expected, rel=1e-2)  # not lost in bf16


@pytest.mark.parametrize("name", ["bicyclegan", "augmented_cyclegan"])
def test_batches_that_are_too_small_are_refused(name):
    with pytest.raises(ConfigProblem, match="data.batch=2"):
        next(build(name).updates(batch(1), Step(0, 1)))


# pix2pix ---------------------------------------------------------------------------------------


def test_dropout_is_drawn_by_the_step_and_off_at_test_time():
    m, x = build("pix2pix"), batch()["x_1"]

    def trained_on(index):
        return m.G(x, noise=m.noise(x, Step(index, 10)))

    assert torch.equal(trained_on(0), trained_on(0))
    assert not torch.equal(trained_on(0), trained_on(1))
    m.eval()
    alone = torch.cat([m.translate(image[None], 0, 1, None) for image in x])
    torch.testing.assert_close(alone, m.translate(x, 0, 1, None))


def test_images_by_themselves_are_a_batch_of_one():
    """`norm: instance`: what batch norm makes of each image alone, in training and in use, whatever the batch."""
    a, b = (build("pix2pix", norm=norm, dropout=0) for norm in ("instance", "batch"))
    b.load_state_dict(a.state_dict())
    x, y = batch().values()
    expected = torch.cat([b.G(image[None]) for image in x])
    for network in (a.train(), a.eval()):
        torch.testing.assert_close(network.G(x), expected)
        torch.testing.assert_close(torch.cat([network.G(image[None]) for image in x]), expected)
    one = {"x_1": x[:1], "x_2": y[:1]}
    for mine, theirs in zip(*(m.train().updates(one, Step(0, 1)) for m in (a, b)), strict=True):
        torch.testing.assert_close(mine.loss, theirs.loss)


def test_dropout_drops_its_share_of_three_maps_and_keeps_their_mean():
    m, x = build("pix2pix", size=64, dim=8, dropout=0.25), batch(size=64)["x_1"]
    noise = m.noise(x, Step(0, 1))
    assert [tuple(u.shape) for u in noise] == [(4, 64, 4, 4), (4, 32, 8, 8), (4, 16, 16, 16)]
    seen = []
    m.G.up[3].register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 64:]))
    with torch.no_grad():
        m.G(x, noise=noise, dropout=0.25)
        m.G(x)
    dropped, whole = seen
    kept = noise[0] >= 0.25
    torch.testing.assert_close(dropped, whole * kept / 0.75)
    assert (~kept).float().mean() == pytest.approx(0.25, abs=0.03)


# CycleGAN's history ----------------------------------------------------------------------------


def numbered(first, n):
    """Images that tell their number by their value."""
    return torch.arange(first, first + n, dtype=torch.float32)[:, None, None, None].expand(
        n, 3, 8, 8
    )


def ask(pool, images, index):
    step = Step(index, 1000)
    n = len(images)
    swap, which = (step.uniform(k, n, like=images) for k in ("swap", "which"))
    return pool(images, swap, which)


def test_the_history_fills_first():
    pool = cyclegan.Pool(5, Shape(8, 8))
    assert torch.equal(ask(pool, numbered(1, 3), 0), numbered(1, 3))
    assert torch.equal(ask(pool, numbered(4, 2), 1), numbered(4, 2))
    assert torch.equal(pool.images, numbered(1, 5)) and pool.count.item() == 5


def test_a_full_history_returns_half_old_images_and_keeps_what_they_replace():
    pool = cyclegan.Pool(50, Shape(8, 8))
    ask(pool, numbered(0, 50), 0)
    old = 0
    for i in range(1, 101):
        given, held = numbered(50 + 10 * i, 10)[:, 0, 0, 0], pool.images[:, 0, 0, 0].clone()
        returned = ask(pool, numbered(50 + 10 * i, 10), i)[:, 0, 0, 0]
        now = pool.images[:, 0, 0, 0]
        swapped = returned != given
        assert torch.isin(returned[swapped], torch.cat([held, given])).all()
        assert sorted([*held.tolist(), *given.tolist()]) == sorted(
            [*now.tolist(), *returned.tolist()]
        )
        old += swapped.sum().item()
    assert pool.count.item() == 50
    assert old / 1000 == pytest.approx(0.5, abs=0.05)


def test_the_history_is_state_and_its_choices_are_the_steps():
    m, other = build("cyclegan"), build("cyclegan")

    def play(method, steps):
        for i in steps:
            updates = list(method.updates(batch(seed=i), Step(i, 10)))
        return updates[-1].loss.detach()

    play(m, range(4))
    assert m.pool_X.count.item() == 6 and m.pool_Y.images.abs().sum() > 0
    other.load_state_dict(m.state_dict())
    assert torch.equal(play(m, range(4, 6)), play(other, range(4, 6)))
    fresh = build("cyclegan")
    assert not torch.equal(play(m, [6]), play(fresh, [6]))


def test_a_history_of_no_images_returns_what_it_is_given():
    pool = cyclegan.Pool(0, Shape(8, 8))
    assert torch.equal(ask(pool, numbered(1, 3), 0), numbered(1, 3))


def test_the_discriminators_see_the_history_and_the_generators_do_not():
    m, x = build("cyclegan", pool=4), batch()
    list(m.updates(x, Step(0, 10)))
    held = m.pool_Y.images.clone()
    torch.testing.assert_close(held, m.G(x["x_1"]).detach())  # of a step without moves
    losses = [[u.loss.item() for u in m.updates(batch(seed=1), Step(i, 10))] for i in (1, 2)]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


@pytest.mark.parametrize("size", [1, 3])
def test_bicyclegan_plays_with_halves(size):
    method, run = tiny.build("bicyclegan")
    with pytest.raises(ConfigProblem, match=r"data\.batch"):
        next(method.updates(tiny.batch("bicyclegan", size), tiny.step()))
