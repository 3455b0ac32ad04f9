"""An exported model, opened safely and applied to photos of any size."""
