"""Test that a frame allocates no array in the steady state, as counted by Python and by the C library."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.sources.source import Source, SourceFrame
from m2h_deploy.stream.stream import Stream
from tests.fake_engine import FakeEngine

#: The smallest array of a frame is a plane of the network's size (112 x 140 bytes); what Python makes for a frame
#: (numbers, a dict of timings, views) stays far below.
ARRAY = 112 * 140

#: The C library's limit is higher: ONNX Runtime allocates one block of 20 to 40 KB per run, and OpenCV's
#: resize buffers rows. A float plane of the network's size is 63 KB, the labels of a 640 x 480 image 307 KB.
PIECE = 40_000

#: While enabled, records the sizes of allocations by malloc and its variants, from a minimum size on, in the thread
#: that enabled it: ONNX Runtime has threads of its own.
COUNTER = """
#include <stddef.h>
static __thread long counting __attribute__((tls_model("initial-exec")));
static volatile long count;
static long sizes[256];
static void note(size_t size) {
    if (counting && size >= PIECE) sizes[__sync_fetch_and_add(&count, 1) & 255] = (long)size;
}
void counter_start(void) { count = 0; counting = 1; }
long counter_stop(void) { counting = 0; return count; }
long counter_size(long index) { return sizes[index & 255]; }
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
void *malloc(size_t n) { note(n); return __libc_malloc(n); }
void *calloc(size_t m, size_t n) { note(m * n); return __libc_calloc(m, n); }
void *realloc(void *p, size_t n) { note(n); return __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { note(n); return __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { note(n); return __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) { note(n); *p = __libc_memalign(a, n); return *p ? 0 : 12; }
"""

#: Runs frames with the counter enabled: the image's size, the network's size, and a batch of two kinds of source.
PROGRAM = """
import ctypes, json, sys
import cv2, numpy as np
from m2h_deploy import Runtime
cv2.setNumThreads(1)
counter = ctypes.CDLL(None)
def stop():
    return [counter.counter_size(index) for index in range(counter.counter_stop())]
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
runtime = Runtime.load(sys.argv[1], threads=1, self_test=False)
counts = {}
for resolution, out in (("image", runtime.new_prediction(480, 640)), ("network", runtime.new_prediction())):
    for _ in range(3):
        runtime(image, out=out, resolution=resolution)
    counter.counter_start()
    for _ in range(5):
        runtime(image, out=out, resolution=resolution)
    counts[resolution] = stop()
counter.counter_start()
held = np.empty(1 << 20, np.uint8)
counts["an array"] = stop()
print(json.dumps(counts))
"""


def peak_of(call) -> int:
    """Return the peak number of bytes that `call` allocates beyond those held before."""
    call()
    call()
    tracemalloc.start()
    try:
        call()  # tracing from the start includes the objects that a frame replaces
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(480, 640), (112, 140), (64, 64)])
@pytest.mark.parametrize("resolution", ["image", "network"])
def test_a_frame_with_out_allocates_no_array(tiny_bundle, size, resolution):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with Runtime.load(tiny_bundle, threads=1, self_test=False) as runtime:
        out = runtime.new_prediction(*(size if resolution == "image" else ()))
        assert peak_of(lambda: runtime(image, out=out, resolution=resolution)) < ARRAY
        assert peak_of(lambda: runtime(image, resolution=resolution)) > ARRAY, "without out it makes new ones"


def test_a_stream_that_reuses_allocates_no_array(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    source = Source(400, lambda: (SourceFrame("f", image) for _ in range(400)))
    with Runtime(bundle, FakeEngine(bundle)) as runtime:
        answers = iter(Stream(runtime, source, reuse=True))
        for _ in range(100):
            next(answers)
        time.sleep(0.5)  # all queues fill: then all the arrays that can be in work exist
        tracemalloc.start()
        for _ in range(100):
            next(answers)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(150):
            next(answers)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        answers.close()
    assert peak < 480 * 640, "the smallest array of an answer is its labels"


def test_the_c_library_allocates_no_array_either(tiny_bundle, tmp_path):
    """OpenCV and the engine allocate outside Python: a preloaded library counts these allocations."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "counter.c").write_text(f"#define PIECE {PIECE}\n{COUNTER}")
    library = tmp_path / "counter.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, tmp_path / "counter.c"],
        check=True,
        capture_output=True,
    )
    environment = {"LD_PRELOAD": str(library), "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"image": [], "network": [], "an array": [1 << 20]}
