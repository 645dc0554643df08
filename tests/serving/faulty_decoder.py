"""The decoder, which the last byte of a file tells what goes wrong."""

import os
import signal
import time

from unpaired.serve import decode

NORMAL = decode.handle


def handle(ask, blobs):
    if blobs[0].endswith(b"segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if blobs[0].endswith(b"hang"):
        time.sleep(60)
    return NORMAL(ask, blobs)


decode.handle = handle
decode.main()
