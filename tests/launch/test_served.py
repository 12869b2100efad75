"""`prefscale serve` as a process that is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from threading import Thread

import pytest
import torch

from tests.helpers import ROOT, logged
from toolkit import ReinforceTrainer, RemoteRewardFunction, RewardFunction


@pytest.fixture
def serve():
    """Starts servers at a port, each when the one before is gone."""
    servers = []

    def start(folder, port):
        words = ["serve", folder, "--port", str(port), "--most-rows", "0"]
        code = f"from toolkit.cli.main import main; main({words!r})"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        servers.append(process)
        assert process.stdout.readline().startswith("Serving")  # printed as it begins to listen
        return process

    yield start
    for process in servers:
        process.kill()
        process.wait()
        process.stdout.close()


def test_reinforce_ends_as_with_a_model_in_its_own_process_though_the_server_is_killed(
    serve, reward_folder, tiny_folder, chat_pairs, reinforce_config, monkeypatch
):
    folder, prompts, pause = reward_folder(), chat_pairs.select_columns(["prompt"]), time.sleep
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = serve(folder, port)
    remote, requests = RemoteRewardFunction(f"http://127.0.0.1:{port}"), []
    with pytest.raises(OSError):  # at other addresses, even of this machine, nobody listens
        socket.create_connection(("127.0.0.2", port), timeout=5)
    post = remote._session.post

    def killed_at_the_third(*args, **options):
        requests.append(args)
        if len(requests) == 3:
            server.send_signal(signal.SIGSTOP)  # the request is sent, and nobody will answer
            Thread(target=server.kill).start()
        return post(*args, **options)

    def start_again(seconds):
        if len(requests) == 3:
            server.wait()
            serve(folder, port)
        pause(0.01)

    monkeypatch.setattr(remote._session, "post", killed_at_the_third)
    monkeypatch.setattr("toolkit.serving.client.time.sleep", start_again)
    found = []
    for reward in (RewardFunction(folder), remote):
        args = reinforce_config(prefix_baseline=True, max_steps=4)
        trainer = ReinforceTrainer(tiny_folder(), reward, args, train_dataset=prompts)
        trainer.train()
        logs = [logged(trainer, key) for key in ("loss", "reward", "grad_norm", "prefix/explained")]
        found.append((logs, [parameter.detach().clone() for parameter in trainer.model.parameters()]))
    assert remote.retries >= 1
    assert server.returncode == -signal.SIGKILL
    assert found[0][0] == found[1][0]
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))
