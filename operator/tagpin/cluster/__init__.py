"""The cluster edge: Kubernetes, through kopf and the API client."""
