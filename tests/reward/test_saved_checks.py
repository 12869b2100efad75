"""A saved reward model that is no more what was saved is refused, by loading or by `prefscale verify`."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.tiny import spread_head
from toolkit import (
    AutoModelForMultiScaleReward,
    MultiScaleRewardConfig,
    MultiScaleRewardTrainer,
    MultiScaleSettings,
    SharedBaseRewardFunction,
)
from toolkit.cli.main import main
from toolkit.reward.adapters import save_adapter_settings
from toolkit.reward.fingerprints import SAMPLE_BYTES, SAMPLES, fingerprint, read_json, tensor_shapes
from toolkit.reward.loading import load_tokenizer
from toolkit.reward.probe_scores import probe_rows
from toolkit.reward.record import finder, read_record, what_stock_reads, write_record

load = AutoModelForMultiScaleReward.from_pretrained


@pytest.fixture(scope="module")
def kept(tiny_folder, chat_pairs, cpu_options, tmp_path_factory):
    """Folders that the trainer has saved, and the base that the adapter was trained on."""
    work = tmp_path_factory.mktemp("kept")
    shutil.copytree(tiny_folder(), work / "base")
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    for form, peft_config in (("whole", None), ("adapter", lora)):
        config = MultiScaleRewardConfig(
            str(work / form), context="gate", max_steps=1, learning_rate=1e-2, **cpu_options
        )
        trainer = MultiScaleRewardTrainer(str(work / "base"), config, chat_pairs, peft_config=peft_config)
        spread_head(trainer.reward_model)
        trainer.save_model()
    return work


@pytest.fixture
def folder(kept, tmp_path):
    """Copies to be damaged, with an adapter that names the copy of its base."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path


@pytest.fixture
def said(caplog):
    """What Transformers' loggers say, which hand nothing on, and ours."""
    logging.getLogger("transformers").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("transformers").removeHandler(caplog.handler)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


def change_tensors(path: Path, change) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without_head(tensors):
    return {key: value for key, value in tensors.items() if "score.token" not in key}


def moved(tensors):
    return {key: value + 0.01 for key, value in tensors.items()}


def saved_by_a_stock_class(work: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(work / "whole", num_labels=1).save_pretrained(work / "whole")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit_settings(path: Path, **changes) -> None:
    edit(path, multi_scale=read_json(path)["multi_scale"] | changes)


# What is done, and to which model
DAMAGE = {
    "a stock class saved it": ("whole", saved_by_a_stock_class),
    "a part of an adapter's head": (
        "adapter",
        lambda work: change_tensors(work / "adapter" / "adapter_model.safetensors", without_head),
    ),
}


def test_what_a_call_leaves_in_a_tokenizer_is_no_damage(folder):
    tokenizer = load_tokenizer(str(folder / "whole"))
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    before = (folder / "whole" / "tokenizer.json").read_bytes()
    tokenizer.save_pretrained(folder / "whole")
    assert (folder / "whole" / "tokenizer.json").read_bytes() != before
    load_tokenizer(str(folder / "whole"))


def test_ids_without_an_embedding_are_refused(reward_model, tokenizer, tmp_path):
    """Of a model that was saved without a tokenizer, beside which another one was put."""
    reward_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_tokenizer(str(tmp_path))
    content = read_json(tmp_path / "tokenizer.json")
    last = {**content["added_tokens"][-1], "id": 400, "content": "<|other|>"}
    edit(tmp_path / "tokenizer.json", added_tokens=[*content["added_tokens"], last])
    with pytest.raises(ValueError, match=r"the token '<\|other\|>' with id 400, and the model has embeddings for ids"):
        load_tokenizer(str(tmp_path))


def test_a_base_that_has_moved_is_known_by_its_weights(folder):
    shutil.move(folder / "base", folder / "elsewhere")
    edit(folder / "adapter" / "adapter_config.json", base_model_name_or_path=str(folder / "elsewhere"))
    load(str(folder / "adapter"))
    assert main(["verify", str(folder / "adapter")]) == 0


def in_hub_cache(cache: Path, name: str, saved: Path, commit: str) -> Path:
    """Files of a model as the hub's cache on disk has them, of the commit that is its newest."""
    model = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(saved, model / "snapshots" / commit)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text(commit)
    return model / "snapshots" / commit


def test_a_model_of_the_hub_is_checked_too(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cache = folder / "cache"
    snapshot = in_hub_cache(cache, "someone/reward", folder / "whole", "0" * 40)
    load("someone/reward", cache_dir=str(cache))
    load_tokenizer("someone/reward", cache_dir=str(cache))
    change_tensors(snapshot / "model.safetensors", moved)
    edit(snapshot / "tokenizer.json", version="2.0")
    with pytest.raises(ValueError, match="is not the file that was saved: it has other weights"):
        load("someone/reward", cache_dir=str(cache))
    with pytest.raises(ValueError, match=r"tokenizer\.json is another"):
        load_tokenizer("someone/reward", cache_dir=str(cache))


def test_an_adapter_is_put_on_the_commit_that_it_was_trained_on(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cache, first, second = folder / "cache", "1" * 40, "2" * 40
    in_hub_cache(cache, "someone/base", folder / "base", first)
    model = get_peft_model(
        load("someone/base", MultiScaleSettings(context="gate"), cache_dir=str(cache)),
        LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], base_model_name_or_path="someone/base"),
    )
    model.save_pretrained(folder / "of-hub", save_embedding_layers=False)  # PEFT would ask the hub
    save_adapter_settings(MultiScaleSettings(context="gate"), str(folder / "of-hub"))
    write_record(model, folder / "of-hub")
    base = read_record(finder(str(folder / "of-hub"))).base
    assert (base.commit, base.is_folder, list(base.weights)) == (first, False, ["model.safetensors"])
    change_tensors(folder / "base" / "model.safetensors", moved)
    in_hub_cache(cache, "someone/base", folder / "base", second)
    load(str(folder / "of-hub"), cache_dir=str(cache))
    with pytest.raises(ValueError, match=f"trained on 'someone/base' at commit {first}, and 'someone/base' is not"):
        load(str(folder / "of-hub"), cache_dir=str(cache), revision="main")


def test_a_shared_base_that_has_changed_is_refused(folder):
    reward = SharedBaseRewardFunction(str(folder / "adapter"))
    change_tensors(folder / "base" / "model.safetensors", moved)
    policy = AutoModelForCausalLM.from_pretrained(folder / "base")
    with pytest.raises(ValueError, match="is not that model any more"):
        reward.attach(get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])))


@pytest.mark.parametrize("form", ["whole", "adapter"])
def test_what_was_saved_is_verified(folder, form, capsys):
    assert main(["verify", str(folder / form)]) == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out
    assert "stock class" in out
    assert ("scores, merged" in out) == (form == "adapter")


def test_merged_and_saved_it_is_verified(folder, capsys):
    load(str(folder / "adapter")).merge_and_unload().save_pretrained(folder / "merged")
    assert main(["verify", str(folder / "merged")]) == 0
    probes, of_adapter = (read_record(finder(str(folder / form))).probes for form in ("merged", "adapter"))
    assert probes.rows == of_adapter.rows
    assert probes.scores == pytest.approx(of_adapter.scores, abs=1e-5)


def test_scores_that_are_not_those_of_then_are_named(folder, capsys):
    record = read_json(folder / "whole" / "prefscale.json")
    record["probes"]["scores"][1] += 0.1
    (folder / "whole" / "prefscale.json").write_text(json.dumps(record))
    assert main(["verify", str(folder / "whole")]) == 1
    assert "not as when it was saved" in capsys.readouterr().out


def test_the_kept_scores_are_those_of_the_forward_pass(folder):
    probes = read_record(finder(str(folder / "whole"))).probes
    model = load(str(folder / "whole")).eval()
    for row, start, score in zip(probes.rows, probes.starts, probes.scores, strict=True):
        with torch.no_grad():
            output = model(input_ids=torch.tensor([row]), response_start=torch.tensor([start]))
        assert output.logits.item() == pytest.approx(score, abs=1e-6)
    assert len(set(probes.scores)) == 3


def test_a_bit_that_loading_does_not_look_at_is_found_by_the_command(reward_folder, tmp_path, capsys):
    size = {"hidden_size": 128, "intermediate_size": 256}
    shutil.copytree(reward_folder("qwen3", **size), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    content, before = bytearray(path.read_bytes()), fingerprint(path)
    assert len(content) > 2 * SAMPLES * SAMPLE_BYTES
    begin = 8 + int.from_bytes(content[:8], "little")
    step = (len(content) - begin) // SAMPLES
    content[begin + 20 * step + SAMPLE_BYTES] ^= 1  # the first byte behind a sample, the last bit of a number
    path.write_bytes(content)
    assert fingerprint(path) == before
    load(str(tmp_path))
    assert main(["verify", str(tmp_path)]) == 1
    assert "WRONG  model.safetensors  changed since it was saved" in capsys.readouterr().out


def test_a_folder_from_before_loads_with_one_line(folder, said):
    for form in ("whole", "adapter"):
        (folder / form / "prefscale.json").unlink()
        load(str(folder / form))
        lines = [record.getMessage() for record in said.records if "has no prefscale.json" in record.getMessage()]
        assert len(lines) == 1
        said.clear()
        assert main(["verify", str(folder / form)]) == 1


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_head_that_is_missing_is_refused_in_folders_from_before(folder, kind):
    form, do = DAMAGE[kind]
    do(folder)
    (folder / form / "prefscale.json").unlink()
    with pytest.raises(ValueError, match="which would be random, as after a stock class has saved it again"):
        load(str(folder / form))


def test_layers_that_are_missing_are_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder(), tmp_path, dirs_exist_ok=True)
    change_tensors(
        tmp_path / "model.safetensors", lambda tensors: {k: v for k, v in tensors.items() if ".1." not in k}
    )
    with pytest.raises(ValueError, match=r"lack model\.layers\.1\..* and \d+ more, which would be random\. Take"):
        load(str(tmp_path), MultiScaleSettings(context="gate"))


def test_weights_of_other_shapes_are_refused_in_one_line(folder):
    (folder / "whole" / "prefscale.json").unlink()
    edit(folder / "whole" / "config.json", intermediate_size=32)
    with pytest.raises(ValueError, match=r"do not fit its config\.json: model\.layers\.0\.mlp\.down_proj\.weight has"):
        load(str(folder / "whole"))


def test_a_shard_that_is_gone_is_named(reward_model, tmp_path):
    reward_model().save_pretrained(tmp_path, max_shard_size="40KB")
    load(str(tmp_path))
    shard = sorted(tmp_path.glob("model-0000*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"names {shard.name}, which is missing"):
        load(str(tmp_path))
    assert main(["verify", str(tmp_path)]) == 1


def test_an_adapter_that_is_whole_is_loaded_in_silence(folder, said):
    load(str(folder / "adapter"))
    assert "MISSING" not in said.text
    assert "initialized" not in said.text
    assert not [record for record in said.records if record.levelno >= logging.WARNING]


def test_code_of_the_base_that_an_adapter_names_is_not_run(folder, said):
    traces = folder / "it-ran"
    (folder / "base" / "own.py").write_text(
        f"from pathlib import Path\nfrom transformers import Qwen3Config\nPath({str(traces)!r}).touch()\n"
        "class Own(Qwen3Config): pass\n"
    )
    edit(folder / "base" / "config.json", auto_map={"AutoConfig": "own.Own"})
    load(str(folder / "adapter"), trust_remote_code=True)
    load_tokenizer(str(folder / "adapter"), trust_remote_code=True)
    assert not traces.exists()
    assert "`trust_remote_code` is not passed on to the base" in said.text


@pytest.mark.parametrize(
    ("scales", "context", "pads_with_eos", "line"),
    [
        (["token", "segment"], "gate", False, "reads 0 for every row"),
        (["token", "response"], "none", False, "reads the linear response scale alone and not the score, the mix"),
        (["response"], "head", False, "which is conditioned on the prompt"),
        (["response"], "none", True, "does not read the score where a row ends with EOS"),
        (["response"], "none", False, None),
    ],
)
def test_saving_says_what_a_stock_class_would_read(reward_model, tmp_path, said, scales, context, pads_with_eos, line):
    model = reward_model("qwen3", scales, context)
    if pads_with_eos:
        model.config.pad_token_id = model.config.eos_token_id
    found = what_stock_reads(model, adapter=False)
    assert found is None if line is None else line in found
    model.save_pretrained(tmp_path)
    assert main(["verify", str(tmp_path)]) == 0


def test_an_adapter_that_reads_some_layers_is_verified_without_a_stock_class(
    folder, chat_pairs, reward_config, capsys
):
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    config = reward_config(num_hidden_layers=1, shared_prompts=False)
    trainer = MultiScaleRewardTrainer(str(folder / "base"), config, chat_pairs, peft_config=lora)
    assert "runs all layers of the base" in what_stock_reads(trainer.reward_model, adapter=True)
    trainer.save_model(str(folder / "cut"))
    assert main(["verify", str(folder / "cut")]) == 0
    assert "it runs more layers of the base than 1" in capsys.readouterr().out


def test_weights_in_parts_are_saved_without_scores(reward_model, tmp_path, monkeypatch, capsys):
    model = reward_model()
    model.model.norm.weight.ds_id = 0  # as DeepSpeed marks what it has divided among processes
    model.save_pretrained(tmp_path)
    assert read_record(finder(str(tmp_path))).probes is None
    assert main(["verify", str(tmp_path)]) == 0
    assert "none were saved" in capsys.readouterr().out


def test_a_save_without_weights_leaves_no_record(reward_model, tmp_path):
    """As under ZeRO-3 without gathering, where DeepSpeed writes them itself."""
    model = reward_model()
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, state_dict={})
    assert not (tmp_path / "prefscale.json").exists()


def test_saving_leaves_the_model_as_it_was(reward_model, tmp_path):
    model = reward_model().train()
    model.model.norm.eval()
    before, state = {name: module.training for name, module in model.named_modules()}, torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_pushed_has_its_record(reward_model, tmp_path, monkeypatch):
    model, pushed = reward_model(), []
    monkeypatch.setattr(type(model), "push_to_hub", lambda self, *names, **options: pushed.append((names, options)))
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, commit_message="A model", token="x")
    assert pushed == [(("mine",), {"commit_message": "A model", "token": "x"})]
    assert (tmp_path / "mine" / "prefscale.json").is_file()


def test_the_fingerprint_of_three_bytes(tmp_path):
    # Its size, no header, three samples that begin a byte apart, and its end
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"abc")
    assert fingerprint(path) == hashlib.sha256(b"3" + b"abc" + b"bc" + b"c" + b"abc").hexdigest()


def test_the_fingerprint_covers_the_head(tmp_path):
    """Wherever it lies in a file of which it is a small part."""
    tensors = {"a": torch.zeros(600_000), "score.weight": torch.zeros(1, 40_000), "z": torch.zeros(600_000)}
    save_file(tensors, tmp_path / "one.safetensors")
    found = {fingerprint(tmp_path / "one.safetensors")}
    for place in range(0, 40_000, 8_000):
        tensors["score.weight"][0, place] = 1.0
        save_file(tensors, tmp_path / "one.safetensors")
        found.add(fingerprint(tmp_path / "one.safetensors"))
    assert len(found) == 6
    assert tensor_shapes(tmp_path / "one.safetensors") == {"a": [600_000], "score.weight": [1, 40_000], "z": [600_000]}


def test_probe_rows_avoid_what_they_must_and_have_boundaries():
    rows = probe_rows(50, 20, avoid=set(range(10)), boundaries=[3, 11, 60])
    assert [len(row) for row in rows] == [9, 17, 20]
    assert all(10 <= number < 50 for row in rows for number in row)
    assert all(row[3] == row[7] == 11 for row in rows)
    assert probe_rows(50, 20, avoid=set(range(10)), boundaries=[3, 11, 60]) == rows
