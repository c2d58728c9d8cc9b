"""What a run left: metrics, ledger, pictures, report."""
