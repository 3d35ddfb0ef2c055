"""What stands between the socket and the engine: server, middleware, batches."""
