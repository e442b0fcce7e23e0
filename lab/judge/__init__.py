"""A large model reads what small ones wrote and grades it, as a teacher would.

    where = address()                       # from SANDBOX_JUDGE_URL, SANDBOX_JUDGE_MODEL, SANDBOX_JUDGE_KEY; or None
    estimate(["a", "b"], "evaluation_prompts.yaml", price_in=0.5, price_out=1.5)["sentence"]    # nothing is sent yet
    result = judge(["a", "b"], "evaluation_prompts.yaml", confirm=True)
    table(result);  result["differences"][0]["sentence"]

    python -m lab.judge NAME ... --prompts evaluation_prompts.yaml --estimate

Grammar, creativity, consistency and plot are graded from 1 to 10, and the writer's age is guessed (groups A to F), as
in the TinyStories paper (Eldan & Li 2023, arXiv 2305.07759), which asked GPT-4 for all of them at once. Here each call
asks one thing, so that one grade does not colour the next. The judge is never told which model wrote a story, or that a
model did, and calls come in shuffled order, so that a drift of the judge falls on all models alike.

The address is any that speaks OpenAI's chat completions: a provider's, or a server of one's own. Every reply is put
into a file of the project's cache at once, so that no answer is paid twice, also after a kill. The key is never
written anywhere.

A judge has tastes. Its grades compare models under one judge and one protocol; they are no measure of their own.

server.py holds the address and one call, questions.py what is asked, plan.py what is still to be asked and its price,
grading.py asks it, comparison.py lays models side by side, view.py shows the grades.
"""

from lab.judge.comparison import differences
from lab.judge.grading import judge, kept_grades
from lab.judge.plan import estimate
from lab.judge.questions import AGE, AGE_GROUPS, ASKED, CRITERIA, PROTOCOL, Call, question, read_reply
from lab.judge.server import Address, address, ask
from lab.judge.view import rows, table

__all__ = [
    "AGE", "AGE_GROUPS", "ASKED", "CRITERIA", "PROTOCOL", "Address", "Call", "address", "ask", "differences",
    "estimate", "judge", "kept_grades", "question", "read_reply", "rows", "table",
]  # fmt: skip
