"""The kind `command`: programs run as jobs, in a folder of their own, watched by a keeper that outlives the worker."""
