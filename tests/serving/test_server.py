"""A reward model in another process, over a real socket of this machine (its server in a thread of this process)."""

import json
import random
import socket
import threading

import pytest
import requests
import torch
import uvicorn

from toolkit import RemoteRewardFunction, RewardFunction
from toolkit.cli.main import main
from toolkit.serving.app import make_app

KEY = "correct horse"


class Served:
    """A server that can be stopped, and started again at the same address."""

    def __init__(self, reward, folder, port=0, **options):
        self.app = make_app(reward, folder, **options)
        self.socket = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="critical", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()

    def stop(self):
        """Stop it, once."""
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


@pytest.fixture
def serve():
    running = []

    def start(*args, **options):
        running.append(Served(*args, **options))
        return running[-1]

    yield start
    for each in running:
        each.stop()


def batch_of(pairs):
    rows = [(row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected")]
    return [prompt for prompt, _ in rows], [response for _, response in rows]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one._replace(**dict.fromkeys(TENSORS)) == other._replace(**dict.fromkeys(TENSORS))
        for name in TENSORS:
            assert torch.equal(getattr(one, name), getattr(other, name)), name


TENSORS = ("scale_scores", "gate", "prompt_value", "prefix_values", "token_scores", "segment_scores", "segment_ends")


@pytest.mark.parametrize("context", ["none", "gate", "head"])
def test_scores_are_those_of_a_model_in_this_process_to_the_last_bit(serve, reward_folder, chat_pairs, context):
    folder = reward_folder(context=context)
    here = RewardFunction(folder)
    remote = RemoteRewardFunction(serve(RewardFunction(folder), folder, most_rows=0).url)
    prompts, responses = batch_of(chat_pairs)
    assert_same(remote.score(prompts, responses), here.score(prompts, responses))
    assert remote(prompts, responses) == here(prompts, responses)


def test_sampled_ids_have_the_same_values_of_their_prefixes(serve, reward_folder, tokenizer, other_tokenizer):
    folder, texts = reward_folder(), ["Lima.", "In the south, perhaps.", "Red. Green."]
    url = serve(RewardFunction(folder), folder, most_rows=0).url
    prompts = [[{"role": "user", "content": "Where?"}]] * 3
    responses = [[{"role": "assistant", "content": text}] for text in texts]
    for policy in (tokenizer, other_tokenizer):
        own = policy is tokenizer
        ids = [[*policy(text)["input_ids"], policy.eos_token_id] for text in texts[:2]] + [
            policy(texts[2])["input_ids"]
        ]
        options = {} if own else {"policy_processing_class": policy}
        found, expected = (
            function.score(prompts, responses, ids)
            for function in (RemoteRewardFunction(url, **options), RewardFunction(folder, **options))
        )
        assert_same(found, expected)


def held_up(reward):
    """Let a model score only once a gate is open: the rows of its calls, whether it was entered, and the gate."""
    calls, entered, gate, score = [], threading.Event(), threading.Event(), reward.score_encoded

    def slow(rows):
        calls.append(len(rows))
        entered.set()
        gate.wait()
        return score(rows)

    reward.score_encoded = slow
    return calls, entered, gate


def test_waiting_requests_are_scored_together(serve, reward_folder, chat_pairs):
    folder = reward_folder()
    reward = RewardFunction(folder, batch_size=64)
    calls, entered, gate = held_up(reward)
    served = serve(reward, folder, most_rows=12)
    prompts, responses = batch_of(chat_pairs)
    found = {}

    def ask(client):
        found[client] = RemoteRewardFunction(served.url).score(prompts[: 2 * client], responses[: 2 * client])

    def page():
        return requests.get(f"{served.url}/metrics").text

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(1, 7)]
    threads[0].start()
    entered.wait()
    # One after another, so that they wait in a known order
    for waiting, thread in enumerate(threads[1:], 1):
        thread.start()
        assert any(f"prefscale_waiting_requests {waiting}.0" in page() for _ in range(10_000))
    gate.set()
    for thread in threads:
        thread.join()
    # 2 alone, as nothing waited; 4 and 6 together; with 8, 10 and 12 the next would have been more than 12
    assert calls == [2, 10, 8, 10, 12]
    here = RewardFunction(folder)
    for client, scores in found.items():
        expected = here.score(prompts[: 2 * client], responses[: 2 * client])
        torch.testing.assert_close(*(torch.tensor([s.reward for s in side]) for side in (scores, expected)))
    assert "prefscale_rows_total 42.0" in page()


def test_a_server_that_went_away_is_asked_again(serve, reward_folder, chat_pairs, monkeypatch):
    folder, prompts, responses = reward_folder(), *batch_of(chat_pairs.select(range(2)))
    served = serve(RewardFunction(folder), folder)
    remote, port = RemoteRewardFunction(served.url), served.socket.getsockname()[1]
    before = remote(prompts, responses)
    served.stop()
    # the clock stands for the time in which somebody starts it again
    starts = iter([lambda: None, lambda: serve(RewardFunction(folder), folder, port=port)])
    monkeypatch.setattr("toolkit.serving.client.time.sleep", lambda seconds: next(starts)())
    assert remote(prompts, responses) == before
    logged = {}
    remote.report(remote.score(prompts, responses), logged.__setitem__)
    assert logged["reward_server/retries"] == 2


def test_another_model_in_its_place_is_refused(serve, reward_folder, chat_pairs, monkeypatch):
    served = serve(RewardFunction(reward_folder()), reward_folder())
    remote, port, other = RemoteRewardFunction(served.url), served.socket.getsockname()[1], reward_folder("llama")
    served.stop()
    start = lambda seconds: serve(RewardFunction(other), other, port=port)  # noqa: E731
    monkeypatch.setattr("toolkit.serving.client.time.sleep", start)
    with pytest.raises(ValueError, match=r"has another model than before: .*'weights'"):
        remote(*batch_of(chat_pairs.select(range(2))))


def test_another_model_that_nobody_was_away_for_is_refused(serve, reward_folder, chat_pairs):
    served, batch = serve(RewardFunction(reward_folder()), reward_folder()), batch_of(chat_pairs.select(range(2)))
    remote, port, other = RemoteRewardFunction(served.url), served.socket.getsockname()[1], reward_folder("llama")
    remote(*batch)
    served.stop()
    serve(RewardFunction(other), other, port=port)
    with pytest.raises(ValueError, match=r"has another model than before: .*'weights'"):
        remote(*batch)


def test_the_same_model_that_is_served_otherwise_is_refused(serve, reward_folder, chat_pairs):
    folder, batch = reward_folder(), batch_of(chat_pairs.select(range(2)))
    served = serve(RewardFunction(folder), folder)
    remote, port = RemoteRewardFunction(served.url), served.socket.getsockname()[1]
    served.stop()
    serve(RewardFunction(folder, max_length=500), folder, port=port)
    with pytest.raises(ValueError, match=r"has another model than before: \['max_length'\]"):
        remote(*batch)


def test_a_busy_server_answers_for_its_health_and_scores_texts_together(serve, reward_folder, chat_pairs):
    folder = reward_folder()
    reward = RewardFunction(folder)
    calls, entered, gate = held_up(reward)
    url, texts = serve(reward, folder).url, {"prompts": ["Sky?"], "completions": ["Blue."]}
    threads = [
        threading.Thread(target=requests.post, args=(f"{url}/score",), kwargs={"json": texts}) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    entered.wait()
    # 40 threads of the server wait for the model
    assert any("prefscale_waiting_requests 39.0" in requests.get(f"{url}/metrics").text for _ in range(10_000))
    assert requests.get(f"{url}/health").json() == {"status": "ok"}
    gate.set()
    for thread in threads:
        thread.join()
    assert sum(calls) == 50
    assert len(calls) < 20


def test_a_request_that_does_not_say_its_length_is_refused(serve, reward_folder):
    url = serve(RewardFunction(reward_folder()), reward_folder()).url
    answer = requests.post(f"{url}/score", data=iter([b'{"prompts": ["a"],', b' "completions": ["b"]}']))
    assert (answer.status_code, answer.text[:29]) == (413, "A request says its length, of")


def test_a_fault_of_the_model_is_none_of_the_clients(serve, reward_folder, chat_pairs):
    reward = RewardFunction(reward_folder())

    def fail(rows):
        raise ValueError("no such kernel")

    reward.score_encoded = fail
    remote = RemoteRewardFunction(serve(reward, reward_folder()).url)
    with pytest.raises(ValueError, match=r"fails \(status 500\)"):
        remote(*batch_of(chat_pairs.select(range(2))))


def test_an_answer_that_is_cut_off_is_asked_for_again(serve, reward_folder, chat_pairs, monkeypatch):
    folder, some = reward_folder(), batch_of(chat_pairs.select(range(2)))
    remote = RemoteRewardFunction(serve(RewardFunction(folder), folder).url)
    before, post = remote(*some), remote._session.post
    answers = iter([requests.exceptions.ChunkedEncodingError("cut"), None])

    def cut_once(*args, **options):
        if error := next(answers):
            raise error
        return post(*args, **options)

    monkeypatch.setattr(remote._session, "post", cut_once)
    monkeypatch.setattr("toolkit.serving.client.time.sleep", lambda seconds: None)
    assert remote(*some) == before
    assert remote.retries == 1


@pytest.mark.parametrize("said", ["<html>", "[]", '{"model": "x"}'])
def test_what_is_no_reward_server_is_refused(monkeypatch, said):
    answer = requests.Response()
    answer.status_code, answer._content = 200, said.encode()
    monkeypatch.setattr(requests.Session, "get", lambda *args, **options: answer)
    with pytest.raises(ValueError, match="is no reward server"):
        RemoteRewardFunction("http://127.0.0.1:1")


def test_without_patience_it_gives_up_with_the_reason(free_url):
    with pytest.raises(ConnectionError, match="is away \\(no connection, for 0 seconds\\)"):
        RemoteRewardFunction(free_url, patience=0)


@pytest.fixture
def free_url():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_nothing_is_answered_without_the_key(serve, reward_folder, chat_pairs):
    folder = reward_folder()
    url = serve(RewardFunction(folder), folder, key=KEY).url
    for method, path in (
        ("get", "model"),
        ("get", "tokenizer"),
        ("get", "metrics"),
        ("post", "rows"),
        ("post", "score"),
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            assert requests.request(method, f"{url}/{path}", json={}, headers=headers).status_code == 401
    assert requests.get(f"{url}/health").json() == {"status": "ok"}  # which says nothing of the model
    with pytest.raises(ValueError, match="refuses \\(status 401\\)"):
        RemoteRewardFunction(url)
    assert len(RemoteRewardFunction(url, KEY)(*batch_of(chat_pairs))) == 2 * len(chat_pairs)


def test_opening_it_to_a_network_needs_a_key(monkeypatch, capsys):
    monkeypatch.delenv("PREFSCALE_KEY", raising=False)
    assert main(["serve", "nothing", "--host", "0.0.0.0"]) == 2
    assert "Set PREFSCALE_KEY" in capsys.readouterr().err


def malformed(vocabulary):
    """A hundred bodies that are none, by kind and at random."""
    good = {"input_ids": [1, 2, 3], "response_start": 1}
    rows = [{**good, "response_start": start} for start in (-1, 0, 3, 4, 2**40, 1.5, "1", None, [1])] + [
        {**good, "input_ids": ids}
        for ids in (
            [],
            [1],
            [-1, 2, 3],
            [1, 2, vocabulary],
            [1, 2, 2**70],
            ["1", "2", "3"],
            [1.5, 2, 3],
            [None] * 3,
            "123",
            {},
            7,
            [[1], [2], [3]],
            [1] * 5000,
        )
    ]
    bodies = [{"rows": [row]} for row in rows] + [{"rows": []}, {"rows": None}, {}, [], "rows", 1, None]
    bodies += [{"rows": [good], "more": 1}, {"rows": [{**good, "more": 1}]}, {"rows": [good] * 4097}]
    generator = random.Random(0)
    text = json.dumps({"rows": [good]})
    cut = [text[: generator.randrange(1, len(text) - 1)] for _ in range(100 - len(bodies))]
    return [json.dumps(body) for body in bodies] + cut


def test_a_hundred_malformed_requests_get_an_answer_that_blames_them_and_change_nothing(
    serve, reward_folder, chat_pairs
):
    folder = reward_folder()
    reward = RewardFunction(folder)
    url = serve(reward, folder).url
    remote = RemoteRewardFunction(url)
    before = remote(*batch_of(chat_pairs))
    bodies = malformed(reward.model.get_input_embeddings().num_embeddings)
    assert len(bodies) == 100
    for body in bodies:
        answer = requests.post(f"{url}/rows", data=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, body[:200]
    assert requests.post(f"{url}/score", json={"prompts": ["a"], "completions": []}).status_code == 422
    assert requests.post(f"{url}/nothing", json={}).status_code == 404
    assert remote(*batch_of(chat_pairs)) == before


def test_text_is_scored_as_the_reward_function_scores_it(serve, reward_folder, chat_pairs):
    folder = reward_folder()
    here, url = RewardFunction(folder), serve(RewardFunction(folder), folder).url
    prompts, responses = batch_of(chat_pairs.select(range(3)))
    body = {"prompts": prompts, "completions": responses, "details": True}
    shown = requests.post(f"{url}/score", json=body).json()["scores"]
    for one, expected in zip(shown, here.score(prompts, responses), strict=True):
        assert one["reward"] == expected.reward
        assert list(one["scales"].values()) == expected.scale_scores.tolist()
        assert one["token_scores"] == expected.token_scores.tolist()


def test_openrlhfs_protocol_reads_whole_texts(serve, reward_folder, chat_pairs, tokenizer):
    folder = reward_folder()
    here, url = RewardFunction(folder), serve(RewardFunction(folder), folder, most_rows=0).url
    prompts, responses = batch_of(chat_pairs.select(range(3)))
    begun = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    whole = [tokenizer.apply_chat_template(p + r, tokenize=False) for p, r in zip(prompts, responses, strict=True)]
    body = {"query": whole, "prompts": begun, "labels": ["x"] * len(whole)}
    answer = requests.post(f"{url}/get_reward", json=body).json()
    assert answer["rewards"] == answer["scores"]
    torch.testing.assert_close(torch.tensor(answer["rewards"]), torch.tensor(here(prompts, responses)))
    assert requests.post(f"{url}/get_reward", json={**body, "prompts": whole[::-1]}).status_code == 422
