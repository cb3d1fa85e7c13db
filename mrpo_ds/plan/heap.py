"""How the C library's heap grows under a sequence of allocations: what a process on a CPU keeps resident.

glibc hands out blocks of up to 32 MiB from a heap that shrinks only at its end, where something small always is, and
maps larger ones one by one. Torch asks for aligned blocks; before glibc 2.38 an aligned request needs a hole that is
larger than the block by the alignment, so that a hole rarely serves a request of its own size again. What a training
step leaves free therefore stays resident, and is often as much as it uses.
"""

from bisect import bisect_left, insort

MAPPED_FROM = 32 * 2**20
"""Bytes from which a block is mapped by itself (DEFAULT_MMAP_THRESHOLD_MAX of malloc.c, reached during a load)."""
SLACK = 64 + 32
"""Bytes by which a hole must exceed an aligned block: torch's alignment and the smallest chunk."""


class Heap:
    """Where blocks lie, and how far they reach."""

    def __init__(self) -> None:
        self.end = 0
        self.largest = 0
        """Bytes of the largest block that was not mapped."""
        self.mapped = 0
        self.most_mapped = 0
        self._blocks: dict[int, tuple[int | None, int]] = {}
        """Block's number -> (address in the heap, or None for a mapped one; bytes)."""
        self._holes: list[tuple[int, int]] = []
        """(bytes, address), sorted: the best fit is the first that is large enough."""
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}
        self._pieces: list[int] = []
        self.pins = True
        """Whether small objects that live on take the piece between two blocks, as nodes of a graph do."""

    def allocate(self, number: int, size: int) -> None:
        """Make a block."""
        if size >= MAPPED_FROM:
            self.mapped += size
            self.most_mapped = max(self.most_mapped, self.mapped)
            self._blocks[number] = (None, size)
        else:
            self.largest = max(self.largest, size)
            held = size if self.pins else size + SLACK
            address = self._place(size + SLACK)
            self._blocks[number] = (address, held)
            if self.pins:
                self._pieces.append(address + size)

    def free(self, number: int) -> None:
        """Give a block back."""
        address, size = self._blocks.pop(number)
        if address is None:
            self.mapped -= size
        else:
            self._add_hole(address, size)

    def unpin(self) -> None:
        """Those small objects go, and so do all that come."""
        self.pins = False
        for address in self._pieces:
            self._add_hole(address, SLACK)
        self._pieces.clear()

    def pin(self, forget: bool = False) -> None:
        """From here on they live. forget: those that there are now live for ever."""
        self.pins = True
        if forget:
            self._pieces.clear()

    def _place(self, size: int) -> int:
        index = bisect_left(self._holes, (size, -1))
        if index == len(self._holes):
            address = self.end
            self.end += size
            return address
        room, address = self._holes[index]
        self._take_hole(address, room)
        if room > size:
            self._add_hole(address + size, room - size)
        return address

    def _add_hole(self, address: int, size: int) -> None:
        before = self._by_end.get(address)
        if before is not None:
            length = address - before
            self._take_hole(before, length)
            address, size = before, size + length
        after = self._by_start.get(address + size)
        if after is not None:
            self._take_hole(address + size, after)
            size += after
        insort(self._holes, (size, address))
        self._by_start[address] = size
        self._by_end[address + size] = address

    def _take_hole(self, address: int, size: int) -> None:
        del self._holes[bisect_left(self._holes, (size, address))]
        del self._by_start[address]
        del self._by_end[address + size]
