"""Find the operators of one key head's attention: scores, mask, softmax, and the sum of the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from converters.emit.c.lowering.operators import refused, some
from converters.emit.c.lowering.position import PositionValues
from converters.emit.tflite_read import GraphTensor, Operator

__all__ = ["AttentionParts", "find_attention"]


@dataclass(frozen=True)
class AttentionParts:
    """The operators, and what is between them."""

    scores: Operator
    mask: GraphTensor
    quantize: Operator
    mixed: Operator
    inner: list[int]  # tensors that exist only in the engine's scratch


class Neighbours(Protocol):
    """Who makes and who reads a tensor."""

    made_by: Mapping[int, Operator]
    readers: Mapping[int, list[Operator]]
    by_position: PositionValues


def find_attention(graph: Neighbours, softmax: Operator) -> AttentionParts:
    """The operators around one softmax."""
    masked = _maker(graph, some(softmax.operands[0]), "ADD", softmax)
    operands = [some(t) for t in masked.operands]
    mask = next((t for t in operands if t in graph.by_position), None)
    real = next((t for t in operands if t not in graph.by_position), None)
    if mask is None or real is None or softmax.options.beta != 1.0:
        raise refused(softmax, "it is no softmax of scores and a mask")
    dequantize = _maker(graph, real, "DEQUANTIZE", softmax)
    scores = _maker(graph, some(dequantize.operands[0]), "FULLY_CONNECTED", softmax)
    quantize = _reader(graph, softmax.results[0], "QUANTIZE", softmax)
    mixed = _reader(graph, quantize.results[0], "FULLY_CONNECTED", softmax)
    inner = [op.results[0].index for op in (scores, dequantize, masked, softmax, quantize)]
    for op in (scores, dequantize, masked, softmax, quantize):
        if len(graph.readers.get(op.results[0].index, ())) != 1:
            raise refused(op, "something else than attention reads it")
    return AttentionParts(scores, mask, quantize, mixed, inner)


def _maker(graph: Neighbours, t: GraphTensor, name: str, where: Operator) -> Operator:
    op = graph.made_by.get(t.index)
    while op is not None and op.name == "RESHAPE":
        op = graph.made_by.get(some(op.operands[0]).index)
    if op is None or op.name != name:
        raise refused(where, f"{t.name} is made by {op.name if op else 'nothing'}, expected {name}")
    return op


def _reader(graph: Neighbours, t: GraphTensor, name: str, where: Operator) -> Operator:
    readers = graph.readers.get(t.index, [])
    if len(readers) != 1 or readers[0].name != name:
        raise refused(where, f"{t.name} is read by {[op.name for op in readers]}, expected one {name}")
    return readers[0]
