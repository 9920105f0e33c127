"""cfpo_verl.rewards.workers: processes killed at their deadline, and the effect on other jobs."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from cfpo_verl.rewards import workers as workers_module
from cfpo_verl.rewards.workers import LimitError, Limits, SymbolicWorkers

# Undecidable within any deadline of these tests: an expansion with millions of terms.
POISON = (r"(a+b+c+d+f+g)^{60}\sin x", r"(a+b+c+d+f+g)^{59}(a+b+c+d+f+g+x)\sin x")
RIGHT = (r"\frac{\cos x}{\sin x}", r"\cot x")
WRONG = (r"\frac{\sin x}{\cos x}", r"\cot x")


def submit(pool, pair):
    return pool.submit(*pair, 0.0, frozenset())


@pytest.fixture(scope="module")
def pool():
    made = SymbolicWorkers(Limits(workers=2, deadline_s=0.5, memory_gb=1.0))
    assert submit(made, RIGHT).result(60).is_equal
    yield made
    made.close()


def worker_pids(pool):
    return set(pool._pool._pool_manager.worker_manager.workers)


def test_decides(pool):
    assert submit(pool, RIGHT).result(60).is_equal is True
    assert submit(pool, WRONG).result(60).is_equal is False


def test_a_job_is_ended_when_its_processor_time_is_over_and_no_other_is_affected(pool):
    """Twelve poisoned jobs are queued first; waiting behind them does not count towards the deadline."""
    poisoned = [submit(pool, (f"{POISON[0]}+{number}", POISON[1])) for number in range(12)]
    right = [submit(pool, RIGHT) for _ in range(20)]
    wrong = [submit(pool, WRONG) for _ in range(20)]
    assert {future.result(120) for future in poisoned} == {workers_module.Decision(False, timed_out=True)}
    assert {future.result(60) for future in right} == {workers_module.Decision(True)}
    assert {future.result(60) for future in wrong} == {workers_module.Decision(False)}


def test_a_busy_machine_takes_no_time_from_a_job():
    """The job sleeps for six times its deadline, which is CPU time."""
    made = SymbolicWorkers(Limits(workers=1, deadline_s=0.3))
    try:
        assert submit(made, RIGHT).result(60).is_equal
        pool = made._pool
        assert pool.schedule(_run_and_sleep, (0.3, 1.8)).result(60) == "awake"
    finally:
        made.close()


def _run_and_sleep(deadline_s, sleep_s):
    signal.setitimer(signal.ITIMER_PROF, deadline_s)
    time.sleep(sleep_s)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return "awake"


def test_memory_is_bounded(pool):
    made = SymbolicWorkers(Limits(workers=1, deadline_s=20, memory_gb=0.6))
    try:
        assert submit(made, RIGHT).result(60).is_equal
        assert made._pool.schedule(_take_memory, (2**30,)).result(60) == "no memory"
        # A job that runs out of memory ends its worker; the next job gets another one.
        outcome = submit(made, POISON).result(120)
        assert outcome.is_equal is False
        assert submit(made, RIGHT).result(60).is_equal
    finally:
        made.close()


def _take_memory(size):
    try:
        return len(bytearray(size))
    except MemoryError:
        return "no memory"


def test_workers_that_are_killed_are_replaced(pool):
    before = worker_pids(pool)
    jobs = [submit(pool, (f"{POISON[0]}+{number}", POISON[1])) for number in range(4)]
    time.sleep(0.2)  # until they are busy
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert all(job.result(60).timed_out for job in jobs)
    assert submit(pool, RIGHT).result(60).is_equal
    assert not before & worker_pids(pool)


def test_a_job_whose_worker_somebody_else_killed_is_given_to_another():
    """As the system does when memory is short, which is not the fault of the answer."""
    made = SymbolicWorkers(Limits(workers=1, deadline_s=20))
    try:
        assert submit(made, RIGHT).result(60).is_equal
        slow = submit(made, (r"\frac{\cos(24x)}{\sin(24x)}", r"\cot(24x)"))
        [worker] = [psutil.Process(pid) for pid in worker_pids(made)]
        busy_from = worker.cpu_times().user
        while worker.cpu_times().user < busy_from + 0.1:
            assert not slow.done(), "too quick to be killed"
            time.sleep(0.01)
        worker.kill()
        assert slow.result(60).is_equal
    finally:
        made.close()


def test_a_forked_child_has_workers_of_its_own(run_python):
    code = r"""
import os
from cfpo_verl.rewards import compute_score
pair = (r"\boxed{\frac{\cos x}{\sin x}+1}", r"\cot x+1")
assert compute_score("math", *pair)["score"] == 1
child = os.fork()
if child == 0:
    pairs = [(rf"\boxed{{\frac{{\cos x}}{{\sin x}}+{n}}}", rf"\cot x+{n}") for n in range(2, 5)]
    print([compute_score("math", *pair)["score"] for pair in pairs], flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert compute_score("math", r"\boxed{\frac{\cos x}{\sin x}+9}", r"\cot x+9")["score"] == 1
print("parent", flush=True)
"""
    result = run_python(code)
    assert (result.returncode, result.stdout.split("\n")) == (0, ["[1.0, 1.0, 1.0]", "parent", ""]), result.stderr


def test_workers_find_the_same_package(tmp_path, run_python):
    """Python 3.11 does not pass sys.path to its fork server, which then would not find this copy of the package."""
    (tmp_path / "only_here.py").write_text("VALUE = 7\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from cfpo_verl.rewards.workers import Limits, SymbolicWorkers
made = SymbolicWorkers(Limits(workers=1))
print(made._running_pool().schedule(__import__, ("only_here",)).exception(60).__class__.__name__)
from multiprocessing import forkserver
import psutil
server = psutil.Process(forkserver._forkserver._forkserver_pid)
print({str(tmp_path)!r} in server.environ()["PYTHONPATH"].split(":"))
made.close()
"""
    result = run_python(code)
    # The module itself cannot be pickled, but it was found.
    assert result.stdout.split() == ["TypeError", "True"], result.stdout + result.stderr


def test_idle_workers_that_are_killed_are_replaced(pool):
    """pebble stops a pool whose idle workers die; the next job gets a new pool."""
    for _ in range(2):
        assert submit(pool, RIGHT).result(60).is_equal
        for pid in worker_pids(pool):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)
        assert [submit(pool, RIGHT).result(60).is_equal for _ in range(5)] == [True] * 5


def test_a_pool_that_stands_still_is_replaced(caplog):
    made = SymbolicWorkers(Limits(workers=1, deadline_s=0.5), stall_s=1.0)
    try:
        assert submit(made, RIGHT).result(60).is_equal
        # Simulates a worker killed while holding the lock on the channel.
        channel = made._pool._pool_manager.worker_manager.workers_channel
        assert channel.mutex.reader_mutex.acquire(timeout=10)
        assert submit(made, RIGHT).result(60).is_equal
        assert "no job was finished within 1 s" in caplog.text
    finally:
        made.close()


def test_what_a_comparison_raises_comes_back(pool):
    """An exception of a library is distinguished from a verdict."""
    decision = pool.submit(None, "x", 0.0, frozenset()).result(60)
    assert (decision.is_equal, decision.timed_out) == (False, False)
    assert decision.error.startswith("TypeError: ")


def test_many_threads_may_ask_at_once(pool):
    with ThreadPoolExecutor(32) as threads:
        outcomes = list(threads.map(lambda number: submit(pool, RIGHT if number % 2 else WRONG).result(60), range(200)))
    assert [outcome.is_equal for outcome in outcomes] == [bool(number % 2) for number in range(200)]


SCRIPT = r"""
import sys
from cfpo_verl.rewards import compute_score
print("run", flush=True)
# No __main__ guard: a worker that imported this file would start workers of its own.
print(compute_score("math", r"\boxed{\frac{\cos x}{\sin x}}", r"\cot x")["score"], flush=True)
if "wait" in sys.argv:
    import time
    from cfpo_verl.rewards import verifier
    [made] = verifier._verifiers.values()
    made.workers.submit(r"ANSWER", r"GOLD", 0.0, frozenset())
    time.sleep(1000 if "forever" in sys.argv else 0.3)
""".replace("ANSWER", POISON[0]).replace("GOLD", POISON[1])


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_without_a_guard_is_run_once(script):
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout.split()) == (0, ["run", "1.0"]), result.stderr


def test_an_interpreter_ends_with_jobs_pending(script):
    result = subprocess.run([sys.executable, script, "wait"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_no_process_is_left_when_the_parent_is_killed(script):
    """As Ray does with its workers."""
    process = subprocess.Popen([sys.executable, script, "wait", "forever"], stdout=subprocess.PIPE, text=True)
    try:
        assert [process.stdout.readline().strip() for _ in range(2)] == ["run", "1.0"]
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3  # the fork server, its resource tracker, workers
    finally:
        process.kill()
        process.wait()
    # The deadline ends the busy worker.
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_closing_ends_the_workers():
    made = SymbolicWorkers(Limits(workers=2))
    assert submit(made, RIGHT).result(60).is_equal
    processes = [psutil.Process(pid) for pid in worker_pids(made)]
    made.close()
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    # A later job starts new workers.
    assert submit(made, RIGHT).result(60).is_equal
    made.close()


@pytest.mark.parametrize("name", ["workers", "deadline_s", "memory_gb"])
@pytest.mark.parametrize("value", [0, -1, "x", None, True])
def test_limits_must_be_positive_numbers(name, value):
    with pytest.raises(LimitError, match=f"reward_kwargs.{name} must be a number greater than 0, got {value!r}"):
        Limits(**{name: value})


def test_the_watch_does_not_keep_the_interpreter(pool):
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("symbolic-workers"))
