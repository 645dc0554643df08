"""`unpaired export`: a model as ONNX files, with the style as an input, for programs without torch.

    translate.onnx          image (B, C, H, W), style (B, n) -> translation (B, C, H, W)
    style-of-image.onnx     image (B, C, h, w), of the training size -> style (B, n)
    style-of-noise.onnx     noise (B, m), standard normal -> style (B, n)
    export.json             which file for which domain, and what goes in and out
    example.py              translates an image by these, with numpy, pillow and onnxruntime alone

Images are fp32 in [-1, 1]. B is free, and so are H and W in multiples of `stride`. Where domains have networks of their
own each has its file, `translate-from-a-to-b.onnx`; where one network serves several there is one. A method without
styles has no input `style`; where random styles are the noise itself there is no `style-of-noise.onnx`.

Each file is run by onnxruntime and compared with the model before it is written.
"""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

import unpaired
from unpaired import progress
from unpaired.checkpoint import write_atomic
from unpaired.data.intake import escape, placed
from unpaired.errors import ConfigProblem, Problem
from unpaired.method import Method
from unpaired.translator import Translator, file_names

FORMAT = "unpaired export 1"
OPSET = 20
EXAMPLE = Path(__file__).with_name("example.py")
FAR = 1e-3  # of the largest number: a file that differs from the model by more is not written
Way = tuple[int, int]  # source and target
K = TypeVar("K", int, Way)


class Translation(nn.Module):
    """Images of domain `source` in domain `target`."""

    def __init__(self, method: Method, source: int, target: int) -> None:
        super().__init__()
        self.method, self.source, self.target = method, source, target

    def forward(self, image: Tensor, style: Tensor | None = None) -> Tensor:
        return self.method.translate(image, self.source, self.target, style)


class Style(nn.Module):
    """What a verb of the method, `map_latent` or `encode_style`, makes of its input for a domain."""

    def __init__(self, method: Method, verb: str, target: int) -> None:
        super().__init__()
        self.method, self.verb, self.target = method, verb, target

    def forward(self, given: Tensor) -> Tensor:
        return getattr(self.method, self.verb)(given, self.target)


class Graph(NamedTuple):
    """A file to be: an input of each kind, as an example, with its sides that are free; and other inputs."""

    network: nn.Module
    inputs: Mapping[str, tuple[Tensor, Mapping[int, Any]]]
    others: Sequence[Tensor]
    output: str


def export(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    say: Callable[[str], None] = progress.say,
) -> Path:
    """Writes the files to `out`, by default RUN/export, or for a model file model-export beside it.

    Returns the path of export.json, which is written last; files of an earlier export there are deleted first. Raises
    `ConfigProblem` without the extra `export`, and for a method that torch cannot export; `Problem` where what came out
    differs from the model.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigProblem(
            f"`unpaired export` needs {error.name}, of the extra `export`: in the checkout, pip install -c "
            "constraints.txt -e '.[export]'."
        ) from None
    model = Path(model)
    t = Translator.load(model, device="cpu")
    own = model / "export" if model.is_dir() else model.with_name(f"{model.stem}-export")
    folder = Path(out or own)
    listing = placed(folder / "export.json")
    say(f"Looking at the networks of {escape(model)}.")
    about, graphs = plan(t)
    say(f"Files to make, which takes some seconds each: {', '.join(map(escape, graphs))}")
    clear(listing)
    for name, graph in graphs.items():
        data, difference = written(graph, about)
        write_atomic(folder / name, data)
        say(
            f"{escape(folder / name)}  {len(data) / 1e6:.1f} MB, within {difference:.0e} of the model"
        )
    if not (example := folder / EXAMPLE.name).exists():  # it may have been worked on
        write_atomic(example, EXAMPLE.read_bytes())
    write_atomic(listing, json.dumps(about, indent=2).encode())
    return listing


def clear(listing: Path) -> None:
    """Deletes an earlier export.json, and then the files that it names: they belong together."""
    try:
        about = json.loads(listing.read_bytes())
        if about["format"] != FORMAT:
            return
        files = {file for found in about["translate"].values() for file in found.values()}
        for of in filter(None, about["styles"].values()):
            files |= {of["of_noise"], of["of_image"]} - {None}
        listing.unlink()
        for file in files:
            if Path(file).suffix == ".onnx" and Path(file).name == file:
                (listing.parent / file).unlink(missing_ok=True)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return  # not one of ours


# What there is to export ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def plan(t: Translator) -> tuple[dict[str, Any], dict[str, Graph]]:
    """What export.json says, and the graphs by the files that it names."""
    ways = directions(t.method)
    kinds = {target: kinds for (_, target), kinds in sorted(ways.items())}
    codes = {target: style(t, target, of) for target, of in kinds.items()}
    translate, graphs = translations(t, ways, codes)
    styles, others = style_sources(t, kinds, codes)
    about = {
        "format": FORMAT,
        "unpaired": unpaired.__version__,
        "method": t.run.method.name,
        "step": t.step,
        "domains": list(t.domains),
        "channels": t.run.data.channels,
        "size": list(t.run.data.hw),
        "stride": t.method.stride,
        "translate": translate,
        "styles": styles,
    }
    return about, graphs | others


def directions(method: Method) -> dict[Way, frozenset[str]]:
    """The ways to say a style in each direction that the method has."""
    found = {}
    domains = range(len(method.domains))
    for source, target in itertools.product(domains, repeat=2):
        with suppress(ConfigProblem):  # which it does not have
            found[source, target] = method.styles(source, target)
    return found


def translations(
    t: Translator, ways: Iterable[Way], codes: Mapping[int, Tensor | None]
) -> tuple[dict[str, dict[str, str]], dict[str, Graph]]:
    """The file for each source and target, and the graphs. What gives the same pictures is one file.

    From a domain to itself only where that is the file of another way, or the only way.
    """
    m, x, called = t.method, image(t, t.method.stride), file_names(t.domains)
    content = same({s: m.encode_content(x, s) for s in dict.fromkeys(s for s, _ in ways)})
    seen: dict[Way, Tensor] = {}
    for s, target in ways:
        if (way := (content[s], target)) not in seen:
            seen[way] = m.translate(x, *way, codes[target])
    groups: dict[Way, list[Way]] = defaultdict(list)
    for way, first in same({(s, target): seen[content[s], target] for s, target in ways}).items():
        groups[first].append(way)
    if len(t.domains) > 1:
        groups = {way: g for way, g in groups.items() if any(s != target for s, target in g)}
    files: dict[str, dict[str, str]] = {}
    graphs: dict[str, Graph] = {}
    for group in groups.values():
        stem = "translate"
        for word, side in (("from", 0), ("to", 1)):
            ends = {way[side] for way in group}
            if len(ends) == 1 and len(groups) > 1:
                stem += f"-{word}-{called[t.domains[ends.pop()]]}"
        file = f"{stem}.onnx"
        if file in graphs:
            file = f"{stem}_{len(graphs) + 1}.onnx"
        for s, target in group:
            files.setdefault(t.domains[s], {})[t.domains[target]] = file
        graphs[file] = translation(m, group[0], x, codes[group[0][1]])
    return files, graphs


def translation(m: Method, way: Way, x: Tensor, code: Tensor | None) -> Graph:
    """Two images of two sides that are not alike, at least two strides each; and one as in training."""
    batch, k = Dim("batch", min=1), m.stride
    height, width = (max(2 * k, side) for side in x.shape[2:])
    width += k if width != height + k else 2 * k
    free: dict[int, Any] = {0: batch}
    for i, side in ((2, Dim("height", min=1)), (3, Dim("width", min=1))):
        free[i] = side if k == 1 else k * side
    generator = torch.Generator().manual_seed(0)
    two = torch.rand(2, x.shape[1], height, width, generator=generator) * 2 - 1
    inputs = {"image": (two, free)}
    if code is not None:
        inputs["style"] = (torch.cat([code, -code]), {0: batch})
    others = [x] if code is None else [x, code]
    return Graph(Translation(m, *way), inputs, others, "translation")


def style_sources(
    t: Translator, kinds: Mapping[int, frozenset[str]], codes: Mapping[int, Tensor | None]
) -> tuple[dict[str, dict[str, Any] | None], dict[str, Graph]]:
    """What a style of each target may come from, None where there are no styles, and the graphs."""
    m, x, called = t.method, image(t), file_names(t.domains)
    found: dict[str, dict[str, Any] | None] = {}
    for target, of in kinds.items():
        found[t.domains[target]] = None
        if (code := codes[target]) is not None:
            found[t.domains[target]] = {
                "numbers": code.shape[1],
                "noise": m.latent_dim(target) if "latent" in of else 0,
                "of_noise": None,
                "of_image": None,
                "mean": mean(m, target) if "mean" in of else None,
            }
    noise = {target: noise_of(m, target) for target, of in kinds.items() if "latent" in of}
    images = {target: x for target, of in kinds.items() if "reference" in of}
    graphs = {}
    for kind, name, verb, given in (
        ("of_noise", "noise", m.map_latent, noise),
        ("of_image", "image", m.encode_style, images),
    ):
        made = {target: verb(value, target) for target, value in given.items()}
        mapped = {target: y for target, y in made.items() if y is not given[target]}
        firsts = same(mapped)
        for target, first in firsts.items():
            one = len(set(firsts.values())) == 1
            file = f"style-of-{name}{'' if one else f'-{called[t.domains[first]]}'}.onnx"
            entry = found[t.domains[target]]
            assert entry is not None
            entry[kind] = file
            if first == target:
                value, batch = given[target], {0: Dim("batch", min=1)}
                two = torch.cat([value, value.flip(-1)])
                inputs = {name: (two, batch)}
                graphs[file] = Graph(Style(m, verb.__name__, target), inputs, [value], "style")
    return found, graphs


def image(t: Translator, stride: int = 1) -> Tensor:
    """(1, C, H, W) of noise, as large as images in training, or the next multiple of a stride."""
    h, w = (stride * -(-side // stride) for side in t.run.data.hw)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, t.run.data.channels, h, w, generator=generator) * 2 - 1


def noise_of(m: Method, target: int) -> Tensor:
    """(1, latent_dim), from far out to far out: DSM's spline ends at 5."""
    if not (dim := m.latent_dim(target)):
        raise ConfigProblem(
            f"{m.name} cannot be exported: its random styles are not made of noise: give it latent_dim and map_latent."
        )
    return torch.linspace(-6, 6, dim)[None]


def style(t: Translator, target: int, kinds: frozenset[str]) -> Tensor | None:
    """An example (1, n), the same for all domains; None for a method without styles."""
    m = t.method
    if not kinds:
        return None
    if "latent" in kinds:
        code = m.map_latent(noise_of(m, target), target)
    elif "reference" in kinds:
        code = m.encode_style(image(t), target)
    else:
        code = m.sample_style(1, target, torch.Generator())
    return torch.linspace(-1, 1, code.shape[1])[None]


def mean(m: Method, target: int) -> list[float] | None:
    """The mean style of a domain, where it has one."""
    try:
        return m.sample_style(1, target, torch.Generator())[0].tolist()
    except ConfigProblem:
        return None


def same(tensors: Mapping[K, Tensor]) -> dict[K, K]:
    """For each the first that is equal to it."""
    return {
        key: next(k for k, v in tensors.items() if v.shape == value.shape and torch.equal(v, value))
        for key, value in tensors.items()
    }


# Making and comparing the files --------------------------------------------------------------------------------------


def written(graph: Graph, about: Mapping[str, Any]) -> tuple[bytes, float]:
    """The file, and by how much its output differs from the network's, of the largest number there."""
    import onnx
    import onnxruntime

    examples, free = zip(*graph.inputs.values(), strict=True)
    network = graph.network.eval().requires_grad_(False)
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                examples,
                dynamo=True,
                dynamic_shapes=free,
                input_names=list(graph.inputs),
                output_names=[graph.output],
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ConfigProblem(
            f"{about['method']} cannot be exported ({reason}): its networks have to be such as torch.export follows."
        ) from error
    for given in proto.graph.input:
        sides = given.type.tensor_type.shape.dim
        for i in graph.inputs[given.name][1]:
            if not sides[i].dim_param:
                raise ConfigProblem(
                    f"{about['method']} cannot be exported: side {i} of {given.name} came out fixed at "
                    f"{sides[i].dim_value}; its networks may have asked for len(x), in place of x.shape[0]."
                )
    facts = {"unpaired": about["unpaired"], "method": about["method"], "step": str(about["step"])}
    onnx.helper.set_model_props(proto, facts)
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data)
    difference = 0.0
    for inputs in (examples, graph.others):
        with torch.inference_mode():
            expected = network(*inputs).numpy()
        given = {name: x.numpy() for name, x in zip(graph.inputs, inputs, strict=True)}
        found = session.run(None, given)[0]
        largest = max(np.abs(expected).max(), 1)
        difference = float(
            np.maximum(difference, np.abs(found - expected).max() / largest)
        )  # or NaN
    if not difference <= FAR:
        raise Problem(
            f"What was exported differs from the model, by {difference:.1g}, so it was not written: please report it, "
            "with your versions of torch, onnxscript and onnxruntime."
        )
    return data, difference


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch and onnxscript say of themselves."""
    logs = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
