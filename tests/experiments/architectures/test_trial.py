"""The main architectures in all that is done with a decoder, and that the trial finds what is wrong."""

import pytest
import torch

from toolkit.experiments.architectures import trial
from toolkit.experiments.architectures.configs import architectures
from toolkit.experiments.architectures.sweep import count, summary, sweep, table

TINY = {"num_hidden_layers": 2}
# By architecture: options, and whether prompts are shared and caches filled once
MAIN = {
    "bloom": ({"n_layer": 2}, False, True),
    "falcon": (TINY, True, True),
    "gemma2": (TINY | {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4}, False, False),
    "gemma3_text": ({"num_hidden_layers": 6, "hidden_size": 64, "head_dim": 16}, False, False),
    "gpt2": ({"n_layer": 2}, True, True),
    "gpt_neo": ({"num_layers": 2, "attention_types": [[["global", "local"], 1]]}, False, False),
    "gpt_neox": (TINY, True, True),
    "llama": (TINY, True, True),
    "mistral": (TINY, False, False),
    "mixtral": (TINY | {"sliding_window": None}, True, True),
    "openai-gpt": ({"n_layer": 2}, False, False),
    "opt": (TINY | {"word_embed_proj_dim": 384}, True, True),
    "phi3": (TINY, True, True),
    "qwen2": (TINY, True, True),
    "qwen3": (TINY, True, True),
    "qwen3_moe": (TINY, True, True),
}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # of PEFT, for experts
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")  # of GPT-2, whose weights lie the other way
@pytest.mark.parametrize("kind", MAIN)
def test_the_main_architectures_are_right_in_every_aspect(kind, tmp_path):
    options, shared, prefilled = MAIN[kind]
    found = trial.try_architecture(kind, options, tmp_path)
    assert set(found) == set(trial.ASPECTS)
    refused = {aspect for aspect, verdict in found.items() if verdict.startswith("refused")}
    allowed = {"packing": shared, "generation": prefilled}
    assert refused == {aspect for aspect, done in allowed.items() if not done}
    assert {verdict for aspect, verdict in found.items() if aspect not in refused} == {"right"}


@pytest.mark.parametrize("kind", ["bert", "t5", "bart"])
def test_encoders_are_refused_in_one_sentence(kind, tmp_path):
    found = trial.try_architecture(kind, {}, tmp_path)
    assert list(found) == ["model"]
    assert "has no linear head called `score`, so it is not a decoder with a stock reward head. Use" in found["model"]


def test_a_row_of_its_own_frequencies_is_scored_alone(tmp_path):
    options = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, **TINY}
    found = trial.try_architecture("llama", options, tmp_path)
    assert {found[aspect] for aspect in ("padding", "reload", "LoRA")} == {"right"}
    assert found["stock class"].startswith("refused: its rotary frequencies are those of the longest row")
    assert {found[aspect].partition(":")[0] for aspect in ("packing", "policy")} == {"refused"}


def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    # sharing where nothing shows that it may be
    for module in ("toolkit.experiments.architectures.trial", "toolkit.data.packing"):
        monkeypatch.setattr(f"{module}.why_not_shared", lambda model: None)
    monkeypatch.setattr(trial, "why_not_prefilled", lambda model: None)
    found = trial.try_architecture("gpt_neo", MAIN["gpt_neo"][0], tmp_path)
    wrong = {aspect for aspect, verdict in found.items() if verdict.startswith("wrong")}
    assert wrong == {"packing", "policy", "generation"}
    assert count({"gpt_neo": found}) == {"wrong": 1}


def test_every_architecture_has_its_turn_once():
    names = [name for name, _, _ in architectures()]
    assert len(names) == len(set(names)) > 120
    assert {"llama", "gpt_neo", "opt (projected)", "phi3 (LongRoPE)"} <= set(names)


def test_a_sweep_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    tried = []

    def try_architecture(kind, options, folder):
        tried.append(kind)
        if kind == "opt":
            raise RuntimeError("shapes\ndo not fit")
        return (
            {"model": "refused: BertModel has no linear head called `score`"} if kind == "bert" else {"LoRA": "right"}
        )

    monkeypatch.setattr("toolkit.experiments.architectures.sweep.try_architecture", try_architecture)
    output = tmp_path / "runs" / "found.json"
    sweep(output, ["bert", "gpt2"])
    found = sweep(output, ["bert", "opt", "gpt2"])
    assert tried == ["bert", "gpt2", "opt", "opt", "opt"], "with its variants; the first two were known"
    assert found["opt"] == {"model": "wrong: RuntimeError: shapes"}
    assert count(found) == {"refused": 1, "right": 1, "wrong": 3}
    assert "gpt2: right" in capsys.readouterr().out
    assert "- bert: no linear head called `score`" in table(found)


def test_a_summary_leaves_out_what_is_right():
    assert summary({"LoRA": "right", "policy": "right"}) == "right"
    assert summary({"LoRA": "right", "packing": "refused: a window"}) == "packing refused: a window"


def test_differences_are_relative_to_the_spread():
    expected = torch.tensor([-1.0, 1.0])  # whose standard deviation is the square root of 2
    assert trial.apart(expected + 1e-5, expected) is None
    assert trial.apart(expected + torch.tensor([0.0, 0.2]), expected) == "0.1 of the spread apart"
