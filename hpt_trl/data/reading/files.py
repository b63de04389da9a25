"""Local files and folders of them."""

from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from hpt_trl.data.generated import FILES
from hpt_trl.data.names import is_saved
from hpt_trl.data.reading.json_files import read_json
from hpt_trl.data.reading.places import Piece, Rows, numbered
from hpt_trl.errors import UserError


def read_file(name: str) -> Rows:
    """Rows of a file.

    Raises:
        UserError: it cannot be read, or a row of it is faulty.
    """
    path = Path(name).expanduser()
    try:
        return (
            numbered(_read_parquet(path), name, Piece(name, path))
            if path.suffix == ".parquet"
            else read_json(name, path)
        )
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise UserError(f"dataset_name: {name} cannot be read: {error}") from error


def read_folder(name: str, config: str | None) -> dict[str, Dataset]:
    """The splits of a folder that `save_to_disk` wrote, or that is a copy of a Hub repository.

    Raises:
        UserError: it cannot be read.
    """
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    try:
        # Without the marks of save_to_disk the folder may be a copy of a Hub repository.
        loaded = load_from_disk(name) if is_saved(Path(name)) else load_dataset(name, config)
    except (OSError, ValueError, KeyError, DatasetsError, pa.ArrowInvalid) as error:
        raise UserError(
            f"dataset_name: the folder {name} cannot be read: {error}\nWrite a folder that save_to_disk wrote, or a "
            f"file ({', '.join(FILES)})."
        ) from error
    return {"train": loaded} if isinstance(loaded, Dataset) else loaded


def _read_parquet(path: Path) -> Dataset:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=True)
    # Whole row groups decode at once into several times their size; batches do not.
    return Dataset(pa.Table.from_batches(file.iter_batches(batch_size=1000), schema=file.schema_arrow))
