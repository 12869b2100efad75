import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from toolkit.experiments.study.heads import Plan, new_maps, read, train
from toolkit.reward.head import MultiScaleHead, MultiScaleSettings
from toolkit.reward.losses import multi_scale_loss
from toolkit.reward.scales import mix

PAIRS, SIZE = 70, 16
PLANS = [
    Plan(),
    Plan(context="gate"),
    Plan(context="gate", unit_prompt=False, scale_loss_weight=0.0, weight_by_strength=False),
    Plan(("response",), "head"),
    Plan(("response",), loss_type="pointwise", weight_by_strength=False),
    Plan(("token", "response")),
]


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, PAIRS, 4, SIZE, generator=generator), torch.rand(PAIRS, generator=generator) + 0.5


def head_of(plan: Plan, maps, k: int) -> MultiScaleHead:
    head = MultiScaleHead(SIZE, MultiScaleSettings(list(plan.scales), plan.context, unit_prompt=plan.unit_prompt))
    names = {"response": "weight"}
    for name, value in maps.items():
        getattr(head, names.get(name, name)).data = value[k].clone()
    return head


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_head_reads_as_the_products_own(pairs, plan):
    states = pairs[0][0]
    maps = {name: value + 0.3 * torch.randn(value.shape) for name, value in new_maps(plan, 3, SIZE, seed=1).items()}
    scores, by_scale, gate = read(plan, maps, states)
    for k in range(3):
        expected_scales, own = head_of(plan, maps, k).read_states(states)
        torch.testing.assert_close(by_scale[k], expected_scales)
        torch.testing.assert_close(gate[k], own.gate)
        torch.testing.assert_close(scores[k], mix(expected_scales, own.gate))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_heads_train_as_one_alone_with_the_libraries_own_optimizer(pairs, plan):
    (chosen, rejected), weight = pairs
    rates, decays, epochs, seed = torch.tensor([1e-2, 1e-2, 1e-1]), torch.tensor([0.0, 5.0, 0.1]), 2, 4
    seen = torch.arange(PAIRS).remainder(4) != torch.tensor([[0], [1], [2]])
    maps = train(plan, chosen, rejected, weight, rates=rates, decays=decays, seen=seen, epochs=epochs, seed=seed)
    size = round(32 * PAIRS / (seen.sum().item() / 3))
    for k in range(3):
        head = head_of(plan, new_maps(plan, 3, SIZE, seed), k)
        optimizer = torch.optim.AdamW(head.parameters(), lr=rates[k].item(), weight_decay=decays[k].item())
        steps = epochs * -(-PAIRS // size)
        schedule = get_cosine_schedule_with_warmup(optimizer, -(-steps // 10), steps)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for rows in torch.randperm(PAIRS, generator=generator).split(size):
                rows = rows[seen[k, rows]]
                (good, own), (bad, others) = (head.read_states(side[rows]) for side in (chosen, rejected))
                loss = multi_scale_loss(
                    mix(good, own.gate),
                    mix(bad, others.gate),
                    good,
                    bad,
                    pointwise=plan.loss_type == "pointwise",
                    weight=weight[rows] if plan.weight_by_strength else None,
                    scale_weight=plan.scale_loss_weight,
                )
                optimizer.zero_grad()
                loss.total.mean().backward()
                torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        for name, parameter in head.named_parameters():
            key = "response" if name == "weight" else name
            if key in maps:
                torch.testing.assert_close(maps[key][k], parameter.data)


def planted(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs whose labels follow the token scale for one kind of prompt and the response for the other."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(1000) % 2
    states = torch.randn(2, 1000, 4, 32, generator=generator)
    prompt = 3 * torch.randn(1000, 32, generator=generator)
    prompt[:, 0] = 50  # large and the same for all prompts, as in a pretrained decoder
    prompt[:, 1] = torch.where(kind == 0, 8.0, -8.0)
    states[:, :, 0] = prompt
    gap = (states[0] - states[1])[:, :, 5]  # what tells the better response at every scale
    swap = torch.where(kind == 0, gap[:, 1], gap[:, 3]) < 0
    chosen, rejected = (torch.where(swap[:, None, None], states[1 - i], states[i]) for i in (0, 1))
    return chosen, rejected, kind


def test_the_gate_finds_which_scale_a_kind_of_prompt_goes_by():
    (chosen, rejected, _), (new_chosen, new_rejected, kind) = planted(0), planted(1)
    options = {"rates": torch.tensor([3e-2]), "decays": torch.tensor([0.01]), "epochs": 10}
    right, weights = {}, {}
    for context in ("none", "gate"):
        plan = Plan(context=context)
        maps = train(plan, chosen, rejected, torch.ones(1000), **options)
        (good, _, gate), (bad, _, _) = (read(plan, maps, side) for side in (new_chosen, new_rejected))
        right[context] = (good > bad).float().mean().item()
        weights[context] = torch.stack([gate[0, kind == k].mean(0) for k in (0, 1)])
    assert right["gate"] > right["none"] + 0.1
    token, response = weights["gate"][:, 0], weights["gate"][:, 2]
    assert token[0] > 0.7 > 0.3 > token[1]
    assert response[1] > 0.7 > 0.3 > response[0]
