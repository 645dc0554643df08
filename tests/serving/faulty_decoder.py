"""The decoder, which the last byte of a file tells what goes wrong."""

import os
import signal
import time

from unpaired.serve import decode, messages

NORMAL = decode.handle


def handle(ask, blobs):
    if blobs[0].endswith(b"segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if blobs[0].endswith(b"hang"):
        time.sleep(60)
    if blobs[0].endswith(b"rubbish"):
        out.write(messages.LENGTH.pack(2) + b"[]")
        out.flush()
    return NORMAL(ask, blobs)


source, out = decode.channel()
decode.channel = lambda: (source, out)
decode.handle = handle
decode.main()
