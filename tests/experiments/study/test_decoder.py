"""The grid on a frozen decoder: its states are the decoder's, its choices look at training halves alone, it runs."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from toolkit.data.tokens import encode_response, segment_boundary_ids
from toolkit.experiments.study import decoder as grid
from toolkit.experiments.study import decoder_stages as stages
from toolkit.experiments.study.decoder import AVERAGED, BEST, MIX, TRL, Choice, DecoderStudy, choose, vectors
from toolkit.experiments.study.decoder_stages import choices, decoder_stages
from toolkit.experiments.study.decoder_states import States, cache_states, load_states, rows_of
from toolkit.experiments.study.decoder_tables import (
    accuracy_table,
    fewer_pairs_table,
    mean_over,
    numbers_table,
    on_test_pairs,
)
from toolkit.experiments.study.grid import Study
from toolkit.experiments.study.page import write_study_report
from toolkit.experiments.study.task_pairs import TaskPairs
from toolkit.experiments.study.tasks import Task, Transfer, first_turn

WORDS = ["red", "blue", "one", "two", "cat", "dog", "sun", "rain", "yes", "no"]
HALVES = Task("halves", "colours", ("halves",), first_turn, "question")
MODELS = [TRL, BEST, AVERAGED, "context-aware", "token", "multi-scale, gate", MIX]
FOLDS = Task("folds", "animals", ("folds",), first_turn, "question")


def write(folder: Path, name: str, prompts: int, pairs: int) -> None:
    """Pairs of prompts, the better response of which has the word "good" in it, somewhere."""
    rng = random.Random(name)
    with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
        for i in range(prompts):
            for _ in range(pairs):
                texts = [[*rng.choices(WORDS, k=4), word, *rng.choices(WORDS, k=3)] for word in ("good", "bad")]
                chosen, rejected = (" ".join(text) + "." for text in texts)
                row = {"prompt": f"What is {name} {i}?", "chosen": chosen, "rejected": rejected}
                file.write(json.dumps({**row, "strength": rng.choice([1, 2])}) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write(folder, "halves", 310, 1)
    write(folder, "folds", 40, 2)
    return str(folder)


@pytest.fixture(scope="module")
def decoder(tiny_folder):
    return tiny_folder("qwen3")


@pytest.fixture
def parts(decoder):
    return AutoModel.from_pretrained(decoder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(decoder)


def test_states_are_those_of_each_row_alone(data, parts, tmp_path, monkeypatch):
    model, tokenizer = parts
    task, boundaries = TaskPairs(data, FOLDS), set(segment_boundary_ids(tokenizer))
    for most_packed in (10, 400):  # every group by itself, with its prompt's keys kept, and all packed
        monkeypatch.setattr("toolkit.experiments.study.decoder_states.MOST_PACKED", most_packed)
        folder = tmp_path / str(most_packed)
        cache_states(folder, task, model, tokenizer, [1, 2])
        states, rows = load_states(folder, task, 2), rows_of(task)
        for i in (0, 7, len(rows.prompts) - 1):
            row = encode_response(tokenizer, rows.prompts[i], rows.responses[i])
            ids, start = row.input_ids, row.response_start
            end = max(k for k, token in enumerate(ids) if token == tokenizer.eos_token_id)
            inside = [k for k in range(start, len(ids)) if ids[k] in boundaries]
            ends = [k for k in inside if k - 1 not in inside]
            whole = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for layer, hidden in enumerate([model.norm(whole[1])[0], whole[2][0]]):
                expected = [hidden[start - 1], hidden[start:].mean(0), hidden[ends].mean(0)]
                expected += [hidden[k] for k in (len(ids) - 1, end, end - 1)]
                found = states.vectors[i, layer].float()
                torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=2e-3, atol=2e-3)  # float16
            assert states.tokens[i] == len(ids) - start


def test_states_go_on_with_the_file_that_is_missing(data, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.experiments.study.decoder_states.SHARD_TOKENS", 500)
    task = TaskPairs(data, FOLDS)
    cache_states(tmp_path, task, *parts, [2])
    first, *others = sorted(tmp_path.glob("*.safetensors"))
    assert others
    whole, times = load_states(tmp_path, task, 1), [file.stat().st_mtime_ns for file in others]
    first.unlink()
    with pytest.raises(ValueError, match=r"has states of .* rows. Compute the others first"):
        load_states(tmp_path, task, 1)
    cache_states(tmp_path, task, *parts, [2])
    assert [file.stat().st_mtime_ns for file in others] == times
    assert torch.equal(load_states(tmp_path, task, 1).vectors, whole.vectors)
    with pytest.raises(ValueError, match=r"has states of 1 layers in place of 2. Remove it"):
        load_states(tmp_path, task, 2)


def test_a_row_that_ends_earlier_has_no_later_token_in_its_mean():
    hidden = torch.randn(7, 4)  # of a prompt's end, three words, the end of turn, a line break
    kept = torch.stack([hidden[0], hidden[1:6].mean(0), hidden[4], hidden[5], hidden[4], hidden[3]])
    states = States(kept[None, None], torch.tensor([5]), torch.tensor([[0, 0]]))
    for reading, last in (("last", 5), ("end of turn", 4), ("content", 3)):
        expected = torch.stack([hidden[0], hidden[1 : last + 1].mean(0), hidden[4], hidden[last]])
        torch.testing.assert_close(vectors(states, 0, reading)[0], expected)


def test_a_choice_is_the_best_on_the_mean_over_tasks_and_looks_at_its_part():
    settings = DecoderStudy("", "", layers=[1, 2], rates=[0.1, 0.2], decays=[0.0])
    places = [(1, "last"), (2, "last")]
    one = {"accuracy": [[[[0.6], [0.7]], [[0.5], [0.5]]]]}
    several = {"accuracy": [[[[0.5], [0.5]], [[0.9], [0.5]]], [[[0.5], [0.55]], [[0.5], [0.5]]]]}
    found = {"TruthfulQA": one, "WQRM": several}
    assert choose(settings, places, found, 0) == Choice(2, "last", 0.1, 0.0)  # (0.5 + 0.9) / 2 above (0.7 + 0.5) / 2
    assert choose(settings, places, found, 1) == Choice(1, "last", 0.2, 0.0)
    assert choose(settings, places, found, None) == Choice(1, "last", 0.2, 0.0)  # 0.6125, and 0.6 for the other


@pytest.fixture
def study(data, decoder, tmp_path, monkeypatch):
    for module in ("decoder", "tasks"):
        monkeypatch.setattr(f"toolkit.experiments.study.{module}.TASKS", [HALVES, FOLDS])
    for module in ("decoder_stages", "decoder_tables"):
        monkeypatch.setattr(f"toolkit.experiments.study.{module}.NUMBERS", (20,))
    monkeypatch.setattr(stages, "TRANSFERS", [Transfer(["halves"], ["folds"])])
    monkeypatch.setattr(stages, "LEFT_OUT", [])
    settings = DecoderStudy.of(data, decoder)
    small = {"rates": [1e-2, 3e-2], "decays": [0.01], "seeds": [1, 2], "tasks": ["halves", "folds"], "models": MODELS}
    return Study(tmp_path / "study", replace(settings, **small))


@pytest.mark.training
def test_the_grid_runs_and_its_page_says_what_came_out(study):
    grid.Loaded._cached.cache_clear()
    assert study.settings.layers == [1, 2]
    for cells in decoder_stages(study):
        for cell in cells:
            study.keep(cell)
    page = write_study_report(study.folder).read_text()
    for text in (BEST, TRL, "Transfer", "halves to folds", "share of gates beyond 0.9"):
        assert text in page
    table = accuracy_table(study, MIX)
    assert set(table) == {*MODELS, "longer wins"}
    assert table["token"]["headline"].value.value > 0.8  # a word somewhere is what a mean of tokens reads
    assert table[MIX]["headline"].value.value > 0.75
    assert table["multi-scale"]["headline"].difference is None
    above = table[BEST]["halves"]
    read = on_test_pairs(study)
    mix, best = (read(model, "halves") for model in (MIX, BEST))
    expected = (mix.right.sum() - best.right.sum()) / (2 * mix.sizes.sum())
    assert above.difference.value == pytest.approx(expected.item())
    both = [table[MIX][task].value.value for task in ("halves", "folds")]
    assert table[MIX]["headline"].value.value == pytest.approx(sum(both) / 2)
    assert mean_over(read, MIX, ["halves"]).value == pytest.approx(both[0])
    by_number = numbers_table(study)
    assert list(by_number[MIX]) == ["20"]
    column = fewer_pairs_table(study)["multi-scale with 20"]["20 pairs (2 tasks)"]
    assert column.value.value == by_number[MIX]["20"].value.value
    assert column.difference.value == pytest.approx(by_number[BEST]["20"].difference.value)
    # A choice for a fold, and for what has no folds
    assert set(choices(study, MIX)) == {None, 0, 1, 2, 3, 4}
    assert choices(study, "multi-scale, gate")[0][:2] == choices(study, MIX)[0][:2]
