"""Does matching every domain's images find the true style factors? DSM's theorem, put to the test.

    python benchmarks/identifiability.py vectors    # no images: seconds a run, about five minutes in all
    python benchmarks/identifiability.py scenes     # images of 32 px: about 7 minutes a run, many hours in all

Stop and start either at will: finished runs are not repeated. Several may go on at once with --only or --K and runs of
their own; the last call, without them, writes the whole. Writes runs/identifiability/, and there a table and a figure
of the mean correlation coefficient (MCC) against the number K of domains.

The theorem (docs/methods/dsm.md): n independent factors, whose distributions vary over K >= 2n + 1 domains, are found
up to order and an invertible function each, by a generator with component-wise styles that matches the distribution of
every domain. Factors are Gaussian in each domain, with the means and deviations of `unpaired.data.scenes.family`.
MCC is taken within the domains: factors and components become their ranks in each domain first, else the domains'
means, which any model shares with the truth, would pass for agreement. Chance is high, as the best match of n factors
with n components counts: K = 1 shows it, and what a random rotation of the factors scores stands below the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from running import apart, table, trained
from torch import nn
from torch.nn import functional as F

from unpaired import Translator, losses
from unpaired.checkpoint import load_model, save_model, write_atomic
from unpaired.data.intake import write_png
from unpaired.data.scenes import family
from unpaired.method import Step
from unpaired.methods.dsm import Flow
from unpaired.metrics.matching import assign, mean_correlation, mean_ranks
from unpaired.metrics.scenes import Reader
from unpaired.networks.stargan import select
from unpaired.pictures import enlarged, sheet, stack
from unpaired.translator import linspace

DOMAINS = {2: (1, 3, 5, 9), 3: (1, 4, 7, 11)}  # n: K below, at and above 2n + 1
SCENE_DOMAINS = {2: (3, 5, 8), 3: (4, 7, 10)}
METHODS = ("dsm", "stargan_v2")  # on scenes
RATE = 1e-4  # of F, on scenes: at the preset's 1e-5 the domains stay where they began, and are not matched
APART = 0.3  # farther, the domains of F overlap too little to tell the axes: docs/methods/dsm.md
OUT = Path("runs/identifiability")
READER_IMAGES = 200  # of each of its ten domains


# Vectors ------------------------------------------------------------------------------------------


class Mixing:
    """A known, invertible map from factors (N, n) to what is seen (N, n): rotation, leaky ReLU, rotation."""

    slope = 0.4

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(1000 + seed)
        square = [torch.randn(n, n, generator=generator) for _ in range(2)]
        self.a, self.b = (torch.linalg.qr(m)[0] for m in square)

    def __call__(self, s: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(s @ self.a, self.slope) @ self.b

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x @ self.b.T, 1 / self.slope) @ self.a.T


class Game(nn.Module):
    """DSM's flow F with adversarial matching alone: a generator and a discriminator of vectors."""

    def __init__(self, n: int, domains: int, width: int = 128) -> None:
        super().__init__()
        self.F = Flow(domains, n, 64, bins=8, bound=5.0, apart=APART)
        self.G = perceptron(n, width, n)
        self.D = perceptron(n, width, domains)

    def scores(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return select(self.D(x), u)


def perceptron(a: int, width: int, b: int) -> nn.Sequential:
    inner = [nn.Linear(a, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*inner, nn.Linear(width, b))


def vectors(n: int, K: int, seed: int, steps: int, batch: int = 256) -> dict[str, float]:
    """One run: trains, and returns the MCC of the components of styles with the true factors of what they generate."""
    torch.manual_seed(seed)
    mixing, game = Mixing(n, seed), Game(n, K)
    studies = family(K, n, seed=seed)
    mean = torch.tensor(np.stack([s.mean for s in studies])).float()
    deviation = torch.tensor(np.stack([s.deviation for s in studies])).float()
    players = nn.ModuleList([game.F, game.G])
    average = torch.optim.swa_utils.AveragedModel(
        players, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizers = [torch.optim.Adam(m.parameters(), 1e-3, (0.0, 0.99)) for m in (game.D, players)]
    for i in range(steps):
        step = Step(i, steps, seed)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 2 * (1 - step.fraction))
        u = (step.uniform("u", batch, like=mean) * K).long()
        x = mixing(mean[u] + deviation[u] * step.normal("s", batch, n, like=mean)).requires_grad_()
        fake = game.G(game.F(step.normal("z", batch, n, like=mean), u))
        real = game.scores(x, u)
        L_D = losses.nsgan_d([real], [game.scores(fake.detach(), u)]) + losses.r1(real, x)
        move(optimizers[0], L_D)
        move(optimizers[1], losses.nsgan_g([game.scores(fake, u)]))
        average.update_parameters(players)
    return vector_figures(average.module[0], average.module[1], mixing, mean, deviation)


def move(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()


@torch.no_grad()
def vector_figures(
    flow: nn.Module, G: nn.Module, mixing: Mixing, mean: torch.Tensor, deviation: torch.Tensor
) -> dict[str, float]:
    """MCC within domains, and how far the distributions still are apart.

    gap: mean distance of sorted projections of generated and real vectors on 64 directions (sliced Wasserstein), over
    that of two real samples.
    """
    each, (K, n) = 1000, mean.shape
    generator = torch.Generator().manual_seed(7)
    u = torch.arange(K).repeat_interleave(each)
    s = flow(torch.randn(len(u), n, generator=generator), u)
    x = G(s)
    true = mixing.inverse(x)
    draws = [
        mixing(mean[u] + deviation[u] * torch.randn(len(u), n, generator=generator)) for _ in "ab"
    ]
    ways = F.normalize(torch.randn(n, 64, generator=generator), dim=0)

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = ((v @ ways).view(K, each, -1).sort(dim=1).values for v in (a, b))
        return float((a - b).abs().mean())

    return {
        "MCC": within(true.numpy(), s.numpy(), u.numpy()),
        "gap": distance(x, draws[0]) / distance(draws[1], draws[0]),
    }


def within(factors: np.ndarray, components: np.ndarray, domain: np.ndarray) -> float:
    """MCC by ranks within each domain, over all of them."""
    return mean_correlation(ranked(factors, domain), ranked(components, domain)).mean


def together(factors: np.ndarray, components: np.ndarray, domain: np.ndarray) -> float:
    """Mean multiple correlation of each factor with all components, by ranks within each domain.

    High beside a low MCC: the factors are known, but mixed. Low: they were not learned.
    """
    y, x = (v - v.mean(0) for v in (ranked(factors, domain), ranked(components, domain)))
    fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.sqrt((fitted**2).sum(0) / (y**2).sum(0)).mean())


def ranked(values: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Ranks (N, n) of values within each domain, over the number of its images."""
    ranks = np.empty(values.shape)
    for u in np.unique(domain):
        part = values[domain == u]
        ranks[domain == u] = np.stack([mean_ranks(column) for column in part.T], 1) / len(part)
    return ranks


def chance(n: int, draws: int = 1000) -> float:
    """The mean MCC of n independent Gaussian factors with a random rotation of them."""
    total, rng = 0.0, np.random.default_rng(0)
    for _ in range(draws):
        r = np.abs(np.linalg.qr(rng.standard_normal((n, n)))[0])  # correlations; Haar up to signs
        total += r[assign(-r)].mean()
    return total / draws


# Scenes -------------------------------------------------------------------------------------------

IMAGES, HELD_OUT, SIZE = 400, 200, 32  # images of a domain, for training and for measuring; px


def scenes(method: str, n: int, K: int, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """One run of a method on a family of scenes: MCC of the styles it encodes from images, and of those it draws."""
    data = write_family(OUT / f"data-n{n}-K{K}-seed{seed}", n, K, seed)
    run = OUT / f"{method}-n{n}-K{K}-seed{seed}-{args.steps}"
    words = ["--method", method, "--preset", "small", "--data", data, f"train.seed={seed}"]
    words += [f"data.size={SIZE}", "data.flip=false", f"method.style_dim={n}"]
    if method == "dsm":
        words += [f"method.apart={APART}", f"optim.F.lr={RATE}"]
    words += [
        f"train.steps={args.steps}",
        "train.save_every=200",
        f"train.sample_every={args.steps}",
    ]
    step = trained(run, *words, *args.settings, minutes=args.minutes)
    if step < args.steps:
        raise SystemExit(f"{run} came to step {step} of {args.steps} only: give it more --minutes.")
    if method == "dsm":
        write_png(run / "components.png", np.asarray(swept(run, n, K, seed)))
    return scene_figures(run, trained_reader(n), n, K, seed) | {"step": step}


def swept(run: Path, n: int, K: int, seed: int, images: int = 4, steps: int = 9) -> Image.Image:
    """Held-out images under each component of a style, from -2 to 2, while the others rest at 0."""
    t = Translator.load(run, "cpu")
    inputs = pictures(family(K, n, SIZE, "test", seed, images)[0], images)
    sheets = []
    for k in range(n):
        codes = t.swept(torch.zeros(1, n), k, linspace(-2, 2, steps), K // 2)
        sheets.append(sheet([t.render(x[None], 0, K // 2, codes) for x in inputs], set_apart=0))
    return enlarged(stack(sheets), 500)


def write_family(folder: Path, n: int, K: int, seed: int) -> Path:
    """The training images of a family, a folder for each domain."""
    if not (folder / "complete").exists():
        for u, study in enumerate(family(K, n, SIZE, "train", seed, IMAGES)):
            (folder / "train" / f"u{u:02d}").mkdir(parents=True, exist_ok=True)
            for i in range(IMAGES):
                write_png(folder / "train" / f"u{u:02d}" / f"{i:04d}.png", study[i].image)
        (folder / "complete").touch()
    return folder


def pictures(study: Any, count: int) -> torch.Tensor:
    """Images (count, 3, H, W) in [-1, 1]."""
    images = torch.from_numpy(np.stack([study[i].image for i in range(count)]))
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def scene_figures(run: Path, reader: Reader, n: int, K: int, seed: int) -> dict[str, float]:
    """MCC: styles of held-out images with their true factors; together: the same by all components at once. MCC of
    drawn styles: random styles with the factors that a reader, trained on real scenes, sees in the images made with
    them. reader: its own MCC on real images. gap: is the domain matched? The mean distance of the sorted factors that
    the reader sees in images made and in real ones, of each factor in each domain, over that of two real samples."""
    method = Translator.load(run, "cpu").method
    encoded, true, drawn, seen, read, more = [], [], [], [], [], []
    u = np.repeat(np.arange(K), HELD_OUT)
    studies = family(K, n, SIZE, "test", seed, 2 * HELD_OUT)
    for target, study in enumerate(studies):
        x, x_2 = pictures(study, 2 * HELD_OUT).chunk(2)
        true.append(np.stack([study.true(i) for i in range(HELD_OUT)]))
        encoded.append(method.encode_style(x, target).numpy())
        s = method.sample_style(
            HELD_OUT, target, torch.Generator().manual_seed(1000 * seed + target)
        )
        drawn.append(s.numpy())
        source = (target + 1) % K
        inputs = pictures(studies[source], HELD_OUT)
        y = method.translate(inputs, source, target, s).clamp(-1, 1)
        seen.append(reader(y)[1].numpy())
        read.append(reader(x)[1].numpy())
        more.append(reader(x_2)[1].numpy())
    gap, least = (distance(np.stack(read), np.stack(other)) for other in (seen, more))
    true, encoded, drawn, seen, read = map(np.concatenate, (true, encoded, drawn, seen, read))
    return {
        "MCC": within(true, encoded, u),
        "together": together(true, encoded, u),
        "MCC of drawn styles": within(seen, drawn, u),
        "reader": within(true, read, u),
        "gap": gap / least,
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of the sorted factors of two samples (K, N, n): Wasserstein's, of each factor in each domain."""
    return float(np.abs(np.sort(a, axis=1) - np.sort(b, axis=1)).mean())


def trained_reader(n: int, epochs: int = 6, batch: int = 32) -> Reader:
    """Reads the n factors from images of the family's manner; of domains and seeds that no run sees."""
    file = OUT / f"reader-n{n}.safetensors"
    reader = Reader(n)
    if not file.exists():
        studies = family(10, n, SIZE, "train", 4000 + n, READER_IMAGES)
        x = torch.cat([pictures(s, READER_IMAGES) for s in studies])
        y = torch.tensor(
            [list(s.style(i).values())[:n] for s in studies for i in range(READER_IMAGES)]
        )
        optimizer = torch.optim.Adam(reader.parameters(), 2e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for i in torch.randperm(len(x), generator=generator).split(batch):
                optimizer.zero_grad()
                F.mse_loss(reader(x[i])[1], y[i]).backward()
                optimizer.step()
        save_model(file, reader.state_dict(), {"network": "reader"})
    reader.load_state_dict(load_model(file)[0])
    return reader.eval()


# All runs -----------------------------------------------------------------------------------------


def numbers(kind: str) -> dict[int, tuple[int, ...]]:
    """The numbers of domains, by n."""
    return DOMAINS if kind == "vectors" else SCENE_DOMAINS


def runs(args: argparse.Namespace) -> list[tuple[str, int, int, dict[str, list[float]]]]:
    """(what, n, K, figures of all seeds), from files where they are, by running where they are not."""
    kinds = ["flow"] if args.kind == "vectors" else args.only or METHODS
    done = []
    for n, Ks in numbers(args.kind).items():
        for K, kind in itertools.product([K for K in Ks if K in (args.K or Ks)], kinds):
            each = []
            for seed in range(args.seeds):
                file = OUT / f"{args.kind}-{kind}-n{n}-K{K}-seed{seed}-{args.steps}.json"
                if not file.exists():
                    start = time.monotonic()
                    if args.kind == "vectors":
                        figures = vectors(n, K, seed, args.steps)
                    else:
                        figures = scenes(kind, n, K, seed, args)
                    print(file.stem, figures, f"{time.monotonic() - start:.0f} s", flush=True)
                    write_atomic(file, json.dumps(figures | {"settings": args.settings}).encode())
                known = json.loads(file.read_text())
                known.pop("step", None)  # the same for all
                if (said := known.pop("settings", args.settings)) != args.settings:
                    raise SystemExit(
                        f"{file} was made with the settings {' '.join(said) or '(none)'}: give the same, or move it."
                    )
                each.append(known)
            done.append((kind, n, K, {name: [f[name] for f in each] for name in each[0]}))
    return done


def rows(done: Sequence[tuple[str, int, int, dict[str, list[float]]]]) -> list[list[object]]:
    lines = []
    for kind, n, K, figures in done:
        where = "below" if K < 2 * n + 1 else "at" if K == 2 * n + 1 else "above"
        cells = [f"{np.mean(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in figures.values()]
        lines.append([kind, n, K, f"{where} {2 * n + 1}", *cells])
    return lines


def figure(done: Sequence[tuple[str, int, int, dict[str, list[float]]]]) -> str:
    """MCC against K as SVG: a line through the means, a dot for each seed, a stroke at 2n + 1."""
    width, height, left, bottom = 560, 320, 50, 280
    most = max(K for _, _, K, _ in done)

    def place(K: float, value: float) -> tuple[float, float]:
        return left + (K - 1) / max(most - 1, 1) * (width - left - 120), bottom - value * 250

    parts = []
    colours = ("#2563a8", "#c2541d", "#2f855a", "#7a4a9e")
    kinds = list(dict.fromkeys((kind, n) for kind, n, _, _ in done))
    for colour, (kind, n) in zip(colours, kinds, strict=False):
        of = [(K, figures["MCC"]) for k, m, K, figures in done if (k, m) == (kind, n)]
        ends = [place(K, float(np.mean(values))) for K, values in of]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for K, values in of:
            for x, y in (place(K, v) for v in values):
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        x, y = place(2 * n + 1, 0)
        parts.append(
            f'<path d="M{x:.1f} {y:.1f}v-250" stroke="{colour}" stroke-dasharray="3 4" opacity=".6"/>'
        )
        x, y = ends[-1]
        parts.append(
            f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{kind}, n = {n}</text>'
        )
    for value in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(1, value)
        parts.append(f'<text x="{x - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for K in sorted({K for _, _, K, _ in done}):
        x, y = place(K, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{K}</text>')
    title = "MCC against the number of domains; dashed: 2n + 1"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" fill="#444">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="{left}" y="20">{title}</text>{"".join(parts)}</svg>\n'
    )


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="Does matching every domain find the true factors?")
    p.add_argument("kind", choices=("vectors", "scenes"))
    p.add_argument("--steps", type=int, help="default: 700 for vectors, 800 for scenes")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--only", nargs="+", choices=METHODS, help="on scenes: one of the methods")
    p.add_argument("--K", type=int, nargs="+", help="numbers of domains (default: three or four)")
    p.add_argument("--minutes", type=float, default=20, help="of a run on scenes, at most")
    args = apart(p, argv)
    known = set(itertools.chain(*numbers(args.kind).values()))
    if odd := set(args.K or ()) - known:
        raise SystemExit(f"--K {min(odd)}: choose from {', '.join(map(str, sorted(known)))}.")
    if args.kind == "vectors" and args.settings:
        raise SystemExit(f"{args.settings[0]}: settings are for runs on scenes.")
    args.steps = args.steps or {"vectors": 700, "scenes": 800}[args.kind]
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    done = runs(args)
    names = ["what", "n", "K", "2n + 1", *(done[0][3])]
    text = (
        table(names, rows(done))
        + f"\nMeans over {args.seeds} seeds (least to most), {args.steps} steps. A random rotation of the "
        + f"factors has an MCC of {' and '.join(f'{chance(n):.2f} (n = {n})' for n in DOMAINS)}.\n"
    )
    write_atomic(OUT / f"{args.kind}.md", text.encode())
    write_atomic(OUT / f"{args.kind}.svg", figure(done).encode())
    print(text)


if __name__ == "__main__":
    main()
