"""Test conditional spaces: a key exists only when the part that it belongs to is chosen."""

import optuna
import pytest
import yaml

from stssl.base.errors import ConfigError
from stssl.sweeps.domains import build_space
from stssl.sweeps.spec import load_sweep

CONDITIONAL = {
    "algorithm.threshold": None,
    "algorithm.sigmas": None,
    "algorithm.ema_decay": None,
    "model.encoder.degree": None,
    "model.encoder.name": ["raw", "spherical"],
    "algorithm.name": ["fixmatch", "softmatch", "adamatch"],
    "model.injection.name": None,
    "loss.distillation": None,
    "loss.temperature": None,
    "loss.distance": None,
}
OWNERS = {
    "algorithm.threshold": ("algorithm.name", {"fixmatch", "adamatch"}),
    "algorithm.sigmas": ("algorithm.name", {"softmatch"}),
    "algorithm.ema_decay": ("algorithm.name", {"softmatch", "adamatch"}),
    "model.encoder.degree": ("model.encoder.name", {"spherical"}),
    "model.encoder.name": ("model.injection.name", {"film", "late"}),
    "loss.distillation": ("loss.distance", {"mse", "mae", "cosine", "logits"}),
    "loss.temperature": ("loss.distance", {"logits"}),
}


@pytest.fixture
def space_of(recipe_tree, tmp_path):
    def go(search, change=None):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree))
        tree = {"recipe": "recipe.yaml", "trials": 4, "search": search, "change": change or {}}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(tree))
        loaded = load_sweep(tmp_path / "s.yaml")
        return build_space(loaded.config, loaded.recipe)

    return go


@pytest.fixture
def draws(space_of):
    """Make 60 draws, with the Optuna trials that they came from."""
    space, study = space_of(CONDITIONAL), quiet_study()
    trials = [study.ask() for _ in range(60)]
    return space, [(trial, space.draw(trial)) for trial in trials]


def quiet_study():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


def violations(draws):
    """List keys that exist without the part that has them, or are missing although the part is chosen."""
    return [
        (key, values)
        for _, values in draws
        for key, (owner, names) in OWNERS.items()
        if (key in values) != (values.get(owner) in names)
    ]


def test_keys_exist_exactly_when_their_part_is_chosen(draws):
    _, drawn = draws
    assert violations(drawn) == []
    assert {values["algorithm.name"] for _, values in drawn} == {"fixmatch", "softmatch", "adamatch"}


def test_control_a_key_without_its_part_is_found(draws):
    trial, values = draws[1][0]
    assert violations([(trial, values | {"algorithm.name": "supervised"})])


def test_every_draw_is_a_recipe_and_comes_back_from_its_parameters(draws):
    space, drawn = draws
    for trial, values in drawn:
        recipe = space.recipe(values)
        assert recipe.algorithm.name == values["algorithm.name"]
        assert space.values(trial.params) == values
        for key, value in values.items():
            node = recipe.tree()
            for part in key.split("."):
                node = node[part]
            assert node == value


def test_domains_that_differ_between_parts_are_parameters_of_their_own(draws):
    space, drawn = draws
    names = {axis.name for axis in space.axes if axis.key == "algorithm.ema_decay"}
    assert names == {"algorithm.ema_decay@softmatch", "algorithm.ema_decay@adamatch"}
    assert all(v["algorithm.ema_decay"] >= 0.9 for _, v in drawn if v["algorithm.name"] == "softmatch")


def test_sites_that_the_backbone_lacks_are_not_searched(draws):
    axis = next(axis for axis in draws[0].axes if axis.key == "model.injection.name")
    assert axis.domain.choices == ("film", "late", "none")


def test_parts_that_are_not_searched_keep_their_keys(space_of):
    space = space_of({"algorithm.threshold": None})
    assert space.axes[0].gates == ()
    assert "algorithm.threshold" in space.draw(quiet_study().ask())


def test_a_point_takes_the_recipes_values(space_of):
    space = space_of(CONDITIONAL)
    assert "algorithm.threshold" not in space.point({})  # 0.3 lies outside of the domain: left to the sampler
    assert space.point({"algorithm.threshold": 0.7})["algorithm.threshold"] == 0.7
    assert space.point({})["algorithm.name"] == "fixmatch" and space.point({})["loss.distillation"] == 1.0
    soft = space.point({"algorithm.name": "softmatch"})
    assert soft["algorithm.sigmas"] == 2.0 and soft["algorithm.ema_decay@softmatch"] == 0.999


def test_a_point_may_name_a_whole_number_of_a_list(space_of):
    space = space_of({"loss.distillation": [0.1, 1.0], "augment.strong_labeled": None})
    study = quiet_study()
    study.enqueue_trial(space.point({"loss.distillation": 1}))
    assert space.draw(study.ask())["loss.distillation"] == 1.0
    with pytest.raises(ConfigError, match="outside of its domain"):
        space.point({"loss.distillation": True})
    with pytest.raises(ConfigError, match="outside of its domain"):
        space.point({"augment.strong_labeled": 1})


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"algorithm.treshold": 0.7}, r"not under search\. Did you mean algorithm\.threshold"),
        ({"algorithm.threshold": 2.0}, "outside of its domain: 0.6 to 0.99"),
        ({"algorithm.sigmas": 1.0}, "algorithm.sigmas does not exist with the other values"),
        ({"algorithm.name": "cap"}, "outside of its domain: fixmatch, softmatch, adamatch"),
    ],
)
def test_wrong_points_are_errors(space_of, point, message):
    with pytest.raises(ConfigError, match=message):
        space_of(CONDITIONAL).point(point)


def test_a_grid_has_each_possible_combination_once(space_of):
    search = {
        "algorithm.name": ["fixmatch", "softmatch"],
        "algorithm.threshold": [0.7, 0.9],
        "algorithm.sigmas": {"low": 1.0, "high": 2.0, "step": 0.5},
        "augment.strong_labeled": None,
    }
    grid = space_of(search).grid()
    assert len(grid) == 2 * (2 + 3)
    with pytest.raises(ConfigError, match="a grid needs a list of values"):
        space_of({"optimizer.lr": None}).grid()
    with pytest.raises(ConfigError, match=r"search.optimizer.lr: a grid takes at most 10,000 values"):
        space_of({"optimizer.lr": {"low": 0.5, "high": 1e18, "step": 0.5}}).grid()
    with pytest.raises(ConfigError, match=r"search: a grid over .* has more than 10,000 points"):
        space_of({key: {"low": 0.001, "high": 0.501, "step": 0.001} for key in ("ema.decay", "optimizer.lr")}).grid()


@pytest.mark.parametrize(("low", "high", "step"), [(0.0, 1.0, 1e-320), (-1e308, 1e308, None), (-1e308, 1e308, 1.0)])
def test_ranges_beyond_numbers_are_refused_in_words(space_of, low, high, step):
    with pytest.raises(ConfigError, match=r"search.optimizer.lr.*(too far apart|do not come to)"):
        space_of({"optimizer.lr": {"low": low, "high": high, "step": step}})


def test_whole_numbers_stay_whole(space_of):
    space = space_of({"augment.randaugment.n": {"low": 1, "high": 4}, "data.bands": [["B04"], ["B04", "B03"]]})
    values = space.draw(quiet_study().ask())
    assert isinstance(values["augment.randaugment.n"], int) and values["data.bands"] in (["B04"], ["B04", "B03"])
    assert space.recipe(values)


def test_identity_tells_spaces_apart(space_of):
    one, same = space_of({"optimizer.lr": None}), space_of({"optimizer.lr": None}, {"launch.workers": 2})
    assert one.identity() == same.identity()
    assert one.identity() != space_of({"optimizer.lr": [0.1, 0.2]}).identity()
    assert one.identity() != space_of({"optimizer.lr": None}, {"seed": 3}).identity()
