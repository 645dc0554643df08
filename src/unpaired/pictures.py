"""Tensors to pictures, and pictures to sheets. Colours are exactly the network's: clamped, never stretched."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP, PAPER, INK = 4, (255, 255, 255), (70, 70, 80)


def to_images(x: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] -> PIL images, RGB or grey; values outside are clamped."""
    x = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    arrays = x.permute(0, 2, 3, 1).numpy()
    return [
        Image.fromarray(a[..., 0] if a.shape[-1] == 1 else np.ascontiguousarray(a)) for a in arrays
    ]


def from_array(image: np.ndarray) -> Tensor:
    """(H, W, C) uint8 -> (1, C, H, W) in [-1, 1]."""
    image = np.require(image, requirements=("C", "W"))  # torch wants it so; no copy where it is
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


def sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    columns: Sequence[str] = (),
    title: str = "",
    set_apart: int = 1,
) -> Image.Image:
    """One picture of all `rows`; the first `set_apart` columns (the inputs) stand apart at the left."""
    width = max(image.width for row in rows for image in row if image)
    heights = [max(image.height for image in row if image) for row in rows]
    across = max(len(row) for row in rows)
    size = max(10, min(16, width // 6))
    line = int(size * 1.6)
    top = (line + 4 if title else 0) + (line if columns else 0) + GAP
    lefts = [GAP + i * (width + GAP) + (3 * GAP if i >= set_apart else 0) for i in range(across)]
    wide = lefts[-1] + width + GAP
    if title:
        heading = font_for(title, size + 2)
        wide = max(wide, 2 * GAP + int(heading.getlength(readable(title, heading))) + 1)
    page = Image.new("RGB", (wide, top + sum(h + GAP for h in heights)), PAPER)
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((GAP, 3), readable(title, heading), INK, heading)
    for left, text in zip(lefts, columns, strict=False):
        font = font_for(text, size)
        pen.text((left, top - line - 1), fitted(readable(text, font), font, width), INK, font)
    for row, height in zip(rows, heights, strict=True):
        for left, image in zip(lefts, row, strict=False):
            if image:
                page.paste(image, (left, top))
        top += height + GAP
    return page


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache
def font_for(text: str, size: int) -> Font:
    """Pillow's own font, which has the letters of English; for others one of the system's, where there is one."""
    for name in () if text.isascii() else ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size=size)


def readable(text: str, font: Font) -> str:
    """`text` with ? for what cannot be printed; in a font of English letters without accents, and with ? for what it
    lacks."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if text.isascii() or isinstance(getattr(font, "path", None), str):  # of the system
        return text
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c.isascii() else "?" for c in plain)


def fitted(text: str, font: Font, width: int) -> str:
    """`text`, cut so that it does not run into the next column."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def label(text: str, size: tuple[int, int]) -> Image.Image:
    """A cell of a sheet with words in it."""
    cell = Image.new("RGB", size, PAPER)
    font = font_for(text, max(10, min(16, size[0] // 6)))
    text = readable(text, font)
    ImageDraw.Draw(cell).multiline_text((0, size[1] // 4), text, INK, font)
    return cell


def png(image: Image.Image) -> bytes:
    """As `translate` writes its files; the numbers are the network's, and nothing else is in there."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets under one another."""
    page = Image.new(
        "RGB", (max(s.width for s in sheets), sum(s.height + 8 for s in sheets)), PAPER
    )
    y = 0
    for s in sheets:
        page.paste(s, (0, y))
        y += s.height + 8
    return page


def enlarged(image: Image.Image, least: int = 96) -> Image.Image:
    """A small picture by a whole factor, pixels kept sharp, so that it can be looked at."""
    factor = max(1, -(-least // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
