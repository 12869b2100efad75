import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from toolkit.arguments import DataArguments
from toolkit.training.run_record import CompletionExamples, save_pair_examples, save_run

SECRET = "hf_" + 30 * "x"


def trainer_of(config, main=True, **attributes):
    return SimpleNamespace(args=config, is_world_process_zero=lambda: main, **attributes)


def read(config, name):
    with open(f"{config.output_dir}/{name}", encoding="utf-8") as file:
        return json.load(file)


def test_a_run_leaves_its_options_versions_and_seeds(reward_config):
    config = reward_config(seed=5, data_seed=6, max_steps=7)
    save_run(trainer_of(config), DataArguments(dataset_name="sandbox"), config)
    run = read(config, "run.json")
    data, training = run["options"]["DataArguments"], run["options"]["MultiScaleRewardConfig"]
    assert data["changed"] == {"dataset_name": "sandbox"}
    assert data["default"]["eval_size"] is None
    assert training["changed"]["max_steps"] == 7
    assert training["default"]["scales"] == ["token", "segment", "response"]
    assert not training["changed"].keys() & training["default"].keys()
    assert (run["seed"], run["data_seed"], run["processes"], run["device"]) == (5, 6, 1, "cpu")
    assert run["versions"]["torch"] == torch.__version__
    assert run["versions"]["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert run["started"][0].endswith("+00:00")


def test_a_run_leaves_no_secret(reward_config, monkeypatch):
    words = [
        "train.py",
        "--hub_token",
        "first-secret",
        "--hub-token=second-secret",
        "--x",
        '{"token": "third-secret"}',
    ]
    monkeypatch.setattr(sys, "argv", [*words, SECRET, "--max_tokens_per_batch", "512"])
    config = reward_config(hub_token="fourth-secret", model_init_kwargs={"token": "fifth-secret", "dtype": "float32"})
    save_run(trainer_of(config), config, DataArguments(dataset_name=f"https://user:{SECRET}@host/data"))
    run = read(config, "run.json")
    assert "-secret" not in json.dumps(run)
    assert SECRET not in json.dumps(run)
    assert "--max_tokens_per_batch 512" in run["command"]
    options = run["options"]["MultiScaleRewardConfig"]
    assert options["changed"]["model_init_kwargs"] == {"dtype": "float32"}
    assert "max_tokens_per_batch" in options["default"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("from https://me:word@host/rows", "from https://…@host/rows"),
        ("https://host/rows?api_key=word&split=train", "https://host/rows?api_key=…&split=train"),
        ("curl -H 'Authorization: Bearer word'", "curl -H 'Authorization: Bearer …"),
        ("Token: word, then more", "Token: …, then more"),
        ("{'password': 'two words', 'n': 1}", "{'password': '…', 'n': 1}"),
        ("ghp_0123456789abcdefghij", "…"),
        ("sk-proj-0123456789abcdef", "…"),
        ("AKIA0123456789ABCDEF.", "…."),
        ("eyJhbGciOi.eyJzdWIi.c2ln", "…"),
        ("max_tokens: 512, hf_reward, sk-learn", "max_tokens: 512, hf_reward, sk-learn"),
        ("user@host/data of 0123456789abcdef0123456789abcdef01234567", None),
    ],
)
def test_secrets_inside_other_text_are_left_out(reward_config, text, shown):
    config = reward_config(run_name=text)
    save_run(trainer_of(config), config)
    assert read(config, "run.json")["options"]["MultiScaleRewardConfig"]["changed"]["run_name"] == (shown or text)


@pytest.mark.parametrize("words", [["--hub_tok", "word"], ["--hub-tok=word"], ["--hub_to", "word"]])
def test_an_abbreviated_option_is_a_secret_too(reward_config, monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "--hub_model_id", "mine"])
    config = reward_config()
    save_run(trainer_of(config), config)
    command = read(config, "run.json")["command"]
    assert "word" not in command
    assert "--hub_model_id mine" in command


def test_a_resumed_run_keeps_when_it_began(reward_config):
    config = reward_config()
    save_run(trainer_of(config), config)
    save_run(trainer_of(config), config)
    assert len(read(config, "run.json")["started"]) == 1
    for value in ("true", True, "somewhere/checkpoint-3"):
        config.resume_from_checkpoint = value
        save_run(trainer_of(config), config)
    assert len(read(config, "run.json")["started"]) == 4
    config.resume_from_checkpoint = "false"
    save_run(trainer_of(config), config)
    assert len(read(config, "run.json")["started"]) == 1


def test_only_the_main_process_writes(reward_config, tmp_path):
    config = reward_config()
    save_run(trainer_of(config, main=False), config)
    save_pair_examples(trainer_of(config, main=False), ())
    assert list(tmp_path.rglob("*.json")) == []


def predicted(gaps):
    """Columns of `PairScores` with these gaps, at two scales."""
    chosen, zeros = np.array(gaps, dtype=np.float32), np.zeros(len(gaps), dtype=np.float32)
    scales = np.stack([10 * chosen, 20 * chosen], axis=1)
    return (chosen, zeros, scales, 0 * scales, *(zeros,) * 5)


def test_the_clearest_pairs_are_kept(reward_config):
    config = reward_config()
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(6)]
    settings = SimpleNamespace(settings=SimpleNamespace(scales=["token", "response"]))
    trainer = trainer_of(config, eval_dataset=Dataset.from_list(rows), reward_model=settings)
    save_pair_examples(trainer, predicted([0.5, -1.0, 3.0, 0.0, 2.0, -0.25]), each=2)
    examples = read(config, "examples.json")
    assert [card["prompt"] for card in examples] == ["p2", "p4", "p1", "p5"]
    assert [card["title"] for card in examples] == [
        "Pair 3, ranked right by 3.00 nats",
        "Pair 5, ranked right by 2.00 nats",
        "Pair 2, ranked wrong by 1.00 nats",
        "Pair 6, ranked wrong by 0.25 nats",
    ]
    assert examples[0]["responses"] == [
        {"label": "chosen", "text": "good 2", "numbers": {"mix": 3.0, "token": 30.0, "response": 60.0}},
        {"label": "rejected", "text": "bad 2", "numbers": {"mix": 0.0, "token": 0.0, "response": 0.0}},
    ]


def test_the_pairs_of_lists_are_kept_with_their_own_scores(reward_config):
    config = reward_config()
    rows = [
        {"prompt": f"p{i}", "responses": ["a", "b", "c"][:k], "ranks": [1, 0, 1][:k]} for i, k in enumerate([3, 2])
    ]
    settings = SimpleNamespace(settings=SimpleNamespace(scales=["token", "response"]))
    # The best first; nothing is known of the third response of a list of two
    mix, ranks = np.array([[3.0, 1, 4], [0.5, 1, -100]]), np.array([[0, 1, 1], [0, 1, -1]])
    by_scale, loss = np.stack([10 * mix, 20 * mix], axis=2), np.stack([mix[:, 0]] * 2, axis=1)
    predictions = (mix, by_scale, loss, np.arange(6).reshape(2, 3), ranks, mix[:, 0], loss)
    save_pair_examples(trainer_of(config, eval_dataset=Dataset.from_list(rows), reward_model=settings), predictions)
    shown = [(each["title"], *(side["text"] for side in each["responses"])) for each in read(config, "examples.json")]
    assert shown == [
        ("Pair 1, ranked right by 2.00 nats", "b", "a"),
        ("Pair 2, ranked wrong by 1.00 nats", "b", "c"),
        ("Pair 3, ranked wrong by 0.50 nats", "b", "a"),
    ]
    found = read(config, "held_out.json")
    assert (found["chosen"], found["rejected"]) == ([3.0, 3.0, 0.5], [1.0, 4.0, 1.0])
    assert (found["chosen_length"], found["rejected_length"]) == ([0, 0, 3], [1, 2, 4])
    assert [found["prompt"].index(key) for key in found["prompt"]] == [0, 0, 2]


def test_a_tie_is_neither_right_nor_wrong(reward_config):
    config = reward_config()
    settings = SimpleNamespace(settings=SimpleNamespace(scales=["token", "response"]))
    rows = Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2)
    save_pair_examples(trainer_of(config, eval_dataset=rows, reward_model=settings), predicted([0.0, 0.0]))
    assert read(config, "examples.json") == []


def test_scores_of_all_held_out_pairs_are_kept_to_the_last_bit(reward_config):
    config = reward_config()
    settings = SimpleNamespace(settings=SimpleNamespace(scales=["token", "response"]))
    rows = [{"prompt": p, "chosen": "a", "rejected": b, "subset": i} for i, (p, b) in enumerate(["pb", "pc", "qb"])]
    scores = np.array([1 / 3, 2e-30, -7], dtype=np.float32)
    save_pair_examples(
        trainer_of(config, eval_dataset=Dataset.from_list(rows), reward_model=settings), predicted(scores)
    )
    found = read(config, "held_out.json")
    assert np.array_equal(np.array(found["chosen"], dtype=np.float32), scores)
    assert np.array_equal(np.array(found["chosen/response"], dtype=np.float32), 20 * scores)
    assert found["subset"] == ["0", "1", "2"]
    assert [found["prompt"].index(key) for key in found["prompt"]] == [0, 0, 2]  # two pairs of one prompt
    assert len(set(found["row"])) == 3
    last = trainer_of(config, eval_dataset=Dataset.from_list(rows[2:]), reward_model=settings)
    save_pair_examples(last, predicted(scores[2:]))
    assert read(config, "held_out.json")["row"] == found["row"][2:]  # what a pair is known by is its text


def log_step(config, step, resumed=None, prompts=("a", "a", "b", "b", "c", "c")):
    """What the callback leaves when a step is logged, in a process that began or went on at `resumed`."""
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    answers = [[{"role": "assistant", "content": f"{prompt}{step}"}] for prompt in prompts]
    rewards = {"judge": [float(i) for i in range(len(prompts))]}
    logs = {"prompt": turns, "completion": answers, "rewards": rewards, "advantages": [0.5] * len(prompts)}
    callback = CompletionExamples(SimpleNamespace(_logs=logs), prompts=2)
    if resumed is not None:
        callback.on_train_begin(config, SimpleNamespace(global_step=resumed), None)
    state = SimpleNamespace(global_step=step, is_world_process_zero=True)
    callback.on_log(config, state, None, logs={"reward": 1.0})
    return read(config, "examples.json")


def test_responses_to_a_prompt_share_a_card(reward_config):
    first, second = log_step(reward_config(), 1)
    assert (first["prompt"], second["prompt"]) == ("a", "b")
    assert [response["text"] for response in second["responses"]] == ["b1", "b1"]
    assert [response["numbers"]["judge"] for response in second["responses"]] == [2.0, 3.0]
    assert [response["label"] for response in second["responses"]] == ["response 1", "response 2"]


def test_the_first_examples_outlive_an_interruption_and_not_a_new_run(reward_config):
    config = reward_config()
    assert {card["step"] for card in log_step(config, 2, resumed=0)} == {2}
    assert [card["step"] for card in log_step(config, 8, resumed=4)] == [2, 2, 8, 8]
    assert [card["step"] for card in log_step(config, 9, resumed=8)] == [2, 2, 9, 9]
    assert [card["step"] for card in log_step(config, 1, resumed=1)] == [1, 1]  # went on from before that log
    assert [card["step"] for card in log_step(config, 3, resumed=0)] == [3, 3]


def test_conversations_are_shown_with_who_speaks(reward_config):
    config = reward_config()
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    no = [{"role": "assistant", "content": "no"}]
    rows = Dataset.from_list([{"prompt": turns, "chosen": turns[1:], "rejected": no}])
    settings = SimpleNamespace(settings=SimpleNamespace(scales=["token", "response"]))
    save_pair_examples(trainer_of(config, eval_dataset=rows, reward_model=settings), predicted([1.0]))
    (card,) = read(config, "examples.json")
    assert card["prompt"] == "user: hi\n\nassistant: yes?"
    assert [response["text"] for response in card["responses"]] == ["yes?", "no"]
