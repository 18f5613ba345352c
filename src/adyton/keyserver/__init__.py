"""Who gets a key: the decision, its reasons, what is kept of it. Nothing here opens a socket."""
