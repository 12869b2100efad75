"""A reward function whose model is in another process."""

import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import requests
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import get_logger

from ..data.tokens import EncodedResponse, end_ids
from ..reward.head import MultiScaleSettings
from ..reward.scorer import RewardFunction
from ..reward.scores import ResponseScore
from ..training.options import check_number
from .protocol import MODEL_HEADER, known_by, unpack_scores

logger = get_logger(__name__)

TOLD = {"settings", "weights", "max_length", "end_ids", "chat_template_kwargs"}  # of a model
TRIED_AGAIN = (429, 502, 503, 504)  # statuses of a server that is busy or not there yet
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between two attempts


class RemoteRewardFunction(RewardFunction):
    """
    [`RewardFunction`] whose model `prefscale serve` has in another process, on this machine or another one.

    Rows are made here, with the model's own tokenizer, and scored there: so whatever works with a reward model in
    this process works with one in another, the prefix baseline included, and the scores are the same. Where the
    server is away, for a restart or for good, the function asks again, and gives up after `patience` seconds.

    Args:
        url (`str`):
            Address of the server, such as `http://127.0.0.1:8000`.
        key (`str`, *optional*):
            The server's key, where it asks for one.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the reward model; the server's where it is not given.
        policy_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy, needed only where it is another one.
        timeout (`float`, *optional*, defaults to `120`):
            Seconds that one answer may take.
        patience (`float`, *optional*, defaults to `600`):
            Seconds for which a server that does not answer is asked again.

    Raises:
        `ValueError`: If the server refuses a request, or another model is there than before.
        `ConnectionError`: If there is no answer in `patience` seconds.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        policy_processing_class: PreTrainedTokenizerBase | None = None,
        timeout: float = 120.0,
        patience: float = 600.0,
    ) -> None:
        check_number("timeout", timeout, above=0)
        check_number("patience", patience, 0)
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"`url` is '{url}'. Give the address of a reward server, such as http://127.0.0.1:8000.")
        self.url, self.timeout, self.patience = url.rstrip("/"), timeout, patience
        self.retries = self.timeouts = 0
        self._session = requests.Session()
        self._session.headers.update({"Authorization": f"Bearer {key}"} if key else {})
        self._about = self._read_model()
        self.model = None
        self.settings = MultiScaleSettings(**self._about["settings"])
        self.processing_class = processing_class or self._tokenizer()
        self.policy_processing_class = policy_processing_class
        self.max_length = self._about["max_length"]
        self.chat_template_kwargs = self._about["chat_template_kwargs"]
        own = set(self._about["end_ids"])
        self.end_ids = own if policy_processing_class is None else end_ids(policy_processing_class)

    def score_encoded(self, rows: Sequence[EncodedResponse]) -> list[ResponseScore]:
        """As in [`RewardFunction`], by the server."""
        if not rows:
            return []
        body: Any = {"rows": [{"input_ids": row.input_ids, "response_start": row.response_start} for row in rows]}
        answer = self._ask(lambda: self._session.post(f"{self.url}/rows", json=body, timeout=self.timeout))
        if answer.headers.get(MODEL_HEADER) != known_by(self._about):  # it has been started again since
            self._check_same()
        return unpack_scores(answer.content, [row.ends for row in rows])

    def report(self, scores: list[ResponseScore | None], log_metric: Callable[[str, float], None]) -> None:
        """As in [`RewardFunction`], with how often the server had to be asked again so far."""
        super().report(scores, log_metric)
        log_metric("reward_server/retries", float(self.retries))
        log_metric("reward_server/timeouts", float(self.timeouts))

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        answer = self._ask(lambda: self._session.get(f"{self.url}/tokenizer", timeout=self.timeout))
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(io.BytesIO(answer.content)).extractall(folder)
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        return tokenizer

    def _read_model(self) -> dict[str, Any]:
        """What the server says of its model."""
        answer = self._ask(lambda: self._session.get(f"{self.url}/model", timeout=self.timeout))
        try:
            found = answer.json()
        except requests.JSONDecodeError:
            found = None
        if not isinstance(found, dict) or not found.keys() >= TOLD:
            raise ValueError(
                f"'{self.url}' is no reward server: asked for its model, it says {answer.text[:60]!r}. Give the "
                "address that `prefscale serve` printed."
            )
        return found

    def _check_same(self) -> None:
        """Refuse another model in the place of the one that this function began with."""
        found = self._read_model()
        if found != self._about:
            other = sorted(name for name in self._about if found.get(name) != self._about[name])
            raise ValueError(f"The reward server '{self.url}' has another model than before: {other} differ.")

    def _ask(self, send: Callable[[], requests.Response]) -> requests.Response:
        """An answer of the server, which may be away for a while."""
        begin, wait = time.monotonic(), FIRST_WAIT
        while True:
            try:
                answer = send()
                if answer.status_code not in TRIED_AGAIN:
                    break
                reason = f"status {answer.status_code}"
            except requests.Timeout:
                self.timeouts += 1
                reason = f"no answer in {self.timeout:g} seconds"
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):  # or cut within an answer
                reason = "no connection"
            if time.monotonic() - begin + wait > self.patience:
                raise ConnectionError(
                    f"The reward server '{self.url}' is away ({reason}, for {self.patience:g} seconds). Start it, "
                    "correct the address, or give it more `patience`."
                )
            self.retries += 1
            logger.warning(f"The reward server '{self.url}' is away ({reason}): asking again in {wait:g} seconds.")
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        if not answer.ok:
            verb = "fails" if answer.status_code >= 500 else "refuses"
            raise ValueError(
                f"The reward server '{self.url}' {verb} (status {answer.status_code}): {answer.text[:300]}"
            )
        return answer
