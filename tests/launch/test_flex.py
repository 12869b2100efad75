"""FlexAttention, compiled in a process of its own: what it computes, and how often it is compiled."""

import json

from tests.helpers import ROOT, run_python


def test_four_graphs_are_enough_and_compute_what_sdpa_does(tiny_folder, monkeypatch):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    folder = tiny_folder(max_position_embeddings=512)
    done = run_python("-m", "tests.launch.scripts.flex_graphs", folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 2 <= found["graphs"] <= 4  # of a mask and of attention, for one length and for any
    assert found["worst"] <= 1e-5
