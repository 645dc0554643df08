"""Names of the official implementations, and the way from their checkpoints to ours.

Only names and shapes of the published files are used here; the networks are ours.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unpaired.errors import ConfigProblem, DataProblem


def munit_generator(downsamplings: int, residuals: int) -> dict[str, str]:
    """Modules of MUNIT's `AutoEncoder` -> modules of the official `AdaINGen` (NVlabs/MUNIT)."""
    names = {f"E_s.convs.{i}": f"enc_style.model.{i}" for i in range(5)}
    names["E_s.fc"] = "enc_style.model.6"
    names |= {f"E_c.{i}": f"enc_content.model.{i}" for i in range(1 + downsamplings)}
    for j in range(residuals):
        for k in range(2):
            content, decoder = f"enc_content.model.{1 + downsamplings}", "dec.model.0"
            names[f"E_c.{1 + downsamplings + j}.body.{k}"] = f"{content}.model.{j}.model.{k}"
            names[f"G.residuals.{j}.conv_{k + 1}"] = f"{decoder}.model.{j}.model.{k}.conv"
    names |= {f"G.up.{i}": f"dec.model.{2 + 2 * i}" for i in range(downsamplings)}
    names["G.rgb"] = f"dec.model.{1 + 2 * downsamplings}"
    return names | {f"mlp.{2 * i}": f"mlp.model.{i}.fc" for i in range(3)}


def munit_discriminator(layers: int, scales: int) -> dict[str, str]:
    """Modules of `MultiScale` -> modules of the official `MsImageDis`."""
    return {f"scales.{i}.{j}": f"cnns.{i}.{j}" for i in range(scales) for j in range(layers + 1)}


def unit_generator(downsamplings: int, residuals: int) -> dict[str, str]:
    """Modules of UNIT's `VAE`, nothing shared -> modules of the official `VAEGen`."""
    names = {f"E.{i}": f"enc.model.{i}" for i in range(1 + downsamplings)}
    for j in range(residuals):
        for k in range(2):
            block = f"model.{j}.model.{k}"
            names[f"E.{1 + downsamplings + j}.body.{k}"] = f"enc.model.{1 + downsamplings}.{block}"
            names[f"G.residuals.{j}.body.{k}"] = f"dec.model.0.{block}"
    names |= {f"G.up.{i}": f"dec.model.{2 + 2 * i}" for i in range(downsamplings)}
    return names | {"G.rgb": f"dec.model.{1 + 2 * downsamplings}"}


def resnet(residuals: int) -> dict[str, str]:
    """Modules of `ResNet` -> modules of CycleGAN's official generator (without dropout)."""
    names = {"down.0.conv": "model.1", "down.1.0": "model.4", "down.2.0": "model.7"}
    for j in range(residuals):
        names[f"residuals.{j}.body.0.conv"] = f"model.{10 + j}.conv_block.1"
        names[f"residuals.{j}.body.1.conv"] = f"model.{10 + j}.conv_block.5"
    up = 10 + residuals
    names |= {"up.0.0": f"model.{up}", "up.1.0": f"model.{up + 3}", "rgb.conv": f"model.{up + 7}"}
    return names


def patchgan(layers: int, model: str = "model") -> dict[str, str]:
    """Modules of `PatchGAN` -> modules of CycleGAN's, pix2pix's, BicycleGAN's discriminator."""
    names = {"0.0": f"{model}.0", f"{layers + 1}": f"{model}.{3 * layers + 2}"}
    for i in range(1, layers + 1):
        names |= {f"{i}.0": f"{model}.{3 * i - 1}", f"{i}.1": f"{model}.{3 * i}"}
    return names


def unet(levels: int) -> dict[str, str]:
    """Modules of `UNet` -> modules of pix2pix's generator, in which each level holds the next."""
    names = {"down.0.0": "model.model.0", "up.0.1": "model.model.3"}
    for i in range(1, levels):
        level = "model.model.1" + ".model.3" * (i - 1)
        up = 3 if i == levels - 1 else 5
        names |= {f"down.{i}.1": f"{level}.model.1", f"down.{i}.2": f"{level}.model.2"}
        names |= {f"up.{i}.1": f"{level}.model.{up}", f"up.{i}.2": f"{level}.model.{up + 1}"}
    return names


def bicyclegan_unet(levels: int) -> dict[str, str]:
    """Modules of `UNet` -> modules of BicycleGAN's official generator."""
    names = {"down.0.0": "model.down.0", "up.0.1": "model.up.1"}
    for i in range(1, levels):
        level = "model" + ".submodule" * i
        names |= {f"down.{i}.1": f"{level}.down.1", f"up.{i}.1": f"{level}.up.1"}
    return names


def bicyclegan_discriminator(layers: int) -> dict[str, str]:
    """Modules of `TwoScales` -> modules of BicycleGAN's official discriminators."""
    names = {"fine": patchgan(layers, "model_0"), "coarse": patchgan(layers, "model_1")}
    return {f"{scale}.{a}": b for scale, parts in names.items() for a, b in parts.items()}


def bicyclegan_encoder(blocks: int) -> dict[str, str]:
    """Modules of BicycleGAN's `Encoder` -> modules of the official one."""
    names = {"conv": "conv.0", "mu": "fc.0", "logvar": "fcVar.0"}
    for i in range(blocks):
        names[f"blocks.{i}.conv_1"] = f"conv.{i + 1}.conv.2"
        names[f"blocks.{i}.conv_2"] = f"conv.{i + 1}.conv.5.0"
        names[f"blocks.{i}.shortcut"] = f"conv.{i + 1}.shortcut.1"
    return names


def augmented_generator(residuals: int, conditional: bool) -> dict[str, str]:
    """Modules of Augmented CycleGAN's `Generator` -> modules of the official G_A_B or G_B_A."""

    def norm(ours: str, theirs: str) -> dict[str, str]:
        if conditional:
            return {f"{ours}.{part}": f"{theirs}.{part}_conv.0" for part in ("scale", "shift")}
        return augmented_norm(ours, theirs)

    up = 10 + residuals
    names = {"rgb": f"model.{up + 6}"}
    for i, place in enumerate((1, 4, 7, up, up + 3)):
        names[f"convs.{i}"] = f"model.{place}"
        names |= norm(f"norms.{i}", f"model.{place + 1}")
    for j in range(residuals):
        ours, theirs = f"residuals.{j}", f"model.{10 + j}.conv_block"
        names[f"{ours}.conv_1"] = f"{theirs}.1.module1" if conditional else f"{theirs}.1"
        names[f"{ours}.conv_2"] = f"{theirs}.4"
        names |= norm(f"{ours}.norm_1", f"{theirs}.1.module2") if conditional else {}
        names |= augmented_norm(f"{ours}.norm_2", f"{theirs}.5")
    return names


def augmented_norm(ours: str, theirs: str) -> dict[str, str]:
    """The two parameters of an affine norm, which the official code of Augmented CycleGAN wrote."""
    return {f"{ours}.weight": f"{theirs}.scale", f"{ours}.bias": f"{theirs}.shift"}


def augmented_encoder(layers: int) -> dict[str, str]:
    """Modules of Augmented CycleGAN's `Encoder` -> modules of the official E_B."""
    return {f"convs.{i}": f"conv_modules.{i}" for i in range(3 * layers + 1)} | {"mu": "enc_mu"}


def augmented_discriminator(blocks: int) -> dict[str, str]:
    """Modules of Augmented CycleGAN's D_A and D_B -> modules of the official ones."""
    names = {f"{i}": f"model.{i}" for i in range(3 * blocks)}
    for i in range(3, 3 * blocks, 3):
        names |= augmented_norm(f"{i}", f"model.{i}")
    return names


def translated(names: dict[str, str], ours: str) -> str:
    """The official name of our parameter or module `ours`, by the longest module in `names` that holds it."""
    parts = ours.split(".")
    for n in range(len(parts), 0, -1):
        module = ".".join(parts[:n])
        if module in names:
            return ".".join([names[module], *parts[n:]])
    raise KeyError(ours)


# Files ---------------------------------------------------------------------------------------------------------------


def read_pickle(path: Path) -> Any:
    """What a published `.pt` or `.pth` file holds, tensors in nested dictionaries, without running code of it.

    Raises `DataProblem` for a file that is not one, holds anything but tensors, or would unpack to more than it is.
    """
    import torch

    if not path.is_file():
        raise ConfigProblem(f"There is no file {path}: name a published weights file.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise DataProblem(
                        f"{path} is compressed inside, as published weights never are: it is refused."
                    )
        held = torch.load(path, map_location="cpu", weights_only=True)
    except DataProblem:
        raise
    except Exception as error:  # of a hostile file, anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataProblem(
            f"{path} is not a file of plain tensors, so it is not read ({reason[:120]})."
        ) from None
    for tensor in tensors_in(held):
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise DataProblem(f"{path} holds a tensor larger than its data: it is refused.")
    return held


def tensors_in(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Mapping):
        for value in held.values():
            yield from tensors_in(value)
    elif isinstance(held, Tensor):
        yield held


def munit(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The generators of an official MUNIT checkpoint (`gen_*.pt`): our tensors, and the `method` section they fit."""
    held = read_pickle(path)
    if (
        not isinstance(held, Mapping)
        or not {"a", "b"} <= held.keys()
        or "mlp.model.0.fc.weight" not in held["a"]
    ):
        raise DataProblem(
            f"{path} is not a generator checkpoint of MUNIT (gen_*.pt): name that file."
        )
    a = held["a"]
    first, mlp = a["enc_content.model.0.conv.weight"], a["mlp.model.0.fc.weight"]
    downsamplings = sum(f"enc_content.model.{i}.conv.weight" in a for i in range(1, 10))
    residuals = sum(f"dec.model.0.model.{j}.model.0.conv.weight" in a for j in range(100))
    settings = {
        "name": "munit",
        "dim": first.shape[0],
        "style_dim": mlp.shape[1],
        "mlp_dim": mlp.shape[0],
        "downsamplings": downsamplings,
        "residuals": residuals,
    }
    names = munit_generator(downsamplings, residuals)
    tensors = {}
    for ours, theirs in (("G_1", "a"), ("G_2", "b")):
        for name, value in held[theirs].items():
            if "running_" not in name:  # AdaIN's statistics, never used
                tensors[f"{ours}.{ours_of(names, name)}"] = value.float()
    return tensors, settings


def ours_of(names: Mapping[str, str], theirs: str) -> str:
    """Our name of an official parameter."""
    parts = theirs.split(".")
    back = {official: ours for ours, official in names.items()}
    for n in range(len(parts), 0, -1):
        if module := back.get(".".join(parts[:n])):
            return ".".join([module, *parts[n:]])
    raise DataProblem(
        f"The checkpoint holds an unknown parameter, {theirs}: it is of another version or method."
    )


def vgg16(path: Path) -> dict[str, Tensor]:
    """VGG-16's convolutions out of a published file: names `features.N` (ImageNet) or `convI_J` (Caffe)."""
    from unpaired.networks.vgg import BLOCKS

    held = read_pickle(path)
    names = [f"conv{i}_{j}" for i, block in enumerate(BLOCKS, 1) for j in range(1, len(block) + 1)]
    places = [
        n + j
        for n, size in ((0, 2), (5, 2), (10, 3), (17, 3), (24, 3))
        for j in range(0, 2 * size, 2)
    ]
    theirs = [f"features.{n}" for n in places] if "features.0.weight" in held else names
    try:
        return {
            f"{ours}.{kind}": held[f"{name}.{kind}"].float()
            for ours, name in zip(names, theirs, strict=True)
            for kind in ("weight", "bias")
        }
    except (KeyError, TypeError, AttributeError):
        raise DataProblem(
            f"{path} does not hold VGG-16 (features.0.weight ... or conv1_1.weight ...)."
        ) from None
