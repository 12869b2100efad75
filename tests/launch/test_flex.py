"""FlexAttention, compiled in a process of its own: what it computes, and how often it is compiled."""

import json

import pytest

from tests.helpers import ROOT, run_python

REAL = ROOT.parent / "shared" / "data" / "hh_harmless_base_test.jsonl.gz"  # several turns, up to 800 words


@pytest.mark.parametrize("lengths", ["drawn", "real"])
def test_four_graphs_are_enough_and_compute_what_sdpa_does(tiny_folder, monkeypatch, lengths):
    if lengths == "real" and not REAL.is_file():
        pytest.skip("the folder ../shared/data with the real pairs is absent")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    folder = tiny_folder(max_position_embeddings=4096)
    of_file = ["eager", str(REAL)] if lengths == "real" else []
    done = run_python("-m", "tests.launch.scripts.flex_graphs", folder, *of_file, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 2 <= found["graphs"] <= 4  # of a mask and of attention, for one length and for any
    assert found["worst"] <= 1e-5
