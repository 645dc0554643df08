"""Scores that first match two things one to one: clusters with classes, style components with true factors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Clustering(NamedTuple):
    """How well found clusters agree with true classes."""

    accuracy: float
    nmi: float
    ari: float


def clustering(true: np.ndarray, found: np.ndarray) -> Clustering:
    """Accuracy by the best one-to-one assignment, NMI (arithmetic mean) and ARI of two labellings (N,) of integers.

    With more clusters than classes, clusters that get no class count as wrong. NMI: Strehl and Ghosh, JMLR 2002; ARI:
    Hubert and Arabie, J. Classification 1985; accuracy: Yang et al., 2010, as in TUNIT.
    """
    table = contingency(true, found)
    rows, columns = assign(-table)
    return Clustering(
        float(table[rows, columns].sum() / table.sum()), nmi(table), adjusted_rand(table)
    )


def contingency(true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """How many have true class i and found cluster j, (classes, clusters)."""
    _, t = np.unique(true, return_inverse=True)
    _, f = np.unique(found, return_inverse=True)
    table = np.zeros((t.max() + 1, f.max() + 1), np.int64)
    np.add.at(table, (t, f), 1)
    return table


def nmi(table: np.ndarray) -> float:
    """Mutual information over the mean of both entropies; 1 where both sides have one class only."""
    p = table / table.sum()
    p_t, p_f = p.sum(1), p.sum(0)
    h_t, h_f = (float(-(q * np.log(q)).sum()) for q in (p_t, p_f))
    seen = p > 0
    information = float((p[seen] * np.log(p[seen] / np.outer(p_t, p_f)[seen])).sum())
    return information / ((h_t + h_f) / 2) if h_t + h_f > 0 else 1.0


def adjusted_rand(table: np.ndarray) -> float:
    """The share of pairs that both sides treat alike, 0 for chance; 1 where both have one class only."""

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, t, f, total = pairs(table), pairs(table.sum(1)), pairs(table.sum(0)), pairs(table.sum())
    chance, most = t * f / max(total, 1), (t + f) / 2
    return (both - chance) / (most - chance) if most != chance else 1.0


class Correlation(NamedTuple):
    """Mean |correlation| of each factor with its component, and which component (-1: none) it is."""

    mean: float
    components: tuple[int, ...]


def mean_correlation(
    factors: np.ndarray, components: np.ndarray, ranks: bool = False
) -> Correlation:
    """MCC: mean absolute correlation of true factors (N, n) with the components (N, m) assigned to them.

    The assignment is the one to one that makes the mean largest (Hyvarinen and Morioka, NIPS 2016). ranks: Spearman's
    correlation in place of Pearson's. A constant component correlates with nothing; a factor without one counts 0.
    """
    r = np.abs(correlations(factors, components, ranks))
    rows, columns = assign(-r)
    matched = np.full(r.shape[0], -1)
    matched[rows] = columns
    return Correlation(float(r[rows, columns].sum() / r.shape[0]), tuple(matched.tolist()))


def correlations(a: np.ndarray, b: np.ndarray, ranks: bool = False) -> np.ndarray:
    """Of each column of a (N, n) with each of b (N, m): (n, m); 0 where one is constant."""
    if ranks:
        a, b = (np.stack([mean_ranks(column) for column in s.T], 1) for s in (a, b))
    a, b = (s - s.mean(0) for s in (np.asarray(a, np.float64), np.asarray(b, np.float64)))
    scale = np.sqrt(np.outer((a**2).sum(0), (b**2).sum(0)))
    products = a.T @ b
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)


def mean_ranks(x: np.ndarray) -> np.ndarray:
    """The rank of each number (N,); equal ones share their mean rank."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one assignment of least cost (n, m): rows and their columns, min(n, m) of them.

    Shortest augmenting paths with potentials (the Hungarian method; Kuhn 1955, Jonker and Volgenant 1987), O(n^2 m).
    """
    cost = np.asarray(cost, np.float64)
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    n, m = cost.shape
    u, v = np.zeros(n + 1), np.zeros(m + 1)
    owner = np.zeros(
        m + 1, int
    )  # the row of each column, counted from 1; 0: free. Column 0 is a start
    for row in range(1, n + 1):
        owner[0], column = row, 0
        least, before, done = np.full(m + 1, np.inf), np.zeros(m + 1, int), np.zeros(m + 1, bool)
        while owner[column]:
            done[column] = True
            at = owner[column]
            reduced = cost[at - 1] - u[at] - v[1:]
            nearer = ~done[1:] & (reduced < least[1:])
            least[1:][nearer], before[1:][nearer] = reduced[nearer], column
            column = int(np.where(done, np.inf, least)[1:].argmin()) + 1
            delta = least[column]
            u[owner[done]] += delta
            v[done] -= delta
            least[~done] -= delta
        while column:
            owner[column], column = owner[before[column]], before[column]
    columns = np.flatnonzero(owner[1:])
    rows = owner[1:][columns] - 1
    order = np.argsort(rows)
    return rows[order], columns[order]
