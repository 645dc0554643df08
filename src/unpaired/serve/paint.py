"""The worker that holds the models."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unpaired.data.scenes import DOMAINS, Scenes
from unpaired.errors import ConfigProblem, OutOfMemory, Problem
from unpaired.heap import keep_freed
from unpaired.pictures import png, to_images
from unpaired.serve.limits import EXAMPLES, LIMITS, Limits
from unpaired.serve.messages import Header, Message, channel, say, work
from unpaired.translator import SPREAD, NotFinite, Translator, random_styles


class Refused(Exception):
    """A code of docs/serve.md and one sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Painter:
    """Answers the questions of the server by the models, which have names."""

    def __init__(self, models: Mapping[str, Translator], limits: Limits = LIMITS) -> None:
        self.models, self.limits = models, limits
        self.spreads: dict[tuple[str, int], Header] = {}
        self.verbs: dict[str, Callable[[Translator, Header, list[bytes]], Message]] = {
            "translate": self.translate,
            "styles": self.styles,
            "example": self.example,
        }

    def handle(self, ask: Header, blobs: list[bytes]) -> Message:
        try:
            return self.verbs[ask["verb"]](self.models[ask["model"]], ask, blobs)
        except Refused as refused:
            return {"refused": refused.code, "message": str(refused)}, []
        except NotFinite as problem:
            return {"refused": "model_nonfinite", "message": str(problem)}, []
        except Problem as problem:
            return {"refused": "bad_request", "message": str(problem)}, []
        except torch.AcceleratorError:
            raise  # of a GPU in disorder, by which nothing works in this process any more
        except Exception as error:
            memory = isinstance(error, MemoryError) or "memory" in str(error)
            traceback.print_exc()
            return {"refused": "out_of_memory" if memory else "internal", "message": ""}, []

    def translate(self, t: Translator, ask: Header, blobs: list[bytes]) -> Message:
        image, *references = map(pixels, ask["shapes"], blobs)
        source, target = t.direction(ask["to"], ask["source"])
        codes = self.codes(t, ask, source, target, references)
        least = ask["size"] or min(t.run.data.hw)
        h, w = (round(side * least / min(image.shape[:2])) for side in image.shape[:2])
        if h * w > self.limits.work:
            raise Refused(
                "too_many_pixels",
                f"The image would be worked at {w} x {h} pixels, of {self.limits.work:,} that this server allows: "
                "choose a smaller size, or an image that is less long.",
            )
        n = 1 if codes is None else len(codes)
        if n * h * w > self.limits.output:
            raise Refused(
                "too_many_pixels",
                f"{n} results of {w} x {h} pixels are more than the {self.limits.output:,} pixels that this server "
                "allows: ask for fewer, or for a smaller size.",
            )
        x = t.prepare(image, ask["size"])
        results = t.render(x, source, target, codes)
        listed = [None] * n if codes is None else codes.float().flatten(1).tolist()
        shown = to_images(x)[0]
        answer = {
            "source": t.domains[source],
            "to": t.domains[target],
            "width": shown.width,
            "height": shown.height,
            "styles": listed,
        }
        return answer, [png(result) for result in results]

    def codes(
        self,
        t: Translator,
        ask: Header,
        source: int,
        target: int,
        references: list[np.ndarray],
    ) -> Tensor | None:
        """The styles that are asked for: given as numbers, of a reference, or random."""
        reference = references[0] if references else None
        ways = t.method.styles(source, target)
        name = t.run.method.name
        if ask["style"] is None:
            if reference is not None and "reference" not in ways:
                raise Refused(
                    "bad_request", f"{name} takes no reference image: leave `reference` out."
                )
            if reference is None and ways == {"reference"}:
                raise Refused(
                    "bad_request", f"{name} takes its style from an image: send `reference`."
                )
            return t.codes(target, source, ask["styles"], ask["seed"], reference)
        if not ways:
            raise Refused("bad_style", f"{name} has no styles: leave `style` out.")
        shape = like(t, target, source).shape[1:]
        given = torch.tensor(ask["style"], dtype=torch.float32)
        if given.shape[1] != shape.numel():
            raise Refused(
                "bad_style",
                f"A style of this model has {shape.numel()} numbers, not {given.shape[1]}.",
            )
        return given.reshape(len(given), *shape).to(t.device)

    def styles(self, t: Translator, ask: Header, blobs: list[bytes]) -> Message:
        """Mean and standard deviation of each component of random styles of a domain."""
        target = t.index(ask["to"])
        key = ask["model"], target
        if key not in self.spreads:
            if not t.method.latent_dim(target):
                raise Refused("no_random_styles", f"{t.run.method.name} has no random styles.")
            with torch.inference_mode():
                generator = torch.Generator().manual_seed(0)
                drawn = t.method.sample_style(SPREAD, target, generator).float().flatten(1)
                std, mean = torch.std_mean(drawn, 0)
            about = {"components": len(mean), "mean": mean.tolist(), "std": std.tolist()}
            self.spreads[key] = {"to": ask["to"], **about}
        return self.spreads[key], []

    def example(self, t: Translator, ask: Header, blobs: list[bytes]) -> Message:
        """A built-in scene that the model was not trained on."""
        if ask["domain"] not in examples(t):
            raise Refused("bad_request", "There are examples of the built-in scenes alone.")
        scenes = Scenes(ask["domain"], t.run.data.hw, "test", count=EXAMPLES)
        return {}, [png(Image.fromarray(scenes[ask["index"]].image))]


def examples(t: Translator) -> list[str]:
    """The domains of built-in scenes that a model was trained on; none for one of other images."""
    domains = list(t.run.data.domains or DOMAINS)
    return domains if t.run.data.root == "scenes" and set(domains) <= set(DOMAINS) else []


@torch.inference_mode()
def like(t: Translator, target: int, source: int) -> Tensor:
    """Some style (1, ...) of a domain."""
    if t.method.latent_dim(target) or "reference" not in t.method.styles(source, target):
        return random_styles(t.method, 1, target, 0)
    h, w = t.run.data.hw  # a domain may lack the mean style that its method has
    return t.encode_style(np.zeros((h, w, 3), np.uint8), t.domains[target])


def pixels(shape: list[int], data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(shape)


def about(name: str, t: Translator) -> dict[str, Any]:
    """What the page and clients need to know of a model."""
    return {
        "name": name,
        "method": t.run.method.name,
        "step": t.step,
        "size": list(t.run.data.hw),
        "least": min(4 * t.method.stride, *t.run.data.hw),
        "channels": t.run.data.channels,
        "domains": list(t.domains),
        "examples": examples(t),
        "directions": directions(t),
    }


def directions(t: Translator) -> list[dict[str, list[str]]]:
    """Which domains can be translated to which, by which ways to say a style: sources that are alike together."""
    sources: dict[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...], list[str]] = {}
    for s, source in enumerate(t.domains):
        targets: dict[tuple[str, ...], list[str]] = {}
        for d, to in enumerate(t.domains):
            with suppress(ConfigProblem):  # a way that the method does not have
                targets.setdefault(tuple(sorted(t.method.styles(s, d))), []).append(to)
        key = tuple((ways, tuple(names)) for ways, names in targets.items())
        sources.setdefault(key, []).append(source)
    return [
        {"sources": names, "to": list(to), "styles": list(ways)}
        for key, names in sources.items()
        for ways, to in key
    ]


def main() -> None:
    source, out = channel()
    models: dict[str, Translator] = {}
    for name, (path, shown) in json.loads(sys.argv[1]).items():
        try:
            models[name] = Translator.load(path)
        except Problem as problem:
            text = str(problem).replace(path, shown)
            return say(out, {"problem": text, "exit_code": problem.exit_code})
        except (MemoryError, RuntimeError) as error:  # torch raises the latter
            if not (isinstance(error, MemoryError) or "memory" in str(error)):
                raise
            text = f"{shown}: out of memory while it was loaded: serve fewer models at once."
            return say(out, {"problem": text, "exit_code": OutOfMemory.exit_code})
    if all(t.device.type == "cpu" for t in models.values()):
        keep_freed()
    say(out, {"models": [about(name, t) for name, t in models.items()]})
    work(source, out, Painter(models).handle)


if __name__ == "__main__":
    main()
