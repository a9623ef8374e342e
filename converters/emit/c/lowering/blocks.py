"""int4 weights in blocks as the C engine multiplies them: whole multiples of one step for each row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from converters.emit.c.lowering.operators import refused
from converters.emit.tflite_read import GraphTensor, Operator, SubgraphReader
from converters.quantize.blocks import BLOCK

__all__ = ["read_blocks"]

_ROUNDED = 0.25  # of a step; float32 rounds 255 of them by far less


def read_blocks(graph: SubgraphReader, op: Operator, weight: GraphTensor) -> npt.NDArray[np.int64]:
    """The multipliers of a matmul's weights, (rows, blocks): the scales of blocks as multiples of the row's step.

    Raises:
        GraphError: the graph has no such scales, or blocks of another size.
    """
    scales = None if weight.block_scales is None else graph.tensor(weight.block_scales)
    rows, columns = weight.shape
    if scales is None or columns % BLOCK or scales.shape != (rows, columns // BLOCK):
        found = "no scales of blocks" if scales is None else f"scales {list(scales.shape)}"
        raise refused(op, f"int4 weights {list(weight.shape)} with {found}; it takes blocks of {BLOCK} columns")
    if weight.scale.size != rows:
        raise refused(op, "its block scales are no multiples of a step; convert with --profile micro --weights int4")
    exact = graph.values(scales).astype(np.float64) / weight.scale.astype(np.float64)[:, None]
    multipliers = np.rint(exact)
    if np.abs(exact - multipliers).max() > _ROUNDED or multipliers.min() < 1 or multipliers.max() > 255:
        raise refused(op, "a block scale is no multiple of its row's step from 1 to 255")
    return multipliers.astype(np.int64)
