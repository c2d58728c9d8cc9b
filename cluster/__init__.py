import os

from restoration.lean_imports import install as _install

# Our processes start others, they never go on in a fork; gRPC would write a line about each to the terminal.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
_install()
