"""How gunicorn serves the song service; settings come from the environment."""

from __future__ import annotations

import os

wsgi_app = "songapi.api:create_app()"
pythonpath = "src"
bind = os.environ.get("BIND", "0.0.0.0:8000")
workers = 1
worker_class = "gthread"
threads = 8
timeout = 60
graceful_timeout = 5
control_socket_disable = True  # newer gunicorns would leave one in the home directory
accesslog = "-"
errorlog = "-"
certfile = os.environ.get("TLS_CERTIFICATE") or None
keyfile = os.environ.get("TLS_KEY") or None
