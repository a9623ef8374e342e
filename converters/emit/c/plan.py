"""Where each buffer lies in the arena.

A buffer lives from the call that first writes it to the last call that reads it. One that a program writes element by
element over an operand that nothing reads afterwards takes that operand's place.
"""

from __future__ import annotations

from collections.abc import Sequence

from converters.emit.c.calls import ELEMENT_BYTES, Buffer, Call, Program, Scratch

__all__ = ["ALIGNMENT", "plan_arena"]

ALIGNMENT = 16


def plan_arena(calls: Sequence[Call], kept: Sequence[Buffer]) -> tuple[dict[Buffer, int], int]:
    """Offsets in bytes, and the bytes of the whole.

    Args:
        kept: buffers that are read after the last call, as the logits are.
    """
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for i, call in enumerate(calls):
        for buffer in (*call.reads(), *call.writes()):
            first.setdefault(buffer, i)
            last[buffer] = i
    for buffer in kept:
        last[buffer] = len(calls)
    owner = {buffer: buffer for buffer in first}  # whose place it takes
    for i, call in enumerate(calls):
        for out, operand in _in_place(call):
            root = owner[operand]
            if first[out] == i and last[operand] == i and owner[out] is out and last[root] == i:
                owner[out] = root
                last[root] = last[out]
    placed: dict[Buffer, int] = {}
    roots = [buffer for buffer in first if owner[buffer] is buffer]
    for buffer in sorted(roots, key=lambda b: (-b.bytes, first[b])):
        taken = sorted(
            (placed[other], placed[other] + _aligned(other.bytes))
            for other in placed
            if first[other] <= last[buffer] and first[buffer] <= last[other]
        )
        offset = 0
        for start, stop in taken:
            if offset + buffer.bytes <= start:
                break
            offset = max(offset, stop)
        placed[buffer] = offset
    offsets = {buffer: placed[owner[buffer]] for buffer in first}
    total = max((placed[b] + _aligned(b.bytes) for b in placed), default=0)
    return offsets, total


def _in_place(call: Call) -> list[tuple[Buffer, Buffer]]:
    """(result, operand) of which the first may take the place of the second."""
    if not isinstance(call, Program) or call.steps[-1].op != "STORE":
        return []
    to = call.steps[-1].place
    if to is None or to.buffer is None or to.offset != 0:
        return []
    if to.buffer.elements != call.rows * call.columns:
        return []
    result = []
    loads = [step.place for step in call.steps if step.op == "LOAD" and step.place is not None]
    for place in loads:
        buffer = place.buffer
        if buffer is None or isinstance(buffer, Scratch) or buffer.elements != to.buffer.elements:
            continue
        alike = [p for p in loads if p.buffer is buffer]
        # each element is read where it is written, before it is written
        same = all(
            p.offset == 0 and p.row_stride == to.row_stride and not p.one_per_row and p.index == 0 for p in alike
        )
        if same and ELEMENT_BYTES[buffer.type] == ELEMENT_BYTES[to.buffer.type]:
            result.append((to.buffer, buffer))
    return result


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
