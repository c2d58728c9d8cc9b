"""Full-reference metrics under named protocols: a PSNR or SSIM without its protocol's name means nothing."""

from restoration.metrics.protocols import DEFAULT_PROTOCOL, PROTOCOLS, Protocol, measure, protocol

__all__ = ["DEFAULT_PROTOCOL", "PROTOCOLS", "Protocol", "measure", "protocol"]
