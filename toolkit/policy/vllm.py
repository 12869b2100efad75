"""What vLLM says of the tokens that it samples, which TRL asks for in GRPO and not in RLOO."""

from typing import Any

import torch
from torch import Tensor


class SampledLogProbs:
    """
    Log-probabilities with which vLLM has sampled, asked for and kept as TRL passes them by.

    Args:
        generation ([`trl.generation.vllm_generation.VLLMGeneration`]):
            TRL's generation with vLLM. It is told to ask for them, and its `generate` is replaced on this instance.

    Raises:
        `ValueError`: If a server says the log-probabilities before temperature and filters, which are not those that
            it has sampled with.
    """

    def __init__(self, generation: Any) -> None:
        if generation.mode == "server" and generation.accelerator.is_main_process:
            mode = generation.vllm_client.get_server_info()["model_config"]["logprobs_mode"]
            if mode != "processed_logprobs":
                raise ValueError(
                    f"The vLLM server runs with `--logprobs-mode {mode}`: what it says of its samples leaves out "
                    "temperature and filters. Start it with `--logprobs-mode processed_logprobs`, or set "
                    "`vllm_importance_sampling_correction=False`."
                )
        generation.logprobs = 0  # of the sampled token, and of no other ones
        self._generate = generation.generate
        self._kept: list[list[list[float | None]]] = []
        generation.generate = self._generate_and_keep

    def _generate_and_keep(self, *args: Any, **kwargs: Any) -> Any:
        result = self._generate(*args, **kwargs)
        _, _, said, _ = result
        if said is None:
            raise ValueError(
                "vLLM gave no log-probabilities of what it has sampled, which were asked for. Another version may, or "
                "set `vllm_importance_sampling_correction=False`."
            )
        self._kept = said
        return result

    def pop(self, like: Tensor) -> Tensor:
        """
        Those of the responses that were sampled last, which are then forgotten.

        Args:
            like (`torch.Tensor` of shape `(B, T)`):
                Token ids of these responses, padded on the right.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float32: NaN where vLLM has none; 0 after a response.
        """
        kept, self._kept = self._kept, []
        found = torch.zeros(like.shape, dtype=torch.float32)
        for i, tokens in enumerate(kept):
            values = [torch.nan if said is None else said for (said, *_) in tokens]
            found[i, : len(values)] = torch.tensor(values)
        return found.to(like.device)
