"""The registry edge: OCI distribution over HTTP."""
