import copy

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from tests.helpers import PAIRS
from tests.tiny import train_tokenizer
from toolkit.data.markers import response_marker_ids
from toolkit.data.positions import find_response_start, segment_ends
from toolkit.data.tokens import (
    EncodedResponse,
    cut_prompt,
    encode_response,
    end_ids,
    segment_boundary_ids,
    turn_parts,
)

QUESTION = [{"role": "user", "content": "Who?"}]
ANSWER = [{"role": "assistant", "content": "Me. You."}]


@pytest.fixture(scope="module")
def trl_ids(tiny_folder, cpu_options, tmp_path_factory):
    """Token ids of pairs as TRL's own trainer prepares them."""

    def ids(pairs, tokenizer):
        config = RewardConfig(output_dir=str(tmp_path_factory.mktemp("trl")), max_length=None, **cpu_options)
        trainer = RewardTrainer(tiny_folder(), config, train_dataset=pairs, processing_class=copy.copy(tokenizer))
        return {side: trainer.train_dataset[f"{side}_ids"][:] for side in ("chosen", "rejected")}

    return ids


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("name", ["tokenizer", "other_tokenizer", "bos_tokenizer"])
def test_ids_are_those_of_trl(request, trl_ids, form, name):
    pairs, tokenizer = request.getfixturevalue(f"{form}_pairs"), request.getfixturevalue(name)
    if name == "bos_tokenizer" and form == "chat":
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    expected = trl_ids(pairs, tokenizer)
    for side in ("chosen", "rejected"):
        found = [encode_response(tokenizer, pair["prompt"], pair[side]).input_ids for pair in pairs]
        assert found == expected[side]


def test_ids_of_conversations_without_a_prompt_column_are_those_of_trl(chat_pairs, tokenizer, trl_ids):
    whole = [{side: pair["prompt"] + pair[side] for side in ("chosen", "rejected")} for pair in chat_pairs]
    expected = trl_ids(Dataset.from_list(whole), tokenizer)
    found = [encode_response(tokenizer, pair["prompt"], pair["rejected"]).input_ids for pair in chat_pairs]
    assert found == expected["rejected"]


def test_ids_of_real_pairs_are_those_of_trl(real_pairs, tokenizer, trl_ids):
    pairs = real_pairs.select(range(50))
    expected = trl_ids(pairs, tokenizer)
    for side in ("chosen", "rejected"):
        assert [encode_response(tokenizer, pair["prompt"], pair[side]).input_ids for pair in pairs] == expected[side]


def test_response_of_a_conversation_starts_after_the_marker(tokenizer):
    row = encode_response(tokenizer, QUESTION, ANSWER)
    head, response = row.input_ids[: row.response_start], row.input_ids[row.response_start :]
    assert tokenizer.decode(head) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(response) == "Me. You.<|im_end|>\n"
    texts = [tokenizer.decode([i]) for i in response]
    expected, end = [], 0
    for text in texts:
        end += len(text)
        expected.append(end)
    assert row.ends == expected


def test_plain_response_starts_after_the_prompt_and_ends_in_eos(tokenizer):
    row = encode_response(tokenizer, "Q: Who?\nA:", " Me.")
    head, response = row.input_ids[: row.response_start], row.input_ids[row.response_start :]
    assert tokenizer.decode(head) == "Q: Who?\nA:"
    assert tokenizer.decode(response) == " Me.<|im_end|>"
    assert row.ends[-2:] == [4, 4 + len("<|im_end|>")]


def test_eos_that_is_there_is_not_written_again(tokenizer):
    assert encode_response(tokenizer, "Q:", " A.<|im_end|>") == encode_response(tokenizer, "Q:", " A.")


def test_token_that_spans_the_border_belongs_to_the_response(tokenizer):
    word = next(tokenizer.decode([i]) for i in range(len(tokenizer)) if len(tokenizer.decode([i]).strip()) == 4)
    row = encode_response(tokenizer, word[:3], word[3:])  # the whole word is one token
    assert len(row.input_ids) == 2
    assert row.response_start == 0
    assert row.ends == [1, 1 + len(tokenizer.eos_token)]


def test_character_ends_count_characters_not_bytes(tokenizer):
    row = encode_response(tokenizer, "Q:", " Schön, 谢谢.", finished=False)
    assert row.ends[-1] == len(" Schön, 谢谢.")
    assert row.ends == sorted(row.ends)


def test_bos_stands_before_plain_text_as_in_training(bos_tokenizer):
    row = encode_response(bos_tokenizer, "Q: Who?\nA:", " Me.")
    assert row.input_ids[0] == bos_tokenizer.bos_token_id
    assert bos_tokenizer.decode(row.input_ids[row.response_start :]) == " Me.<|im_end|>"


def test_unfinished_responses_have_no_end(tokenizer):
    finished = encode_response(tokenizer, "Q:", " A b")
    cut_off = encode_response(tokenizer, "Q:", " A b", finished=False)
    assert finished.input_ids == [*cut_off.input_ids, tokenizer.eos_token_id]
    finished, cut_off = (encode_response(tokenizer, QUESTION, ANSWER, finished=flag) for flag in (True, False))
    tail = tokenizer("<|im_end|>\n")["input_ids"]
    assert finished.input_ids == [*cut_off.input_ids, *tail]
    assert cut_off.response_start == finished.response_start


def test_conversation_without_a_template_is_an_error(tokenizer):
    bare = copy.copy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"the tokenizer has no chat template. Set `chat_template_path`"):
        encode_response(bare, QUESTION, ANSWER)


def test_tokens_are_cut_from_the_left_by_the_same_number_on_both_sides(tokenizer):
    sides = [encode_response(tokenizer, "Q: How do you do today?\nA:", r) for r in (" Well, thank you.", " Bad.")]
    longest = max(len(side.input_ids) for side in sides)
    shortened, cut = cut_prompt(tokenizer, sides, longest - 3)
    assert cut == 3
    for old, new in zip(sides, shortened, strict=True):
        assert new.input_ids == old.input_ids[3:]
        assert new.response_start == old.response_start - 3
        assert new.ends == old.ends
    assert max(len(side.input_ids) for side in shortened) == longest - 3


def test_bos_stays_when_the_prompt_is_cut(bos_tokenizer):
    side = encode_response(bos_tokenizer, "Q: How do you do today?\nA:", " Well.")
    (short,), cut = cut_prompt(bos_tokenizer, [side], len(side.input_ids) - 2)
    assert cut == 2
    assert short.input_ids == side.input_ids[:1] + side.input_ids[3:]
    assert short.input_ids[short.response_start :] == side.input_ids[side.response_start :]


def test_what_fits_is_not_cut(tokenizer):
    side = EncodedResponse([9, 8, 7], 1, [1, 2])
    assert cut_prompt(tokenizer, [side], 3) == ([side], 0)
    assert cut_prompt(tokenizer, [side], None) == ([side], 0)


def test_last_prompt_token_is_kept_and_a_longer_response_is_refused(tokenizer):
    side = EncodedResponse([9, 8, 7, 6], 2, [1, 2])
    assert cut_prompt(tokenizer, [side], 3) == ([EncodedResponse([8, 7, 6], 1, [1, 2])], 1)
    with pytest.raises(
        ValueError, match=r"a response of 2 tokens does not fit into `max_length=2`.*Raise `max_length`"
    ):
        cut_prompt(tokenizer, [side], 2)


def test_bos_counts_when_a_response_is_refused(bos_tokenizer):
    side = EncodedResponse([bos_tokenizer.bos_token_id, 8, 7, 6], 2, [1, 2])
    assert cut_prompt(bos_tokenizer, [side], 4) == ([side], 0)
    with pytest.raises(ValueError, match="does not fit"):
        cut_prompt(bos_tokenizer, [side], 3)


def test_boundaries_are_the_tokens_that_end_a_sentence_a_line_or_a_turn(tokenizer):
    boundaries = set(segment_boundary_ids(tokenizer))
    vocabulary = {tokenizer.decode([i]): i for i in range(len(tokenizer))}
    for text in (".", "!", "?", "\n", "<|im_end|>", "<|im_start|>", "<|pad|>"):
        assert vocabulary[text] in boundaries, text
    for text in (",", ":", "a", " ", "e", "'", '"'):
        assert vocabulary[text] not in boundaries, text
    for text, i in vocabulary.items():
        ends = text.rstrip(" \t").endswith((".", "!", "?")) or "\n" in text or i in tokenizer.all_special_ids
        if not text.rstrip().endswith(("'", '"', ")", "]", "”", "’", "»", "…", "。")):
            assert (i in boundaries) == ends, repr(text)


def test_closing_quotes_belong_to_the_sentence():
    sayings = train_tokenizer(['He said: "No."', "(So it is.)", "(So it is.)", 'She said: "No."'] * 3, 290)
    boundaries = set(segment_boundary_ids(sayings))
    closed = [i for i in range(len(sayings)) if sayings.decode([i]) in ('."', ".)")]
    assert closed
    assert boundaries.issuperset(closed)


def test_segments_of_an_answer_by_hand(tokenizer):
    row = encode_response(tokenizer, QUESTION, [{"role": "assistant", "content": "Me. You.\n\nAnd him"}])
    ids = torch.tensor([row.input_ids])
    response = torch.arange(ids.size(1))[None] >= row.response_start
    boundary = torch.isin(ids, torch.tensor(segment_boundary_ids(tokenizer)))
    ends = segment_ends(boundary, response)[0].nonzero().flatten().tolist()
    texts, before = [], row.response_start
    for end in ends:
        texts.append(tokenizer.decode(row.input_ids[before : end + 1]))
        before = end + 1
    # newlines that follow a full stop open the next piece but end no segment; nor does the newline after the turn
    assert [text.strip("\n") for text in texts] == ["Me.", " You.", "And him<|im_end|>"]


def test_marker_is_what_opens_the_assistants_turn(tokenizer):
    assert response_marker_ids(tokenizer) == tokenizer("<|im_start|>assistant\n")["input_ids"]


def test_marker_is_found_in_every_conversation(tokenizer, chat_pairs):
    marker = response_marker_ids(tokenizer)
    for pair in chat_pairs:
        row = encode_response(tokenizer, pair["prompt"], pair["chosen"])
        ids = torch.tensor([row.input_ids])
        assert find_response_start(ids, torch.ones_like(ids), marker).tolist() == [row.response_start]


def test_there_is_no_marker_without_a_template(tokenizer):
    bare = copy.copy(tokenizer)
    bare.chat_template = None
    assert response_marker_ids(bare) == []


def test_parts_of_a_turn(tokenizer, thinking):
    opened = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert turn_parts(tokenizer, QUESTION) == (opened, "", "<|im_end|>\n")
    assert turn_parts(thinking, QUESTION) == (opened, "<think>\n\n</think>\n\n", "<|im_end|>\n")


def test_what_the_template_writes_before_the_message_belongs_to_the_response(tokenizer, thinking):
    row = encode_response(thinking, QUESTION, ANSWER)
    head, response = row.input_ids[: row.response_start], row.input_ids[row.response_start :]
    assert tokenizer.decode(head) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(response) == "<think>\n\n</think>\n\nMe. You.<|im_end|>\n"


def test_every_answer_comes_back_from_its_ids(tokenizer):
    # the alphabet holds every byte, so nothing is lost
    for _, good, bad in PAIRS:
        for text in (good, bad):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_response_ends_with_eos_padding_or_the_end_of_turn_and_nothing_else(tokenizer):
    ends = end_ids(tokenizer)
    assert ends == {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in ends


def test_the_end_of_turn_of_the_template_ends_a_response_where_it_is_not_eos(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|im_start|>")
    assert end_ids(other) == end_ids(tokenizer) | {tokenizer.convert_tokens_to_ids("<|im_start|>")}
