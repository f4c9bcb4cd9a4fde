"""How webhooks are delivered: signed, to addresses that may be reached, with bounds on time and answer."""
