"""What trackers have been left, read back from their own files."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The files of a LevelDB log are blocks, in which a record is cut into chunks: a header of checksum, length and place.
_BLOCK, _HEADER, _PREFIX = 32768, 7, 7
_WHOLE, _LAST = 1, 4


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run of wandb, as its own protocol has them."""
    from wandb.proto import wandb_internal_pb2 as protocol

    data, at, parts = file.read_bytes(), _PREFIX, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, place = struct.unpack("<IHB", data[at : at + _HEADER])
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if place in (_WHOLE, _LAST):
            record = protocol.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_wandb(folder: Path) -> list[dict[str, Any]]:
    """The offline runs below a folder in the order of their begin: `id`, `name`, `project`, `config`, `summary`,
    `history`, `alerts`, `exit_code` and `tables` (name -> one for each time that it was logged)."""
    return [_wandb_run(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _wandb_run(file: Path) -> dict[str, Any]:
    run: dict[str, Any] = {"config": {}, "summary": {}, "history": [], "alerts": [], "tables": {}, "exit_code": None}
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
            run["config"] |= _items(record.run.config.update)
        elif kind == "config":
            run["config"] |= _items(record.config.update)
        elif kind == "summary":
            run["summary"] |= _items(record.summary.update)
        elif kind == "alert":
            run["alerts"].append((record.alert.title, record.alert.text))
        elif kind == "exit":
            run["exit_code"] = record.exit.exit_code
        elif kind == "history":
            line = _items(record.history.item)
            run["history"].append(line)
            for name in [key.removesuffix("._type") for key, value in line.items() if value == "table-file"]:
                text = (file.parent / "files" / line[f"{name}.path"]).read_text()
                run["tables"].setdefault(name, []).append(json.loads(text))
    return run


def read_tensorboard(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, str]]], dict]:
    """Scalars and texts of a run (name -> steps and values), and the settings that its values stand beside."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    scalars = {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}
    texts = {
        name.removesuffix("/text_summary"): [
            (one.step, one.tensor_proto.string_val[0].decode()) for one in read.Tensors(name)
        ]
        for name in read.Tags()["tensors"]
        if name.endswith("/text_summary")
    }
    plugin = read.summary_metadata.get("_hparams_/session_start_info")
    settings = {}
    if plugin is not None:
        found = plugin_data_pb2.HParamsPluginData.FromString(plugin.plugin_data.content)
        settings = {
            name: getattr(value, value.WhichOneof("kind")) for name, value in found.session_start_info.hparams.items()
        }
    return scalars, texts, settings


def cells(text: str) -> list[list[str]]:
    """The cells of a table as TensorBoard shows it: after it has made of a text what it lets a browser see."""
    from html.parser import HTMLParser

    from tensorboard.plugin_util import markdown_to_safe_html

    rows: list[list[str]] = []

    class Cells(HTMLParser):
        inside = False

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                self.inside = True
                rows[-1].append("")
            elif self.inside:
                rows[-1][-1] += "\n" if tag == "br" else f"<{tag}>"

        def handle_endtag(self, tag: str) -> None:
            self.inside = self.inside and tag not in ("td", "th")

        def handle_data(self, data: str) -> None:
            if self.inside:
                rows[-1][-1] += data

    Cells().feed(markdown_to_safe_html(text))
    return rows
