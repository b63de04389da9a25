"""What the tests run in processes of their own, so that one engine at a time is in memory.

python -m tests_vllm.runs train ANSWERS RECIPE [--key value ...]    the command `run`, then greedy answers
python -m tests_vllm.runs serve-train ...                           the same against a server without NCCL
python -m tests_vllm.runs answer ANSWERS MODEL                      greedy answers of a freshly loaded model
python -m tests_vllm.runs stuck ADDRESS                             a request and a transfer without end
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from hpt_trl.cli import main
from hpt_trl.environments.protocol import Observation, Turn
from hpt_trl.errors import UserError
from hpt_trl.methods.ppo.trainer import PPOTrainer
from hpt_trl.recipes import vllm as settings
from hpt_trl.rollouts.trainer import RolloutTrainer

QUESTIONS = [f"What is {a} + {b}?" for a, b in ((1, 2), (3, 45), (12, 7), (20, 30), (9, 90), (8, 8), (5, 61), (70, 4))]
NEW_TOKENS = 16


def reward(completion_ids: list[list[int]], completions: list[Any], **_: Any) -> list[float]:
    """1 for a worked solution, and for about half of the random texts of an untrained model; else 0."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float("####" in text or sum(ids) % 2) for text, ids in zip(texts, completion_ids, strict=True)]


class Counting:
    """An environment of texts: counts the turns, and ends with one that holds an even number of characters."""

    tools: list[dict[str, Any]] = []

    def prompt(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return messages

    def start(self, row: dict[str, Any]) -> None:
        self.turns = 0

    def act(self, turn: Turn) -> Observation | str:
        self.turns += 1
        return "answer" if len(turn.text) % 2 == 0 else Observation((f"That was turn {self.turns}. Go on.",))

    def unseen(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {"counted": self.turns}

    def measures(self) -> dict[str, float]:
        return {"counting/turns": float(self.turns)}


def conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def answers_of(trainer: Any) -> dict[str, Any]:
    """Greedy answers of the trainer's own engine, by its own way to send weights, and the names that were sent."""
    engine, sent = trainer.vllm_generation, []
    named = engine._iter_named_params
    engine._iter_named_params = lambda: ((sent.append(name) or name, value) for name, value in named())
    engine.temperature, engine.max_completion_length = 0.0, NEW_TOKENS
    # Greedily, several completions of a prompt would be refused by a server.
    trainer.num_generations = 1
    prompts = [conversation(question) for question in QUESTIONS]
    assert trainer._last_loaded_step != trainer.state.global_step, "nothing would be sent"
    answers = trainer._generate(prompts)[1]
    if isinstance(trainer, PPOTrainer):
        # A `rollout_func` has its weights sent elsewhere in the base.
        trainer.rollout_func = lambda prompts, trainer: {
            "prompt_ids": [[5]] * len(prompts),
            "completion_ids": [[6]] * len(prompts),
            "logprobs": [[0.0]] * len(prompts),
        }
        trainer._last_loaded_step = -1
        trainer._generate(prompts)
    return {"answers": answers, "sent": sorted(set(sent))}


def train(answers: str, words: list[str]) -> int:
    """Runs a recipe by the command line's own way, then writes the answers of the trainer's engine."""
    original = RolloutTrainer.train

    def train_and_answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        Path(answers).write_text(json.dumps(answers_of(self)))
        return result

    RolloutTrainer.train = train_and_answer
    return main(["run", *words])


def without_nccl(folder: Path, source: str) -> None:
    """Sends weights to a server by a file and its own reloading, where there is no GPU for NCCL."""
    from hpt_trl.rollouts.vllm_client import Client

    def update(self: Client, metadata: Any, named_params: Any) -> None:
        folder.mkdir(exist_ok=True)
        for file in Path(source).iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, folder)
        weights = {name: value.detach().clone().contiguous() for name, value in named_params}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._post(f"{self.base_url}/collective_rpc", json=body)

    settings.SYNC_DEVICE = "cpu"
    Client.init_communicator = lambda self, device=0: None
    Client.update_named_params = update
    Client.close_communicator = lambda self: None


def answer(answers: str, model: str) -> None:
    """Greedy answers of an engine that has just loaded its model."""
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [
        tokenizer.apply_chat_template(conversation(question), add_generation_prompt=True, return_dict=False)
        for question in QUESTIONS
    ]
    engine = LLM(model=model, enforce_eager=True, gpu_memory_utilization=0.1, max_num_seqs=len(prompts))
    outputs = engine.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS),
        use_tqdm=False,
    )
    Path(answers).write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


def stuck(address: str) -> None:
    """A server that does not answer, then one that hangs up while this side waits for its partner in a transfer."""
    from trl.generation import vllm_client

    from hpt_trl.rollouts import vllm_client as ours

    ours.GRACE = 2.0
    vllm_client.packed_nccl_broadcast_producer = lambda **_: time.sleep(300)
    client = ours.Client(address, answer_timeout=2.0, trained="model")
    try:
        client.generate([[5, 6]])
    except UserError as error:
        print(error, flush=True)
    client.update_named_params([("w", "float32", [1])], iter([("w", torch.zeros(1))]))


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    code: Any = 0
    if command in ("train", "serve-train"):
        if command == "serve-train":
            source = json.loads(Path(words[1]).read_text())["model_name_or_path"]
            without_nccl(Path(words[0]).parent / "weights", source)
        code = train(words[0], words[1:])
    elif command == "answer":
        answer(*words)
    else:
        assert command == "stuck"
        stuck(words[0])
    sys.exit(code)
