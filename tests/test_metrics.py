"""Metrics against golden numbers (scipy, scikit-learn, prdc), and against what they must be by definition."""

import itertools
import math

import golden_numbers
import numpy as np
import pytest
import torch

from unpaired.metrics import distances, evaluation, matching, rows, scores, table

GOLDEN = golden_numbers.load("metrics")


def given(name):
    return golden_numbers.given(GOLDEN, f"metrics.{name}")


# Frechet ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, a, b",
    [("x_and_y", "x", "y"), ("x_and_x", "x", "x"), ("x_and_y_few_singular", "x", "y_few")],
)
def test_frechet_is_golden(case, a, b):
    golden = GOLDEN["frechet_distance"]["values"][case]
    x, y = given(a), given(b)
    # The golden root of the singular product is good to 7e-8: in 40 digits its trace is 15.440563969290854.
    tolerance = 1e-7 if "singular" in case else 1e-9
    assert distances.frechet(x, y) == pytest.approx(golden["distance"], rel=tolerance, abs=1e-9)
    gathered = distances.moments_of(len(y), y.mean(0), y.T.cov())  # from sums
    assert distances.frechet(x, gathered) == pytest.approx(golden["distance"], rel=1e-7, abs=1e-6)


def test_frechet_of_a_singular_covariance_in_forty_digits():
    a, b = (distances.moments(given(name)) for name in ("x", "y_few"))
    trace = torch.linalg.svdvals(a.root @ b.root.T).sum()
    assert float(trace) == pytest.approx(15.44056396929085437, rel=1e-14)


def textbook(x, y):
    """The formula as printed, by the root of a symmetric matrix: C_x^(1/2) C_y C_x^(1/2) has C_x C_y's eigenvalues."""
    c_x, c_y = x.T.cov(), y.T.cov()
    values, vectors = torch.linalg.eigh(c_x)
    half = vectors * values.clamp(min=0).sqrt() @ vectors.T
    root = torch.linalg.eigvalsh(half @ c_y @ half).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + c_x.trace() + c_y.trace() - 2 * root)


@pytest.mark.parametrize("n, m, d", [(300, 200, 20), (30, 40, 64), (10, 200, 64), (200, 10, 64)])
def test_frechet_is_the_textbooks_also_without_full_rank(n, m, d):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = 0.3 + 1.5 * torch.randn(m, d, generator=g, dtype=torch.float64)
    assert distances.frechet(x, y) == pytest.approx(textbook(x, y), rel=1e-6)
    assert distances.frechet(y, x) == pytest.approx(distances.frechet(x, y), rel=1e-12)
    assert distances.frechet(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


# KID, precision and recall, density and coverage, energy ------------------------------------------


@pytest.mark.parametrize("block", [1024, 7])
def test_kid_is_golden(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    x, y, golden = given("x"), given("y"), GOLDEN["kernel_distance"]
    assert distances.kid(x, y) == pytest.approx(golden["x_and_y_unbiased"], rel=1e-9)
    assert distances.kid(x, y, unbiased=False) == pytest.approx(golden["x_and_y_biased"], rel=1e-9)


def test_kid_of_subsets_has_the_same_mean():
    x, y = given("x"), given("y")
    g = torch.Generator().manual_seed(0)
    some = [
        distances.kid(*(s[torch.randperm(len(s), generator=g)[:60]] for s in (x, y)))
        for _ in range(200)
    ]
    error = float(torch.tensor(some).std() / len(some) ** 0.5)
    assert abs(sum(some) / len(some) - distances.kid(x, y)) < 5 * error


@pytest.mark.parametrize("block", [1024, 7])
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("x, y", [("x", "y"), ("x", "y_near"), ("x_three", "y_three")])
def test_manifold_is_golden(x, y, k, block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    golden = GOLDEN["precision_recall_density_coverage"]["values"][f"{x}_and_{y}_k_{k}"]
    assert distances.manifold(given(x), given(y), k)._asdict() == pytest.approx(golden, rel=1e-6)


def test_manifold_of_copies():
    x = given("x")
    assert distances.manifold(x, x).coverage == 1 and distances.manifold(x, x).precision == 1
    far = distances.manifold(x, x + 100)
    assert far == (0, 0, 0, 0)


def test_energy_is_zero_for_one_distribution_and_grows():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 8, generator=g), torch.randn(500, 8, generator=g)
    same, near, far = (distances.energy(x, y + s) for s in (0, 0.5, 50))
    assert abs(same) < 0.01 < near < far <= 1
    assert far > 0.9
    assert distances.energy(3 * x, 3 * y + 1.5) == pytest.approx(near, abs=1e-9)  # no unit
    wide = distances.energy(x, 3 * y)
    assert wide > 0.05  # equal means do not hide it
    assert distances.energy(torch.ones(5, 2), torch.ones(6, 2)) == 0


# Scores -------------------------------------------------------------------------------------------


def test_inception_score_is_golden():
    golden, logits = GOLDEN["inception_score"], given("is.logits")
    got = scores.inception_score(logits)
    assert got.nats == pytest.approx(golden["mean_kl"], rel=1e-9)
    assert got.exponential == pytest.approx(golden["score"], rel=1e-9)
    parts = [scores.inception_score(part).exponential for part in logits.chunk(6)]
    assert parts == pytest.approx(golden["scores_of_six_consecutive_parts"], rel=1e-9)


def test_conditional_inception_score_is_golden():
    golden, logits = GOLDEN["conditional_inception_score"], given("cis.logits")
    got = scores.conditional_inception_score(logits)
    assert got.nats == pytest.approx(golden["not_exponentiated"], rel=1e-9)
    assert got.exponential == pytest.approx(golden["exponentiated"], rel=1e-9)
    over_all = scores.inception_score(logits.flatten(0, 1))
    assert over_all.nats == pytest.approx(
        golden["inception_score_over_all_outputs_not_exponentiated"], rel=1e-9
    )
    assert over_all.exponential == pytest.approx(
        golden["inception_score_over_all_outputs_exponentiated"], rel=1e-9
    )
    alike = logits[:, :1].expand(-1, 5, -1)
    assert scores.conditional_inception_score(alike).nats == pytest.approx(0, abs=1e-12)
    certain = torch.tensor([[[800.0, 0, 0], [0, 800, 0]]])  # probabilities of exactly 0
    assert scores.conditional_inception_score(certain).nats == pytest.approx(math.log(2))


def test_path_smoothness_is_golden():
    golden = golden_numbers.load("smoothgan")
    ps = golden["units"]["ps"]
    steps, ends = (golden_numbers.given(golden, f"smoothgan.ps.{n}") for n in ("distances", "ends"))
    steps[1], steps[2, :10] = 0.05, 0  # what `distances_used` says of itself
    got = scores.path_smoothness(steps, ends)
    assert got.tolist() == pytest.approx(ps["ps"], rel=1e-9)
    still = scores.path_smoothness(torch.zeros(1, 19), torch.zeros(1))
    assert float(still) == 0


def test_sliced_wasserstein():
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(80, 3, 32, 32, generator=g) * 2 - 1
    flat = noise.mean((2, 3), keepdim=True).expand_as(noise) * 5
    a, b = noise[:40], noise[40:]
    same, other = scores.sliced_wasserstein(a, b), scores.sliced_wasserstein(a, flat[40:])
    assert same < 0.3 * other
    assert scores.sliced_wasserstein(a, a) == 0
    cast = (b / 3 + torch.tensor([0.6, -0.5, 0]).view(3, 1, 1)).clamp(-1, 1)
    assert scores.sliced_wasserstein(a, cast) > 5 * same  # of colour, and little contrast
    assert scores.sliced_wasserstein(a, b[:7]) > 0  # unequal numbers
    two = torch.cat([a, flat[:40]])  # sorted by kind
    mixed = torch.stack([a[::2], flat[:40:2]], 1).flatten(0, 1)
    assert scores.sliced_wasserstein(two, mixed) < 0.5 * scores.sliced_wasserstein(a, mixed)
    assert scores.sliced_wasserstein(a[..., :12, :20], b[..., :12, :20]) > 0  # below 16 px


# Matching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["five_clusters", "seven_clusters"])
def test_clustering_is_golden(case):
    golden = GOLDEN["clustering"][case]
    got = matching.clustering(np.array(golden["true"]), np.array(golden["predicted"]))
    assert got.accuracy == pytest.approx(golden["accuracy"], rel=1e-12)
    assert got.nmi == pytest.approx(golden["nmi_arithmetic"], rel=1e-9)
    assert got.ari == pytest.approx(golden["ari"], rel=1e-9)


def test_clustering_at_its_ends():
    true = np.repeat([0, 1, 2], 10)
    assert matching.clustering(true, (true + 1) % 3) == pytest.approx((1, 1, 1))
    assert matching.clustering(true, np.zeros(30, int)) == pytest.approx((1 / 3, 0, 0))
    assert matching.clustering(np.zeros(5, int), np.zeros(5, int)) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_mean_correlation_is_golden(kind):
    s, golden = given("mcc.sources").numpy(), GOLDEN["mean_correlation_coefficient"][kind]
    columns = [-(s[:, 2] ** 3), np.tanh(2 * s[:, 0]), np.exp(s[:, 3]), s[:, 1] + 0.5 * s[:, 0]]
    estimate = np.stack(columns, 1) + given("mcc.noise").numpy()
    got = matching.mean_correlation(s, estimate, ranks=kind == "spearman")
    assert got.mean == pytest.approx(golden["mcc"], rel=1e-9)
    assert list(got.components) == golden["assignment_source_to_estimate"]
    r = matching.correlations(s, estimate, kind == "spearman")
    assert np.allclose(r, golden["correlation_source_by_estimate"], rtol=0, atol=1e-12)


def test_mean_correlation_with_other_numbers_of_components():
    rng = np.random.default_rng(0)
    factors = rng.random((50, 3))
    more = np.concatenate([rng.random((50, 2)), -factors[:, ::-1], np.ones((50, 1))], 1)
    assert matching.mean_correlation(factors, more) == (pytest.approx(1), (4, 3, 2))
    fewer = matching.mean_correlation(factors, factors[:, 1:2])
    assert fewer.mean == pytest.approx(1 / 3) and fewer.components == (-1, 0, -1)
    tied = np.repeat([0.0, 1.0], 25)
    assert matching.mean_ranks(tied).tolist() == [13.0] * 25 + [38.0] * 25


@pytest.mark.parametrize("n, m", [(1, 1), (3, 3), (4, 6), (6, 4), (5, 5)])
def test_assign_is_the_best_of_all(n, m):
    rng = np.random.default_rng(n * 10 + m)
    for kind in range(30):
        cost = rng.normal(size=(n, m)) if kind % 2 else rng.integers(-3, 3, (n, m))
        rows, columns = matching.assign(cost)
        assert len(set(rows)) == len(set(columns)) == min(n, m)
        small = cost if n <= m else cost.T
        best = min(
            sum(small[i, p] for i, p in enumerate(order))
            for order in itertools.permutations(range(max(n, m)), min(n, m))
        )
        assert cost[rows, columns].sum() == pytest.approx(best)


def test_the_table_says_all_of_every_metric():
    for m in table.METRICS.values():
        assert m.better in ("higher", "lower", "-") and m.range[0] in "[a" and m.source and m.says
    assert table.metric("KID (squeezenet)").arrow == "↓" and table.metric("change").arrow == ""
    with pytest.raises(KeyError):
        table.metric("quality")


# Protocols ----------------------------------------------------------------------------------------


def test_protocols_make_as_many_outputs_and_pairs_as_the_papers():
    munit, starganv2, tunit = (evaluation.PROTOCOLS[n] for n in ("munit", "starganv2", "tunit"))
    assert munit.varied == (100, 38) and munit.pairs == "disjoint"
    a, b = rows.pairs_of(38, munit.pairs)
    assert len(a) == len(b) == 19 and sorted(a + b) == list(range(38))
    assert starganv2.outputs == 10 and starganv2.varied == (None, 10)
    assert len(set(zip(*rows.pairs_of(10, starganv2.pairs), strict=True))) == 45
    assert tunit.outputs == 5
    assert all(p.inputs is None and p.real is None for p in (munit, starganv2, tunit))  # all
