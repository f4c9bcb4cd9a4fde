"""The console: HTML pages at `/` and below `/console/`, drawn by the server; see docs/console.md.

`page.py` says what a page and its regions are, `routes.py` lists them; a module for each resource declares its own.
"""
