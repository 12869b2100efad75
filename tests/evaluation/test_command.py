import json

import pytest

from toolkit.evaluation.command import EvaluationArguments, labels_of, main, with_models


@pytest.fixture(scope="module")
def evaluated(reward_folder, tiny_folder, chat_pairs, tmp_path_factory):
    """A folder in which one of our models and a causal LM have been evaluated, with everything that can be written."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = [row | {"subset": f"part {i % 2}", "task": None if i % 5 else "fifth"} for i, row in enumerate(chat_pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = {
        "output_file": "figures.json",
        "scores_file": "scores.jsonl",
        "page": "page",
        "rewardbench_dir": "bench",
    }
    args = EvaluationArguments(
        models=[reward_folder(), tiny_folder()],
        dataset_name=[str(folder / "pairs.jsonl")],
        **{option: str(folder / name) for option, name in outputs.items()},
    )
    main(args)
    return folder, args


def test_scores_and_figures_are_of_the_same_pairs(evaluated, chat_pairs):
    folder, args = evaluated
    figures = json.loads((folder / "figures.json").read_text())
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert figures["pairs"] == len(lines) == len(chat_pairs)
    ours, causal = labels_of(args.models)
    assert list(figures["models"]) == [
        ours,
        f"{causal} (log-probability)",
        f"{causal} (log-probability per token)",
        "longer wins",
    ]
    for name, model in figures["models"].items():
        right = [line["scores"][name]["chosen"] > line["scores"][name]["rejected"] for line in lines]
        ties = [line["scores"][name]["chosen"] == line["scores"][name]["rejected"] for line in lines]
        assert model["accuracy"]["value"] == pytest.approx((sum(right) + sum(ties) / 2) / len(lines), rel=1e-11)
        assert model["groups"]["subset"]["part 0"]["pairs"] == sum(line["subset"] == "part 0" for line in lines)
        assert model["groups"]["task"]["fifth"]["pairs"] == sum(line["task"] == "fifth" for line in lines)
    assert list(figures["models"][ours]["scales"]) == ["token", "segment", "response"]
    assert lines[0]["lengths"]["chosen"] == len(chat_pairs[0]["chosen"][0]["content"])
    assert f"{ours}: token" in lines[0]["scores"]


def test_the_page_begins_with_what_follows_and_stands_alone(evaluated):
    folder, _ = evaluated
    page = (folder / "page" / "index.html").read_text()
    lead = page.partition('class="lead">')[2].partition("</p>")[0]
    assert lead.startswith(f"On {24} pairs ")
    assert "preferring the longer response" in lead
    for picture in ("accuracy", "reliability", "length-1", "scores-1"):
        assert (folder / "page" / f"{picture}.png").is_file()


def test_results_are_there_in_rewardbenchs_form(evaluated):
    folder, args = evaluated
    ours, _ = labels_of(args.models)
    results = json.loads((folder / "bench" / "eval-set" / f"{ours}.json").read_text())
    assert results.keys() == {"part 0", "part 1", "model", "model_type", "chat_template"}


def test_what_is_there_is_not_written_over(evaluated):
    folder, args = evaluated
    for option in ("scores_file", "rewardbench_dir"):
        again = EvaluationArguments(
            models=args.models, dataset_name=args.dataset_name, **{option: getattr(args, option)}
        )
        with pytest.raises(ValueError, match=r"exists\. Give another name, or remove it"):
            main(again)
    (folder / "mine.html").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.html' exists"):
        main(EvaluationArguments(models=args.models, dataset_name=args.dataset_name, page=str(folder / "mine.html")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": []}, r"`models` is \[\]\. Name one model or more"),
        ({"models": ["a", "a"]}, "each once"),
        ({"dataset_name": []}, "`dataset_name` is not set"),
        ({"dtype": "flaot32"}, r"`dtype` is 'flaot32'\. Give 'float32'"),
        ({"dataset_name": ["x", "y"], "rewardbench_dir": "z"}, "holds results of one file"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationArguments(**{"models": ["a"], "dataset_name": ["b"], **options})


def test_models_are_called_by_the_last_part_of_their_path_where_that_tells_them_apart():
    assert labels_of(["runs/one/", "runs/two"]) == ["one", "two"]
    assert labels_of(["one/reward", "two/reward"]) == ["one/reward", "two/reward"]


def test_words_before_the_first_option_are_models():
    assert with_models(["a", "b", "--dataset_name", "c"]) == ["--models", "a", "b", "--dataset_name", "c"]
    assert with_models(["--models", "a"]) == ["--models", "a"]
    assert with_models([]) == []
