"""A user's own extractor in the model's place."""

import pytest
import torch

from lmstash.caches.activations import Activations, ExtractionError, running
from lmstash.errors import InvalidArgumentError, MismatchError, NotFoundError
from lmstash.store.memory import MemoryStore

PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]


class Counting:
    """Layer l of token t is [t, l, place]; answers lists, or one padded tensor."""

    fingerprint = "counting/revision-1"
    name = "counting"
    n_layers = 3
    padded = False

    def __init__(self, **attributes) -> None:
        self.asked = []
        self.__dict__.update(attributes)

    def values(self, ids, layer):
        return torch.tensor([[float(token), float(layer), float(place)] for place, token in enumerate(ids)])

    def extract(self, batch, layers, site):
        self.asked.append((batch, layers, site))
        out = []
        for layer in layers:
            values = [self.values(ids, layer) for ids in batch]
            if self.padded:
                values = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=float("nan"))
            out.append(values)
        return out


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pool", ["last", "mean", "max", 0, None])
def test_an_extractor_is_called_for_what_is_not_kept(padded, pool):
    store = MemoryStore()
    extractor = Counting(padded=padded)
    acts = Activations(store, extractor=extractor)
    cold = acts(PROMPTS, [0, -1], pool, site="mlp_out")
    assert extractor.asked[0][1:] == ([0, 2], "mlp_out")
    asked = len(extractor.asked)
    warm = Activations(store, extractor=extractor)(PROMPTS, [0, 2], pool, site="mlp_out")
    assert len(extractor.asked) == asked
    for row, ids in enumerate(PROMPTS):
        raw = torch.stack([extractor.values(ids, layer) for layer in (0, 2)])
        expected = {"last": raw[:, -1], "mean": raw.mean(1), "max": raw.amax(1), 0: raw[:, 0], None: raw}[pool]
        assert torch.equal(cold[row], expected)
        assert torch.equal(warm[row], expected)


def test_the_fingerprint_is_the_whole_identity():
    store = MemoryStore()
    Activations(store, extractor=Counting())(PROMPTS, 0)
    others = [(Counting(fingerprint="counting/revision-2"), None), (Counting(fingerprint=b"counting/revision-1"), None)]
    for extractor, variant in [*others, (Counting(), "patched")]:
        with pytest.raises(NotFoundError):
            Activations(store, extractor=extractor, variant=variant)(PROMPTS, 0, on_miss="error")
    Activations(store, extractor=Counting())(PROMPTS, 0, on_miss="error")


class Revised(Counting):
    """Its values, and its fingerprint, follow `revision`."""

    revision = 1

    @property
    def fingerprint(self):
        return f"revised/{self.revision}"

    def values(self, ids, layer):
        return torch.full((len(ids), 2), float(self.revision))


@pytest.mark.parametrize("pool", ["last", None])
def test_the_fingerprint_is_read_at_each_call(pool):
    store = MemoryStore()
    extractor = Revised()
    acts = Activations(store, extractor=extractor)
    before = acts.fingerprint

    def values(acts, prompts):
        return [float(each.max()) for each in acts(prompts, 0, pool)]

    assert values(acts, PROMPTS[:2]) == [1.0, 1.0]
    extractor.revision = 2
    assert values(acts, PROMPTS[:3]) == [2.0, 2.0, 2.0]
    assert acts.fingerprint != before
    extractor.revision = 1
    assert values(acts, PROMPTS[:3]) == [1.0, 1.0, 1.0]
    assert len(acts.missing(PROMPTS, 0, pool)) == 1
    assert values(Activations(store, extractor=Revised(revision=2)), PROMPTS[:3]) == [2.0, 2.0, 2.0]


def test_what_an_extractor_that_changed_meanwhile_computed_is_not_kept():
    class Changing(Revised):
        def extract(self, batch, layers, site):
            answer = super().extract(batch, layers, site)
            self.revision = 2
            return answer

    store = MemoryStore()
    acts = Activations(store, extractor=Changing())
    assert acts(PROMPTS, 0).flatten().tolist() == [1.0] * 8
    assert (store.info().entries, store.events.stats.drops["model_changed"]) == (0, 4)
    with pytest.raises(MismatchError, match="changed"):
        Activations(MemoryStore(strict=True), extractor=Changing())(PROMPTS, 0)


def test_an_extractor_that_cannot_say_who_it_is_any_more_breaks_no_call():
    class Forgetful(Counting):
        reads = 0

        @property
        def fingerprint(self):
            self.reads += 1
            if self.reads > 4:
                raise ConnectionError("gateway timeout")
            return "forgetful"

    store = MemoryStore()
    extractor = Forgetful()
    acts = Activations(store, extractor=extractor)
    extractor.reads = 3  # once more for the call, then never again
    assert acts(PROMPTS, 0).shape == (4, 1, 3)
    assert (store.info().entries, store.events.stats.drops["model_changed"]) == (0, 4)


def test_raw_values_are_kept_by_prefix_only_on_its_word():
    long = list(range(1, 131))
    for causal, entries in ((False, 2), (True, 4)):
        store = MemoryStore()
        acts = Activations(store, extractor=Counting(causal=causal))
        acts([long, [*long[:128], 7]], [1], None)
        assert store.info().entries == entries


@pytest.fixture
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(running.time, "sleep", waits.append)
    return waits


class Flaky(Counting):
    """Fails the first `failures` calls that hold a poisoned prompt."""

    def extract(self, batch, layers, site):
        if self.failures and any(ids == self.poison for ids in batch):
            self.failures -= 1
            raise ConnectionError("gateway timeout")
        return super().extract(batch, layers, site)


def test_a_failed_batch_is_tried_again_with_growing_waits(no_waiting):
    extractor = Flaky(failures=3, poison=[4])
    result = Activations(MemoryStore(), extractor=extractor)(PROMPTS, 0, batch_size=1)
    assert result[:, 0, 0].tolist() == [3.0, 4.0, 6.0, 10.0]
    assert [round(wait / 2.0**power) for power, wait in enumerate(no_waiting, 1)] == [1, 1, 1]
    assert no_waiting[0] >= 2.0


def test_a_batch_that_fails_for_good_leaves_the_others_saved_and_is_named(no_waiting):
    store = MemoryStore()
    extractor = Flaky(failures=100, poison=[4])
    acts = Activations(store, extractor=extractor)
    with pytest.raises(ExtractionError, match=r"1 of 4 prompts could not be computed: prompts 1 \(ConnectionError"):
        acts(PROMPTS, [0, 1], batch_size=1, max_retries=1)
    assert len(no_waiting) == 1
    assert acts.missing(PROMPTS, [0, 1]) == [[4]]
    extractor.failures = 0
    assert acts(PROMPTS, [0, 1]).shape == (4, 2, 3)


def test_the_extractor_may_say_how_often_and_how_soon(no_waiting):
    extractor = Flaky(failures=100, poison=[4], max_retries=2, retry_seconds=0.5)
    with pytest.raises(ExtractionError):
        Activations(MemoryStore(), extractor=extractor)(PROMPTS, 0)
    assert len(no_waiting) == 2
    assert 0.5 <= no_waiting[0] <= 0.625


@pytest.mark.parametrize("answer", [lambda: 1 / 0, lambda: None, lambda: torch.nothing])
def test_a_mistake_in_an_extractor_is_raised_as_it_is_and_not_tried_again(no_waiting, answer):
    extractor = Counting()
    extractor.extract = lambda batch, layers, site: answer()
    with pytest.raises((ZeroDivisionError, TypeError, AttributeError)):
        Activations(MemoryStore(), extractor=extractor)(PROMPTS, 0, batch_size=1)
    assert not no_waiting


def test_one_that_has_computed_before_is_asked_again_whatever_it_raises(no_waiting):
    """As one does that takes a remote's `None` for an answer."""
    extractor, fails = Counting(), [TypeError(), None]
    compute = extractor.extract

    def extract(batch, layers, site):
        if len(extractor.asked) and (error := fails.pop(0) if fails else None):
            raise error
        return compute(batch, layers, site)

    extractor.extract = extract
    assert Activations(MemoryStore(), extractor=extractor)(PROMPTS, 0, batch_size=1).shape[0] == 4
    assert len(no_waiting) == 1


def test_a_tokenizer_by_its_name_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"tokenizer='gpt2': pass what AutoTokenizer"):
        Activations(MemoryStore(), None, "gpt2", extractor=Counting())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda batch, layers: [], "0 layers for 1"),
        (lambda batch, layers: [[]], "0 prompts for 4"),
        (lambda batch, layers: [[torch.zeros(9, 3)] * 4], "shape"),
        (lambda batch, layers: [torch.zeros(4, 2, 3)], "shape"),
        (lambda batch, layers: [[torch.zeros(len(ids)) for ids in batch]], "shape"),
    ],
)
def test_an_answer_of_another_shape_is_refused_and_not_kept(answer, message):
    store = MemoryStore()
    extractor = Counting()
    extractor.extract = lambda batch, layers, site: answer(batch, layers)
    with pytest.raises(MismatchError, match=message):
        Activations(store, extractor=extractor)(PROMPTS, 0, batch_size=4)
    assert store.info().entries == 0


def test_layers_need_no_number_of_layers_unless_they_count_from_the_end():
    extractor = Counting(n_layers=None)
    acts = Activations(MemoryStore(), extractor=extractor)
    assert acts(PROMPTS, [5, 2])[:, :, 1].tolist() == [[5.0, 2.0]] * 4
    for layers in (-1, "all"):
        with pytest.raises(InvalidArgumentError, match="n_layers"):
            acts(PROMPTS, layers)


@pytest.mark.parametrize("extractor", [object(), Counting(fingerprint=""), Counting(fingerprint=5)])
def test_what_is_no_extractor_is_refused(extractor):
    with pytest.raises(InvalidArgumentError, match="fingerprint"):
        Activations(MemoryStore(), extractor=extractor)


def test_an_unusable_kept_width_never_breaks_a_call():
    store = MemoryStore()
    acts = Activations(store, extractor=Counting())
    acts(PROMPTS, 0)
    first = next(iter(store.entries("activations/")))
    narrow = Activations(store, extractor=Counting(values=lambda ids, layer: torch.zeros(len(ids), 2)))
    result = narrow([[99], [98, 97]], 0)
    assert result.shape == (2, 1, 2)
    assert first.key in {entry.key for entry in store.entries()}


def test_prompts_longer_than_the_extractor_takes_are_refused():
    with pytest.raises(InvalidArgumentError, match="prompt 3 has 4 tokens"):
        Activations(MemoryStore(), extractor=Counting(max_tokens=3))(PROMPTS, 0)


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("pool", ["last", "first", 1, -2, "mean", "max", None])
@pytest.mark.parametrize(("refresh", "storage"), [(True, None), (False, None), (False, "float16")])
def test_an_extractor_may_use_its_memory_again_for_the_next_batch(pool, refresh, storage, as_list):
    class Reusing:
        fingerprint = "reuses its buffer, 1"

        def __init__(self):
            self.buffer = torch.zeros(1, 4, 8)

        def extract(self, batch, layers, site):
            self.buffer[0] = 1e6 + torch.tensor(batch[0])[:, None]  # float16 overflows
            padded = self.buffer[: len(batch)]
            return [list(padded) if as_list else padded for _ in layers]

    prompts = [[number, number + 1, number + 2, number + 3] for number in range(10)]
    acts = Activations(MemoryStore(), extractor=Reusing(), storage_dtype=storage)
    cold = acts(prompts, [3], pool, batch_size=1, refresh=refresh)
    warm = acts(prompts, [3], pool, on_miss="error")
    assert all(torch.equal(a, b) for a, b in zip(cold, warm, strict=True))
    assert len({tuple(each.flatten().tolist()) for each in warm}) == len(prompts)


class Lazily:
    """An answer, or a layer of one, that is made where the one before it lay."""

    def __init__(self, count, make):
        self.count = count
        self.make = make

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        if place >= self.count:
            raise IndexError(place)
        return self.make(place)


class LazyList(list):
    """The same, and a list by its type."""

    def __init__(self, count, make):
        super().__init__([None] * count)
        self.make = make

    def __iter__(self):
        return map(self.make, range(len(self)))


@pytest.mark.parametrize("pool", ["last", "first", 1, -2, "mean", None])
@pytest.mark.parametrize("rows_too", [True, False])
@pytest.mark.parametrize("layers", [[0], [0, 1, 2]])
@pytest.mark.parametrize("Lazily", [Lazily, LazyList])
def test_layers_and_prompts_may_be_made_one_by_one_in_the_same_memory(pool, rows_too, layers, Lazily):
    class Extractor:
        fingerprint = "lazy, 1"

        def extract(self, batch, layers, site):
            padded, row = torch.zeros(len(batch), 2, 4), torch.zeros(2, 4)

            def layer(place):
                def one(number):
                    return row.copy_(torch.tensor(batch[number])[:, None] + 1000.0 * layers[place])

                if rows_too:
                    return Lazily(len(batch), one)
                for number in range(len(batch)):
                    padded[number] = one(number)
                return padded

            return Lazily(len(layers), layer)

    prompts = [[1, 2], [5, 7], [8, 9]]
    expected = torch.tensor(prompts, dtype=torch.float32)[:, None] + 1000.0 * torch.tensor(layers)[:, None]
    acts = Activations(MemoryStore(), extractor=Extractor())
    for _turn in ("cold", "warm"):
        got = acts(prompts, layers, pool)
        for each, values in zip(got, expected, strict=True):
            place = {"last": 1, "first": 0, 1: 1, -2: 0}.get(pool)
            wanted = values if pool is None else values.mean(dim=1) if pool == "mean" else values[:, place]
            assert torch.equal(each[..., 0], wanted)


@pytest.mark.parametrize("layers", [[0], [0, 1]])
@pytest.mark.parametrize("storage", [None, "float16"])
def test_a_result_may_lie_in_the_memory_that_the_extractor_answers_from(layers, storage):
    memory = torch.zeros(4, 2, 4)

    class Extractor:
        fingerprint = "answers from what it is to fill, 1"

        def extract(self, batch, layers, site):
            for row, ids in enumerate(batch):
                memory[row] = float(ids[0])
            return [memory[: len(batch)] for _ in layers]

    acts = Activations(MemoryStore(), extractor=Extractor(), storage_dtype=storage)
    prompts = [[1], [1], [2], [3]]
    assert acts(prompts, layers, "first", out=memory[:, : len(layers)])[:, 0, 0].tolist() == [1, 1, 2, 3]
    assert acts(prompts, layers, "first", on_miss="error")[:, 0, 0].tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize("layers", [[0], [0, 1]])
@pytest.mark.parametrize("pool", ["last", "mean", None])
@pytest.mark.parametrize("as_list", [True, False])
def test_values_that_torch_negates_or_conjugates_only_when_they_are_read(layers, pool, as_list):
    class Extractor:
        fingerprint = "negated, 1"

        def extract(self, batch, layers, site):
            values = torch.complex(torch.ones(len(batch), 2, 4), torch.ones(len(batch), 2, 4)).conj().imag
            assert values.is_neg()
            return [list(values) if as_list else values for _ in layers]

    acts = Activations(MemoryStore(), extractor=Extractor())
    for _turn in ("cold", "warm"):
        assert all((each == -1).all() for each in acts([[1, 2], [3, 4]], layers, pool))


@pytest.mark.parametrize("pool", ["last", None])
def test_integers_are_kept_as_they_are_whatever_the_storage_dtype(pool):
    class Extractor:
        fingerprint = "integers, 1"

        def extract(self, batch, layers, site):
            return [torch.tensor(batch, dtype=torch.int32)[:, :, None] for _ in layers]

    acts = Activations(MemoryStore(), extractor=Extractor(), storage_dtype="float16")
    for _turn in ("cold", "warm"):
        got = acts([[1, 70_001], [3, 70_003]], [0], pool)
        assert [int(each.flatten()[-1]) for each in got] == [70_001, 70_003]
