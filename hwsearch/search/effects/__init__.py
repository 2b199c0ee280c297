"""How much single choices hurt, measured one by one, on disk before the next begins."""
