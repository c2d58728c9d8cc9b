from restoration.lean_imports import install as _install

_install()
