"""Where the kind `chat` gets its completions from."""
