"""What a model writes: several completions of each of many prompts, measured without a judge.

    results = stories_of(["a", "b"], "evaluation_prompts.yaml")    # saved models with their seeds, or "storyworld"
    table(results);  plot_stories(results);  samples(results)
    evaluate_stories(model, tok, prompts, training_text=documents)  # any model

    python -m lab.stories NAME ... --prompts evaluation_prompts.yaml --save

What is measured, each as a mean over prompts with its 95 % interval (prompts drawn anew, bootstrap):

    distinct_1 .. distinct_4   how varied the words of all completions of a prompt are: `distinct`
    repetition                 share of 4-word runs that stood in the same text before: `repetition`
    ends                       share of texts that end by themselves, and with a whole sentence: `ends_properly`
    words                      words in a text
    overlap_words, overlap_characters    longest piece that stands in the training text, too: `longest_overlaps`

None of these says whether a story is good (lab/judge/ asks for that); each shows one way to be bad. Beside them stand
the same figures for real stories that no model saw, given their own beginnings: nobody should be far from these.

The TinyStories paper (Eldan & Li 2023, arXiv 2305.07759) published 44 prompts, of each of which it draws 10 completions
at temperature 1. "storyworld", which needs no file, takes as many openings of the built-in stories.

prompts.py reads the beginnings, writing.py has a model go on from them, measures.py and overlaps.py say what a text is
like, evaluation.py puts this together for one model, saved.py keeps it for saved ones, view.py shows it.
"""

from lab.stories.evaluation import evaluate_stories, real_continuations
from lab.stories.measures import METRICS, distinct, ends_properly, measure, repetition
from lab.stories.overlaps import longest_overlaps, longest_shared
from lab.stories.prompts import read_prompts
from lab.stories.saved import PROTOCOL, completions_of, kept_stories, stories_of
from lab.stories.view import notes, plot_stories, references, rows, samples, table
from lab.stories.words import END, words_of
from lab.stories.writing import Decoding, write_stories

__all__ = [
    "END", "METRICS", "PROTOCOL", "Decoding", "completions_of", "distinct", "ends_properly", "evaluate_stories",
    "kept_stories", "longest_overlaps", "longest_shared", "measure", "notes", "plot_stories", "read_prompts",
    "real_continuations", "references", "repetition", "rows", "samples", "stories_of", "table", "words_of",
    "write_stories",
]  # fmt: skip
