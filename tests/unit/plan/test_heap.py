"""The heap of the C library, by hand."""

from mrpo_ds.plan.heap import MAPPED_FROM, SLACK, Heap

MB = 2**20


def test_large_blocks_are_mapped_and_go_back():
    heap = Heap()
    heap.allocate(1, MAPPED_FROM)
    heap.allocate(2, MAPPED_FROM + 5)
    assert (heap.end, heap.mapped) == (0, 2 * MAPPED_FROM + 5)
    heap.free(1)
    heap.free(2)
    assert (heap.end, heap.mapped, heap.most_mapped) == (0, 0, 2 * MAPPED_FROM + 5)


def test_small_blocks_stay_when_they_are_free():
    heap = Heap()
    heap.unpin()
    for number in range(4):
        heap.allocate(number, MB)
    for number in range(4):
        heap.free(number)
    assert heap.end == 4 * (MB + SLACK)
    heap.allocate(9, 4 * MB)  # the four holes have become one
    assert heap.end == 4 * (MB + SLACK)
    assert heap.largest == 4 * MB


def test_the_best_hole_is_taken():
    heap = Heap()
    heap.unpin()
    for number, size in enumerate((3 * MB, 1, MB, 1)):
        heap.allocate(number, size)
    heap.free(0)
    heap.free(2)
    end = heap.end
    heap.allocate(4, MB)
    heap.allocate(5, 3 * MB)  # its hole is still whole
    assert heap.end == end


def test_a_hole_between_objects_that_live_on_does_not_serve_its_own_size_again():
    heap = Heap()
    heap.allocate(0, MB)
    heap.free(0)
    heap.allocate(1, MB)
    assert heap.end == 2 * (MB + SLACK)
    heap.allocate(2, MB - SLACK)  # a smaller one fits
    assert heap.end == 2 * (MB + SLACK)
    heap.free(1)
    heap.free(2)
    heap.unpin()
    heap.allocate(3, 2 * MB)
    assert heap.end == 2 * (MB + SLACK)


def test_what_is_pinned_for_ever_stays_pinned():
    heap = Heap()
    heap.allocate(0, MB)
    heap.free(0)
    heap.pin(forget=True)
    heap.unpin()
    heap.allocate(1, MB)
    assert heap.end == 2 * (MB + SLACK)
