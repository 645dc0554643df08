"""Networks whose weights the user names: their shapes, and sentences for files that are not theirs.

Published values need the published weights, which are not here; `UNPAIRED_SHARED` names a folder with SqueezeNet's.
"""

import os
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from unpaired.errors import ConfigProblem, DataProblem
from unpaired.networks.inception import Inception, load_inception
from unpaired.networks.lpips import LPIPS, TRUNKS, load_lpips
from unpaired.networks.squeezenet import SqueezeFeatures
from unpaired.official import read_weights

WEIGHTS = Path(os.environ.get("UNPAIRED_SHARED", "nowhere")) / "weights"


def published(kind):
    """Trunk and heads of random numbers under the published names."""
    torch.manual_seed(0)
    net = LPIPS(kind)
    return {
        f"lin{n.split('.')[1]}.model.1.weight" if n.startswith("heads") else n: p.abs()
        if n.startswith("heads")
        else p
        for n, p in net.state_dict().items()
    }


@pytest.mark.parametrize("kind", TRUNKS)
def test_lpips_tells_its_kind_and_is_a_distance(kind):
    net = load_lpips(published(kind))
    assert net.name == f"lpips-{kind}" and not list(net.parameters())
    g = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 3, 64, 64, generator=g) * 2 - 1 for _ in range(2))
    d = net(x, y)
    assert d.shape == (2,) and (d > 0).all()
    assert torch.allclose(d, net(y, x)) and not net(x, x).any()
    assert torch.allclose(net(x[:1], y[:1]), d[:1], rtol=1e-4)
    assert net(x[:1, :1, :20, :24], y[:1, :1, :20, :24]).isfinite().all()  # grey, small: enlarged
    by_hand = 0
    for head, a, b in zip(net.heads, net.maps(x), net.maps(y), strict=True):
        assert torch.allclose(a.norm(dim=1).max(), torch.tensor(1.0), atol=1e-4)
        by_hand = by_hand + (head.weight[0, :, 0, 0, None, None] * (a - b) ** 2).sum(1).mean((1, 2))
    assert torch.allclose(d, by_hand, rtol=1e-4)


def test_lpips_sees_only_what_the_trunk_sees_at_published_places():
    """VGG's five depths: the sides of its maps, and the layers that published names count."""
    net = load_lpips(published("vgg"))
    maps = net.maps(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1:3] for m in maps] == [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)]
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in net.features) == 13
    maps = load_lpips(published("alex")).maps(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1:3] for m in maps] == [(64, 15), (192, 7), (384, 3), (256, 3), (256, 3)]


def test_lpips_files_that_lack_something(tmp_path):
    tensors = published("squeeze")
    without = {n: t for n, t in tensors.items() if not n.startswith("lin3")}
    with pytest.raises(ConfigProblem, match="--lpips: lin3.model.1.weight"):
        load_lpips(without)
    with pytest.raises(ConfigProblem, match="method.lpips: .* cannot be read"):
        smoothgan_begun("method.lambda_lpips=1", f"method.lpips=[{tmp_path / 'no'}]")
    with pytest.raises(ConfigProblem, match="needs weights"):
        smoothgan_begun("method.lambda_lpips=1")


def smoothgan_begun(*words):
    method, _ = tiny.build("smoothgan", *words)  # translating needs no weights: building does not
    method.begin()
    return method


def test_smoothgan_keeps_content_by_lpips(tmp_path):
    tensors = published("squeeze")
    save_file(
        {n: t.contiguous() for n, t in tensors.items()}, tmp_path / "lpips weights.safetensors"
    )
    method = smoothgan_begun(
        "method.lambda_lpips=1",
        f"method.lpips=['{tmp_path / 'lpips weights.safetensors'}']",
    )
    assert not any(name.startswith("lpips") for name in method.state_dict())
    logs = {}
    for update in method.updates(tiny.batch("smoothgan", 3), tiny.step()):
        assert update.loss.isfinite()
        logs |= update.log
    assert logs["lpips_latent"] > 0


def test_weights_come_from_safetensors_and_published_pickles(tmp_path):
    tensors = {"a.weight": torch.arange(3.0)}
    torch.save(tensors | {"epoch": 3}, tmp_path / "w.pth")
    save_file(tensors, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        read = read_weights(tmp_path / name, "--features")
        assert list(read) == ["a.weight"] and torch.equal(read["a.weight"], tensors["a.weight"])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigProblem, match="--features: .*bad.safetensors"):
        read_weights(tmp_path / "bad.safetensors", "--features")


def test_squeezenet_features():
    torch.manual_seed(0)
    net = SqueezeFeatures().eval()
    assert sum(p.numel() for p in net.parameters()) == 722_496  # 1,235,496 less the classifier's
    with torch.inference_mode():
        features = net(torch.zeros(2, 3, 224, 224))
        assert features.shape == (2, 512)
        assert torch.allclose(features.square().mean(1), torch.ones(2), atol=1e-4)
        assert net(torch.zeros(2, 1, 64, 48)).shape == (2, 512)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="UNPAIRED_SHARED names no folder with weights")
def test_squeezenet_weights_fit():
    net = SqueezeFeatures()
    net.load_state_dict(read_weights(WEIGHTS / "squeezenet1_1_features.safetensors", ""))
    heads = read_weights(WEIGHTS / "lpips_v0.1_squeeze.safetensors", "")
    lpips = load_lpips(
        {**{f"features.{n}": t for n, t in net.features.state_dict().items()}, **heads}
    )
    x = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    near, far = lpips(x, x + 0.02), lpips(x, -x.transpose(2, 3))
    assert 0 < near < 0.05 < far


def test_inception_is_the_published_one_in_size():
    net = Inception().eval()
    assert sum(p.numel() for p in net.parameters()) == 21_785_568  # 23,834,568 less 1,000 classes
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 299, 299)).shape == (1, 2048)
    sides = []
    for name in ("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"):
        getattr(net, name).register_forward_hook(lambda m, i, y: sides.append(tuple(y.shape[1:3])))
    with torch.inference_mode():
        net(torch.zeros(1, 3, 299, 299))
    assert sides == [(192, 71), (288, 35), (768, 17), (2048, 8)]

    weights = net.state_dict()
    assert not list(load_inception(weights, "w.pth").parameters())
    with pytest.raises(DataProblem, match=r"w.pth lacks Mixed_7b.branch1x1.conv.weight"):
        load_inception({n: t for n, t in weights.items() if "7b.branch1x1.conv" not in n}, "w.pth")
    with pytest.raises(DataProblem, match="1,000 classes"):
        load_inception(weights | {"fc.weight": torch.zeros(1000, 2048)}, "w.pth")
