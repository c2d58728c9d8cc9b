"""The machinery that base models share: networks, their files and their layouts."""
