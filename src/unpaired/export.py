"""`unpaired export`: a model as ONNX files, with the style as an input, for programs without torch.

    translate.onnx          image (B, C, H, W), style (B, n) -> translation (B, C, H, W)
    style-of-image.onnx     image (B, C, h, w), of the training size -> style (B, n)
    style-of-noise.onnx     noise (B, m), standard normal -> style (B, n)
    export.json             which file for which domain, and what goes in and out
    translate.py            an example: numpy, pillow, onnxruntime

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

import unpaired
from unpaired.checkpoint import write_atomic
from unpaired.data.intake import escape, placed
from unpaired.errors import ConfigProblem, Problem
from unpaired.method import Method
from unpaired.translator import Translator, file_names

FORMAT = "unpaired export 1"
OPSET = 20
EXAMPLE = Path(__file__).with_name("exported.py")
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
    """A file to be: an input of each kind, as an example, and its sides that are free."""

    network: nn.Module
    inputs: Mapping[str, tuple[Tensor, Mapping[int, Any]]]
    output: str


def export(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes the files of a run folder or a model.safetensors to `out`, by default `export` in or beside it.

    Returns the path of export.json, which is written last. Raises `ConfigProblem` without the extra `export`, and for a
    method that torch cannot export; `Problem` where what came out differs from the model.
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
    folder = Path(out) if out else (model if model.is_dir() else model.parent) / "export"
    listing = placed(folder / "export.json")
    about, graphs = plan(t)
    say(f"Files to make, which takes some seconds each: {', '.join(map(escape, graphs))}")
    for name, graph in graphs.items():
        data, difference = written(graph, about)
        write_atomic(folder / name, data)
        say(
            f"{escape(folder / name)}  {len(data) / 1e6:.1f} MB, within {difference:.0e} of the model"
        )
    write_atomic(folder / "translate.py", EXAMPLE.read_bytes())
    write_atomic(listing, json.dumps(about, indent=2, ensure_ascii=False).encode())
    return listing


# What there is to export ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def plan(t: Translator) -> tuple[dict[str, Any], dict[str, Graph]]:
    """What export.json says, and the graphs by the files that it names."""
    ways = directions(t.method)
    translate, graphs = translations(t, ways)
    styles, others = style_sources(t, ways)
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
    """The ways to say a style in each direction that the method has; to itself only where there is one domain."""
    found = {}
    n = len(method.domains)
    for source, target in itertools.product(range(n), repeat=2):
        if source != target or n == 1:
            with suppress(ConfigProblem):  # which it does not have
                found[source, target] = method.styles(source, target)
    return found


def translations(
    t: Translator, ways: Mapping[Way, frozenset[str]]
) -> tuple[dict[str, dict[str, str]], dict[str, Graph]]:
    """The file for each source and target, and the graphs. What gives the same pictures is one file."""
    m, names = t.method, list(file_names(t.domains).values())
    x = image(t, m.stride)
    styles = {target: style(t, target, kinds) for (_, target), kinds in ways.items()}
    content = same({s: m.encode_content(x, s) for s in dict.fromkeys(s for s, _ in ways)})
    seen: dict[Way, Tensor] = {}
    for s, target in ways:
        if (way := (content[s], target)) not in seen:
            seen[way] = m.translate(x, *way, styles[target])
    twins = same({(s, target): seen[content[s], target] for s, target in ways})
    files: dict[str, dict[str, str]] = {}
    graphs = {}
    for way, first in twins.items():
        alike = [w for w in twins if twins[w] == first]
        file = "translate"
        for word, side in (("from", 0), ("to", 1)):
            if len({w[side] for w in alike}) == 1 < len({w[side] for w in twins}):
                file += f"-{word}-{names[way[side]]}"
        files.setdefault(t.domains[way[0]], {})[t.domains[way[1]]] = f"{file}.onnx"
        if way == first:
            graphs[f"{file}.onnx"] = translation(m, way, x, styles[way[1]])
    return files, graphs


def translation(m: Method, way: Way, x: Tensor, code: Tensor | None) -> Graph:
    """Example images of two sides that are not alike, at least two strides each."""
    batch, k = Dim("batch", min=1), m.stride
    sides = [max(2 * k, side) + extra for side, extra in zip(x.shape[2:], (0, k), strict=True)]
    free: dict[int, Any] = {0: batch}
    for i, name in ((2, "height"), (3, "width")):
        free[i] = k * Dim(name, min=2) if k > 1 else Dim(name, min=2)
    two = torch.rand(2, x.shape[1], *sides, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inputs = {"image": (two, free)}
    if code is not None:
        inputs["style"] = (torch.cat([code, -code]), {0: batch})
    return Graph(Translation(m, *way), inputs, "translation")


def style_sources(
    t: Translator, ways: Mapping[Way, frozenset[str]]
) -> tuple[dict[str, dict[str, Any] | None], dict[str, Graph]]:
    """What a style of each target may come from, None where there are no styles, and the graphs."""
    m, x, names = t.method, image(t), list(file_names(t.domains).values())
    kinds = {target: kinds for (_, target), kinds in ways.items()}
    found: dict[str, dict[str, Any] | None] = {}
    for target, of in sorted(kinds.items()):
        code = style(t, target, of)
        found[t.domains[target]] = (
            None
            if code is None
            else {
                "numbers": code.shape[1],
                "noise": m.latent_dim(target) if "latent" in of else 0,
                "of_noise": None,
                "of_image": None,
                "mean": mean(m, target) if "mean" in of else None,
            }
        )
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
            file = f"style-of-{name}{'' if one else f'-{names[first]}'}.onnx"
            entry = found[t.domains[target]]
            assert entry is not None
            entry[kind] = file
            if first == target:
                batch = {0: Dim("batch", min=1)}
                two = torch.cat([given[target], given[target].flip(-1)])
                graphs[file] = Graph(Style(m, verb.__name__, target), {name: (two, batch)}, "style")
    return found, graphs


def image(t: Translator, stride: int = 1) -> Tensor:
    """Noise, as large as images in training, or the next multiple of a stride."""
    h, w = (stride * -(-side // stride) for side in t.run.data.hw)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, t.run.data.channels, h, w, generator=generator) * 2 - 1


def noise_of(m: Method, target: int) -> Tensor:
    return torch.linspace(-1, 1, m.latent_dim(target))[None]


def style(t: Translator, target: int, kinds: frozenset[str]) -> Tensor | None:
    """An example (1, n), the same for all domains; None for a method without styles."""
    m = t.method
    if not kinds:
        return None
    code = (
        m.map_latent(noise_of(m, target), target)
        if "latent" in kinds
        else m.encode_style(image(t), target)
    )
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
    for inputs in (examples, [x[:1] for x in examples]):
        with torch.inference_mode():
            expected = network(*inputs).numpy()
        given = {name: x.numpy() for name, x in zip(graph.inputs, inputs, strict=True)}
        found = session.run(None, given)[0]
        largest = np.abs(expected).max()
        difference = max(difference, float(np.abs(found - expected).max() / max(largest, 1)))
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
