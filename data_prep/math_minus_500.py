"""The test half of MATH without the problems of MATH-500, for training."""

from dataclasses import replace

from cfpo_verl.data_prep import hendrycks_math, math500
from cfpo_verl.data_prep.source import Source

SOURCE: Source = replace(hendrycks_math.SOURCE, name="math_minus_500", splits=("test",), excludes=math500.SOURCE)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
