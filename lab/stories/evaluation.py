"""The stories of one model measured, and beside them real ones, given their own beginnings."""

from collections.abc import Iterable, Sequence

from lab.stories.measures import measure
from lab.stories.overlaps import longest_overlaps
from lab.stories.words import end_of_word, words_of
from lab.stories.writing import Decoding, with_breaks, write_stories


def evaluate_stories(
    model,
    tok,
    prompts: Sequence[str],
    *,
    decoding: Decoding | None = None,
    training_text: Iterable[str] | None = None,
    real: Sequence[str] | None = None,
    stories: Sequence[dict] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict:
    """What the model writes, measured as lab/stories/__init__.py says.

    training_text: the documents it was trained on; None leaves the overlaps None.
    real: whole stories that it was not trained on, for the reference; None: without one.
    stories: completions that `write_stories` yielded before; None writes them.
    Returns {"prompts", "texts", "over_context", "metrics", "reference", "stories"}. over_context: how many texts were
    longer, with their prompt, than the model's context, so that their end was written without seeing their beginning.
    reference: {"texts", "metrics"} of `real_continuations`.
    Raises: as `write_stories`.
    """
    for name, texts in (("prompts", prompts), ("training_text", training_text), ("real", real)):
        if isinstance(texts, str):
            raise TypeError(f"{name}='...' is a single str; give a list of documents: [text]")
    decoding = decoding or Decoding()
    if stories is None:
        stories = list(write_stories(model, tok, prompts, decoding, batch_size=batch_size, progress=progress))
    groups: list[list[dict]] = [[] for _ in prompts]
    for story in sorted(stories, key=lambda story: story["number"]):
        groups[story["prompt"]].append(story)
    reference = real_continuations(real, prompts, tok, decoding) if real else []
    texts = [story["text"] for group in [*groups, *reference] for story in group]
    overlaps = longest_overlaps(texts, training_text) if training_text is not None else None
    own, others = (overlaps[: len(stories)], overlaps[len(stories) :]) if overlaps is not None else (None, None)
    wholes = [with_breaks(prompts[story["prompt"]], decoding) + story["text"] for story in stories]
    return {
        "prompts": len(prompts),
        "texts": len(stories),
        "over_context": sum(len(ids) > model.cfg.max_seq_len for ids in tok.encode_batch(wholes)),
        "metrics": measure(groups, own),
        "reference": {"texts": sum(map(len, reference)), "metrics": measure(reference, others)} if reference else None,
        "stories": [story for group in groups for story in group],
    }


def real_continuations(real: Sequence[str], prompts: Sequence[str], tok, decoding: Decoding) -> list[list[dict]]:
    """Real stories as if they had been written: what follows their beginnings, cut where a model's text would be.

    A beginning has as many words as half of the prompts have at most. As many stories make a group as a prompt has
    completions, but they are different stories: their distinct-n is what texts reach that have nothing in common.
    Fewer groups than prompts if there are few stories; [] if they don't make two.
    """
    beginning = sorted(len(words_of(prompt)) for prompt in prompts)[(len(prompts) - 1) // 2]
    rests = [story.strip()[end_of_word(story.strip(), beginning) :] for story in real]
    rests = [rest for rest in rests if words_of(rest)][: len(prompts) * decoding.completions]
    stories = []
    for i, ids in enumerate(tok.encode_batch(rests, bos=False)):
        ended = len(ids) < decoding.max_new_tokens  # one of a model's tokens goes to EOS
        text = rests[i] if ended else tok.decode(ids[: decoding.max_new_tokens])
        stories.append({"prompt": i // decoding.completions, "number": 0, "text": text, "ended": ended})
    count = len(stories) // decoding.completions
    groups = [stories[i * decoding.completions : (i + 1) * decoding.completions] for i in range(count)]
    return groups if count >= 2 else []
