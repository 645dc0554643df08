"""Official names of networks whose checkpoints are not imported: golden numbers alone need them."""


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
