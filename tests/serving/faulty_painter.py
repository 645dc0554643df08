"""The worker with the models, which a seed tells what goes wrong."""

import os
import signal
import time

import torch

from unpaired.serve import paint

NORMAL = paint.Painter.translate


def translate(self, t, ask, blobs):
    seed = ask["seed"]
    if seed == 1:
        time.sleep(60)
    if seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 3:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    if seed == 4:
        with open(os.environ["CALLS"], "a") as file:
            file.write(".")
        time.sleep(0.4)
    if seed == 5:
        ask["style"] = [[float("nan")] * 8]
    if seed == 6:
        raise KeyError("a defect with a /secret/path")
    if seed == 8:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    print("a library that prints", flush=True)
    return NORMAL(self, t, ask, blobs)


def load(path):
    raise RuntimeError(os.environ["FAULT"])


paint.Painter.translate = translate
if "FAULT" in os.environ:
    paint.Translator.load = load
time.sleep(float(os.environ.get("LOADING", 0)))
paint.main()
