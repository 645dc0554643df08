"""What TUNIT finds without labels, and with few, beside k-means; and what its translations are worth.

    python benchmarks/no_labels.py --digits digits.npz --emoji DIR --squeezenet FILE.safetensors

Digits (MNIST, 10 domains), three kinds of digits (MNIST, USPS, MNIST-M: 3 domains), three kinds of emoji, scenes of
seven domains, three seeds each; scenes also under views of any hue, as clusters follow hue without them; on digits also
separate in place of joint training, and 1%, 10% and 100% of the labels.
32 px, preset small, about 40 minutes of training a run on one busy core (a limit of 60). Stop and start it at will:
finished runs are not repeated. Several may go on at once with --only and runs of their own; the last call, without it,
writes the whole table. Without --digits or --emoji their rows are left out, without --squeezenet the k-means on its
features. Writes runs/no_labels/<run> and runs/no_labels/table.md; figures are of the test images, which no run has
seen. More words are settings of all runs.

Translations: the distance to the training images of each found domain (KID) beside that of its own test images and of
untranslated inputs, how outputs of one input differ by reference, and by classifiers of real images the share of
outputs that show the label of their reference, and what their input shows: the digit, or the shape of a scene.

--digits: arrays <set>_<x|y>_<train|test>, uint8, of mnist, usps and mnistm. --emoji: DIR/train/<kind>, DIR/test/<kind>.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from running import apart, digit_folders, kept, start, status, table, tools, trained, weights
from running import measured as evaluated

from unpaired.checkpoint import RunFolder
from unpaired.config import load
from unpaired.data.datasets import open_dataset
from unpaired.data.scenes import SHAPES
from unpaired.metrics.evaluation import PROTOCOLS, learn
from unpaired.metrics.images import Images, open_images
from unpaired.metrics.matching import clustering
from unpaired.metrics.rows import Side, Tools
from unpaired.progress import say
from unpaired.translator import Translator

OUT = Path("runs/no_labels")
SCENES = "outline, painted, mosaic, neon, chalk, blueprint, watercolour"
DIGITS = ("method.clusters=10", "data.flip=false")
KINDS = ("method.clusters=3", "data.flip=false", "data.jitter=false")  # colour tells kinds apart
SOME = "method.labels=some"
INPUTS = 500  # test images that are translated to see which labels survive


class Entry(NamedTuple):
    data: str  # digits, kinds, emoji or scenes
    settings: tuple[str, ...]


SETS = {
    "digits": Entry("digits", DIGITS),
    "three kinds of digits": Entry("kinds", KINDS),
    "three kinds of emoji": Entry("emoji", KINDS),
    "scenes": Entry("scenes", ("method.clusters=7", "data.count=500")),
}
FIRST = tuple(f"{name}, seed 0" for name in SETS)  # k-means stands before them
RUNS = {
    **dict(zip(FIRST, SETS.values(), strict=True)),
    "scenes, views of any hue": Entry("scenes", (*SETS["scenes"].settings, "data.hue=0.5")),
    "digits, separate": Entry("digits", (*DIGITS, "method.training=separate")),
    **{
        f"digits, {share:.0%} of the labels": Entry(
            "digits", (*DIGITS, SOME, f"data.labelled={share}")
        )
        for share in (0.01, 0.1, 1.0)
    },
    **{
        f"{name}, seed {seed}": Entry(e.data, (*e.settings, f"train.seed={seed}"))
        for seed in (1, 2)
        for name, e in SETS.items()
    },
}


def digits(file: Path, kinds: bool) -> Path:
    """The arrays as folders of images: by digit, or MNIST, USPS and MNIST-M in equal numbers."""
    if kinds:
        return digit_folders(
            file, OUT / "data" / "kinds", ("mnist", "usps", "mnistm"), "{set}/{digit}"
        )
    return digit_folders(file, OUT / "data" / "digits", ("mnist",), "{digit}")


def data_words(name: str, args: argparse.Namespace) -> list[str] | None:
    """How `unpaired train` is told of a set; None where it was not given."""
    if name == "scenes":
        return ["data.root=scenes", f"data.domains=[{SCENES}]"]
    given = args.emoji if name == "emoji" else args.digits
    if given is None:
        return None
    root = given if name == "emoji" else digits(given, name == "kinds")
    return [f"data.root={root.resolve()}"]


def measured(run: Path, step: int) -> dict[str, float]:
    """Agreement of the found domains with the labels of the test images, by `unpaired domains`."""
    file = run / "domains.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("step") != step or "agreement" not in known.get("splits", {}).get("test", {}):
        if code := start("domains", run, "--labels", "folders").wait():
            raise SystemExit(code)
        known = json.loads(file.read_text())
    test = known["splits"]["test"]
    used = sum(n > 0.1 * test["images"] / len(test["sizes"]) for n in test["sizes"])
    return test["agreement"] | {"used": used}


# Translations ------------------------------------------------------------------------------------


def survived(run: Path, data: str) -> dict[str, float]:
    """Of test images in the style of one of another found domain: the share that shows the label of that image,
    "taken", and the share that shows what the input shows, "kept"; and both before translating. What no classifier of
    real images tells reliably, or has no name, is missing."""
    t = Translator.load(run)
    method: Any = t.method
    settings, dataset = open_images(t.run, RunFolder(run), t.domains, None)
    train, held = (
        Images(dataset.splits[s][0], settings.hw, settings.channels, dataset.listing)
        for s in ("train", "test")
    )
    order = np.random.default_rng(0).permutation(len(held))[:INPUTS]
    inputs, references = held.at(order.tolist()), held.at(np.roll(order, 1).tolist())
    with torch.inference_mode():
        x, ref = (images.tensor(t.device) for images in (inputs, references))
        found, target = (
            torch.cat([method.assign(part).argmax(1) for part in of.split(64)]) for of in (x, ref)
        )
        away = (found != target).nonzero()[:, 0].tolist()
        if not away:
            return {}
        x, ref, inputs, references = x[away], ref[away], inputs.at(away), references.at(away)
        y = torch.cat(
            [
                method.translate(a, 0, 0, method.encode_style(b, 0)).clamp(-1, 1)
                for a, b in zip(x.split(64), ref.split(64), strict=True)
            ]
        )
    judge = Tools(PROTOCOLS["quick"], 0, t.device, say)
    shares: dict[str, float] = {}
    for name, said, of in (("taken", kinds, references), ("kept", shown, inputs)):
        parts = by(said, data, dataset.labels, train, held)
        net = len(parts) > 1 and learn(parts, settings.mirrors, f"{name}, {data}", judge)
        if not net:
            continue
        true = torch.tensor([list(parts).index(word) for word in said(of, data, dataset.labels)])
        for row, images in ((name, y), (f"{name}, untranslated", x)):
            with torch.inference_mode():
                guess = torch.cat([net(part).argmax(1) for part in images.split(256)]).cpu()
            shares[row] = round(float((guess == true).double().mean()), 4)
    return shares


def kinds(images: Images, data: str, labels: Sequence[str]) -> list[str]:
    """The true label of each image."""
    return [labels[images.pictures.label(place)] for place in images.places]


def shown(images: Images, data: str, labels: Sequence[str]) -> list[str]:
    """What each image shows, whatever its domain: "" where that has no name."""
    if data == "digits":
        return kinds(images, data, labels)
    if data == "kinds":
        return [name.split("/")[1] for name in images.names()]  # mnist/7/123
    if data == "emoji":
        return [""] * len(images)
    at = [images.pictures.place(place) for place in images.places]  # type: ignore[attr-defined]
    return [SHAPES[int(scenes.content(i)["shape"])] for scenes, i in at]


def by(
    said: Callable[[Images, str, Sequence[str]], list[str]],
    data: str,
    labels: Sequence[str],
    train: Images,
    held: Images,
) -> dict[str, Side]:
    """The images of each word that is said of them."""
    words = {
        split: np.array(said(of, data, labels)) for split, of in (("train", train), ("held", held))
    }
    return {
        word: Side(
            word,
            train.at(np.flatnonzero(words["train"] == word).tolist()),
            held.at(np.flatnonzero(words["held"] == word).tolist()),
        )
        for word in sorted(set(words["train"].tolist()))
    }


def translations(figures: Mapping[str, Any], shares: Mapping[str, float]) -> list[str]:
    """The cells of a run's translations, by references."""

    def cell(value: float | None, form: str = ".3g") -> str:
        return "–" if value is None else f"{value:{form}}"

    ways = figures["means"].get("reference", {})
    each = [d["rows"]["model"] for d in figures["directions"] if d["way"] == "reference"]
    names = list(dict.fromkeys(name for row in each for name in row))
    kid = ([n for n in names if n.startswith("KID")] or [""])[-1]  # that on given features is last
    cells = [cell(ways.get(r, {}).get(kid)) for r in ("model", "real images", "untranslated")]
    cells.append(", ".join(cell(row.get(kid), ".2g") for row in each))
    for wanted in ("LPIPS diversity", "pixel diversity"):
        (name,) = [n for n in names if n.partition(" (")[0] == wanted] or [""]
        cells.append(cell(ways.get("model", {}).get(name)))
    for name in ("taken", "kept"):
        values = [cell(shares.get(k), ".2f") for k in (name, f"{name}, untranslated")]
        cells.append(f"{values[0]} ({values[1]})")
    return cells


# k-means -----------------------------------------------------------------------------------------


def baseline(words: Sequence[str], K: int, squeezenet: Path | None) -> dict[str, float]:
    """k-means of the training images, and the agreement of the test images' nearest centres with their labels."""
    data = load(None, [*words, "data.size=32", "data.labels=folders"], method={"name": "tunit"})
    dataset = open_dataset(data.data, "unlabelled")
    x, y = {}, {}
    for split in ("train", "test"):
        (pictures,) = dataset.splits[split]
        x[split] = np.stack([middle(pictures.read(i)) for i in range(len(pictures))])
        y[split] = np.array([pictures.label(i) for i in range(len(pictures))])
    features = {k: squeezed(v, squeezenet) if squeezenet else flat(v) for k, v in x.items()}
    centres = kmeans(features["train"], K)
    return clustering(y["test"], nearest(features["test"], centres)[0])._asdict()


def middle(image: np.ndarray, side: int = 32) -> np.ndarray:
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


@torch.inference_mode()
def squeezed(images: np.ndarray, file: Path) -> np.ndarray:
    """The 512 pooled features of SqueezeNet 1.1, (N, 512), of images enlarged to 64 px."""
    from safetensors.torch import load_file

    from unpaired.networks.squeezenet import SqueezeFeatures

    net = SqueezeFeatures().eval()
    net.load_state_dict(load_file(file))
    parts = []
    for part in np.array_split(images, max(1, len(images) // 100)):
        t = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(net(torch.nn.functional.interpolate(t, size=64, mode="bilinear")))
    return torch.cat(parts).numpy()


def kmeans(
    x: np.ndarray, K: int, restarts: int = 5, rounds: int = 100, seed: int = 0
) -> np.ndarray:
    """Centres (K, d): Lloyd's algorithm from k-means++ starts, the best of several."""
    rng, best = np.random.default_rng(seed), (np.inf, x[:K])
    for _ in range(restarts):
        centres = x[rng.integers(len(x), size=1)]
        while len(centres) < K:
            away = nearest(x, centres)[1]
            p = away / away.sum() if away.sum() else None
            centres = np.concatenate([centres, x[rng.choice(len(x), size=1, p=p)]])
        for _ in range(rounds):
            member, away = nearest(x, centres)
            moved = np.stack(
                [x[member == k].mean(0) if (member == k).any() else centres[k] for k in range(K)]
            )
            if np.allclose(moved, centres, atol=1e-6):
                break
            centres = moved
        if away.sum() < best[0]:
            best = (float(away.sum()), centres)
    return best[1]


def nearest(x: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each point, and the squared distance to it."""
    square = (x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)
    return square.argmin(1), square.min(1).clip(min=0).astype(np.float64)


# The table ---------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="What TUNIT finds without labels, and with few.")
    p.add_argument("--digits", type=Path, metavar="FILE.npz")
    p.add_argument("--emoji", type=Path, metavar="DIR")
    p.add_argument("--squeezenet", type=Path, metavar="FILE", help="features for k-means")
    p.add_argument("--steps", type=int, help="of a run (default: those of the preset)")
    p.add_argument("--minutes", type=float, default=60, help="of a run's training, at most")
    p.add_argument("--only", nargs="+", metavar="RUN", help="some of the runs")
    weights(p)
    args = apart(p, argv)
    if unknown := set(args.only or ()) - RUNS.keys():
        raise SystemExit(f"There is no run {unknown.pop()!r}: choose from {', '.join(RUNS)}.")
    rows: list[list[object]] = []
    outputs: list[list[object]] = []
    text = ""
    for name, entry in RUNS.items():
        words = data_words(entry.data, args)
        if words is None or (args.only and name not in args.only):
            continue
        K = int(entry.settings[0].partition("=")[2])
        if name in FIRST:
            rows += baselines(entry.data, [*words, *entry.settings], K, args)
        run = OUT / name.replace(", ", "-").replace(" ", "-").replace("%", "")
        steps = [f"train.steps={args.steps}"] if args.steps else []
        command = ["--method", "tunit", "--preset", "small", "data.labels=folders"]
        step = trained(
            run, *command, *words, *entry.settings, *steps, *args.settings, minutes=args.minutes
        )
        cut = " (stopped)" if status(run)["status"] != "done" else ""
        minutes = json.loads((run / "seconds.json").read_text()) / 60
        row = measured(run, step)
        used = f"{row['used']} of {K}"
        rows.append([name, *cells(row), used, f"{step}{cut}", f"{minutes:.1f}"])
        figures = evaluated(run, step, *tools(args))
        shares = kept(run / "survival.json", step, partial(survived, run, entry.data))
        outputs.append([name, *translations(figures, shares)])
        text = write(rows, outputs)
    print(text)


def baselines(
    data: str, words: Sequence[str], K: int, args: argparse.Namespace
) -> list[list[object]]:
    """The rows of k-means on a set, measured once."""
    rows: list[list[object]] = []
    for kind, file in (("pixels", None), ("SqueezeNet features", args.squeezenet)):
        if kind != "pixels" and file is None:
            continue
        kept = OUT / f"kmeans-{data}-{kind.split()[0]}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(baseline(words, K, file)))
        rows.append(
            [f"{data}: k-means on {kind}", *cells(json.loads(kept.read_text())), "", "", ""]
        )
    return rows


def cells(row: dict[str, float]) -> list[str]:
    return [f"{row[k]:.3f}" for k in ("accuracy", "nmi", "ari")]


def write(found: Sequence[Sequence[object]], outputs: Sequence[Sequence[object]]) -> str:
    head = ["run", "accuracy", "NMI", "ARI", "domains in use", "steps", "minutes"]
    translated = [
        "translations",
        *("KID", "real images", "untranslated", "of each domain"),
        *("LPIPS diversity", "pixel diversity"),
        *("reference's label taken (untranslated)", "input's label kept (untranslated)"),
    ]
    text = f"{table(head, found)}\n{table(translated, outputs)}"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "table.md").write_text(text)
    return text


if __name__ == "__main__":
    main()
