"""A small classifier, trained on the data at hand: for scores that need classes, and features that need no download."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.metrics.features import cached, resized

LEAST_ACCURACY = 0.90  # on held-out images, below which no number of it is believed
SIDE, BATCH, STEPS = 64, 32, 300  # steps of up to three classes; in proportion up to ten
MOST = 4000  # images of all classes that it is trained on
LEAST_IMAGES = 20  # of each class, to train on


class Classifier(nn.Module):
    """Images (B, C, s, s) in [-1, 1] -> logits (B, K)."""

    def __init__(self, channels: int, classes: int, width: int = 24) -> None:
        super().__init__()
        w = width
        self.stages = nn.ModuleList(
            [
                stage(channels, w, stride=2),
                stage(w, 2 * w, stride=2),
                nn.Sequential(stage(2 * w, 4 * w, stride=2), stage(4 * w, 4 * w)),
            ]
        )
        self.head = nn.Linear(14 * w, classes)

    def features(self, x: Tensor) -> Tensor:
        """Means and maxima of all stages, (B, 14 width): texture and colour as well as shape."""
        pooled = []
        for each in self.stages:
            x = each(x)
            pooled += [x.mean((2, 3)), x.amax((2, 3))]
        return torch.cat(pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def stage(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


class Trained(nn.Module):
    """A trained classifier with its accuracy on held-out images, the mean over the classes."""

    def __init__(self, net: Classifier, side: int, accuracy: float, images: int) -> None:
        super().__init__()
        self.net, self.side, self.accuracy, self.images = net.eval(), side, accuracy, images

    def forward(self, x: Tensor) -> Tensor:
        return self.net(resized(x, self.side))

    def features(self, x: Tensor) -> Tensor:
        return self.net.features(x)


def train_classifier(
    train: Sequence[Tensor],
    held_out: Sequence[Tensor],
    flip: bool,
    key: str,
    say: Callable[[str], None],
) -> Trained:
    """From uint8 images (N, H, W, C) of each class; seeded, kept in the cache under `key`, which names them."""
    channels, classes = train[0].shape[-1], len(train)
    side = min(SIDE, *train[0].shape[1:3])
    x = torch.cat([inputs(part, side) for part in train])
    y = torch.cat([torch.full((len(part),), k) for k, part in enumerate(train)])
    share = torch.cat([torch.full((len(part),), 1.0 / len(part)) for part in train])  # balanced

    def make() -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = fitted(Classifier(channels, classes), x, y, share, flip)
        return {n: t.clone() for n, t in net.state_dict().items()}

    settings = {"classifier": 1, "side": side, "steps": steps(classes), "classes": classes}
    settings["flip"] = flip
    net = Classifier(channels, classes)
    net.load_state_dict(cached({**settings, "images": key}, make, say))
    trained = Trained(net, side, 0.0, len(x))
    trained.accuracy = accuracy(trained, [inputs(part, side) for part in held_out])
    return trained


def steps(classes: int) -> int:
    """300 leave one of five digits of MNIST-M unread, 1,000 one of thirteen."""
    return STEPS * min(max(classes, 3), 10) // 3


def inputs(images: Tensor, side: int) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, side, side) in [-1, 1]"""
    parts = [resized(p.permute(0, 3, 1, 2).float() / 127.5 - 1, side) for p in images.split(256)]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def fitted(net: Classifier, x: Tensor, y: Tensor, share: Tensor, flip: bool) -> Classifier:
    n = steps(net.head.out_features)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n)
    margin = max(1, x.shape[-1] // 16)
    for _ in range(n):
        i = torch.multinomial(share, BATCH, replacement=True)
        batch = x[i]
        if flip and torch.rand(()) < 0.5:
            batch = batch.flip(3)
        top, left = torch.randint(2 * margin + 1, (2,)).tolist()
        batch = F.pad(batch, [margin] * 4, mode="replicate")
        batch = batch[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        loss = F.cross_entropy(net(batch), y[i], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


@torch.inference_mode()
def accuracy(net: nn.Module, held_out: Sequence[Tensor]) -> float:
    """The mean over the classes that have held-out images."""
    shares = [
        float(torch.cat([net(part).argmax(1) == k for part in x.split(256)]).double().mean())
        for k, x in enumerate(held_out)
        if len(x)
    ]
    return sum(shares) / len(shares)
