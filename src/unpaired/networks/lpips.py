"""LPIPS: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., CVPR 2018).

Trunk and heads come from files that the user names: `features.*` of SqueezeNet 1.1, VGG-16 or AlexNet under the names
of their published weights, and the heads `lin*` for it, of version 0.1: those of 0.0 were fitted to images that were
not scaled for the trunk, so with them this is neither version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.errors import ConfigProblem
from unpaired.networks.blocks import fixed
from unpaired.networks.squeezenet import squeezenet

VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: pooling


def vgg16() -> nn.Sequential:
    """Simonyan and Zisserman, ICLR 2015."""
    layers: list[nn.Module] = []
    c_in = 3
    for c in VGG:
        if c:
            layers += [nn.Conv2d(c_in, c, 3, padding=1), nn.ReLU()]
            c_in = c
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def alexnet() -> nn.Sequential:
    """Krizhevsky, 2014 ("One weird trick")."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


TRUNKS = {  # the trunk, after which of its layers a head looks, and the channels there
    "squeeze": (squeezenet, (1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512)),
    "vgg": (vgg16, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
    "alex": (alexnet, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
}


class LPIPS(nn.Module):
    """Learned perceptual distance of images (B, C, H, W) in [-1, 1], (B,).

    At each depth the features are scaled to length 1 over their channels; their squared difference is weighted by
    channel, averaged over positions and summed over depths.
    """

    least = 64  # px, the side under which images are enlarged first
    mean: Tensor
    std: Tensor

    def __init__(self, kind: str = "squeeze") -> None:
        super().__init__()
        trunk, self.taps, depths = TRUNKS[kind]
        self.name = f"lpips-{kind}"
        self.features = trunk()
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in depths)
        colours = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        self.register_buffer("mean", colours[0], persistent=False)
        self.register_buffer("std", colours[1], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.distance(self.maps(x), self.maps(y))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The features of each depth, of length 1: once per image, for any number of distances."""
        if (short := min(x.shape[2:])) < self.least:
            x = F.interpolate(x, scale_factor=self.least / short, mode="bilinear")
        x = ((x.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(F.normalize(x, dim=1, eps=1e-10))
        return maps

    def distance(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
        """(B,) from the maps of both sides."""
        depths = zip(self.heads, x, y, strict=True)
        return torch.stack([head((a - b).square()).mean((1, 2, 3)) for head, a, b in depths]).sum(0)


def load_lpips(tensors: Mapping[str, Tensor], said: str = "--lpips") -> LPIPS:
    """LPIPS from the tensors of its files, which tell the kind. `said` is the setting that names the files.

    Raises `ConfigProblem` where they do not hold a trunk and the heads for it.
    """
    first = tensors.get("features.0.weight")
    if first is not None and first.shape[-1] == 11:
        kind = "alex"
    else:
        kind = "vgg" if "features.28.weight" in tensors else "squeeze"
    net = LPIPS(kind)
    published = {
        name: f"lin{name.split('.')[1]}.model.1.weight" if name.startswith("heads") else name
        for name in net.state_dict()
    }
    for ours, p in net.state_dict().items():
        if published[ours] not in tensors or tensors[published[ours]].shape != p.shape:
            raise ConfigProblem(
                f"{said}: {published[ours]} of shape {tuple(p.shape)} is not in the files: name one that holds a trunk "
                "(SqueezeNet 1.1, VGG-16 or AlexNet, `features.*`) and one that holds LPIPS's heads for it (`lin*`)."
            )
    net.load_state_dict({ours: tensors[theirs] for ours, theirs in published.items()})
    return fixed(net)  # type: ignore[return-value]
