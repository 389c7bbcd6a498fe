"""Studying minunet by looking at it: small examples of every op, and what its kernels do."""
