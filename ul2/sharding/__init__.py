"""Where arrays live: the device mesh, the sharding rules and placement."""
