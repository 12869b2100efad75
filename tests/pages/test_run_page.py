import json
import shutil

import pytest
from trl import ModelConfig, RewardConfig, RewardTrainer

from tests.pages.planted import policy_run
from tests.pages.test_page import assert_stands_alone, drawings, read
from toolkit import MultiScaleRewardConfig, ReinforceConfig, RewardFunction
from toolkit.arguments import RunArguments
from toolkit.cli.main import main
from toolkit.jobs.reinforce import ReinforceArguments
from toolkit.jobs.reinforce import main as train_policy
from toolkit.jobs.reward import main as train_reward
from toolkit.pages.run_files import read_run
from toolkit.pages.run_page import page_title, write_run_report
from toolkit.training.manifests import write_manifest

ACCESS = "hf_" + 30 * "a"  # shaped like an access token


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder, plain_pairs, cpu_options):
    """A reward training and a REINFORCE run, both from their recipes, one after the other."""
    folder = tmp_path_factory.mktemp("runs")
    script = " <script>no()</script>"
    rows = [{**row, **{side: row[side] + script for side in ("chosen", "rejected")}} for row in plain_pairs]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_name": str(folder / "pairs.jsonl"), "eval_dataset_name": str(folder / "pairs.jsonl")}
    options = {**cpu_options, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 6, "seed": 3}
    model = ModelConfig(model_name_or_path=tiny_folder())
    reward = MultiScaleRewardConfig(
        str(folder / "reward"), context="gate", max_steps=12, per_device_train_batch_size=4, eval_strategy="steps",
        eval_steps=6, hub_token=ACCESS, **options,
    )  # fmt: skip
    train_reward(RunArguments(**data), reward, model)
    policy = ReinforceConfig(
        str(folder / "policy"), max_steps=3, per_device_train_batch_size=4, num_generations=2, prefix_baseline=True,
        max_completion_length=8, **options,
    )  # fmt: skip
    train_policy(ReinforceArguments(**data, reward_model=str(folder / "reward")), policy, model)
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    def make(name):
        return shutil.copytree(runs / name, tmp_path / name)

    return make


def table_of(page, first):
    """The row that begins so, of any table."""
    rows = [text.strip().split("\n") for text in page.texts["tr"]]
    return next(row for row in rows if row[0].startswith(first))


def test_the_page_of_a_reward_model(copy, tmp_path, capsys):
    folder = copy("reward")
    assert main(["report", str(folder)]) == 0
    path = folder / "report" / "index.html"
    assert capsys.readouterr().out.strip() == str(path)
    page = read(path)
    assert_stands_alone(page)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    figures = json.loads((folder / "eval_results.json").read_text())
    assert page.texts["h1"] == ["Reward model: " + "/".join(folder.parts[-2:])]
    assert page.texts["h2"] == [
        "What follows", "Held-out pairs", "Training", "Examples", "Model and cost", "Settings", "Versions and seeds",
    ]  # fmt: skip
    assert f"On 24 held-out pairs it ranks {100 * figures['eval_accuracy']:.1f}% right" in page.texts["p"][0]
    assert len(page.texts["li"]) == 5 + 7  # chance, length, scales, gate, overfitting; and the contents
    token = table_of(page, f"token{100 * figures['eval_accuracy/token']:.1f}")
    low, high = figures["eval_accuracy_low/token"], figures["eval_accuracy_high/token"]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in token[0]
    first = next(row for row in log if "loss" in row)
    assert table_of(page, f"loss{first['loss']:#.4g}")
    assert table_of(page, "steps") == ["steps12"]
    assert table_of(page, "seed") == ["seed3"]
    pictures = [
        "accuracy.png", "gate.png", "held-out-by-step.png", "held-out-loss.png", "held-out.png", "length.png",
        "loss.png", "reliability.png", "scores.png",
    ]  # fmt: skip
    assert sorted(file.name for file in path.parent.glob("*.png")) == pictures
    assert len(drawings(page)) == len(pictures)


def test_the_recipe_evaluates_once_and_its_log_and_results_agree(runs):
    log = json.loads((runs / "reward" / "trainer_state.json").read_text())["log_history"]
    figures = json.loads((runs / "reward" / "eval_results.json").read_text())
    _, evaluated, last = (row for row in log if "eval_accuracy" in row)  # steps 6 and 12, and at the end
    assert last["step"] == evaluated["step"] == 12
    assert last["eval_num_tokens"] == figures["eval_num_tokens"]
    clock = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    for key in evaluated.keys() - clock:
        assert last[key] == evaluated[key] == figures.get(key, last[key])


def test_held_out_examples_are_the_clearest_ones(copy):
    folder = copy("reward")
    examples = json.loads((folder / "examples.json").read_text())
    gaps = [card["responses"][0]["numbers"]["mix"] - card["responses"][1]["numbers"]["mix"] for card in examples]
    right = [gap for gap, card in zip(gaps, examples, strict=True) if "ranked right" in card["title"]]
    wrong = [gap for gap, card in zip(gaps, examples, strict=True) if "ranked wrong" in card["title"]]
    assert right == sorted(right, reverse=True)
    assert wrong == sorted(wrong)
    assert min(right) > 0 > max(wrong)
    assert len(right) == 3
    figures = json.loads((folder / "eval_results.json").read_text())
    scores = [response["numbers"]["mix"] for card in examples for response in card["responses"]]
    assert figures["eval_min_reward"] <= min(scores)
    assert max(scores) <= figures["eval_max_reward"]
    assert set(examples[0]["responses"][0]["numbers"]) == {"mix", "token", "segment", "response"}


def test_scores_of_an_example_are_those_of_its_text(runs):
    examples = json.loads((runs / "reward" / "examples.json").read_text())
    score = RewardFunction(str(runs / "reward"))
    for card in examples:
        texts = [response["text"] for response in card["responses"]]
        found = score([card["prompt"]] * 2, texts)
        assert found == pytest.approx([response["numbers"]["mix"] for response in card["responses"]], abs=1e-4)


def test_responses_are_shown_as_text(copy):
    folder = copy("reward")
    examples = json.loads((folder / "examples.json").read_text())
    page = read(write_run_report(folder))
    texts = [text.removeprefix("\n") for text in page.texts["pre"]]
    for card in examples:
        assert card["prompt"] in texts
        assert all(response["text"] in texts for response in card["responses"])
    assert any("<script>no()</script>" in text for text in texts)


def test_the_page_of_a_policy(copy, tmp_path):
    folder = copy("policy")
    page = read(write_run_report(folder))
    assert_stands_alone(page)
    log = [row for row in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "reward" in row]
    assert table_of(page, "reward")[0] == f"reward{log[0]['reward']:#.4g}{log[-1]['reward']:#.4g}".replace("-", "−")
    names = {file.stem for file in (folder / "report").glob("*.png")}
    assert {"reward-1", "entropy", "grad_norm", "completions-mean_length"} <= names
    assert len(drawings(page)) == len(names)
    examples = json.loads((folder / "examples.json").read_text())
    assert [card["step"] for card in examples] == [1, 1, 3, 3]  # two prompts a batch, and not the step between
    cards = json.loads((folder / "before_after.json").read_text())
    titles = [card["title"] for card in [*cards[:4], *examples]]
    assert [text.strip() for text in page.texts["h3"]] == titles
    labels = [text for text in page.texts["p"] if text in ("before", "after 3 steps")]
    assert labels == ["before", "after 3 steps"] * 4
    assert len(cards) == 16
    rewards = [response["numbers"]["RewardFunction"] for card in examples[:2] for response in card["responses"]]
    assert sum(rewards) / 4 == pytest.approx(log[0]["rewards/RewardFunction/mean"], abs=1e-5)


def test_settings_and_versions_are_those_of_the_run(copy):
    folder = copy("reward")
    run = json.loads((folder / "run.json").read_text())
    run["versions"]["torch"] = "1.2.3"  # as if it had been another one
    (folder / "run.json").write_text(json.dumps(run))
    page = read(write_run_report(folder))
    assert table_of(page, "torch") == ["torch1.2.3"]
    settings = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert settings["max_steps"] == "12"
    assert settings["started"] == run["started"][0]
    assert settings["weight_by_strength"] == "true"  # a default
    matters, aside, default = page.texts["summary"][-3:]
    assert "differ from their defaults and matter" in matters
    assert "others that differ: paths, logging" in aside
    assert "at their defaults" in default
    names = page.texts["dt"]
    assert names.index("learning_rate") < names.index("max_steps") < names.index("report_to")  # which is put aside
    assert "hub_token" not in settings
    assert ACCESS not in (folder / "report" / "index.html").read_text()


def test_a_run_that_was_killed_is_shown_up_to_its_newest_complete_checkpoint(copy):
    folder = copy("reward")
    for name in ("trainer_state.json", "all_results.json", "eval_results.json"):
        (folder / name).unlink()
    page = read(write_run_report(folder))
    assert "up to step 12, from its newest complete checkpoint, checkpoint-12" in page.texts["main"][0]
    (folder / "checkpoint-12" / "manifest.json").unlink()  # it died while it wrote that one
    page = read(write_run_report(folder))
    assert "up to step 6, from its newest complete checkpoint, checkpoint-6" in page.texts["main"][0]
    assert table_of(page, "steps") == ["steps6"]


def test_a_run_that_went_on_after_its_end_is_shown_as_far_as_it_is(copy):
    folder = copy("reward")
    shutil.copytree(folder / "checkpoint-12", folder / "checkpoint-15")
    state = json.loads((folder / "checkpoint-15" / "trainer_state.json").read_text())
    state["global_step"] = 15
    state["log_history"] = [row for row in state["log_history"] if "eval_accuracy" not in row]
    (folder / "checkpoint-15" / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(folder / "checkpoint-15")
    page = read(write_run_report(folder))
    assert "up to step 15" in page.texts["main"][0]
    assert "Held-out pairs" not in page.texts["h2"]  # eval_results.json is of the earlier end


def test_what_is_not_known_is_said(copy):
    folder = copy("policy")
    (folder / "run.json").unlink()
    (folder / "examples.json").unlink()
    page = read(write_run_report(folder))
    text = " ".join(page.texts["p"])
    assert "left no run.json" in text
    assert "kept no examples. recipes/train_reinforce.py" in text
    assert "saved by transformers" in text


def demo_of(runs):
    """The file that recipes/demo.py leaves, from the two runs."""
    log = json.loads((runs / "policy" / "trainer_state.json").read_text())["log_history"]
    example = {"prompt": "p", "before": "<b>bad</b>", "after": "good", "score_before": -1.0, "score_after": 2.0}
    return {
        "reward_model": json.loads((runs / "reward" / "eval_results.json").read_text()),
        "policy": {
            "before": [1.0, 0.9, 1.1],
            "after": [2.0, 1.9, 2.1],
            "gain": [1.0, 0.8, 1.2],
            "win_rate": [0.75, 0.7, 0.8, 3, 40],
            "examples": [example] * 2,
            "judge": "RewardFunction",
        },
        "log": [row for row in log if "reward" in row],
    }


def test_the_page_of_the_demonstration(runs, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(demo_of(runs)))
    page = read(write_run_report(tmp_path))
    assert page.texts["h1"][0].startswith("Demonstration")
    assert "1.00 before REINFORCE and 2.00 after 3 steps of it, on 40 prompts" in page.texts["p"][0]
    assert table_of(page, "win rate") == ["win rate (3 ties)0.7500.700 to 0.800"]
    assert page.texts["pre"].count("\n<b>bad</b>") == 2
    assert (tmp_path / "report" / "held-out.png").exists()
    (curve,) = (alt for alt in page.values("img", "alt") if alt.startswith("Reward by RewardFunction by step"))
    assert curve.endswith("held-out prompts from 1 to 2.")
    assert (tmp_path / "report" / "entropy.png").exists()


def test_a_loss_that_is_no_number_is_said(copy):
    folder = copy("reward")
    state = json.loads((folder / "trainer_state.json").read_text())
    broken = [row for row in state["log_history"] if "loss" in row][4:6]
    for row in broken:
        row["loss"] = float("nan")
    (folder / "trainer_state.json").write_text(json.dumps(state))
    text = " ".join(read(write_run_report(folder)).texts["p"])
    assert "no finite number in 2 of 12 logs, first at step 5." in text


def test_figures_of_another_trainer_make_a_page(tmp_path):
    log = [{"step": 1, "loss": 0.7, "accuracy": 0.5}, {"step": 2, "eval_loss": 0.6, "eval_accuracy": 0.75}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log, "global_step": 2}))
    page = read(write_run_report(tmp_path))
    assert "ranks 75.0% of held-out pairs right" in page.texts["p"][0]
    assert table_of(page, "accuracy0.7500") == ["accuracy0.7500"]


def test_the_page_of_a_run_of_trls_own_trainer(tmp_path, tiny_folder, plain_pairs, cpu_options):
    """TRL's scripts save the model and not the state, and its checkpoints have no manifest."""
    config = RewardConfig(str(tmp_path), max_steps=4, **cpu_options | {"save_strategy": "steps", "save_steps": 2})
    trainer = RewardTrainer(tiny_folder(), config, train_dataset=plain_pairs)
    trainer.train()
    trainer.save_model()
    assert not (tmp_path / "trainer_state.json").exists()
    page = read(write_run_report(tmp_path))
    assert "left no trainer_state.json of its end: this page shows it up to step 4" in page.texts["main"][0]
    assert len(drawings(page)) > 0


@pytest.mark.parametrize(
    ("tag", "title"),
    [("grpo", "GRPO"), ("rloo", "RLOO"), ("sft", "Supervised fine-tuning"), ("dpo", "DPO"), ("other", "Policy")],
)
def test_a_page_is_titled_by_the_trainer_that_trl_names(tmp_path, tag, title):
    folder = policy_run(tmp_path, "good", seed=0)
    (folder / "README.md").write_text(f"---\ntags:\n- generated_from_trainer\n- {tag}\n- trl\n---\n# Model card\n")
    assert page_title(read_run(folder)) == title


def test_a_page_is_titled_by_the_trainer_that_started_the_run(copy):
    record = read_run(copy("policy"))
    assert page_title(record) == "REINFORCE"
    assert page_title(record._replace(trainer="MyOwnTrainer")) == "MyOwn"


def assert_refused(folder, capsys, *messages):
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for message in (str(folder), *messages):
        assert message in error


def test_a_folder_without_a_run_says_what_it_has(runs, tmp_path, capsys):
    assert_refused(tmp_path, capsys, "holds no run", "but nothing")
    (tmp_path / "notes.txt").write_text("")
    assert_refused(tmp_path, capsys, "but notes.txt")
    assert_refused(runs, capsys, "policy/, reward/", f"{runs / 'policy'}, {runs / 'reward'}")


def test_a_run_without_a_checkpoint_yet_says_so(copy, capsys):
    folder = copy("policy")
    (folder / "trainer_state.json").unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    started = json.loads((folder / "run.json").read_text())["started"][0]
    assert_refused(folder, capsys, started, "nor a complete checkpoint")


@pytest.mark.parametrize("name", ["trainer_state.json", "run.json", "config.json", "examples.json", "metrics.json"])
def test_a_damaged_file_is_named_with_the_position(copy, capsys, name):
    folder = copy("policy")
    (folder / name).write_text('{"a": 1,\n "b": ')
    assert_refused(folder, capsys, str(folder / name), "line 2, column 7")


@pytest.mark.parametrize(("content", "message"), [("[]", "holds a list instead of a dict"), (b"\xff\xfe", "byte 0")])
def test_a_file_of_another_kind_is_named(copy, capsys, content, message):
    folder = copy("policy")
    file = folder / "trainer_state.json"
    file.write_bytes(content) if isinstance(content, bytes) else file.write_text(content)
    assert_refused(folder, capsys, str(file), message)


def test_a_run_that_held_nothing_out_says_so_and_has_a_page(tmp_path, tiny_folder, plain_pairs, cpu_options, capsys):
    plain_pairs.to_json(tmp_path / "pairs.jsonl")
    options = {**cpu_options, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}  # by default of the command
    config = MultiScaleRewardConfig(str(tmp_path / "reward"), per_device_train_batch_size=4, **options)
    data = RunArguments(dataset_name=str(tmp_path / "pairs.jsonl"), eval_size=0)
    train_reward(data, config, ModelConfig(model_name_or_path=tiny_folder()))
    assert "Nothing was held out: these are the last weights" in capsys.readouterr().out
    run = read_run(tmp_path / "reward")
    assert not run.evaluations
    assert write_run_report(tmp_path / "reward").is_file()
