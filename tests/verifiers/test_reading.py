"""What a reply's answer is, where it stood, and that decoration changes no verdict."""

import time

import pytest

from drift.verifiers import math_worker
from drift.verifiers.choice import Choice
from drift.verifiers.exact import Exact
from drift.verifiers.expressions import expression
from drift.verifiers.numeric import Numeric
from drift.verifiers.reading import read

pytest.importorskip("math_verify")


@pytest.mark.parametrize(
    ("reply", "answer", "where"),
    [
        (r"\boxed{3} and <answer>4</answer>", "4", "tag"),
        ("<think><answer>3</answer></think> The answer is 31.", "31", "stated"),
        ("<answer>31</answer> as <answer>your answer</answer>", "31", "tag"),
        ("&lt;answer&gt;31&lt;/answer&gt;", "31", "tag"),
        ("<answer>31</answer><think>or <answer>3</answer>", "31", "tag"),
        (r"So \boxed{31} it is.", "31", "box"),
        (r"\boxed{3}, \boxed{4} and \boxed{6}", "3, 4, 6", "box"),
        ("5 * 6 + 1 = 31\n#### 31", "31", "hash"),
        ("**Answer:** 31\n\nIt could be checked.", "31", "stated"),
        ("The answer isn't 30. It is 31.", "31", "stated"),
        ("答案是 31。", "31", "stated"),
        ("Die Antwort lautet 31.", "31", "stated"),
        ("La respuesta no es 30, es 31.", "31", "stated"),
        (r"<answer>31<\answer>", "31", "tag"),
        ("<answer>30</answer> is wrong. The answer is 31.", "31", "stated"),
        ("答案不是30，是31。", "31", "stated"),
        ("31 is the final answer.", "31", "stated"),
        ("I think the answer is 31.", "31", "stated"),
        ("Then we can say that the answer is 31.", "31", "stated"),
        ("The student was wrong, the answer is 31.", "31", "stated"),
        ("The answer cannot be 30; it must be 31.", "31", "stated"),
        ("<answer>30</answer> or <answer>31</answer>", "30, 31", "tag"),
        ("<answer>31</answer>, <answer>31</answer>", "31", "tag"),
        ("<answer>30</answer>\n<answer>31</answer>", "31", "tag"),
        ("The answer is 30. Sorry, I meant 31.", "31", "stated"),
        (r"It is \boxed{31}, not \boxed{30}.", "31", "box"),
        (r"\boxed{3} \quad \text{and} \quad \boxed{4}", "3, 4", "box"),
        ("31", "31", "alone"),
        ("<answer>31</answer> <think>or <answer>3</answer></think>", "31", "tag"),
        ("So 31 chairs are needed. I hope this helps! Let me know if not.", "31 chairs are needed.", "concluded"),
        ("Each row has 5.\n\nTherefore, 31 chairs are needed.", "31 chairs are needed.", "concluded"),
        ("The answer, then, is 31.", "31", "stated"),
        ("<answer>31\n\nThat is all there is to it.", "31", "tag"),
        ("<answer>30 or so.\n\nThe final answer is 31.", "31", "stated"),
        ('It is 30 + 1.\n```json\n{"steps": [{"n": 30}], "answer": 31}\n```', "31", "stated"),
        ("| n | Answer |\n|---|---|\n| 1 | 30 |\n| 2 | **31** |", "31", "stated"),
    ],
)
def test_an_answer_is_read_from_the_first_place_that_holds_one(reply, answer, where):
    found = read(reply)
    assert (found.answer, found.where) == (answer, where)
    assert 0 < found.sure <= 1


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "<answer>...</answer>",
        "<think>The answer is 5",
        "The answer is",
        "It has 5 rows and",
        "The answer is 5?",
        "#### Step 1\nAdd them.",
        "The answer would be 5 if it rained.",
        "The answer is 5. Wait, that is wrong.",
        "<answer>5</answer> is wrong.",
        "The wrong answer is 5.",
        "I doubt that the answer is 5.",
        "It is false that the answer is 5.",
        "It isn't the case that the answer is 5.",
        "It would be wrong to say the answer is 5.",
        "Bob says the answer is 5.",
        "Some people think that the correct answer is 5.",
        "One might think the answer is 5.",
        "It is tempting to say the answer is 5.",
        "I thought the answer was 5.",
        "So Tom, who is 5,",
        '{"answer": null}',
        '{"answer": "',
        "| n | Answer |\n|---|---|\n| 1 | |",
    ],
)
def test_a_reply_without_an_answer_gives_none(reply):
    assert read(reply) is None


def test_strict_reads_tag_and_box_alone_and_the_last_number_is_read_only_if_asked_for():
    assert read("The answer is 31.", strict=True) is None
    assert read(r"\boxed{31}", strict=True).answer == "31"
    assert read("There were 30 and then 31 of them") is None
    assert read("There were 30 and then 31 of them", fallback="last_number").answer == "31"


DECORATED = (
    "**{}**", "`{}`", "{}.", "$ {} $", "The answer is {}.",
    "## {}", "<b>{}</b>", "Final answer: {}", r"\boxed{{{}}}.", "x = {}",
)  # fmt: skip


@pytest.mark.parametrize("form", DECORATED)
def test_decoration_changes_no_verdict_and_no_part_of_an_answer_is_paid(form):
    cases = [(r"3\sqrt{5}", "3"), (r"\frac{4}{7}", "4"), ("7,250", "250"), ("-6", "6"), (r"9\pi", "9")]
    for gold, part in cases:
        assert math_worker.check(form.format(gold), gold)["verdict"] == "right", gold
        assert math_worker.check(form.format(gold), part)["verdict"] == "wrong", gold


@pytest.mark.parametrize(
    ("reply", "gold", "other"),
    [
        ("4√3", r"4\sqrt{3}", "4"),
        ("5 × 10⁶", "5000000", "5"),
        ("y² − 4", "y^2-4", "4"),
        (r"2 \text{ and } 9", "2, 9", "9"),
        (r"\infty", r"\infty", r"-\infty"),
        (r"\frac{1}{170!}", r"\frac{1}{170!}", r"\frac{4}{170!}"),
        ("5^{600}", "5^{600}", "5^{601}"),
        ("10:45", "10:45", "11:45"),
        ("4:7", "4 to 7", "7:4"),
        ("2021_3", "2021_{3}", "2021_4"),
        ("8 kg", r"8\text{ kg}", r"8\text{ g}"),
        ("8 g/cm³", r"8 \text{ g/cm}^3", r"8 \text{ kg/cm}^3"),
        ("8 kg·m/s", r"8 \text{ kg m/s}", "8 N"),
        ("8 in", r"8 \text{ in}", "8 ft"),
        ("8 N·m²/kg²", r"8", "2"),
        ("9:16", r"\frac{9}{16}", "16"),
        ("£3.1m", "3100000", "3.1"),
        ("∜31", r"\sqrt[4]{31}", r"\sqrt{31}"),
        ("31 cents", "31", "$31"),
        ("7 ± √2", r"7 \pm \sqrt{2}", "7"),
        ("2½", "2.5", "2"),
        ("forty-two", "42", "2"),
        ("45%", r"45\%", r"4.5\%"),
        ("a parabola", r"\text{parabola}", r"\text{ellipse}"),
        ("(−∞, 5]", r"(-\infty, 5]", r"(-\infty, 5)"),
        ("31, because 5 times 6 is 30", "31", "30"),
        (r"$\\frac{2}{9}$", r"\frac{2}{9}", "2"),
        ("the square root of 6", r"\sqrt{6}", "6"),
        ("two and a half", "2.5", "2"),
        (r"0.\overline{4}", r"\frac{4}{9}", "0"),
        ("31 (not 30)", "31", "30"),
        ("一共有 31 个苹果", "31", "3"),
        ("5 o'clock", "5:00", "5:30"),
        ("x<1 or x>6", r"(-\infty,1)\cup(6,\infty)", r"(1,6)"),
        ("4 square meters", r"4\text{ m}^2", r"4\text{ m}"),
        (r"\begin{bmatrix} 1 & 2 \\ 3 & 5 \end{bmatrix}.", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", "5"),
        ("~~30~~ 31 ✓", "31", "30"),
        ("12 + 5 = 17, 17 + 14 = 31", "31", "17"),
        ("12 + 50 = 62, 62 / 2 = 31", "31", "62"),
        ("2x = 62, so x = 31", "31", "62"),
        ("2x = 62, x = 31", "31", "62"),
        ("log2(31)", r"\log_2 31", "31"),
        ("a:b = 3:1", "3:1", "1:3"),
        ("31, et non 30", "31", "30"),
    ],
)
def test_the_whole_value_counts_in_any_spelling(reply, gold, other):
    assert math_worker.check(reply, gold)["verdict"] == "right"
    assert math_worker.check(reply, other)["verdict"] == "wrong"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        (r"\boxed{\text{B. copper}}", "B"),
        ("D - lead", "D"),
        ("lead (D)", "D"),
        ("So C is the answer.", "C"),
        ("Solution: C", "C"),
        ("La correcta es la C.", "C"),
        ("正确的是 C。", "C"),
        ("不正确的是 C。", None),
        ("C is therefore correct.", "C"),
        ("The correct one is C.", "C"),
        ("The answer, then, is C.", "C"),
        ("So zinc is the answer.", "C"),
        ("The answer is zinc, a metal.", "C"),
        ("The answer is B. That is wrong.", None),
        ("The wrong answer is B.", None),
        ("Everything but B.", None),
        ("The answer is B?", None),
        ("答えは B ではない。", None),
        ("The answer is not tin but zinc.", "C"),
        ("La réponse n'est pas A, c'est C.", "C"),
        ("Also ist C richtig.", "C"),
        ("答えは A です。", "A"),
        ("➡ **B**", "B"),
        ("| Metal | Answer |\n|---|---|\n| red | **B** |", "B"),
        ("Therefore, A.", "A"),
        ("答案：B", "B"),
        ("Richtig ist Antwort C.", "C"),
        ("The answer is:\n\n**B. copper**", "B"),
        ("It isn't A; it is D.", "D"),
        ("<think>The answer is A.</think> The answer is B.", "B"),
        ("The answer is A. Wait, no, B.", "B"),
        ("It is a lead.", "D"),
        ("I wähle nichts; ich wähle B.", "B"),
        ("The answer is C, not B.", "C"),
        ("✓ B", "B"),
        ("B - it conducts.", "B"),
        ('{"answer": "B"}', "B"),
        ("Ответ: B", "B"),
        ("选B", "B"),
        ("A. tin\nB. copper\nC.", None),
        ("I don't think the answer is B.", None),
        ("The answer is anything but B.", None),
        ("The answer is A or C.", None),
    ],
)
def test_a_claimed_option_is_read_in_other_wordings(reply, letter):
    assert Choice().verify(reply, "B", options=("tin", "copper", "zinc", "lead")).answer == letter


def test_truth_is_read_from_its_decoration_or_a_sentence():
    assert Exact().verify("Yes, it is true.", "True").right
    assert Exact().verify(r"\text{True}", "True").right
    assert Exact().verify("The claim is not true.", "False").right
    assert not Exact().verify("The claim is not true.", "True").right
    assert Exact().verify("It's Paris.", "Paris").right and not Exact().verify("It's not Paris.", "Paris").right


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 20_000,
        "answer is " * 20_000,
        "\\boxed{" * 20_000,
        "(" * 20_000,
        "so " * 20_000,
        "the answer is " * 20_000,
        " is the answer 1" * 20_000,
        '{"answer": ' * 20_000,
        "<|im_end|>" * 20_000 + "5",
        "|a" * 20_000 + "\n|-" * 20_000,
    ],
)
def test_hostile_replies_are_read_at_once(text):
    start = time.process_time()
    read(text)
    expression(text[:3900])
    expression("9" * 3900)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "reply",
    ["31 or", "30\n31", "31, which is wrong", "31 divided by 3", "31 below zero", "31 if n is even, else 30",
     "31 cm by 30 cm", "31 is wrong", "anything but 31",
     "Die Antwort ist weniger als 31.", "答案小于 31。", "答えは 31 ではありません。", "La respuesta es menor que 31."],
)  # fmt: skip
def test_a_number_that_its_words_change_or_deny_is_not_paid(reply):
    assert math_worker.check(reply, "31")["verdict"] != "right"
    assert not Numeric().verify(reply, "31").right
