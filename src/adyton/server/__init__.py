"""The sockets of the owner's side: the key server's protocols, its metrics and the dashboard."""
