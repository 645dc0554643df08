"""`unpaired serve`: models behind HTTP, and a page to play with them.

limits      how much of everything a server takes
messages    between the server and its two workers
decode      a worker: bytes of strangers to pixels, in a process that may die of them
paint       a worker: the models
workers     the server's side of a worker: starts it, waits for it, replaces it
guard       what every request passes first: host, origin, token, framing, sizes
connection  HTTP on a socket, with deadlines
app         the routes
run         the command
"""
