"""One module per client, each run by itself against a running server: `python -m clients.openai BASE_URL`."""
