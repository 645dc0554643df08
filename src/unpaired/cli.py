"""The command line. Each command loads what it needs; `--help` loads nothing."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote

from unpaired.errors import ConfigProblem, DataProblem, OutOfMemory, Problem, StorageProblem
from unpaired.progress import say, unseen

REMEDIES = {  # for words that nobody asked for
    "train": "; settings are written as key=value, such as train.steps=1000",
    "translate": "; name one image, or a folder of images",
}
Command = Callable[[argparse.Namespace], int | None]
Commands = argparse._SubParsersAction


def train(args: argparse.Namespace) -> None:
    from unpaired.checkpoint import RunFolder
    from unpaired.config import load
    from unpaired.data.intake import escape
    from unpaired.train import fit

    data = args.data or []
    configs = [w for w in (*args.settings, *data) if is_config(w)]
    settings = [w for w in args.settings if w not in configs] + [w for w in data if is_setting(w)]
    args.data = [w for w in data if not (is_setting(w) or w in configs)]
    if len(configs) > 1:
        raise ConfigProblem(
            f"{escape(configs[0])} and {escape(configs[1])} are two configs: name one."
        )
    if not configs and settings and "=" not in settings[0]:
        configs = [settings.pop(0)]  # which is told what it is
    config = configs[0] if configs else None
    if args.resume:
        if config or args.method or args.data or args.init or args.preset or args.out or args.fresh:
            raise ConfigProblem(
                "--resume RUN goes on with the run's own config: leave the rest out, but for key=value."
            )
        go_on(args.resume, settings, args.allow_dataset_change)
        return
    base: dict[str, object] = {}
    if args.method:
        base["method"] = {"name": args.method}
    if args.preset:
        base["preset"] = args.preset
    if args.data:
        base["data"] = {"root": args.data[0] if len(args.data) == 1 else args.data}
    run = load(config, settings, **base)
    folder = RunFolder(args.out or unused(Path("runs"), run.method.name))
    say(f"Run folder: {folder.path}   page: {folder.path / 'index.html'}")
    fit(run, folder, init=args.init, fresh=args.fresh)


def go_on(path: Path, settings: Sequence[str], allow_dataset_change: bool) -> None:
    from unpaired.checkpoint import RunFolder
    from unpaired.config import load, refuse_changes
    from unpaired.data.datasets import refuse_moved
    from unpaired.train import fit

    saved = saved_config(path)
    before, run = load(saved), load(saved, settings)
    refuse_changes(before, run, path)
    folder = RunFolder(path)
    done = max(folder.steps(), default=0)
    if run.train.steps < done:
        raise ConfigProblem(
            f"{path} has done {done} steps already, and train.steps={run.train.steps} is fewer: say train.steps=N "
            "with more."
        )
    if done == run.train.steps and (folder.read_status() or {}).get("status") == "done":
        say(f"All {done} steps are done already: say train.steps=N to go on.")
        return
    roots = before.data.root, run.data.root
    if "scenes" in roots and roots[0] != roots[1] and not allow_dataset_change:
        raise ConfigProblem(
            f"The run began with {roots[0]} and not with {roots[1]}: leave out data.root, or say "
            "--allow-dataset-change to go on with other images."
        )
    if run.data.root == before.data.root:
        refuse_moved(run.data, "data.root=DIR")
    fit(run, folder, resume=True, allow_dataset_change=allow_dataset_change)


def is_setting(word: str) -> bool:
    """`train.steps=10`, and neither an option nor a folder with = in its name."""
    known = word.startswith("-") or os.path.exists(word)  # also where a name is too long to be one
    return "=" in word and not known


def is_config(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and not is_setting(word)


def saved_config(run: Path) -> Path:

    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigProblem(
            f"{run} is not a run: there is no {path}; name a folder made by `unpaired train`."
        )
    return path


def unused(parent: Path, name: str) -> Path:
    """runs/munit, or runs/munit-2 where that is taken."""
    from unpaired.checkpoint import RunFolder

    for n in range(1, 10_000):
        path = parent / (name if n == 1 else f"{name}-{n}")
        if not RunFolder(path).held():
            return path
    raise AssertionError("ten thousand runs of one name")


def translate(args: argparse.Namespace) -> int:
    from unpaired.translate import translate_files

    return translate_files(args)


def evaluate(args: argparse.Namespace) -> None:
    from unpaired.metrics.evaluation import evaluate_run

    evaluate_run(args)


def domains(args: argparse.Namespace) -> None:
    from unpaired.domains import rename, report

    data = [w for w in args.data or () if not is_setting(w)]
    settings = [w for w in (*args.settings, *(args.data or ())) if is_setting(w)]
    runs = [w for w in args.settings if not is_setting(w)]
    if args.choose:
        if runs or args.name or args.labels or not data:
            raise ConfigProblem(
                "--choose trains on images: say --choose 2 5 10 --data DIR, and settings such as train.steps=500."
            )
        from unpaired.choose import choose

        out = args.out or Path("runs") / "choose"
        say(choose(args.choose, data, settings, args.preset, out, say))
        say(f"Written: {out / 'choose.html'}")
        return
    if len(runs) != 1 or settings or args.out or args.preset:
        raise ConfigProblem(
            "Name one run, as in: unpaired domains RUN; settings, --out and --preset belong to --choose."
        )
    run = Path(runs[0])
    if args.name and (data or args.labels):
        raise ConfigProblem("--name only names: leave --data and --labels out.")
    if args.name:
        for number, name in enumerate(rename(run, args.name), 1):
            say(f"{number} {name}")
        if (run / "domains.html").is_file():
            say(f"The page still shows the earlier names: unpaired domains {run} writes it anew.")
    else:
        say(f"Written: {report(run, data, args.labels, say)}")


def export(args: argparse.Namespace) -> None:
    from unpaired.data.intake import escape
    from unpaired.export import export

    listing = export(args.run, args.out)
    example = quote(escape(listing.parent / "example.py"))
    say(f"Written: {escape(listing)}  (try: python {example} --help)")


def serve(args: argparse.Namespace) -> None:

    try:
        from unpaired.serve.run import serve
    except ImportError as error:
        if (error.name or "").startswith("unpaired"):
            raise
        raise ConfigProblem(
            f"`unpaired serve` needs {error.name}, of the extra `serve`: in the checkout, pip install -c "
            "constraints.txt -e '.[serve]'."
        ) from None
    serve(args)


def report(args: argparse.Namespace) -> None:
    from unpaired.data.intake import placed
    from unpaired.report import report

    report(args.runs, placed(args.out), args.data or ())
    say(f"Written: {args.out}")


def data_check(args: argparse.Namespace) -> None:
    from unpaired.data.check import check, to_json, to_page, to_text
    from unpaired.data.folders import scan

    images = scan(
        *args.dir,
        paired=args.paired,
        subfolders=args.unlabelled,
        follow_links=args.follow_links,
    )
    report = check(images, args.size)
    say(to_json(report) if args.json else to_text(report))
    if args.page:
        to_page(report, args.page)
        print(f"Page of the suspicious images: {args.page}", file=sys.stderr)


def methods(args: argparse.Namespace) -> None:
    from unpaired.registry import method_card, method_names

    if args.method:
        from unpaired.settings import reference

        say(reference(args.method))
        return
    needs = {  # domains, pairs, labels
        "two_domains": ("2", "no", "domain"),
        "domains": ("2 or more", "no", "domain"),
        "unlabelled": ("found by itself", "no", "no"),
        "paired": ("2", "yes", "domain"),
    }
    rows = [("method", "domains", "pairs", "labels", "outputs", "venue", "year", "paper")]
    for name in method_names():
        card = method_card(name)
        published = (card["venue"], str(card["year"] or "?"), card["title"])
        rows.append((name, *needs[card["layout"]], card["outputs"], *published))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())


def convert(args: argparse.Namespace) -> None:
    from unpaired import official
    from unpaired.checkpoint import save_model
    from unpaired.data.intake import placed

    output = official.output(args.output)
    save_model(
        placed(output),
        official.vgg16(args.file),
        {"network": "vgg16", "preprocessing": args.preprocessing},
    )
    say(f"Written: {args.output}  (use it as method.vgg={args.output})")


def import_official(args: argparse.Namespace) -> None:
    import torch

    from unpaired import official
    from unpaired.checkpoint import save_model
    from unpaired.config import load
    from unpaired.data.intake import placed
    from unpaired.translator import metadata

    output = official.output(args.output)
    found = official.read(args.method, args.files)
    domains = args.domains or [chr(97 + i) for i in range(found.domains)]
    if len(domains) != found.domains:
        raise ConfigProblem(
            f"The checkpoint has {found.domains} domains: name as many by --domains."
        )
    if len(set(domains)) < len(domains):
        raise ConfigProblem("--domains: a domain is named twice: give each a name of its own.")
    size = {"size": args.size} if args.size else {}
    run = load(method=found.method, data={"size": 256, **found.data, **size})
    with torch.device("meta"):
        official.check(found, run.build(tuple(domains)), args.files)
    save_model(placed(output), found.tensors, metadata(run, domains, 0))
    say(
        f"Written: {args.output}  (use it as: unpaired translate {args.output} IMAGE --to {domains[1]})"
    )


def parser() -> argparse.ArgumentParser:
    from unpaired import __version__

    p = argparse.ArgumentParser(
        prog="unpaired",
        description="Translate images between domains without pairs.",
        epilog="Exit codes: 0 done, 2 bad usage or config, 65 unusable images or model, 70 diverged, 71 out of memory, "
        "73 folder not writable, 74 storage failed, 75 folder in use, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.",
    )
    p.add_argument("--version", action="version", version=f"unpaired {__version__}")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for words in (
        train_words,
        translate_words,
        export_words,
        serve_words,
        report_words,
        evaluate_words,
        domains_words,
        data_words,
        methods_words,
        weights_words,
    ):
        words(commands)
    return p


def train_words(commands: Commands) -> None:
    c = command(commands, "train", train, "learn to translate from folders of images")
    c.add_argument(
        "settings",
        nargs="*",
        metavar="[CONFIG.yaml] key=value",
        help="a config and settings such as train.steps=1000",
    )
    c.add_argument("--method", help="munit, ... or my_lab.cut for a file of your own")
    c.add_argument(
        "--data",
        nargs="+",
        metavar="DIR",
        help="a folder, several folders, a list, or `scenes` for the built-in ones",
    )
    c.add_argument(
        "--preset",
        choices=("small", "paper"),
        help="small: minutes on a CPU; paper: the publication's settings",
    )
    c.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="the run folder (default: runs/METHOD, or runs/METHOD-2, ... where taken)",
    )
    c.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run, exactly where it was"
    )
    c.add_argument(
        "--init",
        type=Path,
        metavar="RUN",
        help="start from the networks of another run or model file",
    )

    c.add_argument(
        "--fresh",
        action="store_true",
        help="begin anew in a folder that holds a run, which is set aside",
    )
    c.add_argument(
        "--allow-dataset-change",
        action="store_true",
        help="resume with other images than at the start",
    )


def translate_words(commands: Commands) -> None:
    c = command(commands, "translate", translate, "translate an image or a folder")
    c.add_argument("run", type=Path, help="a run folder or a model.safetensors")
    c.add_argument("images", type=Path, metavar="IMAGE|FOLDER")
    c.add_argument("--to", required=True, metavar="DOMAIN", help="the target domain, or all")
    c.add_argument(
        "--source",
        metavar="DOMAIN",
        help="the domain of the images (default: the other one of two)",
    )
    c.add_argument(
        "--styles",
        type=int,
        metavar="N",
        help="random styles for each image (default 8)",
    )
    c.add_argument("--style-from", type=Path, metavar="REF", help="take the style of this image")
    c.add_argument(
        "--interpolate",
        nargs=2,
        metavar=("A", "B"),
        help="from style A to style B: seeds or images",
    )
    c.add_argument(
        "--component",
        type=component,
        metavar="K",
        help="move this component of the style, counted from 0; or all, one after the other",
    )
    c.add_argument(
        "--sweep",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="from where to where, in standard deviations of random styles (default -2 2)",
    )
    c.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="pictures of an interpolation or a sweep (default 9)",
    )
    c.add_argument("--seed", type=int, metavar="N", help="of the random styles (default 0)")
    c.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="shorter side to work at (default: the training size)",
    )
    c.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: RUN/translations)"
    )
    c.add_argument("--strict", action="store_true", help="fail if any image cannot be read")


def export_words(commands: Commands) -> None:
    c = command(
        commands, "export", export, "write ONNX files, which run without torch and unpaired"
    )
    c.add_argument("run", type=Path, help="a run folder or a model.safetensors")
    c.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/export)")


def serve_words(commands: Commands) -> None:
    c = command(commands, "serve", serve, "a page to play with models, and an HTTP API")
    c.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders or model.safetensors files"
    )
    c.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default 127.0.0.1, this machine alone; 0.0.0.0 lets others in)",
    )
    c.add_argument("--port", type=port, default=8000, help="(default 8000; 0 finds a free one)")
    c.add_argument(
        "--token",
        action="store_true",
        help="let in only who has a token: that in UNPAIRED_TOKEN, or one that is made and printed",
    )
    c.add_argument(
        "--allowed-host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="other names that this server is asked under, such as that of a proxy",
    )


def report_words(commands: Commands) -> None:
    c = command(commands, "report", report, "compare runs on one page")
    c.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    c.add_argument(
        "--data",
        nargs="+",
        metavar="DIR",
        help="other images, with the domains of the first run",
    )
    c.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="(default: report.html)",
    )


def evaluate_words(commands: Commands) -> None:
    c = command(commands, "evaluate", evaluate, "measure a trained model")
    c.add_argument("run", type=Path, help="a run folder or a model.safetensors")
    c.add_argument(
        "--data", nargs="+", metavar="DIR", help="other images, with the domains of the run"
    )
    c.add_argument(
        "--protocol",
        default="quick",
        metavar="NAME",
        help="quick (default), munit, starganv2 or tunit: docs/metrics.md",
    )
    c.add_argument(
        "--features",
        nargs="+",
        default=[],
        metavar="FILE",
        help="weights of SqueezeNet 1.1 or Inception-v3, or `inception` to fetch it",
    )
    c.add_argument(
        "--lpips",
        nargs="+",
        default=[],
        metavar="FILE",
        help="weights of LPIPS: a trunk, and the heads for it",
    )
    c.add_argument(
        "--paired",
        action="store_true",
        help="test images of equal name show the same thing: score against them",
    )
    c.add_argument("--seed", type=int, default=0, help="of styles and references (default 0)")
    c.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write the figures (default: RUN/metrics.json, and the page of the run)",
    )


def domains_words(commands: Commands) -> None:
    c = command(
        commands, "domains", domains, "look at the domains found without labels, and name them"
    )
    c.add_argument(
        "settings",
        nargs="*",
        metavar="RUN | key=value",
        help="a run folder or a model.safetensors; or settings of --choose",
    )
    c.add_argument(
        "--choose",
        nargs="+",
        type=int,
        metavar="K",
        help="compare numbers of domains by the first stage alone, such as --choose 2 5 10 20 --data DIR",
    )
    c.add_argument("--preset", choices=("small", "paper"), help="of --choose (default small)")
    c.add_argument("--out", type=Path, metavar="DIR", help="of --choose (default: runs/choose)")
    c.add_argument(
        "--name", nargs="+", metavar="N=NAME", help="name domains, such as 1=tabby 2=siamese"
    )
    c.add_argument("--data", nargs="+", metavar="DIR", help="other images than those of the run")
    c.add_argument(
        "--labels", metavar="folders|CSV", help="true labels to compare with (docs/data.md)"
    )


def data_words(commands: Commands) -> None:
    data = commands.add_parser(
        "data", help="look at a folder of images before training", description="Look at data."
    )
    actions = data.add_subparsers(metavar="ACTION", required=True)
    c = command(
        actions, "check", data_check, "count, and find unreadable, blank, odd and duplicate images"
    )
    c.add_argument(
        "dir",
        type=Path,
        nargs="+",
        help="a folder in any layout, or one for each domain; nothing in it is changed",
    )
    kind = c.add_mutually_exclusive_group()
    kind.add_argument(
        "--paired", action="store_true", help="pairs: two folders with equal names, or A|B images"
    )
    kind.add_argument(
        "--unlabelled",
        action="store_true",
        help="one folder with all below it, as tunit trains on it",
    )
    c.add_argument(
        "--size",
        type=int,
        default=32,
        metavar="PX",
        help="the training size: smaller images are told (default 32)",
    )
    c.add_argument(
        "--follow-links",
        action="store_true",
        help="also where links lead out of the folder (in training: data.follow_links=true)",
    )
    c.add_argument("--json", action="store_true", help="print JSON")
    c.add_argument(
        "--page", type=Path, metavar="FILE.html", help="write a page with the suspicious images"
    )


def methods_words(commands: Commands) -> None:
    c = command(commands, "methods", methods, "list the methods, or every setting of one")
    c.add_argument("method", nargs="?", help="munit, ...: its settings, their values and meanings")


def weights_words(commands: Commands) -> None:
    weights = commands.add_parser(
        "weights", help="bring in published weights", description="Bring in published weights."
    )
    kinds = weights.add_subparsers(metavar="ACTION", required=True)
    c = command(kinds, "convert", convert, "make the VGG-16 file that perceptual losses need")
    c.add_argument("file", type=Path, help="a published file of VGG-16, .pth")
    c.add_argument("output", type=Path, help="the safetensors file to write")
    c.add_argument(
        "--preprocessing",
        choices=("caffe", "imagenet"),
        required=True,
        help="what the weights were trained on: caffe (BGR, 0 to 255, means removed) or imagenet (RGB, 0 to 1)",
    )
    c = command(kinds, "import", import_official, "make a model of an official checkpoint")
    c.add_argument("method", choices=("munit", "cyclegan", "pix2pix", "bicyclegan", "stargan_v2"))
    c.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="gen_*.pt, latest_net_*.pth, *_nets_ema.ckpt, or the folder of these",
    )
    c.add_argument("output", type=Path, help="the model.safetensors to write")
    c.add_argument(
        "--domains", nargs="+", metavar="NAME", help="names of its domains (default: a b ...)"
    )
    c.add_argument("--size", type=int, help="its training size (default: 256, or as the file says)")


def port(word: str) -> int:
    """A port's number."""
    number = int(word)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{word} is no port: they go from 0 to 65535")
    return number


def component(word: str) -> int:
    """A component's number, or -1 for all."""
    number = -1 if word == "all" else int(word)
    if number < 0 and word != "all":
        raise argparse.ArgumentTypeError(f"{word} is no component: they are counted from 0")
    return number


def command(commands: Commands, name: str, function: Command, text: str) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    p.set_defaults(function=function)
    return p


def complain(sentence: str) -> None:
    """A line on stderr, if that can be written to; the exit code says it too."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"unpaired: {sentence}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; a `Problem` becomes one line on stderr and its exit code."""
    p = parser()
    args, rest = p.parse_known_args(argv)
    if rest and (
        args.command not in ("train", "domains") or not all(is_setting(word) for word in rest)
    ):
        p.error(f"unrecognized arguments: {' '.join(rest)}{REMEDIES.get(args.command, '')}")
    if rest:
        args.settings += rest  # settings may stand anywhere in the line
    unseen.clear()
    try:
        os.getcwd()
    except FileNotFoundError:
        complain("the folder you are in was deleted: go to another.")
        return 2
    try:
        code = args.function(args) or 0
        if unseen and args.command != "train":  # which has it all in the run folder
            why = unseen[0].strerror
            raise StorageProblem(f"the output could not be written ({why}): make room.")
        return code
    except Problem as problem:
        complain(str(problem))
        return problem.exit_code
    except KeyboardInterrupt:
        complain("stopped.")
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:  # of a path that nobody expected to fail
        if error.filename is None:
            raise
        where, closed = os.fsdecode(error.filename), isinstance(error, PermissionError)
        if error.errno == errno.ENAMETOOLONG:
            complain(
                f"{ascii(where[:40])[1:-1]}...: no file has so long a name: look at the command."
            )
            return ConfigProblem.exit_code
        remedy = (
            "change its permissions or name another"
            if closed
            else "look at the disk, or name another"
        )
        complain(f"{ascii(where)[1:-1]}: {error.strerror}: {remedy}.")
        return DataProblem.exit_code if closed else StorageProblem.exit_code
    except (MemoryError, RuntimeError) as error:  # torch raises the latter
        if not (
            isinstance(error, MemoryError) or re.search("(allocate|out of) memory", str(error))
        ):
            raise
        complain(
            "out of memory: make the images smaller (--size, data.size) or fewer (data.batch)."
        )
        return OutOfMemory.exit_code
