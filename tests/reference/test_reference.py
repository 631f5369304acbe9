"""Every vector of the public implementations is matched, and every array of theirs is looked at."""

import json
import re
from pathlib import Path

import algorithm_files
import numpy as np
import other_files
import pretraining_files
import pytest
from oracle import FOLDER, OWN, Oracle

CHECKS = [
    (r"([a-z]+)_(?:ml|sl)\d+(?:_\w+)?", lambda oracle, match, _: algorithm_files.check_algorithm(oracle, match[1])),
    (r"metainfo", lambda oracle, *_: other_files.check_metainfo(oracle)),
    (r"ema", lambda oracle, *_: other_files.check_ema(oracle)),
    (r"asymmetric_loss", lambda oracle, *_: other_files.check_asymmetric_loss(oracle)),
    (r"metrics_multilabel", lambda oracle, *_: other_files.check_metrics(oracle, other_files.MULTILABEL, True)),
    (r"metrics_singlelabel", lambda oracle, *_: other_files.check_metrics(oracle, other_files.SINGLELABEL, False)),
    (r"early_fusion_vit", lambda oracle, *_: other_files.check_early_fusion_vit(oracle)),
    (r"pos_embed_resize", lambda oracle, _, folder: other_files.check_pos_embed_resize(oracle, folder)),
    (r"lr_schedule", lambda oracle, *_: other_files.check_lr_schedule(oracle)),
    (r"e2e_fixmatch(?:_\w+)?", lambda oracle, *_: other_files.check_e2e(oracle)),
    (r"moco_geo(?:_\w+)?", lambda oracle, *_: pretraining_files.check_moco_geo(oracle)),
]

FILES = sorted(FOLDER.glob("*.npz"))


def check(path: Path, folder: str) -> None:
    """Compare one file; fails where no check knows its name, or where none has read one of its arrays."""
    for pattern, compare in CHECKS:
        match = re.fullmatch(pattern, path.stem)
        if match:
            oracle = Oracle(path)
            compare(oracle, match, folder)
            assert not oracle.unread(), f"{path.name}: nothing was compared with {oracle.unread()}"
            return
    pytest.fail(f"no check knows {path.name}")


def test_there_are_vectors():
    assert FILES, f"no vectors in {FOLDER}"


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FILES])
def test_vectors(path, tmp_path):
    check(path, str(tmp_path))


def changed(tmp_path, name, **arrays):
    """A copy of a file with other arrays."""
    with np.load(FOLDER / f"{name}.npz") as file:
        np.savez(tmp_path / f"{name}.npz", **({key: file[key] for key in file.files} | arrays))
    return tmp_path / f"{name}.npz"


def array(name, key):
    with np.load(FOLDER / f"{name}.npz") as file:
        return file[key].copy()


own = pytest.mark.skipif(
    FOLDER.resolve() != OWN.resolve(),
    reason=f"controls change vectors of {OWN}, and STSSL_REFERENCE_VECTORS is {FOLDER}",
)


@own
@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("freematch_ml5", "state_time_p", 1e-4),
        ("freematch_ml5", "grad_s_logits_ulb_s", 1e-3),
        ("softmatch_sl4", "out_mask", 1e-3),
        ("cap_ml5", "out_pos_thre", 1e-4),
        ("udal_sl4", "fix_unsup_s", 1e-3),
        ("cdmad_ml5", "fix_pseudo", 1e-3),
        ("e2e_fixmatch_ml", "final/student_head.weight", 1e-2),
        ("early_fusion_vit", "out_joint_meta_feat", 1e-2),
        ("ema", "shadow/0.weight", 1e-3),
        ("moco_geo_cpc", "out_contrastive_loss", 1e-3),
        ("moco_geo_ml_cpc", "final/encoder_k.fc.weight", 1e-3),
        ("lr_schedule", "lr_1", 1e-6),
    ],
)
def test_control_a_changed_value_fails(tmp_path, name, key, change):
    path = changed(tmp_path, name, **{key: array(name, key) + change})
    with pytest.raises(AssertionError):
        check(path, str(tmp_path))


@own
def test_control_what_no_check_reads_fails(tmp_path):
    path = changed(tmp_path, "fixmatch_ml5", out_something=np.zeros(5))
    with pytest.raises(AssertionError, match="out_something"):
        check(path, str(tmp_path))


@own
def test_control_an_unknown_name_fails(tmp_path):
    path = changed(tmp_path, "ema")
    path.rename(tmp_path / "emu.npz")
    with pytest.raises(pytest.fail.Exception, match=r"emu\.npz"):
        check(tmp_path / "emu.npz", str(tmp_path))


@own
def test_control_other_settings_are_taken_from_the_file(tmp_path):
    """With another decay in its settings, the same file must no longer fit."""
    text = str(array("freematch_ml5", "hparams")).replace('"ema_p": 0.9', '"ema_p": 0.8')
    path = changed(tmp_path, "freematch_ml5", hparams=np.array(text))
    with pytest.raises(AssertionError):
        check(path, str(tmp_path))


class Recorder(Oracle):
    """Notes what a check would compare, to make a file with other settings."""

    def expect(self, name, ours, step=None, exact=False, **tolerance):
        del exact, tolerance
        value = np.asarray(ours.detach().numpy().copy() if hasattr(ours, "detach") else ours)
        if step is None:
            self.arrays[name] = value
        else:
            steps = [*self.arrays[name][:step], value] if step else [value]
            self.arrays[name] = np.stack(steps)


def multilabel_cpc(logits, alpha):
    """The reference's loss times alpha: cross-entropy of one softmax over all pairs, positives weighted by alpha."""
    negatives = logits.shape[1] - 1
    shifted = logits + np.log([alpha] + [(negatives + 1 - alpha) / negatives] * negatives)
    shares = shifted - shifted.max() - np.log(np.exp(shifted - shifted.max()).sum())
    return -np.log(len(logits)) - shares[:, 0].mean()


@own
def test_control_a_scheduled_weight_of_positives_is_the_references(tmp_path):
    """A file with alpha 4 -> 1, of epoch 5 of 10: alpha is 2, in the loss and in the raw loss times alpha."""
    plain = {"alpha": 2.0, "alpha_low": 1.0, "epoch": 5}
    config = json.loads(str(array("moco_geo_ml_cpc", "config"))) | plain
    path = changed(tmp_path, "moco_geo_ml_cpc", config=np.array(json.dumps(config)))
    made = Recorder(path)
    pretraining_files.check_moco_geo(made)
    for it, logits in enumerate(made.arrays["out_logits"].astype(np.float64)):
        assert made.arrays["out_criterion_raw"][it] == pytest.approx(multilabel_cpc(logits, 2.0), rel=1e-5)

    def write(**settings):
        made.arrays["config"] = np.array(json.dumps(config | settings))
        np.savez(path, **made.arrays)
        return path

    check(write(), str(tmp_path))  # without a schedule, alpha_low means nothing
    check(write(ml_cpc_alpha_geo=True, alpha=4.0), str(tmp_path))
    check(write(ml_cpc_alpha_geo=True, alpha=4.0, epoch=[5] * len(made["in_q"])), str(tmp_path))
    for wrong in ({"epoch": 6}, {"alpha": 2.0}, {"epoch": [5, 6, 6, 6, 6, 6]}):
        with pytest.raises(AssertionError):
            check(write(**({"ml_cpc_alpha_geo": True, "alpha": 4.0} | wrong)), str(tmp_path))
