"""The asyncio servicers: one module per service, the same whichever transport carries them."""
