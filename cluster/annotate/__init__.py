"""What of a run is worth rating, and the page that tells what people said: `restorl annotate`."""
