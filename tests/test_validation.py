"""The quick figures of training: every method has them, and they see what goes wrong."""

import numpy as np
import pytest
import tiny
import torch

from unpaired import train
from unpaired.metrics import validation
from unpaired.metrics.table import metric
from unpaired.metrics.validation import quick_validation
from unpaired.registry import method_names


def images(method, domains, n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    side = tiny.side(method)
    return [torch.rand(n, 3, side, side, generator=g) * 2 - 1 for _ in range(domains)]


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_quick_figures(name):
    method, run = tiny.build(name)
    method = method.translator()
    given = images(name, len(run.data.domains))
    figures = quick_validation(method, given)
    assert all(isinstance(v, float) and v == v for v in figures.values())
    assert {"SWD", "change", "content diversity"} <= set(figures)
    for key in figures:
        metric(key.removesuffix(" latent").removesuffix(" reference"))  # all are in the table
    assert ("pixel diversity" in figures) == any(
        method.styles(0, 1)  # what it serves
    )
    assert ("style gap" in figures) == (
        "latent" in method.styles(0, 1) and "SWD reference" in figures
    )
    assert ("cycle error" in figures) == (run.method_class().layout != "paired")
    assert ("paired error" in figures) == (run.method_class().layout == "paired")
    assert ("clusters used" in figures) == (name == "tunit")
    if name == "munit":
        assert figures == quick_validation(method, given) != quick_validation(method, given, seed=1)


class Toy(torch.nn.Module):
    """y = keep * x + style, of one number."""

    layout = "two_domains"

    def __init__(self, keep=1.0, style=1.0, shift=0.0):
        super().__init__()
        self.keep, self.style, self.shift = keep, style, shift

    def styles(self, source, target):
        return frozenset({"latent", "reference"})

    def sample_style(self, n, target, generator):
        return 0.1 * torch.randn(n, 1, generator=generator) + self.shift

    def encode_style(self, x, target):
        return x.mean((1, 2, 3))[:, None]

    def translate(self, x, source, target, style):
        return (
            self.keep * (x - x.mean((1, 2, 3), keepdim=True)) + self.style * style[..., None, None]
        )


def test_they_see_what_goes_wrong():
    g = torch.Generator().manual_seed(0)
    given = [0.1 * torch.randn(40, 3, 16, 16, generator=g) for _ in range(2)]
    given = [x - x.mean((1, 2, 3), keepdim=True) for x in given]
    given = [x + 0.1 * torch.randn(40, 1, 1, 1, generator=g) for x in given]
    good = quick_validation(Toy(), given)
    assert good["cycle error"] < 1e-6 and abs(good["style gap"]) < 0.1
    assert good["pixel diversity"] > 0.02 and good["content diversity"] > 0.02
    assert quick_validation(Toy(style=0.0), given)["pixel diversity"] == 0
    ignores = quick_validation(Toy(keep=0.0), given)
    assert ignores["content diversity"] == 0 and ignores["cycle error"] > 0.02
    assert ignores["SWD"] > good["SWD"]
    apart = quick_validation(Toy(shift=1.0), given)
    assert apart["style gap"] > 0.5 and good["style gap"] < 0.1


def test_every_pair_of_few_domains_and_every_target_of_many():
    assert len(list(validation.directions(Toy(), 4))) == 4 * 3 * 2
    found = list(validation.directions(Toy(), 100))
    assert [target for _, target, way in found if way == "latent"] == list(range(100))
    assert len(found) == 200 and all(source != target for source, target, _ in found)


def test_a_hundred_domains_are_judged_by_a_thousand_images():
    class Trainer:
        run, method = tiny.run("stargan_v2"), Toy()
        fabric = type("Fabric", (), {"device": "cpu"})

        def __init__(self, domains):
            blank = type("Blank", (list,), {"read": lambda self, i: np.zeros((32, 32, 3), "u1")})
            splits = {"val": [blank(range(120))] * domains}
            self.dataset = type("Dataset", (), {"splits": splits})

    counts = [[len(x) for x in train.Trainer.validation(Trainer(k))] for k in (3, 10, 100)]
    assert counts == [[100] * 3, [100] * 10, [10] * 100]


@pytest.mark.parametrize("name", ["bicyclegan", "tunit"])
def test_no_input_is_given_itself_or_its_partner_as_the_style(name, monkeypatch):
    """Each of nine images is one number; the style of an output tells which it was taken from."""
    method, _ = tiny.build(name)
    given = []

    def note(method, x, source, target, styles):
        given.append((x[:, 0, 0, 0], styles[:, 0]))
        return x

    monkeypatch.setattr(validation, "encoded", lambda method, x, target: x[:, 0, 0, :1])
    monkeypatch.setattr(validation, "translated", note)
    monkeypatch.setattr(validation, "returned", lambda *a: None)
    monkeypatch.setattr(
        type(method), "styles", lambda self, source, target: frozenset({"reference"})
    )
    numbers = torch.arange(9.0).reshape(9, 1, 1, 1).expand(9, 3, 32, 32)
    quick_validation(method, [numbers] * (1 if name == "tunit" else 2))
    x, styles = given[0]  # of all inputs
    assert len(x) >= 5 and (x != styles).all()
    assert len(set(styles.tolist())) == 5 and (styles % 2 == 0).all()  # the even ones are taken


class Copier(Toy):
    """Gives the reference back."""

    def encode_style(self, x, target):
        return x

    def translate(self, x, source, target, style):
        return style

    def styles(self, source, target):
        return frozenset({"reference"})


def test_a_copy_of_the_reference_is_no_better_than_other_real_images(monkeypatch):
    g = torch.Generator().manual_seed(0)
    given = [torch.rand(40, 3, 16, 16, generator=g) for _ in range(2)]  # of one distribution
    copied = quick_validation(Copier(), given)["SWD"]
    monkeypatch.setattr(Copier, "translate", lambda self, x, source, target, style: x)
    assert copied == pytest.approx(quick_validation(Copier(), given)["SWD"], rel=0.3)


def test_collapsed_clusters_are_seen():
    method, _ = tiny.build("tunit")
    x = images("tunit", 1, 20)[0]
    method.assign = lambda part: torch.eye(3)[torch.zeros(len(part), dtype=int)]
    assert validation.clusters_used(method, x) == pytest.approx(1)
    method.assign = lambda part: torch.eye(3)[torch.arange(len(part)) % 2]
    assert validation.clusters_used(method, x) == pytest.approx(2)


@pytest.mark.parametrize("name", ["munit", "stargan_v2", "tunit"])
def test_one_image_of_a_domain_is_enough(name):
    method, run = tiny.build(name)
    given = images(name, len(run.data.domains))
    given[0] = given[0][:1]
    figures = quick_validation(method.translator(), given)
    assert all(v == v for v in figures.values()) and "SWD" in figures
    varied = name == "stargan_v2"  # between its other two domains
    assert ("pixel diversity reference" in figures) == varied
