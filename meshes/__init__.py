"""Named mesh axes, parallel strategies, placement and partition rules; the catalogue of clusters and deployments."""
