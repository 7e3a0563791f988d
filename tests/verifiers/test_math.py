import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import drift.verifiers.math as math_module
from drift.errors import ConfigError
from drift.verifiers import VERIFIERS, Verifier, make_verifier
from drift.verifiers.base import boxed
from drift.verifiers.math import Math, plain_decimal
from drift.verifiers.math_pool import WorkerPool

pytestmark = pytest.mark.skipif(find_spec("math_verify") is None, reason="needs math-verify")
HANGING = r"\boxed{9^{9^{9^{9^{9}}}}}"
SPELLINGS = (
    "${0:,}",
    "{0}.00",
    r"\boxed{{{0}}}",
    r"\frac{{{1}}}{{2}}",
    r"so $\boxed{{{0:,}}}$.",
    "It is {0:,} in all.",
)


@pytest.fixture(scope="module")
def math():
    verifier = Math(workers=1, deadline=10)
    yield verifier
    verifier.close()


@pytest.fixture
def pool(quick_starts):
    made = WorkerPool(1, 1.0, 2048)
    yield made
    made.close()


def alive(pid):
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid):
    end = time.monotonic() + 30
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize(
    ("reply", "gold", "answer"),
    [
        ("1000", "1,000", "1000"),
        (r"\frac{2000}{2}", "1000", "1000"),
        ("1{,}000", "1000", "1000"),
        ("1 000", "1000", "1000"),
        ("1 1/2", r"\frac{3}{2}", "1.5"),
        ("0.333333", r"\frac13", "0.333333"),
        ("2e-3", r"\frac{2}{1000}", "0.002"),
        ("2^10", "1024", "1024"),
        ("x^10", "x^{10}", "x**10"),
        ("$x=5$", "5", "5"),
        ("(x+1)^2", "x^2+2x+1", "(x + 1)**2"),
        (r"\{2, 1\}", r"\{1, 2\}", "{1, 2}"),
        ("sqrt(8)", r"2\sqrt{2}", "2*sqrt(2)"),
        ("50%", "50", "0.5"),
        ("\u22123", "-3", "-3"),
        ("Friday", r"\text{Friday}", "friday"),
        (r"First \boxed{1}, no: \boxed{\frac{1}{2}}", "0.5", "0.5"),
        (r"\boxed{7} and \boxed{8", "7", "7"),  # a box cut off is none
        ("The answer is 42.", "42", "42"),
        ("0.1+0.2", "0.3", "0.3"),
        (r"\sin^2 x + \cos^2 x", "1", "sin(x)**2 + cos(x)**2"),
        (
            "\\begin{pmatrix}1 & 2\\\\\n3 & 4\\end{pmatrix}",
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            "Matrix([[1, 2], [3, 4]])",
        ),
        ("x=1 or x=2", r"\{1, 2\}", "{1, 2}"),
        # The = of a sum's index is no equation.
        (r"\sum_{k=1}^{4} k", "10", "10"),
        (r"$S = \prod_{j=1}^{3} j = 6$", "6", "6"),
        (r"$G_n = \sum_{i=0}^{n} a_i G_{n-i}$", r"$G_n = \sum_{i=0}^{n} G_{n-i} a_i$", "a_i*g_{n-i}*(n + 1)"),
        (r"\frac{2}{\sqrt5}", r"\frac{NO}{OF} = \frac{2}{\sqrt{5}}", "2*sqrt(5)/5"),
        ("a + b = 7", "7", "Eq(a + b, 7)"),
        (r"\frac23 - \frac13 i", r"\frac23-\frac13i", "2/3 - I/3"),
        ("x = 1, y = 2", "(1,2)", "Interval.open(1, 2)"),
        ("y = 2 and x = 1", "(1,2)", "Interval.open(1, 2)"),
        ("x = 1, y = 2", "1,2", "{1, 2}"),
        ("(3,000)", "3000", "3000"),
        ("Rs. 500", "500", "500"),
        ("10C3", "120", "120"),
        (r"\frac{1,000}{3}", r"\frac{1000}{3}", "1000/3"),
        ("Ans. 18", "18", "18"),
        ("_x_ = 5", "5", "5"),
        ("no solutions", r"\text{no solution}", "no solution"),
    ],
)
def test_equal_answers_are_right(math, reply, gold, answer):
    outcome = math.verify(reply, gold)
    assert (outcome.verdict, outcome.answer) == ("right", answer)


@pytest.mark.parametrize(
    ("reply", "gold"),
    [
        ("-3", "3"),
        ("x = 2, y = 1", "(1,2)"),
        ("x = xy = 3x-2", "y=3x-2"),
        ("(3,100)", "3100"),
        ("a^2 + b^2 = 7", "7"),
        ("3 x/y", "3"),
        ("1 8", "18"),
        ("2x + 3y = 7", "7"),
        ("10C3", "30"),
        ("1/2", "1/3"),
        ("2e-3", "2"),
        ("1,000", "1"),
        ("1 000", "0"),  # not a product
        ("0.0000001", "0"),  # nor rounded to nothing
        (r"\frac{1}{10^{8}}", "0.000000011"),
        ("0.5%", "0.5"),
        ("x+1", "x-1"),
        ("(1, 2)", "[1, 2]"),
        (r"\boxed{3} or so, 5", "5"),
        (r"\sum_{k=1}^{4} k", "k = 1"),
    ],
)
def test_different_answers_are_wrong(math, reply, gold):
    outcome = math.verify(reply, gold)
    assert outcome.verdict == "wrong"
    assert outcome.answer


@pytest.mark.parametrize("reply", ["", "no idea", r"\boxed{}", "x" * 100_001, "\ud800 \x00"])
def test_a_reply_without_an_answer_is_unparseable_and_not_wrong(math, reply):
    outcome = math.verify(reply, "5")
    assert (outcome.verdict, outcome.answer) == ("unparseable", None)
    assert outcome.reason


@pytest.mark.parametrize("gold", ["", "no idea at all"])
def test_a_gold_that_cannot_be_read_is_refused(math, gold):
    with pytest.raises(ConfigError, match="gold: got"):
        math.verify("x+1", gold)


def test_records_in_the_schema_of_gsm8k_are_right_in_every_spelling_and_wrong_beside(math):
    golds = [record.rsplit("#### ", 1)[1] for record in ("2+3=5\n#### 5", "#### 2,125", "#### -12", "#### 1,450,000")]
    for gold in golds:
        value = int(gold.replace(",", ""))
        for spelling in SPELLINGS:
            assert math.verify(spelling.format(value, 2 * value), gold).verdict == "right"
            for wrong in (value + 1, value - 1, -value, value * 10):
                assert math.verify(spelling.format(wrong, 2 * wrong), gold).verdict == "wrong"


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.decimals(-(10**6), 10**6, places=3),
    st.sampled_from(["0", "1", "-1", "0.001", "0.5"]),
    st.sampled_from(["{}", "{:,}", r"\boxed{{{}}}", "${:,}$", "${}"]),
)
def test_what_is_decided_without_a_worker_is_what_the_worker_decides(math, value, offset, form):
    reply, gold = form.format(value), f"{value + type(value)(offset)}"
    known = Math._without_worker(reply, gold)
    outcome = math.pool.run(reply, gold)
    assert known is not None
    assert (known.verdict, known.answer) == (outcome["verdict"], outcome["answer"])
    assert known.right == (Fraction(offset) == 0)


@pytest.mark.parametrize(
    "text", ["", "--3", "-$-3", "1,00", "0,123", "1/2", "3%", "3 cm", "x", "1e3", "9" * 300, "\u0663"]
)
def test_only_decimals_in_digits_are_decided_without_a_worker(text):
    assert plain_decimal(text) is None


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed{\frac{1}{2}} x", r"\frac{1}{2}"),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{\boxed{3}}", r"\boxed{3}"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"} \boxed {4}", "4"),
        (r"{1}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_is_read(text, inner):
    assert boxed(text) == inner


@pytest.mark.parametrize("text", ["\\boxed{" * 10**5, "}" * 10**6, "{" * 10**6, "\\boxed" + " " * 10**6])
def test_boxes_are_found_in_linear_time(text):
    start = time.process_time()
    assert boxed(text) is None
    assert time.process_time() - start < 2


def test_a_check_that_hangs_ends_at_its_deadline_and_the_pool_goes_on(pool):
    assert pool.run(r"\frac{2}{2}", "1")["verdict"] == "right"
    (first,) = pool.pids()
    start = time.perf_counter()
    assert pool.run(HANGING, "5") == {"verdict": "unparseable", "reason": "deadline"}
    assert time.perf_counter() - start >= 1
    assert not alive(first)
    assert pool.run(r"\frac{4}{2}", "2")["verdict"] == "right"
    assert pool.pids() != [first]


@pytest.mark.usefixtures("quick_starts")
def test_only_the_check_that_hangs_is_lost_among_many_in_flight():
    verifier = Math(workers=2, deadline=1.5)

    async def run():
        pairs = [(rf"\frac{{{2 * n}}}{{2}}", f"{n}") for n in range(40)]
        return await asyncio.gather(*(verifier.verify_async(*p) for p in [*pairs[:20], (HANGING, "5"), *pairs[20:]]))

    try:
        verdicts = [outcome.verdict for outcome in asyncio.run(run())]
        # Another event loop in the same process uses the same workers.
        again = asyncio.run(verifier.verify_async(r"\frac{4}{2}", "2"))
    finally:
        verifier.close()
    assert verdicts == ["right"] * 20 + ["unparseable"] + ["right"] * 20
    assert again.right


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_outcome(pool):
    pool.run("1", "1")
    (pid,) = pool.pids()
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    # The check is begun again in another worker, where it hangs.
    assert pool.run(HANGING, "5") == {"verdict": "unparseable", "reason": "deadline"}
    pool.run("1", "1")
    os.kill(pool.pids()[0], signal.SIGKILL)
    assert pool.run("2", "2")["verdict"] == "right"


def test_a_check_that_ends_worker_after_worker_is_the_cause(pool):
    def kill_each():
        seen = set()
        while len(seen) < 3:
            for pid in pool.pids():
                if pid not in seen:
                    seen.add(pid)
                    # It is listed once it has started; its check hangs.
                    time.sleep(0.2)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    pool.run("1", "1")
    killer = threading.Thread(target=kill_each)
    killer.start()
    assert pool.run(HANGING, "5") == {"verdict": "unparseable", "reason": "crash"}
    killer.join()


def test_a_worker_that_is_stopped_is_not_taken_for_a_check_that_hangs(pool):
    pool.run("1", "1")
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGSTOP)
    assert pool.run(r"\frac{4}{2}", "2")["verdict"] == "right"
    assert not alive(pid)


@pytest.mark.slow
def test_memory_is_bounded():
    verifier = Math(workers=1, deadline=8, memory_mb=600)
    try:
        assert not verifier.verify(r"\boxed{" + "10^{" * 2 + "10" + "}" * 2 + "!}", "5").right
        assert verifier.verify(r"\frac{2}{2}", "1").right
    finally:
        verifier.close()


def test_closing_ends_the_workers_and_a_later_check_starts_new_ones(pool):
    pool.run("1", "1")
    (pid,) = pool.pids()
    pool.close()
    assert not alive(pid)
    assert pool.pids() == []
    assert pool.run("1", "1")["verdict"] == "right"


def run_script(body):
    """A process of its own that prints its worker's id when it is ready; __main__ is unguarded on purpose."""
    script = (
        "import os, signal, sys, threading, time\n"
        "from drift.verifiers.math_pool import WorkerPool\n"
        f"HANGING = {HANGING!r}\n"
        "pool = WorkerPool(1, 1.0, 2048)\n"
        "pool.run('1', '1')\n"
        "print(pool.pids()[0], flush=True)\n"
    ) + body
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "body",
    ["time.sleep(60)\n", "print('.', flush=True)\npool.run(HANGING, '5')\ntime.sleep(60)\n"],
    ids=["idle", "in a computation that never returns to the interpreter"],
)
def test_a_worker_ends_when_its_parent_is_killed(body):
    process, pid = run_script(body)
    time.sleep(0.3)
    assert alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    assert ends(pid)


@pytest.mark.usefixtures("quick_starts")
def test_a_worker_ends_with_a_script_that_ends_in_the_ordinary_way():
    process, pid = run_script("")
    assert process.wait(timeout=20) == 0
    process.stdout.close()
    assert ends(pid)


@pytest.mark.usefixtures("quick_starts")
def test_the_pool_survives_ctrl_c():
    process, pid = run_script(
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    pool.run(HANGING, '5')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "print(pool.run(r'\\frac{4}{2}', '2')['verdict'], len(pool.pids()), flush=True)\n"
    )
    assert process.wait(timeout=30) == 0
    assert process.stdout.read().split() == ["interrupted", "right", "1"]
    process.stdout.close()
    assert ends(pid)


@pytest.mark.usefixtures("quick_starts")
def test_a_forked_child_has_workers_of_its_own():
    process, pid = run_script(
        "child = os.fork()\n"
        "if not child:\n"
        "    said = pool.run(r'\\frac{4}{2}', '2')['verdict']\n"
        "    print(said, pool.pids()[0], flush=True)\n"
        "    pool.close()\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(pool.run(r'\\frac{4}{2}', '2')['verdict'], pool.pids()[0], flush=True)\n"
    )
    assert process.wait(timeout=30) == 0
    child, own = (line.split() for line in process.stdout.read().splitlines())
    process.stdout.close()
    assert child[0] == own[0] == "right"
    assert int(own[1]) == pid != int(child[1])


@pytest.mark.usefixtures("quick_starts")
def test_a_worker_compiles_no_code_out_of_what_it_reads():
    # Python itself reports every compilation, which eval and exec of text need.
    script = (
        "import sys\n"
        "from drift.verifiers import math_worker as worker\n"
        "assert worker._prepare() == {'verdict': 'ready'}\n"
        "pairs = [('so 2**3 + 1/2 holds', '8.5'), ('1/3 + 1', r'\\frac43'), ('we get 2^10', '1024'),\n"
        "         ('__import__(\"os\").getpid()', '3'), ('x^2', '$x^2$'), ('f(x)', 'f(x)'), ('(1+1)*2 it is', '4')]\n"
        "seen = []\n"
        "first = [worker.check(*pair) for pair in pairs]\n"
        "sys.addaudithook(lambda event, args: seen.append(args) if event in ('compile', 'exec') else None)\n"
        "worker._gold.cache_clear(), worker._parsed.cache_clear()\n"
        "assert [worker.check(*pair) for pair in pairs] == first\n"
        "print(len(seen), [outcome['verdict'] for outcome in first].count('right'))\n"
        "compile('1', '', 'eval')\n"
        "print(len(seen))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "6", "1"]


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    # The worker gets this path, on which math_verify can't be imported.
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named math_verify')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    verifier = Math(workers=1, deadline=3.5)
    try:
        with pytest.raises(ConfigError, match=r"pip install 'drift-rl\[math\]'"):
            verifier.verify("x+1", "x")
        # Plain numbers need no package.
        assert verifier.verify("$1,000", "1000").right
    finally:
        verifier.close()


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"deadline": 0}, {"memory_mb": 1}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"verifier.settings.{next(iter(wrong))}"):
        Math(**wrong)


def test_every_verifier_is_made_by_name_and_keeps_the_protocol():
    assert VERIFIERS.names() == ["choice", "exact", "judge", "math", "numeric"]
    for name, reply in (("choice", "B"), ("exact", "b"), ("math", "2"), ("numeric", "2")):
        verifier = make_verifier(name)
        assert isinstance(verifier, Verifier)
        for outcome in (verifier.verify(reply, reply), asyncio.run(verifier.verify_async(reply, reply))):
            assert (outcome.verdict, outcome.right, outcome.reason) == ("right", True, "")
        assert verifier.verify("", reply).verdict == "unparseable"


def test_mistakes_in_name_or_settings_offer_the_nearest_known_one():
    with pytest.raises(ConfigError, match="Did you mean 'numeric'"):
        make_verifier("numerc")
    with pytest.raises(ConfigError, match="Did you mean 'relative'"):
        make_verifier("numeric", {"relativ": 0.1})


def test_a_missing_library_is_told_before_anything_is_checked(monkeypatch):
    monkeypatch.setattr(math_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'drift-rl\[math\]'"):
        Math()
