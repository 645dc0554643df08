"""Translating many images under many styles, beside a plain loop; and from a cold start to the first file.

    python benchmarks/translate.py    # 100 images of 256 px, 8 styles each: a quarter of an hour without matrix units

The plain loop takes one image and one style at a time through the networks of plain.py, in fp32. Ours is
`unpaired translate` on the folder, its start included, in the precision that `auto` chooses. Both read and write the
same files with the same weights, and take turns on parts of the images, so that noise of the machine hits both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from plain import Generator
from running import table
from steps import DEFAULTS
from torch import nn

from unpaired.checkpoint import save_model
from unpaired.cli import main as unpaired
from unpaired.config import load
from unpaired.data.scenes import Scenes
from unpaired.heap import set_malloc
from unpaired.translator import Translator, metadata, random_styles


def model(file: Path, size: int, dim: int) -> Translator:
    """An untrained MUNIT in a file."""
    run = load(method={"name": "munit", "dim": dim}, data={"size": size})
    method = run.build(("a", "b"))
    tensors = {
        f"{net}.{k}": v
        for net in method.averaged.split()
        for k, v in method.get_submodule(net).state_dict().items()
    }
    save_model(file, tensors, metadata(run, method.domains, 0))
    return Translator.load(file)


class Plain:
    """Content of the first generator, style and decoder of the second, as one would first write it."""

    def __init__(self, t: Translator, dim: int, styles: int) -> None:
        self.device, self.styles = t.device, random_styles(t.method, styles, 1, 0)
        self.first, self.second = (Generator(dim).to(t.device).eval() for _ in range(2))
        for g, ours in ((self.first, t.method.G_1), (self.second, t.method.G_2)):
            parts = nn.ModuleList([g.content, g.style, g.decoder, g.mlp])
            for p, q in zip(parts.parameters(), ours.parameters(), strict=True):
                p.data.copy_(q)

    @torch.no_grad()
    def translate(self, file: Path, out: Path) -> None:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        for i, s in enumerate(self.styles):
            content = self.first.content(x.to(self.device))
            y = self.second.decode(content, s[None].to(self.device))
            y = ((y[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu()
            Image.fromarray(y.numpy()).save(out / f"{file.stem}-b-{i:02d}.png")


def cold(file: Path, image: Path, out: Path) -> float:
    """Seconds from the start of the process to the first file."""
    words = [sys.executable, "-m", "unpaired", "translate", file, image, "--to", "b", "--out", out]
    begun = time.perf_counter()
    process = subprocess.Popen([*map(str, words), "--styles", "1"], stdout=subprocess.DEVNULL)
    while not list(out.glob("*.png")) and process.poll() is None:
        time.sleep(0.005)
    seconds = time.perf_counter() - begun
    if process.wait():
        raise SystemExit(process.returncode)
    return seconds


def differences(ours: Path, plain: Path) -> tuple[float, int]:
    """Mean and largest difference of all pictures, in levels of 255."""
    gaps = [
        np.abs(np.asarray(Image.open(f), int) - np.asarray(Image.open(ours / f.name), int))
        for f in sorted(plain.glob("*.png"))
    ]
    return float(np.mean(gaps)), int(np.max(gaps))


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--images", type=int, default=100)
    p.add_argument("--styles", type=int, default=8)
    p.add_argument("--size", type=int, default=256)
    p.add_argument("--dim", type=int, default=64, help="width of the networks (default 64)")
    p.add_argument("--turns", type=int, default=4)
    p.add_argument("--starts", type=int, default=5, help="cold starts (default 5)")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        file, out = Path(scratch) / "model.safetensors", Path(scratch) / "out"
        t = model(file, args.size, args.dim)
        plain = Plain(t, args.dim, args.styles)
        turns = [Path(scratch) / f"images-{k}" for k in range(args.turns)]
        for i, scene in enumerate(Scenes("painted", args.size, count=args.images)):
            turns[i % args.turns].mkdir(exist_ok=True)
            Image.fromarray(scene.image).save(turns[i % args.turns] / f"{i:04}.png")
        (out / "plain").mkdir(parents=True)
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        for folder in turns:
            files = sorted(folder.iterdir())
            pictures = len(files) * args.styles
            set_malloc(DEFAULTS)  # ours has changed them
            begun = time.perf_counter()
            for image in files:
                plain.translate(image, out / "plain")
            rates["plain"].append((time.perf_counter() - begun) / pictures)
            words = ["translate", file, folder, "--to", "b", "--styles", args.styles]
            begun = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                unpaired([*map(str, words), "--out", str(out / "ours")])
            rates["ours"].append((time.perf_counter() - begun) / pictures)
        mean, most = differences(out / "ours", out / "plain")
        image = next(turns[0].iterdir())
        starts = [cold(file, image, out / f"cold-{k}") for k in range(args.starts)]
    ms = {name: 1e3 * statistics.median(seconds) for name, seconds in rates.items()}
    print(
        f"{args.images} images x {args.styles} styles, {args.size} px, dim {args.dim}; "
        f"{t.device.type}, {torch.get_num_threads()} threads\n"
    )
    rows = [
        ["plain", "32-true", f"{ms['plain']:.0f}", "1", "", ""],
        ["ours", t.run.precision(t.device), f"{ms['ours']:.0f}", f"{ms['plain'] / ms['ours']:.2f}"]
        + [f"{mean:.3f}", most],
    ]
    head = ["loop", "precision", "ms a picture", "times plain", "levels apart, mean", "at most"]
    print(table(head, rows))
    if starts:
        print(f"Cold start to the first file: {statistics.median(starts):.2f} s")


if __name__ == "__main__":
    main()
