"""A verdict as Kubernetes manifests."""
