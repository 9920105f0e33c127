"""The arithmetic of our config files: exact, and there in every process that resolves a config."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

import cfpo_verl.resolvers  # noqa: F401 - registers them


def resolve(expression, **keys):
    return OmegaConf.create({**keys, "value": expression}).value


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("${cfpo.divide:${batch},4}", 64),
        ("${cfpo.sum:${batch},1024,1}", 1281),
        # 4,096 of 20,480 tokens are a fifth; of 8 tokens it is one and a bit, of 4 it would be none.
        ("${cfpo.floor_divide:20480,5}", 4096),
        ("${cfpo.floor_divide:8,5}", 1),
        ("${cfpo.floor_divide:4,5}", 1),
        ("${cfpo.basename:${path}}", "Qwen2.5-7B"),
        ("${cfpo.basename:./models/tiny/}", "tiny"),
        ("${cfpo.basename:tiny}", "tiny"),
    ],
)
def test_values(expression, expected):
    assert resolve(expression, batch=256, path="Qwen/Qwen2.5-7B") == expected


@pytest.mark.parametrize(("total", "parts"), [(255, 4), (4, 8), (256, 0), (256, -4)])
def test_unequal_parts_are_refused_with_both_numbers(total, parts):
    with pytest.raises(InterpolationResolutionError, match=f"{total} cannot be divided into {parts} equal parts"):
        resolve(f"${{cfpo.divide:{total},{parts}}}")


@pytest.mark.parametrize("imported", ["verl", "hydra_plugins.cfpo_verl.search_path", "cfpo_verl.train"])
def test_workers_and_entry_points_have_them(imported, run_forked):
    """Ray workers import verl, verl's entry point Hydra's plugins, ours cfpo_verl.train."""
    code = f"import {imported}\nfrom omegaconf import OmegaConf\nprint(OmegaConf.has_resolver('cfpo.divide'))"
    result = run_forked(code)
    assert result.stdout.split()[-1:] == ["True"], result.stderr


@pytest.mark.parametrize(("bounds", "expected"), [("[0.0,1.0]", 0.5), ("[-1,1]", 1), ("[0,10]", 5)])
def test_half_of_a_range(bounds, expected):
    assert resolve(f"${{cfpo.half_range:{bounds}}}") == expected
    assert resolve("${cfpo.half_range:${range}}", range=OmegaConf.create(bounds)) == expected


@pytest.mark.parametrize(
    "bounds", ["[1,0]", "[1,1]", "[0]", "[0,1,2]", "[0,null]", "1.0", "[0,.inf]", "[false,true]", "ab"]
)
def test_what_is_no_range_is_refused_with_its_value(bounds):
    with pytest.raises(InterpolationResolutionError, match=r"is not the range of a reward\. Set reward_range to"):
        resolve("${cfpo.half_range:${range}}", range=OmegaConf.create(f"v: {bounds}").v)


@pytest.mark.parametrize(("algo", "loss", "expected"), [("gspo", "gspo", "gspo"), ("grpo", "vanilla", "grpo_vanilla")])
def test_a_name_states_algorithm_and_loss(algo, loss, expected):
    assert resolve(f"${{cfpo.run_label:{algo},{loss}}}") == expected
