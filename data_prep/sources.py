"""All public data sets that can be prepared."""

from cfpo_verl.data_prep import (
    aime24,
    aime25,
    amc23,
    big_math,
    dapo_math_17k,
    deepscaler,
    gsm8k,
    hendrycks_math,
    math500,
    math_minus_500,
    minerva_math,
    numina_math_cot,
    olympiadbench,
    openr1_math_220k,
)

_MODULES = (
    gsm8k,
    hendrycks_math,
    math_minus_500,
    dapo_math_17k,
    openr1_math_220k,
    deepscaler,
    numina_math_cot,
    big_math,
    math500,
    aime24,
    aime25,
    amc23,
    minerva_math,
    olympiadbench,
)
SOURCES = {module.SOURCE.name: module.SOURCE for module in _MODULES}
