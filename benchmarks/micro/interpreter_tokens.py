"""Feed token 1, 2, … to a micro graph in tflite-runtime's Interpreter; runs on an emulated board, which has no more.

python interpreter_tokens.py MODEL.tflite TOKENS
"""

import sys

import numpy as np
from tflite_runtime.interpreter import Interpreter, OpResolverType

# The XNNPACK of 2.14 crashes on a cache that is updated in place.
interpreter = Interpreter(
    sys.argv[1], num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
)
interpreter.allocate_tensors()
inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
for i in range(int(sys.argv[2])):
    for name, value in (("token", i + 1), ("position", i)):
        detail = inputs[name]
        interpreter.set_tensor(detail["index"], np.full(detail["shape"], value, detail["dtype"]))
    interpreter.invoke()
