"""Golden data of the reference implementations, and the runner that holds our code against it."""
