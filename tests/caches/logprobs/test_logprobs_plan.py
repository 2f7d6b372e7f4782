"""The plan: every context is read once, what it goes on from is there, and nothing is fed twice without need."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from lmstash.caches.logprobs.plan import SHARED_TOKENS, plan


def name(tokens):
    return array("I", tokens).tobytes()


def tokens_of(data):
    out = array("I")
    out.frombytes(data)
    return tuple(out)


_LONG = st.lists(st.integers(0, 2), min_size=1, max_size=60).map(tuple)


@st.composite
def asked(draw):
    """Contexts that begin alike, and how far the KV of each is known: along some paths from the root."""
    trunks = draw(st.lists(_LONG, min_size=1, max_size=3))
    contexts = set()
    for _ in range(draw(st.integers(1, 12))):
        trunk = draw(st.sampled_from(trunks))
        contexts.add(trunk[: draw(st.integers(0, len(trunk)))] + tuple(draw(st.lists(st.integers(0, 2), max_size=5))))
    contexts = sorted(contexts - {()}) or [(0,)]
    known = set()
    for trunk in trunks:
        known |= {trunk[:length] for length in range(1, draw(st.integers(0, len(trunk))) + 1)}
    covered = []
    for context in contexts:
        length = 0
        while length < len(context) and context[: length + 1] in known:
            length += 1
        covered.append(length)
    return contexts, known, covered


@given(asked(), st.booleans())
def test_every_context_is_read_once_from_a_past_that_is_there(case, shares):
    contexts, known, covered = case
    there, read, fed = set(known), [], 0
    for level in plan([name(each) for each in contexts], covered, shares=shares):
        added = set()
        for feed in level:
            whole = tokens_of(feed.context)
            assert feed.n_past < len(whole)
            assert feed.n_past == 0 or whole[: feed.n_past] in there
            assert feed.reads == sorted(feed.reads)
            assert all(feed.n_past < length <= len(whole) for length in feed.reads)
            read += [whole[:length] for length in feed.reads]
            added |= {whole[:length] for length in range(1, len(whole) + 1)}
            fed += feed.n_tokens
        there |= added
    assert sorted(read) == contexts
    assert fed <= sum(len(each) - min(length, len(each) - 1) for each, length in zip(contexts, covered, strict=True))


@given(asked())
def test_without_sharing_or_looking_inside_each_is_fed_alone(case):
    contexts, _, _ = case
    levels = plan([name(each) for each in contexts], [0] * len(contexts), inside=False, shares=False)
    assert len(levels) == 1
    assert sorted(tokens_of(feed.context) for feed in levels[0]) == contexts
    assert all(feed.reads == [len(feed.context) // 4] and feed.n_past == 0 for feed in levels[0])


def test_a_shared_beginning_pays_from_so_many_tokens_on():
    def feeds(shared):
        contexts = [name([*range(shared), each]) for each in (97, 98)]
        return [[(feed.n_past, feed.n_tokens) for feed in level] for level in plan(contexts, [0, 0])]

    few, many = SHARED_TOKENS - 1, SHARED_TOKENS
    assert feeds(few) == [[(0, few + 1), (0, few + 1)]]
    assert feeds(many) == [[(0, many)], [(many, 1), (many, 1)]]


def test_a_beginning_of_others_is_read_off_their_pass():
    contexts = [name(range(length)) for length in (3, 5, 9)]
    (level,) = plan(contexts, [0, 0, 0])
    assert [(feed.n_tokens, feed.reads) for feed in level] == [(9, [3, 5, 9])]


def test_a_context_whose_kv_is_there_is_read_by_its_last_token():
    (level,) = plan([name(range(6))], [6])
    assert [(feed.n_past, feed.reads) for feed in level] == [(5, [6])]
