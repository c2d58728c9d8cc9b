"""Networks that turn a degraded image into the clean condition."""
