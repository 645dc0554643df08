"""Rebuilds the tensors of `tests/golden/*.json` by the rules of its README, and compares with its rows."""

import json
import zlib
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def draw(label, shape, kind="normal"):
    generator = torch.Generator().manual_seed(zlib.crc32(label.encode()))
    function = torch.rand if kind == "uniform" else torch.randn
    return function(shape, generator=generator, dtype=torch.float64)


def given(golden, label):
    """An entry of `inputs`, checked against its first four values and its sum."""
    entry = golden["inputs"][label]
    kind, shape = entry["kind"], entry["shape"]
    if kind == "image":
        x = 2 * draw(label, shape, "uniform") - 1
    elif kind in ("noise", "uniform"):
        x = draw(label, shape, "uniform" if kind == "uniform" else "normal")
    else:
        raise ValueError(f"{label}: {kind}")
    x = x * entry.get("scale", 1) + entry.get("offset", 0)
    first, total = entry["check"]
    assert x.flatten()[:4].tolist() == pytest.approx(first[: x.numel()], abs=1e-12)
    assert x.sum().item() == pytest.approx(total, abs=1e-9)
    return x


def parameters(network):
    """Name -> tensor of an entry of `networks`."""
    return {
        name: offset + scale * draw(f"{network['label']}.{name}", shape)
        for name, shape, offset, scale, *_ in network["parameters"]
    }


def same(x, fingerprint, tolerance=1e-9):
    """Holds a tensor to a fingerprint."""
    x = x.detach()
    assert (
        list(x.shape) == fingerprint["shape"]
        or x.numel() == torch.Size(fingerprint["shape"]).numel()
    )
    scale = max(fingerprint["std"], 1e-12)
    assert x.norm().item() == pytest.approx(fingerprint["l2"], rel=tolerance, abs=1e-10)
    assert x.mean().item() == pytest.approx(fingerprint["mean"], abs=tolerance * scale)
    values = x.flatten()[fingerprint["idx"]].tolist()
    assert values == pytest.approx(fingerprint["val"], abs=10 * tolerance * scale)


def same_gradient(gradient, row, name=""):
    """Holds a gradient to [l2, sum], or to null."""
    if row is None:
        assert gradient is None, name
        return
    l2, total = row
    assert gradient.norm().item() == pytest.approx(l2, rel=1e-9, abs=1e-10), name
    assert gradient.sum().item() == pytest.approx(total, abs=1e-9 * max(l2, 0.1)), name


def same_change(now, initial, row, name="", still=1e-7):
    """Holds a parameter after updates to [l2, l2 of change, sum of change].

    Changes below `still` are those of a bias in front of a normalisation: rounding, divided by its own size.
    """
    change = now.detach() - initial
    l2, l2_change, total = row
    assert now.norm().item() == pytest.approx(l2, rel=1e-8), name
    if l2_change > still:
        assert change.norm().item() == pytest.approx(l2_change, rel=1e-8, abs=1e-8), name
        assert change.sum().item() == pytest.approx(total, abs=1e-6 * l2_change), name
    else:
        assert change.norm().item() < 10 * still, name
