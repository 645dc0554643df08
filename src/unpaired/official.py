"""Names of the official implementations, and the way from their checkpoints to ours.

Only names and shapes of the published files are used here; the networks are ours.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unpaired.errors import ConfigProblem, DataProblem
from unpaired.method import Method


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


def stargan_v2_generator(halvings: int) -> dict[str, str]:
    """Modules of StarGAN v2's `Generator` -> modules of the official one (without its high-pass branch)."""
    names = {"encoder.0": "from_rgb"}
    for i in range(halvings + 2):
        names |= stargan_v2_block(f"encoder.{i + 1}", f"encode.{i}")
        names |= stargan_v2_block(f"decoder.blocks.{i}", f"decode.{i}")
    return names | {f"decoder.rgb.{i}": f"to_rgb.{i}" for i in (0, 2)}


def stargan_v2_block(ours: str, theirs: str) -> dict[str, str]:
    parts = {"conv_1": "conv1", "conv_2": "conv2", "norm_1": "norm1", "norm_2": "norm2"}
    parts |= {"style_1": "norm1.fc", "style_2": "norm2.fc", "skip": "conv1x1"}
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}


def stargan_v2_trunk(halvings: int, theirs: str) -> dict[str, str]:
    names = {"trunk.0": f"{theirs}.0", f"trunk.{halvings + 4}": f"{theirs}.{halvings + 4}"}
    for i in range(1, halvings + 3):
        names |= stargan_v2_block(f"trunk.{i}", f"{theirs}.{i}")
    return names


def stargan_v2_mapping() -> dict[str, str]:
    """Modules of StarGAN v2's `Mapping` -> modules of the official mapping network."""
    return {"shared": "shared", "heads": "unshared"}


def stargan_v2_style_encoder(halvings: int) -> dict[str, str]:
    """Modules of StarGAN v2's `StyleEncoder` -> modules of the official one."""
    return stargan_v2_trunk(halvings, "shared") | {"heads": "unshared"}


def stargan_v2_discriminator(halvings: int) -> dict[str, str]:
    """Modules of StarGAN v2's `Discriminator` -> modules of the official one."""
    return stargan_v2_trunk(halvings, "main") | {"heads": f"main.{halvings + 6}"}


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
        whole = all(
            x.untyped_storage().nbytes() >= x.numel() * x.element_size() for x in tensors_in(held)
        )
    except DataProblem:
        raise
    except Exception as error:  # of a hostile file, anything
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise DataProblem(
            f"{path} is not a file of plain tensors, so it is not read ({reason[:120]})."
        ) from None
    if not whole:
        raise DataProblem(f"{path} holds a tensor larger than its data: it is refused.")
    return held


def read_weights(path: Path, said: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a published `.pt` or `.pth`, by name; `said` names it in errors.

    Raises `ConfigProblem` where there is no such file, `DataProblem` for one that is neither.
    """
    if path.suffix != ".safetensors" and path.is_file():
        held = read_pickle(path)
        if not isinstance(held, Mapping):
            raise DataProblem(f"{said}: {path} holds no tensors by name: name a file of weights.")
    else:
        try:
            held = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigProblem(
                f"{said}: {path} cannot be read as safetensors ({error}): correct the path."
            ) from None
    return {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}


def tensors_in(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Mapping):
        for value in held.values():
            yield from tensors_in(value)
    elif isinstance(held, Tensor):
        yield held


def output(path: Path) -> Path:
    """The file to write. Raises `ConfigProblem` for one by another extension: it may be the last of those to read."""
    if path.suffix != ".safetensors":
        raise ConfigProblem(
            f"{path} is to be written and does not end in .safetensors: name the file to write last, such as "
            "model.safetensors."
        )
    return path


class Imported(NamedTuple):
    """What published files hold: our tensors, and the sections `method` and `data` of a config that they fit."""

    tensors: dict[str, Tensor]
    method: dict[str, Any]
    data: dict[str, Any] = {}
    domains: int = 2


def read(method: str, files: Sequence[Path]) -> Imported:
    """The networks in an official checkpoint of `method`: its files, or the folder that holds them.

    Raises `ConfigProblem` for files that are missing, `DataProblem` for one that is not what it should be.
    """
    try:
        return READERS[method](files)
    except (KeyError, IndexError, RuntimeError) as error:
        raise DataProblem(
            f"{' '.join(map(str, files))} does not hold what a checkpoint of {method} does "
            f"({str(error).splitlines()[0]}): it is of another version or method."
        ) from None


def check(imported: Imported, method: Method, files: Sequence[Path]) -> None:
    """Refuses tensors that are not all of the networks that translate, or of another shape than in `method`."""
    own = method.state_dict()
    nets = {*method.averaged.split(), *(name.split(".")[0] for name in imported.tensors)}
    wanted = {name for name in own if name.split(".")[0] in nets}
    odd = sorted(wanted ^ imported.tensors.keys()) or sorted(
        name for name in wanted if own[name].shape != imported.tensors[name].shape
    )
    if odd:
        raise DataProblem(
            f"{' '.join(map(str, files))} does not fit {method.name} of this tool ({', '.join(odd[:3])}): it is of "
            "another version or was trained with other networks."
        )


def munit(files: Sequence[Path]) -> Imported:
    """The generators of an official MUNIT checkpoint, gen_*.pt."""
    path = only(files, "munit", "gen_*.pt")
    held = read_pickle(path)
    if (
        not isinstance(held, Mapping)
        or not {"a", "b"} <= held.keys()
        or not isinstance(held["a"], Mapping)
        or "mlp.model.0.fc.weight" not in held["a"]
    ):
        raise DataProblem(
            f"{path} is not a generator checkpoint of MUNIT (gen_*.pt): name that file."
        )
    a, b = plain(path, held["a"]), plain(path, held["b"])
    first, mlp = a["enc_content.model.0.conv.weight"], a["mlp.model.0.fc.weight"]
    downsamplings = count(a, "enc_content.model.{}.conv.weight", 1)
    residuals = count(a, "dec.model.0.model.{}.model.0.conv.weight")
    settings = {
        "name": "munit",
        "dim": first.shape[0],
        "style_dim": mlp.shape[1],
        "mlp_dim": mlp.shape[0],
        "downsamplings": downsamplings,
        "residuals": residuals,
    }
    names = munit_generator(downsamplings, residuals)
    tensors = renamed("G_1", a, names) | renamed("G_2", b, names)
    return Imported(tensors, settings)


def cyclegan(files: Sequence[Path]) -> Imported:
    """latest_net_G_A.pth and latest_net_G_B.pth, or one generator alone, which translates there and not back."""
    parts = networks(
        files,
        {
            "G_A": ("CycleGAN's generator", "model.10.conv_block.1.weight"),
            "G_B": ("CycleGAN's generator", "model.10.conv_block.1.weight"),
            "D_A": ("CycleGAN's discriminator", "model.11.weight"),
            "D_B": ("CycleGAN's discriminator", "model.11.weight"),
        },
        "G_A",
    )
    G = parts["G_A"]
    residuals = count(G, "model.{}.conv_block.1.weight", 10)
    settings = {
        "name": "cyclegan",
        "dim": G["model.1.weight"].shape[0],
        "residuals": residuals,
        "one_way": "G_B" not in parts,
    }
    tensors: dict[str, Tensor] = {}
    for ours, theirs in {"G": "G_A", "F": "G_B"}.items():
        tensors |= renamed(ours, parts.get(theirs, {}), resnet(residuals))
    for ours, theirs in {"D_Y": "D_A", "D_X": "D_B"}.items():
        if D := parts.get(theirs):
            settings |= {"d_dim": D["model.0.weight"].shape[0]}
            tensors |= renamed(ours, D, patchgan(layers=3))
    return Imported(tensors, settings, channels(G["model.1.weight"]))


def pix2pix(files: Sequence[Path]) -> Imported:
    """latest_net_G.pth, a U-Net with BatchNorm, and latest_net_D.pth."""
    parts = networks(
        files,
        {
            "G": ("pix2pix's U-Net", "model.model.0.weight"),
            "D": ("pix2pix's discriminator", "model.11.weight"),
        },
        "G",
    )
    G, levels = parts["G"], 1
    while f"model.model.1{'.model.3' * (levels - 1)}.model.1.weight" in G:
        levels += 1
    settings = {"name": "pix2pix", "dim": G["model.model.0.weight"].shape[0], "levels": levels}
    tensors = renamed("G", G, unet(levels), statistics=True)
    if D := parts.get("D"):
        settings |= {"d_dim": D["model.0.weight"].shape[0]}
        tensors |= renamed("D", D, patchgan(layers=3), statistics=True)
    return Imported(tensors, settings, channels(G["model.model.0.weight"]))


def bicyclegan(files: Sequence[Path]) -> Imported:
    """latest_net_G.pth and latest_net_E.pth, and the discriminators latest_net_D.pth and latest_net_D2.pth.

    A generator of grey inputs (edges) and coloured outputs becomes one of coloured inputs, which it sees as grey.
    """
    parts = networks(
        files,
        {
            "G": ("BicycleGAN's generator", "model.down.0.weight"),
            "E": ("BicycleGAN's encoder", "fcVar.0.weight"),
            "D": ("BicycleGAN's discriminator", "model_0.0.weight"),
            "D2": ("BicycleGAN's discriminator", "model_0.0.weight"),
        },
        "G",
        "E",
    )
    G, E, first = parts["G"], parts["E"], "model.down.0.weight"
    levels = 1 + count(G, "model{}.down.1.weight", 1, repeated=".submodule")
    z_dim, blocks = E["fc.0.weight"].shape[0], count(E, "conv.{}.shortcut.1.weight", 1)
    if G[first].shape[1] - z_dim == 1 and E["conv.0.weight"].shape[1] == 3:
        grey, z = G[first].split((1, z_dim), 1)
        rgb = grey * grey.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        G = {**G, first: torch.cat([rgb, z], 1)}
    settings = {
        "name": "bicyclegan",
        "dim": G[first].shape[0],
        "levels": levels,
        "z_dim": z_dim,
        "e_dim": E["conv.0.weight"].shape[0],
        "e_blocks": blocks,
    }
    tensors = renamed("G", G, bicyclegan_unet(levels))
    tensors |= renamed("E", E, bicyclegan_encoder(blocks))
    for ours, theirs in {"D_vae": "D", "D_lr": "D2"}.items():
        if D := parts.get(theirs):
            layers = 3 if "model_0.11.weight" in D else 2
            settings |= {"d_dim": D["model_0.0.weight"].shape[0], "d_layers": layers}
            settings |= {
                "conditional": D["model_0.0.weight"].shape[1] > G["model.up.1.weight"].shape[1]
            }
            tensors |= renamed(ours, D, bicyclegan_discriminator(layers))
    return Imported(tensors, settings, channels(G["model.up.1.weight"]))


def stargan_v2(files: Sequence[Path]) -> Imported:
    """*_nets_ema.ckpt, the averaged networks, or *_nets.ckpt, which holds the discriminator besides."""
    path = only(files, "stargan_v2", "100000_nets_ema.ckpt")
    held = read_pickle(path)
    names = ("generator", "mapping_network", "style_encoder")
    if not isinstance(held, Mapping) or not set(names) <= held.keys():
        raise DataProblem(
            f"{path} is not a checkpoint of StarGAN v2 (100000_nets_ema.ckpt): name that file."
        )
    G, F, E = (plain(path, held[name]) for name in names)
    halvings = count(E, "shared.{}.conv1.weight", 1) - 2
    if count(G, "encode.{}.conv1.weight") == halvings + 3:
        raise DataProblem(
            f"{path} was trained with the high-pass skip for faces (w_hpf=1), which this tool leaves out: "
            "name a checkpoint without it, such as that of AFHQ."
        )
    first, noise = G["from_rgb.weight"], F["shared.0.weight"]
    settings = {
        "name": "stargan_v2",
        "latent_dim": noise.shape[1],
        "style_dim": E["unshared.0.weight"].shape[0],
        "mlp_dim": noise.shape[0],
        "width": first.shape[0] * 16 * 2**halvings,
        "max_dim": E["unshared.0.weight"].shape[1],
    }
    tensors = renamed("G", G, stargan_v2_generator(halvings))
    tensors |= renamed("F", F, stargan_v2_mapping())
    tensors |= renamed("E", E, stargan_v2_style_encoder(halvings))
    if "discriminator" in held:
        D = plain(path, held["discriminator"])
        tensors |= renamed("D", D, stargan_v2_discriminator(halvings))
    domains = count(E, "unshared.{}.weight")
    return Imported(tensors, settings, channels(first) | {"size": 16 * 2**halvings}, domains)


READERS: Mapping[str, Callable[[Sequence[Path]], Imported]] = {
    "munit": munit,
    "cyclegan": cyclegan,
    "pix2pix": pix2pix,
    "bicyclegan": bicyclegan,
    "stargan_v2": stargan_v2,
}


def only(files: Sequence[Path], method: str, name: str) -> Path:
    if len(files) != 1:
        raise ConfigProblem(f"{method} keeps all in one file, {name}: name that one.")
    return files[0]


def networks(
    files: Sequence[Path], known: Mapping[str, tuple[str, str]], *needed: str
) -> dict[str, dict[str, Tensor]]:
    """The networks of latest_net_<part>.pth by part; a file of another name is the next part that is free.

    `known`: what each part is, and a parameter that tells it.
    """
    listed = [
        f
        for file in files
        for f in (sorted(file.glob("latest_net_*.pth")) if file.is_dir() else [file])
    ]
    parts: dict[str, dict[str, Tensor]] = {}
    for path in listed:
        free = [part for part in known if part not in parts]
        said = path.stem.rpartition("net_")[2]
        named = [part for part in free if part == said or part.startswith(f"{said}_")]  # G: G_A
        if not free:
            names = ", ".join(f"latest_net_{part}.pth" for part in known)
            raise ConfigProblem(f"{path} is one file too many: there are only {names}.")
        part = (named or free)[0]
        what, tell = known[part]
        held = plain(path, read_pickle(path))
        if tell not in held:
            raise DataProblem(
                f"{path} is not {what} (there is no {tell}): name latest_net_{part}.pth."
            )
        parts[part] = held
    if missing := [part for part in needed if part not in parts]:
        where = ", ".join(map(str, files))
        raise ConfigProblem(
            f"{where}: there is no latest_net_{missing[0]}.pth, which is needed: name it too."
        )
    return parts


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def plain(path: Path, held: Any) -> dict[str, Tensor]:
    """Parameters by name, without the prefix that DataParallel leaves."""
    if not isinstance(held, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in held.items()
    ):
        raise DataProblem(
            f"{path} is not a file of one network's parameters: name a published one."
        )
    return {name.removeprefix("module."): value for name, value in held.items()}


def count(held: Mapping[str, Tensor], name: str, first: int = 0, repeated: str = "") -> int:
    """How many of `name` there are, numbered from `first`; or with so many times `repeated`."""
    n = first
    while name.format(n if not repeated else repeated * n) in held:
        n += 1
    return n - first


def channels(weight: Tensor) -> dict[str, Any]:
    """The section `data` for a network whose first, or last, weight is this (out or in, channels, k, k)."""
    return {"channels": weight.shape[1]}


def renamed(
    net: str, held: Mapping[str, Tensor], names: Mapping[str, str], statistics: bool = False
) -> dict[str, Tensor]:
    """Official parameters under our names. `statistics`: with those of BatchNorm; other norms never use theirs."""
    back = {official: ours for ours, official in names.items()}
    tensors = {}
    for name, value in held.items():
        if statistics or not name.endswith(STATISTICS):
            ours = f"{net}.{ours_of(back, name)}"
            tensors[ours] = value.float() if value.is_floating_point() else value
            if name.endswith("running_var"):  # old files do not count the batches
                tensors.setdefault(
                    ours.replace("running_var", "num_batches_tracked"), torch.tensor(0)
                )
    return tensors


def ours_of(back: Mapping[str, str], theirs: str) -> str:
    """Our name of an official parameter; `back`: official modules to ours."""
    parts = theirs.split(".")
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
    held = held if isinstance(held, Mapping) else {}
    theirs = [f"features.{n}" for n in places] if "features.0.weight" in held else names
    try:
        return {
            f"{ours}.{kind}": held[f"{name}.{kind}"].float()
            for ours, name in zip(names, theirs, strict=True)
            for kind in ("weight", "bias")
        }
    except (KeyError, AttributeError):
        raise DataProblem(
            f"{path} does not hold VGG-16 (features.0.weight ... or conv1_1.weight ...)."
        ) from None
