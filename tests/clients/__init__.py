"""What people use, unmodified, against Penstock with real vLLM. A package, so that its files share one stack."""
