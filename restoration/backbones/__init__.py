"""Networks beside the base model: cleaners, which make the clean condition, and the features of the metrics."""
