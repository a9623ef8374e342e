#!/bin/sh
# ai-edge-litert 2.3.0 (PyPI): do other Python threads go on while LiteRT opens or runs a graph?
#
# Interpreter.invoke() releases Python's lock (the GIL), so one expects that the newer CompiledModel does so too. It
# does not: from the beginning to the end of CompiledModel.from_file() and run_by_index(), every other Python thread
# waits. (They wait as well in allocate_tensors(), where an Interpreter opens a graph.) A program that keeps a connection in another
# thread is silent for as long as a run takes. The C interface of the same package, libLiteRt.so, called through
# ctypes.CDLL, lets other threads go on, with the same results.
#
# Measured: a thread wakes each millisecond; its longest silence during a call, as a part of the time that the call takes.
# The least of three calls counts: it "waits" at more than 0.8, "goes on" at less than 0.5. (Here: above 0.99, below 0.1.)
#
# Seen:
#   Interpreter.allocate_tensors(): the other thread waits
#   Interpreter.invoke(): the other thread goes on
#   CompiledModel.from_file(): the other thread waits
#   CompiledModel.run_by_index(): the other thread waits
#   LiteRtCreateCompiledModel through ctypes: the other thread goes on
#   LiteRtRunCompiledModel through ctypes: the other thread goes on
#   the results are alike: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install ai-edge-litert==2.3.0 'numpy>=2,<3'
cat > seen.py <<'PYTHON'
import ctypes
import sys
import threading
import time
from pathlib import Path

import ai_edge_litert
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.environment import Environment
from ai_edge_litert.interpreter import Interpreter

WIDTH, LAYERS = 1024, 24  # FULLY_CONNECTED, one after the other

model, graph, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
code.version = 1
model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
model.buffers = [schema.BufferT(), schema.BufferT()]
rng = np.random.default_rng(1)
weights = rng.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(WIDTH**0.5)
model.buffers[1].data = np.frombuffer(weights.tobytes(), np.uint8)
graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [0], [LAYERS]
for index in range(LAYERS + 2):  # the last one is the weights
    made = schema.TensorT()
    made.name, made.shape, made.type = f"t{index}", [WIDTH, WIDTH], schema.TensorType.FLOAT32
    made.buffer = int(index > LAYERS)
    graph.tensors.append(made)
for index in range(LAYERS):
    made = schema.OperatorT()
    made.inputs, made.outputs = [index, LAYERS + 1, -1], [index + 1]
    made.builtinOptions = schema.FullyConnectedOptionsT()
    made.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    graph.operators.append(made)
builder = flatbuffers.Builder()
builder.Finish(model.Pack(builder), b"TFL3")
Path("graph.tflite").write_bytes(builder.Output())
given = rng.standard_normal((WIDTH, WIDTH), np.float32)


def silence(call):
    times, ended = [], threading.Event()

    def wake():
        while not ended.is_set():
            times.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=wake)
    thread.start()
    time.sleep(0.02)
    start = time.monotonic()
    result = call()
    end = time.monotonic()
    ended.set()
    thread.join()
    moments = [start, *(moment for moment in times if start < moment < end), end]
    return max(after - before for before, after in zip(moments, moments[1:])) / (end - start), result


def watched(name, call):
    shares, results = zip(*(silence(call) for _ in range(3)))
    least = min(shares)
    what = "waits" if least > 0.8 else "goes on" if least < 0.5 else f"is silent for {least:.2f} of the time"
    print(f"{name}: the other thread {what}")
    print(name, *(f"{share:.3f}" for share in shares), file=sys.stderr)
    return results[-1]


interpreters = [Interpreter("graph.tflite", num_threads=1) for _ in range(3)]
unopened = iter(interpreters)
watched("Interpreter.allocate_tensors()", lambda: next(unopened).allocate_tensors())
interpreter = interpreters[0]
interpreter.set_tensor(0, given)
watched("Interpreter.invoke()", interpreter.invoke)
results = [interpreter.get_tensor(LAYERS)]
del interpreter, interpreters, unopened

environment = Environment.create()
compiled = watched("CompiledModel.from_file()", lambda: CompiledModel.from_file("graph.tflite", environment=environment))
inputs, outputs = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
inputs[0].write(given)
watched("CompiledModel.run_by_index()", lambda: compiled.run_by_index(0, inputs, outputs))
results.append(outputs[0].read(given.size, np.float32).reshape(given.shape))


class TensorType(ctypes.Structure):  # LiteRtRankedTensorType, with its LiteRtLayout
    _fields_ = [
        ("element_type", ctypes.c_int), ("rank", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * 8), ("strides", ctypes.c_uint32 * 8),
    ]  # fmt: skip


[package] = ai_edge_litert.__path__
library = ctypes.CDLL(f"{package}/libLiteRt.so")


def made(name, *arguments):
    handle = ctypes.c_void_p()
    status = getattr(library, name)(*arguments, ctypes.byref(handle))
    assert status == 0, (name, status)
    return handle


def buffer(way):
    needs = made(f"LiteRtGetCompiledModel{way}BufferRequirements", compiled, ctypes.c_size_t(0), ctypes.c_size_t(0))
    kind = TensorType(1, 2, (WIDTH, WIDTH))  # float32, two dimensions
    handle = made("LiteRtCreateManagedTensorBufferFromRequirements", environment, ctypes.byref(kind), needs)
    return (ctypes.c_void_p * 1)(handle.value)


def copied(handles, array, mode):
    place = ctypes.c_void_p()
    assert library.LiteRtLockTensorBuffer(ctypes.c_void_p(handles[0]), ctypes.byref(place), mode) == 0
    ends = (array.ctypes.data, place) if mode == 0 else (place, array.ctypes.data)
    ctypes.memmove(*ends, array.nbytes)
    assert library.LiteRtUnlockTensorBuffer(ctypes.c_void_p(handles[0])) == 0


environment = made("LiteRtCreateEnvironment", 0, None)
options = made("LiteRtCreateOptions")
assert library.LiteRtSetOptionsHardwareAccelerators(options, 1) == 0  # the CPU
opened = made("LiteRtCreateModelFromFile", environment, b"graph.tflite")
name = "LiteRtCreateCompiledModel"
compiled = watched(f"{name} through ctypes", lambda: made(name, environment, opened, options))
inputs, outputs = buffer("Input"), buffer("Output")
copied(inputs, given, 1)
one = ctypes.c_size_t(1)
arguments = compiled, ctypes.c_size_t(0), one, inputs, one, outputs
status = watched("LiteRtRunCompiledModel through ctypes", lambda: library.LiteRtRunCompiledModel(*arguments))
assert status == 0
results.append(np.empty_like(given))
copied(outputs, results[-1], 0)
print("the results are alike:", all(np.allclose(result, results[0], atol=1e-3) and result.any() for result in results))
PYTHON
venv/bin/python seen.py > seen 2> log || { cat log >&2; exit 1; }
cat seen
diff - seen <<'SEEN'
Interpreter.allocate_tensors(): the other thread waits
Interpreter.invoke(): the other thread goes on
CompiledModel.from_file(): the other thread waits
CompiledModel.run_by_index(): the other thread waits
LiteRtCreateCompiledModel through ctypes: the other thread goes on
LiteRtRunCompiledModel through ctypes: the other thread goes on
the results are alike: True
SEEN
