"""What a run is watched with: a Grafana dashboard, Prometheus rules, and how both get where they are read."""
