"""A run's output folder read back: results, curves, samples and what its stage left, each with a rich display."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

from hpt_trl.displays.console import printed_warnings, without_bars
from hpt_trl.displays.samples import Samples
from hpt_trl.displays.showing import Page, Picture, rendered
from hpt_trl.environments.trajectories import FOLDER as TRAJECTORIES
from hpt_trl.errors import UserError
from hpt_trl.hub.merged import merge_run
from hpt_trl.methods.critic import results as critic
from hpt_trl.methods.reward import shift
from hpt_trl.methods.rho1.page import SELECTIONS_FILE, read_selections, selections_page, selections_text
from hpt_trl.reading import duration, read_metrics, read_results
from hpt_trl.run_files import METRICS_FILE, RECIPE_FILE, RESULTS_FILE
from hpt_trl.runs.curves import figure_of, figure_of_metrics, logged_series, points_of
from hpt_trl.runs.measures import telling_measures
from hpt_trl.runs.quiet import quiet
from hpt_trl.runs.reporting import summary
from hpt_trl.runs.trajectories import Trajectory, read_trajectories
from hpt_trl.runs.trajectory_pages import mode_of, trajectory_page
from hpt_trl.runs.trajectory_text import trajectory_text
from hpt_trl.settings.file import read_recipe_file
from hpt_trl.token_scores.weights_page import SAMPLES_FILE as WEIGHTS_FILE
from hpt_trl.token_scores.weights_page import read_weights, weights_page, weights_text


class Run:
    """What a run left; also one of the command line, and one that has not finished.

    Args:
        folder: Its output folder.

    Attributes:
        folder: The same, which names the model as well.

    Raises:
        UserError: no run has written there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / RECIPE_FILE).is_file():
            raise UserError(f"{self.folder} is not the output folder of a run: it has no {RECIPE_FILE}.")

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def recipe(self) -> dict[str, Any]:
        """The keys that the run was started with."""
        return read_recipe_file(self.folder / RECIPE_FILE).values

    @property
    def results(self) -> dict[str, Any] | None:
        """results.json; None where the run has not finished."""
        return read_results(self.folder)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where nothing was logged."""
        return read_metrics(self.folder, tolerant=True) if (self.folder / METRICS_FILE).exists() else []

    @property
    def measures(self) -> dict[str, dict[str, Any]]:
        """The few measures that tell most: `before`, `after` and `verdict` of each; none where it has not finished."""
        results = self.results
        return {} if results is None else telling_measures(results, str(results["stage"]))

    @property
    def curves(self) -> Picture:
        """The metrics over the steps."""
        lines, results = self.metrics, self.results
        series = logged_series(lines)
        if not series:
            raise self._lacks("no metrics that can be drawn", METRICS_FILE)
        text = [
            f"{key:<26} {points[0][1]:>9.4g} (step {points[0][0]})  -> {points[-1][1]:>9.4g} (step {points[-1][0]})"
            for key, points in series.items()
        ]
        return Picture(lambda: figure_of(lines, results, self._title), "\n".join(text))

    def plot(self, *keys: str, beside: "Sequence[Run]" = ()) -> Picture:
        """Some metrics on one axis, by their names in metrics.jsonl (`hpt/sft_fraction`).

        Args:
            beside: Other runs, whose metrics are drawn as well; the legend has the names of the folders then.

        Raises:
            UserError: none of them was logged.
        """
        runs = [self, *beside]
        names = [run.folder.name for run in runs]
        if len(set(names)) < len(names):
            names = [str(run.folder) for run in runs]
        found = {
            f"{name}: {key}" if beside else key: points
            for name, run in zip(names, runs, strict=True)
            for key in keys
            if (points := points_of(run.metrics, key))
        }
        if not found:
            logged = sorted({key for run in runs for line in run.metrics for key in line} - {"step", "epoch"})
            raise UserError(f"{self.folder}: none of {', '.join(keys)} was logged; there are {', '.join(logged)}.")
        return Picture(lambda: figure_of_metrics(found), f"{', '.join(found)} over the steps")

    @property
    def samples(self) -> Samples:
        """Completions of the same held-out prompts, before and after."""
        before, after = ((self.results or {}).get(side) or {} for side in ("before", "after"))
        if "completions" not in before or "completions" not in after:
            raise self._lacks("no completions before and after", RESULTS_FILE)
        return Samples(before, after)

    @property
    def selections(self) -> "Pages":
        """The tokens of some texts, coloured by their excess over the reference, the selected ones underlined."""
        found = read_selections(self.folder)
        if not found:
            raise self._lacks("no selected tokens", SELECTIONS_FILE)
        return Pages(found, lambda some: selections_page(some, self.folder.name), selections_text, "Selected tokens")

    @property
    def weights(self) -> "Pages":
        """The tokens of some texts, coloured by their weight, with the value along the text."""
        found = read_weights(self.folder)
        if not found:
            raise self._lacks("no weights of tokens", WEIGHTS_FILE)
        return Pages(found, lambda some: weights_page(some, self.folder.name), weights_text, "Weights of tokens")

    @property
    def value_curves(self) -> Picture:
        """The critic's value along right and wrong solutions."""
        pairs = critic.read_curves(self.folder)
        if not pairs:
            raise self._lacks("no value curves", critic.CURVES_FILE)
        figures = (self.results or {}).get("critic")
        lines = critic.figure_lines(figures) if figures else []
        return Picture(lambda: critic.figure_of(pairs), "\n".join(["Value curves", *lines]))

    @property
    def shift(self) -> Picture:
        """How far a reward model's scores drift from prompt to prompt."""
        scores = shift.read_scores(self.folder)
        if scores is None:
            raise self._lacks("no scores of a reward model", shift.SCORES_FILE)
        try:
            found = shift.measure_shift(scores)
        except ValueError as error:
            raise UserError(f"{self.folder}: the reward shift cannot be measured on {error}.") from None
        return Picture(lambda: shift.figure_of(scores, found), "\n".join(shift.shift_lines(found)))

    @property
    def trajectories(self) -> "Trajectories":
        """What rollouts did in an environment: turns, images, rewards."""
        found = list(read_trajectories(self.folder))
        if not found:
            raise self._lacks("no trajectories", TRAJECTORIES)
        return Trajectories(found)

    def merge(self, folder: str | Path) -> Path:
        """Merges the run's LoRA adapter into its base model, as `hpt-trl merge` does; returns the new folder.

        Raises:
            UserError: no adapter, or a folder that is not empty.
        """
        with quiet(), without_bars(), printed_warnings():
            merge_run(self.folder, folder)
        return Path(folder)

    @property
    def parts(self) -> list[str]:
        """Names of what there is to look at."""
        names = ("curves", "samples", "selections", "weights", "value_curves", "shift", "trajectories")
        return [name for name in names if self._has(name)]

    def _has(self, name: str) -> bool:
        try:
            getattr(self, name)
        except UserError:
            return False
        return True

    def _lacks(self, what: str, file: str) -> UserError:
        return UserError(f"{self.folder} has {what} ({file}).")

    @property
    def _title(self) -> str:
        results = self.results
        return str(self.folder) if results is None else f"{results['recipe']}: {results['stage']}"

    def _repr_html_(self) -> str:
        results, parts = self.results, [f".{name}" for name in self.parts] or ["nothing to look at"]
        if results is None:
            about = "not finished"
        else:
            wall = duration(results["wall_time_s"]["total"])
            steps = f"{results['steps']} steps, " if "steps" in results else ""
            about = f"{results.get('model', '')}; {steps}{wall}".removeprefix("; ")
        return rendered(
            "run.html.jinja", title=self._title, about=about, measures=self.measures, folder=self.folder, parts=parts
        )

    def __repr__(self) -> str:
        if self.metrics:
            return summary(self.folder)
        lines = [f"{name} {found['before']} -> {found['after']}" for name, found in self.measures.items()]
        return "\n".join([f"{self._title} in {self.folder}", *lines])


class Pages:
    """Samples of texts on one page; one of them, or a slice, is such a page as well.

    Args:
        page, text: Return samples as a whole HTML document, and as plain text.
        name: What they show.
    """

    def __init__(
        self,
        samples: list[dict[str, Any]],
        page: Callable[[list[dict[str, Any]]], str],
        text: Callable[[list[dict[str, Any]]], str],
        name: str,
    ):
        self.samples, self._page, self._text, self._name = samples, page, text, name

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int | slice) -> "Pages":
        some = self.samples[place] if isinstance(place, slice) else [self.samples[place]]
        return Pages(some, self._page, self._text, self._name)

    def page(self) -> Page:
        """The page, for a file or a notebook."""
        return Page(self._page(self.samples), repr(self))

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()

    def __repr__(self) -> str:
        steps = ", ".join(str(sample["step"]) for sample in self.samples)
        head = f"{self._name}: {len(self.samples)} {'text' if len(self) == 1 else 'texts'}, of step {steps}"
        return f"{head}\n{self._text(self.samples)}"


class Trajectories(Sequence[Page]):
    """Trajectories as a table; each by its place, or by when it was played, is a page."""

    def __init__(self, found: list[Trajectory]):
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, place: int) -> Page: ...
    @overload
    def __getitem__(self, place: slice) -> "Trajectories": ...
    def __getitem__(self, place: int | slice) -> "Page | Trajectories":
        if isinstance(place, slice):
            return Trajectories(self.found[place])
        found = self.found[place]
        return Page(trajectory_page(found), trajectory_text(found))

    def played(self, mode: str) -> "Trajectories":
        """Those of one kind.

        Args:
            mode: `train`, `eval_before` or `eval_after`.
        """
        return Trajectories([found for found in self.found if found.mode == mode])

    def _repr_html_(self) -> str:
        return rendered("trajectories.html.jinja", rows=[_row(found) for found in self.found], rewards=self._rewards)

    def __repr__(self) -> str:
        rows = [_row(found) for found in self.found]
        return "\n".join(f"{row['place']:>3}  {row['mode']}  {row['turns']} turns  {row['ended']}" for row in rows)

    @property
    def _rewards(self) -> list[str]:
        return list(dict.fromkeys(name for found in self.found for name in found.rewards))


def _row(found: Trajectory) -> dict[str, Any]:
    return {
        "place": found.id,
        "mode": mode_of(found) + ("" if found.step is None else f", step {found.step}"),
        "turns": found.facts.get("turns", "\N{EN DASH}"),
        "ended": found.facts.get("ended", "\N{EN DASH}"),
        "rewards": found.rewards,
    }
