"""OpenAI's Responses: objects with a state of their own, over a request on the queue. See docs/responses.md."""
