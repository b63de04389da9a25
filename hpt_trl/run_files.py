"""Names of the files that a run leaves in its output folder, for whoever looks there without loading a library."""

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
WARNINGS_FILE = "warnings.jsonl"
RESULTS_FILE = "results.json"
CURVES_FILE = "curves.png"
# The page of `hpt-trl report`.
REPORT_FILE = "report.html"
# The evaluation before the training, until the results have it.
BEFORE_FILE = "before.json"
# The record of a pipeline, beside the folders of its stages.
PIPELINE_FILE = "pipeline.json"
# Completions of the evaluations that a training names, before and after it.
EVALUATIONS = "evaluations"
# Tracker -> what it calls the run, for a run that goes on.
TRACKERS_FILE = "trackers.json"
# TensorBoard's, where transformers writes as well. TENSORBOARD_LOGGING_DIR stands above it.
TENSORBOARD = "runs"

# First line of the resolved recipe, by which a folder is known as a run's.
MARK = "# Resolved recipe of a run of hpt-trl."

# Where a checkpoint or a model is written before it has its name, and where one goes that is being removed.
SAVING = ".saving"
REMOVING = ".removing"
# Checkpoints that are kept and not gone on from: damaged ones, and those of an attempt that was left.
DAMAGED = "damaged"
ABANDONED = "abandoned"
# Held by the run that writes to the folder, and what it says of itself.
LOCK_FILE = ".run.lock"
OWNER_FILE = ".run.owner"
# Variable by which the attempts of one launch know each other, which a launcher makes one after the other.
LAUNCH_ID = "HPT_TRL_LAUNCH_ID"
# The files of a run that is started anew, until the new one has trained a step.
REPLACED = ".replaced"
# Where they go until all of them are there, and from where they are put back.
REPLACING = ".replacing"
