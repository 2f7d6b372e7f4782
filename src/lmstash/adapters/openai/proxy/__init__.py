"""`lmstash proxy`: a caching reverse proxy in front of any OpenAI-compatible server.

`upstream.py` sends requests on · `flights.py` one of all who ask the same asks upstream, the others listen ·
`metrics.py` what happened, for Prometheus · `app.py` the ASGI application · `serving.py` a process that serves it.
"""
