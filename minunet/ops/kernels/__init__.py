"""The launches of kernels/*.cu behind the ops: each file allocates what its op returns and says how it is cut."""
