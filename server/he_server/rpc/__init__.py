"""gRPC around the service: TLS, admission, deadlines, idle connections, reloading."""
