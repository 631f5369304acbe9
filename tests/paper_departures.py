"""Settings of the authors that our recipes do not have, each with its reason. A page of the docs shows them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Departure:
    """A setting that differs on purpose.

    Attributes:
        reason: Why, as the docs' page says it.
        only: Data set where it differs; None for both. With the other one, it must be equal.
        theirs: Their value in the docs' page, where the file's is long.
        ours: Our value in the docs' page.
    """

    reason: str
    theirs: str
    ours: str
    only: str | None = None


DEPARTURES = {
    "best_metric": Departure(
        "A checkpoint must not be chosen on test patches.", "best on test", "the last one", only="eurosat"
    ),
    "early_stopping": Departure(
        "Without validation, nothing can end a run early.", "after 32,768 steps", "never", only="eurosat"
    ),
    "patience_iters": Departure("Without validation, nothing can end a run early.", "32,768", "null", only="eurosat"),
    "eval_batch_size": Departure("It changes only the speed of evaluations.", "16", "256", only="eurosat"),
    "f1_threshold": Departure(
        "A probability of one half is what users expect of F1. Average precision does not depend on it.",
        "logit 0.5 (probability 0.62)",
        "probability 0.5",
    ),
    "labels": Departure(
        "The authors' lists are not public. Whoever has them trains with `labels.list` (see the BigEarthNet tutorial).",
        "fixed lists",
        "drawn by `labels.seed`",
        only="bigearthnet",
    ),
    "metadata": Departure(
        "EuroSAT has no dates: the authors feed one dummy date, a constant, and ours are absent. A missing value gets "
        "a learned vector, where the authors' code would compute NaN.",
        "a dummy date; NaN",
        "no date; a learned vector",
    ),
    "sampling": Departure(
        "With another seed, a run should see its patches in another sequence.",
        "sequence seeded by the epoch",
        "by seed and epoch",
    ),
    "cdmad_bias_head": Departure(
        "In the public code, no loss trains that head, and the student gets the teacher's bias.",
        "a head that is never trained",
        "the network's trained head",
    ),
    "udal_student_marginal": Departure(
        "The student's predictions are compared with their own marginal, as the paper says.",
        "the teacher's",
        "the student's",
    ),
}
"""Settings that differ in the recipes "as published"."""

ELSEWHERE = {
    "cap_class_frequency": "tests/reference: the vectors cap_* (frequencies of the labeled rows)",
    "class_order": "The sequence of outputs changes no result; tests/archives checks the names.",
    "debias_term": "tests/reference: the vectors defixmatch_*",
    "epoch": "The length of a run is its steps.",
    "evaluation_debias": "tests/reference: the vectors cdmad_*",
    "imb_algorithm": "Null: the authors use none, and there is no such key.",
    "include_lb_to_ulb": "The unlabeled stream always holds all training patches (stssl/recipes/build.py).",
    "unlabeled_set": "The unlabeled stream always holds all training patches (stssl/recipes/build.py).",
    "lb_imb_ratio": "1: no imbalance is made, and there is no such key.",
    "ulb_imb_ratio": "1: no imbalance is made, and there is no such key.",
    "ulb_num_labels": "Null: all patches, and there is no such key.",
    "metadata_file": "Places are in the store.",
    "net_from_name": "A detail of how the public code finds a class.",
    "pt_data_dir": "A cache of pixels; null in all files.",
    "softmatch_state": "tests/reference: the vectors softmatch_*",
    "student_forward": "tests/reference: the vectors e2e_fixmatch_*",
    "student_loss": "tests/reference: the vectors e2e_fixmatch_*",
    "student_token": "tests/reference: the vectors early_fusion_vit",
    "train_sampler": "See `sampling`.",
    "udal_schedule": "tests/reference: the vectors udal_*",
    "use_cat": "All views of a network always pass through it together (TeacherStudentStep).",
}
"""Settings without a value in a recipe, and where they are dealt with."""

AS_IT_SHOULD_BE = {
    "model.labeler_mode": "Pseudo-labels should not depend on which blocks drop path leaves out.",
    "augment.randaugment.style": "Of kornia's 0.7 versions, a fifth of the strong views are black images.",
    "compute.precision": "bf16 is faster on GPUs, and changes results only by rounding.",
    "data.split": "A validation part chooses the best checkpoint, and labels come from the other training patches.",
    "evaluation.checkpoint": "The best checkpoint on validation is better than the last one.",
    "schedule.patience": "With validation, a run may end early, as the authors' runs do.",
}
"""Keys that the bases "as it should be" change, and why."""

PRETRAINING = {
    "seed": ("null: not seeded", "0", "A run must be repeatable."),
    "views": (
        "448 px, then crops to 224 px; ImageNet's statistics",
        "crops of the stored patch to 128 px; statistics of the store",
        "BigEarthNet's patches have 120 px: their sizes would enlarge them. Crops, colors, blur and flips are equal.",
    ),
    "last_batch": ("dropped", "filled from the next epoch", "All patches are seen equally often."),
    "clusters": (
        "labels in a table of fMoW",
        "k-means on the sphere over the store's training places",
        "The table is of another data set; k is equal.",
    ),
    "classes": ("62 of fMoW", "19 of BigEarthNet", "Another data set."),
    "best": ("test, each epoch", "validation, each epoch", "An epoch must not be chosen on test patches."),
    "views_train": (
        "224 px, random crop",
        "the whole patch at 128 px",
        "BigEarthNet's patches are square, so that a crop of their size is the patch.",
    ),
    "views_test": (
        "224 px, center crop",
        "the whole patch at 128 px",
        "BigEarthNet's patches are square, so that a crop of their size is the patch.",
    ),
}
"""Settings of the geography-aware scripts that differ on purpose: theirs, ours, why."""

PRETRAINING_ELSEWHERE = {
    "arguments.schedule": "Milestones are not used with --cos.",
    "arguments.aug_plus": "The list that it builds is used only with temporal = False; see `views`.",
    "key_encoder": "tests/reference: the vectors moco_geo_*; tests/distributed: keys shuffled over ranks",
    "batch_size_is": "batch.size always counts the rows of all ranks.",
    "lr_scaling": "optimizer.lr is never scaled.",
    "positive": "tests/contrastive: partners drawn uniformly, the patch itself without one",
    "mlp_head": "tests/reference: the vectors moco_geo_*; the hidden layer is as wide as the features",
    "geo_loss": "tests/reference: the vectors moco_geo_*",
    "init": "stssl/analysis/probe.py: weights N(0, 0.01), bias 0",
    "frozen": "Features are computed once, in evaluation mode.",
}
"""Entries of the geography-aware scripts without a value in a recipe, and where they are dealt with."""

OURS_IN_PRETRAINING = {
    "optimizer.decayed": "Biases and norms should not be drawn to zero.",
    "schedule.hold": "A rate that falls every step is smoother.",
    "schedule.steps": "200 epochs without a dropped batch.",
    "schedule.evaluate_every": "A round number.",
    "compute.precision": "bf16 is faster on GPUs.",
    "probe.lr": "Standardized features need no other rate for each network.",
    "probe.features": "Standardized features need no other rate for each network.",
    "views.smallest_crop": "Crops of 8 % of 120 px have 34 px.",
}
"""Keys that `base/pretrain.yaml` changes, and why."""
