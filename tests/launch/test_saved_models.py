"""What is saved says the same in a process that knows nothing else: whole models, an adapter, and its merge."""

import pytest
import torch
from peft import LoraConfig

from tests.helpers import ARCHITECTURES, ROOT, run_python
from tests.tiny import pad_rows
from toolkit import AutoModelForMultiScaleReward, MultiScaleRewardConfig, MultiScaleRewardTrainer
from toolkit.data.tokens import encode_response
from toolkit.reward.scales import SCALES

FORM = pytest.mark.parametrize("form", [*ARCHITECTURES, "adapter", "merged"])


@pytest.fixture(scope="module")
def batch(tokenizer, chat_pairs):
    """A few conversations, of which every other one was cut off in mid-word."""
    rows = []
    for i, pair in enumerate(chat_pairs.select(range(6))):
        text = pair["chosen"][0]["content"]
        response = [{"role": "assistant", "content": text if i % 2 else text[:-2]}]
        rows.append(encode_response(tokenizer, pair["prompt"], response, finished=i % 2 == 1))
    return pad_rows([row.input_ids for row in rows], [row.response_start for row in rows], tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def saved(reward_model, reward_folder, tiny_folder, tokenizer, chat_pairs, cpu_options, tmp_path_factory):
    """Models as they are before they are saved, and the folders that they are saved in."""
    adapter, merged = (str(tmp_path_factory.mktemp(name)) for name in ("adapter", "merged"))
    config = MultiScaleRewardConfig(output_dir=adapter, context="gate", max_steps=5, learning_rate=3e-2, **cpu_options)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", lora_dropout=0.0)
    trainer = MultiScaleRewardTrainer(tiny_folder(), config, chat_pairs, peft_config=lora)
    trainer.train()
    trainer.save_model(adapter)
    AutoModelForMultiScaleReward.from_pretrained(adapter).merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    whole = {name: (reward_model(name), reward_folder(name)) for name in ARCHITECTURES}
    trained = trainer.model.eval()
    return whole | {"adapter": (trained, adapter), "merged": (trained, merged)}


@pytest.fixture(scope="module")
def here(saved, batch):
    """What each model says in this process."""
    with torch.no_grad():
        return {form: model(**batch) for form, (model, _) in saved.items()}


@pytest.fixture(scope="module")
def there(saved, batch, tmp_path_factory):
    """What a fresh process says of each folder."""
    work = tmp_path_factory.mktemp("fresh")
    torch.save({"folders": [folder for _, folder in saved.values()], "batch": batch}, work / "request.pt")
    script = ROOT / "tests" / "launch" / "scripts" / "score_saved.py"
    done = run_python(script, work / "request.pt", work / "answer.pt")
    assert (work / "answer.pt").is_file(), done.stderr
    answer = torch.load(work / "answer.pt")
    return {form: answer[folder] for form, (_, folder) in saved.items()}


def assert_close(found, expected, form):
    # Between an adapter beside its base and the two merged lies the rounding of one more sum
    bounds = {} if form in ARCHITECTURES else {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(found, expected, **bounds)


@FORM
def test_a_fresh_process_gives_the_same_scores(here, there, form):
    assert here[form].gate.std() > 0  # a new gate would be even
    assert_close(there[form]["score"], here[form].logits, form)
    for name in ("scale_scores", "gate", "prefix_values"):
        assert_close(there[form][name], here[form][name], form)


@FORM
def test_the_saved_marker_finds_the_response(here, there, form):
    assert_close(there[form]["score_by_marker"], here[form].logits, form)


@FORM
def test_stock_class_reads_the_response_scale(here, there, form):
    assert_close(there[form]["stock"][:, 0], here[form].scale_scores[:, SCALES.index("response")], form)
