"""A pipeline and the Hub: stages are pushed one by one as they are finished; a push that fails stops nothing."""

from hpt_trl.errors import UserError
from hpt_trl.hub.destination import destination
from hpt_trl.hub.origin import is_pushed
from hpt_trl.hub.pushing import not_pushed, push, told
from hpt_trl.pipeline.plan import Plan, PlannedStage

# The pipeline pushes by itself; were it the stage's own run, a push that fails would be a stage that failed.
NOT_BY_ITSELF = {"push_to_hub": ["false"]}


def push_stage(plan: Plan, stage: PlannedStage, mark: str) -> list[str]:
    """Push a finished stage that is to be pushed, unless what its folder holds was pushed there before.

    Returns:
        What to say of a push that failed; nothing of one that did not.
    """
    if not stage.is_pushed:
        return []
    folder = plan.folder(stage.name)
    wanted = destination(stage.values, folder)
    if is_pushed(folder, wanted.name, wanted.revision):
        return []
    try:
        print(f"{mark} {stage.name}: {told(push(folder, wanted))}", flush=True)
    except UserError as error:
        message = f"stage `{stage.name}`: {not_pushed(folder, wanted, error)}"
        print(f"{mark} {message}", flush=True)
        return [message]
    return []


def check_repositories(plan: Plan) -> None:
    """Refuse stages that would be pushed to one branch of one repository.

    Raises:
        UserError: which.
    """
    taken: dict[tuple[str, str | None], str] = {}
    for stage in plan.stages:
        if not stage.is_pushed:
            continue
        wanted = destination(plan.resolved(stage) | stage.values, plan.folder(stage.name))
        place = (wanted.name, wanted.revision)
        if place in taken:
            raise stage.places.get("hub_model_id", stage.place).error(
                f"stage `{taken[place]}` is pushed to {wanted.name} as well, and would be replaced; write another "
                "`hub_model_id` or `hub_revision`."
            )
        taken[place] = stage.name


def refuse_unpushed(failed: list[str]) -> None:
    """End a pipeline whose stages are finished, and some of them not pushed.

    Raises:
        UserError: which.
    """
    if failed:
        raise UserError("all stages are finished, but not all were pushed. " + " ".join(failed))
