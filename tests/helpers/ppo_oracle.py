"""PPO's step written from the papers in float64, for every kind of critic, one row at a time."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl import PPOConfig
from tests.helpers.rollouts import MIXED, fixed_completion, parity_reward, rows


def tool_mask(ids: list[int]) -> list[int]:
    mask = [0 if t % 5 in (2, 3) else 1 for t in range(len(ids))]
    if len(ids) > 4 and len(ids) % 2:
        mask[-1] = 0
    return mask


def displace(model: torch.nn.Module, seed: int = 0) -> None:
    """Moves the policy away from its reference, and gives the critic something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                size = 0.3 if name.startswith("value_head") and ".linear." in name else 0.02
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def oracle(
    start: dict[str, torch.Tensor],
    model_path: str,
    config: PPOConfig,
    epochs: int,
    tool: bool = False,
    kinds: Any = MIXED,
) -> dict:
    """Weights after `epochs` SGD steps on the whole batch: float64, one row at a time, nothing of the package."""
    policy = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    reference = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    own = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).model
    head = torch.nn.Linear(policy.config.hidden_size, 1, dtype=torch.float64)
    # By default a branch of two layers.
    branched, whole = config.critic in (None, "branch"), config.critic == "value_model"
    copies = own.layers[-(config.critic_layers or 2) :] if branched else []
    critic = {f"{'' if config.critic == 'head' else 'head.'}linear.{n}": p for n, p in head.named_parameters()}
    if whole:
        critic |= {f"trunk.{n}": p for n, p in own.named_parameters()}
    if branched:
        critic |= {f"layers.{i}.{n}": p for i, layer in enumerate(copies) for n, p in layer.named_parameters()}
        critic |= {f"norm.{n}": p for n, p in own.norm.named_parameters()}
    parameters = {**dict(policy.named_parameters()), **{f"value_head.{n}": p for n, p in critic.items()}}
    assert set(parameters) == set(start)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def values_of(ids, seen):
        if whole:
            return own(ids).last_hidden_state
        if not branched:
            return seen.last_hidden_state
        hidden = seen.hidden_states[len(policy.model.layers) - len(copies)]
        turned = policy.model.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
        for layer in copies:
            hidden = layer(hidden, position_embeddings=turned)
        return own.norm(hidden)

    def look(model, prompt_ids, ids):
        seen = model.model(torch.tensor([prompt_ids + ids]), output_hidden_states=True)
        where = slice(len(prompt_ids) - 1, -1)
        logp = torch.log_softmax(model.lm_head(seen.last_hidden_state[0, where]), -1)
        value = head(values_of(torch.tensor([prompt_ids + ids]), seen)[0, where])[:, 0]
        return logp[torch.arange(len(ids)), torch.tensor(ids)], value

    sequences = []
    for row in rows(MIXED):
        text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(text)["input_ids"]
        for member in range(2):
            ids = fixed_completion(prompt_ids, member, 0, 12, tokenizer.vocab_size, tokenizer.eos_token_id)
            mine = [t for t, m in enumerate(tool_mask(ids)) if m] if tool else list(range(len(ids)))
            with torch.no_grad():
                logp, value = look(policy, prompt_ids, ids)
                ref_logp, _ = look(reference, prompt_ids, ids)
            score = parity_reward([ids], [row["kind"]])[0]
            v = [float(value[t]) for t in mine] + [0.0]
            r = [-config.kl_coef * float(logp[t] - ref_logp[t]) for t in mine]
            r[-1] += score
            advantages, last = [0.0] * len(mine), 0.0
            for k in reversed(range(len(mine))):
                last = r[k] + config.gamma * v[k + 1] - v[k] + config.gamma * config.lam * last
                advantages[k] = last
            returns = [a + b for a, b in zip(advantages, v[:-1], strict=True)]
            sequences.append((prompt_ids, ids, mine, logp[mine], v[:-1], advantages, returns))
    flat = torch.tensor([a for s in sequences for a in s[5]], dtype=torch.float64)
    for _ in range(epochs):
        loss = torch.zeros((), dtype=torch.float64)
        for prompt_ids, ids, mine, old_logp, old_value, advantages, returns in sequences:
            logp, value = look(policy, prompt_ids, ids)
            a = (torch.tensor(advantages, dtype=torch.float64) - flat.mean()) / flat.std()
            ratio = torch.exp(logp[mine] - old_logp)
            surrogate = torch.minimum(ratio * a, ratio.clamp(1 - config.epsilon, 1 + config.epsilon) * a)
            old, target = torch.tensor(old_value).double(), torch.tensor(returns).double()
            near = old + (value[mine] - old).clamp(-config.cliprange_value, config.cliprange_value)
            error = torch.maximum((value[mine] - target) ** 2, (near - target) ** 2)
            loss = loss + (-surrogate + config.vf_coef * 0.5 * error).sum()
        gradients = torch.autograd.grad(loss / len(flat), list(parameters.values()))
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.sub_(config.learning_rate * gradient)
    return {name: parameter.detach() for name, parameter in parameters.items()}
