"""Translate an image by the files beside this one: python example.py IMAGE OUT.png --to DOMAIN

Needs numpy, pillow and onnxruntime, nothing else. `unpaired export` wrote it (Apache-2.0): an example to begin from.
What the files take and give is in export.json. The style is, in this order, that of --style-from, a random one of
--seed (another than unpaired's of that seed), or the mean of the domain.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent


def main() -> None:
    about = json.loads((HERE / "export.json").read_text(encoding="utf-8"))
    ways = {(a, b): file for a, found in about["translate"].items() for b, file in found.items()}
    targets = list(dict.fromkeys(b for _, b in ways))
    p = argparse.ArgumentParser(description="Translate an image by exported files.")
    p.add_argument("image", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--to", choices=targets, default=targets[0] if len(targets) == 1 else None)
    p.add_argument("--source", choices=about["translate"], help="the domain of the image")
    p.add_argument("--style-from", type=Path, metavar="REF", help="take the style of this image")
    p.add_argument("--seed", type=int, default=0, help="of the random style (default 0)")
    args = p.parse_args()
    if args.to is None:
        p.error(f"say --to: {', '.join(targets)}")
    sources = [a for a, b in ways if b == args.to and args.source in (None, a)]
    if not sources:
        p.error(
            f"no way from {args.source} to {args.to}; there is: {', '.join(map(' to '.join, ways))}"
        )
    kind = Image.registered_extensions().get(args.out.suffix.lower())
    if kind not in Image.SAVE or not args.out.parent.is_dir():
        p.error(f"{args.out} cannot be written: name a .png, in a folder that exists")
    if args.seed < 0:
        p.error("--seed: 0 or more")

    image = opened(args.image, about)
    height, width = image.shape[2:]
    room = (0, -height % about["stride"]), (0, -width % about["stride"])
    given = {"image": np.pad(image, ((0, 0), (0, 0), *room), "reflect")}
    if (styles := about["styles"][args.to]) is not None:
        given["style"] = style(styles, about, args)
    elif args.style_from:
        p.error("this model makes one result of an image: leave --style-from out")
    y = run(ways[sources[0], args.to], given)[0, :, :height, :width]
    pixels = np.rint((y.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    try:
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(args.out)
    except OSError as error:
        raise SystemExit(f"{args.out} cannot be written: {error}") from None


def run(file: str, given: dict[str, np.ndarray]) -> Any:
    return onnxruntime.InferenceSession(HERE / file).run(None, given)[0]


def opened(path: Path, about: dict[str, Any], whole: bool = True) -> np.ndarray:
    """(1, C, H, W) in [-1, 1]: the shorter side as in training, or the middle of it in the size of the training."""
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SystemExit(f"{path} cannot be read as an image: {error}") from None
    if image.mode.startswith("I;16"):  # Pillow would clip it at 255
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise SystemExit(f"{path}: {image.mode} has no range that is known: save it as 8 bits")
    if image.has_transparency_data:  # laid on white
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if about["channels"] == 1 else "RGB")
    height, width = about["size"]
    if whole:
        ratio = min(height, width) / min(image.size)
        size = round(image.width * ratio), round(image.height * ratio)
    else:
        ratio = max(width / image.width, height / image.height)
        size = max(width, round(image.width * ratio)), max(height, round(image.height * ratio))
    image = image.resize(size, Image.Resampling.BICUBIC)
    if not whole:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
    return pixels.transpose(2, 0, 1)[None] / np.float32(127.5) - 1


def style(styles: dict[str, Any], about: dict[str, Any], args: argparse.Namespace) -> Any:
    """(1, n)"""
    if args.style_from:
        if not styles["of_image"]:
            raise SystemExit("this model takes no style from an image: leave --style-from out")
        return run(styles["of_image"], {"image": opened(args.style_from, about, whole=False)})
    if styles["noise"]:
        noise = np.random.default_rng(args.seed).standard_normal((1, styles["noise"]), np.float32)
        return run(styles["of_noise"], {"noise": noise}) if styles["of_noise"] else noise
    if styles["mean"]:
        return np.array([styles["mean"]], np.float32)
    raise SystemExit(f"there is no mean style of {args.to}: say --style-from, or another --to")


if __name__ == "__main__":
    main()
