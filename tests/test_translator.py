"""A trained model at work: the same answers from Python and the command line, for images of any size."""

import json

import numpy as np
import odd_images
import pytest
import tiny
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from unpaired import Translator, pictures, train, translate
from unpaired.checkpoint import RunFolder, load_model, save_model
from unpaired.cli import main
from unpaired.data.intake import Limits, write_png
from unpaired.data.scenes import Scenes
from unpaired.errors import ConfigProblem, DataProblem, StorageProblem
from unpaired.heap import keep_freed
from unpaired.pictures import enlarged, sheet, to_images
from unpaired.translate import inputs
from unpaired.translator import file_names, linspace, random_styles, room


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "ein Lauf ü"
    train.fit(tiny.run(steps=2), RunFolder(path), say=lambda line: None)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "ein Bild é.png"
    Image.fromarray(Scenes("outline", (30, 45), "test", 0, 3)[0].image).save(path)
    return path


def pixels(images):
    return [np.asarray(i).tolist() for i in images]


def test_command_line_equals_python(run, photo, tmp_path):
    t = Translator.load(run)
    outputs = t.translate(photo, to="painted", styles=3, seed=5)
    assert (
        main(
            [
                "translate",
                str(run),
                str(photo),
                "--to",
                "painted",
                "--styles",
                "3",
                "--seed",
                "5",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    files = sorted(tmp_path.glob("ein*.png"))
    assert pixels(Image.open(f) for f in files) == pixels(outputs)
    assert (tmp_path / "sheet-painted-seed-5.png").is_file()
    main(["translate", str(run), str(photo), "--to", "painted", "--out", str(tmp_path)])
    assert (tmp_path / "sheet-painted.png").is_file()
    assert pixels(Image.open(f) for f in files) == pixels(outputs)  # another seed's are others
    reference = t.translate(photo, to="painted", style_from=photo)
    main(
        [
            "translate",
            str(run),
            str(photo),
            "--to",
            "painted",
            "--style-from",
            str(photo),
            "--out",
            str(tmp_path),
        ]
    )
    by_reference = sorted(tmp_path.glob(f"ein*-painted-from-{photo.stem}-00.png"))
    assert pixels(map(Image.open, by_reference)) == pixels(reference)
    assert pixels(Image.open(f) for f in files) == pixels(outputs)  # the earlier call's are kept
    assert (tmp_path / f"sheet-painted-from-{photo.stem}.png").is_file()
    line = t.interpolate(photo, 1, photo, to="painted", steps=3)
    main(
        [
            "translate",
            str(run),
            str(photo),
            "--to",
            "painted",
            "--interpolate",
            "1",
            str(photo),
            "--steps",
            "3",
            "--out",
            str(tmp_path / "i"),
        ]
    )
    between = sorted((tmp_path / "i").glob(f"ein*-between-1-and-{photo.stem}-*.png"))
    assert pixels(Image.open(f) for f in between) == pixels(line)


def test_a_folder_with_bad_files(run, photo, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.open(photo).save(folder / "good.jpg")
    (folder / "bad.jpg").write_text("<html>404</html>")
    command = [
        "translate",
        str(run),
        str(folder),
        "--to",
        "painted",
        "--styles",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    assert "bad.jpg" in capsys.readouterr().out
    assert main([*command, "--strict"]) == 65
    (folder / "good.jpg").unlink()
    assert main(command) == 65


def test_the_first_styles_of_a_seed_stay(run, photo):
    t = Translator.load(run)
    assert pixels(t.translate(photo, "painted", styles=2, seed=1)) == pixels(
        t.translate(photo, "painted", styles=20, seed=1)[:2]
    )
    assert pixels(t.translate(photo, "painted", styles=1, seed=1)) != pixels(
        t.translate(photo, "painted", styles=1, seed=2)
    )


def test_interpolation_begins_and_ends_at_its_styles(run, photo):
    t = Translator.load(run)
    line = t.interpolate(photo, 3, t.encode_style(photo, "painted"), to="painted", steps=4)
    assert pixels(line[:1]) == pixels(t.translate(photo, "painted", styles=1, seed=3))
    assert pixels(line[-1:]) == pixels(t.translate(photo, "painted", style_from=photo))


@pytest.mark.parametrize("size", [(30, 45), (33, 17), (64, 64)])
def test_sizes_that_are_no_multiple_of_the_stride(run, size):
    t = Translator.load(run)
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    (out,) = t.translate(image, "painted", styles=1, size=min(size))
    assert (out.height, out.width) == size


def test_a_phone_photograph_is_worked_at_the_training_size(run):
    image = Image.new("RGB", (4000, 3000), "teal")
    (out,) = Translator.load(run).translate(image, "painted", styles=1)
    assert out.size == (21, 16)  # the shorter side at 16, aspect kept


def test_many_styles_at_once_equal_one_at_a_time(run, photo, monkeypatch):
    t = Translator.load(run)
    together = t.translate(photo, "painted", styles=7)
    monkeypatch.setattr("unpaired.translator.CHUNK_PIXELS", 1)
    apart = t.translate(photo, "painted", styles=7)
    assert np.abs(np.array(pixels(together)) - np.array(pixels(apart))).max() <= 1


class Drawn(TorchDispatchMode):
    """Counts the random numbers that are drawn while it lasts."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.normal_, torch.ops.aten.uniform_):
            self.numbers += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_loading_takes_no_time_to_initialise(run):
    with Drawn() as loaded:
        t = Translator.load(run)
    with Drawn() as built:
        t.run.build(t.domains)
    assert loaded.numbers == 0 and built.numbers > 10_000
    state = t.method.state_dict()
    _, tensors, _ = RunFolder(run).newest()
    held = {k.removeprefix("method.ema."): v for k, v in tensors.items() if ".ema." in k}
    assert len(held) > 20 and all(torch.equal(state[k], v) for k, v in held.items())
    assert state.keys() == held.keys()  # the discriminators are not there


def differ(a, b):
    return np.abs(np.array(pixels(a), float) - np.array(pixels(b), float))


def test_a_folder_is_translated_in_batches(run, tmp_path, monkeypatch):
    shapes = [(20, 16), (20, 16), (16, 16), (20, 16), (20, 16), (20, 16)]
    (tmp_path / "in").mkdir()
    for i, size in enumerate(shapes):
        scene = Scenes("outline", size, "test", 0, 9)[i]
        Image.fromarray(scene.image).save(tmp_path / "in" / f"{i}.png")
    monkeypatch.setattr("unpaired.translator.CHUNK_PIXELS", 3 * 20 * 16)
    monkeypatch.setattr("unpaired.translator.KEPT_CHUNKS", 1)  # the command keeps freed memory
    encoded, decoded = [], []
    cls = type(Translator.load(run).method)
    encode, decode = cls.encode_content, cls.decode
    monkeypatch.setattr(
        cls, "encode_content", lambda self, x, s: encoded.append(len(x)) or encode(self, x, s)
    )
    monkeypatch.setattr(
        cls, "decode", lambda self, c, *args: decoded.append(len(c)) or decode(self, c, *args)
    )
    words = ["translate", run, tmp_path / "in", "--to", "all", "--source", "outline"]
    for out in ("a", "b"):
        assert main([*map(str, words), "--styles", "5", "--out", str(tmp_path / out)]) == 0
    assert encoded == 2 * [2, 1, 3]  # each image once, with its neighbours of equal size
    assert decoded[: len(decoded) // 2] == [3, 3, 3, 1, 3, 2, 3, 3, 3, 3, 3]
    monkeypatch.undo()
    t = Translator.load(run)
    for i in range(len(shapes)):
        files = sorted((tmp_path / "a").glob(f"{i}-painted-*.png"))
        alone = t.translate(tmp_path / "in" / f"{i}.png", "painted", styles=5)
        assert differ(map(Image.open, files), alone).max() <= 1
        again = [tmp_path / "b" / f.name for f in files]
        assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]


def test_half_precision_where_the_config_or_the_machine_says_so(run, photo, monkeypatch):
    t = Translator.load(run)
    exact = t.translate(photo, "painted", styles=4)
    half = t.run.model_copy(
        update={"train": t.run.train.model_copy(update={"precision": "bf16-mixed"})}
    )
    t = Translator(t.method, half)
    made = t.translate(photo, "painted", styles=4)
    assert 0 < differ(made, exact).mean() < 2 and pixels(
        t.translate(photo, "painted", 4)
    ) == pixels(made)
    assert t.contents(t.prepare(photo), 0).dtype is torch.bfloat16


def test_a_model_file_needs_no_flag(run, photo):
    from_folder = Translator.load(run).translate(photo, "outline", styles=2)
    from_file = Translator.load(run / "model.safetensors").translate(photo, "outline", styles=2)
    assert pixels(from_folder) == pixels(from_file)


def test_the_averages_are_what_translates(run, photo):
    _, tensors, _ = RunFolder(run).newest()
    t = Translator.load(run)
    for name, value in t.method.state_dict().items():
        if name.startswith("G_"):
            assert torch.equal(value, tensors[f"method.ema.{name}"])


@pytest.fixture(scope="module")
def dsm(tmp_path_factory):
    path = tmp_path_factory.mktemp("dsm")
    train.fit(tiny.run("dsm", steps=2), RunFolder(path), say=lambda line: None)
    return path


@pytest.mark.parametrize("name", ["run", "dsm"])
def test_a_sweep_moves_one_component_alone(name, photo, request, monkeypatch):
    t = Translator.load(request.getfixturevalue(name))
    seen = []
    render = t.render
    monkeypatch.setattr(
        t, "render", lambda x, a, b, codes: seen.append(codes) or render(x, a, b, codes)
    )
    outputs = t.sweep(photo, "painted", 2, -1, 2, 4, seed=3)
    (codes,) = seen
    drawn = t.method.sample_style(4000, 1, torch.Generator().manual_seed(5))
    values = (codes[:, 2] - drawn[:, 2].mean()) / drawn[:, 2].std()
    assert values.tolist() == pytest.approx([-1, 0, 1, 2], abs=0.15)
    base = random_styles(t.method, 1, 1, 3)
    others = [i for i in range(codes.shape[1]) if i != 2]
    assert torch.equal(codes[:, others], base[:, others].expand(4, -1))
    assert len(outputs) == 4 and pixels(outputs[:1]) != pixels(outputs[-1:])
    by_reference = t.sweep(photo, "painted", 0, 0, 1, 2, style_from=photo)
    assert len(by_reference) == 2


def test_a_sweep_from_the_command_line(dsm, photo, tmp_path, capsys):
    words = ["translate", str(dsm), str(photo), "--to", "neon", "--out", str(tmp_path / "out")]
    assert main([*words, "--component", "1", "--sweep", "-1.5", "1.5", "--steps", "3"]) == 0
    files = sorted((tmp_path / "out").glob("ein*.png"))
    expected = Translator.load(dsm).sweep(photo, "neon", 1, -1.5, 1.5, 3)
    assert pixels(Image.open(f) for f in files) == pixels(expected)
    plain = sheet([[*map(enlarged, [expected[0], *expected])]], title="to neon   component 1")
    with Image.open(tmp_path / "out" / "sheet-neon-component-1.png") as page:
        assert page.height > plain.height  # the values stand above
    capsys.readouterr()
    for extra, said in [
        (["--component", "4"], "4 components, 0 to 3"),
        (["--sweep", "0", "1"], "--component"),
        (["--component", "1", "--steps", "1"], "--steps"),
    ]:
        assert main([*words, *extra]) == 2
        assert said in capsys.readouterr().err


def test_a_strip_for_every_component(dsm, photo, tmp_path, capsys):
    words = ["translate", str(dsm), str(photo), "--to", "neon", "--out", str(tmp_path / "out")]
    assert main([*words, "--component", "all", "--steps", "2"]) == 0
    t = Translator.load(dsm)
    for k in range(4):
        files = sorted((tmp_path / "out").glob(f"ein*-neon-component-{k}-*.png"))
        assert pixels(Image.open(f) for f in files) == pixels(t.sweep(photo, "neon", k, -2, 2, 2))
    with Image.open(tmp_path / "out" / "sheet-neon-component-all.png") as page:
        assert page.height > 4 * 96
    with pytest.raises(SystemExit) as stop:
        main([*words, "--component", "-1"])
    assert stop.value.code == 2 and "counted from 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cyclegan", "tunit"])
def test_a_method_without_random_styles_cannot_be_swept(name, photo, tmp_path):
    method, config = tiny.build(name)
    t = Translator(method, config)
    with pytest.raises(ConfigProblem, match="no random styles"):
        t.sweep(photo, t.domains[-1], 0, style_from=None)


def test_pictures_of_pillow_are_read_as_their_files(run, tmp_path):
    t = Translator.load(run)
    turned, clear = Image.new("RGB", (40, 20), "red"), Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    clear.save(tmp_path / "clear.png")
    deep = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for path in tmp_path.iterdir():
        with Image.open(path) as opened:
            assert np.array_equal(t.pixels(opened), t.pixels(path)), path
    assert (t.pixels(clear) == 255).all() and t.pixels(tmp_path / "turned.jpg").shape == (40, 20, 3)
    with pytest.raises(DataProblem, match="floating-point"):
        t.pixels(Image.fromarray(np.ones((20, 20), np.float32)))
    for shape, kind in [((20, 20), "uint8"), ((20, 20, 4), "uint8"), ((20, 20, 3), "float64")]:
        with pytest.raises(ConfigProblem, match=r"\(H, W, 3\) uint8, RGB, not"):
            t.pixels(np.zeros(shape, kind))


def test_every_odd_image_of_a_folder_is_translated_or_named(run, tmp_path, monkeypatch, capsys):
    """D-01 to D-43: one of each; and a name as long as names may be."""
    monkeypatch.setattr("unpaired.translate.SHEET_ROWS", 5)
    folder, long = tmp_path / "in", "x" * 251
    folder.mkdir()
    cases = {case.id: case for case in odd_images.cases() if case.expected is not odd_images.EITHER}
    for case in cases.values():
        (folder / f"{case.id}.png").write_bytes(case.make())
    Image.new("RGB", (20, 20)).save(folder / f"{long}.png")
    words = ["translate", str(run), str(folder), "--to", "painted", "--styles", "1", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    used = {path.name for path in (tmp_path / "out").iterdir()}
    for case in cases.values():
        fine = isinstance(case.expected, odd_images.Pixels)
        assert (f"{case.id}-painted-00.png" in used) == fine, case
        assert (f"Skipped: {folder / case.id}.png: " in said) != fine, case
    assert any(name.startswith("xxx") for name in used) and "D-09.png: the PNG lacks" in said
    assert "the first 5 on one sheet" in said


def test_strict_counts_every_file_that_ought_to_be_an_image(run, photo, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.open(photo).save(folder / "a.png")
    words = ["translate", str(run), str(folder), "--to", "painted", "--styles", "1", "--strict"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    (folder / "b.heic").write_bytes(b"photograph")
    assert main([*words, "--out", str(tmp_path / "out")]) == 65
    assert "b.heic" in capsys.readouterr().out
    assert main([*words[:-1], "--out", str(tmp_path / "out")]) == 0


def test_one_odd_image_does_not_end_the_others(run, tmp_path, monkeypatch, capsys):
    """A panorama too large at the size that is asked for, and one whose pictures are not finite, are named."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, (h, w) in enumerate([(16, 16), (16, 16), (16, 16), (16, 300)]):
        noise = np.random.default_rng(i).integers(0, 255, (h, w, 3), dtype=np.uint8)
        write_png(folder / f"{i}.png", noise)
    monkeypatch.setattr("unpaired.translator.TRAIN", Limits(max_pixels=4000))
    odd = Translator.load(run).prepare(folder / "1.png")
    contents = Translator.contents

    def spoilt(t, x, source):
        found = contents(t, x, source).clone()
        found[(x == odd).flatten(1).all(1)] = float("nan")
        return found

    monkeypatch.setattr(Translator, "contents", spoilt)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    words = ["translate", str(run), "../in", "--to", "painted", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "Skipped" in line]
    assert any("3.png" in line and "megapixels" in line for line in told)
    assert any("1.png" in line and "not finite" in line for line in told) and len(told) == 2
    assert {f.name[0] for f in (tmp_path / "out").glob("[0-9]*.png")} == {"0", "2"}
    assert main([*words, "--strict"]) == 65


def test_results_stay_apart_from_the_images(run, photo, tmp_path, capsys):
    for i in range(2):
        Image.open(photo).save(tmp_path / f"{i}.png")
    words = ["translate", str(run), str(tmp_path), "--to", "painted", "--styles", "1", "--out"]
    assert main([*words, str(tmp_path)]) == 2 and "apart" in capsys.readouterr().err
    for _ in range(2):  # the second time past the results of the first
        assert main([*words, str(tmp_path / "out")]) == 0
        assert len(list((tmp_path / "out").iterdir())) == 3


def test_results_may_go_to_a_folder_above_the_images(run, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.open(photo).save(tmp_path / "photos" / "a.png")
    words = ["translate", str(run), "photos", "--to", "painted", "--styles", "1", "--out", "."]
    for _ in range(2):
        assert main(words) == 0
        assert {p.name for p in tmp_path.glob("*.png")} == {"a-painted-00.png", "sheet-painted.png"}


def test_names_as_long_as_names_may_be(run, photo, tmp_path):
    """Of images, of both references, and of a domain, also in letters of four bytes."""
    tensors, about = load_model(run / "model.safetensors")
    long, wide = "x" * 251, "𝔞" * 62
    model = tmp_path / "model.safetensors"
    save_model(model, tensors, about | {"domains": json.dumps(["outline", "𝔞" * 300])})
    for name in (long, wide, "b" + wide[1:]):
        Image.open(photo).save(tmp_path / f"{name}.png")
    ends = [str(tmp_path / f"{name}.png") for name in (wide, "b" + wide[1:])]
    words = ["translate", str(model), "--to", "𝔞" * 300, "--steps", "2", "--interpolate", *ends]
    for name in (long, wide):
        out = tmp_path / f"out {name[0]}"
        assert main([*words, "--out", str(out), str(tmp_path / f"{name}.png")]) == 0
        assert len(list(out.glob(f"{name[:8]}*-between-*.png"))) == 2
        assert len(list(out.glob("sheet-*.png"))) == 1


def test_refusals(run, photo, tmp_path):
    t = Translator.load(run)
    for problem, words, call in [
        (ConfigProblem, "painted", lambda: t.translate(photo, "paintd")),
        (ConfigProblem, "--size", lambda: t.translate(photo, "painted", size=2)),
        (DataProblem, "note.txt", lambda: t.translate(note(tmp_path), "painted")),
        (ConfigProblem, "not a run", lambda: Translator.load(tmp_path)),
        (DataProblem, "note.txt", lambda: Translator.load(note(tmp_path))),
    ]:
        with pytest.raises(problem, match=words):
            call()


def test_a_model_file_that_says_nonsense_is_refused(run, tmp_path):
    tensors, about = load_model(run / "model.safetensors")
    file = tmp_path / "odd.safetensors"
    for key, value in [("config", "{"), ("config", "[]"), ("domains", "7"), ("step", "x")]:
        save_model(file, tensors, about | {key: value})
        with pytest.raises(DataProblem, match="nothing usable"):
            Translator.load(file)
    save_model(file, tensors, {k: v for k, v in about.items() if k != "domains"})
    with pytest.raises(DataProblem, match="nothing usable"):
        Translator.load(file)


def test_what_a_model_file_claims_takes_no_memory(run, tmp_path, monkeypatch):
    """Networks and domains that its tensors do not bear out are refused before any is made."""
    tensors, about = load_model(run / "model.safetensors")
    file, config = tmp_path / "odd.safetensors", json.loads(about["config"])
    wide = {"method": config["method"] | {"d_dim": 4096}}
    deep = {"method": config["method"] | {"residuals": 64}}
    built = []
    empty = torch.empty

    def noted(*args, **kw):
        made = empty(*args, **kw)
        built.append(0 if made.is_meta else made.numel())
        return made

    monkeypatch.setattr(torch, "empty", noted)
    for claim, said in [
        ({"config": json.dumps(config | wide)}, "further numbers"),
        ({"config": json.dumps(config | deep)}, "body"),
        ({"domains": json.dumps([str(i) for i in range(20_000)])}, "20000 domains"),
        ({"domains": json.dumps(["outline", "painted", "mosaic"])}, "3 domains"),
        ({"domains": json.dumps(["outline"])}, "1 domain"),
        ({"domains": json.dumps(["outline", "outline"])}, "equal names"),
    ]:
        save_model(file, tensors, about | claim)
        with pytest.raises(DataProblem, match=f"does not hold the networks.*{said}"):
            Translator.load(file)
    assert max(built, default=0) < 10_000


def test_no_output_takes_the_place_of_another(run, tmp_path):
    scene = Scenes("outline", 16, "test", 0, 1)[0].image
    for name in ("a/b/c.png", "a-b/c.png", "a/b-c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / "in" / name, scene)
    names = [name for _, name in inputs(tmp_path / "in", tmp_path / "out", [])]
    assert len(set(names)) == 3


def test_no_domain_takes_the_file_name_of_another():
    names = file_names(["a b", "a_b", "A b", "की", "का", "a_b_2", "🐱", "🐶"])
    assert names["a b"] == "a_b" and names["की"] == "की"
    assert len({name.casefold() for name in names.values()}) == 8
    long = file_names([*"ab", "𝔞" * 99, "𝔞" * 98, "ä" * 30, "x" * 200 + "/", "x" * 200 + ":"])
    assert len(set(long.values())) == 7 and long["ä" * 30] == "ä" * 30
    assert all(len(name.encode()) <= 62 for name in long.values())


def test_a_full_disk_ends_it_and_keeps_the_pictures_before(
    run, photo, tmp_path, monkeypatch, capsys
):
    """Pictures are written beside the translating: what fails there must not pass unseen."""

    def full(path, image):
        if path.stem.endswith(("-05", "-06")):
            raise StorageProblem(f"{path} could not be written")
        write_png(path, image)

    monkeypatch.setattr(translate, "write_png", full)
    words = [str(run), str(photo), "--to", "painted", "--styles", "8", "--out", str(tmp_path)]
    assert main(["translate", *words]) == StorageProblem.exit_code
    assert "-05.png could not be written" in capsys.readouterr().err
    written = {path.stem[-2:] for path in tmp_path.glob("*.png")}
    assert {"00", "01", "02", "03", "04"} <= written <= {"00", "01", "02", "03", "04", "07"}


def test_the_middle_of_a_sweep_is_nothing():
    assert linspace(-2, 2, 7)[3] == linspace(-0.7, 0.7, 9)[4] == 0
    assert linspace(-1.5, 2.25, 5) == [-1.5, -0.5625, 0.375, 1.3125, 2.25]
    assert linspace(0.1, 0.7, 4)[0] == 0.1 and linspace(0.1, 0.7, 4)[-1] == 0.7


def note(folder):
    path = folder / "note.txt"
    path.write_text("hello")
    return path


def test_grey_and_rectangular(tmp_path):
    config = tiny.run("munit", "data.channels=1", "data.size=[16, 24]", steps=1)
    train.fit(config, RunFolder(tmp_path), say=lambda line: None)
    (out,) = Translator.load(tmp_path).translate(
        Scenes("outline", (32, 48), "test", 0, 1)[0].image, "painted", styles=1
    )
    assert out.mode == "L" and out.size == (24, 16)


def test_colours_are_the_networks():
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]).expand(1, 3, 1, 5)
    (image,) = to_images(x)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 191, 255, 255]  # clamped, not stretched


def test_more_is_worked_at_once_where_freed_memory_is_kept(monkeypatch):
    x = torch.empty(1, 3, 256, 256, device="meta")
    monkeypatch.setattr("unpaired.heap._kept", False)
    assert room(x) == 1
    if keep_freed():
        assert room(x) == 4


@pytest.mark.parametrize(
    "status, said",
    [
        ("", "is not a run"),
        ("[]", "is not a run"),
        ('{"reason": "\\u001b[2J gone"}', r"no model so far: \\x1b\[2J gone"),
        ('{"reason": ""}', "it has not saved yet"),
    ],
)
def test_a_folder_without_a_model_is_told(tmp_path, status, said):
    """Whatever lies in it: it may be somebody else's."""
    (tmp_path / "status.json").write_text(status)
    with pytest.raises(ConfigProblem, match=said):
        Translator.load(tmp_path)


def test_sheet_has_the_input_at_its_left():
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    page = sheet([[red, blue, blue]])
    row = [page.getpixel((x, page.height // 2)) for x in range(page.width)]
    assert row.index((255, 0, 0)) < row.index((0, 0, 255))


def test_loading_draws_no_random_numbers_of_the_caller(run):
    torch.manual_seed(7)
    Translator.load(run)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


def test_names_that_differ_in_case_alone(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "Cat.png", "cat.jpg":
        Image.new("RGB", (16, 16)).save(tmp_path / "in" / name)
    names = [name for _, name in inputs(tmp_path / "in", tmp_path / "out", [])]
    assert len({name.casefold() for name in names}) == 2


def test_plausible_mistakes_are_one_sentence(run, photo, tmp_path, capsys):
    t = Translator.load(run)
    wrong = {
        "styles": lambda: t.translate(photo, to="painted", styles=0),
        "steps": lambda: t.interpolate(photo, 1, 2, to="painted", steps=0),
        "--sweep": lambda: t.sweep(photo, "painted", 0, low=float("nan")),
        "at least 2 --steps": lambda: t.sweep(photo, "painted", 0, steps=1),
        "finite": lambda: t.sweep(photo, "painted", 0, low=1, high=1),
        "list": lambda: t.translate([photo], to="painted"),
        r"\(1, 8\), not \(4, 8\)": lambda: t.interpolate(photo, torch.zeros(4, 8), 2, to="painted"),
        r"\(1, 8\), not \(1, 5\)": lambda: t.translate(
            photo, to="painted", style_from=torch.zeros(1, 5)
        ),
        "H, W, 3": lambda: t.translate(np.zeros((0, 5, 3), np.uint8), to="painted"),
    }
    for words, call in wrong.items():
        with pytest.raises(ConfigProblem, match=words):
            call()
    one = t.interpolate(photo, np.int64(1), 2, to="painted", steps=2)
    assert pixels(one[:1]) == pixels(t.translate(photo, "painted", styles=1, seed=np.int64(1)))
    for words, said in (
        (["translate", photo, run, "--to", "painted"], "The run comes first"),
        (["translate", run, photo, "--to", "all"], "say --source"),
        (
            ["translate", run, photo, "--to", "painted", "--sweep", "nan", "1", "--component", "0"],
            "finite",
        ),
    ):
        assert (
            main(
                [*map(str, words), "--out", str(tmp_path / "out")]
                if words[-1] != "0"
                else [*map(str, words)]
            )
            == 2
        )
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_words_that_nobody_asked_for_come_with_the_remedy(run, photo, capsys):
    for words, said in (
        (["translate", str(run), str(photo), str(photo), "--to", "painted"], "name one image"),
        (["train", "--method", "munit", "--steps", "10"], "train.steps=1000"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert said in capsys.readouterr().err


def test_a_model_that_has_learned_nothing_is_named(tmp_path, photo, capsys):
    path = tmp_path / "run"
    train.fit(tiny.run("munit", steps=1), RunFolder(path), say=str)
    tensors, about = load_model(path / "model.safetensors")
    save_model(path / "model.safetensors", tensors, about | {"step": "0"})
    words = ["translate", str(path), str(photo), "--to", "painted", "--out", str(tmp_path / "out")]
    assert main(words) == 0 and "Nothing is learned yet" in capsys.readouterr().out
    (path / "model.safetensors").unlink()
    RunFolder(path).write_status("failed", 0, "no images", 65)
    assert main(words) == 2 and "no model so far: no images" in capsys.readouterr().err


def test_titles_and_names_of_columns_fit():
    cell = Image.new("RGB", (40, 40))
    narrow = sheet(
        [[cell, cell]], ["", "a very long name of a domain"], "mean styles of the domains"
    )
    assert narrow.width > 150
    dark = [
        x
        for x in range(narrow.width)
        if min(narrow.getpixel((x, y))[0] for y in range(30, 40)) < 150
    ]
    assert dark and max(dark) <= 4 + 12 + 2 * 44  # the column's right end
    font = pictures.ImageFont.load_default(size=12)
    assert pictures.readable("große Kätzchen 🐱", font).startswith(
        "gro"
    ) and "a" in pictures.readable("ä", font)
    assert "\n" not in pictures.readable("été\n\r\x85\u2029", font)
    for name in "été\n", "a\r\x1c", "🐕\u2029":  # the system's fonts refuse some of these
        sheet([[cell]], [name], title=name)
    assert sheet([[cell]], title="große Kätzchen 🐱").width >= sheet([[cell]], title="g").width


def test_arrays_that_cannot_be_written_to(run):
    """A copy is made; torch warns of them otherwise."""
    image = np.zeros((16, 20, 3), np.uint8)
    image.flags.writeable = False
    assert pictures.from_array(image).shape == (1, 3, 16, 20)
