"""The kernel's marks on real memory: every way of writing shows, and what nobody can vouch for is not watched."""

import ctypes
import errno
import mmap
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmstash.identity.memory import mappings, probe, written_pages
from lmstash.identity.memory.probe import Probe
from lmstash.identity.memory.written_pages import WrittenPages, whole_pages
from lmstash.identity.models import watch

PAGE = mmap.PAGESIZE
N_PAGES = 40


def marks_work():
    with written_pages._lock:
        return written_pages._kernel() is not None


pytestmark = pytest.mark.skipif(
    not marks_work(), reason="this kernel has no asynchronous write protection (Linux 6.7), or forbids userfaultfd"
)


class Memory:
    """Whole pages of this process's own, with something on them."""

    def __init__(self, file=-1, flags=mmap.MAP_PRIVATE):
        self.map = mmap.mmap(file, N_PAGES * PAGE, flags=flags | (mmap.MAP_ANONYMOUS if file < 0 else 0))
        if file < 0:
            self.map[:] = bytes(range(256)) * (N_PAGES * PAGE // 256)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.start = self.bytes.ctypes.data
        self.range = self.start, self.start + len(self.bytes)

    def watch(self):
        pages = WrittenPages([self.range])
        assert pages.mark()
        self.bytes.sum()
        assert pages.written() is False
        return pages


@pytest.fixture
def memory():
    return Memory()


def libc():
    return ctypes.CDLL(None, use_errno=True)


def write_item(memory):
    memory.bytes[3 * PAGE + 17] ^= 1


def write_last_byte(memory):
    memory.bytes[-1] ^= 1


def write_same_value(memory):
    memory.bytes[5] = int(memory.bytes[5])


def write_with_memmove(memory):
    ctypes.memmove(memory.start + 9 * PAGE, b"x", 1)


def write_with_torch(memory):
    torch.from_numpy(memory.bytes).view(torch.float32)[700:710].data.mul_(3)


def read_a_file_into_it(memory):
    with open(sys.executable, "rb") as file:
        os.preadv(file.fileno(), [memory.bytes[PAGE : PAGE + 10].data], 100)


def write_in_a_thread(memory):
    thread = threading.Thread(target=write_item, args=(memory,))
    thread.start()
    thread.join()


def write_from_another_process(memory):
    code = f"import os; os.pwrite(os.open('/proc/{os.getpid()}/mem', os.O_RDWR), b'z', {memory.start + 2 * PAGE})"
    subprocess.run([sys.executable, "-c", code], check=True)


def write_through_its_own_mem_file(memory):
    number = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(number, b"z", memory.start + 2 * PAGE)
    os.close(number)


def drop(memory):
    memory.map.madvise(mmap.MADV_DONTNEED)


def drop_one_page(memory):
    memory.map.madvise(mmap.MADV_DONTNEED, 7 * PAGE, PAGE)


def map_other_memory_there(memory):
    call = libc().mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    fixed = 0x10
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed
    assert call(memory.start + 4 * PAGE, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)


WAYS = [
    write_item, write_last_byte, write_same_value, write_with_memmove, write_with_torch, read_a_file_into_it,
    write_in_a_thread, write_from_another_process, write_through_its_own_mem_file, drop, drop_one_page,
    map_other_memory_there,
]  # fmt: skip


@pytest.mark.parametrize("change", WAYS)
def test_each_way_of_writing_shows(memory, change):
    pages = memory.watch()
    try:
        change(memory)
    except PermissionError:
        pytest.skip("this system lets no process write to another's memory")
    assert pages.written() is not False


def test_dropped_pages_show_where_whole_page_tables_go_too():
    """Two megabytes and more, so that the kernel may free the table of their pages: what is not there has no mark."""
    n_bytes = 12 << 20
    with mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as big:
        for advice in (mmap.MADV_NOHUGEPAGE, mmap.MADV_HUGEPAGE):
            big.madvise(advice)
            big[:] = b"\7" * n_bytes
            array = np.frombuffer(big, np.uint8)
            pages = WrittenPages([(array.ctypes.data, array.ctypes.data + n_bytes)])
            assert pages.mark()
            assert array.sum() == 7 * n_bytes
            assert pages.written() is False
            big.madvise(mmap.MADV_DONTNEED)
            assert pages.written() is not False
            del array


def test_reading_shows_nothing(memory):
    pages = memory.watch()
    for _ in range(3):
        assert memory.bytes.sum()
        assert bytes(memory.map[:])
        assert pages.written() is False


def test_what_was_never_touched_is_watched_once_it_is_read():
    with mmap.mmap(-1, N_PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        array = np.frombuffer(memory, np.uint8)
        pages = WrittenPages([(array.ctypes.data, array.ctypes.data + len(array))])
        assert pages.mark()
        assert array.sum() == 0
        assert pages.written() is False
        array[PAGE] = 1
        assert pages.written() is True
        del array


def test_marking_again_watches_again(memory):
    pages = memory.watch()
    write_item(memory)
    assert pages.written() is True
    assert pages.written() is True
    assert pages.mark()
    assert pages.written() is False
    write_item(memory)
    assert pages.written() is True


def test_who_marks_tells_who_marked_before(memory):
    first = memory.watch()
    write_item(memory)
    second = memory.watch()
    assert first.written() is True
    assert second.written() is False


def test_who_marks_elsewhere_or_finds_nothing_written_disturbs_nobody(memory):
    first = memory.watch()
    memory.watch()
    assert first.written() is False
    other = Memory()
    write_item(other)
    other.watch()
    assert first.written() is False


def test_forgotten(memory):
    pages = memory.watch()
    pages.forget()
    assert pages.written() is None


def test_shared_memory_is_not_watched():
    shared = Memory(flags=mmap.MAP_SHARED)
    assert not WrittenPages([shared.range]).mark()


def test_a_range_that_reaches_beyond_private_memory_is_not_watched(memory):
    shared = Memory(flags=mmap.MAP_SHARED)
    assert not WrittenPages([memory.range, shared.range]).mark()
    assert not WrittenPages([(memory.start, memory.start + (1 << 40))]).mark()
    assert not WrittenPages([]).mark()


def test_nothing_is_watched_while_a_device_may_write(memory, monkeypatch):
    monkeypatch.setattr(written_pages, "has_pins", lambda: True)
    assert not WrittenPages([memory.range]).mark()


def test_this_process_has_no_pins():
    assert not mappings.has_pins()


def test_a_forked_child_watches_nothing_and_leaves_its_parent_alone(memory):
    pages = memory.watch()
    child = os.fork()
    if child == 0:
        inherited = pages.written()
        write_item(memory)
        own = WrittenPages([memory.range])
        good = inherited is None and own.mark() and own.written() is False
        write_item(memory)
        os._exit(0 if good and own.written() is True else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pages.written() is False
    write_item(memory)
    assert pages.written() is True


def test_who_is_interrupted_while_marking_has_told_the_others_all_the_same(memory, monkeypatch):
    first, second = memory.watch(), WrittenPages([memory.range])
    write_item(memory)
    mark = written_pages._Kernel.mark

    def interrupted(self, pages):
        mark(self, pages)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(written_pages._Kernel, "mark", interrupted)
        with pytest.raises(KeyboardInterrupt):
            second.mark()
    assert first.written() is True
    assert second.written() is None


def test_a_signals_handler_may_ask_in_the_midst_of_a_question(memory, monkeypatch):
    beside = Memory()
    pages, other, answers = memory.watch(), beside.watch(), []
    scan = written_pages._Kernel._scan

    def handled(self, *given, **named):
        if not answers:
            answers.append(None)
            answers[:] = [other.written(), WrittenPages([memory.range]).mark()]
        return scan(self, *given, **named)

    monkeypatch.setattr(written_pages._Kernel, "_scan", handled)
    assert pages.written() is False
    assert answers == [None, False]
    assert other.written() is False


def test_memory_that_is_unmapped_is_not_as_it_was(memory):
    pages = memory.watch()
    call = libc().munmap
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    assert call(memory.start + 4 * PAGE, PAGE) == 0
    assert pages.written() is not False


def test_a_process_with_many_mappings_gets_no_more(memory, monkeypatch):
    monkeypatch.setattr(mappings, "_MAPPINGS_SHARE", 1 << 20)
    assert not WrittenPages([memory.range]).mark()


def test_a_child_closes_only_what_it_inherited(memory):
    memory.watch()
    child = os.fork()
    if child == 0:
        kernel = written_pages._Kernel()
        numbers = kernel._fd, kernel._pages
        with open(sys.executable, "rb") as file:
            for number in numbers:
                os.dup2(file.fileno(), number)
        kernel.close_inherited()
        os._exit(0 if all(os.fstat(number).st_size for number in numbers) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_where_calls_are_filtered_none_is_tried(memory, monkeypatch):
    monkeypatch.setattr(written_pages, "_made", None)
    monkeypatch.setattr(written_pages, "_refused", False)
    monkeypatch.setattr(written_pages, "process_status", lambda name: 2)
    assert not WrittenPages([memory.range]).mark()


def test_a_lack_that_passes_is_not_held_against_the_kernel(memory, monkeypatch):
    monkeypatch.setattr(written_pages, "_made", None)

    def lacking(self):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(written_pages._Kernel, "__init__", lacking)
        assert not WrittenPages([memory.range]).mark()
    assert WrittenPages([memory.range]).mark()


def test_a_kernel_that_fails_its_trial_is_not_asked(memory, monkeypatch):
    monkeypatch.setattr(written_pages, "_made", None)
    monkeypatch.setattr(written_pages, "_refused", False)
    monkeypatch.setattr(written_pages._Kernel, "as_marked", lambda self, pages: True)
    assert not WrittenPages([memory.range]).mark()
    assert written_pages._refused


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "mark", "other marks", "ask", "drop"]), st.integers(0, N_PAGES * PAGE - 1)),
        max_size=30,
    )
)
def test_nothing_written_means_the_same_bytes(steps):
    memory = Memory()
    pages, other = WrittenPages([memory.range]), WrittenPages([memory.range])
    copy, written = None, False
    for what, place in steps:
        if what == "write":
            memory.bytes[place] ^= 1 + place % 255
            written = True
        elif what == "drop":
            memory.map.madvise(mmap.MADV_DONTNEED, place // PAGE * PAGE, PAGE)
            written = True
        elif what == "mark":
            assert pages.mark()
            copy, written = memory.bytes.copy(), False
        elif what == "other marks":
            other.mark()
            memory.bytes.sum()
        elif copy is not None:
            answer = pages.written()
            if answer is False:
                assert np.array_equal(memory.bytes, copy)
                assert not written
            if not written:
                assert answer is False


class TestFiles:
    @pytest.fixture(autouse=True)
    def at_rest(self, monkeypatch):
        """As if files had been as they are for two seconds."""
        monkeypatch.setattr(mappings, "FRESH_NS", 0)

    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "weights"
        path.write_bytes(random.Random(1).randbytes(N_PAGES * PAGE))
        if mappings._file_system(os.stat(path).st_dev) not in mappings._FILE_SYSTEMS:
            pytest.skip("the temporary folder is on a file system whose times say little")
        return path

    @pytest.fixture
    def mapped(self, file):
        with open(file, "rb") as opened:
            return Memory(opened.fileno())

    def test_a_private_map_is_watched(self, mapped):
        pages = mapped.watch()
        write_item(mapped)
        assert pages.written() is True

    def test_a_file_that_was_just_changed_is_not(self, mapped, monkeypatch):
        monkeypatch.setattr(mappings, "FRESH_NS", 2 * 10**9)
        assert not WrittenPages([mapped.range]).mark()

    @pytest.mark.parametrize("private_first", [False, True])
    def test_another_ones_write_to_the_file_shows(self, mapped, file, private_first):
        if private_first:
            write_item(mapped)
        pages = mapped.watch()
        code = f"import os; os.pwrite(os.open({str(file)!r}, os.O_RDWR), b'zz', {11 * PAGE})"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert bytes(mapped.bytes[11 * PAGE : 11 * PAGE + 2]) == b"zz"
        assert pages.written() is True

    def test_another_ones_write_through_a_map_shows(self, mapped, file):
        pages = mapped.watch()
        with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), 0) as shared:
            shared[11 * PAGE] ^= 1
            assert pages.written() is True

    @pytest.mark.parametrize("how", ["open", "mapped"])
    def test_a_file_that_somebody_may_be_writing_to_is_not_watched(self, mapped, file, how):
        """One write may last, and only the first one through a map to a page changes the file's times."""
        with open(file, "r+b") as opened:
            shared = mmap.mmap(opened.fileno(), 0)
            if how == "open":
                shared.close()
            else:
                opened.close()
            assert not WrittenPages([mapped.range]).mark()
            shared.close()
        assert WrittenPages([mapped.range]).mark()

    def test_a_file_of_somebody_else_is_not_watched(self, mapped, file):
        """Whom the system does not tell whether it is open for writing."""
        if os.getuid():
            pytest.skip("needs root")
        os.chmod(file.parent, 0o755)
        os.chmod(file, 0o644)
        child = os.fork()
        if child == 0:
            os.seteuid(12345)
            os._exit(int(WrittenPages([mapped.range]).mark()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def test_a_page_that_was_written_to_before_is_no_page_of_the_file(self, mapped):
        """Dropped, it keeps its mark and shows the file again: nothing tells."""
        pages = mapped.watch()
        assert pages.holds_no_copies()
        write_item(mapped)
        pages = mapped.watch()
        assert not pages.holds_no_copies()

    def test_times_that_are_put_back_show(self, mapped, file):
        before = os.stat(file)
        pages = mapped.watch()
        with open(file, "r+b") as opened:
            opened.write(b"zz")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert pages.written() is True

    def test_a_file_that_is_replaced_is_not_watched(self, mapped, file):
        pages = mapped.watch()
        other = file.with_name("other")
        other.write_bytes(file.read_bytes())
        os.replace(other, file)
        assert pages.written() is True
        assert not pages.mark()

    def test_a_deleted_file_is_not_watched(self, mapped, file):
        pages = mapped.watch()
        file.unlink()
        assert pages.written() is True
        assert not pages.mark()

    def test_a_file_of_memory_is_not_watched(self):
        number = os.memfd_create("weights")
        os.truncate(number, N_PAGES * PAGE)
        assert not WrittenPages([Memory(number).range]).mark()

    def test_a_device_is_not_watched(self):
        with open("/dev/zero", "r+b") as zero:
            assert not WrittenPages([Memory(zero.fileno()).range]).mark()

    def test_a_file_system_of_another_kind_is_not_watched(self, mapped, monkeypatch):
        monkeypatch.setattr(mappings, "_FILE_SYSTEMS", frozenset({b"nfs"}))
        assert not WrittenPages([mapped.range]).mark()


def settled(tensors, *, watched=True):
    """Return a probe that has found everything as it was, as often as pages need to be relied on."""
    made = Probe(tensors)
    made.whole()
    assert made.holds()
    assert made.holds()
    assert made._watched == watched
    return made


class TestProbe:
    """The probe reads what the kernel does not vouch for, and nothing else."""

    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        """Pages are relied on after the second reading, however soon it comes."""
        monkeypatch.setattr(probe, "_TRIAL_SECONDS", 0)

    @pytest.fixture
    def tensors(self):
        return {"large": torch.randn(300_000), "turned": torch.randn(300, 500).t(), "small": torch.randn(10)}

    @pytest.fixture
    def read(self, tensors, monkeypatch):
        """A probe that has found everything as it was, and how many pieces it has read since."""
        made = settled(tensors)
        count = []
        monkeypatch.setattr(made, "_pieces", [lambda each=each: (count.append(1), each())[1] for each in made._pieces])
        return made, count

    def test_what_nobody_wrote_to_is_not_read_again(self, read):
        made, count = read
        assert made.holds()
        assert made.holds(budget_bytes=0)
        assert not count

    @pytest.mark.parametrize("name", ["large", "turned", "small"])
    @pytest.mark.parametrize("place", [0, 1, -1, "middle"])
    def test_one_number_shows_wherever_it_is(self, read, tensors, name, place):
        made, count = read
        flat = tensors[name].t().reshape(-1) if name == "turned" else tensors[name]
        place = flat.numel() // 2 if place == "middle" else place
        flat.data.numpy()[place] += 1
        assert not made.holds()
        assert count
        made.whole()
        assert [made.holds() for _ in range(3)] == [True] * 3
        assert made._watched

    def test_known_writes_are_read_wholly_whatever_the_budget(self, read, tensors):
        made, count = read
        tensors["large"].data[150_000] += 1
        assert not made.holds(budget_bytes=0)
        assert len(count) == len(made._pieces)

    def test_a_write_of_the_same_value_is_read_twice(self, read, tensors):
        made, count = read
        tensors["large"].data[150_000] = tensors["large"][150_000].item()
        assert [made.holds() for _ in range(4)] == [True] * 4
        assert len(count) == 2 * len(made._pieces)

    def test_what_a_budget_skips_is_not_vouched_for(self, tensors):
        made = Probe(tensors)
        made.whole()
        assert made.holds(budget_bytes=0)
        tensors["large"].data[150_000] += 1
        assert not made.holds()

    @pytest.mark.parametrize("reading", [1, 2])
    @pytest.mark.parametrize("name", ["large", "small"])
    def test_what_is_interrupted_is_no_promise(self, tensors, monkeypatch, reading, name):
        made = Probe(tensors)
        made.whole()
        assert all(made.holds() for _ in range(1, reading))
        tensors[name].data[-1] += 1

        def interrupted():
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(made, "_pieces", [*made._pieces[:-1], interrupted])
            with pytest.raises(KeyboardInterrupt):
                made.holds()
        assert not made.holds()
        assert not made.holds()

    def test_a_change_between_marking_and_reading_is_no_promise(self, tensors, monkeypatch):
        made = Probe(tensors)
        made.whole()
        mark = made._pages.mark

        def mark_and_change():
            marked = mark()
            tensors["large"].data[150_000] += 1
            return marked

        monkeypatch.setattr(made._pages, "mark", mark_and_change)
        assert not made.holds()
        assert not made._watched
        assert made._marked_at is None

    def test_an_edge_that_changes_while_all_else_is_read_is_compared_with_what_it_was(self, tensors, monkeypatch):
        made = Probe(tensors)
        made.whole()
        read = made._read

        first = tensors["large"][0].item()

        def flicker(*given):
            tensors["large"].data[0] = first
            same = read(*given)
            tensors["large"].data[0] = first + 1
            return same

        tensors["large"].data[0] = first + 1
        monkeypatch.setattr(made, "_read", flicker)
        assert made.holds()
        assert made.holds()
        monkeypatch.undo()
        assert not made.holds()

    def test_a_transfer_that_began_before_marking_and_goes_past_the_page_tables(self, tensors, monkeypatch):
        """Its bytes come without a trace: pages are relied on only once they have been marked for some seconds."""
        monkeypatch.setattr(probe, "_TRIAL_SECONDS", 1e9)
        made = settled(tensors, watched=False)
        written = made._pages.written
        tensors["large"].data[150_000] += 1
        monkeypatch.setattr(made._pages, "written", lambda: False)
        assert not made.holds()
        monkeypatch.setattr(made._pages, "written", written)
        assert not made.holds()

    def test_pages_of_a_file_that_were_written_to_are_not_relied_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(mappings, "FRESH_NS", 0)
        path = tmp_path / "weights"
        path.write_bytes(bytes(1 << 20))
        if mappings._file_system(os.stat(path).st_dev) not in mappings._FILE_SYSTEMS:
            pytest.skip("the temporary folder is on a file system whose times say little")
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
        tensor = torch.from_numpy(np.frombuffer(memory, np.uint8))
        assert settled({"weights": tensor})._watched
        tensor[500_000] = 1
        made = settled({"weights": tensor}, watched=False)
        memory.madvise(mmap.MADV_DONTNEED)
        assert int(tensor.sum()) == 0
        assert not made.holds()

    def test_pinned_memory_is_read(self, tensors, monkeypatch):
        monkeypatch.setattr(probe, "_may_be_pinned", lambda tensors: True)
        made = settled(tensors, watched=False)
        assert made._pages.written() is None
        tensors["large"].data[150_000] += 1
        assert not made.holds()

    def test_tensors_side_by_side_are_one_range(self):
        whole = torch.randn(400_000)
        parts = {str(place): whole[place : place + 1000] for place in range(0, 400_000, 1000)}
        made = Probe(parts)
        assert made._pages._ranges == [whole_pages(whole.data_ptr(), whole.data_ptr() + whole.nbytes)]
        assert settled(parts)._watched


class TestWatch:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        monkeypatch.setattr(probe, "_TRIAL_SECONDS", 0)

    @pytest.fixture
    def model(self):
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.zeros(16 << 20, dtype=torch.uint8), requires_grad=False)
        return model.eval()

    def test_one_number_of_a_model_above_the_limit_is_seen_from_when_it_was_read_wholly(self, model, monkeypatch):
        monkeypatch.setattr(watch, "WHOLE_BYTES", 1)  # as if it were large
        watched = watch.ModelWatch(model)
        before = watched.fingerprint
        for place in (0, 7_000_000, -1):
            assert watched.unchanged()
            assert watched.unchanged()
            model.weight.data[place] = 1
            after = watched.refresh()
            assert after != before
            before = after

    def test_training_is_not_slowed_down_by_marks(self, model):
        watched = watch.ModelWatch(model)
        for _ in range(3):
            with torch.no_grad():
                model.weight += 1
            watched.refresh()
            assert watched._reading.probe._pages.written() is None

    def test_a_sighting_needs_no_reading(self, model, monkeypatch):
        watched = watch.ModelWatch(model)
        watched.refresh()
        watched.refresh()
        sighting = watched.look()
        monkeypatch.setattr(watched._reading.probe, "_pieces", None)
        assert sighting.holds()
        assert sighting.unchanged()
        monkeypatch.undo()
        model.weight.data[5] = 1
        assert not sighting.holds()
        assert watched.look().fingerprint != sighting.fingerprint
