"""A worker that says what it is told."""

from unpaired.serve.messages import channel, say, work

source, out = channel()
say(out, {})
work(source, out, lambda ask, blobs: (ask, blobs))
