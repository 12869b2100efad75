"""Rows as other people publish them, built from the documented fields of each set: real files are not at hand."""

import math


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def talk(prompt, chosen, rejected, **others):
    return {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)], **others}


def plain(prompt, chosen, rejected, **others):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def said(who, value):
    return {"from": who, "value": value}


def rated(response, score):
    return {"response": response, "overall_score": score, "model": "m", "annotations": {"honesty": {"Rating": "4"}}}


def steered(prompt, response, helpfulness):
    others = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **others}


def voted(post, first, second, **votes):
    return {"history": post, "human_ref_A": first, "human_ref_B": second, **votes, **SHP}


PKU = {"is_response_0_safe": True, "is_response_1_safe": False, "safer_response_id": 0}
SHP = {"post_id": "x1", "domain": "askculinary_train", "seconds_difference": 9.0}
GRADES = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
BENCH = {"num_correct": 1, "num_incorrect": 2, "total_completions": 3, "models": ["m", "n", "o"], "subset": "Math"}

# Name of the form: what its name must tell, rows as they are published, and the pairs that they mean
FORMS = {
    "HH-RLHF": (
        "transcripts as in HH-RLHF: `chosen` and `rejected`; prompt at the beginning of both",
        [
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Blue.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Green.",
            }
        ],
        [talk([user("Hi"), assistant("Hello"), user("Sky?")], "Blue.", "Green.")],
    ),
    "HH-RLHF stripped, each line ending in one break": (
        "transcripts as in HH-RLHF",
        [{"chosen": "Human: Sky?\nAssistant: Blue.", "rejected": "Human: Sky?\nAssistant: Green."}],
        [talk([user("Sky?")], "Blue.", "Green.")],
    ),
    "rm-static": (
        "prompt in `prompt`",
        [{"prompt": "\n\nHuman: Sky?\n\nAssistant:", "response": " Blue.", "chosen": " Blue.", "rejected": " Red."}],
        [talk([user("Sky?")], " Blue.", " Red.", response=" Blue.")],
    ),
    "instruction and input": (
        "prompt in `instruction` and `input`",
        [
            {"instruction": "Translate.", "input": "Hund", "chosen": "dog", "rejected": "cat"},
            {"instruction": "Say hi.", "input": "", "chosen": "hi", "rejected": "no"},
        ],
        [plain("Translate.\nHund", "dog", "cat"), plain("Say hi.", "hi", "no")],
    ),
    "LLaMA-Factory, alpaca": (
        "prompt in `instruction` and `input` and `history` and `system`",
        [
            {
                "instruction": "And you?",
                "input": "",
                "system": "Be kind.",
                "history": [["Hello", "Hi"]],
                "chosen": "Fine.",
                "rejected": "Bad.",
            },
            {"instruction": "Well?", "input": None, "system": "", "history": [], "chosen": "Yes.", "rejected": "No."},
        ],
        [
            talk([system("Be kind."), user("Hello"), assistant("Hi"), user("And you?")], "Fine.", "Bad."),
            talk([user("Well?")], "Yes.", "No."),
        ],
    ),
    "LLaMA-Factory, sharegpt": (
        "messages: `chosen` and `rejected`; prompt in `conversations`",
        [
            {
                "conversations": [said("human", "Hi"), said("gpt", "Hello"), said("human", "Sky?")],
                "chosen": said("gpt", "Blue."),
                "rejected": said("gpt", "Green."),
            }
        ],
        [talk([user("Hi"), assistant("Hello"), user("Sky?")], "Blue.", "Green.")],
    ),
    "conversations beside text": (
        "prompt in `conversations`",
        [{"conversations": [said("human", "Sky?")], "chosen": "Blue.", "rejected": "Green."}],
        [talk([user("Sky?")], "Blue.", "Green.")],
    ),
    "Orca": (
        "prompt in `question` and `system`",
        [
            {"system": "You are helpful.", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
            {"system": "", "question": "Sea?", "chosen": "Wet.", "rejected": "Dry."},
        ],
        [talk([system("You are helpful."), user("Sky?")], "Blue.", "Green."), talk([user("Sea?")], "Wet.", "Dry.")],
    ),
    "Orca, distilled": (
        "prompt in `input` and `system`",
        [{"system": "You are helpful.", "input": "Sky?", "chosen": "Blue.", "rejected": "Red.", "rating": [9, 2]}],
        [talk([system("You are helpful."), user("Sky?")], "Blue.", "Red.", rating=[9, 2])],
    ),
    "OpenRLHF": (
        "messages: `chosen` and `rejected`, strength from `chosen_score` - `rejected_score`; prompt at the beginning",
        [
            {
                "chosen": [user("Sky?"), assistant("Blue.")],
                "rejected": [user("Sky?"), assistant("Green.")],
                "chosen_score": 4.5,
                "rejected_score": 2.0,
                "source": "s",
            }
        ],
        [talk([user("Sky?")], "Blue.", "Green.", strength=2.5, source="s")],
    ),
    "UltraFeedback": (
        "every two of `completions`, strength from the difference in `overall_score`",
        [
            {
                "source": "s",
                "instruction": "Sky?",
                "models": ["m", "m", "m"],
                "completions": [rated("Red.", 1.0), rated("Blue.", 9.0), rated("Green.", 1.0)],
            }
        ],
        [
            plain("Sky?", "Blue.", "Red.", strength=8.0, source="s", models=["m", "m", "m"]),
            plain("Sky?", "Blue.", "Green.", strength=8.0, source="s", models=["m", "m", "m"]),
        ],
    ),
    "UltraFeedback in an older table": (
        "every two of `completions`",
        [{"instruction": "Sky?", "completions": {"response": ["Red.", "Blue."], "overall_score": [1.0, 9.0]}}],
        [plain("Sky?", "Blue.", "Red.", strength=8.0)],
    ),
    "UltraFeedback, binarized": (
        "strength from `score_chosen` - `score_rejected`",
        [
            {
                "prompt": "Sky?",
                "prompt_id": "0a",
                "chosen": [user("Sky?"), assistant("Blue.")],
                "rejected": [user("Sky?"), assistant("Green.")],
                "messages": [user("Sky?"), assistant("Blue.")],
                "score_chosen": 8.5,
                "score_rejected": 6.0,
            }
        ],
        [
            talk(
                [user("Sky?")],
                "Blue.",
                "Green.",
                strength=2.5,
                prompt_id="0a",
                messages=[user("Sky?"), assistant("Blue.")],
            )
        ],
    ),
    "UltraFeedback, cleaned": (
        "strength from `chosen-rating` - `rejected-rating`",
        [
            {
                "prompt": "Sky?",
                "chosen": [user("Sky?"), assistant("Blue.")],
                "chosen-rating": 5.0,
                "rejected": [user("Sky?"), assistant("Green.")],
                "rejected-rating": 3.5,
            }
        ],
        [talk([user("Sky?")], "Blue.", "Green.", strength=1.5)],
    ),
    "RewardBench": (
        "plain text: `chosen` and `rejected`; prompt in `prompt`",
        [plain("Sky?", "Blue.", "Green.", chosen_model="m", rejected_model="n", subset="easy", id=3)],
        [plain("Sky?", "Blue.", "Green.", chosen_model="m", rejected_model="n", subset="easy", id=3)],
    ),
    "RewardBench 2": (
        "`chosen` and `rejected`",
        [{"id": "7", "prompt": "Sky?", "chosen": ["Blue."], "rejected": ["Green.", "Red."], **BENCH}],
        [plain("Sky?", "Blue.", worse, id="7", **BENCH) for worse in ("Green.", "Red.")],
    ),
    "RewardBench 2, ties": (
        "`chosen` and `rejected`",
        [{"id": "8", "prompt": "A colour?", "chosen": ["Blue.", "Red."], "rejected": ["Dog.", "Two."]}],
        [plain("A colour?", better, worse, id="8") for better in ("Blue.", "Red.") for worse in ("Dog.", "Two.")],
    ),
    "SHP": (
        "by `labels` as in SHP, strength from ln `score_ratio`",
        [
            voted("How?", "So.", "No.", labels=1, score_A=60, score_B=20, score_ratio=3.0),
            voted("Why?", "Eh.", "Ah.", labels=0, score_A=2, score_B=3, score_ratio=1.5),
        ],
        [
            plain("How?", "So.", "No.", strength=math.log(3), **SHP),
            plain("Why?", "Ah.", "Eh.", strength=math.log(1.5), **SHP),
        ],
    ),
    "PKU-SafeRLHF": (
        "by `better_response_id`",
        [
            {"prompt": "Sky?", "response_0": "Blue.", "response_1": "Red.", "better_response_id": 0, **PKU},
            {"prompt": "Sky?", "response_0": "Red.", "response_1": "Blue.", "better_response_id": 1, **PKU},
        ],
        [plain("Sky?", "Blue.", "Red.", **PKU)] * 2,
    ),
    "HelpSteer": (
        "strength from the difference in `helpfulness`, as in HelpSteer",
        [
            steered("Sky?", "Blue.", 4),
            steered("Sky?", "Red.", 1),
            steered("Sky?", "Grey.", 1),
            steered("Sea?", "Dry.", 0),
            steered("Sea?", "Wet.", 3),
        ],
        [
            plain("Sky?", "Blue.", "Red.", strength=3.0, **GRADES),
            plain("Sky?", "Blue.", "Grey.", strength=3.0, **GRADES),
            plain("Sea?", "Wet.", "Dry.", strength=3.0, **GRADES),
        ],
    ),
    "HelpSteer 2, marked turns": (
        "strength from the difference in `helpfulness`, as in HelpSteer",
        [
            steered("Hi\n\n<extra_id_1>Assistant\n\nHello\n\n<extra_id_1>User\n\nSky?", "Blue.", 4),
            steered("Hi\n\n<extra_id_1>Assistant\n\nHello\n\n<extra_id_1>User\n\nSky?", "Red.", 2),
            steered("Sea?", "Dry.", 0),
            steered("Sea?", "Wet.", 3),
        ],
        [
            talk([user("Hi"), assistant("Hello"), user("Sky?")], "Blue.", "Red.", strength=2.0, **GRADES),
            talk([user("Sea?")], "Wet.", "Dry.", strength=3.0, **GRADES),
        ],
    ),
    "HelpSteer 2, preference": (
        "by `preference_strength` as in HelpSteer 2, strength from its size",
        [
            {"prompt": "Sky?", "response_1": "Blue.", "response_2": "Red.", "preference_strength": -2, "split": "t"},
            {"prompt": "Sky?", "response_1": "Red.", "response_2": "Blue.", "preference_strength": 1, "split": "t"},
        ],
        [
            plain("Sky?", "Blue.", "Red.", strength=2.0, split="t"),
            plain("Sky?", "Blue.", "Red.", strength=1.0, split="t"),
        ],
    ),
    "HelpSteer 3": (
        "by `overall_preference` as in HelpSteer 3, strength from its size; prompt in `context`",
        [
            {
                "domain": "general",
                "language": "english",
                "context": [user("Hi"), assistant("Hello"), user("Sky?")],
                "response1": "Red.",
                "response2": "Blue.",
                "overall_preference": 3,
            }
        ],
        [
            talk(
                [user("Hi"), assistant("Hello"), user("Sky?")],
                "Blue.",
                "Red.",
                strength=3.0,
                domain="general",
                language="english",
            )
        ],
    ),
    "WebGPT comparisons": (
        "strength from `score_0` - `score_1`",
        [
            {
                "question": {"dataset": "d", "id": "1", "full_text": "Sky?"},
                "answer_0": "Red.",
                "answer_1": "Blue.",
                "score_0": -0.5,
                "score_1": 0.5,
            }
        ],
        [plain("Sky?", "Blue.", "Red.", strength=1.0)],
    ),
    "OpenAI's preferences": (
        "prompt in `input`",
        [
            {
                "input": {"messages": [user("Sky?")], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [assistant("Blue.")],
                "non_preferred_output": [assistant("Red.")],
            }
        ],
        [talk([user("Sky?")], "Blue.", "Red.")],
    ),
    "AlpacaFarm": (
        "by `preference`",
        [{"instruction": "Sky?", "input": "", "output_1": "Red.", "output_2": "Blue.", "preference": 2}],
        [plain("Sky?", "Blue.", "Red.")],
    ),
    "Chatbot Arena": (
        "by `winner`",
        [
            {
                "conversation_a": [user("Sky?"), assistant("Red.")],
                "conversation_b": [user("Sky?"), assistant("Blue.")],
                "winner": "model_b",
            }
        ],
        [talk([user("Sky?")], "Blue.", "Red.")],
    ),
    "ranked answers": (
        "every two of `answers`, strength from the difference in `rank`",
        [{"prompt": "Sky?", "answers": [{"answer": "Red.", "rank": 2.0}, {"answer": "Blue.", "rank": 1.0}]}],
        [plain("Sky?", "Blue.", "Red.", strength=1.0)],
    ),
    "lists and their ranks": (
        "lists of `responses`, by `ranks`, the lowest the best",
        [{"prompt": "Sky?", "responses": ["Red.", "Blue.", "Green."], "ranks": [2, 1, 2]}],
        [plain("Sky?", "Blue.", "Red."), plain("Sky?", "Blue.", "Green.")],
    ),
    "lists and their scores": (
        "lists of `completions`, by `scores`, the highest the best",
        [{"prompt": [user("Sky?")], "completions": [[assistant("Red.")], [assistant("Blue.")]], "scores": [0.1, 2]}],
        [talk([user("Sky?")], "Blue.", "Red.")],
    ),
}
