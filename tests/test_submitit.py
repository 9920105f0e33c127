"""hydra-submitit-launcher: the points of a sweep in jobs of their own, and what comes back from them."""

import re


def test_points_are_refused_in_jobs_of_their_own(run_cli, tmp_path):
    """No stack is needed: both points lack their data, and the second one's folder is its own."""
    result = run_cli("train", "experiment=cpu_quickstart", "seed=0,1", "hydra/launcher=submitit_local", "--multirun")
    assert result.returncode == 2, result.stderr
    assert "Error executing job with overrides: ['experiment=cpu_quickstart', 'seed=0']" in result.stderr
    assert "that run ended with exit status 2" in result.stderr
    assert "Traceback" not in result.stderr
    logs = [path.read_text() for path in tmp_path.glob("runs/multirun/.submitit/*/*_log.err")]
    assert len(logs) == 2
    for log in logs:
        assert "data/arithmetic/train.parquet: no such file" in log
        assert "Nothing was started." in log
    models = {re.search(r"models/quickstart_seed\d", log)[0] for log in logs}
    assert models == {"models/quickstart_seed0", "models/quickstart_seed1"}
