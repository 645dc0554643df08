"""The built-in scenes: pure functions of their factors, whose truth comes with every image."""

import time

import numpy as np
import pytest

from unpaired.data.scenes import CONTENT, DOMAINS, STYLES, SUNSET, Scenes, draw, family, tint
from unpaired.errors import ConfigProblem

SHAPES = int(CONTENT["shape"][1])


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_pure_function_of_its_key(domain):
    a, b = (Scenes(domain, 32, "train", 3, 10) for _ in range(2))
    assert np.array_equal(a[4].image, b[4].image) and a[4].style == b[4].style
    assert not np.array_equal(a[4].image, a[5].image)
    assert not np.array_equal(a[4].image, Scenes(domain, 32, "train", 4, 10)[4].image)
    assert a[4].image.dtype == np.uint8 and a[4].image.shape == (32, 32, 3)


def test_splits_share_no_scene():
    contents = [
        tuple(Scenes("painted", 32, s, 0, 200).content(i).values())
        for s in ("train", "val", "test")
        for i in range(200)
    ]
    assert len(set(contents)) == 600


def test_there_are_at_least_nine_domains_and_all_differ():
    assert len(DOMAINS) >= 9 and DOMAINS[:2] == ("outline", "painted")
    pictures = [draw(d, {}, {}, 48).image.astype(float) for d in DOMAINS]
    for i, a in enumerate(pictures):
        assert all(np.abs(a - b).mean() > 5 for b in pictures[:i])


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_style_factor_shows_and_leaves_the_mask_alone(domain):
    assert len(STYLES[domain]) >= 2
    for name in STYLES[domain]:
        low, high = draw(domain, {}, {name: 0.1}, 48), draw(domain, {}, {name: 0.9}, 48)
        assert np.abs(low.image.astype(float) - high.image).mean() > 1, name
        assert np.array_equal(low.mask, high.mask)


@pytest.mark.parametrize("domain", DOMAINS)
def test_factors_are_uniform_and_independent(domain):
    scenes = Scenes(domain, 16, "train", 0, 1500)
    factors = np.array([list(scenes.style(i).values()) for i in range(1500)])
    for column in factors.T:
        shares = np.histogram(column, 8, (0, 1))[0] / len(column)
        assert 0.5 * np.abs(shares - 1 / 8).sum() < 0.06
    correlation = np.corrcoef(factors.T) - np.eye(factors.shape[1])
    assert np.abs(correlation).max() < 0.1


def test_paired_mode_shares_content_and_unpaired_does_not():
    a, b = (Scenes(d, 32, "train", 0, 5, paired=True) for d in ("outline", "painted"))
    assert all(
        a.content(i) == b.content(i) and np.array_equal(a[i].mask, b[i].mask) for i in range(5)
    )
    a, b = (Scenes(d, 32, "train", 0, 5) for d in ("outline", "painted"))
    assert all(a.content(i) != b.content(i) for i in range(5))


@pytest.mark.parametrize("shape", range(SHAPES))
def test_the_mask_is_the_object(shape):
    plain = {"shading": 0.0, "background": 0.5, "hue": 0.0}
    scene = draw("painted", {"shape": shape}, plain, 64)
    inside, outside = scene.mask > 0.95, scene.mask < 0.05
    assert 0.05 < inside.mean() < 0.5
    colour = scene.image.astype(float)
    ground = np.median(colour[outside], 0)
    away = np.abs(colour - ground).sum(-1)
    assert np.median(away[inside]) > 60 > np.median(away[outside])
    assert np.percentile(away[inside], 10) > np.percentile(away[outside], 50)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_scene_at_any_size(domain):
    small, large = (Scenes(domain, n, "test", 0, 3)[1] for n in (32, 64))
    halved = large.mask.reshape(32, 2, 32, 2).mean((1, 3))
    assert iou(small.mask > 0.5, halved > 0.5) > 0.9
    image = large.image.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(image - small.image).mean() < 14
    wide = Scenes(domain, (32, 48), "test", 0, 3)[1]
    assert wide.image.shape == (32, 48, 3) and wide.mask.shape == (32, 48)


def test_family_varies_only_in_its_distributions():
    studies = family(5, 2, 16, count=400)
    assert len(studies) == 5
    true = np.array([[s.true(i) for i in range(400)] for s in studies])  # (5, 400, 2)
    for s, drawn in zip(studies, true, strict=True):
        assert np.allclose(drawn.mean(0), s.mean, atol=0.2)
        assert np.allclose(drawn.std(0), s.deviation, atol=0.15)
        assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.15
    # the theorem's vectors of 2n + 1 domains: linear in mean / variance and 1 / variance
    w = np.array([np.concatenate([s.mean / s.deviation**2, 1 / s.deviation**2]) for s in studies])
    assert np.linalg.matrix_rank(w[1:] - w[0], tol=0.05) == 4
    scene = studies[0][3]
    assert scene.image.shape == (16, 16, 3)
    free = [v for v in scene.style.values() if v != 0.5]
    assert len(free) == 2 and all(0 < v < 1 for v in free)


def test_colours_of_the_family_do_not_close_in_a_circle():
    colours = np.array([tint(SUNSET, t) for t in np.linspace(0, 1, 21)])
    apart = np.linalg.norm(colours[0] - colours, axis=1)
    assert (np.diff(apart) > -0.02).all() and apart[-1] > 0.95 * apart.max()


def test_names_are_checked():
    for call in (
        lambda: Scenes("paintd"),
        lambda: Scenes("painted", split="trian"),
        lambda: draw("painted", {"scal": 1}, {}),
        lambda: draw("painted", {}, {"hues": 1}),
        lambda: family(3, 99),
    ):
        with pytest.raises(ConfigProblem):
            call()
    with pytest.raises(IndexError):
        Scenes("painted", count=3)[3]


def test_drawing_is_quick():
    scenes = Scenes("painted", 32, "train", 0, 60)
    scenes[0]
    start = time.process_time()
    for i in range(50):
        scenes[i]
    assert (time.process_time() - start) / 50 < 0.02  # seconds; about 0.001 on a free core
