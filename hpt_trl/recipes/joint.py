"""What the keys of a recipe ask of each other: which it has to name, and which do not go together."""

from dataclasses import dataclass, field, replace
from typing import Any

from hpt_trl.errors import Collector
from hpt_trl.recipes.declared import Declared
from hpt_trl.recipes.device import check_quantization
from hpt_trl.recipes.loading import loading_fault
from hpt_trl.settings.file import Sources
from hpt_trl.settings.ranges import contradiction

_REWARDS = ("reward_funcs", "reward_model_name_or_path")
_QUANTIZATION = ("load_in_4bit", "load_in_8bit")


@dataclass
class Values:
    """The values of a recipe's keys, the command line over the file.

    Attributes:
        taken: key -> value of its field's type; without what is faulty.
        faulty: keys of which a mistake is told already, and those that a misspelt key stands for: nothing that follows
            from them is told as a mistake of its own.
    """

    taken: dict[str, Any] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)

    def are_sound(self, *keys: str) -> bool:
        """Whether no mistake is known of any of these keys."""
        return self.faulty.isdisjoint(keys)


def note_joint_mistakes(values: Values, declared: Declared, sources: Sources, mistakes: Collector) -> None:
    """Notes what is missing and what does not go together, where the keys that it is about are sound."""
    taken = values.taken
    for key, advice in _required(values, declared).items():
        if not taken.get(key) and values.are_sound(key):
            # Not that its default holds.
            mistakes.note(replace(sources.place(key), note="").error(f"a recipe needs it; {advice}."))
            values.faulty.add(key)
    if values.are_sound(*_QUANTIZATION, "use_peft"):
        with mistakes.noted():
            if all(taken.get(key) for key in _QUANTIZATION):
                raise sources.error(_QUANTIZATION[0], "`load_in_8bit` is set as well; keep one of the two.")
            check_quantization(taken, declared, sources)
    _note_exclusive(values, declared, sources, mistakes)
    settings = taken.get("model_init_kwargs")
    if isinstance(settings, dict) and (fault := loading_fault(settings)):
        mistakes.note(sources.error("model_init_kwargs", fault))
        values.faulty.add("model_init_kwargs")
    for key in _REWARDS:
        if declared.rewards == "none" and taken.get(key):
            mistakes.note(sources.error(key, f"the stage `{declared.stage}` uses no rewards; drop the line."))
            values.faulty.add(key)
    weights = taken.get("reward_weights")
    rewards = [name for key in _REWARDS for name in taken.get(key) or []]
    if weights is not None and len(weights) != len(rewards) and values.are_sound(*_REWARDS):
        mistakes.note(
            sources.error(
                "reward_weights",
                f"{len(weights)} weights for {len(rewards)} rewards; allowed: one per `reward_funcs`, then one per "
                "`reward_model_name_or_path`.",
            )
        )


def _note_exclusive(values: Values, declared: Declared, sources: Sources, mistakes: Collector) -> None:
    """Notes values that exclude each other, as Transformers does one after the other once it is imported."""

    def value(key: str) -> Any:
        return values.taken.get(key, declared.keys[key].default)

    def judged(*keys: str) -> bool:
        return values.are_sound(*keys) and all(key in declared.keys for key in keys)

    if judged("fp16", "bf16") and values.taken.get("fp16") and values.taken.get("bf16"):
        mistakes.note(sources.error("fp16", "`bf16` is set as well; keep one of the two."))
    saved, measured = "save_strategy", "eval_strategy"
    if judged("load_best_model_at_end", saved, measured) and values.taken.get("load_best_model_at_end"):
        if value(measured) == "no":
            said = "nothing is measured by which one is the best; set `eval_strategy`, or drop it."
            mistakes.note(sources.error("load_best_model_at_end", said))
        elif value(saved) not in ("best", value(measured)):
            said = f"`{saved}` is {value(saved)} and `{measured}` {value(measured)}; write the same for both."
            mistakes.note(sources.error("load_best_model_at_end", said))
    named = values.taken.get("value_model_name_or_path")
    if judged("critic", "value_model_name_or_path") and named and values.taken.get("critic") in ("branch", "head"):
        said = f"`value_model_name_or_path` is {named}; drop it, or write `critic: value_model`."
        mistakes.note(sources.error("critic", f"{value('critic')} has no trunk of its own, and {said}"))
    for key, rule in declared.rules.items():
        other = rule.bound_by
        if other and judged(key, other) and (wrong := contradiction(rule, value(key), value(other))):
            at, given = (key, "") if key in values.taken else (other, f"`{key}` is ")
            mistakes.note(sources.error(at, f"{given}{value(key)} {wrong}"))
    for drawn, heat in (("eval_num_generations", "eval_temperature"), ("n", "temperature")):
        if judged(drawn, heat) and value(drawn) > 1 and value(heat) <= 0:
            said = f"{value(drawn)} with `{heat}` {value(heat)}: greedy completions of one prompt are all the same."
            given = drawn if drawn in values.taken else heat
            mistakes.note(sources.error(given, f"{said} Allowed: `{drawn}: 1`, or `{heat}` above 0, e.g. 0.6."))


def required_keys(declared: Declared) -> list[str]:
    """The keys that every recipe of a stage has to name, but for what one key can do in place of another."""
    return list(_required(Values(), declared))


def _required(values: Values, declared: Declared) -> dict[str, str]:
    """The keys that a recipe has to name, and what to write."""
    required = {"output_dir": "write the folder for the model and the results"}
    if declared.works or not declared.stage:
        return required
    if values.taken.get("datasets") is None and values.are_sound("datasets"):
        required["dataset_name"] = "write a Hub id, a local file, `arithmetic` or `reasoning_gym:<task>`"
    if not declared.makes_model:
        required["model_name_or_path"] = "write a Hub id, a local folder or `smollm2-135m`"
    models = "reward_model_name_or_path"
    if declared.rewards == "required" and not values.taken.get(models) and values.are_sound(models):
        required["reward_funcs"] = "name at least one reward, e.g. `[math_answer]`, or a `reward_model_name_or_path`"
    return required
