"""Time the exact search of nearest descriptors beside FAISS and hnswlib, where they are installed.

python benchmarks/nearest.py --photographs 10000 100000 --queries 1 100

The descriptors are random, in clusters. All engines take turns in one process; the time is the
median of the rounds. `share` is how many of NumPy's nearest an engine finds too.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from typing import Any

import numpy as np

from keras_vgg import retrieval


def clustered(rows: int, dimensions: int, seed: int) -> np.ndarray:
    """Return random descriptors around 200 centres, float32 [rows, dimensions]."""
    centres = np.random.default_rng(0).normal(size=(200, dimensions))
    rng = np.random.default_rng(seed)
    values = centres[rng.integers(200, size=rows)] + rng.normal(size=(rows, dimensions))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("float32")


def engines(descriptors: np.ndarray, count: int) -> dict[str, tuple[float, Any]]:
    """Return name -> seconds for its index, and a function from queries to numbers [m, count]."""
    rows, dimensions = descriptors.shape
    built = {"NumPy": (0.0, lambda queries: retrieval.nearest(descriptors, queries, count)[0])}
    if importlib.util.find_spec("faiss"):
        start = time.perf_counter()
        flat: Any = importlib.import_module("faiss").IndexFlatIP(dimensions)
        flat.add(descriptors)
        seconds = time.perf_counter() - start
        built["FAISS, flat"] = seconds, lambda queries: flat.search(queries, count)[1]
    if importlib.util.find_spec("hnswlib"):
        start = time.perf_counter()
        graph: Any = importlib.import_module("hnswlib").Index("ip", dimensions)
        graph.init_index(rows)
        graph.add_items(descriptors)
        seconds = time.perf_counter() - start
        graph.set_ef(max(50, count))
        built["hnswlib"] = seconds, lambda queries: graph.knn_query(queries, count)[0]
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photographs", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 100])
    for name, default in (("dimensions", 512), ("count", 10), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    print(
        "| photographs | queries | engine | ms | share | its index, s |\n|---|---|---|---|---|---|"
    )
    for rows in arguments.photographs:
        built = engines(clustered(rows, arguments.dimensions, 1), arguments.count)
        for number in arguments.queries:
            queries = clustered(number, arguments.dimensions, 2)
            times: dict[str, list[float]] = {name: [] for name in built}
            numbers = {name: search(queries) for name, (_, search) in built.items()}  # warm
            for name, (_, search) in arguments.rounds * [*built.items()]:
                start = time.perf_counter()
                search(queries)
                times[name].append(1000 * (time.perf_counter() - start))
            for name, (seconds, _) in built.items():
                pairs = zip(numbers[name], numbers["NumPy"], strict=True)
                share = np.mean([np.isin(*pair) for pair in pairs])
                figures = f"{statistics.median(times[name]):.3g} | {share:.1%} | {seconds:.2g}"
                print(f"| {rows:,} | {number} | {name} | {figures} |")


if __name__ == "__main__":
    main()
