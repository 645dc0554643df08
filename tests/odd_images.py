"""Small generators of odd image files, D-01 to D-43: what people have, and what attackers send.

`cases` gives (id, label, bytes, expected): an array that must come out within a tolerance, a piece
of the reason why the file is refused, or EITHER, where use and refusal are both right.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

H, W = 40, 56
EITHER = None


class Pixels(NamedTuple):
    """Expected pixels (H, W, 3) uint8 and how far each may be from them, in levels."""

    image: np.ndarray
    within: int = 0


class Case(NamedTuple):
    id: str
    label: str
    make: Callable[[], bytes]
    expected: Pixels | str | None


@cache
def picture(height: int = H, width: int = W) -> np.ndarray:
    """A smooth picture without any symmetry: (H, W, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width] / (height, width)[0]
    rgb = np.stack([60 + 150 * y, 200 - 100 * x, 90 + 60 * x * y + 20 * np.sin(7 * x)], -1)
    return rgb.clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(
    width: int,
    height: int,
    rows: bytes,
    bits: int = 8,
    colour: int = 0,
    extra: bytes = b"",
    interlace: int = 0,
    packed: bool = False,
) -> bytes:
    """A PNG of filtered `rows` (each with its filter byte), `extra` chunks before the data."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    data = rows if packed else zlib.compress(rows)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra
    return start + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def rows(image: np.ndarray) -> bytes:
    """Scan lines of an image, each after filter byte 0."""
    flat = image.reshape(len(image), -1)
    return b"".join(b"\0" + line.tobytes() for line in flat)


def interlaced(image: np.ndarray) -> bytes:
    """An Adam7 PNG of (H, W, 3) uint8."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    parts = [image[y::dy, x::dx] for y, x, dy, dx in (*passes, (1, 0, 2, 1))]
    data = b"".join(rows(part) for part in parts if part.size)
    return png(image.shape[1], image.shape[0], data, colour=2, interlace=1)


def tiff(
    width: int,
    height: int,
    strips: list[bytes],
    bits: int = 8,
    samples: int = 3,
    photometric: int = 2,
    end: str = "<",
    following: int | None = None,
    **tags: tuple[int, int],
) -> bytes:
    """An uncompressed TIFF. `tags`: t<number>=(type, value) beside the usual; `following`: where
    the next page is said to be, 0 for none."""
    usual: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [1]),
        262: (3, [photometric]),
        277: (3, [samples]),
    }
    if "t322" not in tags:
        usual |= {273: (4, [0] * len(strips)), 278: (4, [height])}
        usual |= {279: (4, [len(strip) for strip in strips])}
    else:
        usual |= {324: (4, [0] * len(strips)), 325: (4, [len(strip) for strip in strips])}
    usual |= {int(key[1:]): (kind, [value]) for key, (kind, value) in tags.items()}
    body, at = b"", 8
    offsets = usual[324 if "t322" in tags else 273][1]
    for i, strip in enumerate(strips):
        offsets[i] = at + len(body)
        body += strip + b"\0" * (len(strip) % 2)
    fields, later, page = b"", b"", at + len(body)
    spill = page + 2 + 12 * len(usual) + 4
    for number, (kind, values) in sorted(usual.items()):
        data = struct.pack(end + {3: "H", 4: "I"}[kind] * len(values), *values)
        if len(data) > 4:
            field, later = struct.pack(end + "I", spill + len(later)), later + data
        else:
            field = data.ljust(4, b"\0")
        fields += struct.pack(end + "HHI", number, kind, len(values)) + field
    head = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(end + "I", page)
    last = struct.pack(end + "I", page if following is None else following)
    return head + body + struct.pack(end + "H", len(usual)) + fields + last + later


def tiff1(*args: Any, **options: Any) -> bytes:
    return tiff(*args, following=0, **options)


def bmp(width: int, height: int, bits: int, compression: int, data: bytes, table: bytes) -> bytes:
    start = 14 + 40 + len(table)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, len(table) // 4, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + table + data


def gif(canvas: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF whose first frame has another size than its canvas, both (width, height)."""
    width, height = (min(max(side, 1), 200) for side in frame)
    data = encode(np.zeros((height, width), np.uint8), "GIF")
    at = data.index(b"\x2c", 13)  # the frame's descriptor
    sizes = struct.pack("<HH", *canvas), struct.pack("<HH", *frame)
    return data[:6] + sizes[0] + data[10 : at + 5] + sizes[1] + data[at + 9 :]


def exif(orientation: int, size: int = 0) -> bytes:
    """An EXIF block that holds the orientation, and `size` bytes of ballast."""
    field = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + field + b"\0" * (4 + size)


def app(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def with_segment(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def ramp16() -> np.ndarray:
    """Grey levels 0 to 65535, (H, W) uint16."""
    return np.linspace(0, 65535, H * W).round().astype(np.uint16).reshape(H, W)


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    a = alpha[..., None].astype(float) / 255
    return (rgb * a + 255 * (1 - a)).round().astype(np.uint8)


def from_cmyk(cmyk: np.ndarray) -> np.ndarray:
    ink = 255 - cmyk.astype(float)
    return (ink[..., :3] * ink[..., 3:] / 255).round().astype(np.uint8)


def from_ycc(ycc: np.ndarray) -> np.ndarray:
    """Full-range YCbCr of JPEG to RGB, both (H, W, 3) uint8."""
    y, cb, cr = np.moveaxis(ycc.astype(float) - (0, 128, 128), -1, 0)
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return rgb.round().clip(0, 255).astype(np.uint8)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """CIELAB (D50), L 0..100, a and b signed, to sRGB by the formulas of CIE and IEC."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    to_rgb = np.array(  # D50 to linear sRGB, Bradford
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = (xyz @ to_rgb.T).clip(0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (rgb * 255).round().astype(np.uint8)


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # how the stored image looks when the upright one is to be shown
    1: lambda x: x,
    2: lambda x: np.fliplr(x),
    3: lambda x: np.rot90(x, 2),
    4: lambda x: np.flipud(x),
    5: lambda x: np.transpose(x, (1, 0, 2)),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.transpose(np.rot90(x, 2), (1, 0, 2)),
    8: lambda x: np.rot90(x, -1),
}


def _d01_to_d11() -> Iterator[Case]:
    jpeg, whole, webp = encode(picture(), "JPEG"), encode(picture(), "PNG"), None
    webp = encode(picture(), "WEBP")
    not_one = "not JPEG, PNG"
    yield Case("D-01", "empty", lambda: b"", "empty")
    yield Case("D-02", "one byte", lambda: b"\xff", not_one)
    magics = (jpeg[:3], whole[:8], b"GIF89a", b"BM", b"II*\0", b"RIFF\x10\0\0\0WEBP")
    for magic in magics:
        yield Case("D-02", f"magic only {magic[:4]!r}", lambda magic=magic: magic, "")
    html = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
    yield Case("D-03", "html", lambda: html, "an HTML page")
    yield Case("D-03", "text", lambda: b"Access denied.\n", "it is text")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    yield Case("D-04", "lfs pointer", lambda: pointer, "git-lfs pointer")
    yield Case("D-05", "zeros", lambda: b"\0" * 4096, "filled with zeros")
    for options in ({}, {"progressive": True}):
        data = encode(picture(), "JPEG", **options)
        half = data[: len(data) // 2]
        yield Case("D-06", f"half a JPEG {options}", lambda half=half: half, "damaged")
        yield Case("D-07", f"JPEG without end {options}", lambda d=data: d[:-2], "damaged")
    cmyk = encode(Image.fromarray(picture()).convert("CMYK"), "JPEG")
    yield Case("D-06", "half a CMYK JPEG", lambda: cmyk[: len(cmyk) // 2], "damaged")
    yield Case("D-07", "CMYK JPEG without end", lambda: cmyk[:-2], "damaged")
    yield Case("D-08", "half a PNG", lambda: whole[: len(whole) // 2], "damaged")
    yield Case("D-09", "PNG without IEND", lambda: whole[:-12], Pixels(picture()))
    at = whole.index(b"IDAT") + 10
    bad = whole[:at] + bytes((whole[at] ^ 0x55,)) + whole[at + 1 :]
    yield Case("D-10", "PNG with a bad IDAT", lambda: bad, "damaged")
    crc = whole[:-16] + b"\0\0\0\0" + whole[-12:]
    yield Case("D-10", "PNG with a bad IDAT CRC", lambda: crc, "damaged")
    for share in (0.1, 0.5, 0.9):
        cut = webp[: int(len(webp) * share)]
        yield Case("D-11", f"WebP cut at {share}", lambda cut=cut: cut, "damaged|ends within")


def _d12_to_d16() -> Iterator[Case]:
    rgb = picture()
    cmyk = np.dstack([255 - rgb, np.full((H, W), 40, np.uint8)])
    plain = encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100)
    golden = Pixels(from_cmyk(cmyk), 3)
    yield Case("D-12", "Adobe CMYK", lambda: plain, golden)
    at = plain.index(b"Adobe")
    yield Case("D-12", "CMYK TIFF", lambda: encode(Image.fromarray(cmyk, "CMYK"), "TIFF"), golden)
    bare = plain[: at - 4] + plain[at + 12 :]
    yield Case("D-12", "CMYK without Adobe's mark", lambda: bare, golden)
    ycc = np.array(Image.fromarray(cmyk[..., :3]).convert("YCbCr"))
    stored = np.dstack([255 - ycc, cmyk[..., 3]])  # the writer inverts all four
    ycck = bytearray(encode(Image.fromarray(stored, "CMYK"), "JPEG", quality=100))
    ycck[ycck.index(b"Adobe") + 11] = 2
    seen = from_cmyk(np.dstack([from_ycc(ycc), cmyk[..., 3]]))
    yield Case("D-12", "YCCK", lambda: bytes(ycck), Pixels(seen, 3))

    grey = rgb[..., 0]
    for kind, within in (("PNG", 0), ("JPEG", 3), ("BMP", 0), ("TIFF", 0), ("GIF", 0)):
        data = encode(grey, kind)
        yield Case("D-13", f"grey {kind}", lambda data=data: data, Pixels(grey3(grey), within))
    two = grey > 120
    for kind in ("PNG", "BMP", "TIFF"):
        data = encode(two, kind)
        yield Case("D-14", f"1-bit {kind}", lambda data=data: data, Pixels(grey3(two * 255)))

    alpha = np.tile(np.linspace(0, 255, W).astype(np.uint8), (H, 1))
    golden = Pixels(on_white(rgb, alpha), 1)
    rgba = np.dstack([rgb, alpha])
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        data = encode(rgba, kind, **options)
        yield Case("D-15", f"RGBA {kind}", lambda data=data: data, golden)
    clear = np.dstack([rgb, np.zeros((H, W), np.uint8)])
    white = Pixels(np.full((H, W, 3), 255, np.uint8))
    yield Case("D-15", "all clear", lambda: encode(clear, "PNG"), white)
    la = Image.fromarray(np.dstack([grey, alpha]), "LA")
    yield Case("D-15", "LA", lambda: encode(la, "PNG"), Pixels(on_white(grey3(grey), alpha), 1))
    key = np.where(two, 9, 200).astype(np.uint8)
    keyed = encode(key, "PNG", transparency=9)
    yield Case(
        "D-15",
        "grey with a clear level",
        lambda: keyed,
        Pixels(np.where(two[..., None], 255, grey3(key)).astype(np.uint8)),
    )

    table = bytes((255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30))
    index = (np.arange(H * W) % 4).astype(np.uint8).reshape(H, W)
    coloured = np.frombuffer(table, np.uint8).reshape(4, 3)[index]
    plte = chunk(b"PLTE", table)
    lines = rows(index)
    yield Case("D-16", "palette", lambda: png(W, H, lines, 8, 3, plte), Pixels(coloured))
    some = chunk(b"tRNS", bytes((255, 0, 128)))
    seen = on_white(coloured, np.array([255, 0, 128, 255])[index])
    data = png(W, H, lines, 8, 3, plte + some)
    yield Case("D-16", "palette and tRNS", lambda d=data: d, Pixels(seen, 1))
    beyond = index.copy()
    beyond[3, 3] = 200
    out = png(W, H, rows(beyond), 8, 3, plte)
    yield Case("D-16", "index out of palette", lambda: out, "not in the palette")
    four = png(W, H, rows(index[:, ::2] * 16 + index[:, 1::2]), 4, 3, plte)
    yield Case("D-16", "4-bit palette", lambda: four, Pixels(coloured))


def _d17_to_d21() -> Iterator[Case]:
    ramp = ramp16()
    golden = Pixels(grey3((ramp / 257).round()))
    deep = png(W, H, rows(ramp.astype(">u2").view(np.uint8)), 16, 0)
    yield Case("D-17", "16-bit PNG", lambda: deep, golden)
    for end, order in (("<", "little"), (">", "big")):
        data = ramp.astype(end + "u2").tobytes()
        # Pillow does not know the last of the four, so it is refused.
        inverse = Pixels(255 - golden.image) if end == "<" else "unsupported"
        for photometric, expected in ((1, golden), (0, inverse)):
            file = tiff1(W, H, [data], 16, 1, photometric, end)
            label = f"16-bit {order}-endian TIFF, photometric {photometric}"
            yield Case("D-17", label, lambda file=file: file, expected)
    compressed = encode(Image.fromarray(ramp), "TIFF", compression="tiff_lzw")
    yield Case("D-17", "16-bit LZW TIFF", lambda: compressed, golden)

    rgb16 = (picture().astype(np.uint16) * 257).astype(">u2")
    bytes16 = rows(rgb16.view(np.uint8).reshape(H, -1))
    deep_rgb = png(W, H, bytes16, 16, 2)
    yield Case("D-18", "16-bit RGB PNG", lambda: deep_rgb, Pixels(picture(), 1))
    alpha = np.full((H, W, 1), 128 * 257, ">u2")
    rgba16 = np.concatenate([rgb16, alpha], -1).astype(">u2")
    deep_rgba = png(W, H, rows(rgba16.view(np.uint8).reshape(H, -1)), 16, 6)
    half = on_white(picture(), np.full((H, W), 128))
    yield Case("D-18", "16-bit RGBA PNG", lambda: deep_rgba, Pixels(half, 1))

    whole = np.arange(H * W, dtype="<i4").reshape(H, W) * 1000
    yield Case(
        "D-19", "int32", lambda: tiff1(W, H, [whole.tobytes()], 32, 1, 1, t339=(3, 2)), "8 or 16"
    )
    yield Case("D-19", "uint32", lambda: tiff1(W, H, [whole.tobytes()], 32, 1, 1), "")
    signed = (ramp.astype(np.int32) - 32768).astype("<i2").tobytes()
    yield Case("D-19", "int16", lambda: tiff1(W, H, [signed], 16, 1, 1, t339=(3, 2)), "8 or 16")
    twelve = bytes(H * W * 3 // 2)
    yield Case("D-19", "12 bits", lambda: tiff1(W, H, [twelve], 12, 1, 1), "8 nor 16")
    real = np.linspace(0, 1, H * W, dtype="<f4").reshape(H, W)
    for label, value in (("", 0.5), ("NaN", np.nan), ("Inf", np.inf), ("large", 1e9)):
        real[0, 0] = value
        data = tiff1(W, H, [real.tobytes()], 32, 1, 1, t339=(3, 3))
        yield Case("D-20", f"float {label}", lambda data=data: data, "floating-point")

    lab = np.zeros((H, W, 3), np.int16)
    lab[..., 0] = np.linspace(20, 90, W).round()
    lab[..., 1], lab[..., 2] = 15, np.linspace(-20, 20, H).round()[:, None]
    stored = np.dstack([(lab[..., 0] * 2.55).round(), lab[..., 1], lab[..., 2]]).astype(np.int16)
    cie = tiff1(W, H, [stored.astype(np.uint8).tobytes()], 8, 3, 8)
    yield Case("D-21", "LAB", lambda: cie, Pixels(from_lab(lab.astype(float)), 4))
    ycc = Image.fromarray(picture()).convert("YCbCr")
    seen = from_ycc(np.array(ycc))
    yield Case("D-21", "YCbCr", lambda: encode(ycc, "TIFF"), Pixels(seen, 1))


def _d22_to_d26() -> Iterator[Case]:
    golden = picture()
    for number, turned in TURNED.items():
        stored = np.ascontiguousarray(turned(golden))
        jpeg = encode(stored, "JPEG", quality=100, subsampling=0, exif=exif(number))
        yield Case("D-22", f"JPEG {number}", lambda d=jpeg: d, Pixels(golden, 4))
        for kind in ("PNG", "TIFF", "WEBP"):
            options = {"exif": exif(number)} if kind != "TIFF" else {"tiffinfo": {0x0112: number}}
            data = encode(stored, kind, lossless=True, **options)
            yield Case("D-22", f"{kind} {number}", lambda d=data: d, Pixels(golden))

    plain = encode(golden, "JPEG", quality=100, subsampling=0)
    blocks = {
        "99": [exif(99)],
        "0": [exif(0)],
        "corrupt": [b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x55" * 200],
        "cut": [exif(6)[:17]],
        "no TIFF": [b"Exif\0\0hello"],
        "10 MB": [exif(1, 60_000)] + [b"Exif\0\0" + b"\0" * 65_000] * 160,
    }
    for label, parts in blocks.items():
        data = with_segment(plain, *(app(0xE1, part) for part in parts))
        yield Case("D-23", f"EXIF {label}", lambda d=data: d, Pixels(golden, 4))
    large = png(W, H, rows(golden), 8, 2, chunk(b"eXIf", exif(1, 10_000_000)[6:]))
    yield Case("D-23", "EXIF 10 MB in a PNG", lambda: large, Pixels(golden))

    for label, profile in (
        ("broken", b"not a profile"),
        ("wide", b"\0" * 36 + b"acsp" + b"\0" * 88),
    ):
        for kind, within in (("JPEG", 4), ("PNG", 0), ("TIFF", 0)):
            options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
            data = encode(golden, kind, icc_profile=profile, **options)
            yield Case("D-24", f"{label} ICC in {kind}", lambda d=data: d, Pixels(golden, within))
    grey_profile = b"\0" * 12 + b"mntrGRAYXYZ " + b"\0" * 12 + b"acsp" + b"\0" * 88
    data = encode(golden, "PNG", icc_profile=grey_profile)
    yield Case("D-24", "grey ICC on RGB", lambda d=data: d, Pixels(golden))
    torn = png(W, H, rows(golden), 8, 2, chunk(b"iCCP", b"x\0\0not zlib"))
    yield Case("D-24", "ICC that does not inflate", lambda: torn, Pixels(golden))

    for kind, options, within in (
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("MPO", {"quality": 100, "subsampling": 0}, 4),
    ):
        frames = [Image.fromarray(golden), Image.fromarray(255 - golden)]
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        yield Case("D-25", f"two frames of {kind}", lambda d=data: d, Pixels(golden, within))
    grey = [Image.fromarray(golden[..., 0]), Image.fromarray(255 - golden[..., 0])]
    moving = encode(grey[0], "GIF", save_all=True, append_images=grey[1:])
    yield Case("D-25", "animated GIF", lambda: moving, Pixels(grey3(golden[..., 0])))

    yield Case("D-26", "frame larger than canvas", lambda: gif((W, H), (W * 2, H)), "canvas")
    yield Case("D-26", "huge frame", lambda: gif((W, H), (65535, 65535)), "")
    yield Case("D-26", "frame of width zero", lambda: gif((W, H), (0, H)), "")
    yield Case("D-26", "canvas of width zero", lambda: gif((0, H), (W, H)), "too small")
    yield Case("D-26", "huge canvas", lambda: gif((65535, 65535), (W, H)), "too large")


def _d27_to_d32() -> Iterator[Case]:
    for width, height, why in (
        (1, 1, "small"),
        (15, 400, "small"),
        (1, 10_000, "small"),
        (10_000, 1, "small"),
        (20, 401, "narrow"),
        (401, 20, "narrow"),
    ):
        for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"):
            data = encode(np.full((height, width), 99, np.uint8), kind)
            yield Case("D-27", f"{kind} {width} x {height}", lambda d=data: d, f"too {why}")
    for width, height in ((16, 16), (20, 400)):
        grey = np.full((height, width), 99, np.uint8)
        yield Case(
            "D-27", f"just {width} x {height}", lambda g=grey: encode(g, "PNG"), Pixels(grey3(grey))
        )
    yield Case("D-28", "81 megapixels", lambda: png(9000, 9000, b"\0" * 9001 * 9000), "too large")
    for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 100), (0, 0)):
        why = "too small" if width == 0 else "too large"
        yield Case(
            "D-29", f"PNG {width} x {height}", lambda w=width, h=height: png(w, h, b"\0" * 900), why
        )
        data = tiff1(width, height, [b"\0" * 900], 8, 1, 1)
        yield Case("D-29", f"TIFF {width} x {height}", lambda d=data: d, "")
        huge = bmp(width, height, 24, 0, b"\0" * 900, b"")
        yield Case("D-29", f"BMP {width} x {height}", lambda d=huge: d, "")
    jpeg = bytearray(encode(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 50_000, 50_000)
    yield Case("D-29", "JPEG 50000 x 50000", lambda: bytes(jpeg), "too large")
    canvas = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\x50\xc3\0" * 2 + b"ANIM\0\0\0\0"
    yield Case("D-29", "WebP 50001 x 50001", lambda: canvas, "too large")
    yield Case("D-30", "81 megapixels in 1 KB", lambda: png(9000, 9000, b"\0" * 1000), "too large")
    yield Case("D-30", "36 megapixels in 1 KB", lambda: png(6000, 6000, b"\0" * 1000), "damaged")

    bomb = zlib.compress(b"\0" * 80_000_000, 9)
    for name, head in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\x01\0\0\0"), (b"iCCP", b"k\0\0")):
        data = png(W, H, rows(picture()), 8, 2, chunk(name, head + bomb))
        yield Case("D-31", f"{name.decode()} bomb", lambda d=data: d, "damaged")

    tiny = chunk(b"teSt", b"") * 100_000
    yield Case("D-32", "100,000 chunks", lambda: png(W, H, rows(picture()), 8, 2, tiny), "chunks")
    texts = chunk(b"tEXt", b"a\0b") * 100_000
    yield Case("D-32", "100,000 texts", lambda: png(W, H, rows(picture()), 8, 2, texts), "chunks")
    yield Case("D-32", "IFD loop", lambda: tiff(W, H, [picture().tobytes()]), "loop")
    one = tiff1(W, H, [picture().tobytes()])
    page = struct.unpack_from("<I", one, 4)[0]
    many = one[:page] + struct.pack("<H", 65_535) + struct.pack("<HHII", 65_000, 3, 1, 0) * 65_535
    yield Case("D-32", "65,535 tags", lambda: many + b"\0" * 4, "tags")


def _d33_to_d38() -> Iterator[Case]:
    golden = picture()
    for name, head in {
        "SVG": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
        "a PDF": b"%PDF-1.7\n" + encode(golden, "JPEG"),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        "a Photoshop file": b"8BPS\0\x01" + b"\0" * 60,
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "AVIF": encode(golden, "AVIF"),
        "JPEG 2000": encode(golden, "JPEG2000"),
        "a video": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",
        "": encode(golden, "TGA"),
    }.items():
        yield Case("D-35", name or "TGA", lambda d=head: d, f"{name}.*not JPEG")

    jpeg = encode(golden, "JPEG", quality=100, subsampling=0)
    zipped = encode(golden[..., 0], "GIF") + b"PK\x03\x04" + b"\0" * 300
    yield Case("D-36", "GIF and zip", lambda: zipped, Pixels(grey3(golden[..., 0])))
    html = with_segment(jpeg, app(0xFE, b"<script>alert(1)</script>")) + b"<html></html>"
    yield Case("D-36", "JPEG and HTML", lambda: html, Pixels(golden, 4))
    tail = jpeg + bytes(range(256)) * 400
    yield Case("D-36", "JPEG and 100 KB", lambda: tail, Pixels(golden, 4))
    yield Case(
        "D-36", "PNG and zip", lambda: encode(golden, "PNG") + b"PK\x03\x04" * 99, Pixels(golden)
    )

    progressive = encode(golden, "JPEG", quality=100, subsampling=0, progressive=True)
    yield Case("D-37", "progressive", lambda: progressive, Pixels(golden, 4))
    # No encoder for these is at hand: the header of a baseline file claims them.
    for label, marker in (("lossless", 0xC3), ("arithmetic", 0xC9), ("lossless arithmetic", 0xCB)):
        data = jpeg.replace(b"\xff\xc0", bytes((0xFF, marker)), 1)
        yield Case("D-37", label, lambda d=data: d, EITHER)
    at = jpeg.index(b"\xff\xc0") + 4
    twelve = jpeg[:at] + b"\x0c" + jpeg[at + 1 :]
    yield Case("D-37", "12-bit", lambda: twelve, "")
    restarts = encode(golden, "JPEG", quality=100, restart_marker_blocks=2)
    for label, new in (
        ("lost", b"\0\0"),
        ("out of order", b"\xff\xd7"),
        ("twice", b"\xff\xd0\xff\xd0"),
    ):
        data = restarts.replace(b"\xff\xd1", new, 3)
        yield Case("D-37", f"restart marker {label}", lambda d=data: d, EITHER)
    stray = jpeg[:-2] + b"stray" + jpeg[-2:]
    yield Case("D-37", "stray bytes before the end", lambda: stray, Pixels(golden, 4))
    middle = len(progressive) // 2
    dirt = jpeg[:middle] + b"\xff\x01" * 10 + jpeg[middle + 20 :]
    yield Case("D-37", "dirt within", lambda: dirt, "damaged")

    yield Case("D-38", "interlaced PNG", lambda: interlaced(golden), Pixels(golden))
    bgr = golden[..., ::-1]
    yield Case(
        "D-38", "top-down BMP", lambda: bmp(W, -H, 24, 0, bgr.tobytes(), b""), Pixels(golden)
    )
    five = golden.astype(np.uint16) >> 3
    packed = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype("<u2")
    sixteen = bmp(W, H, 16, 0, packed[::-1].tobytes(), b"")
    yield Case(
        "D-38", "16-bit BMP", lambda: sixteen, Pixels((five * 255 / 31).round().astype(np.uint8), 1)
    )
    levels = bytes(v for i in range(256) for v in (i, i, i, 0))
    runs = b"".join(bytes((W, 100 + y)) + b"\0\0" for y in reversed(range(H))) + b"\0\1"
    striped = grey3(np.repeat(np.arange(100, 100 + H)[:, None], W, 1))
    yield Case("D-38", "RLE BMP", lambda: bmp(W, H, 8, 1, runs, levels), Pixels(striped))
    for compression in ("tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits"):
        data = encode(golden, "TIFF", compression=compression)
        yield Case("D-38", f"TIFF {compression}", lambda d=data: d, Pixels(golden))
    inside = encode(golden, "TIFF", compression="jpeg", quality=100)
    yield Case("D-38", "TIFF jpeg", lambda: inside, Pixels(golden, 6))
    planes = [golden[..., i].tobytes() for i in range(3)]
    yield Case("D-38", "planar TIFF", lambda: tiff1(W, H, planes, t284=(3, 2)), Pixels(golden))
    padded = np.zeros((48, 64, 3), np.uint8)
    padded[:H, :W] = golden
    tiles = [padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16, 32) for x in (0, 16, 32, 48)]
    tiled = tiff1(W, H, tiles, t322=(3, 16), t323=(3, 16))
    yield Case("D-38", "tiled TIFF", lambda: tiled, Pixels(golden))


@cache
def cases() -> tuple[Case, ...]:
    groups = (_d01_to_d11, _d12_to_d16, _d17_to_d21, _d22_to_d26, _d27_to_d32, _d33_to_d38)
    return tuple(case for group in groups for case in group())


@cache
def seeds() -> tuple[bytes, ...]:
    """The files from which mutations start: the cases that are small and good."""
    files = (case.make() for case in cases() if isinstance(case.expected, Pixels))
    return tuple(file for file in files if len(file) < 20_000)


def mutate(rng: np.random.Generator) -> bytes:
    """A seed with a few of: flipped, set, removed, repeated and overwritten bytes; a changed number
    in its header; its end cut off; the start of another file."""
    files = seeds()
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at = int(rng.integers(min(len(data), 200) if rng.random() < 0.6 else len(data)))
        span = int(rng.integers(1, 9))
        match rng.integers(8):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + 4] = rng.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"])
            case 2:
                del data[at : at + span]
            case 3:
                data[at:at] = data[at : at + span] * int(rng.integers(1, 40))
            case 4:
                data[at : at + span] = rng.bytes(span)
            case 5:
                data[at] = int(rng.integers(256))
            case 6:
                del data[max(at, 16) :]
            case 7:
                other = files[rng.integers(len(files))]
                data[at:] = other[int(rng.integers(len(other))) :]
    if data[:4] == b"\x89PNG" and rng.random() < 0.5:
        _mend_png(data)
    return bytes(data)


def _mend_png(data: bytearray) -> None:
    """Right check sums, so that the damage reaches the decoder behind them."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        crc = zlib.crc32(data[at + 4 : at + 8 + length])
        struct.pack_into(">I", data, at + 8 + length, crc)
        at += 12 + length
