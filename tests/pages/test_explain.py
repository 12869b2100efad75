import json
import math
import re
import shutil
from html.parser import HTMLParser
from itertools import chain, combinations

import pytest
import torch

from toolkit import RewardFunction, ThoughtReward
from toolkit.cli.main import main
from toolkit.data.tokens import encode_response
from toolkit.generative.turns import JudgeSettings
from toolkit.pages.explain import Explanation, compare, explain
from toolkit.pages.explain_page import render_html, verdict
from toolkit.reward.model import base_reward_model
from toolkit.reward.scales import SCALES

CHAT = [{"role": "user", "content": "Who wrote Faust?"}]
PLAIN = "Q: Who wrote Faust?\nA:"
TEXT = " A man wrote it. He was old"
SETTINGS = [
    (scales, context)
    for scales in chain.from_iterable(combinations(SCALES, n) for n in (1, 2, 3))
    for context in ("none", "gate", "head")
    if not (context == "gate" and len(scales) == 1) and not (context == "head" and "response" not in scales)
]


@pytest.fixture(scope="module")
def reward(reward_folder):
    return RewardFunction(reward_folder())


@pytest.fixture(scope="module")
def plain_folder(reward_folder, tmp_path_factory):
    """A reward model whose tokenizer has no chat template."""
    function, folder = RewardFunction(reward_folder()), str(tmp_path_factory.mktemp("plain"))
    function.model.save_pretrained(folder)
    function.processing_class.chat_template = None
    function.processing_class.save_pretrained(folder)
    return folder


def in_form(form: str, *texts: str):
    if form == "plain":
        return PLAIN, list(texts)
    return CHAT, [[{"role": "assistant", "content": text}] for text in texts]


def parts_sum(e: Explanation) -> float:
    """Every single contribution, added up: tokens, segments, and the response's own part."""
    response = e.parts[e.scales.index("response")] if "response" in e.scales else 0.0
    return sum(t.contribution for t in e.tokens) + sum(s.contribution or 0.0 for s in e.segments) + response


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize(("scales", "context"), SETTINGS, ids=lambda value: "-".join([value] * isinstance(value, str)))
def test_contributions_sum_to_the_score(reward_folder, scales, context, form):
    function = RewardFunction(reward_folder("qwen3", scales, context))
    prompt, responses = in_form(form, TEXT, "One.\n\nTwo! (Three?)\n", "🦊 ça")
    explained = explain(function, prompt, responses)
    for e, expected in zip(explained, function(([prompt] * 3), responses), strict=True):
        assert e.reward == pytest.approx(expected)
        assert parts_sum(e) == pytest.approx(expected, abs=1e-5)
        assert sum(e.parts) == pytest.approx(expected, abs=1e-5)
        assert sum(e.gate) == pytest.approx(1.0)
        assert any(token.contribution for token in e.tokens) == ("token" in scales)
        assert any(segment.contribution is not None for segment in e.segments) == ("segment" in scales)


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_tokens_and_segments_follow_from_the_hidden_states(reward, tokenizer, form):
    prompt, responses = in_form(form, TEXT)
    (explanation,) = explain(reward, prompt, responses)
    row = encode_response(tokenizer, prompt, responses[0])
    model = base_reward_model(reward.model)
    with torch.no_grad():
        hidden = model.model(torch.tensor([row.input_ids])).last_hidden_state[0]
    start, ids = row.response_start, row.input_ids[row.response_start :]
    prompt = hidden[start - 1] / hidden[start - 1].norm()
    gate = (model.score.gate @ prompt + model.score.gate_bias).softmax(0)
    q, s = hidden[start:] @ model.score.token[0], hidden[start:] @ model.score.segment[0]
    by_token = (gate[0] * q / len(ids)).tolist()
    assert [token.contribution for token in explanation.tokens] == pytest.approx(by_token, abs=1e-5)
    assert [token.score for token in explanation.tokens] == pytest.approx(q.tolist(), abs=1e-5)
    stop, end = tokenizer(".")["input_ids"][0], tokenizer.eos_token_id
    by_segment = [gate[1] * s[ids.index(mark)] / 2 for mark in (stop, end)]
    assert [x.contribution for x in explanation.segments if x.contribution is not None] == pytest.approx(
        [part.item() for part in by_segment], abs=1e-5
    )


@pytest.mark.parametrize(("form", "tail"), [("plain", "<|im_end|>"), ("chat", "<|im_end|>\n")])
@pytest.mark.parametrize(
    "text", [TEXT, "One.\n\nTwo! (Three?)\n", "🦊 ça va — naïve 日本語。", "\N{REPLACEMENT CHARACTER}."]
)
def test_the_text_is_whole(reward, form, tail, text):
    prompt, responses = in_form(form, text)
    (explanation,) = explain(reward, prompt, responses)
    assert "".join(token.text for token in explanation.tokens) == text + tail
    assert all(token.text for token in explanation.tokens)


def test_bytes_of_a_character_are_one_piece(reward, tokenizer):
    prompt, responses = in_form("plain", "🦊")
    (explanation,) = explain(reward, prompt, responses)
    assert len(tokenizer("🦊")["input_ids"]) == 4
    assert [token.text for token in explanation.tokens] == ["🦊", "<|im_end|>"]
    scores = reward.score([prompt], responses)[0].token_scores
    assert explanation.tokens[0].score == pytest.approx(scores[:4].mean().item(), abs=1e-6)
    weight = explanation.gate[0] / 5  # of a token in the mean over five
    assert explanation.tokens[0].contribution == pytest.approx(weight * scores[:4].sum().item(), abs=1e-6)


def test_segments_by_hand(reward):
    (explanation,) = explain(reward, *in_form("chat", "One. Two!\nThree"))
    assert [(segment.text, segment.contribution is None) for segment in explanation.segments] == [
        ("One.", False),
        (" Two!", False),
        ("\n", True),  # goes on with the run that ended the segment before
        ("Three<|im_end|>", False),
        ("\n", True),
    ]


def test_a_segment_whose_score_is_zero_counts(reward_folder):
    function, pair = RewardFunction(reward_folder()), in_form("plain", "One. Two.")
    (before,) = explain(function, *pair)

    def clear_first(module, args, output):
        output.segment_scores[0, output.segment_ends[0].nonzero()[0]] = 0.0

    function.model.register_forward_hook(clear_first)
    (explanation,) = explain(function, *pair)
    expected = [("One.", 0.0), (" Two.", before.segments[1].contribution), ("<|im_end|>", None)]
    assert [(segment.text, segment.contribution) for segment in explanation.segments] == expected


def test_a_segment_that_is_open_at_the_end_is_marked(reward, tokenizer):
    (score,) = reward.score([PLAIN], [TEXT], completion_ids=[tokenizer(TEXT)["input_ids"]])
    assert score.segment_ends.nonzero().flatten().tolist() == [
        tokenizer(TEXT)["input_ids"].index(tokenizer(".")["input_ids"][0]),
        len(score.token_scores) - 1,
    ]


def by_hand(parts: list[float]) -> Explanation:
    return Explanation(sum(parts), list(SCALES), [3 * part for part in parts], [1 / 3] * 3, parts, [])


def test_comparison_by_hand():
    comparison = compare(by_hand([0.1, 0.5, 0.2]), by_hand([0.4, -0.5, 0.2]))
    assert comparison.difference == pytest.approx(0.7)
    assert comparison.probability == pytest.approx(0.668188, abs=1e-6)  # 1 / (1 + e^-0.7)
    assert comparison.by_scale == pytest.approx([-0.3, 1.0, 0.0])
    assert comparison.decisive == 1


def test_comparison_the_other_way_round():
    # the second is ahead by 0.2: 0.5 from the response, less 0.3 that the token scale holds against it
    comparison = compare(by_hand([0.3, 0.0, 0.0]), by_hand([0.0, 0.0, 0.5]))
    assert comparison.difference == pytest.approx(-0.2)
    assert comparison.probability == pytest.approx(1 - 0.549834, abs=1e-6)
    assert comparison.decisive == 2


def test_equal_responses_tie():
    comparison = compare(by_hand([0.3, 0.0, 0.0]), by_hand([0.3, 0.0, 0.0]))
    assert (comparison.difference, comparison.probability, comparison.decisive) == (0.0, 0.5, None)


class Page(HTMLParser):
    """Text of a page, its tags, and style and title of every token and segment."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.spans, self.text, self.attributes = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag == "span" and dict(attrs).get("title"):
            self.spans.append((dict(attrs)["class"], dict(attrs)["style"], dict(attrs)["title"]))

    def handle_data(self, data):
        self.text += data


def contribution(title: str) -> float:
    return float(re.search(r"contributes ([+-]\d+\.\d+)", title)[1])


def test_page_holds_every_number_and_no_more_than_text(reward):
    evil = "<script>alert(1)</script> & </span>. \x1b[31m\u202eend"
    _, responses = in_form("chat", evil, "Fine.")
    explained = explain(reward, [{"role": "user", "content": "<img src=x>"}], responses)
    html = render_html("<b>model</b>", [{"role": "user", "content": "<img src=x>"}], ["one", "two"], explained)
    page = Page(html)
    assert not {"script", "img", "link", "b", "iframe"} & set(page.tags)
    assert not {"src", "href", "onclick"} & set(page.attributes)
    assert "http" not in html.replace("http-equiv", "")
    assert "url(" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "<script>alert(1)</script> & </span>." in page.text
    tokens = [contribution(title) for kind, _, title in page.spans if kind == "token"]
    segments = [contribution(title) for kind, _, title in page.spans if kind == "segment"]
    assert tokens == pytest.approx([t.contribution for e in explained for t in e.tokens], abs=5.1e-5)
    expected = [s.contribution for e in explained for s in e.segments if s.contribution is not None]
    assert segments == pytest.approx(expected, abs=5.1e-5)


def test_colours_by_hand(reward):
    (explanation,) = explain(reward, *in_form("plain", "x"))
    token, parts = explanation.tokens[0], [0.4, -0.4, 0.2, 0.0, -0.1]
    tokens = [token._replace(contribution=part) for part in parts]
    explanation = explanation._replace(segments=[explanation.segments[0]._replace(tokens=tokens, contribution=-1.0)])
    spans = Page(render_html("model", PLAIN, ["response"], [explanation])).spans
    # nothing at 0, all of a colour at the largest size, in a line between
    assert [style for kind, style, _ in spans if kind == "token"] == [
        "--tint: var(--plus) / 1.000",
        "--tint: var(--minus) / 1.000",
        "--tint: var(--plus) / 0.500",
        "--tint: var(--minus) / 0.000",
        "--tint: var(--minus) / 0.250",
    ]
    assert [style for kind, style, _ in spans if kind == "segment"] == ["--tint: var(--minus) / 1.000"]


def test_each_response_has_a_full_colour_of_its_own(reward):
    # a token of a long response contributes little: beside a short one it would have no colour at all
    explained = explain(reward, *in_form("plain", "Yes.", " word" * 60))
    spans = [Page(render_html("model", PLAIN, ["response"], [e])).spans for e in explained]
    largest = [max(abs(token.contribution) for token in e.tokens) for e in explained]
    assert largest[0] > 2 * largest[1]
    both = Page(render_html("model", PLAIN, ["one", "two"], explained)).spans
    assert both == [*spans[0], *spans[1]]
    for one in spans:
        assert any(style.endswith("/ 1.000") for kind, style, _ in one if kind == "token")


def test_a_wrong_ranking_is_marked():
    worse, better = by_hand([0.1, 0.2, 0.0]), by_hand([0.3, 0.2, 0.0])
    names = ("chosen", "rejected")
    assert verdict(names, [better, worse], "chosen")[0] == "good"
    outcome, text = verdict(names, [worse, better], "chosen")
    assert outcome == "bad"
    assert text.startswith(
        "Ranked wrong: chosen is the one that the data prefer. The model prefers rejected by 0.2000"
    )
    assert verdict(names, [worse, better])[0] == "open"


@pytest.mark.parametrize("difference", [0.0, 4e-5])
def test_scores_that_are_equal_as_shown_are_a_tie(difference):
    even = by_hand([0.25, 0.0, 0.0])
    outcome, text = verdict(("one", "two"), [by_hand([0.25, 0.0, difference]), even])
    assert outcome == "open"
    assert text == "The model prefers neither: they score +0.2500 and +0.2500."
    assert "0.0000" not in text
    assert verdict(("one", "two"), [even, even], "one")[0] == "bad"


def test_every_number_can_be_read_without_pointing(reward):
    explained = explain(reward, *in_form("plain", TEXT, "One. Two!"))
    page = Page(render_html("model", PLAIN, ["one", "two"], explained))
    assert page.tags.count("details") == page.tags.count("summary") == 2
    for e in explained:
        for part in [*e.tokens, *(segment for segment in e.segments if segment.score is not None)]:
            assert f"{part.contribution:+.4f}{part.score:+.4f}" in page.text.replace("\n", "")


def column(printed: str, name: str) -> list[float]:
    """Last cell of every printed row that begins with a name."""
    return [float(row.split("│")[-2]) for row in printed.splitlines() if row.startswith(f"│ {name} ")]


def test_command_compares_a_pair_of_a_file(reward_folder, reward, chat_pairs, tmp_path, capsys):
    file, page = tmp_path / "pairs.jsonl", tmp_path / "page.html"
    chat_pairs.to_json(file)
    assert main(["explain", reward_folder(), "--file", str(file), "--row", "3", "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    row = chat_pairs[2]
    chosen, rejected = reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
    assert column(printed, "sum") == pytest.approx([chosen, rejected, chosen - rejected], abs=5.1e-5)
    assert f"prefers {'chosen' if chosen > rejected else 'rejected'} by {abs(chosen - rejected):.4f} nats" in printed
    probability = 1 / (1 + 2.718281828459045 ** -abs(chosen - rejected))
    assert f"a probability of {probability:.3f}" in printed
    assert ("Ranked right." in printed) == (chosen > rejected)
    assert ("Ranked wrong: chosen" in printed) == (chosen < rejected)
    assert "return a + b<|im_end|>↵" in printed
    assert Page(page.read_text()).spans


def test_command_reads_each_side_after_the_prompt_that_it_answers(reward_folder, reward, chat_pairs, tmp_path, capsys):
    file, other = tmp_path / "pairs.jsonl", chat_pairs["prompt"][0]
    chat_pairs.add_column("rejected_prompt", [other] * len(chat_pairs)).to_json(file)
    assert main(["explain", reward_folder(), "--file", str(file), "--row", "3"]) == 0
    printed, row = capsys.readouterr().out, chat_pairs[2]
    chosen, rejected = reward([row["prompt"], other], [row["chosen"], row["rejected"]])
    assert column(printed, "sum") == pytest.approx([chosen, rejected, chosen - rejected], abs=5.1e-5)
    assert f"to the prompt “{other[-1]['content'][:20]}" in printed.replace("\n", " ")


def test_command_takes_a_typed_prompt_in_the_models_form(reward_folder, plain_folder, reward, capsys):
    assert main(["explain", reward_folder(), "--prompt", CHAT[0]["content"], "--response", TEXT]) == 0
    assert main(["explain", plain_folder, "--prompt", PLAIN, "--response", TEXT]) == 0
    prompt, responses = in_form("chat", TEXT)
    expected = [*reward([prompt], responses), *reward([PLAIN], [TEXT])]
    printed = capsys.readouterr().out
    assert column(printed, "sum") == pytest.approx(expected, abs=5.1e-5)
    assert "prefers" not in printed


def test_command_colours_a_terminal(reward_folder, reward, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert main(["explain", reward_folder(), "--prompt", "Who?", "--response", TEXT]) == 0
    (explanation,) = explain(reward, [{"role": "user", "content": "Who?"}], in_form("chat", TEXT)[1])
    strongest = max(explanation.tokens, key=lambda token: abs(token.contribution))
    colour = "90;160;216" if strongest.contribution > 0 else "240;160;48"
    assert f"48;2;{colour}m{strongest.text}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (["response"], "no token and no segment scale"),
        (["segment"], "no token scale"),
        (["token"], "no segment scale"),
    ],
)
def test_scales_that_are_not_there_are_said(reward_folder, tmp_path, capsys, scales, message):
    page = tmp_path / "page.html"
    folder = reward_folder("qwen3", scales, "none")
    assert main(["explain", folder, "--prompt", "Who?", "--response", TEXT, "--html", str(page)]) == 0
    printed, html = capsys.readouterr().out, Page(page.read_text())
    assert message in printed
    assert message in html.text
    assert {kind for kind, *_ in html.spans} == set(scales) - {"response"}
    assert (("most for it" in printed), ("segments:" in printed)) == ("token" in scales, "segment" in scales)


def test_an_empty_prompt_is_refused_where_the_score_reads_it(plain_folder, reward_folder, capsys):
    assert main(["explain", plain_folder, "--prompt", "", "--response", "r"]) == 2
    assert "The prompt is empty, but this model's `context` is 'gate'" in capsys.readouterr().err
    function = RewardFunction(reward_folder("qwen3", SCALES, "none"))
    (explanation,) = explain(function, "", ["One. Two."])
    assert parts_sum(explanation) == pytest.approx(explanation.reward, abs=1e-5)


def test_a_score_that_is_no_number_is_refused(reward_folder):
    function = RewardFunction(reward_folder())
    function.model.score.token.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="Response 1 scores nan"):
        explain(function, *in_form("plain", TEXT))


@pytest.mark.parametrize("kind", ["missing", "empty", "stock"])
def test_a_folder_that_is_no_reward_model_is_one_line(tiny_folder, tmp_path, capsys, kind):
    folder = tiny_folder() if kind == "stock" else str(tmp_path / ("nowhere" if kind == "missing" else ""))
    assert main(["explain", folder, "--prompt", "p", "--response", "r"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prefscale explain:")]
    assert len(errors) == 1
    assert folder in errors[0]
    assert {"missing": "saved", "empty": "config.json", "stock": "no `multi_scale`"}[kind] in errors[0]


def test_a_pair_with_a_template_variable_is_read_with_it(reward_folder, tmp_path, capsys):
    # what a row's `chat_template_kwargs` say enters the template in training, and so here
    function = RewardFunction(reward_folder())
    tokenizer, folder = function.processing_class, str(tmp_path / "model")
    tokenizer.chat_template = "{{ mood }}" + tokenizer.chat_template
    function.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    row = {"prompt": CHAT, "chosen": in_form("chat", "One.")[1][0], "rejected": in_form("chat", "Two.")[1][0]}
    row["chat_template_kwargs"] = {"mood": "Merry: "}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["explain", folder, "--file", str(tmp_path / "pairs.jsonl"), "--row", "1"]) == 0
    other = RewardFunction(folder, chat_template_kwargs={"mood": "Merry: "})
    expected = other([CHAT] * 2, [row["chosen"], row["rejected"]])
    assert column(capsys.readouterr().out, "sum")[:2] == pytest.approx(expected, abs=5.1e-5)


def test_a_judges_thoughts_stand_beside_its_answers(tiny_folder, chat_pairs, tmp_path, capsys):
    folder = str(shutil.copytree(tiny_folder(), tmp_path / "judge"))
    JudgeSettings(num_thoughts=2, max_completion_length=6).save_settings(folder)
    chat_pairs.to_json(tmp_path / "pairs.jsonl")
    words = ["explain", folder, "--file", str(tmp_path / "pairs.jsonl"), "--row", "2"]
    assert main(words) == 0
    said, row = capsys.readouterr().out, chat_pairs[1]
    judgements = ThoughtReward(folder).judge([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
    for name, judgement in zip(("chosen", "rejected"), judgements, strict=True):
        assert f"{name}: {judgement.utility:+.4f} nats" in said
        assert judgement.utility == pytest.approx(math.log(sum(judgement.answers) / 2), abs=1e-5)
        for answer in judgement.answers:
            assert f"\n{answer:.3f}  " in said
    one, other = (math.exp(judgement.utility) for judgement in judgements)
    preferred = "chosen" if one > other else "rejected"
    likely = f"The judge prefers {preferred} with probability {max(one, other) / (one + other):.3f}."
    assert said.endswith(f"{likely} The data prefer chosen.\n")
    assert main([*words, "--html", str(tmp_path / "page.html")]) == 2
    assert "is a judge, whose thoughts are printed. Leave out `--html`" in capsys.readouterr().err
