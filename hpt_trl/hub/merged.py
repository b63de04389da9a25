"""A merged model keeps the record of the run that trained its adapter, so that it can be reported and pushed as one."""

import shutil
from pathlib import Path

from hpt_trl.hub.card import write_card
from hpt_trl.hub.files import RECORD
from hpt_trl.hub.run_folder import has_recipe, read_run_folder
from hpt_trl.models.folders import check_merge
from hpt_trl.models.hub_parts import found_adapter
from hpt_trl.run_files import RECIPE_FILE, RESULTS_FILE


def merge_run(adapter: str | Path, merged: str | Path, *, revision: str | None = None) -> None:
    """Merge the adapter that a run has left into its base, and keep the run's record beside the whole model.

    Args:
        adapter: output folder of the run, or its Hub id.
        merged: new or empty folder.
        revision: of a Hub id.

    Raises:
        UserError: no adapter, a base that is not there, or a folder that is not empty.
    """
    # Before torch is imported.
    check_merge(str(adapter), Path(merged))
    folder = found_adapter(str(adapter), revision=revision)
    from hpt_trl.models.merging import merge_adapter

    merge_adapter(folder, merged)
    keep_record(folder, merged)


def keep_record(adapter: str | Path, merged: str | Path) -> None:
    """Copy recipe, results and curves of an adapter's run beside the merged model; of any other adapter nothing."""
    source, target = Path(adapter), Path(merged)
    if not has_recipe(source):
        return
    for path in {path for pattern in (RECIPE_FILE, RESULTS_FILE, *RECORD) for path in source.glob(pattern)}:
        shutil.copyfile(path, target / path.name)
    write_card(read_run_folder(target), target.name)
