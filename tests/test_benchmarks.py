"""The benchmarks that compare methods: two-step runs, gone on with where they were stopped, and their tables."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unpaired.cli import main
from unpaired.config import load
from unpaired.train import Trainer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import ablation_dsm  # noqa: E402
import identifiability  # noqa: E402
import loader  # noqa: E402
import quality  # noqa: E402
import results  # noqa: E402
import running  # noqa: E402
import serve  # noqa: E402
import steps  # noqa: E402
import table1  # noqa: E402
import translate  # noqa: E402


def canned(run):
    """What `unpaired evaluate` writes, as far as the tables read it; the numbers tell the run."""
    at = len(run.name) / 100
    row = {"KID (classifier)": at, "pixel diversity": at / 2}
    floors = {"real images": {"KID (classifier)": 0.001}, "untranslated": {"KID (classifier)": 0.3}}
    rows = {"model": row, **floors, "untrained": {"pixel diversity": 0.0}}
    way = "output" if "pix2pix" in run.name else "latent"
    fixed = rows | {"model": {"KID (classifier)": at}}
    return {
        "step": running.status(run)["step"],
        "directions": [
            {"name": "outline to painted", "way": way, "rows": rows if way == "latent" else fixed},
            {
                "name": "painted to outline",
                "way": "latent",
                "rows": rows | {"model": {"KID (classifier)": 9}},
            },
            {"name": "lineart to noto", "way": "latent", "rows": rows},
        ],
        "means": {"latent": {"model": row}, "reference": {"model": row}},
        "styles": {"outline": {"style gap": 0.2}, "painted": {"style gap": 0.4, "MCC": 0.1}},
        "scenes": {
            "outline to painted": {
                "model": {"content kept": 0.5},
                "untranslated": {"content kept": 0.1},
                "untrained": {"content kept": 0.2},
            }
        },
        "networks": {"classifier": {"accuracy": 0.97}, "squeezenet": {}},
        "left out": ["nothing, but it was quick."],
        "seconds": 12.0,
    }


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Commands run here, without processes; those that ran."""
    seen = []

    class Here:
        def __init__(self, *words):
            self.words = [*map(str, words)]

        def wait(self, timeout=None):
            seen.append(self.words)
            if self.words[0] == "evaluate":
                run = Path(self.words[1])
                (run / "metrics.json").write_text(json.dumps(canned(run)))
                return 0
            return main(self.words)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "start", Here)
    monkeypatch.setattr(Trainer, "sample", lambda self: None)
    return seen


SMALL = ["data.count=8", "data.batch=4", "train.sample_every=1000"]
MUNIT = ["method.dim=4", "method.mlp_dim=8", "method.d_dim=4"]


def cells(text, run):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {run} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_1_of_two_steps_is_made_once(commands, tmp_path, capsys):
    words = ["--steps", "2", "--only", "CycleGAN with noise", "pix2pix (pairs)", *SMALL]
    words += ["method.dim=4", "method.d_dim=4"]
    table1.main(words)
    trains = [w for w in commands if w[0] == "train"]
    assert [w[w.index("--method") + 1] for w in trains] == ["cyclegan", "pix2pix"]
    text = Path("runs/table1/table.md").read_text()
    assert "| run | KID (classifier) | pixel diversity | content kept | steps |" in text
    assert cells(text, "CycleGAN with noise") == [
        "CycleGAN with noise",
        "0.19",
        "0.095",
        "0.5",
        "2",
    ]
    assert cells(text, "pix2pix (pairs)")[2:] == ["0", "0.5", "2"]  # one output is no variety
    assert cells(text, "real images")[1] == "0.001"
    done = len(commands)
    table1.main(words)
    assert len(commands) == done and Path("runs/table1/table.md").read_text() == text
    Path(
        "runs/table1/scenes/pix2pix-(pairs)/metrics.json"
    ).unlink()  # stopped before it was measured
    table1.main(words)
    assert [w[0] for w in commands[done:]] == ["evaluate"]
    Path("runs/table1/scenes/pix2pix-(pairs)/metrics.json").unlink()
    table1.main([*words, "--lpips", "trunk", "heads"])
    assert commands[-1][2:] == ["--paired", "--lpips", "trunk", "heads"]


def test_table_1_on_emoji_takes_symbols_that_are_in_both(commands, tmp_path):
    root = tmp_path / "emoji ä"
    for split in ("train", "test"):
        for domain, names in (("lineart", "abcd"), ("noto", "bcde"), ("other", "ab")):
            (root / split / domain).mkdir(parents=True)
            for name in names:
                pixels = np.full((32, 32, 3), ord(name), np.uint8)
                Image.fromarray(pixels).save(root / split / domain / f"{name}.png")
    words = ["--steps", "1", "--emoji", str(root), "--only", "MUNIT", *SMALL, *MUNIT]
    table1.main(words)
    pairs = Path("runs/table1/emoji-pairs/train")
    assert {d.name: sorted(p.name for p in d.iterdir()) for d in pairs.iterdir()} == {
        domain: ["b.png", "c.png", "d.png"] for domain in ("lineart", "noto")
    }
    assert "## emoji: lineart to noto" in Path("runs/table1/table.md").read_text()
    assert commands[-1][-1] == "--paired"


def test_table_1_names_its_features_and_has_no_cells_without_a_number():
    row = {"KID (classifier)": 1.0, "KID (squeezenet)": 2.0, "paired LPIPS (squeeze)": None}
    figures = {"directions": [{"name": "a to b", "way": "output", "rows": {"model": row}}]}
    assert table1.row_of(figures, "a to b") == {"KID (squeezenet)": 2.0}


def test_all_runs_of_table_1_are_on_equal_terms():
    terms = set()
    for method, *settings in table1.RUNS.values():
        run = load(None, settings, method={"name": method}, preset="small")
        rate = run.optim["default"]
        terms.add((run.data.hw, run.data.batch, run.train, rate.betas, rate.decay))
    assert len(terms) == 1


def test_a_run_that_has_had_its_minutes_counts_as_done(tmp_path, monkeypatch):
    run, sent = tmp_path / "run", []

    class Slow:
        def __init__(self, *words):
            run.mkdir(exist_ok=True)
            (run / "status.json").write_text(json.dumps({"status": "running", "step": 3}))

        def wait(self, timeout=None):
            if timeout is not None:
                raise running.subprocess.TimeoutExpired("train", timeout)
            return 143

        def send_signal(self, number):
            sent.append(number)
            (run / "status.json").write_text(json.dumps({"status": "preempted", "step": 7}))

    monkeypatch.setattr(running, "start", Slow)
    ticks = iter((100.0, 161.0))
    monkeypatch.setattr(running.time, "monotonic", lambda: next(ticks))
    assert running.trained(run, minutes=1) == 7 and sent == [15]
    assert running.trained(run, minutes=1) == 7 and sent == [15]  # not once more


def test_a_run_that_fails_stops_the_benchmark(tmp_path, monkeypatch, commands):
    with pytest.raises(SystemExit) as stop:
        running.trained(tmp_path / "run", "--method", "munitt", minutes=1)
    assert "ended with code 2" in str(stop.value.code)


def test_a_run_of_other_settings_is_not_taken_for_this_one(commands, tmp_path):
    words = [*"--method munit --preset small --data scenes train.steps=1".split(), *SMALL, *MUNIT]
    running.trained(tmp_path / "run", *words, minutes=1)
    running.trained(tmp_path / "run", *words, minutes=1)
    with pytest.raises(SystemExit, match="train.seed=1"):
        running.trained(tmp_path / "run", *words, "train.seed=1", minutes=1)


def test_ablation_of_dsm_in_two_steps(commands, monkeypatch):
    words = ["--steps", "2", "--only", "DSM without flow", "StarGAN v2"]
    words += [*SMALL, "method.width=512", "method.max_dim=16", "method.mlp_dim=8"]
    monkeypatch.setattr(ablation_dsm, "SCENES", "outline, painted, neon")
    monkeypatch.setattr(ablation_dsm, "STYLED", 8)
    ablation_dsm.main(words)
    text = Path("runs/ablation_dsm/table.md").read_text()
    assert text.count("| DSM without flow |") == text.count("| StarGAN v2 |") == 3
    assert "| run | style gap | dependence | steps |" in text
    assert cells(text.partition("all domains")[2], "StarGAN v2")[1] == "0.3"  # of 0.2 and 0.4
    assert "content kept" in text and "by styles of references" in text
    config = Path("runs/ablation_dsm/scenes/DSM-without-flow/config.yaml").read_text()
    assert "flow: false" in config
    done = len(commands)
    ablation_dsm.main(words)
    assert len(commands) == done
    ablation_dsm.main([*words[:2], "--sets", "choices", "--only", "DSM, bins 4", *words[5:]])
    assert "bins: 4" in Path("runs/ablation_dsm/choices/DSM-bins-4/config.yaml").read_text()


def test_ablation_of_dsm_on_digits_and_emoji(commands, tmp_path):
    rng, arrays = np.random.default_rng(0), {}
    for name, side in (("mnist", 28), ("usps", 16), ("mnistm", 32)):
        for split, n in (("train", 6), ("test", 4)):
            colour = (3,) if name == "mnistm" else ()
            arrays[f"{name}_x_{split}"] = rng.integers(0, 255, (n, side, side, *colour), np.uint8)
            arrays[f"{name}_y_{split}"] = np.arange(n, dtype=np.uint8) % 2
    np.savez(tmp_path / "digits.npz", **arrays)
    emoji = tmp_path / "emoji"
    for split in ("train", "test"):
        for domain in ("lineart", "noto"):
            (emoji / split / domain).mkdir(parents=True)
            for name in "abcd":
                pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(emoji / split / domain / f"{name}.png")
    words = ["--steps", "1", "--digits", str(tmp_path / "digits.npz"), "--emoji", str(emoji)]
    words += ["--sets", "digits", "emoji", "--only", "StarGAN v2", *SMALL]
    ablation_dsm.main([*words, "method.width=512", "method.max_dim=16", "method.mlp_dim=8"])
    assert (ablation_dsm.OUT / "data/digits/train/usps/1/3.png").exists()  # its label is measured
    digits, emoji = (w for w in commands if w[0] == "evaluate")
    assert "--paired" in emoji and "--paired" not in digits
    text = Path("runs/ablation_dsm/table.md").read_text()
    assert "## digits" in text and "## emoji" in text and "## scenes" not in text


def test_dependence_of_components():
    z = np.random.default_rng(0).standard_normal((500, 3))
    assert ablation_dsm.dependent(z) < 0.06
    turned = z @ np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    assert ablation_dsm.dependent(turned) < 0.06  # of Gaussians a turn is as independent
    signless = np.stack([z[:, 0], z[:, 0] ** 2], 1)  # uncorrelated, and one follows from the other
    assert ablation_dsm.dependent(signless) > 0.3
    assert ablation_dsm.dependent(np.stack([z[:, 0], np.exp(z[:, 0])], 1)) > 0.9


def test_every_ablation_is_a_config():
    runs = ablation_dsm.RUNS | ablation_dsm.CHOICES | table1.RUNS
    for method, *settings in runs.values():
        load(None, settings, method={"name": method}, preset="small")


def test_unknown_runs_are_named():
    for benchmark in (table1, ablation_dsm):
        with pytest.raises(SystemExit, match="no run 'MUNITT'"):
            benchmark.main(["--only", "MUNITT"])


# Identifiability -----------------------------------------------------------------------------------------------------


def test_mixing_is_inverted():
    for n in (2, 3):
        mixing, s = identifiability.Mixing(n, 0), torch.randn(50, n)
        torch.testing.assert_close(mixing.inverse(mixing(s)), s, rtol=1e-4, atol=1e-4)
        slopes = torch.autograd.functional.jacobian(mixing, s[0])
        assert (slopes.abs() > 1e-3).all()  # it mixes


def test_correlation_is_taken_within_domains():
    rng = np.random.default_rng(0)
    domain = np.repeat(np.arange(4), 500)
    means = 10 * rng.standard_normal((4, 2))
    s = means[domain] + rng.standard_normal((2000, 2))
    assert identifiability.within(s, means[domain] + rng.standard_normal((2000, 2)), domain) < 0.1
    swapped = np.stack([np.exp(s[:, 1] - means[domain][:, 1]), -s[:, 0]], 1)
    assert identifiability.within(s, swapped, domain) == pytest.approx(1, abs=1e-6)


def test_factors_that_are_mixed_are_told_from_factors_that_are_lost():
    rng = np.random.default_rng(0)
    s, domain = rng.standard_normal((2000, 2)), np.repeat(np.arange(2), 1000)
    turned = s @ np.array([[1, -1], [1, 1]]) / 2**0.5
    assert identifiability.within(s, turned, domain) < 0.75
    assert identifiability.together(s, turned, domain) > 0.95
    lost = np.stack([s[:, 0], rng.standard_normal(2000)], 1)
    assert identifiability.together(s, lost, domain) < 0.6
    assert identifiability.chance(1) == pytest.approx(1)
    assert identifiability.chance(2) == pytest.approx(4 / np.pi * np.sin(np.pi / 4), abs=0.01)


def test_the_gap_of_scenes_is_of_each_factor_in_each_domain():
    a = np.random.default_rng(0).standard_normal((3, 50, 2))
    assert identifiability.distance(a, a[:, ::-1]) == 0  # the order of the images is free
    assert identifiability.distance(a, a[::-1]) > 0.1  # that of the domains is not
    assert identifiability.distance(a, a + [1, 0]) == pytest.approx(0.5)


def test_a_generator_that_is_the_mixing_scores_one():
    mixing = identifiability.Mixing(2, 0)
    torch.manual_seed(0)
    mean, deviation = torch.randn(3, 2), torch.rand(3, 2) + 0.3

    class True_(torch.nn.Module):
        def forward(self, z, u):
            return (mean[u] + deviation[u] * z).flip(1)  # the order is free

    figures = identifiability.vector_figures(
        True_(), lambda s: mixing(s.flip(1)), mixing, mean, deviation
    )
    assert figures["MCC"] > 0.999 and figures["gap"] < 1.5


def test_vectors_are_a_table_and_a_figure_made_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(identifiability, "DOMAINS", {2: (2, 3, 4), 3: (2, 3)})
    words = ["vectors", "--steps", "2", "--seeds", "2", "--K", "2", "3"]
    identifiability.main(words)
    out = Path("runs/identifiability")
    assert len(list(out.glob("vectors-flow-*.json"))) == 8
    text, drawn = (out / "vectors.md").read_text(), (out / "vectors.svg").read_text()
    assert "| flow | 3 | 2 | below 7 |" in text and drawn.count("<circle") == 8
    monkeypatch.setattr(identifiability, "vectors", None)  # not run again
    identifiability.main(words)
    assert (out / "vectors.md").read_text() == text


def test_scenes_in_two_steps(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(identifiability, "IMAGES", 6)
    monkeypatch.setattr(identifiability, "HELD_OUT", 5)
    monkeypatch.setattr(identifiability, "SCENE_DOMAINS", {2: (3,)})
    monkeypatch.setattr(identifiability, "READER_IMAGES", 4)
    small = ["data.batch=4", "method.width=512", "method.max_dim=16", "method.mlp_dim=8"]
    words = ["scenes", "--steps", "2", "--seeds", "1", *small]
    identifiability.main(words)
    text = Path("runs/identifiability/scenes.md").read_text()
    assert "| dsm | 2 | 3 | below 5 |" in text and "| stargan_v2 | 2 | 3 | below 5 |" in text
    assert "MCC of drawn styles" in text
    figures = json.loads(next(Path("runs/identifiability").glob("scenes-dsm*.json")).read_text())
    assert figures["step"] == 2 and 0 <= figures["MCC"] <= figures["together"] <= 1
    assert figures["gap"] > 1  # untrained
    swept = Image.open(next(Path("runs/identifiability").glob("dsm*/components.png")))
    side = 32 * 2 + 8  # shown twice as large, gaps included
    assert swept.height > 8 * side and swept.width > 9 * side and len(swept.getcolors(10**6)) > 20
    assert [w[0] for w in commands] == ["train", "train"]
    identifiability.main(words)
    assert len(commands) == 2


# Results -------------------------------------------------------------------------------------------------------------


def test_results_have_a_line_for_each_figure_beside_floors_and_cost(commands, tmp_path):
    arrays, rng = {}, np.random.default_rng(0)
    for name, shape in (("mnist", (28, 28)), ("mnistm", (32, 32, 3))):
        for split, n in (("train", 24), ("test", 10)):
            arrays[f"{name}_x_{split}"] = rng.integers(0, 255, (n, *shape), dtype=np.uint8)
            arrays[f"{name}_y_{split}"] = np.arange(n) % 10
    np.savez(tmp_path / "digits ä.npz", **arrays)
    words = ["--digits", "digits ä.npz", "--only", "scenes", "digits", "train.steps=2", *SMALL]
    results.main([*words, *MUNIT])
    text = Path("runs/results/table.md").read_text()
    _, both, digits = text.split("\n## ")
    about, scenes, _, _, styles = both.split("\n### ")
    names = ["real images", "MUNIT, random styles", "untranslated", "untrained, random styles"]
    assert cells(scenes, "")[1:] == names
    assert cells(scenes, "KID (classifier) ↓")[1:] == ["0.001", "0.06", "0.3", ""]
    assert cells(scenes, "content kept ↑")[1:] == ["", "0.5", "0.1", "0.2"]
    assert cells(scenes, "steps")[1:] == ["", "2", "", "0"]
    assert float(cells(scenes, "training, minutes")[2]) >= 0
    assert "classifier: right for 97.0%" in about and "and measured in 0.2" in about
    assert cells(styles, "style gap ↓")[1:] == ["0.2", "0.4"] and "- Note: it was quick." in digits
    assert Path("runs/results/data/digits/test/mnistm/9/9.png").exists()
    assert (commands[0][1], commands[2][1:3]) == (str(results.CONFIG), ["--method", "munit"])
    assert ["--paired" in w for w in commands] == [False, True, False, False]
    assert [w[0] for w in commands] == ["train", "evaluate"] * 2
    results.main([*words, *MUNIT])
    assert len(commands) == 4 and Path("runs/results/table.md").read_text() == text


def test_loading_is_measured_beside_what_a_method_consumes(monkeypatch, capsys):
    monkeypatch.setenv("UNPAIRED_CACHE", "")  # put back afterwards
    small = {"preset": "small", "method": {"name": "munit", "dim": 4, "mlp_dim": 8, "d_dim": 4}}
    monkeypatch.setattr(loader, "FAST", {"munit": steps.Case(small, ())})
    words = "--workers 0 --count 2 --seconds 0.05 --rounds 1".split()
    loader.main(words)
    out = capsys.readouterr().out
    assert "4 JPEGs of 512 px" in out and "| munit | 32 | 32-true | 16 |" in out
    (row,) = [line.split(" | ") for line in out.splitlines() if line.startswith("| 32 | 0 |")]
    assert float(row[2]) > 0 and float(row[3]) > 0  # decoded, and from the cache


def test_translating_is_measured_beside_the_plain_loop(capsys):
    words = "--images 3 --styles 2 --size 64 --dim 4 --turns 2 --starts 0".split()
    translate.main(words)
    out = capsys.readouterr().out
    row = next(line.split(" | ") for line in out.splitlines() if line.startswith("| ours"))
    assert float(row[3]) > 0 and float(row[4]) < 0.1 and row[5].startswith(("0", "1"))


def test_the_server_is_measured_under_overload(capsys):
    serve.main("--size 64 --dim 4 --times 3 --seconds 2".split())
    rows = {row.split(" | ")[0].strip("| "): row for row in capsys.readouterr().out.splitlines()}
    assert "none | none" in rows["other answers"] and "%" in rows["answered, of capacity"]


def test_figures_of_another_protocol_are_measured_anew(commands, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    (run / "status.json").write_text('{"step": 3}')
    (run / "metrics.json").write_text('{"step": 3}')  # as kept: by which words is not known
    assert running.measured(run, 3, "--protocol", "munit") == {"step": 3} and not commands
    (run / "measured.json").write_text('["--protocol", "quick"]')
    assert running.measured(run, 3, "--protocol", "quick") == {"step": 3} and not commands
    running.measured(run, 3, "--protocol", "munit")
    assert commands[-1][0] == "evaluate" and commands[-1][2:] == ["--protocol", "munit"]
    running.measured(run, 3, "--protocol", "munit")
    assert len(commands) == 1


def test_figures_of_other_settings_are_not_taken_for_these(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(identifiability, "SCENE_DOMAINS", {2: (3,)})
    file = Path("runs/identifiability/scenes-dsm-n2-K3-seed0-800.json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"MCC": 0.5, "settings": ["train.precision=32-true"]}))
    words = ["scenes", "--seeds", "1", "--only", "dsm"]
    identifiability.main([*words, "train.precision=32-true"])
    with pytest.raises(SystemExit, match="32-true.*give the same"):
        identifiability.main(words)
    with pytest.raises(SystemExit, match="settings are for runs on scenes"):
        identifiability.main(["vectors", "method.apart=1"])


def test_quality_is_compared_within_the_spread_of_seeds(commands, capsys):
    small = [*SMALL, *MUNIT, "train.steps=2"]
    quality.main(["--seeds", "0", "1", "--only", "bf16", *small])
    assert [w[0] for w in commands] == [
        "train",
        "evaluate",
    ] * 2 and not capsys.readouterr().out.count("| KID")
    quality.main(["--seeds", "0", "1", *small])
    assert [w[0] for w in commands] == ["train", "evaluate"] * 6
    text = Path("runs/quality/table.md").read_text()
    assert (
        "scenes, seeds 0, 1" in text
        and "| content kept ↑ | 0.5 (0.5 to 0.5) | 0.5 (0.5 to 0.5) | 0.5 (0.5 to 0.5) |  |" in text
    )
    told = {"fp32": [1.0, 1.2], "bf16": [1.1, 1.3]}
    assert quality.row("SWD", told)[-1] == ""
    assert quality.row("SWD", told | {"shared": [2.0, 2.1]})[-1] == "shared"
