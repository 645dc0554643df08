"""Names of the official implementations, and the way from their checkpoints to ours.

Only names and shapes of the published files are used here; the networks are ours.
"""

from __future__ import annotations


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


def translated(names: dict[str, str], ours: str) -> str:
    """The official name of our parameter or module `ours`, by the longest module in `names` that holds it."""
    parts = ours.split(".")
    for n in range(len(parts), 0, -1):
        module = ".".join(parts[:n])
        if module in names:
            return ".".join([names[module], *parts[n:]])
    raise KeyError(ours)
