"""Sampled ids and the rows of training that they stand for."""

import pytest

from toolkit.data.markers import response_marker_ids
from toolkit.data.sampled import encode_sampled, prompt_parts
from toolkit.data.tokens import encode_response, end_ids
from toolkit.experiments.templates import TOKENIZERS, examine, new_tokenizer, shipped_templates

PROMPT = [{"role": "user", "content": "Why is the sky blue?"}]
ANSWER = "It is not; it is black at night!"
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def row_of(tokenizer, ids, finished, prompt=PROMPT):
    text = tokenizer.decode(ids, skip_special_tokens=True)
    completion = text if isinstance(prompt, str) else said(text)
    return encode_sampled(tokenizer, prompt, prompt_parts(tokenizer, prompt, {}), completion, ids, finished=finished)


# Phi-3's marker was cut inside a token, R1's thought was stripped in training alone, gpt-oss's head was written twice,
# Qwen3.6 opens the thought in the prompt, Gemma refuses system messages
@pytest.mark.parametrize(
    ("name", "kind"),
    [("phi3", 0), ("deepseek_r1_distill_training", 1), ("gptoss", 0), ("qwen3_6", 0), ("gemma", 1), ("glm4moe", 3)],
)
def test_every_way_of_scoring_reads_the_row_of_training(name, kind):
    cases = list(examine(name, shipped_templates()[name], [TOKENIZERS[kind]]))
    assert [case for case in cases if case.wrong] == []
    assert sum(len(case.differences) for case in cases) >= (5 if name != "gemma" else 3) * 4
    for case in cases:
        for reason in case.refused.values():
            assert "System role not supported" in reason


@pytest.mark.parametrize("template", [MISTRAL, LLAMA_2], ids=["Mistral", "Llama 2"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_space_that_the_template_writes_is_not_written_twice(template, kind):
    tokenizer = new_tokenizer(kind, template)
    row = encode_response(tokenizer, PROMPT, said(ANSWER))
    ids = row.input_ids[row.response_start :]
    found = row_of(tokenizer, ids, finished=True)
    assert found.row.input_ids == row.input_ids
    assert found.followed is None
    assert response_marker_ids(tokenizer)  # the end of the user's turn
    cut_off = row_of(tokenizer, ids[:4], finished=False)
    assert cut_off.row.input_ids[: row.response_start + 3] == row.input_ids[: row.response_start + 3]
    assert tokenizer.eos_token_id not in cut_off.row.input_ids[1:]


def test_what_a_tokenizer_adds_by_itself_never_stands_inside_a_row():
    tokenizer = new_tokenizer("byte-level, appends EOS", MISTRAL)
    eos, prompt = tokenizer.eos_token_id, "Why is the sky blue? "
    body = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    finished, cut_off = row_of(tokenizer, [*body, eos], True, prompt), row_of(tokenizer, body, False, prompt)
    assert finished.row.input_ids == encode_response(tokenizer, prompt, ANSWER).input_ids
    assert finished.row.input_ids[-3:] == [body[-1], eos, eos]  # ours and, as in TRL's rows, the tokenizer's
    assert eos not in finished.row.input_ids[:-2]
    assert eos not in cut_off.row.input_ids
    assert cut_off.row.input_ids == finished.row.input_ids[:-2]


def test_a_first_word_keeps_the_space_that_decoding_takes_from_it():
    tokenizer = new_tokenizer(TOKENIZERS[1], MISTRAL)
    ids = encode_response(tokenizer, "Why is the sky blue? A:", f" {ANSWER}").input_ids
    start = encode_response(tokenizer, "Why is the sky blue? A:", f" {ANSWER}").response_start
    assert tokenizer.decode(ids[start:], skip_special_tokens=True) == ANSWER  # without the space
    assert row_of(tokenizer, ids[start:], True, "Why is the sky blue? A:").row.input_ids == ids


def test_a_thought_that_was_cut_off_is_no_answer():
    tokenizer = new_tokenizer(TOKENIZERS[0], shipped_templates()["qwen3_6"])
    whole = encode_response(tokenizer, PROMPT, said(f"<think>\nLet me see.\n</think>\n\n{ANSWER}"))
    given = tokenizer(tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True))
    ids = tokenizer("Let me see.", add_special_tokens=False)["input_ids"]
    found = row_of(tokenizer, ids, finished=False)
    assert found.row.input_ids == whole.input_ids[: len(found.row.input_ids)]
    assert found.row.input_ids == given["input_ids"][1:] + ids  # all but BOS, which the tokenizer puts before text
    assert found.row.response_start == whole.response_start


def test_thoughts_in_other_tags_are_thoughts_too():
    # opened in the prompt; the template writes an empty one where a message has none
    thought = "{{ m['content'] if '[/THINK]' in m['content'] else '[THINK][/THINK]' + m['content'] }}"
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}"
        + thought
        + "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[THINK]' }}{% endif %}"
    )
    tokenizer = new_tokenizer(TOKENIZERS[0], template)
    for answer in (ANSWER, f"[THINK]Let me see.[/THINK]{ANSWER}"):
        row = encode_response(tokenizer, PROMPT, said(answer))
        text = answer.removeprefix("[THINK]") if "[/THINK]" in answer else f"[/THINK]{answer}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row_of(tokenizer, [*ids, tokenizer.eos_token_id], finished=True).row.input_ids == row.input_ids
    cut_off = row_of(tokenizer, tokenizer("Let me", add_special_tokens=False)["input_ids"], finished=False).row
    assert cut_off.input_ids == row.input_ids[: len(cut_off.input_ids)]


def test_end_of_turn_that_is_no_special_token_does_not_end_a_response():
    tokenizer = new_tokenizer(TOKENIZERS[0], MISTRAL.replace("eos_token", "' Over.'"))
    assert end_ids(tokenizer) == {tokenizer.eos_token_id, tokenizer.pad_token_id}


def test_a_template_that_marks_nothing_has_no_marker(monkeypatch):
    said_to_user = []
    monkeypatch.setattr("toolkit.data.markers.logger.warning", said_to_user.append)
    nothing = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    assert response_marker_ids(new_tokenizer(TOKENIZERS[0], nothing)) == []
    assert "has to pass `response_start`" in said_to_user[0]
