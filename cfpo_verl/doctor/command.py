"""`cfpo-verl doctor`: compose a run's config, make all checks, show what they found."""

import os
import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cfpo_verl import config_groups, doctor
from cfpo_verl.doctor import report
from cfpo_verl.train import compose, explain

HELP = """\
usage: cfpo-verl doctor experiment=NAME [KEY=VALUE ...] [--ray] [--elsewhere] [--json]

Check a run without starting anything: versions, plugin, config, data, reward, model, this machine.
`cfpo-verl train` makes the same checks and refuses to start on a failure. docs/doctor.md explains each.

  experiment=NAME    one of: {experiments}
  KEY=VALUE          any key of verl's config, as for `cfpo-verl train`
  --ray              also ask every node of the running Ray cluster (RAY_ADDRESS, or the one started here)
  --elsewhere        the run takes place on other machines: say nothing about this one
  --json             print a list of objects with status, check, found and way_out

examples:
  cfpo-verl doctor experiment=cpu_quickstart
  cfpo-verl doctor experiment=cpu_quickstart trainer.n_gpus_per_node=2 --json
  RAY_ADDRESS=head:6379 cfpo-verl doctor experiment=cpu_quickstart --ray

exit status: 0 nothing failed (there may be warnings); 1 something failed; 2 bad arguments
"""
_OPTIONS = ("--ray", "--elsewhere", "--json")


def main(arguments: list[str]) -> int:
    """Run `cfpo-verl doctor` and return the exit status."""
    if {"-h", "--help"} & set(arguments) or not arguments:
        print(HELP.format(experiments=", ".join(config_groups.names("experiment"))), end="")
        return 0 if arguments else 2
    unknown = [argument for argument in arguments if argument.startswith("-") and argument not in _OPTIONS]
    if unknown:
        print(
            f"cfpo-verl doctor: there is no option {unknown[0]}. Choose among: {', '.join(_OPTIONS)}", file=sys.stderr
        )
        return 2
    overrides = [argument for argument in arguments if argument not in _OPTIONS]
    try:
        config = compose(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"cfpo-verl doctor: {explain(str(error), overrides)}", file=sys.stderr)
        return 2
    os.environ.update(doctor.worker_env(config))
    findings = doctor.examine(config, elsewhere="--elsewhere" in arguments, nodes="--ray" in arguments)
    if "--json" in arguments:
        print(report.to_json(findings))
    else:
        report.print_table(findings, sys.stdout)
    return 1 if doctor.failures(findings) else 0
