"""Settings that Transformers looks at only after the model is loaded, given to it once for nothing."""

from typing import Any

from hpt_trl.errors import Collector
from hpt_trl.recipes.packages import missing
from hpt_trl.recipes.profiles import Profile
from hpt_trl.settings.file import Sources
from hpt_trl.settings.values import did_you_mean

# Optimizers that are made for the layers of a model.
_OF_LAYERS = ("galore", "apollo", "lomo", "adalomo")


def try_settings(config: Any, profile: Profile, sources: Sources, mistakes: Collector) -> None:
    """Notes what a trainer would say of its optimizer, schedule, compiler, and of when it saves.

    Args:
        config: the trainer's.
        profile: how the processes are started.
    """
    checks = (_check_schedule, _check_optimizer, _check_compiler, _check_saving, _check_memory, _check_reference)
    for check in (*checks, _check_workers):
        with mistakes.noted():
            check(config, sources)
    with mistakes.noted():
        if config.fsdp and profile.fsdp_version is None and profile.num_processes == 1:
            raise sources.error(
                "fsdp",
                "one process has nothing to share out; drop it, and start several with `--accelerate fsdp2`.",
            )


def _check_schedule(config: Any, sources: Sources) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    try:
        schedule = get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs or {}),
        )
        # Others go by what is measured.
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            for _ in range(10):
                optimizer.step()
                schedule.step()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise sources.error(
            "lr_scheduler_kwargs", f"`lr_scheduler_type: {config.lr_scheduler_type.value}` does not take it: {error}."
        ) from error


def _check_optimizer(config: Any, sources: Sources) -> None:
    from transformers import Trainer

    if config.optim_args and any(part.count("=") != 1 for part in config.optim_args.replace(" ", "").split(",")):
        raise sources.error(
            "optim_args", f"{config.optim_args:.80} is not allowed; allowed: name=value, several with commas between."
        )
    name = config.optim.value
    # What lacks is told with the other packages.
    if name.startswith(_OF_LAYERS) or missing({"optim": name}):
        return
    try:
        Trainer.get_optimizer_cls_and_kwargs(config)
    except (ImportError, ValueError, TypeError) as error:
        raise sources.error("optim", f"{name}: {str(error).splitlines()[0]}") from error


def _check_compiler(config: Any, sources: Sources) -> None:
    if config.torch_compile_mode:
        # Nothing else imports it, and it takes its time.
        from torch._inductor import list_mode_options

        given, modes = config.torch_compile_mode, list(list_mode_options())
        if given not in modes:
            raise sources.error(
                "torch_compile_mode",
                f"{given:.80} is not allowed; allowed: {', '.join(modes)}.{did_you_mean(given, modes)}",
            )


def _check_workers(config: Any, sources: Sources) -> None:
    if config.dataloader_persistent_workers and config.dataloader_num_workers == 0:
        raise sources.error(
            "dataloader_persistent_workers",
            "true: with `dataloader_num_workers: 0` there are none to keep; write a number of them, or drop it.",
        )


def _check_memory(config: Any, sources: Sources) -> None:
    if getattr(config, "activation_offloading", False) and config.use_cpu:
        raise sources.error("activation_offloading", "true: on the CPU there is nowhere to move them; drop it.")


def _check_reference(config: Any, sources: Sources) -> None:
    if getattr(config, "sync_ref_model", False) and config.beta == 0:
        raise sources.error(
            "sync_ref_model", "true: with `beta: 0` there is no reference to move; write a `beta` above 0, or drop it."
        )


def _check_saving(config: Any, sources: Sources) -> None:
    """The best model is that of an evaluation, by a metric of it."""
    if config.save_strategy == "best" and config.metric_for_best_model is None:
        raise sources.error(
            "save_strategy",
            "best: by which metric the model is best is not said; write `metric_for_best_model: loss`.",
        )
    if config.save_strategy == "best" and config.eval_strategy == "no":
        raise sources.error(
            "save_strategy",
            "best: with `eval_strategy: no` nothing is measured while the model is trained, and nothing would be "
            "saved; write `eval_strategy: steps`.",
        )
