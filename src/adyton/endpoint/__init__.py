"""An attested endpoint: TLS whose server proves, on this very connection, which measured program answers.

`hello` and `binding` are pure. `channel` is TLS without sockets. `ingress` is the side inside the TEE, `dial` the
client's. `tcp_door` and `http_door` are what programs on the client's machine connect to. docs/endpoint.md has every
byte.
"""
