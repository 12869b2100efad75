"""How much of a reward model's speed its server keeps, with many clients, and how long an answer takes: a process
that scores and the server take turns, with the same batches and threads. docs/serving.md has what we got.

    python recipes/experiments/benchmark_serving.py --reward_model runs/reward --dataset_name pairs.jsonl
"""

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from threading import Event

import torch
from trl import TrlParser

from toolkit import RemoteRewardFunction, RewardFunction, load_pairs
from toolkit.experiments.benchmarks.serving import ServingBenchmarkArguments, as_asked
from toolkit.pages.tables import print_table


def alone(reward: RewardFunction, rows: list, size: int, seconds: float) -> float:
    """Rows a second of calls as large as what waits at the server."""
    begin, scored, source = time.perf_counter(), 0, cycle(rows)
    while time.perf_counter() - begin < seconds:
        scored += len(reward.score_encoded(list(islice(source, size))))
    return scored / (time.perf_counter() - begin)


def served(remotes: list, rows: list, args: ServingBenchmarkArguments) -> tuple[float, torch.Tensor]:
    """Rows a second of all clients together, and the seconds of each request."""
    stop = Event()

    def ask(client: int) -> list[float]:
        source, took = cycle(rows[client * len(rows) // args.clients :] + rows), []  # far apart, as prompts are shared
        while not stop.is_set():
            begin = time.perf_counter()
            remotes[client].score_encoded(list(islice(source, args.rows)))
            took.append(time.perf_counter() - begin)
        return took

    with ThreadPoolExecutor(args.clients) as pool:
        begin = time.perf_counter()
        found = [pool.submit(ask, client) for client in range(args.clients)]
        time.sleep(args.seconds)
        stop.set()
        took = [seconds for future in found for seconds in future.result()]
    return len(took) * args.rows / (time.perf_counter() - begin), torch.tensor(took)


def main(args: ServingBenchmarkArguments) -> None:
    reward, pairs = RewardFunction(args.reward_model), load_pairs(args.dataset_name)
    rows = [reward.encode(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", "from toolkit.cli.main import main; main()", "serve"]
    server = subprocess.Popen([*command, args.reward_model, "--port", port])
    try:
        asking = (f"http://127.0.0.1:{port}", None, reward.processing_class)
        remotes = [RemoteRewardFunction(*asking) for _ in range(args.clients)]
        turn = (reward, as_asked(rows, args), args.clients * args.rows, args.seconds / 2)
        before, (rate, took), after = alone(*turn), served(remotes, rows, args), alone(*turn)
    finally:
        server.terminate()
        server.wait()
    found = (before, after, rate, 2 * rate / (before + after), took.quantile(0.5), took.quantile(0.99), len(took))
    header = ("alone, before", "alone, after", "served", "served / alone", "p50, s", "p99, s", "requests")
    print_table("Responses a second", header, [tuple(f"{number:.4g}" for number in found)])


if __name__ == "__main__":
    main(*TrlParser(ServingBenchmarkArguments).parse_args_and_config())
